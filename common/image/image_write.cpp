// SPDX-License-Identifier: BSD-3-Clause
//
// Changing an image: write, zero and trim.
//
// Most changes are one operation on one object.  What makes more of it is an
// object map, or a parent that still backs the object.  These are the steps,
// and what others find when this process dies after each:
//
// A write to an object that the map does not call "exists":
//   1. the map says "exists", without an object.  That is allowed: the map
//      says what may exist.  Where objects are made one after the other, it
//      says so of the next ones too (object_map.hpp: reservations).
//   2. the object is written.
//
// A removal:
//   1. the map says "pending".  It counts as existing.
//   2. the object is gone; the map still says "pending".
//   3. the map says "nonexistent".
//
// A copy-up, which a change of an object needs that the image does not have
// and its parent backs (librbd: src/librbd/io/CopyupRequest.cc).  Its data
// is the parent's, as far as the overlap goes:
//   1. the maps of the snapshots say "pending" (only where the image has
//      snapshots, and the parent has data here).  The object is not there
//      yet, and is still read from the parent.  Snapshots' maps can be valid
//      where the head's is not, so this does not depend on it.
//   2. the map of the head says "pending".  The same holds.
//   3. the parent's data is in the object, written under an empty snapshot
//      context, so that it is what all snapshots see.  Nothing reads
//      otherwise than before.  (The method `copyup` does nothing where the
//      object exists already, so two writers cannot harm each other.)
//   4. the change itself, under the image's snapshot context; and the maps of
//      the snapshots say "exists", or "clean".
//   5. the map of the head says "exists".
// Without snapshots 3 and 4 are one operation.  "Exists" comes last, and not
// first as with librbd, because librbd's flatten goes by it: what it calls
// existing is not copied from the parent, which is gone afterwards.  (A
// rollback makes a snapshot's map the head's.)
//
// An object that the parent backs is never removed, which would uncover the
// parent, but made empty.  Where there are snapshots, a write or removal of
// a whole object is preceded by a copy-up too: the snapshots see the parent's
// data now, and must after a flatten, which skips objects that exist.

#include <algorithm>
#include <array>
#include <cerrno>
#include <string>
#include <utility>

#include "image/image.hpp"
#include "image/image_internal.hpp"
#include "image/ownership/maintenance.hpp"
#include "rados/error.hpp"
#include "rbd/format2.hpp"

namespace nbdrados {

namespace {

/// The OSD repeats this much over a range that is to be zero but allocated,
/// so this much is all that goes over the wire.
constexpr std::size_t zero_page_size = 4096;
alignas(64) constexpr std::array<char, zero_page_size> zero_page{};

/// Calls f(first, count) for each run of consecutive numbers.
template <class F>
void for_runs(const std::vector<std::uint64_t>& numbers, F&& f) {
  for (std::size_t i = 0; i < numbers.size();) {
    std::size_t n = 1;
    while (i + n < numbers.size() && numbers[i + n] == numbers[i] + n) ++n;
    f(numbers[i], n);
    i += n;
  }
}

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

/// What is to happen to an object.
struct Image::Target {
  enum class Effect : std::uint8_t {
    write,  // makes the object where it is missing
    zero,   // a part of it becomes zeros; what is missing may stay so
    clear,  // all of it becomes zeros and frees its space
  };
  std::uint64_t object_no = 0;
  Effect effect = Effect::write;
  bool whole = false;  // nothing is left of what it held
};

/// What that takes.
struct Image::Plan {
  bool skip = false;     // nothing
  bool guarded = false;  // a copy-up where the object is missing
  bool copy_up = false;  // a copy-up, for it is known to be missing
  bool creates = false;  // the parent has it, and perhaps nobody else
};

/// The object map could not be updated.
struct Image::MapFailure {
  std::shared_ptr<ObjectMap> map;
  Error error;
};

/// One thread at a time copies an object up; others wait for it.
class Image::CopyUpTurn {
 public:
  CopyUpTurn(Image& image, std::uint64_t object_no)
      : image_(image), object_no_(object_no) {
    std::unique_lock lock(image_.copy_ups_mutex_);
    mine_ = image_.copy_ups_.insert(object_no_).second;
    if (!mine_)
      image_.copy_ups_changed_.wait(
          lock, [this] { return !image_.copy_ups_.contains(object_no_); });
  }
  ~CopyUpTurn() {
    if (!mine_) return;
    {
      const std::scoped_lock lock(image_.copy_ups_mutex_);
      image_.copy_ups_.erase(object_no_);
    }
    image_.copy_ups_changed_.notify_all();
  }
  CopyUpTurn(const CopyUpTurn&) = delete;
  CopyUpTurn& operator=(const CopyUpTurn&) = delete;
  /// False: another thread has just done it, or failed to.
  [[nodiscard]] bool mine() const noexcept { return mine_; }

