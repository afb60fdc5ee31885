// SPDX-License-Identifier: BSD-3-Clause
//
// A pipe, a socket, a terminal, the standard input or output: what is read or
// written in order only.
//
// Operations are carried out in the order of their offsets, by a thread of the
// endpoint; one that begins behind a gap waits for what fills the gap.

#ifndef NBDRADOS_COPY_STREAM_ENDPOINT_HPP
#define NBDRADOS_COPY_STREAM_ENDPOINT_HPP

#include <sys/types.h>

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "copy/endpoint.hpp"
#include "copy/file_descriptor.hpp"

namespace nbdrados::copy {

class StreamEndpoint final : public Endpoint {
 public:
  /// Takes over a descriptor that is open for reading, or for writing.
  StreamEndpoint(FileDescriptor file, bool writable);
  ~StreamEndpoint() override;

  [[nodiscard]] const Traits& traits() const noexcept override {
    return traits_;
  }
  void read(std::uint64_t offset, std::span<char> to, Done done) override;
  void write(std::uint64_t offset, std::span<const char> from,
             Done done) override;
  void zero(std::uint64_t offset, std::uint64_t length, bool may_trim,
            Done done) override;
  /// A file is durable then; of pipes there is nothing to flush.
  void flush(Done done) override;
  void extents(std::uint64_t offset, std::uint64_t length,
               std::function<void(int error, std::vector<Extent> found)> done)
      override;
  [[nodiscard]] std::optional<std::uint64_t> end() const override;
  void cancel() noexcept override;
  [[nodiscard]] int close() noexcept override { return file_.close(); }

 private:
  struct Operation {
    std::uint64_t offset;
    std::uint64_t length;
    char* to;          // null: it is a write
    const char* from;  // null: of zeros
    Done done;
  };

  /// How a write takes no more than there is room for: poll(2) promises a few
  /// bytes only, and a peer may never take the rest.
  enum class Kind : std::uint8_t { socket, nonblocking, pipe, other };

  void set_kind();
  void start(Operation operation);
  void work();
  [[nodiscard]] std::vector<Operation>::iterator find_next();
  [[nodiscard]] int carry_out(const Operation& operation);
  [[nodiscard]] int read_all(char* to, std::uint64_t length);
  [[nodiscard]] int write_all(const char* from, std::uint64_t length);
  [[nodiscard]] ssize_t write_some(const char* from, std::uint64_t length);
  [[nodiscard]] int wait_until_ready();

  FileDescriptor file_;
  Kind kind_ = Kind::other;
  const FileDescriptor wake_;  // an eventfd, for cancel()
  Traits traits_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // All below guarded by mutex_.
  std::vector<Operation> waiting_;
  std::uint64_t position_ = 0;
  std::optional<std::uint64_t> end_;
  int error_ = 0;  // of all that comes
  bool stopping_ = false;

  std::thread thread_;
};

}  // namespace nbdrados::copy

#endif
