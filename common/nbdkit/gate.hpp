// SPDX-License-Identifier: BSD-3-Clause
//
// The end of a client's requests.
//
// When nbdkit ends it does not close the handles of clients that are still
// connected, and it waits for its own threads only.  Threads of filters above
// (readahead's, nbdkit: filters/readahead/bgthread.c) go on with the requests
// that they still have to make while .cleanup runs, and after it.  So .cleanup
// shuts the gate of each handle: it waits for the requests that are under way,
// and whatever comes later is refused.  The handles stay until .unload, when
// nbdkit frees its own side of them as well.

#ifndef NBDRADOS_NBDKIT_GATE_HPP
#define NBDRADOS_NBDKIT_GATE_HPP

#include <atomic>

namespace nbdrados {

/// Of one handle.  Thread-safe.
class Gate {
 public:
  Gate() = default;
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;

  /// Lives as long as a request; false: it must not be made.
  class [[nodiscard]] Pass {
   public:
    explicit Pass(Gate& gate) noexcept : gate_(gate) {
      valid_ = (gate_.state_.fetch_add(request) & closed) == 0;
    }
    ~Pass() {
      // Nobody waits before the gate is being shut.
      if (gate_.state_.fetch_sub(request) == (closed | request))
        gate_.state_.notify_all();
    }
    Pass(const Pass&) = delete;
    Pass& operator=(const Pass&) = delete;
    explicit operator bool() const noexcept { return valid_; }

   private:
    Gate& gate_;
    bool valid_;
  };

  /// Returns when no request is under way any more.
  void shut() noexcept {
    unsigned state = state_.fetch_or(closed) | closed;
    while (state != closed) {
      state_.wait(state);
      state = state_.load();
    }
  }

 private:
  static constexpr unsigned closed = 1;
  static constexpr unsigned request = 2;

  /// `request` for each one, and `closed`.
  std::atomic<unsigned> state_{0};
};

}  // namespace nbdrados

#endif
