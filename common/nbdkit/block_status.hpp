// SPDX-License-Identifier: BSD-3-Clause
//
// Block status in filters: what the layer below says, and what the client gets,
// in whole sectors (see layout/sectors.hpp).  nbdkit_extents_aligned of nbdkit
// does it since 1.48 only: until then what is asked for must end at a multiple
// of its alignment, so it cannot ask for the end of every disk.  Include after
// <nbdkit-filter.h>.

#ifndef NBDRADOS_NBDKIT_BLOCK_STATUS_HPP
#define NBDRADOS_NBDKIT_BLOCK_STATUS_HPP

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "layout/sectors.hpp"

namespace nbdrados {

struct FreeExtents {
  void operator()(struct nbdkit_extents* list) const noexcept {
    nbdkit_extents_free(list);
  }
};

/// Asks the layer below for block status of a range of a disk of `size` bytes
/// that begins there at `start`, and appends what it says, of the disk.
/// Returns 0 or an errno.
[[nodiscard]] inline int block_status_below(
    nbdkit_next* next, std::uint64_t start, std::uint64_t size,
    std::uint64_t length, std::uint64_t offset, std::uint32_t flags,
    std::vector<StatusExtent>& found) {
  // To the end of the disk: some plugins tell more than they were asked for.
  errno = 0;
  const std::unique_ptr<struct nbdkit_extents, FreeExtents> list(
      nbdkit_extents_new(start + offset, start + size));
  if (!list) return errno != 0 ? errno : EIO;
  // The sectors of the largest request are more than a request can have.
  const std::uint64_t count = std::min(
      length, sector_begin(std::numeric_limits<std::uint32_t>::max()));
  int err = 0;
  if (next->extents(next, static_cast<std::uint32_t>(count), start + offset,
                    flags, list.get(), &err) == -1)
    return err != 0 ? err : EIO;
  const std::size_t n = nbdkit_extents_count(list.get());
  if (n == 0) {
    nbdkit_error("extents: the layer below gave none");
    return EIO;
  }
  found.reserve(found.size() + n);
  for (std::size_t i = 0; i < n; i++) {
    const struct nbdkit_extent e = nbdkit_get_extent(list.get(), i);
    found.push_back({e.offset - start, e.length, e.type});
  }
  return 0;
}

/// The same in whole sectors of the disk: at least the first one that the range
/// is in, from its begin on.
[[nodiscard]] inline int sector_status_below(
    nbdkit_next* next, std::uint64_t start, std::uint64_t size,
    std::uint64_t length, std::uint64_t offset, std::uint32_t flags,
    std::vector<StatusExtent>& answer) {
  return ask_in_sectors(
      length, offset, size,
      [&](std::uint64_t n, std::uint64_t at, std::vector<StatusExtent>& found) {
        return block_status_below(next, start, size, n, at, flags, found);
      },
      answer);
}

/// Gives the client what it asked for, and no more.  (nbdkit 1.32.5 aborts on
/// an extent of more than 4 GiB that ends within or with a request of nearly
/// 4 GiB: server/protocol.c, extents_to_block_descriptors.)  Returns 0 or an
/// errno.
[[nodiscard]] inline int give_block_status(std::vector<StatusExtent>& answer,
                                           std::uint32_t count,
                                           std::uint64_t offset,
                                           std::uint32_t flags,
                                           struct nbdkit_extents* list) {
  cut(answer, offset, offset + count);
  if ((flags & NBDKIT_FLAG_REQ_ONE) != 0) answer.resize(1);
  for (const StatusExtent& e : answer) {
    errno = 0;
    if (nbdkit_add_extent(list, e.offset, e.length, e.type) == -1)
      return errno != 0 ? errno : EIO;
  }
  return 0;
}

}  // namespace nbdrados

#endif
