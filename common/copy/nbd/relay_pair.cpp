// SPDX-License-Identifier: BSD-3-Clause

#include "copy/nbd/relay_pair.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "copy/nbd/uring_nbd_endpoint.hpp"
#include "rados/error.hpp"

namespace nbdrados::copy::nbd {

namespace {

constexpr std::size_t scratch_bytes = 64 << 10;

std::array<int, 2> make_pipe() {
  std::array<int, 2> ends{};
  if (pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK) < 0) fail(errno, "pipe");
  return ends;
}

// The number of bytes; none: it would have to wait.  Throws where the
// connection is broken.
std::optional<std::size_t> moved(ssize_t n, const char* what) {
  if (n >= 0) return static_cast<std::size_t>(n);
  if (errno == EAGAIN || errno == EINTR) return std::nullopt;
  fail(errno, what);
}

// 0 bytes are the end of the stream.
std::optional<std::size_t> received(ssize_t n) {
  if (n == 0) throw Error(ECONNRESET, "the NBD server has gone");
  return moved(n, "receiving from the NBD server");
}

void dont_block(int socket) {
  const int flags = fcntl(socket, F_GETFL);
  if (flags < 0 || fcntl(socket, F_SETFL, flags | O_NONBLOCK) < 0)
    fail(errno, "NBD socket");
}

}  // namespace

Pipe::Pipe(std::size_t bytes) : Pipe(make_pipe()) {
  // As large as we may.
  while (bytes > 64 << 10 &&
         fcntl(in.get(), F_SETPIPE_SZ, static_cast<int>(bytes)) < 0)
    bytes /= 2;
}

RelayPair::RelayPair(Peer source, Peer destination,
                     const Relay::Options& options)
    : source_(std::move(source)),
      destination_(std::move(destination)),
      options_(options),
      pipe_(options.pipe_bytes),
      wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      replies_(source_.structured()),
      answers_(destination_.structured()) {
  if (wake_.get() < 0) fail(errno, "eventfd");
  dont_block(source_.socket());
  dont_block(destination_.socket());
  thread_ = std::thread([this] { run(); });
}

RelayPair::~RelayPair() {
  {
    const std::scoped_lock guard(mutex_);
    closing_ = true;
  }
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = ::write(wake_.get(), &one, sizeof one);
  thread_.join();
}

void RelayPair::start(RelayJob job) {
  // The thread itself looks before it waits.
  const bool own_thread = std::this_thread::get_id() == thread_.get_id();
  // Also while it wakes: when the job has ended, this may be destroyed, but the
  // destructor waits for the mutex.
  const std::scoped_lock guard(mutex_);
  const bool wake = new_.empty() && !own_thread;
  new_.push_back(std::move(job));
  if (!wake) return;
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = ::write(wake_.get(), &one, sizeof one);
}

void RelayPair::cancel() noexcept {
  cancelled_ = true;
  // The thread finds that both servers have gone.
  ::shutdown(source_.socket(), SHUT_RDWR);
  ::shutdown(destination_.socket(), SHUT_RDWR);
}

std::string RelayPair::failure() const {
  const std::scoped_lock guard(mutex_);
  return failure_;
}

// -------------------------------------------------------------------- thread

void RelayPair::run() {
  // splice(2) to a socket whose peer has gone raises it, and cannot be told
  // not to.
  sigset_t pipe_signal;
  sigemptyset(&pipe_signal);
  sigaddset(&pipe_signal, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &pipe_signal, nullptr);
  for (;;) {
    try {
      const bool closing = start_new();
      if (closing && in_flight_ == 0) return;
      bool any = false;
      if (error_ == 0) {
        side_ = Side::source;
        any |= ask();
        any |= take_replies();
        side_ = Side::destination;
        any |= forward();
        any |= take_answers();
      }
      if (!any) wait();
    } catch (const Error& e) {
      give_up(e.code(), e.what());
    } catch (const std::bad_alloc&) {
      give_up(ENOMEM, "no memory");
    }
  }
}

