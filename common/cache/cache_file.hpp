// SPDX-License-Identifier: BSD-3-Clause
//
// The second level of a BlockCache: blocks that had to leave memory, in a file.
//
// What enters   Every block that is evicted from memory, unless the file has it
//               already.  Not what is fetched: a set of blocks that fits in
//               memory then causes no write at all, a block that is written
//               many times while in memory is written to the file once, the
//               two levels hold different blocks at first, and what clients
//               have written enters as well as what they have read.
// Who writes    One thread, from a short queue.  No request waits for it: what
//               finds the queue full is not kept.
// Who leaves    CLOCK: blocks leave in the order of their places in the file;
//               those that were used since the last time are passed over once.
//
// Nothing that a process finds in the file is believed, so there is nothing
// to be wrong after a crash.  The index is in memory only, and the file has no
// name: its space is free when the process ends, however it ends, and two
// processes cannot share it.  It holds nothing but blocks, so its size is what
// they need.  It is not synchronised to the medium.
//
// What keeps it equal to the disk:
//
//   keep     makes a place for the block and remembers it in the index, as not
//            written.  The thread writes the block, and then marks it as
//            written if that place is still this block's.
//   drop     takes the block out of the index, whether written or not.  It is
//            called before each change of the block, and the caller sees to it
//            that nothing is kept while a change is under way.
//   read     finds the place, reads without a lock, and asks the index again.
//            A place is not written before its former block has left the
//            index, so if that block is still there with the same number (each
//            keep has its own) what was read is that block.  Checksums are not
//            needed for this.  They find what the medium does wrong: changed
//            bytes, and because they are in the index and not in the file, lost
//            and misplaced writes as well.
//
// Whatever fails is a miss.  After an error of the medium nothing is written
// for a while.
//
// Places: the file consists of frames of equal size, four of the largest
// usual blocks (or one, in a small file).  A frame is cut into 1 to 64 slots
// of one size when it is empty.

#ifndef NBDRADOS_CACHE_CACHE_FILE_HPP
#define NBDRADOS_CACHE_CACHE_FILE_HPP

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "cache/block_cache.hpp"

namespace nbdrados {

/// Where the bytes are.  Tests have their own.  There is one write at a time,
/// and any number of reads.
class CacheStore {
 public:
  virtual ~CacheStore() = default;
  /// All of it, or an errno.
  [[nodiscard]] virtual int read(char* to, std::uint32_t count,
                                 std::uint64_t offset) noexcept = 0;
  [[nodiscard]] virtual int write(const char* from, std::uint32_t count,
                                  std::uint64_t offset) noexcept = 0;
};

/// A file without a name, which only this process can open.  `path` is the
/// folder that it is made in, or anything in that folder that does not exist.
/// Throws std::system_error, whose text names the path.
[[nodiscard]] std::unique_ptr<CacheStore> open_cache_store(
    const std::string& path);

/// Thread-safe.  One mutex a shard, and one for the queue; none is held while
/// another is taken, nor while anything is read, written or waited for.  They
/// may be taken under the mutexes of BlockCache, not the other way round.
class CacheFile {
 public:
  using Key = BlockCache::Key;

  struct Options {
    std::uint64_t bytes;  ///< of the file, at most
    std::uint32_t block;  ///< bytes of the largest usual block
    /// Bytes of memory, at most, that blocks use until they are written.
    std::uint64_t queue = 8 << 20;
    /// How long nothing is written after an error.
    std::chrono::milliseconds pause{10'000};
    /// Is told of the first error of each kind: one line.  Called from any
    /// thread, without a mutex held.
    std::function<void(const std::string&)> report;
  };

  struct Statistics {
    std::uint64_t hits = 0;
    std::uint64_t misses = 0;
    std::uint64_t written = 0;  ///< blocks
    std::uint64_t skipped = 0;  ///< blocks, because of the queue or a pause
    std::uint64_t evicted = 0;  ///< blocks that had to make room
    std::uint64_t dropped = 0;  ///< blocks that changes made worthless
    std::uint64_t errors = 0;   ///< reads and writes that failed
    std::uint64_t corrupt = 0;  ///< blocks with a wrong checksum
    std::uint64_t bytes = 0;    ///< of the file, in use now
  };

  /// Memory of the index for a block, rounded up.  Where most blocks are much
  /// smaller than Options::block it is less.
  static constexpr std::size_t overhead = 80;

  /// Where a block is.
  class Place {
    friend class CacheFile;
    Key key;
    std::uint64_t offset;
    std::uint32_t length;
    std::uint32_t checksum;
    std::uint64_t number;
  };

  CacheFile(std::unique_ptr<CacheStore> store, Options options);
  /// What is queued is not written any more.
  ~CacheFile();
  CacheFile(const CacheFile&) = delete;
  CacheFile& operator=(const CacheFile&) = delete;

  [[nodiscard]] const Options& options() const noexcept { return options_; }

