// SPDX-License-Identifier: BSD-3-Clause
//
// Block status: what is data and what is a hole, what is asked for that, what
// is learnt of it, and what one call may cost.

#include <cppunit/extensions/HelperMacros.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "image-room.hpp"
#include "image/status/block_status.hpp"
#include "image/status/map_learner.hpp"
#include "layout/sectors.hpp"
#include "rbd/object_map.hpp"

using namespace nbdrados;
using namespace std::chrono_literals;
using Kind = FaultStore::Kind;
using u64 = std::uint64_t;
using Extents = std::vector<Extent>;

namespace {

constexpr u64 K = 1024;
constexpr u64 M = 1024 * K;
const Layout small(64 * K, 64 * K, 1);

/// As BlueStore, exact to the byte.
RoomOptions exact_store(ImageOptions image = {}) {
  RoomOptions options{.image = std::move(image)};
  options.store.map_granularity = 1;
  return options;
}
ImageOptions mode(ExtentsMode extents) {
  ImageOptions how;
  how.extents = extents;
  return how;
}

struct Bench : ImageRoom {
  Bench(const Layout& layout, const View& view,
        RoomOptions options = exact_store())
      : ImageRoom(layout, view, std::move(options)) {}
  /// All extents of a range: a call may end early when time is short.
  Extents extents(u64 length, u64 offset) {
    Extents all;
    for (const u64 end = offset + length; offset < end;) {
      for (const Extent& e : status.extents(end - offset, offset, false)) {
        if (!all.empty() && all.back().data == e.data)
          all.back().length += e.length;
        else
          all.push_back(e);
        offset = e.offset + e.length;
      }
    }
    return all;
  }
  int error(u64 length, u64 offset = 0, bool one = false) {
    return error_of([&] { (void)status.extents(length, offset, one); });
  }
  /// What a child is told, as offset and length.
  std::vector<ObjectRange> backing(u64 length, u64 offset, bool* missing) {
    std::vector<Fragment> found;
    *missing = status.find_backing_data(length, offset, found);
    std::vector<ObjectRange> ranges;
    for (const Fragment& f : found)
      ranges.push_back({f.image_offset, f.length});
    return ranges;
  }
  std::size_t asked() {
    return store.count(Kind::stat) + store.count(Kind::map_extents);
  }
  BlockStatus status{core};
};

View head(u64 size) { return {.size = size}; }
View snapshot(u64 size, SnapId snap = 5) {
  return {.size = size, .snapc = {5, {5}}, .snap = snap};
}
View mapped(View view) {
  view.mappable = true;
  return view;
}
View clone(u64 size, u64 overlap) {
  return {.size = size, .overlap = overlap, .parent_spec = {1, "", "p", 7}};
}

u64 data_in(const Extents& list) {
  u64 n = 0;
  for (const Extent& e : list)
    if (e.data) n += e.length;
  return n;
}

/// The part of `all` from `offset` to `end`.
Extents part(Extents all, u64 offset, u64 end) {
  std::erase_if(all,
                [&](const Extent& e) { return e.offset + e.length <= offset; });
  cut(all, offset, end);
  return all;
}

class BlockStatusTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(BlockStatusTest);
  CPPUNIT_TEST(exact_below_the_object);
  CPPUNIT_TEST(data_within_sectors);
  CPPUNIT_TEST(every_part_of_every_layout);
  CPPUNIT_TEST(beyond_the_end);
  CPPUNIT_TEST(off);
  CPPUNIT_TEST(objects_only);
  CPPUNIT_TEST(pool_that_cannot_map);
  CPPUNIT_TEST(errors_are_no_holes);
  CPPUNIT_TEST(first_error_of_several);
  CPPUNIT_TEST(object_that_vanishes);
  CPPUNIT_TEST(objects_that_are_shorter);
  CPPUNIT_TEST(the_largest_request_at_any_byte);
  CPPUNIT_TEST(one_extent_is_cheap);
  CPPUNIT_TEST(one_in_a_hole);
  CPPUNIT_TEST(a_call_ends_when_its_time_is_over);
  CPPUNIT_TEST(a_call_takes_larger_steps);
  CPPUNIT_TEST(work_follows_the_time);
  CPPUNIT_TEST(by_an_object_map);
  CPPUNIT_TEST(map_that_is_not_to_be_believed);
  CPPUNIT_TEST(map_that_cannot_be_read);
  CPPUNIT_TEST(hole_goes_on_behind_the_range);
  CPPUNIT_TEST(huge_and_mapped);
  CPPUNIT_TEST(nothing_is_listed);
  CPPUNIT_TEST(head_is_asked_each_time);
  CPPUNIT_TEST(head_in_a_tenure_is_asked_once);
  CPPUNIT_TEST(snapshot_is_asked_once);
  CPPUNIT_TEST(doubtful_snapshot_is_not_learnt);
  CPPUNIT_TEST(removed_objects);
  CPPUNIT_TEST(parent_where_there_is_no_object);
  CPPUNIT_TEST(end_of_the_overlap);
  CPPUNIT_TEST(parent_of_smaller_objects);
  CPPUNIT_TEST(errors_of_the_parent);
  CPPUNIT_TEST(holes_that_are_confirmed);
  CPPUNIT_TEST(flattened_meanwhile);
  CPPUNIT_TEST(for_a_child);
  CPPUNIT_TEST(for_a_child_by_a_map);
  CPPUNIT_TEST_SUITE_END();

