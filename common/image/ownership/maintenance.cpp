// SPDX-License-Identifier: BSD-3-Clause

#include "image/ownership/maintenance.hpp"

#include <algorithm>
#include <cerrno>
#include <string>

#include "image/image_internal.hpp"
#include "image/ownership/exclusive_lock.hpp"
#include "rados/error.hpp"
#include "rbd/watch_notify.hpp"

namespace nbdrados {

Image::Maintenance::Maintenance(Image& image)
    : image_(image),
      lock_(image.writable_ ? image.format_->lock() : nullptr),
      turns_(image.options_.lock_wait) {
  if (!image_.traits_.header_oid.empty()) make_watch();
  if (const auto until = image_.format_->locked_until())
    image_.guard_until(*until);
}

void Image::Maintenance::start() {
  next_renewal_ = image_.format_->keep_alive();
  if (watch_ || next_renewal_) thread_ = std::thread([this] { work(); });
}

Image::Maintenance::~Maintenance() {
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
  if (lock_ != nullptr && lock_->held()) {
    hand_over();
    lock_->finish_announcing(ExclusiveLock::notify_limit);
  }
  // Once more, because whoever finds the lock without a watch shuts out all of
  // this process, with its other images.
  if (release_due_) release_again();
  old_watches_.clear();
  watch_.reset();
}

// Notifications -----------------------------------------------------------------

void Image::Maintenance::acknowledge(std::uint64_t notify_id,
                                     std::uint64_t cookie,
                                     std::string_view answer) {
  image_.format_->header_store().notify_ack(image_.traits_.header_oid,
                                            notify_id, cookie, answer);
}

bool Image::Maintenance::answered_at_once(std::uint64_t notify_id,
                                          std::uint64_t cookie,
                                          std::string_view payload) {
  NotifyMessage message;
  try {
    message = decode_notify(payload);
  } catch (const Error&) {
    return false;  // An old client says that the header has changed.
  }
  std::string answer;
  // As librbd, which compares both parts (ceph: src/librbd/ImageWatcher.cc).
  const bool ours = lock_ != nullptr && message.client &&
                    message.client->gid == lock_->client_id(0).gid &&
                    [&] {
                      const std::scoped_lock lock(mutex_);
                      return cookies_.contains(message.client->handle);
                    }();
  const LockTurns::Client sender =
      message.client ? LockTurns::Client(message.client->gid) : std::nullopt;
  switch (message.op) {
    case NotifyOp::request_lock:
      if (!owner_ || ours) break;
      // Whoever was told to keep the lock keeps it, `force` or not: the
      // other one can still break it.
      if (image_.options_.lock == LockMode::exclusive) {
        answer = encode_notify_response(-EROFS);
      } else {
        answer = encode_notify_response(0);
        const std::scoped_lock lock(mutex_);
        release_asked_ = true;
        heir_ = sender;
      }
      break;
    case NotifyOp::acquired_lock:
    case NotifyOp::released_lock: {
      if (ours) break;
      const std::scoped_lock lock(mutex_);
      if (message.op == NotifyOp::released_lock)
        turns_.free();
      else if (owner_)
        lock_doubtful_ = true;
      else
        turns_.acquired_by(sender, Clock::now());
      break;
    }
    case NotifyOp::async_progress:
    case NotifyOp::async_complete:
    case NotifyOp::quiesce:
    case NotifyOp::unquiesce:
      break;
    default:
      if (!asks_lock_holder(message.op)) return false;
      // The other client then asks for the lock and does it himself
      // (ceph: src/librbd/Operations.cc, C_InvokeAsyncRequest).
      if (owner_) answer = encode_notify_response(-EOPNOTSUPP);
      break;
  }
  acknowledge(notify_id, cookie, answer);
  return true;
}

void Image::Maintenance::doubt_lock() {
  {
    const std::scoped_lock lock(mutex_);
    lock_doubtful_ = true;
  }
  wake_.notify_all();
}

void Image::Maintenance::doubt_watch() {
  {
    const std::scoped_lock lock(mutex_);
    watch_doubtful_ = true;
  }
  wake_.notify_all();
}

void Image::Maintenance::notified(std::uint64_t notify_id,
                                  std::uint64_t cookie,
                                  std::string_view payload) noexcept {
  try {
    if (!answered_at_once(notify_id, cookie, payload)) {
      const std::scoped_lock lock(mutex_);
      notifications_.emplace_back(notify_id, cookie);
    }
  } catch (...) {
    // Out of memory.  Unanswered, the notifier waits for its timeout, and
    // the header is read again all the same.
    const std::scoped_lock lock(mutex_);
    lost_watch_ = ETIMEDOUT;
  }
  wake_.notify_all();
}

void Image::Maintenance::watch_lost(int code) noexcept {
  {
    const std::scoped_lock lock(mutex_);
    lost_watch_ = code;
  }
  wake_.notify_all();
}

void Image::Maintenance::make_watch() {
  const auto now = BootClock::now();
  suspended_ = BootClock::suspended();
  try {
    watch_ = image_.format_->header_store().watch(image_.traits_.header_oid,
                                                  *this);
    image_.guard_until(now + watch_->kept_for());
    note_cookies();
  } catch (const Error& e) {
    // A key without write capability cannot watch; who only reads can do
    // without, sees changes at the next open, and must ask whether what is
    // absent is zeros.
    if (image_.writable_ ||
        (e.code() != EPERM && e.code() != EACCES && e.code() != EROFS))
      throw;
    image_.guard_until(BootClock::time_point::min());
    image_.log(image_.traits_.name + ": changes will not be noticed: " +
                   without_name(image_.traits_.name, e.what()),
               false);
  }
}

/// What is wrong with the watch, or 0.  As long as it is good, the image is
/// known not to vanish unseen.
int Image::Maintenance::check_watch() {
  const auto now = BootClock::now();
  const auto suspended = BootClock::suspended();
  if (const int code = watch_->check(); code != 0) return code;
  // The OSD has counted this time, and librados has not.
  if (suspended > suspended_ + std::chrono::seconds(1)) return ETIMEDOUT;
  image_.guard_until(now + watch_->kept_for());
  return 0;
}

void Image::Maintenance::note_cookies() {
  const std::scoped_lock lock(mutex_);
  cookies_.clear();
  if (watch_) cookies_.insert(watch_->cookie());
  for (const auto& old : old_watches_)
    if (old) cookies_.insert(old->cookie());
}

// The thread --------------------------------------------------------------------

void Image::Maintenance::work() {
  for (;;) {
    Notifications notifications;
    int code = 0;
    bool try_now = false;
    bool release = false;
    bool doubtful = false;
    {
      std::unique_lock lock(mutex_);
      const auto wants = [this] { return lock_wanted_ && !owner_; };
      const auto something = [&] {
        return stopping_ || !notifications_.empty() || lost_watch_ != 0 ||
               release_asked_ || lock_doubtful_ || watch_doubtful_ ||
               (wants() && Clock::now() >= turns_.next_try());
      };
      const auto before = Clock::now();
      const auto deadline =
          before + std::min<std::chrono::milliseconds>(
                       next_renewal_.value_or(check_interval),
                       release_due_ ? LockTurns::interval
                                           : check_interval);
      // What is waited for can change while this waits.
      while (!something() && Clock::now() < deadline)
        wake_.wait_until(lock,
                         wants() ? std::min(deadline, turns_.next_try())
                                 : deadline);
      if (stopping_) return;
      if (next_renewal_)
        *next_renewal_ -= std::chrono::duration_cast<std::chrono::milliseconds>(
            Clock::now() - before);
      notifications.swap(notifications_);
      code = lost_watch_;
      release = std::exchange(release_asked_, false);
      doubtful = std::exchange(lock_doubtful_, false);
      // To be looked at each time.
      watch_doubtful_ = false;
      if (wants() && Clock::now() >= turns_.next_try()) {
        try_now = true;
        turns_.trying(Clock::now());
        // A writer that comes from now on asks again.
        lock_wanted_ = false;
      }
    }
    // Nothing may end this thread, or notifications stay unanswered.
    try {
      serve(code, notifications);
      // It may have had the lock before us.  A new watch gives the lock
      // another name, which only works as long as it is ours.
      if (doubtful && lock_ != nullptr && lock_->held())
        restore_watch("another client says that it has the exclusive lock");
      if (release && lock_ != nullptr && lock_->held()) {
        {
          const std::scoped_lock lock(mutex_);
          turns_.handing_over(heir_, Clock::now());
        }
        hand_over();
        continue;
      }
      // There is no watch any more after a verdict, which writers get.
      if (try_now && watch_)
        try_lock();
      else if (release_due_)
        release_again();
    } catch (const std::exception& e) {
      image_.log(about(image_.traits_.name, e.what()));
      const std::scoped_lock lock(mutex_);
      if (lost_watch_ == 0 && watch_) lost_watch_ = ETIMEDOUT;
    }
  }
}

void Image::Maintenance::serve(int code, const Notifications& notifications) {
  if (code == 0 && watch_) code = check_watch();
  if (code != 0) {
    restore_watch("the watch on the header is broken: " + error_text(code));
  } else if (!notifications.empty()) {
    image_.hold_writes();
    try {
      image_.load_and_publish(true);
    } catch (const Error& e) {
      image_.log(about(image_.traits_.name, e.what()));
      // After a verdict requests fail, and see for themselves when that ends.
      // Otherwise writes must wait until the change has been seen.
      if (!is_verdict(e.code())) restore_watch("the header cannot be read");
    }
  }
  if (!notifications.empty()) image_.view_.synchronize();
  for (const auto& [id, cookie] : notifications) acknowledge(id, cookie, {});
  // It may have run out in a time that this thread has not seen pass.
  if (next_renewal_ && (next_renewal_->count() <= 0 || !image_.guarded()))
    renew();
}

/// Makes the watch again and reads what may have been missed.
void Image::Maintenance::restore_watch(const std::string& why) {
  image_.log(image_.traits_.name + ": " + why);
  image_.hold_writes();
  old_watches_.push_back(std::move(watch_));
  const auto forget_old = [this] {
    old_watches_.clear();
    note_cookies();
    // It may have been said of them only now.
    const std::scoped_lock lock(mutex_);
    lost_watch_ = 0;
  };
  std::string said;
  for (;;) {
    try {
      // In a second try the new one will do, if it works.
      if (!watch_ || check_watch() != 0) {
        if (watch_) old_watches_.push_back(std::move(watch_));
        make_watch();
      }
      if (lock_ != nullptr && lock_->held()) {
        try {
          lock_->rewatched(watch_->cookie());
        } catch (const Error& e) {
          if (e.code() != ESHUTDOWN) throw;
          lose_lock(e.what());
          forget_old();
          return;
        }
      }
      forget_old();
      catch_up();
      // Of a watch that could not be made there is nothing to check.
      if (!watch_ || check_watch() == 0) {
        image_.end_hold();
        image_.log(image_.traits_.name + ": the header is watched again",
                   false);
        return;
      }
    } catch (const Error& e) {
      if (is_final(e.code())) {
        image_.fail_for_good(failure_for(e.code()),
                             image_.traits_.name +
                                 (e.code() == ENOENT
                                      ? ": the image has been deleted"
                                      : ": the header cannot be watched: " +
                                            error_text(e.code())));
        // Whoever opens the image anew, in this process too, is to find
        // nothing of this one: the lock of the object map has no name of its
        // own.
        if (lock_ != nullptr && lock_->held()) hand_over();
        // Without a watch nobody says any more that it is lost.
        watch_.reset();
        forget_old();
        return;
      }
      // This may end, but writers are not to wait for it.
      if (is_verdict(e.code()))
        image_.refuse_writers(
            Error(failure_for(e.code()),
                  image_.traits_.name + ": the header cannot be watched: " +
                      error_text(e.code())));
      if (said != e.what())
        image_.log(about(image_.traits_.name, said = e.what()));
    }
    std::unique_lock lock(mutex_);
    if (wake_.wait_for(lock, std::chrono::seconds(1),
                       [this] { return stopping_; }))
      return;
  }
}

/// Reads what may have been missed without a watch.
void Image::Maintenance::catch_up() {
  try {
    image_.load_and_publish();
  } catch (const Error& e) {
    if (!is_verdict(e.code()) || is_final(e.code())) throw;
    // The requests see when that ends, as in serve.
    image_.log(about(image_.traits_.name, e.what()));
  }
}

void Image::Maintenance::renew() {
  try {
    const std::scoped_lock lock(image_.format_mutex_);
    next_renewal_ = image_.format_->keep_alive();
    if (const auto until = image_.format_->locked_until())
      image_.guard_until(*until);
  } catch (const Error& e) {
    next_renewal_.reset();
    image_.fail_for_good(ESHUTDOWN, about(image_.traits_.name, e.what()));
  }
}

// The lock ----------------------------------------------------------------------

void Image::Maintenance::want_lock() {
  {
    const std::scoped_lock lock(mutex_);
    lock_wanted_ = true;
  }
  wake_.notify_all();
}

void Image::Maintenance::lock_at_open() {
  if (image_.options_.lock == LockMode::none)
    throw Error(EINVAL, image_.traits_.name +
                            ": lock=none is only for images without the "
                            "feature exclusive-lock, and for reading");
  if (lock_ == nullptr || image_.options_.lock != LockMode::exclusive) return;
  const auto deadline = Clock::now() + dead_owner_limit;
  while (lock_->try_acquire(watch_->cookie()) !=
         ExclusiveLock::Result::acquired) {
    if (!image_.options_.break_lock || Clock::now() >= deadline)
      throw Error(EBUSY, lock_->owner_text());
    std::this_thread::sleep_for(LockTurns::interval);
  }
  locked();
}

/// The lock has just been taken.
void Image::Maintenance::locked() {
  owner_ = true;
  release_due_ = false;
  try {
    image_.publish_locked();
    const std::scoped_lock lock(mutex_);
    turns_.free();
  } catch (...) {
    owner_ = false;
    try {
      lock_->release();
    } catch (const Error& e) {
      release_due_ = left(e);
    }
    throw;
  }
  lock_->announce_acquired(watch_->cookie());
}

/// Whether it is time to ask the lock's owner for it.
bool Image::Maintenance::may_ask() {
  const std::optional<LockOwner>& owner = lock_->owner();
  if (!owner) return true;
  const auto number = static_cast<std::uint64_t>(owner->holder.entity_number);
  const std::scoped_lock lock(mutex_);
  return turns_.ask(number, Clock::now());
}

/// Tries to get the lock for the writers that wait.
void Image::Maintenance::try_lock() {
  try {
    if (lock_->try_acquire(watch_->cookie()) ==
        ExclusiveLock::Result::acquired) {
      locked();
      return;
    }
    if (may_ask() && lock_->request_release(watch_->cookie()) == -EROFS) {
      image_.refuse_writers(Error(
          EROFS, lock_->owner_text() + " and does not hand the lock over"));
      return;
    }
    // The owner will say when it is free; or has died, which shows later.
    const std::scoped_lock lock(mutex_);
    lock_wanted_ = true;
  } catch (const Error& e) {
    release_due_ = left(e);
    if (e.code() == ESHUTDOWN)
      image_.fail_for_good(ESHUTDOWN, about(image_.traits_.name, e.what()));
    else
      image_.refuse_writers(e);
  }
}

/// Gives the lock back, after all that relies on it.
void Image::Maintenance::hand_over() {
  // Caches write what they have, through requests of other threads.  None of
  // those waits for this thread: no writes are held now.
  image_.promise_->give_up();
  try {
    const std::shared_ptr<ObjectMap> map = image_.publish_unlocked();
    try {
      if (map) map->close();
    } catch (const Error& e) {
      // The next owner breaks the lock of the map.
      image_.log(about(image_.traits_.name, e.what()));
    }
    lock_->release();
    owner_ = false;
    // While the watch is broken, others cannot be told.
    if (watch_) lock_->announce_released(watch_->cookie());
  } catch (const Error& e) {
    owner_ = false;
    // A lock that is not given back is that of a dead client, some time
    // after the watch has ended.
    image_.log(about(image_.traits_.name, e.what()));
    release_due_ = left(e);
  }
}

/// Whether the lock may have stayed, after an error, with nobody here who uses
/// it.  Who is shut out leaves it to whoever did that.
bool Image::Maintenance::left(const Error& e) const {
  return e.code() != ESHUTDOWN && lock_->may_be_held();
}

/// Of a lock that has stayed.
void Image::Maintenance::release_again() {
  try {
    lock_->release();
    release_due_ = false;
    if (watch_) lock_->announce_released(watch_->cookie());
  } catch (const Error& e) {
    release_due_ = left(e);
  }
}

/// The lock is somebody else's: nothing may be written any more.
void Image::Maintenance::lose_lock(const std::string& reason) {
  owner_ = false;
  image_.fail_for_good(ESHUTDOWN, about(image_.traits_.name, reason));
  (void)image_.publish_unlocked();
}

}  // namespace nbdrados
