// SPDX-License-Identifier: BSD-3-Clause
//
// Copies from one NBD server to another, for tests and measurements of
// common/copy/nbd.  See usage().

#include <getopt.h>

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "copy/nbd/relay.hpp"
#include "copy/nbd/uring_nbd_endpoint.hpp"
#include "rados/error.hpp"

using namespace nbdrados;
using namespace nbdrados::copy;
using namespace nbdrados::copy::nbd;

namespace {

struct Options {
  std::string engine = "relay";
  unsigned connections = 1;
  unsigned requests = 64;
  std::uint32_t request_size = 256 << 10;
  std::size_t pipe_size = 1 << 20;
  bool extents = true;
  bool destination_is_zero = false;
  bool flush = false;
  bool verbose = false;
  bool keep_going = false;
};

void usage(std::FILE* to) {
  std::fputs(
      "nbd-relay [OPTION...] SOURCE-URI DESTINATION-URI\n"
      "  --engine=relay         by splice(2) (default), or through memory:\n"
      "          uring|poll\n"
      "  --connections=N        to each side (1)\n"
      "  --requests=N           in flight (64)\n"
      "  --request-size=BYTES   (262144)\n"
      "  --pipe-size=BYTES      (1048576)\n"
      "  --no-extents           takes all for data\n"
      "  --destination-is-zero  writes no zeros\n"
      "  --flush                at the end\n"
      "  --keep-going           prints every error, and goes on\n"
      "  --verbose              says how it is done\n"
      "Exit status: 0, or 1 after \"nbd-relay: SIDE: ...\".\n",
      to);
}

/// The two sides, by whatever engine.
class Copier {
 public:
  virtual ~Copier() = default;
  virtual const Traits& source() = 0;
  virtual const Traits& destination() = 0;
  virtual void copy(std::uint64_t offset, std::uint32_t length,
                    RelayDone done) = 0;
  virtual void zero(std::uint64_t offset, std::uint64_t length,
                    RelayDone done) = 0;
  virtual void flush(RelayDone done) = 0;
  virtual void extents(std::uint64_t offset, std::uint64_t length,
                       RelayExtents done) = 0;
  virtual std::string failure() = 0;
  virtual std::string describe() = 0;
};

class BySplice : public Copier {
 public:
  BySplice(std::vector<Peer> s, std::vector<Peer> d, const Options& o)
      : relay_(std::move(s), std::move(d),
               {.pipe_bytes = o.pipe_size,
                .destination_is_zero = o.destination_is_zero}) {}
  const Traits& source() override { return relay_.source(); }
  const Traits& destination() override { return relay_.destination(); }
  void copy(std::uint64_t offset, std::uint32_t length,
            RelayDone done) override {
    relay_.copy(offset, length, std::move(done));
  }
  void zero(std::uint64_t offset, std::uint64_t length,
            RelayDone done) override {
    relay_.zero(offset, length, true, std::move(done));
  }
  void flush(RelayDone done) override { relay_.flush(std::move(done)); }
  void extents(std::uint64_t offset, std::uint64_t length,
               RelayExtents done) override {
    relay_.extents(offset, length, std::move(done));
  }
  std::string failure() override { return relay_.failure(); }
  std::string describe() override {
    return "splice, " + std::to_string(relay_.pairs()) + " connections";
  }

 private:
  Relay relay_;
};

class ThroughMemory : public Copier {
 public:
  ThroughMemory(std::vector<Peer> s, std::vector<Peer> d, const Options& o)
      : destination_(std::move(d), o.engine == "uring"),
        source_(std::move(s), o.engine == "uring") {}
  const Traits& source() override { return source_.traits(); }
  const Traits& destination() override { return destination_.traits(); }

