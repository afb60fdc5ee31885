// SPDX-License-Identifier: BSD-3-Clause
//
// A connection to an NBD server that libnbd has made, and whose data phase is
// ours: libnbd knows URIs, the handshake, export names and metadata contexts.
// Then its socket is taken, with libnbd's handle at rest.  At the end libnbd
// says good-bye, unless the connection has broken.

#ifndef NBDRADOS_COPY_NBD_PEER_HPP
#define NBDRADOS_COPY_NBD_PEER_HPP

#include "copy/endpoint.hpp"
#include "copy/file_descriptor.hpp"
#include "copy/nbd/handshake.hpp"

namespace nbdrados::copy::nbd {

/// For one thread at a time.
class Peer {
 public:
  /// Connects.  Throws Error with libnbd's message; ENOTSUP where the
  /// connection is encrypted, so that its bytes are not those of NBD.
  explicit Peer(const NbdTarget& target);

  /// A connection that somebody else has made; he says good-bye.
  Peer(FileDescriptor socket, bool structured, const Traits& traits)
      : own_(std::move(socket)),
        socket_(own_.get()),
        structured_(structured),
        traits_(traits) {}

  /// Says good-bye, if the connection is in order; waits at most 5 seconds
  /// for the server to close.
  ~Peer();
  Peer(Peer&&) noexcept;
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;
  Peer& operator=(Peer&&) = delete;

  /// The socket.  Its data phase has begun, and nobody else uses it.
  [[nodiscard]] int socket() const noexcept { return socket_; }
  [[nodiscard]] bool structured() const noexcept { return structured_; }

  /// Whether the server wants several connections.
  [[nodiscard]] bool multi_conn() const noexcept { return multi_conn_; }
  [[nodiscard]] const Traits& traits() const noexcept { return traits_; }

  /// The connection is broken, or a request is under way: no good-bye.
  void broken() noexcept;

 private:
  NbdHandle handle_;
  FileDescriptor own_;
  bool broken_ = false;
  int socket_ = -1;
  bool structured_ = false;
  bool multi_conn_ = false;
  Traits traits_;
};

}  // namespace nbdrados::copy::nbd

#endif
