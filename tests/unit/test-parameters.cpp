// SPDX-License-Identifier: BSD-3-Clause
//
// Tables of parameters, and the times that they can be.  (Numbers, sizes and
// the ranges of times are in test-errors.cpp.)

#include <cppunit/TestFixture.h>
#include <cppunit/extensions/HelperMacros.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>

#include "nbdkit/parameters.hpp"

using namespace nbdrados;

namespace {

using Text = const std::string&;

struct Config {
  std::set<std::string> given;
  std::string name;
  std::string family;
  int mode = 0;
};

constexpr Choice<int> modes[] = {{"off", 1}, {"slow", 2}, {"fast", 3}};
constexpr Choice<int> one[] = {{"only", 1}};

constexpr Parameter<Config>::Need fast = {
    [](const Config& c) { return c.mode == 3; }, "is only for mode=fast"};

const Parameters<Config>& table() {
  static const Parameters<Config> all({
      {"[name=]<NAME>", "A name.",
       [](Config& c, Text, Text v) { c.name = v; }},
      {"mode=" + words(modes), "How\nto do it.",
       [](Config& c, Text k, Text v) {
         const auto found = find_choice(v, modes);
         if (!found) throw std::invalid_argument(k + "=" + v);
         c.mode = *found;
       }},
      {"all.<OPTION>=<VALUE>", "Any option.",
       [](Config& c, Text k, Text v) { c.family += k + "=" + v + ";"; }},
      {"a-name-of-27-columns=<SIZE>", "Too long.",
       [](Config&, Text, Text) {}, &fast},
  });
  return all;
}

std::string lacks(const Config& config) {
  try {
    table().check_needs(config);
  } catch (const std::invalid_argument& e) {
    return e.what();
  }
  return "nothing";
}

std::int64_t ms(std::string_view text) {
  using std::chrono::hours;
  try {
    return parse_time("k", text, std::chrono::milliseconds(0), hours(24))
        .count();
  } catch (const std::invalid_argument&) {
    return -1;
  }
}

}  // namespace

class ParametersTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(ParametersTest);
  CPPUNIT_TEST(help);
  CPPUNIT_TEST(keys);
  CPPUNIT_TEST(a_refused_value_is_not_given);
  CPPUNIT_TEST(needs);
  CPPUNIT_TEST(choices);
  CPPUNIT_TEST(times);
  CPPUNIT_TEST_SUITE_END();

 public:
  void help() {
    CPPUNIT_ASSERT_EQUAL(
        std::string("[name=]<NAME>              A name.\n"
                    "mode=off|slow|fast         How\n"
                    "                           to do it.\n"
                    "all.<OPTION>=<VALUE>       Any option.\n"
                    "a-name-of-27-columns=<SIZE>\n"
                    "                           Too long."),
        std::string(table().help()));
  }

  void keys() {
    Config c;
    CPPUNIT_ASSERT(table().set(c, "name", "n"));
    CPPUNIT_ASSERT(table().set(c, "mode", "slow"));
    CPPUNIT_ASSERT(table().set(c, "all.x", "1"));
    CPPUNIT_ASSERT(table().set(c, "all.y=", "2"));
    CPPUNIT_ASSERT_EQUAL(std::string("n"), c.name);
    CPPUNIT_ASSERT_EQUAL(2, c.mode);
    CPPUNIT_ASSERT_EQUAL(std::string("all.x=1;all.y==2;"), c.family);
    CPPUNIT_ASSERT(
        (c.given == std::set<std::string>{"name", "mode", "all.x", "all.y="}));
    for (const char* key : {"", "nam", "names", "[name", "Name", "all.", "all",
                            "al.x", "mode=off"})
      CPPUNIT_ASSERT_MESSAGE(key, !table().set(c, key, "off"));
  }

  void a_refused_value_is_not_given() {
    Config c;
    CPPUNIT_ASSERT_THROW((void)table().set(c, "mode", "other"),
                         std::invalid_argument);
    CPPUNIT_ASSERT(c.given.empty());
  }

  void needs() {
    Config c;
    CPPUNIT_ASSERT_EQUAL(std::string("nothing"), lacks(c));
    CPPUNIT_ASSERT(table().set(c, "a-name-of-27-columns", "1"));
    CPPUNIT_ASSERT_EQUAL(
        std::string("a-name-of-27-columns= is only for mode=fast"), lacks(c));
    // Whatever comes first.
    CPPUNIT_ASSERT(table().set(c, "mode", "fast"));
    CPPUNIT_ASSERT_EQUAL(std::string("nothing"), lacks(c));
  }

  void choices() {
    CPPUNIT_ASSERT_EQUAL(std::string("off, slow or fast"),
                         words(modes, ", ", " or "));
    CPPUNIT_ASSERT_EQUAL(std::string("only"), words(one, ", ", " or "));
    CPPUNIT_ASSERT(find_choice("slow", modes) == std::optional(2));
    for (const char* word : {"", "of", "offf", "Off", "off "})
      CPPUNIT_ASSERT_MESSAGE(word, !find_choice(word, modes));
  }

  /// All forms of nbdkit_parse_delay(3), and what it takes besides.
  void times() {
    for (const auto& [text, milliseconds] :
         std::map<std::string, int>{
             {"1", 1000}, {"1.2", 1200}, {"1.2s", 1200}, {"1.2ms", 2},
             {"120ms", 120}, {"1.2us", 1}, {"1.2μs", 1}, {"120μs", 1},
             {"1ns", 1}, {"5.", 5000}, {"5.s", 5000}, {".5", 500},
             {"00001", 1000}})
      CPPUNIT_ASSERT_EQUAL_MESSAGE(text, std::int64_t{milliseconds}, ms(text));
    for (const char* text : {"+1", " 1", "0x10", "1e3", "1e3ms", "0x1p3", "."})
      CPPUNIT_ASSERT_EQUAL_MESSAGE(text, std::int64_t{-1}, ms(text));
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(ParametersTest);
