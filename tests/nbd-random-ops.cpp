// SPDX-License-Identifier: BSD-3-Clause
//
// Sends random requests to an NBD server and compares every answer with a
// plain file, the model.
//
// Work is done by workers (threads).  Each owns a part of the image, cut at
// odd bytes so that neighbours share blocks and objects, and has connections
// of its own.  A worker sends batches of requests that do not overlap, spread
// over its connections, waits for all of them, and brings the model up to
// date.  So requests in flight often touch the same block without touching
// the same byte: a server that reads, modifies and writes blocks without a
// lock is caught.
//
// What is required of the server:
//   - a read gives the model's bytes;
//   - an acknowledged write is seen at once on every connection (NBD asks
//     for that only after a flush where NBD_FLAG_CAN_MULTI_CONN is set:
//     --flush-first relaxes to that, and with several URIs, which may be of
//     several servers, to a flush on every connection);
//   - write zeroes gives zeros, with every combination of flags; where
//     FAST_ZERO is refused with ENOTSUP nothing has changed;
//   - after a trim each byte is the old one or zero; the model learns which;
//   - block status is ascending and adjacent, covers the first byte, stops
//     after one with REQ_ONE, never goes on after the end of the request, and
//     never says hole or zero for a byte that is not zero.
//
// At the end the whole region is compared.  On a mismatch it prints the
// seed, the last requests, and the last ones that touched the wrong byte, and
// ends with status 1.  Status 2 is a wrong use or a server that cannot be
// reached.

#include <fcntl.h>
#include <getopt.h>
#include <libnbd.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

using u64 = std::uint64_t;

struct Options {
  std::vector<std::string> uris;
  std::string model;
  std::string stop_file;
  std::vector<u64> boundaries{4096, 65536, 4194304};
  u64 seed = 0;
  u64 ops = 10000;  // of all workers together
  u64 max_length = 4 << 20;
  u64 threads = 1;
  u64 connections = 1;  // of each worker
  u64 batch = 1;
  u64 reconnect = 0;  // batches between new connections, 0: never
  u64 seconds = 0;    // 0: no limit
  u64 region_offset = 0;
  u64 region_length = 0;  // 0: to the end
  bool adopt = false;
  bool flush_first = false;
  bool allocated = false;
  bool structured = true;
};

/// A wrong answer of the server, as opposed to a wrong use of this program.
class Mismatch : public std::runtime_error {
 public:
  Mismatch(u64 where, const std::string& what)
      : std::runtime_error(what), where_(where) {}
  [[nodiscard]] u64 where() const noexcept { return where_; }

 private:
  u64 where_;
};

/// splitmix64 (Steele, Lea, Flood 2014): small, and the same everywhere.
class Random {
 public:
  explicit Random(u64 seed) : state_(seed) {}
  u64 next() {
    u64 z = (state_ += 0x9e3779b97f4a7c15U);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
  }
  /// In [0, n); 0 for n = 0.
  u64 below(u64 n) { return n == 0 ? 0 : next() % n; }
  /// In [low, high].
  u64 between(u64 low, u64 high) { return low + below(high - low + 1); }
  bool percent(unsigned n) { return below(100) < n; }
  void fill(char* to, u64 size) {
    u64 i = 0;
    for (; i + 8 <= size; i += 8) {
      const u64 value = next();
      std::memcpy(to + i, &value, 8);
    }
    for (; i < size; i++) to[i] = static_cast<char>(next());
  }

 private:
  u64 state_;
};

class Connection {
 public:
  Connection(const std::string& uri, bool structured) : h_(nbd_create()) {
    if (h_ == nullptr) throw std::runtime_error(nbd_get_error());
    nbd_set_uri_allow_local_file(h_.get(), true);
    if (!structured) nbd_set_request_structured_replies(h_.get(), false);
    if (nbd_add_meta_context(h_.get(), LIBNBD_CONTEXT_BASE_ALLOCATION) == -1 ||
        nbd_connect_uri(h_.get(), uri.c_str()) == -1)
      throw std::runtime_error(uri + ": " + nbd_get_error());
  }
  [[nodiscard]] nbd_handle* get() const noexcept { return h_.get(); }
  /// Says goodbye; without it the server sees a broken connection.
  void shutdown() { nbd_shutdown(h_.get(), 0); }

 private:
  struct Close {
    void operator()(nbd_handle* h) const noexcept { nbd_close(h); }
  };
  std::unique_ptr<nbd_handle, Close> h_;
};

