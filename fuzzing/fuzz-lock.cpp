// SPDX-License-Identifier: BSD-3-Clause
//
// The input is the reply of get_info of the `lock` object class.

#include <arpa/inet.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <string>

#include "fuzz-checks.hpp"
#include "rbd/cls_lock.hpp"
#include "rbd/encoding.hpp"

using namespace nbdrados;
using namespace nbdrados::fuzzing;

namespace {

template <typename T>
T number(std::string_view digits) {
  T value = 0;
  const char* end = digits.data() + digits.size();
  const auto [stop, ec] = std::from_chars(digits.data(), end, value);
  require(ec == std::errc() && stop == end, "an address has numbers in it");
  return value;
}

// "HOST:PORT/NONCE" or "-", back to its encoding.
void put_address(Encoder& out, const std::string& address) {
  if (address == "-") {
    out.u8(1).frame(1, 1, [&] { out.u32(0).u32(0).u32(0); });
    return;
  }
  const std::size_t slash = address.rfind('/');
  require(slash != std::string::npos, "an address has a nonce");
  const std::size_t colon = address.rfind(':', slash);
  require(colon != std::string::npos, "an address has a port");
  const auto port = number<std::uint16_t>(
      std::string_view(address).substr(colon + 1, slash - colon - 1));
  std::string host = address.substr(0, colon);
  const bool ipv6 = host.starts_with('[');
  if (ipv6) host = host.substr(1, host.size() - 2);
  std::array<char, 16> raw{};
  require(inet_pton(ipv6 ? AF_INET6 : AF_INET, host.c_str(), raw.data()) == 1,
          "an address has a host");

  Encoder socket;
  socket.u16(ipv6 ? 10 : 2);
  socket.u8(static_cast<std::uint8_t>(port >> 8));
  socket.u8(static_cast<std::uint8_t>(port & 0xff));
  if (ipv6) socket.u32(0);
  socket.bytes({raw.data(), ipv6 ? std::size_t{16} : std::size_t{4}});
  out.u8(1).frame(1, 1, [&] {
    out.u32(1).u32(number<std::uint32_t>(
        std::string_view(address).substr(slash + 1)));
    out.string(socket.str());
  });
}

std::string encode_lock_info(const LockInfo& info) {
  Encoder out;
  out.frame(1, 1, [&] {
    out.u32(static_cast<std::uint32_t>(info.holders.size()));
    for (const LockHolder& holder : info.holders) {
      out.frame(1, 1, [&] {
        out.u8(holder.entity_type).i64(holder.entity_number);
        out.string(holder.cookie);
      });
      out.frame(1, 1, [&] {
        out.u32(static_cast<std::uint32_t>(holder.expires)).u32(0);
        put_address(out, holder.address);
        out.string(holder.description);
      });
    }
    out.u8(static_cast<std::uint8_t>(info.type)).string(info.tag);
  });
  return out.take();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data,
                                      std::size_t size) {
  LockInfo info;
  try {
    info = decode_lock_info(text(data, size));
  } catch (const Error& e) {
    check_refusal(e, EIO, "get_info: ");
    return 0;
  }
  require(decode_lock_info(encode_lock_info(info)) == info,
          "decode(encode(x)) == x");
  for (const LockHolder& holder : info.holders) {
    if (const auto handle = parse_rbd_lock_cookie(holder.cookie))
      require(parse_rbd_lock_cookie(rbd_lock_cookie(*handle)) == handle,
              "parse(cookie(x)) == x");
    const std::string input = encode_break_lock(info.tag, holder);
    Decoder outer(input, "input");
    Decoder in = outer.frame(1, "frame");
    outer.expect_end();
    require(in.blob("name") == info.tag &&
                in.u8("type") == holder.entity_type &&
                in.i64("number") == holder.entity_number &&
                in.blob("cookie") == holder.cookie,
            "a break_lock input names the holder");
    in.expect_end();
  }
  return 0;
}
