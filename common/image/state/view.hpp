// SPDX-License-Identifier: BSD-3-Clause
//
// What requests know of an image: what never changes (ImageTraits), and what
// can (View).

#ifndef NBDRADOS_IMAGE_STATE_VIEW_HPP
#define NBDRADOS_IMAGE_STATE_VIEW_HPP

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "image/ownership/object_map.hpp"
#include "layout/layout.hpp"
#include "rados/object_store.hpp"

namespace nbdrados {

/// What does not change while an image is open.
struct ImageTraits {
  std::string name;    // for messages: pool/[namespace/]image[@snap]
  std::string format;  // "RBD format 1", ...
  Layout layout;
  /// Data object n is called PREFIX.N with N in `name_digits` hex digits.
  std::string object_prefix;
  unsigned name_digits = 16;
  /// Object 0 carries the metadata and must never be removed.
  bool keep_first_object = false;
  /// Tell the OSD the object size with each write, as librbd does.
  bool alloc_hints = true;
  /// Watched for changes; empty: there is nothing to watch.
  std::string header_oid;
  /// A few words for the export description, such as the features.
  std::string details;
  /// For messages: where the data objects are.
  std::string data_pool = "its pool";

  [[nodiscard]] std::string object_name(std::uint64_t object_no) const;
  /// Throws Error(code): "NAME: DOING object OBJECT".  `code` is positive.
  [[noreturn]] void object_error(int code, const char* doing,
                                 std::uint64_t object_no) const;
};

/// The snapshot that a clone was made of.
struct ParentSpec {
  std::int64_t pool = -1;
  std::string name_space;
  std::string image_id;
  SnapId snap = 0;
  bool operator==(const ParentSpec&) const = default;
};

/// A parent and the generations between it and the image that is served.
struct Lineage {
  ParentSpec spec;
  unsigned depth = 1;  // 1: that image's own parent
  std::shared_ptr<const Lineage> child = {};
};

class Backing;

/// Where the content of an object of an image is, which may be one of its
/// parents'.
struct ObjectPlace {
  enum class Kind : std::uint8_t {
    nowhere,  // it is zeros
    object,   // it is all of `oid`; what that has behind it does not count
    parts,    // of more than one object, or `oid` is more than data
  };
  Kind kind = Kind::nowhere;
  ObjectStore* store = nullptr;
  std::string oid = {};
  SnapId snap = snap_head;
  std::shared_ptr<Backing> owner = {};  // keeps a parent's store
};

/// A parent, as its child sees it.  Thread-safe.
class Backing {
 public:
  virtual ~Backing() = default;
  /// Reads; behind its end are zeros.  Returns whether anything absent was
  /// taken for zeros.  Throws Error.
  [[nodiscard]] virtual bool read_backing(char* buffer, std::uint64_t length,
                                          std::uint64_t offset) = 0;
  /// Appends what is data in the range, ascending.  Returns whether anything
  /// absent was taken for zeros.  Throws Error.
  [[nodiscard]] virtual bool find_backing_data(std::uint64_t length,
                                               std::uint64_t offset,
                                               std::vector<Fragment>& data) = 0;
  /// Bytes, of its objects and those of the parents behind it.
  [[nodiscard]] virtual std::uint64_t least_object_size() = 0;
  /// Where the first `used` bytes of an object are, of an image with this
  /// layout.  Returns whether anything absent was taken for zeros.  Throws
  /// Error.
  [[nodiscard]] virtual bool find_backing_object(const Layout& layout,
                                                 std::uint64_t object_no,
                                                 std::uint64_t used,
                                                 ObjectPlace& place) = 0;
  /// Whether find_backing_data has told holes within objects, so far.
  [[nodiscard]] virtual bool knows_holes() = 0;
};

/// What can change while an image is open.  Immutable once published.
struct View {
  // What the format reads.
  std::uint64_t size = 0;     // bytes
  SnapContext snapc = {};     // for writes
  SnapId snap = snap_head;    // what is read
  /// So many bytes of the image, from its start, are the parent's where the
  /// image has no object; 0: there is no parent.
  std::uint64_t overlap = 0;
  ParentSpec parent_spec = {};
  /// Writers must hold the exclusive lock.
  bool lockable = false;
  /// There is an object map, and nothing says that it is invalid.
  bool mappable = false;
  /// Snapshots may have valid object maps, whatever the head's is.
  bool snaps_mapped = false;
  /// The object map tells objects that are as in the newest snapshot.
  bool fast_diff = false;
  /// Not empty: why it cannot be written to.
  std::string unwritable = {};

  // What the image adds (ImageState).
  /// Where the overlap is read; its size may be less than the overlap.
  std::shared_ptr<Backing> parent = {};
  /// Of the head, while the lock is held and the map can be believed.
  std::shared_ptr<ObjectMap> map = {};
  /// The lock is needed for writing and not held: writes wait.
  bool needs_lock = false;
  /// The header may have changed: writes wait.
  bool hold_writes = false;
  /// What is known of its objects holds (see known_extents.hpp).
  bool known = false;
  /// Not 0: requests fail with this positive errno and `reason`.  Each one
  /// first sees whether that has ended: see Metadata::request_view.
  int failure = 0;
  std::string reason = {};
  bool operator==(const View&) const = default;

  /// Throws Error where the image fails, and EINVAL behind its end.
  void check_request(const ImageTraits& traits, std::uint64_t length,
                     std::uint64_t offset) const;
  /// Whether the object map says that the object does not exist.
  [[nodiscard]] bool absent(std::uint64_t object_no) const noexcept {
    return map && !map->may_exist(object_no);
  }
  /// Whether a parent has the object's first byte, where the image has no such
  /// object.  (That is the first of its bytes in the image.)
  [[nodiscard]] bool backed(const Layout& layout,
                            std::uint64_t object_no) const noexcept;
  [[nodiscard]] bool writable_now() const noexcept {
    return (!hold_writes && !needs_lock) || failure != 0;
  }
};

}  // namespace nbdrados

#endif
