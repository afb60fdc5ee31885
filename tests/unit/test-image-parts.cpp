// SPDX-License-Identifier: BSD-3-Clause
//
// The small parts that the rooms of an image are made of: the View and how
// threads read it, how a request is cut, and the threads for blocking calls.

#include <cppunit/extensions/HelperMacros.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "image/chunks.hpp"
#include "image/state/published.hpp"
#include "image/state/view.hpp"
#include "image/worker_pool.hpp"
#include "rados/error.hpp"

using namespace nbdrados;
using namespace std::chrono_literals;
using u64 = std::uint64_t;

namespace {

constexpr u64 K = 1024;

template <class F>
int error_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.code();
  }
  return 0;
}

class ViewTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(ViewTest);
  CPPUNIT_TEST(names_of_objects);
  CPPUNIT_TEST(errors_of_objects);
  CPPUNIT_TEST(requests);
  CPPUNIT_TEST(failures);
  CPPUNIT_TEST(backed);
  CPPUNIT_TEST(backed_in_stripes);
  CPPUNIT_TEST(backed_by_the_largest);
  CPPUNIT_TEST(writable_now);
  CPPUNIT_TEST_SUITE_END();

  const ImageTraits traits_{.name = "pool/image",
                            .format = "test",
                            .layout = Layout(4 * K, 4 * K, 1),
                            .object_prefix = "data",
                            .name_digits = 4,
                            .header_oid = "",
                            .details = ""};

 public:
  void names_of_objects() {
    CPPUNIT_ASSERT_EQUAL(std::string("data.00ab"), traits_.object_name(0xab));
    CPPUNIT_ASSERT_EQUAL(std::string("data.123456789"),
                         traits_.object_name(0x123456789));
  }

  void errors_of_objects() {
    const auto text = [&](int code) {
      try {
        traits_.object_error(code, "cannot read", 10);
      } catch (const Error& e) {
        CPPUNIT_ASSERT_EQUAL(code, e.code());
        return std::string(e.what());
      }
    };
    const std::string begin = "pool/image: cannot read object data.000a: ";
    CPPUNIT_ASSERT_EQUAL(begin + "its pool has been deleted", text(ENXIO));
    for (const int code : {EIO, ENOSPC, ESHUTDOWN, ETIMEDOUT})
      CPPUNIT_ASSERT_EQUAL(begin + error_text(code), text(code));
  }

  void requests() {
    const View view{.size = 100};
    const auto check = [&](u64 length, u64 offset) {
      return error_of([&] { view.check_request(traits_, length, offset); });
    };
    CPPUNIT_ASSERT_EQUAL(0, check(100, 0));
    CPPUNIT_ASSERT_EQUAL(0, check(1, 99));
    CPPUNIT_ASSERT_EQUAL(0, check(0, 100));
    CPPUNIT_ASSERT_EQUAL(EINVAL, check(101, 0));
    CPPUNIT_ASSERT_EQUAL(EINVAL, check(1, 100));
    CPPUNIT_ASSERT_EQUAL(EINVAL, check(0, 101));
    CPPUNIT_ASSERT_EQUAL(EINVAL, check(2, ~u64{0}));
    CPPUNIT_ASSERT_EQUAL(EINVAL, check(~u64{0}, 2));
  }

  void failures() {
    // Whatever the request is.
    View view{.size = 100};
    view.failure = ESHUTDOWN;
    view.reason = "the lock is lost";
    for (const u64 length : {1, 1000})
      try {
        view.check_request(traits_, length, 0);
        CPPUNIT_FAIL("no error");
      } catch (const Error& e) {
        CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, e.code());
        CPPUNIT_ASSERT_EQUAL(view.reason, std::string(e.what()));
      }
  }

  void backed() {
    const Layout layout(4 * K, 4 * K, 1);
    const auto is = [&](u64 overlap, u64 n) {
      return View{.overlap = overlap}.backed(layout, n);
    };
    CPPUNIT_ASSERT(!is(0, 0));
    CPPUNIT_ASSERT(is(1, 0) && !is(1, 1));
    CPPUNIT_ASSERT(is(4 * K, 0) && !is(4 * K, 1));
    CPPUNIT_ASSERT(is(4 * K + 1, 1) && !is(4 * K + 1, 2));
  }

  // The first byte of an object is that of its first unit.
  void backed_in_stripes() {
    const Layout layout(4 * K, K, 3);
    for (u64 overlap = 0; overlap <= 40 * K; overlap += K / 2)
      for (u64 n = 0; n < 16; ++n)
        CPPUNIT_ASSERT_EQUAL(
            overlap != 0 && layout.image_parts(n, 0, 1)[0].image_offset <
                                overlap,
            View{.overlap = overlap}.backed(layout, n));
  }

  void backed_by_the_largest() {
    const Layout layout(u64{1} << 40, u64{1} << 40, 1 << 22);
    const View view{.overlap = ~u64{0} >> 1};
    CPPUNIT_ASSERT(view.backed(layout, 0));
    CPPUNIT_ASSERT(view.backed(layout, 1 << 22));
    CPPUNIT_ASSERT(view.backed(layout, (1 << 23) - 1));
    CPPUNIT_ASSERT(!view.backed(layout, 1 << 23));
    CPPUNIT_ASSERT(!view.backed(layout, ~u64{0}));
  }

  void writable_now() {
    View view;
    CPPUNIT_ASSERT(view.writable_now());
    view.needs_lock = true;
    CPPUNIT_ASSERT(!view.writable_now());
    view.needs_lock = false;
    view.hold_writes = true;
    CPPUNIT_ASSERT(!view.writable_now());
    // It is to fail, and not to wait.
    view.failure = EIO;
    CPPUNIT_ASSERT(view.writable_now());
  }
};

class PublishedTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(PublishedTest);
  CPPUNIT_TEST(readers_keep_what_they_have);
  CPPUNIT_TEST(newcomers_are_not_waited_for);
  CPPUNIT_TEST(under_load);
  CPPUNIT_TEST_SUITE_END();

 public:
  void readers_keep_what_they_have() {
    Published<std::string> value(std::make_unique<std::string>("old"));
    value.synchronize();  // nobody is there
    std::future<void> all_gone;
    {
      const auto reader = value.read();
      value.store(std::make_unique<std::string>("new"));
      value.store(std::make_unique<std::string>("newer"));
      all_gone =
          std::async(std::launch::async, [&] { value.synchronize(); });
      CPPUNIT_ASSERT(all_gone.wait_for(50ms) == std::future_status::timeout);
      CPPUNIT_ASSERT_EQUAL(std::string("old"), *reader);
      CPPUNIT_ASSERT_EQUAL(std::string("newer"), *value.read());
    }
    CPPUNIT_ASSERT(all_gone.wait_for(10s) == std::future_status::ready);
  }

  // Or it might never end.
  void newcomers_are_not_waited_for() {
    Published<int> value(std::make_unique<int>(1));
    std::deque<Published<int>::Reader> readers;
    std::atomic<bool> done{false};
    std::thread waits([&] {
      value.synchronize();
      done = true;
    });
    // There is always one, and each is there for a while.
    for (int i = 0; i < 4000 && !done; ++i) {
      readers.emplace_back(value);
      std::this_thread::sleep_for(1ms);
      if (readers.size() > 20) readers.pop_front();
    }
    const bool ended = done;
    readers.clear();
    waits.join();
    CPPUNIT_ASSERT(ended);
  }

  // A reader never sees a value that has been given up: each value is marked
  // dead when synchronize() has returned.
  void under_load() {
    struct Value {
      std::shared_ptr<std::atomic<bool>> alive;
    };
    const auto make = [](std::shared_ptr<std::atomic<bool>>& mark) {
      mark = std::make_shared<std::atomic<bool>>(true);
      return std::make_unique<Value>(Value{mark});
    };
    std::shared_ptr<std::atomic<bool>> mark;
    Published<Value> value(make(mark));
    std::atomic<bool> stop{false};
    std::atomic<long> wrong{0}, reads{0};
    std::vector<std::thread> readers;
    for (int i = 0; i < 4; ++i)
      readers.emplace_back([&] {
        while (!stop) {
          const auto v = value.read();
          for (int j = 0; j < 50; ++j)
            if (!v->alive->load()) ++wrong;
          ++reads;
        }
      });
    for (int i = 0; i < 2000 || reads < 1000; ++i) {
      const auto former = mark;
      value.store(make(mark));
      if (i % 2) continue;
      value.synchronize();
      former->store(false);
    }
    stop = true;
    for (auto& t : readers) t.join();
    CPPUNIT_ASSERT_EQUAL(0L, wrong.load());
    CPPUNIT_ASSERT(reads > 0);
  }
};

class ChunksTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(ChunksTest);
  CPPUNIT_TEST(in_order_and_in_bounds);
  CPPUNIT_TEST(nothing_to_wait_for);
  CPPUNIT_TEST(ends_all_when_one_throws);
  CPPUNIT_TEST(chunks_end_between_sets);
  CPPUNIT_TEST(chunks_of_absurd_layouts);
  CPPUNIT_TEST(pieces);
  CPPUNIT_TEST_SUITE_END();

  /// An operation that ends when it is waited for.
  class Flight final : public Pending {
   public:
    Flight(std::size_t& in_flight, int result)
        : in_flight_(in_flight), result_(result) {
      ++in_flight_;
    }
    ~Flight() override { --in_flight_; }
    int wait() override { return result_; }
    int wait_for(std::chrono::milliseconds) override { return result_; }
    bool completed() override { return true; }

   private:
    std::size_t& in_flight_;
    const int result_;
  };

 public:
  void in_order_and_in_bounds() {
    for (const std::size_t count : {0, 1, 2, 127, 128, 129, 1000}) {
      std::size_t in_flight = 0;
      std::size_t most = 0;
      std::size_t started = 0;
      std::size_t ended = 0;
      for_objects(
          count,
          [&](std::size_t i) {
            CPPUNIT_ASSERT_EQUAL(started++, i);
            auto p = std::make_unique<Flight>(in_flight, static_cast<int>(i));
            most = std::max(most, in_flight);
            return p;
          },
          [&](std::size_t i, int result) {
            CPPUNIT_ASSERT_EQUAL(ended++, i);
            CPPUNIT_ASSERT_EQUAL(static_cast<int>(i), result);
          });
      CPPUNIT_ASSERT_EQUAL(count, started);
      CPPUNIT_ASSERT_EQUAL(count, ended);
      CPPUNIT_ASSERT_EQUAL(std::size_t{0}, in_flight);
      CPPUNIT_ASSERT_EQUAL(std::min(count, objects_in_flight), most);
    }
  }

  void nothing_to_wait_for() {
    std::size_t in_flight = 0;
    for (const std::size_t count : {1, 300}) {
      std::vector<int> results;
      for_objects(
          count,
          [&](std::size_t i) -> std::unique_ptr<Pending> {
            if (i % 3 == 0) return nullptr;
            return std::make_unique<Flight>(in_flight, -ENOENT);
          },
          [&](std::size_t, int result) { results.push_back(result); });
      for (std::size_t i = 0; i < count; ++i)
        CPPUNIT_ASSERT_EQUAL(i % 3 == 0 ? 0 : -ENOENT, results[i]);
    }
  }

  void ends_all_when_one_throws() {
    for (const bool at_start : {true, false}) {
      std::size_t in_flight = 0;
      CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] {
                             for_objects(
                                 200,
                                 [&](std::size_t i) {
                                   if (at_start && i == 150)
                                     throw Error(EIO, "start");
                                   return std::make_unique<Flight>(in_flight,
                                                                   0);
                                 },
                                 [&](std::size_t i, int) {
                                   if (!at_start && i == 40)
                                     throw Error(EIO, "end");
                                 });
                           }));
      CPPUNIT_ASSERT_EQUAL(std::size_t{0}, in_flight);
    }
  }

  void chunks_end_between_sets() {
    const Layout linear(4 * K, 4 * K, 1);
    CPPUNIT_ASSERT_EQUAL(1024 * 4 * K, chunk_end(linear, 0, u64{1} << 40));
    CPPUNIT_ASSERT_EQUAL(1024 * 4 * K,
                         chunk_end(linear, 1023 * 4 * K + 5, u64{1} << 40));
    CPPUNIT_ASSERT_EQUAL(u64{100}, chunk_end(linear, 5, 100));
    CPPUNIT_ASSERT_EQUAL(2 * 4 * K, chunk_end(linear, 4 * K, M, 1));
    // A set of 12 KiB; 1024 units of 1 KiB are 85 of them and a part.
    const Layout striped(4 * K, K, 3);
    CPPUNIT_ASSERT_EQUAL(u64{0}, chunk_end(striped, 0, M * M) % (12 * K));
    CPPUNIT_ASSERT(chunk_end(striped, 0, M * M) > 12 * K);
    CPPUNIT_ASSERT_EQUAL(12 * K, chunk_end(striped, 0, M, 13));
    // A set that is larger than a chunk.
    CPPUNIT_ASSERT_EQUAL(2 * K, chunk_end(striped, 0, M, 2));
    CPPUNIT_ASSERT_EQUAL(4 * K, chunk_end(striped, 2 * K, M, 2));
  }

  // A chunk is never nothing, and never more than memory allows.
  void chunks_of_absurd_layouts() {
    for (const Layout& layout :
         {Layout(1, 1, 1), Layout(1 << 20, 1, 3), Layout(5000, 1000, 3),
          Layout(64 * K, 64 * K, 4294967295), Layout(u64{1} << 40, 512, 2),
          Layout(u64{1} << 40, u64{1} << 40, 4194304)}) {
      const u64 end = u64{1} << 62;
      for (const u64 offset : {u64{0}, u64{12345}, end - 1}) {
        const u64 stop = chunk_end(layout, offset, end);
        CPPUNIT_ASSERT(stop > offset && stop <= end);
        const u64 units = (stop - offset) / unit_size(layout);
        CPPUNIT_ASSERT(units <= 64 * chunk_objects);
      }
    }
  }

  void pieces() {
    const Layout layout(4 * K, K, 2);
    std::string buffer(6 * K, '?');
    const auto extents = layout.cut(500, buffer.size());
    const ExtentPieces<MutablePiece> to(extents, buffer.data(), 500);
    char next = 'a';
    for (std::size_t i = 0; i < extents.size(); ++i, ++next) {
      u64 length = 0;
      for (const MutablePiece& piece : to.of(i)) {
        std::fill_n(piece.data, piece.size, next);
        length += piece.size;
      }
      CPPUNIT_ASSERT_EQUAL(extents[i].length, length);
    }
    // Each byte of the buffer is in one piece, of the object that has it.
    for (u64 at = 0; at < buffer.size(); ++at)
      CPPUNIT_ASSERT_EQUAL(
          (at + 500) / K % 2 == 0 ? 'a' : 'b',
          buffer[at]);
  }

 private:
  static constexpr u64 M = 1024 * K;
};

class WorkerPoolTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(WorkerPoolTest);
  CPPUNIT_TEST(runs_each_once);
  CPPUNIT_TEST(several_at_a_time);
  CPPUNIT_TEST(works_without_threads);
  CPPUNIT_TEST(tasks_of_tasks);
  CPPUNIT_TEST(passes_exceptions_on);
  CPPUNIT_TEST_SUITE_END();

 public:
  void runs_each_once() {
    WorkerPool pool(4);
    std::vector<std::thread> users;
    for (int u = 0; u < 4; ++u)
      users.emplace_back([&pool] {
        for (std::size_t n : {0, 1, 2, 7, 1000}) {
          std::vector<std::atomic<int>> calls(n);
          pool.for_each(n, [&](std::size_t i) { ++calls[i]; });
          for (const auto& c : calls)
            if (c != 1) std::abort();
        }
      });
    for (auto& t : users) t.join();
  }

  // The threads and the caller; it returns when the last one has.
  void several_at_a_time() {
    WorkerPool pool(3);
    std::atomic<int> running{0};
    std::atomic<bool> seen{false};
    std::atomic<int> ended{0};
    pool.for_each(4, [&](std::size_t) {
      if (++running == 4) seen = true;
      for (int i = 0; i < 2000 && !seen; ++i)
        std::this_thread::sleep_for(5ms);
      ++ended;
    });
    CPPUNIT_ASSERT(seen);
    CPPUNIT_ASSERT_EQUAL(4, ended.load());
  }

  void works_without_threads() {
    WorkerPool pool(0);
    std::size_t sum = 0;
    pool.for_each(100, [&](std::size_t i) { sum += i; });
    CPPUNIT_ASSERT_EQUAL(std::size_t{4950}, sum);
  }

  // All threads are busy with tasks that wait for theirs.
  void tasks_of_tasks() {
    WorkerPool pool(2);
    std::atomic<int> calls{0};
    pool.for_each(8, [&](std::size_t) {
      pool.for_each(8, [&](std::size_t) { ++calls; });
    });
    CPPUNIT_ASSERT_EQUAL(64, calls.load());
  }

  void passes_exceptions_on() {
    for (const std::size_t threads : {0, 3}) {
      WorkerPool pool(threads);
      std::atomic<int> calls{0};
      std::atomic<int> running{0};
      CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] {
                             pool.for_each(10000, [&](std::size_t i) {
                               ++running;
                               ++calls;
                               if (i == 50) {
                                 --running;
                                 throw Error(EIO, "x");
                               }
                               --running;
                             });
                           }));
      // The rest is skipped, nothing of it runs any more, and the next call
      // has nothing to do with it.
      CPPUNIT_ASSERT_EQUAL(0, running.load());
      if (threads == 0) CPPUNIT_ASSERT_EQUAL(51, calls.load());
      calls = 0;
      pool.for_each(100, [&](std::size_t) { ++calls; });
      CPPUNIT_ASSERT_EQUAL(100, calls.load());
    }
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(ViewTest);
CPPUNIT_TEST_SUITE_REGISTRATION(PublishedTest);
CPPUNIT_TEST_SUITE_REGISTRATION(ChunksTest);
CPPUNIT_TEST_SUITE_REGISTRATION(WorkerPoolTest);

}  // namespace
