// SPDX-License-Identifier: BSD-3-Clause
//
// The plugin's parameters.

#ifndef NBDRADOS_PLUGIN_CONFIG_HPP
#define NBDRADOS_PLUGIN_CONFIG_HPP

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "allow.hpp"
#include "formats/catalog.hpp"
#include "image/ownership/lock_mode.hpp"
#include "image/status/extents_mode.hpp"
#include "rados/cluster.hpp"

namespace nbdrados {

/// What clients are told of the names in a pool.
enum class ListMode : std::uint8_t { all, images, none };

/// What the command line says.  Written while nbdkit reads it, constant
/// afterwards.
class Config {
 public:
  /// All keys, for nbdkit --help.
  [[nodiscard]] static const char* help();

  /// One key=value.  Throws Error(EINVAL) that names the key.
  void set(const std::string& key, const std::string& value);

  /// Checks what can be checked without a cluster.  Throws Error.
  void complete();

  std::set<std::string> given;  // the keys
  ClusterConfig cluster;
  std::size_t clients = 4;  // see ClientPool
  std::string pool;
  std::optional<std::string> name_space;
  /// Without it, export names choose images.
  std::optional<std::string> image;
  std::string snapshot;
  std::string since;
  FormatChoice format = FormatChoice::automatic;
  ListMode list = ListMode::all;
  bool create = false;
  CreateOptions create_options;
  LockMode lock = LockMode::exclusive;
  bool break_lock = false;
  std::chrono::milliseconds lock_wait = default_lock_wait;
  ExtentsMode extents = ExtentsMode::exact;
  std::uint64_t discard_granularity = 0;  // bytes; 0: the default
  std::optional<AccessList> allow;        // without it everybody may all

  /// The configured image; only where `image` is set.
  [[nodiscard]] ImageSpec spec() const;

  /// The image that a client asks for.  Throws Error: the name leads out of
  /// the configured pool or namespace, or makes no sense.
  [[nodiscard]] ImageSpec export_spec(std::string_view export_name) const;

  /// The one name of an image for the rules of `allow`: as in the list of
  /// exports, or as it would be there if the image were not configured.
  [[nodiscard]] std::string listed_name(const ImageSpec& spec) const;

 private:
  /// Takes apart what image= says.
  void split_image();
};

}  // namespace nbdrados

#endif
