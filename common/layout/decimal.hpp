// SPDX-License-Identifier: BSD-3-Clause

#ifndef NBDRADOS_LAYOUT_DECIMAL_HPP
#define NBDRADOS_LAYOUT_DECIMAL_HPP

#include <charconv>
#include <cstdint>
#include <optional>
#include <string_view>
#include <system_error>

namespace nbdrados {

/// Decimal digits and nothing else: no sign, space or prefix.  None: it is no
/// such number, or above 2^64 - 1.
[[nodiscard]] inline std::optional<std::uint64_t> parse_digits(
    std::string_view text) noexcept {
  std::uint64_t n = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, n);
  if (error != std::errc() || stop != end) return std::nullopt;
  return n;
}

}  // namespace nbdrados

#endif
