// SPDX-License-Identifier: BSD-3-Clause
//
// An NBD server as one side of a copy, over unencrypted connections whose data
// phase is ours.

#ifndef NBDRADOS_COPY_NBD_URING_NBD_ENDPOINT_HPP
#define NBDRADOS_COPY_NBD_URING_NBD_ENDPOINT_HPP

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "copy/endpoint.hpp"
#include "copy/nbd/connection.hpp"
#include "copy/nbd/handshake.hpp"
#include "copy/nbd/nbd_server.hpp"
#include "copy/nbd/peer.hpp"
#include "copy/span_of_answers.hpp"

namespace nbdrados::copy::nbd {

/// Reads and writes are at most traits().maximum bytes; who copies sees to it.
/// A range that is empty, no multiple of traits().minimum, or reaches behind
/// traits().size ends with EINVAL, as it would by the server.  One that ends
/// with a disk whose size is no multiple is left to the server.
///
/// Errors are those that the server sent, as an errno; when a connection
/// breaks, all of its requests end with ECONNRESET (the server has gone),
/// EPROTO (it breaks the protocol) or another errno of sockets.
class UringNbdEndpoint final : public NbdServer {
 public:
  /// Opens one connection.  Blocks.  Throws Error: ENOTSUP for an encrypted
  /// one.  By io_uring, if the kernel lets us; else by poll(2).
  explicit UringNbdEndpoint(NbdTarget target);
  /// Takes connections that are there; at least one.  `uring` false: poll(2).
  UringNbdEndpoint(std::vector<Peer> peers, bool uring);
  ~UringNbdEndpoint() override;

  [[nodiscard]] bool can_multi_conn() const noexcept override;
  void connect_more(std::size_t count) override;
  [[nodiscard]] const char* engine() const noexcept override;
  /// Gives the connections away, instead of an operation; then only the
  /// destructor may be called.
  [[nodiscard]] std::vector<Peer> take_peers();

  [[nodiscard]] const Traits& traits() const noexcept override;
  void read(std::uint64_t offset, std::span<char> to, Done done) override;
  void write(std::uint64_t offset, std::span<const char> from,
             Done done) override;
  void zero(std::uint64_t offset, std::uint64_t length, bool may_trim,
            Done done) override;
  void flush(Done done) override;
  void extents(std::uint64_t offset, std::uint64_t length,
               std::function<void(int error, std::vector<Extent> found)> done)
      override;

  void cancel() noexcept override;
  /// With failure(), if there is one.
  [[nodiscard]] std::string explain(int error) const override;

  /// What is wrong with the first connection that is broken; or nothing.
  [[nodiscard]] std::string failure() const;

 private:
  void add(Peer peer);
  void start(Operation operation);
  [[nodiscard]] bool takes(std::uint64_t offset,
                           std::uint64_t length) const noexcept;

  const NbdTarget target_;
  const bool uring_;
  SpanOfAnswers span_{std::uint64_t{1} << 30};
  std::vector<Peer> peers_;
  std::vector<std::unique_ptr<Connection>> connections_;
  std::atomic<std::size_t> next_{0};
};

/// What a reply says of a range, cut to it; empty where it says nothing.
[[nodiscard]] std::vector<Extent> extents_of(
    const std::vector<StatusExtent>& status, std::uint64_t offset,
    std::uint64_t length);

}  // namespace nbdrados::copy::nbd

#endif
