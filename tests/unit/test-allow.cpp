// SPDX-License-Identifier: BSD-3-Clause
//
// The rules of allow=FILE: what they are, what is none, and for whom they are.

#include <cppunit/TestFixture.h>
#include <cppunit/extensions/HelperMacros.h>

#include <cerrno>
#include <string>
#include <string_view>

#include "rados/error.hpp"

// It is part of a module that programs cannot link.
#include "allow.cpp"

using namespace nbdrados;

namespace {

/// What is said of a file.
std::string refusal(std::string_view text) {
  try {
    (void)AccessList(text, "allow=F");
  } catch (const Error& e) {
    CPPUNIT_ASSERT_EQUAL(EINVAL, e.code());
    return e.what();
  }
  return "none";
}

void assert_refused(const std::string& line, const std::string& text) {
  CPPUNIT_ASSERT_EQUAL("allow=F, line 3: " + text,
                       refusal("# a comment\n* * ro\n" + line + "\n* * rw\n"));
}

/// "-", "ro" or "rw".
std::string asked(const AccessList& rules, const Peer& peer,
                  const std::string& name) {
  switch (rules.access(peer, name)) {
    case Access::none: return "-";
    case Access::read: return "ro";
    case Access::write: return "rw";
  }
  return "?";
}

IpAddress ip(const char* text) { return parse_address(text).value(); }

}  // namespace

class AllowTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(AllowTest);
  CPPUNIT_TEST(malformed_rules);
  CPPUNIT_TEST(comments_and_blanks);
  CPPUNIT_TEST(first_rule_decides);
  CPPUNIT_TEST(patterns);
  CPPUNIT_TEST(beginnings);
  CPPUNIT_TEST(ids);
  CPPUNIT_TEST(addresses);
  CPPUNIT_TEST(ipv4_within_ipv6);
  CPPUNIT_TEST(names);
  CPPUNIT_TEST(nothing_known);
  CPPUNIT_TEST(lines_of_kinds);
  CPPUNIT_TEST(peers_in_the_log);
  CPPUNIT_TEST_SUITE_END();

 public:
  void malformed_rules() {
    const std::string access = "the last word is neither ro nor rw";
    const std::string shape = "a rule is CLIENT PATTERN ro|rw";
    const std::string client =
        "the client is none of *, uid:, gid:, addr:, dn:, issuer:, context:";
    for (const char* line : {"* *", "* * r", "* * RW", "* * rw # comment",
                             "* * rw,ro", "*", "nonsense"})
      assert_refused(line, access);
    for (const char* line : {"rw", "* rw", " vm1 ro"})
      assert_refused(line, shape);
    for (const char* line :
         {"bob * rw", "uid * rw", "pid:1 * rw", "UID:1 * rw", "** * rw",
          "* * * rw", ": * rw", ":1 * rw"})
      assert_refused(line, client);
    for (const char* kind : {"uid", "gid"}) {
      const std::string key = std::string(kind) + ":";
      assert_refused(key + " * rw", key + " wants a value");
      for (const char* id : {"-1", "+1", "0x1", "1.0", "root", "1 2",
                             "4294967295", "99999999999999999999"})
        assert_refused(key + id + " * rw", key + " wants a number");
    }
    for (const char* key : {"dn:", "issuer:", "context:", "addr:"})
      assert_refused(std::string(key) + " * rw",
                     std::string(key) + " wants a value");
    for (const char* address :
         {"1.2.3", "1.2.3.4.5", "256.1.1.1", "localhost", "::g", "/8",
          "fe80::1%lo", "[::1]", "1.2.3.4:80"})
      assert_refused("addr:" + std::string(address) + " * rw",
                     "addr: wants an IP address, or a network (192.0.2.0/24)");
    for (const char* bits : {"", "33", "-1", "8/8", "255.0.0.0", "8x"})
      assert_refused("addr:1.2.3.4/" + std::string(bits) + " * rw",
                     "addr: wants at most 32 bits behind the '/'");
    assert_refused("addr:::1/129 * rw",
                   "addr: wants at most 128 bits behind the '/'");
    assert_refused("uid:1 vm\x01 rw", "a control character");
    assert_refused(std::string("uid:1 vm\0* rw", 13), "a control character");
    const std::string none = "allow=F has no rules, so nobody could open "
                             "anything";
    for (const char* text : {"", "\n\n", "# * * rw", "  # x\n\t\r\n"})
      CPPUNIT_ASSERT_EQUAL(none, refusal(text));
  }

  void comments_and_blanks() {
    const AccessList rules(
        "# first\r\n\n  \t uid:1 \t vm1\tro \r\n\t# uid:1 * rw\nuid:2 #1 rw",
        "F");
    CPPUNIT_ASSERT_EQUAL(std::string("ro"), asked(rules, {.uid = 1}, "vm1"));
    CPPUNIT_ASSERT_EQUAL(std::string("-"), asked(rules, {.uid = 1}, "vm2"));
    // No end of line, and a '#' within one.
    CPPUNIT_ASSERT_EQUAL(std::string("rw"), asked(rules, {.uid = 2}, "#1"));
  }

  void first_rule_decides() {
    const AccessList rules(
        "uid:1 secret* ro\n* public ro\nuid:1 * rw\nuid:1 secret1 rw\n", "F");
    const Peer one{.uid = 1};
    CPPUNIT_ASSERT_EQUAL(std::string("ro"), asked(rules, one, "secret1"));
    CPPUNIT_ASSERT_EQUAL(std::string("ro"), asked(rules, one, "public"));
    CPPUNIT_ASSERT_EQUAL(std::string("rw"), asked(rules, one, "vm"));
    CPPUNIT_ASSERT_EQUAL(std::string("ro"), asked(rules, {.uid = 2}, "public"));
    CPPUNIT_ASSERT_EQUAL(std::string("-"), asked(rules, {.uid = 2}, "vm"));
  }

  void patterns() {
    const auto matched = [](const std::string& pattern,
                            const std::string& name) {
      return AccessList("* " + pattern + " rw", "F").access({}, name) ==
             Access::write;
    };
    CPPUNIT_ASSERT(matched("vm1", "vm1"));
    CPPUNIT_ASSERT(!matched("vm1", "vm10"));
    CPPUNIT_ASSERT(!matched("vm1", "VM1"));
    // A snapshot is a name of its own.
    CPPUNIT_ASSERT(!matched("vm1", "vm1@monday"));
    CPPUNIT_ASSERT(matched("vm1@*", "vm1@monday"));
    CPPUNIT_ASSERT(!matched("vm1@*", "vm1"));
    CPPUNIT_ASSERT(matched("vm*", "vm1@monday"));
    // A namespace is only meant where it is named.
    CPPUNIT_ASSERT(matched("*", "vm1"));
    CPPUNIT_ASSERT(!matched("*", "team/vm1"));
    CPPUNIT_ASSERT(!matched("team?vm1", "team/vm1"));
    CPPUNIT_ASSERT(!matched("team[/]vm1", "team/vm1"));
    CPPUNIT_ASSERT(matched("team/*", "team/vm1@s"));
    CPPUNIT_ASSERT(matched("*/*", "team/vm1"));
    CPPUNIT_ASSERT(!matched("*/*", "vm1"));
    CPPUNIT_ASSERT(matched("vm[1-3]", "vm2"));
    CPPUNIT_ASSERT(!matched("vm[!1-3]", "vm2"));
    CPPUNIT_ASSERT(matched("a?b", "a b"));
    CPPUNIT_ASSERT(matched("a\\*", "a*"));
    CPPUNIT_ASSERT(!matched("a\\*", "ab"));
    CPPUNIT_ASSERT(matched(".*", ".hidden"));
    CPPUNIT_ASSERT(matched("*", ".hidden"));
    CPPUNIT_ASSERT(matched("*", ""));
    CPPUNIT_ASSERT(!matched("?*", ""));
    // Names are bytes.
    CPPUNIT_ASSERT(matched("*\xff", "\xfe\xff"));
    CPPUNIT_ASSERT(matched("??", "\xc3\xa4"));
    CPPUNIT_ASSERT(!matched("?", "\xc3\xa4"));
  }

  // What may match the snapshots of vm1, whatever they are called.
  void beginnings() {
    const auto any = [](const std::string& pattern,
                        const std::string& beginning = "vm1@") {
      return AccessList("uid:1 " + pattern + " ro", "F")
          .access_to_any({.uid = 1}, beginning);
    };
    for (const char* pattern :
         {"*", "vm*", "vm1*", "vm1@*", "vm1@daily", "*@daily-?", "*-prod",
          "v?1@x", "?????", "vm[0-9]@a", "[!a]*", "vm\\1@a", "*1*", "**"})
      CPPUNIT_ASSERT_MESSAGE(pattern, any(pattern));
    for (const char* pattern :
         {"vm1", "vm2@*", "vm?", "???", "vm[2-9]@*", "vm\\*", "*/*", "w*",
          "team/vm1@*", "vm1[@", "x"})
      CPPUNIT_ASSERT_MESSAGE(pattern, !any(pattern));
    CPPUNIT_ASSERT(any("team/*", "team/vm1@"));
    CPPUNIT_ASSERT(any("*/vm1@*", "team/vm1@"));
    CPPUNIT_ASSERT(!any("*", "team/vm1@"));
    CPPUNIT_ASSERT(!AccessList("uid:1 * ro", "F")
                        .access_to_any({.uid = 2}, "vm1@"));
  }

  void ids() {
    const AccessList rules("uid:0 a rw\ngid:4294967294 b ro\n", "F");
    CPPUNIT_ASSERT_EQUAL(std::string("rw"), asked(rules, {.uid = 0}, "a"));
    CPPUNIT_ASSERT_EQUAL(std::string("-"), asked(rules, {.uid = 1}, "a"));
    CPPUNIT_ASSERT_EQUAL(std::string("-"), asked(rules, {.gid = 0}, "a"));
    CPPUNIT_ASSERT_EQUAL(std::string("ro"),
                         asked(rules, {.uid = 5, .gid = 4294967294}, "b"));
  }

  void addresses() {
    const auto inside = [](const std::string& network, const char* address) {
      return AccessList("addr:" + network + " * rw", "F")
                 .access({.address = ip(address)}, "x") == Access::write;
    };
    CPPUNIT_ASSERT(inside("192.0.2.7", "192.0.2.7"));
    CPPUNIT_ASSERT(!inside("192.0.2.7", "192.0.2.8"));
    CPPUNIT_ASSERT(inside("192.0.2.7/24", "192.0.2.255"));
    CPPUNIT_ASSERT(!inside("192.0.2.7/24", "192.0.3.0"));
    CPPUNIT_ASSERT(inside("192.0.2.128/25", "192.0.2.129"));
    CPPUNIT_ASSERT(!inside("192.0.2.128/25", "192.0.2.127"));
    CPPUNIT_ASSERT(inside("192.0.2.4/31", "192.0.2.5"));
    CPPUNIT_ASSERT(!inside("192.0.2.4/31", "192.0.2.6"));
    CPPUNIT_ASSERT(inside("0.0.0.0/0", "203.0.113.1"));
    CPPUNIT_ASSERT(!inside("0.0.0.0/0", "2001:db8::1"));
    CPPUNIT_ASSERT(inside("2001:db8::/33", "2001:db8:7fff::1"));
    CPPUNIT_ASSERT(!inside("2001:db8::/33", "2001:db8:8000::1"));
    CPPUNIT_ASSERT(inside("::1", "::1"));
    CPPUNIT_ASSERT(inside("::/0", "2001:db8::1"));
    CPPUNIT_ASSERT(!inside("::/0", "192.0.2.1"));
  }

  void ipv4_within_ipv6() {
    IpNetwork client{ip("::ffff:192.0.2.1"), 128};
    client.normalise();
    CPPUNIT_ASSERT(client.bytes == ip("192.0.2.1"));
    const auto allowed = [&](const std::string& network) {
      return AccessList("addr:" + network + " * rw", "F")
                 .access({.address = client.bytes}, "x") == Access::write;
    };
    CPPUNIT_ASSERT(allowed("192.0.2.0/24"));
    CPPUNIT_ASSERT(allowed("::ffff:192.0.2.1"));
    CPPUNIT_ASSERT(allowed("::ffff:192.0.2.0/120"));
    CPPUNIT_ASSERT(!allowed("::ffff:192.0.3.0/120"));
    CPPUNIT_ASSERT(!allowed("::/0"));
  }

  void names() {
    const AccessList rules(
        "dn:CN=Jane Doe,O=Big  Co vm1 rw\n"
        "issuer:CN=Big Co vm2 ro\n"
        "context:system_u:system_r:svirt_t:s0:c1,c2 vm3 rw\n",
        "F");
    const std::string dn = "CN=Jane Doe,O=Big  Co";
    CPPUNIT_ASSERT_EQUAL(std::string("rw"), asked(rules, {.dn = dn}, "vm1"));
    CPPUNIT_ASSERT_EQUAL(std::string("-"), asked(rules, {.dn = dn}, "vm2"));
    CPPUNIT_ASSERT_EQUAL(std::string("-"), asked(rules, {.issuer = dn}, "vm1"));
    // Exactly: of a pattern one could not say what a client can put into it.
    for (const char* other : {"CN=Jane Doe,O=Big Co", "cn=Jane Doe,O=Big  Co",
                              "CN=Jane Doe", "CN=Jane Doe,O=Big  Co,C=US"})
      CPPUNIT_ASSERT_EQUAL(std::string("-"),
                           asked(rules, {.dn = other}, "vm1"));
    CPPUNIT_ASSERT_EQUAL(
        std::string("-"),
        asked(AccessList("dn:CN=* * rw", "F"), {.dn = "CN=x"}, "vm1"));
    CPPUNIT_ASSERT_EQUAL(std::string("ro"),
                         asked(rules, {.issuer = "CN=Big Co"}, "vm2"));
    CPPUNIT_ASSERT_EQUAL(
        std::string("rw"),
        asked(rules, {.context = "system_u:system_r:svirt_t:s0:c1,c2"}, "vm3"));
  }

  void nothing_known() {
    const AccessList rules(
        "uid:0 * rw\ngid:0 * rw\naddr:0.0.0.0/0 * rw\naddr:::/0 * rw\n"
        "dn:x * rw\nissuer:x * rw\ncontext:x * rw\n",
        "F");
    CPPUNIT_ASSERT_EQUAL(std::string("-"), asked(rules, {}, "vm1"));
    CPPUNIT_ASSERT(!rules.knows({}));
    CPPUNIT_ASSERT(rules.knows({.gid = 0}));
    CPPUNIT_ASSERT(AccessList("* vm1 ro", "F").knows({}));
  }

  void lines_of_kinds() {
    const AccessList rules("# x\nuid:1 * rw\n\ndn:x * rw\ndn:y * rw\n", "F");
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, rules.line_of(Kind::uid));
    CPPUNIT_ASSERT_EQUAL(std::size_t{4}, rules.line_of(Kind::dn));
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, rules.line_of(Kind::any));
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, rules.line_of(Kind::context));
  }

  void peers_in_the_log() {
    CPPUNIT_ASSERT_EQUAL(std::string("of which nothing is known"),
                         Peer().text());
    CPPUNIT_ASSERT_EQUAL(
        std::string("uid 0, gid 7, address 2001:db8::1, DN CN=a b"),
        (Peer{.uid = 0, .gid = 7, .address = ip("2001:db8::1"),
              .dn = "CN=a b"})
            .text());
    CPPUNIT_ASSERT_EQUAL(std::string("address 192.0.2.1"),
                         (Peer{.address = ip("192.0.2.1")}).text());
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(AllowTest);
