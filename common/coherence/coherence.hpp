// SPDX-License-Identifier: BSD-3-Clause
//
// What a plugin promises to a cache above it, in one process.
//
// nbdkit has no call for this, and plugins and filters do not see each other's
// symbols.  So the plugin and the filter both link the small shared library
// that this header belongs to.  A plugin's .open offers a promise; it runs
// within the filter's own call of next_open, on the same thread, so the
// filter takes it right after that call.
//
// The promise is a generation: as long as it is the same number and not 0,
// nothing but requests through this export changes the data.  It is 0 while
// anybody may change it (no exclusive lock), and never returns to a former
// number.  The plugin sets it to 0 before it gives the right to change away.
// A cache reads the generation before each request, uses only what was
// fetched under the same one, and looks again after each change: the change
// itself may have made the plugin take its lock.
//
// When the right is taken by force, the generation is as late as the
// plugin's knowledge of it.

#ifndef NBDRADOS_COHERENCE_COHERENCE_HPP
#define NBDRADOS_COHERENCE_COHERENCE_HPP

#include <atomic>
#include <cstdint>
#include <memory>

namespace nbdrados {

/// Of one disk; whoever has the same object has the same disk.  Thread-safe
/// for readers; the plugin makes changes one at a time.
class Promise {
 public:
  /// 0: data must not be cached.
  [[nodiscard]] std::uint64_t generation() const noexcept {
    return now_.load();
  }
  /// From now on others may change the data.
  void end() noexcept { now_.store(0); }
  /// From now on nobody else changes it; what was known is worthless.
  void begin() noexcept { now_.store(++last_); }

 private:
  std::atomic<std::uint64_t> now_{0};
  std::uint64_t last_ = 0;
};

/// A new promise, not yet begun.  Made here, because a filter may have it
/// longer than the plugin's code is loaded.
[[nodiscard]] __attribute__((visibility("default"))) std::shared_ptr<Promise>
make_promise();

/// Leaves a promise for whoever has called this thread's .open; null for none.
/// A former one is forgotten.
__attribute__((visibility("default"))) void offer_promise(
    std::shared_ptr<const Promise> promise) noexcept;

/// What was offered on this thread, once; null if nothing was.
__attribute__((visibility("default"))) std::shared_ptr<const Promise>
take_promise() noexcept;

}  // namespace nbdrados

#endif
