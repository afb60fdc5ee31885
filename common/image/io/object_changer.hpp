// SPDX-License-Identifier: BSD-3-Clause
//
// Carries changes of objects out: see object_change.hpp.

#ifndef NBDRADOS_IMAGE_IO_OBJECT_CHANGER_HPP
#define NBDRADOS_IMAGE_IO_OBJECT_CHANGER_HPP

#include <cstddef>

#include "image/core.hpp"
#include "image/io/copy_up.hpp"
#include "image/io/object_change.hpp"
#include "image/io/object_guards.hpp"
#include "image/io/reader.hpp"
#include "image/state/view.hpp"

namespace nbdrados {

/// Thread-safe.
class ObjectChanger {
 public:
  /// What is given must outlive this.
  ObjectChanger(ImageCore& core, Reader& reader)
      : core_(core), copy_up_(core, reader) {}

  /// Changes `count` objects, of which many are in flight at once; `doing` is
  /// for messages.  Throws the first error, in their order, when all have
  /// ended; and MapFailure.  Returns how many were not there, and did not need
  /// to be.
  std::size_t run(const View& view, std::size_t count, ObjectChange& change,
                  const char* doing);

 private:
  class Run;

  ImageCore& core_;
  CopyUp copy_up_;
  ObjectGuards guards_;
};

}  // namespace nbdrados

#endif
