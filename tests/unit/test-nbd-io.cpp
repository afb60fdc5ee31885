// SPDX-License-Identifier: BSD-3-Clause
//
// The data phase of NBD connections, by io_uring and by poll(2), and the relay
// by splice(2), with servers that answer in any order and in any pieces, send
// errors, die at any byte, and break the protocol.

#include <cppunit/extensions/HelperMacros.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "copy/nbd/parts.hpp"
#include "copy/nbd/relay.hpp"
#include "copy/nbd/uring_nbd_endpoint.hpp"
#include "fake-nbd-server.hpp"

using namespace nbdrados::copy;
using namespace nbdrados::copy::nbd;

namespace {

constexpr std::size_t disk_size = 3 << 20;

// Random bytes with zeros in between.
std::string random_disk(unsigned seed, std::size_t size = disk_size) {
  std::mt19937 random(seed);
  std::string disk(size, '\0');
  for (std::size_t at = 0; at < size;) {
    const std::size_t n = std::min<std::size_t>(size - at, random() % 40000);
    if (random() % 3 != 0)
      for (std::size_t i = 0; i < n; ++i)
        disk[at + i] = static_cast<char>(random());
    at += n;
  }
  return disk;
}

std::vector<Peer> one(Peer peer) {
  std::vector<Peer> peers;
  peers.push_back(std::move(peer));
  return peers;
}

/// Requests that are waited for, with their errors.
class Ends {
 public:
  /// For the next request; its number is in the order of calls.
  auto next() {
    const std::size_t n = errors_.size();
    errors_.push_back(-1);
    sides_.push_back(Side::source);
    return [this, n](int error, Side side = Side::source) {
      const std::scoped_lock guard(mutex_);
      if (errors_[n] != -1) twice_ = true;
      errors_[n] = error;
      sides_[n] = side;
      ++count_;
      ended_.notify_all();
    };
  }
  /// All of them, one after the other; a hang is the test's time-out.
  const std::vector<int>& wait() {
    std::unique_lock lock(mutex_);
    ended_.wait(lock, [this] { return count_ >= errors_.size(); });
    CPPUNIT_ASSERT(!twice_);
    return errors_;
  }
  [[nodiscard]] std::size_t count() {
    const std::scoped_lock guard(mutex_);
    return count_;
  }
  [[nodiscard]] Side side(std::size_t n) const { return sides_[n]; }

  void reserve(std::size_t n) {
    errors_.reserve(n);
    sides_.reserve(n);
  }

 private:
  std::mutex mutex_;
  std::condition_variable ended_;
  std::vector<int> errors_;
  std::vector<Side> sides_;
  std::size_t count_ = 0;
  bool twice_ = false;
};

// A socket whose other end does what the test says.
struct RawPeer {
  RawPeer() {
    std::array<int, 2> ends{};
    CPPUNIT_ASSERT(socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()) == 0);
    ours = ends[0];
    theirs = ends[1];
  }
  ~RawPeer() { close(theirs); }
  RawPeer(const RawPeer&) = delete;
  RawPeer& operator=(const RawPeer&) = delete;

  std::vector<Peer> peer(bool structured) {
    Traits t;
    t.size = 64 << 20;
    t.writable = t.can_zero = true;
    return one({FileDescriptor(ours), structured, t});
  }
  /// The cookie of the next request's head.
  std::uint64_t request() const {
    std::array<char, request_bytes> head{};
    CPPUNIT_ASSERT(recv(theirs, head.data(), head.size(), MSG_WAITALL) ==
                   static_cast<ssize_t>(head.size()));
    return get64(std::span<const char>(head).subspan(8));
  }
  void answer(const std::string& bytes) const {
    CPPUNIT_ASSERT(send(theirs, bytes.data(), bytes.size(), MSG_NOSIGNAL) ==
                   static_cast<ssize_t>(bytes.size()));
  }
  int ours = -1, theirs = -1;
};

