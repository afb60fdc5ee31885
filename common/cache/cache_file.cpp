// SPDX-License-Identifier: BSD-3-Clause

#include "cache/cache_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <system_error>
#include <utility>

namespace nbdrados {

namespace {

constexpr std::uint64_t most_shards = 16;
constexpr std::uint64_t frames_a_shard = 64;
constexpr std::uint32_t blocks_a_frame = 4;
/// Slots that the hand passes over, at most, before it takes what it finds: it
/// holds the mutex.
constexpr std::uint32_t most_passed = 256;

// The store ----------------------------------------------------------------

class FileStore : public CacheStore {
 public:
  explicit FileStore(int fd) : fd_(fd) {}
  ~FileStore() override { close(fd_); }
  FileStore(const FileStore&) = delete;
  FileStore& operator=(const FileStore&) = delete;

  int read(char* to, std::uint32_t count,
           std::uint64_t offset) noexcept override {
    while (count > 0) {
      const ssize_t n = pread(fd_, to, count, static_cast<off_t>(offset));
      if (n == -1 && errno == EINTR) continue;
      if (n == -1) return errno;
      // Somebody has made it shorter.
      if (n == 0) return EIO;
      to += n;
      offset += static_cast<std::uint64_t>(n);
      count -= static_cast<std::uint32_t>(n);
    }
    return 0;
  }

  int write(const char* from, std::uint32_t count,
            std::uint64_t offset) noexcept override {
    while (count > 0) {
      const ssize_t n = pwrite(fd_, from, count, static_cast<off_t>(offset));
      if (n == -1 && errno == EINTR) continue;
      if (n == -1) return errno;
      if (n == 0) return ENOSPC;
      from += n;
      offset += static_cast<std::uint64_t>(n);
      count -= static_cast<std::uint32_t>(n);
    }
    return 0;
  }

 private:
  const int fd_;
};

[[noreturn]] void fail(int error, const std::string& path) {
  throw std::system_error(error, std::generic_category(), path);
}

int open_without_name(const std::string& folder) {
  const int fd = open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC | O_EXCL,
                      S_IRUSR | S_IWUSR);
  // What file systems and kernels say that do not know it (open(2)).
  if (fd != -1 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL))
    return fd;
  std::string name = folder + "/.nbdkit-radoscache-XXXXXX";
  const int named = mkostemp(name.data(), O_CLOEXEC);
  if (named != -1) unlink(name.c_str());
  return named;
}

std::uint32_t checksum(const char* data, std::uint32_t length) noexcept {
  // zlib wants unsigned bytes.
  const auto* bytes = static_cast<const Bytef*>(static_cast<const void*>(data));
  return static_cast<std::uint32_t>(crc32_z(0, bytes, length));
}

std::int64_t now() noexcept {
  return std::chrono::steady_clock::now().time_since_epoch() /
         std::chrono::nanoseconds(1);
}

constexpr std::uint64_t bit(std::uint32_t slot) noexcept {
  return std::uint64_t{1} << slot;
}

/// All slots of a frame.
constexpr std::uint64_t all_slots(std::uint8_t order) noexcept {
  return ~std::uint64_t{0} >> (64 - (1u << order));
}

}  // namespace

std::unique_ptr<CacheStore> open_cache_store(const std::string& path) {
  struct stat st;
  std::string folder = path;
  if (stat(path.c_str(), &st) == 0) {
    // Nobody loses a file by a slip of the pen.
    if (!S_ISDIR(st.st_mode)) fail(EEXIST, path);
  } else if (errno == ENOENT) {
    const std::size_t slash = path.find_last_of('/');
    folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  } else {
    fail(errno, path);
  }
  const int fd = open_without_name(folder);
  if (fd == -1) fail(errno, path);
  std::unique_ptr<CacheStore> store;
  try {
    store = std::make_unique<FileStore>(fd);
  } catch (...) {
    close(fd);
    throw;
  }
  // Blocks that follow each other in the file belong to different places.
  (void)posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
  return store;
}

// Geometry --------------------------------------------------------------------

CacheFile::CacheFile(std::unique_ptr<CacheStore> store, Options options)
    : store_(std::move(store)), options_(std::move(options)) {
  // A small file has smaller frames, so that less is lost at its end.
  const std::uint64_t block = std::bit_ceil(std::max(options_.block, 1u));
  frame_bytes_ = options_.bytes / block >= 16 * blocks_a_frame
                     ? blocks_a_frame * block
                     : std::min(block, std::bit_floor(options_.bytes));
  if (frame_bytes_ == 0) return;
  const std::uint64_t frames = options_.bytes / frame_bytes_;
  shard_count_ = std::bit_floor(
      std::clamp<std::uint64_t>(frames / frames_a_shard, 1, most_shards));
  // Slots have numbers of 32 bits.
  shard_frames_ = static_cast<std::uint32_t>(
      std::min<std::uint64_t>(frames / shard_count_, none / most_slots));
  shards_ = std::make_unique<Shard[]>(shard_count_);
  for (std::size_t i = 0; i < shard_count_; i++) shards_[i].lists.fill(none);
}

