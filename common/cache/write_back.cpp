// SPDX-License-Identifier: BSD-3-Clause

#include "cache/write_back.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bitset>
#include <cerrno>
#include <cstring>
#include <exception>
#include <new>
#include <utility>

namespace nbdrados {

namespace {

constexpr std::size_t smallest_page = 4096;
constexpr std::size_t most_pages = 1024;
/// Of a range in a vector that has grown to twice what it needs.
constexpr std::uint64_t range_cost = 16;
/// What one page of page tables is for.
constexpr std::uint64_t table_span = 2 << 20;
/// Of a layer, and what leads to it, besides its pages.
constexpr std::uint64_t layer_cost = 1024;
/// After a write below failed, until it is tried again unasked.
constexpr std::chrono::seconds retry_interval{1};
/// A time that has always been.  The clock starts when the machine does, so
/// its zero less any age may be in the future.
constexpr auto at_once = WriteBack::Clock::time_point::min();

/// In a chunk.
struct Part {
  std::uint32_t from;
  std::uint32_t to;
};
using Parts = std::vector<Part>;

/// Adds a part to ascending, not adjacent ones.  Takes no memory if there is
/// room for one more.
void add(Parts& parts, Part part) {
  auto first = std::ranges::lower_bound(parts, part.from, {}, &Part::to);
  auto last = first;
  while (last != parts.end() && last->from <= part.to) {
    part.from = std::min(part.from, last->from);
    part.to = std::max(part.to, last->to);
    ++last;
  }
  if (first == last) {
    parts.insert(first, part);
  } else {
    *first = part;
    parts.erase(first + 1, last);
  }
}

/// Takes a part out of ascending ones.  Takes no memory if there is room for
/// one more.
void remove(Parts& parts, Part part) {
  auto p = std::ranges::upper_bound(parts, part.from, {}, &Part::to);
  if (p == parts.end()) return;
  if (p->from < part.from) {
    const std::uint32_t end = p->to;
    p->to = part.from;
    ++p;
    if (end > part.to) {
      parts.insert(p, {part.to, end});
      return;
    }
  }
  auto last = p;
  while (last != parts.end() && last->to <= part.to) ++last;
  if (last != parts.end() && last->from < part.to) last->from = part.to;
  parts.erase(p, last);
}

/// What of [from, to) is not in `parts`.
template <class F>
void for_gaps(const Parts& parts, std::uint32_t from, std::uint32_t to,
              F&& f) {
  for (auto p = std::ranges::upper_bound(parts, from, {}, &Part::to);
       p != parts.end() && p->from < to; ++p) {
    if (from < p->from) f(from, p->from);
    from = std::max(from, p->to);
  }
  if (from < to) f(from, to);
}

/// What of [from, to) is in `parts`.
template <class F>
void for_parts(const Parts& parts, std::uint32_t from, std::uint32_t to,
               F&& f) {
  for (auto p = std::ranges::upper_bound(parts, from, {}, &Part::to);
       p != parts.end() && p->from < to; ++p)
    f(std::max(from, p->from), std::min(to, p->to));
}

std::uint64_t length_of(const Parts& parts) noexcept {
  std::uint64_t sum = 0;
  for (const Part& p : parts) sum += p.to - p.from;
  return sum;
}

void append(std::vector<WriteBack::Range>& list, std::uint64_t offset,
            std::uint64_t length) {
  if (length == 0) return;
  if (!list.empty() && list.back().offset + list.back().length == offset)
    list.back().length += length;
  else
    list.push_back({offset, length});
}

}  // namespace

/// Address space for a chunk.  Pages take memory when they are written to.
class WriteBack::Memory {
 public:
  explicit Memory(std::size_t bytes)
      : bytes_(bytes),
        data_(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {
    if (data_ == MAP_FAILED) throw std::bad_alloc();
    // A huge page would take more than is accounted for.
    (void)::madvise(data_, bytes, MADV_NOHUGEPAGE);
  }
  ~Memory() { ::munmap(data_, bytes_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  [[nodiscard]] char* data() const noexcept {
    return static_cast<char*>(data_);
  }

 private:
  const std::size_t bytes_;
  void* const data_;
};

struct WriteBack::Layer {
  Layer(std::size_t bytes, Tenure t) : memory(bytes), tenure(t) {}
  Memory memory;
  Tenure tenure;
  Parts parts;
  std::bitset<most_pages> pages;
  /// Which page tables are needed: the memory can begin within one.
  std::bitset<4> tables;
  std::uint64_t charged = 0;

  [[nodiscard]] std::size_t table(std::size_t offset) const noexcept {
    const auto start = reinterpret_cast<std::uintptr_t>(memory.data());
    return (start + offset) / table_span - start / table_span;
  }
  /// The memory of [from, to) is used.
  void use(std::size_t from, std::size_t to, std::size_t page) noexcept {
    for (std::size_t p = from / page; p <= (to - 1) / page; ++p) pages.set(p);
    for (std::size_t t = table(from); t <= table(to - 1); ++t) tables.set(t);
  }
  [[nodiscard]] std::uint64_t cost(std::size_t page) const noexcept {
    return pages.count() * page + tables.count() * smallest_page +
           parts.size() * range_cost + layer_cost;
  }
};

/// Guarded by the shard's mutex, but the layer's data and parts, which do not
/// change.
struct WriteBack::Out {
  std::unique_ptr<Layer> layer;
  std::vector<bool> written;  ///< of layer->parts
  std::size_t next = 0;       ///< the part to write next
  unsigned running = 0;
  int error = 0;
  bool ended = false;
};

struct WriteBack::Chunk {
  std::unique_ptr<Layer> now;
  std::shared_ptr<Out> out;
  Clock::time_point due;         ///< `now` is to be written
  Clock::time_point not_before;  ///< it may be written unasked
  unsigned held = 0;             ///< by Hold: no `out` may begin
  /// One node, here or (there is a `now` and no `out`) in Shard::waiting.
  std::list<std::uint64_t> parked;
  std::list<std::uint64_t>::iterator place;
  [[nodiscard]] bool waits() const noexcept { return parked.empty(); }
};

struct WriteBack::Shard {
  mutable std::mutex mutex;
  // Everything below is guarded by it.
  std::condition_variable ended;  ///< an Out or a Hold
  std::unordered_map<std::uint64_t, Chunk> chunks;
  std::list<std::uint64_t> waiting;  ///< about the oldest first
  std::vector<std::pair<std::uint64_t, std::shared_ptr<Out>>> outs;
  Statistics statistics;
};

WriteBack::WriteBack(DirtyLimit& limit, const Shape& shape,
                     std::function<bool(Tenure)> current)
    : limit_(limit),
      shape_(shape),
      current_(std::move(current)),
      page_(std::max<std::size_t>(
          {smallest_page, static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)),
           shape.chunk / most_pages})),
      shards_(std::make_unique<Shard[]>(shard_count)) {}

WriteBack::~WriteBack() { (void)drop(); }

WriteBack::Shard& WriteBack::shard(std::uint64_t chunk) const noexcept {
  return shards_[chunk % shard_count];
}

std::atomic<std::uint32_t>& WriteBack::filter(
    std::uint64_t chunk) const noexcept {
  return filter_[chunk % filter_size];
}

std::uint32_t WriteBack::chunk_length(std::uint64_t chunk) const noexcept {
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(
      shape_.chunk, shape_.size - chunk * shape_.chunk));
}

// Taking ----------------------------------------------------------------------

std::uint32_t WriteBack::take(const char* data, std::uint32_t count,
                              std::uint64_t offset, Tenure tenure) {
  std::uint32_t taken = 0;
  while (taken < count) {
    const std::uint64_t at = offset + taken;
    const std::uint64_t number = at / shape_.chunk;
    const auto from = static_cast<std::uint32_t>(at % shape_.chunk);
    const std::uint32_t n = std::min(count - taken, shape_.chunk - from);
    Shard& s = shard(number);
    const std::scoped_lock lock(s.mutex);
    if (!put(s, number, from, data + taken, n, tenure)) break;
    taken += n;
    if (taken == count) ++s.statistics.taken;
  }
  return taken;
}

bool WriteBack::put(Shard& s, std::uint64_t number, std::uint32_t from,
                    const char* data, std::uint32_t length, Tenure tenure) {
  if (tenure <= closed_.load()) return false;
  const auto found = s.chunks.find(number);
  const bool made = found == s.chunks.end() || !found->second.now;
  if (!made && found->second.now->tenure != tenure) return false;

  // What it takes at most; the rest is given back.
  std::uint64_t fresh = 0;
  for (std::size_t p = from / page_; p <= (from + length - 1) / page_; ++p)
    if (made || !found->second.now->pages[p]) ++fresh;
  std::uint64_t most = fresh * page_ + range_cost + (made ? layer_cost : 0);
  if (fresh != 0) most += (length / table_span + 2) * smallest_page;
  if (!limit_.take(most)) return false;
  Chunk* chunk = nullptr;
  try {
    std::unique_ptr<Layer> layer;
    if (made) layer = std::make_unique<Layer>(shape_.chunk, tenure);
    Parts& parts = made ? layer->parts : found->second.now->parts;
    // Each Hold may cut a part in two.
    const std::size_t room =
        parts.size() + 2 + (found != s.chunks.end() ? found->second.held : 0);
    if (room > parts.capacity())
      parts.reserve(std::max<std::size_t>(room, 2 * parts.size()));
    if (found != s.chunks.end()) {
      chunk = &found->second;
      if (!chunk->out && !chunk->waits()) queue(s, *chunk, false);
    } else {
      std::list<std::uint64_t> node{number};
      chunk = &s.chunks[number];
      chunk->place = node.begin();
      chunk->parked.swap(node);
      queue(s, *chunk, false);
      chunks_.fetch_add(1);
      filter(number).fetch_add(1);
    }
    if (made) {
      chunk->now = std::move(layer);
      chunk->due = Clock::now() + shape_.age;
      chunk->not_before = at_once;
    }
  } catch (const std::bad_alloc&) {
    limit_.give(most);
    return false;
  }
  Layer& now = *chunk->now;
  std::memcpy(now.memory.data() + from, data, length);
  now.use(from, from + length, page_);
  add(now.parts, {from, from + length});
  const std::uint64_t cost = now.cost(page_);
  const std::uint64_t had = now.charged + most;
  now.charged = cost;
  s.statistics.bytes += cost;
  s.statistics.bytes -= had - most;
  limit_.give(had - cost);
  // Nothing can be added to it.
  if (chunk->waits() && now.parts.front().from == 0 &&
      now.parts.front().to == chunk_length(number)) {
    chunk->due = at_once;
    s.waiting.splice(s.waiting.begin(), s.waiting, chunk->place);
  }
  return true;
}

void WriteBack::queue(Shard& s, Chunk& chunk, bool first) noexcept {
  s.waiting.splice(first ? s.waiting.begin() : s.waiting.end(), chunk.parked);
}

void WriteBack::erase(Shard& s, std::uint64_t number) noexcept {
  const auto found = s.chunks.find(number);
  if (found->second.waits()) s.waiting.erase(found->second.place);
  s.chunks.erase(found);
  filter(number).fetch_sub(1, std::memory_order_release);
  chunks_.fetch_sub(1);
}

// Reading ---------------------------------------------------------------------

std::vector<WriteBack::Range> WriteBack::read(char* to, std::uint64_t count,
                                              std::uint64_t offset) const {
  std::vector<Range> rest;
  const std::uint64_t end = offset + count;
  for (std::uint64_t at = offset; at < end;) {
    const std::uint64_t number = at / shape_.chunk;
    const std::uint64_t base = number * shape_.chunk;
    const std::uint64_t stop = std::min(end, base + shape_.chunk);
    if (absent(number)) {
      append(rest, at, stop - at);
      at = stop;
      continue;
    }
    const auto from = static_cast<std::uint32_t>(at - base);
    const auto until = static_cast<std::uint32_t>(stop - base);
    const Shard& s = shard(number);
    const std::scoped_lock lock(s.mutex);
    const auto found = s.chunks.find(number);
    const Layer* const out = found != s.chunks.end() && found->second.out
                                 ? found->second.out->layer.get()
                                 : nullptr;
    const Layer* const now =
        found != s.chunks.end() ? found->second.now.get() : nullptr;
    for (const Layer* const layer : {out, now})
      if (layer != nullptr && to != nullptr)
        for_parts(layer->parts, from, until,
                  [&](std::uint32_t a, std::uint32_t b) {
                    std::memcpy(to + (base + a - offset),
                                layer->memory.data() + a, b - a);
                  });
    static const Parts none;
    for_gaps(now != nullptr ? now->parts : none, from, until,
             [&](std::uint32_t a, std::uint32_t b) {
               for_gaps(out != nullptr ? out->parts : none, a, b,
                        [&](std::uint32_t c, std::uint32_t d) {
                          append(rest, base + c, d - c);
                        });
             });
    at = stop;
  }
  return rest;
}

bool WriteBack::untouched(std::uint64_t count,
                          std::uint64_t offset) const noexcept {
  if (empty()) return true;
  for (std::uint64_t n = offset / shape_.chunk;
       n * shape_.chunk < offset + count; ++n)
    if (!absent(n)) return false;
  return true;
}

std::vector<WriteBack::Range> WriteBack::kept(std::uint64_t count,
                                              std::uint64_t offset) const {
  std::vector<Range> list;
  for (const std::uint64_t number : numbers(count, offset)) {
    const std::uint64_t base = number * shape_.chunk;
    const std::uint64_t from = std::max(offset, base);
    const std::uint64_t stop = std::min(offset + count, base + shape_.chunk);
    std::uint64_t at = from;
    for (const Range& gap : read(nullptr, stop - from, from)) {
      append(list, at, gap.offset - at);
      at = gap.offset + gap.length;
    }
    append(list, at, stop - at);
  }
  return list;
}

/// Of the chunks in a range that there may be; ascending.
std::vector<std::uint64_t> WriteBack::numbers(std::uint64_t count,
                                              std::uint64_t offset) const {
  std::vector<std::uint64_t> list;
  if (count == 0 || empty()) return list;
  const std::uint64_t first = offset / shape_.chunk;
  const std::uint64_t last = (offset + count - 1) / shape_.chunk;
  if (last - first < 2 * chunks_.load()) {
    for (std::uint64_t n = first; n <= last; ++n)
      if (!absent(n)) list.push_back(n);
    return list;
  }
  for (std::size_t i = 0; i < shard_count; ++i) {
    const std::scoped_lock lock(shards_[i].mutex);
    for (const auto& [number, chunk] : shards_[i].chunks)
      if (number >= first && number <= last) list.push_back(number);
  }
  std::ranges::sort(list);
  return list;
}

// Writing ---------------------------------------------------------------------

/// Makes `now` the `out`; there is none.  False: its data is lost.
bool WriteBack::begin(Shard& s, std::uint64_t number, Chunk& chunk,
                      int& lost) {
  if (is_over(chunk.now->tenure)) {
    s.statistics.lost += length_of(chunk.now->parts);
    s.statistics.bytes -= chunk.now->charged;
    limit_.give(chunk.now->charged);
    losses_.fetch_add(1);
    lost = ESHUTDOWN;
    erase(s, number);
    return false;
  }
  auto out = std::make_shared<Out>();
  out->written.resize(chunk.now->parts.size());
  s.outs.emplace_back(number, out);
  out->layer = std::move(chunk.now);
  chunk.out = std::move(out);
  chunk.parked.splice(chunk.parked.begin(), s.waiting, chunk.place);
  return true;
}

/// Writes parts that nobody else writes; false: that failed.  The lock is held
/// on entry and on return.
bool WriteBack::help(Shard& s, std::unique_lock<std::mutex>& lock,
                     std::uint64_t number, Out& out, const Write& write) {
  const std::uint64_t base = number * shape_.chunk;
  const Parts& parts = out.layer->parts;
  bool good = true;
  while (out.next < parts.size()) {
    const std::size_t i = out.next++;
    ++out.running;
    lock.unlock();
    int r = EIO;
    try {
      r = write(out.layer->memory.data() + parts[i].from,
                parts[i].to - parts[i].from, base + parts[i].from);
    } catch (const std::bad_alloc&) {
      r = ENOMEM;
    } catch (const std::exception&) {
      r = EIO;
    }
    lock.lock();
    --out.running;
    if (r == 0) {
      out.written[i] = true;
      ++s.statistics.written;
    } else {
      good = false;
      ++s.statistics.failed;
      if (out.error == 0) out.error = r;
      out.next = parts.size();
    }
    if (out.next == parts.size() && out.running == 0)
      end(s, number, s.chunks.find(number)->second);
  }
  return good;
}

/// All of `out` that will be written, is.
void WriteBack::end(Shard& s, std::uint64_t number, Chunk& chunk) noexcept {
  const std::shared_ptr<Out> out = std::move(chunk.out);
  chunk.out.reset();
  std::erase_if(s.outs, [&](const auto& o) { return o.second == out; });
  out->ended = true;
  s.ended.notify_all();
  Layer& layer = *out->layer;
  std::uint64_t freed = layer.charged;

  if (out->error != 0) try {
    Parts rest;
    for (std::size_t i = 0; i < layer.parts.size(); ++i)
      if (!out->written[i]) rest.push_back(layer.parts[i]);
    if (!chunk.now) {
      layer.parts = std::move(rest);
      freed -= layer.cost(page_);
      layer.charged -= freed;
      chunk.now = std::move(out->layer);
      chunk.due = Clock::now() + shape_.age;
    } else if (chunk.now->tenure == layer.tenure) {
      Layer& now = *chunk.now;
      for (const Part& p : rest) {
        Parts gaps;
        for_gaps(now.parts, p.from, p.to,
                 [&](std::uint32_t a, std::uint32_t b) {
                   gaps.push_back({a, b});
                 });
        for (const Part& gap : gaps) {
          std::memcpy(now.memory.data() + gap.from,
                      layer.memory.data() + gap.from, gap.to - gap.from);
          now.use(gap.from, gap.to, page_);
          add(now.parts, gap);
        }
      }
      // Not more than both had.
      const std::uint64_t cost = now.cost(page_);
      freed += now.charged;
      freed -= std::min(freed, cost);
      now.charged = cost;
    } else {
      s.statistics.lost += length_of(rest);
      losses_.fetch_add(1);
    }
    chunk.not_before = Clock::now() + retry_interval;
  } catch (const std::bad_alloc&) {
    s.statistics.lost += length_of(layer.parts);
    losses_.fetch_add(1);
  }
  s.statistics.bytes -= freed;
  limit_.give(freed);
  if (!chunk.now) {
    if (chunk.held == 0) erase(s, number);
    return;
  }
  const bool full = chunk.now->parts.front().from == 0 &&
                    chunk.now->parts.front().to == chunk_length(number);
  if (full && out->error == 0) chunk.due = at_once;
  queue(s, chunk, full && out->error == 0);
}

int WriteBack::write_chunk(std::uint64_t number, const Write& write) {
  Shard& s = shard(number);
  std::unique_lock lock(s.mutex);
  int result = 0;
  // What is under way may have begun before the data came that the caller
  // means; what follows it, has it.  And the write of another client can fail
  // because that client goes (ESHUTDOWN of nbdkit's delay filter): then the
  // caller tries himself.
  constexpr int passes = 3;
  for (int pass = 0; pass < passes; ++pass) {
    auto found = s.chunks.find(number);
    for (; found != s.chunks.end() && found->second.held != 0;
         found = s.chunks.find(number))
      s.ended.wait(lock);
    if (found == s.chunks.end()) return pass == 0 ? 0 : result;
    std::shared_ptr<Out> out = found->second.out;
    const bool begun = !out;
    if (begun) {
      if (!begin(s, number, found->second, result)) return result;
      out = found->second.out;
    }
    const Tenure tenure = out->layer->tenure;
    const bool good = help(s, lock, number, *out, write);
    s.ended.wait(lock, [&] { return out->ended; });
    result = out->error;
    const bool complete = begun || pass > 0;
    if (complete && (result == 0 || !good || is_over(tenure))) break;
  }
  return result;
}

int WriteBack::write_out(std::uint64_t count, std::uint64_t offset,
                         const Write& write) {
  int result = 0;
  for (const std::uint64_t number : numbers(count, offset))
    if (const int r = write_chunk(number, write); r != 0 && result == 0)
      result = r;
  return result;
}

int WriteBack::flush(const Write& write) {
  urgent_.fetch_add(1);
  int result = 0;
  try {
    result = write_out(shape_.size, 0, write);
  } catch (...) {
    urgent_.fetch_sub(1);
    throw;
  }
  urgent_.fetch_sub(1);
  return result;
}

bool WriteBack::work(bool pressing, const Write& write) {
  if (empty()) return false;
  constexpr int most_looked_at = 64;
  const bool all = pressing || urgent_.load() != 0;
  const std::size_t start = turn_.fetch_add(1);
  const auto time = Clock::now();
  for (std::size_t k = 0; k < shard_count; ++k) {
    Shard& s = shards_[(start + k) % shard_count];
    std::unique_lock lock(s.mutex);
    for (const auto& o : s.outs) {
      const std::shared_ptr<Out> out = o.second;
      if (out->next == out->layer->parts.size()) continue;
      help(s, lock, o.first, *out, write);
      return true;
    }
    int looked_at = 0;
    for (const std::uint64_t number : s.waiting) {
      if (++looked_at > most_looked_at) break;
      Chunk& chunk = s.chunks.find(number)->second;
      if (chunk.held != 0 || chunk.not_before > time ||
          !(all || chunk.due <= time))
        continue;
      int lost = 0;
      if (begin(s, number, chunk, lost)) {
        const std::shared_ptr<Out> out = chunk.out;
        help(s, lock, number, *out, write);
      }
      return true;
    }
  }
  if (!pressing) return false;
  // What is under way will make room.
  for (std::size_t k = 0; k < shard_count; ++k) {
    Shard& s = shards_[(start + k) % shard_count];
    std::unique_lock lock(s.mutex);
    if (s.outs.empty()) continue;
    const std::shared_ptr<Out> out = s.outs.front().second;
    s.ended.wait(lock, [&] { return out->ended; });
    return true;
  }
  return false;
}

void WriteBack::close(Tenure tenure) noexcept {
  closed_.store(tenure);
  // Who has not seen that is in a shard now.
  for (std::size_t i = 0; i < shard_count; ++i)
    const std::scoped_lock lock(shards_[i].mutex);
}

void WriteBack::abandon(Tenure tenure) noexcept {
  abandoned_.store(tenure);
  bool any = false;
  for (std::size_t i = 0; i < shard_count; ++i) {
    Shard& s = shards_[i];
    std::unique_lock lock(s.mutex);
    // Who has begun before that ends with the request that he makes now.
    for (const auto& o : s.outs) {
      Out& out = *o.second;
      if (out.layer->tenure > tenure ||
          out.next == out.layer->parts.size())
        continue;
      out.next = out.layer->parts.size();
      if (out.error == 0) out.error = ESHUTDOWN;
    }
    s.ended.wait(lock, [&] {
      return std::ranges::none_of(s.outs, [&](const auto& o) {
        return o.second->layer->tenure <= tenure;
      });
    });
    for (auto it = s.chunks.begin(); it != s.chunks.end();) {
      Chunk& chunk = it->second;
      const std::uint64_t number = it->first;
      ++it;
      if (!chunk.now || chunk.now->tenure > tenure) continue;
      s.statistics.lost += length_of(chunk.now->parts);
      s.statistics.bytes -= chunk.now->charged;
      limit_.give(chunk.now->charged);
      any = true;
      // An `out` or a Hold ends later.
      if (chunk.waits() && chunk.held == 0) {
        erase(s, number);
        continue;
      }
      chunk.now.reset();
      if (chunk.waits())
        chunk.parked.splice(chunk.parked.begin(), s.waiting, chunk.place);
    }
  }
  if (any) losses_.fetch_add(1);
}

// Changes around it -----------------------------------------------------------

WriteBack::Hold::Hold(WriteBack& owner, std::uint64_t count,
                      std::uint64_t offset)
    : owner_(owner), count_(count), offset_(offset),
      chunks_(owner.numbers(count, offset)) {
  std::size_t held = 0;
  for (const std::uint64_t number : chunks_) {
    Shard& s = owner_.shard(number);
    std::unique_lock lock(s.mutex);
    auto found = s.chunks.find(number);
    if (found == s.chunks.end()) continue;
    // First: then nothing else begins.
    Chunk& chunk = found->second;
    ++chunk.held;
    chunks_[held++] = number;
    s.ended.wait(lock, [&] { return !chunk.out; });
    if (!chunk.now) continue;
    try {
      chunk.now->parts.reserve(chunk.now->parts.size() + 1 + chunk.held);
    } catch (...) {
      chunks_.resize(held);
      lock.unlock();
      release();
      throw;
    }
  }
  chunks_.resize(held);
}

void WriteBack::Hold::superseded() noexcept {
  for (const std::uint64_t number : chunks_) {
    Shard& s = owner_.shard(number);
    const std::scoped_lock lock(s.mutex);
    Chunk& chunk = s.chunks.find(number)->second;
    if (!chunk.now) continue;
    const std::uint64_t base = number * owner_.shape_.chunk;
    const auto from = static_cast<std::uint32_t>(
        std::max(offset_, base) - base);
    const auto to = static_cast<std::uint32_t>(
        std::min<std::uint64_t>(offset_ + count_ - base, owner_.shape_.chunk));
    Layer& now = *chunk.now;
    remove(now.parts, {from, to});
    const std::uint64_t freed =
        now.parts.empty() ? now.charged
                          : now.charged - std::min(now.charged,
                                                   now.cost(owner_.page_));
    s.statistics.bytes -= freed;
    owner_.limit_.give(freed);
    now.charged -= freed;
    if (!now.parts.empty()) continue;
    chunk.now.reset();
    chunk.parked.splice(chunk.parked.begin(), s.waiting, chunk.place);
  }
}

WriteBack::Hold::~Hold() { release(); }

void WriteBack::Hold::release() noexcept {
  for (const std::uint64_t number : chunks_) {
    Shard& s = owner_.shard(number);
    const std::scoped_lock lock(s.mutex);
    Chunk& chunk = s.chunks.find(number)->second;
    if (--chunk.held == 0 && !chunk.now) owner_.erase(s, number);
    s.ended.notify_all();
  }
}

std::uint64_t WriteBack::drop() noexcept {
  std::uint64_t all = 0;
  for (std::size_t i = 0; i < shard_count; ++i) {
    Shard& s = shards_[i];
    const std::scoped_lock lock(s.mutex);
    std::uint64_t lost = 0;
    for (auto it = s.chunks.begin(); it != s.chunks.end();) {
      Chunk& chunk = it->second;
      if (chunk.out || !chunk.now || chunk.held != 0) {
        ++it;
        continue;
      }
      lost += length_of(chunk.now->parts);
      s.statistics.bytes -= chunk.now->charged;
      limit_.give(chunk.now->charged);
      s.waiting.erase(chunk.place);
      filter(it->first).fetch_sub(1, std::memory_order_release);
      chunks_.fetch_sub(1);
      it = s.chunks.erase(it);
    }
    s.statistics.lost += lost;
    all += lost;
  }
  return all;
}

WriteBack::Statistics WriteBack::statistics() const {
  Statistics all;
  for (std::size_t i = 0; i < shard_count; ++i) {
    const std::scoped_lock lock(shards_[i].mutex);
    const Statistics& one = shards_[i].statistics;
    all.taken += one.taken;
    all.written += one.written;
    all.failed += one.failed;
    all.bytes += one.bytes;
    all.lost += one.lost;
  }
  return all;
}

}  // namespace nbdrados
