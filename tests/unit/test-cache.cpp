// SPDX-License-Identifier: BSD-3-Clause
//
// The block cache, and disks read through it.

#include <cppunit/TestFixture.h>
#include <cppunit/extensions/HelperMacros.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cache/block_cache.hpp"
#include "cache/cached_disk.hpp"

namespace {

using namespace nbdrados;
using Result = BlockCache::Result;
using Change = BlockCache::Change;
using u32 = std::uint32_t;
using u64 = std::uint64_t;

constexpr u32 block = 4096;

/// The disk below: counts requests, and fails where it is told to.
class Disk {
 public:
  explicit Disk(u64 size) : bytes(size) {
    std::minstd_rand random(3);
    for (char& c : bytes) c = static_cast<char>(random());
  }
  int read(char* to, u32 count, u64 offset) {
    requests++;
    largest = std::max<u64>(largest, count);
    CPPUNIT_ASSERT(offset + count <= bytes.size());
    if (bad && offset <= *bad && *bad < offset + count) return EIO;
    std::memcpy(to, bytes.data() + offset, count);
    return 0;
  }
  CachedDisk::Below below() {
    return [this](char* to, u32 count, u64 offset) {
      return read(to, count, offset);
    };
  }

  std::vector<char> bytes;
  std::atomic<u64> requests{0};
  std::atomic<u64> largest{0};
  std::optional<u64> bad;
};

class CacheTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(CacheTest);
  CPPUNIT_TEST(keeps_what_was_published);
  CPPUNIT_TEST(disks_do_not_mix);
  CPPUNIT_TEST(never_uses_more_than_its_capacity);
  CPPUNIT_TEST(too_small_for_a_block);
  CPPUNIT_TEST(a_scan_leaves_what_is_used);
  CPPUNIT_TEST(small_sequential_reads_are_one_use);
  CPPUNIT_TEST(one_fetch_for_many);
  CPPUNIT_TEST(an_abandoned_claim_is_free);
  CPPUNIT_TEST(a_fetch_from_before_a_change_is_not_kept);
  CPPUNIT_TEST(a_fetch_during_a_change_is_not_kept);
  CPPUNIT_TEST(changes_update);
  CPPUNIT_TEST(changes_of_the_same_bytes_drop);
  CPPUNIT_TEST(changes_side_by_side_are_kept);
  CPPUNIT_TEST(a_failed_change_drops);
  CPPUNIT_TEST(forgetting_drops_fetches_as_well);
  CPPUNIT_TEST(disk_reads_what_is_below);
  CPPUNIT_TEST(disk_does_not_mix_versions);
  CPPUNIT_TEST(disk_joins_missing_blocks);
  CPPUNIT_TEST(disk_reads_ahead_and_stops);
  CPPUNIT_TEST(disk_keeps_streams_apart);
  CPPUNIT_TEST(disk_bounds_requests_below);
  CPPUNIT_TEST(disk_forgives_errors_elsewhere);
  CPPUNIT_TEST(disk_against_a_model);
  CPPUNIT_TEST(disk_against_a_model_with_threads);
  CPPUNIT_TEST(disk_shared_by_writers_and_readers);
  CPPUNIT_TEST_SUITE_END();

  static std::vector<char> content(char c) {
    return std::vector<char>(block, c);
  }

  /// Puts a block into the cache.
  static void put(BlockCache& cache, BlockCache::Key key, char c) {
    BlockCache::FetchPtr claim;
    char byte;
    CPPUNIT_ASSERT(cache.read(key, 0, 1, &byte, claim) == Result::claimed);
    cache.publish(key, claim, content(c).data(), block, 1);
  }

  /// The first byte of a block; nothing if it is not cached.
  static std::optional<char> get(BlockCache& cache, BlockCache::Key key,
                                 u32 offset = 0) {
    BlockCache::FetchPtr claim;
    char byte;
    const Result r = cache.read(key, offset, 1, &byte, claim);
    if (r == Result::hit) return byte;
    CPPUNIT_ASSERT(r == Result::claimed);
    cache.abandon(key, claim);
    return std::nullopt;
  }

