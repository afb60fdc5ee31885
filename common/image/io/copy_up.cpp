// SPDX-License-Identifier: BSD-3-Clause

#include "image/io/copy_up.hpp"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "rados/error.hpp"
#include "rbd/format2.hpp"

namespace nbdrados {

namespace {

/// The input of sparse_copyup for what an object is to hold, if it holds zeros
/// that are worth to be left out; else nothing.
std::string sparse_copy(const std::string& data) {
  constexpr std::size_t block = 4096;     // what BlueStore allocates
  constexpr std::size_t gap = 2 * block;  // fewer zeros are not worth it
  std::vector<ObjectRange> extents;
  for (std::size_t at = 0; at < data.size();) {
    at = data.find_first_not_of('\0', at);
    if (at == std::string::npos) break;
    const std::size_t start = at / block * block;
    const std::size_t stop = std::min(start + block, data.size());
    if (!extents.empty() &&
        start - (extents.back().offset + extents.back().length) < gap)
      extents.back().length = stop - extents.back().offset;
    else
      extents.push_back({start, stop - start});
    at = stop;
  }
  std::string packed;
  std::size_t size = 0;
  for (const ObjectRange& e : extents) size += e.length;
  if (size == data.size()) return {};
  packed.reserve(size);
  for (const ObjectRange& e : extents) packed.append(data, e.offset, e.length);
  return encode_sparse_copyup(extents, packed);
}

}  // namespace

class CopyUp::Turn {
 public:
  Turn(CopyUp& owner, std::uint64_t object_no)
      : owner_(owner), object_no_(object_no) {
    std::unique_lock lock(owner_.mutex_);
    mine_ = owner_.under_way_.insert(object_no_).second;
    if (!mine_)
      owner_.changed_.wait(
          lock, [this] { return !owner_.under_way_.contains(object_no_); });
  }
  ~Turn() {
    if (!mine_) return;
    {
      const std::scoped_lock lock(owner_.mutex_);
      owner_.under_way_.erase(object_no_);
    }
    owner_.changed_.notify_all();
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;
  /// False: another thread has just done it, or failed to.
  [[nodiscard]] bool mine() const noexcept { return mine_; }

 private:
  CopyUp& owner_;
  const std::uint64_t object_no_;
  bool mine_ = false;
};

std::string CopyUp::parent_data(const View& view, std::uint64_t object_no) {
  const Layout& layout = core_.traits.layout;
  std::vector<Fragment> parts =
      layout.image_parts(object_no, 0, layout.object_size());
  std::erase_if(parts, [&](const Fragment& f) {
    return f.image_offset >= view.overlap;
  });
  std::uint64_t end = 0;
  for (Fragment& f : parts) {
    f.length = std::min(f.length, view.overlap - f.image_offset);
    end = std::max(end, f.object_offset + f.length);
  }
  std::string data(end, '\0');
  try {
    core_.options.workers->for_each(parts.size(), [&](std::size_t i) {
      const Fragment& f = parts[i];
      (void)reader_.read_parent(view, data.data() + f.object_offset, f.length,
                                f.image_offset);
    });
  } catch (const Error& e) {
    throw Error(e.code(), core_.traits.name + ": cannot copy object " +
                              core_.traits.object_name(object_no) +
                              " from the parent: " + e.what());
  }
  // What an object has not, reads as zeros.
  const std::size_t last = data.find_last_not_of('\0');
  data.resize(last == std::string::npos ? 0 : last + 1);
  return data;
}

/// Begins to update the maps of the snapshots: before the object is made for
/// them, and after.
std::vector<CopyUp::SnapshotUpdate> CopyUp::update_snapshots(
    const View& view, std::uint64_t object_no, bool made) {
  std::vector<SnapshotUpdate> updates;
  if (!view.snaps_mapped) return updates;
  updates.reserve(view.snapc.snaps.size());
  // The oldest snapshot has the data; for the others it is unchanged.
  bool oldest = true;
  for (auto snap = view.snapc.snaps.rbegin(); snap != view.snapc.snaps.rend();
       ++snap) {
    SnapshotUpdate& u = updates.emplace_back();
    u.snap = *snap;
    u.pending = core_.format->update_snapshot_map(
        u.snap, object_no,
        !made                       ? ObjectState::pending
        : oldest || !view.fast_diff ? ObjectState::exists
                                    : ObjectState::exists_clean,
        made ? ObjectState::pending : ObjectState::nonexistent, &u.request);
    oldest = false;
  }
  return updates;
}

void CopyUp::finish(std::vector<SnapshotUpdate>& updates) {
  for (SnapshotUpdate& u : updates) {
    const int r = u.pending->wait();
    // A snapshot that is being deleted, or of a smaller image.
    if (r >= 0 || r == -ENOENT || r == -ERANGE) continue;
    core_.log(core_.traits.name + ": the object map of snapshot " +
              std::to_string(u.snap) + " is given up: " + error_text(-r));
    core_.format->invalidate_map(u.snap);
  }
}

/// One operation: the parent's data, where there is any, and what `add` adds.
template <class Add>
int CopyUp::write_copy(std::uint64_t object_no, const std::string& data,
                       const SnapContext& snapc, Add&& add) {
  const std::string sparse = sparse_copy(data);
  for (;;) {
    WriteOp op;
    const bool is_sparse = !sparse.empty() && sparse_copyup_;
    if (!data.empty()) {
      // First: a hint makes the object, and then nothing is copied up.
      if (is_sparse)
        op.exec(rbd_class, "sparse_copyup", sparse);
      else
        op.exec(rbd_class, "copyup", data);
      add_hint(core_.traits, op);
    }
    add(op);
    const int r =
        core_.data.write(core_.traits.object_name(object_no), op, snapc)
            ->wait();
    // OSDs before Ceph 16 do not know sparse_copyup.
    if (r != -EOPNOTSUPP || !is_sparse) return r;
    sparse_copyup_ = false;
  }
}

/// The object is there, if the change of it had the result `r`.  Returns that.
int CopyUp::made(const View& view, std::uint64_t object_no, int r) {
  if (view.map && r >= 0)
    change_map(view, [&](ObjectMap& map) { map.mark_exists(object_no, 1); });
  return r;
}

int CopyUp::copy(const View& view, ObjectChange& change, std::size_t i) {
  const ObjectTarget target = change.target(i);
  const std::uint64_t object_no = target.object_no;
  std::string data = parent_data(view, object_no);
  // Zeros upon zeros.
  if (data.empty() && target.effect == ObjectTarget::Effect::zero) return 0;

  const bool for_snapshots = !data.empty() && !view.snapc.snaps.empty();
  std::vector<SnapshotUpdate> updates;
  if (for_snapshots) updates = update_snapshots(view, object_no, false);
  finish(updates);
  if (view.map)
    change_map(view, [&](ObjectMap& map) { map.begin_creation(object_no, 1); });
  if (for_snapshots)
    if (const int r = write_copy(object_no, data, {}, [](WriteOp&) {}); r < 0)
      return r;
  if (for_snapshots) updates = update_snapshots(view, object_no, true);
  if (for_snapshots || target.whole) data.clear();
  const int r = write_copy(object_no, data, view.snapc, [&](WriteOp& op) {
    add_operation(core_.traits, view, change, i, op);
  });
  finish(updates);
  return made(view, object_no, r);
}

int CopyUp::run(const View& view, ObjectChange& change, std::size_t i) {
  const std::uint64_t object_no = change.target(i).object_no;
  for (;;) {
    const Turn turn(*this, object_no);
    if (turn.mine()) return copy(view, change, i);
    WriteOp op;
    op.assert_exists();
    add_operation(core_.traits, view, change, i, op);
    const int r =
        core_.data.write(core_.traits.object_name(object_no), op, view.snapc)
            ->wait();
    if (r != -ENOENT) return made(view, object_no, r);
  }
}

}  // namespace nbdrados
