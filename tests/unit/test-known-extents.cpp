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
#include <set>
#include <thread>
#include <vector>

#include "image/status/absent_objects.hpp"
#include "image/status/known_extents.hpp"

namespace {

using namespace nbdrados;
using Learning = KnownExtents::Learning;
using Ranges = std::vector<ObjectRange>;

constexpr std::uint64_t page = AbsentObjects::page_objects;

class TestAbsentObjects : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(TestAbsentObjects);
  CPPUNIT_TEST(as_a_set);
  CPPUNIT_TEST(full_pages_take_no_memory);
  CPPUNIT_TEST(own_pages_are_few);
  CPPUNIT_TEST(pages_that_meet);
  CPPUNIT_TEST(readers_beside_changes);
  CPPUNIT_TEST_SUITE_END();

 public:
  void as_a_set() {
    AbsentObjects objects;
    std::set<std::uint64_t> model;
    std::mt19937_64 random(4);
    // Some pages at the start, and some behind 2^48.
    const std::uint64_t far = (std::uint64_t{1} << 48) + 5 * page;
    const auto any = [&] {
      return random() % (3 * page) + (random() % 2 == 0 ? 0 : far);
    };
    for (int i = 0; i < 300; ++i) {
      const std::uint64_t first = random() % 4 == 0 ? any() / page * page
                                                    : any();
      const std::uint64_t end =
          first + (random() % 4 == 0 ? page : random() % 200);
      CPPUNIT_ASSERT(objects.insert(first, end));
      for (std::uint64_t n = first; n < end; ++n) model.insert(n);
      for (int k = 0; k < 20; ++k) {
        const std::uint64_t n = k < 10 ? any() : first + random() % 200;
        objects.erase(n);
        model.erase(n);
      }
      const std::uint64_t begin = any();
      std::uint64_t n = begin;
      while (n < begin + page && model.contains(n)) ++n;
      CPPUNIT_ASSERT_EQUAL(n, objects.end_of_run(begin, begin + page));
    }
    for (const std::uint64_t start : {std::uint64_t{0}, far})
      for (std::uint64_t n = start; n < start + 5 * page; ++n)
        CPPUNIT_ASSERT_EQUAL(model.contains(n), objects.contains(n));
    CPPUNIT_ASSERT_EQUAL(far, objects.end_of_run(far, far));
    objects.clear();
    for (const std::uint64_t n : model) CPPUNIT_ASSERT(!objects.contains(n));
  }

  // As many as an object map can have objects of.
  void full_pages_take_no_memory() {
    constexpr std::uint64_t end = AbsentObjects::slots * page;
    constexpr std::uint64_t own = AbsentObjects::own_pages;
    AbsentObjects objects;
    CPPUNIT_ASSERT(objects.insert(0, end));
    CPPUNIT_ASSERT_EQUAL(end, objects.end_of_run(0, end + 1));
    for (std::uint64_t n = 0; n < own; ++n) objects.erase(n * page + 70);
    for (std::uint64_t n = 0; n < own; ++n)
      CPPUNIT_ASSERT_EQUAL(n * page + 70,
                           objects.end_of_run(n * page, end));
    CPPUNIT_ASSERT_EQUAL(end, objects.end_of_run(own * page, end));
    // Now there is no memory to know the others of a page by.
    objects.erase(own * page + 70);
    CPPUNIT_ASSERT_EQUAL(own * page, objects.end_of_run(own * page - 1, end));
    CPPUNIT_ASSERT(!objects.contains(own * page + 71));
    CPPUNIT_ASSERT(objects.contains((own + 1) * page));
  }

