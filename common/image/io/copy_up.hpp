// SPDX-License-Identifier: BSD-3-Clause
//
// Copy-up: what a change of an object needs that the image does not have and
// its parent backs (librbd: src/librbd/io/CopyupRequest.cc).  Its data is the
// parent's, as far as the overlap goes:
//   1. the maps of the snapshots say "pending" (only where the image has
//      snapshots, and the parent has data here).  The object is not there
//      yet, and is still read from the parent.  Snapshots' maps can be valid
//      where the head's is not, so this does not depend on it.
//   2. the map of the head says "pending".  The same holds.
//   3. the parent's data is in the object, written under an empty snapshot
//      context, so that it is what all snapshots see.  Nothing reads
//      otherwise than before.  (The method `copyup` does nothing where the
//      object exists already, so two writers cannot harm each other.)
//   4. the change itself, under the image's snapshot context; and the maps of
//      the snapshots say "exists", or "clean".
//   5. the map of the head says "exists".
// Without snapshots 3 and 4 are one operation.  "Exists" comes last, and not
// first as with librbd, because librbd's flatten goes by it: what it calls
// existing is not copied from the parent, which is gone afterwards.  (A
// rollback makes a snapshot's map the head's.)
// So when this process dies after 1 or 2, the maps say "pending" of an object
// that is not there, and it is read from the parent; after 3, the same of one
// that is there with the parent's data; after 4, of one that is changed.

#ifndef NBDRADOS_IMAGE_IO_COPY_UP_HPP
#define NBDRADOS_IMAGE_IO_COPY_UP_HPP

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "image/core.hpp"
#include "image/io/object_change.hpp"
#include "image/io/reader.hpp"
#include "rados/object_store.hpp"

namespace nbdrados {

/// Thread-safe.  One thread at a time copies an object up; others wait for it,
/// and try anew if it failed.
class CopyUp {
 public:
  /// What is given must outlive this.
  CopyUp(ImageCore& core, Reader& reader) : core_(core), reader_(reader) {}

  /// Makes the change's i-th object, which was found missing, and changes it.
  /// Returns the result of that: a negative errno, or not.  Throws Error where
  /// the parent cannot be read, and MapFailure.
  [[nodiscard]] int run(const View& view, ObjectChange& change, std::size_t i);

 private:
  class Turn;
  /// Of the object map of a snapshot.
  struct SnapshotUpdate {
    SnapId snap;
    std::string request;  // what `pending` needs
    std::unique_ptr<Pending> pending;
  };

  [[nodiscard]] std::string parent_data(const View& view,
                                        std::uint64_t object_no);
  [[nodiscard]] std::vector<SnapshotUpdate> update_snapshots(
      const View& view, std::uint64_t object_no, bool made);
  void finish(std::vector<SnapshotUpdate>& updates);
  [[nodiscard]] int copy(const View& view, ObjectChange& change, std::size_t i);
  [[nodiscard]] static int made(const View& view, std::uint64_t object_no,
                                int r);
  template <class Add>
  [[nodiscard]] int write_copy(std::uint64_t object_no, const std::string& data,
                               const SnapContext& snapc, Add&& add);

  ImageCore& core_;
  Reader& reader_;
  /// OSDs know the method sparse_copyup, as far as is known.
  std::atomic<bool> sparse_copyup_{true};

  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<std::uint64_t> under_way_;  // guarded by mutex_: objects
};

}  // namespace nbdrados

#endif
