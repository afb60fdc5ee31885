// SPDX-License-Identifier: BSD-3-Clause
//
// The nbdkit filter `radoscache`: keeps blocks of the exports below in
// memory.  Callbacks and parameters only: common/cache has the cache,
// exports.hpp what belongs to an export, service.hpp the threads.
//
// Whether anything may be cached is a question of what else can change the
// data below.  The rados plugin tells (see coherence.hpp): what it reads from a
// snapshot stays for ever, and an image is its own while it holds the exclusive
// lock.  For other plugins the user says it with cache-assume=: nothing
// changes the data, or only clients of this server do.
//
// In the mode writethrough a request is done when it is done below, so FUA and
// flush mean what they mean below, and there is nothing to lose.  In the mode
// writeback small writes are done when they are in memory.  What goes around
// it (large writes, FUA, zero) makes older data of its range worthless; a
// flush, and a client that goes, wait until all of it is below.

#include <nbdkit-filter.h>
#include <zlib.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cache/block_cache.hpp"
#include "cache/cache_file.hpp"
#include "cache/cached_disk.hpp"
#include "cache/write_back.hpp"
#include "coherence/coherence.hpp"
#include "exports.hpp"
#include "extents.hpp"
#include "nbdkit/gate.hpp"
#include "nbdkit/guard.hpp"
#include "nbdkit/log.hpp"
#include "nbdkit/parameters.hpp"
#include "nbdkit/server.hpp"
#include "service.hpp"

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

/// Of all memory, for what is kept of block status of one export.
constexpr std::uint64_t extents_share = 64;
constexpr std::size_t least_extents = 64;
/// Writes that are larger go through, for there is little to gain.
constexpr std::uint32_t largest_kept = 1 << 20;
/// Until writes go through when there is no room for them.
constexpr int attempts_to_keep = 16;

enum class Mode { writethrough, writeback, none };
enum class Assume { immutable, exclusive, unsafe };

struct Config {
  std::set<std::string> given;  // the keys
  Mode mode = Mode::writethrough;
  std::optional<Assume> assume;
  std::uint64_t size = 64 << 20;
  std::optional<std::uint32_t> block;
  std::uint64_t read_ahead = 1 << 20;
  std::optional<std::uint64_t> dirty;
  std::optional<std::chrono::milliseconds> dirty_age;
  std::string file;
  std::optional<std::uint64_t> file_size;
  bool distinct = false;
};
Config config;
constexpr std::uint64_t dirty_share = 4;
constexpr std::chrono::seconds default_dirty_age{5};
constexpr std::chrono::seconds largest_dirty_age{3600};

constexpr std::uint64_t default_file_size = std::uint64_t{1} << 30;
/// What waits to be written to the file is part of cache-size; there is
/// room for a block.
constexpr std::uint64_t largest_file_queue = 8 << 20;
constexpr std::uint64_t file_queue_share = 8;
constexpr std::uint64_t file_queue_extra = 64;

int thread_model = NBDKIT_THREAD_MODEL_SERIALIZE_CONNECTIONS;

/// One client.
struct Connection {
  explicit Connection(const char* n) : name(n) {}
  Gate gate;
  std::string name;
  std::shared_ptr<const Promise> promise;  ///< of the plugin; or null
  std::shared_ptr<Exports::Export> entry;  ///< null: not cached
  Streams streams;
  std::optional<Exports::Channel> channel;  ///< of entry, for what it keeps
  /// WriteBack::losses() that the client has been told of.
  std::atomic<std::uint64_t> losses_told{0};
};

void report(const std::string& line) {
  log_error("radoscache: %s", line.c_str());
}

/// Made when the server has gone into the background: it has threads.
struct State {
  State()
      : file(make_file()),
        cache(config.size - dirty_bytes(),
              config.block.value_or(largest_default), file.get()),
        dirty(dirty_bytes()),
        exports(cache,
                {.most_extents = std::max<std::size_t>(
                     least_extents, config.size / extents_share /
                                        CachedExtents::extent_bytes),
                 .dirty = config.mode == Mode::writeback ? &dirty : nullptr,
                 .age = config.dirty_age.value_or(default_dirty_age),
                 .distinct = config.distinct}) {}