  void keeps_what_was_published() {
    BlockCache cache(1 << 20, block);
    CPPUNIT_ASSERT(!get(cache, {1, 5}));
    put(cache, {1, 5}, 'x');
    CPPUNIT_ASSERT_EQUAL('x', get(cache, {1, 5}).value());
    const BlockCache::Statistics s = cache.statistics();
    CPPUNIT_ASSERT_EQUAL(u64{1}, s.hits);
    CPPUNIT_ASSERT_EQUAL(u64{2}, s.misses);
    CPPUNIT_ASSERT_EQUAL(u64{1}, s.inserted);
    CPPUNIT_ASSERT_EQUAL(u64{block + BlockCache::overhead}, s.bytes);
  }

  void disks_do_not_mix() {
    BlockCache cache(1 << 20, block);
    put(cache, {1, 0}, 'a');
    CPPUNIT_ASSERT(!get(cache, {2, 0}));
    put(cache, {2, 0}, 'b');
    CPPUNIT_ASSERT_EQUAL('a', get(cache, {1, 0}).value());
    CPPUNIT_ASSERT_EQUAL('b', get(cache, {2, 0}).value());
  }

  void never_uses_more_than_its_capacity() {
    std::minstd_rand random(1);
    for (const u64 capacity : {5000u, 20000u, 300000u, 3000000u}) {
      BlockCache cache(capacity, block);
      for (u64 i = 0; i < 3000; i++) {
        const BlockCache::Key key{random() % 3, random() % 1500};
        if (!get(cache, key)) put(cache, key, 'x');
        CPPUNIT_ASSERT(cache.statistics().bytes <= capacity);
      }
      const BlockCache::Statistics s = cache.statistics();
      CPPUNIT_ASSERT(capacity < 10000 || s.bytes > capacity / 2);
      CPPUNIT_ASSERT_EQUAL(s.inserted - s.evicted,
                           s.bytes / (block + BlockCache::overhead));
    }
  }

  void too_small_for_a_block() {
    for (const u64 capacity : {0u, 1u, 4096u}) {
      BlockCache cache(capacity, block);
      put(cache, {1, 0}, 'x');
      CPPUNIT_ASSERT(!get(cache, {1, 0}));
      CPPUNIT_ASSERT_EQUAL(u64{0}, cache.statistics().bytes);
    }
  }

  void a_scan_leaves_what_is_used() {
    // Room for about 900 blocks; 400 of them are in use.
    BlockCache cache(4 << 20, block);
    for (int round = 0; round < 3; round++)
      for (u64 i = 0; i < 400; i++)
        if (!get(cache, {1, i}, static_cast<u32>(i))) put(cache, {1, i}, 'h');
    for (u64 i = 0; i < 10000; i++) {
      if (!get(cache, {2, i})) put(cache, {2, i}, 's');
      // From time to time somebody uses the others.
      if (i % 10 == 0) (void)get(cache, {1, i / 10 % 400}, 7);
    }
    int there = 0;
    for (u64 i = 0; i < 400; i++) there += get(cache, {1, i}) ? 1 : 0;
    CPPUNIT_ASSERT_MESSAGE(std::to_string(there), there >= 360);
  }

  void small_sequential_reads_are_one_use() {
    BlockCache cache(4 << 20, block);
    for (int round = 0; round < 3; round++)
      for (u64 i = 0; i < 400; i++)
        if (!get(cache, {1, i}, static_cast<u32>(i))) put(cache, {1, i}, 'h');
    for (u64 i = 0; i < 10000; i++) {
      put(cache, {2, i}, 's');
      for (u32 at = 1; at < 8; at++) (void)get(cache, {2, i}, at);
    }
    int there = 0;
    for (u64 i = 0; i < 400; i++) there += get(cache, {1, i}) ? 1 : 0;
    CPPUNIT_ASSERT_MESSAGE(std::to_string(there), there >= 360);
  }

