// SPDX-License-Identifier: BSD-3-Clause

#include "cache/cached_disk.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "cache/cache_file.hpp"

namespace nbdrados {

using Result = BlockCache::Result;

// Streams -------------------------------------------------------------------

std::uint64_t Streams::more(std::uint64_t from, std::uint64_t wanted_to,
                            std::uint64_t limit) {
  const std::scoped_lock lock(mutex_);
  clock_++;
  auto found = std::ranges::find_if(streams_, [&](const Stream& s) {
    return s.used != 0 && s.next == from;
  });
  std::uint64_t ahead = 0;
  if (found != streams_.end())
    ahead = std::min(limit, std::max<std::uint64_t>(
                                2 * found->ahead, wanted_to - from));
  else
    found = std::ranges::min_element(streams_, {}, &Stream::used);
  *found = {wanted_to, ahead, clock_};
  return ahead;
}

void Streams::ended(std::uint64_t wanted_to, std::uint64_t to) {
  const std::scoped_lock lock(mutex_);
  const auto found = std::ranges::find_if(streams_, [&](const Stream& s) {
    return s.used != 0 && s.next == wanted_to;
  });
  if (found != streams_.end()) found->next = to;
}

// Runs ----------------------------------------------------------------------

/// Claimed blocks that follow each other.  Gives up those that were not
/// published.
class CachedDisk::Run {
 public:
  Run(CachedDisk& disk, Version version) : disk_(disk), version_(version) {}
  ~Run() { abandon(); }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  [[nodiscard]] bool empty() const noexcept { return claims_.empty(); }
  [[nodiscard]] std::uint64_t first() const noexcept { return first_; }
  [[nodiscard]] std::uint64_t end() const noexcept {
    return first_ + claims_.size();
  }
  [[nodiscard]] BlockCache::Key key(std::uint64_t block) const noexcept {
    return disk_.key(version_, block);
  }
  /// Whether another block fits into one request below.
  [[nodiscard]] bool full() const noexcept {
    return (claims_.size() + 1) * disk_.shape_.block > disk_.shape_.max_fetch;
  }

  void add(std::uint64_t block, BlockCache::FetchPtr claim) {
    if (claims_.empty()) first_ = block;
    try {
      claims_.push_back(std::move(claim));
    } catch (...) {
      // Without room it was not moved.
      disk_.cache_.abandon(key(block), claim);
      throw;
    }
  }

  void abandon() noexcept {
    for (std::size_t i = 0; i < claims_.size(); i++)
      disk_.cache_.abandon(key(first_ + i), claims_[i]);
    claims_.clear();
  }

  /// `data` begins with the first block; the client read up to `read_end`.
  void publish(const char* data, std::uint64_t read_end) noexcept {
    const std::uint64_t size = disk_.shape_.block;
    for (std::size_t i = 0; i < claims_.size(); i++) {
      const std::uint64_t start = (first_ + i) * size;
      const std::uint64_t read_to =
          read_end > start ? std::min(read_end - start, size) : 0;
      disk_.cache_.publish(key(first_ + i), claims_[i],
                           data + i * size, disk_.block_length(first_ + i),
                           static_cast<std::uint32_t>(read_to));
    }
    claims_.clear();
  }

 private:
  CachedDisk& disk_;
  const Version version_;
  std::uint64_t first_ = 0;
  std::vector<BlockCache::FetchPtr> claims_;
};

// Reading -------------------------------------------------------------------

std::uint32_t CachedDisk::block_length(std::uint64_t block) const noexcept {
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(
      shape_.block, shape_.size - block * shape_.block));
}

int CachedDisk::read(char* to, std::uint32_t count, std::uint64_t offset,
                     Streams& streams, const Below& below,
                     Version version) {
  const std::uint64_t end = offset + count;
  Run run(*this, version);
  // Nobody waits for a fetch of his own, nor while he has claims.
  bool waited = false;
  for (std::uint64_t at = offset; at < end;) {
    const std::uint64_t block = at / shape_.block;
    const std::uint32_t in = static_cast<std::uint32_t>(at % shape_.block);
    const std::uint32_t n = static_cast<std::uint32_t>(
        std::min<std::uint64_t>(shape_.block - in, end - at));
    char* const here = to != nullptr ? to + (at - offset) : nullptr;
    if (!run.empty() && run.full())
      if (const int r = fetch(run, to, count, offset, below); r != 0) return r;

    BlockCache::FetchPtr claim;
    const BlockCache::Key k = key(version, block);
    Result result = cache_.read(k, in, n, here, claim);
    if (result == Result::claimed && cache_.file() != nullptr &&
        move_up(k, claim, in, n, here))
      result = Result::hit;
    if (result == Result::claimed) {
      run.add(block, std::move(claim));
    } else {
      if (!run.empty())
        if (const int r = fetch(run, to, count, offset, below); r != 0)
          return r;
      if (result == Result::busy) {
        if (!waited) {
          cache_.wait(*claim);
          waited = true;
          continue;
        }
        // The cache did not keep it, or it is changed all the time.
        if (here != nullptr)
          if (const int r = below(here, n, at); r != 0) return r;
      }
    }
    waited = false;
    at += n;
  }
  if (run.empty()) return 0;
  extend(run, streams);
  return fetch(run, to, count, offset, below);
}

