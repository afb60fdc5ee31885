// SPDX-License-Identifier: BSD-3-Clause
//
// The boundary between nbdkit's C callbacks and C++.  Include after
// <nbdkit-plugin.h> or <nbdkit-filter.h>.

#ifndef NBDRADOS_NBDKIT_GUARD_HPP
#define NBDRADOS_NBDKIT_GUARD_HPP

#include <cerrno>
#include <exception>
#include <new>
#include <utility>

#include "nbdkit/log.hpp"
#include "rados/error.hpp"

namespace nbdrados {

/// In a catch block: logs one line of the exception, which
/// names the callback `operation`.  Returns its positive errno.
[[nodiscard]] inline int report_exception(const char* operation) noexcept {
  try {
    throw;
  } catch (const Error& e) {
    log_error("%s: %s", operation, e.what());
    return e.code();
  } catch (const std::bad_alloc&) {
    log_error("%s: out of memory", operation);
    return ENOMEM;
  } catch (const std::exception& e) {
    log_error("%s: %s", operation, e.what());
    return EIO;
  }
}

/// Runs `body`, which returns 0 or an errno, for the callback `operation`.
/// Returns that; an exception becomes one line of the log and its errno.
template <class Body>
[[nodiscard]] int attempt(const char* operation, Body&& body) noexcept {
  try {
    return std::forward<Body>(body)();
  } catch (...) {
    return report_exception(operation);
  }
}

/// The same for a `body` that returns nothing, and callbacks that return 0 or
/// -1.
template <class Body>
[[nodiscard]] int attempt_or_fail(const char* operation,
                                  Body&& body) noexcept {
  return attempt(operation, [&] {
           std::forward<Body>(body)();
           return 0;
         }) == 0
             ? 0
             : -1;
}

}  // namespace nbdrados

#endif
