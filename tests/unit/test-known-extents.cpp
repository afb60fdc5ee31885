// SPDX-License-Identifier: BSD-3-Clause
//
// What is known of objects: learnt, forgotten, and never learnt too late.

#include <cppunit/TestFixture.h>
#include <cppunit/extensions/HelperMacros.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "image/known_extents.hpp"

namespace {

using namespace nbdrados;
using Learning = KnownExtents::Learning;
using Ranges = std::vector<ObjectRange>;

class TestKnownExtents : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(TestKnownExtents);
  CPPUNIT_TEST(nothing_is_known_at_first);
  CPPUNIT_TEST(learns_and_forgets);
  CPPUNIT_TEST(learns_which_exist);
  CPPUNIT_TEST(a_change_while_asking);
  CPPUNIT_TEST(a_reset_while_asking);
  CPPUNIT_TEST(other_sizes);
  CPPUNIT_TEST(memory_is_bounded);
  CPPUNIT_TEST(never_older_than_a_change);
  CPPUNIT_TEST_SUITE_END();

 public:
  void nothing_is_known_at_first() {
    KnownExtents known;
    Ranges ranges;
    CPPUNIT_ASSERT(!known.absent(0));
    CPPUNIT_ASSERT(!known.find(0, &ranges));
    known.forget(0);
    known.reset(100);
    CPPUNIT_ASSERT(!known.absent(0));
    CPPUNIT_ASSERT(!known.knows_all_absent());
    CPPUNIT_ASSERT(!known.find(99, &ranges));
  }

  void learns_and_forgets() {
    KnownExtents known;
    known.reset(200);
    const Ranges some{{0, 4096}, {8192, 10}};
    {
      Learning learning(known);
      learning.learn_absent(7);
      learning.learn_absent(71);
      learning.learn(8, some);
      learning.learn(9, {});
      learning.learn_absent(200);  // there is no such object
    }
    Ranges ranges;
    CPPUNIT_ASSERT(known.absent(7) && known.absent(71));
    CPPUNIT_ASSERT(!known.absent(6) && !known.absent(8) && !known.absent(200));
    CPPUNIT_ASSERT(known.find(8, &ranges) && ranges == some);
    CPPUNIT_ASSERT(known.find(9, &ranges) && ranges.empty());
    CPPUNIT_ASSERT(!known.find(7, &ranges));
    known.forget(7);
    known.forget(8);
    CPPUNIT_ASSERT(!known.absent(7) && known.absent(71));
    CPPUNIT_ASSERT(!known.find(8, &ranges) && known.find(9, &ranges));
    known.reset(200);
    CPPUNIT_ASSERT(!known.absent(71) && !known.find(9, &ranges));
  }

  void learns_which_exist() {
    KnownExtents known;
    known.reset(1000);
    {
      Learning learning(known);
      known.forget(40);  // it has just been made
      learning.learn_existing([](std::uint64_t n) { return n % 10 == 3; });
    }
    CPPUNIT_ASSERT(known.knows_all_absent());
    for (std::uint64_t n = 0; n < 1000; ++n)
      CPPUNIT_ASSERT_EQUAL(n % 10 != 3 && n != 40, known.absent(n));
    known.forget(41);
    CPPUNIT_ASSERT(!known.absent(41) && known.absent(42));
    known.reset(1000);
    CPPUNIT_ASSERT(!known.knows_all_absent() && !known.absent(42));
  }

  void a_change_while_asking() {
    KnownExtents known;
    known.reset(100);
    Ranges ranges;
    {
      Learning learning(known);
      known.forget(5);
      learning.learn_absent(5);
      learning.learn(5, {{0, 1}});
      learning.learn_absent(6);
      CPPUNIT_ASSERT(!known.absent(5) && known.absent(6));
      CPPUNIT_ASSERT(!known.find(5, &ranges));
      // One that began later asked later, but as long as they overlap
      // nothing is known of when which one asked.
      Learning later(known);
      later.learn_absent(5);
      CPPUNIT_ASSERT(!known.absent(5));
    }
    Learning learning(known);
    learning.learn_absent(5);
    CPPUNIT_ASSERT(known.absent(5));
  }

