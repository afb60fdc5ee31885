// SPDX-License-Identifier: BSD-3-Clause
//
// What NBD servers answer, taken apart: what the protocol allows, and what it
// does not.

#include <cppunit/extensions/HelperMacros.h>

#include <cerrno>
#include <random>
#include <string>
#include <vector>

#include "copy/nbd/reply_parser.hpp"
#include "fake-nbd-server.hpp"
#include "rados/error.hpp"

using namespace nbdrados;
using namespace nbdrados::copy::nbd;

namespace {

/// What a stream of replies says, as lines; payload is what comes.
struct Reader {
  explicit Reader(bool structured) : parser(structured) {}

  std::uint64_t read(std::uint64_t offset, std::uint32_t length) {
    return parser.begin(Command::read, offset, length);
  }

  /// In pieces of at most `most` bytes; `careful`: never more than wanted().
  void take(std::string bytes, std::size_t most = SIZE_MAX,
            bool careful = false) {
    while (!bytes.empty()) {
      if (parser.payload_left() != 0) {
        const std::size_t n =
            std::min<std::size_t>({bytes.size(), parser.payload_left(), most});
        said += "<" + bytes.substr(0, n) + ">";
        bytes.erase(0, n);
        parser.moved(static_cast<std::uint32_t>(n));
      } else {
        const std::size_t wanted = careful ? parser.wanted() : bytes.size();
        std::string piece =
            bytes.substr(0, std::min({wanted, most, bytes.size()}));
        bytes.erase(0, piece.size());
        while (!piece.empty()) {
          // Only wanted() promises that none of it is payload.
          if (parser.payload_left() != 0) {
            CPPUNIT_ASSERT(!careful);
            break;
          }
          piece.erase(0, parser.feed(piece));
          tell();
        }
        bytes.insert(0, piece);
      }
      tell();
    }
  }

  void tell() {
    while (const auto e = parser.next()) {
      const std::string c = std::to_string(ReplyParser::slot(e->cookie));
      const std::string range =
          std::to_string(e->offset) + "+" + std::to_string(e->length);
      switch (e->kind) {
        case Event::Kind::payload:
          said += c + ":" + range;
          break;
        case Event::Kind::hole:
          said += c + ":hole " + range + " ";
          break;
        case Event::Kind::status:
          said += c + ":status";
          for (const StatusExtent& s : parser.status())
            said += " " + std::to_string(s.length) + "/" +
                    std::to_string(s.flags);
          said += " ";
          break;
        case Event::Kind::finished:
          said += c + ":end " + std::to_string(e->error) + " ";
      }
    }
  }

  ReplyParser parser;
  std::string said;
};

class NbdWireTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(NbdWireTest);
  CPPUNIT_TEST(requests);
  CPPUNIT_TEST(simple_replies);
  CPPUNIT_TEST(structured_replies);
  CPPUNIT_TEST(chunks_in_any_order);
  CPPUNIT_TEST(errors);
  CPPUNIT_TEST(block_status);
  CPPUNIT_TEST(cookies_are_used_again);
  CPPUNIT_TEST(violations_of_simple_replies);
  CPPUNIT_TEST(violations_of_chunks);
  CPPUNIT_TEST(violations_of_content);
  CPPUNIT_TEST(violations_of_errors_and_status);
  CPPUNIT_TEST(any_pieces_say_the_same);
  CPPUNIT_TEST_SUITE_END();

 public:
  void requests() {
    std::array<char, request_bytes> bytes{};
    encode({.command = Command::write_zeroes,
            .flags = flag_no_hole,
            .cookie = 0x0102030405060708,
            .offset = 0x1112131415161718,
            .length = 0x21222324},
           bytes);
    const std::string expected =
        be(4, 0x25609513) + be(2, 2) + be(2, 6) + be(8, 0x0102030405060708) +
        be(8, 0x1112131415161718) + be(4, 0x21222324);
    CPPUNIT_ASSERT(std::string(bytes.data(), bytes.size()) == expected);
  }

