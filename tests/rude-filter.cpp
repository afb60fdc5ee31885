// SPDX-License-Identifier: BSD-3-Clause
//
// An nbdkit filter that makes requests as no filter should, and some do: each
// one from a thread of its own and with err = NULL; and one after the other
// while the client goes and while the server ends.  test-filter-calls.sh
// compiles it; it is no part of the project's filters.
//
//     nbdkit --filter=./nbdkit-rude-filter.so ...
//
// Above and below another filter, the lower one waits in its .cleanup, which
// comes after that of the filter between, and ends the process if a request
// comes to it nevertheless.

#include <nbdkit-filter.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <list>
#include <mutex>
#include <string>
#include <thread>

namespace {

// All instances are one dlopen'ed file.
std::atomic<int> instances{0};
std::atomic<bool> below_is_gone{false};

// One client of one instance.  Nothing is freed before .unload: clients that
// are connected at the end are not closed.
struct Handle {
  std::atomic<bool> top{false};  // above all other instances
  std::atomic<bool> stop{false};
  std::atomic<unsigned> made{0};  // requests after .finalize
  std::thread late;
};
std::mutex mutex;
std::list<Handle> handles;  // guarded by mutex
int cleanups = 0;

int get_ready(int) {
  ++instances;
  return 0;
}

void* open_export(nbdkit_next_open* next, nbdkit_context* context,
                  int readonly, const char* name, int) {
  static thread_local int depth = 0;
  const bool top = depth++ == 0;
  const int r = next(context, readonly, name);
  --depth;
  if (r == -1) return nullptr;
  const std::scoped_lock lock(mutex);
  Handle& h = handles.emplace_back();
  h.top = top;
  return &h;
}

// From here on nbdkit makes no request of this client.
int finalize(nbdkit_next* next, void* handle) {
  Handle& h = *static_cast<Handle*>(handle);
  if (!h.top) return 0;
  const bool can_cache = next->can_cache(next) == NBDKIT_CACHE_NATIVE;
  h.late = std::thread([&h, next, can_cache] {
    static thread_local char buffer[4096];
    while (!h.stop) {
      int err = 0;
      // Asked for as readahead does, which is not told of errors.
      if (can_cache) (void)next->cache(next, sizeof buffer, 0, 0, nullptr);
      const int r = next->pread(next, buffer, sizeof buffer, 4096, 0, &err);
      ++h.made;
      if (r == -1) {
        if (err != ESHUTDOWN) std::abort();
        // Without an instance below nobody says when to stop.
        if (instances == 1) break;
      }
    }
  });
  // Some are under way when the filters below are told of the end.
  while (h.made < 10) std::this_thread::yield();
  return 0;
}

void end(Handle& h) {
  h.stop = true;
  if (h.late.joinable()) h.late.join();
}

void close_export(void* handle) { end(*static_cast<Handle*>(handle)); }

void cleanup(nbdkit_backend*) {
  if (++cleanups != 2) return;
  below_is_gone = true;
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  for (Handle& h : handles) end(h);
}

void unload() {
  for (Handle& h : handles) end(h);
  handles.clear();
}

// Makes a request of the layer above: call(err).
template <class Call>
int pass(void* handle, int* err, Call&& call) {
  if (!static_cast<Handle*>(handle)->top) {
    if (below_is_gone) std::abort();
    return call(err);
  }
  int r = -1;
  std::thread([&] { r = call(nullptr); }).join();
  if (r == -1) *err = EIO;
  return r;
}

int pread(nbdkit_next* next, void* handle, void* buffer, std::uint32_t count,
          std::uint64_t offset, std::uint32_t flags, int* err) {
  return pass(handle, err, [&](int* e) {
    return next->pread(next, buffer, count, offset, flags, e);
  });
}

int pwrite(nbdkit_next* next, void* handle, const void* buffer,
           std::uint32_t count, std::uint64_t offset, std::uint32_t flags,
           int* err) {
  return pass(handle, err, [&](int* e) {
    return next->pwrite(next, buffer, count, offset, flags, e);
  });
}

int flush(nbdkit_next* next, void* handle, std::uint32_t flags, int* err) {
  return pass(handle, err,
              [&](int* e) { return next->flush(next, flags, e); });
}

int trim(nbdkit_next* next, void* handle, std::uint32_t count,
         std::uint64_t offset, std::uint32_t flags, int* err) {
  return pass(handle, err, [&](int* e) {
    return next->trim(next, count, offset, flags, e);
  });
}

int zero(nbdkit_next* next, void* handle, std::uint32_t count,
         std::uint64_t offset, std::uint32_t flags, int* err) {
  // May fail in an ordinary way, and nbdkit itself would not bear that.
  if ((flags & NBDKIT_FLAG_FAST_ZERO) != 0)
    return next->zero(next, count, offset, flags, err);
  return pass(handle, err, [&](int* e) {
    return next->zero(next, count, offset, flags, e);
  });
}

int extents(nbdkit_next* next, void* handle, std::uint32_t count,
            std::uint64_t offset, std::uint32_t flags,
            struct nbdkit_extents* list, int* err) {
  return pass(handle, err, [&](int* e) {
    return next->extents(next, count, offset, flags, list, e);
  });
}

int cache(nbdkit_next* next, void* handle, std::uint32_t count,
          std::uint64_t offset, std::uint32_t flags, int* err) {
  return pass(handle, err, [&](int* e) {
    return next->cache(next, count, offset, flags, e);
  });
}

struct nbdkit_filter make_filter() {
  struct nbdkit_filter f = {};
  f.name = "rude";
  f.get_ready = get_ready;
  f.open = open_export;
  f.finalize = finalize;
  f.close = close_export;
  f.cleanup = cleanup;
  f.unload = unload;
  f.pread = pread;
  f.pwrite = pwrite;
  f.flush = flush;
  f.trim = trim;
  f.zero = zero;
  f.extents = extents;
  f.cache = cache;
  return f;
}

struct nbdkit_filter filter = make_filter();

}  // namespace

NBDKIT_REGISTER_FILTER(filter)