CacheFile::Shard& CacheFile::shard(std::size_t hash) const noexcept {
  // The chains take the low bits.
  return shards_[(hash >> 56) & (shard_count_ - 1)];
}

std::uint64_t CacheFile::offset_of(const Shard& s,
                                   std::uint32_t id) const noexcept {
  const auto i = static_cast<std::uint64_t>(&s - shards_.get());
  const std::uint32_t frame = id / most_slots;
  return (i * shard_frames_ + frame) * frame_bytes_ +
         id % most_slots * (frame_bytes_ >> s.frames[frame].order);
}

CacheFile::Slot& CacheFile::slot(Shard& s, std::uint32_t id) noexcept {
  return s.frames[id / most_slots].slots[id % most_slots];
}

// The index -------------------------------------------------------------------

std::uint32_t CacheFile::look_up(const Shard& s, const Key& key,
                                 std::size_t hash) noexcept {
  if (s.chains.empty()) return none;
  std::uint32_t id = s.chains[hash & (s.chains.size() - 1)];
  while (id != none) {
    const Slot& found = s.frames[id / most_slots].slots[id % most_slots];
    if (found.key == key) break;
    id = found.next;
  }
  return id;
}

/// More chains, when there are more slots than chains.
void CacheFile::widen(Shard& s) noexcept {
  if (s.live < s.chains.size()) return;
  try {
    std::vector<std::uint32_t> chains(
        std::max<std::size_t>(2 * s.chains.size(), 16), none);
    for (std::uint32_t id : s.chains)
      while (id != none) {
        Slot& moved = slot(s, id);
        const std::uint32_t next = moved.next;
        std::uint32_t& head =
            chains[BlockCache::Hash{}(moved.key) & (chains.size() - 1)];
        moved.next = std::exchange(head, id);
        id = next;
      }
    s.chains.swap(chains);
  } catch (const std::bad_alloc&) {
    // Then the chains are longer.
  }
}

/// The list that the frame belongs to by now.
void CacheFile::put_into_list(Shard& s, std::uint32_t frame) noexcept {
  Frame& f = s.frames[frame];
  constexpr std::uint8_t empty = orders;
  constexpr std::uint8_t no_list = orders + 1;
  const std::uint8_t list = f.taken == 0                    ? empty
                            : f.taken == all_slots(f.order) ? no_list
                                                            : f.order;
  if (list == f.list) return;
  if (f.list != no_list) {
    if (f.previous == none)
      s.lists[f.list] = f.next;
    else
      s.frames[f.previous].next = f.next;
    if (f.next != none) s.frames[f.next].previous = f.previous;
  }
  f.list = list;
  f.previous = f.next = none;
  if (list == no_list) return;
  f.next = std::exchange(s.lists[list], frame);
  if (f.next != none) s.frames[f.next].previous = frame;
}

/// Puts a block into a free slot.
void CacheFile::take(Shard& s, std::uint32_t id, const Key& key,
                     std::size_t hash, std::uint32_t length) noexcept {
  widen(s);
  Frame& f = s.frames[id / most_slots];
  std::uint32_t& head = s.chains[hash & (s.chains.size() - 1)];
  slot(s, id) = {key, ++s.last_number, length, 0, head};
  head = id;
  f.taken |= bit(id % most_slots);
  s.live++;
  s.bytes += frame_bytes_ >> f.order;
  put_into_list(s, id / most_slots);
}

/// Makes the slot free.
void CacheFile::release(Shard& s, std::uint32_t id) noexcept {
  const Slot& old = slot(s, id);
  std::uint32_t* link =
      &s.chains[BlockCache::Hash{}(old.key) & (s.chains.size() - 1)];
  while (*link != id) link = &slot(s, *link).next;
  *link = old.next;
  Frame& f = s.frames[id / most_slots];
  const std::uint64_t others = ~bit(id % most_slots);
  f.taken &= others;
  f.written &= others;
  f.used &= others;
  s.live--;
  s.bytes -= frame_bytes_ >> f.order;
  put_into_list(s, id / most_slots);
}

