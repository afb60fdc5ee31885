// SPDX-License-Identifier: BSD-3-Clause
//
// The watch on a header: whose it is, until when it guards the image, and what
// becomes of former ones.

#include <cppunit/extensions/HelperMacros.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "image-room.hpp"
#include "image/ownership/header_watch.hpp"

namespace {
/// For how many milliseconds this machine has slept.
std::atomic<long> slept{0};
}  // namespace

/// This program's clocks; a machine cannot be suspended for a test.
extern "C" int clock_gettime(clockid_t clock, timespec* t) noexcept {
  const auto r = static_cast<int>(syscall(SYS_clock_gettime, clock, t));
  if (clock != CLOCK_BOOTTIME) return r;
  const long nanoseconds = t->tv_nsec + slept % 1000 * 1'000'000;
  t->tv_sec += slept / 1000 + nanoseconds / 1'000'000'000;
  t->tv_nsec = nanoseconds % 1'000'000'000;
  return r;
}

using namespace nbdrados;
using namespace std::chrono_literals;
using Kind = FaultStore::Kind;

namespace {

constexpr std::uint64_t K = 1024;

class Handler final : public WatchHandler {
 public:
  explicit Handler(ObjectStore& store) : store_(store) {}
  void notified(std::uint64_t id, std::uint64_t cookie,
                std::string_view) noexcept override {
    store_.notify_ack("header", id, cookie, "");
    ++notifications;
  }
  void watch_lost(int code) noexcept override { lost = code; }
  std::atomic<int> notifications{0};
  std::atomic<int> lost{0};

 private:
  ObjectStore& store_;
};

struct Bench : ImageRoom {
  explicit Bench(bool writable = true)
      : ImageRoom(Layout(4 * K, 4 * K, 1), {.size = 64 * K},
                  options(writable)) {
    end_guard();
  }
  static RoomOptions options(bool writable) {
    RoomOptions o;
    o.image.writable = writable;
    return o;
  }
  std::size_t watchers() { return memory.watchers("header"); }
  bool guarded() { return core.state.guarded(); }
  int make_error() {
    return error_of([&] { watch.make(); });
  }
  Handler handler{store};
  HeaderWatch watch{core, handler};
};

class HeaderWatchTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(HeaderWatchTest);
  CPPUNIT_TEST(guards_the_image);
  CPPUNIT_TEST(time_counts_from_before);
  CPPUNIT_TEST(is_checked);
  CPPUNIT_TEST(sleep_ends_it);
  CPPUNIT_TEST(former_ones_stay);
  CPPUNIT_TEST(cannot_be_made);
  CPPUNIT_TEST(is_not_allowed);
  CPPUNIT_TEST(ends);
  CPPUNIT_TEST(asked_from_other_threads);
  CPPUNIT_TEST_SUITE_END();

 public:
  void tearDown() override { slept = 0; }

