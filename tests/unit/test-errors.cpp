// SPDX-License-Identifier: BSD-3-Clause

#include <cppunit/extensions/HelperMacros.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <set>
#include <stdexcept>
#include <map>
#include <string>

#include "nbdkit/parameters.hpp"
#include "rados/error.hpp"
#include "rados/object_store.hpp"

using namespace nbdrados;

namespace {

class FixedPending : public Pending {
 public:
  explicit FixedPending(int result) : result_(result) {}
  int wait() override { return result_; }
  int wait_for(std::chrono::milliseconds limit) override {
    limit_ = limit;
    return result_;
  }
  bool completed() override { return true; }
  std::chrono::milliseconds limit_{0};

 private:
  int result_;
};

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

class ErrorTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(ErrorTest);
  CPPUNIT_TEST(texts);
  CPPUNIT_TEST(other_texts_are_the_system_s);
  CPPUNIT_TEST(client_errnos);
  CPPUNIT_TEST(check_passes_results);
  CPPUNIT_TEST(check_throws_errors);
  CPPUNIT_TEST(fail_throws);
  CPPUNIT_TEST(wait_check_waits_with_limit);
  CPPUNIT_TEST(things_are_named_once);
  CPPUNIT_TEST(parameters);
  CPPUNIT_TEST_SUITE_END();

 public:
  void texts() {
    CPPUNIT_ASSERT(contains(error_text(ESHUTDOWN), "blocklisted"));
    CPPUNIT_ASSERT(contains(error_text(EDQUOT), "quota"));
    CPPUNIT_ASSERT(contains(error_text(ENOSPC), "full"));
    CPPUNIT_ASSERT(contains(error_text(ETIMEDOUT), "time"));
    CPPUNIT_ASSERT(contains(error_text(ENOENT), "not found"));
    CPPUNIT_ASSERT(contains(error_text(ENOTCONN), "not connected"));
    CPPUNIT_ASSERT(contains(error_text(ENXIO), "pool has been deleted"));
    CPPUNIT_ASSERT(contains(error_text(EFBIG), "osd_max_object_size"));
    // Users must be able to tell them apart.
    std::set<std::string> all;
    const int codes[] = {ESHUTDOWN, EDQUOT, ENOSPC, ETIMEDOUT, ENOENT,
                         ENOTCONN,  ENXIO,  EIO,    EINVAL,    EPERM,
                         EACCES};
    for (const int code : codes) {
      const std::string text = error_text(code);
      CPPUNIT_ASSERT(!text.empty());
      CPPUNIT_ASSERT(!contains(text, "\n"));
      CPPUNIT_ASSERT_MESSAGE(text, all.insert(text).second);
    }
  }

  void other_texts_are_the_system_s() {
    for (const int code : {EIO, EINVAL, EEXIST, EBUSY, EPERM, ECANCELED})
      CPPUNIT_ASSERT_EQUAL(std::string(std::strerror(code)),
                           error_text(code));
    CPPUNIT_ASSERT(contains(error_text(99999), "99999"));
  }

  void client_errnos() {
    CPPUNIT_ASSERT_EQUAL(ENOSPC, client_errno(EDQUOT));
    for (const int code :
         {ENOSPC, ENOENT, EIO, ESHUTDOWN, ETIMEDOUT, EINVAL, EPERM, EROFS})
      CPPUNIT_ASSERT_EQUAL(code, client_errno(code));
  }

  void check_passes_results() {
    CPPUNIT_ASSERT_EQUAL(0, check(0, "x"));
    CPPUNIT_ASSERT_EQUAL(4096, check(4096, "x"));
  }

  void check_throws_errors() {
    for (const int code : {ENOENT, EIO, ENOSPC, EDQUOT, ESHUTDOWN}) {
      try {
        check(-code, "cannot read object rb.0.1");
        CPPUNIT_FAIL("no exception");
      } catch (const Error& e) {
        CPPUNIT_ASSERT_EQUAL(code, e.code());
        CPPUNIT_ASSERT_EQUAL("cannot read object rb.0.1: " + error_text(code),
                             std::string(e.what()));
      }
    }
  }

