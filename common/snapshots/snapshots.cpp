// SPDX-License-Identifier: BSD-3-Clause
//
// Of format 1 (ceph: src/librbd/operation/SnapshotCreateRequest.cc,
// SnapshotRemoveRequest.cc, old_format), what is visible when making a snapshot
// ends after a step:
//
//  1. The pool has given out an id.  Nobody has it: nothing.
//  2. The header has the snapshot.  Until all clients know, what they write may
//     be in it.
//
// and when removing one:
//
//  1. The pool has the id back: the snapshot reads as anything now, and
//     `rbd snap rm` removes it.
//  2. The header has it no more.

#include "snapshots/snapshots.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <optional>
#include <utility>

#include "formats/format2_snapshots.hpp"
#include "formats/formats.hpp"
#include "rados/error.hpp"
#include "rbd/format1.hpp"
#include "rbd/format2.hpp"
#include "rbd/watch_notify.hpp"
#include "snapshots/format2_changes.hpp"
#include "snapshots/lock_or_owner.hpp"

namespace nbdrados {

namespace {

using Entry = Snapshots::Entry;

constexpr std::uint64_t format1_header_limit = 8 << 20;
constexpr int rounds_max = 20;  // as for format 2

Format1Header read_format1(const Pool& pool, const std::string& oid) {
  std::string bytes;
  check(pool.wait(pool.store->read_all(oid, format1_header_limit, &bytes)),
        "cannot read header object " + oid);
  return decode_format1(bytes);
}

int change(const Pool& pool, const std::string& oid, std::string_view method,
           const std::string& input) {
  WriteOp op;
  op.assert_exists().exec(rbd_class, method, input);
  return pool.wait(pool.store->write(oid, op, {}));
}

void tell_format1(const Pool& pool, const std::string& oid,
                  const Snapshots::Log& log) {
  const int r = pool.store->notify(oid, encode_notify_header_update(),
                                   ExclusiveLock::notify_limit);
  if (r == -ETIMEDOUT)
    log(oid + ": a client that has the image open has not answered that it "
              "knows of the snapshot; it is gone, or what it writes may be in "
              "the snapshot");
  else
    check(r, "cannot tell the clients of the image");
}

void remove_format1(const Pool& pool, const std::string& image, SnapId snap) {
  const std::string oid = format1_header_oid(image);
  const Format1Header header = read_format1(pool, oid);
  const auto found = std::ranges::find(header.snapshots, snap,
                                       &Format1Snapshot::id);
  if (found == header.snapshots.end()) return;
  check(pool.data->release_snap_id(snap),
        "cannot give back the id of the snapshot");
  const int r =
      change(pool, oid, "snap_remove", encode_snap_remove(found->name));
  if (r != -ENOENT)
    check(r, "cannot remove the snapshot from header object " + oid);
  // Nothing depends on that they know.
  (void)pool.store->notify(oid, encode_notify_header_update(),
                           std::chrono::seconds(1));
}

/// As Format2Changes::create, what has been made is removed where it fails.
[[noreturn]] void undo_format1(const Pool& pool, const std::string& image,
                               SnapId snap, const Error& why) {
  try {
    remove_format1(pool, image, snap);
  } catch (const Error& e) {
    throw Error(why.code(), std::string(why.what()) +
                                "; the snapshot is left: " + e.what());
  }
  throw Error(why.code(), why.what());
}

SnapId create_format1(const Pool& pool, const std::string& image,
                      const std::string& name, const Snapshots::Log& log) {
  const std::string oid = format1_header_oid(image);
  for (int round = 0; round < rounds_max; ++round) {
    SnapId snap = 0;
    check(pool.data->make_snap_id(&snap), "cannot get an id for the snapshot");
    const int r = change(pool, oid, "snap_add", encode_snap_add(name, snap));
    if (r >= 0) {
      try {
        tell_format1(pool, oid, log);
      } catch (const Error& e) {
        undo_format1(pool, image, snap, e);
      }
      return snap;
    }
    if (r == -ESTALE) continue;
    if (r == -ETIMEDOUT)
      throw Error(ETIMEDOUT, "no answer to the creation of the snapshot " +
                                 name + ", which may exist or come yet");
    (void)pool.data->release_snap_id(snap);
    check(r, "cannot add a snapshot to header object " + oid);
  }
  throw Error(ESTALE, "other clients make snapshots all the time");
}

std::vector<Entry> list_format1(const Pool& pool, const std::string& image) {
  std::vector<Entry> out;
  for (const Format1Snapshot& s :
       read_format1(pool, format1_header_oid(image)).snapshots)
    out.push_back({.id = s.id, .name = s.name});
  return out;
}

std::vector<Entry> list_format2(const Pool& pool, const std::string& id) {
  const std::string oid = format2_header_oid(id);
  std::string output;
  check(pool.call(oid, "get_snapcontext", {}, &output),
        "cannot read header object " + oid);
  std::vector<Entry> out;
  for (const Format2Snapshot& s :
       read_snapshots(pool, oid, decode_get_snapcontext(output)))
    if (s.kind == Format2SnapshotKind::user)
      out.push_back({.id = s.id, .name = s.name});
    else if (s.kind == Format2SnapshotKind::trash)
      out.push_back(
          {.id = s.id, .name = s.original_name, .in_trash = true});
  return out;
}

/// An image of format 2, for those who may change it.
class Format2Head {
 public:
  Format2Head(const std::shared_ptr<Cluster>& cluster,
              const ImageIdentity& image, const ImageSpec& spec,
              const Snapshots::Log& log)
      : pool_(open_pool(cluster, image.pool, image.name_space)),
        format_(open_format(cluster, image, spec, {.writable = true})),
        changes_(pool_, *format_, image.image, log) {}