 public:
  void exact_below_the_object() {
    RoomOptions blocks;
    blocks.store.map_granularity = 4096;
    Bench b(small, head(M), blocks);
    b.put(0, "x", 5 * K);
    b.put(3, "x", 8 * K);
    CPPUNIT_ASSERT(b.extents(M, 0) ==
                   (Extents{{0, 4 * K, false},
                            // Up to the object's end, 5 K + 1.
                            {4 * K, K + 512, true},
                            {5 * K + 512, 195 * K - 512, false},
                            {200 * K, 512, true},
                            {200 * K + 512, M - 200 * K - 512, false}}));
  }

  void data_within_sectors() {
    Bench b(small, head(100 * K + 300));
    b.put(0, std::string(600, 'x'), 1000);
    b.put(1, "x", 36 * K + 299);
    CPPUNIT_ASSERT(b.extents(100 * K + 300, 0) ==
                   (Extents{{0, 512, false},
                            {512, 1536, true},
                            {2048, 98 * K, false},
                            {100 * K, 300, true}}));
    // The hole before the data is in its sector.
    CPPUNIT_ASSERT(b.status.extents(90 * K, 600, true) ==
                   (Extents{{600, 1448, true}}));
    CPPUNIT_ASSERT(b.status.extents(1, 1999, false) ==
                   (Extents{{1999, 1, true}}));
    CPPUNIT_ASSERT(b.status.extents(1, 100 * K + 5, false) ==
                   (Extents{{100 * K + 5, 1, true}}));
  }

  // No byte of data is in a hole, and any part of the answer to a request for
  // all is the answer to a request for this part.
  void every_part_of_every_layout() {
    for (unsigned seed = 0; seed < 15; ++seed) {
      std::mt19937 random(seed);
      const Layout layout = seed % 3 == 0   ? Layout(8 * K, 8 * K, 1)
                            : seed % 3 == 1 ? Layout(8 * K, 512, 4)
                                            : Layout(5000, 1000, 3);
      const u64 size = 60 * K + random() % 2000;
      Bench b(layout, head(size));
      std::vector<bool> data(size);
      for (int i = 0; i < 8; ++i) {
        const u64 at = random() % size;
        const u64 n = std::min(1 + random() % 2000, size - at);
        for (const auto& e : layout.cut(at, n)) {
          b.put(e.object_no, std::string(e.length, 'x'), e.offset);
          for (const Fragment& f : e.parts)
            std::fill_n(data.begin() + static_cast<long>(f.image_offset),
                        f.length, true);
        }
      }
      const Extents all = b.extents(size, 0);
      check_data(all, data);
      for (int i = 0; i < 60; ++i) {
        const u64 offset = random() % size;
        const u64 length = 1 + random() % (size - offset);
        const bool one = random() % 2 == 0;
        const Extents list = b.status.extents(length, offset, one);
        CPPUNIT_ASSERT(!list.empty() && (!one || list.size() == 1));
        const u64 end = list.back().offset + list.back().length;
        CPPUNIT_ASSERT(one ? end <= offset + length : end >= offset + length);
        CPPUNIT_ASSERT(part(all, offset, end) == list);
      }
    }
  }

  static void check_data(const Extents& all, const std::vector<bool>& data) {
    u64 at = 0;
    for (const Extent& e : all) {
      CPPUNIT_ASSERT_EQUAL(at, e.offset);
      CPPUNIT_ASSERT_EQUAL(u64{0}, at % 512);
      bool any = false;
      for (at = e.offset; at < e.offset + e.length; ++at) any |= data[at];
      CPPUNIT_ASSERT_EQUAL(e.data, any);
    }
    CPPUNIT_ASSERT_EQUAL(u64{data.size()}, at);
  }