  /// The block, if it is there with this length.  Counted as a hit or a miss
  /// unless `peek`.
  [[nodiscard]] std::optional<Place> find(const Key& key, std::uint32_t length,
                                          bool peek = false) noexcept;

  /// Reads what find() has found.  False, if it cannot be read or is not there
  /// any more; then `to` has any content.
  [[nodiscard]] bool read(const Place& place, char* to) noexcept;

  /// The block has this content.  Only remembers it: the thread writes it.
  /// The caller must see to the order of keep() and drop() of one key.
  void keep(const Key& key, std::unique_ptr<char[]> data,
            std::uint32_t length) noexcept;

  /// The block has no known content.
  void drop(const Key& key) noexcept;

  /// Waits until nothing is queued.  For tests.
  void settle();

  [[nodiscard]] Statistics statistics() const;

 private:
  // Most slots of a frame, and the number of ways to cut it: 1, 2, 4, ..., 64.
  static constexpr std::uint32_t most_slots = 64;
  static constexpr std::uint8_t orders = 7;
  static constexpr std::uint32_t none = UINT32_MAX;

  /// A slot that is in use.
  struct Slot {
    Key key;
    std::uint64_t number;    ///< of this keep()
    std::uint32_t length;
    std::uint32_t checksum;  ///< once it is written
    std::uint32_t next;      ///< of the same hash chain
  };

  struct Frame {
    std::unique_ptr<Slot[]> slots;
    std::uint64_t taken = 0;    ///< a bit for each slot, like the next two
    std::uint64_t written = 0;
    std::uint64_t used = 0;     ///< hit since the hand came by
    std::uint32_t previous = none;  ///< in its list
    std::uint32_t next = none;
    std::uint8_t order = 0;     ///< it has 1 << order slots
    std::uint8_t list = orders + 1;  ///< none
  };

  /// A part of the file with the blocks whose hashes belong to it.
  struct Shard {
    mutable std::mutex mutex;
    /// How many slots are taken.  It changes under the mutex.
    std::atomic<std::uint64_t> live{0};
    // Everything below is guarded by the mutex.
    std::deque<Frame> frames;          ///< those that were used so far
    std::vector<std::uint32_t> chains; ///< by the low bits of the hash
    /// First frames of lists: those with a free slot, by their order; and
    /// those that are empty.
    std::array<std::uint32_t, orders + 1> lists;
    std::uint32_t hand_frame = 0;
    std::uint32_t hand_slot = 0;
    std::uint64_t last_number = 0;
    std::uint64_t bytes = 0;
    Statistics statistics;
  };

  struct Job {
    Key key;
    std::unique_ptr<char[]> data;
    std::uint32_t length;
    std::uint64_t number;
  };

  // With the mutex of the shard held.  Slots have numbers: frame * 64 + slot.
  [[nodiscard]] static std::uint32_t look_up(const Shard& s, const Key& key,
                                             std::size_t hash) noexcept;
  [[nodiscard]] std::uint32_t make_place(Shard& s, std::uint32_t length);
  [[nodiscard]] std::uint32_t turn_hand(Shard& s, std::uint8_t order) noexcept;
  void take(Shard& s, std::uint32_t id, const Key& key, std::size_t hash,
            std::uint32_t length) noexcept;
  void release(Shard& s, std::uint32_t id) noexcept;
  void widen(Shard& s) noexcept;
  static void put_into_list(Shard& s, std::uint32_t frame) noexcept;
  static Slot& slot(Shard& s, std::uint32_t id) noexcept;

  [[nodiscard]] Shard& shard(std::size_t hash) const noexcept;
  [[nodiscard]] std::uint64_t offset_of(const Shard& s,
                                        std::uint32_t id) const noexcept;
  /// Drops what was kept under this number, unless it is gone already.
  void cancel(const Key& key, std::uint64_t number) noexcept;
  void enqueue(Job job);
  void run() noexcept;
  void write(const Job& job) noexcept;
  [[nodiscard]] bool pausing() const noexcept;
  /// After an error.
  void pause(std::atomic<bool>& reported, const char* what,
             const std::string& why) noexcept;

  const std::unique_ptr<CacheStore> store_;
  const Options options_;
  std::uint64_t frame_bytes_ = 0;
  std::uint32_t shard_frames_ = 0;
  std::size_t shard_count_ = 0;
  std::unique_ptr<Shard[]> shards_;

  std::atomic<std::uint64_t> queued_bytes_{0};
  std::atomic<std::uint64_t> skipped_{0};
  std::atomic<std::uint64_t> errors_{0};
  std::atomic<std::uint64_t> corrupt_{0};
  std::atomic<std::int64_t> pause_end_{0};  ///< steady clock; 0: no pause
  std::atomic<bool> write_reported_{false};
  std::atomic<bool> read_reported_{false};
  std::atomic<bool> corrupt_reported_{false};

  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable settled_;
  // Guarded by mutex_.
  std::deque<Job> jobs_;
  bool busy_ = false;
  bool stopping_ = false;
  std::thread thread_;  ///< started by the first job: nbdkit forks before
};

}  // namespace nbdrados

#endif
