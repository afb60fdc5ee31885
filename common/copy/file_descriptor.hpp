// SPDX-License-Identifier: BSD-3-Clause

#ifndef NBDRADOS_COPY_FILE_DESCRIPTOR_HPP
#define NBDRADOS_COPY_FILE_DESCRIPTOR_HPP

#include <unistd.h>

#include <cerrno>
#include <utility>

namespace nbdrados::copy {

/// Owns a file descriptor, or none (-1).
class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) noexcept : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~FileDescriptor() {
    if (fd_ != -1) ::close(fd_);
  }
  /// Returns 0 or an errno: some file systems say only then that what was
  /// written has not been stored (close(2)).  Closed it is in any case.
  [[nodiscard]] int close() noexcept {
    const int fd = std::exchange(fd_, -1);
    return fd == -1 || ::close(fd) == 0 ? 0 : errno;
  }
  [[nodiscard]] int get() const noexcept { return fd_; }
  explicit operator bool() const noexcept { return fd_ != -1; }

 private:
  int fd_ = -1;
};

}  // namespace nbdrados::copy

#endif