  static std::uint64_t dirty_bytes() {
    return config.mode == Mode::writeback
               ? config.dirty.value_or(config.size / dirty_share)
               : 0;
  }
  /// Bytes of blocks for which there is room, in the file as well.
  static std::uint64_t room() {
    return config.size - dirty_bytes() +
           (config.file.empty()
                ? 0
                : config.file_size.value_or(default_file_size));
  }
  static std::unique_ptr<CacheFile> make_file() {
    if (config.file.empty()) return nullptr;
    return std::make_unique<CacheFile>(
        open_cache_store(config.file),
        CacheFile::Options{
            .bytes = config.file_size.value_or(default_file_size),
            .block = config.block.value_or(largest_default),
            .queue = std::max<std::uint64_t>(
                std::min(config.size / file_queue_share, largest_file_queue),
                config.block.value_or(largest_default) + file_queue_extra),
            .report = report});
  }

  std::unique_ptr<CacheFile> file;  ///< the cache uses it to its end
  BlockCache cache;
  DirtyLimit dirty;
  Exports exports;
  std::mutex mutex;
  /// Guarded by mutex.  They belong to the filter, because nbdkit does not
  /// close the handles of clients that are connected when it ends.
  std::map<Connection*, std::unique_ptr<Connection>> connections;
  std::optional<Writers> writers;
  std::optional<SignalThread> on_signal;
};
std::unique_ptr<State> state;

Connection& connection_of(void* handle) {
  return *static_cast<Connection*>(handle);
}

/// What the export is to be cached under; 0: not now.
CachedDisk::Version version_of(void* handle) {
  const auto& entry = connection_of(handle).entry;
  return entry && entry->ready() && entry->holds() ? entry->version() : 0;
}

/// A request of the layer above: body(Connection&) returns 0 or an errno.
/// Filters of nbdkit make requests from threads of their own, also when nbdkit
/// is ending (see gate.hpp), and with err = NULL.
template <class Body>
int request(const char* operation, void* handle, int* err,
            Body&& body) noexcept {
  Connection& c = connection_of(handle);
  const Gate::Pass pass(c.gate);
  const int r =
      pass ? attempt(operation, [&] { return std::forward<Body>(body)(c); })
           : ESHUTDOWN;
  if (err != nullptr) *err = r;
  return r == 0 ? 0 : -1;
}

/// Makes a request below: call(int* err).  Returns 0 or its errno.
template <class Call>
int ask(Call&& call) {
  int err = 0;
  const int r = std::forward<Call>(call)(&err);
  return r == 0 ? 0 : err != 0 ? err : EIO;
}

std::string statistics_text() {
  const BlockCache::Statistics s = state->cache.statistics();
  std::ostringstream text;
  text << "hits " << s.hits << ", misses " << s.misses << ", waits " << s.waits
       << ", blocks inserted " << s.inserted << ", evicted " << s.evicted
       << ", dropped " << s.dropped << ", bytes " << s.bytes << " of "
       << config.size;
  if (config.mode == Mode::writeback) {
    WriteBack::Statistics all;
    for (const auto& e : state->exports.all()) {
      if (e->writes() == nullptr) continue;
      const WriteBack::Statistics one = e->writes()->statistics();
      all.taken += one.taken;
      all.written += one.written;
      all.failed += one.failed;
      all.lost += one.lost;
    }
    text << "; writes kept " << all.taken << ", written below "
         << all.written << ", failed " << all.failed << ", bytes lost "
         << all.lost << ", dirty bytes " << state->dirty.used() << " of "
         << state->dirty.limit();
  }
  if (state->file) {
    const CacheFile::Statistics f = state->file->statistics();
    text << "; file: hits " << f.hits << ", misses " << f.misses
         << ", blocks written " << f.written << ", skipped " << f.skipped
         << ", evicted " << f.evicted << ", dropped " << f.dropped
         << ", errors " << f.errors << ", corrupt " << f.corrupt
         << ", bytes " << f.bytes << " of " << state->file->options().bytes;
  }
  return text.str();
}

void statistics() {
  if (radoscache_debug_stats == 0 || !state) return;
  (void)attempt_or_fail("radoscache: statistics", [] {
    nbdkit_debug("radoscache: %s", statistics_text().c_str());
  });
}

