// SPDX-License-Identifier: BSD-3-Clause
//
// A load generator for NBD servers.  One thread keeps `depth` requests in
// flight over `connections` connections, with libnbd's nbd_aio_* calls and
// poll(2).  This program allocates nothing per request (libnbd itself
// allocates one small command structure).
//
// With --verify a written block holds a pattern made of its offset and the
// seed, and a read block is compared with it; this is for checking servers
// and not for measuring them.

#include <libnbd.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <system_error>
#include <vector>

#include "load-tools.hpp"

namespace nbdrados::bench {
namespace {

constexpr const char* usage_text =
    "usage: nbd-load --uri=URI [OPTION...]\n"
    "  --op=read|write|mix --pattern=random|sequential\n"
    "  --reads=PERCENT               of a mix, default 70\n"
    "  --block-size=BYTES --depth=N --connections=N  default 4k, 1, 1\n"
    "        depth is the number of requests in flight in all\n"
    "  --offset=BYTES --size=BYTES   the range; default the whole export\n"
    "  --stride=BYTES                from place to place, the block size\n"
    "  --seconds=S --count=REQUESTS --warmup=S --seed=N\n"
    "                                default 1, none, 0, 1\n"
    "  --no-structured-replies       as an old client\n"
    "  --prepare=read|write          go through the range once, first of all\n"
    "  --flush                       a flush request after the warm-up\n"
    "  --final-flush                 one more at the end, in what is measured\n"
    "  --verify                      write a pattern, compare reads with it\n"
    "        (of a mix, after the range was written with the same seed)\n"
    "  --gate                        wait on standard input\n";

struct Settings {
  std::string uri;
  std::uint64_t block_size, depth, connections, offset, size, stride, seed;
  std::uint64_t count;
  double seconds, warmup;
  std::string op, prepare;
  std::uint64_t reads;  // percent
  bool sequential, structured, flush, final_flush, verify, gate;

  explicit Settings(Options& options)
      : uri(options.required("uri")),
        block_size(options.size("block-size", 4096)),
        depth(options.size("depth", 1)),
        connections(options.size("connections", 1)),
        offset(options.size("offset", 0)),
        size(options.size("size", 0)),
        stride(options.size("stride", block_size)),
        seed(options.size("seed", 1)),
        count(options.size("count", 0)),
        seconds(options.seconds("seconds", count ? 0 : 1)),
        warmup(options.seconds("warmup", 0)),
        op(options.text("op", "read")),
        prepare(options.text("prepare", "")),
        reads(options.size("reads", 70)),
        sequential(options.choice("pattern", "random", "sequential")),
        structured(!options.flag("no-structured-replies")),
        flush(options.flag("flush")),
        final_flush(options.flag("final-flush")),
        verify(options.flag("verify")),
        gate(options.flag("gate")) {
    options.finish();
    if (op == "read" || op == "write")
      reads = op == "read" ? 100 : 0;
    else if (op != "mix")
      throw UsageError("--op= is read, write or mix");
    if (reads > 100) throw UsageError("--reads= is 0 to 100");
    if (!prepare.empty() && prepare != "read" && prepare != "write")
      throw UsageError("--prepare= is read or write");
    if (verify && prepare == "write")
      throw UsageError("--verify does not go with --prepare=write");
    if (block_size == 0 || block_size > (std::uint64_t{32} << 20))
      throw UsageError("--block-size= is 1 to 32M");
    if (verify && block_size % 8 != 0)
      throw UsageError("--verify needs a --block-size= that 8 divides");
    if (connections == 0 || connections > 64 || depth < connections ||
        depth > 4096)
      throw UsageError(
          "--connections= is 1 to 64, --depth= from that to 4096");
    if (stride < block_size)
      throw UsageError("--stride= is less than --block-size=");
    if (count == 0 && seconds <= 0)
      throw UsageError("--count= or --seconds= must bound the run");
  }
};

/// libnbd returns -1 and keeps the message.
void check(int64_t result) {
  if (result == -1) throw std::runtime_error(nbd_get_error());
}

struct CloseHandle {
  void operator()(nbd_handle* handle) const { nbd_close(handle); }
};
using Handle = std::unique_ptr<nbd_handle, CloseHandle>;

struct Connection;

/// One request that may be in flight, and its buffer.
struct Slot {
  Connection* connection = nullptr;
  std::unique_ptr<char[]> data;
  std::uint64_t offset = 0;
  bool write = false;
  Clock::time_point submitted;
};

struct Connection {
  std::vector<Slot> slots;
  std::vector<Slot*> free;  // never grows beyond what is reserved
  // What the completion callback adds to.
  Result* result = nullptr;
  int failed = 0;  // errno of a failed request
  Handle handle;   // last, so that it goes before the buffers do
};

/// Random numbers from 0 to 99.
class Percent {
 public:
  explicit Percent(std::uint64_t seed) : state_(seed) {}
  [[nodiscard]] std::uint64_t next() {
    state_ += 0x9e3779b97f4a7c15U;
    return mix(state_) % 100;
  }

