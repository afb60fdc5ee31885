// SPDX-License-Identifier: BSD-3-Clause

#include "image/image_format.hpp"

#include <cerrno>

#include "rados/error.hpp"

namespace nbdrados {

std::unique_ptr<ImageFormat> ImageFormat::open_parent(const ParentSpec&) {
  throw Error(ENOTSUP, "this format has no parents");
}
std::shared_ptr<ObjectMap> ImageFormat::open_map(std::uint64_t) {
  throw Error(ENOTSUP, "this format has no object map");
}
std::shared_ptr<const ObjectStates> ImageFormat::read_map() {
  return nullptr;
}
std::shared_ptr<const ObjectStates> ImageFormat::read_fast_diff(SnapId) {
  return nullptr;
}
void ImageFormat::invalidate_map(SnapId) {
  throw Error(ENOTSUP, "this format has no object map");
}
std::unique_ptr<Pending> ImageFormat::update_snapshot_map(SnapId,
                                                          std::uint64_t,
                                                          ObjectState,
                                                          ObjectState,
                                                          std::string*) {
  throw Error(ENOTSUP, "this format has no object map");
}

}  // namespace nbdrados
