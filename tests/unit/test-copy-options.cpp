// SPDX-License-Identifier: BSD-3-Clause
//
// The command line of radoscopy.

#include <cppunit/TestFixture.h>
#include <cppunit/extensions/HelperMacros.h>

#include <string>
#include <vector>

// It is part of a program.
#include "options.cpp"
// And so is this.
#include "json.hpp"

using namespace radoscopy;

namespace {

using Words = std::vector<std::string>;

std::string refusal(const Words& words) {
  try {
    (void)parse_options(words);
  } catch (const UsageError& e) {
    return std::string(e.what()) + (e.show_usage() ? "*" : "");
  }
  return "none";
}

std::string information(const char* word) {
  try {
    (void)parse_options({word});
  } catch (const Information& i) {
    return i.text;
  }
  return "none";
}

class CopyOptionsTest : public CPPUNIT_NS::TestFixture {
  CPPUNIT_TEST_SUITE(CopyOptionsTest);
  CPPUNIT_TEST(defaults);
  CPPUNIT_TEST(values);
  CPPUNIT_TEST(offload);
  CPPUNIT_TEST(targets);
  CPPUNIT_TEST(refused);
  CPPUNIT_TEST(informations);
  CPPUNIT_TEST(json);
  CPPUNIT_TEST_SUITE_END();

  void defaults() {
    const Options o = parse_options({"a", "b"});
    CPPUNIT_ASSERT(o.extents && !o.allocated && !o.flush && !o.progress);
    CPPUNIT_ASSERT(o.snapshot);
    CPPUNIT_ASSERT_EQUAL(4U, o.connections);
    CPPUNIT_ASSERT_EQUAL(64U, o.requests);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{4096}, o.sparse);
    CPPUNIT_ASSERT(!o.request_size && !o.queue_size && !o.progress_fd);
  }

