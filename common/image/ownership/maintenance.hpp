// SPDX-License-Identifier: BSD-3-Clause
//
// What goes on beside the requests of an open image: the watch on its header,
// notifications, the exclusive lock, and what must be renewed.

#ifndef NBDRADOS_IMAGE_OWNERSHIP_MAINTENANCE_HPP
#define NBDRADOS_IMAGE_OWNERSHIP_MAINTENANCE_HPP

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "image/core.hpp"
#include "image/ownership/caretaker.hpp"
#include "image/ownership/exclusive_lock.hpp"
#include "image/ownership/header_watch.hpp"
#include "image/ownership/lock_turns.hpp"
#include "rados/object_store.hpp"
#include "rbd/watch_notify.hpp"

namespace nbdrados {

/// One image's maintenance, in a thread of its own: an OSD that is slow for
/// one image must not delay another image's answers.
///
/// What other clients say about the lock is answered at once, by librados'
/// thread that brings it: the maintenance thread may itself be waiting for
/// the answers to a notification, ours among them, and two clients that want
/// the lock must not wait for each other.  What changes the header is
/// answered by the maintenance thread, when the change has been seen.
///
/// There is one way into the ownership of the lock (take), one out of it
/// (release), and one for what a release has left behind (release_again).
class Maintenance final : public WatchHandler, public Caretaker {
 public:
  /// Makes the watch.  `core` must outlive this.  Throws Error.
  explicit Maintenance(ImageCore& core);

  /// Takes the lock if it is to be taken at open.  Throws Error: EBUSY where
  /// somebody has it, by name.  The image must have its first View.
  void lock_at_open();

  /// Begins to act on notifications.  The image must have its first View.
  void start();

  /// Gives the lock back.  No request may be under way.
  ~Maintenance() override;

  void want_lock() override;
  void doubt_lock() override;
  void doubt_watch() override;

  void notified(std::uint64_t notify_id, std::uint64_t cookie,
                std::string_view payload) noexcept override;
  void watch_lost(int code) noexcept override;

 private:
  using Notifications = std::vector<std::pair<std::uint64_t, std::uint64_t>>;
  using Clock = LockTurns::Clock;

  /// How often to look whether the watch is alive: who is cut off from the OSD
  /// is not told when that drops it (Watch::kept_for).
  static constexpr std::chrono::seconds check_interval{5};
  /// With break_lock: until a dead owner's watch is dropped, and some more.
  static constexpr std::chrono::seconds dead_owner_limit{40};

  /// What the thread has to do.
  struct Work {
    Notifications notifications = {};
    int lost_watch = 0;       // positive errno
    bool release = false;     // another client has asked for the lock
    bool doubtful = false;    // somebody says that we have it no more
    bool try_lock = false;    // a writer here waits for it
  };

  void run();
  [[nodiscard]] bool wait_for_work(Work& work);
  void serve(const Work& work);
  void see_changes(const Work& work);
  void restore_watch(const std::string& why);
  [[nodiscard]] bool keep_lock_name();
  void catch_up();
  void lost_for_good(const Error& why);
  void renew();

  [[nodiscard]] bool answered_at_once(std::uint64_t notify_id,
                                      std::uint64_t cookie,
                                      std::string_view payload);
  [[nodiscard]] std::string answer_request(
      const std::optional<NotifyClient>& sender);
  void note_owner(const NotifyMessage& message);
  void acknowledge(std::uint64_t notify_id, std::uint64_t cookie,
                   std::string_view answer);

  [[nodiscard]] bool is_watched() const noexcept {
    return !core_.traits.header_oid.empty();
  }
  [[nodiscard]] bool owns() const noexcept {
    return lock_ != nullptr && lock_->owns();
  }
  [[nodiscard]] bool held() const noexcept {
    return lock_ != nullptr && lock_->held();
  }
  [[nodiscard]] bool left() const noexcept {
    return lock_ != nullptr && lock_->left();
  }
  [[nodiscard]] bool may_ask();
  void try_lock();
  void take();
  void ask_keepers();
  void release();
  void release_again();

  ImageCore& core_;
  ExclusiveLock* const lock_;  // null: there is none
  /// Time left until the next renewal; used by the thread.
  std::optional<std::chrono::milliseconds> next_renewal_;

  std::mutex mutex_;
  std::condition_variable wake_;
  Work work_;                    // guarded by mutex_: what has come in
  bool lock_wanted_ = false;     // guarded by mutex_: by a writer here
  bool watch_doubtful_ = false;  // guarded by mutex_: a writer says so
  LockTurns turns_;              // guarded by mutex_
  LockTurns::Client heir_;       // guarded by mutex_: who asks for the lock
  bool stopping_ = false;        // guarded by mutex_

  HeaderWatch watch_;  // used by the thread, or before it starts
  std::thread thread_;
};

}  // namespace nbdrados

#endif
