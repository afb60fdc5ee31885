// SPDX-License-Identifier: BSD-3-Clause
//
// The exclusive lock of one image of format 2.
//
// The lock is one of the object class `lock` on the header object: name
// "rbd_lock", exclusive, tag "internal", cookie "auto HANDLE" with the handle
// of the holder's watch on the header (rbd/cls_lock.hpp).  It keeps clients
// apart that ask for it, nothing more: an OSD takes writes from everybody.
// So a holder that is gone is shut out of the cluster before its lock is taken
// (ceph: src/librbd/managed_lock, src/librbd/ManagedLock.cc; linux:
// drivers/block/rbd.c, rbd_try_lock).
//
// Acquiring:
//   1. lock.  Granted, or it is ours already: done.
//   2. get_info: who has it?  Nobody any more: 1.  A lock that no RBD client
//      took by itself (`rbd lock add`, a shared one) is never broken.
//   3. list_watchers: the holder lives while it has the watch that its cookie
//      names.  It must be asked (request_release).
//   4. get_info again.  A holder whose watch broke and that made a new one
//      changes its cookie; what 2 and 3 saw may be from before and after.
//      Any difference: 1.
//   5. blocklist the holder's address.  From here on it cannot write.
//   6. wait until this client knows the newest OSD map, so that what it
//      sends comes to OSDs that know the blocklist.
//   7. break_lock, of exactly this holder and cookie; then 1.
// Windows: a client that dies after 5 leaves a blocklisted holder's lock, which
// the next client breaks.  Two that break the same lock blocklist the same
// holder twice, one of them breaks it, and 1 decides between them.  A holder
// that comes between 6 and 7 has another cookie, so 7 does not hit it.
//
// What the image's watch handler must do.  Notifications go to all watches of
// the header, this client's own too, and every one of them must answer, or the
// notifier waits for its whole time limit.  request_release blocks the thread
// that calls it, so the watch handler itself, not that thread, must answer
// (ObjectStore::notify_ack, without a payload)
//   - what carries client_id() of its own watch;
//   - request_lock of others while the lock is not held: two clients that ask
//     for the lock at one time else wait for each other;
//   - acquired_lock and released_lock of others.
// Who holds the lock answers request_lock with encode_notify_response.
//
// One process has at most one usable Image of an image that may be written to.
// One that is lost gives its lock back when its watch is found broken, or at
// the latest when it is closed; in both cases after its last request.  So a
// lock that a client of this process has without a watch is a leftover, and
// taken without 5 and 6: these would shut out the other images of that client.
// (One that is blocklisted has lost them already, and may have requests under
// way.)
//
// Whether this client has the lock:
//
//     none -- try_acquire --> held -- release --> leaving -- answered --> none
//      |                       |                     |
//      +- no answer --> left   +- lost --> none      +- else --> left
//
// "left": perhaps it has it, and nobody uses it.  Others see an owner that is
// alive and does not answer, and must not wait for ever; so release is called
// again until it is answered, or try_acquire, if the lock is wanted again.  Who
// has been shut out leaves it to whoever did that.
//
// Thread-safety: one thread at a time, except for client_id and owns.

#ifndef NBDRADOS_IMAGE_OWNERSHIP_EXCLUSIVE_LOCK_HPP
#define NBDRADOS_IMAGE_OWNERSHIP_EXCLUSIVE_LOCK_HPP

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "rados/cluster.hpp"
#include "rados/object_store.hpp"
#include "rbd/cls_lock.hpp"
#include "rbd/watch_notify.hpp"

namespace nbdrados {

/// Who has the lock.
struct LockOwner {
  LockHolder holder;
  /// It has the watch that its lock names.
  bool alive = false;
  bool operator==(const LockOwner&) const = default;
};

/// Every blocking member throws Error, of which
///   ESHUTDOWN  this client has been blocklisted, or its lock was taken;
///   ENOENT     the image is gone;
///   ETIMEDOUT  no answer within the time limit: what was asked for may have
///              happened or may happen yet.
/// The next try_acquire, rewatched or release copes with that.
class ExclusiveLock {
 public:
  struct Options {
    /// Takes the lock from an owner that is not alive.  false: try_acquire
    /// says busy, as of one that is.
    bool break_dead = true;
    /// Bound on one operation.
    std::chrono::milliseconds limit = std::chrono::seconds(30);
    /// The image's name for messages, such as "rbd/vm1".
    std::string what = {};
  };

  enum class Result : std::uint8_t { acquired, busy };

  /// How long the watchers have to answer a notification
  /// (ceph: src/librbd/watcher/Notifier.cc, NOTIFY_TIMEOUT).
  static constexpr std::chrono::seconds notify_limit{5};
  /// After an owner has said that it will release the lock, and after this
  /// time has not done so, librbd asks again (client_notify_timeout).
  static constexpr std::chrono::seconds ask_again{10};

