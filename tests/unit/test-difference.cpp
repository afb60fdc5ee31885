// SPDX-License-Identifier: BSD-3-Clause
//
// Differences between versions of an object, and between object maps.

#include <cppunit/extensions/HelperMacros.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "image/status/difference.hpp"
#include "rados/memory_store.hpp"

using namespace nbdrados;

namespace {

using Ranges = std::vector<ObjectRange>;

class DifferenceTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(DifferenceTest);
  CPPUNIT_TEST(no_object);
  CPPUNIT_TEST(made_and_removed);
  CPPUNIT_TEST(overlaps);
  CPPUNIT_TEST(trimmed_clones);
  CPPUNIT_TEST(nonsense_is_a_change);
  CPPUNIT_TEST(random_histories);
  CPPUNIT_TEST(object_maps);
  CPPUNIT_TEST(object_maps_of_other_sizes);
  CPPUNIT_TEST(object_maps_of_many_blocks);
  CPPUNIT_TEST(the_largest_object_maps);
  CPPUNIT_TEST_SUITE_END();

  void no_object() {
    CPPUNIT_ASSERT(object_difference({}, 1, snap_head) == ObjectDifference{});
  }

  void made_and_removed() {
    // Made under snapshot 5, so absent in it.
    const SnapSet made{.seq = 5, .versions = {{.id = snap_head, .size = 10}}};
    CPPUNIT_ASSERT(object_difference(made, 5, snap_head) ==
                   (ObjectDifference{false, true, {{0, 10}}}));
    CPPUNIT_ASSERT(object_difference(made, 4, 5) == ObjectDifference{});
    // 6 and 7 see the head.
    CPPUNIT_ASSERT(object_difference(made, 5, 6) ==
                   (ObjectDifference{false, true, {{0, 10}}}));
    CPPUNIT_ASSERT(object_difference(made, 6, 7) ==
                   (ObjectDifference{true, true, {}}));
    const SnapSet removed{.seq = 5,
                          .versions = {{.id = 5, .snaps = {4, 5}, .size = 8}}};
    CPPUNIT_ASSERT(object_difference(removed, 4, 5) ==
                   (ObjectDifference{true, true, {}}));
    CPPUNIT_ASSERT(object_difference(removed, 5, 6) ==
                   (ObjectDifference{true, false, {{0, 8}}}));
    CPPUNIT_ASSERT(object_difference(removed, 4, snap_head) ==
                   (ObjectDifference{true, false, {{0, 8}}}));
  }

  void overlaps() {
    const SnapSet set{
        .seq = 3,
        .versions = {{1, {1}, 100, {{0, 40}, {60, 40}}},
                     {3, {2, 3}, 100, {{10, 50}}},
                     {snap_head, {}, 60, {}}}};
    CPPUNIT_ASSERT(object_difference(set, 1, 2).ranges == (Ranges{{40, 20}}));
    CPPUNIT_ASSERT(object_difference(set, 2, snap_head).ranges ==
                   (Ranges{{0, 10}, {60, 40}}));
    CPPUNIT_ASSERT(object_difference(set, 1, 9).ranges ==
                   (Ranges{{0, 10}, {40, 60}}));
  }

  void trimmed_clones() {
    // The clone's own snapshot 5 has been removed: 4 still sees the clone.
    const SnapSet set{.seq = 5,
                      .versions = {{5, {4}, 16, {{0, 8}}},
                                   {snap_head, {}, 16, {}}}};
    CPPUNIT_ASSERT(object_difference(set, 4, snap_head) ==
                   (ObjectDifference{true, true, {{8, 8}}}));
    // 3 is before the object was made.
    CPPUNIT_ASSERT(object_difference(set, 3, 4) ==
                   (ObjectDifference{false, true, {{0, 16}}}));
  }

  void nonsense_is_a_change() {
    const SnapSet set{.seq = 2,
                      .versions = {{1, {1}, 16, {{0, 16}}},
                                   {2, {2}, 16, {{8, ~std::uint64_t{0} - 8}}},
                                   {snap_head, {}, 16, {}}}};
    CPPUNIT_ASSERT(object_difference(set, 2, 1).ranges == (Ranges{{0, 16}}));
    CPPUNIT_ASSERT(object_difference(set, 2, snap_head).ranges ==
                   (Ranges{{0, 8}}));
  }

  void random_histories() {
    constexpr std::uint64_t size = 64;
    for (unsigned seed = 0; seed < 200; ++seed) {
      std::mt19937 random(seed);
      MemoryStore store;
      SnapContext snapc;
      std::vector<SnapId> snaps;
      for (int i = 0; i < 30; ++i) {
        const std::uint64_t at = random() % size;
        const std::uint64_t n = 1 + random() % (size - at);
        const std::string bytes(n, static_cast<char>('a' + i % 26));
        const ConstPiece piece{bytes.data(), bytes.size()};
        WriteOp op;
        switch (random() % 6) {
          case 0:
            snapc.seq += 1 + random() % 2;
            snapc.snaps.insert(snapc.snaps.begin(), snapc.seq);
            snaps.push_back(snapc.seq);
            continue;
          case 1: op.remove(); break;
          case 2: op.truncate(at); break;
          case 3: op.zero(at, n); break;
          default: op.write(at, {&piece, 1});
        }
        (void)store.write("o", op, snapc)->wait();
      }
      snaps.push_back(snap_head);
      SnapSet set;
      if (store.list_snaps("o", &set)->wait() < 0) set = {};
      for (std::size_t i = 0; i < snaps.size(); ++i)
        for (std::size_t j = i + 1; j < snaps.size(); ++j)
          compare(store, set, snaps[i], snaps[j]);
    }
  }

