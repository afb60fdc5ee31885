// SPDX-License-Identifier: BSD-3-Clause
//
// How callbacks end: what is in the log, what nbdkit sends to clients of it,
// and the errno.

#include <cppunit/TestFixture.h>
#include <cppunit/extensions/HelperMacros.h>

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

// It is part of a module that programs cannot link.
#include "callback.hpp"

namespace {

std::vector<std::string> lines;
int errno_for_nbdkit = 0;

/// An errno that its end spoils.
struct Spoiler : nbdrados::Error {
  using Error::Error;
  Spoiler(const Spoiler&) = default;
  Spoiler& operator=(const Spoiler&) = default;
  ~Spoiler() override { errno = ENOTTY; }
};

}  // namespace

// nbdkit has these.
extern "C" {
void nbdkit_error(const char* format, ...) {
  char line[512];
  va_list args;
  va_start(args, format);
  (void)std::vsnprintf(line, sizeof line, format, args);
  va_end(args);
  lines.emplace_back(line);
  errno = ENOTTY;
}
void nbdkit_set_error(int code) { errno_for_nbdkit = code; }
/// Says that this is an nbdkit that sends errors (server.hpp).  Newer headers
/// declare that function, as one that takes something.
__attribute__((visibility("default"))) int parses_delays() asm(
    "nbdkit_parse_delay");
int parses_delays() { return 0; }
}

using namespace nbdrados;
using Lines = std::vector<std::string>;

class LogTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(LogTest);
  CPPUNIT_TEST(one_line);
  CPPUNIT_TEST(exceptions);
  CPPUNIT_TEST(errno_comes_last);
  CPPUNIT_TEST(names_are_followed);
  CPPUNIT_TEST(refused);
  CPPUNIT_TEST_SUITE_END();

  static Lines logged() { return std::exchange(lines, {}); }

 public:
  void setUp() override { lines.clear(); }

  // Whatever a client has in its name.
  void one_line() {
    errno = EBUSY;
    log_error("'%s': %d", "a\nb\r\x1b[2J\x7f\tc \xc3\xa4%s", 7);
    CPPUNIT_ASSERT_EQUAL(EBUSY, errno);
    CPPUNIT_ASSERT(logged() == Lines{"'a?b??[2J?\tc \xc3\xa4%s': 7"});
    const std::string large(400, 'x');
    log_error("%s", large.c_str());
    CPPUNIT_ASSERT(logged() == Lines{large});
  }

  void exceptions() {
    const auto code_of = [](auto&& body) {
      return attempt("open", std::forward<decltype(body)>(body));
    };
    CPPUNIT_ASSERT_EQUAL(EPERM, code_of([]() -> int {
      throw Error(EPERM, "may not open 'x\nnbdkit: error: y'");
    }));
    CPPUNIT_ASSERT_EQUAL(EIO, code_of([]() -> int {
      throw std::runtime_error("\x01");
    }));
    CPPUNIT_ASSERT_EQUAL(ENOMEM,
                         code_of([]() -> int { throw std::bad_alloc(); }));
    CPPUNIT_ASSERT(logged() ==
                   (Lines{"open: may not open 'x?nbdkit: error: y'",
                          "open: ?", "open: out of memory"}));
  }

  void errno_comes_last() {
    const int r = guard("pread", -1, []() -> int {
      throw Spoiler(ENOSPC, "full");
    });
    CPPUNIT_ASSERT_EQUAL(ENOSPC, errno);
    CPPUNIT_ASSERT_EQUAL(ENOSPC, errno_for_nbdkit);
    CPPUNIT_ASSERT_EQUAL(-1, r);
  }

  void names_are_followed() {
    const std::string last = "more is in the log of the server";
    // Of an earlier callback.
    log_error("image 'secret'");
    (void)logged();
    { const LastLine l; }
    CPPUNIT_ASSERT(logged().empty());
    {
      const LastLine l;
      log_error("image 'secret'");
      log_error("image 'other'");
      errno = EBUSY;
    }
    CPPUNIT_ASSERT_EQUAL(EBUSY, errno);
    CPPUNIT_ASSERT(logged() ==
                   (Lines{"image 'secret'", "image 'other'", last}));
    // Once is enough.
    { const LastLine l; }
    CPPUNIT_ASSERT(logged().empty());
    {
      const LastLine l;
      (void)attempt("x", []() -> int { throw Error(EIO, "'secret'"); });
    }
    CPPUNIT_ASSERT(logged() == (Lines{"x: 'secret'", last}));
  }

  void refused() {
    {
      LastLine l;
      (void)guard("open", -1, []() -> int { throw Error(EIO, "'secret'"); },
                  [&](int) { l.refuse("that is not allowed"); });
    }
    CPPUNIT_ASSERT_EQUAL(EIO, errno);
    CPPUNIT_ASSERT(logged() == (Lines{"open: 'secret'",
                                      "refused: that is not allowed"}));
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(LogTest);