  void one_fetch_for_many() {
    Disk disk(1 << 20);
    BlockCache cache(4 << 20, 65536);
    CachedDisk cached(cache, 1, {disk.bytes.size(), 65536, 1 << 20, 0});
    std::atomic<int> ready{0};
    const auto slow = [&](char* to, u32 count, u64 offset) {
      // Until all the others wait.
      while (cache.statistics().waits < 7) std::this_thread::yield();
      return disk.read(to, count, offset);
    };
    std::vector<std::thread> threads;
    std::atomic<int> good{0};
    for (u32 i = 0; i < 8; i++)
      threads.emplace_back([&, i] {
        Streams streams;
        std::vector<char> data(100);
        ready++;
        while (ready < 8) std::this_thread::yield();
        if (cached.read(data.data(), 100, 65536 + i * 1000, streams, slow) ==
                0 &&
            std::memcmp(data.data(), disk.bytes.data() + 65536 + i * 1000,
                        100) == 0)
          good++;
      });
    for (std::thread& t : threads) t.join();
    CPPUNIT_ASSERT_EQUAL(8, good.load());
    CPPUNIT_ASSERT_EQUAL(u64{1}, disk.requests.load());
  }

  void an_abandoned_claim_is_free() {
    BlockCache cache(1 << 20, block);
    BlockCache::FetchPtr claim;
    char byte;
    CPPUNIT_ASSERT(cache.read({1, 0}, 0, 1, &byte, claim) == Result::claimed);
    BlockCache::FetchPtr other;
    CPPUNIT_ASSERT(cache.read({1, 0}, 0, 1, &byte, other) == Result::busy);
    CPPUNIT_ASSERT(claim == other);
    cache.abandon({1, 0}, claim);
    BlockCache::wait(*other);
    put(cache, {1, 0}, 'x');
  }

  void a_fetch_from_before_a_change_is_not_kept() {
    BlockCache cache(1 << 20, block);
    for (const bool within : {true, false}) {
      BlockCache::FetchPtr claim;
      char byte;
      CPPUNIT_ASSERT(cache.read({1, 0}, 0, 1, &byte, claim) ==
                     Result::claimed);
      cache.begin_change({1, 0}, 10, 20);
      if (within) cache.publish({1, 0}, claim, content('o').data(), block, 1);
      cache.end_change({1, 0}, 10, 20, Change::data, content('n').data(),
                       block);
      if (!within) {
        // Who comes after the change does not get the old fetch.
        BlockCache::FetchPtr later;
        CPPUNIT_ASSERT(cache.read({1, 0}, 0, 1, &byte, later) ==
                       Result::claimed);
        cache.publish({1, 0}, claim, content('o').data(), block, 1);
        cache.abandon({1, 0}, later);
      }
      CPPUNIT_ASSERT(!get(cache, {1, 0}));
    }
  }

  void a_fetch_during_a_change_is_not_kept() {
    BlockCache cache(1 << 20, block);
    for (const bool within : {true, false}) {
      cache.begin_change({1, 0}, 10, 20);
      BlockCache::FetchPtr claim;
      char byte;
      CPPUNIT_ASSERT(cache.read({1, 0}, 0, 1, &byte, claim) ==
                     Result::claimed);
      if (within) cache.publish({1, 0}, claim, content('o').data(), block, 1);
      cache.end_change({1, 0}, 10, 20, Change::data, content('n').data(),
                       block);
      if (!within)
        cache.publish({1, 0}, claim, content('o').data(), block, 1);
      CPPUNIT_ASSERT(!get(cache, {1, 0}));
    }
  }