  void beyond_the_end() {
    Bench b(small, head(100 * K));
    for (const auto& [length, offset] : std::vector<std::pair<u64, u64>>{
             {1, 100 * K}, {2, 100 * K - 1}, {2, ~u64{0}}, {~u64{0}, 2}})
      for (const bool one : {false, true}) {
        CPPUNIT_ASSERT_EQUAL(EINVAL, b.error(length, offset, one));
        Bench off(small, head(100 * K), exact_store(mode(ExtentsMode::off)));
        CPPUNIT_ASSERT_EQUAL(EINVAL, off.error(length, offset, one));
      }
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, b.asked());
  }

  void off() {
    Bench b(small, head(M), exact_store(mode(ExtentsMode::off)));
    CPPUNIT_ASSERT(b.status.extents(M - 5, 5, false) ==
                   (Extents{{5, M - 5, true}}));
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, b.asked());
    b.state->set_load_error(EIO);
    (void)error_of([&] { b.core.metadata.load(); });
    CPPUNIT_ASSERT_EQUAL(EIO, b.error(M));
  }

  void objects_only() {
    Bench b(small, head(M), exact_store(mode(ExtentsMode::object)));
    b.put(1, "x", 8 * K);
    const Extents expected = {{0, 64 * K, false},
                              {64 * K, 8 * K + 512, true},
                              {72 * K + 512, M - 72 * K - 512, false}};
    CPPUNIT_ASSERT(b.extents(M, 0) == expected);
    CPPUNIT_ASSERT(b.extents(K, 70 * K) == (Extents{{70 * K, K, true}}));
    CPPUNIT_ASSERT(b.extents(K, 80 * K) == (Extents{{80 * K, K, false}}));
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, b.store.count(Kind::map_extents));
    // With a map not even the size is asked for.
    auto map = std::make_shared<ObjectStates>(16);
    map->set(1, ObjectState::exists);
    b.state->map = map;
    b.load(mapped(head(M)));
    b.store.clear_log();
    CPPUNIT_ASSERT(b.extents(M, 0) ==
                   (Extents{{0, 64 * K, false},
                            {64 * K, 64 * K, true},
                            {128 * K, M - 128 * K, false}}));
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, b.asked());
    b.store.inject({.kind = Kind::stat, .error = EIO});
    CPPUNIT_ASSERT_EQUAL(EIO, b.error(K));  // too little for the map
  }

  void pool_that_cannot_map() {
    RoomOptions options;
    options.store.can_map = false;
    Bench b(small, head(M), options);
    b.put(0, "x", 10 * K);
    b.put(1, "x", 6 * K);
    CPPUNIT_ASSERT(b.extents(M, 0) ==
                   (Extents{{0, 10 * K + 512, true},
                            {10 * K + 512, 54 * K - 512, false},
                            {64 * K, 6 * K + 512, true},
                            {70 * K + 512, M - 70 * K - 512, false}}));
    CPPUNIT_ASSERT(b.extents(K, 0) == (Extents{{0, K, true}}));
    CPPUNIT_ASSERT(b.extents(K, 20 * K) == (Extents{{20 * K, K, false}}));
    CPPUNIT_ASSERT(b.extents(K, 900 * K) == (Extents{{900 * K, K, false}}));
    b.store.inject({.kind = Kind::stat, .error = ETIMEDOUT});
    CPPUNIT_ASSERT_EQUAL(ETIMEDOUT, b.error(K));
  }

  void errors_are_no_holes() {
    Bench b(small, head(M));
    b.put(0, "x");
    b.put(7, "x");
    for (const int code : {EIO, ESHUTDOWN, ETIMEDOUT, EPERM, ENXIO})
      for (const auto& fault :
           {FaultStore::Fault{.kind = Kind::stat, .oid = b.oid(5)},
            FaultStore::Fault{.kind = Kind::map_extents, .oid = b.oid(7)}}) {
        FaultStore::Fault hit = fault;
        hit.error = code;
        b.store.inject(hit);
        CPPUNIT_ASSERT_EQUAL(code, b.error(M));
        CPPUNIT_ASSERT_EQUAL(u64{1024}, data_in(b.extents(M, 0)));
      }
    b.store.inject({.kind = Kind::map_extents, .error = EIO});
    CPPUNIT_ASSERT_EQUAL(
        std::string("pool/image: cannot map object data.0000: Input/output "
                    "error"),
        message_of([&] { (void)b.status.extents(K, 0, false); }));
    b.store.inject({.kind = Kind::stat, .oid = b.oid(2), .error = EIO});
    CPPUNIT_ASSERT_EQUAL(
        std::string("pool/image: cannot stat object data.0002: Input/output "
                    "error"),
        message_of([&] { (void)b.status.extents(M, 0, false); }));
  }

  void first_error_of_several() {
    Bench b(small, head(M));
    b.store.inject({.kind = Kind::stat, .oid = b.oid(9), .error = EPERM});
    b.store.inject({.kind = Kind::stat, .oid = b.oid(4), .error = EIO});
    CPPUNIT_ASSERT_EQUAL(EIO, b.error(M));
    // All have been asked, and nothing is in flight.
    CPPUNIT_ASSERT_EQUAL(std::size_t{16}, b.store.count(Kind::stat));
  }

  void object_that_vanishes() {
    // Between asking for its size and mapping it.
    Bench b(small, head(4 * 64 * K));
    b.put(0, "x");
    b.store.inject({.kind = Kind::map_extents, .error = ENOENT});
    CPPUNIT_ASSERT(b.extents(256 * K, 0) == (Extents{{0, 256 * K, false}}));
  }

  void objects_that_are_shorter() {
    // What they do not have in the range is not asked for.
    Bench b(small, head(M));
    for (u64 n = 0; n < 16; ++n) b.put(n, std::string(8 * K, 'x'));
    CPPUNIT_ASSERT(b.extents(M - 100 * K, 20 * K).size() == 29);
    // 14 of the 15; the first one ends before the range.
    CPPUNIT_ASSERT_EQUAL(std::size_t{14}, b.store.count(Kind::map_extents));
    for (const auto& r : b.store.log())
      CPPUNIT_ASSERT(r.kind != Kind::map_extents || r.length == 8 * K);
  }

  // nbdkit aborts on an extent of more than 32 bits.
  void the_largest_request_at_any_byte() {
    constexpr u64 most = 0xffffffff;
    Bench b(Layout(4 * M, 4 * M, 1), head(u64{1} << 40));
    b.put(1025, "x");
    for (const bool one : {false, true})
      for (const u64 offset : {0, 1, 511, 512, 513, 4096 * 1024 + 1}) {
        const auto list = b.status.extents(most, offset, one);
        CPPUNIT_ASSERT_EQUAL(offset, list[0].offset);
        CPPUNIT_ASSERT(list[0].length <= most);
      }
    CPPUNIT_ASSERT(b.extents(most, 4 * M + 2).size() == 2);
    // And there is none of it.
    CPPUNIT_ASSERT(b.extents(most, u64{8} << 30) ==
                   (Extents{{u64{8} << 30, most, false}}));
  }

  void one_extent_is_cheap() {
    Bench b(small, head(1024 * M));
    b.put(0, std::string(64 * K, 'x'));
    CPPUNIT_ASSERT(b.status.extents(1024 * M - 10, 10, true) ==
                   (Extents{{10, 64 * K - 10, true}}));
    // The object, and a few to see where it ends.
    CPPUNIT_ASSERT(b.asked() <= 8);
    // Not even that where it ends within the object.
    b.put(1, "x", 8 * K);
    b.store.clear_log();
    CPPUNIT_ASSERT(b.status.extents(512 * M, 64 * K, true) ==
                   (Extents{{64 * K, 8 * K, false}}));
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, b.asked());
  }

  void one_in_a_hole() {
    Bench b(small, head(64 * M));
    b.put(700, "x");
    // One extent, as long as can be found out in time.
    u64 at = 0;
    while (at < 700 * 64 * K) {
      const auto list = b.status.extents(64 * M - at, at, true);
      CPPUNIT_ASSERT_EQUAL(std::size_t{1}, list.size());
      CPPUNIT_ASSERT(!list[0].data);
      at += list[0].length;
    }
    CPPUNIT_ASSERT_EQUAL(u64{700 * 64 * K}, at);
    CPPUNIT_ASSERT(b.status.extents(64 * M - at, at, true) ==
                   (Extents{{at, 512, true}}));
    // Behind the range it is not told of.
    CPPUNIT_ASSERT(b.status.extents(K, 5, true) == (Extents{{5, K, false}}));
  }

  void a_call_ends_when_its_time_is_over() {
    Bench b(small, head(1024 * M));
    b.store.inject({.kind = Kind::stat, .delay = 150ms});
    const Extents list = b.status.extents(1024 * M, 0, false);
    // After the first step, and the rest is for the next call.
    CPPUNIT_ASSERT(list == (Extents{{0, 256 * 64 * K, false}}));
    CPPUNIT_ASSERT_EQUAL(std::size_t{256}, b.store.count(Kind::stat));
    b.store.inject({.kind = Kind::map_extents, .delay = 150ms});
    b.store.clear_log();
    CPPUNIT_ASSERT(b.status.extents(512 * M, 30, true) ==
                   (Extents{{30, 64 * K - 30, false}}));
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, b.asked());
  }

  void a_call_takes_larger_steps() {
    Bench b(small, head(1024 * M));
    // As long as they are quick: the third one is late.
    b.store.inject({.kind = Kind::stat, .skip = 256 + 1024, .delay = 150ms});
    const Extents list = b.status.extents(1024 * M, 0, false);
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, list.size());
    CPPUNIT_ASSERT(list[0].length <= (256 + 1024 + 1024) * 64 * K);
    CPPUNIT_ASSERT(b.store.most_in_flight() <= 128);
  }

  // By a map nothing but time bounds what a call looks at, and that is short.
  void work_follows_the_time() {
    constexpr u64 object = 4 * K;
    Bench b(Layout(object, object, 1), mapped(head(u64{100'000'000} * object)));
    auto map = std::make_shared<ObjectStates>(100'000'000);
    map->set(99'999'999, ObjectState::exists);
    b.state->map = map;
    b.put(99'999'999, "x");
    const auto start = std::chrono::steady_clock::now();
    const Extents list =
        b.extents(u64{4} << 30, u64{100'000'000 - 1048576} * object);
    CPPUNIT_ASSERT_EQUAL(u64{512}, data_in(list));
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, b.asked());
    CPPUNIT_ASSERT(std::chrono::steady_clock::now() - start < 5s);
  }

  // The same as without the map, whose end can be before the image's.
  void by_an_object_map() {
    std::mt19937 random(6);
    for (const Layout& layout : {Layout(8 * K, 8 * K, 1), Layout(8 * K, K, 5),
                                 Layout(5000, 1000, 3)})
      for (int round = 0; round < 8; ++round) {
        const u64 size = 3000 * K + random() % 2000;
        Bench b(layout, head(size));
        for (int i = 0; i < round * 3; ++i) {
          const Fragment f = layout.locate(random() % size, 1);
          b.put(f.object_no, "x", f.object_offset);
        }
        const u64 objects = layout.object_count(size);
        ObjectStates map(objects - (round == 3 ? objects / 2 : 0));
        for (u64 n = 0; n < map.size(); ++n)
          if (b.memory.find(b.oid(n)) || random() % 50 == 0)
            map.set(n, n % 2 == 0 ? ObjectState::exists
                                  : ObjectState::pending);
        b.state->map = std::make_shared<const ObjectStates>(map);
        for (const SnapId snap : {snap_head, SnapId{5}}) {
          View view{.size = size, .snapc = {5, {5, 4}}, .snap = snap};
          b.load(view);
          const Extents expected = b.extents(size, 0);
          // And of a snapshot, as if nothing were known yet.
          if (snap != snap_head) view.snap = 4;
          b.load(mapped(view));
          for (int again = 0; again < 2; ++again) {
            CPPUNIT_ASSERT(b.extents(size, 0) == expected);
            for (int i = 0; i < 40; ++i) {
              const u64 offset = random() % size;
              const auto one = b.status.extents(size - offset, offset, true);
              const Extents rest = part(expected, offset, size);
              CPPUNIT_ASSERT_EQUAL(std::size_t{1}, one.size());
              CPPUNIT_ASSERT_EQUAL(rest[0].data, one[0].data);
              CPPUNIT_ASSERT(one[0].length <= rest[0].length);
            }
          }
        }
      }
  }

  void map_that_is_not_to_be_believed() {
    Bench b(small, head(M));
    b.put(3, "x");
    b.state->map = std::make_shared<ObjectStates>(16);  // says it is empty
    CPPUNIT_ASSERT_EQUAL(u64{512}, data_in(b.extents(M, 0)));
    // It is valid, but the header may have changed.
    b.load(mapped(head(M)));
    b.core.state.hold_writes();
    CPPUNIT_ASSERT_EQUAL(u64{512}, data_in(b.extents(M, 0)));
    b.core.state.end_hold();
    CPPUNIT_ASSERT_EQUAL(u64{0}, data_in(b.extents(M, 0)));
    // For a few objects it is cheaper to ask them.
    CPPUNIT_ASSERT_EQUAL(u64{512}, data_in(b.extents(7 * 64 * K, 0)));
  }

  void map_that_cannot_be_read() {
    Bench b(small, mapped(head(M)));
    b.put(3, "x");
    for (const int code : {EIO, ETIMEDOUT, ESHUTDOWN}) {
      b.state->map_error = code;
      CPPUNIT_ASSERT_EQUAL(code, b.error(M));
    }
    b.state->map_error = 0;
    b.state->map = nullptr;  // there is none that can be believed
    CPPUNIT_ASSERT_EQUAL(u64{512}, data_in(b.extents(M, 0)));
  }

  void hole_goes_on_behind_the_range() {
    Bench b(small, mapped(head(64 * M)));
    auto map = std::make_shared<ObjectStates>(1024);
    map->set(600, ObjectState::exists);
    b.state->map = map;
    b.put(600, "x");
    // As far as the map says, and up to the end of the image.
    CPPUNIT_ASSERT(b.status.extents(M, 5, false) ==
                   (Extents{{5, 600 * 64 * K - 5, false}}));
    CPPUNIT_ASSERT(b.status.extents(M, 601 * 64 * K, false) ==
                   (Extents{{601 * 64 * K, 423 * 64 * K, false}}));
    // Data ends with the range, and so does the hole of who wants one.
    b.put(600, std::string(64 * K, 'x'));
    CPPUNIT_ASSERT(b.status.extents(K, 600 * 64 * K, false) ==
                   (Extents{{600 * 64 * K, K, true}}));
    CPPUNIT_ASSERT(b.status.extents(M, 5, true) == (Extents{{5, M, false}}));
  }

  // As much as an object map can be of.
  void huge_and_mapped() {
    constexpr u64 object = 4 * M;
    const u64 size = object_map_max * object;
    for (const SnapId snap : {snap_head, SnapId{5}}) {
      Bench b(Layout(object, object, 1), mapped(snapshot(size, snap)));
      b.put(object_map_max - 5, "x");
      auto map = std::make_shared<ObjectStates>(object_map_max);
      map->set(object_map_max - 5, ObjectState::exists);
      b.state->map = map;
      // The largest hole that is told of, again and again.
      for (unsigned i = 0; i < 50; ++i) {
        const u64 offset = size / 50 * i / 512 * 512;
        const auto list = b.status.extents(16 * object, offset, false);
        CPPUNIT_ASSERT_EQUAL(std::size_t{1}, list.size());
        CPPUNIT_ASSERT(!list[0].data && list[0].length >= 16 * object);
      }
      CPPUNIT_ASSERT(
          b.extents(64 * object, size - 64 * object) ==
          (Extents{{size - 64 * object, 59 * object, false},
                   {size - 5 * object, 512, true},
                   {size - 5 * object + 512, 5 * object - 512, false}}));
      CPPUNIT_ASSERT_EQUAL(std::size_t{0}, b.store.count(Kind::stat));
    }
  }

  // A listing can lack what is there (in a cache pool, for instance), so
  // nothing is concluded from one: each object is asked for.
  void nothing_is_listed() {
    for (const bool striped : {false, true}) {
      const Layout layout(64 * K, striped ? 16 * K : 64 * K, striped ? 5 : 1);
      Bench b(layout, head(320 * M));
      for (const u64 at : {u64{0}, 77 * 320 * K + 33 * K}) {
        const Fragment f = layout.locate(at, 1);
        b.put(f.object_no, "x", f.object_offset);
      }
      // As a snapshot, too, of which what is absent is learnt for ever.
      for (const SnapId snap : {snap_head, SnapId{5}}) {
        b.load(snapshot(320 * M, snap));
        b.store.clear_log();
        for (int i = 0; i < 2; ++i)
          CPPUNIT_ASSERT_EQUAL(u64{2 * 512}, data_in(b.extents(320 * M, 0)));
        // What is known of a snapshot is not asked again.
        const std::size_t rounds = snap == snap_head ? 2 : 1;
        CPPUNIT_ASSERT_EQUAL(5'120 * rounds, b.store.count(Kind::stat));
        CPPUNIT_ASSERT(b.store.most_in_flight() <= 128);
        CPPUNIT_ASSERT_EQUAL(std::size_t{0}, b.store.count(Kind::list));
      }
    }
  }

  void head_is_asked_each_time() {
    Bench b(small, head(M));
    for (unsigned i = 0; i < 3; ++i) {
      b.store.clear_log();
      (void)b.extents(M, 0);
      CPPUNIT_ASSERT_EQUAL(std::size_t{16}, b.store.count(Kind::stat));
      b.put(i, "x");  // somebody else
      CPPUNIT_ASSERT_EQUAL(512 * u64{1 + i}, data_in(b.extents(M, 0)));
    }
  }

  // Whoever changes an object forgets what is known of it.
  void head_in_a_tenure_is_asked_once() {
    ImageOptions writable;
    writable.writable = true;
    Bench b(small, head(M), exact_store(writable));
    View view = head(M);
    view.lockable = true;
    b.core.state.begin_tenure(view, nullptr);
    b.put(2, "x");
    const Extents before = b.extents(M, 0);
    b.store.clear_log();
    CPPUNIT_ASSERT(b.extents(M, 0) == before);
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, b.asked());
    b.put(3, "x");
    b.core.known.forget(3);
    CPPUNIT_ASSERT_EQUAL(u64{2 * 512}, data_in(b.extents(M, 0)));
    CPPUNIT_ASSERT(b.objects(Kind::map_extents) ==
                   std::vector<std::string>{b.oid(3)});
    (void)b.core.state.end_tenure();
    b.store.clear_log();
    (void)b.extents(M, 0);
    CPPUNIT_ASSERT_EQUAL(std::size_t{16}, b.store.count(Kind::stat));
  }

  void snapshot_is_asked_once() {
    Bench b(small, snapshot(16 * M));
    for (const u64 n : {0, 15, 78}) b.put(n, std::string(1000, 'x'));
    const Extents before = b.extents(16 * M, 0);
    CPPUNIT_ASSERT_EQUAL(std::size_t{6}, before.size());
    const int loads = b.state->loads;
    b.store.clear_log();
    CPPUNIT_ASSERT(b.extents(16 * M, 0) == before);
    CPPUNIT_ASSERT(b.status.extents(8 * M, 10, true) ==
                   (Extents{{10, 1014, true}}));
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, b.asked());
    CPPUNIT_ASSERT_EQUAL(loads, b.state->loads.load());
    // What is seen of a clone changes with the link to its parent.
    View other = clone(16 * M, 8 * M);
    other.snap = 5;
    b.load(other);
    (void)b.extents(16 * M, 0);
    CPPUNIT_ASSERT_EQUAL(std::size_t{3}, b.store.count(Kind::map_extents));
  }

  void doubtful_snapshot_is_not_learnt() {
    Bench b(small, snapshot(16 * M));
    b.state->set_load_error(EIO);
    // Absent, but perhaps because the snapshot has been deleted.
    CPPUNIT_ASSERT_EQUAL(EIO, b.error(K));
    CPPUNIT_ASSERT(!b.core.known.absent(0));
    b.state->set_load_error(0);
    b.core.metadata.load();
    b.state->set_load_error(ETIMEDOUT);
    CPPUNIT_ASSERT_EQUAL(ETIMEDOUT, b.error(16 * M));
    CPPUNIT_ASSERT(!b.core.known.absent(0));
    b.state->set_load_error(0);
    (void)b.extents(K, 0);
    CPPUNIT_ASSERT(b.core.known.absent(0));
  }

  // What only a snapshot has is no hole in it.
  void removed_objects() {
    Bench b(small, {.size = 16 * M, .snapc = {5, {5}}});
    b.put(10, "y");
    WriteOp op;
    op.remove();
    CPPUNIT_ASSERT(b.memory.write(b.oid(10), op, {5, {5}})->wait() >= 0);
    CPPUNIT_ASSERT_EQUAL(u64{0}, data_in(b.extents(16 * M, 0)));
    b.load(snapshot(16 * M));
    CPPUNIT_ASSERT_EQUAL(u64{512}, data_in(b.extents(16 * M, 0)));
  }

  void parent_where_there_is_no_object() {
    Bench b(small, clone(M, M));
    b.parent->data = std::string(M, '\0');
    b.parent->data.replace(10 * K, K, K, 'p');
    b.parent->data.replace(100 * K, 100 * K, 100 * K, 'p');
    b.put(2, "x");  // hides the parent's, from 128 to 192 KiB
    const Extents expected = {{0, 10 * K, false},
                              {10 * K, K, true},
                              {11 * K, 89 * K, false},
                              {100 * K, 28 * K + 512, true},
                              {128 * K + 512, 64 * K - 512, false},
                              {192 * K, 8 * K, true},
                              {200 * K, M - 200 * K, false}};
    CPPUNIT_ASSERT(b.extents(M, 0) == expected);
    // Objects side by side are one question.
    CPPUNIT_ASSERT(b.parent->asked() ==
                   (std::vector<FakeBacking::Range>{
                       {128 * K, 0}, {13 * 64 * K, 192 * K}}));
    // An empty object hides it, too.
    b.put(0, "x", 0);
    WriteOp op;
    op.truncate(0);
    CPPUNIT_ASSERT(b.memory.write(b.oid(0), op, {})->wait() >= 0);
    CPPUNIT_ASSERT(b.extents(64 * K, 0) == (Extents{{0, 64 * K, false}}));
    CPPUNIT_ASSERT(b.extents(M, 0)[0] == (Extent{0, 100 * K, false}));
    // Neither a map nor what is known can say that the parent has nothing.
    b.state->map = std::make_shared<ObjectStates>(16);
    View view = mapped(clone(M, M));
    view.snap = 5;
    b.load(view);
    for (int i = 0; i < 2; ++i)
      CPPUNIT_ASSERT_EQUAL(101 * K, data_in(b.extents(M, 0)));
    CPPUNIT_ASSERT(b.core.known.knows_all_absent());
  }

  void end_of_the_overlap() {
    // Within an object, and within a sector.
    Bench b(small, clone(M, 100 * K + 100));
    b.parent->data = std::string(M, 'p');
    const u64 end = 100 * K + 512;
    CPPUNIT_ASSERT(b.extents(M, 0) ==
                   (Extents{{0, end, true}, {end, M - end, false}}));
    CPPUNIT_ASSERT(b.parent->asked() ==
                   (std::vector<FakeBacking::Range>{{100 * K + 100, 0}}));
    CPPUNIT_ASSERT(b.extents(K, 102 * K) == (Extents{{102 * K, K, false}}));
    CPPUNIT_ASSERT(b.extents(64 * K, 128 * K) ==
                   (Extents{{128 * K, 64 * K, false}}));
    CPPUNIT_ASSERT(b.parent->asked().empty());
  }

  // One step of a clone is none of a million of its parent's objects.
  void parent_of_smaller_objects() {
    Bench b(Layout(4 * M, 4 * M, 1), clone(u64{4} << 30, u64{4} << 30));
    b.parent->object_size = 4 * K;
    CPPUNIT_ASSERT_EQUAL(4 * K, b.status.least_object_size());
    b.store.inject({.kind = Kind::stat, .delay = 150ms});
    b.store.inject({.kind = Kind::map_extents, .delay = 150ms});
    (void)b.status.extents(u64{2} << 30, 0, false);
    u64 asked = 0;
    for (const auto& r : b.parent->asked()) asked += r.length;
    CPPUNIT_ASSERT(asked <= 1024 * 4 * K);
    // A parent of larger objects changes nothing.
    b.parent->object_size = 64 * M;
    CPPUNIT_ASSERT_EQUAL(4 * M, b.status.least_object_size());
    b.load(head(M));
    CPPUNIT_ASSERT_EQUAL(4 * M, b.status.least_object_size());
  }

  void errors_of_the_parent() {
    Bench b(small, clone(M, M));
    for (const int code : {EIO, ENOENT, ETIMEDOUT}) {
      b.parent->error = code;
      CPPUNIT_ASSERT_EQUAL(code, b.error(M));
      CPPUNIT_ASSERT_EQUAL(code, b.error(K, 0, true));
    }
    CPPUNIT_ASSERT_EQUAL(
        std::string("pool/image: its parent: pool/parent: no answer"),
        message_of([&] { (void)b.status.extents(K, 0, false); }));
  }

  void holes_that_are_confirmed() {
    Bench b(small, head(M));
    b.put(0, "x");
    const auto loads = [&](u64 length, u64 offset) {
      const int before = b.state->loads;
      (void)b.status.extents(length, offset, false);
      return b.state->loads - before;
    };
    CPPUNIT_ASSERT_EQUAL(0, loads(M, 0));
    b.end_guard();
    CPPUNIT_ASSERT_EQUAL(1, loads(M, 0));
    // What is a hole in an object that is there needs no proof.
    CPPUNIT_ASSERT_EQUAL(0, loads(64 * K, 0));
    // Nor does data of the parent, or what it is sure of.
    b.load(clone(M, M));
    CPPUNIT_ASSERT_EQUAL(0, loads(M, 0));
    b.parent->missing = true;
    CPPUNIT_ASSERT_EQUAL(1, loads(M, 0));
    // An object map can be of an image that has gone since.
    b.state->map = std::make_shared<ObjectStates>(16);
    b.load(mapped(head(M)));
    CPPUNIT_ASSERT_EQUAL(1, loads(M, 0));
    b.state->set_load_error(ENOENT);
    CPPUNIT_ASSERT_EQUAL(EIO, b.error(M));
  }

  // The parent's data has come into the image's own objects in between.
  void flattened_meanwhile() {
    Bench b(small, clone(M, M));
    b.parent->missing = true;
    b.end_guard();
    b.put(0, std::string(64 * K, 'x'));
    b.state->set_view(head(M));
    CPPUNIT_ASSERT(b.status.extents(M, 0, false) ==
                   (Extents{{0, 64 * K, true}, {64 * K, M - 64 * K, false}}));
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, b.parent->asked().size());
    CPPUNIT_ASSERT_EQUAL(std::size_t{32}, b.store.count(Kind::stat));
  }

  void for_a_child() {
    Bench b(small, {.size = 200 * K, .snap = 5}, exact_store(as_parent()));
    b.put(1, std::string(100, 'x'), 700);
    b.put(3, std::string(64 * K, 'x'));
    bool missing = false;
    // As exact as it is: the child rounds.
    CPPUNIT_ASSERT(b.backing(200 * K, 0, &missing) ==
                   (std::vector<ObjectRange>{{64 * K + 700, 100},
                                             {192 * K, 8 * K}}));
    CPPUNIT_ASSERT(missing);
    // The second time it is known, and still only the child can be sure.
    b.store.clear_log();
    CPPUNIT_ASSERT_EQUAL(std::size_t{2},
                         b.backing(200 * K, 0, &missing).size());
    CPPUNIT_ASSERT(missing);
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, b.asked());
    CPPUNIT_ASSERT(b.backing(50, 64 * K + 710, &missing) ==
                   (std::vector<ObjectRange>{{64 * K + 710, 50}}));
    CPPUNIT_ASSERT(!missing);
    // Behind its end there is nothing.
    CPPUNIT_ASSERT(b.backing(K, 199 * K + 512, &missing) ==
                   (std::vector<ObjectRange>{{199 * K + 512, 512}}));
    CPPUNIT_ASSERT(missing);
    CPPUNIT_ASSERT(b.backing(K, M, &missing).empty());
    CPPUNIT_ASSERT(missing);
    // It appends, also where it has to begin anew.
    std::vector<Fragment> found = {{9, 9, 9, 9}};
    CPPUNIT_ASSERT(b.status.find_backing_data(200 * K, 0, found));
    CPPUNIT_ASSERT_EQUAL(std::size_t{3}, found.size());
    CPPUNIT_ASSERT(found[0] == (Fragment{9, 9, 9, 9}));
    b.load({.size = 200 * K, .snap = 6});
    b.store.inject({.kind = Kind::stat, .error = EIO});
    CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] {
                           (void)b.backing(200 * K, 0, &missing);
                         }));
  }

  void for_a_child_by_a_map() {
    Bench b(small, mapped({.size = 64 * M, .snap = 5}),
            exact_store(as_parent()));
    auto map = std::make_shared<ObjectStates>(1024);
    map->set(500, ObjectState::exists);
    b.state->map = map;
    b.put(500, "x");
    bool missing = false;
    for (int i = 0; i < 2; ++i) {
      CPPUNIT_ASSERT(b.backing(64 * M, 0, &missing) ==
                     (std::vector<ObjectRange>{{500 * 64 * K, 1}}));
      CPPUNIT_ASSERT(missing);
    }
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, b.asked());
  }
};

