// SPDX-License-Identifier: BSD-3-Clause

#ifndef NBDRADOS_COPY_NBD_DESCRIPTOR_HPP
#define NBDRADOS_COPY_NBD_DESCRIPTOR_HPP

#include <unistd.h>

#include <utility>

namespace nbdrados::copy::nbd {

/// A file descriptor with an owner.
class Descriptor {
 public:
  explicit Descriptor(int fd = -1) noexcept : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  Descriptor& operator=(Descriptor&&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  [[nodiscard]] int get() const noexcept { return fd_; }

 private:
  int fd_;
};

}  // namespace nbdrados::copy::nbd

#endif