  void simple_replies() {
    Reader r(false);
    const auto a = r.read(512, 4), b = r.read(1024, 3);
    const auto w = r.parser.begin(Command::write, 0, 9);
    r.take(simple_reply(b, 0) + "xyz" + simple_reply(w, 28) +
           simple_reply(a, 0) + "abcd");
    says(r, "1:1024+3<xyz>1:end 0 2:end " + std::to_string(ENOSPC) +
                " 0:512+4<abcd>0:end 0 ");
    const auto c = r.read(0, 100);
    r.take(simple_reply(c, 5));
    says(r, "0:end " + std::to_string(EIO) + " ");
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, r.parser.in_flight());
  }

  void structured_replies() {
    Reader r(true);
    auto a = r.read(512, 4);
    r.take(data_chunk(a, true, 512, "abcd"));
    says(r, "0:512+4<abcd>0:end 0 ");
    a = r.read(512, 4);
    r.take(data_chunk(a, false, 512, "abcd"));
    says(r, "0:512+4<abcd>");
    r.take(chunk(a, 0, true, ""));
    says(r, "0:end 0 ");
    a = r.read(512, 4096);
    r.take(chunk(a, 2, true, be(8, 512) + be(4, 4096)));
    says(r, "0:hole 512+4096 0:end 0 ");
    // Unknown flags are ignored.
    a = r.parser.begin(Command::flush, 0, 0);
    std::string none = chunk(a, 0, true, "");
    none[4] = 0x40;
    r.take(none);
    says(r, "0:end 0 ");
    // What has no payload may be answered simply.
    a = r.parser.begin(Command::write, 0, 10);
    r.take(simple_reply(a, 0));
    says(r, "0:end 0 ");
  }

  void chunks_in_any_order() {
    Reader r(true);
    const auto a = r.read(100, 10), b = r.read(0, 4);
    r.take(data_chunk(a, false, 106, "gh") + data_chunk(b, false, 2, "34") +
           data_chunk(a, false, 100, "abc") + data_chunk(b, true, 0, "12") +
           chunk(a, 2, false, be(8, 108) + be(4, 2)) +
           data_chunk(a, false, 103, "def") + chunk(a, 0, true, ""));
    says(r,
         "0:106+2<gh>1:2+2<34>0:100+3<abc>1:0+2<12>1:end 0 0:hole 108+2 "
         "0:103+3<def>0:end 0 ");
  }

  void errors() {
    Reader r(true);
    auto a = r.read(100, 10);
    // Before data, with data that are padding, without a message, with more
    // data than none.
    r.take(chunk(a, 0x8001, false, be(4, 28) + be(2, 3) + "why") +
           data_chunk(a, true, 100, "0123456789"));
    says(r, "0:100+10<0123456789>0:end " + std::to_string(ENOSPC) + " ");
    a = r.read(100, 10);
    r.take(data_chunk(a, false, 100, "01234") +
           chunk(a, 0x8002, false, be(4, 5) + be(2, 0) + be(8, 103)) +
           chunk(a, 0x8001, true, be(4, 1) + be(2, 0)));
    says(r, "0:100+5<01234>0:end " + std::to_string(EIO) + " ");
    // A type that nobody knows, with fields behind the message, and a number
    // that the protocol does not have.
    a = r.read(100, 10);
    r.take(chunk(a, 0x9234, true, be(4, 4711) + be(2, 2) + "no" + "further"));
    says(r, "0:end " + std::to_string(EINVAL) + " ");
    a = r.read(100, 10);
    r.take(simple_reply(a, 108));
    says(r, "0:end " + std::to_string(ESHUTDOWN) + " ");
    const std::vector<std::pair<std::uint32_t, int>> numbers = {
        {1, EPERM},   {5, EIO},         {12, ENOMEM},  {22, EINVAL},
        {28, ENOSPC}, {75, EOVERFLOW}, {95, ENOTSUP}, {108, ESHUTDOWN},
        {2, EINVAL},  {0xffffffff, EINVAL}};
    for (const auto& [wire, code] : numbers)
      CPPUNIT_ASSERT_EQUAL(code, errno_of(wire));
  }

  void block_status() {
    Reader r(true);
    auto a = r.parser.begin(Command::block_status, 0, 8192);
    r.take(chunk(a, 5, true, be(4, 7) + be(4, 4096) + be(4, 0) +
                                 be(4, 0xfffff000) + be(4, 3)));
    says(r, "0:status 4096/0 4294963200/3 0:end 0 ");
    a = r.parser.begin(Command::block_status, 0, 8192);
    r.take(chunk(a, 0x8001, true, be(4, 5) + be(2, 0)));
    says(r, "0:end " + std::to_string(EIO) + " ");
  }

  void cookies_are_used_again() {
    Reader r(true);
    const auto a = r.read(0, 4);
    r.take(data_chunk(a, true, 0, "abcd"));
    const auto b = r.read(0, 4);
    CPPUNIT_ASSERT(a != b);
    CPPUNIT_ASSERT_EQUAL(ReplyParser::slot(a), ReplyParser::slot(b));
    refused(r, simple_reply(a, 5), "to no request");
  }

  void violations_of_simple_replies() {
    const auto refuse = [](const std::string& reply, const char* why,
                           bool structured = false) {
      Reader r(structured);
      CPPUNIT_ASSERT_EQUAL(std::uint64_t{1} << 32, r.read(0, 4));
      refused(r, reply, why);
    };
    const std::uint64_t c = std::uint64_t{1} << 32;
    refuse(be(4, 0x67446699) + std::string(12, 0), "wrong bytes");
    refuse(std::string(16, '\0'), "wrong bytes");
    refuse(data_chunk(c, true, 0, "abcd"), "wrong bytes");
    for (const std::uint64_t wrong :
         {std::uint64_t{0}, c + 1, c << 1, ~std::uint64_t{0}})
      refuse(simple_reply(wrong, 0), "to no request");
    refuse(simple_reply(c, 0) + "abcd" + simple_reply(c, 0), "to no request");
    refuse(simple_reply(c, 5) + simple_reply(c, 5), "to no request");
    refuse(simple_reply(c, 0) + "abcdef" + simple_reply(c, 0), "wrong bytes");
    refuse(simple_reply(c, 0), "simple reply to a request for data", true);
    refuse(data_chunk(c, false, 0, "ab") + simple_reply(c, 5), "after chunks",
           true);
  }

  void violations_of_chunks() {
    const auto refuse = [](const std::string& reply, const char* why) {
      Reader r(true);
      (void)r.read(0, 4);
      refused(r, reply, why);
    };
    const std::uint64_t c = std::uint64_t{1} << 32;
    refuse(chunk(c, 3, true, ""), "unknown type 3");
    refuse(chunk(c, 0x7fff, false, "abc"), "unknown type 32767");
    refuse(chunk(c, 6, true, std::string(16, 0)), "unknown type 6");
    refuse(chunk(c, 0, true, "a"), "length");
    refuse(chunk(c, 0, false, ""), "not the last");
    refuse(chunk(c, 1, true, be(8, 0)), "length");
    refuse(chunk(c, 1, true, ""), "length");
    refuse(chunk(c, 2, true, be(8, 0) + be(4, 4) + "x"), "length");
    refuse(chunk(c, 2, true, be(8, 0)), "length");
    refuse(data_chunk(c + 1, true, 0, "abcd"), "to no request");
    refuse(data_chunk(c, true, 0, "abcd") + chunk(c, 0, true, ""),
           "to no request");
    // Not received before it is refused.
    refuse(be(4, structured_reply_magic) + be(2, 1) + be(2, 0x8001) + be(8, c) +
               be(4, 0x7fffffff),
           "length");
  }

  void violations_of_content() {
    const auto refuse = [](const std::string& reply, const char* why) {
      Reader r(true);
      (void)r.read(100, 4);
      refused(r, reply, why);
    };
    const std::uint64_t c = std::uint64_t{1} << 32;
    const auto hole = [&](std::uint64_t offset, std::uint32_t n) {
      return chunk(c, 2, false, be(8, offset) + be(4, n));
    };
    for (const std::uint64_t outside :
         {std::uint64_t{0}, std::uint64_t{99}, std::uint64_t{103},
          std::uint64_t{104}, ~std::uint64_t{0}, ~std::uint64_t{0} - 1}) {
      refuse(data_chunk(c, false, outside, "ab"), "outside");
      refuse(hole(outside, 2), "outside");
    }
    refuse(data_chunk(c, false, 100, "abcde"), "outside");
    refuse(hole(100, 0xffffffff), "outside");
    refuse(hole(100, 0), "no bytes");
    refuse(data_chunk(c, true, 100, "ab"), "before all");
    refuse(chunk(c, 0, true, ""), "before all");
    for (const std::string& twice :
         {data_chunk(c, false, 100, "abcd") + data_chunk(c, false, 100, "a"),
          data_chunk(c, false, 100, "ab") + data_chunk(c, false, 101, "bc"),
          data_chunk(c, false, 102, "cd") + data_chunk(c, false, 101, "bc"),
          data_chunk(c, false, 101, "b") + hole(100, 4), hole(100, 1) +
              hole(100, 1),
          data_chunk(c, false, 100, "a") + data_chunk(c, false, 102, "c") +
              data_chunk(c, false, 101, "bc")})
      refuse(twice, "twice");
    Reader w(true);
    const auto write = w.parser.begin(Command::write, 100, 4);
    refused(w, data_chunk(write, true, 100, "abcd"), "no read");
  }

  void violations_of_errors_and_status() {
    const auto refuse = [](Command command, const std::string& reply,
                           const char* why) {
      Reader r(true);
      (void)r.parser.begin(command, 100, 4);
      refused(r, reply, why);
    };
    const std::uint64_t c = std::uint64_t{1} << 32;
    const auto error = [&](unsigned type, const std::string& payload) {
      return chunk(c, type, true, payload);
    };
    using enum Command;
    refuse(read, error(0x8001, be(4, 5)), "length");
    refuse(read, error(0x8001, be(4, 0) + be(2, 0)), "none");
    refuse(read, error(0x8001, be(4, 5) + be(2, 1)), "too long");
    refuse(read, error(0x8001, be(4, 5) + be(2, 4097) + std::string(4097, 'x')),
           "too long");
    refuse(read, error(0x8002, be(4, 5) + be(2, 0) + be(4, 0)), "length");
    refuse(read, error(0x8002, be(4, 5) + be(2, 1) + be(8, 100)), "too long");
    refuse(read, error(0x8002, be(4, 5) + be(2, 0) + be(8, 99)), "outside");
    refuse(read, error(0x8002, be(4, 5) + be(2, 0) + be(8, 105)), "outside");
    refuse(read, error(5, be(4, 1) + be(4, 4) + be(4, 0)), "another request");
    refuse(block_status, error(5, be(4, 1)), "length");
    refuse(block_status, error(5, be(4, 1) + be(4, 4)), "length");
    refuse(block_status, error(5, be(4, 1) + be(4, 0) + be(4, 0)), "no bytes");
    refuse(block_status, error(0, ""), "without block status");
    refuse(block_status, simple_reply(c, 0), "simple reply");
    const std::string one = be(4, 1) + be(4, 4) + be(4, 0);
    refuse(block_status, chunk(c, 5, false, one) + error(5, one), "twice");
  }

  // However the bytes come, and if no more are taken than wanted() says.
  void any_pieces_say_the_same() {
    std::mt19937 random(4);
    for (int round = 0; round < 300; ++round) {
      const bool structured = round % 4 != 0;
      std::string stream;
      std::string data = "0123456789abcdefghij";
      Reader whole(structured), careful(structured), pieces(structured);
      for (int i = 0; i < 6; ++i) {
        const std::uint64_t c = whole.read(0, 20);
        (void)careful.read(0, 20);
        (void)pieces.read(0, 20);
        const unsigned kind = random() % 5;
        const std::size_t cut = 1 + random() % 19;
        if (!structured)
          stream += kind == 0 ? simple_reply(c, 5) : simple_reply(c, 0) + data;
        else if (kind == 0)
          stream += chunk(c, 0x8001, true, be(4, 5) + be(2, 2) + "no");
        else if (kind == 1)
          stream += data_chunk(c, false, cut, data.substr(cut)) +
                    data_chunk(c, true, 0, data.substr(0, cut));
        else if (kind == 2)
          stream += chunk(c, 2, false, be(8, 0) + be(4, cut)) +
                    data_chunk(c, true, cut, data.substr(cut));
        else if (kind == 3)
          stream += simple_reply(c, 5);
        else
          stream += data_chunk(c, false, 0, data) + chunk(c, 0, true, "");
      }
      whole.take(stream);
      careful.take(stream, SIZE_MAX, true);
      pieces.take(stream, 1 + random() % 40);
      CPPUNIT_ASSERT_EQUAL(whole.said, careful.said);
      // Pieces cut payload.
      std::string joined = pieces.said;
      for (std::size_t at; (at = joined.find("><")) != std::string::npos;)
        joined.erase(at, 2);
      CPPUNIT_ASSERT_EQUAL(whole.said, joined);
      CPPUNIT_ASSERT_EQUAL(std::size_t{0}, whole.parser.in_flight());
    }
  }

 private:
  static void says(Reader& reader, const std::string& expected) {
    CPPUNIT_ASSERT_EQUAL(expected, reader.said);
    reader.said.clear();
  }

  static void refused(Reader& reader, const std::string& bytes,
                      const std::string& why) {
    try {
      reader.take(bytes);
    } catch (const Error& e) {
      CPPUNIT_ASSERT_EQUAL(EPROTO, e.code());
      CPPUNIT_ASSERT_MESSAGE(
          std::string(e.what()) + " instead of " + why,
          std::string(e.what()).find(why) != std::string::npos);
      return;
    }
    CPPUNIT_FAIL("taken: " + why);
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(NbdWireTest);

}  // namespace