  void a_reset_while_asking() {
    KnownExtents known;
    known.reset(100);
    Ranges ranges;
    Learning learning(known);
    known.reset(100);
    learning.learn_absent(5);
    learning.learn(6, {{0, 1}});
    learning.learn_existing([](std::uint64_t) { return false; });
    CPPUNIT_ASSERT(!known.absent(5) && !known.absent(50));
    CPPUNIT_ASSERT(!known.find(6, &ranges) && !known.knows_all_absent());
    Learning later(known);
    later.learn_absent(5);
    CPPUNIT_ASSERT(known.absent(5));
  }

  void other_sizes() {
    KnownExtents known;
    for (const std::uint64_t objects : {1, 64, 65, 1000, 10, 0, 5000, 4000}) {
      known.reset(objects);
      Learning learning(known);
      for (const std::uint64_t n : {0, 63, 64, 999, 4999}) {
        CPPUNIT_ASSERT(!known.absent(n));
        learning.learn_absent(n);
        if (n < objects) CPPUNIT_ASSERT(known.absent(n));
      }
    }
  }

  void memory_is_bounded() {
    KnownExtents known;
    constexpr std::uint64_t objects = 100'000;
    known.reset(objects);
    Learning learning(known);
    // 16 bytes a range and more: 160 MB of them.
    for (std::uint64_t n = 0; n < objects; ++n)
      learning.learn(n, Ranges(100, {n, 1}));
    std::size_t found = 0;
    Ranges ranges;
    for (std::uint64_t n = 0; n < objects; ++n)
      if (known.find(n, &ranges)) ++found;
    CPPUNIT_ASSERT(found > 1000);
    CPPUNIT_ASSERT(found * 100 * sizeof(ObjectRange) <=
                   KnownExtents::ranges_limit);
    // What is too large alone is not kept, and does no harm.
    learning.learn(1, Ranges(1'000'000, {1, 1}));
    CPPUNIT_ASSERT(!known.find(1, &ranges));
  }

  // The rule: who asks after a change has been acknowledged gets no answer
  // from before it.
  void never_older_than_a_change() {
    KnownExtents known;
    constexpr std::uint64_t objects = 130;  // of all groups, some twice
    known.reset(objects);
    // How long each object is: what the pool says, and what is acknowledged.
    std::vector<std::atomic<std::uint64_t>> pool(objects);
    std::vector<std::atomic<std::uint64_t>> acknowledged(objects);
    std::atomic<bool> stop{false};
    std::atomic<std::uint64_t> hits{0};
    std::atomic<bool> wrong{false};
    std::vector<std::jthread> threads;
    for (unsigned t = 0; t < 2; ++t)
      threads.emplace_back([&, t] {
        std::mt19937 random(t);
        for (int i = 0; i < 5'000; ++i) {
          // Each object has one writer.
          const std::uint64_t n = random() % (objects / 2) * 2 + t;
          const std::uint64_t length = pool[n].load() + 1;
          pool[n].store(length);
          known.forget(n);
          acknowledged[n].store(length);
          std::this_thread::sleep_for(std::chrono::microseconds(20));
          if (i % 500 == 499) known.reset(objects);
        }
        stop = true;
      });
    for (unsigned t = 0; t < 3; ++t)
      threads.emplace_back([&, t] {
        std::mt19937 random(100 + t);
        Ranges ranges;
        // On a busy machine the hits may all come when the changes are over.
        while (!stop || hits <= 100) {
          std::unique_ptr<Learning> learning;
          for (int i = 0; i < 8; ++i) {
            const std::uint64_t n = random() % objects;
            const std::uint64_t least = acknowledged[n].load();
            const bool absent = known.absent(n);
            const bool found = known.find(n, &ranges);
            if (absent && least != 0) wrong = true;
            if (found) {
              ++hits;
              if (ranges.empty() || ranges[0].length < least) wrong = true;
            } else if (!absent) {
              if (!learning) learning = std::make_unique<Learning>(known);
              const std::uint64_t length = pool[n].load();
              std::this_thread::yield();
              if (length == 0)
                learning->learn_absent(n);
              else
                learning->learn(n, {{0, length}});
            }
          }
        }
      });
    threads.clear();
    CPPUNIT_ASSERT(!wrong);
    CPPUNIT_ASSERT(hits > 100);
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(TestKnownExtents);

}  // namespace