  void changes_update() {
    BlockCache cache(1 << 20, block);
    put(cache, {1, 0}, 'a');
    cache.begin_change({1, 0}, 10, 20);
    CPPUNIT_ASSERT_EQUAL('a', get(cache, {1, 0}, 10).value());
    cache.end_change({1, 0}, 10, 20, Change::data, content('b').data(), block);
    CPPUNIT_ASSERT_EQUAL('a', get(cache, {1, 0}, 9).value());
    CPPUNIT_ASSERT_EQUAL('b', get(cache, {1, 0}, 10).value());
    CPPUNIT_ASSERT_EQUAL('b', get(cache, {1, 0}, 29).value());
    CPPUNIT_ASSERT_EQUAL('a', get(cache, {1, 0}, 30).value());
    cache.begin_change({1, 0}, 29, 1);
    cache.end_change({1, 0}, 29, 1, Change::zeroes, nullptr, block);
    CPPUNIT_ASSERT_EQUAL('\0', get(cache, {1, 0}, 29).value());
    // A whole block enters, a part of one does not.
    cache.begin_change({1, 1}, 0, block);
    cache.end_change({1, 1}, 0, block, Change::data, content('c').data(),
                     block);
    CPPUNIT_ASSERT_EQUAL('c', get(cache, {1, 1}).value());
    cache.begin_change({1, 2}, 0, 10);
    cache.end_change({1, 2}, 0, 10, Change::data, content('c').data(), block);
    CPPUNIT_ASSERT(!get(cache, {1, 2}));
  }

  void changes_of_the_same_bytes_drop() {
    BlockCache cache(1 << 20, block);
    put(cache, {1, 0}, 'a');
    cache.begin_change({1, 0}, 0, 20);
    cache.begin_change({1, 0}, 19, 20);
    cache.end_change({1, 0}, 0, 20, Change::data, content('b').data(), block);
    CPPUNIT_ASSERT(!get(cache, {1, 0}));
    // Not kept before the other one has ended as well.
    BlockCache::FetchPtr claim;
    char byte;
    CPPUNIT_ASSERT(cache.read({1, 0}, 0, 1, &byte, claim) == Result::claimed);
    cache.publish({1, 0}, claim, content('b').data(), block, 1);
    CPPUNIT_ASSERT(!get(cache, {1, 0}));
    cache.end_change({1, 0}, 19, 20, Change::data, content('c').data(), block);
    CPPUNIT_ASSERT(!get(cache, {1, 0}));
    put(cache, {1, 0}, 'd');
  }

  void changes_side_by_side_are_kept() {
    BlockCache cache(1 << 20, block);
    put(cache, {1, 0}, 'a');
    cache.begin_change({1, 0}, 0, 20);
    cache.begin_change({1, 0}, 20, 20);
    cache.end_change({1, 0}, 20, 20, Change::data, content('c').data(), block);
    cache.end_change({1, 0}, 0, 20, Change::data, content('b').data(), block);
    CPPUNIT_ASSERT_EQUAL('b', get(cache, {1, 0}, 19).value());
    CPPUNIT_ASSERT_EQUAL('c', get(cache, {1, 0}, 20).value());
  }

  void a_failed_change_drops() {
    BlockCache cache(1 << 20, block);
    put(cache, {1, 0}, 'a');
    cache.begin_change({1, 0}, 0, 20);
    cache.end_change({1, 0}, 0, 20, Change::unknown, nullptr, block);
    CPPUNIT_ASSERT(!get(cache, {1, 0}));
    CPPUNIT_ASSERT_EQUAL(u64{1}, cache.statistics().dropped);
    CPPUNIT_ASSERT_EQUAL(u64{0}, cache.statistics().bytes);
  }

  void forgetting_drops_fetches_as_well() {
    BlockCache cache(1 << 20, block);
    cache.forget({1, 0});
    put(cache, {1, 0}, 'a');
    cache.forget({1, 0});
    CPPUNIT_ASSERT(!get(cache, {1, 0}));
    BlockCache::FetchPtr claim;
    char byte;
    CPPUNIT_ASSERT(cache.read({1, 0}, 0, 1, &byte, claim) == Result::claimed);
    cache.forget({1, 0});
    cache.publish({1, 0}, claim, content('o').data(), block, 1);
    CPPUNIT_ASSERT(!get(cache, {1, 0}));
    // A change that is under way goes on to keep fetches out.
    cache.begin_change({1, 0}, 0, 1);
    CPPUNIT_ASSERT(cache.read({1, 0}, 0, 1, &byte, claim) == Result::claimed);
    cache.forget({1, 0});
    cache.publish({1, 0}, claim, content('o').data(), block, 1);
    CPPUNIT_ASSERT(!get(cache, {1, 0}));
    cache.end_change({1, 0}, 0, 1, Change::data, "n", block);
    put(cache, {1, 0}, 'd');
    CPPUNIT_ASSERT_EQUAL('d', get(cache, {1, 0}).value());
  }