// Returns whether the relay is being closed, and nothing was new.
bool RelayPair::start_new() {
  std::vector<RelayJob> jobs;
  bool closing = false;
  {
    const std::scoped_lock guard(mutex_);
    jobs.swap(new_);
    closing = closing_;
  }
  for (RelayJob& job : jobs) begin(std::move(job));
  return closing && jobs.empty();
}

void RelayPair::wait() {
  {
    const std::scoped_lock guard(mutex_);
    if (!new_.empty()) return;
  }
  // Who waits for nothing is not asked, not even whether it has gone.
  const auto of = [](int socket, bool in, bool out) {
    const int events = (in ? POLLIN : 0) | (out ? POLLOUT : 0);
    return pollfd{events != 0 ? socket : -1, static_cast<short>(events), 0};
  };
  const bool alive = error_ == 0;
  // The source has data, perhaps, but the pipe no room: first it is emptied.
  const bool pipe_first = sink_ == Sink::pipe && in_pipe_ != 0 &&
                          replies_.payload_left() != 0;
  std::array<pollfd, 3> polled{
      of(wake_.get(), true, false),
      of(source_.socket(), alive && replies_.in_flight() != 0 && !pipe_first,
         alive && !requests_.empty()),
      of(destination_.socket(), alive && answers_.in_flight() != 0,
         alive && !outgoing_.empty())};
  if (poll(polled.data(), polled.size(), -1) < 0 && errno != EINTR)
    fail(errno, "poll");
  if (polled[0].revents == 0) return;
  std::uint64_t count = 0;
  [[maybe_unused]] const ssize_t n = ::read(wake_.get(), &count, sizeof count);
}

// ---------------------------------------------------------------------- jobs

void RelayPair::begin(RelayJob job) {
  if (error_ != 0) return end(job, error_, side_, {});
  std::size_t number = works_.size();
  if (free_.empty()) {
    works_.emplace_back();
  } else {
    number = free_.back();
    free_.pop_back();
  }
  Work& work = works_[number];
  work = {.job = std::move(job), .used = true};
  ++in_flight_;
  const std::uint64_t offset = work.job.offset;
  const std::uint32_t length = work.job.length;
  switch (work.job.kind) {
    case RelayJob::Kind::copy:
    case RelayJob::Kind::extents:
      read(number);
      break;
    case RelayJob::Kind::zero:
      write(number, Command::write_zeroes,
            work.job.may_trim ? std::uint16_t{0} : flag_no_hole, offset, length,
            0, {});
      break;
    case RelayJob::Kind::flush:
      write(number, Command::flush, 0, 0, 0, 0, {});
  }
}

// A request to the source.
void RelayPair::read(std::size_t number) {
  Work& work = works_[number];
  const Command command = work.job.kind == RelayJob::Kind::extents
                              ? Command::block_status
                              : Command::read;
  const std::uint64_t cookie =
      replies_.begin(command, work.job.offset, work.job.length);
  const std::size_t slot = ReplyParser::slot(cookie);
  if (slot >= reader_.size()) reader_.resize(slot + 1);
  reader_[slot] = number;
  work.reading = true;
  std::array<char, request_bytes> head;
  encode({.command = command,
          .cookie = cookie,
          .offset = work.job.offset,
          .length = work.job.length},
         head);
  requests_.append(head.data(), head.size());
}

// A request to the destination.
void RelayPair::write(std::size_t number, Command command, std::uint16_t flags,
                      std::uint64_t offset, std::uint32_t length,
                      std::size_t from_pipe,
                      std::span<const char> from_memory) {
  const std::uint64_t cookie = answers_.begin(command, offset, length);
  const std::size_t slot = ReplyParser::slot(cookie);
  if (slot >= writer_.size()) writer_.resize(slot + 1);
  writer_[slot] = number;
  ++works_[number].unsent;
  ++works_[number].unanswered;
  Outgoing& out = outgoing_.emplace_back();
  out.work = number;
  encode({.command = command,
          .flags = flags,
          .cookie = cookie,
          .offset = offset,
          .length = length},
         out.head);
  out.from_pipe = from_pipe;
  out.from_memory = from_memory;
}

