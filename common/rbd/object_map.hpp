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

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

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

/// Objects in a block of the data: blocks begin at multiples of it.
inline constexpr std::uint64_t object_map_block = 16'384;

/// The states of a block's objects, in 4 KiB.  Any thread may read them while
/// one changes them.  Numbers of objects are taken modulo object_map_block.
class StateBlock {
 public:
  static constexpr std::size_t bytes = object_map_block / 4;

  explicit StateBlock(const StateBlock& other) noexcept;
  StateBlock& operator=(const StateBlock&) = delete;

  /// The one that stands for all blocks whose objects have all this state.
  /// It must not be changed, and lives for ever.
  [[nodiscard]] static StateBlock* uniform(ObjectState state) noexcept;
  [[nodiscard]] bool is_uniform() const noexcept;

  [[nodiscard]] ObjectState operator[](std::uint64_t object_no) const noexcept {
    return static_cast<ObjectState>(
        word(object_no).load(std::memory_order_acquire) >> shift(object_no) &
        3);
  }
  void set(std::uint64_t object_no, ObjectState state) noexcept {
    auto& at = words_[object_no % object_map_block / per_word];
    const std::uint64_t others = at.load(std::memory_order_relaxed) &
                                 ~(std::uint64_t{3} << shift(object_no));
    at.store(others | static_cast<std::uint64_t>(state) << shift(object_no),
             std::memory_order_release);
  }
  /// The first object in [object_no, end) that is not `nonexistent`, or `end`.
  /// Both are of this block, or `end` is that of the block.
  [[nodiscard]] std::uint64_t end_of_absent(std::uint64_t object_no,
                                            std::uint64_t end) const noexcept;
  [[nodiscard]] bool operator==(const StateBlock& other) const noexcept;

 private:
  friend class ObjectStates;
  static constexpr std::uint64_t per_word = 32;
  static constexpr std::size_t words = object_map_block / per_word;

  template <std::size_t... Index>
  constexpr StateBlock(std::uint64_t word, std::index_sequence<Index...>)
      : words_{((void)Index, word)...} {}

  [[nodiscard]] static unsigned shift(std::uint64_t object_no) noexcept {
    return static_cast<unsigned>(62 - 2 * (object_no % per_word));
  }
  [[nodiscard]] const std::atomic<std::uint64_t>& word(
      std::uint64_t object_no) const noexcept {
    return words_[object_no % object_map_block / per_word];
  }

  static StateBlock uniform_blocks[4];
  /// The first object of each in the two highest bits.
  std::array<std::atomic<std::uint64_t>, words> words_;
};

/// Frees a block, unless it is one of the uniform ones.
struct FreeStateBlock {
  void operator()(StateBlock* block) const noexcept {
    if (!block->is_uniform()) delete block;
  }
};
using StateBlockPointer = std::unique_ptr<StateBlock, FreeStateBlock>;

/// The states of all objects.  Takes two bits an object in blocks in which they
/// are not all the same, and 8 bytes for each of the others: 64 MB for the
/// largest map, and 125 KB where hardly an object exists.
class ObjectStates {
 public:
  ObjectStates() = default;
  /// Throws std::length_error above object_map_max objects.
  explicit ObjectStates(std::uint64_t objects,
                        ObjectState state = ObjectState::nonexistent);
  /// `bits` are the bytes of the format's data part; bits behind the last
  /// object are ignored.  Throws std::length_error where they are not as many
  /// as `objects` need.
  ObjectStates(std::uint64_t objects, std::string_view bits);
  ObjectStates(const ObjectStates& other);
  ObjectStates(ObjectStates&& other) noexcept = default;
  ObjectStates& operator=(ObjectStates other) noexcept;
  ~ObjectStates() = default;

  [[nodiscard]] std::uint64_t size() const noexcept { return objects_; }
  /// `object_no` < size().
  [[nodiscard]] ObjectState operator[](std::uint64_t object_no) const noexcept {
    return (*blocks_[object_no / object_map_block])[object_no];
  }
  /// Where objects end that are known without a look to be as `object_no` is;
  /// at least `object_no` + 1.  `object_no` < size().
  [[nodiscard]] std::uint64_t end_of_run(
      std::uint64_t object_no) const noexcept;
  /// The first object in [object_no, end) that is not `nonexistent`, or
  /// `end`.  The map says nothing of what lies behind it.
  [[nodiscard]] std::uint64_t end_of_absent(std::uint64_t object_no,
                                            std::uint64_t end) const noexcept;

  /// `object_no` < size().
  void set(std::uint64_t object_no, ObjectState state);
  /// `first` <= `end` <= size().
  void set(std::uint64_t first, std::uint64_t end, ObjectState state);
  /// To a number of objects that is not smaller; the new ones are
  /// `nonexistent`.  Throws std::length_error above object_map_max objects.
  void grow(std::uint64_t objects);
  /// Sets a block.  `bits` are its part of the data, as above.
  void set_block(std::uint64_t block, std::string_view bits);
  /// (size() + 3) / 4 bytes, as in the format; bits behind the last object
  /// are 0.
  [[nodiscard]] std::string bits() const;
  /// The blocks; there are no objects left then.
  [[nodiscard]] std::vector<StateBlockPointer> take_blocks() noexcept;

  bool operator==(const ObjectStates& other) const noexcept;

 private:
  StateBlock& own(std::uint64_t block);

  std::uint64_t objects_ = 0;
  std::vector<StateBlockPointer> blocks_;
};

/// The reply of object_map_load, or the content of a map's object.  Throws
/// Error(EIO) that says what is wrong: too many objects, data that is not as
/// long as the number of objects says, a wrong checksum.
[[nodiscard]] ObjectStates decode_object_map(std::string_view bytes);

/// Where things are in a map's object, which is read in pieces: some blocks of
/// the data, and their checksums.
class ObjectMapPieces {
 public:
  /// A part of the object, in bytes.
  struct Part {
    std::uint64_t offset;
    std::uint64_t length;
  };

  /// `start` is the object's first bytes, of which the header takes few.
  /// Throws as decode_object_map.
  explicit ObjectMapPieces(std::string_view start);

  [[nodiscard]] std::uint64_t objects() const noexcept { return objects_; }
  [[nodiscard]] std::uint64_t blocks() const noexcept {
    return (objects_ + object_map_block - 1) / object_map_block;
  }
  /// Of the blocks [first, end), end <= blocks().
  [[nodiscard]] Part data(std::uint64_t first,
                          std::uint64_t end) const noexcept;
  [[nodiscard]] Part checksums(std::uint64_t first,
                               std::uint64_t end) const noexcept;
  /// Between data and checksums; of a map without these, only four bytes are
  /// there.
  [[nodiscard]] Part footer() const noexcept;

  /// Whether there are checksums.  Throws as decode_object_map.
  [[nodiscard]] bool check_footer(std::string_view footer) const;
  /// Puts the blocks from `first` on into `states`, which has all objects.
  /// False where a checksum is wrong.
  [[nodiscard]] bool put(ObjectStates& states, std::uint64_t first,
                         std::string_view data,
                         std::string_view checksums) const;

 private:
  std::uint64_t objects_ = 0;
  std::uint64_t data_at_ = 0;
  std::uint32_t header_checksum_ = 0;
};

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
