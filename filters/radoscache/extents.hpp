// SPDX-License-Identifier: BSD-3-Clause
//
// Block status through CachedExtents: what nbdkit asks the filter, and what the
// filter asks the layer below.
//
// A client often asks in small steps (qemu: what it reads next, one extent).
// So the layer below is asked for more than the client wants, and the rest is
// there when the client comes for it.  Clients that ask for the same place at
// the same time wait for one question.

#ifndef NBDRADOS_RADOSCACHE_EXTENTS_HPP
#define NBDRADOS_RADOSCACHE_EXTENTS_HPP

#include <nbdkit-filter.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "cache/cached_extents.hpp"

namespace nbdrados {

/// The filter's .extents where nothing is cached: what the layer below says, in
/// whole sectors of 512 bytes (see layout/sectors.hpp), and no more than was
/// asked for.  The parameters are as nbdkit gives them.
///
/// Returns 0 or an errno; a message has been given to nbdkit then.  May throw
/// std::bad_alloc.
[[nodiscard]] int block_status(nbdkit_next* next, std::uint32_t count,
                               std::uint64_t offset, std::uint32_t flags,
                               struct nbdkit_extents* list);

/// What has been written in a range but is not below yet, in any order.
using NotBelow = std::function<std::vector<CachedExtents::Range>(
    const CachedExtents::Range&)>;

/// The same with what is remembered.  `version` is what the export may be
/// remembered under (read before the call), 0 for not now.
///
/// What `not_below` returns is given to the client as data.  It is called
/// before anything else, and whoever takes data below must end the change
/// (CachedExtents::Changing) before not_below() stops returning its range.
[[nodiscard]] int cached_block_status(
    nbdkit_next* next, std::uint32_t count, std::uint64_t offset,
    std::uint32_t flags, struct nbdkit_extents* list, CachedExtents& known,
    CachedExtents::Version version, const NotBelow& not_below = {});

}  // namespace nbdrados

#endif
