// SPDX-License-Identifier: BSD-3-Clause
//
// Writes that are kept for a while: what is read, what reaches the disk below
// and in which order, errors, lost tenures, the limit of memory, and many
// threads against a model.

#include <cppunit/TestFixture.h>
#include <cppunit/extensions/HelperMacros.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cache/write_back.hpp"

namespace {

using namespace nbdrados;
using namespace std::chrono_literals;
using Range = WriteBack::Range;

constexpr std::uint64_t K = 1024;
constexpr std::uint32_t chunk = 64 * K;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
const bool watched = true;
#else
const bool watched = std::getenv("NBDKIT_VALGRIND") != nullptr;
#endif
constexpr auto long_time = std::chrono::milliseconds(1h);

/// The disk below.
class Disk {
 public:
  explicit Disk(std::uint64_t size) : data_(size, '.') {}

  int write(const char* data, std::uint32_t count, std::uint64_t offset) {
    std::unique_lock lock(mutex_);
    const std::uint64_t end = offset + count;
    for (const auto& [from, to] : under_way_)
      if (from < end && offset < to) overlaps++;
    under_way_.emplace_back(offset, end);
    log.push_back({offset, count});
    arrived_.notify_all();
    arrived_.wait(lock, [&] { return !held_; });
    const int r = fail ? fail(offset, count) : 0;
    if (r == 0) data_.replace(offset, count, data, count);
    std::erase(under_way_, std::pair(offset, end));
    return r;
  }
  WriteBack::Write writer() {
    return [this](const char* d, std::uint32_t n, std::uint64_t o) {
      return write(d, n, o);
    };
  }
  std::string data() {
    const std::scoped_lock lock(mutex_);
    return data_;
  }
  std::string data(std::uint64_t offset, std::uint64_t count) {
    return data().substr(offset, count);
  }
  /// Requests stop until release().
  void hold() {
    const std::scoped_lock lock(mutex_);
    held_ = true;
  }
  void release() {
    const std::scoped_lock lock(mutex_);
    held_ = false;
    arrived_.notify_all();
  }
  void wait_for(std::size_t requests) {
    std::unique_lock lock(mutex_);
    arrived_.wait(lock, [&] { return under_way_.size() >= requests; });
  }

  std::vector<Range> log;  // when nothing is under way
  std::function<int(std::uint64_t, std::uint32_t)> fail;
  std::atomic<unsigned> overlaps = 0;

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::string data_;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> under_way_;
  bool held_ = false;
};

struct World {
  explicit World(std::uint64_t size = 10 * chunk,
                 std::uint64_t bytes = 64 << 20,
                 std::chrono::milliseconds age = long_time)
      : disk(size),
        limit(bytes),
        kept(limit, {.size = size, .chunk = chunk, .age = age},
             [this](WriteBack::Tenure t) { return t == tenure; }) {}

  std::uint32_t put(std::uint64_t offset, std::uint32_t count, char c) {
    const std::string data(count, c);
    return kept.take(data.data(), count, offset, tenure);
  }
  void must_put(std::uint64_t offset, std::uint32_t count, char c) {
    CPPUNIT_ASSERT_EQUAL(count, put(offset, count, c));
  }
  std::string read(std::uint64_t offset, std::uint64_t count) {
    std::string data(count, '?');
    for (const Range& r : kept.read(data.data(), count, offset))
      data.replace(r.offset - offset, r.length,
                   disk.data(r.offset, r.length));
    return data;
  }

