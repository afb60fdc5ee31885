// SPDX-License-Identifier: BSD-3-Clause

#include <cppunit/extensions/HelperMacros.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
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
  CPPUNIT_TEST(states);
  CPPUNIT_TEST(damaged_keys);
  CPPUNIT_TEST(reports);
  CPPUNIT_TEST(keys_of_entities);
  CPPUNIT_TEST_SUITE_END();

 public:
  void states() {
    CPPUNIT_ASSERT(key_state(aes) == KeyState::good);
    CPPUNIT_ASSERT(key_state(aes256k) == KeyState::aes256k);
    CPPUNIT_ASSERT(key_state(" \t" + aes256k + "\r\n") == KeyState::aes256k);
    // The type has two bytes.
    for (const char* type : {"AA", "Aw", "/w", "AQE"})
      CPPUNIT_ASSERT_MESSAGE(
          type, key_state(type + aes.substr(std::strlen(type))) ==
                    KeyState::damaged);
    CPPUNIT_ASSERT(key_state("AgE" + aes256k.substr(3)) == KeyState::damaged);
    // Each type has its length.
    CPPUNIT_ASSERT(key_state("Ag" + aes.substr(2)) == KeyState::damaged);
    CPPUNIT_ASSERT(key_state("AQ" + aes256k.substr(2)) == KeyState::damaged);
  }

  void damaged_keys() {
    for (const char* text : {"", " ", "AgA", "A*A=", "====", "\n\n\n\n",
                             "AgAA", "not base64 at all!"})
      CPPUNIT_ASSERT_MESSAGE(text, key_state(text) == KeyState::damaged);
    for (const std::string& key : {aes, aes256k}) {
      for (std::size_t n = 0; n < key.size(); ++n) {
        CPPUNIT_ASSERT(key_state(key.substr(0, n)) == KeyState::damaged);
        std::string other = key;
        other[n] = '!';
        CPPUNIT_ASSERT(key_state(other) == KeyState::damaged);
      }
      CPPUNIT_ASSERT(key_state(key + "AAAA") == KeyState::damaged);
    }
  }

  // From the first of key, keyfile and keyring that is set; of keyrings the
  // first that can be opened.
  void reports() {
    char folder[] = "/tmp/test-keyring-XXXXXX";
    CPPUNIT_ASSERT(::mkdtemp(folder) != nullptr);
    const std::string dir = folder;
    const auto file = [&](const std::string& name, const std::string& text) {
      std::ofstream(dir + "/" + name) << text;
      return dir + "/" + name;
    };
    const std::string ring = file("ring", "[client.a]\nkey = " + aes256k);
    const std::string other = file("other", "[client.b]\nkey = x");
    const std::string bare = file("bare", aes + "\n");
    const auto report = [](KeyOptions options) {
      const KeyReport found = report_key(options, "client.a");
      return std::to_string(static_cast<int>(found.state)) + " " + found.where;
    };
    const auto text = [](KeyState state, const std::string& where) {
      return std::to_string(static_cast<int>(state)) + " " + where;
    };
    const auto is = [](const std::string& wanted, const std::string& got) {
      CPPUNIT_ASSERT_EQUAL(wanted, got);
    };
    const std::string none = dir + "/none";
    is(text(KeyState::aes256k, "keyring " + ring), report({"", "", ring}));
    is(text(KeyState::missing, "keyring " + other),
       report({"", "", none + ", " + other + ";" + ring}));
    is(text(KeyState::good, "keyfile " + bare), report({"", bare, ring}));
    is(text(KeyState::unreadable, "keyfile " + none), report({"", none, ring}));
    is(text(KeyState::damaged, "keyfile " + ring), report({"", ring, ring}));
    is(text(KeyState::good, "Ceph's option key"), report({aes, none, none}));
    is(text(KeyState::unreadable, "keyring " + none + " or " + none + "2"),
       report({"", "", none + "," + none + "2,"}));
    is(text(KeyState::unreadable, "keyring " + dir),
       report({"", "", dir + "," + ring}));
    std::filesystem::remove_all(dir);
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