// Parameters ----------------------------------------------------------------

constexpr Choice<Mode> modes[] = {{"writethrough", Mode::writethrough},
                                  {"writeback", Mode::writeback},
                                  {"none", Mode::none}};
constexpr Choice<Assume> assumptions[] = {{"immutable", Assume::immutable},
                                          {"exclusive", Assume::exclusive}};
constexpr Choice<Assume> shared[] = {{"unsafe", Assume::unsafe}};
constexpr Choice<bool> kinds_of_exports[] = {{"distinct", true}};

using Need = Parameter<Config>::Need;
using Text = const std::string&;

template <class T, std::size_t n>
T choose(Text key, Text value, const Choice<T> (&choices)[n]) {
  if (const auto found = find_choice(value, choices)) return *found;
  throw std::invalid_argument(key + "=" + value + ": use " +
                              words(choices, ", ", " or "));
}

void set_block(Config& c, Text key, Text value) {
  const std::uint64_t size = parse_size(key, value);
  if (size < smallest_block || size > largest_block ||
      !std::has_single_bit(size))
    throw std::invalid_argument(key + "=" + value +
                                ": use a power of two from 512 to 1M");
  c.block = static_cast<std::uint32_t>(size);
}

void set_file(Config& c, Text key, Text value) {
  const std::unique_ptr<char, void (*)(void*)> path(
      nbdkit_absolute_path(value.c_str()), std::free);
  if (!path) throw std::invalid_argument(key + "=" + value + " is not a path");
  c.file = path.get();
}

constexpr Need write_back = {
    [](const Config& c) { return c.mode == Mode::writeback; },
    "is only for cache-mode=writeback"};
constexpr Need some_cache = {
    [](const Config& c) { return c.mode != Mode::none; },
    "is not for cache-mode=none"};
constexpr Need a_file = {[](const Config& c) { return !c.file.empty(); },
                         "needs cache-file="};

const Parameters<Config>& parameters() {
  static const Parameters<Config> all({
      {"cache-assume=" + words(assumptions),
       "What may change the data: nothing, or only\n"
       "clients of this server (default: what the\n"
       "plugin tells, else nothing is cached).",
       [](Config& c, Text k, Text v) { c.assume = choose(k, v, assumptions); }},
      {"cache-shared=" + words(shared),
       "Cache what others may change, too.",
       [](Config& c, Text k, Text v) { c.assume = choose(k, v, shared); }},
      {"cache-exports=" + words(kinds_of_exports),
       "Each export name is a disk of its own.",
       [](Config& c, Text k, Text v) {
         c.distinct = choose(k, v, kinds_of_exports);
       }},
      {"cache-mode=" + words(modes),
       "writeback: keep writes until a flush; none:\n"
       "do not cache (default writethrough).",
       [](Config& c, Text k, Text v) { c.mode = choose(k, v, modes); }},
      {"cache-size=<SIZE>", "Memory for all exports (default 64M).",
       [](Config& c, Text k, Text v) { c.size = parse_size(k, v); }},
      {"cache-block=<SIZE>",
       "Block size, a power of two from 512 to 1M\n"
       "(default: what the export prefers).",
       set_block},
      {"cache-readahead=<SIZE>",
       "Largest read-ahead, 0 for none (default 1M).",
       [](Config& c, Text k, Text v) { c.read_ahead = parse_size(k, v); }},
      {"cache-dirty=<SIZE>",
       "Memory, of cache-size, for writes that are not\n"
       "below yet (default a quarter).",
       [](Config& c, Text k, Text v) { c.dirty = parse_size(k, v); },
       &write_back},
      {"cache-dirty-age=<TIME>", "How long they stay there (default 5s).",
       [](Config& c, Text k, Text v) {
         c.dirty_age = parse_time(k, v, std::chrono::milliseconds(1),
                                  largest_dirty_age);
       },
       &write_back},
      {"cache-file=<PATH>",
       "A folder for a file with blocks that had to\n"
       "leave memory.",
       set_file, &some_cache},
      {"cache-file-size=<SIZE>", "Size of that file (default 1G).",
       [](Config& c, Text k, Text v) { c.file_size = parse_size(k, v, 1); },
       &a_file},
  });
  return all;
}

