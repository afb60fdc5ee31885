// SPDX-License-Identifier: BSD-3-Clause
//
// A destination that compares what it is to hold with what it holds.  The
// engine that copies then compares, with the same order and the same bounds;
// the memory is twice that of a copy.

#ifndef NBDRADOS_COPY_COMPARISON_HPP
#define NBDRADOS_COPY_COMPARISON_HPP

#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "copy/endpoint.hpp"

namespace nbdrados::copy {

class Comparison final : public Endpoint {
 public:
  /// Reads `disk`, which must outlive this, and writes nothing.  Calls
  /// `on_difference` when it finds one; by any thread, perhaps several times.
  Comparison(Endpoint& disk, std::function<void()> on_difference);

  /// The first byte that differs, of those that have been compared; none: they
  /// are equal.
  [[nodiscard]] std::optional<std::uint64_t> difference() const;

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
  void cancel() noexcept override;

 private:
  /// Two buffers that are to be equal.
  struct Job {
    std::uint64_t offset = 0;
    std::uint64_t length = 0;
    const char* wanted = nullptr;  // null: zeros
    std::vector<char> got = {};    // as large as it has ever been
    Done done = {};
  };

  void start(std::uint64_t offset, std::uint64_t length, const char* wanted,
             Done done);
  void compare(Job& job, int error);

  Endpoint& disk_;
  const std::function<void()> on_difference_;
  Traits traits_;
  mutable std::mutex mutex_;
  // All below guarded by mutex_.
  std::vector<std::unique_ptr<Job>> jobs_;
  std::vector<Job*> unused_;
  std::optional<std::uint64_t> difference_;
};

}  // namespace nbdrados::copy

#endif
