// SPDX-License-Identifier: BSD-3-Clause
//
// Reading an image: its objects, and for what it lacks its parent.

#ifndef NBDRADOS_IMAGE_IO_READER_HPP
#define NBDRADOS_IMAGE_IO_READER_HPP

#include <cstddef>
#include <cstdint>
#include <span>

#include "image/core.hpp"
#include "image/state/view.hpp"
#include "image/status/map_learner.hpp"
#include "rados/object_store.hpp"

namespace nbdrados {

/// Thread-safe.  No state of its own.  All members throw Error.
class Reader {
 public:
  /// What is given must outlive this.
  Reader(ImageCore& core, MapLearner& learner)
      : core_(core), learner_(learner) {}

  /// Image::read.
  void read(char* buffer, std::uint64_t length, std::uint64_t offset);
  /// Backing::read_backing.
  [[nodiscard]] bool read_backing(char* buffer, std::uint64_t length,
                                  std::uint64_t offset);
  /// Image::find_object.
  [[nodiscard]] ObjectPlace find_object(std::uint64_t object_no,
                                        std::uint64_t used, bool is_known);
  /// Backing::find_backing_object.
  [[nodiscard]] bool find_backing_object(const Layout& layout,
                                         std::uint64_t object_no,
                                         std::uint64_t used,
                                         ObjectPlace& place);
  /// Of a range that the image has no object for: the parent's data, and zeros
  /// behind the overlap.  Returns whether there were any such zeros, or the
  /// parent took anything absent for zeros.
  [[nodiscard]] bool read_parent(const View& view, char* buffer,
                                 std::uint64_t length, std::uint64_t offset);

 private:
  // These return whether anything absent was taken for zeros.
  [[nodiscard]] bool read_view(const View& view, char* buffer,
                               std::uint64_t length, std::uint64_t offset);
  [[nodiscard]] bool read_object(const View& view, char* buffer,
                                 const Fragment& where);
  [[nodiscard]] bool read_objects(const View& view, char* buffer,
                                  std::uint64_t length, std::uint64_t offset);
  [[nodiscard]] ObjectPlace place_of(const View& view,
                                     std::uint64_t object_no) const;
  [[nodiscard]] bool find_in(const View& view, std::uint64_t object_no,
                             std::uint64_t used, ObjectPlace& place);
  /// Ends the read of an object that is there.
  void settle(int result, std::span<const MutablePiece> pieces,
              std::uint64_t object_no) const;
  [[nodiscard]] bool known_absent(const View& view,
                                  std::uint64_t object_no) const noexcept {
    return view.known && core_.known.absent(object_no);
  }

  ImageCore& core_;
  MapLearner& learner_;
};

}  // namespace nbdrados

#endif
