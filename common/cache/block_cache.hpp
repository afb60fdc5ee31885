// SPDX-License-Identifier: BSD-3-Clause
//
// A cache of blocks in memory, for many disks at once.
//
// Replacement is S3-FIFO ("FIFO queues are all you need for cache eviction",
// SOSP 2023): new blocks enter a small queue that has a tenth of the space;
// those used again before its end move to the main queue, the others leave
// and only their hash is remembered for a while.  A remembered block that
// comes again enters the main queue at once.  So a scan passes through the small
// queue and leaves the main queue alone.  Reads that go on where the last one
// ended in the same block are one use: otherwise small sequential reads would
// make each block of a scan look wanted.
//
// What keeps the cache equal to the disk below, block by block:
//
//   fetch    A miss claims the block.  Others that miss it meanwhile wait for
//            that one fetch.  Its result enters the cache only when no change
//            of the block began or ended since the claim.
//   change   begin_change is called before the disk below is changed, and
//            end_change after.  Both take a fetch that is under way out of
//            the table, because it may have read what was there before: who
//            waits for it asked before the change was acknowledged, who comes
//            later fetches anew.
//   between  a cached block keeps its old content: the change is not
//            acknowledged.  At the end the new content is put in; but if
//            another change of the same bytes was under way at the same
//            time, nobody knows which one won below, so the block is dropped.
//
// With a CacheFile below it, blocks that have to make room go there, unless
// they are being changed; each change drops the block there when it begins.
// So what the file has of a block is what the block was when it left memory,
// and nothing began to change it since.

#ifndef NBDRADOS_CACHE_BLOCK_CACHE_HPP
#define NBDRADOS_CACHE_BLOCK_CACHE_HPP

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace nbdrados {

class CacheFile;

/// Thread-safe.  One mutex a shard, taken once by each call and never held
/// while another one of this class is taken or while anything waits.  Those
/// of CacheFile are taken under it.
class BlockCache {
 public:
  /// Which disk (a number that its owner never uses again for other content),
  /// and which of its blocks.
  struct Key {
    std::uint64_t disk;
    std::uint64_t block;
    bool operator==(const Key&) const = default;
  };
  /// All bits of the result depend on all bits of the key.
  struct Hash {
    std::size_t operator()(const Key& key) const noexcept;
  };

  /// A fetch under way.
  class Fetch {
    friend class BlockCache;
    std::atomic<bool> done_{false};
  };
  using FetchPtr = std::shared_ptr<Fetch>;

  enum class Result {
    hit,      ///< the bytes were copied
    claimed,  ///< the caller must fetch, then publish() or abandon()
    busy,     ///< somebody else fetches: wait() and ask again
  };

  struct Statistics {
    std::uint64_t hits = 0;
    std::uint64_t misses = 0;     ///< claims by reads; not read-ahead
    std::uint64_t waits = 0;      ///< misses that found a fetch under way
    std::uint64_t inserted = 0;   ///< blocks
    std::uint64_t evicted = 0;    ///< blocks that had to make room
    std::uint64_t dropped = 0;    ///< blocks that changes made worthless
    std::uint64_t bytes = 0;      ///< in use now, with what manages them
  };

  /// What a block costs besides its bytes, rounded up.
  static constexpr std::size_t overhead = 256;

  /// At most `capacity` bytes are used, counting `overhead` for each block, at
  /// any time.  `block` is the usual size of blocks: each shard has room for
  /// at least 16 of them, or there is only one shard.  `file` is the second
  /// level, if there is one.  It must live longer; its queue is part of the
  /// capacity, its index is not.
  BlockCache(std::uint64_t capacity, std::uint32_t block,
             CacheFile* file = nullptr);
  BlockCache(const BlockCache&) = delete;
  BlockCache& operator=(const BlockCache&) = delete;
  ~BlockCache();

  /// Copies `length` bytes from `offset` of a block to `to`, or claims it, or
  /// gives the fetch of somebody else in `fetch`.  With a length of 0 nothing
  /// is copied or counted, and the block does not count as used.  Who has
  /// claimed a block must not wait() for another one.
  [[nodiscard]] Result read(const Key& key, std::uint32_t offset,
                            std::uint32_t length, char* to, FetchPtr& fetch);

  /// Ends a claim; the block has this content.  `read_to` is where the read
  /// that claimed it ended in the block, 0 for read-ahead.
  void publish(const Key& key, const FetchPtr& fetch, const char* data,
               std::uint32_t length, std::uint32_t read_to) noexcept;

  /// Ends a claim without a result.
  void abandon(const Key& key, const FetchPtr& fetch) noexcept;

  /// Waits until the fetch has ended in one way or the other.
  static void wait(const Fetch& fetch) noexcept {
    fetch.done_.wait(false, std::memory_order_acquire);
  }

  /// Announces a change of `length` bytes from `offset` of a block.  Each
  /// announced change must be ended with the same range.
  void begin_change(const Key& key, std::uint32_t offset,
                    std::uint32_t length);

  /// How a change ended.
  enum class Change {
    data,     ///< the range has the given bytes now
    zeroes,   ///< the range is zero now
    unknown,  ///< nobody knows: the block is dropped
  };
  /// `data` is the new content of the range (only for Change::data).  A block
  /// that is covered completely (block_length) enters the cache.
  void end_change(const Key& key, std::uint32_t offset, std::uint32_t length,
                  Change change, const char* data,
                  std::uint32_t block_length) noexcept;

  /// After a change that was not announced under this key: drops the block,
  /// and lets no fetch under way enter the cache.
  void forget(const Key& key) noexcept;

  /// Who claims a block looks here before he asks the disk.
  [[nodiscard]] CacheFile* file() const noexcept { return file_; }

  [[nodiscard]] Statistics statistics() const;

 private:
  struct Block {
    Key key;
    std::unique_ptr<char[]> data;
    std::uint32_t length;
    std::uint32_t last_end;  ///< where the last read in it ended
    std::uint8_t uses;       ///< 0 to 3
    bool main;               ///< in the main queue
  };
  using Queue = std::list<Block>;

  struct Range {
    std::uint32_t offset;
    std::uint32_t length;
    bool contended;  ///< another change of the same bytes was under way
  };
  /// What is under way for a block.
  struct Busy {
    FetchPtr fetch;
    std::vector<Range> changes;
  };

  struct Shard {
    mutable std::mutex mutex;
    // Everything below is guarded by it.
    std::unordered_map<Key, Queue::iterator, Hash> blocks;
    std::unordered_map<Key, Busy, Hash> busy;
    Queue small;  ///< the newest first; main as well
    Queue main;
    std::uint64_t small_bytes = 0;
    std::uint64_t main_bytes = 0;
    std::vector<std::uint64_t> ghosts;  ///< hashes of keys, by their low bits
    Statistics statistics;
  };

  [[nodiscard]] Shard& shard(std::size_t hash) const noexcept;
  void insert(Shard& s, const Key& key, const char* data,
              std::uint32_t length, std::uint32_t read_to);
  void make_room(Shard& s, std::uint64_t bytes) noexcept;
  void pass_on(Shard& s, Block& block) noexcept;
  static void drop(Shard& s, const Key& key) noexcept;

  CacheFile* const file_;
  std::uint64_t shard_capacity_;
  std::size_t shard_count_;
  std::unique_ptr<Shard[]> shards_;
};

}  // namespace nbdrados

#endif
