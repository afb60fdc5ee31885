// SPDX-License-Identifier: BSD-3-Clause

#include "copy/nbd/wire.hpp"

#include <cerrno>

namespace nbdrados::copy::nbd {

namespace {

template <class Number>
Number get(std::span<const char> bytes) noexcept {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < sizeof(Number); ++i)
    value = value << 8 | static_cast<unsigned char>(bytes[i]);
  return static_cast<Number>(value);
}

template <class Number>
char* put(char* at, Number value) noexcept {
  for (std::size_t i = sizeof value; i-- > 0; ++at)
    *at = static_cast<char>(static_cast<std::uint64_t>(value) >> 8 * i & 0xff);
  return at;
}

}  // namespace

void encode(const Request& request,
            std::span<char, request_bytes> to) noexcept {
  char* at = put(to.data(), request_magic);
  at = put(at, request.flags);
  at = put(at, static_cast<std::uint16_t>(request.command));
  at = put(at, request.cookie);
  at = put(at, request.offset);
  put(at, request.length);
}

std::uint16_t get16(std::span<const char> bytes) noexcept {
  return get<std::uint16_t>(bytes);
}

std::uint32_t get32(std::span<const char> bytes) noexcept {
  return get<std::uint32_t>(bytes);
}

std::uint64_t get64(std::span<const char> bytes) noexcept {
  return get<std::uint64_t>(bytes);
}

int errno_of(std::uint32_t error) noexcept {
  switch (error) {
    case 1:
      return EPERM;
    case 5:
      return EIO;
    case 12:
      return ENOMEM;
    case 28:
      return ENOSPC;
    case 75:
      return EOVERFLOW;
    case 95:
      return ENOTSUP;
    case 108:
      return ESHUTDOWN;
    default:
      return EINVAL;
  }
}

}  // namespace nbdrados::copy::nbd
