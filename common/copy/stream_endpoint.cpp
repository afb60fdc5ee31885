// SPDX-License-Identifier: BSD-3-Clause

#include "copy/stream_endpoint.hpp"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string>
#include <utility>

#include "rados/error.hpp"

namespace nbdrados::copy {

namespace {

FileDescriptor make_event() {
  FileDescriptor event(::eventfd(0, EFD_CLOEXEC));
  if (!event) fail(errno, "eventfd");
  return event;
}

}  // namespace

StreamEndpoint::StreamEndpoint(FileDescriptor file, bool writable)
    : file_(std::move(file)), wake_(make_event()) {
  traits_.size = unknown_size;
  traits_.is_stream = true;
  traits_.writable = writable;
  traits_.can_zero = true;
  traits_.can_flush = true;
  if (writable) set_kind();
  thread_ = std::thread([this] { work(); });
}

void StreamEndpoint::set_kind() {
  struct stat s = {};
  if (::fstat(file_.get(), &s) == -1) return;
  if (S_ISSOCK(s.st_mode)) kind_ = Kind::socket;
  if (!S_ISFIFO(s.st_mode)) return;
  // O_NONBLOCK is of the open file, which others may have as well (a shell its
  // standard output): so it is opened once more.
  const std::string again = "/proc/self/fd/" + std::to_string(file_.get());
  FileDescriptor own(
      ::open(again.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC));
  kind_ = own ? Kind::nonblocking : Kind::pipe;
  if (own) file_ = std::move(own);
}

StreamEndpoint::~StreamEndpoint() {
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

void StreamEndpoint::cancel() noexcept {
  {
    const std::scoped_lock lock(mutex_);
    if (error_ == 0) error_ = ECANCELED;
    changed_.notify_all();
  }
  const std::uint64_t one = 1;
  (void)!::write(wake_.get(), &one, sizeof one);
}

std::optional<std::uint64_t> StreamEndpoint::end() const {
  const std::scoped_lock lock(mutex_);
  return end_;
}

void StreamEndpoint::start(Operation operation) {
  const std::scoped_lock lock(mutex_);
  waiting_.push_back(std::move(operation));
  changed_.notify_all();
}

/// What can be carried out, or ended.
std::vector<StreamEndpoint::Operation>::iterator StreamEndpoint::find_next() {
  return std::find_if(waiting_.begin(), waiting_.end(),
                      [this](const Operation& o) {
                        return error_ != 0 || o.offset == position_;
                      });
}

void StreamEndpoint::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    auto next = waiting_.end();
    changed_.wait(lock, [&] {
      next = find_next();
      return next != waiting_.end() || stopping_;
    });
    if (next == waiting_.end()) return;
    const Operation operation = std::move(*next);
    waiting_.erase(next);
    int error = error_;
    if (error == 0 && !end_) {
      lock.unlock();
      error = carry_out(operation);
      lock.lock();
      if (error != 0 && error_ == 0) error_ = error;
    }
    if (error == 0) position_ = operation.offset + operation.length;
    lock.unlock();
    operation.done(error);
    lock.lock();
  }
}

int StreamEndpoint::carry_out(const Operation& o) {
  if (o.to != nullptr) return read_all(o.to, o.length);
  if (o.from != nullptr) return write_all(o.from, o.length);
  static constexpr std::array<char, 65536> zeros{};
  for (std::uint64_t rest = o.length; rest > 0;) {
    const std::uint64_t n = std::min<std::uint64_t>(rest, zeros.size());
    if (const int error = write_all(zeros.data(), n); error != 0) return error;
    rest -= n;
  }
  return 0;
}

/// Returns 0, or ECANCELED.
int StreamEndpoint::wait_until_ready() {
  struct pollfd fds[2] = {
      {file_.get(), static_cast<short>(traits_.writable ? POLLOUT : POLLIN),
       0},
      {wake_.get(), POLLIN, 0}};
  while (::poll(fds, 2, -1) == -1 && errno == EINTR) {
  }
  return fds[1].revents != 0 ? ECANCELED : 0;
}

int StreamEndpoint::read_all(char* to, std::uint64_t length) {
  for (std::uint64_t at = 0; at < length;) {
    if (const int error = wait_until_ready(); error != 0) return error;
    const ssize_t n = ::read(file_.get(), to + at, length - at);
    if (n == -1 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n == -1) return errno;
    if (n == 0) {
      const std::scoped_lock lock(mutex_);
      end_ = position_ + at;
      return 0;
    }
    at += static_cast<std::uint64_t>(n);
  }
  return 0;
}

ssize_t StreamEndpoint::write_some(const char* from, std::uint64_t length) {
  switch (kind_) {
    case Kind::socket:
      return ::send(file_.get(), from, length, MSG_DONTWAIT | MSG_NOSIGNAL);
    case Kind::pipe:
      // For so much there is room when it is ready (pipe(7)).
      return ::write(file_.get(), from,
                     std::min<std::uint64_t>(length, PIPE_BUF));
    default:
      return ::write(file_.get(), from, length);
  }
}

int StreamEndpoint::write_all(const char* from, std::uint64_t length) {
  while (length > 0) {
    if (const int error = wait_until_ready(); error != 0) return error;
    const ssize_t n = write_some(from, length);
    if (n == -1 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n == -1) return errno;
    from += n;
    length -= static_cast<std::uint64_t>(n);
  }
  return 0;
}

void StreamEndpoint::read(std::uint64_t offset, std::span<char> to,
                          Done done) {
  start({offset, to.size(), to.data(), nullptr, std::move(done)});
}

void StreamEndpoint::write(std::uint64_t offset, std::span<const char> from,
                           Done done) {
  start({offset, from.size(), nullptr, from.data(), std::move(done)});
}

void StreamEndpoint::zero(std::uint64_t offset, std::uint64_t length,
                          bool /*may_trim*/, Done done) {
  start({offset, length, nullptr, nullptr, std::move(done)});
}

void StreamEndpoint::flush(Done done) {
  const int error = ::fsync(file_.get()) == -1 ? errno : 0;
  // EINVAL: it is nothing that can be flushed.
  done(error == EINVAL || error == EROFS ? 0 : error);
}

void StreamEndpoint::extents(
    std::uint64_t, std::uint64_t,
    std::function<void(int error, std::vector<Extent> found)> done) {
  done(EOPNOTSUPP, {});
}

}  // namespace nbdrados::copy
