// SPDX-License-Identifier: BSD-3-Clause
//
// The object map of an RBD image: two bits for each object, as the `rbd`
// object class takes, gives and stores them.  For the names of the objects
// see format2_object_map_oid.
//
// Format (ceph: src/common/bit_vector.hpp, BitVector<2>):
//   - header: a blob with a frame (version 1) with the number of objects;
//   - data: four objects a byte, the first one in the two highest bits;
//   - footer: a blob, empty or with checksums: CRC-32C of the content of the
//     header's blob, then a counted list of the CRC-32C of each 4096 bytes of
//     the data.  CRC-32C here begins with 0 and is not inverted at the end.
// The objects in the pool have checksums, replies and inputs do not have to.
//
// Methods (ceph: src/cls/rbd/cls_rbd.cc, cls_rbd_client.cc):
//   object_map_load       no input; the reply is a map without checksums.
//                         ENOENT: no map, or the object is empty; EINVAL: it
//                         is damaged.
//   object_map_save       input: a map; replaces the object.
//   object_map_snap_add   no input; exists becomes exists_clean everywhere.
//   object_map_snap_remove, object_map_resize, object_map_update: see below.
//
// All functions are pure and thread-safe.

#ifndef NBDRADOS_RBD_OBJECT_MAP_HPP
#define NBDRADOS_RBD_OBJECT_MAP_HPP

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace nbdrados {

inline constexpr std::string_view object_map_method_load = "object_map_load";
inline constexpr std::string_view object_map_method_save = "object_map_save";
inline constexpr std::string_view object_map_method_resize =
    "object_map_resize";
inline constexpr std::string_view object_map_method_update =
    "object_map_update";
inline constexpr std::string_view object_map_method_snap_add =
    "object_map_snap_add";
inline constexpr std::string_view object_map_method_snap_remove =
    "object_map_snap_remove";

/// What the map knows of an object (ceph: src/include/rbd/object_map_types.h).
enum class ObjectState : std::uint8_t {
  nonexistent = 0,
  exists = 1,        // and may differ from the newest snapshot
  pending = 2,       // about to be removed; may exist
  exists_clean = 3,  // as it was at the newest snapshot (fast-diff)
};

/// The object class refuses to make a map of more objects
/// (ceph: src/cls/rbd/cls_rbd_types.h, MAX_OBJECT_MAP_OBJECT_COUNT).
inline constexpr std::uint64_t object_map_max = 256'000'000;

/// The states of all objects, four a byte, packed as the format packs them.
class ObjectStates {
 public:
  ObjectStates() = default;
  /// Throws std::length_error above object_map_max objects.
  explicit ObjectStates(std::uint64_t objects,
                        ObjectState state = ObjectState::nonexistent);
  /// `bits` are the bytes of the format's data part; bits behind the last
  /// object are ignored.  Throws std::length_error where they are not as many
  /// as `objects` need.
  ObjectStates(std::uint64_t objects, std::string bits);

  [[nodiscard]] std::uint64_t size() const noexcept { return objects_; }
  /// `object_no` < size().
  [[nodiscard]] ObjectState operator[](std::uint64_t object_no) const noexcept {
    return static_cast<ObjectState>(
        static_cast<unsigned char>(bits_[object_no / 4]) >>
            shift(object_no) & 3);
  }
  /// `object_no` < size().
  void set(std::uint64_t object_no, ObjectState state) noexcept;
  /// (size() + 3) / 4 bytes, as in the format; bits behind the last object
  /// are 0.
  [[nodiscard]] const std::string& bits() const noexcept { return bits_; }

  bool operator==(const ObjectStates&) const = default;

 private:
  static unsigned shift(std::uint64_t object_no) noexcept {
    return static_cast<unsigned>(6 - 2 * (object_no % 4));
  }

  std::uint64_t objects_ = 0;
  std::string bits_;
};

/// The reply of object_map_load, or the content of a map's object.  Throws
/// Error(EIO) that says what is wrong: too many objects, data that is not as
/// long as the number of objects says, a wrong checksum.
[[nodiscard]] ObjectStates decode_object_map(std::string_view bytes);

/// Where in the content of a map's object its checksums begin, which go to its
/// end.  `bytes` are what decode_object_map accepts; a map without checksums
/// has nothing there but the length of an empty blob.
[[nodiscard]] std::size_t object_map_footer_offset(std::string_view bytes);

/// Whether an encoded map has checksums.  Objects in a pool must.
enum class ObjectMapFooter : bool { empty = false, checksums = true };

/// The input of object_map_save and object_map_snap_remove (librbd sends both
/// without checksums), or the content of a map's object.
///
/// object_map_snap_remove, on the map of what comes after a snapshot with the
/// map of that snapshot as input, turns exists_clean into exists for objects
/// that are `exists` in the input or behind its end.
[[nodiscard]] std::string encode_object_map(const ObjectStates& states,
                                            ObjectMapFooter footer);

/// Input of object_map_update: the objects [first, end) that are `current`
/// (without it: all) become `state`.  A `current` of exists also takes those
/// that are exists_clean.  ERANGE: the range is empty or the map is too small;
/// EINVAL: the map is damaged.
///
/// Two updates in one operation must not touch the same object_map_block
/// objects.  The second one would not see the first: a method reads what was
/// there before the operation, and writes a block of 4096 bytes as a whole,
/// so the first update is lost although the operation succeeds (seen with
/// 16.2.15).  Two operations one after the other are fine.
[[nodiscard]] std::string encode_object_map_update(
    std::uint64_t first, std::uint64_t end, ObjectState state,
    std::optional<ObjectState> current = std::nullopt);

/// Objects in a block of the data: blocks begin at multiples of it.
inline constexpr std::uint64_t object_map_block = 16'384;
/// librbd updates at most this many objects at a time, from one multiple of
/// it to the next (ceph: src/librbd/object_map/UpdateRequest.cc).
inline constexpr std::uint64_t object_map_update_max = 262'144;

/// Input of object_map_resize: makes the map, or its size.  New objects are
/// `state`; those cut off must be, or it fails with ESTALE.  EINVAL: more than
/// object_map_max objects.
[[nodiscard]] std::string encode_object_map_resize(std::uint64_t objects,
                                                   ObjectState state);

}  // namespace nbdrados

#endif