  // Disks -------------------------------------------------------------------

  void disk_reads_what_is_below() {
    Disk disk(100001);
    BlockCache cache(1 << 20, block);
    CachedDisk cached(cache, 1, {disk.bytes.size(), block, 1 << 20, 0});
    Streams streams;
    for (int round = 0; round < 2; round++) {
      std::vector<char> data(disk.bytes.size());
      CPPUNIT_ASSERT_EQUAL(0, cached.read(data.data(), 100001, 0, streams,
                                          disk.below()));
      CPPUNIT_ASSERT(data == disk.bytes);
      char last;
      CPPUNIT_ASSERT_EQUAL(
          0, cached.read(&last, 1, 100000, streams, disk.below()));
      CPPUNIT_ASSERT_EQUAL(disk.bytes.back(), last);
    }
    CPPUNIT_ASSERT_EQUAL(u64{1}, disk.requests.load());
  }

  void disk_does_not_mix_versions() {
    Disk disk(10 * block);
    BlockCache cache(1 << 20, block);
    CachedDisk cached(cache, 1, {disk.bytes.size(), block, 1 << 20, 0});
    Streams streams;
    char byte;
    const auto reads = [&](CachedDisk::Version version) {
      CPPUNIT_ASSERT_EQUAL(
          0, cached.read(&byte, 1, 5000, streams, disk.below(), version));
      return byte;
    };
    const char before = disk.bytes[5000];
    CPPUNIT_ASSERT_EQUAL(before, reads(1));
    // Somebody else writes, and we are told.
    disk.bytes[5000] = static_cast<char>(before + 1);
    CPPUNIT_ASSERT_EQUAL(before, reads(1));
    CPPUNIT_ASSERT_EQUAL(static_cast<char>(before + 1), reads(2));
    CPPUNIT_ASSERT_EQUAL(u64{2}, disk.requests.load());
    // Forgotten under one version and not the other.
    disk.bytes[5000] = static_cast<char>(before + 2);
    cached.forget(1, 5000, 1);
    CPPUNIT_ASSERT_EQUAL(static_cast<char>(before + 1), reads(2));
    CPPUNIT_ASSERT_EQUAL(static_cast<char>(before + 2), reads(1));
    // The whole range, and no block more.
    const char next = disk.bytes[2 * block];
    CPPUNIT_ASSERT_EQUAL(0, cached.read(&byte, 1, 2 * block, streams,
                                        disk.below(), 1));
    cached.forget(block, block, 1);
    disk.bytes[2 * block] = static_cast<char>(next + 1);
    CPPUNIT_ASSERT_EQUAL(0, cached.read(&byte, 1, 2 * block, streams,
                                        disk.below(), 1));
    CPPUNIT_ASSERT_EQUAL(next, byte);
  }

  void disk_joins_missing_blocks() {
    Disk disk(1 << 20);
    BlockCache cache(4 << 20, block);
    CachedDisk cached(cache, 1, {disk.bytes.size(), block, 1 << 20, 0});
    Streams streams;
    std::vector<char> data(20 * block);
    // One block is there: two runs around it.
    CPPUNIT_ASSERT_EQUAL(
        0, cached.read(data.data(), 1, 10 * block, streams, disk.below()));
    CPPUNIT_ASSERT_EQUAL(0, cached.read(data.data(), 20 * block - 200, 100,
                                        streams, disk.below()));
    CPPUNIT_ASSERT_EQUAL(u64{3}, disk.requests.load());
    CPPUNIT_ASSERT(std::equal(data.begin(), data.end() - 200,
                              disk.bytes.begin() + 100));
    // Into the cache only.
    CPPUNIT_ASSERT_EQUAL(
        0, cached.read(nullptr, 8 * block, 40 * block, streams, disk.below()));
    CPPUNIT_ASSERT_EQUAL(u64{4}, disk.requests.load());
    CPPUNIT_ASSERT_EQUAL(0, cached.read(data.data(), 8 * block, 40 * block,
                                        streams, disk.below()));
    CPPUNIT_ASSERT_EQUAL(u64{4}, disk.requests.load());
  }