/// The model: a file, mapped.  Workers touch only their own parts.
class Model {
 public:
  Model(const std::string& path, u64 size) : size_(size) {
    const int fd = path.empty() ? memfd_create("model", MFD_CLOEXEC)
                                : open(path.c_str(), O_RDWR | O_CREAT, 0666);
    if (fd == -1) throw std::runtime_error(path + ": " + std::strerror(errno));
    struct stat st {};
    const bool ok = fstat(fd, &st) == 0 &&
                    (static_cast<u64>(st.st_size) == size ||
                     ftruncate(fd, static_cast<off_t>(size)) == 0);
    void* map = MAP_FAILED;
    if (ok && size > 0)
      map = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (size > 0 && map == MAP_FAILED)
      throw std::runtime_error("cannot map the model " + path);
    if (size > 0) data_ = static_cast<char*>(map);
  }
  ~Model() {
    if (data_ != nullptr) munmap(data_, size_);
  }
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;
  [[nodiscard]] char* at(u64 offset) const noexcept { return data_ + offset; }

 private:
  u64 size_;
  char* data_ = nullptr;
};

enum class Kind { read, write, zero, trim, cache, flush, status };
constexpr const char* kind_names[] = {"read",  "write", "zero",  "trim",
                                      "cache", "flush", "status"};
constexpr std::size_t kind_count = std::size(kind_names);

struct Extent {
  u64 length;
  std::uint32_t state;
};

/// A request in flight, and then its answer.
struct Op {
  Kind kind = Kind::read;
  u64 offset = 0;
  u64 length = 0;
  std::uint32_t flags = 0;
  std::size_t connection = 0;
  std::vector<char> data{};
  std::vector<Extent> extents{};
  bool status_answered = false;
  bool done = false;
  int error = 0;

  [[nodiscard]] u64 end() const noexcept { return offset + length; }
  [[nodiscard]] std::string describe() const {
    char text[160];
    std::snprintf(text, sizeof text,
                  "%-6s offset %" PRIu64 " length %" PRIu64 "%s%s%s%s%s%s",
                  kind_names[static_cast<std::size_t>(kind)], offset, length,
                  flags & LIBNBD_CMD_FLAG_FUA ? " fua" : "",
                  kind == Kind::zero && flags & LIBNBD_CMD_FLAG_NO_HOLE
                      ? " no-hole"
                      : "",
                  flags & LIBNBD_CMD_FLAG_FAST_ZERO ? " fast-zero" : "",
                  flags & LIBNBD_CMD_FLAG_REQ_ONE ? " req-one" : "",
                  error != 0 ? " error " : "",
                  error != 0 ? std::strerror(error) : "");
    return text;
  }
};

int completed(void* user, int* error) {
  auto* op = static_cast<Op*>(user);
  op->error = *error;
  op->done = true;
  return 1;  // the command needs no retiring
}

int got_extents(void* user, const char* context, u64 /*offset*/,
                std::uint32_t* entries, std::size_t count, int* /*error*/) {
  auto* op = static_cast<Op*>(user);
  if (std::strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0) return 0;
  op->status_answered = true;
  for (std::size_t i = 0; i + 1 < count; i += 2)
    op->extents.push_back({entries[i], entries[i + 1]});
  return 0;
}

/// What the server can do, asked once on the first connection.
struct Abilities {
  u64 size = 0;
  u64 minimum = 1;
  u64 maximum = 32 << 20;
  bool writable = false, fua = false, flush = false, zero = false,
       fast_zero = false, trim = false, cache = false, status = false;

  explicit Abilities(nbd_handle* h) {
    const auto need = [](std::int64_t value) {
      if (value == -1) throw std::runtime_error(nbd_get_error());
      return static_cast<u64>(value);
    };
    size = need(nbd_get_size(h));
    minimum = std::max<u64>(1, need(nbd_get_block_size(h, LIBNBD_SIZE_MINIMUM)));
    const u64 most = need(nbd_get_block_size(h, LIBNBD_SIZE_MAXIMUM));
    if (most != 0) maximum = std::min<u64>(most, maximum);
    writable = nbd_is_read_only(h) == 0;
    fua = nbd_can_fua(h) == 1;
    flush = nbd_can_flush(h) == 1;
    zero = nbd_can_zero(h) == 1;
    fast_zero = nbd_can_fast_zero(h) == 1;
    trim = nbd_can_trim(h) == 1;
    cache = nbd_can_cache(h) == 1;
    status = nbd_can_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
  }
};

struct Statistics {
  u64 count[kind_count] = {};
  u64 fast_zero_refused = 0, hole_bytes = 0, data_bytes = 0,
      trimmed_bytes = 0, written_bytes = 0, read_bytes = 0;