int set_config(nbdkit_next_config* next, nbdkit_backend* nxdata,
               const char* key, const char* value) {
  bool taken = false;
  if (attempt_or_fail("radoscache", [&] {
        taken = parameters().set(config, key, value);
      }) == -1)
    return -1;
  return taken ? 0 : next(nxdata, key, value);
}

/// Throws what does not fit together.
void check_sizes() {
  const auto bad = [](const std::string& text, std::uint64_t block) {
    throw std::invalid_argument(text + " of " + std::to_string(block) +
                                " bytes");
  };
  const std::uint64_t block = config.block.value_or(largest_default);
  if (config.file_size && *config.file_size < block)
    bad("cache-file-size=" + std::to_string(*config.file_size) +
            " is less than one block",
        block);
  const std::uint64_t dirty = State::dirty_bytes();
  if (dirty > config.size || config.size - dirty < 4 * block)
    bad("cache-size=" + std::to_string(config.size) +
            " less what is for writes, " + std::to_string(dirty) +
            ", is less than four blocks",
        block);
}

int config_complete(nbdkit_next_config_complete* next,
                    nbdkit_backend* nxdata) {
  if (attempt_or_fail("radoscache", [] {
        parameters().check_needs(config);
        if (config.mode != Mode::none) check_sizes();
      }) == -1)
    return -1;
  // To say early that it cannot be made.
  if (attempt_or_fail("radoscache: cache-file", [] {
        if (!config.file.empty()) (void)open_cache_store(config.file);
      }) == -1)
    return -1;
  return next(nxdata);
}

int get_ready(int final_thread_model) {
  thread_model = final_thread_model;
  // Who knows the process by its pid file may send it before after_fork.
  survive_signal();
  return 0;
}

int after_fork(nbdkit_backend* /*backend*/) {
  return attempt_or_fail("radoscache: start", [] {
    state = std::make_unique<State>();
    // Where requests must not be concurrent, clients write what is due.
    if (config.mode == Mode::writeback &&
        thread_model == NBDKIT_THREAD_MODEL_PARALLEL)
      state->writers.emplace(state->exports, state->dirty);
    state->on_signal.emplace([] {
      (void)attempt_or_fail("radoscache: statistics", [] {
        const std::string line = "radoscache: " + statistics_text() + "\n";
        std::fputs(line.c_str(), stderr);
        std::fflush(stderr);
      });
    });
  });
}

void cleanup(nbdkit_backend* /*backend*/) {
  if (!state) return;
  {
    const std::scoped_lock lock(state->mutex);
    for (const auto& c : state->connections) c.first->gate.shut();
  }
  state->writers.reset();
  state->on_signal.reset();
  for (const auto& e : state->exports.all()) e->lose();
  statistics();
}

void unload() {
  ignore_signal();
  state.reset();
}

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
  if (attempt_or_fail("radoscache: open", [&] {
        auto connection = std::make_unique<Connection>(name);
        connection->promise = std::move(promise);
        const std::scoped_lock lock(state->mutex);
        Connection* key = connection.get();
        state->connections.emplace(key, std::move(connection));
        made = key;
      }) == -1)
    return nullptr;
  return made;
}

void detach(Connection& c) noexcept {
  if (!c.channel) return;
  c.entry->remove(*c.channel);
  c.channel.reset();
}

void close_export(void* handle) {
  statistics();
  detach(connection_of(handle));  // without finalize
  const std::scoped_lock lock(state->mutex);
  state->connections.erase(&connection_of(handle));
}

/// Writes data that was kept.
WriteBack::Write writer(nbdkit_next* next, Exports::Export& e) {
  return [next, &e](const char* data, std::uint32_t count,
                    std::uint64_t offset) {
    Exports::Changing changing(state->exports, e, count, offset);
    const int r = ask([&](int* err) {
      return next->pwrite(next, data, count, offset, 0, err);
    });
    if (r == 0) changing.done(data);
    return r;
  };
}

