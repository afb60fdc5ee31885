// SPDX-License-Identifier: BSD-3-Clause

#ifndef NBDRADOS_COPY_NBD_NBD_SERVER_HPP
#define NBDRADOS_COPY_NBD_NBD_SERVER_HPP

#include <cstddef>

#include "copy/endpoint.hpp"

namespace nbdrados::copy {

/// An NBD server, on one connection when it is made, or several.
class NbdServer : public Endpoint {
 public:
  /// Whether the server takes more connections to the same disk.
  [[nodiscard]] virtual bool can_multi_conn() const noexcept = 0;
  /// Opens more, so that there are `count`.  Before the first operation.
  /// Blocks.  Throws Error.
  virtual void connect_more(std::size_t count) = 0;
  /// What does the data phase: "io_uring", "poll", "libnbd".
  [[nodiscard]] virtual const char* engine() const noexcept = 0;
};

}  // namespace nbdrados::copy

#endif
