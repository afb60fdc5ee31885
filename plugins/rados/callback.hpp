// SPDX-License-Identifier: BSD-3-Clause
//
// How the plugin's callbacks end: the errno that nbdkit and its client get.
// Include after <nbdkit-plugin.h>.

#ifndef NBDRADOS_PLUGIN_CALLBACK_HPP
#define NBDRADOS_PLUGIN_CALLBACK_HPP

#include <cerrno>
#include <utility>

#include "nbdkit/guard.hpp"
#include "rados/error.hpp"

namespace nbdrados {

/// The errno to give to nbdkit, so that the NBD client gets what fits best.
/// NBD has a word only for some; nbdkit turns all others into EINVAL
/// (nbdkit: server/protocol.c, nbd_errno), which would blame the client for
/// the cluster's trouble: EIO is right for those.
[[nodiscard]] inline int nbd_errno(int code) noexcept {
  switch (code = client_errno(code)) {
    case EPERM:
    case EROFS:
    case ENOMEM:
    case EINVAL:
    case ENOSPC:
    case EOVERFLOW:
    case EOPNOTSUPP:
    case ESHUTDOWN:
      return code;
    default:
      return EIO;
  }
}

/// Gives nbdkit the errno of a callback.  In threads that nbdkit has not
/// started, such as those of filters, nbdkit_set_error has no effect, and errno
/// itself counts (nbdkit: server/plugins.c, get_error), which must be set last.
inline void set_error(int code) noexcept {
  nbdkit_set_error(code);
  errno = code;
}

/// Runs `body` for the callback `operation`.  Returns what body returns; an
/// exception becomes one line of the log, a call of `said` with its positive
/// errno, an errno for nbdkit and `failure`.
template <class Result, class Body, class Said>
[[nodiscard]] Result guard(const char* operation, Result failure, Body&& body,
                           Said&& said) noexcept {
  int code = 0;
  try {
    return std::forward<Body>(body)();
  } catch (...) {
    code = report_exception(operation);
  }
  // Not in there: the end of an exception may free memory, and so errno.
  said(code);
  set_error(nbd_errno(code));
  return failure;
}
template <class Result, class Body>
[[nodiscard]] Result guard(const char* operation, Result failure,
                           Body&& body) noexcept {
  return guard(operation, failure, std::forward<Body>(body), [](int) {});
}

/// For callbacks that return 0 or -1.
template <class Body>
[[nodiscard]] int guard(const char* operation, Body&& body) noexcept {
  return guard(operation, -1, [&] {
    std::forward<Body>(body)();
    return 0;
  });
}

}  // namespace nbdrados

#endif