  void own_pages_are_few() {
    constexpr std::uint64_t own = AbsentObjects::own_pages;
    AbsentObjects objects;
    for (std::uint64_t n = 0; n < own; ++n)
      CPPUNIT_ASSERT(objects.insert(n * page + 1, n * page + 2));
    CPPUNIT_ASSERT(!objects.insert(own * page + 1, own * page + 2));
    CPPUNIT_ASSERT(!objects.contains(own * page + 1));
    // Of what is partly known, more can be; a full page needs nothing.
    CPPUNIT_ASSERT(objects.insert(0, page));
    CPPUNIT_ASSERT(objects.insert(own * page, (own + 1) * page));
    CPPUNIT_ASSERT(objects.contains(0) && objects.contains(own * page));
    // What is left out is in the middle, and what is around it is in.
    CPPUNIT_ASSERT(!objects.insert((own + 2) * page - 1, (own + 3) * page));
    CPPUNIT_ASSERT(!objects.contains((own + 2) * page - 1));
    CPPUNIT_ASSERT(objects.contains((own + 2) * page));
    // Readers may still look at the pages.
    objects.clear();
    CPPUNIT_ASSERT(!objects.contains(1) && !objects.contains(own * page));
    CPPUNIT_ASSERT(!objects.insert(own * page + 1, own * page + 2));
    CPPUNIT_ASSERT(objects.insert(7, 8));
    CPPUNIT_ASSERT(objects.contains(7) && !objects.contains(1));
    objects.release();
    CPPUNIT_ASSERT(!objects.contains(7));
    CPPUNIT_ASSERT(objects.insert(own * page + 1, own * page + 2));
    CPPUNIT_ASSERT(objects.contains(own * page + 1));
  }

  // Images of more objects than an object map can have.
  void pages_that_meet() {
    constexpr std::uint64_t other = AbsentObjects::slots * page;
    AbsentObjects objects;
    CPPUNIT_ASSERT(objects.insert(5, 6));
    CPPUNIT_ASSERT(objects.insert(page, 2 * page));
    for (const std::uint64_t n : {other + 5, other + page + 5}) {
      CPPUNIT_ASSERT(!objects.contains(n));
      CPPUNIT_ASSERT_EQUAL(n, objects.end_of_run(n, n + 1));
      CPPUNIT_ASSERT(!objects.insert(n, n + 1));
      CPPUNIT_ASSERT(!objects.insert(n / page * page, (n / page + 1) * page));
      CPPUNIT_ASSERT(!objects.contains(n));
      objects.erase(n);
    }
    CPPUNIT_ASSERT(objects.contains(5) && objects.contains(page + 5));
  }

  // Pages come into being, become full, and are copied, while others read.
  void readers_beside_changes() {
    constexpr std::uint64_t pages = 60;
    AbsentObjects objects;
    std::atomic<bool> stop{false};
    std::atomic<bool> wrong{false};
    std::vector<std::jthread> threads;
    for (unsigned t = 0; t < 2; ++t)
      threads.emplace_back([&, t] {
        std::mt19937 random(t);
        while (!stop) {
          const std::uint64_t n = random() % (pages * page);
          const bool has = objects.contains(n);
          switch (n / page % 3) {
            case 0:  // all of it comes and goes
              break;
            case 1:  // never an odd number
              if (has && n % 2 == 1) wrong = true;
              if (n % 2 == 0 &&
                  objects.end_of_run(n, (n / page + 1) * page) > n + 1)
                wrong = true;
              break;
            default:  // nothing at all
              if (has) wrong = true;
          }
        }
      });
    std::mt19937 random(9);
    for (int i = 0; i < 20'000; ++i) {
      const std::uint64_t first = random() % pages / 3 * 3 * page;
      const std::uint64_t even = first + page + random() % (page / 2) * 2;
      (void)objects.insert(first, first + page);
      (void)objects.insert(even, even + 1);
      if (i % 3 == 0) objects.erase(first);
      if (i % 7 == 0) objects.erase(even);
      if (i % 5'000 == 4'999) objects.clear();
    }
    stop = true;
    threads.clear();
    CPPUNIT_ASSERT(!wrong);
  }
};
CPPUNIT_TEST_SUITE_REGISTRATION(TestAbsentObjects);