  [[nodiscard]] const Pool& pool() const noexcept { return pool_; }
  [[nodiscard]] Format2Changes& changes() noexcept { return changes_; }
  [[nodiscard]] View view() { return format_->load(); }

  /// As LockOrOwner::carry_out.
  [[nodiscard]] std::optional<int> carry_out(
      const std::function<void()>& here, const std::string& request) {
    LockOrOwner who(*pool_.store, format_->traits().header_oid,
                    *format_->lock(), pool_.timeout());
    return who.carry_out(here, request);
  }

 private:
  const Pool pool_;
  const std::unique_ptr<ImageFormat> format_;
  Format2Changes changes_;
};

SnapId create_format2(Format2Head& head, const std::string& id,
                      const std::string& name) {
  const View now = head.view();
  if (!now.unwritable.empty()) throw Error(ENOTSUP, now.unwritable);
  SnapId snap = 0;
  const auto here = [&] { snap = head.changes().create(name); };
  if (!now.lockable) {
    here();
    return snap;
  }
  const auto made = [&]() -> std::optional<SnapId> {
    for (const Entry& each : list_format2(head.pool(), id))
      if (each.name == name && !each.in_trash) return each.id;
    return std::nullopt;
  };
  std::optional<int> answer;
  try {
    answer = head.carry_out(here, encode_notify_snap_create(name));
  } catch (const Error& e) {
    // The owner may have made it, and answered too late each time.
    if (e.code() != EBUSY) throw;
    if (const auto late = made()) return *late;
    throw Error(EBUSY, std::string(e.what()) + ", and may still make " + name);
  }
  if (!answer) return snap;
  // EEXIST: it has been asked twice, because an answer has been late.
  if (*answer != -EEXIST)
    check(*answer, "the owner of the exclusive lock cannot make it");
  if (const auto found = made()) return *found;
  throw Error(EIO, "the owner of the exclusive lock says that it has made the "
                   "snapshot " + name + ", and it is not there");
}

void remove_format2(Format2Head& head, SnapId snap, const std::string& name) {
  const View now = head.view();
  const auto here = [&] { head.changes().remove(snap); };
  // Without fast-diff nothing in it is shared with who writes (ceph:
  // src/librbd/Operations.cc, snap_remove).
  if (!now.lockable || !now.fast_diff) {
    here();
    return;
  }
  const auto answer = head.carry_out(here, encode_notify_snap_remove(name));
  if (answer && *answer != -ENOENT)
    check(*answer, "the owner of the exclusive lock cannot remove it");
}

}  // namespace

Snapshots::Snapshots(std::shared_ptr<Cluster> cluster, ImageIdentity image,
                     ImageSpec spec, Log log)
    : cluster_(std::move(cluster)),
      image_(std::move(image)),
      spec_(std::move(spec)),
      log_(std::move(log)) {}

std::vector<Entry> Snapshots::list() const {
  const Pool pool = open_pool(cluster_, image_.pool, image_.name_space);
  switch (image_.format) {
    case FormatChoice::format1:
      return list_format1(pool, image_.image);
    case FormatChoice::format2:
      return list_format2(pool, image_.image);
    default:
      return {};
  }
}

SnapId Snapshots::create(const std::string& name) {
  switch (image_.format) {
    case FormatChoice::format1:
      return create_format1(
          open_pool(cluster_, image_.pool, image_.name_space), image_.image,
          name, log_);
    case FormatChoice::format2: {
      Format2Head head(cluster_, image_, spec_, log_);
      return create_format2(head, image_.image, name);
    }
    default:
      throw Error(ENOTSUP, "striped objects have no snapshots");
  }
}

void Snapshots::remove(SnapId snap, const std::string& name) {
  switch (image_.format) {
    case FormatChoice::format1:
      remove_format1(open_pool(cluster_, image_.pool, image_.name_space),
                     image_.image, snap);
      break;
    case FormatChoice::format2: {
      Format2Head head(cluster_, image_, spec_, log_);
      remove_format2(head, snap, name);
      break;
    }
    default:
      throw Error(ENOTSUP, "striped objects have no snapshots");
  }
}

}  // namespace nbdrados
