// SPDX-License-Identifier: BSD-3-Clause
//
// What differs between the formats: how the metadata is read and kept.  Chosen
// once, when an image is opened; common/formats has the implementations.

#ifndef NBDRADOS_IMAGE_IMAGE_FORMAT_HPP
#define NBDRADOS_IMAGE_IMAGE_FORMAT_HPP

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "coherence/boot_clock.hpp"
#include "image/state/view.hpp"

namespace nbdrados {

class ExclusiveLock;

/// The metadata of one format.  Called by one thread at a time, except for
/// the members that say otherwise.
class ImageFormat {
 public:
  virtual ~ImageFormat() = default;

  [[nodiscard]] virtual const ImageTraits& traits() const = 0;

  /// Reads the metadata again.  Throws Error: ENOENT where the image or
  /// snapshot is gone, EIO where the header makes no sense.
  [[nodiscard]] virtual View load() = 0;

  /// Until when a lock that this format holds keeps others from removing the
  /// image; none: there is no such lock, and the header is watched.  Not to be
  /// called beside keep_alive.
  [[nodiscard]] virtual std::optional<BootClock::time_point> locked_until()
      const {
    return std::nullopt;
  }

  /// Renews what expires, such as a lock, and returns after what time to
  /// call it again; none: never.  Throws Error(ESHUTDOWN) when it is lost.
  [[nodiscard]] virtual std::optional<std::chrono::milliseconds>
  keep_alive() {
    return std::nullopt;
  }

  /// The format of a parent that a View names, for reading.  Throws Error;
  /// ENOENT becomes EIO, because it is not this image that is missing.
  [[nodiscard]] virtual std::unique_ptr<ImageFormat> open_parent(
      const ParentSpec& spec);

  /// The exclusive lock; null where the format knows none.  Only the
  /// maintenance of the image uses it.
  [[nodiscard]] virtual ExclusiveLock* lock() noexcept { return nullptr; }
  /// Opens the object map of the head; the lock is held.  Throws Error:
  /// EINVAL or EIO where it cannot be believed.
  [[nodiscard]] virtual std::shared_ptr<ObjectMap> open_map(
      std::uint64_t objects);
  /// The object map of what is read, as it is in the pool; null where there
  /// is no map or it cannot be believed.  For each object it is right for some
  /// moment during the call, whoever holds the lock (see map_reader.hpp).
  /// Thread-safe.
  /// Throws Error.
  [[nodiscard]] virtual std::shared_ptr<const ObjectStates> read_map();
  /// The object map of a snapshot, or of the head, if it can be believed
  /// about what has changed since the snapshot before; else null.
  /// Thread-safe.  Throws Error.
  [[nodiscard]] virtual std::shared_ptr<const ObjectStates> read_fast_diff(
      SnapId snap);
  /// Marks the object map of the head, or of a snapshot, as not to be
  /// believed; the lock is held.  Thread-safe.  Throws Error.
  virtual void invalidate_map(SnapId snap);
  /// Starts to set an object's state in the map of a snapshot, if it is
  /// `current` there.  The result is -ENOENT where there is no such map,
  /// -ERANGE where the snapshot is smaller.  `request` must stay valid until
  /// completion.  Thread-safe.
  [[nodiscard]] virtual std::unique_ptr<Pending> update_snapshot_map(
      SnapId snap, std::uint64_t object_no, ObjectState state,
      ObjectState current, std::string* request);

  /// Where the header is, and where the data is.
  [[nodiscard]] virtual ObjectStore& header_store() = 0;
  [[nodiscard]] virtual ObjectStore& data_store() = 0;
};

}  // namespace nbdrados

#endif
