// SPDX-License-Identifier: BSD-3-Clause
//
// RBD format 1: the header object NAME.rbd as bytes and as a value.
//
// Format (ceph: src/include/rbd_types.h, struct rbd_obj_header_ondisk;
// src/cls/rbd/cls_rbd.cc, snap_add and snap_remove), little-endian:
//
//     offset  size  field
//          0    40  text, "<<< Rados Block Device Image >>>\n", then NULs
//         40    24  object prefix (block_name), then NULs
//         64     4  signature "RBD\0"
//         68     8  version "001.005\0"
//         76     1  order: objects are 2^order bytes
//         77     1  encryption, 0
//         78     1  compression, 0
//         79     1  unused
//         80     8  image size in bytes
//         88     8  snap_seq: the newest snapshot id ever taken
//         96     4  snap_count
//        100     4  reserved
//        104     8  snap_names_len
//        112    16  for each snapshot, newest first: id, image size then
//               ..  snap_names_len bytes: their names in the same order,
//                   each with a NUL at its end
//
// Nothing follows the names in a header that Ceph wrote; what follows is
// ignored, as librbd and the Linux kernel ignore it.
//
// All functions are pure and thread-safe.

#ifndef NBDRADOS_RBD_FORMAT1_HPP
#define NBDRADOS_RBD_FORMAT1_HPP

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "rados/object_store.hpp"
#include "rbd/encoding.hpp"

namespace nbdrados {

/// Size of the header without snapshots, in bytes.
inline constexpr std::size_t format1_header_size = 112;
/// The object prefix has room for this many characters (its field is 24
/// bytes with the NUL at the end).
inline constexpr std::size_t format1_prefix_max = 23;
/// Object sizes of new images, as powers of two: what librbd creates.
inline constexpr unsigned format1_order_min = 12;
inline constexpr unsigned format1_order_max = 25;
/// Object sizes of images that are opened: what the Linux kernel opens
/// (drivers/block/rbd.c, rbd_dev_ondisk_valid).  librbd 16 does not check:
/// it opens 0 to 31, crashes at 32 and takes 200 as 200 mod 64 (measured).
inline constexpr unsigned format1_order_open_min = 9;
inline constexpr unsigned format1_order_open_max = 31;

struct Format1Snapshot {
  SnapId id = 0;
  std::uint64_t size = 0;  // of the image at that time, bytes
  std::string name;
  bool operator==(const Format1Snapshot&) const = default;
};

struct Format1Header {
  std::string object_prefix;
  unsigned order = 0;      // objects are 2^order bytes
  std::uint64_t size = 0;  // of the image, bytes
  SnapId snap_seq = 0;
  std::vector<Format1Snapshot> snapshots;  // newest first

  bool operator==(const Format1Header&) const = default;

  /// The snapshot context for writes to the image.
  [[nodiscard]] SnapContext snap_context() const;
};

/// Decodes and verifies a header.  Throws Error(EIO) that names the field
/// and its value for: wrong text, signature or version (001.00x is right);
/// order outside of [format1_order_open_min, format1_order_open_max];
/// encryption or compression; a size above 2^63 - 1; more snapshots or names
/// than there
/// are bytes; snapshot ids that are 0, not strictly descending or above
/// snap_seq; names that are empty, doubled or without an end; an object
/// prefix that is empty or without an end.
[[nodiscard]] Format1Header decode_format1(std::string_view bytes);

/// The inverse.  Throws Error(EINVAL) for a value that decode_format1 would
/// refuse.
[[nodiscard]] std::string encode_format1(const Format1Header& header);

/// Input of the methods snap_add and snap_remove of the class rbd, which change
/// a header.  ESTALE: the header has seen a later id; EEXIST: it has a snapshot
/// of that name; ENOENT: it has none.
[[nodiscard]] std::string encode_snap_add(std::string_view name, SnapId snap);
[[nodiscard]] std::string encode_snap_remove(std::string_view name);

/// The name of the header object: "NAME.rbd".
[[nodiscard]] std::string format1_header_oid(std::string_view image);

/// The name of a data object: "PREFIX.%012x".
[[nodiscard]] inline std::string format1_data_oid(std::string_view prefix,
                                                  std::uint64_t object_no) {
  return numbered_oid(prefix, object_no, 12);
}

}  // namespace nbdrados

#endif