// io_uring_setup(2) fails with `error` from now on, as under the seccomp
// filters of containers.
void forbid_uring(int error) {
  std::array<sock_filter, 4> rules = {
      sock_filter BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                           offsetof(seccomp_data, nr)),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0,
                           1),
      sock_filter BPF_STMT(BPF_RET | BPF_K,
                           SECCOMP_RET_ERRNO | static_cast<unsigned>(error)),
      sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  const sock_fprog program{rules.size(), rules.data()};
  CPPUNIT_ASSERT(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  CPPUNIT_ASSERT(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

class NbdIoTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(NbdIoTest);
  CPPUNIT_TEST(reads_and_writes);
  CPPUNIT_TEST(block_status_zero_flush);
  CPPUNIT_TEST(errors_in_the_middle);
  CPPUNIT_TEST(server_dies_at_any_byte);
  CPPUNIT_TEST(protocol_is_broken);
  CPPUNIT_TEST(answer_before_the_payload);
  CPPUNIT_TEST(requests_of_callbacks);
  CPPUNIT_TEST(not_in_blocks);
  CPPUNIT_TEST(cancelled);
  CPPUNIT_TEST(uring_is_forbidden);
  CPPUNIT_TEST(relay_copies);
  CPPUNIT_TEST(relay_zero_flush_extents);
  CPPUNIT_TEST(relay_to_zeros);
  CPPUNIT_TEST(relay_errors_name_their_side);
  CPPUNIT_TEST(relay_source_dies_at_any_byte);
  CPPUNIT_TEST(relay_destination_dies_at_any_byte);
  CPPUNIT_TEST(relay_answer_before_the_payload);
  CPPUNIT_TEST(relay_cancelled);
  CPPUNIT_TEST_SUITE_END();

 public:
  void reads_and_writes() {
    unsigned seed = 0;
    for (const bool uring : {true, false})
      for (const bool structured : {true, false})
        for (const std::size_t largest : {4096u, 20000u, 400000u})
          random_requests(++seed, uring, largest,
                          {.structured = structured,
                           .fragments = seed % 2 == 0,
                           .seed = seed});
  }

  void block_status_zero_flush() {
    for (const bool uring : {true, false}) {
      FakeNbdServer server(random_disk(1), {});
      {
        UringNbdEndpoint e(one(server.peer()), uring);
        Ends ends;
        ends.reserve(3);
        e.zero(10, 100000, true, ends.next());
        e.flush(ends.next());
        std::vector<Extent> extents;
        e.extents(0, disk_size,
                  [&extents, end = ends.next()](int error,
                                                std::vector<Extent> found) {
                    extents = std::move(found);
                    end(error);
                  });
        for (const int error : ends.wait()) CPPUNIT_ASSERT_EQUAL(0, error);
        CPPUNIT_ASSERT_EQUAL(std::size_t{1}, extents.size());
        CPPUNIT_ASSERT_EQUAL(std::uint64_t{disk_size}, extents[0].length);
      }
      std::string expected = random_disk(1);
      expected.replace(10, 100000, std::string(100000, '\0'));
      CPPUNIT_ASSERT(server.join() == expected);
    }
    // More than was asked for is cut, less is not made more.
    const std::vector<StatusExtent> status = {{10, 0}, {20, 3}, {50, 1}};
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, extents_of(status, 100, 15).size());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{5},
                         extents_of(status, 100, 15)[1].length);
    CPPUNIT_ASSERT(extents_of(status, 100, 15)[1].is_zero);
    CPPUNIT_ASSERT_EQUAL(std::size_t{3}, extents_of(status, 0, 999).size());
    CPPUNIT_ASSERT(!extents_of(status, 0, 999)[2].is_zero);
    CPPUNIT_ASSERT_EQUAL(1u << 30, without_payload(1ull << 40, 4096));
    CPPUNIT_ASSERT_EQUAL(4097u, without_payload(4097, 1));
  }

  void errors_in_the_middle() {
    const std::string disk = random_disk(2);
    for (const bool uring : {true, false})
      for (const bool structured : {true, false}) {
        FakeNbdServer server(disk, {.structured = structured,
                                    .fragments = true,
                                    .errors = {{65536, 5}, {131072, 28}}});
        UringNbdEndpoint e(one(server.peer()), uring);
        std::vector<std::string> buffers(8, std::string(65536, 'x'));
        Ends ends;
        ends.reserve(9);
        for (std::size_t i = 0; i < buffers.size(); ++i)
          e.read(i * 65536, buffers[i], ends.next());
        const std::string data(4096, 'y');
        e.write(131072, data, ends.next());
        const std::vector<int> errors = ends.wait();
        CPPUNIT_ASSERT(errors ==
                       (std::vector<int>{0, EIO, ENOSPC, 0, 0, 0, 0, 0,
                                         ENOSPC}));
        for (const std::size_t i : {0, 3, 4, 5, 6, 7})
          CPPUNIT_ASSERT(buffers[i] == disk.substr(i * 65536, 65536));
        CPPUNIT_ASSERT_EQUAL(std::string(), e.failure());
      }
  }

  void server_dies_at_any_byte() {
    const std::string disk = random_disk(3);
    std::mt19937 random(3);
    for (int round = 0; round < 60; ++round) {
      FakeNbdServer::Options options{.structured = round % 3 != 0,
                                     .fragments = round % 2 == 0,
                                     .seed = static_cast<unsigned>(round)};
      if (round % 4 < 2)
        options.sends = random() % 700000;
      else
        options.receives = random() % 400000;
      FakeNbdServer server(disk, options);
      UringNbdEndpoint e(one(server.peer()), round % 2 == 0);
      std::vector<std::string> buffers(6, std::string(200000, 'x'));
      Ends ends;
      ends.reserve(13);
      const std::string data(100000, 'y');
      for (std::size_t i = 0; i < buffers.size(); ++i) {
        e.read(i * 200000, buffers[i], ends.next());
        e.write(2000000 + i * 100000, data, ends.next());
      }
      const std::vector<int> errors = ends.wait();
      for (std::size_t i = 0; i < errors.size(); ++i) {
        if (errors[i] != 0) {
          CPPUNIT_ASSERT(errors[i] == ECONNRESET || errors[i] == EPIPE);
          CPPUNIT_ASSERT(!e.failure().empty());
        } else if (i % 2 == 0) {
          CPPUNIT_ASSERT(buffers[i / 2] ==
                         disk.substr(i / 2 * 200000, 200000));
        }
      }
      if (e.failure().empty()) continue;
      e.write(0, data, ends.next());
      CPPUNIT_ASSERT(ends.wait().back() != 0);
    }
  }

  void protocol_is_broken() {
    for (const bool uring : {true, false}) {
      RawPeer raw;
      UringNbdEndpoint e(raw.peer(true), uring);
      std::string buffer(100000, 'x');
      Ends ends;
      ends.reserve(2);
      e.read(0, buffer, ends.next());
      e.read(0, buffer, ends.next());
      const std::uint64_t cookie = raw.request();
      raw.answer(data_chunk(cookie, false, 99999, "12"));
      CPPUNIT_ASSERT(ends.wait() == (std::vector<int>{EPROTO, EPROTO}));
      CPPUNIT_ASSERT(e.failure().find("outside") != std::string::npos);
    }
  }

  // A disk whose size is not in the server's blocks has such a range.
  void not_in_blocks() {
    RawPeer raw;
    Traits t;
    t.size = 1000;
    t.minimum = 512;
    t.writable = t.can_zero = t.has_extents = true;
    UringNbdEndpoint e(one({FileDescriptor(raw.ours), true, t}), true);
    std::string data(400, 'x');
    Ends ends;
    ends.reserve(5);
    e.read(512, data, ends.next());
    e.write(512, data, ends.next());
    e.zero(100, 512, true, ends.next());
    e.read(1024, data, ends.next());
    CPPUNIT_ASSERT(ends.wait() ==
                   (std::vector<int>{EINVAL, EINVAL, EINVAL, EINVAL}));
    // The end of the disk is for the server to give or to refuse.
    std::string end(488, 'x');
    e.read(512, end, ends.next());
    (void)raw.request();
    e.cancel();
    CPPUNIT_ASSERT_EQUAL(ECANCELED, ends.wait().back());
  }

  // By a server that never answers.
  void cancelled() {
    for (const bool uring : {true, false})
      for (const bool before : {true, false}) {
        RawPeer raw;
        UringNbdEndpoint e(raw.peer(true), uring);
        std::string data(8 << 20, 'x'), buffer(1, 'x');
        Ends ends;
        ends.reserve(2);
        if (before) e.cancel();
        e.write(0, data, ends.next());
        e.read(0, buffer, ends.next());
        if (!before) {
          (void)raw.request();
          e.cancel();
        }
        CPPUNIT_ASSERT(ends.wait() ==
                       (std::vector<int>{ECANCELED, ECANCELED}));
      }
  }

  // The payload is the caller's until it is sent.
  void answer_before_the_payload() {
    for (const bool uring : {true, false}) {
      RawPeer raw;
      UringNbdEndpoint e(raw.peer(false), uring);
      std::string data(8 << 20, 'y');
      Ends ends;
      ends.reserve(2);
      e.write(0, data, ends.next());
      raw.answer(simple_reply(raw.request(), 5));
      std::string small(1, 'x');
      e.read(0, small, ends.next());
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      CPPUNIT_ASSERT_EQUAL(std::size_t{0}, ends.count());
      std::string got(data.size(), '\0');
      CPPUNIT_ASSERT(recv(raw.theirs, got.data(), got.size(), MSG_WAITALL) ==
                     static_cast<ssize_t>(got.size()));
      CPPUNIT_ASSERT(got == data);
      raw.answer(simple_reply(raw.request(), 0) + "z");
      CPPUNIT_ASSERT(ends.wait() == (std::vector<int>{EIO, 0}));
      CPPUNIT_ASSERT_EQUAL(std::string("z"), small);
    }
  }

  // Also when the connection breaks meanwhile: each ends.
  void requests_of_callbacks() {
    for (const bool uring : {true, false})
      for (const std::size_t sends : {SIZE_MAX, std::size_t{3000}}) {
        FakeNbdServer server(random_disk(5), {.sends = sends});
        std::string buffer(512, 'x');
        Ends ends;
        ends.reserve(1);
        auto last = ends.next();
        // It lives longer than what it makes.
        std::function<void(int, int)> again;
        UringNbdEndpoint e(one(server.peer()), uring);
        again = [&](int left, int error) {
          if (left == 0) return last(error);
          e.read(0, buffer, [&again, left](int failed) {
            again(left - 1, failed);
          });
        };
        again(100, 0);
        CPPUNIT_ASSERT_EQUAL(sends == SIZE_MAX ? 0 : ECONNRESET,
                             ends.wait().front());
      }
  }

  void uring_is_forbidden() {
    for (const int error : {EPERM, ENOSYS}) {
      const pid_t child = fork();
      CPPUNIT_ASSERT(child >= 0);
      if (child == 0) {
        forbid_uring(error);
        FakeNbdServer server(random_disk(6), {});
        UringNbdEndpoint e(one(server.peer()), true);
        std::string buffer(disk_size, 'x');
        Ends ends;
        ends.reserve(1);
        e.read(0, buffer, ends.next());
        const bool good = e.engine() == std::string("poll") &&
                          ends.wait().front() == 0 &&
                          buffer == random_disk(6);
        _exit(good ? 0 : 1);
      }
      int status = 0;
      CPPUNIT_ASSERT(waitpid(child, &status, 0) == child);
      CPPUNIT_ASSERT_EQUAL(0, status);
    }
  }

  void relay_copies() {
    unsigned seed = 0;
    for (const bool structured : {true, false})
      for (const bool fragments : {true, false})
        for (const std::uint32_t minimum : {1u, 512u})
          for (const std::uint32_t piece : {1u, 512u})
            for (const bool can_zero : {true, false}) {
              ++seed;
              relay_copy({.structured = structured,
                          .fragments = fragments,
                          .piece = piece,
                          .seed = seed},
                         {.structured = seed % 3 != 0,
                          .can_zero = can_zero,
                          .minimum = minimum,
                          .seed = seed},
                         seed % 2 == 0 ? 4096 : std::size_t{1} << 20);
            }
  }

  void relay_zero_flush_extents() {
    FakeNbdServer from(random_disk(1), {});
    FakeNbdServer to(random_disk(2), {});
    {
      Relay relay(one(from.peer()), one(to.peer()), {});
      Ends ends;
      ends.reserve(3);
      relay.zero(10, 100000, true, ends.next());
      relay.flush(ends.next());
      std::vector<Extent> extents;
      relay.extents(4096, 8192,
                    [&extents, end = ends.next()](int error,
                                                  std::vector<Extent> found) {
                      extents = std::move(found);
                      end(error);
                    });
      CPPUNIT_ASSERT(ends.wait() == (std::vector<int>{0, 0, 0}));
      CPPUNIT_ASSERT_EQUAL(std::uint64_t{4096}, extents.at(0).offset);
      CPPUNIT_ASSERT_EQUAL(std::uint64_t{8192}, extents.at(0).length);
    }
    std::string expected = random_disk(2);
    expected.replace(10, 100000, std::string(100000, '\0'));
    CPPUNIT_ASSERT(to.join() == expected);
  }

  // Holes are not written, whatever is there.
  void relay_to_zeros() {
    const std::string zeros(disk_size, '\0'), there(disk_size, 'x');
    FakeNbdServer from(zeros, {.fragments = true});
    FakeNbdServer to(there, {});
    {
      Relay relay(one(from.peer()), one(to.peer()),
                  {.destination_is_zero = true});
      Ends ends;
      copy_disk(relay, 262144, ends);
      for (const int error : ends.wait()) CPPUNIT_ASSERT_EQUAL(0, error);
    }
    CPPUNIT_ASSERT(to.join() == there);
  }

  void relay_errors_name_their_side() {
    for (const bool structured : {true, false}) {
      const std::string disk = random_disk(7);
      FakeNbdServer from(disk, {.structured = structured,
                                .errors = {{262144, 5}}});
      FakeNbdServer to(std::string(disk_size, 'x'),
                       {.structured = structured, .errors = {{524288, 28}}});
      {
        Relay relay(one(from.peer()), one(to.peer()), {});
        Ends ends;
        copy_disk(relay, 262144, ends);
        const std::vector<int> errors = ends.wait();
        for (std::size_t i = 0; i < errors.size(); ++i)
          CPPUNIT_ASSERT_EQUAL(i == 1 ? EIO : i == 2 ? ENOSPC : 0, errors[i]);
        CPPUNIT_ASSERT(ends.side(1) == Side::source);
        CPPUNIT_ASSERT(ends.side(2) == Side::destination);
        CPPUNIT_ASSERT_EQUAL(std::string(), relay.failure());
      }
      std::string expected = disk;
      expected.replace(262144, 524288, std::string(524288, 'x'));
      CPPUNIT_ASSERT(to.join() == expected);
    }
  }

  void relay_source_dies_at_any_byte() {
    relay_dies(Side::source);
  }
  void relay_destination_dies_at_any_byte() {
    relay_dies(Side::destination);
  }

  void relay_cancelled() {
    for (const bool before : {true, false}) {
      RawPeer from, to;
      Relay relay(from.peer(true), to.peer(true), {});
      Ends ends;
      ends.reserve(2);
      if (before) relay.cancel();
      relay.copy(0, 1 << 20, ends.next());
      relay.zero(0, 1 << 20, true, ends.next());
      if (!before) {
        (void)from.request();
        relay.cancel();
      }
      CPPUNIT_ASSERT(ends.wait() == (std::vector<int>{ECANCELED, ECANCELED}));
    }
  }

  // A server may refuse a write before it has got all of it.
  void relay_answer_before_the_payload() {
    const std::string disk = random_disk(8);
    FakeNbdServer from(disk, {});
    RawPeer raw;
    Relay relay(one(from.peer()), raw.peer(false), {});
    Ends ends;
    ends.reserve(1);
    relay.copy(0, 2 << 20, ends.next());
    raw.answer(simple_reply(raw.request(), 28));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, ends.count());
    std::string got(2 << 20, '\0');
    CPPUNIT_ASSERT(recv(raw.theirs, got.data(), got.size(), MSG_WAITALL) ==
                   static_cast<ssize_t>(got.size()));
    CPPUNIT_ASSERT(got == disk.substr(0, got.size()));
    CPPUNIT_ASSERT_EQUAL(ENOSPC, ends.wait().front());
    CPPUNIT_ASSERT(ends.side(0) == Side::destination);
  }

 private:
  // Requests of a round do not overlap, so that their order says nothing.
  static void random_requests(unsigned seed, bool uring, std::size_t largest,
                              const FakeNbdServer::Options& options) {
    std::mt19937 random(seed);
    std::string disk = random_disk(seed);
    FakeNbdServer server(disk, options);
    {
      UringNbdEndpoint e(one(server.peer()), uring);
      CPPUNIT_ASSERT_EQUAL(std::string(uring ? "io_uring" : "poll"),
                           std::string(e.engine()));
      for (int round = 0; round < 4; ++round) {
        struct Read {
          std::size_t at;
          std::string to;
        };
        std::deque<Read> reads;
        std::deque<std::string> writes;
        Ends ends;
        ends.reserve(disk_size);
        for (std::size_t at = 0; at < disk_size && reads.size() < 200;) {
          const std::size_t n =
              std::min(1 + random() % largest, disk_size - at);
          if (random() % 2 == 0) {
            e.read(at, reads.emplace_back(at, std::string(n, 'x')).to,
                   ends.next());
          } else {
            disk.replace(at, n, writes.emplace_back(n, char(random())));
            e.write(at, writes.back(), ends.next());
          }
          at += n;
        }
        for (const int error : ends.wait()) CPPUNIT_ASSERT_EQUAL(0, error);
        for (const Read& read : reads)
          CPPUNIT_ASSERT(read.to == disk.substr(read.at, read.to.size()));
      }
    }
    CPPUNIT_ASSERT(server.join() == disk);
    CPPUNIT_ASSERT_EQUAL(std::string(), server.complaint());
  }

  static void copy_disk(Relay& relay, std::uint32_t piece, Ends& ends) {
    ends.reserve(disk_size / piece + 1);
    for (std::uint64_t at = 0; at < disk_size; at += piece)
      relay.copy(at,
                 static_cast<std::uint32_t>(
                     std::min<std::uint64_t>(piece, disk_size - at)),
                 ends.next());
  }

  static void relay_copy(const FakeNbdServer::Options& from_options,
                         const FakeNbdServer::Options& to_options,
                         std::size_t pipe_bytes) {
    const std::string disk = random_disk(from_options.seed);
    FakeNbdServer from(disk, from_options);
    FakeNbdServer to(std::string(disk_size, 'x'), to_options);
    {
      Relay relay(one(from.peer()), one(to.peer()), {.pipe_bytes = pipe_bytes});
      Ends ends;
      copy_disk(relay, 200 * 512, ends);
      for (const int error : ends.wait()) CPPUNIT_ASSERT_EQUAL(0, error);
    }
    CPPUNIT_ASSERT(to.join() == disk);
    CPPUNIT_ASSERT_EQUAL(std::string(), to.complaint());
    (void)from.join();
    CPPUNIT_ASSERT_EQUAL(std::string(), from.complaint());
  }

  static void relay_dies(Side side) {
    const std::string disk = random_disk(9);
    std::mt19937 random(9);
    for (unsigned round = 0; round < 40; ++round) {
      FakeNbdServer::Options good{.seed = round};
      FakeNbdServer::Options bad{.structured = round % 3 != 0, .seed = round};
      if (side == Side::source) bad.fragments = round % 2 == 0;
      if (side == Side::source)
        bad.sends = random() % disk_size;
      else if (round % 2 == 0)
        bad.receives = random() % disk_size;
      else
        bad.sends = random() % 200;
      FakeNbdServer from(disk, side == Side::source ? bad : good);
      FakeNbdServer to(std::string(disk_size, 'x'),
                       side == Side::source ? good : bad);
      std::vector<int> errors;
      {
        Relay relay(one(from.peer()), one(to.peer()), {});
        Ends ends;
        ends.reserve(100);
        copy_disk(relay, 262144, ends);
        (void)ends.wait();
        relay.copy(0, 4096, ends.next());
        errors = ends.wait();
        CPPUNIT_ASSERT(!relay.failure().empty());
        CPPUNIT_ASSERT(errors.back() != 0);
        for (std::size_t i = 0; i < errors.size(); ++i)
          if (errors[i] != 0) {
            CPPUNIT_ASSERT(errors[i] == ECONNRESET || errors[i] == EPIPE);
            CPPUNIT_ASSERT(ends.side(i) == side);
          }
      }
      // What counts as copied is.
      const std::string& copy = to.join();
      for (std::size_t i = 0; i + 1 < errors.size(); ++i)
        if (errors[i] == 0)
          CPPUNIT_ASSERT(copy.compare(i * 262144, 262144, disk, i * 262144,
                                      262144) == 0);
    }
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(NbdIoTest);

}  // namespace
