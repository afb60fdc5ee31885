// SPDX-License-Identifier: BSD-3-Clause
//
// How exact block status is.

#ifndef NBDRADOS_IMAGE_STATUS_EXTENTS_MODE_HPP
#define NBDRADOS_IMAGE_STATUS_EXTENTS_MODE_HPP

#include <cstdint>

namespace nbdrados {

enum class ExtentsMode : std::uint8_t {
  exact,   // as exact as the pool can tell
  object,  // an object that exists is data, as far as its size is known
  off,     // all is data, and nothing is asked
};

}  // namespace nbdrados

#endif
