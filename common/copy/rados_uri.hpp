// SPDX-License-Identifier: BSD-3-Clause
//
// How the command line names an image:
//
//     rados:POOL/[NAMESPACE/]IMAGE[@SNAP][?KEY=VALUE[&KEY=VALUE...]]
//
// The name is as the plugin takes it; the keys are the plugin's parameters, in
// whose values "%XX" stands for a byte.

#ifndef NBDRADOS_COPY_RADOS_URI_HPP
#define NBDRADOS_COPY_RADOS_URI_HPP

#include <string>
#include <string_view>

#include "open/image_config.hpp"

namespace nbdrados::copy {

[[nodiscard]] inline bool is_rados_uri(std::string_view text) {
  return text.starts_with("rados:");
}

/// Throws Error(EINVAL), or std::invalid_argument, that names the parameter.
/// Not complete yet: see ImageConfig::check_cluster and check_image.
[[nodiscard]] ImageConfig parse_rados_uri(std::string_view text);

/// Sets the parameters KEY=VALUE,KEY=VALUE... of a new image; a comma that no
/// KEY= follows belongs to the value.  Throws as parse_rados_uri.
void parse_create_options(std::string_view text, ImageConfig& config);

}  // namespace nbdrados::copy

#endif
