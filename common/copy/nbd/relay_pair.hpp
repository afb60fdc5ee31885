// SPDX-License-Identifier: BSD-3-Clause
//
// One connection to the source and one to the destination of a relay, and the
// thread that serves both.

#ifndef NBDRADOS_COPY_NBD_RELAY_PAIR_HPP
#define NBDRADOS_COPY_NBD_RELAY_PAIR_HPP

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "copy/file_descriptor.hpp"
#include "copy/nbd/peer.hpp"
#include "copy/nbd/relay.hpp"
#include "copy/nbd/reply_parser.hpp"

namespace nbdrados::copy::nbd {

/// One request to the relay.
struct RelayJob {
  enum class Kind { copy, zero, flush, extents };
  Kind kind = Kind::copy;
  bool may_trim = false;
  std::uint64_t offset = 0;
  std::uint32_t length = 0;
  RelayDone done{};
  RelayExtents found{};  // of extents, instead of done
};

/// A pipe whose ends do not block.
struct Pipe {
  /// Throws Error.
  explicit Pipe(std::size_t bytes);
  explicit Pipe(const std::array<int, 2>& ends) : out(ends[0]), in(ends[1]) {}
  const FileDescriptor out, in;
};

class RelayPair {
 public:
  RelayPair(Peer source, Peer destination, const Relay::Options& options);
  /// Waits for what is under way.
  ~RelayPair();
  RelayPair(const RelayPair&) = delete;
  RelayPair& operator=(const RelayPair&) = delete;

  /// These are thread-safe.
  void start(RelayJob job);
  void cancel() noexcept;
  [[nodiscard]] std::string failure() const;

 private:
  /// A job under way.
  struct Work {
    RelayJob job{};
    bool used = false;
    bool reading = false;     // the source has not said all
    unsigned unsent = 0;      // requests to the destination
    unsigned unanswered = 0;  // of those
    bool unaligned = false;
    bool in_memory = false;
    std::vector<char> memory{};
    std::vector<Extent> found{};
    int error = 0;
    Side side = Side::source;
  };

  /// For the destination: a request's head, and what follows it.
  struct Outgoing {
    std::size_t work = 0;
    std::array<char, request_bytes> head{};
    std::size_t head_sent = 0;
    std::size_t from_pipe = 0;         // bytes
    std::span<const char> from_memory{};
  };

  /// Where the payload of the source goes.
  enum class Sink { pipe, memory, nowhere };

  // All of these are for the thread.
  void run();
  bool start_new();
  void wait();

  // They do what can be done without waiting, and return whether that was
  // anything.
  bool ask();           // the source
  bool take_replies();  // of the source
  bool take_payload();
  bool forward();       // to the destination
  bool take_answers();  // of the destination

  void begin(RelayJob job);
  void read(std::size_t work);
  void write(std::size_t work, Command command, std::uint16_t flags,
             std::uint64_t offset, std::uint32_t length, std::size_t from_pipe,
             std::span<const char> from_memory);
  void source_events();
  void payload(std::size_t work, const Event& event);
  void hole(std::size_t work, const Event& event);
  void zeros(std::size_t work, std::uint64_t offset, std::uint32_t length,
             bool may_trim);
  void read_ended(std::size_t work, int error);
  void settle(std::size_t work);
  void end(RelayJob& job, int error, Side side, std::vector<Extent> found);
  void give_up(int error, const std::string& why);
  [[nodiscard]] bool aligned(std::uint64_t offset,
                             std::uint64_t length) const noexcept;

  Peer source_, destination_;
  const Relay::Options options_;
  const Pipe pipe_;
  const FileDescriptor wake_;
  Side side_ = Side::source;  // that is being dealt with

  std::deque<Work> works_;
  std::vector<std::size_t> free_;
  std::size_t in_flight_ = 0;

  ReplyParser replies_, answers_;  // of the source, of the destination
  std::vector<std::size_t> reader_, writer_;  // the work of their slots
  std::string requests_;                      // to be sent to the source
  std::array<char, 4096> heads_;
  Sink sink_ = Sink::pipe;
  char* memory_ = nullptr;  // where payload goes with Sink::memory
  std::vector<char> scratch_;

  std::deque<Outgoing> outgoing_;
  std::size_t in_pipe_ = 0;  // bytes
  std::array<char, 4096> answer_bytes_;

  std::atomic<bool> cancelled_{false};
  mutable std::mutex mutex_;
  // Guarded by mutex_:
  std::vector<RelayJob> new_;
  bool closing_ = false;
  std::string failure_;

  int error_ = 0;  // of the pair, since it is broken
  std::thread thread_;
};

}  // namespace nbdrados::copy::nbd

#endif
