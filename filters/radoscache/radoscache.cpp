// SPDX-License-Identifier: BSD-3-Clause
//
// The nbdkit filter `radoscache`: keeps blocks of the exports below in
// memory.  Callbacks and parameters only: common/cache has the cache, exports.hpp
// what belongs to an export.
//
// Whether anything may be cached is a question of what else can change the
// data below.  The rados plugin tells (see coherence.hpp): what it reads from a
// snapshot stays for ever, and an image is its own while it holds the exclusive
// lock.  For other plugins the user says it with cache-assume=: nothing
// changes the data, or only clients of this server do.
//
// Writes go through: a request is done when it is done below, so FUA and
// flush mean what they mean below, and there is nothing to lose.

#include <nbdkit-filter.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cinttypes>
#include <cstdint>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "cache/block_cache.hpp"
#include "cache/cached_disk.hpp"
#include "coherence/coherence.hpp"
#include "exports.hpp"

#ifdef HAVE_CONFIG_H
#include "config.h"
#endif

/// -D radoscache.stats=1: numbers in the debug output, at the end and each
/// time that a client goes.
extern "C" {
extern NBDKIT_DLL_PUBLIC int radoscache_debug_stats;
int radoscache_debug_stats = 0;
}

namespace {

using namespace nbdrados;

// nbdkit refuses filters whose header was not its own.
static_assert(std::string_view(NBDKIT_VERSION_STRING) == NBDKIT_BUILT_VERSION,
              "nbdkit-filter.h and nbdkit.pc are of different versions");

constexpr std::uint32_t smallest_block = 512;
constexpr std::uint32_t largest_block = 1 << 20;
/// The preferred size below is taken from this range.
constexpr std::uint32_t smallest_default = 4 << 10;
constexpr std::uint32_t largest_default = 64 << 10;
/// Of a request below, if nothing else is known: what all NBD clients use.
constexpr std::uint32_t largest_fetch = 32 << 20;
/// Read-ahead must not push out what it has just read.
constexpr std::uint64_t read_ahead_share = 8;

enum class Mode { writethrough, none };
enum class Assume { immutable, exclusive, unsafe };

struct Config {
  Mode mode = Mode::writethrough;
  std::optional<Assume> assume;
  std::uint64_t size = 64 << 20;
  std::optional<std::uint32_t> block;
  std::uint64_t read_ahead = 1 << 20;
};
Config config;

constexpr const char* config_help =
    "cache-assume=immutable|exclusive\n"
    "                           What may change the data: nothing, or only\n"
    "                           clients of this server (default: what the\n"
    "                           plugin tells, else nothing is cached).\n"
    "cache-shared=unsafe        Cache what others may change, too.\n"
    "cache-mode=writethrough|none\n"
    "                           none: do not cache (default writethrough).\n"
    "cache-size=<SIZE>          Memory for all exports (default 64M).\n"
    "cache-block=<SIZE>         Block size, a power of two from 512 to 1M\n"
    "                           (default: what the export prefers).\n"
    "cache-readahead=<SIZE>     Largest read-ahead, 0 for none (default 1M).";

/// One client.
struct Connection {
  explicit Connection(const char* n) : name(n) {}
  std::string name;
  std::shared_ptr<const Promise> promise;  ///< of the plugin; or null
  std::shared_ptr<Exports::Export> entry;  ///< null: not cached
  Streams streams;
};

/// Made when the parameters are complete.
struct State {
  State() : cache(config.size, config.block.value_or(largest_default)) {}
  BlockCache cache;
  Exports exports{cache};
  std::mutex mutex;
  /// Guarded by mutex.  They belong to the filter, because nbdkit does not
  /// close the handles of clients that are connected when it ends.
  std::map<Connection*, std::unique_ptr<Connection>> connections;
};
std::unique_ptr<State> state;

Connection& connection_of(void* handle) {
  return *static_cast<Connection*>(handle);
}

/// What the export is to be cached under; 0: not now.
CachedDisk::Version version_of(void* handle) {
  const auto& entry = connection_of(handle).entry;
  return entry && entry->ready() ? entry->version() : 0;
}

/// Runs `body`, which returns 0 or an errno.
template <class Body>
int guard(const char* operation, int* err, Body&& body) noexcept {
  try {
    *err = std::forward<Body>(body)();
    return *err == 0 ? 0 : -1;
  } catch (const std::bad_alloc&) {
    nbdkit_error("radoscache: %s: out of memory", operation);
    *err = ENOMEM;
  } catch (const std::exception& e) {
    nbdkit_error("radoscache: %s: %s", operation, e.what());
    *err = EIO;
  }
  return -1;
}

/// Makes a request below: call(int* err).  Returns 0 or its errno.
template <class Call>
int ask(Call&& call) {
  int err = 0;
  const int r = std::forward<Call>(call)(&err);
  return r == 0 ? 0 : err != 0 ? err : EIO;
}

void statistics() {
  if (radoscache_debug_stats == 0) return;
  const BlockCache::Statistics s = state->cache.statistics();
  nbdkit_debug("radoscache: hits %" PRIu64 ", misses %" PRIu64
               ", waits %" PRIu64 ", blocks inserted %" PRIu64
               ", evicted %" PRIu64 ", dropped %" PRIu64 ", bytes %" PRIu64
               " of %" PRIu64,
               s.hits, s.misses, s.waits, s.inserted, s.evicted, s.dropped,
               s.bytes, config.size);
}

// Parameters ----------------------------------------------------------------

int choose(const char* key, const char* value, const char* choices) {
  nbdkit_error("radoscache: %s=%s: use %s", key, value, choices);
  return -1;
}

int set_config(nbdkit_next_config* next, nbdkit_backend* nxdata,
               const char* key, const char* value) {
  const std::string_view k(key);
  const std::string_view v(value);
  if (k == "cache-mode") {
    if (v == "writethrough")
      config.mode = Mode::writethrough;
    else if (v == "none")
      config.mode = Mode::none;
    else
      return choose(key, value, "writethrough or none");
  } else if (k == "cache-assume") {
    if (v == "immutable")
      config.assume = Assume::immutable;
    else if (v == "exclusive")
      config.assume = Assume::exclusive;
    else
      return choose(key, value, "immutable or exclusive");
  } else if (k == "cache-shared") {
    if (v != "unsafe") return choose(key, value, "unsafe");
    config.assume = Assume::unsafe;
  } else if (k == "cache-size" || k == "cache-block" ||
             k == "cache-readahead") {
    const std::int64_t n = nbdkit_parse_size(value);
    if (n == -1) return -1;
    const auto size = static_cast<std::uint64_t>(n);
    if (k == "cache-size") {
      config.size = size;
    } else if (k == "cache-readahead") {
      config.read_ahead = size;
    } else {
      if (size < smallest_block || size > largest_block ||
          !std::has_single_bit(size))
        return choose(key, value, "a power of two from 512 to 1M");
      config.block = static_cast<std::uint32_t>(size);
    }
  } else {
    return next(nxdata, key, value);
  }
  return 0;
}

int config_complete(nbdkit_next_config_complete* next,
                    nbdkit_backend* nxdata) {
  if (config.mode != Mode::none) {
    const std::uint64_t least = config.block.value_or(largest_default);
    if (config.size < 4 * least) {
      nbdkit_error("radoscache: cache-size=%" PRIu64
                   " is less than four blocks of %" PRIu64 " bytes",
                   config.size, least);
      return -1;
    }
  }
  int err;
  if (guard("config", &err, [] {
        state = std::make_unique<State>();
        return 0;
      }) == -1)
    return -1;
  return next(nxdata);
}

void cleanup(nbdkit_backend* /*backend*/) { statistics(); }

void unload() { state.reset(); }

// Exports -------------------------------------------------------------------

bool immutable() {
  return config.mode != Mode::none && config.assume == Assume::immutable;
}

void* open_export(nbdkit_next_open* next, nbdkit_context* context,
                  int readonly, const char* name, int /*is_tls*/) {
  // What a plugin offers, it offers within the call.
  (void)take_promise();
  // What must not change cannot be written to.
  if (next(context, immutable() ? 1 : readonly, name) == -1) return nullptr;
  std::shared_ptr<const Promise> promise = take_promise();
  Connection* made = nullptr;
  int err;
  if (guard("open", &err, [&] {
        auto connection = std::make_unique<Connection>(name);
        connection->promise = std::move(promise);
        const std::scoped_lock lock(state->mutex);
        Connection* key = connection.get();
        state->connections.emplace(key, std::move(connection));
        made = key;
        return 0;
      }) == -1)
    return nullptr;
  return made;
}

void close_export(void* handle) {
  statistics();
  const std::scoped_lock lock(state->mutex);
  state->connections.erase(&connection_of(handle));
}

/// Finds out how the export below is to be cached.
int prepare(nbdkit_next* next, void* handle, int /*readonly*/) {
  if (config.mode == Mode::none) return 0;
  if (!config.assume && !connection_of(handle).promise) {
    nbdkit_debug(
        "radoscache: nothing is cached: the plugin does not tell whether "
        "others may change the data, and there is no cache-assume=");
    return 0;
  }
  const std::int64_t size = next->get_size(next);
  std::uint32_t minimum;
  std::uint32_t preferred;
  std::uint32_t maximum;
  if (size == -1 ||
      next->block_size(next, &minimum, &preferred, &maximum) == -1)
    return -1;
  // 0: the export below says nothing about sizes.
  minimum = std::max(minimum, 1u);
  if (maximum == 0) maximum = largest_fetch;
  const std::uint32_t block = config.block.value_or(std::max(
      minimum, std::min(std::bit_floor(maximum),
                        std::bit_floor(std::clamp(preferred, smallest_default,
                                                  largest_default)))));
  if (block % minimum != 0 || block > maximum || block > largest_block) {
    nbdkit_error("radoscache: blocks of %" PRIu32
                 " bytes do not fit the export below, whose requests have "
                 "%" PRIu32 " to %" PRIu32
                 " bytes: choose another cache-block=",
                 block, minimum, maximum);
    return -1;
  }
  int err;
  return guard("prepare", &err, [&] {
    connection_of(handle).entry = state->exports.use(
        connection_of(handle).name,
        {.size = static_cast<std::uint64_t>(size),
         .block = block,
         .max_fetch = std::min(maximum, largest_fetch) / block * block,
         .read_ahead =
             std::min(config.read_ahead, config.size / read_ahead_share)},
        connection_of(handle).promise, config.assume.has_value());
    return 0;
  });
}

// Properties ----------------------------------------------------------------

int can_write(nbdkit_next* next, void* /*handle*/) {
  return immutable() ? 0 : next->can_write(next);
}

// Blocks are brought into the cache.
int can_cache(nbdkit_next* next, void* handle) {
  return connection_of(handle).entry ? NBDKIT_CACHE_NATIVE
                                     : next->can_cache(next);
}

// Requests ------------------------------------------------------------------

CachedDisk::Below reader(nbdkit_next* next) {
  return [next](char* to, std::uint32_t count, std::uint64_t offset) {
    return ask([&](int* e) {
      return next->pread(next, to, count, offset, 0, e);
    });
  };
}

int pread(nbdkit_next* next, void* handle, void* buffer, std::uint32_t count,
          std::uint64_t offset, std::uint32_t flags, int* err) {
  const CachedDisk::Version version = version_of(handle);
  if (version == 0)
    return next->pread(next, buffer, count, offset, flags, err);
  return guard("pread", err, [&] {
    Connection& c = connection_of(handle);
    return c.entry->disk().read(static_cast<char*>(buffer), count, offset,
                                c.streams, reader(next), version);
  });
}

/// A change of the export.  `call` makes the request below; `data` is what the
/// range has then.
enum class Content { data, zeroes, unknown };
template <class Call>
int change(const char* operation, void* handle, std::uint32_t count,
           std::uint64_t offset, Content content, const void* data, int* err,
           Call&& call) {
  return guard(operation, err, [&] {
    Exports::Changing changing(state->exports, *connection_of(handle).entry,
                               count, offset);
    const int r = ask(std::forward<Call>(call));
    if (r == 0 && content != Content::unknown)
      changing.done(content == Content::data ? static_cast<const char*>(data)
                                             : nullptr);
    return r;
  });
}

int pwrite(nbdkit_next* next, void* handle, const void* buffer,
           std::uint32_t count, std::uint64_t offset, std::uint32_t flags,
           int* err) {
  if (!connection_of(handle).entry)
    return next->pwrite(next, buffer, count, offset, flags, err);
  return change("pwrite", handle, count, offset, Content::data, buffer, err,
                [&](int* e) {
                  return next->pwrite(next, buffer, count, offset, flags, e);
                });
}

int zero(nbdkit_next* next, void* handle, std::uint32_t count,
         std::uint64_t offset, std::uint32_t flags, int* err) {
  if (!connection_of(handle).entry)
    return next->zero(next, count, offset, flags, err);
  return change("zero", handle, count, offset, Content::zeroes, nullptr, err,
                [&](int* e) {
                  return next->zero(next, count, offset, flags, e);
                });
}

// What is trimmed reads as anything.
int trim(nbdkit_next* next, void* handle, std::uint32_t count,
         std::uint64_t offset, std::uint32_t flags, int* err) {
  if (!connection_of(handle).entry)
    return next->trim(next, count, offset, flags, err);
  return change("trim", handle, count, offset, Content::unknown, nullptr, err,
                [&](int* e) {
                  return next->trim(next, count, offset, flags, e);
                });
}

int cache(nbdkit_next* next, void* handle, std::uint32_t count,
          std::uint64_t offset, std::uint32_t flags, int* err) {
  if (!connection_of(handle).entry)
    return next->cache(next, count, offset, flags, err);
  // It is only advice.
  const CachedDisk::Version version = version_of(handle);
  if (version == 0) return 0;
  return guard("cache", err, [&] {
    Connection& c = connection_of(handle);
    return c.entry->disk().read(nullptr, count, offset, c.streams,
                                reader(next), version);
  });
}

struct nbdkit_filter make_filter() {
  struct nbdkit_filter f = {};
  f.name = "radoscache";
  f.longname = "nbdkit radoscache filter";
  f.description = "Keep blocks of each export in memory (" PACKAGE_STRING
                  ", for nbdkit " NBDKIT_VERSION_STRING " only)";
  f.unload = unload;
  f.config = set_config;
  f.config_complete = config_complete;
  f.config_help = config_help;
  f.cleanup = cleanup;
  f.open = open_export;
  f.close = close_export;
  f.prepare = prepare;
  f.can_write = can_write;
  f.can_cache = can_cache;
  f.pread = pread;
  f.pwrite = pwrite;
  f.zero = zero;
  f.trim = trim;
  f.cache = cache;
  return f;
}

struct nbdkit_filter filter = make_filter();

}  // namespace

NBDKIT_REGISTER_FILTER(filter)
