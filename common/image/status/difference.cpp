// SPDX-License-Identifier: BSD-3-Clause

#include "image/status/difference.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <optional>

#include "image/chunks.hpp"
#include "image/state/verdict.hpp"
#include "layout/ranges.hpp"
#include "layout/sectors.hpp"
#include "rados/error.hpp"

namespace nbdrados {

namespace {

/// The index of the version that a snapshot, or the head, has of an object.
std::optional<std::size_t> version_at(const SnapSet& set, SnapId snap) {
  std::optional<std::size_t> head;
  for (std::size_t i = 0; i < set.versions.size(); ++i) {
    const ObjectVersion& v = set.versions[i];
    if (v.id == snap_head) {
      head = i;
    } else if (std::find(v.snaps.begin(), v.snaps.end(), snap) !=
               v.snaps.end()) {
      return i;
    }
  }
  // Snapshots since the last write see the head.  One up to `seq` that no
  // clone is for was taken when there was no such object.
  return snap == snap_head || snap > set.seq ? head : std::nullopt;
}

/// The parts of [0, size) that are not in `kept`, which are ascending.
std::vector<ObjectRange> complement(const std::vector<ObjectRange>& kept,
                                    std::uint64_t size) {
  std::vector<ObjectRange> rest;
  std::uint64_t at = 0;
  for (const ObjectRange& range : kept) {
    const std::uint64_t start = std::min(range.offset, size);
    if (start > at) rest.push_back({at, start - at});
    at = std::max(at, std::min(range.offset + range.length, size));
  }
  if (at < size) rest.push_back({at, size - at});
  return rest;
}

std::vector<ObjectRange> intersection(const std::vector<ObjectRange>& a,
                                      const std::vector<ObjectRange>& b) {
  std::vector<ObjectRange> both;
  for (auto i = a.begin(), j = b.begin(); i != a.end() && j != b.end();) {
    const std::uint64_t i_end = i->offset + i->length;
    const std::uint64_t j_end = j->offset + j->length;
    const std::uint64_t start = std::max(i->offset, j->offset);
    const std::uint64_t end = std::min(i_end, j_end);
    if (start < end) both.push_back({start, end - start});
    if (i_end < j_end)
      ++i;
    else
      ++j;
  }
  return both;
}

/// A deleted image or snapshot cannot be compared any more.
[[noreturn]] void rethrow(const Error& e) {
  throw Error(is_verdict(e.code()) ? failure_for(e.code()) : e.code(),
              e.what());
}

}  // namespace

ObjectDifference object_difference(const SnapSet& set, SnapId from,
                                   SnapId to) {
  const auto first = version_at(set, from);
  const auto last = version_at(set, to);
  ObjectDifference difference{.existed = first.has_value(),
                              .exists = last.has_value()};
  if (!first && !last) return difference;
  const std::uint64_t size =
      std::max(first ? set.versions[*first].size : 0,
               last ? set.versions[*last].size : 0);
  // What all versions on the way have kept.  An object that was removed and
  // made again has kept nothing (ceph: src/osd/PrimaryLogPG.cc, _delete_oid).
  std::vector<ObjectRange> kept;
  if (first && last && *first <= *last) {
    if (size != 0) kept.push_back({0, size});
    for (std::size_t i = *first; i < *last; ++i) {
      std::vector<ObjectRange> overlap = set.versions[i].overlap;
      std::sort(overlap.begin(), overlap.end(),
                [](const ObjectRange& a, const ObjectRange& b) {
                  return a.offset < b.offset;
                });
      kept = intersection(kept, overlap);
    }
  }
  difference.ranges = complement(kept, size);
  return difference;
}

ChangedObjects::ChangedObjects(const ObjectStates& old)
    : states_(old.size()) {
  for (std::uint64_t n = 0; n < old.size();) {
    const std::uint64_t run = old.end_of_run(n);
    if (old[n] != ObjectState::nonexistent)
      states_.set(n, run, ObjectState::exists);
    n = run;
  }
}

void ChangedObjects::add(const ObjectStates& next) {
  if (next.size() > states_.size()) states_.grow(next.size());
  for (std::uint64_t n = 0; n < states_.size();) {
    const bool known = n < next.size();
    const std::uint64_t run = std::min(
        states_.end_of_run(n), known ? next.end_of_run(n) : states_.size());
    const ObjectState state = known ? next[n] : ObjectState::nonexistent;
    // exists_clean: as it was at the snapshot before.
    const ObjectState unchanged = states_[n] == ObjectState::nonexistent
                                      ? ObjectState::nonexistent
                                      : ObjectState::exists_clean;
    if (state != unchanged) states_.set(n, run, ObjectState::pending);
    n = run;
  }
}

std::uint64_t ChangedObjects::end_of_unchanged(
    std::uint64_t object_no, std::uint64_t end) const noexcept {
  while (object_no < end && object_no < states_.size()) {
    if (states_[object_no] == ObjectState::pending) return object_no;
    object_no = states_.end_of_run(object_no);
  }
  // All that is behind the maps has not changed.
  return end;
}

Difference::Difference(std::shared_ptr<Image> image,
                       std::unique_ptr<ImageFormat> old)
    : image_(std::move(image)), old_(std::move(old)) {
  const ImageTraits& now = image_->traits();
  const ImageTraits& then = old_->traits();
  if (now.object_prefix != then.object_prefix)
    throw Error(EIO, then.name + " is another image than " + now.name);
  const State state = load();
  if (state.old_snap >= state.snap)
    throw Error(EINVAL, then.name + " is not older than " + now.name);
}

Difference::State Difference::load() {
  try {
    image_->refresh();
    View old;
    {
      const std::scoped_lock lock(old_mutex_);
      old = old_->load();
    }
    const auto view = image_->core().state.read();
    return {.size = view->size,
            .snap = view->snap,
            .snapc = view->snapc,
            .overlap = view->overlap,
            .fast_diff = view->fast_diff && view->mappable,
            .old_snap = old.snap,
            .old_size = old.size,
            .old_overlap = old.overlap};
  } catch (const Error& e) {
    rethrow(e);
  }
}

/// Null: every object can have changed.
Difference::Maps Difference::read_maps(const State& state) {
  if (!state.fast_diff) return nullptr;
  ImageFormat& format = *image_->core().format;
  std::vector<SnapId> snaps;  // OLD and those behind it, up to NEW
  for (const SnapId snap : state.snapc.snaps)
    if (snap >= state.old_snap && snap <= state.snap) snaps.push_back(snap);
  std::sort(snaps.begin(), snaps.end());
  if (snaps.empty() || snaps.front() != state.old_snap) return nullptr;

  Maps of_snaps;
  {
    const std::scoped_lock lock(maps_mutex_);
    if (snaps_ == snaps) of_snaps = of_snaps_;
  }
  if (!of_snaps) {
    std::shared_ptr<ChangedObjects> changed;
    for (const SnapId snap : snaps) {
      const auto map = format.read_fast_diff(snap);
      if (!map) return nullptr;
      if (!changed)
        changed = std::make_shared<ChangedObjects>(*map);
      else
        changed->add(*map);
    }
    of_snaps = changed;
    const std::scoped_lock lock(maps_mutex_);
    snaps_ = snaps;
    of_snaps_ = of_snaps;
    head_.reset();
    with_head_.reset();
  }
  if (state.snap != snap_head) return of_snaps;

  const auto head = format.read_fast_diff(snap_head);
  if (!head) return nullptr;
  const std::scoped_lock lock(maps_mutex_);
  if (head_ == head && with_head_ && of_snaps_ == of_snaps) return with_head_;
  auto changed = std::make_shared<ChangedObjects>(*of_snaps);
  changed->add(*head);
  if (of_snaps_ == of_snaps) {
    head_ = head;
    with_head_ = changed;
  }
  return changed;
}

/// Where the first object set after `offset` begins that can have changed,
/// but at most `end`; `offset` where its own set can have.
std::uint64_t Difference::end_of_unchanged(const State& state,
                                           const Maps& maps,
                                           std::uint64_t offset,
                                           std::uint64_t end) const {
  // OLD had nothing behind its end, and more of the parent than NEW.
  if (!maps || offset >= state.old_size ||
      (offset >= state.overlap && offset < state.old_overlap))
    return offset;
  end = std::min(end, state.old_size);
  if (offset < state.overlap && state.overlap < state.old_overlap)
    end = std::min(end, state.overlap);
  if (offset >= end) return end;
  return image_->traits().layout.skip_sets(
      offset, end, [&](std::uint64_t n, std::uint64_t stop) {
        return maps->end_of_unchanged(n, stop);
      });
}

/// As start and end, ascending, not adjacent, in whole sectors (see
/// sectors.hpp).  A sector counts as changed when a byte of it has changed:
/// then all of it is what NEW has there, data or zeros, and that is right to
/// say of the bytes that have not changed, too.
Difference::Ranges Difference::changed_ranges(const State& state,
                                              const Maps& maps,
                                              std::uint64_t length,
                                              std::uint64_t offset) {
  const Layout& layout = image_->traits().layout;
  const std::uint64_t end = offset + length;
  Ranges ranges;
  const auto add = [&](std::uint64_t from, std::uint64_t to) {
    from = std::max(from, offset);
    to = std::min(to, end);
    if (from < to)
      ranges.emplace_back(sector_begin(from), sector_end(to, end));
  };
  add(state.old_size, end);

  struct Object {
    const ObjectExtent* extent;
    SnapSet set = {};
    int result = 0;
  };
  const std::vector<ObjectExtent> extents = layout.cut(offset, length);
  std::vector<Object> objects;
  objects.reserve(extents.size());  // they must not move
  for (const ObjectExtent& e : extents) {
    // A part was the parent's in OLD, but is not in NEW.
    const auto lost = [&](const Fragment& f) {
      return f.image_offset < state.old_overlap &&
             f.image_offset + f.length > state.overlap;
    };
    if (!maps || maps->changed(e.object_no) ||
        std::any_of(e.parts.begin(), e.parts.end(), lost))
      objects.push_back({.extent = &e});
  }
  for_objects(
      objects.size(),
      [&](std::size_t i) {
        return image_->core().data.list_snaps(
            image_->traits().object_name(objects[i].extent->object_no),
            &objects[i].set);
      },
      [&](std::size_t i, int result) { objects[i].result = result; });
  for (const Object& o : objects) {
    const ObjectExtent& e = *o.extent;
    const int r = o.result;
    if (r < 0 && r != -ENOENT)
      image_->traits().object_error(-r, "cannot list the snapshots of",
                                    e.object_no);
    ObjectDifference difference;
    if (r >= 0)
      difference = object_difference(o.set, state.old_snap, state.snap);
    // What was the parent's at one of the two times, but not at the other.
    // Objects that were not there are the parent's up to the overlap, which
    // never grows.
    const std::uint64_t parents_from =
        difference.existed == difference.exists ? state.overlap : 0;
    const std::uint64_t parents_to =
        difference.existed ? (difference.exists ? 0 : state.overlap)
                           : state.old_overlap;
    for (const Fragment& f : e.parts)
      add(std::max(f.image_offset, parents_from),
          std::min(f.image_offset + f.length, parents_to));
    for (const ObjectRange& range : difference.ranges) {
      const std::uint64_t start = std::max(range.offset, e.offset);
      const std::uint64_t stop =
          std::min(range.offset + range.length, e.offset + e.length);
      if (start >= stop) continue;
      for (const Fragment& f :
           layout.image_parts(e.object_no, start, stop - start))
        add(f.image_offset, f.image_offset + f.length);
    }
  }
  join(ranges, &Ranges::value_type::first, &Ranges::value_type::second);
  return ranges;
}

std::vector<Difference::Extent> Difference::find(const State& state,
                                                 const Maps& maps,
                                                 std::uint64_t length,
                                                 std::uint64_t offset,
                                                 bool one) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const auto spent = [&](std::chrono::milliseconds time) {
    return Clock::now() - start >= time;
  };
  const Layout& layout = image_->traits().layout;
  if (offset > state.size || length > state.size - offset)
    throw Error(EINVAL, image_->traits().name +
                            ": block status beyond the end of the image");
  std::vector<Extent> list;
  const auto append = [&list](std::uint64_t at, std::uint64_t n, Kind kind) {
    if (n == 0) return;
    if (!list.empty() && list.back().kind == kind)
      list.back().length += n;
    else
      list.push_back({at, n, kind});
  };
  /// Unchanged areas up to so many bytes are asked about with their
  /// neighbours, because one question about many objects is quicker.
  const std::uint64_t gap = 8 * unit_size(layout);
  const std::uint64_t most_units = chunk_units(layout);
  std::uint64_t units = one ? 1 : std::min<std::uint64_t>(256, most_units);
  const std::uint64_t end = sector_end(offset + length, state.size);
  for (std::uint64_t at = sector_begin(offset); at < end;) {
    std::uint64_t next = end_of_unchanged(state, maps, at, end);
    // An object, or what OLD had not, can begin within a sector.
    if (next != end) next = sector_begin(next);
    append(at, next - at, Kind::unchanged);
    at = next;
    if (at == end || (one && list.size() > 1)) break;
    const std::uint64_t stop =
        sector_end(chunk_end(layout, at, end, units), end);
    const Ranges changed = changed_ranges(state, maps, stop - at, at);

    std::vector<nbdrados::Extent> status;
    for (std::size_t i = 0; i < changed.size();) {
      std::size_t last = i;
      while (last + 1 < changed.size() &&
             changed[last + 1].first - changed[last].second <= gap)
        ++last;
      const std::uint64_t to = changed[last].second;
      for (std::uint64_t from = changed[i].first; from < to;) {
        for (const nbdrados::Extent& e :
             image_->extents(to - from, from, false)) {
          status.push_back(e);
          from = e.offset + e.length;
        }
      }
      i = last + 1;
    }

    auto s = status.begin();
    for (const auto& [from, to] : changed) {
      append(at, from - at, Kind::unchanged);
      at = from;
      while (at < to) {
        while (s->offset + s->length <= at) ++s;
        const std::uint64_t until = std::min(to, s->offset + s->length);
        append(at, until - at, s->data ? Kind::data : Kind::zero);
        at = until;
      }
    }
    append(at, stop - at, Kind::unchanged);
    at = stop;
    if ((one && list.size() > 1) || spent(Image::extents_time)) break;
    // Longer steps, as long as they are quick.
    if (!spent(Image::extents_time / 8))
      units = std::min(units * 4, most_units);
  }
  cut(list, offset, offset + length);
  if (one && list.size() > 1) list.resize(1);
  return list;
}

std::vector<Difference::Extent> Difference::extents(std::uint64_t length,
                                                    std::uint64_t offset,
                                                    bool one) {
  State state = load();
  for (;;) {
    const Maps maps = read_maps(state);
    std::vector<Extent> list = find(state, maps, length, offset, one);
    State after = load();
    if (after == state) return list;
    state = std::move(after);
  }
}

}  // namespace nbdrados
