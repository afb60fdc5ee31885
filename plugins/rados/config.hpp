// SPDX-License-Identifier: BSD-3-Clause
//
// The plugin's parameters.

#ifndef NBDRADOS_PLUGIN_CONFIG_HPP
#define NBDRADOS_PLUGIN_CONFIG_HPP

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "allow.hpp"
#include "formats/catalog.hpp"
#include "open/image_config.hpp"

namespace nbdrados {

/// What clients are told of the names in a pool.
enum class ListMode : std::uint8_t { all, images, none };

/// What the command line says.  Written while nbdkit reads it, constant
/// afterwards.
class Config : public ImageConfig {
 public:
  /// All keys, for nbdkit --help.
  [[nodiscard]] static const char* help();

  /// One key=value.  Throws Error(EINVAL) that names the key.
  void set(const std::string& key, const std::string& value);

  /// Checks what can be checked without a cluster.  Throws Error.
  void complete();

  // Without `image`, export names choose images.
  ListMode list = ListMode::all;
  std::optional<AccessList> allow;  // without it everybody may all

  /// The image that a client asks for.  Throws Error: the name leads out of
  /// the configured pool or namespace, or makes no sense.
  [[nodiscard]] ImageSpec export_spec(std::string_view export_name) const;

  /// The one name of an image for the rules of `allow`: as in the list of
  /// exports, or as it would be there if the image were not configured.
  [[nodiscard]] std::string listed_name(const ImageSpec& spec) const;
};

}  // namespace nbdrados

#endif
