// SPDX-License-Identifier: BSD-3-Clause
//
// The snapshots of an image of format 2, as its header knows them.

#ifndef NBDRADOS_FORMATS_FORMAT2_SNAPSHOTS_HPP
#define NBDRADOS_FORMATS_FORMAT2_SNAPSHOTS_HPP

#include <span>
#include <string>
#include <vector>

#include "formats/formats.hpp"
#include "rados/batch.hpp"
#include "rados/object_store.hpp"
#include "rbd/format2.hpp"

namespace nbdrados {

/// What the header says of its snapshots.
struct HeaderSnapshots {
  std::vector<Format2Snapshot> snapshots = {};  // in no useful order
  int error = 0;  // positive errno of the last error; then some are missing
};

/// Adds operations to the batch that ask for the snapshots with these ids,
/// many in one operation.  Those that have been removed are left out.  The
/// store and `into` must stay valid until the batch has run.
void add_snapshots(Batch& batch, ObjectStore& store,
                   const std::string& header_oid, std::span<const SnapId> ids,
                   HeaderSnapshots& into);

/// All snapshots of an image, newest first, whoever's they are.  Throws Error.
[[nodiscard]] std::vector<Format2Snapshot> read_snapshots(
    const Pool& pool, const std::string& header_oid, const SnapContext& snapc);

}  // namespace nbdrados

#endif
