// SPDX-License-Identifier: BSD-3-Clause

#include "snapshots/format2_changes.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <exception>
#include <utility>

#include "image/ownership/exclusive_lock.hpp"
#include "image/ownership/object_map.hpp"
#include "rados/error.hpp"
#include "rbd/cls_lock.hpp"
#include "rbd/features.hpp"
#include "rbd/object_map.hpp"
#include "rbd/watch_notify.hpp"

namespace nbdrados {

namespace {

/// Others that make snapshots at the same time can be faster, but not for ever.
constexpr int rounds_max = 20;

/// For the answers of clients that are there.
constexpr std::chrono::seconds removed_limit{1};

/// Bytes of an object map with object_map_max objects, and its checksums.
constexpr std::uint64_t map_limit = 128 << 20;

/// The first step of an operation that changes the map of the head: nobody else
/// has its lock (see ObjectMap::open).
std::string assert_map_locked() {
  return encode_assert_locked(rbd_lock_name, LockType::exclusive, "", "");
}

}  // namespace

/// The lock of the head's object map; none where there is no map that can be
/// believed.
class Format2Changes::HeadMap {
 public:
  HeadMap(ImageFormat& format, const View& now, const Log& log) {
    if (!now.mappable) return;
    try {
      map_ = format.open_map(
          format.traits().layout.object_count(now.size));
    } catch (const Error& e) {
      if (e.code() != EINVAL && e.code() != EIO && e.code() != ENOENT) throw;
      log(about(format.traits().name,
                std::string("the object map cannot be used: ") + e.what()));
      // A snapshot that is made now has that from the head.
      format.invalidate_map(snap_head);
    }
  }
  ~HeadMap() {
    try {
      if (map_) map_->close();
    } catch (const std::exception&) {
      // The next owner breaks the lock of the map.
    }
  }
  HeadMap(const HeadMap&) = delete;
  HeadMap& operator=(const HeadMap&) = delete;

  [[nodiscard]] explicit operator bool() const noexcept {
    return map_ != nullptr;
  }

