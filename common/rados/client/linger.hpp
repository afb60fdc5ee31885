// SPDX-License-Identifier: BSD-3-Clause
//
// What librados uses of watches and notifications, which can live longer than
// whoever asked for them.

#ifndef NBDRADOS_RADOS_CLIENT_LINGER_HPP
#define NBDRADOS_RADOS_CLIENT_LINGER_HPP

#include <rados/librados.hpp>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "rados/client/completion.hpp"
#include "rados/object_store.hpp"

namespace nbdrados {

/// Waits for the completion of a watch, unwatch or notification, at most until
/// `deadline`.  Returns its result, or -ETIMEDOUT.  Not only for the completion
/// but also for its callback, which must be set: librados ends what it keeps
/// of a watch or notification in a task of its own that it queues before the
/// callback, and that must not meet a client that has been shut down
/// (ceph: src/librados/IoCtxImpl.cc, C_aio_linger_Complete).
[[nodiscard]] inline int wait_linger(
    Completion& c, std::chrono::steady_clock::time_point deadline) {
  while (!c.get()->is_complete_and_cb()) {
    if (std::chrono::steady_clock::now() >= deadline) return -ETIMEDOUT;
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return c.get()->get_return_value();
}

/// What librados uses of a notification.  That cannot be cancelled, so when
/// it is given up, this stays.
struct NotifyContext {
  /// librados uses it until the notification has completed, and does not
  /// count that use (ceph: src/librados/IoCtxImpl.cc, aio_notify): without it
  /// a notification that outlives its store meets freed memory.
  librados::IoCtx io;
  bufferlist payload, reply;
  Completion done;
};

/// What librados calls for a watch.  It may call until the watch is gone
/// from the OSD, which can be later than our Watch is.  Then `handler_` is
/// null, and notifications are answered at once, so that no notifier waits
/// for us.
class WatchContext final : public librados::WatchCtx2 {
 public:
  WatchContext(librados::IoCtx& io, std::string oid, WatchHandler& handler)
      : io_(io), oid_(std::move(oid)), handler_(&handler) {}

  void handle_notify(std::uint64_t notify_id, std::uint64_t cookie,
                     std::uint64_t /*notifier_id*/,
                     bufferlist& bl) override {
    const std::scoped_lock lock(mutex_);
    if (handler_ != nullptr) {
      handler_->notified(notify_id, cookie, {bl.c_str(), bl.length()});
      return;
    }
    bufferlist empty;
    io_.notify_ack(oid_, notify_id, cookie, empty);
  }
  void handle_error(std::uint64_t /*cookie*/, int err) override {
    const std::scoped_lock lock(mutex_);
    if (handler_ != nullptr) handler_->watch_lost(-err);
  }
  /// After this no call reaches the handler, and none is under way.
  void disarm() noexcept {
    const std::scoped_lock lock(mutex_);
    handler_ = nullptr;
  }

  /// Written by librados until `registered` is complete.
  std::uint64_t handle = 0;
  Completion registered;

 private:
  librados::IoCtx io_;
  const std::string oid_;
  std::mutex mutex_;
  WatchHandler* handler_;  // guarded by mutex_
};

/// What librados may still use although nobody waits for it any more.  To be
/// destroyed when the client has been shut down.  Thread-safe.
class Retired {
 public:
  /// Keeps a context that the OSD did not let go of.
  void keep(std::shared_ptr<WatchContext> context) {
    const std::scoped_lock lock(mutex_);
    watches_.push_back(std::move(context));
  }
  /// Keeps what librados uses of a notification until that is complete.
  void keep(std::shared_ptr<NotifyContext> context) {
    const std::scoped_lock lock(mutex_);
    std::erase_if(notifications_, [](const auto& old) {
      return old->done.get()->is_complete_and_cb();
    });
    notifications_.push_back(std::move(context));
  }

 private:
  std::mutex mutex_;
  // Guarded by mutex_.
  std::vector<std::shared_ptr<WatchContext>> watches_;
  std::vector<std::shared_ptr<NotifyContext>> notifications_;
};

}  // namespace nbdrados

#endif
