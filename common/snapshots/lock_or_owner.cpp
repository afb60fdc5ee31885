// SPDX-License-Identifier: BSD-3-Clause

#include "snapshots/lock_or_owner.hpp"

#include <cerrno>
#include <exception>
#include <utility>

#include "rados/error.hpp"
#include "rbd/watch_notify.hpp"

namespace nbdrados {

namespace {

/// From whoever does not say that the lock is free.
constexpr std::chrono::seconds try_interval{1};

}  // namespace

LockOrOwner::LockOrOwner(ObjectStore& store, std::string header_oid,
                         ExclusiveLock& lock, std::chrono::milliseconds limit)
    : store_(store),
      header_oid_(std::move(header_oid)),
      lock_(lock),
      limit_(limit),
      watch_(store.watch(header_oid_, *this)) {}

LockOrOwner::~LockOrOwner() {
  // Who is there has then heard that the lock is free.
  lock_.finish_announcing(std::chrono::seconds(1));
  if (!lock_.left()) return;
  try {
    lock_.release();
  } catch (const Error&) {
    // It is then that of a client that is gone, which others take from it.
  }
}

std::optional<int> LockOrOwner::carry_out(const std::function<void()>& here,
                                          const std::string& request) {
  const auto deadline = Clock::now() + limit_;
  for (;;) {
    {
      // Who gives it back after this wakes us.
      const std::scoped_lock lock(mutex_);
      freed_ = false;
    }
    if (lock_.try_acquire(watch_->cookie()) ==
        ExclusiveLock::Result::acquired) {
      with_lock(here);
      return std::nullopt;
    }
    if (const int answer = ask(request); answer != -ETIMEDOUT) return answer;
    if (Clock::now() >= deadline)
      throw Error(EBUSY, lock_.owner_text() + " and does not answer in time");
    wait_until_free();
  }
}

/// -ETIMEDOUT: there is no answer yet, and the lock may become free.
int LockOrOwner::ask(const std::string& request) {
  if (!unable_) {
    const int answer = lock_.ask(request);
    if (answer != -EOPNOTSUPP) return answer;
    unable_ = true;
  }
  if (Clock::now() < ask_again_) return -ETIMEDOUT;
  const int answer = lock_.request_release(watch_->cookie());
  if (answer == -EROFS)
    throw Error(EROFS, lock_.owner_text() +
                           ", cannot do it, and does not hand the lock over");
  if (answer == 0) ask_again_ = Clock::now() + ExclusiveLock::ask_again;
  return -ETIMEDOUT;
}

void LockOrOwner::with_lock(const std::function<void()>& here) {
  lock_.announce_acquired(watch_->cookie());
  const auto give_back = [this] {
    lock_.release();
    lock_.announce_released(watch_->cookie());
  };
  try {
    here();
  } catch (...) {
    try {
      give_back();
    } catch (const Error&) {
      // The destructor tries again; what is thrown matters more.
    }
    throw;
  }
  try {
    give_back();
  } catch (const Error&) {
    // As above, and it has been done.
  }
}

void LockOrOwner::wait_until_free() {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, try_interval, [this] { return freed_; });
}

void LockOrOwner::notified(std::uint64_t notify_id, std::uint64_t cookie,
                           std::string_view payload) noexcept {
  try {
    std::string answer;
    try {
      const NotifyMessage message = decode_notify(payload);
      if (message.op == NotifyOp::released_lock) {
        const std::scoped_lock lock(mutex_);
        freed_ = true;
        changed_.notify_all();
      } else if (message.op == NotifyOp::request_lock && lock_.owns()) {
        // It will be given back soon.
        answer = encode_notify_response(0);
      } else if (asks_lock_holder(message.op) && lock_.owns()) {
        answer = encode_notify_response(-EOPNOTSUPP);
      }
    } catch (const Error&) {
      // An old client says that the header has changed.
    }
    store_.notify_ack(header_oid_, notify_id, cookie, answer);
  } catch (const std::exception&) {
    // Out of memory: the notifier waits for its time limit.
  }
}

void LockOrOwner::watch_lost(int /*code*/) noexcept {
  // What is done with the lock takes moments.  Who takes it from a client
  // without a watch shuts that out first, so that this cannot go on.
}

}  // namespace nbdrados
