// SPDX-License-Identifier: BSD-3-Clause
//
// The second level of the block cache, and disks read through both.

#include <cppunit/TestFixture.h>
#include <cppunit/extensions/HelperMacros.h>

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <semaphore>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "cache/block_cache.hpp"
#include "cache/cache_file.hpp"
#include "cache/cached_disk.hpp"

namespace {

using namespace nbdrados;
using Key = BlockCache::Key;
using u32 = std::uint32_t;
using u64 = std::uint64_t;

constexpr u32 block = 4096;

/// A store in memory that fails as it is told.
class Store : public CacheStore {
 public:
  int read(char* to, u32 count, u64 offset) noexcept override {
    {
      const std::scoped_lock lock(mutex);
      reads++;
      if (read_error != 0) return read_error;
      if (offset + count > bytes.size()) return EIO;
      std::memcpy(to, bytes.data() + offset, count);
    }
    if (after_read) after_read();
    return 0;
  }
  int write(const char* from, u32 count, u64 offset) noexcept override {
    if (before_write) before_write();
    if (gated) {
      started.release();
      go.acquire();
    }
    const std::scoped_lock lock(mutex);
    writes++;
    end = std::max(end, offset + count);
    if (bytes.size() < end) bytes.resize(end);
    if (lose) return 0;
    if (write_error != 0) {
      // Some of it has got there.
      std::memcpy(bytes.data() + offset, from, count / 2);
      return write_error;
    }
    std::memcpy(bytes.data() + offset, from, count);
    return 0;
  }

  /// Waits until a write waits.
  bool has_started() {
    return started.try_acquire_for(std::chrono::minutes(1));
  }

  std::mutex mutex;
  // Guarded by it.
  std::vector<char> bytes;
  u64 end = 0;
  int reads = 0;
  int writes = 0;
  int read_error = 0;
  int write_error = 0;
  bool lose = false;  ///< writes do nothing
  // Set before use.
  std::function<void()> after_read;
  std::function<void()> before_write;
  /// Each write tells that it has started, and waits.
  bool gated = false;
  std::counting_semaphore<> started{0};
  std::counting_semaphore<> go{0};
};

/// A file and its store.
struct Level {
  explicit Level(u64 bytes, u32 largest = block,
                 std::chrono::milliseconds pause = std::chrono::hours(1),
                 u64 queue = 64 << 20)
      : owned(std::make_unique<Store>()),
        store(*owned),
        file(std::move(owned), {.bytes = bytes,
                                .block = largest,
                                .queue = queue,
                                .pause = pause,
                                .report = [this](const std::string& line) {
                                  const std::scoped_lock lock(mutex);
                                  reports.push_back(line);
                                }}) {}
  // A test that fails must not wait for ever.
  ~Level() { store.go.release(1000); }
  std::mutex mutex;
  std::vector<std::string> reports;  // guarded by mutex
  std::unique_ptr<Store> owned;
  Store& store;
  CacheFile file;
};

/// The disk below.
class Disk {
 public:
  explicit Disk(u64 size) : bytes(size) {
    std::minstd_rand random(3);
    for (char& c : bytes) c = static_cast<char>(random());
  }
  CachedDisk::Below below() {
    return [this](char* to, u32 count, u64 offset) {
      const std::scoped_lock lock(mutex);
      requests++;
      std::memcpy(to, bytes.data() + offset, count);
      return 0;
    };
  }
  std::mutex mutex;
  std::vector<char> bytes;
  int requests = 0;
};

class CacheFileTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(CacheFileTest);
  CPPUNIT_TEST(keeps_blocks);
  CPPUNIT_TEST(keeps_its_bound);
  CPPUNIT_TEST(uses_what_it_may);
  CPPUNIT_TEST(the_oldest_unused_leaves);
  CPPUNIT_TEST(sizes_take_over_from_each_other);
  CPPUNIT_TEST(corrupt_blocks_are_misses);
  CPPUNIT_TEST(blocks_in_each_others_place_are_misses);
  CPPUNIT_TEST(lost_writes_are_misses);
  CPPUNIT_TEST(failing_reads_are_misses);
  CPPUNIT_TEST(no_space);
  CPPUNIT_TEST(writes_again_after_a_pause);
  CPPUNIT_TEST(a_full_queue_keeps_less);
  CPPUNIT_TEST(dropped_before_it_is_written);
  CPPUNIT_TEST(replaced_while_it_is_written);
  CPPUNIT_TEST(reused_while_it_is_read);
  CPPUNIT_TEST(dropped_while_it_is_read);
  CPPUNIT_TEST(drops_race_with_commits);
  CPPUNIT_TEST(real_file);
  CPPUNIT_TEST(real_file_changed_by_others);
  CPPUNIT_TEST(real_file_at_its_limit);
  CPPUNIT_TEST(paths);
  CPPUNIT_TEST(evicted_blocks_come_back);
  CPPUNIT_TEST(what_fits_in_memory_is_not_written);
  CPPUNIT_TEST(what_is_there_is_not_written_again);
  CPPUNIT_TEST(changes_drop_what_the_file_has);
  CPPUNIT_TEST(blocks_being_changed_do_not_enter);
  CPPUNIT_TEST(written_blocks_enter);
  CPPUNIT_TEST(versions_do_not_mix);
  CPPUNIT_TEST(runs_stay_whole);
  CPPUNIT_TEST(read_ahead_ends_at_the_file);
  CPPUNIT_TEST(the_queue_is_part_of_the_capacity);
  CPPUNIT_TEST(against_a_model);
  CPPUNIT_TEST(against_a_model_with_faults);
  CPPUNIT_TEST(against_a_model_with_threads);
  CPPUNIT_TEST(shared_by_writers_and_readers);
  CPPUNIT_TEST_SUITE_END();

