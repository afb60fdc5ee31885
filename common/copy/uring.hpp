// SPDX-License-Identifier: BSD-3-Clause
//
// An io_uring with an owner.

#ifndef NBDRADOS_COPY_URING_HPP
#define NBDRADOS_COPY_URING_HPP

#include <liburing.h>

#include <optional>

namespace nbdrados::copy {

/// For the thread that made it, and for no other.
class Uring {
 public:
  /// None, and `error` is an errno, where the kernel has no io_uring (ENOSYS)
  /// or does not let us use it (EPERM: sysctl kernel.io_uring_disabled, or a
  /// seccomp filter), or where it cannot be had for another reason (ENOMEM:
  /// limit of locked memory before Linux 5.12).
  [[nodiscard]] static std::optional<Uring> make(unsigned entries, int& error);

  Uring(Uring&& other) noexcept : ring_(other.ring_), owned_(other.owned_) {
    other.owned_ = false;
  }
  Uring(const Uring&) = delete;
  Uring& operator=(const Uring&) = delete;
  Uring& operator=(Uring&&) = delete;
  ~Uring() {
    if (owned_) io_uring_queue_exit(&ring_);
  }

  [[nodiscard]] io_uring* get() noexcept { return &ring_; }

  /// An entry to fill in, with `tag` to know its completion by.
  [[nodiscard]] io_uring_sqe* entry(unsigned tag) noexcept;

 private:
  Uring() = default;
  io_uring ring_{};
  bool owned_ = false;
};

}  // namespace nbdrados::copy

#endif
