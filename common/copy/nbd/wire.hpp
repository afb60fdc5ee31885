// SPDX-License-Identifier: BSD-3-Clause
//
// The messages of NBD's transmission phase, as numbers and bytes.  Everything
// is big-endian.
//
// The rules are those of the protocol's description, doc/proto.md of
// https://github.com/NetworkBlockDevice/nbd, from here on "proto.md".

#ifndef NBDRADOS_COPY_NBD_WIRE_HPP
#define NBDRADOS_COPY_NBD_WIRE_HPP

#include <cstddef>
#include <cstdint>
#include <span>

namespace nbdrados::copy::nbd {

/// proto.md, "Request types".
enum class Command : std::uint16_t {
  read = 0,
  write = 1,
  disconnect = 2,
  flush = 3,
  trim = 4,
  cache = 5,
  write_zeroes = 6,
  block_status = 7,
};

/// proto.md, "Command flags".
inline constexpr std::uint16_t flag_fua = 1 << 0;
inline constexpr std::uint16_t flag_no_hole = 1 << 1;

/// proto.md, "Structured reply flags" and "Structured reply types".
inline constexpr std::uint16_t reply_flag_done = 1 << 0;
inline constexpr std::uint16_t reply_error_bit = 1 << 15;
enum class ReplyType : std::uint16_t {
  none = 0,
  offset_data = 1,
  offset_hole = 2,
  block_status = 5,
  error = reply_error_bit + 1,
  error_offset = reply_error_bit + 2,
};

/// proto.md, "`base:allocation` metadata context".
inline constexpr std::uint32_t status_hole = 1 << 0;
inline constexpr std::uint32_t status_zero = 1 << 1;

inline constexpr std::uint32_t request_magic = 0x25609513;
inline constexpr std::uint32_t simple_reply_magic = 0x67446698;
inline constexpr std::uint32_t structured_reply_magic = 0x668e33ef;

inline constexpr std::size_t request_bytes = 28;
inline constexpr std::size_t simple_reply_bytes = 16;
inline constexpr std::size_t structured_reply_bytes = 20;

/// What proto.md allows a string to have ("NBD_REPLY_TYPE_ERROR").
inline constexpr std::size_t max_message_bytes = 4096;

struct Request {
  Command command;
  std::uint16_t flags = 0;
  std::uint64_t cookie = 0;
  std::uint64_t offset = 0;  ///< bytes
  std::uint32_t length = 0;  ///< bytes
};

/// proto.md, "Request message"; the payload of a write follows it.
void encode(const Request& request, std::span<char, request_bytes> to) noexcept;

/// A big-endian number; `bytes` has as many as it needs.
[[nodiscard]] std::uint16_t get16(std::span<const char> bytes) noexcept;
[[nodiscard]] std::uint32_t get32(std::span<const char> bytes) noexcept;
[[nodiscard]] std::uint64_t get64(std::span<const char> bytes) noexcept;

/// The errno for an error on the wire, which is not 0.  EINVAL for values that
/// the protocol does not have (proto.md, "Error values").
[[nodiscard]] int errno_of(std::uint32_t error) noexcept;

}  // namespace nbdrados::copy::nbd

#endif
