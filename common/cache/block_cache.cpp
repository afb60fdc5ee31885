// SPDX-License-Identifier: BSD-3-Clause

#include "cache/block_cache.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>
#include <utility>

#include "cache/cache_file.hpp"

namespace nbdrados {

namespace {

constexpr std::size_t most_shards = 64;
constexpr std::uint64_t blocks_a_shard = 16;
constexpr std::uint8_t most_uses = 3;

/// The finalizer of SplitMix64.
constexpr std::uint64_t mix(std::uint64_t x) noexcept {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

std::uint64_t cost(std::uint32_t length) noexcept {
  return length + BlockCache::overhead;
}

}  // namespace

std::size_t BlockCache::Hash::operator()(const Key& key) const noexcept {
  return mix(key.block + 0x9e3779b97f4a7c15u * key.disk);
}

BlockCache::BlockCache(std::uint64_t capacity, std::uint32_t block,
                       CacheFile* file)
    : file_(file) {
  if (file_ != nullptr) capacity -= std::min(capacity, file_->options().queue);
  shard_count_ = std::bit_floor(std::clamp<std::uint64_t>(
      capacity / (blocks_a_shard * cost(block)), 1, most_shards));
  shards_ = std::make_unique<Shard[]>(shard_count_);
  shard_capacity_ = capacity / shard_count_;
  // As many hashes as blocks.
  const std::uint64_t ghosts =
      std::bit_floor(std::max<std::uint64_t>(shard_capacity_ / cost(block), 1));
  for (std::size_t i = 0; i < shard_count_; i++) {
    shards_[i].ghosts.resize(ghosts);
    // Short chains: finding a block is most of what a hit costs here.
    shards_[i].blocks.max_load_factor(0.4F);
  }
  const std::uint64_t fixed = sizeof(Shard) + ghosts * sizeof(std::uint64_t);
  shard_capacity_ -= std::min(shard_capacity_, fixed);
}

BlockCache::~BlockCache() = default;

BlockCache::Shard& BlockCache::shard(std::size_t hash) const noexcept {
  // The table of ghosts takes the low bits.
  return shards_[(hash >> 40) & (shard_count_ - 1)];
}

BlockCache::Result BlockCache::read(const Key& key, std::uint32_t offset,
                                    std::uint32_t length, char* to,
                                    FetchPtr& fetch) {
  Shard& s = shard(Hash{}(key));
  const std::scoped_lock lock(s.mutex);
  if (const auto found = s.blocks.find(key); found != s.blocks.end()) {
    if (length == 0) return Result::hit;
    Block& b = *found->second;
    if (to != nullptr) std::memcpy(to, b.data.get() + offset, length);
    if (offset != b.last_end && b.uses < most_uses) b.uses++;
    b.last_end = offset + length;
    s.statistics.hits++;
    return Result::hit;
  }
  Busy& busy = s.busy[key];
  if (busy.fetch) {
    fetch = busy.fetch;
    if (length != 0) s.statistics.waits++;
    return Result::busy;
  }
  try {
    busy.fetch = std::make_shared<Fetch>();
  } catch (...) {
    if (busy.changes.empty()) s.busy.erase(key);
    throw;
  }
  fetch = busy.fetch;
  if (length != 0) s.statistics.misses++;
  return Result::claimed;
}

void BlockCache::publish(const Key& key, const FetchPtr& fetch,
                         const char* data, std::uint32_t length,
                         std::uint32_t read_to) noexcept {
  Shard& s = shard(Hash{}(key));
  {
    const std::scoped_lock lock(s.mutex);
    const auto found = s.busy.find(key);
    if (found != s.busy.end() && found->second.fetch == fetch) {
      if (found->second.changes.empty()) {
        s.busy.erase(found);
        try {
          insert(s, key, data, length, read_to);
        } catch (const std::bad_alloc&) {
          // Then it is not cached.
        }
      } else {
        found->second.fetch.reset();
      }
    }
  }
  fetch->done_.store(true, std::memory_order_release);
  fetch->done_.notify_all();
}

void BlockCache::abandon(const Key& key, const FetchPtr& fetch) noexcept {
  Shard& s = shard(Hash{}(key));
  {
    const std::scoped_lock lock(s.mutex);
    const auto found = s.busy.find(key);
    if (found != s.busy.end() && found->second.fetch == fetch) {
      if (found->second.changes.empty())
        s.busy.erase(found);
      else
        found->second.fetch.reset();
    }
  }
  fetch->done_.store(true, std::memory_order_release);
  fetch->done_.notify_all();
}

void BlockCache::begin_change(const Key& key, std::uint32_t offset,
                              std::uint32_t length) {
  Shard& s = shard(Hash{}(key));
  const std::scoped_lock lock(s.mutex);
  Busy& busy = s.busy[key];
  try {
    busy.changes.push_back({offset, length, false});
  } catch (...) {
    if (busy.changes.empty() && !busy.fetch) s.busy.erase(key);
    throw;
  }
  busy.fetch.reset();
  if (file_ != nullptr) file_->drop(key);
  Range& mine = busy.changes.back();
  for (std::size_t i = 0; i + 1 < busy.changes.size(); i++) {
    Range& other = busy.changes[i];
    if (other.offset < offset + length && offset < other.offset + other.length)
      mine.contended = other.contended = true;
  }
}

void BlockCache::end_change(const Key& key, std::uint32_t offset,
                            std::uint32_t length, Change change,
                            const char* data,
                            std::uint32_t block_length) noexcept {
  Shard& s = shard(Hash{}(key));
  const std::scoped_lock lock(s.mutex);
  const auto found = s.busy.find(key);
  if (found == s.busy.end()) return;
  Busy& busy = found->second;
  busy.fetch.reset();
  // Two changes of equal ranges overlap, so both are contended and it does not
  // matter which of them is found.
  const auto mine = std::ranges::find_if(busy.changes, [&](const Range& r) {
    return r.offset == offset && r.length == length;
  });
  if (mine == busy.changes.end()) return;
  if (mine->contended) change = Change::unknown;
  *mine = busy.changes.back();
  busy.changes.pop_back();
  if (busy.changes.empty()) s.busy.erase(found);

  if (change == Change::unknown) {
    drop(s, key);
    return;
  }
  if (const auto b = s.blocks.find(key); b != s.blocks.end()) {
    char* to = b->second->data.get() + offset;
    if (change == Change::data)
      std::memcpy(to, data, length);
    else
      std::memset(to, 0, length);
  } else if (change == Change::data && length == block_length) {
    try {
      insert(s, key, data, length, length);
    } catch (const std::bad_alloc&) {
      // Then it is not cached.
    }
  }
}

void BlockCache::forget(const Key& key) noexcept {
  Shard& s = shard(Hash{}(key));
  const std::scoped_lock lock(s.mutex);
  drop(s, key);
  if (file_ != nullptr) file_->drop(key);
  const auto found = s.busy.find(key);
  if (found == s.busy.end()) return;
  found->second.fetch.reset();
  if (found->second.changes.empty()) s.busy.erase(found);
}

/// The caller knows that the block is not there.
void BlockCache::insert(Shard& s, const Key& key, const char* data,
                        std::uint32_t length, std::uint32_t read_to) {
  if (cost(length) > shard_capacity_) return;
  make_room(s, cost(length));
  std::uint64_t& ghost = s.ghosts[Hash{}(key) & (s.ghosts.size() - 1)];
  const bool known = ghost == Hash{}(key);

  Queue one;
  one.push_back({key, std::make_unique_for_overwrite<char[]>(length), length,
                 read_to, 0, known});
  std::memcpy(one.front().data.get(), data, length);
  s.blocks.emplace(key, one.begin());
  if (known) {
    ghost = 0;
    s.main.splice(s.main.begin(), one);
    s.main_bytes += cost(length);
  } else {
    s.small.splice(s.small.begin(), one);
    s.small_bytes += cost(length);
  }
  s.statistics.inserted++;
}

/// Until so many more bytes fit.
void BlockCache::make_room(Shard& s, std::uint64_t bytes) noexcept {
  while (s.small_bytes + s.main_bytes + bytes > shard_capacity_) {
    const bool from_small =
        !s.small.empty() &&
        (s.main.empty() || s.small_bytes > shard_capacity_ / 10);
    Queue& queue = from_small ? s.small : s.main;
    const auto last = std::prev(queue.end());
    const std::uint64_t n = cost(last->length);
    if (from_small && last->uses > 0) {
      last->uses = 0;
      last->main = true;
      s.main.splice(s.main.begin(), s.small, last);
      s.small_bytes -= n;
      s.main_bytes += n;
      continue;
    }
    if (!from_small && last->uses > 0) {
      last->uses--;
      queue.splice(queue.begin(), queue, last);
      continue;
    }
    if (from_small) {
      const std::size_t hash = Hash{}(last->key);
      s.ghosts[hash & (s.ghosts.size() - 1)] = hash;
    }
    (from_small ? s.small_bytes : s.main_bytes) -= n;
    s.blocks.erase(last->key);
    if (file_ != nullptr) pass_on(s, *last);
    queue.erase(last);
    s.statistics.evicted++;
  }
}

/// Gives a block that leaves memory to the file.
void BlockCache::pass_on(Shard& s, Block& block) noexcept {
  const auto found = s.busy.find(block.key);
  if (found != s.busy.end() && !found->second.changes.empty()) return;
  file_->keep(block.key, std::move(block.data), block.length);
}

void BlockCache::drop(Shard& s, const Key& key) noexcept {
  const auto found = s.blocks.find(key);
  if (found == s.blocks.end()) return;
  const auto block = found->second;
  (block->main ? s.main_bytes : s.small_bytes) -= cost(block->length);
  s.blocks.erase(found);
  (block->main ? s.main : s.small).erase(block);
  s.statistics.dropped++;
}

BlockCache::Statistics BlockCache::statistics() const {
  Statistics all;
  for (std::size_t i = 0; i < shard_count_; i++) {
    const Shard& s = shards_[i];
    const std::scoped_lock lock(s.mutex);
    all.hits += s.statistics.hits;
    all.misses += s.statistics.misses;
    all.waits += s.statistics.waits;
    all.inserted += s.statistics.inserted;
    all.evicted += s.statistics.evicted;
    all.dropped += s.statistics.dropped;
    all.bytes += s.small_bytes + s.main_bytes;
  }
  return all;
}

}  // namespace nbdrados
