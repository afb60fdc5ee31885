// SPDX-License-Identifier: BSD-3-Clause
//
// What the methods of the `lock` object class take and give
// (ceph: src/cls/lock/cls_lock_ops.h, cls_lock_types.h, cls_lock.cc).
//
// All functions are pure and thread-safe.

#ifndef NBDRADOS_RBD_CLS_LOCK_HPP
#define NBDRADOS_RBD_CLS_LOCK_HPP

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nbdrados {

/// The object class and its methods.
inline constexpr std::string_view lock_class = "lock";
inline constexpr std::string_view lock_method_lock = "lock";
inline constexpr std::string_view lock_method_unlock = "unlock";
inline constexpr std::string_view lock_method_break = "break_lock";
inline constexpr std::string_view lock_method_get_info = "get_info";
inline constexpr std::string_view lock_method_assert_locked = "assert_locked";
inline constexpr std::string_view lock_method_set_cookie = "set_cookie";

enum class LockType : std::uint8_t {
  none = 0,
  exclusive = 1,
  shared = 2,
  exclusive_ephemeral = 3,  // the object goes away with the lock
};
[[nodiscard]] std::string_view to_string(LockType type) noexcept;

/// Flags of lock.  Without them, locking again fails with EEXIST.
inline constexpr std::uint8_t lock_flag_may_renew = 1;
inline constexpr std::uint8_t lock_flag_must_renew = 2;

/// The RADOS entity types of lock holders
/// (ceph: src/include/msgr.h, CEPH_ENTITY_TYPE_*).
inline constexpr std::uint8_t entity_client = 8;

/// Input of lock.  The lock goes away by itself after `duration`; 0: never.
/// All holders of a shared lock must give the same tag.  EBUSY: somebody
/// else has it; EEXIST: this client has it.
[[nodiscard]] std::string encode_lock(
    std::string_view name, LockType type, std::string_view cookie,
    std::string_view tag, std::string_view description,
    std::chrono::seconds duration = {}, std::uint8_t flags = 0);

/// Input of unlock.  ENOENT: this client does not have it.
[[nodiscard]] std::string encode_unlock(std::string_view name,
                                        std::string_view cookie);

/// Input of assert_locked, a step before others that need the lock.  EBUSY:
/// this client does not have it with this type, cookie and tag; ENOENT: there
/// is no such object.
[[nodiscard]] std::string encode_assert_locked(std::string_view name,
                                               LockType type,
                                               std::string_view cookie,
                                               std::string_view tag);

/// Input of set_cookie: this client's lock gets another cookie without being
/// free in between.  EBUSY: as of assert_locked, or the new cookie is in use.
[[nodiscard]] std::string encode_set_lock_cookie(std::string_view name,
                                                 LockType type,
                                                 std::string_view cookie,
                                                 std::string_view tag,
                                                 std::string_view new_cookie);

/// Who has a lock.
struct LockHolder {
  std::uint8_t entity_type = 0;  // entity_client, or a daemon's type
  std::int64_t entity_number = 0;
  std::string cookie;
  /// "192.0.2.1:0/1234567", "[2001:db8::1]:0/1234567", or "-" where there is
  /// none: what `ceph osd blocklist add` takes.
  std::string address;
  std::string description;
  /// Seconds since 1970; 0: never.
  std::uint64_t expires = 0;

  /// "client.4123".
  [[nodiscard]] std::string entity() const;
  bool operator==(const LockHolder&) const = default;
};

/// Input of break_lock: takes the lock from another client.  ENOENT: that
/// client does not have it.
[[nodiscard]] std::string encode_break_lock(std::string_view name,
                                            const LockHolder& holder);

/// Input of get_info.
[[nodiscard]] std::string encode_get_lock_info(std::string_view name);

struct LockInfo {
  LockType type = LockType::none;
  std::string tag;
  std::vector<LockHolder> holders;
  bool operator==(const LockInfo&) const = default;
};

/// The reply of get_info.  A lock that nobody has gives no holders.  Throws
/// Error(EIO) that names the field and what is wrong.
[[nodiscard]] LockInfo decode_lock_info(std::string_view bytes);

// --- RBD's locks ----------------------------------------------------------

/// The name of all locks of RBD (ceph: src/include/rbd_types.h,
/// RBD_LOCK_NAME): of the header object the exclusive lock and those of
/// `rbd lock add`, of the object map's object that of its user, which has
/// neither cookie nor tag.
inline constexpr std::string_view rbd_lock_name = "rbd_lock";
/// The tag of an exclusive lock that a program took by itself; those of
/// `rbd lock add` have none (ceph: src/librbd/managed_lock/Utils.cc).
inline constexpr std::string_view rbd_lock_tag = "internal";

/// The cookie of such a lock: "auto HANDLE" with the cookie of the holder's
/// watch on the header, by which others see whether the holder lives.
[[nodiscard]] std::string rbd_lock_cookie(std::uint64_t watch_handle);
/// The watch's cookie; nothing where this is no such cookie.
[[nodiscard]] std::optional<std::uint64_t> parse_rbd_lock_cookie(
    std::string_view cookie) noexcept;

}  // namespace nbdrados

#endif