 private:
  Image& image_;
  const std::uint64_t object_no_;
  bool mine_ = false;
};

// When to write ---------------------------------------------------------------

template <class Request>
void Image::write_request(std::uint64_t length, std::uint64_t offset,
                          Request&& request) {
  if (!writable_)
    throw Error(EROFS, traits_.name + ": this export is read-only");
  bool unsure = false;
  const auto attempt = [&] {
    try {
      const auto view = request_view();
      check_request(*view, length, offset);
      if (!view->unwritable.empty())
        throw Error(EROFS, traits_.name + ": " + view->unwritable);
      // While nobody is sure to be told of a snapshot, its data could be
      // changed.
      unsure = view->failure == 0 && !guarded();
      if (unsure || !can_write_to(*view)) return false;
      request(*view);
      return true;
    } catch (const MapFailure& failure) {
      give_up_map(failure);
      return false;
    }
  };
  if (attempt()) return;
  for (;;) {
    std::uint64_t publications = 0;
    std::uint64_t refusals = 0;
    {
      const std::scoped_lock lock(hold_mutex_);
      publications = publications_;
      refusals = refusals_;
    }
    if (attempt()) return;
    if (view_.read()->needs_lock) {
      if (options_.lock == LockMode::none)
        throw Error(EROFS, traits_.name +
                               ": its exclusive lock is needed for writing, "
                               "and lock=none was given");
      maintenance_->want_lock();
    }
    if (unsure) maintenance_->doubt_watch();
    std::unique_lock lock(hold_mutex_);
    hold_changed_.wait(lock, [&] {
      return publications != publications_ || refusals != refusals_ ||
             (unsure && guarded());
    });
    if (refusals != refusals_) throw *refusal_;
  }
}

void Image::give_up_map(const MapFailure& failure) {
  const int code = failure.error.code();
  if (code == EBUSY) maintenance_->doubt_lock();
  // Somebody else has locked the map, or shut this client out.
  if (code == EBUSY || code == ESHUTDOWN)
    throw Error(ESHUTDOWN, failure.error.what());
  log(traits_.name + ": the object map is given up: " + failure.error.what());
  // Nobody may believe it any more before something is written without it.
  format_->invalidate_map(snap_head);
  const std::scoped_lock lock(state_mutex_);
  if (map_ != failure.map) return;
  map_.reset();
  publish(last_);
}

// Changing objects -------------------------------------------------------------

bool Image::backed(const View& view, std::uint64_t object_no) const noexcept {
  if (view.overlap == 0) return false;
  // The first byte of an object is the first of it in the image.
  const Layout& l = traits_.layout;
  const std::uint64_t set = object_no / l.stripe_count();
  const std::uint64_t in_set =
      object_no % l.stripe_count() *
      (l.stripe_count() == 1 ? 0 : l.stripe_unit());
  return set <= view.overlap / l.object_set_size() &&
         set * l.object_set_size() + in_set < view.overlap;
}

bool Image::removes(const View& view, const Target& target) const noexcept {
  return target.effect == Target::Effect::clear &&
         !(traits_.keep_first_object && target.object_no == 0) &&
         !backed(view, target.object_no);
}

Image::Plan Image::make_plan(const View& view, const Target& target) const {
  const bool gone = absent(view, target.object_no);
  if (!backed(view, target.object_no))
    return {.skip = gone && target.effect != Target::Effect::write};
  const bool creates =
      view.map && (gone || view.map->state(target.object_no) ==
                               ObjectState::pending);
  if (target.whole && view.snapc.snaps.empty()) return {.creates = creates};
  return {.guarded = !gone, .copy_up = gone, .creates = creates && !gone};
}

template <class AddSteps>
void Image::add_steps(const View& view, const Target& target, WriteOp& op,
                      AddSteps&& add) const {
  if (target.effect != Target::Effect::clear) {
    add(op);
  } else if (removes(view, target)) {
    op.remove();
  } else {
    // A missing object that the parent backs must come into being.
    if (backed(view, target.object_no)) op.create(false);
    op.truncate(0);
  }
}

/// `add(op)` adds the steps of a write or zero.
template <class AddSteps>
void Image::change(const View& view, const Target& target, AddSteps&& add,
                   const char* doing) {
  (void)change_many(
      view, 1, [&](std::size_t) { return target; },
      [&](WriteOp& op, std::size_t) { add(op); }, doing);
}

/// As change, for target(i), i in [0, count), ascending; many are in flight
/// at once.  Throws the first error, in their order, when all have ended.
/// Returns how many were not there, and did not need to be.
template <class GetTarget, class AddSteps>
std::size_t Image::change_many(const View& view, std::size_t count,
                        GetTarget&& target, AddSteps&& add,
                        const char* doing) {
  // Whatever comes of it, what was known of the objects holds no more.  Made
  // first, so that it is done last.
  struct Forget {
    KnownExtents& known;
    const std::size_t count;
    GetTarget& target;
    ~Forget() {
      for (std::size_t i = 0; i < count; ++i) known.forget(target(i).object_no);
    }
  };
  const Forget forget{known_, count, target};

  // One object is the common case and needs no memory for lists.
  struct Change {
    Plan plan;
    int result = 0;
  };
  Change single;
  std::vector<Change> several(count == 1 ? 0 : count);
  Change* const changes = count == 1 ? &single : several.data();

  const auto removing = [&](std::size_t i) { return removes(view, target(i)); };
  bool alone = false;
  if (view.map)
    for (std::size_t i = 0; i < count && !alone; ++i) alone = removing(i);
  const auto number = [&](std::size_t i) { return target(i).object_no; };
  std::optional<ObjectGuards::Hold> hold;
  if (view.map && count == 1)
    hold.emplace(guards_, number(0), alone);
  else if (view.map)
    hold.emplace(guards_, count, number, alone);

  for (std::size_t i = 0; i < count; ++i)
    changes[i].plan = make_plan(view, target(i));

  std::vector<std::uint64_t> removed;
  if (view.map) {
    try {
      if (count == 1 && !alone) {
        if (single.plan.creates)
          view.map->begin_creation(number(0), 1);
        else if (target(0).effect == Target::Effect::write &&
                 !backed(view, number(0)))
          view.map->mark_written(number(0));
        else if (!single.plan.skip && !single.plan.copy_up)
          view.map->mark_exists(number(0), 1);
      } else {
        std::vector<std::uint64_t> written;
        std::vector<std::uint64_t> created;
        for (std::size_t i = 0; i < count; ++i) {
          if (changes[i].plan.skip || changes[i].plan.copy_up) continue;
          (removing(i)              ? removed
           : changes[i].plan.creates ? created
                                     : written)
              .push_back(number(i));
        }
        if (!written.empty()) view.map->mark_exists(written);
        if (!created.empty()) view.map->begin_creation(created);
        for_runs(removed, [&](std::uint64_t first, std::size_t n) {
          view.map->begin_removal(first, n);
        });
      }
    } catch (const Error& e) {
      throw MapFailure{view.map, e};
    }
  }

  std::vector<std::size_t> copies;
  for_objects(
      count,
      [&](std::size_t i) -> std::unique_ptr<Pending> {
        if (changes[i].plan.skip) return nullptr;
        if (changes[i].plan.copy_up) {
          copies.push_back(i);
          return nullptr;
        }
        const Target t = target(i);
        WriteOp op;
        if (changes[i].plan.guarded) op.assert_exists();
        add_steps(view, t, op, [&](WriteOp& o) { add(o, i); });
        return data_.write(object_name(t.object_no), op, view.snapc);
      },
      [&](std::size_t i, int result) {
        changes[i].result = result;
        if (changes[i].plan.guarded && result == -ENOENT) copies.push_back(i);
      });
  // What took too long may still happen, whatever becomes of the others.
  for (std::size_t i = 0; i < count; ++i)
    if (changes[i].result == -ETIMEDOUT) distrust();
  std::vector<std::uint64_t> created;
  for (std::size_t i = 0; i < count; ++i)
    if (changes[i].plan.creates && changes[i].result >= 0)
      created.push_back(number(i));
  if (!created.empty()) {
    try {
      view.map->mark_exists(created);
    } catch (const Error& e) {
      throw MapFailure{view.map, e};
    }
  }
  const auto copy = [&](std::size_t k) {
    const std::size_t i = copies[k];
    changes[i].result =
        copy_up(view, target(i), [&](WriteOp& o) { add(o, i); });
    if (changes[i].result == -ETIMEDOUT) distrust();
  };
  if (copies.size() == 1)
    copy(0);
  else if (!copies.empty())
    options_.workers->for_each(copies.size(), copy);

  std::size_t missing = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const int r = changes[i].result;
    if (r >= 0) continue;
    const Target t = target(i);
    // What is to be zero or gone may well not be there.
    if (r != -ENOENT || t.effect == Target::Effect::write)
      object_error(-r, doing, t.object_no);
    ++missing;
  }
  try {
    for_runs(removed, [&](std::uint64_t first, std::size_t n) {
      view.map->end_removal(first, n);
    });
  } catch (const Error& e) {
    throw MapFailure{view.map, e};
  }
  return missing;
}

// Copy-up ---------------------------------------------------------------------

std::string Image::parent_data(const View& view, std::uint64_t object_no) {
  std::vector<Fragment> parts =
      traits_.layout.image_parts(object_no, 0, traits_.layout.object_size());
  std::erase_if(parts, [&](const Fragment& f) {
    return f.image_offset >= view.overlap;
  });
  std::uint64_t end = 0;
  for (Fragment& f : parts) {
    f.length = std::min(f.length, view.overlap - f.image_offset);
    end = std::max(end, f.object_offset + f.length);
  }
  std::string data(end, '\0');
  options_.workers->for_each(parts.size(), [&](std::size_t i) {
    const Fragment& f = parts[i];
    (void)read_parent(view, data.data() + f.object_offset, f.length,
                      f.image_offset);
  });
  // What an object has not, reads as zeros.
  const std::size_t last = data.find_last_not_of('\0');
  data.resize(last == std::string::npos ? 0 : last + 1);
  return data;
}

/// Begins to update the maps of the snapshots: before the object is made for
/// them, and after.
std::vector<Image::SnapshotUpdate> Image::update_snapshots(
    const View& view, std::uint64_t object_no, bool made) {
  std::vector<SnapshotUpdate> updates;
  updates.reserve(view.snapc.snaps.size());
  // The oldest snapshot has the data; for the others it is unchanged.
  bool oldest = true;
  for (auto snap = view.snapc.snaps.rbegin(); snap != view.snapc.snaps.rend();
       ++snap) {
    SnapshotUpdate& u = updates.emplace_back();
    u.snap = *snap;
    u.pending = format_->update_snapshot_map(
        u.snap, object_no,
        !made                       ? ObjectState::pending
        : oldest || !view.fast_diff ? ObjectState::exists
                                    : ObjectState::exists_clean,
        made ? ObjectState::pending : ObjectState::nonexistent, &u.request);
    oldest = false;
  }
  return updates;
}

void Image::finish(std::vector<SnapshotUpdate>& updates) {
  for (SnapshotUpdate& u : updates) {
    const int r = u.pending->wait();
    // A snapshot that is being deleted, or of a smaller image.
    if (r >= 0 || r == -ENOENT || r == -ERANGE) continue;
    log(traits_.name + ": the object map of snapshot " +
        std::to_string(u.snap) + " is given up: " + error_text(-r));
    format_->invalidate_map(u.snap);
  }
}

/// The object is there, if the change of it had the result `r`.  Returns that.
int Image::copied_up(const View& view, std::uint64_t object_no, int r) {
  try {
    if (view.map && r >= 0) view.map->mark_exists(object_no, 1);
  } catch (const Error& e) {
    throw MapFailure{view.map, e};
  }
  return r;
}

/// Returns the result of the change.
template <class AddSteps>
int Image::copy_up(const View& view, const Target& target, AddSteps&& add) {
  const std::string name = object_name(target.object_no);
  for (;;) {
    const CopyUpTurn turn(*this, target.object_no);
    if (!turn.mine()) {
      WriteOp op;
      op.assert_exists();
      add_steps(view, target, op, add);
      const int r = data_.write(name, op, view.snapc)->wait();
      if (r == -ENOENT) continue;
      return copied_up(view, target.object_no, r);
    }

    std::string data;
    try {
      data = parent_data(view, target.object_no);
    } catch (const Error& e) {
      throw Error(e.code(), traits_.name + ": cannot copy object " + name +
                                " from the parent: " + e.what());
    }
    const bool has_data = !data.empty();
    // Zeros upon zeros.
    if (!has_data && target.effect == Target::Effect::zero) return 0;

    const bool for_snapshots = has_data && !view.snapc.snaps.empty();
    std::vector<SnapshotUpdate> updates;
    if (for_snapshots && view.snaps_mapped)
      updates = update_snapshots(view, target.object_no, false);
    finish(updates);
    try {
      if (view.map) view.map->begin_creation(target.object_no, 1);
    } catch (const Error& e) {
      throw MapFailure{view.map, e};
    }

    std::string sparse = sparse_copy(data);
    const auto add_copy = [&](WriteOp& op) {
      // First: a hint makes the object, and then nothing is copied up.
      if (!sparse.empty() && sparse_copyup_)
        op.exec(rbd_class, "sparse_copyup", sparse);
      else
        op.exec(rbd_class, "copyup", data);
      if (traits_.alloc_hints)
        op.alloc_hint(traits_.layout.object_size(),
                      traits_.layout.object_size());
    };
    // OSDs before Ceph 16 do not know sparse_copyup.
    const auto write = [&](auto&& add_to, const SnapContext& snapc) {
      for (;;) {
        WriteOp op;
        const bool is_sparse = sparse_copyup_;
        add_to(op);
        const int r = data_.write(name, op, snapc)->wait();
        if (r != -EOPNOTSUPP || !is_sparse || sparse.empty()) return r;
        sparse_copyup_ = false;
      }
    };
    if (for_snapshots)
      if (const int r = write(add_copy, SnapContext{}); r < 0) return r;
    if (!updates.empty())
      updates = update_snapshots(view, target.object_no, true);
    const int r = write(
        [&](WriteOp& op) {
          if (has_data && !for_snapshots && !target.whole) add_copy(op);
          add_steps(view, target, op, add);
        },
        view.snapc);
    finish(updates);
    return copied_up(view, target.object_no, r);
  }
}

// Requests ----------------------------------------------------------------------

/// Parts of one object that ascend; as one operation.
void Image::write_parts(const View& view, const Target& target,
                        std::span<const WriteMerger::Part> parts) {
  const ConstPiece single{parts[0].data, parts[0].length};
  std::vector<ConstPiece> several;
  if (parts.size() != 1) {
    several.reserve(parts.size());
    for (const WriteMerger::Part& p : parts)
      several.push_back({p.data, p.length});
  }
  const std::span<const ConstPiece> pieces =
      parts.size() == 1 ? std::span(&single, 1) : std::span(several);
  change(
      view, target,
      [&](WriteOp& op) {
        const std::uint64_t object_size = traits_.layout.object_size();
        if (traits_.alloc_hints) op.alloc_hint(object_size, object_size);
        for (std::size_t i = 0; i < parts.size();) {
          std::size_t next = i + 1;
          while (next < parts.size() &&
                 parts[next].offset == parts[next - 1].end())
            ++next;
          op.write(parts[i].offset, pieces.subspan(i, next - i));
          i = next;
        }
      },
      "cannot write");
}

void Image::write_chunk(const View& view, const char* buffer,
                        std::uint64_t length, std::uint64_t offset) {
  const Layout& layout = traits_.layout;
  const auto add = [&](WriteOp& op, std::uint64_t at,
                       std::span<const ConstPiece> pieces) {
    if (traits_.alloc_hints)
      op.alloc_hint(layout.object_size(), layout.object_size());
    op.write(at, pieces);
  };
  const auto target = [&](std::uint64_t object_no, std::uint64_t n) {
    return Target{.object_no = object_no,
                  .effect = Target::Effect::write,
                  .whole = n == layout.object_size()};
  };

  const Fragment first = layout.locate(offset, length);
  if (first.length == length) {
    const Target t = target(first.object_no, first.length);
    const WriteMerger::Part part{first.object_offset, buffer, length};
    const auto write = [&](std::span<const WriteMerger::Part> parts) {
      write_parts(view, t, parts);
    };
    // A copy-up is per request; and there is nothing next to a whole object.
    if (t.whole || backed(view, t.object_no))
      write({&part, 1});
    else
      merger_.write(&view, t.object_no, part, write);
    return;
  }

  const std::vector<ObjectExtent> extents = layout.cut(offset, length);
  std::vector<ConstPiece> pieces;
  std::vector<std::size_t> starts;
  starts.reserve(extents.size());
  std::size_t parts = 0;
  for (const ObjectExtent& e : extents) {
    starts.push_back(parts);
    parts += e.parts.size();
  }
  pieces.reserve(parts);
  for (const ObjectExtent& e : extents)
    for (const Fragment& f : e.parts)
      pieces.push_back({buffer + (f.image_offset - offset), f.length});

  (void)change_many(
      view, extents.size(),
      [&](std::size_t i) {
        return target(extents[i].object_no, extents[i].length);
      },
      [&](WriteOp& op, std::size_t i) {
        add(op, extents[i].offset,
            {pieces.data() + starts[i], extents[i].parts.size()});
      },
      "cannot write");
}

void Image::write(const char* buffer, std::uint64_t length,
                  std::uint64_t offset) {
  write_request(length, offset, [&](const View& view) {
    const std::uint64_t end = offset + length;
    const char* from = buffer;
    for (std::uint64_t at = offset; at < end;) {
      const std::uint64_t n =
          chunk_end(at, end, chunk_units(traits_.layout)) - at;
      write_chunk(view, from, n, at);
      from += n;
      at += n;
    }
  });
}

void Image::flush() {
  const auto view = view_.read();
  // Caches above may have had more to write, which went with the lock: a client
  // that repeats a failed flush is not to be told that it is safe now.
  if (view->failure != 0 && lost()) throw Error(view->failure, view->reason);
  if (!view->map) return;
  try {
    view->map->give_back();
  } catch (const Error&) {
    // The next change finds the map unusable, and sees to it.
  }
}

void Image::zero_chunk(const View& view, std::uint64_t length,
                       std::uint64_t offset, Zero how) {
  const Layout& layout = traits_.layout;
  const std::vector<ObjectExtent> extents = layout.cut(offset, length);
  std::vector<ConstPiece> tails(extents.size());
  const ConstPiece page{zero_page.data(), zero_page.size()};

  (void)change_many(
      view, extents.size(),
      [&](std::size_t i) {
        // Only what is an object's full size is removed: an image that is
        // being grown by somebody else can have data behind the end that we
        // know of.  The rest is zeroed; truncating is no choice, because it
        // would make shorter objects longer.
        using Effect = Target::Effect;
        const bool whole = extents[i].length == layout.object_size();
        return Target{.object_no = extents[i].object_no,
                      .effect = how != Zero::free ? Effect::write
                                : whole           ? Effect::clear
                                                  : Effect::zero,
                      .whole = whole};
      },
      [&](WriteOp& op, std::size_t i) {
        const ObjectExtent& e = extents[i];
        if (how == Zero::free) {
          op.zero(e.offset, e.length);
          return;
        }
        if (traits_.alloc_hints)
          op.alloc_hint(layout.object_size(), layout.object_size());
        const std::uint64_t body = e.length / zero_page_size * zero_page_size;
        if (body != 0) op.write_same(e.offset, body, {&page, 1});
        if (body != e.length) {
          tails[i] = {zero_page.data(), e.length - body};
          op.write(e.offset + body, {&tails[i], 1});
        }
      },
      "cannot zero");
}

/// Those of the objects [first, first + count) that are to be cleared: all but
/// those that are not there.  To an OSD the removal of a missing object is a
/// write that failed, which every replica notes in its log: the question
/// whether it is there takes a fraction of that.  Who makes an object after
/// the question could as well have made it after the removal.
std::vector<std::uint64_t> Image::objects_to_clear(const View& view,
                                                   std::uint64_t first,
                                                   std::uint64_t count) {
  std::vector<std::uint64_t> sizes(count);
  std::vector<std::uint64_t> numbers;
  for_objects(
      count,
      [&](std::size_t i) -> std::unique_ptr<Pending> {
        // What the parent backs must come into being.
        if (backed(view, first + i)) return nullptr;
        return data_.stat(object_name(first + i), &sizes[i], snap_head);
      },
      [&](std::size_t i, int result) {
        // Where the answer is an error, the removal says what is wrong.
        if (result != -ENOENT) numbers.push_back(first + i);
      });
  return numbers;
}

/// Clears the objects [first, first + count).  Asks whether they are there as
/// long as most are not, at first about a few: where all are, a question more
/// for each would take up to 1.8 times as long.
void Image::zero_objects(const View& view, std::uint64_t first,
                         std::uint64_t count) {
  // Returns how many were not there.
  const auto clear = [&](std::size_t n, auto&& number) {
    return change_many(
        view, n,
        [&](std::size_t i) {
          return Target{.object_no = number(i),
                        .effect = Target::Effect::clear,
                        .whole = true};
        },
        [](WriteOp&, std::size_t) {}, "cannot remove");
  };
  constexpr std::uint64_t few = 8;
  constexpr std::uint64_t many = 64;
  const bool may_ask = !view.map && count > many;  // a map knows
  bool ask = may_ask;
  std::uint64_t asked = few;
  for (const std::uint64_t end = first + count; first < end;) {
    if (ask) {
      const std::uint64_t n = std::min(asked, end - first);
      const auto there = objects_to_clear(view, first, n);
      if (there.size() <= n / 2) {
        (void)clear(there.size(), [&](std::size_t i) { return there[i]; });
        asked = std::min(2 * asked, chunk_objects);
        first += n;
        continue;
      }
    }
    const std::uint64_t n = std::min(chunk_objects, end - first);
    const std::uint64_t missing =
        clear(n, [&](std::size_t i) { return first + i; });
    ask = may_ask && missing >= n / 2;
    asked = few;
    first += n;
  }
}

void Image::zero(std::uint64_t length, std::uint64_t offset, Zero how) {
  write_request(length, offset, [&](const View& view) {
    const std::uint64_t end = offset + length;
    const std::uint64_t set = traits_.layout.object_set_size();
    for (std::uint64_t at = offset; at < end;) {
      if (how == Zero::free && at % set == 0 && end - at >= set) {
        // Whole object sets need no arithmetic: their objects go.
        const std::uint64_t count =
            (end - at) / set * traits_.layout.stripe_count();
        const std::uint64_t first = at / set * traits_.layout.stripe_count();
        zero_objects(view, first, count);
        at += (end - at) / set * set;
        continue;
      }
      // Up to the next object set, so that the above finds it whole.
      const std::uint64_t stop = how == Zero::free && set <= end - at
                                     ? (at / set + 1) * set
                                     : end;
      const std::uint64_t n =
          chunk_end(at, stop, chunk_units(traits_.layout)) - at;
      zero_chunk(view, n, at, how);
      at += n;
    }
  });
}

void Image::trim(std::uint64_t length, std::uint64_t offset) {
  const std::uint64_t g = discard_granularity_;
  const std::uint64_t size_now = size();
  std::uint64_t end = offset + length;
  if (end < size_now) end = end / g * g;
  const std::uint64_t start = offset % g == 0 ? offset : (offset / g + 1) * g;
  if (start >= end) {
    // Nothing is left of it; it must be a valid request all the same.
    write_request(length, offset, [](const View&) {});
    return;
  }
  zero(end - start, start, Zero::free);
}

}  // namespace nbdrados