  void add(const Statistics& other) {
    for (std::size_t i = 0; i < kind_count; i++) count[i] += other.count[i];
    fast_zero_refused += other.fast_zero_refused;
    hole_bytes += other.hole_bytes;
    data_bytes += other.data_bytes;
    trimmed_bytes += other.trimmed_bytes;
    written_bytes += other.written_bytes;
    read_bytes += other.read_bytes;
  }
};

std::atomic<bool> give_up{false};
std::mutex report_lock;  // guards stderr

class Worker {
 public:
  Worker(const Options& options, const Abilities& able, Model& model,
         std::size_t number, u64 begin, u64 end)
      : options_(options),
        able_(able),
        model_(model),
        number_(number),
        begin_(begin),
        end_(end),
        random_(options.seed * 1000003 + number) {
    for (std::size_t i = 0; i < options.connections; i++)
      connections_.push_back(connect());
  }

  /// True when every answer was right.
  bool run(u64 ops) {
    const auto start = std::chrono::steady_clock::now();
    u64 sent = 0, batches = 0;
    try {
      while (sent < ops && !give_up) {
        if (options_.seconds != 0 && std::chrono::steady_clock::now() - start >
                                         std::chrono::seconds(options_.seconds))
          break;
        if (!options_.stop_file.empty() &&
            access(options_.stop_file.c_str(), F_OK) == 0)
          break;
        if (options_.reconnect != 0 && ++batches % options_.reconnect == 0)
          reconnect();
        sent += do_batch();
      }
      for (auto& connection : connections_) connection->shutdown();
      return true;
    } catch (const Mismatch& e) {
      give_up = true;
      report(e.what(), e.where());
    } catch (const std::exception& e) {
      give_up = true;
      report(e.what(), std::nullopt);
    }
    return false;
  }

  [[nodiscard]] const Statistics& statistics() const noexcept {
    return statistics_;
  }

 private:
  std::unique_ptr<Connection> connect() {
    return std::make_unique<Connection>(
        options_.uris[next_uri_++ % options_.uris.size()],
        options_.structured);
  }

  void reconnect() {
    auto& connection = connections_[random_.below(connections_.size())];
    if (random_.percent(80)) connection->shutdown();
    connection = connect();
  }

  Kind choose_kind() {
    const u64 dice = random_.below(100);
    const bool write = able_.writable;
    if (dice < 30) return Kind::read;
    if (dice < 58) return write ? Kind::write : Kind::read;
    if (dice < 73) return write && able_.zero ? Kind::zero : Kind::read;
    if (dice < 81) return write && able_.trim ? Kind::trim : Kind::read;
    if (dice < 84) return able_.cache ? Kind::cache : Kind::read;
    if (dice < 87) return able_.flush ? Kind::flush : Kind::read;
    return able_.status ? Kind::status : Kind::read;
  }

  u64 near(u64 value) {
    static constexpr u64 deltas[] = {0, 0, 0, 1, 2, 3, 7, 511, 512, 4095};
    const u64 delta = deltas[random_.below(std::size(deltas))];
    return random_.percent(50) ? value + delta
                               : value - std::min(value, delta);
  }

  u64 boundary() {
    return options_.boundaries[random_.below(options_.boundaries.size())];
  }

  void choose_range(Op& op) {
    const u64 span = end_ - begin_;
    const u64 most = std::min({options_.max_length, able_.maximum, span});
    u64 offset = begin_ + random_.below(span);
    if (random_.percent(50)) {
      const u64 b = boundary();
      offset = near(offset / b * b);
    } else if (last_end_ != 0 && random_.percent(30)) {
      offset = last_end_;
    }
    offset = std::clamp(offset, begin_, end_ - 1);

    u64 length = 1;
    switch (random_.below(6)) {
      case 0:
        length = random_.between(1, 16);
        break;
      case 1:
        length = near(boundary() * random_.between(1, 3));
        break;
      case 2: {  // up to a boundary, or about there
        const u64 b = boundary();
        length = near(b - offset % b);
        break;
      }
      case 3:
        length = 4096;
        break;
      default: {  // every power of two is as likely as the next
        const u64 bits = 64 - static_cast<u64>(__builtin_clzll(most));
        length = random_.between(1, u64{1} << random_.below(bits + 1));
        break;
      }
    }
    length = std::clamp<u64>(length, 1, std::min(most, end_ - offset));
    if (able_.minimum > 1) {
      const u64 m = able_.minimum;
      const u64 stop = std::min(end_ / m * m, (offset + length + m - 1) / m * m);
      offset = std::min(offset / m * m, stop - m);
      length = stop - offset;
    }
    op.offset = offset;
    op.length = length;
    last_end_ = offset + length;
  }