  /// The ranges are just where the contents differ or can differ.
  static void compare(MemoryStore& store, const SnapSet& set, SnapId from,
                      SnapId to) {
    const auto a = store.find("o", from);
    const auto b = store.find("o", to);
    const ObjectDifference d = object_difference(set, from, to);
    CPPUNIT_ASSERT_EQUAL(a.has_value(), d.existed);
    CPPUNIT_ASSERT_EQUAL(b.has_value(), d.exists);
    std::string old = a ? a->data.bytes() : std::string();
    std::string now = b ? b->data.bytes() : std::string();
    const std::size_t longest = std::max(old.size(), now.size());
    old.resize(longest);
    now.resize(longest);
    std::uint64_t end = 0;
    for (const ObjectRange& range : d.ranges) {
      CPPUNIT_ASSERT(range.length != 0 && range.offset >= end);
      end = range.offset + range.length;
      CPPUNIT_ASSERT(end <= longest);
      for (std::uint64_t at = range.offset; at < end; ++at) old[at] = now[at];
    }
    CPPUNIT_ASSERT_EQUAL(now, old);
  }

  static ObjectStates states(const std::string& text) {
    ObjectStates all(text.size());
    for (std::size_t n = 0; n < text.size(); ++n)
      all.set(n, text[n] == '-'   ? ObjectState::nonexistent
                 : text[n] == 'x' ? ObjectState::exists
                 : text[n] == 'p' ? ObjectState::pending
                                  : ObjectState::exists_clean);
    return all;
  }
  static std::string text(const ChangedObjects& changed, std::size_t n) {
    std::string all;
    for (std::size_t i = 0; i < n; ++i) all += changed.changed(i) ? '1' : '0';
    return all;
  }

  void object_maps() {
    ChangedObjects changed(states("--xcxcxc-p"));
    CPPUNIT_ASSERT_EQUAL(std::string("0000000000"), text(changed, 10));
    changed.add(states("-xxxcc--cc"));
    CPPUNIT_ASSERT_EQUAL(std::string("0111001110"), text(changed, 10));
    changed.add(states("-c-cccc-cx"));
    CPPUNIT_ASSERT_EQUAL(std::string("0111001111"), text(changed, 10));
  }

  void object_maps_of_other_sizes() {
    ChangedObjects changed(states("xx-"));
    changed.add(states("c"));
    CPPUNIT_ASSERT_EQUAL(std::string("01000"), text(changed, 5));
    changed.add(states("c---x"));
    CPPUNIT_ASSERT_EQUAL(std::string("01001"), text(changed, 5));
    CPPUNIT_ASSERT(!changed.changed(1000));
  }

  // Object by object, as the rule is.
  void object_maps_of_many_blocks() {
    std::mt19937 random(8);
    const auto some_map = [&] {
      ObjectStates map(random() % (5 * object_map_block) + 1,
                       static_cast<ObjectState>(random() % 4));
      for (int i = 0; i < 5; ++i) {
        const std::uint64_t first = random() % map.size();
        map.set(first, first + random() % (map.size() - first),
                static_cast<ObjectState>(random() % 4));
        map.set(random() % map.size(), static_cast<ObjectState>(random() % 4));
      }
      return map;
    };
    for (int round = 0; round < 10; ++round) {
      const ObjectStates old = some_map();
      ChangedObjects changed(old);
      std::vector<bool> model(6 * object_map_block);
      for (int maps = 0; maps < 3; ++maps) {
        const ObjectStates next = some_map();
        changed.add(next);
        for (std::uint64_t n = 0; n < model.size(); ++n) {
          const bool existed =
              n < old.size() && old[n] != ObjectState::nonexistent;
          const ObjectState state =
              n < next.size() ? next[n] : ObjectState::nonexistent;
          if (state != (existed ? ObjectState::exists_clean
                                : ObjectState::nonexistent))
            model[n] = true;
        }
        for (std::uint64_t n = 0; n < model.size(); ++n)
          CPPUNIT_ASSERT_EQUAL(static_cast<bool>(model[n]),
                               changed.changed(n));
        for (int i = 0; i < 50; ++i) {
          const std::uint64_t first = random() % model.size();
          const std::uint64_t end = first + random() % model.size();
          std::uint64_t n = first;
          while (n < end && (n >= model.size() || !model[n])) ++n;
          CPPUNIT_ASSERT_EQUAL(n, changed.end_of_unchanged(first, end));
        }
      }
    }
  }

  // In a moment, and in hardly any memory.
  void the_largest_object_maps() {
    ObjectStates map(object_map_max, ObjectState::exists);
    ChangedObjects changed(map);
    map = ObjectStates(object_map_max, ObjectState::exists_clean);
    map.set(object_map_max - 9, ObjectState::exists);
    for (int i = 0; i < 100; ++i) changed.add(map);
    CPPUNIT_ASSERT_EQUAL(object_map_max - 9,
                         changed.end_of_unchanged(0, object_map_max));
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(DifferenceTest);

}  // namespace