// Ends a job, if nothing is under way for it.
void RelayPair::settle(std::size_t number) {
  Work& work = works_[number];
  if (work.reading || work.unsent != 0 || work.unanswered != 0) return;
  if (work.error == 0 && work.unaligned && !work.in_memory) {
    // Only now: a server may carry out writes that overlap in any order.
    work.in_memory = true;
    work.memory.assign(work.job.length, 0);
    return read(number);
  }
  Work ended = std::exchange(work, {});
  free_.push_back(number);
  --in_flight_;
  end(ended.job, ended.error, ended.side, std::move(ended.found));
}

void RelayPair::end(RelayJob& job, int error, Side side,
                    std::vector<Extent> found) {
  if (job.found)
    job.found(error, std::move(found));
  else
    job.done(error, side);
}

void RelayPair::give_up(int error, const std::string& why) {
  error_ = cancelled_ ? ECANCELED : error;
  // In the middle of a request, a good-bye would be taken for its data.
  source_.broken();
  destination_.broken();
  {
    const std::scoped_lock guard(mutex_);
    if (failure_.empty()) failure_ = why;
  }
  outgoing_.clear();
  std::deque<Work> works = std::exchange(works_, {});
  free_.clear();
  in_flight_ = 0;
  for (Work& work : works)
    if (work.used) end(work.job, error_, side_, {});
}

// -------------------------------------------------------------------- source

bool RelayPair::ask() {
  if (requests_.empty()) return false;
  const auto n = moved(send(source_.socket(), requests_.data(),
                            requests_.size(), MSG_DONTWAIT | MSG_NOSIGNAL),
                       "sending to the NBD server");
  if (n) requests_.erase(0, *n);
  return n.has_value();
}

bool RelayPair::take_replies() {
  if (replies_.in_flight() == 0) return false;
  bool any = false;
  if (replies_.payload_left() == 0) {
    const std::size_t wanted = std::min(replies_.wanted(), heads_.size());
    const auto n = received(
        recv(source_.socket(), heads_.data(), wanted, MSG_DONTWAIT));
    if (!n) return false;
    any = true;
    // Since no more than "wanted" was received, no payload is in it.
    for (std::span<const char> rest(heads_.data(), *n); !rest.empty();) {
      rest = rest.subspan(replies_.feed(rest));
      source_events();
    }
  }
  if (replies_.payload_left() != 0) any |= take_payload();
  return any;
}

bool RelayPair::take_payload() {
  const int from = source_.socket();
  const std::size_t left = replies_.payload_left();
  std::optional<std::size_t> n;
  switch (sink_) {
    case Sink::pipe:
      n = received(splice(from, nullptr, pipe_.in.get(), nullptr, left,
                          SPLICE_F_NONBLOCK | SPLICE_F_MOVE));
      break;
    case Sink::memory:
      n = received(recv(from, memory_, left, MSG_DONTWAIT));
      break;
    case Sink::nowhere:
      scratch_.resize(scratch_bytes);
      n = received(recv(from, scratch_.data(), std::min(left, scratch_.size()),
                        MSG_DONTWAIT));
  }
  if (!n) return false;
  if (sink_ == Sink::pipe) in_pipe_ += *n;
  if (sink_ == Sink::memory) memory_ += *n;
  replies_.moved(static_cast<std::uint32_t>(*n));
  source_events();
  return true;
}

void RelayPair::source_events() {
  while (const std::optional<Event> event = replies_.next()) {
    const std::size_t number = reader_[ReplyParser::slot(event->cookie)];
    Work& work = works_[number];
    switch (event->kind) {
      case Event::Kind::payload:
        payload(number, *event);
        break;
      case Event::Kind::hole:
        hole(number, *event);
        break;
      case Event::Kind::status:
        work.found =
            extents_of(replies_.status(), work.job.offset, work.job.length);
        break;
      case Event::Kind::finished:
        read_ended(number, event->error);
    }
  }
}

bool RelayPair::aligned(std::uint64_t offset,
                        std::uint64_t length) const noexcept {
  const std::uint32_t block = destination_.traits().minimum;
  return offset % block == 0 && length % block == 0;
}

