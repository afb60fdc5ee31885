// SPDX-License-Identifier: BSD-3-Clause
//
// One socket of which one thread sends and receives at the same time, by
// io_uring, or where that cannot be had by poll(2).
//
// With io_uring, one system call starts what is to be sent and received,
// waits, and tells what has come of it; and the kernel goes on by itself with
// what was not done at once, so the thread does not wake up for each piece that
// the socket's buffer holds.

#ifndef NBDRADOS_COPY_NBD_SOCKET_IO_HPP
#define NBDRADOS_COPY_NBD_SOCKET_IO_HPP

#include <sys/uio.h>

#include <memory>
#include <optional>
#include <span>

#include "copy/file_descriptor.hpp"

namespace nbdrados::copy::nbd {

/// For one thread, which makes it, too; but wake().
class SocketIo {
 public:
  enum class Kind { uring, poll };

  /// What has ended: the number of bytes, or a negative errno.  Fewer bytes
  /// than wanted are no error.  Received 0: the other side has closed.
  struct Result {
    std::optional<long> sent, received;
  };

  /// By io_uring if `uring` is wanted and can be had.  `socket` stays the
  /// caller's; whether it blocks is changed.  Throws Error.
  static std::unique_ptr<SocketIo> make(int socket, bool uring);

  virtual ~SocketIo() = default;
  SocketIo(const SocketIo&) = delete;
  SocketIo& operator=(const SocketIo&) = delete;

  [[nodiscard]] virtual Kind kind() const noexcept = 0;

  /// Begins to send; not while that is under way.  The memory stays as it is
  /// until it has ended, and so does that of receive(); the list of parts may
  /// go.  At most max_parts.
  virtual void send(std::span<const iovec> parts) = 0;

  /// Begins to receive; `all`: rather all of it than what there is.
  virtual void receive(iovec to, bool all) = 0;

  /// Waits until something has ended, or wake() was called.
  virtual Result wait() = 0;

  /// Ends wait(), or the next one.  For all threads.
  void wake() noexcept;

  static constexpr std::size_t max_parts = 256;

 protected:
  SocketIo();
  void slept();  // takes what wake() left

  const FileDescriptor wake_;  // an eventfd
};

}  // namespace nbdrados::copy::nbd

#endif