/// A free slot for a block of this length.
std::uint32_t CacheFile::make_place(Shard& s, std::uint32_t length) {
  // There is always a chain to put it in.
  if (s.chains.empty()) s.chains.assign(16, none);
  std::uint8_t order = orders - 1;
  while (frame_bytes_ >> order < length) order--;

  const auto free_slot = [&](std::uint32_t frame) {
    return frame * most_slots +
           static_cast<std::uint32_t>(std::countr_one(s.frames[frame].taken));
  };
  const auto cut = [&](std::uint32_t frame) {
    Frame& f = s.frames[frame];
    if (!f.slots || f.order != order) {
      f.slots = std::make_unique<Slot[]>(std::size_t{1} << order);
      f.order = order;
    }
    return free_slot(frame);
  };
  if (s.lists[order] != none) return free_slot(s.lists[order]);
  if (s.lists[orders] != none) return cut(s.lists[orders]);
  if (s.frames.size() < shard_frames_) {
    s.frames.emplace_back();
    const auto frame = static_cast<std::uint32_t>(s.frames.size() - 1);
    put_into_list(s, frame);
    return cut(frame);
  }
  const std::uint32_t id = turn_hand(s, order);
  return s.frames[id / most_slots].taken == 0 ? cut(id / most_slots) : id;
}

/// Makes a slot free in a frame that is cut like this, or a whole frame.  All
/// frames have blocks, and those that are cut like this are full.
std::uint32_t CacheFile::turn_hand(Shard& s, std::uint8_t order) noexcept {
  for (std::uint32_t passed = 0;; passed++) {
    const std::uint32_t id = s.hand_frame * most_slots + s.hand_slot;
    Frame& f = s.frames[s.hand_frame];
    const std::uint64_t mine = bit(s.hand_slot);
    s.hand_slot++;
    if (s.hand_slot >> f.order != 0) {
      s.hand_slot = 0;
      s.hand_frame++;
      if (s.hand_frame == s.frames.size()) s.hand_frame = 0;
    }
    if ((f.taken & mine) == 0) continue;
    if ((f.used & mine) != 0 && passed < most_passed) {
      f.used &= ~mine;
      continue;
    }
    release(s, id);
    s.statistics.evicted++;
    if (f.order == order || f.taken == 0) return id;
  }
}

// Blocks ----------------------------------------------------------------------

std::optional<CacheFile::Place> CacheFile::find(const Key& key,
                                                std::uint32_t length,
                                                bool peek) noexcept {
  if (shard_count_ == 0) return std::nullopt;
  const std::size_t hash = BlockCache::Hash{}(key);
  Shard& s = shard(hash);
  const std::scoped_lock lock(s.mutex);
  const std::uint32_t id = look_up(s, key, hash);
  if (id != none) {
    Frame& f = s.frames[id / most_slots];
    const Slot& found = slot(s, id);
    const std::uint64_t mine = bit(id % most_slots);
    if ((f.written & mine) != 0 && found.length == length) {
      Place place;
      place.key = key;
      place.offset = offset_of(s, id);
      place.length = length;
      place.checksum = found.checksum;
      place.number = found.number;
      if (!peek) f.used |= mine;
      return place;
    }
  }
  if (!peek) s.statistics.misses++;
  return std::nullopt;
}

bool CacheFile::read(const Place& place, char* to) noexcept {
  const int r = store_->read(to, place.length, place.offset);
  const bool intact =
      r == 0 && checksum(to, place.length) == place.checksum;
  const std::size_t hash = BlockCache::Hash{}(place.key);
  Shard& s = shard(hash);
  {
    const std::scoped_lock lock(s.mutex);
    const std::uint32_t id = look_up(s, place.key, hash);
    const bool same = id != none && slot(s, id).number == place.number;
    if (same && intact) {
      s.statistics.hits++;
      return true;
    }
    s.statistics.misses++;
    // Another block's bytes are no error.
    if (!same) return false;
    release(s, id);
  }
  if (r != 0) {
    errors_++;
    pause(read_reported_, "cannot read a block",
          std::generic_category().message(r));
  } else {
    corrupt_++;
    pause(corrupt_reported_, "a block has changed", "wrong checksum");
  }
  return false;
}

void CacheFile::keep(const Key& key, std::unique_ptr<char[]> data,
                     std::uint32_t length) noexcept {
  if (length == 0 || length > frame_bytes_) return;
  const std::size_t hash = BlockCache::Hash{}(key);
  Shard& s = shard(hash);
  {
    const std::scoped_lock lock(s.mutex);
    if (look_up(s, key, hash) != none) return;
  }
  // No other block makes room for one that cannot be written.
  if (pausing()) {
    skipped_++;
    return;
  }
  const std::uint64_t cost = length + sizeof(Job);
  if (queued_bytes_.fetch_add(cost) + cost > options_.queue) {
    queued_bytes_ -= cost;
    skipped_++;
    return;
  }
  std::uint64_t number = 0;
  try {
    {
      const std::scoped_lock lock(s.mutex);
      const std::uint32_t id = make_place(s, length);
      take(s, id, key, hash, length);
      number = slot(s, id).number;
    }
    enqueue({key, std::move(data), length, number});
  } catch (const std::exception&) {
    // No memory, or no thread.
    if (number != 0) cancel(key, number);
    queued_bytes_ -= cost;
    skipped_++;
  }
}

