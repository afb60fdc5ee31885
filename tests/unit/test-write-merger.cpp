// SPDX-License-Identifier: BSD-3-Clause
//
// Which writes become one, and that all are told what came of it.

#include <cppunit/TestFixture.h>
#include <cppunit/extensions/HelperMacros.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "image/io/write_merger.hpp"
#include "rados/error.hpp"

namespace {

using namespace nbdrados;
using Part = WriteMerger::Part;
using Parts = std::vector<std::pair<std::uint64_t, std::size_t>>;

/// A merger whose writes end when the test says so.
class Bench {
 public:
  ~Bench() {
    {
      const std::scoped_lock lock(mutex_);
      open_ = true;
    }
    changed_.notify_all();
  }

  /// Writes in a thread of its own, and returns when the write is in flight
  /// or waits.
  void start(std::uint64_t offset, std::size_t length, const void* context,
             std::uint64_t object_no = 7) {
    const int before = calls_;
    threads_.emplace_back([=, this] {
      ++calls_;
      try {
        merger_.write(context, object_no, Part{offset, nullptr, length},
                      [&](std::span<const Part> parts) { write(parts); });
        ++good_;
      } catch (const Error& e) {
        ++bad_;
        last_error_ = e.code();
      }
    });
    wait_until([&] { return calls_ > before; });
    // The thread is now on its way to wait; nothing says when it does.
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  /// Lets so many writes end, and waits until they have and those that they
  /// made possible have begun.
  void finish(int writes, int error = 0) {
    {
      const std::scoped_lock lock(mutex_);
      error_ = error;
      permits_ += writes;
    }
    changed_.notify_all();
    wait_until([&] {
      const std::scoped_lock lock(mutex_);
      return permits_ == 0;
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  void join() { threads_.clear(); }
  std::vector<Parts> writes() {
    const std::scoped_lock lock(mutex_);
    return writes_;
  }
  int good() const { return good_; }
  int bad() const { return bad_; }
  int last_error() const { return last_error_; }

 private:
  template <class F>
  static void wait_until(F&& f) {
    for (int i = 0; i < 20'000 && !f(); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    CPPUNIT_ASSERT(f());
  }
  void write(std::span<const Part> parts) {
    std::unique_lock lock(mutex_);
    Parts& p = writes_.emplace_back();
    for (const Part& part : parts) p.emplace_back(part.offset, part.length);
    changed_.wait(lock, [&] { return open_ || permits_ > 0; });
    if (permits_ > 0) --permits_;
    if (error_ != 0) throw Error(error_, "no");
  }

  WriteMerger merger_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Parts> writes_;
  int permits_ = 0;
  int error_ = 0;
  bool open_ = false;
  std::atomic<int> calls_{0};
  std::atomic<int> good_{0};
  std::atomic<int> bad_{0};
  std::atomic<int> last_error_{0};
  std::vector<std::jthread> threads_;
};

constexpr std::uint64_t K = 1024;

class TestWriteMerger : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(TestWriteMerger);
  CPPUNIT_TEST(neighbours_become_one);
  CPPUNIT_TEST(runs_become_one);
  CPPUNIT_TEST(far_ones_do_not_wait);
  CPPUNIT_TEST(other_objects_and_views_do_not_wait);
  CPPUNIT_TEST(what_overlaps_is_written_apart);
  CPPUNIT_TEST(size_is_bounded);
  CPPUNIT_TEST(all_get_the_error);
  CPPUNIT_TEST(many_threads);
  CPPUNIT_TEST_SUITE_END();

  const int one_ = 1;
  const int two_ = 2;

 public:
  void neighbours_become_one() {
    Bench b;
    // In the order in which they are not: threads overtake each other.
    for (const std::uint64_t n : {0, 1, 4, 2, 3, 6, 5})
      b.start(n * 256 * K, 256 * K, &one_);
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, b.writes().size());
    b.finish(1);
    const auto writes = b.writes();
    CPPUNIT_ASSERT_EQUAL(std::size_t{3}, writes.size());
    Parts rest;
    for (const std::uint64_t n : {2, 3, 4, 5, 6})
      rest.emplace_back(n * 256 * K, 256 * K);
    CPPUNIT_ASSERT(writes[2] == rest);
    b.finish(2);
    b.join();
    CPPUNIT_ASSERT_EQUAL(7, b.good());
    CPPUNIT_ASSERT_EQUAL(std::size_t{3}, b.writes().size());
  }

  void runs_become_one() {
    Bench b;
    b.start(0, 4 * K, &one_);
    b.start(4 * K, 4 * K, &one_);
    for (std::uint64_t n = 1; n <= WriteMerger::most_runs + 1; ++n)
      b.start(n * 8 * K, 4 * K, &one_);
    b.finish(1);
    CPPUNIT_ASSERT_EQUAL(+WriteMerger::most_runs, b.writes()[2].size());
    // The last one comes alone.
    b.finish(2);
    CPPUNIT_ASSERT_EQUAL(std::size_t{4}, b.writes().size());
    b.finish(1);
    b.join();
    CPPUNIT_ASSERT_EQUAL(2 + static_cast<int>(WriteMerger::most_runs) + 1,
                         b.good());
  }

  void far_ones_do_not_wait() {
    Bench b;
    for (std::uint64_t n = 0; n < 6; ++n) b.start(n * 512 * K, 4 * K, &one_);
    CPPUNIT_ASSERT_EQUAL(std::size_t{6}, b.writes().size());
    b.finish(6);
    b.join();
    CPPUNIT_ASSERT_EQUAL(6, b.good());
  }

  void other_objects_and_views_do_not_wait() {
    Bench b;
    b.start(0, 4 * K, &one_);
    b.start(4 * K, 4 * K, &one_);
    b.start(8 * K, 4 * K, &two_);            // another view
    b.start(8 * K, 4 * K, &one_, 8);         // another slot
    b.start(8 * K, 4 * K, &one_, 7 + 64);    // the same slot
    CPPUNIT_ASSERT_EQUAL(std::size_t{5}, b.writes().size());
    b.finish(5);
    b.join();
    CPPUNIT_ASSERT_EQUAL(5, b.good());
  }

  void what_overlaps_is_written_apart() {
    Bench b;
    b.start(0, 4 * K, &one_);
    b.start(0, 4 * K, &one_);
    for (int i = 0; i < 3; ++i) b.start(2 * K, 4 * K, &one_);
    b.finish(1);
    CPPUNIT_ASSERT(b.writes()[2] == (Parts{{2 * K, 4 * K}}));
    b.finish(4);
    b.join();
    CPPUNIT_ASSERT_EQUAL(std::size_t{5}, b.writes().size());
    CPPUNIT_ASSERT_EQUAL(5, b.good());
  }

  void size_is_bounded() {
    Bench b;
    constexpr std::uint64_t M = K * K;
    for (const std::uint64_t n : {0, 1, 2, 3, 4}) b.start(n * 7 * M, 7 * M, &one_);
    b.finish(1);
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, b.writes()[2].size());
    b.finish(1);
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, b.writes()[3].size());
    // One that is larger is written all the same.
    b.start(40 * M, 32 * M, &one_);
    b.finish(3);
    b.join();
    CPPUNIT_ASSERT_EQUAL(6, b.good());
  }

  void all_get_the_error() {
    Bench b;
    for (std::uint64_t n = 0; n < 6; ++n) b.start(n * 4 * K, 4 * K, &one_);
    b.finish(1);
    b.finish(1, ENOSPC);  // the second, or the four
    b.finish(1, ENOSPC);
    b.join();
    CPPUNIT_ASSERT_EQUAL(1, b.good());
    CPPUNIT_ASSERT_EQUAL(5, b.bad());
    CPPUNIT_ASSERT_EQUAL(ENOSPC, b.last_error());
  }

  // Each part is written once, before its write returns.
  void many_threads() {
    WriteMerger merger;
    constexpr int threads = 8;
    constexpr int each = 4000;
    constexpr std::size_t places = 512;
    std::vector<std::atomic<int>> written(places * 4);
    std::atomic<int> calls{0};
    std::atomic<bool> wrong{false};
    {
      std::vector<std::jthread> pool;
      for (int t = 0; t < threads; ++t)
        pool.emplace_back([&, t] {
          std::mt19937 random(static_cast<unsigned>(t));
          for (int i = 0; i < each; ++i) {
            const std::uint64_t object = random() % 4;
            const std::uint64_t place = random() % places;
            const std::uint64_t at = object * places + place;
            const int before = written[at];
            merger.write(&one_, object, Part{place * 512, nullptr, 512},
                         [&](std::span<const Part> parts) {
                           ++calls;
                           std::uint64_t end = 0;
                           for (const Part& p : parts) {
                             if (p.offset < end) wrong = true;
                             end = p.end();
                             ++written[object * places + p.offset / 512];
                           }
                           std::this_thread::yield();
                         });
            if (written[at] == before) wrong = true;
          }
        });
    }
    int sum = 0;
    for (const auto& n : written) sum += n;
    CPPUNIT_ASSERT(!wrong);
    CPPUNIT_ASSERT_EQUAL(threads * each, sum);
    CPPUNIT_ASSERT(calls < sum);
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(TestWriteMerger);

}  // namespace