class TestKnownExtents : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(TestKnownExtents);
  CPPUNIT_TEST(nothing_is_known_at_first);
  CPPUNIT_TEST(learns_and_forgets);
  CPPUNIT_TEST(learns_which_exist);
  CPPUNIT_TEST(learns_runs);
  CPPUNIT_TEST(learns_once);
  CPPUNIT_TEST(learns_what_it_has_memory_for);
  CPPUNIT_TEST(any_number_of_objects);
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

  // Of the most objects that a map can have, with changes within a run.
  void learns_runs() {
    constexpr std::uint64_t objects = 256'000'000;
    const std::set<std::uint64_t> ends{100, 9 * page, 9 * page + 1,
                                       200'000'000, objects};
    const std::set<std::uint64_t> changed{0, 99, 5 * page, 8 * page - 1,
                                          8 * page, 220'000'001,
                                          objects - 1};
    // Every other run is of objects that exist.
    const auto exists = [&](std::uint64_t n) {
      return std::distance(ends.begin(), ends.upper_bound(n)) % 2 != 0;
    };
    KnownExtents known;
    known.reset(objects);
    std::uint64_t asked = 0;
    {
      Learning learning(known);
      for (const std::uint64_t n : changed) known.forget(n);
      learning.learn_existing(
          [&](std::uint64_t n) {
            ++asked;
            return exists(n);
          },
          [&](std::uint64_t n) { return *ends.upper_bound(n); });
    }
    CPPUNIT_ASSERT(known.knows_all_absent());
    // Once for each step of a run, and not for each object.
    CPPUNIT_ASSERT(asked < 3'000);
    const auto check = [&](std::uint64_t n) {
      CPPUNIT_ASSERT_EQUAL(!exists(n) && !changed.contains(n),
                           known.absent(n));
    };
    for (std::uint64_t n = 0; n < 20 * page; ++n) check(n);
    for (const std::uint64_t around : ends)
      for (std::uint64_t n = around - 2; n < around + 2 && n < objects; ++n)
        check(n);
    for (const std::uint64_t n : changed) check(n);
    check(220'000'000);
    CPPUNIT_ASSERT(!known.absent(objects));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{220'000'001},
                         known.end_of_absent(200'000'000, objects));
  }

  void learns_once() {
    KnownExtents known;
    known.reset(100);
    Learning learning(known);
    learning.learn_existing([](std::uint64_t n) { return n == 7; });
    known.forget(3);
    learning.learn_existing([](std::uint64_t) -> bool {
      CPPUNIT_FAIL("asked again");
      return false;
    });
    CPPUNIT_ASSERT(!known.absent(3) && !known.absent(7) && known.absent(4));
  }

  // What it has no memory for, may exist.
  void learns_what_it_has_memory_for() {
    constexpr std::uint64_t pages = AbsentObjects::own_pages + 10;
    KnownExtents known;
    known.reset(pages * page);
    const auto exists = [](std::uint64_t n) { return n % page == 1; };
    {
      Learning learning(known);
      learning.learn_existing(exists, [](std::uint64_t n) {
        return n % page < 2 ? n + 1 : (n / page + 1) * page;
      });
    }
    CPPUNIT_ASSERT(!known.knows_all_absent());
    for (std::uint64_t n = 1; n < pages * page; n += page / 2)
      CPPUNIT_ASSERT_EQUAL(!exists(n) && n / page < AbsentObjects::own_pages,
                           known.absent(n));
  }

  // 1 EiB in objects of 4 KiB.
  void any_number_of_objects() {
    constexpr std::uint64_t objects = std::uint64_t{1} << 48;
    KnownExtents known;
    known.reset(objects);
    {
      Learning learning(known);
      for (const std::uint64_t n : {std::uint64_t{0}, objects / 2 + page,
                                    objects - page, objects - 1, objects})
        learning.learn_absent(n);
      known.forget(objects / 2 + page);
    }
    CPPUNIT_ASSERT(known.absent(0) && !known.absent(1));
    CPPUNIT_ASSERT(!known.absent(objects / 2 + page));
    CPPUNIT_ASSERT(known.absent(objects - 1) && !known.absent(objects - 2));
    CPPUNIT_ASSERT(!known.absent(objects));
    CPPUNIT_ASSERT_EQUAL(objects - page + 1,
                         known.end_of_absent(objects - page, objects));
    known.release();
    known.reset(objects);
    CPPUNIT_ASSERT(!known.absent(0) && !known.absent(objects - 1));
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
