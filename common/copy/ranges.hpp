// SPDX-License-Identifier: BSD-3-Clause
//
// What is copied where, if that is not a whole disk:
//
//     SOURCE-OFFSET DESTINATION-OFFSET LENGTH
//
// on each line, in bytes, decimal, hexadecimal with "0x", or with a suffix as
// other sizes; '#' begins a comment.

#ifndef NBDRADOS_COPY_RANGES_HPP
#define NBDRADOS_COPY_RANGES_HPP

#include <cstddef>
#include <cstdint>
#include <istream>
#include <string>
#include <vector>

namespace nbdrados::copy {

/// Bytes.
struct Range {
  std::uint64_t source = 0;
  std::uint64_t destination = 0;
  std::uint64_t length = 0;
  bool operator==(const Range&) const = default;
};

/// More are refused: each takes 24 bytes, and while they are read 8 more.
inline constexpr std::size_t most_ranges = std::size_t{4} << 20;

/// Reads the lines of `from`, which messages call `name`.  Throws Error(EINVAL)
/// that names the line: no three numbers, 0 bytes, a range that ends behind
/// 2^63-1, two destinations that overlap; there are none, or too many; EIO.
[[nodiscard]] std::vector<Range> read_ranges(std::istream& from,
                                             const std::string& name);

}  // namespace nbdrados::copy

#endif