  void choose(Op& op) {
    op.kind = choose_kind();
    op.connection = random_.below(connections_.size());
    if (op.kind == Kind::flush) return;
    choose_range(op);
    const auto maybe = [&](bool can, std::uint32_t flag) {
      if (can && random_.percent(40)) op.flags |= flag;
    };
    switch (op.kind) {
      case Kind::read:
        op.data.resize(op.length, '\x5a');
        break;
      case Kind::write:
        maybe(able_.fua, LIBNBD_CMD_FLAG_FUA);
        op.data.resize(op.length);
        random_.fill(op.data.data(), op.length);
        if (random_.percent(20)) {  // zeros in the data: all, or a part
          const u64 from = random_.percent(50) ? 0 : random_.below(op.length);
          const u64 to = random_.percent(50)
                             ? op.length
                             : random_.between(from, op.length);
          std::memset(op.data.data() + from, 0, to - from);
        }
        break;
      case Kind::zero:
        maybe(able_.fua, LIBNBD_CMD_FLAG_FUA);
        maybe(true, LIBNBD_CMD_FLAG_NO_HOLE);
        maybe(able_.fast_zero, LIBNBD_CMD_FLAG_FAST_ZERO);
        break;
      case Kind::trim:
        maybe(able_.fua, LIBNBD_CMD_FLAG_FUA);
        break;
      case Kind::status:
        maybe(true, LIBNBD_CMD_FLAG_REQ_ONE);
        break;
      case Kind::cache:
      case Kind::flush:
        break;
    }
  }

  void send(Op& op) {
    nbd_handle* h = connections_[op.connection]->get();
    const nbd_completion_callback done{completed, &op, nullptr};
    std::int64_t cookie = -1;
    switch (op.kind) {
      case Kind::read:
        cookie = nbd_aio_pread(h, op.data.data(), op.length, op.offset, done, 0);
        break;
      case Kind::write:
        cookie = nbd_aio_pwrite(h, op.data.data(), op.length, op.offset, done,
                                op.flags);
        break;
      case Kind::zero:
        cookie = nbd_aio_zero(h, op.length, op.offset, done, op.flags);
        break;
      case Kind::trim:
        cookie = nbd_aio_trim(h, op.length, op.offset, done, op.flags);
        break;
      case Kind::cache:
        cookie = nbd_aio_cache(h, op.length, op.offset, done, 0);
        break;
      case Kind::flush:
        cookie = nbd_aio_flush(h, done, 0);
        break;
      case Kind::status:
        cookie = nbd_aio_block_status(h, op.length, op.offset,
                                      {got_extents, &op, nullptr}, done,
                                      op.flags);
        break;
    }
    if (cookie == -1)
      throw Mismatch(op.offset, op.describe() + ": " + nbd_get_error());
  }

  /// Drives all connections until every operation has its answer.
  void wait(std::deque<Op>& ops) {
    std::vector<pollfd> fds;
    while (!std::ranges::all_of(ops, [](const Op& op) { return op.done; })) {
      fds.clear();
      for (const auto& connection : connections_) {
        nbd_handle* h = connection->get();
        if (nbd_aio_is_dead(h) != 0 || nbd_aio_is_closed(h) != 0)
          throw std::runtime_error("the server closed the connection");
        const unsigned direction = nbd_aio_get_direction(h);
        short events = 0;
        if (direction & LIBNBD_AIO_DIRECTION_READ) events |= POLLIN;
        if (direction & LIBNBD_AIO_DIRECTION_WRITE) events |= POLLOUT;
        fds.push_back({nbd_aio_get_fd(h), events, 0});
      }
      if (poll(fds.data(), fds.size(), 120000) == 0)
        throw std::runtime_error("no answer for 120 seconds");
      for (std::size_t i = 0; i < fds.size(); i++) {
        nbd_handle* h = connections_[i]->get();
        int r = 0;
        if (fds[i].revents & POLLIN)
          r = nbd_aio_notify_read(h);
        else if (fds[i].revents & POLLOUT)
          r = nbd_aio_notify_write(h);
        else if (fds[i].revents & (POLLHUP | POLLERR | POLLNVAL))
          throw std::runtime_error("the server broke the connection");
        if (r == -1) throw std::runtime_error(nbd_get_error());
      }
    }
  }

