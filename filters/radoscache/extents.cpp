// SPDX-License-Identifier: BSD-3-Clause

#include "extents.hpp"

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>

namespace nbdrados {

namespace {

using Extent = CachedExtents::Extent;

struct Free {
  void operator()(struct nbdkit_extents* list) const noexcept {
    nbdkit_extents_free(list);
  }
};

/// Asks below.  Returns 0 or an errno.
int ask(nbdkit_next* next, std::uint64_t count, std::uint64_t offset,
        std::uint32_t flags, std::vector<Extent>& answer) {
  // To the end of the disk: some plugins tell more than they were asked for.
  const std::int64_t size = next->get_size(next);
  if (size == -1) return EIO;
  errno = 0;
  const std::unique_ptr<struct nbdkit_extents, Free> list(
      nbdkit_extents_new(offset, static_cast<std::uint64_t>(size)));
  if (!list) return errno != 0 ? errno : EIO;
  int err = 0;
  if (next->extents(next, static_cast<std::uint32_t>(count), offset, flags,
                    list.get(), &err) == -1)
    return err != 0 ? err : EIO;
  const std::size_t n = nbdkit_extents_count(list.get());
  answer.reserve(n);
  for (std::size_t i = 0; i < n; i++) {
    const struct nbdkit_extent e = nbdkit_get_extent(list.get(), i);
    answer.push_back({e.offset, e.length, e.type});
  }
  // nbdkit would abort.
  if (answer.empty()) {
    nbdkit_error("radoscache: extents: the layer below gave none");
    return EIO;
  }
  return 0;
}

/// Gives the client what it asked for, and no more.  Nobody has looked for what
/// is not below yet behind that.  And nbdkit 1.32.5 aborts on an extent of more
/// than 4 GiB that ends within or with a request of nearly 4 GiB
/// (server/protocol.c, extents_to_block_descriptors).
int give(const std::vector<Extent>& answer, std::uint32_t count,
         std::uint64_t offset, struct nbdkit_extents* list) {
  for (const Extent& e : answer) {
    const std::uint64_t before = e.offset - offset;
    if (before >= count) break;
    errno = 0;
    if (nbdkit_add_extent(list, e.offset, std::min(e.length, count - before),
                          e.type) == -1)
      return errno != 0 ? errno : EIO;
  }
  return 0;
}

}  // namespace

int cached_block_status(nbdkit_next* next, std::uint32_t count,
                        std::uint64_t offset, std::uint32_t flags,
                        struct nbdkit_extents* list, CachedExtents& known,
                        CachedExtents::Version version,
                        const NotBelow& not_below) {
  std::vector<CachedExtents::Range> dirty;
  if (not_below) dirty = not_below({offset, count});
  const std::uint64_t wanted =
      (flags & NBDKIT_FLAG_REQ_ONE) != 0 ? 1 : count;

  std::vector<Extent> answer = known.lookup(offset, wanted, version);
  if (answer.empty()) {
    int err = 0;
    bool asked = false;
    if (version != 0) {
      const std::uint64_t length = known.ask_length(offset, count);
      CachedExtents::Question question(known, version, offset, length);
      answer = question.lookup_or_begin(wanted);
      if (answer.empty()) {
        err = ask(next, length, offset, flags & ~NBDKIT_FLAG_REQ_ONE, answer);
        if (err == 0) question.learn(answer);
      }
      // What failed may lie outside of what the client wants.
      asked = err == 0 || (length == count && wanted == count);
    }
    if (!asked) {
      answer.clear();
      err = ask(next, count, offset, flags, answer);
    }
    if (err != 0) return err;
  }
  mark_data(answer, std::move(dirty));
  return give(answer, count, offset, list);
}

}  // namespace nbdrados
