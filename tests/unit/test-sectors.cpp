// SPDX-License-Identifier: BSD-3-Clause
//
// Block status in whole sectors.

#include <cppunit/extensions/HelperMacros.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <random>
#include <vector>

#include "layout/sectors.hpp"

using namespace nbdrados;

namespace {

using Extents = std::vector<StatusExtent>;
using u64 = std::uint64_t;

/// A disk whose bytes have types, and how it answers.
struct Disk {
  enum class Answers {
    all,    // what was asked for
    more,   // and what follows
    some,   // as much as it likes
    one,    // the first extent, of at most what was asked for
  };

  explicit Disk(std::mt19937& r) : random(r), types(1 + random() % 4000) {
    // Mostly small pieces, some of them of many sectors.
    for (u64 at = 0; at < types.size();) {
      const u64 most = random() % 4 == 0 ? 2000 : 300;
      const u64 stop = std::min<u64>(types.size(), at + 1 + random() % most);
      const std::uint32_t type = random() % 4;
      for (; at < stop; ++at) types[at] = type;
    }
  }

  /// The bits that all bytes of the byte's sector have.
  [[nodiscard]] std::uint32_t sector_type(u64 byte) const {
    const u64 from = byte / 512 * 512;
    std::uint32_t type = 3;
    for (u64 at = from; at < std::min<u64>(from + 512, types.size()); ++at)
      type &= types[at];
    return type;
  }

  void answer(Answers how, u64 length, u64 offset, Extents& found) {
    CPPUNIT_ASSERT(length > 0 && offset + length <= types.size());
    u64 stop = offset + length;
    if (how == Answers::more)
      stop += random() % (types.size() - stop + 1);
    else if (how == Answers::some)
      stop = offset + 1 + random() % length;
    const std::size_t first = found.size();
    for (u64 at = offset; at < stop; ++at) {
      if (found.size() > first && found.back().type == types[at])
        ++found.back().length;
      else if (how == Answers::one && found.size() > first)
        break;
      else
        found.push_back({at, 1, types[at]});
    }
  }

  std::mt19937& random;
  std::vector<std::uint32_t> types;
};

class SectorsTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(SectorsTest);
  CPPUNIT_TEST(bounds);
  CPPUNIT_TEST(types_of_mixed_sectors);
  CPPUNIT_TEST(what_is_not_known);
  CPPUNIT_TEST(cuts);
  CPPUNIT_TEST(errors);
  CPPUNIT_TEST(any_request_tells_the_same);
  CPPUNIT_TEST_SUITE_END();

 public:
  void bounds() {
    CPPUNIT_ASSERT_EQUAL(u64{512}, sector_begin(1023));
    CPPUNIT_ASSERT_EQUAL(u64{1024}, sector_begin(1024));
    CPPUNIT_ASSERT_EQUAL(u64{1024}, sector_end(1024, 1024));
    CPPUNIT_ASSERT_EQUAL(u64{1024}, sector_end(513, 9999));
    CPPUNIT_ASSERT_EQUAL(u64{1000}, sector_end(513, 1000));
    constexpr u64 most = ~u64{0};
    CPPUNIT_ASSERT_EQUAL(most, sector_end(most - 5, most));
  }

  void types_of_mixed_sectors() {
    CPPUNIT_ASSERT(in_sectors({{0, 1000, 3}, {1000, 600, 0}, {1600, 2496, 3}},
                              4096) ==
                   (Extents{{0, 512, 3}, {512, 1536, 0}, {2048, 2048, 3}}));
    // What is zeros but no hole; what is unchanged beside what has become zero.
    CPPUNIT_ASSERT(in_sectors({{0, 700, 3}, {700, 836, 2}}, 1536) ==
                   (Extents{{0, 512, 3}, {512, 1024, 2}}));
    CPPUNIT_ASSERT(in_sectors({{0, 700, 1}, {700, 836, 2}}, 1536) ==
                   (Extents{{0, 512, 1}, {512, 512, 0}, {1024, 512, 2}}));
    // Several in one sector, and a byte at the end of the disk.
    CPPUNIT_ASSERT(
        in_sectors({{512, 10, 3}, {522, 1, 0}, {523, 501, 3}, {1024, 511, 3},
                    {1535, 1, 2}, {1536, 10, 3}, {1546, 1, 0}},
                   1547) ==
        (Extents{{512, 512, 0}, {1024, 512, 2}, {1536, 11, 0}}));
  }