  u64 do_batch() {
    std::deque<Op> ops;  // a deque: addresses stay
    const u64 wanted = random_.between(1, options_.batch);
    for (u64 i = 0; i < wanted; i++) {
      Op& op = ops.emplace_back();
      choose(op);
      const bool overlaps =
          std::any_of(ops.begin(), ops.end() - 1, [&](const Op& other) {
            return op.offset < other.end() && other.offset < op.end();
          });
      if (overlaps) ops.pop_back();
    }
    const auto looks = [](const Op& op) {
      return op.kind != Kind::write && op.kind != Kind::flush;
    };
    if (options_.flush_first && std::ranges::any_of(ops, looks)) flush();
    for (Op& op : ops) send(op);
    wait(ops);
    for (const Op& op : ops) remember(op);
    for (const Op& op : ops) learn(op);
    if (options_.flush_first && std::ranges::any_of(ops, looks)) flush();
    // The model of a refused fast zero and of a trim is not known without
    // a look at what is there now.
    for (const Op& op : ops) {
      if (op.kind == Kind::zero && op.error != 0) check_unchanged(op);
      if (op.kind == Kind::zero && op.error == 0) check_allocated(op);
      if (op.kind == Kind::trim) learn_trim(op);
    }
    return ops.size();
  }

  void flush() {
    if (!able_.flush) return;
    // One connection is enough for a server, but not for several.
    std::deque<Op> ops(options_.uris.size() > 1 ? connections_.size() : 1);
    const std::size_t first = random_.below(connections_.size());
    for (std::size_t i = 0; i < ops.size(); i++) {
      ops[i].kind = Kind::flush;
      ops[i].connection = (first + i) % connections_.size();
      send(ops[i]);
    }
    wait(ops);
    for (const Op& op : ops)
      if (op.error != 0) throw std::runtime_error(op.describe());
  }

  Op read_back(const Op& op) {
    std::deque<Op> ops(1);
    ops[0].offset = op.offset;
    ops[0].length = op.length;
    ops[0].connection = random_.below(connections_.size());
    ops[0].data.resize(op.length, '\x5a');
    send(ops[0]);
    wait(ops);
    if (ops[0].error != 0) throw Mismatch(op.offset, ops[0].describe());
    return std::move(ops[0]);
  }

  /// Brings the model up to date, and checks what can be checked at once.
  void learn(const Op& op) {
    statistics_.count[static_cast<std::size_t>(op.kind)]++;
    if (op.error != 0) {
      if (op.kind == Kind::zero && (op.flags & LIBNBD_CMD_FLAG_FAST_ZERO) &&
          op.error == ENOTSUP) {
        statistics_.fast_zero_refused++;
        return;
      }
      throw Mismatch(op.offset, "the server answered: " + op.describe());
    }
    switch (op.kind) {
      case Kind::read:
        statistics_.read_bytes += op.length;
        compare(op, "read");
        break;
      case Kind::write:
        statistics_.written_bytes += op.length;
        std::memcpy(model_.at(op.offset), op.data.data(), op.length);
        break;
      case Kind::zero:
        std::memset(model_.at(op.offset), 0, op.length);
        break;
      case Kind::status:
        check_extents(op);
        break;
      case Kind::trim:
      case Kind::cache:
      case Kind::flush:
        break;
    }
  }

  void compare(const Op& op, const char* what) {
    const char* model = model_.at(op.offset);
    if (std::memcmp(op.data.data(), model, op.length) == 0) return;
    u64 first = 0, wrong = 0;
    for (u64 i = op.length; i-- > 0;)
      if (op.data[i] != model[i]) {
        first = i;
        wrong++;
      }
    char text[256];
    std::snprintf(text, sizeof text,
                  "%s: byte %" PRIu64 " is 0x%02x, wanted 0x%02x (%" PRIu64
                  " of %" PRIu64 " bytes from %" PRIu64 " are wrong)",
                  what, op.offset + first,
                  static_cast<unsigned char>(op.data[first]),
                  static_cast<unsigned char>(model[first]), wrong, op.length,
                  op.offset);
    throw Mismatch(op.offset + first, text);
  }

  void check_unchanged(const Op& op) {
    compare(read_back(op), "after a refused fast zero");
  }

  void check_allocated(const Op& op) {
    if (!options_.allocated || !able_.status ||
        !(op.flags & LIBNBD_CMD_FLAG_NO_HOLE))
      return;
    std::deque<Op> ops(1);
    ops[0].kind = Kind::status;
    ops[0].offset = op.offset;
    ops[0].length = op.length;
    send(ops[0]);
    wait(ops);
    learn(ops[0]);
    u64 at = op.offset;
    for (const Extent& extent : ops[0].extents) {
      if (at < op.end() && (extent.state & LIBNBD_STATE_HOLE))
        throw Mismatch(at, "a hole after write zeroes with NO_HOLE");
      at += extent.length;
    }
  }

