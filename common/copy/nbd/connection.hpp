// SPDX-License-Identifier: BSD-3-Clause
//
// The data phase of one connection: requests of any thread are sent, and
// replies taken, by one thread of the connection.
//
// Whatever is waiting to be sent goes out with one system call.  Payload of a
// read is received into the caller's memory, except for what comes along with
// the message before it (at most `small_buffer` bytes; small reads are received
// many at once and copied).

#ifndef NBDRADOS_COPY_NBD_CONNECTION_HPP
#define NBDRADOS_COPY_NBD_CONNECTION_HPP

#include <sys/uio.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "copy/endpoint.hpp"
#include "copy/nbd/reply_parser.hpp"
#include "copy/nbd/socket_io.hpp"

namespace nbdrados::copy::nbd {

/// One request, and whom its end is told to.  A read has memory `to`, a write
/// `from`, of `length` bytes.
struct Operation {
  Command command{};
  std::uint16_t flags = 0;
  std::uint64_t offset = 0;
  std::uint32_t length = 0;
  char* to = nullptr;
  const char* from = nullptr;
  /// Called once, by the connection's thread; `status` are the extents of
  /// block status.
  std::function<void(int error, const std::vector<StatusExtent>& status)>
      done{};
};

/// Thread-safe.
class Connection {
 public:
  /// `socket` stays the caller's.  Throws Error.
  Connection(int socket, bool structured, bool uring);

  /// Waits for what is under way.
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  /// After an error of the connection, requests end with its errno:
  /// ECONNRESET when the peer has gone, EPROTO when it breaks the protocol.
  void start(Operation operation);

  /// What is under way, and what is started later, ends soon with ECANCELED.
  void cancel() noexcept;

  /// Waits for what is under way; start() must not be called any more.
  void finish_all();

  [[nodiscard]] SocketIo::Kind kind() const noexcept { return kind_; }

  /// Why the connection is broken; empty: it is not.
  [[nodiscard]] std::string failure() const;

 private:
  static constexpr std::size_t small_read = 16 << 10;
  static constexpr std::size_t small_buffer = 4 << 10;
  static constexpr std::size_t large_buffer = 64 << 10;

  struct Slot {
    Operation operation{};
    bool unsent = true;
    std::vector<StatusExtent> status{};
  };

  /// What is sent for a request.  Where the reply comes before the payload is
  /// sent, `early` is told at the end of that, since it is the caller's memory.
  struct Outgoing {
    std::array<char, request_bytes> header;
    std::size_t slot = 0;
    std::span<const char> payload{};
    std::function<void()> early{};
  };

  // All of these are for the connection's thread.
  void run(bool uring, std::promise<void>& ready);
  void serve();
  bool start_new();
  void queue(Operation operation);
  void send_more();
  void receive_more();
  void sent(long bytes);
  void received(long bytes);
  void parse();
  void handle(const Event& event);
  void finish(std::size_t slot, int error);
  void give_up(int error, const std::string& why);

  const int socket_;
  std::unique_ptr<SocketIo> io_;  // made by the thread
  SocketIo::Kind kind_ = SocketIo::Kind::poll;
  ReplyParser parser_;
  std::deque<Slot> slots_;  // by ReplyParser::slot()

  std::deque<Outgoing> outgoing_;
  std::size_t out_sent_ = 0;  // bytes of the first one
  bool sending_ = false;
  bool receiving_ = false;
  std::size_t large_reads_ = 0;  // in flight

  std::vector<char> buffer_;
  std::size_t filled_ = 0, parsed_ = 0;
  char* payload_to_ = nullptr;
  bool direct_ = false;  // what is being received goes to payload_to_

  std::atomic<bool> cancelled_{false};
  mutable std::mutex mutex_;
  // Guarded by mutex_:
  std::vector<Operation> new_;
  bool closing_ = false;
  int error_ = 0;
  std::string failure_;

  std::vector<Operation> taken_;
  std::thread thread_;
};

}  // namespace nbdrados::copy::nbd

#endif
