// SPDX-License-Identifier: BSD-3-Clause
//
// RBD format 2, the reading side: what the methods of the `rbd` object
// class take and give, and the names of objects.
//
// Sources: ceph: src/cls/rbd/cls_rbd.cc (the methods),
// src/cls/rbd/cls_rbd_client.cc (how librbd calls them),
// src/cls/rbd/cls_rbd_types.cc (SnapshotInfo, ParentImageSpec,
// MigrationSpec), src/include/rbd_types.h (object names).
//
// Each decode function throws Error(EIO) that names the method, the field
// and what is wrong.  Unknown bytes after a reply are ignored, as librbd
// ignores them: newer servers append.  Methods without an encode function
// here take an empty input.  All functions are pure and thread-safe.

#ifndef NBDRADOS_RBD_FORMAT2_HPP
#define NBDRADOS_RBD_FORMAT2_HPP

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rados/object_store.hpp"
#include "rbd/encoding.hpp"

namespace nbdrados {

// --- object names ---------------------------------------------------------

/// The object class.
inline constexpr char rbd_class[] = "rbd";
/// Names and ids of all images of a pool and namespace.
inline constexpr std::string_view rbd_directory_oid = "rbd_directory";
/// Names of all namespaces of a pool; lives in the default namespace.
inline constexpr std::string_view rbd_namespace_oid = "rbd_namespace";

/// "rbd_id.NAME": its content is the image id, see decode_image_id.
[[nodiscard]] std::string format2_id_oid(std::string_view image);
/// "rbd_header.ID".
[[nodiscard]] std::string format2_header_oid(std::string_view id);
/// "PREFIX.%016x"; the prefix is the header's: "rbd_data.ID", or, for an
/// image with a data pool, "rbd_data.POOL.ID" with the id of the pool that
/// the header is in.
[[nodiscard]] inline std::string format2_data_oid(std::string_view prefix,
                                                  std::uint64_t object_no) {
  return numbered_oid(prefix, object_no, 16);
}
/// "rbd_object_map.ID" for the present, "rbd_object_map.ID.%016x" for a
/// snapshot.
[[nodiscard]] std::string format2_object_map_oid(std::string_view id,
                                                 SnapId snap);

// --- values ---------------------------------------------------------------

struct Format2Size {
  std::uint64_t size = 0;  // bytes, at most 2^63 - 1
  unsigned order = 0;      // objects are 2^order bytes
  bool operator==(const Format2Size&) const = default;
};

/// Object sizes that decode_get_size accepts, as powers of two.  librbd
/// creates 12 to 25; the object class takes any; see format1_order_open_min.
inline constexpr unsigned format2_order_open_min = 9;
inline constexpr unsigned format2_order_open_max = 31;

struct Format2Features {
  std::uint64_t features = 0;
  /// Those that a client must know: for reading, or for writing too,
  /// as encode_get_features asked.
  std::uint64_t incompatible = 0;
  bool operator==(const Format2Features&) const = default;
};

/// Where a clone's missing data is.
struct Format2Parent {
  std::int64_t pool = -1;
  std::string pool_namespace;
  std::string image_id;
  SnapId snap = 0;
  bool operator==(const Format2Parent&) const = default;
};

/// What a snapshot belongs to.  Only user snapshots are the user's own.
enum class Format2SnapshotKind : std::uint8_t {
  user,
  group,
  trash,
  mirror,
  unknown,
};
[[nodiscard]] std::string_view to_string(Format2SnapshotKind kind) noexcept;

struct Format2Snapshot {
  SnapId id = 0;
  std::string name;
  std::uint64_t size = 0;  // of the image at that time, bytes
  Format2SnapshotKind kind = Format2SnapshotKind::user;
  /// Kind trash: the name that the user knew.
  std::string original_name;
  /// Seconds since 1970; 0 where unknown.
  std::uint64_t created = 0;
  /// Clones of it that need no protection of it (clone format 2).
  std::uint32_t children = 0;
  bool operator==(const Format2Snapshot&) const = default;
};

/// An image on its way to or from elsewhere.  Its data is in two places.
struct Format2Migration {
  enum class Side : std::uint8_t { source = 1, destination = 2 };
  Side side = Side::source;
  std::int64_t pool = -1;  // the other side; -1: not in this cluster
  std::string pool_namespace;
  std::string image_name;
  std::string image_id;
  bool operator==(const Format2Migration&) const = default;
};

/// What one must know to read an image.  The image code assembles it from
/// the replies below.
struct Format2Core {
  std::uint64_t size = 0;  // bytes
  unsigned order = 0;      // objects are 2^order bytes
  std::uint64_t features = 0;
  std::uint64_t incompatible = 0;
  std::uint64_t flags = 0;
  std::uint64_t op_features = 0;
  std::string object_prefix;
  SnapContext snapc;
  /// Stripe unit (bytes) and stripe count, with feature_striping.
  std::optional<std::pair<std::uint64_t, std::uint64_t>> striping;
  /// Where the data objects are, with feature_data_pool.
  std::optional<std::int64_t> data_pool;
  /// The parent and how many bytes of the image it backs.
  std::optional<Format2Parent> parent;
  std::uint64_t parent_overlap = 0;
  std::optional<Format2Migration> migration;
  bool operator==(const Format2Core&) const = default;
};

// --- inputs ---------------------------------------------------------------

/// For get_size, get_flags, parent_overlap_get, snapshot_get,
/// get_snapshot_name, snapshot_trash_add and snapshot_remove.  snap_head is the
/// present.
[[nodiscard]] std::string encode_snap_id(SnapId snap);
/// For get_features.  `read_only`: ask for what is incompatible for reading.
[[nodiscard]] std::string encode_get_features(SnapId snap, bool read_only);
/// For dir_list, namespace_list and metadata_list: at most `max_return`
/// entries after `start` (exclusive; empty: from the first).  Fewer than
/// `max_return` means that there are no more.  ENOENT: no such object, so
/// there is nothing to list.
[[nodiscard]] std::string encode_list(std::string_view start,
                                      std::uint64_t max_return);
/// For dir_get_name.
[[nodiscard]] std::string encode_dir_get_name(std::string_view id);
/// For dir_get_id.
[[nodiscard]] std::string encode_dir_get_id(std::string_view image);
/// For metadata_get.
[[nodiscard]] std::string encode_metadata_get(std::string_view key);

// --- outputs --------------------------------------------------------------

/// The content of rbd_id.NAME, and the reply of get_id: the image id.
[[nodiscard]] std::string decode_image_id(std::string_view bytes);

[[nodiscard]] Format2Size decode_get_size(std::string_view bytes);
[[nodiscard]] Format2Features decode_get_features(std::string_view bytes);
/// Not empty, without NUL bytes, at most 256 bytes.
[[nodiscard]] std::string decode_get_object_prefix(std::string_view bytes);
/// Valid: ids not 0, strictly descending, none above seq.
[[nodiscard]] SnapContext decode_get_snapcontext(std::string_view bytes);
/// Stripe unit (bytes) and stripe count, neither 0.  That the unit divides
/// the object size is for Layout to say.  The method fails with ENOEXEC
/// where the image has no feature_striping.
[[nodiscard]] std::pair<std::uint64_t, std::uint64_t>
decode_get_stripe_unit_count(std::string_view bytes);
/// Nothing where the image has no data pool of its own (the reply is -1).
[[nodiscard]] std::optional<std::int64_t> decode_get_data_pool(
    std::string_view bytes);
[[nodiscard]] std::uint64_t decode_get_flags(std::string_view bytes);
[[nodiscard]] std::uint64_t decode_op_features_get(std::string_view bytes);
/// The reply of parent_get (Ceph 14 and newer): nothing without a parent.
[[nodiscard]] std::optional<Format2Parent> decode_parent_get(
    std::string_view bytes);
/// The reply of parent_overlap_get (Ceph 14 and newer), bytes; nothing
/// without a parent at that snapshot.
[[nodiscard]] std::optional<std::uint64_t> decode_parent_overlap_get(
    std::string_view bytes);

/// The reply of snapshot_get (Ceph 13 and newer).
[[nodiscard]] Format2Snapshot decode_snapshot_get(std::string_view bytes);

/// The reply of migration_get.  The method fails with EINVAL where the
/// image is not migrating.
[[nodiscard]] Format2Migration decode_migration_get(std::string_view bytes);

/// The reply of dir_list: image names and their ids.
[[nodiscard]] std::map<std::string, std::string> decode_dir_list(
    std::string_view bytes);
/// The reply of dir_get_name: the name of an image.
[[nodiscard]] std::string decode_dir_get_name(std::string_view bytes);
/// The reply of namespace_list: names, ascending.
[[nodiscard]] std::vector<std::string> decode_namespace_list(
    std::string_view bytes);
/// The reply of metadata_list: keys and values.
[[nodiscard]] std::map<std::string, std::string> decode_metadata_list(
    std::string_view bytes);
/// The reply of metadata_get: the value.
[[nodiscard]] std::string decode_metadata_get(std::string_view bytes);

// --- writing --------------------------------------------------------------
//
// Sources as above.  copyup, on a data object, takes the object's new data as
// it is, without a length: it writes that at 0 if there is no such object,
// and else does nothing.  Without data it makes an empty object.

/// Input of set_flags: the bits in `mask` of an image's or a snapshot's
/// flags (flag_object_map_invalid, ...) become as in `flags`.
[[nodiscard]] std::string encode_set_flags(SnapId snap, std::uint64_t flags,
                                           std::uint64_t mask);

/// Input of snapshot_add, for a user's snapshot.  ESTALE: the header has seen a
/// later id; EEXIST: it has a snapshot of that name or id; EDQUOT: it has as
/// many as are allowed (`rbd snap limit`).
[[nodiscard]] std::string encode_snapshot_add(std::string_view name,
                                              SnapId snap);

/// Input of sparse_copyup (Ceph 16 and newer): as copyup, but what lies
/// outside of `extents` is left out.  `data` is the bytes of all extents, one
/// behind the other; extents ascend and do not overlap.  EINVAL: data is too
/// short.
[[nodiscard]] std::string encode_sparse_copyup(
    std::span<const ObjectRange> extents, std::string_view data);

}  // namespace nbdrados

#endif