  void learn_trim(const Op& op) {
    const Op now = read_back(op);
    char* model = model_.at(op.offset);
    for (u64 i = 0; i < op.length; i++) {
      if (now.data[i] == model[i]) continue;
      if (now.data[i] != 0)
        throw Mismatch(op.offset + i,
                       "after trim: byte " + std::to_string(op.offset + i) +
                           " is neither the old one nor zero");
      model[i] = 0;
      statistics_.trimmed_bytes++;
    }
  }

  void check_extents(const Op& op) {
    const auto bad = [&](u64 where, const char* what) {
      std::string list;
      for (const Extent& extent : op.extents)
        list += " " + std::to_string(extent.length) + ":" +
                std::to_string(extent.state);
      throw Mismatch(where, std::string("block status: ") + what + ": " +
                                op.describe() + ", extents (length:state)" +
                                list);
    };
    if (!op.status_answered || op.extents.empty()) bad(op.offset, "no extent");
    const bool one = (op.flags & LIBNBD_CMD_FLAG_REQ_ONE) != 0;
    if (one && op.extents.size() != 1) bad(op.offset, "more than one extent");
    u64 at = op.offset;
    const Extent* previous = nullptr;
    for (const Extent& extent : op.extents) {
      if (extent.length == 0) bad(at, "an empty extent");
      if (at >= op.end()) bad(at, "an extent after the end of the request");
      if (previous != nullptr && previous->state == extent.state)
        bad(at, "two neighbours of the same type");
      if (one && extent.length > op.length) bad(at, "longer than asked for");
      if (extent.length > able_.size - at) bad(at, "longer than the image");
      const u64 end = std::min(at + extent.length, op.end());
      if (extent.state & (LIBNBD_STATE_HOLE | LIBNBD_STATE_ZERO)) {
        statistics_.hole_bytes += end - at;
        for (u64 i = at; i < end; i++)
          if (*model_.at(i) != 0) bad(i, "data is called a hole or zero");
      } else {
        statistics_.data_bytes += end - at;
      }
      previous = &extent;
      at += extent.length;
    }
  }

  void remember(const Op& op) {
    log_.push_back(op.describe() + " connection " +
                   std::to_string(op.connection));
    ranges_.emplace_back(op.offset, op.kind == Kind::flush ? 0 : op.length);
    if (log_.size() > 4096) {
      log_.pop_front();
      ranges_.pop_front();
      forgotten_++;
    }
  }

  void report(const std::string& what, std::optional<u64> where) {
    const std::scoped_lock guard(report_lock);
    std::fprintf(stderr,
                 "nbd-random-ops: FAILED: %s\n"
                 "nbd-random-ops: seed %" PRIu64 ", worker %zu (bytes %" PRIu64
                 " to %" PRIu64 "), last operations:\n",
                 what.c_str(), options_.seed, number_, begin_, end_);
    const std::size_t size = log_.size();
    for (std::size_t i = size - std::min<std::size_t>(size, 24); i < size; i++)
      std::fprintf(stderr, "  #%zu %s\n", forgotten_ + i, log_[i].c_str());
    if (!where) return;
    std::fprintf(stderr, "nbd-random-ops: the last that touched byte %" PRIu64
                 ":\n", *where);
    std::vector<std::size_t> touched;
    for (std::size_t i = size; i-- > 0 && touched.size() < 10;)
      if (ranges_[i].first <= *where &&
          *where - ranges_[i].first < ranges_[i].second)
        touched.push_back(i);
    for (std::size_t i = touched.size(); i-- > 0;)
      std::fprintf(stderr, "  #%zu %s\n", forgotten_ + touched[i],
                   log_[touched[i]].c_str());
  }

  const Options& options_;
  const Abilities& able_;
  Model& model_;
  std::size_t number_;
  u64 begin_, end_;
  Random random_;
  std::vector<std::unique_ptr<Connection>> connections_;
  std::size_t next_uri_ = 0;
  u64 last_end_ = 0;
  Statistics statistics_;
  std::deque<std::string> log_;
  std::deque<std::pair<u64, u64>> ranges_;  // offset, length; beside log_
  std::size_t forgotten_ = 0;               // entries dropped from log_
};

/// Reads the region piece by piece and hands each piece to `use`.
template <typename Use>
void read_region(const Connection& connection, u64 begin, u64 end, Use use) {
  std::vector<char> data(4 << 20);
  for (u64 at = begin; at < end;) {
    const u64 n = std::min<u64>(data.size(), end - at);
    if (nbd_pread(connection.get(), data.data(), n, at, 0) == -1)
      throw Mismatch(at, std::string("reading everything: ") + nbd_get_error());
    use(at, data.data(), n);
    at += n;
  }
}

