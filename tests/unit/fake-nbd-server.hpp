// SPDX-License-Identifier: BSD-3-Clause
//
// The other end of an NBD connection whose handshake is over: a disk in
// memory, served by a thread in any way that the protocol allows, or dying at a
// chosen byte.

#ifndef NBDRADOS_TESTS_UNIT_FAKE_NBD_SERVER_HPP
#define NBDRADOS_TESTS_UNIT_FAKE_NBD_SERVER_HPP

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "copy/nbd/peer.hpp"
#include "copy/nbd/wire.hpp"

namespace nbdrados::copy::nbd {

/// Numbers as they are on the wire.
inline std::string be(std::size_t bytes, std::uint64_t value) {
  std::string out;
  for (std::size_t i = bytes; i-- > 0;)
    out.push_back(static_cast<char>(value >> 8 * i & 0xff));
  return out;
}

inline std::string simple_reply(std::uint64_t cookie, std::uint32_t error) {
  return be(4, simple_reply_magic) + be(4, error) + be(8, cookie);
}

inline std::string chunk(std::uint64_t cookie, unsigned type, bool done,
                         const std::string& payload) {
  return be(4, structured_reply_magic) + be(2, done ? 1 : 0) + be(2, type) +
         be(8, cookie) + be(4, payload.size()) + payload;
}

inline std::string data_chunk(std::uint64_t cookie, bool done,
                              std::uint64_t offset, const std::string& data) {
  return chunk(cookie, 1, done, be(8, offset) + data);
}

class FakeNbdServer {
 public:
  struct Options {
    bool structured = true;
    bool fragments = false;  ///< replies in pieces, in any order, with holes
    std::uint32_t piece = 1;  ///< bytes that pieces are multiples of
    bool can_zero = true;
    std::uint32_t minimum = 1;
    /// It closes when it has sent or received so many bytes.
    std::size_t sends = SIZE_MAX, receives = SIZE_MAX;
    /// Requests that begin there get this error.
    std::map<std::uint64_t, std::uint32_t> errors = {};
    unsigned seed = 1;
  };

