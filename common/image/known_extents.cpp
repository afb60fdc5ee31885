// SPDX-License-Identifier: BSD-3-Clause

#include "image/known_extents.hpp"

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
  for (Group& group : groups_) group.mutex.lock();
  try {
    ++epoch_;
    all_absent_.store(false);
    const Bits* const old = bits_.load();
    if (old != nullptr && old->objects >= objects) {
      for (auto& word : all_bits_.back()->words) word.store(0);
    } else {
      // With some space to grow, so that few are ever made.
      bits_.store(nullptr);
      all_bits_.push_back(
          std::make_unique<Bits>(objects + (old != nullptr ? objects / 4 : 0)));
      bits_.store(all_bits_.back().get());
    }
  } catch (...) {
    // Without the bits, only less is known.
  }
  for (Group& group : groups_) {
    group.ranges.clear();
    group.bytes = 0;
    group.known = false;
    group.active.store(group.learnings);
    group.mutex.unlock();
  }
}

void KnownExtents::set_absent(std::uint64_t object_no, bool absent) noexcept {
  // Under the mutex of the object's group, so bits_ does not change.
  const Bits* bits = bits_.load();
  if (bits == nullptr || object_no >= bits->objects) return;
  auto& word = all_bits_.back()->words[object_no / 64];
  const std::uint64_t bit = std::uint64_t{1} << (object_no % 64);
  if (absent)
    word.fetch_or(bit);
  else
    word.fetch_and(~bit);
}

void KnownExtents::forget_locked(Group& group,
                                 std::uint64_t object_no) noexcept {
  const std::scoped_lock lock(group.mutex);
  set_absent(object_no, false);
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
  owner_.learning(epoch_, object_no,
                  [&](Group&) { owner_.set_absent(object_no, true); });
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
