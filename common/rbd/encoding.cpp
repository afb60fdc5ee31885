// SPDX-License-Identifier: BSD-3-Clause

#include "rbd/encoding.hpp"

#include <cerrno>
#include <cstdint>
#include <stdexcept>

#include "rados/error.hpp"

namespace nbdrados {

namespace {

constexpr std::string_view hex_digits = "0123456789abcdef";

std::string plural(std::size_t n, std::string_view noun) {
  std::string out = std::to_string(n);
  out += ' ';
  out += noun;
  if (n != 1) out += 's';
  return out;
}

}  // namespace

void Decoder::fail(std::string_view field, std::string_view problem) const {
  std::string message(what_);
  message += ": ";
  message += field;
  message += ' ';
  message += problem;
  throw Error(EIO, message);
}

std::string_view Decoder::bytes(std::size_t n, std::string_view field) {
  if (n > rest_.size())
    fail(field, "needs " + plural(n, "byte") + ", " +
                    std::to_string(rest_.size()) + " left");
  const std::string_view out = rest_.substr(0, n);
  rest_.remove_prefix(n);
  return out;
}

template <typename T>
T Decoder::number(std::string_view field) {
  const std::string_view raw = bytes(sizeof(T), field);
  T value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i)
    value = static_cast<T>(
        value | static_cast<T>(T{static_cast<unsigned char>(raw[i])}
                               << (8 * i)));
  return value;
}

std::uint8_t Decoder::u8(std::string_view field) {
  return number<std::uint8_t>(field);
}
std::uint16_t Decoder::u16(std::string_view field) {
  return number<std::uint16_t>(field);
}
std::uint32_t Decoder::u32(std::string_view field) {
  return number<std::uint32_t>(field);
}
std::uint64_t Decoder::u64(std::string_view field) {
  return number<std::uint64_t>(field);
}
std::int64_t Decoder::i64(std::string_view field) {
  // Two's complement: C++20 defines this conversion.
  return static_cast<std::int64_t>(number<std::uint64_t>(field));
}

std::string_view Decoder::blob(std::string_view field) {
  const std::uint32_t n = u32(field);
  return bytes(n, field);
}

std::string Decoder::name(std::string_view field) {
  const std::string_view raw = blob(field);
  if (raw.empty()) fail(field, "is empty");
  if (raw.find('\0') != std::string_view::npos)
    fail(field, in_quotes(raw) + " has a NUL byte in it");
  return std::string(raw);
}

std::size_t Decoder::count(std::size_t element_size, std::string_view field) {
  const std::uint32_t n = u32(field);
  if (n > rest_.size() / element_size)
    fail(field, std::to_string(n) + " is more than " +
                    plural(rest_.size(), "byte") + " can hold");
  return n;
}

Decoder Decoder::frame(unsigned understood, std::string_view field) {
  const unsigned version = u8(field);
  const unsigned compat = u8(field);
  if (compat > understood)
    fail(field, "has version " + std::to_string(version) +
                    " and asks readers to understand version " +
                    std::to_string(compat) + ", this one understands " +
                    std::to_string(understood));
  Decoder inner(blob(field), what_);
  inner.version_ = version;
  return inner;
}

void Decoder::expect_end() const {
  if (!rest_.empty())
    throw Error(EIO, std::string(what_) + ": " + plural(rest_.size(), "byte") +
                         " too many");
}

template <typename T>
Encoder& Encoder::number(T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i)
    out_ += static_cast<char>(
        static_cast<unsigned char>((value >> (8 * i)) & 0xff));
  return *this;
}

Encoder& Encoder::u8(std::uint8_t value) { return number(value); }
Encoder& Encoder::u16(std::uint16_t value) { return number(value); }
Encoder& Encoder::u32(std::uint32_t value) { return number(value); }
Encoder& Encoder::u64(std::uint64_t value) { return number(value); }
Encoder& Encoder::i64(std::int64_t value) {
  return number(static_cast<std::uint64_t>(value));
}

Encoder& Encoder::bytes(std::string_view value) {
  out_ += value;
  return *this;
}

Encoder& Encoder::string(std::string_view value) {
  if (value.size() > UINT32_MAX)
    throw std::length_error("string too long to encode");
  return u32(static_cast<std::uint32_t>(value.size())).bytes(value);
}

std::size_t Encoder::begin_frame(std::uint8_t version, std::uint8_t compat) {
  u8(version).u8(compat).u32(0);
  return out_.size();
}

void Encoder::end_frame(std::size_t start) {
  const std::size_t length = out_.size() - start;
  if (length > UINT32_MAX)
    throw std::length_error("structure too long to encode");
  for (std::size_t i = 0; i < 4; ++i)
    out_[start - 4 + i] = static_cast<char>(
        static_cast<unsigned char>((length >> (8 * i)) & 0xff));
}

std::string in_quotes(std::string_view text) {
  constexpr std::size_t most = 64;
  std::string out = "\"";
  for (const char c : text.substr(0, most)) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte >= 0x20 && byte < 0x7f) {
      out += c;
    } else {
      out += "\\x";
      out += hex_digits[byte >> 4];
      out += hex_digits[byte & 15];
    }
  }
  out += '"';
  if (text.size() > most)
    out += "... (" + plural(text.size(), "byte") + ")";
  return out;
}

std::string numbered_oid(std::string_view prefix, std::uint64_t number,
                         unsigned digits) {
  // Called for each object of each request: one allocation, no printf.
  unsigned width = 1;
  while (width < 16 && (number >> (4 * width)) != 0) ++width;
  if (width < digits) width = digits;
  std::string out;
  out.reserve(prefix.size() + 1 + width);
  out += prefix;
  out += '.';
  out.resize(out.size() + width, '0');
  for (auto at = out.rbegin(); number != 0; ++at, number >>= 4)
    *at = hex_digits[number & 15];
  return out;
}

}  // namespace nbdrados
