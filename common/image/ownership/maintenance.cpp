// SPDX-License-Identifier: BSD-3-Clause

#include "image/ownership/maintenance.hpp"

#include <algorithm>
#include <cerrno>
#include <exception>
#include <string>
#include <system_error>
#include <utility>

#include "image/state/verdict.hpp"
#include "rados/error.hpp"
#include "rbd/watch_notify.hpp"

namespace nbdrados {

Maintenance::Maintenance(ImageCore& core)
    : core_(core),
      lock_(core.state.writable() ? core.format->lock() : nullptr),
      turns_(core.options.lock_wait),
      watch_(core, *this) {
  if (is_watched()) watch_.make();
  if (const auto until = core_.format->locked_until())
    core_.state.guard_until(*until);
}

void Maintenance::start() {
  next_renewal_ = core_.metadata.keep_alive();
  if (watch_ || next_renewal_) thread_ = std::thread([this] { run(); });
}

Maintenance::~Maintenance() {
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
  if (held()) {
    release();
    lock_->finish_announcing(ExclusiveLock::notify_limit);
  }
  // Once more, because whoever finds the lock without a watch shuts out all of
  // this process, with its other images.
  release_again();
  watch_.end();
}

// Notifications ------------------------------------------------------------

void Maintenance::acknowledge(std::uint64_t notify_id, std::uint64_t cookie,
                              std::string_view answer) {
  core_.format->header_store().notify_ack(core_.traits.header_oid, notify_id,
                                          cookie, answer);
}

/// What the lock's owner says to a client that asks for it; empty: this one is
/// not the owner.
std::string Maintenance::answer_request(
    const std::optional<NotifyClient>& sender) {
  if (!owns()) return {};
  // Whoever was told to keep the lock keeps it, `force` or not: the
  // other one can still break it.
  if (core_.options.lock == LockMode::exclusive)
    return encode_notify_response(-EROFS);
  const std::scoped_lock lock(mutex_);
  work_.release = true;
  heir_ = sender ? LockTurns::Client(sender->gid) : std::nullopt;
  return encode_notify_response(0);
}

/// Another client has got the lock, or given it back.
void Maintenance::note_owner(const NotifyMessage& message) {
  const std::scoped_lock lock(mutex_);
  if (message.op == NotifyOp::released_lock)
    turns_.free();
  else if (owns())
    work_.doubtful = true;
  else
    turns_.acquired_by(message.client ? LockTurns::Client(message.client->gid)
                                      : std::nullopt,
                       Clock::now());
}

bool Maintenance::answered_at_once(std::uint64_t notify_id,
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
                    watch_.is_ours(message.client->handle);
  switch (message.op) {
    case NotifyOp::request_lock:
      if (!ours) answer = answer_request(message.client);
      break;
    case NotifyOp::acquired_lock:
    case NotifyOp::released_lock:
      if (!ours) note_owner(message);
      break;
    case NotifyOp::async_progress:
    case NotifyOp::async_complete:
    case NotifyOp::quiesce:
    case NotifyOp::unquiesce:
      break;
    default:
      if (!asks_lock_holder(message.op)) return false;
      // The other client then asks for the lock and does it himself
      // (ceph: src/librbd/Operations.cc, C_InvokeAsyncRequest).
      if (owns()) answer = encode_notify_response(-EOPNOTSUPP);
      break;
  }
  acknowledge(notify_id, cookie, answer);
  return true;
}

void Maintenance::notified(std::uint64_t notify_id, std::uint64_t cookie,
                           std::string_view payload) noexcept {
  try {
    if (!answered_at_once(notify_id, cookie, payload)) {
      const std::scoped_lock lock(mutex_);
      work_.notifications.emplace_back(notify_id, cookie);
    }
  } catch (...) {
    // Out of memory.  Unanswered, the notifier waits for its timeout, and
    // the header is read again all the same.
    const std::scoped_lock lock(mutex_);
    work_.lost_watch = ETIMEDOUT;
  }
  wake_.notify_all();
}

void Maintenance::watch_lost(int code) noexcept {
  {
    const std::scoped_lock lock(mutex_);
    work_.lost_watch = code;
  }
  wake_.notify_all();
}

void Maintenance::want_lock() {
  {
    const std::scoped_lock lock(mutex_);
    lock_wanted_ = true;
  }
  wake_.notify_all();
}

void Maintenance::doubt_lock() {
  {
    const std::scoped_lock lock(mutex_);
    work_.doubtful = true;
  }
  wake_.notify_all();
}

void Maintenance::doubt_watch() {
  {
    const std::scoped_lock lock(mutex_);
    watch_doubtful_ = true;
  }
  wake_.notify_all();
}

// The thread ---------------------------------------------------------------

/// Returns when there is something to do, or it is time to look at the watch;
/// false: it is time to stop.
bool Maintenance::wait_for_work(Work& work) {
  std::unique_lock lock(mutex_);
  const auto wants = [this] { return lock_wanted_ && !owns(); };
  const auto something = [&] {
    return stopping_ || !work_.notifications.empty() ||
           work_.lost_watch != 0 || work_.release || work_.doubtful ||
           watch_doubtful_ || (wants() && Clock::now() >= turns_.next_try());
  };
  const auto before = Clock::now();
  const auto deadline =
      before + std::min<std::chrono::milliseconds>(
                   next_renewal_.value_or(check_interval),
                   left() ? LockTurns::interval : check_interval);
  // What is waited for can change while this waits.
  while (!something() && Clock::now() < deadline)
    wake_.wait_until(lock, wants() ? std::min(deadline, turns_.next_try())
                                   : deadline);
  if (stopping_) return false;
  if (next_renewal_)
    *next_renewal_ -= std::chrono::duration_cast<std::chrono::milliseconds>(
        Clock::now() - before);
  work = std::exchange(work_, Work{});
  watch_doubtful_ = false;  // it is looked at each time
  if (wants() && Clock::now() >= turns_.next_try()) {
    work.try_lock = true;
    turns_.trying(Clock::now());
    // A writer that comes from now on asks again.
    lock_wanted_ = false;
  }
  return true;
}

void Maintenance::run() {
  for (;;) {
    Work work;
    if (!wait_for_work(work)) return;
    // Nothing may end this thread, or notifications stay unanswered.
    try {
      serve(work);
    } catch (const std::exception& e) {
      core_.log(about(core_.traits.name, e.what()));
      // Whatever was left undone is done when the watch is made anew.
      const bool lost = core_.state.lost().has_value();
      const std::scoped_lock lock(mutex_);
      if (work_.lost_watch == 0 && is_watched() && !lost)
        work_.lost_watch = ETIMEDOUT;
    }
  }
}

void Maintenance::serve(const Work& work) {
  see_changes(work);
  // It may have been another client's before us.  A new watch gives the lock
  // another name, which only works as long as it is ours.
  if (work.doubtful && held())
    restore_watch("another client says that it has the exclusive lock");
  if (work.release && held()) {
    {
      const std::scoped_lock lock(mutex_);
      turns_.handing_over(heir_, Clock::now());
    }
    release();
    return;
  }
  // After a verdict, which writers get, nothing is taken any more.
  if (work.try_lock && watch_ && !core_.state.lost())
    try_lock();
  else
    release_again();
}

void Maintenance::see_changes(const Work& work) {
  int code = work.lost_watch;
  if (code == 0 && watch_) code = watch_.check();
  const bool notified = !work.notifications.empty();
  if (code != 0) {
    restore_watch("the watch on the header is broken: " + error_text(code));
  } else if (notified) {
    core_.state.hold_writes();
    try {
      core_.metadata.load(true);
    } catch (const Error& e) {
      core_.log(about(core_.traits.name, e.what()));
      // After a verdict requests fail, and see for themselves when that ends.
      // Otherwise writes must wait until the change has been seen.
      if (!is_verdict(e.code())) restore_watch("the header cannot be read");
    }
  }
  if (notified) core_.state.synchronize();
  for (const auto& [id, cookie] : work.notifications)
    acknowledge(id, cookie, {});
  // It may have run out in a time that this thread has not seen pass.
  if (next_renewal_ &&
      (next_renewal_->count() <= 0 || !core_.state.guarded()))
    renew();
}

/// The lock, where it is held, gets the name of the watch.  False: it is held
/// no more.
bool Maintenance::keep_lock_name() {
  if (!held()) return true;
  try {
    lock_->rewatched(watch_.cookie());
    return true;
  } catch (const Error& e) {
    if (e.code() != ESHUTDOWN) throw;
    core_.state.lose(ESHUTDOWN, about(core_.traits.name, e.what()));
    release();
    return false;
  }
}

/// A verdict on the header.
void Maintenance::lost_for_good(const Error& why) {
  core_.state.lose(failure_for(why.code()),
                   core_.traits.name +
                       (why.code() == ENOENT
                            ? ": the image has been deleted"
                            : ": the header cannot be watched: " +
                                  error_text(why.code())));
  // Whoever opens the image anew, in this process too, is to find nothing of
  // this one: the lock of the object map has no name of its own.
  if (held()) release();
  // Without a watch nobody says any more that it is lost.
  watch_.end();
}

/// Makes the watch again and reads what may have been missed.
void Maintenance::restore_watch(const std::string& why) {
  const std::string& name = core_.traits.name;
  core_.log(name + ": " + why);
  core_.state.hold_writes();
  watch_.retire();
  const auto forget_former = [this] {
    // One of them may be what the lock names: then it stays until that has
    // been given back, or others take the owner for dead.
    release_again();
    if (!left()) watch_.forget_former();
    // It may have been said of them only now.
    const std::scoped_lock lock(mutex_);
    work_.lost_watch = 0;
  };
  std::string said;
  for (;;) {
    try {
      // In a second try the new one will do, if it works.
      if (!watch_ || watch_.check() != 0) watch_.make();
      const bool kept = keep_lock_name();
      forget_former();
      if (!kept) return;
      catch_up();
      // Of a watch that could not be made there is nothing to check.
      if (!watch_ || watch_.check() == 0) {
        core_.state.end_hold();
        core_.log(name + ": the header is watched again", false);
        return;
      }
    } catch (const Error& e) {
      if (is_final(e.code())) {
        lost_for_good(e);
        forget_former();
        return;
      }
      // This may end, but writers are not to wait for it.
      if (is_verdict(e.code()))
        core_.state.gate().refuse(
            Error(failure_for(e.code()),
                  name + ": the header cannot be watched: " +
                      error_text(e.code())));
      if (said != e.what()) core_.log(about(name, said = e.what()));
    }
    std::unique_lock lock(mutex_);
    if (wake_.wait_for(lock, std::chrono::seconds(1),
                       [this] { return stopping_; }))
      return;
  }
}

/// Reads what may have been missed without a watch.
void Maintenance::catch_up() {
  try {
    core_.metadata.load();
  } catch (const Error& e) {
    if (!is_verdict(e.code()) || is_final(e.code())) throw;
    // The requests see when that ends, as in see_changes.
    core_.log(about(core_.traits.name, e.what()));
  }
}

void Maintenance::renew() {
  try {
    next_renewal_ = core_.metadata.keep_alive();
  } catch (const Error& e) {
    next_renewal_.reset();
    core_.state.lose(ESHUTDOWN, about(core_.traits.name, e.what()));
  }
}

// The lock -----------------------------------------------------------------

void Maintenance::lock_at_open() {
  if (core_.options.lock == LockMode::none)
    throw Error(EINVAL, core_.traits.name +
                            ": lock=none is only for images without the "
                            "feature exclusive-lock, and for reading");
  if (lock_ == nullptr || core_.options.lock != LockMode::exclusive) return;
  const auto deadline = Clock::now() + dead_owner_limit;
  while (lock_->try_acquire(watch_.cookie()) !=
         ExclusiveLock::Result::acquired) {
    if (!core_.options.break_lock || Clock::now() >= deadline)
      throw Error(EBUSY, lock_->owner_text());
    std::this_thread::sleep_for(LockTurns::interval);
  }
  take();
}

/// The lock has just been got: from now on requests may rely on it.
void Maintenance::take() {
  try {
    core_.metadata.load_as_owner(
        [this](const std::string& line) { core_.log(line); });
  } catch (...) {
    try {
      lock_->release();
    } catch (const Error&) {
      // It is left, and released again.
    }
    throw;
  }
  {
    const std::scoped_lock lock(mutex_);
    turns_.free();
    // Who came meanwhile has been woken.
    lock_wanted_ = false;
  }
  lock_->announce_acquired(watch_.cookie());
}

/// Whether it is time to ask the lock's owner for it.
bool Maintenance::may_ask() {
  const std::optional<LockOwner>& owner = lock_->owner();
  if (!owner) return true;
  const auto number = static_cast<std::uint64_t>(owner->holder.entity_number);
  const std::scoped_lock lock(mutex_);
  return turns_.ask(number, Clock::now());
}

/// Tries to get the lock for the writers that wait.
void Maintenance::try_lock() {
  try {
    if (lock_->try_acquire(watch_.cookie()) ==
        ExclusiveLock::Result::acquired) {
      take();
      return;
    }
    if (may_ask() && lock_->request_release(watch_.cookie()) == -EROFS) {
      core_.state.gate().refuse(Error(
          EROFS, lock_->owner_text() + " and does not hand the lock over"));
      return;
    }
    // The owner will say when it is free; or has died, which shows later.
    const std::scoped_lock lock(mutex_);
    lock_wanted_ = true;
  } catch (const Error& e) {
    if (e.code() == ESHUTDOWN)
      core_.state.lose(ESHUTDOWN, about(core_.traits.name, e.what()));
    else
      core_.state.gate().refuse(e);
  }
}

/// Caches write what they have, through requests of other threads.  These wait
/// where the OSD may have dropped the watch, which this thread keeps: so it goes
/// on with that.
void Maintenance::ask_keepers() {
  const Promise& promise = *core_.state.promise();
  if (promise.tenure() == 0) return;  // the image is being closed
  bool done = false;  // guarded by mutex_
  std::thread asker;
  try {
    asker = std::thread([&] {
      promise.give_up();
      {
        const std::scoped_lock lock(mutex_);
        done = true;
      }
      wake_.notify_all();
    });
  } catch (const std::system_error&) {
    promise.give_up();
    return;
  }
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, LockTurns::interval, [&] { return done; })) {
    lock.unlock();
    try {
      if (const int code = watch_ ? watch_.check() : 0; code != 0)
        restore_watch("the watch on the header is broken: " +
                      error_text(code));
    } catch (const std::exception& e) {
      core_.log(about(core_.traits.name, e.what()));
    }
    lock.lock();
  }
  lock.unlock();
  asker.join();
}

/// Ends the ownership of the lock: no request relies on it any more, the object
/// map is given back, then the lock.  Of what is somebody else's already,
/// nothing is sent.
void Maintenance::release() {
  if (held()) {
    // Of a lost image they cannot write, and say what is lost.
    if (core_.state.lost())
      core_.state.promise()->give_up();
    else
      ask_keepers();
  }
  try {
    const std::shared_ptr<ObjectMap> map = core_.state.end_tenure();
    if (!held()) return;
    try {
      if (map) map->close();
    } catch (const Error& e) {
      // The next owner breaks the lock of the map.
      core_.log(about(core_.traits.name, e.what()));
    }
    lock_->release();
    // While the watch is broken, others cannot be told.
    if (watch_) lock_->announce_released(watch_.cookie());
  } catch (const Error& e) {
    // A lock that is not given back is that of a dead client, some time
    // after the watch has ended.
    core_.log(about(core_.traits.name, e.what()));
  }
}

/// Of a lock that may have stayed.
void Maintenance::release_again() {
  if (!left()) return;
  try {
    lock_->release();
    watch_.forget_former();
    if (watch_) lock_->announce_released(watch_.cookie());
  } catch (const Error&) {
    // It is still left.
  }
}

}  // namespace nbdrados