/// What one client has written may be written through the connection of
/// another: then a flush of the first must cover it, and the plugin must allow
/// requests of two connections in one thread, or at one time.
bool may_keep(nbdkit_next* next) {
  if (next->can_write(next) != 1) return false;
  if (next->can_multi_conn(next) == 1 &&
      thread_model != NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS)
    return true;
  nbdkit_debug(
      "radoscache: writes go through: the connections of this plugin are not "
      "one");
  return false;
}

/// Finds out how the export below is to be cached.
int prepare(nbdkit_next* next, void* handle, int /*readonly*/) {
  // What another export has lost may be found out now.
  const LastLine last_line;
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
  return attempt_or_fail("radoscache: prepare", [&] {
    Connection& c = connection_of(handle);
    c.entry = state->exports.use(
        c.name,
        {.size = static_cast<std::uint64_t>(size),
         .block = block,
         .max_fetch = std::min(maximum, largest_fetch) / block * block,
         .read_ahead =
             std::min(config.read_ahead, config.size / read_ahead_share)},
        c.promise, config.assume.has_value());
    if (c.entry->writes() != nullptr && may_keep(next)) {
      c.channel.emplace();
      c.channel->write = writer(next, *c.entry);
      c.losses_told = c.entry->writes()->losses();
      c.entry->add(*c.channel);
    }
  });
}

/// Writes everything that the export keeps: whoever else is connected may go
/// without this.
int finalize(nbdkit_next* /*next*/, void* handle) {
  Connection& c = connection_of(handle);
  if (!c.channel) return 0;
  const int r = attempt("radoscache: flush", [&] {
    return c.entry->writes()->flush(c.channel->write);
  });
  if (r != 0)
    log_error("radoscache: export \"%s\": what clients have written cannot "
              "be written below: %s",
              c.name.c_str(), std::strerror(r));
  else if (c.losses_told != c.entry->writes()->losses())
    log_error("radoscache: export \"%s\": some of what clients have written "
              "was lost with the exclusive lock",
              c.name.c_str());
  detach(c);
  return 0;
}

// Properties ----------------------------------------------------------------

int can_write(nbdkit_next* next, void* /*handle*/) {
  return immutable() ? 0 : next->can_write(next);
}

// What is kept here is written by a flush, whatever the plugin can.
int can_flush(nbdkit_next* next, void* handle) {
  return connection_of(handle).channel ? 1 : next->can_flush(next);
}

// A write with FUA goes through; where the plugin has no FUA, a flush follows.
int can_fua(nbdkit_next* next, void* handle) {
  return connection_of(handle).channel ? NBDKIT_FUA_NATIVE
                                       : next->can_fua(next);
}

// Blocks are brought into the cache.
int can_cache(nbdkit_next* next, void* handle) {
  return connection_of(handle).entry ? NBDKIT_CACHE_NATIVE
                                     : next->can_cache(next);
}

// Requests ------------------------------------------------------------------

/// Reads through the cache, if that is right now.
int read_clean(nbdkit_next* next, void* handle, char* to, std::uint32_t count,
               std::uint64_t offset) {
  const CachedDisk::Version version = version_of(handle);
  const auto below = [next](char* buffer, std::uint32_t n,
                            std::uint64_t from) {
    return ask([&](int* e) {
      return next->pread(next, buffer, n, from, 0, e);
    });
  };
  if (version == 0) return to != nullptr ? below(to, count, offset) : 0;
  Connection& c = connection_of(handle);
  return c.entry->disk().read(to, count, offset, c.streams, below, version);
}

int pread(nbdkit_next* next, void* handle, void* buffer, std::uint32_t count,
          std::uint64_t offset, std::uint32_t flags, int* err) {
  return request("radoscache: pread", handle, err, [&](const Connection& c) {
    if (!c.entry)
      return ask([&](int* e) {
        return next->pread(next, buffer, count, offset, flags, e);
      });
    char* const to = static_cast<char*>(buffer);
    if (const int r = state->exports.settle(*c.entry, count, offset); r != 0)
      return r;
    const WriteBack* const writes = c.entry->writes();
    if (writes == nullptr || writes->untouched(count, offset))
      return read_clean(next, handle, to, count, offset);
    // First what is kept; see write_back.hpp.
    for (const WriteBack::Range& rest : writes->read(to, count, offset)) {
      const int r = read_clean(next, handle, to + (rest.offset - offset),
                               static_cast<std::uint32_t>(rest.length),
                               rest.offset);
      if (r != 0) return r;
    }
    return 0;
  });
}

