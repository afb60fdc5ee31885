// SPDX-License-Identifier: BSD-3-Clause
//
// The nbdkit filter `radosoffset`: serves a byte range of the export below.
//
// It has no state but its two parameters, so exports and connections cannot
// mix.  What it does not mention here (exports, descriptions, what the export
// can do, FUA, flush) nbdkit passes through as it is.
//
// nbdkit asks for the size below once a connection and keeps the answer, so
// next->get_size costs nothing in a request, and a connection keeps the range
// that it began with.  Whoever shrinks the export below makes requests of
// old connections fail there, and new connections here.

#include <nbdkit-filter.h>

#include <cerrno>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <optional>
#include <string_view>
#include <vector>

#include "nbdkit/block_status.hpp"
#include "nbdkit/guard.hpp"
#include "nbdkit/parameters.hpp"
#include "nbdkit/server.hpp"

#ifdef HAVE_CONFIG_H
#include "config.h"
#endif

namespace {

// nbdkit refuses filters whose header was not its own.
static_assert(std::string_view(NBDKIT_VERSION_STRING) == NBDKIT_BUILT_VERSION,
              "nbdkit-filter.h and nbdkit.pc are of different versions");

/// Where the range starts in the export below, and how long it is; without a
/// length it goes to the end.  Bytes; never changed once the server runs.
std::int64_t start = 0;
std::optional<std::int64_t> length;

constexpr const char* config_help =
    "offset=<OFFSET>            First byte to serve (default 0).\n"
    "range=<LENGTH>             Bytes to serve (default: all that follow).";

std::uint64_t below(std::uint64_t offset) {
  return offset + static_cast<std::uint64_t>(start);
}

/// A request fails.  The layer above may give err = NULL.
int fail(int* err, int code) {
  if (err != nullptr) *err = code;
  return -1;
}

// Parameters ----------------------------------------------------------------

int set_config(nbdkit_next_config* next, nbdkit_backend* nxdata,
               const char* key, const char* value) {
  const bool is_offset = std::strcmp(key, "offset") == 0;
  if (!is_offset && std::strcmp(key, "range") != 0)
    return next(nxdata, key, value);
  return nbdrados::attempt_or_fail("radosoffset", [&] {
    const auto n = static_cast<std::int64_t>(nbdrados::parse_size(key, value));
    if (is_offset)
      start = n;
    else
      length = n;
  });
}

int config_complete(nbdkit_next_config_complete* next,
                    nbdkit_backend* nxdata) {
  if (length && *length > std::numeric_limits<std::int64_t>::max() - start) {
    nbdkit_error("radosoffset: offset=%" PRId64 " plus range=%" PRId64
                 " is more than the largest size, %" PRId64,
                 start, *length, std::numeric_limits<std::int64_t>::max());
    return -1;
  }
  return next(nxdata);
}

// Properties ----------------------------------------------------------------

/// The size of the range, or -1 after an error message.
std::int64_t get_size(nbdkit_next* next, void* /*handle*/) {
  const std::int64_t size = next->get_size(next);
  if (size == -1) return -1;
  if (start > size) {
    nbdkit_error("radosoffset: offset=%" PRId64
                 " lies behind the end of the export below, which has %" PRId64
                 " bytes",
                 start, size);
    return -1;
  }
  if (!length) return size - start;
  if (*length > size - start) {
    nbdkit_error("radosoffset: offset=%" PRId64 " plus range=%" PRId64
                 " is %" PRId64
                 ", but the export below has only %" PRId64 " bytes",
                 start, *length, start + *length, size);
    return -1;
  }
  return *length;
}

/// What is aligned for the client has to be aligned below.
int prepare(nbdkit_next* next, void* handle, int /*readonly*/) {
  const std::int64_t size = get_size(next, handle);
  if (size == -1) return -1;
  std::uint32_t minimum;
  std::uint32_t preferred;
  std::uint32_t maximum;
  if (next->block_size(next, &minimum, &preferred, &maximum) == -1) return -1;
  // 0: the export below says nothing about sizes.
  if (minimum <= 1) return 0;
  if (start % minimum != 0) {
    nbdkit_error("radosoffset: offset=%" PRId64
                 " is not a multiple of %" PRIu32
                 ", the smallest block that the export below can use",
                 start, minimum);
    return -1;
  }
  if (length && *length % minimum != 0 &&
      start + size != next->get_size(next)) {
    nbdkit_error("radosoffset: range=%" PRId64 " is not a multiple of %" PRIu32
                 ", the smallest block that the export below can use",
                 *length, minimum);
    return -1;
  }
  if (preferred > 1 && start % preferred != 0)
    nbdkit_debug("radosoffset: offset=%" PRId64
                 " is not a multiple of the preferred block size %" PRIu32
                 ": aligned requests touch one block more",
                 start, preferred);
  return 0;
}

// Requests ------------------------------------------------------------------

int pread(nbdkit_next* next, void* /*handle*/, void* buffer,
          std::uint32_t count, std::uint64_t offset, std::uint32_t flags,
          int* err) {
  return next->pread(next, buffer, count, below(offset), flags, err);
}

int pwrite(nbdkit_next* next, void* /*handle*/, const void* buffer,
           std::uint32_t count, std::uint64_t offset, std::uint32_t flags,
           int* err) {
  return next->pwrite(next, buffer, count, below(offset), flags, err);
}

int trim(nbdkit_next* next, void* /*handle*/, std::uint32_t count,
         std::uint64_t offset, std::uint32_t flags, int* err) {
  return next->trim(next, count, below(offset), flags, err);
}

int zero(nbdkit_next* next, void* /*handle*/, std::uint32_t count,
         std::uint64_t offset, std::uint32_t flags, int* err) {
  return next->zero(next, count, below(offset), flags, err);
}

/// It is only advice, and nbdkit's filters readahead and scan give err = NULL.
/// nbdkit writes to it, or looks at it, where a layer fails (1.32.5:
/// server/plugins.c, plugin_cache; server/backend.c, backend_cache): the layers
/// below get one, and who gives none is told of no failure.
int cache(nbdkit_next* next, void* /*handle*/, std::uint32_t count,
          std::uint64_t offset, std::uint32_t flags, int* err) {
  int ignored = 0;
  const int r = next->cache(next, count, below(offset), flags,
                            err != nullptr ? err : &ignored);
  return err != nullptr ? r : 0;
}

/// The sectors of the range are not those of the export below, which may know
/// to the byte what is data, so also where the range begins with the export
/// the answer is rounded here.
int extents(nbdkit_next* next, void* handle, std::uint32_t count,
            std::uint64_t offset, std::uint32_t flags,
            struct nbdkit_extents* list, int* err) {
  const std::int64_t size = get_size(next, handle);
  if (size == -1) return fail(err, EIO);
  const int r = nbdrados::attempt("radosoffset: extents", [&] {
    std::vector<nbdrados::StatusExtent> answer;
    const int error = nbdrados::sector_status_below(
        next, below(0), static_cast<std::uint64_t>(size), count, offset, flags,
        answer);
    return error != 0 ? error
                      : nbdrados::give_block_status(answer, count, offset,
                                                    flags, list);
  });
  return r == 0 ? 0 : fail(err, r);
}

/// For nbdkit --dump-plugin.
void dump_plugin() {
  std::printf("radosoffset_version=%s\n", PACKAGE_VERSION);
  std::printf("radosoffset_nbdkit_version=%s\n", NBDKIT_VERSION_STRING);
}

struct nbdkit_filter make_filter() {
  struct nbdkit_filter f = {};
  f.name = "radosoffset";
  f.longname = "nbdkit radosoffset filter";
  f.description = "Serve a byte range of every export (" PACKAGE_STRING
                  ", for nbdkit " NBDKIT_VERSION_STRING " only)";
  f.config = set_config;
  f.config_complete = config_complete;
  f.config_help = config_help;
  nbdrados::set_dump_plugin(f, dump_plugin);
  f.prepare = prepare;
  f.get_size = get_size;
  f.pread = pread;
  f.pwrite = pwrite;
  f.trim = trim;
  f.zero = zero;
  f.extents = extents;
  f.cache = cache;
  return f;
}

struct nbdkit_filter filter = make_filter();

}  // namespace

NBDKIT_REGISTER_FILTER(filter)
