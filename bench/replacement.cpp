// SPDX-License-Identifier: BSD-3-Clause
//
// Which blocks a cache should keep: hit ratios of radoscache's BlockCache
// (S3-FIFO), of LRU and of ARC (N. Megiddo, D. S. Modha, "ARC: a self-tuning,
// low overhead replacement cache", FAST 2003), with the same number of blocks
// on the same made-up traces.  No time is measured: the traces are always the
// same, so every run prints the same numbers.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <list>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "cache/block_cache.hpp"

namespace {

using namespace nbdrados;
using Trace = std::vector<std::uint64_t>;

constexpr std::uint32_t block_size = 4096;
constexpr std::size_t blocks = 8192;
constexpr std::size_t requests = 2'000'000;

double s3_fifo(const Trace& trace) {
  BlockCache cache(blocks * (block_size + BlockCache::overhead), block_size);
  const std::string data(block_size, 'x');
  std::string to(block_size, '\0');
  for (const std::uint64_t block : trace) {
    BlockCache::FetchPtr claim;
    const BlockCache::Key key{1, block};
    if (cache.read(key, 0, block_size, to.data(), claim) ==
        BlockCache::Result::claimed)
      cache.publish(key, claim, data.data(), block_size, block_size);
  }
  return static_cast<double>(cache.statistics().hits) /
         static_cast<double>(trace.size());
}

double lru(const Trace& trace) {
  std::list<std::uint64_t> order;
  std::unordered_map<std::uint64_t, std::list<std::uint64_t>::iterator> where;
  std::uint64_t hits = 0;
  for (const std::uint64_t block : trace) {
    if (const auto found = where.find(block); found != where.end()) {
      ++hits;
      order.splice(order.begin(), order, found->second);
      continue;
    }
    if (order.size() == blocks) {
      where.erase(order.back());
      order.pop_back();
    }
    order.push_front(block);
    where[block] = order.begin();
  }
  return static_cast<double>(hits) / static_cast<double>(trace.size());
}

/// T1 and T2 are in the cache, B1 and B2 are remembered; names as in the paper.
class Arc {
 public:
  double run(const Trace& trace) {
    std::uint64_t hits = 0;
    for (const std::uint64_t block : trace)
      if (request(block)) ++hits;
    return static_cast<double>(hits) / static_cast<double>(trace.size());
  }

 private:
  enum Name { t1, t2, b1, b2 };
  struct Place {
    Name list;
    std::list<std::uint64_t>::iterator at;
  };

  void move(std::uint64_t block, Name to) {
    Place& p = where_[block];
    lists_[to].splice(lists_[to].begin(), lists_[p.list], p.at);
    p.list = to;
  }
  void forget(Name from) {
    where_.erase(lists_[from].back());
    lists_[from].pop_back();
  }
  void replace(bool in_b2) {
    const std::size_t n = lists_[t1].size();
    if (n >= 1 && ((in_b2 && n == p_) || n > p_))
      move(lists_[t1].back(), b1);
    else
      move(lists_[t2].back(), b2);
  }
  bool request(std::uint64_t block) {
    const auto found = where_.find(block);
    if (found != where_.end()) {
      const Name list = found->second.list;
      const std::size_t n1 = std::max<std::size_t>(lists_[b1].size(), 1);
      const std::size_t n2 = std::max<std::size_t>(lists_[b2].size(), 1);
      if (list == b1) {
        p_ = std::min(blocks, p_ + std::max<std::size_t>(n2 / n1, 1));
        replace(false);
      } else if (list == b2) {
        p_ -= std::min(p_, std::max<std::size_t>(n1 / n2, 1));
        replace(true);
      }
      move(block, t2);
      return list == t1 || list == t2;
    }
    const std::size_t one = lists_[t1].size() + lists_[b1].size();
    const std::size_t all = one + lists_[t2].size() + lists_[b2].size();
    if (one == blocks) {
      if (lists_[t1].size() < blocks) {
        forget(b1);
        replace(false);
      } else {
        forget(t1);
      }
    } else if (all >= blocks) {
      if (all == 2 * blocks) forget(b2);
      replace(false);
    }
    lists_[t1].push_front(block);
    where_[block] = {t1, lists_[t1].begin()};
    return false;
  }

  std::list<std::uint64_t> lists_[4];
  std::unordered_map<std::uint64_t, Place> where_;
  std::size_t p_ = 0;
};

/// Blocks of [0, count) with Zipf's distribution, spread over the disk.
class Zipf {
 public:
  Zipf(std::size_t count, double skew) : sums_(count) {
    double sum = 0;
    for (std::size_t i = 0; i < count; ++i)
      sums_[i] = sum += 1 / std::pow(static_cast<double>(i + 1), skew);
  }
  std::uint64_t operator()(std::mt19937_64& random) const {
    const double at = std::uniform_real_distribution<double>(
        0, sums_.back())(random);
    const auto i = static_cast<std::uint64_t>(
        std::ranges::lower_bound(sums_, at) - sums_.begin());
    return i * 2654435761u % sums_.size();
  }

 private:
  std::vector<double> sums_;
};

struct Case {
  const char* label;
  std::function<std::uint64_t(std::mt19937_64&, std::size_t)> next;
};

}  // namespace

int main() {
  const Zipf flat(20 * blocks, 0.7);
  const Zipf steep(20 * blocks, 1.0);
  constexpr std::uint64_t elsewhere = 1 << 24;
  const Case cases[] = {
      {"Zipf 1.0 over 20 times the cache",
       [&](auto& random, std::size_t) { return steep(random); }},
      {"Zipf 0.7 over 20 times the cache",
       [&](auto& random, std::size_t) { return flat(random); }},
      {"Zipf 1.0, a third of the requests scans the disk once",
       [&](auto& random, std::size_t i) {
         return i % 3 == 0 ? elsewhere + i : steep(random);
       }},
      {"half the cache at random, and a backup reads 8 times the cache, "
       "again and again",
       [&](auto& random, std::size_t i) {
         return i % 2 == 0 ? random() % (blocks / 2)
                           : elsewhere + i / 2 % (8 * blocks);
       }},
      {"a loop over 1.2 times the cache",
       [&](auto&, std::size_t i) {
         return static_cast<std::uint64_t>(i) % (blocks + blocks / 5);
       }},
      {"Zipf 1.0 over the cache's size, which moves on",
       [&](auto& random, std::size_t i) {
         return i / (requests / 20) * blocks + steep(random) % blocks;
       }},
  };
  std::printf("| hits, %% | S3-FIFO (radoscache) | LRU | ARC |\n"
              "|---|---:|---:|---:|\n");
  for (const Case& c : cases) {
    std::mt19937_64 random(1);
    Trace trace;
    trace.reserve(requests);
    for (std::size_t i = 0; i < requests; ++i)
      trace.push_back(c.next(random, i));
    std::printf("| %s | %.1f | %.1f | %.1f |\n", c.label, 100 * s3_fifo(trace),
                100 * lru(trace), 100 * Arc().run(trace));
  }
  return 0;
}