/// A change of the export.  call(flags, err) makes the request below; `data` is
/// what the range has then.  Returns 0 or an errno.
enum class Content { data, zeroes, unknown };
template <class Call>
int change(nbdkit_next* next, const Connection& c, std::uint32_t count,
           std::uint64_t offset, std::uint32_t flags, Content content,
           const char* data, Call&& call) {
  if (!c.entry) return ask([&](int* e) { return call(flags, e); });
  // FUA is promised where writes are kept, whatever the plugin can.
  bool flush_below = false;
  if (c.channel && (flags & NBDKIT_FLAG_FUA) != 0 &&
      next->can_fua(next) == NBDKIT_FUA_NONE) {
    flags &= ~NBDKIT_FLAG_FUA;
    flush_below = next->can_flush(next) == 1;
  }
  if (const int r = state->exports.settle(*c.entry, count, offset); r != 0)
    return r;
  {
    // Older data of this range must not come later.
    std::optional<WriteBack::Hold> hold;
    if (WriteBack* const writes = c.entry->writes();
        writes != nullptr && !writes->empty()) {
      // What is trimmed may stay as it is below.  That must not be older than
      // what has been written.  What cannot be written stays.
      if (content == Content::unknown && c.channel)
        (void)writes->write_out(count, offset, c.channel->write);
      hold.emplace(*writes, count, offset);
    }
    Exports::Changing changing(state->exports, *c.entry, count, offset);
    if (const int r = ask([&](int* e) { return call(flags, e); }); r != 0)
      return r;
    if (content != Content::unknown) {
      changing.done(data);
      if (hold) hold->superseded();
    }
  }
  return flush_below
             ? ask([&](int* e) { return next->flush(next, 0, e); })
             : 0;
}

/// Keeps a write, or the first part of it; returns how many bytes.
std::uint32_t keep(Connection& c, const char* data, std::uint32_t count,
                   std::uint64_t offset) {
  WriteBack& writes = *c.entry->writes();
  const WriteBack::Tenure tenure = c.entry->tenure();
  if (tenure == 0 || !c.entry->holds() || count > largest_kept ||
      state->exports.settle(*c.entry, count, offset) != 0)
    return 0;
  std::uint32_t kept = 0;
  for (int i = 0; i < attempts_to_keep; ++i) {
    const bool pressing = state->dirty.pressing();
    kept += writes.take(data + kept, count - kept, offset + kept, tenure);
    if (!state->writers)
      (void)writes.work(state->dirty.pressing(), c.channel->write);
    else if (pressing != state->dirty.pressing() ||
             (offset + count) % writes.shape().chunk < count)
      state->writers->notify();
    else
      state->writers->notice();
    if (kept == count || c.entry->tenure() != tenure ||
        !writes.make_room(c.channel->write))
      break;
  }
  return kept;
}

int pwrite(nbdkit_next* next, void* handle, const void* buffer,
           std::uint32_t count, std::uint64_t offset, std::uint32_t flags,
           int* err) {
  return request("radoscache: pwrite", handle, err, [&](Connection& c) {
    const char* data = static_cast<const char*>(buffer);
    std::uint32_t kept = 0;
    if (c.channel && (flags & NBDKIT_FLAG_FUA) == 0) {
      kept = keep(c, data, count, offset);
      if (kept == count) return 0;
    }
    return change(next, c, count - kept, offset + kept, flags, Content::data,
                  data + kept, [&](std::uint32_t f, int* e) {
                    return next->pwrite(next, data + kept, count - kept,
                                        offset + kept, f, e);
                  });
  });
}

int zero(nbdkit_next* next, void* handle, std::uint32_t count,
         std::uint64_t offset, std::uint32_t flags, int* err) {
  return request("radoscache: zero", handle, err, [&](const Connection& c) {
    return change(next, c, count, offset, flags, Content::zeroes, nullptr,
                  [&](std::uint32_t f, int* e) {
                    return next->zero(next, count, offset, f, e);
                  });
  });
}

