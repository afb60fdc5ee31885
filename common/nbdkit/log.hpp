// SPDX-License-Identifier: BSD-3-Clause
//
// Lines for the log of the server, and what clients get of them.  Include after
// <nbdkit-plugin.h> or <nbdkit-filter.h>.

#ifndef NBDRADOS_NBDKIT_LOG_HPP
#define NBDRADOS_NBDKIT_LOG_HPP

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "nbdkit/printable.hpp"
#include "nbdkit/server.hpp"

namespace nbdrados {

/// Whether the calling thread has logged something since its LastLine began.
inline thread_local bool has_logged = false;

/// As nbdkit_error, for a line that may have names in it: clients and others
/// choose those, and could make them look like lines of the server's.  Keeps
/// errno.  Thread-safe.
[[gnu::format(printf, 1, 2)]] inline void log_error(const char* format,
                                                    ...) noexcept {
  const int saved = errno;
  char* line = nullptr;
  std::va_list values;
  va_start(values, format);
  const int length = ::vasprintf(&line, format, values);
  va_end(values);
  if (length == -1) {
    nbdkit_error("out of memory");
  } else {
    std::replace_if(line, line + length, is_control, '?');
    nbdkit_error("%s", line);
    std::free(line);
  }
  has_logged = true;
  errno = saved;
}

/// In a callback through which a client chooses an export.  Since 1.42 nbdkit
/// sends the last line that the thread of a connection has logged with the next
/// error reply, whatever that is about (server/log.c,
/// server/protocol-handshake-newstyle.c).  That line could name what the client
/// must not know, so another one without names comes after it.
class LastLine {
 public:
  LastLine() noexcept { has_logged = false; }
  ~LastLine() {
    if (!std::exchange(has_logged, false) || !errors_reach_clients()) return;
    const int saved = errno;
    if (refused_ != nullptr)
      nbdkit_error("refused: %s", refused_);
    else
      nbdkit_error("more is in the log of the server");
    errno = saved;
  }
  LastLine(const LastLine&) = delete;
  LastLine& operator=(const LastLine&) = delete;
  /// The client is refused; `why`, a constant, is what it may know.
  void refuse(const char* why) noexcept { refused_ = why; }

 private:
  const char* refused_ = nullptr;
};

}  // namespace nbdrados

#endif
