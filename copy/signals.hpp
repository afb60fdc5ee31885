// SPDX-License-Identifier: BSD-3-Clause
//
// What signals mean: SIGINT, SIGTERM and SIGHUP end the copy tidily, and the
// second one at once; SIGUSR1 asks how far it is.

#ifndef NBDRADOS_RADOSCOPY_SIGNALS_HPP
#define NBDRADOS_RADOSCOPY_SIGNALS_HPP

#include <atomic>
#include <functional>
#include <thread>

namespace radoscopy {

/// One at a time.  Servers that are started meanwhile have the usual handlers.
class Signals {
 public:
  /// All are called by a thread of this.  `check`, with the signal's number, is
  /// called ten times a second after stop.
  Signals(std::function<void()> stop, std::function<void()> report,
          std::function<void(int)> check);
  ~Signals();
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

  /// The signal that has ended the copy; 0: none.
  [[nodiscard]] int received() const noexcept { return received_; }

 private:
  void work();
  [[nodiscard]] bool wait() const;

  const std::function<void()> stop_;
  const std::function<void()> report_;
  const std::function<void(int)> check_;
  std::atomic<int> received_{0};
  std::thread thread_;
};

}  // namespace radoscopy

#endif