  /// What a block of a test looks like.
  static std::vector<char> content(Key key, u32 length = block,
                                   char salt = 0) {
    std::vector<char> all(length);
    for (u32 i = 0; i < length; i++)
      all[i] = static_cast<char>(key.disk * 31 + key.block * 7 + i * 13 +
                                 (i >> 8) + static_cast<u32>(salt));
    return all;
  }

  static void keep(CacheFile& file, Key key, u32 length = block,
                   char salt = 0) {
    auto data = std::make_unique<char[]>(length);
    std::ranges::copy(content(key, length, salt), data.get());
    file.keep(key, std::move(data), length);
  }

  /// Whether the file has the block.  What it has must be right.
  static bool has(CacheFile& file, Key key, u32 length = block,
                  char salt = 0) {
    const auto place = file.find(key, length);
    if (!place) return false;
    std::vector<char> data(length);
    if (!file.read(*place, data.data())) return false;
    CPPUNIT_ASSERT(data == content(key, length, salt));
    return true;
  }

  // The file ----------------------------------------------------------------

  void keeps_blocks() {
    Level level(1 << 20);
    CPPUNIT_ASSERT(!has(level.file, {1, 5}));
    for (u64 i = 0; i < 10; i++) keep(level.file, {1, i});
    keep(level.file, {2, 5});
    keep(level.file, {1, 99}, 700);
    level.file.settle();
    for (u64 i = 0; i < 10; i++) CPPUNIT_ASSERT(has(level.file, {1, i}));
    CPPUNIT_ASSERT(has(level.file, {2, 5}));
    CPPUNIT_ASSERT(!has(level.file, {2, 6}));
    CPPUNIT_ASSERT(has(level.file, {1, 99}, 700));
    // Nobody asks for another length, but nobody would get it either.
    CPPUNIT_ASSERT(!has(level.file, {1, 99}, 701));
    level.file.drop({1, 5});
    CPPUNIT_ASSERT(!has(level.file, {1, 5}));
    CPPUNIT_ASSERT(has(level.file, {2, 5}));
    const CacheFile::Statistics s = level.file.statistics();
    CPPUNIT_ASSERT_EQUAL(u64{13}, s.hits);
    CPPUNIT_ASSERT_EQUAL(u64{4}, s.misses);
    CPPUNIT_ASSERT_EQUAL(u64{12}, s.written);
    CPPUNIT_ASSERT_EQUAL(u64{1}, s.dropped);
    CPPUNIT_ASSERT_EQUAL(u64{10 * block + 1024}, s.bytes);
    CPPUNIT_ASSERT_EQUAL(u64{0}, s.errors + s.corrupt + s.skipped + s.evicted);
    CPPUNIT_ASSERT(level.reports.empty());
  }

  void keeps_its_bound() {
    std::minstd_rand random(1);
    for (const u64 bytes : {0u, 1u, 511u, 4096u, 5000u, 8192u, 65535u, 66000u,
                            1000000u, 5000000u}) {
      Level level(bytes, 16384);
      for (u64 i = 0; i < 3000; i++) {
        // One disk has one size of blocks, but a shorter one at its end.
        const u64 disk = random() % 7;
        const u64 at = random() % 500;
        const u32 length = (256u << disk) - (at == 499 ? 100 : 0);
        if (random() % 8 == 0)
          level.file.drop({disk, at});
        else if (!has(level.file, {disk, at}, length))
          keep(level.file, {disk, at}, length);
        CPPUNIT_ASSERT(level.file.statistics().bytes <= bytes);
        if (i % 50 == 0) level.file.settle();
      }
      level.file.settle();
      const CacheFile::Statistics s = level.file.statistics();
      CPPUNIT_ASSERT(level.store.end <= bytes);
      CPPUNIT_ASSERT(bytes < 1000000 || s.bytes > bytes / 2);
      CPPUNIT_ASSERT_EQUAL(u64{0}, s.errors + s.corrupt + s.skipped);
      CPPUNIT_ASSERT(bytes < 1000000 || s.hits > 0);
      for (u64 disk = 0; disk < 7; disk++)
        for (u64 at = 0; at < 500; at++) level.file.drop({disk, at});
      CPPUNIT_ASSERT_EQUAL(u64{0}, level.file.statistics().bytes);
    }
  }

  /// Fills a file with blocks of one size.  Returns how many are there.
  static u64 fill(CacheFile& file, u32 length, u64 disk, u64 n) {
    for (u64 i = 0; i < n; i++) {
      keep(file, {disk, i}, length);
      if (i % 512 == 0) file.settle();
    }
    file.settle();
    u64 there = 0;
    for (u64 i = 0; i < n; i++) there += has(file, {disk, i}, length) ? 1 : 0;
    return there;
  }

  void uses_what_it_may() {
    for (const u64 slots : {1u, 2u, 3u, 5u, 17u, 63u}) {
      Level level(slots * block);
      CPPUNIT_ASSERT_EQUAL(slots, fill(level.file, block, 1, 3 * slots));
    }
    // What large files lose at their ends is little.
    for (const u64 slots : {100u, 1000u, 2011u}) {
      Level level(slots * block);
      const u64 there = fill(level.file, block, 1, 3 * slots);
      CPPUNIT_ASSERT_MESSAGE(std::to_string(there),
                             there > slots * 7 / 8 && there <= slots);
    }
    // Blocks that are smaller than the usual ones.
    for (const u32 smaller : {2u, 4u, 16u}) {
      Level level(256 * block);
      const u64 there =
          fill(level.file, block / smaller, 1, 600 * smaller) / smaller;
      CPPUNIT_ASSERT_MESSAGE(std::to_string(there),
                             there > 224 && there <= 256);
    }
  }

