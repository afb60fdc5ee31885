// SPDX-License-Identifier: BSD-3-Clause
//
// The layout against two models that share nothing with it:
//
//   Walk     deals out the bytes of an image one after the other, as one
//            deals out cards, and so needs no arithmetic at all.  For small
//            layouts: every byte is checked.
//   formula  the formula of ceph: doc/dev/file-striping.rst in 128 bits, for
//            big layouts: both ends of every part are checked.
//
// NBDRADOS_TEST_SEED=N repeats a random run; the seed is in the message of
// a failure.  NBDRADOS_QUICK=1: a twentieth of the ranges.

#include <cppunit/extensions/HelperMacros.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "layout/layout.hpp"
#include "rados/error.hpp"

using namespace nbdrados;

namespace {

using u64 = std::uint64_t;
__extension__ using u128 = unsigned __int128;

constexpr u64 two63 = u64{1} << 63;

u64 seed() {
  static const u64 value = [] {
    const char* const text = std::getenv("NBDRADOS_TEST_SEED");
    return text != nullptr ? std::strtoull(text, nullptr, 10)
                           : u64{std::random_device()()};
  }();
  return value;
}

u64 amount(u64 full) {
  const char* const quick = std::getenv("NBDRADOS_QUICK");
  const bool is_quick =
      quick != nullptr && *quick != '\0' && std::string(quick) != "0";
  return is_quick ? full / 20 : full;
}

std::string describe(const Layout& layout) {
  return "os=" + std::to_string(layout.object_size()) +
         " su=" + std::to_string(layout.stripe_unit()) +
         " sc=" + std::to_string(layout.stripe_count());
}

// CppUnit's macros are too slow for the innermost loops.
void require(bool good, const char* what, const Layout& layout, u64 offset,
             u64 length) {
  if (good) return;
  CPPUNIT_FAIL(std::string(what) + ": " + describe(layout) + " offset=" +
               std::to_string(offset) + " length=" + std::to_string(length) +
               " NBDRADOS_TEST_SEED=" + std::to_string(seed()));
}

struct Place {
  u64 object_no;
  u64 offset;
  bool operator==(const Place&) const = default;
  auto operator<=>(const Place&) const = default;
};

// Where each of the first `size` bytes of an image goes.
class Walk {
 public:
  Walk(const Layout& layout, u64 size) {
    std::vector<u64> fill(layout.stripe_count(), 0);  // of the current set
    u64 set_start = 0;
    u64 object = 0;
    u64 in_unit = 0;
    for (u64 i = 0; i < size; ++i) {
      places.push_back({set_start + object, fill[object]});
      inverse[places.back()] = i;
      ++fill[object];
      if (++in_unit < layout.stripe_unit()) continue;
      in_unit = 0;
      if (++object < layout.stripe_count()) continue;
      object = 0;
      if (fill[0] < layout.object_size()) continue;
      std::fill(fill.begin(), fill.end(), 0);
      set_start += layout.stripe_count();
    }
  }
  std::vector<Place> places;
  std::map<Place, u64> inverse;
};

Place formula(const Layout& layout, u64 offset) {
  const u128 su = layout.stripe_unit();
  const u128 sc = layout.stripe_count();
  const u128 stripes_per_object = layout.object_size() / layout.stripe_unit();
  const u128 block = offset / su;
  const u128 stripe = block / sc;
  const u128 position = block - stripe * sc;
  const u128 set = stripe / stripes_per_object;
  const u128 in_object =
      (stripe - set * stripes_per_object) * su + (offset - block * su);
  return {static_cast<u64>(set * sc + position), static_cast<u64>(in_object)};
}

// The image byte of a byte of an object.
u128 inverse_formula(const Layout& layout, const Place& place) {
  const u128 su = layout.stripe_unit();
  const u128 sc = layout.stripe_count();
  const u128 set = place.object_no / sc;
  const u128 stripe =
      set * (layout.object_size() / su) + place.offset / su;
  return (stripe * sc + place.object_no % sc) * su + place.offset % su;
}

// What must be true of cut(), given where the bytes of the image are.  With
// the sum of the lengths right, each part inside of the range, and no object
// byte twice, the parts are exactly the range.
template <class Where>
void check_cut(const Layout& layout, u64 offset, u64 length, Where where,
               bool every_byte) {
  const std::vector<ObjectExtent> extents = layout.cut(offset, length);
  const auto ok = [&](bool good, const char* what) {
    require(good, what, layout, offset, length);
  };
  u64 sum = 0;
  for (std::size_t i = 0; i < extents.size(); ++i) {
    const ObjectExtent& extent = extents[i];
    if (i > 0) ok(extents[i - 1].object_no < extent.object_no, "ascending");
    ok(!extent.parts.empty(), "no parts");
    ok(extent.offset == extent.parts.front().object_offset, "extent offset");
    u64 at = extent.offset;
    u64 image_end = 0;
    for (std::size_t k = 0; k < extent.parts.size(); ++k) {
      const Fragment& part = extent.parts[k];
      ok(part.length > 0, "empty part");
      ok(part.object_no == extent.object_no, "object of a part");
      ok(part.object_offset == at, "contiguous in the object");
      ok(part.image_offset >= offset &&
             part.image_offset - offset <= length &&
             part.length <= length - (part.image_offset - offset),
         "inside of the range");
      if (k > 0) ok(part.image_offset > image_end, "merged parts");
      const u64 step = every_byte ? 1 : std::max<u64>(1, part.length - 1);
      for (u64 b = 0; b < part.length; b += step)
        ok(where(part.image_offset + b) ==
               Place{part.object_no, part.object_offset + b},
           "place of a byte");
      image_end = part.image_offset + part.length;
      at += part.length;
      sum += part.length;
    }
    ok(extent.length == at - extent.offset, "extent length");
    ok(at <= layout.object_size(), "end of the object");
  }
  ok(sum == length, "total length");
}

template <class Where>
void check_locate(const Layout& layout, u64 offset, u64 length, Where where) {
  const Fragment part = layout.locate(offset, length);
  const auto ok = [&](bool good, const char* what) {
    require(good, what, layout, offset, length);
  };
  ok(part.image_offset == offset, "locate: image offset");
  ok(part.length >= 1 && part.length <= length, "locate: length");
  ok(where(offset) == Place{part.object_no, part.object_offset},
     "locate: place");
  ok(where(offset + part.length - 1) ==
         Place{part.object_no, part.object_offset + part.length - 1},
     "locate: place of the last byte");
  // As long as it can be: the byte behind it is elsewhere.
  if (part.length < length)
    ok(where(offset + part.length) !=
           Place{part.object_no, part.object_offset + part.length},
       "locate: too short");
}

// Small layouts of all shapes.
std::vector<Layout> small_layouts() {
  std::vector<Layout> layouts;
  const u64 shapes[][3] = {
      {1, 1, 1},    {1, 1, 3},    {2, 1, 1},    {4, 1, 2},   {8, 8, 1},
      {8, 2, 1},    {8, 8, 3},    {8, 4, 3},    {7, 7, 2},   {9, 3, 1},
      {9, 3, 5},    {15, 5, 4},   {64, 1, 7},   {64, 16, 1}, {64, 64, 16},
      {64, 16, 16}, {64, 4, 200}, {105, 7, 11}, {5, 1, 300}, {333, 37, 6},
  };
  for (const auto& shape : shapes)
    layouts.emplace_back(shape[0], shape[1], shape[2]);
  return layouts;
}

// A number of any magnitude in [1, most].
u64 any_size(std::mt19937_64& random, u64 most) {
  const u64 bits = random() % 64;
  return 1 + (random() >> bits) % most;
}

Layout any_layout(std::mt19937_64& random) {
  for (;;) {
    const u64 su = any_size(random, u64{1} << 40);
    const u64 units = any_size(random, (u64{1} << 40) / su);
    const u64 sc = any_size(random, 0xffffffff);
    if (u128{su} * units * sc < two63) return {su * units, su, sc};
  }
}

}  // namespace

class LayoutTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(LayoutTest);
  CPPUNIT_TEST(refusals);
  CPPUNIT_TEST(limits_are_accepted);
  CPPUNIT_TEST(documented_example);
  CPPUNIT_TEST(every_byte_of_small_layouts);
  CPPUNIT_TEST(every_range_of_tiny_layouts);
  CPPUNIT_TEST(random_ranges_of_small_layouts);
  CPPUNIT_TEST(object_parts_of_small_layouts);
  CPPUNIT_TEST(sizes_of_small_layouts);
  CPPUNIT_TEST(random_ranges_of_big_layouts);
  CPPUNIT_TEST(object_parts_of_big_layouts);
  CPPUNIT_TEST(sizes_of_big_layouts);
  CPPUNIT_TEST(ends_of_the_address_space);
  CPPUNIT_TEST(cut_refuses_ranges_beyond_2_63);
  CPPUNIT_TEST(object_parts_refuse_ranges_beyond_the_object);
  CPPUNIT_TEST(object_parts_stop_at_2_63);
  CPPUNIT_TEST(long_linear_range_has_one_part_an_object);
  CPPUNIT_TEST_SUITE_END();

  static void refused(u64 os, u64 su, u64 sc, const std::string& message) {
    try {
      const Layout layout(os, su, sc);
      CPPUNIT_FAIL("accepted " + describe(layout));
    } catch (const Error& e) {
      CPPUNIT_ASSERT_EQUAL(EINVAL, e.code());
      CPPUNIT_ASSERT_EQUAL(message, std::string(e.what()));
    }
  }

 public:
  void refusals() {
    refused(0, 1, 1, "object size 0 is not in [1, 1099511627776]");
    refused((u64{1} << 40) + 1, 1, 1,
            "object size 1099511627777 is not in [1, 1099511627776]");
    refused(~u64{0}, 1, 1,
            "object size 18446744073709551615 is not in [1, 1099511627776]");
    refused(4096, 0, 1, "stripe unit 0 is not in [1, object size 4096]");
    refused(4096, 4097, 1,
            "stripe unit 4097 is not in [1, object size 4096]");
    refused(4096, 8192, 1,
            "stripe unit 8192 is not in [1, object size 4096]");
    refused(4096, 3, 1, "stripe unit 3 does not divide the object size 4096");
    refused(4096, 4095, 1,
            "stripe unit 4095 does not divide the object size 4096");
    refused(4096, 512, 0, "stripe count 0 is not in [1, 4294967295]");
    refused(4096, 512, u64{1} << 32,
            "stripe count 4294967296 is not in [1, 4294967295]");
    refused(u64{1} << 40, 512, u64{1} << 23,
            "object size 1099511627776 times stripe count 8388608 is not "
            "below 2^63");
    refused(u64{1} << 40, 512, 0xffffffff,
            "object size 1099511627776 times stripe count 4294967295 is not "
            "below 2^63");
  }

  void limits_are_accepted() {
    const u64 shapes[][3] = {
        {u64{1} << 40, u64{1} << 40, 1},
        {u64{1} << 40, 1, (u64{1} << 23) - 1},
        {1, 1, 0xffffffff},
        {u64{1} << 30, 1, 0xffffffff},
        {1, 1, 1},
    };
    for (const auto& shape : shapes) {
      const Layout layout(shape[0], shape[1], shape[2]);
      CPPUNIT_ASSERT_EQUAL(shape[0], layout.object_size());
      CPPUNIT_ASSERT_EQUAL(shape[1], layout.stripe_unit());
      CPPUNIT_ASSERT_EQUAL(shape[2], layout.stripe_count());
      CPPUNIT_ASSERT_EQUAL(shape[0] * shape[2], layout.object_set_size());
    }
  }

  // The picture in layout.hpp, with units of 10 bytes.
  void documented_example() {
    const Layout layout(20, 10, 3);
    CPPUNIT_ASSERT((layout.locate(35, 100) == Fragment{0, 15, 35, 5}));
    CPPUNIT_ASSERT((layout.locate(110, 100) == Fragment{5, 10, 110, 10}));
    const auto extents = layout.cut(5, 40);  // u0 .. half of u4
    CPPUNIT_ASSERT_EQUAL(std::size_t{3}, extents.size());
    CPPUNIT_ASSERT_EQUAL(u64{0}, extents[0].object_no);
    CPPUNIT_ASSERT_EQUAL(u64{5}, extents[0].offset);
    CPPUNIT_ASSERT_EQUAL(u64{15}, extents[0].length);
    CPPUNIT_ASSERT((extents[0].parts ==
                    std::vector<Fragment>{{0, 5, 5, 5}, {0, 10, 30, 10}}));
    CPPUNIT_ASSERT((extents[1].parts ==
                    std::vector<Fragment>{{1, 0, 10, 10}, {1, 10, 40, 5}}));
    CPPUNIT_ASSERT(
        (extents[2].parts == std::vector<Fragment>{{2, 0, 20, 10}}));
    CPPUNIT_ASSERT((layout.image_parts(4, 3, 10) ==
                    std::vector<Fragment>{{4, 3, 73, 7}, {4, 10, 100, 3}}));
  }

  void every_byte_of_small_layouts() {
    for (const Layout& layout : small_layouts()) {
      const u64 size = 3 * layout.object_set_size() + layout.object_size() + 3;
      const Walk walk(layout, size);
      const auto where = [&](u64 i) { return walk.places[i]; };
      for (u64 offset = 0; offset < size; ++offset)
        for (const u64 length :
             {u64{1}, u64{2}, layout.stripe_unit(), size})
          check_locate(layout, offset, std::min(length, size - offset), where);
      check_cut(layout, 0, size, where, true);
    }
  }

  void every_range_of_tiny_layouts() {
    for (u64 os = 1; os <= 6; ++os)
      for (u64 su = 1; su <= os; ++su)
        for (u64 sc = 1; os % su == 0 && sc <= 4; ++sc) {
          const Layout layout(os, su, sc);
          const u64 size = 2 * layout.object_set_size() + 3;
          const Walk walk(layout, size);
          const auto where = [&](u64 i) { return walk.places[i]; };
          for (u64 offset = 0; offset <= size; ++offset)
            for (u64 length = 0; length <= size - offset; ++length)
              check_cut(layout, offset, length, where, true);
        }
  }

  void random_ranges_of_small_layouts() {
    std::mt19937_64 random(seed());
    for (const Layout& layout : small_layouts()) {
      const u64 size = 4 * layout.object_set_size() + random() % 100;
      const Walk walk(layout, size);
      const auto where = [&](u64 i) { return walk.places[i]; };
      for (u64 n = amount(60000); n > 0; --n) {
        const u64 offset = random() % size;
        const u64 length =
            std::min(random() % 4 == 0 ? random() % 1000 : random() % 100,
                     size - offset);
        check_cut(layout, offset, length, where, true);
        if (length > 0) check_locate(layout, offset, length, where);
      }
    }
  }

  void object_parts_of_small_layouts() {
    std::mt19937_64 random(seed());
    for (const Layout& layout : small_layouts()) {
      const u64 objects = 3 * layout.stripe_count();
      const Walk walk(layout, 3 * layout.object_set_size());
      for (u64 n = amount(20000); n > 0; --n) {
        const u64 object = random() % objects;
        const u64 offset = random() % (layout.object_size() + 1);
        const u64 length = random() % (layout.object_size() - offset + 1);
        const auto ok = [&](bool good, const char* what) {
          require(good, what, layout, offset, length);
        };
        u64 at = offset;
        u64 image_end = 0;
        for (const Fragment& part :
             layout.image_parts(object, offset, length)) {
          ok(part.object_no == object, "object");
          ok(part.object_offset == at, "contiguous");
          ok(part.length > 0, "empty");
          if (at != offset) ok(part.image_offset > image_end, "merged");
          for (u64 b = 0; b < part.length; ++b)
            ok(walk.inverse.at({object, at + b}) == part.image_offset + b,
               "place");
          image_end = part.image_offset + part.length;
          at += part.length;
        }
        ok(at == offset + length, "total");
      }
    }
  }

  // Number of objects and their use, by counting.
  void sizes_of_small_layouts() {
    for (const Layout& layout : small_layouts()) {
      const u64 most = 2 * layout.object_set_size() + layout.object_size() + 3;
      const Walk walk(layout, most);
      std::map<u64, u64> used;
      u64 count = 0;
      for (u64 size = 0; size <= most; ++size) {
        require(layout.object_count(size) == count, "count", layout, 0, size);
        // Only the object that grew has changed; look at all now and then.
        if (size % 97 == 0 || size + 2 * layout.object_size() > most)
          for (u64 object = 0; object < count + 3; ++object)
            require(layout.object_used(object, size) ==
                        (used.contains(object) ? used[object] : 0),
                    "used", layout, object, size);
        if (size == most) break;
        const Place& next = walk.places[size];
        require(layout.object_used(next.object_no, size) ==
                    used[next.object_no],
                "used", layout, next.object_no, size);
        ++used[next.object_no];
        count = std::max(count, next.object_no + 1);
      }
    }
  }

  void random_ranges_of_big_layouts() {
    std::mt19937_64 random(seed());
    for (u64 n = amount(200000); n > 0; --n) {
      const Layout layout = any_layout(random);
      const auto where = [&](u64 i) { return formula(layout, i); };
      // Up to 50 units or objects long, anywhere.
      const u64 piece =
          layout.stripe_count() == 1 ? layout.object_size()
                                     : layout.stripe_unit();
      const u64 most = static_cast<u64>(
          std::min<u128>(u128{piece} * (1 + random() % 50), two63));
      const u64 length = 1 + random() % most;
      u64 offset = any_size(random, two63) % (two63 - length + 1);
      switch (random() % 4) {
        case 0:  // at the very end
          offset = two63 - length;
          break;
        case 1:  // across the end of an object set
          offset -= offset % layout.object_set_size();
          offset -= std::min(offset, random() % length);
          break;
        default:
          break;
      }
      check_cut(layout, offset, length, where, false);
      check_locate(layout, offset, length, where);
    }
  }

  void object_parts_of_big_layouts() {
    std::mt19937_64 random(seed());
    for (u64 n = amount(200000); n > 0; --n) {
      const Layout layout = any_layout(random);
      const u64 sets = (two63 - 1) / layout.object_set_size();
      // Whole sets, so nothing is beyond the end.
      if (sets == 0) continue;
      const u64 object = any_size(random, sets * layout.stripe_count()) - 1;
      const u64 length = std::min(
          1 + random() % (layout.stripe_unit() * (1 + random() % 20)),
          layout.object_size());
      const u64 offset = random() % (layout.object_size() - length + 1);
      u64 at = offset;
      for (const Fragment& part : layout.image_parts(object, offset, length)) {
        require(part.object_no == object && part.object_offset == at,
                "contiguous", layout, offset, length);
        require(part.length > 0, "empty", layout, offset, length);
        for (const u64 b : {u64{0}, part.length - 1})
          require(inverse_formula(layout, {object, at + b}) ==
                      part.image_offset + b,
                  "place", layout, offset, length);
        at += part.length;
      }
      require(at == offset + length, "total", layout, offset, length);
    }
  }

  // An image has as many objects as have their first byte in it, and uses as
  // many bytes of an object as lie in it; both grow with the number.
  void sizes_of_big_layouts() {
    std::mt19937_64 random(seed());
    for (u64 n = amount(500000); n > 0; --n) {
      const Layout layout = any_layout(random);
      u64 size = any_size(random, two63);
      if (random() % 4 == 0) size -= size % layout.object_set_size();
      if (random() % 4 == 0) size -= size % layout.stripe_unit();
      const u64 count = layout.object_count(size);
      require(inverse_formula(layout, {count, 0}) >= size, "count", layout, 0,
              size);
      require(count == 0 || inverse_formula(layout, {count - 1, 0}) < size,
              "count", layout, 0, size);
      // Objects near the end are the interesting ones.
      u64 object = random() % (count + 2);
      if (random() % 2 == 0)
        object =
            count - std::min(count, random() % (layout.stripe_count() + 2));
      const u64 used = layout.object_used(object, size);
      require(used <= layout.object_size(), "used", layout, object, size);
      require(used == 0 || inverse_formula(layout, {object, used - 1}) < size,
              "used too much", layout, object, size);
      require(used == layout.object_size() ||
                  inverse_formula(layout, {object, used}) >= size,
              "used too little", layout, object, size);
    }
  }

  void ends_of_the_address_space() {
    const Layout linear(u64{1} << 22, u64{1} << 22, 1);
    CPPUNIT_ASSERT_EQUAL(u64{1} << 41, linear.object_count(two63));
    CPPUNIT_ASSERT_EQUAL(u64{1} << 42, linear.object_count(~u64{0}));
    CPPUNIT_ASSERT_EQUAL(u64{0}, linear.object_count(0));
    CPPUNIT_ASSERT_EQUAL(u64{0}, linear.object_used(~u64{0}, two63));
    CPPUNIT_ASSERT_EQUAL(u64{0}, linear.object_used(0, 0));
    CPPUNIT_ASSERT((linear.locate(two63 - 1, 1) ==
                    Fragment{(u64{1} << 41) - 1, (u64{1} << 22) - 1,
                             two63 - 1, 1}));
    const Layout odd(3, 1, 0xffffffff);
    CPPUNIT_ASSERT_EQUAL(u64{0}, odd.object_used(~u64{0}, two63));
    CPPUNIT_ASSERT_EQUAL(u64{1}, odd.object_count(1));
    CPPUNIT_ASSERT_EQUAL(u64{0xffffffff}, odd.object_count(0xffffffff));
    CPPUNIT_ASSERT_EQUAL(u64{0xffffffff}, odd.object_count(0x100000000));
    CPPUNIT_ASSERT_EQUAL(u64{2}, odd.object_used(0, 0x100000000));
  }

  void cut_refuses_ranges_beyond_2_63() {
    for (const Layout& layout : {Layout(4096, 4096, 1), Layout(8, 4, 3)}) {
      CPPUNIT_ASSERT_EQUAL(std::size_t{1}, layout.cut(two63 - 1, 1).size());
      CPPUNIT_ASSERT(layout.cut(two63, 0).empty());
      CPPUNIT_ASSERT_THROW(static_cast<void>(layout.cut(two63, 1)), Error);
      CPPUNIT_ASSERT_THROW(static_cast<void>(layout.cut(two63 - 1, 2)), Error);
      CPPUNIT_ASSERT_THROW(static_cast<void>(layout.cut(1, ~u64{0})), Error);
      CPPUNIT_ASSERT_THROW(static_cast<void>(layout.cut(~u64{0}, 1)), Error);
    }
  }

  void object_parts_refuse_ranges_beyond_the_object() {
    for (const Layout& layout : {Layout(4096, 4096, 1), Layout(4096, 512, 3)}) {
      CPPUNIT_ASSERT(layout.image_parts(5, 4096, 0).empty());
      CPPUNIT_ASSERT(layout.image_parts(5, 0, 0).empty());
      CPPUNIT_ASSERT_THROW(static_cast<void>(layout.image_parts(5, 4096, 1)),
                           Error);
      CPPUNIT_ASSERT_THROW(static_cast<void>(layout.image_parts(5, 0, 4097)),
                           Error);
      CPPUNIT_ASSERT_THROW(
          static_cast<void>(layout.image_parts(5, 1, ~u64{0})), Error);
    }
  }

  void object_parts_stop_at_2_63() {
    const Layout even(4096, 4096, 1);
    const u64 beyond = two63 / 4096;
    CPPUNIT_ASSERT_EQUAL(std::size_t{1},
                         even.image_parts(beyond - 1, 0, 4096).size());
    CPPUNIT_ASSERT(even.image_parts(beyond, 0, 4096).empty());
    CPPUNIT_ASSERT(even.image_parts(~u64{0}, 0, 4096).empty());
    // The product of number and size is 2^64.
    CPPUNIT_ASSERT(even.image_parts(u64{1} << 52, 0, 4096).empty());
    // 2^63 is 2 modulo 3: the last object is cut.
    const Layout odd(3, 3, 1);
    CPPUNIT_ASSERT((odd.image_parts(two63 / 3, 0, 3) ==
                    std::vector<Fragment>{{two63 / 3, 0, two63 - 2, 2}}));
    CPPUNIT_ASSERT(odd.image_parts(two63 / 3, 2, 1).empty());
    const Layout striped(6, 3, 5);
    for (const u64 object : {~u64{0}, two63, two63 / 6 + 10})
      for (const Fragment& part : striped.image_parts(object, 0, 6))
        CPPUNIT_ASSERT(part.image_offset + part.length <= two63);
  }

  // 2^40 stripe units, but only two objects: this ends only when no work is
  // done for each unit.
  void long_linear_range_has_one_part_an_object() {
    const Layout layout(u64{1} << 40, 1, 1);
    const auto extents = layout.cut(u64{1} << 39, u64{1} << 40);
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, extents.size());
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, extents[0].parts.size());
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, extents[1].parts.size());
    CPPUNIT_ASSERT_EQUAL(u64{1} << 39, extents[0].length);
    CPPUNIT_ASSERT_EQUAL(u64{1} << 39, extents[1].length);
    CPPUNIT_ASSERT_EQUAL(
        std::size_t{1},
        layout.image_parts(1, 0, u64{1} << 40).size());
    CPPUNIT_ASSERT_EQUAL((u64{1} << 40) - 5,
                         layout.locate(5, u64{1} << 40).length);
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(LayoutTest);