  void disk_reads_ahead_and_stops() {
    Disk disk(4 << 20);
    BlockCache cache(8 << 20, block);
    CachedDisk cached(cache, 1,
                      {disk.bytes.size(), block, 1 << 20, 64 * block});
    Streams streams;
    std::vector<char> data(block);
    for (u64 at = 0; at < disk.bytes.size(); at += block) {
      CPPUNIT_ASSERT_EQUAL(
          0, cached.read(data.data(), block, at, streams, disk.below()));
      CPPUNIT_ASSERT(std::equal(data.begin(), data.end(),
                                disk.bytes.begin() + static_cast<long>(at)));
    }
    // 1, then 2, 3, 5, 9, 17, 33 and then 65 blocks at a time: 22 requests
    // for 1024 blocks.
    CPPUNIT_ASSERT(disk.requests >= 1024 / 65);
    CPPUNIT_ASSERT_MESSAGE(std::to_string(disk.requests), disk.requests <= 24);
    CPPUNIT_ASSERT_EQUAL(u64{65 * block}, disk.largest.load());

    // Random reads fetch nothing that nobody asked for.
    BlockCache other(8 << 20, block);
    CachedDisk random(other, 1,
                      {disk.bytes.size(), block, 1 << 20, 64 * block});
    for (u64 i = 0; i < 100; i++)
      CPPUNIT_ASSERT_EQUAL(0, random.read(data.data(), 10, i * 37 % 100 * 10 *
                                              block, streams, disk.below()));
    CPPUNIT_ASSERT_EQUAL(u64{100}, other.statistics().inserted);
  }

  void disk_keeps_streams_apart() {
    Disk disk(4 << 20);
    BlockCache cache(8 << 20, block);
    CachedDisk cached(cache, 1,
                      {disk.bytes.size(), block, 1 << 20, 16 * block});
    Streams streams;
    std::vector<char> data(block);
    for (u64 i = 0; i < 256; i++)
      for (u64 stream = 0; stream < 4; stream++)
        CPPUNIT_ASSERT_EQUAL(
            0, cached.read(data.data(), block, ((stream << 8) + i) * block,
                           streams, disk.below()));
    CPPUNIT_ASSERT_MESSAGE(std::to_string(disk.requests),
                           disk.requests <= 4 * (256 / 17 + 6));
  }

  void disk_bounds_requests_below() {
    Disk disk(1 << 20);
    BlockCache cache(8 << 20, block);
    CachedDisk cached(cache, 1, {disk.bytes.size(), block, 3 * block, 1 << 20});
    Streams streams;
    std::vector<char> data(40 * block);
    CPPUNIT_ASSERT_EQUAL(0, cached.read(data.data(), 40 * block, 5, streams,
                                        disk.below()));
    CPPUNIT_ASSERT(std::equal(data.begin(), data.end(),
                              disk.bytes.begin() + 5));
    CPPUNIT_ASSERT_EQUAL(u64{3 * block}, disk.largest.load());
  }