  void copy(std::uint64_t offset, std::uint32_t length,
            RelayDone done) override {
    // Memory is used again: new memory costs a page fault for each page.
    auto memory = std::make_shared<Buffer>(*this, length);
    source_.read(offset, memory->bytes,
                 [this, offset, memory, done = std::move(done)](int error) {
                   if (error != 0) return done(error, Side::source);
                   destination_.write(offset, memory->bytes,
                                      [memory, done](int failed) {
                                        done(failed, Side::destination);
                                      });
                 });
  }
  void zero(std::uint64_t offset, std::uint64_t length,
            RelayDone done) override {
    destination_.zero(offset, length, true, [done](int error) {
      done(error, Side::destination);
    });
  }
  void flush(RelayDone done) override {
    destination_.flush([done](int error) { done(error, Side::destination); });
  }
  void extents(std::uint64_t offset, std::uint64_t length,
               RelayExtents done) override {
    source_.extents(offset, length, std::move(done));
  }
  std::string failure() override {
    const std::string why = source_.failure();
    return why.empty() ? destination_.failure() : why;
  }
  std::string describe() override {
    return std::string(source_.uses_uring() ? "io_uring" : "poll") + ", " +
           std::to_string(source_.connections()) + " and " +
           std::to_string(destination_.connections()) + " connections";
  }

 private:
  struct Buffer {
    Buffer(ThroughMemory& o, std::uint32_t length) : owner(o) {
      const std::scoped_lock guard(owner.mutex_);
      if (!owner.free_.empty()) {
        bytes.swap(owner.free_.back());
        owner.free_.pop_back();
      }
      bytes.resize(length);
    }
    ~Buffer() {
      const std::scoped_lock guard(owner.mutex_);
      owner.free_.push_back(std::move(bytes));
    }
    ThroughMemory& owner;
    std::vector<char> bytes;
  };

  std::mutex mutex_;
  std::vector<std::vector<char>> free_;
  // It ends after the source, whose replies make requests to it.
  UringNbdEndpoint destination_;
  UringNbdEndpoint source_;
};

/// How many requests are under way, and what has gone wrong.
class Flights {
 public:
  Flights(unsigned most, bool keep_going)
      : most_(most), keep_going_(keep_going) {}

  /// Waits for room.  False: do not start any more.
  bool start() {
    std::unique_lock lock(mutex_);
    ended_.wait(lock, [this] { return count_ < most_; });
    if (!error_.empty() && !keep_going_) return false;
    ++count_;
    return true;
  }
  void end(int error, Side side, const char* what, std::uint64_t offset,
           std::uint64_t length) {
    const std::scoped_lock guard(mutex_);
    if (error != 0) {
      const std::string line =
          std::string(side == Side::source ? "source" : "destination") + ": " +
          what + " at " + std::to_string(offset) + "+" +
          std::to_string(length) + ": " + std::strerror(error);
      if (error_.empty()) error_ = line;
      if (keep_going_) std::fprintf(stderr, "nbd-relay: %s\n", line.c_str());
    }
    --count_;
    // Not for each one: it would be a switch of threads a request.
    if (count_ <= most_ / 2) ended_.notify_all();
  }
  std::string finish() {
    std::unique_lock lock(mutex_);
    ended_.wait(lock, [this] { return count_ == 0; });
    return error_;
  }

