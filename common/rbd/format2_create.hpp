// SPDX-License-Identifier: BSD-3-Clause
//
// RBD format 2: the inputs of the methods of the `rbd` object class that
// make an image, and the names and limits that belong to making one.
//
// Sources: ceph: src/cls/rbd/cls_rbd_client.cc (how librbd calls the
// methods), src/cls/rbd/cls_rbd_types.h (DirectoryState),
// src/librbd/Utils.cc (generate_image_id),
// src/librbd/image/ValidatePoolRequest.cc (rbd_info).
//
// All functions are pure and thread-safe.

#ifndef NBDRADOS_RBD_FORMAT2_CREATE_HPP
#define NBDRADOS_RBD_FORMAT2_CREATE_HPP

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "rbd/format2.hpp"

namespace nbdrados {

/// Object sizes of new images, as powers of two: 4 KiB to 32 MiB
/// (ceph: src/librbd/image/CreateRequest.cc, validate_order).
inline constexpr unsigned format2_order_min = 12;
inline constexpr unsigned format2_order_max = 25;

/// Whether images can have their data in a pool; lives in its default
/// namespace.  Its content says how far the check has come.  The pool's own
/// settings are its metadata (metadata_list).
inline constexpr std::string_view rbd_info_oid = "rbd_info";
inline constexpr std::string_view rbd_info_begun = "validate";
inline constexpr std::string_view rbd_info_done = "overwrite validated";
/// What a pool's setting begins with in the metadata of rbd_info; the name
/// of the option follows (ceph: src/librbd/ImageCtx.cc,
/// METADATA_CONF_PREFIX).
inline constexpr std::string_view rbd_info_setting = "conf_";

/// An image id as librbd makes it: the client's id and a random number, in
/// hexadecimal, and of these the last 14 digits.
[[nodiscard]] std::string format2_image_id(std::uint64_t client_id,
                                           std::uint32_t random);

/// What the names of an image's data objects begin with: "rbd_data.ID", or
/// "rbd_data.POOL.ID" where the data has a pool of its own; POOL is the
/// number of the pool that the header is in.
[[nodiscard]] std::string format2_object_prefix(
    std::string_view id, std::optional<std::int64_t> header_pool);

/// The present metadata of a new image, for the method `create` of its
/// header object.
struct Format2NewHeader {
  std::uint64_t size = 0;  // bytes
  unsigned order = 0;      // objects are 2^order bytes
  std::uint64_t features = 0;
  std::string object_prefix;
  std::int64_t data_pool = -1;  // -1: that of the header
};
/// For create.  ENOSYS: the OSD does not know a feature.
[[nodiscard]] std::string encode_create(const Format2NewHeader& header);
/// For set_stripe_unit_count: stripe unit in bytes.  EINVAL: the unit does
/// not divide the object size.
[[nodiscard]] std::string encode_set_stripe_unit_count(std::uint64_t unit,
                                                       std::uint64_t count);
/// For set_id of rbd_id.NAME.  EEXIST: it has one.
[[nodiscard]] std::string encode_set_id(std::string_view id);
/// For dir_add_image of rbd_directory.  EEXIST: the name or the id is there.
[[nodiscard]] std::string encode_dir_add_image(std::string_view image,
                                               std::string_view id);
/// For dir_remove_image of rbd_directory.  ENOENT: no such name; ESTALE: it
/// has another id.
[[nodiscard]] std::string encode_dir_remove_image(std::string_view image,
                                                  std::string_view id);
/// For dir_rename_image of rbd_directory.  ENOENT: no such name or id; EEXIST:
/// the new name is there; ESTALE: the name has another id.
[[nodiscard]] std::string encode_dir_rename_image(std::string_view from,
                                                  std::string_view to,
                                                  std::string_view id);
/// For dir_state_assert of rbd_directory: images may be added.  ENOENT: no
/// such object, so no such namespace; EBUSY: the namespace is being removed.
[[nodiscard]] std::string encode_dir_state_ready();

/// The reply of get_all_features: the features that the OSD knows.
[[nodiscard]] std::uint64_t decode_get_all_features(std::string_view bytes);

}  // namespace nbdrados

#endif