 private:
  std::shared_ptr<ObjectMap> map_;
};

Format2Changes::Format2Changes(const Pool& pool, ImageFormat& format,
                               std::string id, const Log& log)
    : pool_(pool),
      format_(format),
      id_(std::move(id)),
      header_oid_(format2_header_oid(id_)),
      log_(log) {}

void Format2Changes::check_lock(const View& now, bool needed) const {
  if (now.lockable && needed && !format_.lock()->held())
    throw Error(EAGAIN, "the features of the image have just been changed");
}

int Format2Changes::change_header(std::string_view method,
                                  const std::string& input) {
  WriteOp op;
  op.assert_exists().exec(rbd_class, method, input);
  return pool_.wait(pool_.store->write(header_oid_, op, {}));
}

std::optional<Format2Snapshot> Format2Changes::find(SnapId snap) const {
  std::string output;
  const int r =
      pool_.call(header_oid_, "snapshot_get", encode_snap_id(snap), &output);
  if (r == -ENOENT) return std::nullopt;
  check(r, "cannot read header object " + header_oid_ + " (snapshot_get)");
  return decode_snapshot_get(output);
}

/// Who writes must know before anybody reads it.
void Format2Changes::tell_of_new() {
  const int r =
      pool_.store->notify(header_oid_, encode_notify_header_update(),
                          std::min<std::chrono::milliseconds>(
                              pool_.timeout(), ExclusiveLock::notify_limit));
  if (r == -ETIMEDOUT)
    log_(format_.traits().name +
         ": a client that has the image open has not answered that it knows of "
         "the snapshot; it is gone, or what it writes may be in the snapshot");
  else
    check(r, "cannot tell the clients of the image");
}

/// Nothing depends on that they know, and one that is gone would take long.
void Format2Changes::tell_of_removed() noexcept {
  try {
    (void)pool_.store->notify(header_oid_, encode_notify_header_update(),
                              removed_limit);
  } catch (const std::exception&) {
    // As above.
  }
}

// Making ---------------------------------------------------------------------

SnapId Format2Changes::create(const std::string& name) {
  const View now = format_.load();
  if (!now.unwritable.empty()) throw Error(ENOTSUP, now.unwritable);
  check_lock(now, true);
  const HeadMap map(format_, now, log_);
  const SnapId snap = add_to_header(name);
  try {
    if (map) copy_map(snap);
    if (map && now.fast_diff) mark_clean();
    tell_of_new();
  } catch (const Error& e) {
    undo(snap, e);
  }
  return snap;
}

SnapId Format2Changes::add_to_header(const std::string& name) {
  for (int round = 0; round < rounds_max; ++round) {
    SnapId snap = 0;
    check(format_.data_store().make_snap_id(&snap),
          "cannot get an id for the snapshot");
    const int r =
        change_header("snapshot_add", encode_snapshot_add(name, snap));
    if (r >= 0) return snap;
    // Another client has made a snapshot meanwhile.
    if (r == -ESTALE) continue;
    if (r == -ETIMEDOUT && find(snap)) return snap;
    if (r == -ETIMEDOUT)
      throw Error(ETIMEDOUT, "no answer to the creation of the snapshot " +
                                 name + ", which may exist or come yet");
    (void)format_.data_store().release_snap_id(snap);
    if (r == -EDQUOT)
      throw Error(EDQUOT, "the image has as many snapshots as it may have "
                          "(rbd snap limit)");
    check(r, "cannot add a snapshot to header object " + header_oid_);
  }
  throw Error(ESTALE, "other clients make snapshots all the time");
}

void Format2Changes::copy_map(SnapId snap) {
  const std::string from = format2_object_map_oid(id_, snap_head);
  std::string bytes;
  check(pool_.wait(pool_.store->read_all(from, map_limit, &bytes)),
        "cannot read object map " + from);
  const ConstPiece piece{bytes.data(), bytes.size()};
  WriteOp op;
  op.write_full({&piece, 1});
  const std::string to = format2_object_map_oid(id_, snap);
  check(pool_.wait(pool_.store->write(to, op, {})),
        "cannot write object map " + to);
}

void Format2Changes::mark_clean() {
  const std::string oid = format2_object_map_oid(id_, snap_head);
  const std::string locked = assert_map_locked();
  WriteOp op;
  op.exec(lock_class, lock_method_assert_locked, locked)
      .exec(rbd_class, object_map_method_snap_add, "");
  check(pool_.wait(pool_.store->write(oid, op, {})),
        "cannot change object map " + oid);
}

void Format2Changes::undo(SnapId snap, const Error& why) {
  try {
    remove_steps(snap, false);
  } catch (const Error& e) {
    throw Error(why.code(), std::string(why.what()) +
                                "; the snapshot is left: " + e.what());
  }
  throw Error(why.code(), why.what());
}

// Removing -------------------------------------------------------------------

void Format2Changes::remove(SnapId snap) {
  if (!find(snap)) return;
  check_parent(snap);
  remove_steps(snap, true);
}

/// A snapshot of a clone keeps the parent's, which must learn when nobody needs
/// it any more (ceph: src/librbd/image/DetachChildRequest.cc).  As long as the
/// head is a clone, too, that is not so.
void Format2Changes::check_parent(SnapId snap) const {
  const auto overlap = [&](SnapId of) {
    std::string output;
    check(pool_.call(header_oid_, "parent_overlap_get", encode_snap_id(of),
                     &output),
          "cannot read header object " + header_oid_);
    return decode_parent_overlap_get(output);
  };
  if (overlap(snap) && !overlap(snap_head))
    throw Error(EBUSY, "the image has been flattened since");
}

void Format2Changes::remove_steps(SnapId snap, bool trash) {
  const View now = format_.load();
  check_lock(now, now.fast_diff);
  if (trash && !move_to_trash(snap)) return;
  if (now.snaps_mapped) {
    const HeadMap head(format_, now, log_);
    if (now.fast_diff) merge_map(now, snap, head);
    const std::string map = format2_object_map_oid(id_, snap);
    WriteOp op;
    op.remove();
    const int r = pool_.wait(pool_.store->write(map, op, {}));
    if (r != -ENOENT) check(r, "cannot remove object map " + map);
  }
  check(format_.data_store().release_snap_id(snap),
        "cannot give back the id of the snapshot");
  const int r = change_header("snapshot_remove", encode_snap_id(snap));
  if (r != -ENOENT)
    check(r, "cannot remove the snapshot from header object " + header_oid_);
  tell_of_removed();
}

/// False: it has clones, and stays there.
bool Format2Changes::move_to_trash(SnapId snap) {
  const int r = change_header("snapshot_trash_add", encode_snap_id(snap));
  if (r == -EBUSY) throw Error(EBUSY, "it is protected (rbd snap unprotect)");
  // It is there already, or the OSDs are too old for clones that need it.
  if (r != -EEXIST && r != -EOPNOTSUPP && r != -ENOENT)
    check(r, "cannot move the snapshot to the trash");
  const auto found = find(snap);
  if (!found || found->children == 0) return true;
  tell_of_removed();
  return false;
}

void Format2Changes::merge_map(const View& now, SnapId snap,
                               const HeadMap& head) {
  SnapId next = snap_head;
  for (const SnapId other : now.snapc.snaps)
    if (other > snap) next = std::min(next, other);
  // Without one that can be believed there is nothing that it could say.
  if (next == snap_head && !head) return;
  std::string map;
  const int r =
      pool_.call(format2_object_map_oid(id_, snap), object_map_method_load, {},
                 &map);
  // An interrupted removal has come as far, or it never had one, and then the
  // next one says nothing by it.
  if (r == -ENOENT) return;
  if (r < 0 || !merged(snap, next, map)) format_.invalidate_map(next);
}

/// False: it is not known what the next map would have to say.
bool Format2Changes::merged(SnapId snap, SnapId next, const std::string& map) {
  std::string output;
  check(pool_.call(header_oid_, "get_flags", encode_snap_id(snap), &output),
        "cannot read header object " + header_oid_);
  if ((decode_get_flags(output) & flag_object_map_invalid) != 0) return false;
  const std::string locked = assert_map_locked();
  WriteOp op;
  op.assert_exists();
  if (next == snap_head)
    op.exec(lock_class, lock_method_assert_locked, locked);
  op.exec(rbd_class, object_map_method_snap_remove, map);
  const int r = pool_.wait(
      pool_.store->write(format2_object_map_oid(id_, next), op, {}));
  return r >= 0 || r == -ENOENT;
}

}  // namespace nbdrados