  void values() {
    const Options o = parse_options(
        {"-C", "2", "a", "-R3", "--sparse=0", "--request-size", "65536",
         "--queue-size=1M", "-T0", "--progress=7", "--target-is-zero", "b",
          "--no-extents", "--no-snapshot", "--synchronous", "-v",
          "--bwlimit=10M", "--iops-limit=100", "--checksum=SHA256,sha512"});
    CPPUNIT_ASSERT_EQUAL(2U, o.connections);
    CPPUNIT_ASSERT_EQUAL(3U, o.requests);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, o.sparse);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{65536}, o.request_size.value());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{1 << 20}, o.queue_size.value());
    CPPUNIT_ASSERT_EQUAL(7, o.progress_fd.value());
    CPPUNIT_ASSERT(o.destination_is_zero && !o.extents && o.synchronous);
    CPPUNIT_ASSERT(o.verbose && o.progress && !o.snapshot);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{10 << 20}, o.bwlimit);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{100}, o.iops_limit);
    CPPUNIT_ASSERT(o.checksum == (Words{"sha256", "sha512"}));
    CPPUNIT_ASSERT_EQUAL(std::string("r"),
                         parse_options({"--ranges=r", "a", "b"}).ranges);
  }

  void offload() {
    using Offload = Options::Offload;
    const auto given = [](const std::string& option) {
      return parse_options({option, "a", "b"}).offload;
    };
    CPPUNIT_ASSERT(given("-v") == Offload::automatic);
    CPPUNIT_ASSERT(given("--offload=auto") == Offload::automatic);
    CPPUNIT_ASSERT(given("--offload=always") == Offload::always);
    CPPUNIT_ASSERT(given("--offload=never") == Offload::never);
  }

  void targets() {
    using Kind = Target::Kind;
    Options o = parse_options({"nbds://h/x", "null:"});
    CPPUNIT_ASSERT(o.source.kind == Kind::nbd);
    CPPUNIT_ASSERT(o.destination.kind == Kind::null);
    // Of a source that is a file.
    o = parse_options({"null:", "nbd+unix:///?socket=s"});
    CPPUNIT_ASSERT(o.source.kind == Kind::file);
    o = parse_options({"--", "[", "qemu-nbd", "-r", "f", "]", "-"});
    CPPUNIT_ASSERT(o.source.kind == Kind::command);
    CPPUNIT_ASSERT(o.source.command == (Words{"qemu-nbd", "-r", "f"}));
    CPPUNIT_ASSERT_EQUAL(std::string("-"), o.destination.text);
    o = parse_options({"--create=size=1M", "f", "rados:rbd/x?id=y"});
    CPPUNIT_ASSERT(o.destination.kind == Kind::rados);
    CPPUNIT_ASSERT_EQUAL(std::string("size=1M"), o.create.value());
  }

  void refused() {
    for (const Words& words :
         {Words{}, Words{"a"}, Words{"a", "b", "c"}, Words{"--bogus", "a"},
          Words{"[", "a", "b"}, Words{"[", "]", "b"},
          Words{"a", "[", "]"}, Words{"-C"}})
      CPPUNIT_ASSERT(refusal(words).ends_with('*'));
    for (const char* const word :
         {"-C0", "-R0", "-Cx", "-C-1", "--sparse=100", "--sparse=3000",
          "--request-size=2048", "--request-size=5000",
          "--request-size=33554433", "--queue-size=x", "--progress=-1",
          "--progress=x", "--bwlimit=0", "--iops-limit=0", "--ranges=",
          "--retries=-1", "--retries=3", "--checksum=", "--checksum=sha256,",
          "--checksum=sha256,SHA256",
          "--create",
          "--in-place"}) {
      const std::string text = refusal({word, "a", "b"});
      CPPUNIT_ASSERT_MESSAGE(word, text != "none" && !text.ends_with('*'));
    }
    CPPUNIT_ASSERT(refusal({"a", "rados:p/i"}).find("--in-place") !=
                   std::string::npos);
    CPPUNIT_ASSERT(refusal({"--create", "--in-place", "a", "rados:p/i"}) !=
                   "none");
    CPPUNIT_ASSERT(refusal({"--json", "a", "-"}) != "none");
    CPPUNIT_ASSERT(refusal({"--ranges=-", "-", "a"}) != "none");
    CPPUNIT_ASSERT(refusal({"--ranges=r", "--checksum=sha256", "a", "b"}) !=
                   "none");
    CPPUNIT_ASSERT(refusal({"--verify=x", "a", "b"}) != "none");
    CPPUNIT_ASSERT(refusal({"--offload=x", "a", "b"}) != "none");
    CPPUNIT_ASSERT(refusal({"--offload=always", "--allocated", "a", "b"}) !=
                   "none");
    CPPUNIT_ASSERT(refusal({"--verify=only", "--in-place", "a", "rados:p/i"}) !=
                   "none");
    CPPUNIT_ASSERT_EQUAL(std::string("none"),
                         refusal({"--verify=only", "a", "rados:p/i"}));
  }

  void informations() {
    const std::string all = information("--long-options");
    CPPUNIT_ASSERT(all.starts_with("--help\n--allocated\n"));
    CPPUNIT_ASSERT(all.find("-options") == std::string::npos);
    CPPUNIT_ASSERT_EQUAL(std::string("-C\n-p\n-R\n-S\n-T\n-v\n-V\n"),
                         information("--short-options"));
    CPPUNIT_ASSERT(information("--version").starts_with("radoscopy "));
    // Each option is in the usage.
    for (std::size_t at = 0, end; at < all.size(); at = end + 1) {
      end = all.find('\n', at);
      CPPUNIT_ASSERT(usage().find(all.substr(at, end - at)) !=
                     std::string::npos);
    }
  }

  // What is not UTF-8 does not stay.
  void json() {
    const auto same = [](const std::string& text) {
      return json_string(text) == '"' + text + '"';
    };
    for (const char* const good :
         {"", "a/b", "\u00e4", "\u20ac", "\U0001d11e",
          "\xed\x9f\xbf", "\xf4\x8f\xbf\xbf"})
      CPPUNIT_ASSERT_MESSAGE(good, same(good));
    CPPUNIT_ASSERT_EQUAL(std::string("\"\\\"\\\\\\u000a\""),
                         json_string("\"\\\n"));
    const std::pair<const char*, int> bad[] = {
        {"\x80", 1},         {"\xc0\x80", 2},         {"\xc3", 1},
        {"\xe0\x9f\xbf", 3}, {"\xed\xa0\x80", 3},     {"\xe2\x82", 2},
        {"\xff", 1},         {"\xf0\x8f\xbf\xbf", 4}, {"\xf4\x90\x80\x80", 4}};
    for (const auto& [text, count] : bad) {
      std::string wanted = "\"x";
      for (int i = 0; i < count; ++i) wanted += "\\ufffd";
      CPPUNIT_ASSERT_EQUAL(wanted + "y\"",
                           json_string(std::string("x") + text + "y"));
    }
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(CopyOptionsTest);

}  // namespace
