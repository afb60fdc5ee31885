// SPDX-License-Identifier: BSD-3-Clause
//
// A clock that goes on while the machine sleeps.

#ifndef NBDRADOS_COHERENCE_BOOT_CLOCK_HPP
#define NBDRADOS_COHERENCE_BOOT_CLOCK_HPP

#include <time.h>

#include <chrono>

namespace nbdrados {

/// What others give this process time for is over when that time is over for
/// them.  std::chrono::steady_clock, and librados, stop counting while the
/// machine is suspended; CLOCK_BOOTTIME goes on (clock_gettime(2)).  None of
/// them sees that a virtual machine was paused by its host.  Meets the
/// requirements of a clock; thread-safe.
struct BootClock {
  using duration = std::chrono::nanoseconds;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = std::chrono::time_point<BootClock>;
  static constexpr bool is_steady = true;

  static time_point now() noexcept { return time_point(read(CLOCK_BOOTTIME)); }

  /// How long the machine has been suspended since it started.  What passes
  /// between the readings of the two clocks is no part of it: a thread may lose
  /// its processor there, for long on a busy machine.
  static duration suspended() noexcept {
    for (;;) {
      const duration before = read(CLOCK_MONOTONIC);
      const duration all = read(CLOCK_BOOTTIME);
      if (read(CLOCK_MONOTONIC) - before < std::chrono::milliseconds(10))
        return all - before;
    }
  }

 private:
  static duration read(clockid_t clock) noexcept {
    timespec t{};
    clock_gettime(clock, &t);
    return std::chrono::seconds(t.tv_sec) + std::chrono::nanoseconds(t.tv_nsec);
  }
};

}  // namespace nbdrados

#endif
