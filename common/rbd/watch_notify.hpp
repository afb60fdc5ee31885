// SPDX-License-Identifier: BSD-3-Clause
//
// What librbd clients tell each other by notifications on an image's header
// object (ceph: src/librbd/WatchNotifyTypes.h and .cc,
// src/librbd/watcher/Types.cc), and the reply of a RADOS notification
// (ceph: src/osd/Watch.cc, Notify::maybe_complete_notify).
//
// Who holds the exclusive lock answers request_lock and the requests for
// maintenance (flatten, resize, snap_create, ...) with a NotifyResponse;
// everybody else, and every other notification, is acknowledged with an empty
// answer.  A request_lock that nobody answers is one that nobody who holds
// the lock has seen.
//
// librbd takes an empty payload as header_update (older clients and object
// class users send it), ignores what it cannot decode, and what it does not
// know it decodes as an unknown operation and acknowledges.
//
// All functions are pure and thread-safe.

#ifndef NBDRADOS_RBD_WATCH_NOTIFY_HPP
#define NBDRADOS_RBD_WATCH_NOTIFY_HPP

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nbdrados {

/// Newer clients may send numbers that are not here.
enum class NotifyOp : std::uint32_t {
  acquired_lock = 0,
  released_lock = 1,
  request_lock = 2,
  header_update = 3,
  async_progress = 4,
  async_complete = 5,
  flatten = 6,
  resize = 7,
  snap_create = 8,
  snap_remove = 9,
  rebuild_object_map = 10,
  snap_rename = 11,
  snap_protect = 12,
  snap_unprotect = 13,
  rename = 14,
  update_features = 15,
  migrate = 16,
  sparsify = 17,
  quiesce = 18,
  unquiesce = 19,
  metadata_update = 20,
};
/// As librbd's logs have it: "AcquiredLock", "SnapCreate", "Unknown (99)".
[[nodiscard]] std::string to_string(NotifyOp op);

/// Whether a lock holder is asked to do something and must answer with a
/// NotifyResponse.  quiesce and unquiesce are for all watchers, and answered
/// only by who has something to quiesce.
[[nodiscard]] bool asks_lock_holder(NotifyOp op) noexcept;

/// A librbd client: the number of its RADOS client ("client.GID") and the
/// cookie of its watch.
struct NotifyClient {
  std::uint64_t gid = 0;
  std::uint64_t handle = 0;
  bool operator==(const NotifyClient&) const = default;
};

struct NotifyMessage {
  NotifyOp op = NotifyOp::header_update;
  /// Of acquired_lock, released_lock and request_lock: who; nothing where
  /// the sender is too old to say so (message version 1).
  std::optional<NotifyClient> client;
  /// Of request_lock: the holder shall give the lock away even if it was told
  /// to keep it.
  bool force = false;
  bool operator==(const NotifyMessage&) const = default;
};

/// What a payload says; only as far as NotifyMessage has members for it.
/// Throws Error(EIO); an empty payload does not decode.
[[nodiscard]] NotifyMessage decode_notify(std::string_view payload);

/// Version 7, as librbd of Ceph 16 sends them.
[[nodiscard]] std::string encode_notify_header_update();
[[nodiscard]] std::string encode_notify_acquired_lock(
    const NotifyClient& client);
[[nodiscard]] std::string encode_notify_released_lock(
    const NotifyClient& client);
[[nodiscard]] std::string encode_notify_request_lock(
    const NotifyClient& client, bool force = false);

/// Ask the lock holder to make, or to remove, a user's snapshot.  Version 6:
/// since version 7 a request can have a number, and then the answer says only
/// that the work has begun; without one, as here, it says how it has ended,
/// whatever the holder's version.
[[nodiscard]] std::string encode_notify_snap_create(std::string_view name);
[[nodiscard]] std::string encode_notify_snap_remove(std::string_view name);

/// A lock holder's answer: 0 or a negative errno.  To request_lock: 0, it
/// will be given away; -EROFS, the holder keeps it
/// (ceph: src/librbd/exclusive_lock/Policy.h).
[[nodiscard]] std::string encode_notify_response(std::int32_t result);
/// Throws Error(EIO); an empty answer does not decode.
[[nodiscard]] std::int32_t decode_notify_response(std::string_view bytes);

/// What a notifier gets when all watchers have answered, or when the time was
/// over (the result is then -ETIMEDOUT, and the reply is there all the same).
struct NotifyReplies {
  struct Watcher {
    std::uint64_t gid = 0;     // number of the RADOS client
    std::uint64_t cookie = 0;  // of its watch
    bool operator==(const Watcher&) const = default;
  };
  struct Answer {
    Watcher watcher;
    std::string payload;
    bool operator==(const Answer&) const = default;
  };
  std::vector<Answer> answers;
  std::vector<Watcher> timeouts;  // those that did not answer
  bool operator==(const NotifyReplies&) const = default;
};
/// The reply buffer of rados_notify2.  Throws Error(EIO).
[[nodiscard]] NotifyReplies decode_notify_replies(std::string_view bytes);

}  // namespace nbdrados

#endif
