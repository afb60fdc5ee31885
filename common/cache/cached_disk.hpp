// SPDX-License-Identifier: BSD-3-Clause
//
// One disk that is read through a BlockCache: requests to blocks and back,
// runs of missing blocks, read-ahead.
//
// Missing blocks of one request that follow each other are fetched with one
// request.  A run that begins where an earlier one ended is part of a
// sequential read: it is made longer, by twice as much each time, up to the
// read-ahead limit.  It ends at a block that is there already and at the end of
// the disk.  So reading ahead needs no thread, and random reads do not do it.
//
// Who has claimed a block looks into the file first, if the cache has one.  A
// block that is there is moved up into memory, and is for the rest of the
// request like one that was in memory: runs end at it.

#ifndef NBDRADOS_CACHE_CACHED_DISK_HPP
#define NBDRADOS_CACHE_CACHED_DISK_HPP

#include <array>
#include <cstdint>
#include <functional>
#include <mutex>

#include "cache/block_cache.hpp"

namespace nbdrados {

/// The sequential readers of one connection.  Thread-safe; asked on misses
/// only.
class Streams {
 public:
  /// A run was fetched from block `from` to before `wanted_to`, which is what
  /// the client asked for.  Returns how many more blocks to fetch, at most
  /// `limit`.
  [[nodiscard]] std::uint64_t more(std::uint64_t from, std::uint64_t wanted_to,
                                   std::uint64_t limit);
  /// The run that more() was called for ended before block `to`.
  void ended(std::uint64_t wanted_to, std::uint64_t to);

 private:
  struct Stream {
    std::uint64_t next = 0;   ///< block that a miss must begin at
    std::uint64_t ahead = 0;  ///< blocks read ahead the last time
    std::uint64_t used = 0;   ///< when, by clock_
  };
  std::mutex mutex_;
  std::array<Stream, 8> streams_;
  std::uint64_t clock_ = 0;
};

/// Immutable and thread-safe; one for each disk and content (see
/// BlockCache::Key).
class CachedDisk {
 public:
  struct Shape {
    std::uint64_t size;        ///< bytes
    std::uint32_t block;       ///< bytes of a block, a power of two
    std::uint32_t max_fetch;   ///< bytes of a request below, at least a block
    std::uint64_t read_ahead;  ///< bytes at most; 0: none
  };

  /// Reads below: buffer, count, offset.  Returns 0 or an errno.
  using Below = std::function<int(char*, std::uint32_t, std::uint64_t)>;

  CachedDisk(BlockCache& cache, std::uint32_t disk, const Shape& shape)
      : cache_(cache), disk_(disk), shape_(shape) {}

  [[nodiscard]] const Shape& shape() const noexcept { return shape_; }

  /// Everything is cached under a version: a number that stands for a time
  /// in which nobody else changed the disk.  What was cached under another
  /// one is not used.  The disk of BlockCache::Key is made of both.
  using Version = std::uint32_t;

  /// Reads; the range must be in the disk.  Without `to` the blocks are only
  /// brought into the cache.  Returns 0 or the errno of a read below that
  /// covers nothing but the range asked for (so a bad place elsewhere in a
  /// block does no harm).
  [[nodiscard]] int read(char* to, std::uint32_t count, std::uint64_t offset,
                         Streams& streams, const Below& below,
                         Version version = 0);

  /// After a change that was not announced under this version.
  void forget(std::uint32_t count, std::uint64_t offset,
              Version version) noexcept {
    for (std::uint64_t b = offset / shape_.block;
         b * shape_.block < offset + count; b++)
      cache_.forget(key(version, b));
  }

  /// A change of a range, from before the request below until its end.
  /// Without a call of done() the cache forgets the range.
  class Changing {
   public:
    Changing(CachedDisk& disk, std::uint32_t count, std::uint64_t offset,
             Version version = 0);
    ~Changing();
    Changing(const Changing&) = delete;
    Changing& operator=(const Changing&) = delete;

    /// The range has these bytes now; nullptr for zeroes.
    void done(const char* data) noexcept;

   private:
    void end(BlockCache::Change change, const char* data) noexcept;

    CachedDisk& disk_;
    const Version version_;
    std::uint64_t offset_;
    std::uint64_t end_;
    bool ended_ = false;
  };

 private:
  class Run;

  [[nodiscard]] BlockCache::Key key(Version version,
                                    std::uint64_t block) const noexcept {
    return {std::uint64_t{disk_} << 32 | version, block};
  }
  [[nodiscard]] std::uint32_t block_length(std::uint64_t block) const noexcept;
  [[nodiscard]] bool move_up(const BlockCache::Key& key,
                             const BlockCache::FetchPtr& claim,
                             std::uint32_t in, std::uint32_t n,
                             char* here) noexcept;
  int fetch(Run& run, char* to, std::uint32_t count, std::uint64_t offset,
            const Below& below);
  void extend(Run& run, Streams& streams);

  BlockCache& cache_;
  const std::uint32_t disk_;
  const Shape shape_;
};

}  // namespace nbdrados

#endif