  void disk_forgives_errors_elsewhere() {
    Disk disk(1 << 20);
    BlockCache cache(8 << 20, block);
    CachedDisk cached(cache, 1, {disk.bytes.size(), block, 1 << 20, 0});
    Streams streams;
    disk.bad = 5000;
    std::vector<char> data(2 * block);
    CPPUNIT_ASSERT_EQUAL(
        0, cached.read(data.data(), 4999, 0, streams, disk.below()));
    CPPUNIT_ASSERT(std::equal(data.begin(), data.begin() + 4999,
                              disk.bytes.begin()));
    CPPUNIT_ASSERT_EQUAL(
        EIO, cached.read(data.data(), 5001, 0, streams, disk.below()));
    CPPUNIT_ASSERT_EQUAL(EIO, cached.read(data.data(), block, block, streams,
                                          disk.below()));
    CPPUNIT_ASSERT_EQUAL(
        0, cached.read(data.data(), 10, 5001, streams, disk.below()));
    // An error is not remembered.
    disk.bad.reset();
    CPPUNIT_ASSERT_EQUAL(0, cached.read(data.data(), 2 * block, 0, streams,
                                        disk.below()));
    CPPUNIT_ASSERT(std::equal(data.begin(), data.end(), disk.bytes.begin()));
  }

  /// Random requests in [from, to) of the disk, which nobody else touches.
  /// Returns what is wrong.
  static std::string play(CachedDisk& cached, Disk& disk, u64 from, u64 to,
                          unsigned seed, int n) {
    std::minstd_rand random(seed);
    Streams streams;
    std::vector<char> model(disk.bytes.begin() + static_cast<long>(from),
                            disk.bytes.begin() + static_cast<long>(to));
    std::vector<char> data(to - from);
    const CachedDisk::Below below = disk.below();
    for (int i = 0; i < n; i++) {
      const u64 at = random() % (to - from);
      const u64 rest = to - from - at;
      const u32 count = static_cast<u32>(
          1 + random() % std::min<u64>(rest, random() % 3 ? 5000 : rest));
      switch (random() % 6) {
        case 0: {
          CachedDisk::Changing change(cached, count, from + at);
          for (u32 k = 0; k < count; k++)
            model[at + k] = static_cast<char>(random());
          std::memcpy(disk.bytes.data() + from + at, model.data() + at, count);
          change.done(model.data() + at);
          break;
        }
        case 1: {
          CachedDisk::Changing change(cached, count, from + at);
          std::memset(model.data() + at, 0, count);
          std::memset(disk.bytes.data() + from + at, 0, count);
          change.done(nullptr);
          break;
        }
        case 2: {
          // Trimmed, or failed half-way.
          const CachedDisk::Changing change(cached, count, from + at);
          std::memset(model.data() + at, 'f', count / 2);
          std::memset(disk.bytes.data() + from + at, 'f', count / 2);
          break;
        }
        default:
          if (cached.read(data.data(), count, from + at, streams, below) != 0)
            return "read failed";
          if (std::memcmp(data.data(), model.data() + at, count) != 0)
            return "wrong bytes in request " + std::to_string(i);
      }
    }
    return "";
  }

  void disk_against_a_model() {
    unsigned seed = 1;
    for (const u64 capacity : {0u, 5000u, 40000u, 200000u, 4000000u})
      for (const u32 size : {512u, 4096u, 65536u}) {
        Disk disk(300001);
        BlockCache cache(capacity, size);
        CachedDisk cached(cache, 1,
                          {disk.bytes.size(), size, 1 << 20, 128 << 10});
        CPPUNIT_ASSERT_EQUAL(std::string(), play(cached, disk, 0, 300001,
                                                 seed++, 1500));
        CPPUNIT_ASSERT(cache.statistics().bytes <= capacity);
      }
  }

  void disk_against_a_model_with_threads() {
    // Each thread has a part of its own, and the limits lie within blocks.
    for (const u64 capacity : {10000u, 4000000u}) {
      Disk disk(300000);
      BlockCache cache(capacity, block);
      // Without read-ahead and with blocks of one byte's alignment a fetch
      // would read bytes that a neighbour changes at that moment, so the disk
      // below takes a lock, as a real one would.
      std::mutex mutex;
      CachedDisk cached(cache, 1,
                        {disk.bytes.size(), block, 1 << 20, 64 << 10});
      std::vector<std::thread> threads;
      std::vector<std::string> results(4);
      for (unsigned i = 0; i < 4; i++)
        threads.emplace_back([&, i] {
          results[i] = play_locked(cached, disk, mutex, i * 75001,
                                   std::min(300000u, (i + 1) * 75001), i + 50);
        });
      for (std::thread& t : threads) t.join();
      for (const std::string& r : results)
        CPPUNIT_ASSERT_EQUAL(std::string(), r);
    }
  }