u64 number(const char* name, std::string_view text) {
  u64 value = 0;
  const char* end = text.data() + text.size();
  auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error == std::errc{} && stop + 1 == end) {
    const char* units = "KMGT";
    const char* unit = std::strchr(units, *stop);
    if (unit != nullptr) {
      value <<= 10 * (unit - units + 1);
      stop++;
    }
  }
  if (error != std::errc{} || stop != end)
    throw std::runtime_error(std::string("--") + name + ": '" +
                             std::string(text) + "' is not a number");
  return value;
}

void usage(std::FILE* to) {
  std::fputs(
      "nbd-random-ops [OPTION...] URI [URI...]\n"
      "Connections are spread over the URIs, which must be one image.\n"
      "Numbers take a suffix K, M, G, T.\n"
      "  --seed N          default: $RANDOM_OPS_SEED, or from the clock\n"
      "  --ops N           requests of all threads together (10000)\n"
      "  --seconds N       stop earlier, after that time\n"
      "  --stop-file FILE  stop as soon as this file exists\n"
      "  --threads N       workers, each with a part of the image (1)\n"
      "  --connections N   of each worker (1)\n"
      "  --batch N         requests in flight of each worker, at most (1)\n"
      "  --reconnect N     replace a connection every N batches (never)\n"
      "  --boundaries A,B  sizes whose multiples deserve attention\n"
      "                    (4096,65536,4M)\n"
      "  --max-length N    of a request (4M)\n"
      "  --region OFF+LEN  stay inside this part of the image\n"
      "  --model FILE      keep the model here; what the file holds already\n"
      "                    is what the image should hold\n"
      "  --adopt           the model begins as what the image holds\n"
      "  --flush-first     flush before relying on what was written\n"
      "  --allocated       write zeroes with NO_HOLE must not leave a hole\n"
      "  --no-structured   no structured replies, so no block status\n",
      to);
}

Options parse(int argc, char** argv) {
  enum {
    seed = 256, ops, seconds, stop_file, threads, connections, batch, reconnect,
    boundaries, max_length, region, model, adopt, flush_first, allocated,
    no_structured, help
  };
  static const option long_options[] = {
      {"seed", 1, nullptr, seed},
      {"ops", 1, nullptr, ops},
      {"seconds", 1, nullptr, seconds},
      {"stop-file", 1, nullptr, stop_file},
      {"threads", 1, nullptr, threads},
      {"connections", 1, nullptr, connections},
      {"batch", 1, nullptr, batch},
      {"reconnect", 1, nullptr, reconnect},
      {"boundaries", 1, nullptr, boundaries},
      {"max-length", 1, nullptr, max_length},
      {"region", 1, nullptr, region},
      {"model", 1, nullptr, model},
      {"adopt", 0, nullptr, adopt},
      {"flush-first", 0, nullptr, flush_first},
      {"allocated", 0, nullptr, allocated},
      {"no-structured", 0, nullptr, no_structured},
      {"help", 0, nullptr, help},
      {nullptr, 0, nullptr, 0}};
  Options o;
  const char* from_environment = std::getenv("RANDOM_OPS_SEED");
  o.seed = from_environment != nullptr
               ? number("seed", from_environment)
               : static_cast<u64>(std::chrono::system_clock::now()
                                      .time_since_epoch()
                                      .count()) %
                     1000000007;
  for (int c; (c = getopt_long(argc, argv, "", long_options, nullptr)) != -1;) {
    switch (c) {
      case seed: o.seed = number("seed", optarg); break;
      case ops: o.ops = number("ops", optarg); break;
      case seconds: o.seconds = number("seconds", optarg); break;
      case stop_file: o.stop_file = optarg; break;
      case threads: o.threads = number("threads", optarg); break;
      case connections: o.connections = number("connections", optarg); break;
      case batch: o.batch = number("batch", optarg); break;
      case reconnect: o.reconnect = number("reconnect", optarg); break;
      case max_length: o.max_length = number("max-length", optarg); break;
      case model: o.model = optarg; break;
      case adopt: o.adopt = true; break;
      case flush_first: o.flush_first = true; break;
      case allocated: o.allocated = true; break;
      case no_structured: o.structured = false; break;
      case boundaries: {
        o.boundaries.clear();
        std::string_view rest = optarg;
        for (;;) {
          const auto comma = rest.find(',');
          o.boundaries.push_back(number("boundaries", rest.substr(0, comma)));
          if (comma == rest.npos) break;
          rest.remove_prefix(comma + 1);
        }
        break;
      }
      case region: {
        const std::string_view text = optarg;
        const auto plus = text.find('+');
        if (plus == text.npos)
          throw std::runtime_error("--region wants OFFSET+LENGTH");
        o.region_offset = number("region", text.substr(0, plus));
        o.region_length = number("region", text.substr(plus + 1));
        break;
      }
      case help: usage(stdout); std::exit(0);
      default: usage(stderr); std::exit(2);
    }
  }
  o.uris.assign(argv + optind, argv + argc);
  if (o.uris.empty() || o.threads == 0 || o.connections == 0 || o.batch == 0 ||
      o.max_length == 0 ||
      std::ranges::any_of(o.boundaries, [](u64 b) { return b == 0; })) {
    usage(stderr);
    std::exit(2);
  }
  return o;
}

