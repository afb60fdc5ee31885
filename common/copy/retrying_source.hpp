// SPDX-License-Identifier: BSD-3-Clause
//
// A source whose connection, when it is lost, is made again, so that the copy
// goes on with the requests that had no answer.
//
// That is for sources only: who reads twice reads the same.  What a destination
// has acknowledged may have gone with it, up to its last flush, and the data
// are no longer there to be written again.

#ifndef NBDRADOS_COPY_RETRYING_SOURCE_HPP
#define NBDRADOS_COPY_RETRYING_SOURCE_HPP

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "copy/endpoint.hpp"

namespace nbdrados::copy {

/// Whether an operation has failed because its connection is lost, and not
/// because the server says so.
[[nodiscard]] bool is_lost_connection(int error) noexcept;

class RetryingSource final : public Endpoint {
 public:
  struct Options {
    /// Attempts, one after the other, before it is given up; they begin anew
    /// when something has been read.
    unsigned retries = 0;
    /// Before the first attempt; before each other one twice as long as before
    /// the last, and at most `longest_pause`.
    std::chrono::milliseconds pause{500};
    std::chrono::milliseconds longest_pause{30000};
    /// Told of what is lost and made again.  By any thread.
    std::function<void(const std::string&)> log = [](const std::string&) {};
  };
  /// `open` makes another one like `first`; it blocks, not for ever, and throws
  /// Error.
  RetryingSource(std::unique_ptr<Endpoint> first,
                 std::function<std::unique_ptr<Endpoint>()> open,
                 Options options);
  ~RetryingSource() override;

  [[nodiscard]] const Traits& traits() const noexcept override {
    return traits_;
  }
  void read(std::uint64_t offset, std::span<char> to, Done done) override;
  /// EROFS, and so is zero().
  void write(std::uint64_t offset, std::span<const char> from,
             Done done) override;
  void zero(std::uint64_t offset, std::uint64_t length, bool may_trim,
            Done done) override;
  void flush(Done done) override;
  void extents(
      std::uint64_t offset, std::uint64_t length,
      std::function<void(int error, std::vector<Extent> found)> done) override;
  [[nodiscard]] std::string explain(int error) const override;
  void cancel() noexcept override;

 private:
  /// A request.  `told` is for extents, and `done` for a read.
  struct Request {
    std::uint64_t offset = 0;
    std::uint64_t length = 0;
    char* to = nullptr;
    Done done = {};
    std::function<void(int, std::vector<Extent>)> told = {};
  };

  void start(Request request);
  void issue(Endpoint& endpoint, std::uint64_t generation, Request request);
  void ended(std::uint64_t generation, const Request& request, int error,
             std::vector<Extent> found);
  static void finish(const Request& request, int error,
                     std::vector<Extent> found);
  void work();
  void open_again(std::unique_lock<std::mutex>& lock);
  [[nodiscard]] std::shared_ptr<Endpoint> try_to_open(std::string& why) const;

  const Traits traits_;
  const std::function<std::unique_ptr<Endpoint>()> open_;
  const Options options_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // All below guarded by mutex_.
  std::shared_ptr<Endpoint> endpoint_;  // null: it is being made again
  std::uint64_t generation_ = 0;        // of endpoint_
  std::vector<Request> waiting_;        // for it
  unsigned attempts_ = 0;               // since something was read
  bool lost_ = false;                   // the thread is to make it again
  int error_ = 0;                       // of all that comes
  std::string why_;
  bool stopping_ = false;

  std::thread thread_;
};

}  // namespace nbdrados::copy

#endif
