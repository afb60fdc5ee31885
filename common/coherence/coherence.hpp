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
// plugin's knowledge of it.  The plugin knows until when nobody can take it
// unseen, and renews that time as it goes on; a process that was stopped, or
// whose machine was suspended, may find it over.  So nothing that was cached is
// used, and no write kept, unless the promise holds (holds()).  The generation
// is not 0 meanwhile: changes are still to be seen by what is cached, because
// the plugin may find that all is well.
//
// A cache that keeps writes for a while needs more: it must write before
// somebody else may.  The promise has a tenure: as long as it is the same
// number and not 0, nobody else may write.  It can go on where the generation
// ends, for instance while the plugin makes sure of what it knows.  Before the
// plugin gives the right to write away, it calls give_up, which asks all
// keepers to write what they have, and waits for them.  When the right is
// taken by force, the tenure ends, and what was kept is lost.

#ifndef NBDRADOS_COHERENCE_COHERENCE_HPP
#define NBDRADOS_COHERENCE_COHERENCE_HPP

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "coherence/boot_clock.hpp"

namespace nbdrados {

/// Who keeps writes.
class Keeper {
 public:
  virtual ~Keeper() = default;
  /// Writes everything of this tenure through the plugin, and keeps nothing
  /// any more that comes in it.  Called by a thread of the plugin's.  Returns
  /// when that is done, or cannot be.
  virtual void give_up(std::uint64_t tenure) noexcept = 0;
};

/// Of one disk; whoever has the same object has the same disk.  Thread-safe
/// for readers; the plugin makes changes one at a time, but for end() and
/// begin(), which may be called at any time.
class __attribute__((visibility("default"))) Promise {
 public:
  /// 0: data must not be cached.
  [[nodiscard]] std::uint64_t generation() const noexcept {
    return now_.load();
  }
  /// 0: writes must not be kept back.
  [[nodiscard]] std::uint64_t tenure() const noexcept {
    return tenure_.load();
  }
  /// `keeper` will be asked to give up, as long as it lives; at once, where the
  /// others have been asked already and the tenure has not yet ended.
  void add_keeper(std::weak_ptr<Keeper> keeper) const;

  /// Whether the right cannot have been taken unseen.
  [[nodiscard]] bool holds() const noexcept {
    const BootClock::time_point until = until_.load();
    return until == BootClock::time_point::max() || BootClock::now() < until;
  }
  /// For how long that is so, from now on; at first for ever.
  void hold_until(BootClock::time_point until) noexcept { until_ = until; }

  /// From now on others may change the data.
  void end() noexcept { now_.store(0); }
  /// From now on nobody else changes it; what was known is worthless.
  void begin() noexcept { now_.store(++last_); }

  /// From now on only who has this promise may write.
  void begin_tenure() noexcept { tenure_.store(++last_tenure_); }
  /// Before end_tenure, while writes are still possible.  Blocks.
  void give_up() const noexcept;
  /// From now on others may write.
  void end_tenure() noexcept { tenure_.store(0); }

 private:
  std::atomic<std::uint64_t> now_{0};
  std::atomic<std::uint64_t> last_{0};
  std::atomic<std::uint64_t> tenure_{0};
  std::atomic<BootClock::time_point> until_{BootClock::time_point::max()};
  std::uint64_t last_tenure_ = 0;
  mutable std::mutex mutex_;
  // Guarded by mutex_.
  mutable std::vector<std::weak_ptr<Keeper>> keepers_;
  mutable unsigned asking_ = 0;
  mutable std::uint64_t given_up_ = 0;  ///< the last tenure that was
};

/// A new promise, not yet begun.  Made here, because a filter may have it
/// longer than the plugin's code is loaded.
[[nodiscard]] __attribute__((visibility("default"))) std::shared_ptr<Promise>
make_promise();

/// The promise of data that never changes, such as a snapshot's.  `identity`
/// names it in this process, now and later: the same promise is returned as
/// long as anybody has it, so that a cache may keep what it has while nobody
/// has the data open.  Thread-safe.
[[nodiscard]] __attribute__((visibility("default"))) std::shared_ptr<Promise>
constant_promise(const std::string& identity);

/// Leaves a promise for whoever has called this thread's .open; null for none.
/// A former one is forgotten.
__attribute__((visibility("default"))) void offer_promise(
    std::shared_ptr<const Promise> promise) noexcept;

/// What was offered on this thread, once; null if nothing was.
__attribute__((visibility("default"))) std::shared_ptr<const Promise>
take_promise() noexcept;

}  // namespace nbdrados

#endif
