// SPDX-License-Identifier: BSD-3-Clause

#include "rbd/format2.hpp"

#include <cstddef>
#include <limits>

namespace nbdrados {

namespace {

constexpr std::uint64_t size_max =
    static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
// Longer than any prefix that Ceph makes ("rbd_data." with two numbers); the
// OSD's own limit for object names is 2048 (osd_max_object_name_len).
constexpr std::size_t prefix_max = 256;

// ceph: src/cls/rbd/cls_rbd_types.h, SnapshotNamespaceType
constexpr std::uint32_t namespace_user = 0;
constexpr std::uint32_t namespace_group = 1;
constexpr std::uint32_t namespace_trash = 2;
constexpr std::uint32_t namespace_mirror = 3;

std::uint64_t image_size(Decoder& in, std::string_view field) {
  const std::uint64_t size = in.u64(field);
  if (size > size_max)
    in.fail(field, std::to_string(size) + " is above 2^63 - 1");
  return size;
}

SnapId snap_id(Decoder& in, std::string_view field) {
  const SnapId id = in.u64(field);
  if (id == 0 || id >= snap_head)
    in.fail(field, std::to_string(id) + " is no snapshot id");
  return id;
}

std::map<std::string, std::string> string_map(std::string_view bytes,
                                              std::string_view what,
                                              bool names) {
  Decoder in(bytes, what);
  const std::string_view key_field = names ? "image name" : "key";
  std::map<std::string, std::string> out;
  // Two lengths a pair.
  for (std::size_t n = in.count(8, "count"); n > 0; --n) {
    std::string key = in.name(key_field);
    std::string value = names ? in.name("image id") : in.string("value");
    const auto [at, is_new] =
        out.insert_or_assign(std::move(key), std::move(value));
    if (!is_new) in.fail(key_field, in_quotes(at->first) + " occurs twice");
  }
  return out;
}

Format2Parent parent_spec(Decoder in) {
  Format2Parent parent;
  parent.pool = in.i64("parent pool");
  parent.pool_namespace = in.string("parent namespace");
  parent.image_id = in.string("parent image id");
  parent.snap = in.u64("parent snapshot");
  return parent;
}

// A pool of -1 says that there is no parent; the rest is then without
// meaning.
bool has_parent(const Decoder& in, const Format2Parent& parent) {
  if (parent.pool == -1) return false;
  if (parent.pool < 0)
    in.fail("parent pool", std::to_string(parent.pool) + " is negative");
  if (parent.image_id.empty()) in.fail("parent image id", "is empty");
  if (parent.snap == 0 || parent.snap >= snap_head)
    in.fail("parent snapshot",
            std::to_string(parent.snap) + " is no snapshot id");
  return true;
}

std::string one_string(std::string_view value) {
  Encoder out;
  out.string(value);
  return out.take();
}

std::string one_name(std::string_view bytes, std::string_view what,
                     std::string_view field) {
  Decoder in(bytes, what);
  return in.name(field);
}

std::uint64_t one_u64(std::string_view bytes, std::string_view what,
                      std::string_view field) {
  Decoder in(bytes, what);
  return in.u64(field);
}

}  // namespace

std::string format2_id_oid(std::string_view image) {
  std::string oid = "rbd_id.";
  oid += image;
  return oid;
}

std::string format2_header_oid(std::string_view id) {
  std::string oid = "rbd_header.";
  oid += id;
  return oid;
}

std::string format2_object_map_oid(std::string_view id, SnapId snap) {
  std::string oid = "rbd_object_map.";
  oid += id;
  return snap == snap_head ? oid : numbered_oid(oid, snap, 16);
}

std::string_view to_string(Format2SnapshotKind kind) noexcept {
  switch (kind) {
    case Format2SnapshotKind::user:
      return "user";
    case Format2SnapshotKind::group:
      return "group";
    case Format2SnapshotKind::trash:
      return "trash";
    case Format2SnapshotKind::mirror:
      return "mirror";
    case Format2SnapshotKind::unknown:
      break;
  }
  return "unknown";
}

std::string encode_snap_id(SnapId snap) {
  Encoder out;
  out.u64(snap);
  return out.take();
}

std::string encode_get_features(SnapId snap, bool read_only) {
  Encoder out;
  out.u64(snap).u8(read_only ? 1 : 0);
  return out.take();
}

std::string encode_list(std::string_view start, std::uint64_t max_return) {
  Encoder out;
  out.string(start).u64(max_return);
  return out.take();
}

std::string encode_dir_get_name(std::string_view id) { return one_string(id); }

std::string encode_dir_get_id(std::string_view image) {
  return one_string(image);
}

std::string encode_metadata_get(std::string_view key) {
  return one_string(key);
}

std::string decode_image_id(std::string_view bytes) {
  return one_name(bytes, "rbd_id object", "image id");
}

Format2Size decode_get_size(std::string_view bytes) {
  Decoder in(bytes, "get_size");
  Format2Size out;
  out.order = in.u8("order");
  if (out.order < format2_order_open_min ||
      out.order > format2_order_open_max)
    in.fail("order", std::to_string(out.order) + " is not in [" +
                         std::to_string(format2_order_open_min) + ", " +
                         std::to_string(format2_order_open_max) + "]");
  out.size = image_size(in, "image size");
  return out;
}

Format2Features decode_get_features(std::string_view bytes) {
  Decoder in(bytes, "get_features");
  Format2Features out;
  out.features = in.u64("features");
  out.incompatible = in.u64("incompatible features");
  return out;
}

std::string decode_get_object_prefix(std::string_view bytes) {
  Decoder in(bytes, "get_object_prefix");
  std::string prefix = in.name("object prefix");
  if (prefix.size() > prefix_max)
    in.fail("object prefix", in_quotes(prefix) + " is longer than " +
                                 std::to_string(prefix_max) + " bytes");
  return prefix;
}

SnapContext decode_get_snapcontext(std::string_view bytes) {
  Decoder in(bytes, "get_snapcontext");
  SnapContext snapc;
  snapc.seq = in.u64("seq");
  if (snapc.seq >= snap_head)
    in.fail("seq", std::to_string(snapc.seq) + " is no snapshot id");
  const std::size_t n = in.count(8, "count");
  snapc.snaps.reserve(n);
  for (std::size_t i = 0; i < n; ++i) {
    const SnapId id = snap_id(in, "snapshot id");
    if (id > snapc.seq)
      in.fail("snapshot id", std::to_string(id) + " is above seq " +
                                 std::to_string(snapc.seq));
    if (i > 0 && id >= snapc.snaps.back())
      in.fail("snapshot id", std::to_string(id) +
                                 " is not below the one before it, " +
                                 std::to_string(snapc.snaps.back()));
    snapc.snaps.push_back(id);
  }
  return snapc;
}

std::pair<std::uint64_t, std::uint64_t> decode_get_stripe_unit_count(
    std::string_view bytes) {
  Decoder in(bytes, "get_stripe_unit_count");
  const std::uint64_t unit = in.u64("stripe unit");
  if (unit == 0) in.fail("stripe unit", "is 0");
  const std::uint64_t count = in.u64("stripe count");
  if (count == 0) in.fail("stripe count", "is 0");
  return {unit, count};
}

std::optional<std::int64_t> decode_get_data_pool(std::string_view bytes) {
  Decoder in(bytes, "get_data_pool");
  const std::int64_t pool = in.i64("data pool");
  if (pool == -1) return std::nullopt;
  if (pool < 0)
    in.fail("data pool", std::to_string(pool) + " is negative");
  return pool;
}

std::uint64_t decode_get_flags(std::string_view bytes) {
  return one_u64(bytes, "get_flags", "flags");
}

std::uint64_t decode_op_features_get(std::string_view bytes) {
  return one_u64(bytes, "op_features_get", "operation features");
}

std::optional<Format2Parent> decode_parent_get(std::string_view bytes) {
  Decoder in(bytes, "parent_get");
  Format2Parent parent = parent_spec(in.frame(1, "parent"));
  if (!has_parent(in, parent)) return std::nullopt;
  return parent;
}

std::optional<std::uint64_t> decode_parent_overlap_get(
    std::string_view bytes) {
  Decoder in(bytes, "parent_overlap_get");
  if (in.u8("presence") == 0) return std::nullopt;
  return image_size(in, "parent overlap");
}

Format2Snapshot decode_snapshot_get(std::string_view bytes) {
  Decoder outer(bytes, "snapshot_get");
  Decoder in = outer.frame(1, "snapshot");
  Format2Snapshot snap;
  snap.id = snap_id(in, "snapshot id");
  // Version 2 of the namespace appends to the kinds group and mirror.
  Decoder space = in.frame(2, "snapshot namespace");
  switch (space.u32("snapshot namespace type")) {
    case namespace_user:
      snap.kind = Format2SnapshotKind::user;
      break;
    case namespace_group:
      snap.kind = Format2SnapshotKind::group;
      break;
    case namespace_trash:
      snap.kind = Format2SnapshotKind::trash;
      snap.original_name = space.string("original snapshot name");
      break;
    case namespace_mirror:
      snap.kind = Format2SnapshotKind::mirror;
      break;
    default:
      snap.kind = Format2SnapshotKind::unknown;
      break;
  }
  snap.name = in.name("snapshot name");
  snap.size = image_size(in, "snapshot image size");
  snap.created = in.u32("snapshot time");
  static_cast<void>(in.u32("snapshot time (nanoseconds)"));
  snap.children = in.u32("count of children");
  return snap;
}

Format2Migration decode_migration_get(std::string_view bytes) {
  Decoder outer(bytes, "migration_get");
  Decoder in = outer.frame(3, "migration");
  Format2Migration out;
  const unsigned side = in.u8("migration side");
  if (side != 1 && side != 2)
    in.fail("migration side", std::to_string(side) + " is not known");
  out.side = static_cast<Format2Migration::Side>(side);
  out.pool = in.i64("pool");
  out.pool_namespace = in.string("pool namespace");
  out.image_name = in.string("image name");
  out.image_id = in.string("image id");
  return out;
}

std::map<std::string, std::string> decode_dir_list(std::string_view bytes) {
  return string_map(bytes, "dir_list", true);
}

std::string decode_dir_get_name(std::string_view bytes) {
  return one_name(bytes, "dir_get_name", "image name");
}

std::vector<std::string> decode_namespace_list(std::string_view bytes) {
  Decoder in(bytes, "namespace_list");
  const std::size_t n = in.count(4, "count");
  std::vector<std::string> out;
  out.reserve(n);
  for (std::size_t i = 0; i < n; ++i) {
    std::string name = in.name("namespace name");
    if (i > 0 && name <= out.back())
      in.fail("namespace name", in_quotes(name) + " is not above " +
                                    in_quotes(out.back()) + " before it");
    out.push_back(std::move(name));
  }
  return out;
}

std::map<std::string, std::string> decode_metadata_list(
    std::string_view bytes) {
  return string_map(bytes, "metadata_list", false);
}

std::string decode_metadata_get(std::string_view bytes) {
  Decoder in(bytes, "metadata_get");
  return in.string("value");
}

std::string encode_snapshot_add(std::string_view name, SnapId snap) {
  Encoder out;
  out.string(name).u64(snap);
  out.frame(1, 1, [&] { out.u32(namespace_user); });
  return out.take();
}

std::string encode_set_flags(SnapId snap, std::uint64_t flags,
                             std::uint64_t mask) {
  Encoder out;
  out.u64(flags).u64(mask).u64(snap);
  return out.take();
}

std::string encode_sparse_copyup(std::span<const ObjectRange> extents,
                                 std::string_view data) {
  Encoder out;
  out.u32(static_cast<std::uint32_t>(extents.size()));
  for (const ObjectRange& extent : extents)
    out.u64(extent.offset).u64(extent.length);
  out.string(data);
  return out.take();
}

}  // namespace nbdrados
