// SPDX-License-Identifier: BSD-3-Clause
//
// Block status in whole sectors of 512 bytes.
//
// OSDs and many plugins know to the byte what is data.  qemu cannot use that:
// qemu-img convert (7.2 to 11.1) lets a hole go on to the next multiple of 512,
// whatever minimum block size was advertised, and so leaves out the first bytes
// of the data behind it, and succeeds.  So every extent that a client gets
// begins and ends at a multiple of 512 bytes of the disk that the client sees,
// or at that disk's end, or where the client's own request does.
//
// A type is made of bits, as in NBD and in nbdkit: HOLE, 1, and ZERO, 2;
// without a bit it is data.  Each bit says something of every byte.  So a sector
// has the bits that all of its bytes have, and nothing is said that is not so:
//
//     bytes     |   3   : 0 |   0   |  0 : 3  |   3   |  3 : 2  |  1 : 2  |
//     sectors   |     0     |   0   |    0    |   3   |    2    |    0    |
//
// The last one is of a difference between snapshots (1: unchanged, 2: changed
// and zeros now): whoever copies it must look into it.
//
// What a sector is called must not depend on where a request begins or ends:
// two requests that meet in a sector would else call the halves of one sector
// different things, and a client that puts them together has an extent that
// begins within a sector again.  So a layer asks below, or inside, for all of
// the first and the last sector, and then cuts the answer to the request.

#ifndef NBDRADOS_LAYOUT_SECTORS_HPP
#define NBDRADOS_LAYOUT_SECTORS_HPP

#include <algorithm>
#include <cstdint>
#include <vector>

namespace nbdrados {

inline constexpr std::uint64_t sector_size = 512;

/// Where the sector begins that the byte is in.
[[nodiscard]] constexpr std::uint64_t sector_begin(std::uint64_t n) noexcept {
  return n / sector_size * sector_size;
}

/// Where the sector ends that the byte before `n` is in, but at most `most`,
/// which is not less than `n`.
[[nodiscard]] constexpr std::uint64_t sector_end(std::uint64_t n,
                                                 std::uint64_t most) noexcept {
  const std::uint64_t rest = n % sector_size;
  return rest == 0 ? n : n + std::min(sector_size - rest, most - n);
}

/// A part of a disk, as nbdkit's filters and plugins have it.
struct StatusExtent {
  std::uint64_t offset;  // bytes
  std::uint64_t length;  // bytes, at least 1
  std::uint32_t type;    // bits; 0 is data
  bool operator==(const StatusExtent&) const = default;
};

/// The same in whole sectors of a disk of `size` bytes.  The extents are on the
/// disk, ascending and adjacent before and after, the first from a multiple of
/// 512; afterwards neighbours differ in type.  What is known of a part of the
/// last sector only is left out, unless it is data, as all of the sector is then.
[[nodiscard]] inline std::vector<StatusExtent> in_sectors(
    const std::vector<StatusExtent>& extents, std::uint64_t size) {
  std::vector<StatusExtent> whole;
  whole.reserve(extents.size());
  const auto add = [&](std::uint64_t from, std::uint64_t to,
                       std::uint32_t type) {
    if (from >= to) return;
    if (!whole.empty() && whole.back().type == type)
      whole.back().length += to - from;
    else
      whole.push_back({from, to - from, type});
  };
  std::uint32_t begun = 0;  // what all of the begun sector is so far
  std::uint64_t at = 0;
  for (const StatusExtent& e : extents) {
    const std::uint64_t before = sector_begin(e.offset);
    std::uint64_t from = e.offset;
    at = e.offset + e.length;
    if (before != from) {
      begun &= e.type;
      from = sector_end(from, size);
      if (at < from) continue;
      add(before, from, begun);
    }
    const std::uint64_t to = at == size ? at : sector_begin(at);
    add(from, to, e.type);
    begun = e.type;
  }
  if (at < size && begun == 0) add(sector_begin(at), sector_end(at, size), 0);
  return whole;
}

/// Cuts extents, ascending and adjacent, the first of which begins at or before
/// `begin` and ends behind it, to the range from there to `end`.
template <class Extent>
void cut(std::vector<Extent>& extents, std::uint64_t begin,
         std::uint64_t end) {
  while (!extents.empty() && extents.back().offset >= end) extents.pop_back();
  if (extents.empty()) return;
  Extent& first = extents.front();
  first.length -= begin - first.offset;
  first.offset = begin;
  Extent& last = extents.back();
  last.length = std::min(last.length, end - last.offset);
}

/// Asks a layer below for the sectors that hold a range of at least 1 byte of a
/// disk of `size` bytes.  ask(length, offset, found) appends an answer, from
/// `offset` on and at least 1 byte, to `found`, and returns 0 or an errno.  It
/// is called again while not even one sector is known.
///
/// Returns an errno, or 0 and in `answer` all that the layer below has told: at
/// least the first sector, from its begin on.
template <class Ask>
[[nodiscard]] int ask_in_sectors(std::uint64_t length, std::uint64_t offset,
                                 std::uint64_t size, Ask&& ask,
                                 std::vector<StatusExtent>& answer) {
  const std::uint64_t end = sector_end(offset + length, size);
  std::vector<StatusExtent> found;
  std::uint64_t at = sector_begin(offset);
  do {
    if (const int r = ask(end - at, at, found); r != 0) return r;
    at = found.back().offset + found.back().length;
    answer = in_sectors(found, size);
  } while (answer.empty());
  return 0;
}

}  // namespace nbdrados

#endif