  void the_oldest_unused_leaves() {
    Level level(8 * block);
    for (u64 i = 0; i < 8; i++) keep(level.file, {1, i});
    level.file.settle();
    CPPUNIT_ASSERT(has(level.file, {1, 0}));
    CPPUNIT_ASSERT(has(level.file, {1, 2}));
    // To look is not to use.
    CPPUNIT_ASSERT(level.file.find({1, 1}, block, true));
    for (u64 i = 8; i < 12; i++) keep(level.file, {1, i});
    level.file.settle();
    for (const u64 i : {0, 2, 6, 7, 8, 9, 10, 11})
      CPPUNIT_ASSERT(level.file.find({1, i}, block, true));
    CPPUNIT_ASSERT_EQUAL(u64{4}, level.file.statistics().evicted);
    // Passed over once, not for ever.
    for (u64 i = 12; i < 28; i++) keep(level.file, {1, i});
    level.file.settle();
    CPPUNIT_ASSERT(!level.file.find({1, 0}, block, true));
    // A place that became free is taken before anything else has to leave.
    level.file.drop({1, 25});
    keep(level.file, {1, 50});
    level.file.settle();
    for (const u64 i : {20, 21, 22, 23, 24, 26, 27, 50})
      CPPUNIT_ASSERT(level.file.find({1, i}, block, true));
  }

  void sizes_take_over_from_each_other() {
    Level level(128 * block);
    for (const u32 length :
         {block, block / 16, 4 * block, block / 2, block, 4 * block}) {
      const u64 n = 128 * block / length;
      const u64 there = fill(level.file, length, length, 3 * n);
      CPPUNIT_ASSERT_MESSAGE(std::to_string(length) + ": " +
                                 std::to_string(there),
                             there >= n * 3 / 4 && there <= n);
      CPPUNIT_ASSERT(level.file.statistics().bytes <= 128 * block);
    }
    CPPUNIT_ASSERT(level.store.end <= 128 * block);
    // Longer than a frame.
    keep(level.file, {9, 0}, 5 * block);
    level.file.settle();
    CPPUNIT_ASSERT(!level.file.find({9, 0}, 5 * block));
  }

  // Errors ------------------------------------------------------------------