  static std::string play_locked(CachedDisk& cached, Disk& disk,
                                 std::mutex& mutex, u64 from, u64 to,
                                 unsigned seed) {
    std::minstd_rand random(seed);
    Streams streams;
    std::vector<char> model;
    {
      const std::scoped_lock lock(mutex);
      model.assign(disk.bytes.begin() + static_cast<long>(from),
                   disk.bytes.begin() + static_cast<long>(to));
    }
    std::vector<char> data(to - from);
    const CachedDisk::Below below = [&](char* p, u32 count, u64 offset) {
      const std::scoped_lock lock(mutex);
      return disk.read(p, count, offset);
    };
    for (int i = 0; i < 1500; i++) {
      const u64 at = random() % (to - from);
      const u32 count = static_cast<u32>(
          1 + random() % std::min<u64>(to - from - at, 9000));
      if (random() % 3 == 0) {
        CachedDisk::Changing change(cached, count, from + at);
        for (u32 k = 0; k < count; k++)
          model[at + k] = static_cast<char>(random());
        {
          const std::scoped_lock lock(mutex);
          std::memcpy(disk.bytes.data() + from + at, model.data() + at, count);
        }
        change.done(model.data() + at);
      } else {
        if (cached.read(data.data(), count, from + at, streams, below) != 0)
          return "read failed";
        if (std::memcmp(data.data(), model.data() + at, count) != 0)
          return "wrong bytes in request " + std::to_string(i);
      }
    }
    return "";
  }

  void disk_shared_by_writers_and_readers() {
    // All write everywhere at once; when they are done, the cache is what the
    // disk is.
    Disk disk(20 * block);
    std::mutex mutex;
    BlockCache cache(1 << 20, block);
    CachedDisk cached(cache, 1, {disk.bytes.size(), block, 1 << 20, 0});
    const CachedDisk::Below below = [&](char* p, u32 count, u64 offset) {
      const std::scoped_lock lock(mutex);
      return disk.read(p, count, offset);
    };
    // Until changes of one block have met, which they may not for a while.
    for (unsigned round = 0;
         round < 20 || (round < 5000 && cache.statistics().dropped == 0);
         round++) {
      std::vector<std::thread> threads;
      for (unsigned i = 0; i < 4; i++)
        threads.emplace_back([&, i] {
          std::minstd_rand random(round * 10 + i);
          Streams streams;
          for (int k = 0; k < 100; k++) {
            const u64 at = random() % (disk.bytes.size() - 2 * block);
            const u32 count = 1 + random() % (2 * block - 1);
            std::vector<char> data(count, static_cast<char>(random()));
            if (random() % 2 == 0) {
              CachedDisk::Changing change(cached, count, at);
              {
                const std::scoped_lock lock(mutex);
                std::memcpy(disk.bytes.data() + at, data.data(), count);
              }
              std::this_thread::yield();
              change.done(data.data());
            } else if (cached.read(data.data(), count, at, streams, below) !=
                       0) {
              std::abort();
            }
          }
        });
      for (std::thread& t : threads) t.join();
      Streams streams;
      std::vector<char> all(disk.bytes.size());
      CPPUNIT_ASSERT_EQUAL(0, cached.read(all.data(),
                                          static_cast<u32>(all.size()), 0,
                                          streams, below));
      CPPUNIT_ASSERT(all == disk.bytes);
    }
    CPPUNIT_ASSERT(cache.statistics().hits > 0);
    CPPUNIT_ASSERT(cache.statistics().dropped > 0);
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(CacheTest);

}  // namespace