int run(const Options& options) {
  std::fprintf(stderr, "nbd-random-ops: seed %" PRIu64 "\n", options.seed);
  std::vector<std::unique_ptr<Connection>> first;
  for (const std::string& uri : options.uris)
    first.push_back(std::make_unique<Connection>(uri, options.structured));
  const Abilities able(first[0]->get());
  const u64 begin = options.region_offset;
  const u64 end =
      options.region_length != 0 ? begin + options.region_length : able.size;
  if (end > able.size || begin >= end ||
      (end - begin) / options.threads < 4 * able.minimum)
    throw std::runtime_error("the region is empty, small, or not in the image");
  Model model(options.model, able.size);
  if (options.adopt)
    read_region(*first[0], begin, end, [&](u64 at, const char* data, u64 n) {
      std::memcpy(model.at(at), data, n);
    });

  std::vector<std::unique_ptr<Worker>> workers;
  const u64 part = (end - begin) / options.threads;
  u64 from = begin;
  for (u64 i = 0; i < options.threads; i++) {
    // Odd limits, so that neighbours share a block.
    u64 to = i + 1 == options.threads ? end : begin + (i + 1) * part + i % 2;
    if (i + 1 != options.threads) to = to / able.minimum * able.minimum;
    workers.push_back(
        std::make_unique<Worker>(options, able, model, i, from, to));
    from = to;
  }
  const auto start = std::chrono::steady_clock::now();
  std::atomic<bool> good{true};
  {
    std::vector<std::jthread> threads;
    for (auto& worker : workers)
      threads.emplace_back([&good, &options, w = worker.get()] {
        const u64 share = (options.ops + options.threads - 1) / options.threads;
        if (!w->run(share)) good = false;
      });
  }
  const std::chrono::duration<double> taken =
      std::chrono::steady_clock::now() - start;

  // Everything, on every server.
  for (std::size_t i = 0; good && i < first.size(); i++) {
    try {
      if (able.flush && nbd_flush(first[i]->get(), 0) == -1)
        throw Mismatch(0, std::string("flush: ") + nbd_get_error());
      read_region(*first[i], begin, end, [&](u64 at, const char* data, u64 n) {
        if (std::memcmp(data, model.at(at), n) == 0) return;
        u64 k = 0;
        while (data[k] == *model.at(at + k)) k++;
        throw Mismatch(at + k, "final comparison: byte " +
                                   std::to_string(at + k) + " is wrong in " +
                                   options.uris[i]);
      });
      first[i]->shutdown();
    } catch (const Mismatch& e) {
      std::fprintf(stderr, "nbd-random-ops: FAILED: %s\nseed %" PRIu64 "\n",
                   e.what(), options.seed);
      good = false;
    }
  }

  Statistics all;
  for (const auto& worker : workers) all.add(worker->statistics());
  std::printf("seconds=%.1f", taken.count());
  for (std::size_t i = 0; i < kind_count; i++)
    std::printf(" %s=%" PRIu64, kind_names[i], all.count[i]);
  std::printf(" fast_zero_refused=%" PRIu64 " hole_bytes=%" PRIu64
              " data_bytes=%" PRIu64 " trimmed_bytes=%" PRIu64
              " written_bytes=%" PRIu64 " read_bytes=%" PRIu64 "\n",
              all.fast_zero_refused, all.hole_bytes, all.data_bytes,
              all.trimmed_bytes, all.written_bytes, all.read_bytes);
  return good ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(parse(argc, argv));
  } catch (const Mismatch& e) {
    std::fprintf(stderr, "nbd-random-ops: FAILED: %s\n", e.what());
    return 1;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "nbd-random-ops: %s\n", e.what());
    return 2;
  }
}