 private:
  std::uint64_t state_;
};

std::uint64_t pattern_word(std::uint64_t offset, std::uint64_t seed) {
  return mix(offset * 0x9e3779b97f4a7c15U + seed);
}

class Load {
 public:
  explicit Load(const Settings& settings)
      : settings_(settings), places_(connect(settings)),
        kinds_(~settings.seed) {
    std::uint64_t word = settings.seed;
    for (std::uint64_t i = 0; i < settings.depth; ++i) {
      Slot slot;
      slot.data = std::make_unique<char[]>(settings.block_size);
      // The buffers of a mix are overwritten by what is read.
      for (std::uint64_t j = 0;
           settings.reads < 100 && j < settings.block_size; ++j)
        slot.data[j] = static_cast<char>(mix(++word));
      connections_[i % settings.connections].slots.push_back(
          std::move(slot));
    }
    for (Connection& connection : connections_) {
      for (Slot& slot : connection.slots) {
        slot.connection = &connection;
        connection.free.push_back(&slot);
      }
      poll_.push_back({nbd_aio_get_fd(connection.handle.get()), 0, 0});
    }
  }

  void flush() { check(nbd_flush(connections_[0].handle.get(), 0)); }

  /// Brings what is served, and any cache, into a known state: every byte
  /// of the range is read or written once, in order.
  void prepare(bool write) {
    constexpr std::uint64_t most = 256 << 10;
    const std::unique_ptr<char[]> data = std::make_unique<char[]>(most);
    std::uint64_t word = settings_.seed;
    for (std::uint64_t i = 0; i < most; ++i)
      data[i] = static_cast<char>(mix(++word));
    nbd_handle* handle = connections_[0].handle.get();
    for (std::uint64_t done = 0; done < range_; done += most) {
      const std::uint64_t size = std::min(most, range_ - done);
      const std::uint64_t offset = settings_.offset + done;
      check(write ? nbd_pwrite(handle, data.get(), size, offset, 0)
                  : nbd_pread(handle, data.get(), size, offset, 0));
    }
  }

  /// With `flush_at_end`, the time ends with the reply to a flush that follows the
  /// last reply.
  [[nodiscard]] Result run(const Bound& bound, bool flush_at_end) {
    Result result;
    writes_ = 0;
    for (Connection& connection : connections_) connection.result = &result;
    result.before = Usage::now();
    const Clock::time_point start = Clock::now();
    const Clock::time_point deadline =
        bound.duration == Clock::duration::max()
            ? Clock::time_point::max()
            : start + bound.duration;
    std::uint64_t submitted = 0;
    for (;;) {
      // Round robin over the connections, so that a sequential load is
      // spread over all of them.
      bool more = true;
      while (more) {
        more = false;
        for (Connection& connection : connections_) {
          if (connection.free.empty() ||
              (bound.operations != 0 && submitted >= bound.operations) ||
              Clock::now() >= deadline)
            continue;
          Slot* slot = connection.free.back();
          connection.free.pop_back();
          submit(*slot);
          ++submitted;
          more = true;
        }
      }
      if (result.operations == submitted) break;
      wait_and_notify();
    }
    if (flush_at_end) flush();
    result.elapsed_s =
        std::chrono::duration<double>(Clock::now() - start).count();
    result.after = Usage::now();
    return result;
  }

