// SPDX-License-Identifier: BSD-3-Clause
//
// What goes on in the filter beside requests: data that has been kept for long
// enough is written, and a signal asks for statistics.

#ifndef NBDRADOS_RADOSCACHE_SERVICE_HPP
#define NBDRADOS_RADOSCACHE_SERVICE_HPP

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "cache/write_back.hpp"
#include "exports.hpp"

namespace nbdrados {

/// Threads that write what exports keep: what is old, what is complete, and
/// when much is kept, whatever there is.  Their requests run beside those of
/// clients, so the plugin must be fully parallel.
class Writers {
 public:
  /// Both must outlive it.
  Writers(Exports& exports, DirtyLimit& dirty);
  /// Ends what is under way; writes nothing else.
  ~Writers();
  Writers(const Writers&) = delete;
  Writers& operator=(const Writers&) = delete;

  /// There may be something to do.  Thread-safe.
  void notify() noexcept;
  /// Something has been kept, which need not be written now.  Thread-safe.
  void notice() noexcept {
    if (resting_.load() != 0) notify();
  }

 private:
  /// So many requests below at once.
  static constexpr unsigned thread_count = 4;
  /// How late data may be that gets old without anything else going on.
  static constexpr std::chrono::milliseconds look_interval{250};

  void work() noexcept;
  [[nodiscard]] bool write_something();

  Exports& exports_;
  DirtyLimit& dirty_;
  std::atomic<unsigned> asleep_{0};
  /// Threads that wait without a time-out, because nothing is kept.
  std::atomic<unsigned> resting_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
  bool wanted_ = false;    // guarded by mutex_
  bool stopping_ = false;  // guarded by mutex_
  std::vector<std::thread> threads_;
};

/// From now on SIGUSR1 does not end the process.
void survive_signal() noexcept;
/// From now on SIGUSR1 is ignored, by code that stays.
void ignore_signal() noexcept;

/// Calls a function in a thread of its own each time that the process gets
/// SIGUSR1.  One object in a process; after survive_signal().
class SignalThread {
 public:
  /// `action` must not throw.  Throws std::system_error.
  explicit SignalThread(std::function<void()> action);
  ~SignalThread();
  SignalThread(const SignalThread&) = delete;
  SignalThread& operator=(const SignalThread&) = delete;

 private:
  const std::function<void()> action_;
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace nbdrados

#endif
