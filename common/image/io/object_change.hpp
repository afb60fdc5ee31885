// SPDX-License-Identifier: BSD-3-Clause
//
// Changing objects.
//
// Most changes are one operation on one object.  What makes more of it is an
// object map, or a parent that still backs the object.  These are the steps,
// and what others find when this process dies after each:
//
// A write to an object that the map does not call "exists":
//   1. the map says "exists", without an object.  That is allowed: the map
//      says what may exist.  Where objects are made one after the other, it
//      says so of the next ones too (object_map.hpp: reservations).
//   2. the object is written.
//
// A removal:
//   1. the map says "pending".  It counts as existing.
//   2. the object is gone; the map still says "pending".
//   3. the map says "nonexistent".
//
// A copy-up: see copy_up.hpp.
//
// An object that the parent backs is never removed, which would uncover the
// parent, but made empty.  Where there are snapshots, a write or removal of
// a whole object is preceded by a copy-up too: the snapshots see the parent's
// data now, and must after a flatten, which skips objects that exist.

#ifndef NBDRADOS_IMAGE_IO_OBJECT_CHANGE_HPP
#define NBDRADOS_IMAGE_IO_OBJECT_CHANGE_HPP

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "image/core.hpp"
#include "image/state/view.hpp"
#include "rados/error.hpp"
#include "rados/object_store.hpp"

namespace nbdrados {

/// What is to happen to an object.
struct ObjectTarget {
  enum class Effect : std::uint8_t {
    write,  // makes the object where it is missing
    zero,   // a part of it becomes zeros; what is missing may stay so
    clear,  // all of it becomes zeros and frees its space
  };
  std::uint64_t object_no = 0;
  Effect effect = Effect::write;
  bool whole = false;  // nothing is left of what it held
};

/// A change of some objects.
class ObjectChange {
 public:
  virtual ~ObjectChange() = default;
  /// Of the i-th object; ascending by number.
  [[nodiscard]] virtual ObjectTarget target(std::size_t i) const = 0;
  /// Adds the steps of a write or zero to an operation on it.  What they point
  /// to stays valid as long as this does.  May be called again.
  virtual void add_steps(WriteOp& op, std::size_t i) = 0;
};

/// The object map could not be updated.  It must be given up before anything
/// is written without it.
struct MapFailure {
  std::shared_ptr<ObjectMap> map;
  Error error;
};

/// Calls `body`, which changes the View's object map.  Throws MapFailure.
template <class Body>
void change_map(const View& view, Body&& body) {
  try {
    std::forward<Body>(body)(*view.map);
  } catch (const Error& e) {
    throw MapFailure{view.map, e};
  }
}

/// Whether the object is to be removed; else it is only made empty.
[[nodiscard]] bool removes(const ImageTraits& traits, const View& view,
                           const ObjectTarget& target) noexcept;

/// The operation on the change's i-th object.
void add_operation(const ImageTraits& traits, const View& view,
                   ObjectChange& change, std::size_t i, WriteOp& op);

/// Tells the OSD the object size, where the image wants that.
void add_hint(const ImageTraits& traits, WriteOp& op);

}  // namespace nbdrados

#endif
