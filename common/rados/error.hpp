// SPDX-License-Identifier: BSD-3-Clause
//
// Typed errors of everything below the NBD server.
//
// librados returns negative errno values.  They become an Error at the edge
// of the wrapper and keep their errno: ENOENT, EIO, ENOSPC, ESHUTDOWN
// (blocklisted) and ETIMEDOUT stay distinct up to the NBD client.

#ifndef NBDRADOS_RADOS_ERROR_HPP
#define NBDRADOS_RADOS_ERROR_HPP

#include <stdexcept>
#include <string>
#include <string_view>

namespace nbdrados {

/// An error with an errno.  Immutable, so safe to share between threads.
class Error : public std::runtime_error {
 public:
  /// `code` is a positive errno value; `what` is the complete message for
  /// the user, in one line.
  Error(int code, const std::string& what)
      : std::runtime_error(what), code_(code) {}

  /// The positive errno value.
  [[nodiscard]] int code() const noexcept { return code_; }

 private:
  int code_;
};

/// What the user is told for a positive errno value that came out of RADOS.
/// Like strerror(3), thread-safe, and with Ceph's meaning where Ceph gives
/// an errno a meaning of its own: ESHUTDOWN is "this client has been
/// blocklisted" (src/include/rados.h, EBLOCKLISTED), EDQUOT is a full pool.
[[nodiscard]] std::string error_text(int code);

/// The errno an NBD client shall see for one that came out of RADOS:
/// EDQUOT (pool quota) becomes ENOSPC, everything else stays.  `code` is
/// positive.
[[nodiscard]] int client_errno(int code) noexcept;

/// What is said about `name`, which is named once: "`name`: `text`", or the
/// text alone where it begins with the name.
[[nodiscard]] std::string about(std::string_view name, std::string_view text);

/// The text without "`name`: " at its beginning.
[[nodiscard]] std::string without_name(std::string_view name,
                                       std::string_view text);

/// Throws Error for a negative librados return value `r`, with the message
/// "`what`: error_text".  Returns `r` where it is not negative.
int check(int r, std::string_view what);

/// Throws Error(code, "`what`: error_text").
[[noreturn]] void fail(int code, std::string_view what);

}  // namespace nbdrados

#endif
