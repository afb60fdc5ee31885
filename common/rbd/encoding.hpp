// SPDX-License-Identifier: BSD-3-Clause
//
// Ceph's little-endian encoding: read with bounds checks, written to a
// string.
//
// Format (ceph: doc/dev/encoding.rst, src/include/encoding.h): integers are
// little-endian; a string or a list of bytes is a 32-bit length and its
// bytes; a container is a 32-bit count and its elements; a versioned
// structure is a frame: u8 version, u8 oldest version that a reader must
// understand, u32 length of what follows.  A reader skips what it does not
// know at the end of a frame.
//
// Thread-safety: a Decoder or Encoder belongs to one thread at a time.

#ifndef NBDRADOS_RBD_ENCODING_HPP
#define NBDRADOS_RBD_ENCODING_HPP

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace nbdrados {

/// Reads a buffer that must outlive it.  Every reading member takes the
/// name of the field and throws Error(EIO, "WHAT: FIELD ...") where the
/// buffer is too short or the field is wrong.  Nothing is allocated that is
/// larger than the buffer.
class Decoder {
 public:
  /// `what` names the structure in messages and must outlive the decoder.
  Decoder(std::string_view bytes, std::string_view what) noexcept
      : rest_(bytes), what_(what) {}

  [[nodiscard]] std::uint8_t u8(std::string_view field);
  [[nodiscard]] std::uint16_t u16(std::string_view field);
  [[nodiscard]] std::uint32_t u32(std::string_view field);
  [[nodiscard]] std::uint64_t u64(std::string_view field);
  [[nodiscard]] std::int64_t i64(std::string_view field);
  /// The next `n` bytes; a view into the buffer.
  [[nodiscard]] std::string_view bytes(std::size_t n, std::string_view field);
  /// A 32-bit length and as many bytes; a view into the buffer.
  [[nodiscard]] std::string_view blob(std::string_view field);
  /// As blob, but a copy.
  [[nodiscard]] std::string string(std::string_view field) {
    return std::string(blob(field));
  }
  /// As string, but for a name: neither empty nor with a NUL byte in it.
  [[nodiscard]] std::string name(std::string_view field);
  /// A 32-bit count of elements that need at least `element_size` (>= 1)
  /// bytes each.  A count that the bytes left cannot hold is refused, so
  /// the result is safe to allocate by.
  [[nodiscard]] std::size_t count(std::size_t element_size,
                                  std::string_view field);
  /// A versioned structure.  This decoder moves behind it; the result reads
  /// only inside it, and what is left there unread is thereby skipped.
  /// Refused where its writer says that readers must understand a version
  /// above `understood`.
  [[nodiscard]] Decoder frame(unsigned understood, std::string_view field);
  /// The version of the frame that this decoder reads; 0 outside of frames.
  [[nodiscard]] unsigned version() const noexcept { return version_; }

  /// Bytes not yet read.
  [[nodiscard]] std::size_t remaining() const noexcept { return rest_.size(); }
  /// Throws where bytes are left.
  void expect_end() const;

  /// Throws Error(EIO, "WHAT: FIELD PROBLEM").
  [[noreturn]] void fail(std::string_view field,
                         std::string_view problem) const;

 private:
  template <typename T>
  T number(std::string_view field);

  std::string_view rest_;
  std::string_view what_;
  unsigned version_ = 0;
};

/// Appends to a string of its own.
class Encoder {
 public:
  Encoder& u8(std::uint8_t value);
  Encoder& u16(std::uint16_t value);
  Encoder& u32(std::uint32_t value);
  Encoder& u64(std::uint64_t value);
  Encoder& i64(std::int64_t value);
  /// The bytes alone, without a length.
  Encoder& bytes(std::string_view value);
  /// A 32-bit length and the bytes.  Throws std::length_error above
  /// 2^32 - 1 bytes.
  Encoder& string(std::string_view value);
  /// A versioned structure whose content `body()` appends to this encoder.
  /// `compat` is the oldest version that a reader must understand.
  template <typename Body>
  Encoder& frame(std::uint8_t version, std::uint8_t compat, Body&& body) {
    const std::size_t start = begin_frame(version, compat);
    body();
    end_frame(start);
    return *this;
  }

  [[nodiscard]] const std::string& str() const noexcept { return out_; }
  /// Gives the string away.
  [[nodiscard]] std::string take() noexcept { return std::move(out_); }

 private:
  std::size_t begin_frame(std::uint8_t version, std::uint8_t compat);
  void end_frame(std::size_t start);
  template <typename T>
  Encoder& number(T value);

  std::string out_;
};

/// A name or value from the cluster, made fit for a message: in quotes,
/// bytes outside of printable ASCII as \xNN, and cut after 64 bytes.  (Not
/// "quoted": for a std::string argument-dependent look-up finds std::quoted,
/// which <chrono> brings in with libstdc++ 14.)
[[nodiscard]] std::string in_quotes(std::string_view text);

/// "`prefix`.`number` in hexadecimal with at least `digits` digits".
[[nodiscard]] std::string numbered_oid(std::string_view prefix,
                                       std::uint64_t number, unsigned digits);

}  // namespace nbdrados

#endif
