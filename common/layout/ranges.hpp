// SPDX-License-Identifier: BSD-3-Clause
//
// Lists of ranges.
//
// Why not Boost.ICL, whose interval sets do the same: a set is a node on the
// heap for each range, and here lists are built once, sorted once and walked.
// bench/DECISIONS.md has the measurement.

#ifndef NBDRADOS_LAYOUT_RANGES_HPP
#define NBDRADOS_LAYOUT_RANGES_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace nbdrados {

/// Sorts ranges, and makes one of those that overlap, touch, or have something
/// between them that is idle(end of the one, begin of the other).  `begin` and
/// `end` are the members that say where a range begins and ends.
template <class Range, class Idle>
void join(std::vector<Range>& ranges, std::uint64_t Range::*begin,
          std::uint64_t Range::*end, Idle&& idle) {
  std::sort(ranges.begin(), ranges.end(), [&](const Range& a, const Range& b) {
    return a.*begin < b.*begin;
  });
  std::size_t kept = 0;
  for (const Range& r : ranges) {
    if (kept != 0 && (r.*begin <= ranges[kept - 1].*end ||
                      idle(ranges[kept - 1].*end, r.*begin)))
      ranges[kept - 1].*end = std::max(ranges[kept - 1].*end, r.*end);
    else
      ranges[kept++] = r;
  }
  ranges.erase(ranges.begin() + static_cast<std::ptrdiff_t>(kept),
               ranges.end());
}
template <class Range>
void join(std::vector<Range>& ranges, std::uint64_t Range::*begin,
          std::uint64_t Range::*end) {
  join(ranges, begin, end, [](std::uint64_t, std::uint64_t) { return false; });
}

}  // namespace nbdrados

#endif
