// SPDX-License-Identifier: BSD-3-Clause
//
// The steps that make and remove a snapshot of format 2, in the order of librbd
// (ceph: src/librbd/operation/SnapshotCreateRequest.cc,
// SnapshotRemoveRequest.cc, src/librbd/object_map/SnapshotCreateRequest.cc,
// SnapshotRemoveRequest.cc).  Here FAST means: only with fast-diff.
//
// What is visible when making one ends after a step:
//
//  1. The data pool has given out an id.  Nobody has it: nothing.
//  2. The header has the snapshot.  It can be read, cloned and removed.  It has
//     no object map: who wants one flags it as invalid, and looks at the
//     objects.  The head's map says of objects that have not changed since that
//     they may have.
//  3. It has its object map.  The head's map is still as in 2.
//  4. FAST: the head's map says which objects are as in the snapshot.
//  5. All clients know of it, and write in such a way that it stays as it is.
//     Until then what they write may be in it.
//
// What is visible when removing one ends after a step:
//
//  1. It is in the trash.  `rbd snap ls --all` shows it, nobody opens it by its
//     name or makes a clone of it, clones of it go on.  From here on
//     `rbd snap rm --snap-id` removes it, and if it has clones that is all.
//  2. FAST: the map of what comes next, a snapshot or the head, says of an
//     object that it may have changed where it has changed since the snapshot
//     before.  This must come before the snapshot goes, or the next `rbd diff`
//     leaves something out.
//  3. Its object map is gone.
//  4. The data pool has its id back, and begins to remove what only it needed:
//     it reads as anything now.
//  5. The header has it no more.  (Not before 4: nobody would know the id, and
//     that space would never be free again.)
//  6. All clients know.
//
// A step of making that fails undoes what there is from 2 on, by removing.

#ifndef NBDRADOS_SNAPSHOTS_FORMAT2_CHANGES_HPP
#define NBDRADOS_SNAPSHOTS_FORMAT2_CHANGES_HPP

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "formats/formats.hpp"
#include "image/image_format.hpp"
#include "rbd/format2.hpp"

namespace nbdrados {

/// For whoever holds the image's exclusive lock, if it has that feature.
/// (Removing needs it only with fast-diff.)  One thread at a time.  All members
/// block and throw Error.
class Format2Changes {
 public:
  using Log = std::function<void(const std::string& line)>;

  /// `format` is the head's; what is given must outlive this.
  Format2Changes(const Pool& pool, ImageFormat& format, std::string id,
                 const Log& log);

  /// As Snapshots::create and remove.
  [[nodiscard]] SnapId create(const std::string& name);
  void remove(SnapId snap);

 private:
  class HeadMap;

  void tell_of_new();
  void tell_of_removed() noexcept;

  void check_lock(const View& now, bool needed) const;
  [[nodiscard]] int change_header(std::string_view method,
                                  const std::string& input);
  [[nodiscard]] std::optional<Format2Snapshot> find(SnapId snap) const;
  [[nodiscard]] SnapId add_to_header(const std::string& name);
  void copy_map(SnapId snap);
  void mark_clean();
  [[noreturn]] void undo(SnapId snap, const Error& why);

  void check_parent(SnapId snap) const;
  [[nodiscard]] bool move_to_trash(SnapId snap);
  void merge_map(const View& now, SnapId snap, const HeadMap& head);
  [[nodiscard]] bool merged(SnapId snap, SnapId next, const std::string& map);
  void remove_steps(SnapId snap, bool trash);

  const Pool& pool_;
  ImageFormat& format_;
  const std::string id_;
  const std::string header_oid_;
  const Log& log_;
};

}  // namespace nbdrados

#endif