/// What an object map teaches of a snapshot.
class MapLearnerTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(MapLearnerTest);
  CPPUNIT_TEST(once);
  CPPUNIT_TEST(only_of_snapshots);
  CPPUNIT_TEST(map_that_is_too_short);
  CPPUNIT_TEST(errors);
  CPPUNIT_TEST_SUITE_END();

 public:
  void setUp() override {
    map_ = std::make_shared<ObjectStates>(16);
    map_->set(3, ObjectState::exists);
    map_->set(4, ObjectState::pending);
    map_->set(5, ObjectState::exists_clean);
  }

  void once() {
    Bench b(small, mapped(snapshot(M)));
    b.state->map = map_;
    MapLearner learner(b.core);
    learner.learn();
    CPPUNIT_ASSERT(b.core.known.knows_all_absent());
    for (u64 n = 0; n < 16; ++n)
      CPPUNIT_ASSERT_EQUAL(n < 3 || n > 5, b.core.known.absent(n));
    // The link to its parent changes, and all is forgotten.
    View other = mapped(clone(M, M));
    other.snap = 5;
    b.load(other);
    CPPUNIT_ASSERT(!b.core.known.absent(0));
    learner.learn();
    CPPUNIT_ASSERT(b.core.known.absent(0));
  }

  void only_of_snapshots() {
    View held = mapped(snapshot(M));
    for (const View& view :
         {mapped(head(M)), snapshot(M), mapped(snapshot(M))}) {
      Bench b(small, view);
      b.state->map = map_;
      if (view == held) b.core.state.hold_writes();
      MapLearner learner(b.core);
      learner.learn();
      CPPUNIT_ASSERT(!b.core.known.absent(0));
    }
  }

  void map_that_is_too_short() {
    Bench b(small, mapped(snapshot(M)));
    b.state->map = std::make_shared<ObjectStates>(8);
    MapLearner learner(b.core);
    learner.learn();
    for (u64 n = 0; n < 16; ++n)
      CPPUNIT_ASSERT_EQUAL(n < 8, b.core.known.absent(n));
  }

  void errors() {
    Bench b(small, mapped(snapshot(M)));
    b.state->map_error = EIO;
    MapLearner learner(b.core);
    learner.learn();
    CPPUNIT_ASSERT(!b.core.known.absent(0));
    b.state->map_error = 0;
    b.state->map = nullptr;
    b.load(mapped(snapshot(2 * M)));
    learner.learn();
    CPPUNIT_ASSERT(!b.core.known.absent(0));
  }

 private:
  std::shared_ptr<ObjectStates> map_;
};

CPPUNIT_TEST_SUITE_REGISTRATION(BlockStatusTest);
CPPUNIT_TEST_SUITE_REGISTRATION(MapLearnerTest);

}  // namespace
