// SPDX-License-Identifier: BSD-3-Clause

#include <cppunit/extensions/HelperMacros.h>

#include <cstdint>
#include <optional>
#include <string>

#include "rados/keyring.hpp"

using namespace nbdrados;

namespace {

// Made by ceph-authtool --gen-print-key, of Ceph 16.2.15 and 20.2.4.
const std::string aes = "AQA/IwtrK1IdBhAAOWR/wQoTSaDXV9P+N92xEA==";
const std::string aes256k =
    "AgA/Iwtrsg2aEyAADdJeX4j2+2E1A8ren2drbb2pzVPDAD1bwyX5l9jIht8=";

}  // namespace

class KeyringTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(KeyringTest);
  CPPUNIT_TEST(types);
  CPPUNIT_TEST(no_keys);
  CPPUNIT_TEST(keys_of_entities);
  CPPUNIT_TEST_SUITE_END();

 public:
  void types() {
    CPPUNIT_ASSERT(key_type(aes) == key_type_aes);
    CPPUNIT_ASSERT(key_type(aes256k) == key_type_aes256k);
    CPPUNIT_ASSERT(key_type(" \t" + aes256k + "\r\n") == key_type_aes256k);
    CPPUNIT_ASSERT(key_type("AAAA") == std::uint16_t{0});
    CPPUNIT_ASSERT(key_type("/w8A") == std::uint16_t{0x0fff});
    CPPUNIT_ASSERT(key_type("AP8A") == std::uint16_t{0xff00});
  }

  void no_keys() {
    for (const char* text : {"", " ", "AgA", "A*A=", "====", "\n\n\n\n"})
      CPPUNIT_ASSERT_MESSAGE(text, !key_type(text));
  }

  void keys_of_entities() {
    const std::string text = "[client.a]\n\tkey = " + aes +
                             "\n\tcaps mon = \"allow r\"\n"
                             "[ client.b ]\r\n  key=" +
                             aes256k + "\r\n[client.a]\nother = x\n";
    CPPUNIT_ASSERT_EQUAL(aes, find_key(text, "client.a"));
    CPPUNIT_ASSERT_EQUAL(aes256k, find_key(text, "client.b"));
    CPPUNIT_ASSERT_EQUAL(std::string(), find_key(text, "client.c"));
    CPPUNIT_ASSERT_EQUAL(std::string(), find_key(text, "client"));
    CPPUNIT_ASSERT_EQUAL(std::string(), find_key("", "client.a"));
    CPPUNIT_ASSERT_EQUAL(aes, find_key("key = x\n[c]\nkey = " + aes, "c"));
    CPPUNIT_ASSERT_EQUAL(aes,
                         find_key("[c]\nkey = x\n[c]\nkey = " + aes, "c"));
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(KeyringTest);