  /// `store` and `blocklister` must outlive the lock.
  ExclusiveLock(ObjectStore& store, std::string header_oid,
                Blocklister& blocklister, Options options);
  /// Does not release the lock.
  ~ExclusiveLock();
  ExclusiveLock(const ExclusiveLock&) = delete;
  ExclusiveLock& operator=(const ExclusiveLock&) = delete;

  /// Tries once, under the name of this client's watch on the header.  busy:
  /// see owner().  Blocks.  Throws Error; EBUSY where the lock cannot be had by
  /// asking or waiting, because no RBD client took it by itself; EACCES where
  /// this client's key may not blocklist a dead owner.
  [[nodiscard]] Result try_acquire(std::uint64_t watch_cookie);

  /// Who had the lock when try_acquire last said busy; else nothing.
  [[nodiscard]] const std::optional<LockOwner>& owner() const noexcept {
    return owner_;
  }
  /// "rbd/vm1 is locked by client.4123 (192.0.2.1:0/123), which is alive";
  /// empty without an owner().
  [[nodiscard]] std::string owner_text() const;

  /// Asks the owner for what a notification says, and blocks until all watchers
  /// have answered, at most notify_limit.  Returns what the owner answers, 0 or a
  /// negative errno; -ETIMEDOUT: nobody answered for the lock, so that it may be
  /// free or its owner dead: try again; -EINVAL: two did, or nonsense.  Throws
  /// Error.
  [[nodiscard]] int ask(const std::string& payload);
  /// Asks the owner to release the lock.  As ask: 0: it will; -EROFS: it keeps
  /// it.
  [[nodiscard]] int request_release(std::uint64_t watch_cookie);

  /// To be called when there is a new watch: the lock, where it is held, gets
  /// its name, without being free in between.  Blocks.  Throws
  /// Error(ESHUTDOWN) when the lock is not ours any more; it is not held
  /// then.  After other errors it is, and this must be called again.
  void rewatched(std::uint64_t watch_cookie);

  /// Gives the lock away, if this client has it or may have it.  Not held
  /// afterwards, whatever happens; left() tells whether that is certain.
  /// Blocks.  Throws Error.
  void release();

  [[nodiscard]] bool held() const noexcept { return state_ == State::held; }
  /// Perhaps held, and of no use: release again, or try_acquire.
  [[nodiscard]] bool left() const noexcept { return state_ == State::left; }
  /// Held, or being released: others are answered by its owner.  Thread-safe.
  [[nodiscard]] bool owns() const noexcept {
    const State state = state_;
    return state == State::held || state == State::leaving;
  }

  /// Who this client is in notifications.  Thread-safe.
  [[nodiscard]] NotifyClient client_id(
      std::uint64_t watch_cookie) const noexcept {
    return {.gid = client_, .handle = watch_cookie};
  }

  /// Tell the other clients.  They do not wait for the answers; an error has
  /// no effect but that others learn later.
  void announce_acquired(std::uint64_t watch_cookie) noexcept;
  void announce_released(std::uint64_t watch_cookie) noexcept;
  /// Waits for the answers to the last announcement, at most `limit`: before
  /// this client leaves the cluster, which else may leave before it has said
  /// so.
  void finish_announcing(std::chrono::milliseconds limit) noexcept;

 private:
  [[nodiscard]] LockInfo info();
  [[nodiscard]] int change(std::string_view method, std::string_view input);
  [[nodiscard]] bool alive(const LockHolder& holder);
  [[nodiscard]] bool ours(const LockHolder& holder) const;
  [[nodiscard]] bool left_over(const LockHolder& holder) const;
  [[nodiscard]] const LockHolder& checked(const LockInfo& info) const;
  void break_lock(const LockHolder& holder);
  void check_change(int r, std::string_view doing) const;
  void announce(const std::string& payload) noexcept;
  [[nodiscard]] static std::string text(const LockHolder& holder);
  Result acquired(std::string cookie);
  void forget() noexcept;
  void may_be_left(std::string cookie);

  ObjectStore& store_;
  const std::string oid_;
  Blocklister& blocklister_;
  const Options options_;
  const std::uint64_t client_;

  enum class State : std::uint8_t { none, held, leaving, left };
  std::atomic<State> state_{State::none};
  /// Of the lock, in any state but none.
  std::string cookie_;
  /// Names that it may have instead: of renames without an answer.
  std::vector<std::string> renames_;
  std::optional<LockOwner> owner_;
  std::unique_ptr<Pending> announcement_;
};

}  // namespace nbdrados

#endif
