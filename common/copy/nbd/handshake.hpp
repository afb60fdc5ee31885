// SPDX-License-Identifier: BSD-3-Clause
//
// How a connection to an NBD server begins, whoever does its data phase:
// libnbd knows URIs, starts servers and makes the handshake.

#ifndef NBDRADOS_COPY_NBD_HANDSHAKE_HPP
#define NBDRADOS_COPY_NBD_HANDSHAKE_HPP

#include <chrono>
#include <memory>
#include <string>
#include <vector>

struct nbd_handle;

namespace nbdrados::copy {

/// How to reach a server.
struct NbdTarget {
  std::string uri = {};                   ///< as libnbd takes it, or
  std::vector<std::string> command = {};  ///< a server to start, with arguments
  bool debug = false;                     ///< libnbd prints what it does
  bool use_extents = true;
  /// For connecting to a URI, besides what finding the host takes; 0: none.
  std::chrono::milliseconds time_limit{0};
};

struct CloseNbd {
  void operator()(nbd_handle* handle) const noexcept;
};
using NbdHandle = std::unique_ptr<nbd_handle, CloseNbd>;

/// Throws Error with libnbd's last message, which names its function first.
[[noreturn]] void throw_nbd_error();

/// Throws where `r` is -1, as libnbd's functions return it.
template <class Number>
Number check_nbd(Number r) {
  if (r == -1) throw_nbd_error();
  return r;
}

/// Connects.  With `plain_requests` extended headers are not negotiated.
/// Blocks.  Throws Error.
[[nodiscard]] NbdHandle connect_nbd(const NbdTarget& target,
                                    bool plain_requests);

}  // namespace nbdrados::copy

#endif
