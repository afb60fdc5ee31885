// SPDX-License-Identifier: BSD-3-Clause
//
// Values of parameters.  The functions of nbdkit that parse them print a line
// of their own, which does not name the parameter.

#ifndef NBDRADOS_NBDKIT_PARAMETERS_HPP
#define NBDRADOS_NBDKIT_PARAMETERS_HPP

#include <cctype>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace nbdrados {

/// The largest size that nbdkit knows.
inline constexpr std::uint64_t largest_size = (std::uint64_t{1} << 63) - 1;

/// Decimal digits; none: not a number, or too large.
[[nodiscard]] inline std::optional<std::uint64_t> parse_digits(
    std::string_view text) {
  std::uint64_t n = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, n);
  if (error != std::errc() || stop != end) return std::nullopt;
  return n;
}

/// `n`, if it is in the range; `what` is what it should be.
[[nodiscard]] inline std::uint64_t check_range(
    std::string_view key, std::string_view value, std::string_view what,
    std::optional<std::uint64_t> n, std::uint64_t least, std::uint64_t most) {
  if (n && *n >= least && *n <= most) return *n;
  std::string text(key);
  text.append("=").append(value).append(" is not ").append(what);
  text += " in the range " + std::to_string(least) + " to " +
          (most == largest_size ? "2^63-1" : std::to_string(most));
  throw std::invalid_argument(text);
}

/// A number of what is counted.  Throws std::invalid_argument, whose text names
/// the key and the range.
[[nodiscard]] inline std::uint64_t parse_number(std::string_view key,
                                                std::string_view value,
                                                std::uint64_t least,
                                                std::uint64_t most) {
  return check_range(key, value, "a number", parse_digits(value), least, most);
}

/// Bytes, with the suffixes of nbdkit_parse_size.  Throws as parse_number.
[[nodiscard]] inline std::uint64_t parse_size(
    std::string_view key, std::string_view value, std::uint64_t least = 0,
    std::uint64_t most = largest_size) {
  // Powers of 1024, except for "b", bytes, and "s", sectors of 512 bytes.
  constexpr std::string_view units = "bkmgtpe";
  std::string_view digits = value;
  std::uint64_t unit = 1;
  if (!digits.empty()) {
    const char last = static_cast<char>(
        std::tolower(static_cast<unsigned char>(digits.back())));
    if (const auto at = units.find(last); at != std::string_view::npos) {
      unit = std::uint64_t{1} << (10 * at);
      digits.remove_suffix(1);
    } else if (last == 's') {
      unit = 512;
      digits.remove_suffix(1);
    }
  }
  auto n = parse_digits(digits);
  if (n && *n > largest_size / unit) n.reset();
  if (n) *n *= unit;
  return check_range(key, value, "a size", n, least, most);
}

/// A time, in the formats of nbdkit_parse_delay (nbdkit 1.40): a decimal number
/// of seconds, or with s, ms, us, μs or ns behind it.  Rounded up to a
/// millisecond; a time above 0 is at least one.  Throws as parse_number.
[[nodiscard]] inline std::chrono::milliseconds parse_time(
    std::string_view key, std::string_view value,
    std::chrono::milliseconds least, std::chrono::milliseconds most) {
  static constexpr std::pair<std::string_view, double> units[] = {
      {"ms", 1}, {"us", 1e-3}, {"μs", 1e-3}, {"ns", 1e-6}, {"s", 1e3}};
  std::string_view digits = value;
  double unit = 1e3;
  for (const auto& [name, milliseconds] : units)
    if (digits.ends_with(name)) {
      digits.remove_suffix(name.size());
      unit = milliseconds;
      break;
    }
  double n = -1;
  const char* const end = digits.data() + digits.size();
  // Neither signs nor exponents, and no names such as "inf".
  if (digits.find_first_not_of("0123456789.") == std::string_view::npos) {
    const auto [stop, error] = std::from_chars(digits.data(), end, n);
    if (error != std::errc() || stop != end) n = -1;
  }
  const double ms = std::ceil(n * unit);
  if (n >= 0 && ms >= static_cast<double>(least.count()) &&
      ms <= static_cast<double>(most.count()))
    return std::chrono::milliseconds(static_cast<std::int64_t>(ms));
  const auto text = [](std::chrono::milliseconds t) {
    return t.count() % 1000 == 0 ? std::to_string(t.count() / 1000) + "s"
                                 : std::to_string(t.count()) + "ms";
  };
  std::string message(key);
  message.append("=").append(value).append(" is not a time in the range ");
  throw std::invalid_argument(message + text(least) + " to " + text(most));
}

}  // namespace nbdrados

#endif