void RelayPair::payload(std::size_t number, const Event& event) {
  Work& work = works_[number];
  if (work.in_memory) {
    sink_ = Sink::memory;
    memory_ = work.memory.data() + (event.offset - work.job.offset);
  } else if (aligned(event.offset, event.length)) {
    sink_ = Sink::pipe;
    write(number, Command::write, 0, event.offset, event.length, event.length,
          {});
  } else {
    sink_ = Sink::nowhere;
    work.unaligned = true;
  }
}

void RelayPair::hole(std::size_t number, const Event& event) {
  Work& work = works_[number];
  // That memory is zeros.
  if (work.in_memory || options_.destination_is_zero) return;
  if (!aligned(event.offset, event.length)) {
    work.unaligned = true;
  } else if (destination_.traits().can_zero) {
    write(number, Command::write_zeroes,
          options_.allocated ? flag_no_hole : std::uint16_t{0}, event.offset,
          event.length, 0, {});
  } else {
    work.memory.resize(work.job.length);
    write(number, Command::write, 0, event.offset, event.length, 0,
          std::span(work.memory).first(event.length));
  }
}

void RelayPair::read_ended(std::size_t number, int error) {
  Work& work = works_[number];
  work.reading = false;
  if (error != 0 && work.error == 0) {
    work.error = error;
    work.side = Side::source;
  }
  if (work.in_memory && work.error == 0)
    write(number, Command::write, 0, work.job.offset, work.job.length, 0,
          work.memory);
  settle(number);
}

// --------------------------------------------------------------- destination

bool RelayPair::forward() {
  const int to = destination_.socket();
  constexpr const char* what = "sending to the NBD server";
  bool any = false;
  while (!outgoing_.empty()) {
    Outgoing& out = outgoing_.front();
    std::optional<std::size_t> n;
    if (out.head_sent != out.head.size()) {
      // With its payload it makes one packet.
      const bool more = out.from_pipe != 0 || !out.from_memory.empty();
      n = moved(send(to, out.head.data() + out.head_sent,
                     out.head.size() - out.head_sent,
                     MSG_DONTWAIT | MSG_NOSIGNAL | (more ? MSG_MORE : 0)),
                what);
      out.head_sent += n.value_or(0);
    } else if (out.from_pipe != 0 && in_pipe_ != 0) {
      const std::size_t here = std::min(out.from_pipe, in_pipe_);
      const unsigned more = here < out.from_pipe ? SPLICE_F_MORE : 0;
      n = moved(splice(pipe_.out.get(), nullptr, to, nullptr, here,
                       SPLICE_F_NONBLOCK | SPLICE_F_MOVE | more),
                what);
      out.from_pipe -= n.value_or(0);
      in_pipe_ -= n.value_or(0);
    } else if (!out.from_memory.empty()) {
      n = moved(send(to, out.from_memory.data(), out.from_memory.size(),
                     MSG_DONTWAIT | MSG_NOSIGNAL),
                what);
      out.from_memory = out.from_memory.subspan(n.value_or(0));
    }
    if (!n) return any;
    any = true;
    if (out.head_sent != out.head.size() || out.from_pipe != 0 ||
        !out.from_memory.empty())
      continue;
    const std::size_t number = out.work;
    outgoing_.pop_front();
    --works_[number].unsent;
    settle(number);  // a server may answer before it has got all
  }
  return any;
}

bool RelayPair::take_answers() {
  if (answers_.in_flight() == 0) return false;
  const auto n = received(recv(destination_.socket(), answer_bytes_.data(),
                               answer_bytes_.size(), MSG_DONTWAIT));
  if (!n) return false;
  for (std::span<const char> rest(answer_bytes_.data(), *n); !rest.empty();) {
    rest = rest.subspan(answers_.feed(rest));
    while (const std::optional<Event> event = answers_.next()) {
      // There is no other: nothing is read from this side.
      const std::size_t number = writer_[ReplyParser::slot(event->cookie)];
      Work& work = works_[number];
      --work.unanswered;
      if (event->error != 0 && work.error == 0) {
        work.error = event->error;
        work.side = Side::destination;
      }
      settle(number);
    }
  }
  return true;
}

}  // namespace nbdrados::copy::nbd