/// Publishes a claimed block from the file, if it is there, and copies `n`
/// bytes from offset `in` of it.
bool CachedDisk::move_up(const BlockCache::Key& key,
                         const BlockCache::FetchPtr& claim, std::uint32_t in,
                         std::uint32_t n, char* here) noexcept {
  CacheFile& file = *cache_.file();
  const std::uint32_t length = block_length(key.block);
  const std::optional<CacheFile::Place> place = file.find(key, length);
  if (!place) return false;
  // A whole block needs no copy in between.
  std::unique_ptr<char[]> own;
  char* data = here;
  if (here == nullptr || n != length) {
    try {
      own = std::make_unique_for_overwrite<char[]>(length);
    } catch (const std::bad_alloc&) {
      return false;
    }
    data = own.get();
  }
  if (!file.read(*place, data)) return false;
  cache_.publish(key, claim, data, length, in + n);
  if (own && here != nullptr) std::memcpy(here, data + in, n);
  return true;
}

void CachedDisk::extend(Run& run, Streams& streams) {
  if (shape_.read_ahead == 0) return;
  const std::uint64_t wanted_to = run.end();
  const std::uint64_t blocks =
      (shape_.size + shape_.block - 1) / shape_.block;
  std::uint64_t more = streams.more(run.first(), wanted_to,
                                    shape_.read_ahead / shape_.block);
  CacheFile* const file = cache_.file();
  for (; more > 0 && run.end() < blocks && !run.full(); more--) {
    const BlockCache::Key k = run.key(run.end());
    if (file != nullptr && file->find(k, block_length(k.block), true)) break;
    BlockCache::FetchPtr claim;
    if (cache_.read(k, 0, 0, nullptr, claim) != Result::claimed) break;
    run.add(run.end(), std::move(claim));
  }
  if (run.end() != wanted_to) streams.ended(wanted_to, run.end());
}

/// Reads the run below, publishes it, and copies what belongs to the request.
/// The run is empty afterwards.
int CachedDisk::fetch(Run& run, char* to, std::uint32_t count,
                      std::uint64_t offset, const Below& below) {
  const std::uint64_t start = run.first() * shape_.block;
  const std::uint64_t end = std::min(run.end() * shape_.block, shape_.size);
  const std::uint64_t request_end = offset + count;
  const std::uint64_t from = std::max(start, offset);
  const std::uint64_t until = std::min(end, request_end);
  const bool exact = from == start && until == end;

  // Aligned requests need no copy in between.
  std::unique_ptr<char[]> own;
  char* data = to != nullptr && exact ? to + (start - offset) : nullptr;
  if (data == nullptr) {
    own = std::make_unique_for_overwrite<char[]>(end - start);
    data = own.get();
  }
  const int r = below(data, static_cast<std::uint32_t>(end - start), start);
  if (r == 0) {
    run.publish(data, request_end);
    if (own && to != nullptr)
      std::memcpy(to + (from - offset), data + (from - start), until - from);
    return 0;
  }
  run.abandon();
  if (exact) return r;
  // What failed may lie outside of what the client wants.
  data = to != nullptr ? to + (from - offset) : own.get();
  return below(data, static_cast<std::uint32_t>(until - from), from);
}

// Changes -------------------------------------------------------------------

CachedDisk::Changing::Changing(CachedDisk& disk, std::uint32_t count,
                               std::uint64_t offset, Version version)
    : disk_(disk), version_(version), offset_(offset), end_(offset) {
  const std::uint64_t end = offset + count;
  const std::uint32_t size = disk_.shape_.block;
  try {
    while (end_ < end) {
      const std::uint64_t block = end_ / size;
      const std::uint32_t in = static_cast<std::uint32_t>(end_ % size);
      const std::uint32_t n = static_cast<std::uint32_t>(
          std::min<std::uint64_t>(size - in, end - end_));
      disk_.cache_.begin_change(disk_.key(version_, block), in, n);
      end_ += n;
    }
  } catch (...) {
    this->end(BlockCache::Change::unknown, nullptr);
    throw;
  }
}

CachedDisk::Changing::~Changing() {
  if (!ended_) end(BlockCache::Change::unknown, nullptr);
}

void CachedDisk::Changing::done(const char* data) noexcept {
  end(data != nullptr ? BlockCache::Change::data : BlockCache::Change::zeroes,
      data);
}

void CachedDisk::Changing::end(BlockCache::Change change,
                               const char* data) noexcept {
  const std::uint32_t size = disk_.shape_.block;
  for (std::uint64_t at = offset_; at < end_;) {
    const std::uint64_t block = at / size;
    const std::uint32_t in = static_cast<std::uint32_t>(at % size);
    const std::uint32_t n = static_cast<std::uint32_t>(
        std::min<std::uint64_t>(size - in, end_ - at));
    disk_.cache_.end_change(disk_.key(version_, block), in, n, change,
                            data != nullptr ? data + (at - offset_) : nullptr,
                            disk_.block_length(block));
    at += n;
  }
  ended_ = true;
}

}  // namespace nbdrados
