// SPDX-License-Identifier: BSD-3-Clause

#include "formats/format2_snapshots.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <memory>
#include <utility>

#include "rados/error.hpp"

namespace nbdrados {

namespace {

/// Snapshots in one operation, while which an OSD does nothing else for the
/// header.
constexpr std::size_t part_size = 128;
static_assert(part_size <= ObjectStore::max_calls);

}  // namespace

void add_snapshots(Batch& batch, ObjectStore& store,
                   const std::string& header_oid, std::span<const SnapId> ids,
                   HeaderSnapshots& into) {
  for (; !ids.empty(); ids = ids.subspan(std::min(part_size, ids.size()))) {
    const auto part = ids.first(std::min(part_size, ids.size()));
    std::vector<MethodCall> calls;
    for (const SnapId id : part)
      calls.push_back({rbd_class, "snapshot_get", encode_snap_id(id)});
    const auto outputs = std::make_shared<std::vector<std::string>>();
    batch.add(
        [&store, header_oid, calls = std::move(calls), outputs] {
          return store.exec_each(header_oid, calls, outputs.get());
        },
        [&batch, &store, header_oid, &into, outputs,
         asked = std::vector(part.begin(), part.end())](int r) {
          if (r == -ENOENT) {
            // One has been removed since its id was read: the others one by
            // one.
            if (asked.size() > 1)
              for (const SnapId& id : asked)
                add_snapshots(batch, store, header_oid, {&id, 1}, into);
            return;
          }
          try {
            check(r, "snapshot_get");
            for (const std::string& output : *outputs)
              into.snapshots.push_back(decode_snapshot_get(output));
          } catch (const Error& e) {
            into.error = e.code();
          }
        });
  }
}

std::vector<Format2Snapshot> read_snapshots(const Pool& pool,
                                            const std::string& header_oid,
                                            const SnapContext& snapc) {
  Batch batch({.deadline = std::chrono::steady_clock::now() + pool.timeout(),
               .patience = pool.timeout(),
               .in_flight = 4});
  HeaderSnapshots found;
  add_snapshots(batch, *pool.store, header_oid, snapc.snaps, found);
  batch.run();
  if (found.error != 0)
    fail(found.error,
         "cannot read header object " + header_oid + " (snapshot_get)");
  std::sort(found.snapshots.begin(), found.snapshots.end(),
            [](const auto& a, const auto& b) { return a.id > b.id; });
  return std::move(found.snapshots);
}

}  // namespace nbdrados
