// SPDX-License-Identifier: BSD-3-Clause

#include "copy/nbd/socket_io.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>

#include "copy/uring.hpp"
#include "rados/error.hpp"

namespace nbdrados::copy::nbd {

namespace {

void set_blocking(int socket, bool blocks) {
  const int flags = fcntl(socket, F_GETFL);
  if (flags < 0 || fcntl(socket, F_SETFL,
                         blocks ? flags & ~O_NONBLOCK : flags | O_NONBLOCK) < 0)
    fail(errno, "NBD socket");
}

/// What is being sent and received: kept until it has ended.
struct Message {
  std::array<iovec, SocketIo::max_parts> parts;
  msghdr header{};

  void set(std::span<const iovec> from) {
    std::copy(from.begin(), from.end(), parts.begin());
    header = {};
    header.msg_iov = parts.data();
    header.msg_iovlen = from.size();
  }
};

// ------------------------------------------------------------------ io_uring

class UringIo : public SocketIo {
 public:
  UringIo(int socket, Uring ring) : socket_(socket), ring_(std::move(ring)) {
    // For a socket that does not block, io_uring would not wait, either.
    set_blocking(socket_, true);
  }

  [[nodiscard]] Kind kind() const noexcept override { return Kind::uring; }

  void send(std::span<const iovec> parts) override {
    out_.set(parts);
    // With MSG_WAITALL the kernel goes on after a part, instead of telling us
    // (Linux 5.19; before, a part ends it).
    io_uring_prep_sendmsg(ring_.entry(tag_send), socket_, &out_.header,
                          MSG_NOSIGNAL | MSG_WAITALL);
  }

  void receive(iovec to, bool all) override {
    io_uring_prep_recv(ring_.entry(tag_receive), socket_, to.iov_base,
                       to.iov_len, all ? MSG_WAITALL : 0);
  }

  Result wait() override {
    if (!listens_) {
      io_uring_prep_read(ring_.entry(tag_wake), wake_.get(), &count_,
                         sizeof count_, 0);
      listens_ = true;
    }
    const int r = io_uring_submit_and_wait(ring_.get(), 1);
    if (r < 0 && r != -EINTR) fail(-r, "io_uring_enter");
    Result result;
    io_uring_cqe* done = nullptr;
    while (io_uring_peek_cqe(ring_.get(), &done) == 0) {
      const long n = done->res;
      switch (io_uring_cqe_get_data64(done)) {
        case tag_send:
          result.sent = n;
          break;
        case tag_receive:
          result.received = n;
          break;
        default:
          listens_ = false;
      }
      io_uring_cqe_seen(ring_.get(), done);
    }
    return result;
  }

 private:
  enum Tag : unsigned { tag_send, tag_receive, tag_wake };

  const int socket_;
  std::uint64_t count_ = 0;  // written to by the ring
  Message out_;
  bool listens_ = false;
  Uring ring_;  // the last one: nothing is under way after its end
};

// ---------------------------------------------------------------------- poll

class PollIo : public SocketIo {
 public:
  explicit PollIo(int socket) : socket_(socket) {
    set_blocking(socket_, false);
  }

  [[nodiscard]] Kind kind() const noexcept override { return Kind::poll; }

  void send(std::span<const iovec> parts) override {
    out_.set(parts);
    sends_ = true;
  }

  void receive(iovec to, bool) override {
    in_ = to;
    receives_ = true;
  }

  Result wait() override {
    // First without poll(2): mostly there is room, and a reply.
    Result result = try_both();
    if (result.sent || result.received) return result;
    std::array<pollfd, 2> polled{};
    polled[0] = {socket_,
                 static_cast<short>((sends_ ? POLLOUT : 0) |
                                    (receives_ ? POLLIN : 0)),
                 0};
    polled[1] = {wake_.get(), POLLIN, 0};
    // A socket that nothing is wanted of would end poll(2) when it is closed.
    if (polled[0].events == 0) polled[0].fd = -1;
    if (poll(polled.data(), polled.size(), -1) < 0 && errno != EINTR)
      fail(errno, "poll");
    if ((polled[1].revents & POLLIN) != 0) slept();
    return try_both();
  }

 private:
  Result try_both() {
    Result result;
    if (sends_) {
      const ssize_t n =
          sendmsg(socket_, &out_.header, MSG_NOSIGNAL | MSG_DONTWAIT);
      result.sent = outcome(n);
      sends_ = !result.sent;
    }
    if (receives_) {
      const ssize_t n = recv(socket_, in_.iov_base, in_.iov_len, MSG_DONTWAIT);
      result.received = outcome(n);
      receives_ = !result.received;
    }
    return result;
  }

  static std::optional<long> outcome(ssize_t n) {
    if (n >= 0) return n;
    if (errno == EAGAIN || errno == EINTR) return std::nullopt;
    return -errno;
  }

  const int socket_;
  Message out_;
  iovec in_{};
  bool sends_ = false;
  bool receives_ = false;
};

}  // namespace

SocketIo::SocketIo() : wake_(eventfd(0, EFD_CLOEXEC)) {
  if (wake_.get() < 0) fail(errno, "eventfd");
}

void SocketIo::wake() noexcept {
  const std::uint64_t one = 1;
  // It fails only when the counter is full, and then wait() ends anyhow.
  [[maybe_unused]] const ssize_t n = write(wake_.get(), &one, sizeof one);
}

void SocketIo::slept() {
  std::uint64_t count = 0;
  [[maybe_unused]] const ssize_t n = read(wake_.get(), &count, sizeof count);
}

std::unique_ptr<SocketIo> SocketIo::make(int socket, bool uring) {
  int error = 0;
  if (uring)
    if (std::optional<Uring> ring = Uring::make(8, error))
      return std::make_unique<UringIo>(socket, std::move(*ring));
  return std::make_unique<PollIo>(socket);
}

}  // namespace nbdrados::copy::nbd