  void corrupt_blocks_are_misses() {
    Level level(8 * block);
    for (u64 i = 0; i < 4; i++) keep(level.file, {1, i});
    level.file.settle();
    // The first, the last, and one bit somewhere.
    level.store.bytes[0] = static_cast<char>(level.store.bytes[0] ^ 0x80);
    level.store.bytes[2 * block - 1]++;
    level.store.bytes[2 * block + 1234] =
        static_cast<char>(level.store.bytes[2 * block + 1234] ^ 1);
    for (u64 i = 0; i < 3; i++) {
      CPPUNIT_ASSERT(level.file.find({1, i}, block, true));
      CPPUNIT_ASSERT(!has(level.file, {1, i}));
      // It is not tried again.
      CPPUNIT_ASSERT(!level.file.find({1, i}, block, true));
    }
    CPPUNIT_ASSERT(has(level.file, {1, 3}));
    const CacheFile::Statistics s = level.file.statistics();
    CPPUNIT_ASSERT_EQUAL(u64{3}, s.corrupt);
    CPPUNIT_ASSERT_EQUAL(u64{3}, s.misses);
    CPPUNIT_ASSERT_EQUAL(u64{1}, s.hits);
    CPPUNIT_ASSERT_EQUAL(u64{block}, s.bytes);
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, level.reports.size());
    CPPUNIT_ASSERT(level.reports[0].find("checksum") != std::string::npos);
  }

  void blocks_in_each_others_place_are_misses() {
    Level level(2 * block);
    keep(level.file, {1, 0});
    keep(level.file, {1, 1});
    level.file.settle();
    std::swap_ranges(level.store.bytes.begin(),
                     level.store.bytes.begin() + block,
                     level.store.bytes.begin() + block);
    CPPUNIT_ASSERT(!has(level.file, {1, 0}));
    CPPUNIT_ASSERT(!has(level.file, {1, 1}));
    CPPUNIT_ASSERT_EQUAL(u64{2}, level.file.statistics().corrupt);
  }

  void lost_writes_are_misses() {
    Level level(block);
    keep(level.file, {1, 0}, block, 'a');
    level.file.settle();
    level.file.drop({1, 0});
    level.store.lose = true;
    keep(level.file, {1, 0}, block, 'b');
    level.file.settle();
    CPPUNIT_ASSERT(level.file.find({1, 0}, block, true));
    CPPUNIT_ASSERT(!has(level.file, {1, 0}, block, 'b'));
    CPPUNIT_ASSERT_EQUAL(u64{1}, level.file.statistics().corrupt);
  }

  void failing_reads_are_misses() {
    Level level(8 * block);
    for (u64 i = 0; i < 4; i++) keep(level.file, {1, i});
    level.file.settle();
    level.store.read_error = EIO;
    CPPUNIT_ASSERT(!has(level.file, {1, 0}));
    CPPUNIT_ASSERT(!has(level.file, {1, 1}));
    level.store.read_error = 0;
    CPPUNIT_ASSERT(!level.file.find({1, 0}, block));
    CPPUNIT_ASSERT(has(level.file, {1, 2}));
    // It ends too early.
    level.store.bytes.resize(3 * block + 1);
    CPPUNIT_ASSERT(!has(level.file, {1, 3}));
    CPPUNIT_ASSERT(!level.file.find({1, 3}, block));
    CPPUNIT_ASSERT_EQUAL(u64{3}, level.file.statistics().errors);
    CPPUNIT_ASSERT_EQUAL(u64{block}, level.file.statistics().bytes);
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, level.reports.size());
    // Nor is anything written for a while.
    keep(level.file, {1, 9});
    level.file.settle();
    CPPUNIT_ASSERT_EQUAL(4, level.store.writes);
  }

  void no_space() {
    Level level(1 << 20);
    keep(level.file, {1, 0});
    level.file.settle();
    level.store.write_error = ENOSPC;
    for (u64 i = 1; i < 20; i++) keep(level.file, {1, i});
    level.file.settle();
    for (u64 i = 1; i < 20; i++) CPPUNIT_ASSERT(!has(level.file, {1, i}));
    for (u64 i = 1; i < 20; i++) keep(level.file, {1, i});
    level.file.settle();
    // One attempt, and then not for an hour.
    CPPUNIT_ASSERT_EQUAL(2, level.store.writes);
    CPPUNIT_ASSERT(has(level.file, {1, 0}));
    const CacheFile::Statistics s = level.file.statistics();
    CPPUNIT_ASSERT_EQUAL(u64{1}, s.errors);
    CPPUNIT_ASSERT_EQUAL(u64{18 + 19}, s.skipped);
    CPPUNIT_ASSERT_EQUAL(u64{1}, s.written);
    CPPUNIT_ASSERT_EQUAL(u64{block}, s.bytes);
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, level.reports.size());
    CPPUNIT_ASSERT(level.reports[0].find("No space left on device") !=
                   std::string::npos);
  }

  void writes_again_after_a_pause() {
    Level level(1 << 20, block, std::chrono::milliseconds(0));
    level.store.write_error = ENOSPC;
    for (u64 i = 0; i < 5; i++) {
      keep(level.file, {1, i});
      level.file.settle();
    }
    CPPUNIT_ASSERT_EQUAL(5, level.store.writes);
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, level.reports.size());
    CPPUNIT_ASSERT_EQUAL(u64{0}, level.file.statistics().bytes);
    level.store.write_error = 0;
    for (u64 i = 0; i < 5; i++) keep(level.file, {1, i});
    level.file.settle();
    for (u64 i = 0; i < 5; i++) CPPUNIT_ASSERT(has(level.file, {1, i}));
  }

  // Races -------------------------------------------------------------------

  void a_full_queue_keeps_less() {
    Level level(1 << 20, block, std::chrono::hours(1), 4 * block);
    level.store.gated = true;
    for (u64 i = 0; i < 10; i++) keep(level.file, {1, i});
    // Not four, because what manages them counts as well.
    CPPUNIT_ASSERT_EQUAL(u64{7}, level.file.statistics().skipped);
    CPPUNIT_ASSERT_EQUAL(u64{3 * block}, level.file.statistics().bytes);
    level.store.go.release(100);
    level.file.settle();
    for (u64 i = 0; i < 10; i++)
      CPPUNIT_ASSERT_EQUAL(i < 3, has(level.file, {1, i}));
    // There is room again.
    keep(level.file, {1, 9});
    level.file.settle();
    CPPUNIT_ASSERT(has(level.file, {1, 9}));
  }

  void dropped_before_it_is_written() {
    Level level(1 << 20);
    level.store.gated = true;
    keep(level.file, {1, 0});
    keep(level.file, {1, 1});
    keep(level.file, {1, 2});
    CPPUNIT_ASSERT(level.store.has_started());
    CPPUNIT_ASSERT(!has(level.file, {1, 0}));
    level.file.drop({1, 0});
    level.file.drop({1, 1});
    keep(level.file, {1, 1}, block, 'b');
    level.store.go.release(100);
    level.file.settle();
    CPPUNIT_ASSERT(!has(level.file, {1, 0}));
    CPPUNIT_ASSERT(has(level.file, {1, 1}, block, 'b'));
    CPPUNIT_ASSERT(has(level.file, {1, 2}));
    // The one that was still in the queue was not written at all.
    CPPUNIT_ASSERT_EQUAL(3, level.store.writes);
    CPPUNIT_ASSERT_EQUAL(u64{2 * block}, level.file.statistics().bytes);
  }

  void replaced_while_it_is_written() {
    // With one slot the new content gets the place of the old one.
    for (const u64 slots : {1u, 8u}) {
      Level level(slots * block);
      level.store.gated = true;
      keep(level.file, {1, 0}, block, 'a');
      CPPUNIT_ASSERT(level.store.has_started());
      level.file.drop({1, 0});
      keep(level.file, {1, 0}, block, 'b');
      level.store.go.release();
      // The old one has been written, the new one not.
      CPPUNIT_ASSERT(level.store.has_started());
      CPPUNIT_ASSERT(!level.file.find({1, 0}, block));
      level.store.go.release();
      level.file.settle();
      CPPUNIT_ASSERT(has(level.file, {1, 0}, block, 'b'));
      CPPUNIT_ASSERT_EQUAL(2, level.store.writes);
    }
  }

  void reused_while_it_is_read() {
    Level level(block);
    keep(level.file, {1, 0});
    level.file.settle();
    const auto place = level.file.find({1, 0}, block);
    CPPUNIT_ASSERT(place);
    // Before it is read ...
    keep(level.file, {1, 1});
    level.file.settle();
    std::vector<char> data(block);
    CPPUNIT_ASSERT(!level.file.read(*place, data.data()));
    CPPUNIT_ASSERT(has(level.file, {1, 1}));
    // ... and when it has been, but nobody knows when.
    const auto second = level.file.find({1, 1}, block);
    CPPUNIT_ASSERT(second);
    level.store.after_read = [&] {
      level.store.after_read = nullptr;
      keep(level.file, {1, 2});
      level.file.settle();
    };
    CPPUNIT_ASSERT(!level.file.read(*second, data.data()));
    CPPUNIT_ASSERT(has(level.file, {1, 2}));
    // None of this is an error.
    const CacheFile::Statistics s = level.file.statistics();
    CPPUNIT_ASSERT_EQUAL(u64{0}, s.errors + s.corrupt);
    CPPUNIT_ASSERT_EQUAL(u64{2}, s.evicted);
  }

  void dropped_while_it_is_read() {
    Level level(8 * block);
    keep(level.file, {1, 0}, block, 'a');
    level.file.settle();
    const auto place = level.file.find({1, 0}, block);
    CPPUNIT_ASSERT(place);
    level.store.after_read = [&] {
      level.store.after_read = nullptr;
      level.file.drop({1, 0});
      // The same key in the same place, and the same bytes: still another one.
      keep(level.file, {1, 0}, block, 'a');
      level.file.settle();
    };
    std::vector<char> data(block);
    CPPUNIT_ASSERT(!level.file.read(*place, data.data()));
    CPPUNIT_ASSERT(has(level.file, {1, 0}, block, 'a'));
  }

  void drops_race_with_commits() {
    // Each thread has keys of its own, and says what they have; all share the
    // places.
    Level level(40 * block);
    std::atomic<int> hits{0};
    std::vector<std::string> results(4);
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < 4; t++)
      threads.emplace_back([&, t] {
        std::minstd_rand random(t + 1);
        std::vector<char> salt(20, 'a');
        std::vector<char> data(block);
        for (int i = 0; i < 4000; i++) {
          // On a busy machine the thread that writes may never get a turn.
          if (i % 200 == 0) level.file.settle();
          const u64 at = random() % salt.size();
          const Key key{t, at};
          if (random() % 3 == 0) {
            level.file.drop(key);
            salt[at]++;
            if (random() % 4 != 0) keep(level.file, key, block, salt[at]);
          } else if (const auto place = level.file.find(key, block); place) {
            if (!level.file.read(*place, data.data())) continue;
            hits++;
            if (data != content(key, block, salt[at]))
              results[t] = "old content in step " + std::to_string(i);
          }
        }
      });
    for (std::thread& t : threads) t.join();
    for (const std::string& r : results) CPPUNIT_ASSERT_EQUAL(std::string(), r);
    CPPUNIT_ASSERT(hits > 0);
    CPPUNIT_ASSERT(level.file.statistics().dropped > 0);
    CPPUNIT_ASSERT_EQUAL(u64{0}, level.file.statistics().corrupt);
    CPPUNIT_ASSERT(level.store.end <= 40 * block);
  }

  // Real files --------------------------------------------------------------

  /// A folder for the time of a test.
  class Folder {
   public:
    Folder() {
      std::string name =
          (std::filesystem::temp_directory_path() / "nbdrados-XXXXXX").string();
      CPPUNIT_ASSERT(mkdtemp(name.data()) != nullptr);
      path = name;
    }
    ~Folder() {
      std::error_code ignored;
      std::filesystem::remove_all(path, ignored);
    }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;
    std::filesystem::path path;
  };

  /// The file in this folder that this process has open.
  static std::string open_in(const std::filesystem::path& folder) {
    for (const auto& entry : std::filesystem::directory_iterator(
             "/proc/self/fd")) {
      std::error_code gone;
      const std::string to =
          std::filesystem::read_symlink(entry.path(), gone).string();
      if (!gone && to.starts_with(folder.string() + "/"))
        return entry.path().string();
    }
    return "";
  }

  static void real_blocks(CacheFile& file) {
    for (u64 i = 0; i < 300; i++) keep(file, {1, i});
    file.settle();
    int there = 0;
    for (u64 i = 0; i < 300; i++) there += has(file, {1, i}) ? 1 : 0;
    CPPUNIT_ASSERT_EQUAL(256, there);
  }

  void real_file() {
    const Folder folder;
    std::string link;
    {
      // The folder, and a name in it.
      CacheFile file(open_cache_store(folder.path.string()),
                     {.bytes = 256 * block, .block = block, .report = {}});
      CacheFile other(open_cache_store((folder.path / "cache").string()),
                      {.bytes = 256 * block, .block = block, .report = {}});
      real_blocks(file);
      // They do not share anything.
      CPPUNIT_ASSERT(!has(other, {1, 299}));
      real_blocks(other);
      CPPUNIT_ASSERT(std::filesystem::is_empty(folder.path));
      link = open_in(folder.path);
      CPPUNIT_ASSERT(!link.empty());
      struct stat st;
      CPPUNIT_ASSERT_EQUAL(0, stat(link.c_str(), &st));
      CPPUNIT_ASSERT(st.st_size <= 256 * block);
      CPPUNIT_ASSERT_EQUAL(0u, static_cast<unsigned>(st.st_mode) & 077u);
    }
    CPPUNIT_ASSERT_EQUAL(std::string(), open_in(folder.path));
    CPPUNIT_ASSERT(std::filesystem::is_empty(folder.path));
  }

  void real_file_changed_by_others() {
    const Folder folder;
    CacheFile file(open_cache_store(folder.path.string()),
                   {.bytes = 16 * block, .block = block, .report = {}});
    for (u64 i = 0; i < 4; i++) keep(file, {1, i});
    file.settle();
    const std::string link = open_in(folder.path);
    CPPUNIT_ASSERT(!link.empty());
    std::fstream(link, std::ios::in | std::ios::out | std::ios::binary)
        << "rubbish";
    CPPUNIT_ASSERT(!has(file, {1, 0}));
    CPPUNIT_ASSERT(has(file, {1, 1}));
    std::filesystem::resize_file(link, 3 * block);
    CPPUNIT_ASSERT(has(file, {1, 2}));
    CPPUNIT_ASSERT(!has(file, {1, 3}));
    CPPUNIT_ASSERT_EQUAL(u64{1}, file.statistics().corrupt);
    CPPUNIT_ASSERT_EQUAL(u64{1}, file.statistics().errors);
  }

  void real_file_at_its_limit() {
    // Without care the signal SIGXFSZ would end the program here.
    const Folder folder;
    struct rlimit before;
    CPPUNIT_ASSERT_EQUAL(0, getrlimit(RLIMIT_FSIZE, &before));
    std::vector<std::string> reports;
    {
      CacheFile file(open_cache_store(folder.path.string()),
                     {.bytes = 16 * block,
                      .block = block,
                      .report = [&](const std::string& line) {
                        reports.push_back(line);
                      }});
      struct rlimit small = before;
      small.rlim_cur = 3 * block + 1;
      CPPUNIT_ASSERT_EQUAL(0, setrlimit(RLIMIT_FSIZE, &small));
      for (u64 i = 0; i < 10; i++) keep(file, {1, i});
      file.settle();
      CPPUNIT_ASSERT_EQUAL(0, setrlimit(RLIMIT_FSIZE, &before));
      for (u64 i = 0; i < 10; i++)
        CPPUNIT_ASSERT_EQUAL(i < 3, has(file, {1, i}));
      CPPUNIT_ASSERT_EQUAL(u64{1}, file.statistics().errors);
    }
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, reports.size());
    CPPUNIT_ASSERT(reports[0].find("File too large") != std::string::npos);
  }

  static int error_of(const std::filesystem::path& path) {
    try {
      (void)open_cache_store(path.string());
    } catch (const std::system_error& e) {
      // The text names the path.
      CPPUNIT_ASSERT(std::string(e.what()).starts_with(path.string() + ": "));
      return e.code().value();
    }
    return 0;
  }

  void paths() {
    const Folder folder;
    CPPUNIT_ASSERT_EQUAL(0, error_of(folder.path));
    CPPUNIT_ASSERT_EQUAL(0, error_of(folder.path / "new"));
    CPPUNIT_ASSERT_EQUAL(ENOENT, error_of(folder.path / "none" / "new"));
    const std::filesystem::path mine = folder.path / "mine";
    std::ofstream(mine) << "precious";
    CPPUNIT_ASSERT_EQUAL(EEXIST, error_of(mine));
    CPPUNIT_ASSERT_EQUAL(ENOTDIR, error_of(mine / "new"));
    CPPUNIT_ASSERT_EQUAL(std::uintmax_t{8}, std::filesystem::file_size(mine));
  }

  // With a cache in memory --------------------------------------------------

  /// Memory for about `blocks` blocks, a file for `slots`, and a disk.
  struct Both {
    Both(u64 blocks, u64 slots, u64 size, u64 read_ahead = 0,
         u32 largest = block)
        : disk(size),
          level(slots * largest, largest, std::chrono::milliseconds(0),
                64 << 20),
          // The queue's memory is not what these tests are about.
          cache((64 << 20) + 1000 +
                    blocks * (largest + BlockCache::overhead + 8),
                largest, &level.file),
          cached(cache, 1, {size, largest, 1 << 20, read_ahead}) {}

    void read(u64 at, u32 count = block, CachedDisk::Version version = 0) {
      std::vector<char> data(count);
      CPPUNIT_ASSERT_EQUAL(0, cached.read(data.data(), count, at, streams,
                                          disk.below(), version));
      CPPUNIT_ASSERT(std::equal(data.begin(), data.end(),
                                disk.bytes.begin() + static_cast<long>(at)));
      level.file.settle();
    }
    void write(u64 at, u32 count, char c, CachedDisk::Version version = 0) {
      const std::vector<char> data(count, c);
      CachedDisk::Changing change(cached, count, at, version);
      std::memcpy(disk.bytes.data() + at, data.data(), count);
      change.done(data.data());
    }
    [[nodiscard]] bool in_file(u64 at) {
      return level.file.find({u64{1} << 32, at}, block, true).has_value();
    }

    Disk disk;
    Level level;
    BlockCache cache;
    CachedDisk cached;
    Streams streams;
  };

  void evicted_blocks_come_back() {
    // The last block is a short one.
    Both both(8, 100, 50 * block - 100);
    for (u64 i = 0; i < 50; i++) both.read(i * block, i == 49 ? 3996 : block);
    CPPUNIT_ASSERT_EQUAL(50, both.disk.requests);
    // Whole blocks, parts, and without a buffer.
    for (u64 i = 0; i < 50; i++) both.read(i * block, i == 49 ? 3996 : block);
    for (u64 i = 0; i < 50; i++) both.read(i * block + 5, 70);
    for (u64 i = 0; i < 50; i++)
      CPPUNIT_ASSERT_EQUAL(0, both.cached.read(nullptr, 10, i * block,
                                               both.streams,
                                               both.disk.below()));
    CPPUNIT_ASSERT_EQUAL(50, both.disk.requests);
    CPPUNIT_ASSERT(both.level.file.statistics().hits >= 3 * 40);
    CPPUNIT_ASSERT_EQUAL(u64{0}, both.level.file.statistics().corrupt);
  }

  void what_fits_in_memory_is_not_written() {
    Both both(30, 100, 20 * block);
    for (int round = 0; round < 3; round++)
      for (u64 i = 0; i < 20; i++) both.read(i * block);
    for (u64 i = 0; i < 20; i++) both.write(i * block, 100, 'x');
    CPPUNIT_ASSERT_EQUAL(u64{0}, both.level.file.statistics().written);
    CPPUNIT_ASSERT_EQUAL(20, both.disk.requests);
  }

  void what_is_there_is_not_written_again() {
    Both both(8, 100, 50 * block);
    for (int round = 0; round < 4; round++)
      for (u64 i = 0; i < 50; i++) both.read(i * block);
    CPPUNIT_ASSERT(both.level.file.statistics().written <= 50);
    CPPUNIT_ASSERT(both.cache.statistics().evicted >= 4 * 50 - 8);
  }

  void changes_drop_what_the_file_has() {
    Both both(8, 100, 50 * block);
    for (u64 i = 0; i < 50; i++) both.read(i * block);
    CPPUNIT_ASSERT(both.in_file(3));
    both.write(3 * block + 50, 10, 'n');
    CPPUNIT_ASSERT(!both.in_file(3));
    both.read(3 * block);
    // From the start of the change on, and if it fails.
    CPPUNIT_ASSERT(both.in_file(4));
    {
      const CachedDisk::Changing change(both.cached, 1, 4 * block);
      CPPUNIT_ASSERT(!both.in_file(4));
      both.disk.bytes[4 * block] = 'm';
    }
    both.read(4 * block);
    // And if it was not announced.
    CPPUNIT_ASSERT(both.in_file(5));
    both.disk.bytes[5 * block + 7]++;
    both.cached.forget(1, 5 * block + 7, 0);
    CPPUNIT_ASSERT(!both.in_file(5));
    both.read(5 * block);
    CPPUNIT_ASSERT(both.in_file(6));
  }

  void blocks_being_changed_do_not_enter() {
    Both both(8, 100, 50 * block);
    both.read(3 * block);
    {
      CachedDisk::Changing change(both.cached, 10, 3 * block);
      for (u64 i = 10; i < 50; i++) both.read(i * block);
      CPPUNIT_ASSERT(!both.in_file(3));
      CPPUNIT_ASSERT(both.in_file(10));
      std::memset(both.disk.bytes.data() + 3 * block, 'n', 10);
      change.done(both.disk.bytes.data() + 3 * block);
    }
    both.read(3 * block);
    for (u64 i = 10; i < 50; i++) both.read(i * block);
    both.read(3 * block);
  }

  void written_blocks_enter() {
    Both both(8, 100, 50 * block);
    for (u64 i = 0; i < 50; i++)
      both.write(i * block, block, static_cast<char>(i));
    both.level.file.settle();
    for (u64 i = 0; i < 50; i++) both.read(i * block);
    CPPUNIT_ASSERT_EQUAL(0, both.disk.requests);
    // Parts of blocks that were in memory reach the file with them.
    both.write(7 * block + 1, 5, 'p');
    for (u64 i = 0; i < 50; i++) both.read(i * block);
    for (u64 i = 0; i < 50; i++) both.read(i * block);
    CPPUNIT_ASSERT(both.disk.requests <= 1);
  }

  void versions_do_not_mix() {
    Both both(8, 100, 50 * block);
    for (u64 i = 0; i < 50; i++) both.read(i * block, block, 1);
    CPPUNIT_ASSERT_EQUAL(50, both.disk.requests);
    // Somebody else has written.
    for (u64 i = 0; i < 50; i++) both.disk.bytes[i * block]++;
    for (u64 i = 0; i < 50; i++) both.read(i * block, block, 2);
    CPPUNIT_ASSERT_EQUAL(100, both.disk.requests);
    for (u64 i = 0; i < 50; i++) both.read(i * block, block, 2);
    CPPUNIT_ASSERT_EQUAL(100, both.disk.requests);
  }

  void runs_stay_whole() {
    Both both(8, 100, 100 * block);
    // Nothing is in the file.
    both.read(0, 50 * block);
    CPPUNIT_ASSERT_EQUAL(1, both.disk.requests);
    // All but the last ones are.
    both.read(0, 40 * block);
    CPPUNIT_ASSERT_EQUAL(1, both.disk.requests);
    // Three in the middle are.
    Both other(8, 100, 100 * block);
    other.read(20 * block, 3 * block);
    other.read(60 * block, 20 * block);
    CPPUNIT_ASSERT(other.in_file(20) && other.in_file(21) && other.in_file(22));
    CPPUNIT_ASSERT_EQUAL(2, other.disk.requests);
    other.read(3, 50 * block);
    CPPUNIT_ASSERT_EQUAL(4, other.disk.requests);
  }

  void read_ahead_ends_at_the_file() {
    Both both(64, 1000, 2000 * block, 32 * block);
    both.read(300 * block, 20 * block);
    for (u64 i = 1000; i < 1200; i += 2) both.read(i * block);
    CPPUNIT_ASSERT(both.in_file(300));
    const u64 inserted = both.cache.statistics().inserted;
    const int before = both.disk.requests;
    for (u64 i = 260; i < 320; i++) both.read(i * block);
    // 40 from below, in few requests; 20 from the file.
    CPPUNIT_ASSERT_EQUAL(u64{60}, both.cache.statistics().inserted - inserted);
    CPPUNIT_ASSERT_EQUAL(u64{20}, both.level.file.statistics().hits);
    CPPUNIT_ASSERT_MESSAGE(std::to_string(both.disk.requests - before),
                           both.disk.requests - before <= 7);
  }

  void the_queue_is_part_of_the_capacity() {
    for (const u64 queue : {0u, 100000u, 200000u, 900000u}) {
      Level level(1 << 20, block, std::chrono::hours(1), queue);
      BlockCache cache(200000, block, &level.file);
      const std::vector<char> data(block);
      for (u64 i = 0; i < 200; i++) {
        cache.begin_change({1, i}, 0, block);
        cache.end_change({1, i}, 0, block, BlockCache::Change::data,
                         data.data(), block);
        CPPUNIT_ASSERT(cache.statistics().bytes + std::min(queue, u64{200000})
                       <= 200000);
      }
      CPPUNIT_ASSERT((queue < 200000) == (cache.statistics().bytes > 0));
    }
  }

  /// Random requests in [from, to) of the disk, which nobody else touches.
  /// Returns what is wrong.
  static std::string play(Both& both, u64 from, u64 to, unsigned seed, int n) {
    std::minstd_rand random(seed);
    Streams streams;
    Disk& disk = both.disk;
    std::vector<char> model;
    {
      const std::scoped_lock lock(disk.mutex);
      model.assign(disk.bytes.begin() + static_cast<long>(from),
                   disk.bytes.begin() + static_cast<long>(to));
    }
    std::vector<char> data(to - from);
    const CachedDisk::Below below = disk.below();
    const auto to_disk = [&](u64 at, u32 count) {
      const std::scoped_lock lock(disk.mutex);
      std::memcpy(disk.bytes.data() + from + at, model.data() + at, count);
    };
    for (int i = 0; i < n; i++) {
      if (i % 32 == 0) both.level.file.settle();
      const u64 at = random() % (to - from);
      const u64 rest = to - from - at;
      const u32 count = static_cast<u32>(
          1 + random() % std::min<u64>(rest, random() % 8 ? 9000 : rest));
      switch (random() % 12) {
        case 0:
        case 1: {
          CachedDisk::Changing change(both.cached, count, from + at);
          for (u32 k = 0; k < count; k++)
            model[at + k] = static_cast<char>(random());
          to_disk(at, count);
          change.done(model.data() + at);
          break;
        }
        case 2: {
          CachedDisk::Changing change(both.cached, count, from + at);
          std::memset(model.data() + at, 0, count);
          to_disk(at, count);
          change.done(nullptr);
          break;
        }
        case 3: {
          // Trimmed, or failed half-way.
          const CachedDisk::Changing change(both.cached, count, from + at);
          std::memset(model.data() + at, 'f', count / 2);
          to_disk(at, count);
          break;
        }
        case 4: {
          // Not announced.
          std::memset(model.data() + at, 'u', count);
          to_disk(at, count);
          both.cached.forget(count, from + at, 0);
          break;
        }
        default:
          if (both.cached.read(data.data(), count, from + at, streams,
                               below) != 0)
            return "read failed";
          if (std::memcmp(data.data(), model.data() + at, count) != 0)
            return "wrong bytes in request " + std::to_string(i);
      }
    }
    return "";
  }

  void against_a_model() {
    unsigned seed = 1;
    for (const u64 slots : {0u, 1u, 2u, 7u, 40u, 1000u})
      for (const u64 blocks : {0u, 1u, 5u, 40u})
        for (const u32 size : {512u, 4096u, 65536u}) {
          Both both(blocks, slots, 300001, 128 << 10, size);
          CPPUNIT_ASSERT_EQUAL(std::string(),
                               play(both, 0, 300001, seed++, 400));
          both.level.file.settle();
          CPPUNIT_ASSERT(both.level.store.end <= slots * size);
          const CacheFile::Statistics s = both.level.file.statistics();
          CPPUNIT_ASSERT_EQUAL(u64{0}, s.errors + s.corrupt);
          // Where there is a lot of room it is of use.
          CPPUNIT_ASSERT(slots < 40 || blocks != 5 || size != 4096 ||
                         s.hits > 20);
        }
  }

  void against_a_model_with_faults() {
    for (unsigned seed = 0; seed < 6; seed++) {
      Both both(10, 60, 300001, 64 << 10);
      std::minstd_rand random(seed);
      // Called by one thread, before it takes the mutex of the store.
      both.level.store.before_write = [&] {
        const std::scoped_lock lock(both.level.store.mutex);
        Store& s = both.level.store;
        s.write_error = random() % 5 == 0 ? ENOSPC : 0;
        s.read_error = random() % 5 == 0 ? EIO : 0;
        s.lose = random() % 10 == 0;
        if (!s.bytes.empty() && random() % 3 == 0)
          s.bytes[random() % s.bytes.size()]++;
      };
      CPPUNIT_ASSERT_EQUAL(std::string(),
                           play(both, 0, 300001, seed + 20, 1500));
      both.level.file.settle();
      const CacheFile::Statistics s = both.level.file.statistics();
      CPPUNIT_ASSERT(s.errors > 0);
      CPPUNIT_ASSERT(s.corrupt > 0);
      CPPUNIT_ASSERT(s.hits > 0);
      CPPUNIT_ASSERT(both.level.reports.size() <= 3);
    }
  }

  void against_a_model_with_threads() {
    // Each thread has a part of its own, and the limits lie within blocks.
    for (const u64 slots : {1u, 10u, 200u}) {
      Both both(10, slots, 300000, 64 << 10);
      std::vector<std::thread> threads;
      std::vector<std::string> results(4);
      for (unsigned i = 0; i < 4; i++)
        threads.emplace_back([&, i] {
          results[i] = play(both, i * 75001,
                            std::min(300000u, (i + 1) * 75001), i + 50, 1000);
        });
      for (std::thread& t : threads) t.join();
      for (const std::string& r : results)
        CPPUNIT_ASSERT_EQUAL(std::string(), r);
      CPPUNIT_ASSERT(slots < 200 || both.level.file.statistics().hits > 0);
    }
  }

  void shared_by_writers_and_readers() {
    // All write everywhere at once; when they are done, the cache is what the
    // disk is.
    Both both(6, 30, 20 * block);
    for (unsigned round = 0; round < 20; round++) {
      std::vector<std::thread> threads;
      for (unsigned i = 0; i < 4; i++)
        threads.emplace_back([&, i] {
          std::minstd_rand random(round * 10 + i);
          Streams streams;
          for (int k = 0; k < 100; k++) {
            const u64 at = random() % (both.disk.bytes.size() - 2 * block);
            const u32 count = 1 + random() % (2 * block - 1);
            std::vector<char> data(count, static_cast<char>(random()));
            if (random() % 3 == 0) {
              CachedDisk::Changing change(both.cached, count, at);
              {
                const std::scoped_lock lock(both.disk.mutex);
                std::memcpy(both.disk.bytes.data() + at, data.data(), count);
              }
              change.done(data.data());
            } else if (both.cached.read(data.data(), count, at, streams,
                                        both.disk.below()) != 0) {
              std::abort();
            }
          }
        });
      for (std::thread& t : threads) t.join();
      for (int twice = 0; twice < 2; twice++) both.read(0, 20 * block);
    }
    const CacheFile::Statistics s = both.level.file.statistics();
    CPPUNIT_ASSERT(s.hits > 0);
    CPPUNIT_ASSERT(s.dropped > 0);
    CPPUNIT_ASSERT_EQUAL(u64{0}, s.corrupt);
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(CacheFileTest);

}  // namespace
