// SPDX-License-Identifier: BSD-3-Clause
//
// An open image: what every format has in common, which is nearly all.
//
// A request is cut by the layout; all its objects are in flight at once; it
// ends when all of them have ended, with the first error (in the order of
// the objects) if there was one.  What differs between the formats is how
// their metadata is read and kept: that is behind ImageFormat, chosen once,
// at open.
//
// What a request needs to know of the metadata is in an immutable View.  A
// change of the header (a new snapshot, another size) replaces the View:
//
//     somebody            OSD              maintenance thread     requests
//     change header  -->
//     notify         -->  notify --------> hold new writes
//                                          load the header
//                                          publish the new View   go on with
//                                          wait for old requests  the new View
//                         ack <----------- notify_ack
//     notify returns <--
//
// so when the notifier's notify returns, no write under the old snapshot
// context is in flight or will be (ceph: src/librbd/ImageWatcher.cc, the
// HEADER_UPDATE notification).  Writes are held at once, because a notifier
// that gets no answer in time goes on without.  While the watch is broken,
// notifications can be missed, so writes wait until it is made again and the
// header re-read.
//
// An image with the feature exclusive-lock is written to only while its lock
// is held.  The View says so too: where a lock is needed and not held, writes
// wait for the maintenance thread to get it; before it is handed over, a View
// without it is published and requests under the old one are waited for.
//
// What a clone lacks is its parent's, an Image of its own below this one (see
// View::parent).
//
// The rooms.  image.hpp makes all of them; an arrow is "knows":
//
//     io/ reader, writer -----> ownership/ the thread, the lock, the watch
//       |                         |
//       v                         v
//     status/ block status ---> core.hpp: image_state (what is so, and the
//                               View), metadata (reads it), the format, what is
//                               known of objects, the object map

#ifndef NBDRADOS_IMAGE_IMAGE_HPP
#define NBDRADOS_IMAGE_IMAGE_HPP

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "coherence/coherence.hpp"
#include "image/core.hpp"
#include "image/image_format.hpp"
#include "image/io/reader.hpp"
#include "image/io/writer.hpp"
#include "image/options.hpp"
#include "image/ownership/maintenance.hpp"
#include "image/state/view.hpp"
#include "image/status/block_status.hpp"
#include "image/status/map_learner.hpp"

namespace nbdrados {

/// An open image.  Every member may be called by any thread at any time,
/// except the destructor, which must come last.  All I/O throws Error:
/// EINVAL beyond the end, EROFS for a write to what is read-only, ESHUTDOWN
/// when this client has been blocklisted or its lock lost, ENOSPC when the
/// cluster or pool is full, else what RADOS said.
class Image final : public Backing {
 public:
  Image(std::unique_ptr<ImageFormat> format, ImageOptions options);
  ~Image() override { core_.state.end_promise(); }
  Image(const Image&) = delete;
  Image& operator=(const Image&) = delete;

  [[nodiscard]] const ImageTraits& traits() const noexcept {
    return core_.traits;
  }
  /// Not where the image itself cannot be written to, whatever was asked.
  [[nodiscard]] bool writable() const noexcept {
    return core_.state.writable();
  }
  /// Bytes.
  [[nodiscard]] std::uint64_t size() { return core_.state.read()->size; }
  /// Format, size, striping and features in one line.
  [[nodiscard]] std::string description();
  [[nodiscard]] std::uint64_t discard_granularity() const noexcept {
    return discard_granularity_;
  }

  /// Whether caches above may keep what they have read: while the exclusive
  /// lock is held, and always of a snapshot.
  [[nodiscard]] std::shared_ptr<const Promise> promise() const noexcept {
    return core_.state.promise();
  }

  /// Reads the metadata again, as for a new client.  Throws Error, also
  /// where the image has been lost for good.
  void refresh() { core_.metadata.load(); }

  /// Whether the image can never be used again, because its lock or its
  /// header is lost; it must be opened anew.
  [[nodiscard]] bool lost() { return core_.state.lost().has_value(); }