  void what_is_not_known() {
    CPPUNIT_ASSERT(in_sectors({}, 1000).empty());
    CPPUNIT_ASSERT(in_sectors({{0, 511, 3}}, 1000).empty());
    CPPUNIT_ASSERT(in_sectors({{0, 600, 3}}, 1000) == (Extents{{0, 512, 3}}));
    CPPUNIT_ASSERT(in_sectors({{0, 600, 3}}, 600) == (Extents{{0, 600, 3}}));
    // Data makes all of its sector data.
    CPPUNIT_ASSERT(in_sectors({{0, 1, 0}}, 1000) == (Extents{{0, 512, 0}}));
    CPPUNIT_ASSERT(in_sectors({{0, 1, 0}}, 100) == (Extents{{0, 100, 0}}));
    CPPUNIT_ASSERT(in_sectors({{0, 600, 3}, {600, 1, 0}, {601, 1, 3}}, 9999) ==
                   (Extents{{0, 512, 3}, {512, 512, 0}}));
  }

  void cuts() {
    const auto after = [](u64 begin, u64 end) {
      Extents extents{{512, 512, 3}, {1024, 1024, 0}, {2048, 512, 3}};
      cut(extents, begin, end);
      return extents;
    };
    CPPUNIT_ASSERT(after(512, 9999) ==
                   (Extents{{512, 512, 3}, {1024, 1024, 0}, {2048, 512, 3}}));
    CPPUNIT_ASSERT(after(1000, 2049) ==
                   (Extents{{1000, 24, 3}, {1024, 1024, 0}, {2048, 1, 3}}));
    CPPUNIT_ASSERT(after(600, 700) == (Extents{{600, 100, 3}}));
    CPPUNIT_ASSERT(after(1023, 1024) == (Extents{{1023, 1, 3}}));
    Extents none;
    cut(none, 5, 10);
    CPPUNIT_ASSERT(none.empty());
  }

  // One below is one here; the first of several questions may be answered.
  void errors() {
    int questions = 0;
    Extents answer;
    const auto ask = [&](u64, u64 at, Extents& found) {
      if (++questions == 2) return EPERM;
      found.push_back({at, 100, 3});
      return 0;
    };
    CPPUNIT_ASSERT_EQUAL(EPERM, ask_in_sectors(10, 0, 5000, ask, answer));
    CPPUNIT_ASSERT_EQUAL(2, questions);
  }

  void any_request_tells_the_same() {
    std::mt19937 random(512);
    for (int i = 0; i < 400; ++i) {
      Disk disk(random);
      for (int j = 0; j < 60; ++j) request(disk);
    }
  }

 private:
  static void request(Disk& disk) {
    using Answers = Disk::Answers;
    const u64 size = disk.types.size();
    const u64 offset = disk.random() % size;
    const u64 length = 1 + disk.random() % (size - offset);
    const u64 end = offset + length;
    const auto how = static_cast<Answers>(disk.random() % 4);
    Extents answer;
    const auto ask = [&](u64 n, u64 at, Extents& found) {
      disk.answer(how, n, at, found);
      return 0;
    };
    CPPUNIT_ASSERT_EQUAL(0, ask_in_sectors(length, offset, size, ask, answer));
    // What a cache may remember.
    check(disk, answer, offset / 512 * 512, size);
    cut(answer, offset, end);
    const u64 told = check(disk, answer, offset, end);
    CPPUNIT_ASSERT(told <= end);
    if (how == Answers::all || how == Answers::more)
      CPPUNIT_ASSERT_EQUAL(end, told);
  }

  /// Each extent from `offset` on is what its sectors are.  Returns the end,
  /// which is the one of a sector if it is not `end`.
  static u64 check(const Disk& disk, const Extents& answer, u64 offset,
                   u64 end) {
    CPPUNIT_ASSERT(!answer.empty());
    u64 at = offset;
    for (std::size_t i = 0; i < answer.size(); ++i) {
      CPPUNIT_ASSERT_EQUAL(at, answer[i].offset);
      CPPUNIT_ASSERT(at == offset || at % 512 == 0);
      CPPUNIT_ASSERT(answer[i].length > 0);
      CPPUNIT_ASSERT(i == 0 || answer[i].type != answer[i - 1].type);
      const u64 stop = at + answer[i].length;
      CPPUNIT_ASSERT(stop <= disk.types.size());
      for (; at < stop; at = std::min(stop, at / 512 * 512 + 512))
        CPPUNIT_ASSERT_EQUAL(disk.sector_type(at), answer[i].type);
    }
    CPPUNIT_ASSERT(at % 512 == 0 || at == end);
    return at;
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(SectorsTest);

}  // namespace
