// SPDX-License-Identifier: BSD-3-Clause
//
// What has changed in an image since one of its snapshots.
//
// OLD is a snapshot, NEW a later one or the head.  Found out in two steps:
//
//   1. Which objects can have changed.  With fast-diff an object map says
//      which objects have changed since the snapshot before it.  So the maps
//      of all snapshots behind OLD up to NEW, and NEW's, tell it, if each of
//      them is valid (ceph: src/librbd/object_map/DiffRequest.cc).  What
//      snapshots' maps tell is kept.  Where there is no
//      such map, every object can have changed.
//   2. What has changed in them: OSDs keep for each clone of an object which
//      of its bytes the next version still has (ObjectStore::list_snaps).
//
// Of that, block status of NEW tells what is data; the rest reads as zeros.
// All this is only true if OLD and NEW still exist afterwards, and no snapshot
// has been taken in between, which would have reset the head's map.  So
// that is asked last, and if need be all is done again.

#ifndef NBDRADOS_IMAGE_STATUS_DIFFERENCE_HPP
#define NBDRADOS_IMAGE_STATUS_DIFFERENCE_HPP

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "image/image.hpp"
#include "rados/object_store.hpp"

namespace nbdrados {

/// How an object at one time differs from itself at an earlier time.
struct ObjectDifference {
  bool existed = false;  // at the earlier time
  bool exists = false;   // at the later time
  /// Ascending, not adjacent.  Bytes that an object has not count as zeros.
  std::vector<ObjectRange> ranges = {};
  bool operator==(const ObjectDifference&) const = default;
};

/// Between two snapshots that exist, or a snapshot and the head; `from` is
/// the earlier one.  Pure.  Never leaves out what has changed.
[[nodiscard]] ObjectDifference object_difference(const SnapSet& set,
                                                 SnapId from, SnapId to);

/// Which objects can have changed, from object maps one after the other.  Takes
/// the memory of such a map.
class ChangedObjects {
 public:
  ChangedObjects() = default;
  explicit ChangedObjects(const ObjectStates& old);
  /// The next map, of a later snapshot or the head.
  void add(const ObjectStates& next);
  [[nodiscard]] bool changed(std::uint64_t object_no) const noexcept {
    return end_of_unchanged(object_no, object_no + 1) == object_no;
  }
  /// The first object in [object_no, end) that can have changed, or `end`.
  [[nodiscard]] std::uint64_t end_of_unchanged(
      std::uint64_t object_no, std::uint64_t end) const noexcept;

 private:
  /// Nonexistent: it did not exist in OLD, exists: it did, and is unchanged;
  /// pending: it can have changed.
  ObjectStates states_;
};

/// Thread-safe.
class Difference {
 public:
  enum class Kind : std::uint8_t {
    data,       // has changed
    zero,       // has changed and reads as zeros
    unchanged,  // reads as in OLD, zeros or not
  };
  struct Extent {
    std::uint64_t offset;
    std::uint64_t length;
    Kind kind;
    bool operator==(const Extent&) const = default;
  };

  /// `image` is NEW, opened read-only, `old` the same image at OLD.  Throws
  /// Error(EINVAL) where OLD is not older than NEW.
  Difference(std::shared_ptr<Image> image, std::unique_ptr<ImageFormat> old);

  /// As Image::extents.  Throws Error, EIO also where OLD or NEW have been
  /// deleted.
  [[nodiscard]] std::vector<Extent> extents(std::uint64_t length,
                                            std::uint64_t offset, bool one);

 private:
  /// What the two are like.
  struct State {
    std::uint64_t size = 0;  // bytes
    SnapId snap = snap_head;
    SnapContext snapc = {};
    std::uint64_t overlap = 0;  // bytes
    bool fast_diff = false;
    SnapId old_snap = 0;
    std::uint64_t old_size = 0;     // bytes
    std::uint64_t old_overlap = 0;  // bytes
    bool operator==(const State&) const = default;
  };
  using Maps = std::shared_ptr<const ChangedObjects>;
  using Ranges = std::vector<std::pair<std::uint64_t, std::uint64_t>>;

  [[nodiscard]] State load();
  [[nodiscard]] Maps read_maps(const State& state);
  [[nodiscard]] std::vector<Extent> find(const State& state, const Maps& maps,
                                         std::uint64_t length,
                                         std::uint64_t offset, bool one);
  [[nodiscard]] std::uint64_t end_of_unchanged(const State& state,
                                               const Maps& maps,
                                               std::uint64_t offset,
                                               std::uint64_t end) const;
  [[nodiscard]] Ranges changed_ranges(const State& state, const Maps& maps,
                                      std::uint64_t length,
                                      std::uint64_t offset);

  const std::shared_ptr<Image> image_;
  const std::unique_ptr<ImageFormat> old_;
  /// Held while OLD's header is read, which is I/O under a lock, because a
  /// format is for one thread at a time; only block status waits for it.
  std::mutex old_mutex_;
  std::mutex maps_mutex_;
  // Guarded by maps_mutex_.
  std::vector<SnapId> snaps_;  // those whose maps are in `of_snaps_`
  Maps of_snaps_;
  std::shared_ptr<const ObjectStates> head_;  // what `with_head_` was made of
  Maps with_head_;
};

}  // namespace nbdrados

#endif
