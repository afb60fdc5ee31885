// SPDX-License-Identifier: BSD-3-Clause

#include <cppunit/extensions/HelperMacros.h>

#include <cstdint>
#include <optional>
#include <string>

#include "rados/pool_list.hpp"

using namespace nbdrados;

class PoolListTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(PoolListTest);
  CPPUNIT_TEST(names);
  CPPUNIT_TEST(other_answers);
  CPPUNIT_TEST_SUITE_END();

 public:
  void names() {
    // Printed by Ceph 16.2.15, 18.2.7 and 20.2.4.
    const std::string answer =
        R"([{"poolnum":1,"poolname":"rbd"},{"poolnum":2,"poolname":"a b"},)"
        R"({"poolnum":3,"poolname":"x\n1 rbd"},{"poolnum":41,"poolname":"\"q\\"},)"
        R"({"poolnum":42,"poolname":"\t\u0001\u007fé"},)"
        R"({"poolnum":43,"poolname":"\",\"poolname\":\"fake\"}"}])";
    const auto is = [&](std::string_view name,
                        std::optional<std::int64_t> number) {
      CPPUNIT_ASSERT_MESSAGE(std::string(name),
                             find_pool(answer, name) == number);
    };
    is("rbd", 1);
    is("a b", 2);
    is("x\n1 rbd", 3);
    is("\"q\\", 41);
    is("\t\x01\x7fé", 42);
    is("\",\"poolname\":\"fake\"}", 43);
    is("fake", std::nullopt);
    is("rb", std::nullopt);
    is("bd", std::nullopt);
    is("", std::nullopt);
  }

  void other_answers() {
    for (const char* answer :
         {"", "[]", R"(,"poolname":"rbd"})", R"("poolnum":,"poolname":"rbd"})",
          R"("poolnum":1x,"poolname":"rbd"})",
          R"("poolnum":99999999999999999999,"poolname":"rbd"})", "1 rbd\n"})
      CPPUNIT_ASSERT_MESSAGE(answer, !find_pool(answer, "rbd"));
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(PoolListTest);