  /// Missing objects and what is beyond an object's end are zeros; every
  /// other error is an error.
  void read(char* buffer, std::uint64_t length, std::uint64_t offset) {
    reader_.read(buffer, length, offset);
  }
  /// On return the data is on every replica.
  void write(const char* buffer, std::uint64_t length, std::uint64_t offset) {
    writer_.write(buffer, length, offset);
  }

  /// All writes that have returned are durable already.  On return the object
  /// map says no more of what exists than is true, except for what is being
  /// written, and if it can be updated now.  Throws Error where the image is
  /// lost.
  void flush() { writer_.flush(); }

  using Zero = ZeroMode;
  /// On return the range reads as zeros, on every replica.
  void zero(std::uint64_t length, std::uint64_t offset, Zero how) {
    writer_.zero(length, offset, how);
  }

  /// Where the first `used` bytes of a data object, which may be a parent's,
  /// are at the moment: what the caller may read.  EINVAL: the image ends
  /// before.  For copy_object of another image.  `is_known`: a read or the
  /// block status has found something there, so it is not asked for again where
  /// there is no parent.
  [[nodiscard]] ObjectPlace find_object(std::uint64_t object_no,
                                        std::uint64_t used,
                                        bool is_known = false) {
    return reader_.find_object(object_no, used, is_known);
  }
  /// Makes an object a copy of `from`, which is in the same cluster, without
  /// the data coming here: on return, on every replica.  `used` bytes count,
  /// and are all that the image has there (else EOPNOTSUPP, and for the object
  /// that is more than data, and a place of the same name).  ENOENT: `from` is gone, and nothing has changed.
  /// The holes of `from` take space afterwards.
  void copy_object(std::uint64_t object_no, std::uint64_t used,
                   const ObjectPlace& from) {
    writer_.copy_object(object_no, used, from);
  }

  /// As zero(free), for the part of the range that is left when it is
  /// rounded inwards to discard_granularity(); the rest is untouched.  The
  /// image's end counts as a multiple.
  void trim(std::uint64_t length, std::uint64_t offset);

  /// What is data and what is a hole, ascending and adjacent, neighbours of
  /// different kinds, the first from `offset`.  At least one extent, and the
  /// whole range unless `one` is set (then at least the first extent) or
  /// time runs out: a call works about extents_time, and the rest is for the
  /// next call.  A hole at the end may go on behind the range, as far as that
  /// is known.  Never calls data a hole.  Begins and ends are multiples of 512,
  /// but for those of the range and of the image (see sectors.hpp).
  [[nodiscard]] std::vector<Extent> extents(std::uint64_t length,
                                            std::uint64_t offset, bool one) {
    return status_.extents(length, offset, one);
  }
  static constexpr auto extents_time = BlockStatus::time_limit;

  // As somebody's parent.
  [[nodiscard]] bool read_backing(char* buffer, std::uint64_t length,
                                  std::uint64_t offset) override {
    return reader_.read_backing(buffer, length, offset);
  }
  [[nodiscard]] bool find_backing_data(std::uint64_t length,
                                       std::uint64_t offset,
                                       std::vector<Fragment>& data) override {
    return status_.find_backing_data(length, offset, data);
  }
  [[nodiscard]] std::uint64_t least_object_size() override {
    return status_.least_object_size();
  }

  [[nodiscard]] bool find_backing_object(const Layout& layout,
                                         std::uint64_t object_no,
                                         std::uint64_t used,
                                         ObjectPlace& place) override {
    return reader_.find_backing_object(layout, object_no, used, place);
  }
  /// Also of what extents() has said: false where an object had to be taken for
  /// data as a whole, as in erasure-coded pools.
  [[nodiscard]] bool knows_holes() override { return status_.knows_holes(); }

  /// What the rooms share, for one that is built on top (Difference).
  [[nodiscard]] ImageCore& core() noexcept { return core_; }

 private:
  ImageCore core_;
  const std::uint64_t discard_granularity_;
  MapLearner learner_;
  Reader reader_;
  BlockStatus status_;
  /// Gives the lock back when it goes, after the members below.  Null: this is
  /// a parent.
  std::unique_ptr<Maintenance> maintenance_;
  Writer writer_;
};

}  // namespace nbdrados

#endif