 private:
  const unsigned most_;
  const bool keep_going_;
  std::mutex mutex_;
  std::condition_variable ended_;
  unsigned count_ = 0;
  std::string error_;
};

// Blocks that both sides take.
std::uint32_t piece_size(const Options& o, const Traits& s, const Traits& d) {
  const std::uint32_t most =
      std::min({o.request_size, s.maximum, d.maximum});
  const std::uint32_t block = std::max(s.minimum, d.minimum);
  return std::max(most / block * block, block);
}

bool copy_extent(Copier& copier, const Options& o, Flights& flights,
                 const Extent& extent) {
  if (extent.is_zero && o.destination_is_zero) return true;
  if (extent.is_zero && copier.destination().can_zero) {
    if (!flights.start()) return false;
    copier.zero(extent.offset, extent.length,
                [&flights, extent](int error, Side side) {
                  flights.end(error, side, "zero", extent.offset,
                              extent.length);
                });
    return true;
  }
  const std::uint32_t piece =
      piece_size(o, copier.source(), copier.destination());
  const std::uint64_t end = extent.offset + extent.length;
  for (std::uint64_t at = extent.offset; at < end;) {
    const auto n = static_cast<std::uint32_t>(
        std::min<std::uint64_t>(piece, end - at));
    if (!flights.start()) return false;
    copier.copy(at, n, [&flights, at, n](int error, Side side) {
      flights.end(error, side, side == Side::source ? "read" : "write", at, n);
    });
    at += n;
  }
  return true;
}

std::string copy_all(Copier& copier, const Options& o) {
  Flights flights(o.requests, o.keep_going);
  const std::uint64_t size = copier.source().size;
  bool going = true;
  for (std::uint64_t at = 0; at < size && going;) {
    std::promise<std::pair<int, std::vector<Extent>>> asked;
    if (o.extents)
      copier.extents(at, size - at,
                     [&](int error, std::vector<Extent> found) {
                       asked.set_value({error, std::move(found)});
                     });
    else
      asked.set_value({0, {{at, size - at, false, false}}});
    const auto [error, found] = asked.get_future().get();
    if (error != 0) {
      if (!flights.start()) break;
      flights.end(error, Side::source, "extents", at, size - at);
      break;
    }
    for (const Extent& extent : found) {
      going = going && copy_extent(copier, o, flights, extent);
      at = extent.offset + extent.length;
    }
  }
  std::string error = flights.finish();
  if (error.empty() && o.flush && flights.start()) {
    copier.flush([&](int failed, Side side) {
      flights.end(failed, side, "flush", 0, 0);
    });
    error = flights.finish();
  }
  const std::string why = copier.failure();
  return why.empty() ? error : error + " (" + why + ")";
}

std::unique_ptr<Copier> make(const Options& o, const char* source,
                             const char* destination) {
  auto s = connect(source, o.connections);
  auto d = connect(destination, o.connections);
  if (s.front().traits().size > d.front().traits().size)
    throw Error(ENOSPC, "the destination is smaller");
  if (!d.front().traits().writable)
    throw Error(EROFS, "the destination is read-only");
  if (o.engine == "relay")
    return std::make_unique<BySplice>(std::move(s), std::move(d), o);
  return std::make_unique<ThroughMemory>(std::move(s), std::move(d), o);
}

Options parse(int argc, char** argv) {
  Options o;
  const option longs[] = {{"engine", 1, nullptr, 'e'},
                          {"connections", 1, nullptr, 'c'},
                          {"requests", 1, nullptr, 'r'},
                          {"request-size", 1, nullptr, 's'},
                          {"pipe-size", 1, nullptr, 'p'},
                          {"no-extents", 0, nullptr, 'n'},
                          {"destination-is-zero", 0, nullptr, 'z'},
                          {"flush", 0, nullptr, 'f'},
                          {"keep-going", 0, nullptr, 'k'},
                          {"verbose", 0, nullptr, 'v'},
                          {"help", 0, nullptr, 'h'},
                          {nullptr, 0, nullptr, 0}};
  const auto number = [] { return std::strtoul(optarg, nullptr, 10); };
  for (int c; (c = getopt_long(argc, argv, "", longs, nullptr)) != -1;) {
    switch (c) {
      case 'e':
        o.engine = optarg;
        break;
      case 'c':
        o.connections = static_cast<unsigned>(number());
        break;
      case 'r':
        o.requests = static_cast<unsigned>(number());
        break;
      case 's':
        o.request_size = static_cast<std::uint32_t>(number());
        break;
      case 'p':
        o.pipe_size = number();
        break;
      case 'n':
        o.extents = false;
        break;
      case 'z':
        o.destination_is_zero = true;
        break;
      case 'f':
        o.flush = true;
        break;
      case 'k':
        o.keep_going = true;
        break;
      case 'v':
        o.verbose = true;
        break;
      case 'h':
        usage(stdout);
        std::exit(0);
      default:
        usage(stderr);
        std::exit(2);
    }
  }
  if (argc - optind != 2 || o.connections == 0 || o.requests == 0 ||
      o.request_size == 0 ||
      (o.engine != "relay" && o.engine != "uring" && o.engine != "poll")) {
    usage(stderr);
    std::exit(2);
  }
  return o;
}

}  // namespace

int main(int argc, char** argv) {
  const Options o = parse(argc, argv);
  try {
    const auto copier = make(o, argv[optind], argv[optind + 1]);
    if (o.verbose) std::printf("%s\n", copier->describe().c_str());
    const std::string error = copy_all(*copier, o);
    if (error.empty()) return 0;
    std::fprintf(stderr, "nbd-relay: %s\n", error.c_str());
  } catch (const Error& e) {
    std::fprintf(stderr, "nbd-relay: %s\n", e.what());
  }
  return 1;
}
