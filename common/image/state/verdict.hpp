// SPDX-License-Identifier: BSD-3-Clause
//
// What an error of reading an image's metadata means for the image.

#ifndef NBDRADOS_IMAGE_STATE_VERDICT_HPP
#define NBDRADOS_IMAGE_STATE_VERDICT_HPP

#include <cerrno>

namespace nbdrados {

/// Whether an error of loading the metadata means that the image cannot be
/// used, and not only that it could not be asked.
inline bool is_verdict(int code) {
  switch (code) {
    case ENOENT:
    case ENXIO:
    case EIO:
    case EPERM:
    case EACCES:
    case ENOTSUP:
    case ESHUTDOWN:
      return true;
    default:
      return false;
  }
}

/// Whether such a verdict on the image itself stays true: neither an image,
/// nor a pool that has been deleted comes back under its number; and who was
/// shut out must not go on.
inline bool is_final(int code) {
  return code == ENOENT || code == ENXIO || code == ESHUTDOWN;
}

/// What requests fail with after such a verdict.
inline int failure_for(int code) { return code == ESHUTDOWN ? ESHUTDOWN : EIO; }

}  // namespace nbdrados

#endif
