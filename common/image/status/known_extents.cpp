// SPDX-License-Identifier: BSD-3-Clause

#include "image/status/known_extents.hpp"

#include <algorithm>
#include <utility>

namespace nbdrados {

void KnownExtents::set_known(Group& group) {
  if (std::exchange(group.known, true)) return;
  group.active.store(group.learnings + 1);
}

void KnownExtents::begin() {
  for (Group& group : groups_) {
    const std::scoped_lock lock(group.mutex);
    ++group.learnings;
    group.active.store(group.learnings + (group.known ? 1 : 0));
  }
}

void KnownExtents::end() {
  for (Group& group : groups_) {
    const std::scoped_lock lock(group.mutex);
    if (--group.learnings == 0) group.changed.clear();
    group.active.store(group.learnings + (group.known ? 1 : 0));
  }
}

void KnownExtents::reset(std::uint64_t objects) {
  const AllLocked locked(*this);
  forget_all(objects);
}

void KnownExtents::release() {
  const AllLocked locked(*this);
  forget_all(0);
  absent_.release();
}

/// All groups are locked.
void KnownExtents::forget_all(std::uint64_t objects) {
  ++epoch_;
  all_absent_.store(false);
  existing_learnt_ = false;
  objects_.store(objects);
  absent_.clear();
  for (Group& group : groups_) {
    group.ranges.clear();
    group.bytes = 0;
    group.known = false;
    group.active.store(group.learnings);
  }
}

/// Those of the objects [first, end) that have changed while they may have
/// been asked about; ascending.  All groups are locked.
std::vector<std::uint64_t> KnownExtents::changed_between(
    std::uint64_t first, std::uint64_t end) const {
  std::vector<std::uint64_t> found;
  for (const Group& group : groups_)
    for (const std::uint64_t n : group.changed)
      if (n >= first && n < end) found.push_back(n);
  std::sort(found.begin(), found.end());
  return found;
}

void KnownExtents::forget_locked(Group& group,
                                 std::uint64_t object_no) noexcept {
  const std::scoped_lock lock(group.mutex);
  if (absent_.contains(object_no)) absent_.erase(object_no);
  if (const auto it = group.ranges.find(object_no); it != group.ranges.end()) {
    group.bytes -= size_of(it->second);
    group.ranges.erase(it);
  }
  if (group.learnings == 0) return;
  try {
    group.changed.insert(object_no);
  } catch (...) {
    ++epoch_;  // Nothing that is being asked now will be learnt.
  }
}

bool KnownExtents::find(std::uint64_t object_no,
                        std::vector<ObjectRange>* ranges) {
  Group& group = groups_[object_no % groups];
  const std::scoped_lock lock(group.mutex);
  const auto it = group.ranges.find(object_no);
  if (it == group.ranges.end()) return false;
  *ranges = it->second;
  return true;
}

void KnownExtents::Learning::learn_absent(std::uint64_t object_no) {
  owner_.learning(epoch_, object_no, [&](Group&) {
    if (object_no < owner_.objects_.load())
      (void)owner_.absent_.insert(object_no, object_no + 1);
  });
}

void KnownExtents::Learning::learn(std::uint64_t object_no,
                                   std::vector<ObjectRange> ranges) {
  owner_.learning(epoch_, object_no, [&](Group& group) {
    ranges.shrink_to_fit();
    const std::size_t size = size_of(ranges);
    constexpr std::size_t limit = ranges_limit / groups;
    if (group.bytes + size > limit) {
      group.ranges.clear();
      group.bytes = 0;
      if (size > limit) return;
    }
    const auto [it, is_new] = group.ranges.try_emplace(object_no);
    if (!is_new) group.bytes -= size_of(it->second);
    it->second = std::move(ranges);
    group.bytes += size;
  });
}

}  // namespace nbdrados
