// SPDX-License-Identifier: BSD-3-Clause
//
// What only the owner of an image's exclusive lock may do is done here, with
// the lock, or by its owner, whom a notification asks for it
// (ceph: src/librbd/Operations.cc, C_InvokeAsyncRequest).
//
//     try to take the lock --- got it ------> do it, give the lock back
//       |                ^
//       | another's      | free, or a second later
//       v                |
//     ask the owner to do it --- an answer -> that is the result
//       | "cannot" (the Linux kernel, our own servers)
//       v
//     ask the owner for the lock ----- no --> EROFS
//
// An owner writes to the image all the time, so it is asked before the lock is:
// its writes have to wait only while it does it.

#ifndef NBDRADOS_SNAPSHOTS_LOCK_OR_OWNER_HPP
#define NBDRADOS_SNAPSHOTS_LOCK_OR_OWNER_HPP

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "image/ownership/exclusive_lock.hpp"
#include "rados/object_store.hpp"

namespace nbdrados {

/// For one thread; librados' threads call notified and watch_lost.
class LockOrOwner final : public WatchHandler {
 public:
  using Clock = std::chrono::steady_clock;

  /// Watches the header, as who has the lock must.  `limit` bounds the time for
  /// which the owner is asked.  What is given must outlive this.  Throws Error.
  LockOrOwner(ObjectStore& store, std::string header_oid, ExclusiveLock& lock,
              std::chrono::milliseconds limit);
  /// Tries once more to give the lock back, where that has failed.
  ~LockOrOwner() override;
  LockOrOwner(const LockOrOwner&) = delete;
  LockOrOwner& operator=(const LockOrOwner&) = delete;

  /// Returns nothing where `here` has been called, with the lock held; else
  /// what the owner has answered to `request`, 0 or a negative errno.  Throws
  /// what `here` throws, and Error: EROFS: the owner will not; EBUSY: it does
  /// not answer within the limit; and the errors of ExclusiveLock::try_acquire.
  [[nodiscard]] std::optional<int> carry_out(const std::function<void()>& here,
                                             const std::string& request);

  void notified(std::uint64_t notify_id, std::uint64_t cookie,
                std::string_view payload) noexcept override;
  void watch_lost(int code) noexcept override;

 private:
  [[nodiscard]] int ask(const std::string& request);
  void with_lock(const std::function<void()>& here);
  void wait_until_free();

  ObjectStore& store_;
  const std::string header_oid_;
  ExclusiveLock& lock_;
  const std::chrono::milliseconds limit_;
  /// The owner has said that it cannot do it itself.
  bool unable_ = false;
  /// It has said that it gives the lock back; when to ask it once more.
  Clock::time_point ask_again_{};

  std::mutex mutex_;
  std::condition_variable changed_;
  bool freed_ = false;  // guarded by mutex_: somebody has given the lock back

  std::unique_ptr<Watch> watch_;  // goes first: no more callbacks
};

}  // namespace nbdrados

#endif