  FakeNbdServer(std::string disk, Options options)
      : size_(disk.size()),
        disk_(std::move(disk)),
        options_(std::move(options)),
        random_(options_.seed) {
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends_.data()) < 0)
      throw std::runtime_error("socketpair");
    thread_ = std::thread([this] { run(); });
  }
  ~FakeNbdServer() {
    if (thread_.joinable()) (void)join();
  }

  /// The client's end; to be taken once.
  Peer peer() {
    Traits t;
    t.size = size_;
    t.writable = true;
    t.can_zero = options_.can_zero;
    t.can_flush = true;
    t.has_extents = options_.structured;
    t.minimum = options_.minimum;
    return {FileDescriptor(std::exchange(ends_[0], -1)), options_.structured,
            t};
  }

  /// Waits until the client has gone.  Returns the disk.
  const std::string& join() {
    if (ends_[0] >= 0) close(std::exchange(ends_[0], -1));
    if (thread_.joinable()) thread_.join();
    return disk_;
  }

  /// What was wrong with a request; nothing: nothing was.  After join().
  [[nodiscard]] const std::string& complaint() const { return complaint_; }

 private:
  void run() {
    try {
      while (serve()) {
      }
    } catch (const std::exception&) {
      // The socket is closed, by either side.
    }
    close(ends_[1]);
  }

  // One request, if there is any; else one message of those that are waiting.
  bool serve() {
    pollfd waiting{ends_[1], POLLIN, 0};
    const bool any = !pending_.empty();
    const int ready = poll(&waiting, 1, any ? 0 : -1);
    if (ready > 0 && pending_.size() < 8) {
      std::array<char, request_bytes> head{};
      receive(head.data(), head.size());
      answer(head);
    } else if (any) {
      const auto which = static_cast<std::ptrdiff_t>(
          options_.fragments ? random_() % pending_.size() : 0);
      auto& replies = pending_[static_cast<std::size_t>(which)];
      send(replies.front());
      replies.pop_front();
      if (replies.empty()) pending_.erase(pending_.begin() + which);
    }
    return true;
  }

  void answer(const std::array<char, request_bytes>& head) {
    const std::span<const char> h(head);
    const std::uint16_t flags = get16(h.subspan(4));
    const auto command = static_cast<Command>(get16(h.subspan(6)));
    const std::uint64_t cookie = get64(h.subspan(8));
    const std::uint64_t offset = get64(h.subspan(16));
    const std::uint32_t length = get32(h.subspan(24));
    if (get32(h) != request_magic) complaint_ = "wrong magic";
    if (offset + length > disk_.size()) complaint_ = "behind the end";
    if (offset % options_.minimum != 0 || length % options_.minimum != 0)
      complaint_ = "not aligned";
    if (flags != 0 && command != Command::write_zeroes)
      complaint_ = "unknown flags";
    std::string payload(command == Command::write ? length : 0, '\0');
    receive(payload.data(), payload.size());
    if (!complaint_.empty() || command == Command::disconnect)
      throw std::runtime_error(complaint_);
    const auto error = options_.errors.find(offset);
    if (error != options_.errors.end()) {
      pending_.push_back({failure(cookie, error->second)});
      return;
    }
    if (command == Command::write)
      disk_.replace(offset, length, payload);
    if (command == Command::write_zeroes) {
      if (!options_.can_zero) complaint_ = "cannot zero";
      disk_.replace(offset, length, std::string(length, '\0'));
    }
    if (command == Command::read)
      pending_.push_back(read(cookie, offset, length));
    else if (command == Command::block_status)
      pending_.push_back({chunk(cookie, 5, true,
                                be(4, 1) + be(4, length) + be(4, 0))});
    else
      pending_.push_back({options_.structured && random_() % 2 == 0
                              ? chunk(cookie, 0, true, "")
                              : simple_reply(cookie, 0)});
  }

  std::string failure(std::uint64_t cookie, std::uint32_t error) {
    if (!options_.structured) return simple_reply(cookie, error);
    const std::string text = "no";
    return chunk(cookie, 0x8001, true, be(4, error) + be(2, 2) + text);
  }

  std::deque<std::string> read(std::uint64_t cookie, std::uint64_t offset,
                               std::uint32_t length) {
    const std::string data = disk_.substr(offset, length);
    if (!options_.structured) return {simple_reply(cookie, 0) + data};
    if (!options_.fragments) return {data_chunk(cookie, true, offset, data)};
    std::deque<std::string> chunks;
    for (std::size_t at = 0; at < length;) {
      const std::size_t n = std::min<std::size_t>(
          length - at, (1 + random_() % (length / options_.piece + 1)) *
                           options_.piece);
      const std::string piece = data.substr(at, n);
      if (piece.find_first_not_of('\0') == std::string::npos)
        chunks.push_back(
            chunk(cookie, 2, false, be(8, offset + at) + be(4, n)));
      else
        chunks.push_back(data_chunk(cookie, false, offset + at, piece));
      at += n;
    }
    std::shuffle(chunks.begin(), chunks.end(), random_);
    if (random_() % 2 == 0)
      chunks.back()[5] = 1;  // NBD_REPLY_FLAG_DONE
    else
      chunks.push_back(chunk(cookie, 0, true, ""));
    return chunks;
  }

  void receive(char* to, std::size_t bytes) {
    while (bytes != 0) {
      const std::size_t most = std::min(bytes, options_.receives);
      const ssize_t n = most == 0 ? 0 : recv(ends_[1], to, most, 0);
      if (n <= 0) throw std::runtime_error("end");
      to += n;
      bytes -= static_cast<std::size_t>(n);
      if (options_.receives != SIZE_MAX)
        options_.receives -= static_cast<std::size_t>(n);
    }
  }

  void send(const std::string& bytes) {
    for (std::size_t at = 0; at < bytes.size();) {
      const std::size_t most = std::min(bytes.size() - at, options_.sends);
      const ssize_t n = most == 0 ? 0
                                  : ::send(ends_[1], bytes.data() + at, most,
                                           MSG_NOSIGNAL);
      if (n <= 0) throw std::runtime_error("end");
      at += static_cast<std::size_t>(n);
      if (options_.sends != SIZE_MAX)
        options_.sends -= static_cast<std::size_t>(n);
    }
  }

  const std::size_t size_;
  std::string disk_;
  Options options_;
  std::mt19937 random_;
  std::array<int, 2> ends_{-1, -1};
  std::vector<std::deque<std::string>> pending_;  // replies, in messages
  std::string complaint_;
  std::thread thread_;
};

}  // namespace nbdrados::copy::nbd

#endif
