// SPDX-License-Identifier: BSD-3-Clause
//
// How a request is cut, so that its memory and what it has in flight are
// bounded.

#ifndef NBDRADOS_IMAGE_CHUNKS_HPP
#define NBDRADOS_IMAGE_CHUNKS_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "layout/layout.hpp"
#include "rados/object_store.hpp"

namespace nbdrados {

/// A request is worked on so many objects at a time.
inline constexpr std::uint64_t chunk_objects = 1024;

/// Of those at most so many are in flight: the other images of the server must
/// not wait for long, and more make it no faster.  An OSD takes in only 256
/// requests of clients at a time (osd_client_message_cap).  If all of these
/// wait for objects to be copied into a cache pool
/// (ceph: src/osd/PrimaryLogPG.cc, promote_object), and the OSD that has them
/// is the same, no request ever ends.
inline constexpr std::size_t objects_in_flight = 128;

/// Starts operations, in order, and ends each, in order: start(i) for i in
/// [0, count) returns a Pending, or null where there is nothing to wait for,
/// and done(i, result) gets its result, or 0.  At most objects_in_flight at a
/// time.
template <class Start, class Done>
void for_objects(std::size_t count, Start&& start, Done&& done) {
  if (count == 1) {  // the common case needs no memory
    const std::unique_ptr<Pending> p = start(0);
    done(0, p ? p->wait() : 0);
    return;
  }
  std::vector<std::unique_ptr<Pending>> pending(
      std::min(count, objects_in_flight));
  std::size_t ended = 0;
  const auto end_some = [&](std::size_t n) {
    // The last one first: the others have ended then, or nearly, and this
    // thread does not wake up for each.
    if (const auto& last = pending[(ended + n - 1) % pending.size()])
      (void)last->wait();
    for (const std::size_t end = ended + n; ended < end; ++ended) {
      const auto p = std::move(pending[ended % pending.size()]);
      done(ended, p ? p->wait() : 0);
    }
  };
  for (std::size_t i = 0; i < count; ++i) {
    if (i - ended == pending.size()) end_some((pending.size() + 1) / 2);
    pending[i % pending.size()] = start(i);
  }
  if (ended < count) end_some(count - ended);
}

/// Consecutive bytes of the image that are in one object.
inline std::uint64_t unit_size(const Layout& layout) {
  return layout.stripe_count() == 1 ? layout.object_size()
                                    : layout.stripe_unit();
}

/// A request is worked on in chunks of at most so many units, which bounds
/// its memory.  Units of a few bytes must be many, or a chunk would be
/// nothing.
inline std::uint64_t chunk_units(const Layout& layout) {
  if (layout.stripe_count() > chunk_objects) return chunk_objects;
  return std::clamp<std::uint64_t>((4 << 20) / unit_size(layout),
                                   chunk_objects, 64 * chunk_objects);
}

/// Where the chunk ends that begins at `offset`, but at most `end`: so many
/// units on, at a multiple.  Whole object sets where one is small enough, so
/// that no object is cut between two chunks.
[[nodiscard]] inline std::uint64_t chunk_end(const Layout& layout,
                                             std::uint64_t offset,
                                             std::uint64_t end,
                                             std::uint64_t units) noexcept {
  constexpr std::uint64_t most = std::uint64_t{1} << 62;
  const std::uint64_t unit = unit_size(layout);
  const std::uint64_t limit = units > most / unit ? most : units * unit;
  const std::uint64_t set = layout.object_set_size();
  const std::uint64_t step = set <= limit ? limit / set * set : limit;
  return std::min(end, (offset / step + 1) * step);
}
[[nodiscard]] inline std::uint64_t chunk_end(const Layout& layout,
                                             std::uint64_t offset,
                                             std::uint64_t end) noexcept {
  return chunk_end(layout, offset, end, chunk_units(layout));
}

/// Where the bytes of some objects' extents are in a request's buffer, one
/// extent's after the other's.  Piece: MutablePiece or ConstPiece.
template <class Piece>
class ExtentPieces {
 public:
  /// The first byte of `buffer` is the one at `offset` in the image.
  ExtentPieces(const std::vector<ObjectExtent>& extents,
               decltype(Piece::data) buffer, std::uint64_t offset) {
    std::size_t parts = 0;
    for (const ObjectExtent& e : extents) parts += e.parts.size();
    pieces_.reserve(parts);
    first_.reserve(extents.size() + 1);
    for (const ObjectExtent& e : extents) {
      first_.push_back(pieces_.size());
      for (const Fragment& f : e.parts)
        pieces_.push_back({buffer + (f.image_offset - offset), f.length});
    }
    first_.push_back(parts);
  }
  /// Those of the i-th extent; valid as long as this.
  [[nodiscard]] std::span<const Piece> of(std::size_t i) const {
    return std::span(pieces_).subspan(first_[i], first_[i + 1] - first_[i]);
  }

 private:
  std::vector<Piece> pieces_;
  std::vector<std::size_t> first_;  // of each extent, and the end
};

}  // namespace nbdrados

#endif
