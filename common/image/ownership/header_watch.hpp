// SPDX-License-Identifier: BSD-3-Clause
//
// The watch on an image's header, and for how long it guards the image.

#ifndef NBDRADOS_IMAGE_OWNERSHIP_HEADER_WATCH_HPP
#define NBDRADOS_IMAGE_OWNERSHIP_HEADER_WATCH_HPP

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "coherence/boot_clock.hpp"
#include "image/core.hpp"
#include "rados/object_store.hpp"

namespace nbdrados {

/// For one thread at a time, except for is_ours.
class HeaderWatch {
 public:
  /// Longer than an OSD waits for the answers to a notification of ours
  /// (ExclusiveLock::notify_limit).
  static constexpr std::chrono::seconds named_for{10};

  /// What is given must outlive this.
  HeaderWatch(ImageCore& core, WatchHandler& handler)
      : core_(core), handler_(handler) {}
  /// Waits for callbacks under way.
  ~HeaderWatch() { end(); }
  HeaderWatch(const HeaderWatch&) = delete;
  HeaderWatch& operator=(const HeaderWatch&) = delete;

  /// Makes a watch, in place of the one that there is.  That stays until
  /// forget_former: without the watch that the lock names, its owner counts as
  /// dead.  Blocks.  Throws Error.  For an image that is only read, with a key
  /// that cannot watch, it makes none and logs that.
  void make();
  [[nodiscard]] explicit operator bool() const noexcept {
    return watch_ != nullptr;
  }
  /// Names the watch that there is.
  [[nodiscard]] std::uint64_t cookie() const noexcept {
    return watch_->cookie();
  }
  /// What is wrong with it, a positive errno, or 0.  As long as it is good,
  /// the image is known not to vanish unseen: ImageState::guard_until.
  [[nodiscard]] int check();
  /// It is not good any more; it stays as a former one does.
  void retire();
  /// Those before the present one are needed no more.
  void forget_former();
  /// From now on there is none.
  void end();

  /// Whether it is, or was in the last `named_for`, a watch of this image that
  /// has this name: a notification of ours may come late, and names the watch
  /// that there was when it was sent.  Another image of the same client is
  /// somebody else.  Thread-safe.
  [[nodiscard]] bool is_ours(std::uint64_t cookie);

 private:
  void note_cookies();
  [[nodiscard]] std::set<std::uint64_t> cookies_now() const;

  ImageCore& core_;
  WatchHandler& handler_;
  std::unique_ptr<Watch> watch_;
  /// BootClock::suspended() when it was made.
  BootClock::duration suspended_{};
  std::vector<std::unique_ptr<Watch>> former_;

  std::mutex mutex_;
  /// Guarded by mutex_: the names of all of these, without end, and of those
  /// that were, with the time from which they are nobody's.
  std::map<std::uint64_t, BootClock::time_point> cookies_;
};

}  // namespace nbdrados

#endif