// What is trimmed reads as anything.
int trim(nbdkit_next* next, void* handle, std::uint32_t count,
         std::uint64_t offset, std::uint32_t flags, int* err) {
  return request("radoscache: trim", handle, err, [&](const Connection& c) {
    return change(next, c, count, offset, flags, Content::unknown, nullptr,
                  [&](std::uint32_t f, int* e) {
                    return next->trim(next, count, offset, f, e);
                  });
  });
}

int flush(nbdkit_next* next, void* handle, std::uint32_t flags, int* err) {
  return request("radoscache: flush", handle, err, [&](Connection& c) {
    if (c.channel) {
      WriteBack& writes = *c.entry->writes();
      if (state->writers) state->writers->notify();
      const int r = writes.flush(c.channel->write);
      const std::uint64_t losses = writes.losses();
      const bool lost = c.losses_told.exchange(losses) != losses;
      if (r != 0) return r;
      if (lost) return ESHUTDOWN;
    }
    if (next->can_flush(next) != 1) return 0;
    return ask([&](int* e) { return next->flush(next, flags, e); });
  });
}

int extents(nbdkit_next* next, void* handle, std::uint32_t count,
            std::uint64_t offset, std::uint32_t flags,
            struct nbdkit_extents* list, int* err) {
  return request("radoscache: extents", handle, err, [&](const Connection& c) {
    if (!c.entry) return block_status(next, count, offset, flags, list);
    const std::uint64_t begin = sector_begin(offset);
    const std::uint64_t end =
        sector_end(offset + count, c.entry->disk().shape().size);
    if (const int r = state->exports.settle(*c.entry, end - begin, begin);
        r != 0)
      return r;
    NotBelow not_below;
    if (const WriteBack* const writes = c.entry->writes();
        writes != nullptr && !writes->empty())
      not_below = [writes](const CachedExtents::Range& range) {
        std::vector<CachedExtents::Range> ranges;
        for (const WriteBack::Range& r :
             writes->kept(range.length, range.offset))
          ranges.push_back({r.offset, r.length});
        return ranges;
      };
    return cached_block_status(next, count, offset, flags, list,
                               c.entry->extents(), version_of(handle),
                               not_below);
  });
}

int cache(nbdkit_next* next, void* handle, std::uint32_t count,
          std::uint64_t offset, std::uint32_t flags, int* err) {
  const auto body = [&](const Connection& c) {
    if (!c.entry)
      return ask([&](int* e) {
        return next->cache(next, count, offset, flags, e);
      });
    // More than there is room for would push out what has come before.
    return read_clean(next, handle, nullptr,
                      static_cast<std::uint32_t>(
                          std::min<std::uint64_t>(count, State::room())),
                      offset);
  };
  const int r = request("radoscache: cache", handle, err, body);
  // It is only advice.  nbdkit looks at *err where a callback fails (1.32.5:
  // server/backend.c, backend_cache), so who gives none is told of no failure.
  return err != nullptr ? r : 0;
}

/// For nbdkit --dump-plugin.
void dump_plugin() {
  std::printf("radoscache_version=%s\n", PACKAGE_VERSION);
  std::printf("radoscache_nbdkit_version=%s\n", NBDKIT_VERSION_STRING);
  std::printf("radoscache_zlib_version=%s\n", zlibVersion());
  std::printf("radoscache_modes=%s\n", words(modes, ",", ",").c_str());
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
  f.config_help = parameters().help();
  set_dump_plugin(f, dump_plugin);
  f.get_ready = get_ready;
  f.after_fork = after_fork;
  f.cleanup = cleanup;
  f.open = open_export;
  f.close = close_export;
  f.prepare = prepare;
  f.finalize = finalize;
  f.can_write = can_write;
  f.can_flush = can_flush;
  f.can_fua = can_fua;
  f.can_cache = can_cache;
  f.pread = pread;
  f.pwrite = pwrite;
  f.zero = zero;
  f.trim = trim;
  f.flush = flush;
  f.extents = extents;
  f.cache = cache;
  return f;
}

struct nbdkit_filter filter = make_filter();

}  // namespace

NBDKIT_REGISTER_FILTER(filter)