  void guards_the_image() {
    Bench b;
    CPPUNIT_ASSERT(!b.watch && !b.guarded());
    b.watch.make();
    CPPUNIT_ASSERT(b.watch && b.guarded());
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, b.watchers());
    CPPUNIT_ASSERT_EQUAL(0, b.watch.check());
    std::vector<Watcher> who;
    CPPUNIT_ASSERT_EQUAL(0, b.memory.list_watchers("header", &who)->wait());
    CPPUNIT_ASSERT_EQUAL(who.at(0).cookie, b.watch.cookie());
    CPPUNIT_ASSERT(b.watch.is_ours(b.watch.cookie()));
    CPPUNIT_ASSERT(!b.watch.is_ours(b.watch.cookie() + 1));
    CPPUNIT_ASSERT_EQUAL(0, b.store.notify("header", "", 10s));
    CPPUNIT_ASSERT_EQUAL(1, b.handler.notifications.load());
  }

  // The OSD begins to count when it gets the request, and not when the answer
  // is here.
  void time_counts_from_before() {
    Bench b;
    b.store.keep_watches_for(100ms);
    b.store.inject({.kind = Kind::watch, .delay = 120ms});
    b.watch.make();
    CPPUNIT_ASSERT(b.watch && !b.guarded());
    b.store.keep_watches_for(25s);
    CPPUNIT_ASSERT_EQUAL(0, b.watch.check());
    CPPUNIT_ASSERT(b.guarded());
  }

  void is_checked() {
    Bench b;
    b.watch.make();
    // The OSD has not heard of it for longer than it keeps one.
    b.store.keep_watches_for(-5s);
    CPPUNIT_ASSERT_EQUAL(0, b.watch.check());
    CPPUNIT_ASSERT(!b.guarded());
    b.store.keep_watches_for(50ms);
    CPPUNIT_ASSERT_EQUAL(0, b.watch.check());
    CPPUNIT_ASSERT(eventually([&] { return !b.guarded(); }));
    // What is broken guards nothing from now on, and no longer.
    for (const int code : {ETIMEDOUT, ENOTCONN}) {
      b.store.keep_watches_for(25s);
      b.watch.make();
      b.end_guard();
      b.store.lose_watches("header", code);
      CPPUNIT_ASSERT_EQUAL(code, b.watch.check());
      CPPUNIT_ASSERT_EQUAL(code, b.handler.lost.load());
      CPPUNIT_ASSERT(!b.guarded());
    }
  }

  // The OSD has counted that time, librados has not.
  void sleep_ends_it() {
    Bench b;
    b.watch.make();
    slept = 900;  // the clocks are not read at one moment
    CPPUNIT_ASSERT_EQUAL(0, b.watch.check());
    slept = 20'000;
    CPPUNIT_ASSERT(b.guarded());
    CPPUNIT_ASSERT_EQUAL(ETIMEDOUT, b.watch.check());
    // What it said before the sleep holds, by the clock that went on.
    CPPUNIT_ASSERT(b.guarded());
    slept = 30'000;
    CPPUNIT_ASSERT(!b.guarded());
    CPPUNIT_ASSERT_EQUAL(ETIMEDOUT, b.watch.check());
    CPPUNIT_ASSERT(!b.guarded());
    // A new one has not slept.
    b.watch.make();
    CPPUNIT_ASSERT_EQUAL(0, b.watch.check());
    CPPUNIT_ASSERT(b.guarded());
  }

  // Whoever finds the lock without the watch that it names, takes its owner
  // for dead.
  void former_ones_stay() {
    Bench b;
    std::vector<std::uint64_t> cookies;
    for (int i = 0; i < 3; ++i) {
      b.watch.make();
      cookies.push_back(b.watch.cookie());
      CPPUNIT_ASSERT_EQUAL(cookies.size(), b.watchers());
      for (const auto cookie : cookies)
        CPPUNIT_ASSERT(b.watch.is_ours(cookie));
    }
    CPPUNIT_ASSERT(cookies[0] != cookies[1] && cookies[1] != cookies[2]);
    // What is said of those that were is nothing to the one that is.
    b.store.lose_watches("header", ENOTCONN, 2);
    CPPUNIT_ASSERT_EQUAL(0, b.watch.check());
    b.watch.forget_former();
    CPPUNIT_ASSERT(b.watch && b.guarded());
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, b.watchers());
    // A notification of ours by their names may still be under way.
    for (const auto cookie : cookies) CPPUNIT_ASSERT(b.watch.is_ours(cookie));
    slept = 11'000;
    CPPUNIT_ASSERT(b.watch.is_ours(cookies[2]));
    CPPUNIT_ASSERT(!b.watch.is_ours(cookies[0]));
    CPPUNIT_ASSERT(!b.watch.is_ours(cookies[1]));
    // Given up, and none made yet.
    b.watch.retire();
    b.watch.retire();
    CPPUNIT_ASSERT(!b.watch);
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, b.watchers());
    CPPUNIT_ASSERT(b.watch.is_ours(cookies[2]));
    b.watch.forget_former();
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, b.watchers());
    CPPUNIT_ASSERT(b.watch.is_ours(cookies[2]));
    slept = 22'000;
    CPPUNIT_ASSERT(!b.watch.is_ours(cookies[2]));
  }

  void cannot_be_made() {
    for (const bool writable : {true, false})
      for (const int code : {ETIMEDOUT, ENOENT, ESHUTDOWN, ENOTCONN}) {
        Bench b(writable);
        b.watch.make();
        const auto cookie = b.watch.cookie();
        b.store.inject({.kind = Kind::watch, .error = code});
        CPPUNIT_ASSERT_EQUAL(code, b.make_error());
        // The former one stays, and so does what it said.
        CPPUNIT_ASSERT(!b.watch && b.guarded());
        CPPUNIT_ASSERT_EQUAL(std::size_t{1}, b.watchers());
        CPPUNIT_ASSERT(b.watch.is_ours(cookie));
        CPPUNIT_ASSERT(b.log.empty());
        b.watch.make();
        CPPUNIT_ASSERT_EQUAL(std::size_t{2}, b.watchers());
      }
  }

  void is_not_allowed() {
    for (const int code : {EPERM, EACCES, EROFS}) {
      Bench b(false);
      b.core.state.guard_until(BootClock::time_point::max());
      b.store.inject({.kind = Kind::watch, .error = code});
      b.watch.make();
      CPPUNIT_ASSERT(!b.watch && !b.guarded());
      CPPUNIT_ASSERT_EQUAL(std::size_t{1}, b.log.size());
      CPPUNIT_ASSERT(b.log[0].starts_with(
          "pool/image: changes will not be noticed: "));
      b.watch.forget_former();
      b.watch.end();
      // A writer must know.
      Bench writer;
      writer.store.inject({.kind = Kind::watch, .error = code});
      CPPUNIT_ASSERT_EQUAL(code, writer.make_error());
      CPPUNIT_ASSERT(writer.log.empty());
    }
  }

  void ends() {
    Bench b;
    {
      HeaderWatch watch(b.core, b.handler);
      watch.make();
      watch.make();
      const auto cookie = watch.cookie();
      watch.end();
      CPPUNIT_ASSERT(!watch);
      slept = 11'000;
      CPPUNIT_ASSERT(!watch.is_ours(cookie));
      CPPUNIT_ASSERT_EQUAL(std::size_t{0}, b.watchers());
      watch.end();
      watch.make();
      watch.make();
      CPPUNIT_ASSERT_EQUAL(std::size_t{2}, b.watchers());
    }
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, b.watchers());
  }

  void asked_from_other_threads() {
    Bench b;
    b.watch.make();
    const auto first = b.watch.cookie();
    std::atomic<bool> stop{false};
    std::atomic<int> times{0};
    std::thread other([&] {
      while (!stop) times += b.watch.is_ours(first) ? 1 : 0;
    });
    while (times == 0) std::this_thread::yield();
    for (int i = 0; i < 50; ++i) b.watch.make();
    const int before = times;
    while (times == before) std::this_thread::yield();
    b.watch.forget_former();
    slept = 11'000;
    CPPUNIT_ASSERT(!b.watch.is_ours(first));
    stop = true;
    other.join();
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(HeaderWatchTest);

}  // namespace
