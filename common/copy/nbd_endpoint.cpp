// SPDX-License-Identifier: BSD-3-Clause

#include "copy/nbd_endpoint.hpp"

#include <libnbd.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>

#include "copy/file_descriptor.hpp"
#include "rados/error.hpp"

namespace nbdrados::copy {

namespace {

struct Command {
  enum class Kind : std::uint8_t { read, write, zero, flush, extents };
  Kind kind = Kind::flush;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  char* to = nullptr;
  const char* from = nullptr;
  bool may_trim = false;
  Done done = {};
  std::function<void(int, std::vector<Extent>)> told = {};
  std::vector<Extent> found = {};
  int error = 0;
  bool completed = false;
};

}  // namespace

/// A connection, and the thread that does all with it: libnbd holds the
/// handle's lock while it calls back, so Done is called only behind that.
class NbdEndpoint::Connection {
 public:
  explicit Connection(NbdHandle h) : handle_(std::move(h)) {
    wake_ = FileDescriptor(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!wake_) fail(errno, "eventfd");
  }
  ~Connection() {
    stop(stopping_);
    if (thread_.joinable()) thread_.join();
    if (handle_) nbd_shutdown(handle_.get(), 0);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  [[nodiscard]] nbd_handle* handle() const noexcept { return handle_.get(); }

  void start(Command command) {
    const std::scoped_lock lock(mutex_);
    if (!thread_.joinable()) thread_ = std::thread([this] { work(); });
    queue_.push_back(std::move(command));
    wake();
  }
  void cancel() noexcept { stop(cancelled_); }

 private:
  void stop(bool& flag) noexcept {
    const std::scoped_lock lock(mutex_);
    flag = true;
    wake();
  }
  void wake() noexcept {
    if (!std::exchange(asleep_, false)) return;
    const std::uint64_t one = 1;
    (void)!::write(wake_.get(), &one, sizeof one);
  }

  void work();
  [[nodiscard]] bool take_queue();
  void issue(Command& command);
  void wait_for_server();
  void finish_completed();
  void close_now();

  static int on_completion(void* data, int* error) {
    auto& command = *static_cast<Command*>(data);
    command.error = *error;
    command.completed = true;
    return 1;
  }
  static int on_extents(void* data, const char* context, std::uint64_t offset,
                        std::uint32_t* entries, std::size_t count,
                        int* error);

  NbdHandle handle_;
  FileDescriptor wake_;

  // Only of the thread.
  std::vector<std::unique_ptr<Command>> under_way_;
  std::vector<std::unique_ptr<Command>> unused_;
  std::vector<Command> taken_;

  std::mutex mutex_;
  // All below guarded by mutex_.
  std::vector<Command> queue_;
  bool asleep_ = false;  // the thread has taken the queue, and may poll
  bool stopping_ = false;
  bool cancelled_ = false;
  std::thread thread_;
};

int NbdEndpoint::Connection::on_extents(void* data, const char* context,
                                        std::uint64_t offset,
                                        std::uint32_t* entries,
                                        std::size_t count, int* error) {
  if (std::strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0) return 0;
  auto& command = *static_cast<Command*>(data);
  try {
    for (std::size_t i = 0; i + 1 < count; i += 2) {
      const std::uint32_t flags = entries[i + 1];
      command.found.push_back({offset, entries[i],
                               (flags & LIBNBD_STATE_ZERO) != 0,
                               (flags & LIBNBD_STATE_HOLE) != 0});
      offset += entries[i];
    }
  } catch (const std::bad_alloc&) {
    *error = ENOMEM;
    return -1;
  }
  return 0;
}

void NbdEndpoint::Connection::work() {
  while (take_queue()) {
    for (Command& command : taken_) issue(command);
    taken_.clear();
    wait_for_server();
    finish_completed();
  }
}

/// False: it is time to end.
bool NbdEndpoint::Connection::take_queue() {
  bool cancelled = false;
  {
    const std::scoped_lock lock(mutex_);
    std::swap(taken_, queue_);
    cancelled = cancelled_;
    if (taken_.empty() && under_way_.empty() && stopping_) return false;
    // From here on: poll does not miss what is written before it.
    asleep_ = true;
  }
  if (cancelled) close_now();
  return true;
}

/// Nothing is written to anybody's memory afterwards.
void NbdEndpoint::Connection::close_now() {
  handle_.reset();
  for (const auto& c : under_way_) {
    if (!c->completed) c->error = ECANCELED;
    c->completed = true;
  }
}

void NbdEndpoint::Connection::issue(Command& command) {
  if (unused_.empty()) unused_.push_back(std::make_unique<Command>());
  Command& c = *under_way_.emplace_back(std::move(unused_.back()));
  unused_.pop_back();
  c = std::move(command);
  nbd_handle* const h = handle_.get();
  if (h == nullptr) {
    c.error = ECANCELED;
    c.completed = true;
    return;
  }
  const nbd_completion_callback done = {on_completion, &c, nullptr};
  std::int64_t r = -1;
  switch (c.kind) {
    case Command::Kind::read:
      r = nbd_aio_pread(h, c.to, c.length, c.offset, done, 0);
      break;
    case Command::Kind::write:
      r = nbd_aio_pwrite(h, c.from, c.length, c.offset, done, 0);
      break;
    case Command::Kind::zero:
      r = nbd_aio_zero(h, c.length, c.offset, done,
                       c.may_trim ? 0 : LIBNBD_CMD_FLAG_NO_HOLE);
      break;
    case Command::Kind::flush:
      r = nbd_aio_flush(h, done, 0);
      break;
    case Command::Kind::extents:
      r = nbd_aio_block_status(h, c.length, c.offset,
                               {on_extents, &c, nullptr}, done, 0);
      break;
  }
  // Where it has been called back, too, that says what it was.
  if (r == -1 && !c.completed) {
    const int code = nbd_get_errno();
    c.error = code == 0 || nbd_aio_is_dead(h) > 0 || nbd_aio_is_closed(h) > 0
                  ? ENOTCONN
                  : code;
    c.completed = true;
  }
}

void NbdEndpoint::Connection::wait_for_server() {
  // Not those that have failed at once, nor where all has been closed.
  const bool waits =
      handle_ && std::none_of(under_way_.begin(), under_way_.end(),
                              [](const auto& c) { return c->completed; });
  nbd_handle* const h = handle_.get();
  const unsigned direction = h != nullptr ? nbd_aio_get_direction(h) : 0;
  struct pollfd fds[2] = {
      {h != nullptr ? nbd_aio_get_fd(h) : -1, 0, 0},
      {wake_.get(), POLLIN, 0}};
  if ((direction & LIBNBD_AIO_DIRECTION_READ) != 0) fds[0].events |= POLLIN;
  if ((direction & LIBNBD_AIO_DIRECTION_WRITE) != 0) fds[0].events |= POLLOUT;
  (void)::poll(fds, 2, waits ? -1 : 0);
  {
    const std::scoped_lock lock(mutex_);
    asleep_ = false;
  }
  std::uint64_t count = 0;
  if (fds[1].revents != 0) (void)!::read(wake_.get(), &count, sizeof count);
  if (h == nullptr) return;
  // Where the server has gone reading finds that out.
  if ((fds[0].revents & (POLLIN | POLLHUP | POLLERR)) != 0 &&
      (direction & LIBNBD_AIO_DIRECTION_READ) != 0)
    (void)nbd_aio_notify_read(h);
  else if ((fds[0].revents & (POLLOUT | POLLHUP | POLLERR)) != 0)
    (void)nbd_aio_notify_write(h);
}

void NbdEndpoint::Connection::finish_completed() {
  for (std::size_t i = 0; i < under_way_.size();) {
    if (!under_way_[i]->completed) {
      ++i;
      continue;
    }
    std::swap(under_way_[i], under_way_.back());
    std::unique_ptr<Command> command = std::move(under_way_.back());
    under_way_.pop_back();
    if (command->told)
      command->told(command->error, std::move(command->found));
    else
      command->done(command->error);
    *command = {};
    unused_.push_back(std::move(command));
  }
}

NbdEndpoint::NbdEndpoint(NbdTarget target) : target_(std::move(target)) {
  connect_more(1);
  nbd_handle* const h = connections_.front()->handle();
  const std::int64_t size = nbd_get_size(h);
  if (size == -1) throw_nbd_error();
  traits_.size = static_cast<std::uint64_t>(size);
  traits_.writable = nbd_is_read_only(h) == 0;
  traits_.can_zero = nbd_can_zero(h) > 0;
  traits_.can_trim = nbd_can_trim(h) > 0;
  traits_.can_flush = nbd_can_flush(h) > 0;
  traits_.has_extents =
      target_.use_extents &&
      nbd_can_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) > 0;
  // 0 where the server does not say.
  const auto block = [h](int which, std::uint32_t otherwise) {
    const std::int64_t n = nbd_get_block_size(h, which);
    return n > 0 && n <= 1 << 30 ? static_cast<std::uint32_t>(n) : otherwise;
  };
  traits_.minimum = block(LIBNBD_SIZE_MINIMUM, 1);
  traits_.preferred = block(LIBNBD_SIZE_PREFERRED, 4096);
  traits_.maximum = std::min(block(LIBNBD_SIZE_MAXIMUM, traits_.maximum),
                             traits_.maximum);
  multi_conn_ = target_.command.empty() && nbd_can_multi_conn(h) > 0;
}

// All of them end at once.
NbdEndpoint::~NbdEndpoint() = default;

void NbdEndpoint::connect_more(std::size_t count) {
  while (connections_.size() < count)
    connections_.push_back(
        std::make_unique<Connection>(connect_nbd(target_, false)));
  // The end of a disk whose size is no multiple of its blocks is for the server
  // to give or to refuse.
  for (const auto& connection : connections_) {
    nbd_handle* const h = connection->handle();
    check_nbd(nbd_set_strict_mode(
        h, nbd_get_strict_mode(h) & ~std::uint32_t{LIBNBD_STRICT_ALIGN}));
  }
}

NbdEndpoint::Connection& NbdEndpoint::next_connection() noexcept {
  return *connections_[turn_.fetch_add(1, std::memory_order_relaxed) %
                       connections_.size()];
}

void NbdEndpoint::read(std::uint64_t offset, std::span<char> to, Done done) {
  Command c;
  c.kind = Command::Kind::read;
  c.offset = offset;
  c.length = to.size();
  c.to = to.data();
  c.done = std::move(done);
  next_connection().start(std::move(c));
}

void NbdEndpoint::write(std::uint64_t offset, std::span<const char> from,
                        Done done) {
  Command c;
  c.kind = Command::Kind::write;
  c.offset = offset;
  c.length = from.size();
  c.from = from.data();
  c.done = std::move(done);
  next_connection().start(std::move(c));
}

void NbdEndpoint::zero(std::uint64_t offset, std::uint64_t length,
                       bool may_trim, Done done) {
  Command c;
  c.kind = Command::Kind::zero;
  c.offset = offset;
  c.length = length;
  c.may_trim = may_trim;
  c.done = std::move(done);
  next_connection().start(std::move(c));
}

void NbdEndpoint::flush(Done done) {
  if (!traits_.can_flush) {
    done(0);
    return;
  }
  Command c;
  c.done = std::move(done);
  // What one connection has written, a flush on another makes durable, too,
  // where the server says that it takes several.
  next_connection().start(std::move(c));
}

void NbdEndpoint::extents(
    std::uint64_t offset, std::uint64_t length,
    std::function<void(int error, std::vector<Extent> found)> done) {
  Command c;
  c.kind = Command::Kind::extents;
  c.offset = offset;
  c.length = span_.cut(length);
  c.told = [this, done = std::move(done)](int error,
                                          std::vector<Extent> found) {
    span_.answered(found.size());
    done(error, std::move(found));
  };
  next_connection().start(std::move(c));
}

void NbdEndpoint::cancel() noexcept {
  for (const auto& c : connections_) c->cancel();
}

}  // namespace nbdrados::copy
