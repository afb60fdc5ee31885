// SPDX-License-Identifier: BSD-3-Clause
//
// Which objects come next, when objects are made one after the other.
//
// Whoever fills an image makes its objects in their order, often in a few
// places at a time (nbdcopy has a part of the image for each connection).
// Each object costs an update of the object map before its first write.  So
// the map is told of some that will probably come next in the same update.
//
//   made      0     1         3               7 ...
//   guessed   -     2         4 5 6           8 9 10 11 12 13 14 ...
//
// A run that has left out an object begins anew.

#ifndef NBDRADOS_IMAGE_OWNERSHIP_CREATION_RUNS_HPP
#define NBDRADOS_IMAGE_OWNERSHIP_CREATION_RUNS_HPP

#include <algorithm>
#include <array>
#include <cstdint>

namespace nbdrados {

/// Not thread-safe.
class CreationRuns {
 public:
  /// Object numbers.
  struct Range {
    std::uint64_t first = 0;
    std::uint64_t end = 0;
  };
  struct Guess {
    Range next;  // right behind the object; may be empty
    /// An earlier guess that is given up: what of it has not come will
    /// probably not come.  May be empty.
    Range over;
  };
  /// A guess together with the object before it.
  static constexpr std::uint64_t most = 8;

  /// Object n is to be made, and was not guessed or not told to the map.
  /// missed(range) says whether any object of an earlier guess has not come.
  template <class Missed>
  Guess made(std::uint64_t n, Missed&& missed);
  void clear() noexcept { runs_ = {}; }

 private:
  struct Run {
    Range last;  // the object and the guess; empty: no run
    std::uint64_t used = 0;
  };
  std::array<Run, 8> runs_;
  std::uint64_t clock_ = 0;
};

template <class Missed>
CreationRuns::Guess CreationRuns::made(std::uint64_t n, Missed&& missed) {
  Run* oldest = runs_.data();
  for (Run& run : runs_) {
    if (run.last.first == run.last.end) {
      oldest = &run;
      continue;
    }
    // Another thread's write to one of them.
    if (n >= run.last.first && n < run.last.end) return {};
    if (n == run.last.end) {
      Guess guess;
      guess.over = {run.last.first + 1, run.last.end};
      const bool whole = !missed(guess.over);
      const std::uint64_t count =
          whole ? std::min(2 * (run.last.end - run.last.first), most) : 1;
      run.last = {n, n + count};
      run.used = ++clock_;
      guess.next = {n + 1, n + count};
      return guess;
    }
    if (run.used < oldest->used) oldest = &run;
  }
  Guess guess;
  if (oldest->last.first != oldest->last.end)
    guess.over = {oldest->last.first + 1, oldest->last.end};
  *oldest = {.last = {n, n + 1}, .used = ++clock_};
  return guess;
}

}  // namespace nbdrados

#endif