  void fail_throws() {
    try {
      fail(EBUSY, "image vm1");
    } catch (const Error& e) {
      CPPUNIT_ASSERT_EQUAL(EBUSY, e.code());
      CPPUNIT_ASSERT_EQUAL("image vm1: " + error_text(EBUSY),
                           std::string(e.what()));
    }
  }

  void wait_check_waits_with_limit() {
    FixedPending good(17);
    CPPUNIT_ASSERT_EQUAL(
        17, wait_check(good, std::chrono::milliseconds(250), "stat"));
    CPPUNIT_ASSERT(std::chrono::milliseconds(250) == good.limit_);
    FixedPending late(-ETIMEDOUT);
    try {
      wait_check(late, std::chrono::milliseconds(1), "stat of x");
      CPPUNIT_FAIL("no exception");
    } catch (const Error& e) {
      CPPUNIT_ASSERT_EQUAL(ETIMEDOUT, e.code());
      CPPUNIT_ASSERT_EQUAL("stat of x: " + error_text(ETIMEDOUT),
                           std::string(e.what()));
    }
  }

  void things_are_named_once() {
    const auto is = [](const char* wanted, const std::string& got) {
      CPPUNIT_ASSERT_EQUAL(std::string(wanted), got);
    };
    is("rbd/w: cannot", about("rbd/w", "cannot"));
    is("rbd/w: cannot", about("rbd/w", "rbd/w: cannot"));
    is("rbd/w is locked", about("rbd/w", "rbd/w is locked"));
    // Another image.
    is("rbd/w: rbd/w2: cannot", about("rbd/w", "rbd/w2: cannot"));
    is("rbd/w: rbd/w", about("rbd/w", "rbd/w"));
    is("cannot", without_name("rbd/w", "rbd/w: cannot"));
    is("rbd/w is locked", without_name("rbd/w", "rbd/w is locked"));
    is("cannot", without_name("rbd/w", "cannot"));
  }

  void parameters() {
    const auto size = [](const char* value) { return parse_size("k", value); };
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, size("0"));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{5}, size("5b"));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{1024}, size("2s"));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{3} << 40, size("3T"));
    CPPUNIT_ASSERT_EQUAL(largest_size, size("9223372036854775807"));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{7} << 60, size("7e"));
    const auto message = [](auto&& parse) {
      try {
        (void)parse();
      } catch (const std::invalid_argument& e) {
        return std::string(e.what());
      }
      return std::string("none");
    };
    for (const std::string value :
         {"", "M", "-1", "+1", " 1", "1 ", "1.5G", "0x10", "1MB", "8E",
          "9223372036854775808", "99999999999999999999"})
      CPPUNIT_ASSERT_EQUAL(
          "k=" + value + " is not a size in the range 1 to 2^63-1",
          message([&] { return parse_size("k", value, 1); }));
    for (const std::string value : {"", "0", "-1", "1K", "86401"})
      CPPUNIT_ASSERT_EQUAL(
          "k=" + value + " is not a number in the range 1 to 86400",
          message([&] { return parse_number("k", value, 1, 86400); }));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{86400},
                         parse_number("k", "86400", 1, 86400));
    using std::chrono::milliseconds;
    for (const auto& [value, ms] :
         std::map<std::string, int>{{"1", 1000}, {"1.5", 1500}, {"0", 0},
                                    {"0.0001", 1}, {"2s", 2000}, {"20ms", 20},
                                    {"1.2ms", 2}, {"3000us", 3}, {"1μs", 1},
                                    {"5000000ns", 5}, {"60", 60000},
                                    {".5s", 500}})
      CPPUNIT_ASSERT_EQUAL_MESSAGE(
          value, std::int64_t{ms},
          std::int64_t{parse_time("k", value, milliseconds(0),
                                  milliseconds(60000))
                           .count()});
    for (const std::string value :
         {"", "s", "-1", "+1", "1e1", "inf", "nan", "1 s", "1m", "1,5", "1.2.3",
          "60.0001", "9999999999999999999999999", "0.0"})
      CPPUNIT_ASSERT_EQUAL(
          "k=" + value + " is not a time in the range 1ms to 60s",
          message([&] {
            return parse_time("k", value, milliseconds(1),
                              milliseconds(60000));
          }));
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(ErrorTest);
