// SPDX-License-Identifier: BSD-3-Clause
//
// Cached block status: learnt, forgotten, and never older than a change.

#include <cppunit/TestFixture.h>
#include <cppunit/extensions/HelperMacros.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <latch>
#include <list>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "cache/cached_extents.hpp"

namespace {

using namespace nbdrados;
using Extent = CachedExtents::Extent;
using Extents = std::vector<Extent>;

constexpr std::uint64_t unit = CachedExtents::grain;
constexpr std::uint64_t mega = 1 << 20;
constexpr std::size_t plenty = 100'000;

/// With the parameters in the order of the extents here.
struct Changing : CachedExtents::Changing {
  Changing(CachedExtents& known, std::uint64_t offset, std::uint64_t length)
      : CachedExtents::Changing(known, static_cast<std::uint32_t>(length),
                                offset) {}
};

/// One that has begun.
struct Question : CachedExtents::Question {
  Question(CachedExtents& known, CachedExtents::Version version,
           std::uint64_t offset, std::uint64_t length)
      : CachedExtents::Question(known, version, offset, length) {
    begin();
  }
};

/// Asks and learns at once.
void teach(CachedExtents& known, const Extents& answer,
           CachedExtents::Version version = 1) {
  Question question(known, version, answer.front().offset, 1);
  question.learn(answer);
}

class TestCachedExtents : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(TestCachedExtents);
  CPPUNIT_TEST(nothing_is_known_at_first);
  CPPUNIT_TEST(learns_and_finds);
  CPPUNIT_TEST(neighbours_are_merged);
  CPPUNIT_TEST(what_is_beyond_the_end);
  CPPUNIT_TEST(changes_forget);
  CPPUNIT_TEST(changes_during_a_question);
  CPPUNIT_TEST(many_changes_during_a_question);
  CPPUNIT_TEST(changes_in_sequence_during_a_question);
  CPPUNIT_TEST(versions);
  CPPUNIT_TEST(never_more_than_the_limit);
  CPPUNIT_TEST(the_last_answer_stays);
  CPPUNIT_TEST(how_much_to_ask);
  CPPUNIT_TEST(one_of_many_asks);
  CPPUNIT_TEST(random_operations);
  CPPUNIT_TEST(random_operations_in_little_space);
  CPPUNIT_TEST(never_older_than_a_change);
  CPPUNIT_TEST(data_is_marked);
  CPPUNIT_TEST_SUITE_END();

