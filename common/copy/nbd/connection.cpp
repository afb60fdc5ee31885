// SPDX-License-Identifier: BSD-3-Clause

#include "copy/nbd/connection.hpp"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <utility>

#include "rados/error.hpp"

namespace nbdrados::copy::nbd {

Connection::Connection(int socket, bool structured, bool uring)
    : socket_(socket), parser_(structured), buffer_(large_buffer) {
  std::promise<void> ready;
  std::future<void> is_ready = ready.get_future();
  thread_ = std::thread([&] { run(uring, ready); });
  try {
    is_ready.get();
  } catch (...) {
    thread_.join();
    throw;
  }
}

Connection::~Connection() { finish_all(); }

void Connection::finish_all() {
  if (!thread_.joinable()) return;
  {
    const std::scoped_lock guard(mutex_);
    closing_ = true;
  }
  io_->wake();
  thread_.join();
}

void Connection::start(Operation operation) {
  const bool own_thread = std::this_thread::get_id() == thread_.get_id();
  // Also while it wakes: when the operation has ended, this may be destroyed,
  // but finish_all() waits for the mutex.
  const std::scoped_lock guard(mutex_);
  // serve() looks before it waits.
  const bool wake = new_.empty() && (!own_thread || error_ != 0);
  new_.push_back(std::move(operation));
  if (wake) io_->wake();
}

void Connection::cancel() noexcept {
  cancelled_ = true;
  // The thread finds that the server has gone.
  ::shutdown(socket_, SHUT_RDWR);
}

std::string Connection::failure() const {
  const std::scoped_lock guard(mutex_);
  return failure_;
}

void Connection::run(bool uring, std::promise<void>& ready) {
  try {
    io_ = SocketIo::make(socket_, uring);
    kind_ = io_->kind();
  } catch (...) {
    ready.set_exception(std::current_exception());
    return;
  }
  ready.set_value();
  try {
    serve();
    return;
  } catch (const Error& e) {
    give_up(e.code(), e.what());
  } catch (const std::bad_alloc&) {
    give_up(ENOMEM, "no memory");
  }
  // From here on every request fails.
  while (!start_new()) (void)io_->wait();
}

void Connection::serve() {
  for (;;) {
    const bool closing = start_new();
    if (closing && parser_.in_flight() == 0 && outgoing_.empty()) return;
    if (!sending_ && !outgoing_.empty()) send_more();
    if (!receiving_ && parser_.in_flight() != 0) receive_more();
    const SocketIo::Result result = io_->wait();
    if (result.sent) sending_ = false;
    if (result.received) receiving_ = false;
    // The replies first: a server may answer and go, and sending fails then.
    if (result.received) received(*result.received);
    if (result.sent) sent(*result.sent);
  }
}

// Returns whether the connection is being closed, and nothing was new.
bool Connection::start_new() {
  int error = 0;
  bool closing = false;
  {
    const std::scoped_lock guard(mutex_);
    taken_.swap(new_);
    error = error_;
    closing = closing_;
  }
  closing = closing && taken_.empty();
  for (Operation& operation : taken_) {
    if (error != 0)
      operation.done(error, {});
    else
      queue(std::move(operation));
  }
  taken_.clear();
  return closing;
}

void Connection::queue(Operation operation) {
  const std::uint64_t cookie = parser_.begin(
      operation.command, operation.offset, operation.length);
  const std::size_t slot = ReplyParser::slot(cookie);
  if (slot >= slots_.size()) slots_.resize(slot + 1);
  Outgoing& out = outgoing_.emplace_back();
  encode({.command = operation.command,
          .flags = operation.flags,
          .cookie = cookie,
          .offset = operation.offset,
          .length = operation.length},
         out.header);
  out.slot = slot;
  if (operation.from != nullptr)
    out.payload = {operation.from, operation.length};
  if (operation.to != nullptr && operation.length > small_read) ++large_reads_;
  slots_[slot] = {.operation = std::move(operation), .status = {}};
}

// ------------------------------------------------------------------- sending

void Connection::send_more() {
  std::array<iovec, SocketIo::max_parts> parts;
  std::size_t count = 0;
  std::size_t skip = out_sent_;
  const auto add = [&](std::span<const char> bytes) {
    const std::size_t skipped = std::min(skip, bytes.size());
    skip -= skipped;
    bytes = bytes.subspan(skipped);
    if (!bytes.empty())
      parts[count++] = {const_cast<char*>(bytes.data()), bytes.size()};
  };
  for (const Outgoing& out : outgoing_) {
    if (count + 2 > parts.size()) break;
    add(out.header);
    add(out.payload);
  }
  io_->send({parts.data(), count});
  sending_ = true;
}

void Connection::sent(long bytes) {
  if (bytes == -EAGAIN || bytes == -EINTR) return;
  if (bytes < 0)
    throw Error(static_cast<int>(-bytes), "sending to the NBD server: " +
                                              error_text(
                                                  static_cast<int>(-bytes)));
  out_sent_ += static_cast<std::size_t>(bytes);
  while (!outgoing_.empty()) {
    Outgoing& out = outgoing_.front();
    const std::size_t all = out.header.size() + out.payload.size();
    if (out_sent_ < all) break;
    out_sent_ -= all;
    const std::function<void()> early = std::move(out.early);
    if (!early) slots_[out.slot].unsent = false;
    outgoing_.pop_front();
    if (early) early();
  }
}

// ----------------------------------------------------------------- receiving

void Connection::receive_more() {
  const std::size_t room = large_reads_ != 0 ? small_buffer : large_buffer;
  // parse() leaves nothing in the buffer.
  direct_ = parser_.payload_left() >= room;
  if (direct_)
    io_->receive({payload_to_, parser_.payload_left()}, true);
  else
    io_->receive({buffer_.data(), room}, false);
  receiving_ = true;
}

void Connection::received(long bytes) {
  if (bytes == -EAGAIN || bytes == -EINTR) return;
  if (bytes == 0) throw Error(ECONNRESET, "the NBD server has gone");
  if (bytes < 0)
    throw Error(static_cast<int>(-bytes), "receiving from the NBD server: " +
                                              error_text(
                                                  static_cast<int>(-bytes)));
  if (direct_) {
    payload_to_ += bytes;
    parser_.moved(static_cast<std::uint32_t>(bytes));
    filled_ = parsed_ = 0;
  } else {
    parsed_ = 0;
    filled_ = static_cast<std::size_t>(bytes);
  }
  parse();
}

void Connection::parse() {
  for (;;) {
    while (const std::optional<Event> event = parser_.next()) handle(*event);
    const std::span<const char> rest(buffer_.data() + parsed_,
                                     filled_ - parsed_);
    if (rest.empty()) return;
    if (parser_.payload_left() != 0) {
      const std::size_t n =
          std::min<std::size_t>(rest.size(), parser_.payload_left());
      std::memcpy(payload_to_, rest.data(), n);
      payload_to_ += n;
      parsed_ += n;
      parser_.moved(static_cast<std::uint32_t>(n));
    } else {
      parsed_ += parser_.feed(rest);
    }
  }
}

void Connection::handle(const Event& event) {
  const std::size_t number = ReplyParser::slot(event.cookie);
  const Operation& operation = slots_[number].operation;
  switch (event.kind) {
    case Event::Kind::payload:
      payload_to_ = operation.to + (event.offset - operation.offset);
      break;
    case Event::Kind::hole:
      std::memset(operation.to + (event.offset - operation.offset), 0,
                  event.length);
      break;
    case Event::Kind::status:
      slots_[number].status = parser_.status();
      break;
    case Event::Kind::finished:
      finish(number, event.error);
  }
}

void Connection::finish(std::size_t number, int error) {
  Slot& slot = slots_[number];
  const Operation operation = std::exchange(slot.operation, {});
  std::vector<StatusExtent> status = std::exchange(slot.status, {});
  if (operation.to != nullptr && operation.length > small_read) --large_reads_;
  if (!slot.unsent) {
    operation.done(error, status);
    return;
  }
  const auto out =
      std::find_if(outgoing_.begin(), outgoing_.end(), [&](const Outgoing& o) {
        return o.slot == number && !o.early;
      });
  out->early = [done = operation.done, error,
                status = std::move(status)] { done(error, status); };
}

// -------------------------------------------------------------------- errors

// Ends all requests, when nobody uses their memory any more.
void Connection::give_up(int error, const std::string& why) {
  if (cancelled_) error = ECANCELED;
  ::shutdown(socket_, SHUT_RDWR);
  while (sending_ || receiving_) {
    const SocketIo::Result result = io_->wait();
    if (result.sent) sending_ = false;
    if (result.received) receiving_ = false;
  }
  {
    const std::scoped_lock guard(mutex_);
    error_ = error;
    failure_ = why;
  }
  std::deque<Outgoing> outgoing;
  outgoing.swap(outgoing_);
  for (const Outgoing& out : outgoing)
    if (out.early) out.early();
  std::deque<Slot> slots;
  slots.swap(slots_);
  for (Slot& slot : slots)
    if (slot.operation.done) slot.operation.done(error, {});
}

}  // namespace nbdrados::copy::nbd
