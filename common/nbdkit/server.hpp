// SPDX-License-Identifier: BSD-3-Clause
//
// Which nbdkit runs this: it can be newer than the one whose headers this was
// built with.

#ifndef NBDRADOS_NBDKIT_SERVER_HPP
#define NBDRADOS_NBDKIT_SERVER_HPP

#include <dlfcn.h>

namespace nbdrados {

/// Whether a client whose connection is refused may get the last line of
/// nbdkit_error.  1.42.3 and 1.48.1 send it, 1.32.5 does not; what is asked here
/// is for a function that came in 1.40.  Thread-safe.
[[nodiscard]] inline bool errors_reach_clients() noexcept {
  static const bool yes = ::dlsym(RTLD_DEFAULT, "nbdkit_parse_delay");
  return yes;
}

}  // namespace nbdrados

#endif
