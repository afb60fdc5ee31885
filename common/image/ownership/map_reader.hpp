// SPDX-License-Identifier: BSD-3-Clause
//
// The object map of an image or a snapshot, as it is in the pool, whoever
// changes it there.  An owner of the lock changes the map before it makes an
// object, and says in the header that the map is invalid before it goes on
// without.  So a map that is valid tells all objects of that moment.
//
// The last map is kept (see ObjectStates for its memory) and read again only
// when it may be another one.  Small questions tell that: what are the flags,
// and are these still the same versions of header and map?  If they are,
// nothing has changed until the earlier answer, and at that moment the map was
// valid and is the one that is kept.
//
// A version alone proves no content: copying an object over another one
// (`rados cp`, or a backup that is restored) gives it the version of its
// source, which may be one that it had before (CEPH_OSD_OP_COPY_FROM; ceph:
// src/osd/PrimaryLogPG.cc, finish_copyfrom).  So the flags are read anew each
// time, and of the map the checksums at its end, which are a thousandth of it.

#ifndef NBDRADOS_IMAGE_OWNERSHIP_MAP_READER_HPP
#define NBDRADOS_IMAGE_OWNERSHIP_MAP_READER_HPP

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "rados/object_store.hpp"
#include "rbd/object_map.hpp"

namespace nbdrados {

/// Thread-safe.  Its mutex is held for moments only.
class MapReader {
 public:
  /// Of `snap`.  `limit` bounds each operation.
  MapReader(ObjectStore& store, std::string header_oid, std::string map_oid,
            SnapId snap, std::chrono::milliseconds limit);

  /// The map as it is at some moment of the call, for each object (see
  /// map_loader.hpp); null: there is none, or it cannot be believed.  Throws
  /// Error.
  [[nodiscard]] std::shared_ptr<const ObjectStates> read();
  /// Gives back the memory of the last map: its users have a better one now.
  void forget();

 private:
  struct Kept {
    std::shared_ptr<const ObjectStates> states = {};
    std::uint64_t header = 0;     // its version
    std::uint64_t map = 0;        // its version
    std::string footer = {};      // its checksums
    std::uint64_t footer_at = 0;  // bytes
  };

  [[nodiscard]] std::unique_ptr<Pending> ask_flags(std::string* output);
  [[nodiscard]] bool is_valid(Pending& asked, const std::string& output);
  [[nodiscard]] bool valid();
  [[nodiscard]] bool unchanged(const Kept& last);
  /// And how long the map is, in bytes.  False: there is no map.
  [[nodiscard]] bool ask_versions(Kept& now, std::uint64_t& size);
  void check_header(Pending& asked);
  [[nodiscard]] bool exists(Pending& asked);

  ObjectStore& store_;
  const std::string header_oid_;
  const std::string map_oid_;
  const std::string snap_;  // encoded
  const std::chrono::milliseconds limit_;
  std::mutex mutex_;
  Kept kept_;  // guarded by mutex_
};

}  // namespace nbdrados

#endif