 public:
  void nothing_is_known_at_first() {
    CachedExtents known(mega, plenty);
    CPPUNIT_ASSERT(known.lookup(0, mega, 1).empty());
    CPPUNIT_ASSERT(known.lookup(mega, 1, 1).empty());
    const Changing changing(known, 0, mega);
    CPPUNIT_ASSERT(known.lookup(0, mega, 1).empty());
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, known.count());
  }

  void learns_and_finds() {
    CachedExtents known(mega, plenty);
    const Extents all{{100, 900, 3}, {1000, 2000, 0}, {3000, 5000, 1}};
    teach(known, all);
    CPPUNIT_ASSERT(known.lookup(100, mega, 1) == all);
    CPPUNIT_ASSERT(known.lookup(100, 901, 1) ==
                   Extents(all.begin(), all.end() - 1));
    // The last one is as long as is known.
    CPPUNIT_ASSERT((known.lookup(100, 1, 1) == Extents{{100, 900, 3}}));
    CPPUNIT_ASSERT((known.lookup(999, 2, 1) ==
                    Extents{{999, 1, 3}, {1000, 2000, 0}}));
    CPPUNIT_ASSERT((known.lookup(7999, 9, 1) == Extents{{7999, 1, 1}}));
    CPPUNIT_ASSERT(known.lookup(99, 100, 1).empty());
    CPPUNIT_ASSERT(known.lookup(8000, 1, 1).empty());
    CPPUNIT_ASSERT(known.lookup(100, 0, 1).empty());
    // Behind a gap there may be more.
    teach(known, {{9000, 10, 1}});
    CPPUNIT_ASSERT((known.lookup(3000, mega, 1) == Extents{{3000, 5000, 1}}));
    // A new answer replaces an older one.
    teach(known, {{500, 1000, 7}});
    CPPUNIT_ASSERT((known.lookup(100, 2000, 1) ==
                    Extents{{100, 400, 3}, {500, 1000, 7}, {1500, 1500, 0}}));
  }

  void neighbours_are_merged() {
    CachedExtents known(mega, plenty);
    teach(known, {{0, 10, 3}, {10, 10, 3}, {20, 10, 0}, {30, 0, 3},
                  {30, 5, 0}});
    CPPUNIT_ASSERT((known.lookup(0, 35, 1) ==
                    Extents{{0, 20, 3}, {20, 15, 0}}));
    teach(known, {{50, 10, 0}});
    teach(known, {{35, 15, 0}});  // between
    CPPUNIT_ASSERT((known.lookup(20, 1, 1) == Extents{{20, 40, 0}}));
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, known.count());
    teach(known, {{15, 10, 3}});
    CPPUNIT_ASSERT((known.lookup(0, 100, 1) ==
                    Extents{{0, 25, 3}, {25, 35, 0}}));
    teach(known, {{25, 35, 3}});
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, known.count());
  }

  void what_is_beyond_the_end() {
    constexpr std::uint64_t size = 10'000;
    CachedExtents known(size, plenty);
    teach(known, {{9000, UINT64_MAX - 9000, 1}, {UINT64_MAX, 5, 0}});
    CPPUNIT_ASSERT((known.lookup(9500, 1, 1) == Extents{{9500, 500, 1}}));
    CPPUNIT_ASSERT(known.lookup(size, 1, 1).empty());
    teach(known, {{size, 5, 0}});
    teach(known, {{size + 5, 5, 0}});
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, known.count());
    const Changing changing(known, 9999, 1);
    CPPUNIT_ASSERT(known.lookup(9999, 1, 1).empty());
    const Changing outside(known, size + 1, 100);
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, known.count());
  }

  void changes_forget() {
    CachedExtents known(mega, plenty);
    const Extent all{0, mega, 3};
    teach(known, {all});
    {
      // Rounded outwards.
      const Changing changing(known, 2 * unit - 1, 2);
      CPPUNIT_ASSERT((known.lookup(0, mega, 1) == Extents{{0, unit, 3}}));
      CPPUNIT_ASSERT(known.lookup(unit, 1, 1).empty());
      CPPUNIT_ASSERT(known.lookup(3 * unit - 1, 1, 1).empty());
      CPPUNIT_ASSERT((known.lookup(3 * unit, 1, 1) ==
                      Extents{{3 * unit, mega - 3 * unit, 3}}));
      // Nor learnt while it lasts.
      teach(known, {all});
      CPPUNIT_ASSERT(known.lookup(unit, 1, 1).empty());
      // Another change of a part of it.
      {
        const Changing other(known, 2 * unit, 2 * unit);
        teach(known, {all});
      }
      teach(known, {all});
      CPPUNIT_ASSERT(known.lookup(2 * unit, 1, 1).empty());
      CPPUNIT_ASSERT(!known.lookup(3 * unit, 1, 1).empty());
    }
    CPPUNIT_ASSERT(known.lookup(unit, 1, 1).empty());
    teach(known, {all});
    CPPUNIT_ASSERT(known.lookup(0, 1, 1) == Extents{all});
    // Many extents at once, and the parts of the two at its ends.
    Extents alternating;
    for (std::uint64_t n = 0; n < 64; n++)
      alternating.push_back({n * unit, unit, n % 2 == 0 ? 0u : 3u});
    teach(known, alternating);
    { const Changing changing(known, 10 * unit, 40 * unit); }
    CPPUNIT_ASSERT(known.lookup(0, mega, 1) ==
                   Extents(alternating.begin(), alternating.begin() + 10));
    CPPUNIT_ASSERT(known.lookup(49 * unit, 1, 1).empty());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{50 * unit},
                         known.lookup(50 * unit, 1, 1).at(0).offset);
  }

  void changes_during_a_question() {
    CachedExtents known(mega, plenty);
    const auto unknown = [&](std::uint64_t n) {
      return known.lookup(n * unit, 1, 1).empty();
    };
    {
      // 0 began before, 1 ends meanwhile, 2 does both, 3 begins, 4 is all of
      // it within.
      std::optional<Changing> zero(std::in_place, known, 0, 1);
      std::optional<Changing> one(std::in_place, known, unit, 1);
      Question question(known, 1, 0, mega);
      one.reset();
      const Changing three(known, 3 * unit, 1);
      { const Changing four(known, 4 * unit, 1); }
      question.learn(Extents{{0, mega, 3}});
      CPPUNIT_ASSERT(unknown(0) && unknown(1) && !unknown(2));
      CPPUNIT_ASSERT(unknown(3) && unknown(4) && !unknown(5));
      zero.reset();
      CPPUNIT_ASSERT(unknown(0));
    }
    // Of two questions, only the one that was there.
    Question early(known, 1, 0, mega);
    { const Changing changing(known, 7 * unit, unit); }
    Question late(known, 1, 0, mega);
    early.learn(Extents{{0, mega, 3}});
    CPPUNIT_ASSERT(unknown(7) && !unknown(8));
    late.learn(Extents{{0, mega, 0}});
    CPPUNIT_ASSERT(!unknown(7));
    CPPUNIT_ASSERT(known.lookup(0, 1, 1) == (Extents{{0, mega, 0}}));
  }

  void many_changes_during_a_question() {
    constexpr std::uint64_t units = 40'000;
    CachedExtents known(units * unit, plenty);
    Question question(known, 1, 0, units * unit);
    // In an order that is not that of the disk.
    constexpr std::uint64_t changes = 9'000;
    for (std::uint64_t n = 0; n < changes; n++) {
      const Changing changing(known, n * 7919 % changes * 3 * unit, unit);
    }
    question.learn(Extents{{0, units * unit, 3}});
    for (std::uint64_t n = 0; n < changes; n++)
      CPPUNIT_ASSERT(known.lookup(n * 3 * unit, 1, 1).empty());
    // The rest is not lost.
    CPPUNIT_ASSERT(!known.lookup(changes * 3 * unit * 11 / 10, 1, 1).empty());
    CPPUNIT_ASSERT(!known.lookup(units * unit - 1, 1, 1).empty());
  }

  void changes_in_sequence_during_a_question() {
    constexpr std::uint64_t units = 10'000;
    CachedExtents known(units * unit, plenty);
    Question question(known, 1, 0, units * unit);
    for (std::uint64_t n = 1; n < units - 1; n++) {
      const Changing changing(known, n * unit, unit);
    }
    question.learn(Extents{{0, units * unit, 3}});
    CPPUNIT_ASSERT((known.lookup(0, mega, 1) == Extents{{0, unit, 3}}));
    CPPUNIT_ASSERT(!known.lookup((units - 1) * unit, 1, 1).empty());
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, known.count());
  }

  void versions() {
    CachedExtents known(mega, plenty);
    const Extents all{{0, mega, 3}};
    teach(known, all, 0);
    CPPUNIT_ASSERT(known.lookup(0, 1, 0).empty());
    CPPUNIT_ASSERT(known.lookup(0, 1, 1).empty());
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, known.count());
    teach(known, all, 5);
    CPPUNIT_ASSERT(known.lookup(0, 1, 4).empty());
    CPPUNIT_ASSERT(known.lookup(0, 1, 6).empty());
    CPPUNIT_ASSERT(known.lookup(0, 1, 0).empty());
    CPPUNIT_ASSERT(known.lookup(0, 1, 5) == all);
    // What was asked before another version does not get in later.
    Question question(known, 5, 0, mega);
    { const Question other(known, 6, 0, mega); }
    CPPUNIT_ASSERT(known.lookup(0, 1, 5).empty());
    CPPUNIT_ASSERT(known.lookup(0, 1, 6).empty());
    question.learn(all);
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, known.count());
    // A change under one version is a change under the next one.
    {
      const Changing changing(known, 0, unit);
      teach(known, all, 7);
      CPPUNIT_ASSERT(known.lookup(0, 1, 7).empty());
    }
    CPPUNIT_ASSERT(known.lookup(0, 1, 7).empty());
  }

  void never_more_than_the_limit() {
    constexpr std::uint64_t units = 5000;
    for (const std::size_t limit : {0, 1, 2, 10, 100}) {
      CachedExtents known(units * unit, limit);
      Extents all;
      for (std::uint64_t n = 0; n < units; n++)
        all.push_back({n * unit, unit, n % 2 == 0 ? 0u : 3u});
      teach(known, all);
      // As much of it as there is room for, from its beginning.
      CPPUNIT_ASSERT_EQUAL(limit, known.count());
      CPPUNIT_ASSERT_EQUAL(limit, known.lookup(0, units * unit, 1).size());
      // Changes must not take more either.
      teach(known, {{0, units * unit, 3}});
      for (std::uint64_t n = 0; n < units; n += 2) {
        const Changing changing(known, n * 7919 % units * unit, unit);
        CPPUNIT_ASSERT(known.count() <= limit);
      }
      for (std::uint64_t n = 0; n + 3 < units; n += 3) {
        teach(known, {all.begin() + static_cast<std::ptrdiff_t>(n),
                      all.begin() + static_cast<std::ptrdiff_t>(n) + 2});
        CPPUNIT_ASSERT(known.count() <= limit);
      }
    }
  }

  void the_last_answer_stays() {
    constexpr std::size_t limit = 64;
    constexpr std::uint64_t units = 6400;
    CachedExtents known(units * unit, limit);
    const auto answer = [](std::uint64_t from, std::uint64_t n) {
      Extents extents;
      for (std::uint64_t i = from; i < from + n; i++)
        extents.push_back({i * unit, unit, i % 2 == 0 ? 0u : 3u});
      return extents;
    };
    std::mt19937 random(1);
    for (int i = 0; i < 1000; i++) {
      const Extents last = answer(random() % (units - limit),
                                  1 + random() % limit);
      teach(known, last);
      CPPUNIT_ASSERT(known.lookup(last[0].offset, last.size() * unit, 1) ==
                     last);
      CPPUNIT_ASSERT(known.count() <= limit);
    }
    // Others only make room, and not all of them.
    CachedExtents more(units * unit, limit);
    teach(more, answer(0, limit));
    teach(more, answer(200, 2));
    CPPUNIT_ASSERT(more.count() > limit / 2);
  }

  void how_much_to_ask() {
    constexpr std::uint64_t size = std::uint64_t{1} << 40;
    CachedExtents known(size + 5, plenty);
    CPPUNIT_ASSERT_EQUAL(CachedExtents::first_asked, known.ask_length(0, 1));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{UINT32_MAX},
                         known.ask_length(1, UINT32_MAX));
    for (int i = 0; i < 20; i++) teach(known, {{0, mega, 1}});
    CPPUNIT_ASSERT_EQUAL(CachedExtents::most_asked, known.ask_length(9, 1));
    // To the end, but aligned as the client's offset is.
    CPPUNIT_ASSERT_EQUAL(mega, known.ask_length(size - mega, 512));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{512},
                         known.ask_length(size - 512, 512));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{512 + 5},
                         known.ask_length(size - 512, 512 + 5));
    // Extents of 4096 bytes: no more than some thousands of them.
    Extents small;
    for (std::uint64_t n = 0; n < 50'000; n++)
      small.push_back({n * unit, unit, n % 2 == 0 ? 0u : 3u});
    teach(known, small);
    const std::uint64_t less = known.ask_length(0, 1);
    CPPUNIT_ASSERT(less >= mega && less <= 4096 * unit);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, less % 65536);
    small.resize(10'000);
    for (Extent& e : small) e = {e.offset / unit, 1, e.type};
    teach(known, small);
    CPPUNIT_ASSERT_EQUAL(CachedExtents::least_asked, known.ask_length(0, 1));
  }

  void one_of_many_asks() {
    constexpr std::uint64_t half = mega / 2;
    CachedExtents known(mega, plenty);
    const auto look = [&](std::uint64_t offset,
                          CachedExtents::Version version) {
      return CachedExtents::Question(known, version, offset, half)
          .lookup_or_begin(1);
    };
    {
      const Question question(known, 1, 0, half);
      // Elsewhere, or of another version, nobody waits.
      CPPUNIT_ASSERT(look(half, 1).empty());
      CPPUNIT_ASSERT(look(0, 0).empty());
      CPPUNIT_ASSERT(look(0, 2).empty());
    }
    for (std::uint64_t round = 0; round < 200; round++) {
      const auto version = static_cast<CachedExtents::Version>(round + 3);
      std::atomic<int> asked{0};
      std::atomic<int> wrong{0};
      std::latch ready(4);
      std::vector<std::jthread> threads;
      for (std::uint64_t t = 0; t < 4; t++)
        threads.emplace_back([&] {
          ready.arrive_and_wait();
          CachedExtents::Question question(known, version, 0, mega);
          const Extents found = question.lookup_or_begin(1);
          if (!found.empty()) {
            if (found != Extents{{0, mega, 3}}) ++wrong;
            return;
          }
          ++asked;
          if (round % 20 == 0)
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
          question.learn(Extents{{0, mega, 3}});
        });
      threads.clear();
      CPPUNIT_ASSERT_EQUAL(1, asked.load());
      CPPUNIT_ASSERT_EQUAL(0, wrong.load());
    }
    // Who waited for nothing asks himself.
    std::atomic<bool> ended{false};
    std::jthread second;
    {
      const Question first(known, 1, 0, mega);
      std::latch ready(1);
      second = std::jthread([&] {
        ready.count_down();
        CachedExtents::Question question(known, 1, half, half);
        if (!question.lookup_or_begin(1).empty() || !ended) return;
        question.learn(Extents{{half, half, 3}});
      });
      ready.wait();
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      ended = true;
    }
    second.join();
    CPPUNIT_ASSERT(!known.lookup(half, 1, 1).empty());
  }

  void random_operations() {
    for (unsigned seed = 0; seed < 20; seed++) compare(seed, plenty, 2000);
  }

  void random_operations_in_little_space() {
    for (unsigned seed = 0; seed < 20; seed++) compare(seed, seed, 2000);
  }

  // The rule: who asks after a change has been acknowledged gets no answer
  // from before it.
  void never_older_than_a_change() {
    constexpr std::uint64_t units = 64;
    // Small, so that it makes room all the time in the second round.
    for (const std::size_t limit : {plenty, std::size_t{20}}) {
      CachedExtents known(units * unit, limit);
      // The type of a unit is how often it was changed: below, and
      // acknowledged.
      std::vector<std::atomic<std::uint32_t>> below(units);
      std::vector<std::atomic<std::uint32_t>> acknowledged(units);
      std::atomic<int> writing{3};
      std::atomic<std::uint64_t> hits{0};
      std::atomic<bool> wrong{false};
      std::vector<std::jthread> threads;
      for (unsigned t = 0; t < 3; ++t)
        threads.emplace_back([&, t] {
          std::mt19937 random(t);
          for (int i = 0; i < 3'000; ++i) {
            const std::uint64_t first = random() % units;
            const std::uint64_t n = 1 + random() % std::min<std::uint64_t>(
                                                4, units - first);
            std::vector<std::uint32_t> now(n);
            {
              const Changing changing(known, first * unit, n * unit);
              for (std::uint64_t u = 0; u < n; u++)
                now[u] = ++below[first + u];
              if (random() % 4 == 0) std::this_thread::yield();
            }
            for (std::uint64_t u = 0; u < n; u++) {
              std::atomic<std::uint32_t>& a = acknowledged[first + u];
              std::uint32_t old = a;
              while (old < now[u] && !a.compare_exchange_weak(old, now[u])) {
              }
            }
            std::this_thread::sleep_for(std::chrono::microseconds(20));
          }
          --writing;
        });
      for (unsigned t = 0; t < 3; ++t)
        threads.emplace_back([&, t] {
          std::mt19937 random(100 + t);
          std::vector<std::uint32_t> least(units);
          // Another version now and then.
          for (std::uint32_t i = 0; writing > 0; ++i) {
            const CachedExtents::Version version = 1 + i / 200;
            const std::uint64_t first = random() % units;
            for (std::uint64_t u = first; u < units; u++)
              least[u] = acknowledged[u];
            const Extents found =
                known.lookup(first * unit, units * unit, version);
            for (const Extent& e : found)
              for (std::uint64_t u = e.offset / unit;
                   u < (e.offset + e.length) / unit; u++) {
                ++hits;
                if (e.type < least[u]) wrong = true;
              }
            if (found.empty()) {
              Question question(known, version, first * unit, 8 * unit);
              Extents answer;
              for (std::uint64_t u = first; u < std::min(first + 8, units); u++)
                answer.push_back({u * unit, unit, below[u]});
              if (random() % 2 == 0) std::this_thread::yield();
              question.learn(answer);
            }
            if (known.count() > limit) wrong = true;
          }
        });
      threads.clear();
      CPPUNIT_ASSERT(!wrong);
      CPPUNIT_ASSERT(hits > 100);
    }
  }

  void data_is_marked() {
    const Extents all{{10, 10, 3}, {20, 10, 0}, {30, 10, 3}, {40, 10, 1}};
    const auto marked = [&](std::vector<CachedExtents::Range> ranges) {
      Extents extents = all;
      mark_data(extents, std::move(ranges));
      return extents;
    };
    CPPUNIT_ASSERT(marked({}) == all);
    CPPUNIT_ASSERT(marked({{0, 10}, {50, 5}, {22, 3}}) == all);
    CPPUNIT_ASSERT((marked({{45, 1}, {12, 3}}) ==
                    Extents{{10, 2, 3}, {12, 3, 0}, {15, 5, 3}, {20, 10, 0},
                            {30, 10, 3}, {40, 5, 1}, {45, 1, 0}, {46, 4, 1}}));
    CPPUNIT_ASSERT((marked({{0, 100}}) == Extents{{10, 40, 0}}));
    CPPUNIT_ASSERT((marked({{0, 11}, {5, 7}, {49, 100}, {18, 13}}) ==
                    Extents{{10, 2, 0}, {12, 6, 3}, {18, 13, 0}, {31, 9, 3},
                            {40, 9, 1}, {49, 1, 0}}));
    // One that reaches over another.
    CPPUNIT_ASSERT((marked({{10, 20}, {12, 1}, {29, 3}}) ==
                    Extents{{10, 22, 0}, {32, 8, 3}, {40, 10, 1}}));
  }

 private:
  /// Random operations, one at a time but with questions and changes that are
  /// under way at once, against an array.
  static void compare(unsigned seed, std::size_t limit, int operations) {
    constexpr std::uint64_t units = 100;
    constexpr std::uint64_t size = units * unit - 1000;
    const bool exact = limit == plenty;
    std::mt19937 random(seed);
    CachedExtents known(size, limit);
    std::vector<std::uint32_t> below(units);
    struct Unit {
      bool known = false;
      std::uint32_t type = 0;
      int changes = 0;  ///< under way
    };
    std::vector<Unit> model(units);
    CachedExtents::Version version = 1;
    struct Asked {
      Asked(CachedExtents& k, CachedExtents::Version v, std::uint64_t first,
            std::uint64_t n)
          : question(k, v, first * unit, n * unit), version(v), changed(units) {
      }
      Question question;
      CachedExtents::Version version;
      std::vector<bool> changed;
      Extents answer{};
    };
    std::list<Asked> questions;
    struct Change {
      Change(CachedExtents& k, std::uint64_t from, std::uint64_t to)
          : changing(k, from, to - from),
            first(from / unit),
            end((to + unit - 1) / unit) {}
      Changing changing;
      std::uint64_t first;
      std::uint64_t end;
    };
    std::list<Change> changes;
    const auto take = [&random](auto& list) {
      auto it = list.begin();
      std::advance(it, random() % list.size());
      return it;
    };
    for (int i = 0; i < operations; i++) {
      const std::uint64_t first = random() % units;
      const std::uint64_t n = 1 + random() % (units - first);
      const unsigned what = random() % 100;
      if (what < 15 && changes.size() < 4) {
        const std::uint64_t from = first * unit + random() % 1000;
        const std::uint64_t to =
            std::min(from + 1 + random() % (8 * unit), size);
        changes.emplace_back(known, from, to);
        for (std::uint64_t u = changes.back().first; u < changes.back().end;
             u++) {
          model[u].known = false;
          model[u].changes++;
          for (Asked& q : questions) q.changed[u] = true;
          below[u] = random() % 4;
        }
      } else if (what < 30 && !changes.empty()) {
        const auto it = take(changes);
        for (std::uint64_t u = it->first; u < it->end; u++) {
          model[u].changes--;
          below[u] = random() % 4;
        }
        changes.erase(it);
      } else if (what < 45 && questions.size() < 3) {
        Asked& asked = questions.emplace_back(known, version, first, n);
        for (std::uint64_t u = 0; u < units; u++)
          asked.changed[u] = model[u].changes > 0;
        // Everything that follows, in pieces as it comes.
        for (std::uint64_t u = first; u < first + n; u++)
          asked.answer.push_back({u * unit, unit, below[u]});
      } else if (what < 60 && !questions.empty()) {
        const auto it = take(questions);
        // Learnt by parts that the change may have come before or after:
        // either is right, so the model takes what was asked first.
        it->question.learn(it->answer);
        if (it->version == version)
          for (const Extent& e : it->answer) {
            const std::uint64_t u = e.offset / unit;
            if (!it->changed[u] && model[u].changes == 0)
              model[u] = {true, e.type, 0};
          }
        questions.erase(it);
      } else if (what == 60 && random() % 4 == 0) {
        version++;
        for (Unit& u : model) u.known = false;
        const Question question(known, version, 0, 1);
      } else {
        const std::uint64_t from = std::min(first * unit + random() % unit,
                                            size - 1);
        const Extents found = known.lookup(from, size - from, version);
        std::uint64_t at = from;
        std::optional<std::uint32_t> last;
        for (const Extent& e : found) {
          CPPUNIT_ASSERT_EQUAL(at, e.offset);
          CPPUNIT_ASSERT(e.length > 0 && e.offset + e.length <= size);
          CPPUNIT_ASSERT(!last || *last != e.type);
          last = e.type;
          for (std::uint64_t u = at / unit; u * unit < at + e.length; u++) {
            CPPUNIT_ASSERT(model[u].known);
            CPPUNIT_ASSERT_EQUAL(model[u].type, e.type);
          }
          at += e.length;
        }
        if (exact && at < size) CPPUNIT_ASSERT(!model[at / unit].known);
      }
      CPPUNIT_ASSERT(known.count() <= limit);
    }
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(TestCachedExtents);

}  // namespace
