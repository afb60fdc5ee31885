// SPDX-License-Identifier: BSD-3-Clause
//
// What goes on beside the requests of an open image: the watch on its header,
// notifications, the exclusive lock, and what must be renewed.

#ifndef NBDRADOS_IMAGE_OWNERSHIP_MAINTENANCE_HPP
#define NBDRADOS_IMAGE_OWNERSHIP_MAINTENANCE_HPP

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "image/image.hpp"
#include "image/ownership/lock_turns.hpp"

namespace nbdrados {

/// One image's maintenance, in a thread of its own: an OSD that is slow for
/// one image must not delay another image's answers.
///
/// What other clients say about the lock is answered at once, by librados'
/// thread that brings it: the maintenance thread may itself be waiting for
/// the answers to a notification, ours among them, and two clients that want
/// the lock must not wait for each other.  What changes the header is
/// answered by the maintenance thread, when the change has been seen.
class Image::Maintenance final : public WatchHandler {
 public:
  /// Makes the watch.  Throws Error.
  explicit Maintenance(Image& image);

  /// Takes the lock if it is to be taken at open.  Throws Error: EBUSY where
  /// somebody has it, by name.  The image must have its first View.
  void lock_at_open();

  /// Begins to act on notifications.  The image must have its first View.
  void start();

  /// Gives the lock back.  No request may be under way.
  ~Maintenance() override;

  /// A writer waits for the lock; refuse_writers or a View answers it.
  /// Thread-safe.
  void want_lock();
  /// Something speaks against that the lock is held: have a look.
  /// Thread-safe.
  void doubt_lock();
  /// A writer cannot be sure of the watch: have a look.  Image::guard_until
  /// answers it, or a View.  Thread-safe.
  void doubt_watch();

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

  void make_watch();
  [[nodiscard]] int check_watch();
  void note_cookies();
  void work();
  void serve(int code, const Notifications& notifications);
  void restore_watch(const std::string& why);
  void catch_up();
  void renew();
  [[nodiscard]] bool answered_at_once(std::uint64_t notify_id,
                                      std::uint64_t cookie,
                                      std::string_view payload);
  void acknowledge(std::uint64_t notify_id, std::uint64_t cookie,
                   std::string_view answer);

  [[nodiscard]] bool may_ask();
  void try_lock();
  void locked();
  void hand_over();
  [[nodiscard]] bool left(const Error& e) const;
  void release_again();
  void lose_lock(const std::string& reason);

  Image& image_;
  ExclusiveLock* const lock_;  // null: there is none
  /// Time left until the next renewal; used by the thread.
  std::optional<std::chrono::milliseconds> next_renewal_;
  std::unique_ptr<Watch> watch_;  // used by the thread, or before it starts
  /// As watch_: BootClock::suspended() when it was made.
  BootClock::duration suspended_{};
  /// As watch_.  Each stays until the lock is known to have the name of a newer
  /// one, or is given back: without the watch that the lock names, its owner
  /// counts as dead.
  std::vector<std::unique_ptr<Watch>> old_watches_;

  /// As watch_: the lock may be held, and is not used.  Others see an owner that
  /// is alive and does not answer, and must not wait for ever.
  bool release_due_ = false;

  /// The lock is held, or about to be: others are answered by its owner.
  std::atomic<bool> owner_{false};

  std::mutex mutex_;
  /// Of watch_ and old_watches_: who this image is in notifications.  Another
  /// image of the same client is somebody else.
  std::set<std::uint64_t> cookies_;  // guarded by mutex_
  std::condition_variable wake_;
  Notifications notifications_;  // guarded by mutex_
  int lost_watch_ = 0;           // guarded by mutex_: positive errno
  bool lock_wanted_ = false;     // guarded by mutex_: by a writer here
  LockTurns turns_;              // guarded by mutex_
  bool release_asked_ = false;   // guarded by mutex_: by another client
  LockTurns::Client heir_;       // guarded by mutex_: which one
  bool lock_doubtful_ = false;   // guarded by mutex_: somebody says so
  bool watch_doubtful_ = false;  // guarded by mutex_: a writer says so
  bool stopping_ = false;        // guarded by mutex_
  std::thread thread_;
};

}  // namespace nbdrados

#endif
