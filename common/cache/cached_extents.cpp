// SPDX-License-Identifier: BSD-3-Clause

#include "cache/cached_extents.hpp"

#include <algorithm>
#include <utility>

#include "layout/ranges.hpp"

namespace nbdrados {

namespace {

/// The largest minimum of NBD block sizes.
constexpr std::uint64_t alignment = 64 << 10;

/// An answer of more extents than this has shown enough.
constexpr std::size_t many = 4096;

constexpr std::uint64_t round_down(std::uint64_t n, std::uint64_t to) {
  return n / to * to;
}

/// Up to `most`, which need not be a multiple.
constexpr std::uint64_t round_up(std::uint64_t n, std::uint64_t to,
                                 std::uint64_t most) {
  return std::min(round_down(n + to - 1, to), most);
}

template <class T, class U>
void take_out(std::vector<T>& from, const U* which) noexcept {
  const auto it = std::ranges::find(from, which);
  *it = from.back();
  from.pop_back();
}

}  // namespace

CachedExtents::CachedExtents(std::uint64_t size, std::size_t limit)
    : size_(size), limit_(limit) {}

std::size_t CachedExtents::count() const {
  const std::scoped_lock lock(mutex_);
  return extents_.size();
}

// Asking --------------------------------------------------------------------

std::vector<CachedExtents::Extent> CachedExtents::lookup(
    std::uint64_t offset, std::uint64_t length, Version version) const {
  const std::scoped_lock lock(mutex_);
  return find(offset, length, version);
}

std::vector<CachedExtents::Extent> CachedExtents::find(
    std::uint64_t offset, std::uint64_t length, Version version) const {
  std::vector<Extent> found;
  if (version == 0 || version != version_ || length == 0) return found;
  auto it = extents_.upper_bound(offset);
  if (it == extents_.begin() || std::prev(it)->second.end <= offset)
    return found;
  --it;
  std::uint64_t at = offset;
  do {
    found.push_back({at, it->second.end - at, it->second.type});
    at = it->second.end;
    ++it;
  } while (it != extents_.end() && it->first == at && at - offset < length);
  return found;
}

std::uint64_t CachedExtents::ask_length(std::uint64_t offset,
                                        std::uint64_t length) const {
  const std::scoped_lock lock(mutex_);
  return std::max(length,
                  round_down(std::min(size_ - offset, window_), alignment));
}

CachedExtents::Question::Question(CachedExtents& known, Version version,
                                  std::uint64_t offset, std::uint64_t length)
    : known_(known), version_(version), offset_(offset), length_(length) {}

void CachedExtents::Question::begin() {
  const std::scoped_lock lock(known_.mutex_);
  begin_locked();
}

void CachedExtents::Question::begin_locked() {
  if (version_ == 0) return;
  changed_.reserve(most_collected);
  known_.questions_.push_back(this);
  number_ = ++known_.last_number_;
  if (known_.version_ == version_) return;
  known_.extents_.clear();
  known_.version_ = version_;
}

std::vector<CachedExtents::Extent> CachedExtents::Question::lookup_or_begin(
    std::uint64_t wanted) {
  std::unique_lock lock(known_.mutex_);
  std::vector<Extent> found = known_.find(offset_, wanted, version_);
  const std::vector<Question*>& all = known_.questions_;
  const auto other = std::ranges::find_if(all, [&](const Question* q) {
    return q->version_ == version_ && q->offset_ <= offset_ &&
           offset_ - q->offset_ < q->length_;
  });
  if (found.empty() && other != all.end()) {
    const std::uint64_t number = (*other)->number_;
    known_.ended_.wait(lock, [&] {
      return std::ranges::find(all, number, &Question::number_) == all.end();
    });
    found = known_.find(offset_, wanted, version_);
  }
  if (found.empty()) begin_locked();
  return found;
}

CachedExtents::Question::~Question() {
  if (number_ == 0) return;
  {
    const std::scoped_lock lock(known_.mutex_);
    take_out(known_.questions_, this);
  }
  known_.ended_.notify_all();
}

/// Remembers a change that has ended.  When there are many, those that touch
/// become one, and then all are rounded until half of the space is enough: the
/// more has been changed, the less is learnt.
void CachedExtents::Question::collect(std::uint64_t from,
                                      std::uint64_t to) noexcept {
  if (changed_.size() >= most_collected) {
    join(changed_, &Changed::from, &Changed::to);
    while (changed_.size() > most_collected / 2) {
      rounding_ *= 2;
      for (Changed& c : changed_) {
        c.from = round_down(c.from, rounding_);
        c.to = round_up(c.to, rounding_, known_.size_);
      }
      join(changed_, &Changed::from, &Changed::to);
    }
  }
  changed_.push_back({from, to});
}

void CachedExtents::Question::learn(std::span<const Extent> answer) noexcept {
  if (number_ == 0 || answer.empty()) return;
  const std::scoped_lock lock(known_.mutex_);
  if (known_.version_ != version_) return;
  try {
    for (const Changing* change : known_.changes_)
      changed_.push_back({change->from_, change->to_});
    join(changed_, &Changed::from, &Changed::to);
    auto changed = changed_.begin();
    const std::uint64_t first = answer.front().offset;
    std::uint64_t last = first;
    bool room = true;
    for (const Extent& e : answer) {
      if (!room || e.offset >= known_.size_) break;
      const std::uint64_t end =
          e.offset + std::min(e.length, known_.size_ - e.offset);
      for (std::uint64_t at = e.offset; room && at < end;) {
        while (changed != changed_.end() && changed->to <= at) ++changed;
        if (changed != changed_.end() && changed->from <= at) {
          at = changed->to;
          continue;
        }
        const std::uint64_t to =
            changed != changed_.end() ? std::min(end, changed->from) : end;
        room = known_.insert(at, to, e.type, first);
        at = to;
      }
      last = std::max(last, end);
    }
    // So that the next answer has about half as many, if this one had too many.
    if (answer.size() > many)
      known_.window_ = std::clamp((last - first) / (2 * answer.size() / many),
                                  least_asked, most_asked);
    else if (answer.size() < many / 4)
      known_.window_ = std::min(2 * known_.window_, most_asked);
  } catch (...) {
    // What was learnt so far is right.
  }
}

// Changing ------------------------------------------------------------------

CachedExtents::Changing::Changing(CachedExtents& known, std::uint32_t count,
                                  std::uint64_t offset)
    : known_(known),
      from_(round_down(std::min(offset, known.size_), grain)),
      to_(round_up(std::min(offset + count, known.size_), grain,
                   known.size_)) {
  const std::scoped_lock lock(known_.mutex_);
  known_.changes_.push_back(this);
  known_.forget(from_, to_);
}

CachedExtents::Changing::~Changing() {
  const std::scoped_lock lock(known_.mutex_);
  take_out(known_.changes_, this);
  for (Question* question : known_.questions_) question->collect(from_, to_);
}

// Extents -------------------------------------------------------------------

void CachedExtents::forget(std::uint64_t from, std::uint64_t to) noexcept {
  if (from >= to) return;
  auto it = extents_.upper_bound(from);
  if (it != extents_.begin() && std::prev(it)->second.end > from) --it;
  while (it != extents_.end() && it->first < to) {
    const Known known = it->second;
    if (it->first < from) {
      it->second.end = from;
      ++it;
    } else {
      it = extents_.erase(it);
    }
    if (known.end <= to) continue;
    // What is behind the range stays, if there is room.
    if (extents_.size() >= limit_) return;
    try {
      extents_.emplace_hint(it, to, Known{known.end, known.type});
    } catch (...) {
      // Then it is forgotten as well.
    }
    return;
  }
}

/// Puts a part of an answer that began at `answer_from` in the place of what
/// is known there.  Returns whether there was room.
bool CachedExtents::insert(std::uint64_t from, std::uint64_t to,
                           std::uint32_t type, std::uint64_t answer_from) {
  forget(from, to);
  auto after = extents_.lower_bound(from);
  if (after != extents_.end() && after->first == to &&
      after->second.type == type) {
    to = after->second.end;
    after = extents_.erase(after);
  }
  if (after != extents_.begin()) {
    const auto before = std::prev(after);
    if (before->second.end == from && before->second.type == type) {
      before->second.end = to;
      return true;
    }
  }
  if (extents_.size() >= limit_ && !make_room(answer_from, from)) return false;
  extents_.emplace(from, Known{to, type});
  return true;
}

/// Forgets an eighth of what may be known, going round the disk, but nothing
/// that begins in the range.  Returns whether that made room.
bool CachedExtents::make_room(std::uint64_t from, std::uint64_t to) noexcept {
  auto it = extents_.lower_bound(hand_);
  const std::size_t before = extents_.size();
  bool skipped = false;
  for (std::size_t n = limit_ / 8 + 1; n > 0 && !extents_.empty();) {
    if (it == extents_.end()) it = extents_.begin();
    if (it->first >= from && it->first < to) {
      it = extents_.lower_bound(to);
      // Twice: there is nothing else.
      if (std::exchange(skipped, true)) break;
    } else {
      it = extents_.erase(it);
      skipped = false;
      n--;
    }
  }
  hand_ = it == extents_.end() ? 0 : it->first;
  return extents_.size() < before;
}

// Overlay -------------------------------------------------------------------

void mark_data(std::vector<CachedExtents::Extent>& extents,
               std::vector<CachedExtents::Range> ranges) {
  if (ranges.empty()) return;
  std::ranges::sort(ranges, {}, &CachedExtents::Range::offset);
  std::vector<CachedExtents::Extent> marked;
  const auto add = [&](std::uint64_t from, std::uint64_t to,
                       std::uint32_t type) {
    if (!marked.empty() && marked.back().type == type)
      marked.back().length += to - from;
    else
      marked.push_back({from, to - from, type});
  };
  auto range = ranges.begin();
  for (const CachedExtents::Extent& e : extents) {
    const std::uint64_t end = e.offset + e.length;
    for (std::uint64_t at = e.offset; at < end;) {
      while (range != ranges.end() && range->offset + range->length <= at)
        ++range;
      if (range == ranges.end() || range->offset >= end) {
        add(at, end, e.type);
        break;
      }
      if (range->offset > at) add(at, range->offset, e.type);
      const std::uint64_t from = std::max(at, range->offset);
      at = std::min(end, range->offset + range->length);
      add(from, at, 0);
    }
  }
  extents = std::move(marked);
}

}  // namespace nbdrados