void CacheFile::drop(const Key& key) noexcept {
  if (shard_count_ == 0) return;
  const std::size_t hash = BlockCache::Hash{}(key);
  Shard& s = shard(hash);
  // What this caller has kept, he sees here.
  if (s.live.load(std::memory_order_relaxed) == 0) return;
  const std::scoped_lock lock(s.mutex);
  const std::uint32_t id = look_up(s, key, hash);
  if (id == none) return;
  release(s, id);
  s.statistics.dropped++;
}

void CacheFile::cancel(const Key& key, std::uint64_t number) noexcept {
  const std::size_t hash = BlockCache::Hash{}(key);
  Shard& s = shard(hash);
  const std::scoped_lock lock(s.mutex);
  const std::uint32_t id = look_up(s, key, hash);
  if (id != none && slot(s, id).number == number) release(s, id);
}

// The thread ------------------------------------------------------------------

CacheFile::~CacheFile() {
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void CacheFile::enqueue(Job job) {
  const std::scoped_lock lock(mutex_);
  if (!thread_.joinable()) {
    // It takes no signal: they are for nbdkit's threads, and a write beyond
    // RLIMIT_FSIZE must be an error and not the end (setrlimit(2)).
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      thread_ = std::thread([this] { run(); });
    } catch (...) {
      pthread_sigmask(SIG_SETMASK, &before, nullptr);
      throw;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
  jobs_.push_back(std::move(job));
  if (!busy_) wake_.notify_one();
}

void CacheFile::run() noexcept {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    if (jobs_.empty()) {
      busy_ = false;
      settled_.notify_all();
      wake_.wait(lock);
      continue;
    }
    busy_ = true;
    std::optional<Job> job = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    write(*job);
    const std::uint64_t cost = job->length + sizeof(Job);
    job.reset();
    queued_bytes_ -= cost;
    lock.lock();
  }
}

void CacheFile::write(const Job& job) noexcept {
  const std::size_t hash = BlockCache::Hash{}(job.key);
  Shard& s = shard(hash);
  std::uint64_t offset;
  {
    const std::scoped_lock lock(s.mutex);
    const std::uint32_t id = look_up(s, job.key, hash);
    if (id == none || slot(s, id).number != job.number) return;
    offset = offset_of(s, id);
  }
  if (pausing()) {
    skipped_++;
    cancel(job.key, job.number);
    return;
  }
  const std::uint32_t sum = checksum(job.data.get(), job.length);
  if (const int r = store_->write(job.data.get(), job.length, offset); r != 0) {
    cancel(job.key, job.number);
    errors_++;
    pause(write_reported_, "cannot write a block",
          std::generic_category().message(r));
    return;
  }
  const std::scoped_lock lock(s.mutex);
  s.statistics.written++;
  const std::uint32_t id = look_up(s, job.key, hash);
  if (id == none || slot(s, id).number != job.number) return;
  slot(s, id).checksum = sum;
  s.frames[id / most_slots].written |= bit(id % most_slots);
}

void CacheFile::settle() {
  std::unique_lock lock(mutex_);
  settled_.wait(lock, [this] { return jobs_.empty() && !busy_; });
}

bool CacheFile::pausing() const noexcept {
  const std::int64_t end = pause_end_.load(std::memory_order_relaxed);
  return end != 0 && now() < end;
}

void CacheFile::pause(std::atomic<bool>& reported, const char* what,
                      const std::string& why) noexcept {
  pause_end_ = now() + std::chrono::nanoseconds(options_.pause).count();
  if (reported.exchange(true) || !options_.report) return;
  try {
    options_.report(std::string("cache file: ") + what + ": " + why +
                    ": nothing is written to it for " +
                    std::to_string(options_.pause.count() / 1000) + " s");
  } catch (const std::exception&) {
    // It is only a report.
  }
}

CacheFile::Statistics CacheFile::statistics() const {
  Statistics all;
  for (std::size_t i = 0; i < shard_count_; i++) {
    const Shard& s = shards_[i];
    const std::scoped_lock lock(s.mutex);
    all.hits += s.statistics.hits;
    all.misses += s.statistics.misses;
    all.written += s.statistics.written;
    all.evicted += s.statistics.evicted;
    all.dropped += s.statistics.dropped;
    all.bytes += s.bytes;
  }
  all.skipped = skipped_;
  all.errors = errors_;
  all.corrupt = corrupt_;
  return all;
}

}  // namespace nbdrados
