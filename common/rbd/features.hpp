// SPDX-License-Identifier: BSD-3-Clause
//
// The feature bits of RBD format 2 images and their names
// (ceph: src/include/rbd/features.h).

#ifndef NBDRADOS_RBD_FEATURES_HPP
#define NBDRADOS_RBD_FEATURES_HPP

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace nbdrados {

inline constexpr std::uint64_t feature_layering = std::uint64_t{1} << 0;
inline constexpr std::uint64_t feature_striping = std::uint64_t{1} << 1;
inline constexpr std::uint64_t feature_exclusive_lock = std::uint64_t{1} << 2;
inline constexpr std::uint64_t feature_object_map = std::uint64_t{1} << 3;
inline constexpr std::uint64_t feature_fast_diff = std::uint64_t{1} << 4;
inline constexpr std::uint64_t feature_deep_flatten = std::uint64_t{1} << 5;
inline constexpr std::uint64_t feature_journaling = std::uint64_t{1} << 6;
inline constexpr std::uint64_t feature_data_pool = std::uint64_t{1} << 7;
inline constexpr std::uint64_t feature_operations = std::uint64_t{1} << 8;
inline constexpr std::uint64_t feature_migrating = std::uint64_t{1} << 9;
inline constexpr std::uint64_t feature_non_primary = std::uint64_t{1} << 10;
inline constexpr std::uint64_t feature_dirty_cache = std::uint64_t{1} << 11;

/// All bits that have a name here.
inline constexpr std::uint64_t features_known = (std::uint64_t{1} << 12) - 1;

/// Features that come and go with what is done to an image.  Nobody creates
/// an image with them.
inline constexpr std::uint64_t features_internal =
    feature_operations | feature_migrating | feature_non_primary |
    feature_dirty_cache;

/// What rbd_default_features means where it is empty
/// (RBD_FEATURES_DEFAULT).
inline constexpr std::uint64_t features_default =
    feature_layering | feature_exclusive_lock | feature_object_map |
    feature_fast_diff | feature_deep_flatten;

/// Operation features: why feature_operations is set.
inline constexpr std::uint64_t op_feature_clone_parent = std::uint64_t{1} << 0;
inline constexpr std::uint64_t op_feature_clone_child = std::uint64_t{1} << 1;
inline constexpr std::uint64_t op_feature_group = std::uint64_t{1} << 2;
inline constexpr std::uint64_t op_feature_snap_trash = std::uint64_t{1} << 3;

/// Image flags (ceph: src/include/rbd/librbd.h): the object map, or its
/// fast-diff part, must not be believed.
inline constexpr std::uint64_t flag_object_map_invalid = std::uint64_t{1} << 0;
inline constexpr std::uint64_t flag_fast_diff_invalid = std::uint64_t{1} << 1;

/// The names of all bits that are set, lowest first, as `rbd info` spells
/// them: "layering, exclusive-lock, unknown bit 40".  Empty for 0.
[[nodiscard]] std::string feature_names(std::uint64_t features);

/// The bit of a feature's name; none: there is no such name.
[[nodiscard]] std::optional<std::uint64_t> feature_of_name(
    std::string_view name) noexcept;

/// Names with commas between them, or one decimal number.  Throws
/// Error(EINVAL) that says what is not a feature.
[[nodiscard]] std::uint64_t parse_features(std::string_view text);

/// The value of Ceph's option rbd_default_features, as librbd reads it: names
/// with commas and spaces between them, or one decimal number.  What is unknown
/// or internal is left out, and an empty value is features_default
/// (ceph: src/librbd/Features.cc, rbd_features_from_string).
[[nodiscard]] std::uint64_t parse_default_features(std::string_view text);

/// As feature_names, for operation features: "clone-child, group".
[[nodiscard]] std::string op_feature_names(std::uint64_t op_features);

}  // namespace nbdrados

#endif
