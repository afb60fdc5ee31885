// SPDX-License-Identifier: BSD-3-Clause
//
// What librados prints by itself.

#ifndef NBDRADOS_RADOS_QUIET_HPP
#define NBDRADOS_RADOS_QUIET_HPP

#include <fcntl.h>
#include <unistd.h>

#include <iostream>
#include <streambuf>
#include <thread>

namespace nbdrados {

/// A stream buffer that drops what the thread writes that has made it.  What
/// others write goes to `next`, as well-ordered as they write it.
class OthersOnly final : public std::streambuf {
 public:
  explicit OthersOnly(std::streambuf* next) : next_(next) {}

 private:
  std::streamsize xsputn(const char* s, std::streamsize n) override {
    return std::this_thread::get_id() == maker_ ? n : next_->sputn(s, n);
  }
  int_type overflow(int_type c) override {
    if (traits_type::eq_int_type(c, traits_type::eof()))
      return traits_type::not_eof(c);
    const char byte = traits_type::to_char_type(c);
    return xsputn(&byte, 1) == 1 ? c : traits_type::eof();
  }
  int sync() override { return next_->pubsync(); }

  const std::thread::id maker_ = std::this_thread::get_id();
  std::streambuf* const next_;
};

/// For a process that only connects, in this thread, and then ends: librados
/// prints about monitors that it does not find what its caller says better in
/// one line.  It does so on the standard output, too, which can be the NBD
/// client's (ceph: src/common/addr_parsing.c; src/mon/MonMap.cc,
/// build_initial).  Ceph's log, which has a thread of its own, still gets out.
inline void connect_quietly() {
  static OthersOnly others(std::cerr.rdbuf());
  std::cerr.rdbuf(&others);
  const int null = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
  if (null != -1) (void)::dup2(null, STDOUT_FILENO);
}

}  // namespace nbdrados

#endif
