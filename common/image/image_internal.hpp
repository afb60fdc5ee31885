// SPDX-License-Identifier: BSD-3-Clause
//
// What the source files of Image share, and nobody else needs.

#ifndef NBDRADOS_IMAGE_IMAGE_INTERNAL_HPP
#define NBDRADOS_IMAGE_IMAGE_INTERNAL_HPP

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "layout/layout.hpp"
#include "rados/error.hpp"

namespace nbdrados {

/// A request is worked on so many objects at a time, which is also librados'
/// own bound on the operations in flight of a client
/// (objecter_inflight_ops).
inline constexpr std::uint64_t chunk_objects = 1024;

/// Of those that a request changes, at most so many are in flight: the other
/// images of the server must not wait for long.  More make it no faster.
inline constexpr std::size_t changes_in_flight = 256;

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

/// Whether an error of loading the metadata means that the image cannot be
/// used, and not only that it could not be asked.
inline bool is_verdict(int code) {
  switch (code) {
    case ENOENT:
    case ENXIO:
    case EIO:
    case EPERM:
    case EACCES:
    case ENOTSUP:
    case ESHUTDOWN:
      return true;
    default:
      return false;
  }
}

/// Whether such a verdict on the image itself stays true: neither an image,
/// nor a pool that has been deleted comes back under its number; and who was
/// shut out must not go on.
inline bool is_final(int code) {
  return code == ENOENT || code == ENXIO || code == ESHUTDOWN;
}

/// What requests fail with after such a verdict.
inline int failure_for(int code) { return code == ESHUTDOWN ? ESHUTDOWN : EIO; }

/// Runs `body`, which asks the parent of the image `name`; its errors name the
/// image that somebody uses, too.
template <class Body>
auto of_parent(const std::string& name, Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (const Error& e) {
    throw Error(e.code(), name + ": its parent: " + e.what());
  }
}

/// The parts of the image that some objects' extents are, joined where they
/// touch, as offset and length; ascending.
[[nodiscard]] std::vector<std::pair<std::uint64_t, std::uint64_t>>
image_ranges(std::span<const ObjectExtent* const> extents);

}  // namespace nbdrados

#endif
