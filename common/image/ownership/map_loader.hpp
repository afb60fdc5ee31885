// SPDX-License-Identifier: BSD-3-Clause
//
// Reads an object map from the object that holds it, which for the largest
// images has 64 MB, with little more memory than what it says takes.
//
// That is: not all at once.  A map that somebody changes meanwhile may not be
// what it was at one moment; but what it says of each object, it said at some
// moment of the call.  A part that is changed between the read of its data and
// of their checksums is read again.

#ifndef NBDRADOS_IMAGE_OWNERSHIP_MAP_LOADER_HPP
#define NBDRADOS_IMAGE_OWNERSHIP_MAP_LOADER_HPP

#include <chrono>
#include <cstdint>
#include <string>

#include "rados/object_store.hpp"
#include "rbd/object_map.hpp"

namespace nbdrados {

struct LoadedMap {
  ObjectStates states;
  std::uint64_t footer_at = 0;  // bytes
  /// What follows the data, or nothing where the map has no checksums.
  std::string footer = {};
};

/// So much of a map is read at a time, in bytes, and for some moments takes
/// memory: a multiple of a block's.
inline constexpr std::uint64_t map_piece = 512 << 10;

/// `limit` bounds the call; `size` is what the object has at most, in
/// bytes, if that is known.  Throws Error: ENOENT where there is no object or
/// it is empty, EINVAL where it is damaged.
[[nodiscard]] LoadedMap load_object_map(ObjectStore& store,
                                        const std::string& oid,
                                        std::chrono::milliseconds limit,
                                        std::uint64_t size = map_piece);

}  // namespace nbdrados

#endif