  /// The connections say goodbye in order, so that the server's threads
  /// end before this program does.
  void disconnect() {
    for (Connection& connection : connections_)
      check(nbd_shutdown(connection.handle.get(), 0));
  }

  /// Of the last run.
  [[nodiscard]] std::uint64_t writes() const { return writes_; }
  [[nodiscard]] std::uint64_t export_size() const { return export_size_; }
  [[nodiscard]] bool structured() const {
    return nbd_get_structured_replies_negotiated(
               connections_[0].handle.get()) == 1;
  }
  [[nodiscard]] bool multi_conn() const {
    return nbd_can_multi_conn(connections_[0].handle.get()) == 1;
  }

 private:
  Places connect(const Settings& settings) {
    // Slots and callbacks point at connections: no reallocation later.
    connections_.resize(settings.connections);
    for (Connection& connection : connections_) {
      connection.handle.reset(nbd_create());
      nbd_handle* handle = connection.handle.get();
      if (handle == nullptr) throw std::runtime_error(nbd_get_error());
      check(nbd_set_request_structured_replies(handle, settings.structured));
      // The client's own checks and the zeroing of buffers are not what
      // is measured.
      check(nbd_set_strict_mode(handle, 0));
      check(nbd_set_pread_initialize(handle, false));
      check(nbd_connect_uri(handle, settings.uri.c_str()));
    }
    const int64_t size = nbd_get_size(connections_[0].handle.get());
    check(size);
    export_size_ = static_cast<std::uint64_t>(size);
    if (settings.offset > export_size_)
      throw UsageError("--offset= is behind the end of the export");
    range_ = settings.size ? settings.size : export_size_ - settings.offset;
    if (range_ > export_size_ - settings.offset)
      throw UsageError("--size= is behind the end of the export");
    if (range_ < settings.stride)
      throw UsageError("the range is smaller than a block");
    return {settings.offset, range_, settings.stride, !settings.sequential,
            settings.seed};
  }

  void submit(Slot& slot) {
    nbd_handle* handle = slot.connection->handle.get();
    slot.offset = places_.next();
    slot.write = kinds_.next() >= settings_.reads;
    if (slot.write) ++writes_;
    const nbd_completion_callback callback{
        .callback = on_complete, .user_data = &slot, .free = nullptr};
    if (settings_.verify && slot.write) fill(slot);
    slot.submitted = Clock::now();
    if (slot.write)
      check(nbd_aio_pwrite(handle, slot.data.get(), settings_.block_size,
                           slot.offset, callback, 0));
    else
      check(nbd_aio_pread(handle, slot.data.get(), settings_.block_size,
                          slot.offset, callback, 0));
  }

  void wait_and_notify() {
    for (std::size_t i = 0; i < connections_.size(); ++i) {
      const unsigned direction =
          nbd_aio_get_direction(connections_[i].handle.get());
      poll_[i].events = static_cast<short>(
          ((direction & LIBNBD_AIO_DIRECTION_READ) ? POLLIN : 0) |
          ((direction & LIBNBD_AIO_DIRECTION_WRITE) ? POLLOUT : 0));
    }
    if (::poll(poll_.data(), poll_.size(), -1) == -1) {
      if (errno == EINTR) return;
      throw std::system_error(errno, std::generic_category(), "poll");
    }
    for (std::size_t i = 0; i < connections_.size(); ++i) {
      if (poll_[i].revents == 0) continue;
      Connection& connection = connections_[i];
      nbd_handle* handle = connection.handle.get();
      const unsigned direction = nbd_aio_get_direction(handle);
      // One of the two: the first may change what the state machine waits
      // for (libnbd: nbd_aio_notify_read(3), nbd_aio_get_direction(3)).
      if ((poll_[i].revents & (POLLIN | POLLHUP | POLLERR)) &&
          (direction & LIBNBD_AIO_DIRECTION_READ))
        check(nbd_aio_notify_read(handle));
      else if ((poll_[i].revents & POLLOUT) &&
               (direction & LIBNBD_AIO_DIRECTION_WRITE))
        check(nbd_aio_notify_write(handle));
      else if (poll_[i].revents & (POLLHUP | POLLERR | POLLNVAL))
        throw std::runtime_error("the server closed the connection");
      if (connection.failed != 0)
        throw std::system_error(
            connection.failed, std::generic_category(),
            settings_.op + " request");
      if (settings_.verify) compare(connection);
    }
  }

