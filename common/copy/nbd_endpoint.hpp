// SPDX-License-Identifier: BSD-3-Clause
//
// An NBD server, through libnbd, on one connection or several.

#ifndef NBDRADOS_COPY_NBD_ENDPOINT_HPP
#define NBDRADOS_COPY_NBD_ENDPOINT_HPP

#include <atomic>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "copy/endpoint.hpp"
#include "copy/span_of_answers.hpp"

namespace nbdrados::copy {

/// How to reach a server.
struct NbdTarget {
  std::string uri;                   ///< as libnbd takes it, or
  std::vector<std::string> command;  ///< a server to start, with arguments
  bool debug = false;                ///< libnbd prints what it does
  bool use_extents = true;
};

class NbdEndpoint final : public Endpoint {
 public:
  /// Opens one connection.  Blocks.  Throws Error.
  explicit NbdEndpoint(NbdTarget target);
  ~NbdEndpoint() override;

  /// Whether the server takes more connections to the same disk.
  [[nodiscard]] bool can_multi_conn() const noexcept { return multi_conn_; }
  /// Opens more, so that there are `count`.  Before the first operation.
  /// Blocks.  Throws Error.
  void connect_more(std::size_t count);

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
