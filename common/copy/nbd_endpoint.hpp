// SPDX-License-Identifier: BSD-3-Clause
//
// An NBD server, through libnbd, also where the connection is encrypted.

#ifndef NBDRADOS_COPY_NBD_ENDPOINT_HPP
#define NBDRADOS_COPY_NBD_ENDPOINT_HPP

#include <atomic>
#include <cstddef>
#include <memory>
#include <vector>

#include "copy/nbd/handshake.hpp"
#include "copy/nbd/nbd_server.hpp"
#include "copy/span_of_answers.hpp"

namespace nbdrados::copy {

class NbdEndpoint final : public NbdServer {
 public:
  /// Opens one connection.  Blocks.  Throws Error.
  explicit NbdEndpoint(NbdTarget target);
  ~NbdEndpoint() override;

  [[nodiscard]] bool can_multi_conn() const noexcept override {
    return multi_conn_;
  }
  void connect_more(std::size_t count) override;
  [[nodiscard]] const char* engine() const noexcept override {
    return "libnbd";
  }

  [[nodiscard]] const Traits& traits() const noexcept override {
    return traits_;
  }
  void read(std::uint64_t offset, std::span<char> to, Done done) override;
  void write(std::uint64_t offset, std::span<const char> from,
             Done done) override;
  void zero(std::uint64_t offset, std::uint64_t length, bool may_trim,
            Done done) override;
  void flush(Done done) override;
  void extents(std::uint64_t offset, std::uint64_t length,
               std::function<void(int error, std::vector<Extent> found)> done)
      override;
  /// Closes the connections.
  void cancel() noexcept override;

 private:
  class Connection;
  [[nodiscard]] Connection& next_connection() noexcept;

  const NbdTarget target_;
  Traits traits_;
  bool multi_conn_ = false;
  SpanOfAnswers span_{std::uint64_t{1} << 31};
  std::vector<std::unique_ptr<Connection>> connections_;
  std::atomic<std::size_t> turn_{0};
};

}  // namespace nbdrados::copy

#endif
