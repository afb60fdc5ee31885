// SPDX-License-Identifier: BSD-3-Clause

#include "extents.hpp"

#include <cerrno>
#include <utility>

#include "nbdkit/block_status.hpp"

namespace nbdrados {

namespace {

using Extents = std::vector<StatusExtent>;

/// What the layer below says of a range of the disk.  Returns 0 or an errno.
int ask(nbdkit_next* next, std::uint64_t length, std::uint64_t offset,
        std::uint32_t flags, Extents& answer) {
  const std::int64_t size = next->get_size(next);
  if (size == -1) return EIO;
  return sector_status_below(next, 0, static_cast<std::uint64_t>(size), length,
                             offset, flags, answer);
}

/// What writes are kept of is data, and so are all of its sectors.
void mark_dirty(Extents& answer, std::vector<CachedExtents::Range> dirty) {
  for (CachedExtents::Range& r : dirty) {
    const std::uint64_t end = r.offset + r.length;
    r.offset = sector_begin(r.offset);
    r.length = sector_end(end, end + sector_size) - r.offset;
  }
  mark_data(answer, std::move(dirty));
}

}  // namespace

int block_status(nbdkit_next* next, std::uint32_t count, std::uint64_t offset,
                 std::uint32_t flags, struct nbdkit_extents* list) {
  Extents answer;
  const int r = ask(next, count, offset, flags, answer);
  return r != 0 ? r : give_block_status(answer, count, offset, flags, list);
}

int cached_block_status(nbdkit_next* next, std::uint32_t count,
                        std::uint64_t offset, std::uint32_t flags,
                        struct nbdkit_extents* list, CachedExtents& known,
                        CachedExtents::Version version,
                        const NotBelow& not_below) {
  // What is known, and what is kept, of all sectors that the range is in.
  const std::uint64_t begin = sector_begin(offset);
  const std::uint64_t all = sector_end(offset + count, known.size()) - begin;
  std::vector<CachedExtents::Range> dirty;
  if (not_below) dirty = not_below({begin, all});
  const std::uint64_t wanted = (flags & NBDKIT_FLAG_REQ_ONE) != 0 ? 1 : all;

  Extents answer = known.lookup(begin, wanted, version);
  if (answer.empty()) {
    int err = 0;
    bool asked = false;
    if (version != 0) {
      const std::uint64_t length = known.ask_length(begin, all);
      CachedExtents::Question question(known, version, begin, length);
      answer = question.lookup_or_begin(wanted);
      if (answer.empty()) {
        err = ask(next, length, begin, flags & ~NBDKIT_FLAG_REQ_ONE, answer);
        if (err == 0) question.learn(answer);
      }
      // What failed may lie outside of what the client wants.
      asked = err == 0 || (length == all && wanted == all);
    }
    if (!asked) {
      answer.clear();
      err = ask(next, all, begin, flags, answer);
    }
    if (err != 0) return err;
  }
  // Nobody has looked for what is kept behind the range; that is not given.
  mark_dirty(answer, std::move(dirty));
  return give_block_status(answer, count, offset, flags, list);
}

}  // namespace nbdrados
