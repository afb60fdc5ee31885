// SPDX-License-Identifier: BSD-3-Clause
//
// Where writers wait until they may go on, or are told that they may not.

#ifndef NBDRADOS_IMAGE_STATE_WRITE_GATE_HPP
#define NBDRADOS_IMAGE_STATE_WRITE_GATE_HPP

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>

#include "rados/error.hpp"

namespace nbdrados {

/// Thread-safe.
class WriteGate {
 public:
  /// What has happened when a writer looked whether it may go on.
  struct Seen {
    std::uint64_t changes = 0;
    std::uint64_t refusals = 0;
  };
  [[nodiscard]] Seen seen() {
    const std::scoped_lock lock(mutex_);
    return seen_;
  }

  /// Returns when something has changed since `before`, or when `enough` says
  /// so, which is asked again after each nudge.  Throws the last refusal if
  /// there was one since then.
  template <class Enough>
  void wait(const Seen& before, Enough&& enough) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] {
      return before.changes != seen_.changes ||
             before.refusals != seen_.refusals || enough();
    });
    if (before.refusals != seen_.refusals) throw *refusal_;
  }

  /// There is another View.
  void change() {
    {
      const std::scoped_lock lock(mutex_);
      ++seen_.changes;
    }
    changed_.notify_all();
  }
  /// All who wait now get this error.
  void refuse(const Error& why) {
    {
      const std::scoped_lock lock(mutex_);
      ++seen_.refusals;
      refusal_ = why;
    }
    changed_.notify_all();
  }
  /// What `enough` looks at may have changed.
  void nudge() noexcept {
    // Who has just seen that it was not enough is waiting now.
    { const std::scoped_lock lock(mutex_); }
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  Seen seen_;                     // guarded by mutex_
  std::optional<Error> refusal_;  // guarded by mutex_: the last one
};

}  // namespace nbdrados

#endif
