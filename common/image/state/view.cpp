// SPDX-License-Identifier: BSD-3-Clause

#include "image/state/view.hpp"

#include <cerrno>

#include "rados/error.hpp"
#include "rbd/encoding.hpp"

namespace nbdrados {

std::string ImageTraits::object_name(std::uint64_t object_no) const {
  return numbered_oid(object_prefix, object_no, name_digits);
}

void ImageTraits::object_error(int code, const char* doing,
                               std::uint64_t object_no) const {
  const std::string what =
      name + ": " + doing + " object " + object_name(object_no);
  if (code == ENXIO)
    throw Error(code, what + ": " + data_pool + " has been deleted");
  fail(code, what);
}

void View::check_request(const ImageTraits& traits, std::uint64_t length,
                         std::uint64_t offset) const {
  if (failure != 0) throw Error(failure, reason);
  if (offset > size || length > size - offset)
    throw Error(EINVAL, traits.name + ": request of " +
                            std::to_string(length) + " bytes at offset " +
                            std::to_string(offset) +
                            " is beyond the end of the image (" +
                            std::to_string(size) + " bytes)");
}

bool View::backed(const Layout& layout,
                  std::uint64_t object_no) const noexcept {
  if (overlap == 0) return false;
  const std::uint64_t per_set = layout.stripe_count();
  const std::uint64_t set = object_no / per_set;
  const std::uint64_t in_set =
      object_no % per_set * (per_set == 1 ? 0 : layout.stripe_unit());
  return set <= overlap / layout.object_set_size() &&
         set * layout.object_set_size() + in_set < overlap;
}

}  // namespace nbdrados
