// SPDX-License-Identifier: BSD-3-Clause

#include "copy/uring.hpp"

#include <cerrno>

namespace nbdrados::copy {

std::optional<Uring> Uring::make(unsigned entries, int& error) {
  Uring uring;
  // Completions are worked off when this thread waits, and interrupt nobody.
  // Linux 6.1; before, the flags are unknown (EINVAL).
  const unsigned flags = IORING_SETUP_SINGLE_ISSUER |
                         IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CLAMP;
  int r = io_uring_queue_init(entries, &uring.ring_, flags);
  if (r == -EINVAL)
    r = io_uring_queue_init(entries, &uring.ring_, IORING_SETUP_CLAMP);
  error = -r;
  if (r < 0) return std::nullopt;
  uring.owned_ = true;
  return uring;
}

io_uring_sqe* Uring::entry(unsigned tag) noexcept {
  io_uring_sqe* entry = io_uring_get_sqe(&ring_);
  while (entry == nullptr) {
    io_uring_submit(&ring_);
    entry = io_uring_get_sqe(&ring_);
  }
  io_uring_sqe_set_data64(entry, tag);
  return entry;
}

}  // namespace nbdrados::copy