  std::atomic<WriteBack::Tenure> tenure = 7;
  Disk disk;
  DirtyLimit limit;
  WriteBack kept;
};

std::string repeat(std::initializer_list<std::pair<int, char>> parts) {
  std::string all;
  for (const auto& [n, c] : parts)
    all.append(static_cast<std::size_t>(n), c);
  return all;
}

class TestWriteBack : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(TestWriteBack);
  CPPUNIT_TEST(neighbours_become_one);
  CPPUNIT_TEST(reads);
  CPPUNIT_TEST(ranges);
  CPPUNIT_TEST(a_write_while_one_is_under_way);
  CPPUNIT_TEST(what_is_under_way_is_waited_for);
  CPPUNIT_TEST(a_failure_keeps_the_data);
  CPPUNIT_TEST(a_failure_keeps_what_is_newer);
  CPPUNIT_TEST(a_helper_fails_for_himself_alone);
  CPPUNIT_TEST(lost_with_its_tenure);
  CPPUNIT_TEST(failed_in_an_old_tenure);
  CPPUNIT_TEST(closed);
  CPPUNIT_TEST(closed_meanwhile);
  CPPUNIT_TEST(abandoned);
  CPPUNIT_TEST(hold);
  CPPUNIT_TEST(a_hold_waits_and_is_waited_for);
  CPPUNIT_TEST(limit);
  CPPUNIT_TEST(page_tables);
  CPPUNIT_TEST(age);
  CPPUNIT_TEST(a_full_chunk_is_due);
  CPPUNIT_TEST(helpers);
  CPPUNIT_TEST(drop);
  CPPUNIT_TEST(the_end_of_the_disk);
  CPPUNIT_TEST(many_threads);
  CPPUNIT_TEST(many_threads_and_failures);
  CPPUNIT_TEST_SUITE_END();