  /// Runs inside libnbd; must not call it again on this handle.
  static int on_complete(void* user, int* error) noexcept {
    auto* slot = static_cast<Slot*>(user);
    Connection& connection = *slot->connection;
    if (*error != 0) connection.failed = *error;
    connection.result->latency.add(Clock::now() - slot->submitted);
    ++connection.result->operations;
    connection.free.push_back(slot);
    return 1;  // the command is retired here and now
  }

  void fill(Slot& slot) const {
    for (std::uint64_t i = 0; i < settings_.block_size; i += 8) {
      const std::uint64_t word =
          pattern_word(slot.offset + i, settings_.seed);
      std::memcpy(slot.data.get() + i, &word, sizeof word);
    }
  }

  /// A free slot with a time of submission holds data that nobody has
  /// looked at yet.
  void compare(Connection& connection) const {
    for (Slot* slot : connection.free) {
      if (slot->submitted == Clock::time_point()) continue;
      slot->submitted = Clock::time_point();
      if (slot->write) continue;
      for (std::uint64_t i = 0; i < settings_.block_size; i += 8) {
        std::uint64_t word = 0;
        std::memcpy(&word, slot->data.get() + i, sizeof word);
        if (word != pattern_word(slot->offset + i, settings_.seed))
          throw std::runtime_error("wrong data at offset " +
                                   std::to_string(slot->offset + i));
      }
    }
  }

  const Settings& settings_;
  std::uint64_t export_size_ = 0;
  std::uint64_t range_ = 0;
  std::uint64_t writes_ = 0;
  std::vector<Connection> connections_;
  std::vector<pollfd> poll_;
  Places places_;
  Percent kinds_;  // of requests, the same sequence for every server
};

int run(int argc, char** argv) {
  Options options(argc, argv);
  if (options.flag("help")) {
    std::cout << usage_text;
    return EXIT_SUCCESS;
  }
  const Settings settings(options);
  const Gate gate(settings.gate);
  Load load(settings);
  if (!settings.prepare.empty()) load.prepare(settings.prepare == "write");
  if (settings.warmup > 0)
    static_cast<void>(load.run(bound_of(0, settings.warmup), false));
  if (settings.flush) load.flush();
  gate.before_measuring();
  const Result result =
      load.run(bound_of(settings.count, settings.seconds),
               settings.final_flush);
  Json json;
  json.add("program", std::string("nbd-load"))
      .add("op", settings.op)
      .add("writes", load.writes())
      .add("pattern",
           std::string(settings.sequential ? "sequential" : "random"))
      .add("depth", settings.depth)
      .add("connections", settings.connections)
      .add("structured_replies", load.structured())
      .add("multi_conn", load.multi_conn())
      .add("verified", settings.verify)
      .add("export_size", load.export_size())
      .add(result, settings.block_size);
  std::cout << json.line() << std::endl;
  gate.after_measuring();
  load.disconnect();
  return EXIT_SUCCESS;
}

}  // namespace
}  // namespace nbdrados::bench

int main(int argc, char** argv) {
  try {
    return nbdrados::bench::run(argc, argv);
  } catch (const nbdrados::bench::UsageError& error) {
    std::cerr << "nbd-load: " << error.what() << '\n'
              << nbdrados::bench::usage_text;
  } catch (const std::exception& error) {
    std::cerr << "nbd-load: " << error.what() << '\n';
  }
  return EXIT_FAILURE;
}
