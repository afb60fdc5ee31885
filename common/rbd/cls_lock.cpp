// SPDX-License-Identifier: BSD-3-Clause

#include "rbd/cls_lock.hpp"

#include <arpa/inet.h>
#include <sys/socket.h>

#include <array>
#include <cstddef>
#include <limits>
#include <utility>

#include "layout/decimal.hpp"
#include "rbd/encoding.hpp"

namespace nbdrados {

namespace {

// ceph: src/include/msgr.h, CEPH_ENTITY_TYPE_*
std::string entity_type_name(unsigned type) {
  switch (type) {
    case 1:
      return "mon";
    case 2:
      return "mds";
    case 4:
      return "osd";
    case 8:
      return "client";
    case 16:
      return "mgr";
    default:
      return "entity type " + std::to_string(type);
  }
}

// ceph: src/msg/msg_types.h, entity_addr_t.  There are two encodings; which
// one a server gives depends on the features of the client.
constexpr std::uint8_t address_legacy = 0;
constexpr std::uint8_t address_framed = 1;
constexpr std::size_t legacy_sockaddr_size = 128;  // sockaddr_storage

// ceph: src/librbd/managed_lock/Utils.cc
constexpr std::string_view cookie_prefix = "auto ";

// Linux' values: they are what is on the wire.
constexpr unsigned family_none = 0;
constexpr unsigned family_ipv4 = 2;
constexpr unsigned family_ipv6 = 10;

// `in` stands behind the family of a struct sockaddr_in or sockaddr_in6.
std::string address_text(Decoder in, unsigned family, std::uint32_t nonce) {
  if (family == family_none) return "-";
  if (family != family_ipv4 && family != family_ipv6)
    in.fail("address family", std::to_string(family) + " is not known");

  const std::string_view raw_port = in.bytes(2, "port");
  const unsigned high = static_cast<unsigned char>(raw_port[0]);
  const unsigned low = static_cast<unsigned char>(raw_port[1]);
  std::array<char, INET6_ADDRSTRLEN> host{};
  std::string out;
  if (family == family_ipv4) {
    const std::string_view raw = in.bytes(4, "IPv4 address");
    static_cast<void>(
        inet_ntop(AF_INET, raw.data(), host.data(), host.size()));
    out = host.data();
  } else {
    static_cast<void>(in.u32("flow info"));
    const std::string_view raw = in.bytes(16, "IPv6 address");
    static_cast<void>(
        inet_ntop(AF_INET6, raw.data(), host.data(), host.size()));
    out = "[" + std::string(host.data()) + "]";
  }
  return out + ":" + std::to_string((high << 8) | low) + "/" +
         std::to_string(nonce);
}

std::string decode_address(Decoder& in) {
  const unsigned marker = in.u8("address marker");
  if (marker == address_legacy) {
    static_cast<void>(in.bytes(3, "address marker"));  // a 32-bit type, unused
    const std::uint32_t nonce = in.u32("address nonce");
    Decoder addr(in.bytes(legacy_sockaddr_size, "address"), "get_info");
    // In network byte order here, and only here.
    const unsigned family = addr.u16("address family");
    return address_text(addr, ((family & 0xff) << 8) | (family >> 8), nonce);
  }
  if (marker != address_framed)
    in.fail("address marker", std::to_string(marker) + " is not known");
  Decoder addr = in.frame(1, "address");
  static_cast<void>(addr.u32("address type"));
  const std::uint32_t nonce = addr.u32("address nonce");
  const std::string_view raw = addr.blob("address");
  if (raw.empty()) return "-";
  Decoder socket(raw, "get_info");
  const unsigned family = socket.u16("address family");
  return address_text(socket, family, nonce);
}

LockHolder decode_holder(Decoder& in) {
  LockHolder holder;
  Decoder id = in.frame(1, "locker id");
  holder.entity_type = id.u8("locker type");
  holder.entity_number = id.i64("locker number");
  holder.cookie = id.string("locker cookie");

  Decoder info = in.frame(1, "locker info");
  holder.expires = info.u32("expiration");
  static_cast<void>(info.u32("expiration (nanoseconds)"));
  holder.address = decode_address(info);
  holder.description = info.string("description");
  return holder;
}

}  // namespace

std::string_view to_string(LockType type) noexcept {
  switch (type) {
    case LockType::none:
      return "none";
    case LockType::exclusive:
      return "exclusive";
    case LockType::shared:
      return "shared";
    case LockType::exclusive_ephemeral:
      return "exclusive ephemeral";
  }
  return "unknown";
}

std::string LockHolder::entity() const {
  return entity_type_name(entity_type) + "." + std::to_string(entity_number);
}

std::string encode_lock(std::string_view name, LockType type,
                        std::string_view cookie, std::string_view tag,
                        std::string_view description,
                        std::chrono::seconds duration, std::uint8_t flags) {
  constexpr std::int64_t longest = std::numeric_limits<std::uint32_t>::max();
  // Longer than 136 years is as good as 136 years.
  std::int64_t seconds = duration.count();
  if (seconds < 0) seconds = 0;
  if (seconds > longest) seconds = longest;

  Encoder out;
  out.frame(1, 1, [&] {
    out.string(name).u8(static_cast<std::uint8_t>(type));
    out.string(cookie).string(tag).string(description);
    out.u32(static_cast<std::uint32_t>(seconds)).u32(0).u8(flags);
  });
  return out.take();
}

std::string encode_unlock(std::string_view name, std::string_view cookie) {
  Encoder out;
  out.frame(1, 1, [&] { out.string(name).string(cookie); });
  return out.take();
}

std::string encode_break_lock(std::string_view name,
                              const LockHolder& holder) {
  Encoder out;
  out.frame(1, 1, [&] {
    out.string(name).u8(holder.entity_type).i64(holder.entity_number);
    out.string(holder.cookie);
  });
  return out.take();
}

std::string encode_assert_locked(std::string_view name, LockType type,
                                 std::string_view cookie,
                                 std::string_view tag) {
  Encoder out;
  out.frame(1, 1, [&] {
    out.string(name).u8(static_cast<std::uint8_t>(type));
    out.string(cookie).string(tag);
  });
  return out.take();
}

std::string encode_set_lock_cookie(std::string_view name, LockType type,
                                   std::string_view cookie,
                                   std::string_view tag,
                                   std::string_view new_cookie) {
  Encoder out;
  out.frame(1, 1, [&] {
    out.string(name).u8(static_cast<std::uint8_t>(type));
    out.string(cookie).string(tag).string(new_cookie);
  });
  return out.take();
}

std::string encode_get_lock_info(std::string_view name) {
  Encoder out;
  out.frame(1, 1, [&] { out.string(name); });
  return out.take();
}

LockInfo decode_lock_info(std::string_view bytes) {
  // Two frames a holder.
  constexpr std::size_t holder_size_min = 12;
  Decoder outer(bytes, "get_info");
  Decoder in = outer.frame(1, "lock info");
  LockInfo info;
  for (std::size_t n = in.count(holder_size_min, "locker count"); n > 0; --n)
    info.holders.push_back(decode_holder(in));
  const unsigned type = in.u8("lock type");
  if (type > static_cast<unsigned>(LockType::exclusive_ephemeral))
    in.fail("lock type", std::to_string(type) + " is not known");
  info.type = static_cast<LockType>(type);
  info.tag = in.string("tag");
  return info;
}

std::string rbd_lock_cookie(std::uint64_t watch_handle) {
  return std::string(cookie_prefix) + std::to_string(watch_handle);
}

std::optional<std::uint64_t> parse_rbd_lock_cookie(
    std::string_view cookie) noexcept {
  if (!cookie.starts_with(cookie_prefix)) return std::nullopt;
  cookie.remove_prefix(cookie_prefix.size());
  return parse_digits(cookie);
}

}  // namespace nbdrados
