// SPDX-License-Identifier: BSD-3-Clause
//
// When an image's exclusive lock is taken, and asked for.

#ifndef NBDRADOS_IMAGE_OWNERSHIP_LOCK_MODE_HPP
#define NBDRADOS_IMAGE_OWNERSHIP_LOCK_MODE_HPP

#include <chrono>
#include <cstdint>

namespace nbdrados {

/// How a writable export treats the exclusive lock of an image with the
/// feature exclusive-lock.
enum class LockMode : std::uint8_t {
  exclusive,  // taken at open and kept; others are refused
  automatic,  // taken at the first write, handed over when asked for
  none,       // never taken: such an image cannot be written to
};

/// How long another client may have a lock that is handed over before it is
/// asked for, until that client is known to write (lock_turns.hpp).
inline constexpr std::chrono::seconds default_lock_wait{10};

}  // namespace nbdrados

#endif
