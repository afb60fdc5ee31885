// SPDX-License-Identifier: BSD-3-Clause
//
// An nbdkit plugin that keeps its image in memory and has one chosen fault.
// It shows that nbd-random-ops finds such faults.  test-random-ops-selftest.sh
// compiles it; it is no part of the project's plugin.
//
//     g++ -std=c++20 -fPIC -shared -o broken.so broken-server.cpp
//     nbdkit ./broken.so fault=NAME size=BYTES

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

namespace {

std::string fault = "none";
std::vector<char> disk;
std::mutex lock;  // guards disk and counter, but for the fault "race"
unsigned counter;

// What one connection remembers (fault "stale").
struct Handle {
  std::vector<char> first_read = std::vector<char>(65536);
  bool remembers = false;
};

// True at every n-th call, if the fault is the named one.
bool now(const char* name, unsigned n) {
  return fault == name && ++counter % n == 0;
}

int config(const char* key, const char* value) {
  if (std::strcmp(key, "fault") == 0) {
    // "none" has to be in the list, or a misspelt name would prove nothing.
    static const std::set<std::string> known = {
        "none",      "read",        "read-error", "lost-byte", "lost-write",
        "zero",      "zero-long",   "fast-zero",  "fast-refuse", "trim",
        "trim-junk", "hole",        "hole-block", "race",        "stale"};
    if (!known.contains(value)) {
      nbdkit_error("unknown fault %s", value);
      return -1;
    }
    fault = value;
  } else if (std::strcmp(key, "size") == 0) {
    disk.resize(static_cast<std::size_t>(nbdkit_parse_size(value)));
  } else {
    nbdkit_error("unknown parameter %s", key);
    return -1;
  }
  return 0;
}

void* open_handle(int) { return new Handle; }
void close_handle(void* handle) { delete static_cast<Handle*>(handle); }
std::int64_t get_size(void*) { return static_cast<std::int64_t>(disk.size()); }
int yes(void*) { return 1; }
int native_fua(void*) { return NBDKIT_FUA_NATIVE; }
int native_cache(void*) { return NBDKIT_CACHE_NATIVE; }
int do_cache(void*, std::uint32_t, std::uint64_t, std::uint32_t) { return 0; }
int do_flush(void*, std::uint32_t) { return 0; }

int do_read(void* handle, void* buf, std::uint32_t count, std::uint64_t offset,
            std::uint32_t) {
  const std::scoped_lock guard(lock);
  auto* h = static_cast<Handle*>(handle);
  if (now("read-error", 200)) {
    nbdkit_error("injected");
    nbdkit_set_error(EIO);
    return -1;
  }
  std::memcpy(buf, disk.data() + offset, count);
  if (now("read", 200)) static_cast<char*>(buf)[count - 1] ^= 1;
  if (fault == "stale") {
    if (!h->remembers) std::memcpy(h->first_read.data(), disk.data(), 65536);
    h->remembers = true;
    for (std::uint64_t i = offset; i < 65536 && i < offset + count; i++)
      static_cast<char*>(buf)[i - offset] = h->first_read[i];
  }
  return 0;
}

int do_write(void*, const void* buf, std::uint32_t count, std::uint64_t offset,
             std::uint32_t) {
  if (fault == "race") {
    // Reads and writes whole blocks, as a careless server does.
    constexpr std::uint64_t block = 4096;
    const std::uint64_t from = offset / block * block;
    const std::uint64_t to = std::min<std::uint64_t>(
        (offset + count + block - 1) / block * block, disk.size());
    std::vector<char> blocks;
    {
      const std::scoped_lock guard(lock);
      blocks.assign(disk.begin() + static_cast<std::ptrdiff_t>(from),
                    disk.begin() + static_cast<std::ptrdiff_t>(to));
    }
    std::this_thread::yield();
    std::memcpy(blocks.data() + (offset - from), buf, count);
    const std::scoped_lock guard(lock);
    std::memcpy(disk.data() + from, blocks.data(), blocks.size());
    return 0;
  }
  const std::scoped_lock guard(lock);
  if (now("lost-write", 300)) return 0;
  std::memcpy(disk.data() + offset, buf,
              now("lost-byte", 300) ? count - 1 : count);
  return 0;
}

int do_zero(void*, std::uint32_t count, std::uint64_t offset,
            std::uint32_t flags) {
  const std::scoped_lock guard(lock);
  const bool fast = (flags & NBDKIT_FLAG_FAST_ZERO) != 0;
  // Refusing every second one: right where nothing is changed.
  if (fast && ++counter % 2 == 0) {
    if (fault == "fast-zero") disk[offset] = static_cast<char>(0xa5);
    nbdkit_set_error(fault == "fast-refuse" ? EINVAL : EOPNOTSUPP);
    return -1;
  }
  std::uint64_t end = offset + count;
  if (now("zero", 100)) end--;
  if (now("zero-long", 100) && end < disk.size()) end++;
  std::memset(disk.data() + offset, 0, end - offset);
  return 0;
}

int do_trim(void*, std::uint32_t count, std::uint64_t offset, std::uint32_t) {
  const std::scoped_lock guard(lock);
  constexpr std::uint64_t block = 4096;
  std::uint64_t from = (offset + block - 1) / block * block;
  std::uint64_t to = (offset + count) / block * block;
  if (fault == "trim") {  // outwards
    from = offset / block * block;
    to = std::min<std::uint64_t>((offset + count + block - 1) / block * block,
                                 disk.size());
  }
  if (from < to)
    std::memset(disk.data() + from, fault == "trim-junk" ? 0x77 : 0, to - from);
  return 0;
}

int do_extents(void*, std::uint32_t count, std::uint64_t offset, std::uint32_t,
               nbdkit_extents* extents) {
  const std::scoped_lock guard(lock);
  constexpr std::uint64_t block = 4096;
  for (std::uint64_t at = offset; at < offset + count;) {
    const std::uint64_t next =
        std::min<std::uint64_t>((at / block + 1) * block, disk.size());
    bool zero = true;
    // Correct: the whole block is zero.
    for (std::uint64_t i = at / block * block; i < next; i++)
      if (disk[i] != 0) zero = false;
    if (fault == "hole-block") zero = disk[at] == 0;
    if (fault == "hole" && ++counter % 5000 == 0) zero = true;
    if (nbdkit_add_extent(extents, at, next - at,
                          zero ? NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO : 0) ==
        -1)
      return -1;
    at = next;
  }
  return 0;
}

nbdkit_plugin make() {
  nbdkit_plugin p{};
  p.name = "broken";
  p.config = config;
  p.open = open_handle;
  p.close = close_handle;
  p.get_size = get_size;
  p.can_multi_conn = yes;
  p.can_fast_zero = yes;
  p.can_fua = native_fua;
  p.can_cache = native_cache;
  p.pread = do_read;
  p.pwrite = do_write;
  p.zero = do_zero;
  p.trim = do_trim;
  p.flush = do_flush;
  p.cache = do_cache;
  p.extents = do_extents;
  return p;
}

nbdkit_plugin plugin = make();

}  // namespace

extern "C" {
NBDKIT_REGISTER_PLUGIN(plugin)
}
