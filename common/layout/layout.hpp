// SPDX-License-Identifier: BSD-3-Clause
//
// Pure arithmetic between ranges of an image and ranges of its objects.
//
// The layout is Ceph's (ceph: doc/dev/file-striping.rst, src/osdc/Striper.cc):
// an image is cut into stripe units of su bytes; unit number u belongs to
// stripe u / sc, stripe position u % sc; object_size / su stripes make an
// object set of sc objects.
//
//     object set 0                 object set 1
//     obj 0   obj 1   obj 2        obj 3   obj 4   obj 5
//     u0      u1      u2    stripe u6      u7      u8
//     u3      u4      u5    stripe u9      u10     u11
//
// RBD without "fancy" striping and libradosstriper's default are sc = 1 and
// su = object_size.  Layout is immutable and so safe to share.

#ifndef NBDRADOS_LAYOUT_LAYOUT_HPP
#define NBDRADOS_LAYOUT_LAYOUT_HPP

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace nbdrados {

/// A part of an object and the part of the request that it belongs to.
struct Fragment {
  std::uint64_t object_no;
  std::uint64_t object_offset;  // bytes from the start of the object
  std::uint64_t image_offset;   // bytes from the start of the image
  std::uint64_t length;         // bytes, at least 1
  bool operator==(const Fragment&) const = default;
};

/// A contiguous range of one object, and its parts of the image in the
/// order of the object's bytes: parts[i] follows parts[i-1] in the object.
struct ObjectExtent {
  std::uint64_t object_no = 0;
  std::uint64_t offset = 0;  // bytes from the start of the object
  std::uint64_t length = 0;  // bytes
  std::vector<Fragment> parts;
};

class Layout {
 public:
  /// Throws Error(EINVAL) that names the wrong value: object_size in
  /// [1, 2^40], stripe_unit in [1, object_size] and dividing it,
  /// stripe_count in [1, 2^32 - 1], object set (object_size * stripe_count)
  /// below 2^63.
  Layout(std::uint64_t object_size, std::uint64_t stripe_unit,
         std::uint64_t stripe_count);

  [[nodiscard]] std::uint64_t object_size() const noexcept { return os_; }
  [[nodiscard]] std::uint64_t stripe_unit() const noexcept { return su_; }
  [[nodiscard]] std::uint64_t stripe_count() const noexcept { return sc_; }
  /// Bytes of the image in one object set.
  [[nodiscard]] std::uint64_t object_set_size() const noexcept {
    return os_ * sc_;
  }

  /// Whether each byte of an image is at the same place of the same object in
  /// both.
  [[nodiscard]] bool agrees(const Layout& other) const noexcept {
    return os_ == other.os_ &&
           ((linear_ && other.linear_) ||
            (su_ == other.su_ && sc_ == other.sc_));
  }

  /// Where the image byte at `offset` is, and how many bytes, at most
  /// `length` (>= 1), lie consecutively in both image and object from there.
  /// O(1).  With stripe_count 1, or with one stripe unit an object, units are
  /// joined up to the object's end.
  [[nodiscard]] Fragment locate(std::uint64_t offset,
                                std::uint64_t length) const noexcept;

  /// Cuts [offset, offset + length) of the image into one extent an object,
  /// ascending by object number.  The parts of an extent are contiguous in
  /// the object, and no two of them in the image.  length 0 gives an empty
  /// result.  Throws Error(EINVAL) where offset + length exceeds 2^63.
  /// Costs as much as the result is long.
  [[nodiscard]] std::vector<ObjectExtent> cut(std::uint64_t offset,
                                              std::uint64_t length) const;

  /// The parts of the image that [offset, offset + length) of an object
  /// holds, ascending.  The inverse of cut.  Not clipped to any image size,
  /// but no image reaches beyond 2^63: bytes from there on are left out, for
  /// any object_no.  Throws Error(EINVAL) where the range is not in
  /// [0, object_size].
  [[nodiscard]] std::vector<Fragment> image_parts(std::uint64_t object_no,
                                                  std::uint64_t offset,
                                                  std::uint64_t length) const;

  /// Number of objects of an image of `image_size` bytes: the highest object
  /// number in use plus one.
  [[nodiscard]] std::uint64_t object_count(
      std::uint64_t image_size) const noexcept;

  /// How many bytes of object `object_no` an image of `image_size` bytes
  /// uses, in [0, object_size].
  [[nodiscard]] std::uint64_t object_used(
      std::uint64_t object_no, std::uint64_t image_size) const noexcept;

  /// Where the first object set after `offset` begins that has an object that
  /// is wanted, but at most `end`; `offset` where its own set has one.
  /// next(n, stop) is the first such object in [n, stop), or `stop`.
  template <class Next>
  [[nodiscard]] std::uint64_t skip_sets(std::uint64_t offset,
                                        std::uint64_t end, Next&& next) const {
    if (offset >= end) return offset;
    const std::uint64_t set = object_set_size();
    const std::uint64_t stop = ((end - 1) / set + 1) * sc_;
    const std::uint64_t found = next(offset / set * sc_, stop);
    return found == stop ? end : std::max(offset, found / sc_ * set);
  }

 private:
  void cut_linear(std::uint64_t offset, std::uint64_t length,
                  std::vector<ObjectExtent>& extents) const;
  void cut_striped(std::uint64_t offset, std::uint64_t length,
                   std::vector<ObjectExtent>& extents) const;

  std::uint64_t os_, su_, sc_;
  bool linear_;  // the objects follow one another in the image
};

/// The parts of the image that some objects' extents are, joined where they
/// touch, as offset and length; ascending.
[[nodiscard]] std::vector<std::pair<std::uint64_t, std::uint64_t>>
image_ranges(std::span<const ObjectExtent* const> extents);

}  // namespace nbdrados

#endif