 public:
  void neighbours_become_one() {
    World w;
    for (std::uint32_t i = 0; i < 16; ++i)
      w.must_put(1000 + i * 100, 100, static_cast<char>('a' + i));
    for (std::uint32_t i = 16; i-- > 0;)
      w.must_put(5000 + i * 100, 100, static_cast<char>('a' + i));
    w.must_put(chunk - 10, 20, 'X');
    CPPUNIT_ASSERT(w.disk.log.empty());
    CPPUNIT_ASSERT_EQUAL(0, w.kept.flush(w.disk.writer()));
    CPPUNIT_ASSERT((w.disk.log == std::vector<Range>{{1000, 1600},
                                                     {5000, 1600},
                                                     {chunk - 10, 10},
                                                     {chunk, 10}}));
    CPPUNIT_ASSERT(w.kept.empty());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, w.limit.used());
    CPPUNIT_ASSERT_EQUAL(std::string(100, 'c'), w.disk.data(1200, 100));
    CPPUNIT_ASSERT_EQUAL(std::string(100, 'p'), w.disk.data(6500, 100));
    CPPUNIT_ASSERT_EQUAL(0, w.kept.flush(w.disk.writer()));
    CPPUNIT_ASSERT_EQUAL(std::size_t{4}, w.disk.log.size());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{33}, w.kept.statistics().taken);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{4}, w.kept.statistics().written);
  }

  void reads() {
    World w;
    w.must_put(100, 50, 'a');
    w.must_put(chunk - 5, 10, 'b');
    w.must_put(120, 10, 'c');
    CPPUNIT_ASSERT_EQUAL(repeat({{10, '.'}, {20, 'a'}, {10, 'c'}, {20, 'a'},
                                 {10, '.'}}),
                         w.read(90, 70));
    CPPUNIT_ASSERT_EQUAL(repeat({{5, '.'}, {10, 'b'}, {5, '.'}}),
                         w.read(chunk - 10, 20));
    CPPUNIT_ASSERT_EQUAL(repeat({{3, 'b'}}), w.read(chunk + 1, 3));
    CPPUNIT_ASSERT((w.kept.read(nullptr, 2 * chunk, 110) ==
                    std::vector<Range>{{150, chunk - 155},
                                       {chunk + 5, chunk + 105}}));
    CPPUNIT_ASSERT((w.kept.read(nullptr, 10, 110).empty()));
  }

  void ranges() {
    World w(1000 * chunk);
    CPPUNIT_ASSERT(w.kept.kept(1000 * chunk, 0).empty());
    w.must_put(2 * chunk - 100, 200, 'a');
    w.must_put(900 * chunk + 5, 1, 'b');
    const std::vector<Range> all{{2 * chunk - 100, 200}, {900 * chunk + 5, 1}};
    CPPUNIT_ASSERT(w.kept.kept(1000 * chunk, 0) == all);
    CPPUNIT_ASSERT((w.kept.kept(50, 2 * chunk + 90) ==
                    std::vector<Range>{{2 * chunk + 90, 10}}));
    CPPUNIT_ASSERT(w.kept.kept(50, 2 * chunk + 100).empty());
    // Only a part is written.
    CPPUNIT_ASSERT_EQUAL(0, w.kept.write_out(1, 900 * chunk, w.disk.writer()));
    CPPUNIT_ASSERT((w.kept.kept(1000 * chunk, 0) ==
                    std::vector<Range>{{2 * chunk - 100, 200}}));
  }

  // The newer one is read, and comes to the disk second.
  void a_write_while_one_is_under_way() {
    World w;
    w.must_put(0, 100, 'a');
    w.disk.hold();
    std::thread flush([&] { (void)w.kept.flush(w.disk.writer()); });
    w.disk.wait_for(1);
    w.must_put(50, 100, 'b');
    CPPUNIT_ASSERT_EQUAL(repeat({{50, 'a'}, {100, 'b'}, {10, '.'}}),
                         w.read(0, 160));
    w.disk.release();
    flush.join();
    CPPUNIT_ASSERT_EQUAL(repeat({{100, 'a'}, {50, '.'}}), w.disk.data(0, 150));
    CPPUNIT_ASSERT_EQUAL(repeat({{50, 'a'}, {100, 'b'}}), w.read(0, 150));
    CPPUNIT_ASSERT_EQUAL(0, w.kept.flush(w.disk.writer()));
    CPPUNIT_ASSERT_EQUAL(repeat({{50, 'a'}, {100, 'b'}}), w.disk.data(0, 150));
  }

  // A flush has all that was there when it began.
  void what_is_under_way_is_waited_for() {
    World w;
    w.must_put(0, 100, 'a');
    w.disk.hold();
    std::thread first(
        [&] { (void)w.kept.write_out(1, 0, w.disk.writer()); });
    w.disk.wait_for(1);
    w.must_put(50, 100, 'b');
    std::atomic<bool> done = false;
    std::thread second([&] {
      CPPUNIT_ASSERT_EQUAL(0, w.kept.flush(w.disk.writer()));
      done = true;
    });
    std::this_thread::sleep_for(20ms);
    CPPUNIT_ASSERT(!done);
    w.disk.release();
    first.join();
    second.join();
    CPPUNIT_ASSERT_EQUAL(repeat({{50, 'a'}, {100, 'b'}}), w.disk.data(0, 150));
    CPPUNIT_ASSERT_EQUAL(0U, w.disk.overlaps.load());
  }

  void a_failure_keeps_the_data() {
    World w;
    w.must_put(0, 100, 'a');
    w.must_put(200, 100, 'b');
    w.must_put(400, 100, 'c');
    w.must_put(5 * chunk, 100, 'd');
    const std::uint64_t used = w.limit.used();
    w.disk.fail = [](std::uint64_t offset, std::uint32_t) {
      return offset == 200 ? ENOSPC : 0;
    };
    CPPUNIT_ASSERT_EQUAL(ENOSPC, w.kept.flush(w.disk.writer()));
    CPPUNIT_ASSERT_EQUAL(ENOSPC, w.kept.flush(w.disk.writer()));
    CPPUNIT_ASSERT(w.limit.used() <= used);
    // The others do not suffer.
    CPPUNIT_ASSERT_EQUAL(std::string(100, 'd'), w.disk.data(5 * chunk, 100));
    CPPUNIT_ASSERT_EQUAL(std::string(100, '.'), w.disk.data(200, 100));
    CPPUNIT_ASSERT_EQUAL(repeat({{100, 'a'}, {100, '.'}, {100, 'b'},
                                 {100, '.'}, {100, 'c'}}),
                         w.read(0, 500));
    w.disk.fail = nullptr;
    CPPUNIT_ASSERT_EQUAL(0, w.kept.flush(w.disk.writer()));
    CPPUNIT_ASSERT_EQUAL(repeat({{100, 'a'}, {100, '.'}, {100, 'b'},
                                 {100, '.'}, {100, 'c'}}),
                         w.disk.data(0, 500));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, w.limit.used());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, w.kept.statistics().bytes);
  }

  void a_failure_keeps_what_is_newer() {
    World w;
    w.must_put(0, 100, 'a');
    w.disk.fail = [](std::uint64_t, std::uint32_t) { return EIO; };
    w.disk.hold();
    int result = 0;
    std::thread flush([&] {
      result = w.kept.write_out(100, 0, w.disk.writer());
    });
    w.disk.wait_for(1);
    w.must_put(30, 20, 'b');
    w.must_put(90, 20000, 'c');
    w.disk.release();
    flush.join();
    CPPUNIT_ASSERT_EQUAL(EIO, result);
    CPPUNIT_ASSERT_EQUAL(
        repeat({{30, 'a'}, {20, 'b'}, {40, 'a'}, {20000, 'c'}, {1, '.'}}),
        w.read(0, 20091));
    w.disk.fail = nullptr;
    CPPUNIT_ASSERT_EQUAL(0, w.kept.flush(w.disk.writer()));
    CPPUNIT_ASSERT_EQUAL(
        repeat({{30, 'a'}, {20, 'b'}, {40, 'a'}, {20000, 'c'}, {1, '.'}}),
        w.disk.data(0, 20091));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, w.limit.used());
  }

  /// Who goes in the middle of a write that he makes for all is no reason to
  /// fail the flush of another.
  void a_helper_fails_for_himself_alone() {
    World w;
    w.must_put(0, 100, 'a');
    w.must_put(200, 100, 'b');
    std::atomic<bool> begun = false;
    std::atomic<bool> failed = false;
    std::thread leaver([&] {
      while (!begun) std::this_thread::yield();
      (void)w.kept.work(true, [&](const char*, std::uint32_t, std::uint64_t) {
        failed = true;
        return ESHUTDOWN;
      });
    });
    const int r = w.kept.flush(
        [&](const char* d, std::uint32_t n, std::uint64_t o) {
          begun = true;
          while (!failed) std::this_thread::yield();
          return w.disk.write(d, n, o);
        });
    leaver.join();
    CPPUNIT_ASSERT_EQUAL(0, r);
    CPPUNIT_ASSERT(w.kept.empty());
    CPPUNIT_ASSERT(w.disk.data(0, 100) == std::string(100, 'a'));
    CPPUNIT_ASSERT(w.disk.data(200, 100) == std::string(100, 'b'));
  }

  void lost_with_its_tenure() {
    World w;
    w.must_put(0, 100, 'a');
    w.tenure = 8;
    // Not beside data of another tenure.
    CPPUNIT_ASSERT_EQUAL(0U, w.put(200, 100, 'b'));
    w.must_put(3 * chunk, 100, 'c');
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, w.kept.losses());
    CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, w.kept.flush(w.disk.writer()));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{1}, w.kept.losses());
    CPPUNIT_ASSERT_EQUAL(0, w.kept.flush(w.disk.writer()));
    CPPUNIT_ASSERT_EQUAL(std::string(100, '.'), w.disk.data(0, 100));
    CPPUNIT_ASSERT_EQUAL(std::string(100, 'c'), w.disk.data(3 * chunk, 100));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{100}, w.kept.statistics().lost);
    CPPUNIT_ASSERT(w.kept.empty());
    // What was lost between two flushes.
    w.must_put(0, 100, 'a');
    w.tenure = 9;
    CPPUNIT_ASSERT(w.kept.work(true, w.disk.writer()));
    CPPUNIT_ASSERT(w.kept.empty());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{2}, w.kept.losses());
    CPPUNIT_ASSERT_EQUAL(0, w.kept.flush(w.disk.writer()));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, w.limit.used());
  }

  // What could not be written in time must not come back later.
  void failed_in_an_old_tenure() {
    World w;
    w.must_put(0, 100, 'a');
    w.disk.fail = [](std::uint64_t, std::uint32_t) { return EIO; };
    w.disk.hold();
    std::thread flush(
        [&] { (void)w.kept.write_out(100, 0, w.disk.writer()); });
    w.disk.wait_for(1);
    w.tenure = 8;
    w.must_put(50, 10, 'b');
    w.disk.release();
    flush.join();
    w.disk.fail = nullptr;
    CPPUNIT_ASSERT_EQUAL(0, w.kept.flush(w.disk.writer()));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{1}, w.kept.losses());
    CPPUNIT_ASSERT_EQUAL(repeat({{50, '.'}, {10, 'b'}, {40, '.'}}),
                         w.disk.data(0, 100));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, w.limit.used());
  }

  void closed() {
    World w;
    w.must_put(0, 100, 'a');
    w.kept.close(7);
    CPPUNIT_ASSERT_EQUAL(0U, w.put(100, 100, 'b'));
    CPPUNIT_ASSERT_EQUAL(0, w.kept.flush(w.disk.writer()));
    CPPUNIT_ASSERT_EQUAL(repeat({{100, 'a'}, {100, '.'}}), w.disk.data(0, 200));
    w.tenure = 8;
    w.must_put(100, 100, 'b');
    w.kept.close(8);
    // By a very slow thread.
    w.tenure = 7;
    CPPUNIT_ASSERT_EQUAL(0U, w.put(200, 100, 'c'));
  }
  void abandoned() {
    World w;
    for (const std::uint64_t at : {0, 200, 400}) w.must_put(at, 100, 'a');
    w.must_put(chunk, 100, 'b');
    w.disk.hold();
    int flushed = 0;
    std::thread flush([&] { flushed = w.kept.flush(w.disk.writer()); });
    w.disk.wait_for(1);
    w.must_put(50, 10, 'c');
    w.kept.close(7);
    std::atomic<bool> ended = false;
    std::thread abandon([&] {
      w.kept.abandon(7);
      ended = true;
    });
    std::this_thread::sleep_for(20ms);
    CPPUNIT_ASSERT(!ended);
    w.disk.release();
    abandon.join();
    const std::size_t before = w.disk.log.size();
    flush.join();
    // The one that was under way, and nothing else, neither now nor later.
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, before);
    CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, flushed);
    CPPUNIT_ASSERT_EQUAL(0, w.kept.flush(w.disk.writer()));
    CPPUNIT_ASSERT((w.disk.log == std::vector<Range>{{0, 100}}));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{10 + 200 + 100},
                         w.kept.statistics().lost);
    CPPUNIT_ASSERT(w.kept.losses() > 0);
    CPPUNIT_ASSERT_EQUAL(std::string(100, 'a') + std::string(500, '.'),
                         w.read(0, 600));
    CPPUNIT_ASSERT(w.kept.empty());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, w.limit.used());
    // A Hold and its range stay in order.
    w.tenure = 8;
    w.must_put(0, 100, 'a');
    {
      WriteBack::Hold hold(w.kept, 50, 0);
      w.kept.abandon(8);
      w.tenure = 9;
      w.must_put(10, 10, 'd');
      hold.superseded();
    }
    CPPUNIT_ASSERT(w.kept.empty());
    w.must_put(10, 10, 'e');
    CPPUNIT_ASSERT_EQUAL(0, w.kept.flush(w.disk.writer()));
    CPPUNIT_ASSERT_EQUAL(std::string(10, 'e'), w.disk.data(10, 10));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, w.limit.used());
  }

  // Whatever take() has said that it has, a flush after close() finds.
  void closed_meanwhile() {
    constexpr std::uint32_t places = 10;
    for (int i = 0; i < 2000; ++i) {
      World w;
      std::atomic<std::uint32_t> taken = 0;
      // A chunk each time, which takes a while.
      std::thread writer([&] {
        while (taken < places && w.put(taken * chunk, 10, 'a') == 10) ++taken;
      });
      while (taken == 0) std::this_thread::yield();
      for (int k = i % 100 * 20; k > 0; --k) (void)w.kept.empty();
      w.kept.close(7);
      CPPUNIT_ASSERT_EQUAL(0, w.kept.flush(w.disk.writer()));
      const std::string found = w.disk.data();
      writer.join();
      for (std::uint32_t n = 0; n < places; ++n)
        CPPUNIT_ASSERT_EQUAL(n < taken ? 'a' : '.', found[n * chunk]);
    }
  }

  // A change around it: older data does not come later, what it covers is
  // worthless, and if it failed everything is as before.
  void hold() {
    World w;
    w.must_put(0, 300, 'a');
    w.must_put(chunk, 100, 'b');
    w.must_put(5 * chunk, 100, 'c');
    const std::uint64_t used = w.limit.used();
    {
      WriteBack::Hold hold(w.kept, chunk, 100);
      CPPUNIT_ASSERT(w.kept.work(true, w.disk.writer()));
      CPPUNIT_ASSERT((w.disk.log == std::vector<Range>{{5 * chunk, 100}}));
      CPPUNIT_ASSERT(!w.kept.work(true, w.disk.writer()));
      CPPUNIT_ASSERT_EQUAL(std::string(300, 'a'), w.read(0, 300));
    }
    CPPUNIT_ASSERT_EQUAL(std::string(300, 'a'), w.read(0, 300));
    {
      WriteBack::Hold hold(w.kept, 100, 100);
      WriteBack::Hold other(w.kept, chunk, 200);
      w.must_put(400, 10, 'd');
      w.must_put(chunk / 2, 10, 'e');
      hold.superseded();
      CPPUNIT_ASSERT_EQUAL(repeat({{100, 'a'}, {100, '.'}, {100, 'a'},
                                   {100, '.'}, {10, 'd'}}),
                           w.read(0, 410));
      other.superseded();
      CPPUNIT_ASSERT_EQUAL(repeat({{100, 'a'}, {400, '.'}}), w.read(0, 500));
      CPPUNIT_ASSERT((w.kept.kept(10 * chunk, 0) ==
                      std::vector<Range>{{0, 100}}));
      // Into what is empty now.
      w.must_put(chunk + 50, 10, 'f');
    }
    CPPUNIT_ASSERT(w.limit.used() < used);
    CPPUNIT_ASSERT_EQUAL(0, w.kept.flush(w.disk.writer()));
    CPPUNIT_ASSERT_EQUAL(repeat({{100, 'a'}, {200, '.'}}), w.disk.data(0, 300));
    CPPUNIT_ASSERT_EQUAL(repeat({{50, '.'}, {10, 'f'}, {50, '.'}}),
                         w.disk.data(chunk, 110));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, w.limit.used());
    CPPUNIT_ASSERT(w.kept.empty());
    // Everything of it.
    w.must_put(10, 10, 'g');
    {
      WriteBack::Hold hold(w.kept, 10 * chunk, 0);
      hold.superseded();
      CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, w.limit.used());
    }
    CPPUNIT_ASSERT(w.kept.empty());
  }

  void a_hold_waits_and_is_waited_for() {
    World w;
    w.must_put(0, 100, 'a');
    w.disk.hold();
    std::thread first([&] { (void)w.kept.flush(w.disk.writer()); });
    w.disk.wait_for(1);
    std::atomic<int> step = 0;
    std::thread second([&] {
      WriteBack::Hold hold(w.kept, 10, 0);
      step = 1;
      while (step == 1) std::this_thread::sleep_for(1ms);
      hold.superseded();
    });
    std::this_thread::sleep_for(20ms);
    CPPUNIT_ASSERT_EQUAL(0, step.load());
    w.must_put(50, 100, 'b');
    w.disk.release();
    first.join();
    while (step == 0) std::this_thread::sleep_for(1ms);
    std::atomic<bool> flushed = false;
    std::thread third([&] {
      CPPUNIT_ASSERT_EQUAL(0, w.kept.flush(w.disk.writer()));
      flushed = true;
    });
    std::this_thread::sleep_for(20ms);
    CPPUNIT_ASSERT(!flushed);
    step = 2;
    second.join();
    third.join();
    CPPUNIT_ASSERT_EQUAL(repeat({{50, 'a'}, {100, 'b'}}), w.disk.data(0, 150));
  }

  void limit() {
    constexpr std::uint64_t bytes = 100'000;
    World w(100 * chunk, bytes);
    std::mt19937 random(3);
    unsigned refused = 0;
    for (int i = 0; i < 3000; ++i) {
      const std::uint32_t n = 1 + random() % 9000;
      const std::uint64_t at = random() % (100 * chunk - n);
      const std::uint32_t taken = w.put(at, n, 'x');
      CPPUNIT_ASSERT(taken <= n);
      CPPUNIT_ASSERT(w.limit.used() <= bytes);
      CPPUNIT_ASSERT_EQUAL(w.limit.used(), w.kept.statistics().bytes);
      if (taken == n) continue;
      ++refused;
      CPPUNIT_ASSERT(w.kept.make_room(w.disk.writer()));
    }
    CPPUNIT_ASSERT(refused > 100);
    // Nothing fits at all.
    World small(chunk, 4000);
    CPPUNIT_ASSERT_EQUAL(0U, small.put(0, 1, 'x'));
    CPPUNIT_ASSERT(small.kept.empty());
    CPPUNIT_ASSERT(!small.kept.make_room(small.disk.writer()));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, small.limit.used());
  }

  // Page tables are memory, too: of far-off places there are many.
  void page_tables() {
    constexpr std::uint64_t bytes = 16 << 20;
    constexpr std::uint32_t large = 4 << 20;
    const auto used = [] {
      std::ifstream status("/proc/self/status");
      std::uint64_t sum = 0;
      for (std::string word; status >> word;) {
        std::uint64_t kib = 0;
        if (word == "RssAnon:" || word == "VmPTE:")
          status >> kib;
        sum += kib * K;
      }
      return sum;
    };
    DirtyLimit limit(bytes);
    WriteBack kept(limit,
                   {.size = std::uint64_t{1} << 40, .chunk = large,
                    .age = long_time},
                   [](WriteBack::Tenure) { return true; });
    const std::string data(4096, 'x');
    const std::uint64_t before = used();
    std::uint64_t n = 0;
    while (kept.take(data.data(), 4096, n * 5 * large, 1) == 4096) ++n;
    CPPUNIT_ASSERT(n > 1000);
    // What watches this program has memory for each byte of it.
    if (!watched) CPPUNIT_ASSERT(used() < before + bytes + (1 << 20));
    (void)kept.drop();
  }

  void age() {
    World w(10 * chunk, 64 << 20, 30ms);
    w.must_put(0, 100, 'a');
    CPPUNIT_ASSERT(!w.kept.work(false, w.disk.writer()));
    const auto start = std::chrono::steady_clock::now();
    while (!w.kept.work(false, w.disk.writer())) {
      w.must_put(100, 100, 'a');  // does not make it younger
      CPPUNIT_ASSERT(std::chrono::steady_clock::now() - start < 20s);
      std::this_thread::sleep_for(5ms);
    }
    CPPUNIT_ASSERT(w.kept.empty());
    // What has failed waits for a while, unless it is asked for.
    w.must_put(0, 100, 'a');
    w.disk.fail = [](std::uint64_t, std::uint32_t) { return EIO; };
    CPPUNIT_ASSERT(w.kept.work(true, w.disk.writer()));
    CPPUNIT_ASSERT(!w.kept.work(true, w.disk.writer()));
    CPPUNIT_ASSERT_EQUAL(EIO, w.kept.flush(w.disk.writer()));
    w.disk.fail = nullptr;
    CPPUNIT_ASSERT_EQUAL(0, w.kept.flush(w.disk.writer()));
  }

  void a_full_chunk_is_due() {
    World w;
    w.must_put(chunk, chunk - 1, 'a');
    CPPUNIT_ASSERT(!w.kept.work(false, w.disk.writer()));
    w.must_put(2 * chunk - 1, 1, 'a');
    CPPUNIT_ASSERT(w.kept.work(false, w.disk.writer()));
    CPPUNIT_ASSERT((w.disk.log == std::vector<Range>{{chunk, chunk}}));
    CPPUNIT_ASSERT(!w.kept.work(false, w.disk.writer()));
    // Also if it became so while it was being written.
    w.must_put(0, 1, 'b');
    w.disk.hold();
    std::thread flush([&] { (void)w.kept.flush(w.disk.writer()); });
    w.disk.wait_for(1);
    w.must_put(0, chunk, 'c');
    w.disk.release();
    flush.join();
    CPPUNIT_ASSERT(w.kept.work(false, w.disk.writer()));
    CPPUNIT_ASSERT_EQUAL(std::string(chunk, 'c'), w.disk.data(0, chunk));
  }

  // Several threads write the parts of one chunk.
  void helpers() {
    World w;
    for (std::uint32_t i = 0; i < 8; ++i) w.must_put(i * 1000, 100, 'a');
    w.disk.hold();
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i)
      threads.emplace_back([&, i] {
        if (i % 2 == 0)
          CPPUNIT_ASSERT_EQUAL(0, w.kept.flush(w.disk.writer()));
        else
          CPPUNIT_ASSERT(w.kept.work(true, w.disk.writer()));
      });
    w.disk.wait_for(4);
    w.disk.release();
    for (std::thread& t : threads) t.join();
    CPPUNIT_ASSERT(w.kept.empty());
    CPPUNIT_ASSERT_EQUAL(std::size_t{8}, w.disk.log.size());
    CPPUNIT_ASSERT_EQUAL(0U, w.disk.overlaps.load());
  }

  void drop() {
    World w;
    for (std::uint32_t i = 0; i < 5; ++i) w.must_put(i * chunk, 10 + i, 'a');
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{60}, w.kept.drop());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{60}, w.kept.statistics().lost);
    CPPUNIT_ASSERT(w.kept.empty());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, w.limit.used());
    CPPUNIT_ASSERT_EQUAL(std::string(10, '.'), w.read(0, 10));
    {
      WriteBack other(w.limit, {.size = chunk, .chunk = chunk, .age = long_time},
                      [](WriteBack::Tenure) { return true; });
      CPPUNIT_ASSERT_EQUAL(1U, other.take("x", 1, 0, 1));
      CPPUNIT_ASSERT(w.limit.used() != 0);
    }
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, w.limit.used());
  }

  void the_end_of_the_disk() {
    World w(chunk + 1001);
    w.must_put(chunk, 1001, 'a');
    CPPUNIT_ASSERT(w.kept.work(false, w.disk.writer()));
    CPPUNIT_ASSERT((w.disk.log == std::vector<Range>{{chunk, 1001}}));
    w.must_put(chunk + 1000, 1, 'b');
    CPPUNIT_ASSERT((w.kept.kept(1001, chunk) ==
                    std::vector<Range>{{chunk + 1000, 1}}));
  }

  void many_threads() { race(false); }
  void many_threads_and_failures() { race(true); }

 private:
  /// Each thread has places of its own, between those of the others, and
  /// knows what must be in them.
  static void race(bool failures) {
    constexpr std::uint64_t size = 6 * chunk + 777;
    constexpr std::size_t threads = 6;
    constexpr std::uint64_t cell = 333;
    World w(size, 200'000, 5ms);
    std::atomic<unsigned> asked = 0;
    if (failures)
      w.disk.fail = [&](std::uint64_t, std::uint32_t) {
        return ++asked % 5 == 0 ? EIO : 0;
      };
    std::atomic<unsigned> wrong = 0;
    std::atomic<bool> stop = false;
    std::thread worker([&] {
      while (!stop) {
        if (!w.kept.work(w.limit.pressing(), w.disk.writer()))
          std::this_thread::sleep_for(1ms);
      }
    });
    std::vector<std::string> models(threads, std::string(size, '.'));
    std::vector<std::thread> list;
    for (std::size_t t = 0; t < threads; ++t)
      list.emplace_back([&, t] {
        std::mt19937 random(static_cast<unsigned>(t));
        std::string& model = models[t];
        for (int i = 0; i < 4000; ++i) {
          const std::uint64_t place =
              random() % (size / cell / threads) * threads + t;
          std::uint64_t at = place * cell;
          std::uint64_t n = std::min(cell, size - at);
          const std::uint64_t skip = random() % n;
          at += skip;
          n -= skip;
          const auto count = static_cast<std::uint32_t>(1 + random() % n);
          const char c = static_cast<char>('A' + random() % 26);
          switch (random() % 8) {
            case 0: case 1: case 2: case 3: {
              const std::string data(count, c);
              const std::uint32_t taken =
                  w.kept.take(data.data(), count, at, w.tenure);
              model.replace(at, taken, taken, c);
              if (taken < count) (void)w.kept.make_room(w.disk.writer());
              break;
            }
            case 4:
              // Around it.
              if (random() % 2 != 0) {
                if (w.kept.write_out(count, at, w.disk.writer()) == 0) {
                  const std::string data(count, c);
                  if (w.disk.write(data.data(), count, at) == 0)
                    model.replace(at, count, count, c);
                }
              } else {
                WriteBack::Hold hold(w.kept, count, at);
                const std::string data(count, c);
                if (w.disk.write(data.data(), count, at) == 0) {
                  hold.superseded();
                  model.replace(at, count, count, c);
                }
              }
              break;
            case 5:
              if (random() % 20 == 0 &&
                  w.kept.flush(w.disk.writer()) == 0 &&
                  w.disk.data(at, count) != model.substr(at, count))
                ++wrong;
              break;
            default:
              if (w.read(at, count) != model.substr(at, count)) ++wrong;
          }
          if (w.limit.used() > w.limit.limit()) ++wrong;
        }
      });
    for (std::thread& t : list) t.join();
    stop = true;
    worker.join();
    w.disk.fail = nullptr;
    CPPUNIT_ASSERT_EQUAL(0, w.kept.flush(w.disk.writer()));
    CPPUNIT_ASSERT_EQUAL(0U, wrong.load());
    CPPUNIT_ASSERT_EQUAL(0U, w.disk.overlaps.load());
    std::string wanted(size, '.');
    for (std::uint64_t at = 0; at < size; ++at)
      wanted[at] = models[at / cell % threads][at];
    CPPUNIT_ASSERT(w.disk.data() == wanted);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, w.limit.used());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, w.kept.statistics().lost);
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(TestWriteBack);

}  // namespace
