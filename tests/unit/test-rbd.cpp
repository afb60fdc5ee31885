// SPDX-License-Identifier: BSD-3-Clause
//
// The codecs of RBD headers, the directory, locks and striper attributes.
//
// The vectors are what Ceph 16.2.15 wrote or answered: headers read back
// after `rbd resize` and `rbd snap` had changed them, and the replies of the
// object classes.  Vectors that are made by hand say so.

#include <cppunit/extensions/HelperMacros.h>

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/striper_metadata.hpp"
#include "rados/error.hpp"
#include "rbd/cls_lock.hpp"
#include "rbd/directory.hpp"
#include "rbd/encoding.hpp"
#include "rbd/features.hpp"
#include "rbd/format1.hpp"
#include "rbd/format2.hpp"

using namespace nbdrados;

namespace {

std::string unhex(std::string_view text) {
  std::string out;
  int high = -1;
  for (const char c : text) {
    if (c == ' ') continue;
    const int digit = c >= 'a' ? c - 'a' + 10 : c - '0';
    CPPUNIT_ASSERT_MESSAGE("bad vector", digit >= 0 && digit < 16);
    if (high < 0) {
      high = digit;
    } else {
      out += static_cast<char>(high * 16 + digit);
      high = -1;
    }
  }
  CPPUNIT_ASSERT_MESSAGE("bad vector", high < 0);
  return out;
}

std::string hex(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    out += "0123456789abcdef"[byte >> 4];
    out += "0123456789abcdef"[byte & 15];
  }
  return out;
}

std::string le(std::uint64_t value, unsigned size) {
  std::string out;
  for (unsigned i = 0; i < size; ++i)
    out += static_cast<char>(static_cast<unsigned char>(value >> (8 * i)));
  return out;
}

// With a 32-bit length in front.
std::string with_length(std::string_view bytes) {
  return le(bytes.size(), 4) + std::string(bytes);
}

void put(std::string& in, std::size_t at, std::string_view bytes) {
  CPPUNIT_ASSERT(at + bytes.size() <= in.size());
  in.replace(at, bytes.size(), bytes);
}

// `call` throws an Error with this code and exactly this message.
void refused(const std::function<void()>& call, int code,
             const std::string& message) {
  try {
    call();
  } catch (const Error& e) {
    CPPUNIT_ASSERT_EQUAL(message, std::string(e.what()));
    CPPUNIT_ASSERT_EQUAL(code, e.code());
    return;
  }
  CPPUNIT_FAIL("not refused: " + message);
}

bool printable(std::string_view text) {
  for (const char c : text)
    if (c < 0x20 || c >= 0x7f) return false;
  return true;
}

// Each proper prefix of `bytes` of at least `from` bytes is refused, with
// the name of the structure in front.
void refused_cut_off(const std::function<void(std::string_view)>& decode,
                     const std::string& bytes, const std::string& what,
                     std::size_t from = 0) {
  decode(bytes);
  for (std::size_t n = from; n < bytes.size(); ++n) {
    // A copy of that size: valgrind and AddressSanitizer see its end.
    const std::string cut(bytes, 0, n);
    try {
      decode(cut);
    } catch (const Error& e) {
      const std::string message = e.what();
      CPPUNIT_ASSERT_EQUAL(EIO, e.code());
      CPPUNIT_ASSERT_MESSAGE(message, message.starts_with(what + ": "));
      CPPUNIT_ASSERT_MESSAGE(message, printable(message));
      continue;
    }
    CPPUNIT_FAIL(what + ": not refused at " + std::to_string(n) + " bytes");
  }
}

// Each value of each byte is taken or refused with EIO; what is taken passes
// `check`.
void any_byte(const std::function<void(std::string_view)>& check,
              const std::string& bytes) {
  std::size_t taken = 0;
  std::size_t refusals = 0;
  for (std::size_t at = 0; at < bytes.size(); ++at)
    for (unsigned value = 0; value < 256; ++value) {
      std::string changed = bytes;
      changed[at] = static_cast<char>(static_cast<unsigned char>(value));
      try {
        check(changed);
        ++taken;
      } catch (const Error& e) {
        CPPUNIT_ASSERT_EQUAL(EIO, e.code());
        CPPUNIT_ASSERT_MESSAGE(e.what(), printable(e.what()));
        ++refusals;
      }
    }
  CPPUNIT_ASSERT(taken > 0 && refusals > 0);
}

constexpr std::uint64_t two_63 = std::uint64_t{1} << 63;

// --------------------------------------------------------------- encoding

class EncodingTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(EncodingTest);
  CPPUNIT_TEST(numbers);
  CPPUNIT_TEST(strings);
  CPPUNIT_TEST(too_short);
  CPPUNIT_TEST(counts);
  CPPUNIT_TEST(frames);
  CPPUNIT_TEST(end);
  CPPUNIT_TEST(quoting);
  CPPUNIT_TEST(object_names);
  CPPUNIT_TEST_SUITE_END();

 public:
  void numbers() {
    Encoder out;
    out.u8(0xf1).u16(0x8182).u32(0xa1a2a3a4).u64(0xb1b2b3b4b5b6b7b8).i64(-2);
    CPPUNIT_ASSERT_EQUAL(
        std::string("f18281a4a3a2a1b8b7b6b5b4b3b2b1feffffffffffffff"),
        hex(out.str()));
    Decoder in(out.str(), "test");
    CPPUNIT_ASSERT_EQUAL(0xf1u, unsigned{in.u8("a")});
    CPPUNIT_ASSERT_EQUAL(0x8182u, unsigned{in.u16("b")});
    CPPUNIT_ASSERT_EQUAL(std::uint32_t{0xa1a2a3a4}, in.u32("c"));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0xb1b2b3b4b5b6b7b8}, in.u64("d"));
    CPPUNIT_ASSERT_EQUAL(std::size_t{8}, in.remaining());
    CPPUNIT_ASSERT_EQUAL(std::int64_t{-2}, in.i64("e"));
    in.expect_end();
  }

  void strings() {
    Encoder out;
    out.string("abc").string("").bytes("xy");
    CPPUNIT_ASSERT_EQUAL(std::string("03000000616263000000007879"),
                         hex(out.str()));
    Decoder in(out.str(), "test");
    CPPUNIT_ASSERT_EQUAL(std::string("abc"), in.string("s"));
    CPPUNIT_ASSERT_EQUAL(std::string(), in.string("s"));
    CPPUNIT_ASSERT_EQUAL(std::string("xy"), std::string(in.bytes(2, "b")));
    CPPUNIT_ASSERT_EQUAL(std::string(), std::string(in.bytes(0, "b")));

    Decoder empty(std::string_view("\0\0\0\0", 4), "test");
    refused([&] { (void)empty.name("name"); }, EIO, "test: name is empty");
    Decoder nul(std::string_view("\3\0\0\0a\0b", 7), "test");
    refused([&] { (void)nul.name("name"); }, EIO,
            "test: name \"a\\x00b\" has a NUL byte in it");
  }

  void too_short() {
    const std::string one(1, 'x');
    const auto decoder = [&] { return Decoder(one, "test"); };
    refused([&] { (void)Decoder({}, "test").u8("f"); }, EIO,
            "test: f needs 1 byte, 0 left");
    refused([&] { (void)decoder().u16("f"); }, EIO,
            "test: f needs 2 bytes, 1 left");
    refused([&] { (void)decoder().u32("f"); }, EIO,
            "test: f needs 4 bytes, 1 left");
    refused([&] { (void)decoder().u64("f"); }, EIO,
            "test: f needs 8 bytes, 1 left");
    refused([&] { (void)decoder().i64("f"); }, EIO,
            "test: f needs 8 bytes, 1 left");
    refused([&] { (void)decoder().bytes(SIZE_MAX, "f"); }, EIO,
            "test: f needs 18446744073709551615 bytes, 1 left");
    refused([&] { (void)decoder().string("f"); }, EIO,
            "test: f needs 4 bytes, 1 left");
    Decoder longer(std::string_view("\xff\xff\xff\xff" "abc", 7), "test");
    refused([&] { (void)longer.string("f"); }, EIO,
            "test: f needs 4294967295 bytes, 3 left");
  }

  void counts() {
    const std::string three = le(3, 4) + std::string(24, 'x');
    CPPUNIT_ASSERT_EQUAL(std::size_t{3}, Decoder(three, "test").count(8, "n"));
    refused([&] { (void)Decoder(three, "test").count(9, "n"); }, EIO,
            "test: n 3 is more than 24 bytes can hold");
    const std::string most = le(UINT32_MAX, 4) + "y";
    refused([&] { (void)Decoder(most, "test").count(1, "n"); }, EIO,
            "test: n 4294967295 is more than 1 byte can hold");
  }

  void frames() {
    Encoder out;
    out.frame(3, 2, [&] {
      out.u8(7).frame(1, 1, [&] { out.string("inner"); });
      out.u32(99);  // what a reader of version 2 does not know
    });
    out.u8(8);
    CPPUNIT_ASSERT_EQUAL(std::string("0302140000000701010900000005000000"
                                     "696e6e65726300000008"),
                         hex(out.str()));
    Decoder outer(out.str(), "test");
    Decoder in = outer.frame(2, "frame");
    CPPUNIT_ASSERT_EQUAL(0u, outer.version());
    CPPUNIT_ASSERT_EQUAL(3u, in.version());
    CPPUNIT_ASSERT_EQUAL(7u, unsigned{in.u8("seven")});
    CPPUNIT_ASSERT_EQUAL(std::string("inner"),
                         in.frame(1, "inner").string("text"));
    // What is left in the frame is skipped, and what is behind it is not
    // reached from inside.
    CPPUNIT_ASSERT_EQUAL(8u, unsigned{outer.u8("eight")});
    (void)in.u32("tail");
    refused([&] { (void)in.u8("beyond"); }, EIO,
            "test: beyond needs 1 byte, 0 left");

    refused([&] { (void)Decoder(out.str(), "test").frame(1, "frame"); }, EIO,
            "test: frame has version 3 and asks readers to understand "
            "version 2, this one understands 1");
    refused(
        [&] {
          (void)Decoder(std::string_view("\1\1\3\0\0\0ab", 8), "test")
              .frame(1, "frame");
        },
        EIO, "test: frame needs 3 bytes, 2 left");
  }

  void end() {
    Decoder in("abc", "test");
    refused([&] { in.expect_end(); }, EIO, "test: 3 bytes too many");
    (void)in.bytes(2, "f");
    refused([&] { in.expect_end(); }, EIO, "test: 1 byte too many");
    (void)in.bytes(1, "f");
    in.expect_end();
  }

  void quoting() {
    CPPUNIT_ASSERT_EQUAL(std::string("\"\""), in_quotes(""));
    CPPUNIT_ASSERT_EQUAL(std::string("\"a b~\""), in_quotes("a b~"));
    CPPUNIT_ASSERT_EQUAL(
        std::string("\"\\\"\\\\\\x00\\x0a\\x1f\\x7f\\x80\\xff\""),
        in_quotes(std::string_view("\"\\\0\n\x1f\x7f\x80\xff", 8)));
    CPPUNIT_ASSERT_EQUAL('"' + std::string(64, 'n') + '"',
                         in_quotes(std::string(64, 'n')));
    CPPUNIT_ASSERT_EQUAL('"' + std::string(64, 'n') + "\"... (65 bytes)",
                         in_quotes(std::string(65, 'n')));
  }

  void object_names() {
    const auto name = [](std::uint64_t n) {
      return numbered_oid("p", n, 12);
    };
    CPPUNIT_ASSERT_EQUAL(std::string("p.000000000000"), name(0));
    CPPUNIT_ASSERT_EQUAL(std::string("p.00000000001f"), name(0x1f));
    CPPUNIT_ASSERT_EQUAL(std::string("p.fedcba987654"), name(0xfedcba987654));
    // %012x is a minimum.
    CPPUNIT_ASSERT_EQUAL(std::string("p.1000000000000"), name(0x1000000000000));
    CPPUNIT_ASSERT_EQUAL(std::string("p.ffffffffffffffff"), name(UINT64_MAX));
    CPPUNIT_ASSERT_EQUAL(std::string("NAME.rbd"), format1_header_oid("NAME"));
    CPPUNIT_ASSERT_EQUAL(std::string("rb.0.1.2.00000000000a"),
                         format1_data_oid("rb.0.1.2", 10));
    CPPUNIT_ASSERT_EQUAL(std::string("rbd_id.NAME"), format2_id_oid("NAME"));
    CPPUNIT_ASSERT_EQUAL(std::string("rbd_header.1f"),
                         format2_header_oid("1f"));
    CPPUNIT_ASSERT_EQUAL(std::string("rbd_data.1.1f.0000000000000abc"),
                         format2_data_oid("rbd_data.1.1f", 0xabc));
    CPPUNIT_ASSERT_EQUAL(std::string("rbd_object_map.24adca47376b"),
                         format2_object_map_oid("24adca47376b", snap_head));
    CPPUNIT_ASSERT_EQUAL(
        std::string("rbd_object_map.24adca47376b.0000000000000009"),
        format2_object_map_oid("24adca47376b", 9));
    CPPUNIT_ASSERT_EQUAL(std::string("a.b.0000000000000001"),
                         striper_oid("a.b", 1));
  }
};

// --------------------------------------------------------------- features

class FeaturesTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(FeaturesTest);
  CPPUNIT_TEST(names);
  CPPUNIT_TEST(operations);
  CPPUNIT_TEST_SUITE_END();

 public:
  void names() {
    CPPUNIT_ASSERT_EQUAL(std::string(), feature_names(0));
    CPPUNIT_ASSERT_EQUAL(
        std::string("layering, exclusive-lock, unknown bit 40"),
        feature_names(feature_layering | feature_exclusive_lock |
                      std::uint64_t{1} << 40));
    CPPUNIT_ASSERT_EQUAL(
        std::string("layering, striping, exclusive-lock, object-map, "
                    "fast-diff, deep-flatten, journaling, data-pool, "
                    "operations, migrating, non-primary, dirty-cache"),
        feature_names(features_known));
    CPPUNIT_ASSERT_EQUAL(std::string("dirty-cache"),
                         feature_names(feature_dirty_cache));
    CPPUNIT_ASSERT_EQUAL(std::string("unknown bit 12, unknown bit 63"),
                         feature_names(std::uint64_t{1} << 12 | two_63));
  }

  void operations() {
    CPPUNIT_ASSERT_EQUAL(
        std::string("clone-parent, clone-child, group, snap-trash, "
                    "unknown bit 4"),
        op_feature_names(0x1f));
    CPPUNIT_ASSERT_EQUAL(std::string("group"), op_feature_names(4));
  }
};

// --------------------------------------------------------------- format 1

// 4 MiB objects, 20 MiB, after resizing and four `rbd snap` commands.
const char f1_two_snapshots[] =
    "3c3c3c205261646f7320426c6f636b2044657669636520496d616765203e3e3e"
    "0a00000000000000"
    "72622e302e313233342e61626364 00000000000000000000"
    "52424400 3030312e30303500 16000000"
    "0000400100000000 0400000000000000 02000000 00000000 1100000000000000"
    "0400000000000000 0000400100000000"
    "0200000000000000 0000a00000000000"
    "7765646e657364617900 6d6f6e64617900";

Format1Header f1_value() {
  Format1Header header;
  header.object_prefix = "rb.0.1234.abcd";
  header.order = 22;
  header.size = 20 << 20;
  header.snap_seq = 4;
  header.snapshots = {{4, 20 << 20, "wednesday"}, {2, 10 << 20, "monday"}};
  return header;
}

class Format1Test : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(Format1Test);
  CPPUNIT_TEST(real_header);
  CPPUNIT_TEST(new_header);
  CPPUNIT_TEST(real_odd_names);
  CPPUNIT_TEST(cut_off);
  CPPUNIT_TEST(texts);
  CPPUNIT_TEST(orders);
  CPPUNIT_TEST(sizes);
  CPPUNIT_TEST(prefixes);
  CPPUNIT_TEST(counts);
  CPPUNIT_TEST(snapshots);
  CPPUNIT_TEST(encode_refuses);
  CPPUNIT_TEST(each_byte);
  CPPUNIT_TEST_SUITE_END();

  static void bad(std::size_t at, std::string_view bytes,
                  const std::string& problem) {
    std::string changed = unhex(f1_two_snapshots);
    put(changed, at, bytes);
    refused([&] { (void)decode_format1(changed); }, EIO,
            "format 1 header: " + problem);
  }

 public:
  void real_header() {
    const std::string bytes = unhex(f1_two_snapshots);
    const Format1Header header = decode_format1(bytes);
    CPPUNIT_ASSERT(f1_value() == header);
    CPPUNIT_ASSERT_EQUAL(hex(bytes), hex(encode_format1(header)));
    const SnapContext snapc = header.snap_context();
    CPPUNIT_ASSERT_EQUAL(SnapId{4}, snapc.seq);
    CPPUNIT_ASSERT(snapc.snaps == (std::vector<SnapId>{4, 2}));
    // As librbd and the kernel do.
    CPPUNIT_ASSERT(header == decode_format1(bytes + "behind"));
  }

  void new_header() {
    Format1Header header;
    header.object_prefix = "rb.0.9.9";
    header.order = 20;
    header.size = 1 << 20;
    const std::string bytes = encode_format1(header);
    CPPUNIT_ASSERT_EQUAL(format1_header_size, bytes.size());
    CPPUNIT_ASSERT(header == decode_format1(bytes));
    CPPUNIT_ASSERT(header.snap_context() == SnapContext{});
  }

  void real_odd_names() {
    // `rbd snap create` takes spaces, UTF-8 and 300 characters.
    Format1Header header;
    header.object_prefix = "rb.0.9.9";
    header.order = 22;
    header.size = 1 << 20;
    header.snap_seq = 4;
    header.snapshots = {{4, 1 << 20, std::string(300, 'n')},
                        {3, 1 << 20, "\xc3\xbcn\xc3\xaf"},
                        {2, 1 << 20, "sp ace"}};
    CPPUNIT_ASSERT(header == decode_format1(encode_format1(header)));
  }

  void cut_off() {
    refused_cut_off([](std::string_view in) { (void)decode_format1(in); },
                    unhex(f1_two_snapshots), "format 1 header");
    refused([] { (void)decode_format1({}); }, EIO,
            "format 1 header: it needs at least 112 bytes, the object has 0");
    refused(
        [] {
          (void)decode_format1(unhex(f1_two_snapshots).substr(0, 112));
        },
        EIO, "format 1 header: snap_count 2 is more than 0 bytes can hold");
    refused(
        [] {
          (void)decode_format1(unhex(f1_two_snapshots).substr(0, 160));
        },
        EIO,
        "format 1 header: snap_names_len 17 is more than the 16 bytes left");
  }

  void texts() {
    bad(0, "x",
        "text is \"x<< Rados Block Device Image >>>\\x0a"
        "\\x00\\x00\\x00\\x00\\x00\\x00\\x00\", not "
        "\"<<< Rados Block Device Image >>>\\x0a\"");
    bad(33, "X",
        "text is \"<<< Rados Block Device Image >>>\\x0aX"
        "\\x00\\x00\\x00\\x00\\x00\\x00\", not "
        "\"<<< Rados Block Device Image >>>\\x0a\"");
    bad(64, "RBE", "signature is \"RBE\\x00\", not \"RBD\"");
    bad(67, "X", "signature is \"RBDX\", not \"RBD\"");
    bad(68, "002.005", "version is \"002.005\\x00\", not 001.00x");
    bad(68, "001.015", "version is \"001.015\\x00\", not 001.00x");
    bad(68, "001.00x", "version is \"001.00x\\x00\", not 001.00x");
    bad(75, "5", "version is \"001.0055\", not 001.00x");
    for (const char* version : {"001.000", "001.004", "001.009"}) {
      std::string other = unhex(f1_two_snapshots);
      put(other, 68, version);
      CPPUNIT_ASSERT(f1_value() == decode_format1(other));
    }
    bad(77, "\1", "encryption 1 is not known");
    bad(78, "\2", "compression 2 is not known");
    std::string unused = unhex(f1_two_snapshots);
    put(unused, 79, "\3");
    put(unused, 100, "\4");  // reserved
    CPPUNIT_ASSERT(f1_value() == decode_format1(unused));
  }

  void orders() {
    bad(76, "\xc8", "order 200 is not in [9, 31]");
    bad(76, std::string_view("\0", 1), "order 0 is not in [9, 31]");
    bad(76, "\x08", "order 8 is not in [9, 31]");
    bad(76, "\x20", "order 32 is not in [9, 31]");
    for (const unsigned order : {9u, 12u, 25u, 31u}) {
      std::string other = unhex(f1_two_snapshots);
      put(other, 76, le(order, 1));
      CPPUNIT_ASSERT_EQUAL(order, decode_format1(other).order);
    }
  }

  void sizes() {
    bad(80, le(UINT64_MAX, 8),
        "image size 18446744073709551615 is above 2^63 - 1");
    bad(80, le(two_63, 8), "image size 9223372036854775808 is above 2^63 - 1");
    bad(120, le(two_63, 8),
        "snapshot \"wednesday\": image size 9223372036854775808 is above "
        "2^63 - 1");
    std::string largest = unhex(f1_two_snapshots);
    put(largest, 80, le(two_63 - 1, 8));
    CPPUNIT_ASSERT_EQUAL(two_63 - 1, decode_format1(largest).size);
    put(largest, 80, le(0, 8));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, decode_format1(largest).size);
  }

  void prefixes() {
    bad(40, std::string_view("\0", 1), "object prefix is empty");
    bad(40, "123456789012345678901234",
        "object prefix \"123456789012345678901234\" has no end");
    std::string longest = unhex(f1_two_snapshots);
    put(longest, 40, "12345678901234567890123");
    CPPUNIT_ASSERT_EQUAL(std::string("12345678901234567890123"),
                         decode_format1(longest).object_prefix);
  }

  void counts() {
    bad(96, le(UINT32_MAX, 4),
        "snap_count 4294967295 is more than 49 bytes can hold");
    bad(96, le(3, 4), "snap_count 3 is more than 49 bytes can hold");
    bad(104, le(UINT64_MAX, 8),
        "snap_names_len 18446744073709551615 is more than the 17 bytes left");
    bad(104, le(18, 8), "snap_names_len 18 is more than the 17 bytes left");
    bad(104, le(16, 8),
        "snapshot names end within the name of snapshot 2, \"monday\"");
    bad(104, le(9, 8),
        "snapshot names end within the name of snapshot 4, \"wednesday\"");
    bad(104, le(0, 8),
        "snapshot names end within the name of snapshot 4, \"\"");
    bad(160, "!",
        "snapshot names end within the name of snapshot 2, \"monday!\"");
  }

  void snapshots() {
    bad(112, le(0, 8), "snapshot \"wednesday\": the id is 0");
    bad(112, le(5, 8), "snapshot \"wednesday\": id 5 is above snap_seq 4");
    bad(128, le(4, 8),
        "snapshot \"monday\": id 4 is not below the one before it, 4");
    bad(112, le(1, 8),
        "snapshot \"monday\": id 2 is not below the one before it, 1");
    bad(88, le(3, 8), "snapshot \"wednesday\": id 4 is above snap_seq 3");
    bad(88, le(UINT64_MAX, 8), "snap_seq 18446744073709551615 is no snapshot "
                               "id");
    bad(88, le(snap_head, 8), "snap_seq 18446744073709551614 is no snapshot "
                              "id");
    bad(154, std::string_view("\0", 1), "snapshot 2: the name is empty");
    Format1Header header = f1_value();
    header.snapshots[0].name = "six...";
    std::string twice = encode_format1(header);
    put(twice, twice.size() - 14, "monday");
    refused([&] { (void)decode_format1(twice); }, EIO,
            "format 1 header: snapshot \"monday\": the name occurs twice");
  }

  void encode_refuses() {
    const auto bad_value = [](const Format1Header& header,
                              const std::string& problem) {
      refused([&] { (void)encode_format1(header); }, EINVAL,
              "format 1 header: " + problem);
    };
    Format1Header header = f1_value();
    header.object_prefix = "123456789012345678901234";
    bad_value(header, "object prefix \"123456789012345678901234\" is longer "
                      "than 23 bytes");
    header.object_prefix = std::string("a\0b", 3);
    bad_value(header, "object prefix \"a\\x00b\" has a NUL byte in it");
    header.object_prefix.clear();
    bad_value(header, "object prefix is empty");
    header = f1_value();
    header.order = 32;
    bad_value(header, "order 32 is not in [9, 31]");
    // Would be 22 as a byte.
    header.order = 256 + 22;
    bad_value(header, "order 278 is not in [9, 31]");
    header = f1_value();
    header.size = two_63;
    bad_value(header, "image size 9223372036854775808 is above 2^63 - 1");
    header = f1_value();
    header.snapshots[0].name = "monday";
    bad_value(header, "snapshot \"monday\": the name occurs twice");
    header.snapshots[0].name = std::string("a\0b", 3);
    bad_value(header,
              "snapshot \"a\\x00b\": the name has a NUL byte in it");
    header.snapshots[0].name.clear();
    bad_value(header, "snapshot 4: the name is empty");
  }

  void each_byte() {
    any_byte(
        [](std::string_view in) {
          const Format1Header header = decode_format1(in);
          CPPUNIT_ASSERT(header == decode_format1(encode_format1(header)));
        },
        unhex(f1_two_snapshots));
  }
};

// --------------------------------------------------------------- format 2

// snapshot_get of a user's snapshot, 10 MiB.
const char snapshot_user[] =
    "01012c0000000c000000000000000101040000000000000002000000"
    "73310000a0000000000014cd006ba59b930101000000";
// Of one that `rbd group snap create` made.
const char snapshot_group[] =
    "010174000000080000000000000001012c000000010000000100000000000000"
    "0c0000003234613136623862343536370c000000323461373662386234353637"
    "220000002e67726f75702e315f3234613136623862343536375f323461373662"
    "3862343536370000a00000000000fbcc006b2e733f0e00000000";
// Of one that was removed while it had a clone.
const char snapshot_trash[] =
    "01015c0000000e000000000000000101120000000200000006000000646f6f6d"
    "6564000000002400000031663534363038642d396165392d343437312d396339"
    "352d346537373339386466663635000040010000000014cd006bebea221a0100"
    "0000";
// Of one that `rbd mirror image enable` made.
const char snapshot_mirror[] =
    "0101a10000000900000000000000010122000000030000000001000000000000"
    "0000feffffffffffffff000000000000000000000000590000002e6d6972726f"
    "722e7072696d6172792e39326665333936662d316265332d346631652d613233"
    "302d3530313939633838636166352e36386537666437632d353037322d343434"
    "382d616334302d6163636534636462653764310000800000000000fbcc006b26"
    "f7331f00000000";
// parent_get of a clone, of one whose parent is in a namespace, and of an
// image without a parent.
const char parent_here[] =
    "0101240000000100000000000000000000000c00000032343935396335636631"
    "38330c00000000000000";
const char parent_in_namespace[] =
    "0101270000000100000000000000030000006e73310c00000032346632366561"
    "39616531660f00000000000000";
const char parent_none[] =
    "010118000000ffffffffffffffff0000000000000000feffffffffffffff";
// migration_get on both sides after `rbd migration prepare mig migdst`.
const char migration_source[] =
    "03013f00000001010000000000000000000000060000006d69676473740c0000"
    "0032346235346539656137646600000000000000000000000000000200000000"
    "0000000000";
const char migration_destination[] =
    "03013c00000002010000000000000000000000030000006d69670c0000003234"
    "6233363937626338346500000000000080000000000000000200000000000000"
    "0000";
const char directory_two[] =
    "02000000050000006368696c640c000000323465346561326138336338"
    "05000000706c61696e0c000000323439353963356366313833";

class Format2Test : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(Format2Test);
  CPPUNIT_TEST(inputs);
  CPPUNIT_TEST(image_id);
  CPPUNIT_TEST(size);
  CPPUNIT_TEST(features);
  CPPUNIT_TEST(object_prefix);
  CPPUNIT_TEST(snap_context);
  CPPUNIT_TEST(striping);
  CPPUNIT_TEST(data_pool);
  CPPUNIT_TEST(flags);
  CPPUNIT_TEST(parent);
  CPPUNIT_TEST(parent_overlap);
  CPPUNIT_TEST(snapshots);
  CPPUNIT_TEST(snapshots_refused);
  CPPUNIT_TEST(snapshots_of_the_future);
  CPPUNIT_TEST(migration);
  CPPUNIT_TEST(directory);
  CPPUNIT_TEST(namespaces);
  CPPUNIT_TEST(metadata);
  CPPUNIT_TEST(each_byte);
  CPPUNIT_TEST_SUITE_END();

 public:
  // The methods answered to these inputs with the vectors.
  void inputs() {
    CPPUNIT_ASSERT_EQUAL(std::string("feffffffffffffff"),
                         hex(encode_snap_id(snap_head)));
    CPPUNIT_ASSERT_EQUAL(std::string("0c00000000000000"),
                         hex(encode_snap_id(12)));
    CPPUNIT_ASSERT_EQUAL(std::string("feffffffffffffff01"),
                         hex(encode_get_features(snap_head, true)));
    CPPUNIT_ASSERT_EQUAL(std::string("feffffffffffffff00"),
                         hex(encode_get_features(snap_head, false)));
    CPPUNIT_ASSERT_EQUAL(std::string("000000000004000000000000"),
                         hex(encode_list("", 1024)));
    CPPUNIT_ASSERT_EQUAL(std::string("0200000061620100000000000000"),
                         hex(encode_list("ab", 1)));
    CPPUNIT_ASSERT_EQUAL(std::string("0c000000323439353963356366313833"),
                         hex(encode_dir_get_name("24959c5cf183")));
    CPPUNIT_ASSERT_EQUAL(std::string("05000000706c61696e"),
                         hex(encode_dir_get_id("plain")));
    CPPUNIT_ASSERT_EQUAL(std::string("040000006b657931"),
                         hex(encode_metadata_get("key1")));
  }

  void image_id() {
    const std::string bytes = unhex("0c000000323439353963356366313833");
    CPPUNIT_ASSERT_EQUAL(std::string("24959c5cf183"), decode_image_id(bytes));
    refused_cut_off([](std::string_view in) { (void)decode_image_id(in); },
                    bytes, "rbd_id object");
    refused([] { (void)decode_image_id(le(0, 4)); }, EIO,
            "rbd_id object: image id is empty");
    refused([] { (void)decode_image_id(le(UINT32_MAX, 4) + "abc"); }, EIO,
            "rbd_id object: image id needs 4294967295 bytes, 3 left");
    refused([] { (void)decode_image_id(with_length({"a\0", 2})); }, EIO,
            "rbd_id object: image id \"a\\x00\" has a NUL byte in it");
  }

  void size() {
    const std::string bytes = unhex("160000400100000000");
    CPPUNIT_ASSERT((Format2Size{20 << 20, 22} == decode_get_size(bytes)));
    CPPUNIT_ASSERT(
        (Format2Size{64 << 20, 20} ==
         decode_get_size(unhex("140000000400000000"))));
    refused_cut_off([](std::string_view in) { (void)decode_get_size(in); },
                    bytes, "get_size");
    refused([] { (void)decode_get_size("\xc8" + le(1, 8)); }, EIO,
            "get_size: order 200 is not in [9, 31]");
    refused([] { (void)decode_get_size("\x20" + le(1, 8)); }, EIO,
            "get_size: order 32 is not in [9, 31]");
    refused([] { (void)decode_get_size("\x16" + le(UINT64_MAX, 8)); }, EIO,
            "get_size: image size 18446744073709551615 is above 2^63 - 1");
    CPPUNIT_ASSERT_EQUAL(two_63 - 1,
                         decode_get_size("\x16" + le(two_63 - 1, 8)).size);
  }

  void features() {
    const std::string bytes = unhex("3f000000000000000300000000000000");
    const Format2Features got = decode_get_features(bytes);
    CPPUNIT_ASSERT_EQUAL(
        std::string("layering, striping, exclusive-lock, object-map, "
                    "fast-diff, deep-flatten"),
        feature_names(got.features));
    CPPUNIT_ASSERT_EQUAL(feature_layering | feature_striping,
                         got.incompatible);
    refused_cut_off(
        [](std::string_view in) { (void)decode_get_features(in); }, bytes,
        "get_features");
  }

  void object_prefix() {
    // Of an image with a data pool.
    const std::string bytes =
        unhex("170000007262645f646174612e312e323439393939353961353630");
    CPPUNIT_ASSERT_EQUAL(std::string("rbd_data.1.24999959a560"),
                         decode_get_object_prefix(bytes));
    refused_cut_off(
        [](std::string_view in) { (void)decode_get_object_prefix(in); }, bytes,
        "get_object_prefix");
    refused([] { (void)decode_get_object_prefix(le(0, 4)); }, EIO,
            "get_object_prefix: object prefix is empty");
    CPPUNIT_ASSERT_EQUAL(
        std::string(256, 'p'),
        decode_get_object_prefix(with_length(std::string(256, 'p'))));
    refused(
        [] {
          (void)decode_get_object_prefix(with_length(std::string(257, 'p')));
        },
        EIO, "get_object_prefix: object prefix \"" + std::string(64, 'p') +
                 "\"... (257 bytes) is longer than 256 bytes");
  }

  void snap_context() {
    const std::string bytes = unhex(
        "0e00000000000000040000000e000000000000000d00000000000000"
        "0c000000000000000800000000000000");
    const SnapContext snapc = decode_get_snapcontext(bytes);
    CPPUNIT_ASSERT((SnapContext{14, {14, 13, 12, 8}} == snapc));
    CPPUNIT_ASSERT(SnapContext{} ==
                   decode_get_snapcontext(unhex("000000000000000000000000")));
    refused_cut_off(
        [](std::string_view in) { (void)decode_get_snapcontext(in); }, bytes,
        "get_snapcontext");
    const auto bad = [&](std::size_t at, std::string_view with,
                         const std::string& problem) {
      std::string changed = bytes;
      put(changed, at, with);
      refused([&] { (void)decode_get_snapcontext(changed); }, EIO,
              "get_snapcontext: " + problem);
    };
    bad(8, le(UINT32_MAX, 4),
        "count 4294967295 is more than 32 bytes can hold");
    bad(8, le(5, 4), "count 5 is more than 32 bytes can hold");
    bad(0, le(13, 8), "snapshot id 14 is above seq 13");
    bad(0, le(snap_head, 8), "seq 18446744073709551614 is no snapshot id");
    bad(20, le(14, 8), "snapshot id 14 is not below the one before it, 14");
    bad(36, le(0, 8), "snapshot id 0 is no snapshot id");
  }

  void striping() {
    const std::string bytes = unhex("00000100000000000500000000000000");
    CPPUNIT_ASSERT((std::pair<std::uint64_t, std::uint64_t>(65536, 5) ==
                    decode_get_stripe_unit_count(bytes)));
    refused_cut_off(
        [](std::string_view in) { (void)decode_get_stripe_unit_count(in); },
        bytes, "get_stripe_unit_count");
    refused([] { (void)decode_get_stripe_unit_count(le(0, 8) + le(1, 8)); },
            EIO, "get_stripe_unit_count: stripe unit is 0");
    refused([] { (void)decode_get_stripe_unit_count(le(1, 8) + le(0, 8)); },
            EIO, "get_stripe_unit_count: stripe count is 0");
  }

  void data_pool() {
    CPPUNIT_ASSERT(std::optional<std::int64_t>(2) ==
                   decode_get_data_pool(unhex("0200000000000000")));
    CPPUNIT_ASSERT(!decode_get_data_pool(unhex("ffffffffffffffff")));
    refused([] { (void)decode_get_data_pool(le(UINT64_MAX - 1, 8)); }, EIO,
            "get_data_pool: data pool -2 is negative");
    refused_cut_off(
        [](std::string_view in) { (void)decode_get_data_pool(in); }, le(2, 8),
        "get_data_pool");
  }

  void flags() {
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, decode_get_flags(le(0, 8)));
    CPPUNIT_ASSERT_EQUAL(flag_object_map_invalid | flag_fast_diff_invalid,
                         decode_get_flags(le(3, 8)));
    CPPUNIT_ASSERT_EQUAL(
        std::string("clone-parent, group, snap-trash"),
        op_feature_names(decode_op_features_get(unhex("0d00000000000000"))));
    refused_cut_off([](std::string_view in) { (void)decode_get_flags(in); },
                    le(3, 8), "get_flags");
    refused_cut_off(
        [](std::string_view in) { (void)decode_op_features_get(in); },
        le(3, 8), "op_features_get");
  }

  void parent() {
    CPPUNIT_ASSERT((Format2Parent{1, "", "24959c5cf183", 12} ==
                    decode_parent_get(unhex(parent_here))));
    CPPUNIT_ASSERT((Format2Parent{1, "ns1", "24f26ea9ae1f", 15} ==
                    decode_parent_get(unhex(parent_in_namespace))));
    CPPUNIT_ASSERT(!decode_parent_get(unhex(parent_none)));
    for (const char* vector : {parent_here, parent_in_namespace, parent_none})
      refused_cut_off(
          [](std::string_view in) { (void)decode_parent_get(in); },
          unhex(vector), "parent_get");
    std::string changed = unhex(parent_here);
    put(changed, 6, le(UINT64_MAX - 4, 8));
    refused([&] { (void)decode_parent_get(changed); }, EIO,
            "parent_get: parent pool -5 is negative");
    changed = unhex(parent_here);
    put(changed, 34, le(0, 8));
    refused([&] { (void)decode_parent_get(changed); }, EIO,
            "parent_get: parent snapshot 0 is no snapshot id");
    put(changed, 34, le(snap_head, 8));
    refused([&] { (void)decode_parent_get(changed); }, EIO,
            "parent_get: parent snapshot 18446744073709551614 is no snapshot "
            "id");
    changed = unhex(parent_none);
    put(changed, 6, le(1, 8));
    refused([&] { (void)decode_parent_get(changed); }, EIO,
            "parent_get: parent image id is empty");
  }

  void parent_overlap() {
    CPPUNIT_ASSERT(std::optional<std::uint64_t>(10 << 20) ==
                   decode_parent_overlap_get(unhex("010000a00000000000")));
    CPPUNIT_ASSERT(!decode_parent_overlap_get(unhex("00")));
    refused_cut_off(
        [](std::string_view in) { (void)decode_parent_overlap_get(in); },
        unhex("010000a00000000000"), "parent_overlap_get");
    refused([] { (void)decode_parent_overlap_get("\1" + le(two_63, 8)); }, EIO,
            "parent_overlap_get: parent overlap 9223372036854775808 is above "
            "2^63 - 1");
  }

  void snapshots() {
    Format2Snapshot expected;
    expected.id = 12;
    expected.name = "s1";
    expected.size = 10 << 20;
    expected.kind = Format2SnapshotKind::user;
    expected.created = 0x6b00cd14;
    expected.children = 1;
    CPPUNIT_ASSERT(expected == decode_snapshot_get(unhex(snapshot_user)));

    expected.id = 8;
    expected.name = ".group.1_24a16b8b4567_24a76b8b4567";
    expected.kind = Format2SnapshotKind::group;
    expected.created = 0x6b00ccfb;
    expected.children = 0;
    CPPUNIT_ASSERT(expected == decode_snapshot_get(unhex(snapshot_group)));

    expected.id = 14;
    expected.name = "1f54608d-9ae9-4471-9c95-4e77398dff65";
    expected.size = 20 << 20;
    expected.kind = Format2SnapshotKind::trash;
    expected.original_name = "doomed";
    expected.children = 1;
    expected.created = 0x6b00cd14;
    CPPUNIT_ASSERT(expected == decode_snapshot_get(unhex(snapshot_trash)));

    const Format2Snapshot mirror =
        decode_snapshot_get(unhex(snapshot_mirror));
    CPPUNIT_ASSERT_EQUAL(SnapId{9}, mirror.id);
    CPPUNIT_ASSERT(mirror.name.starts_with(".mirror.primary.92fe396f-"));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{8 << 20}, mirror.size);
    CPPUNIT_ASSERT(mirror.kind == Format2SnapshotKind::mirror);

    CPPUNIT_ASSERT_EQUAL(std::string_view("trash"),
                         to_string(Format2SnapshotKind::trash));
    CPPUNIT_ASSERT_EQUAL(std::string_view("unknown"),
                         to_string(Format2SnapshotKind::unknown));
  }

  void snapshots_refused() {
    for (const char* vector :
         {snapshot_user, snapshot_group, snapshot_trash, snapshot_mirror})
      refused_cut_off(
          [](std::string_view in) { (void)decode_snapshot_get(in); },
          unhex(vector), "snapshot_get");
    const auto bad = [](std::size_t at, std::string_view with,
                        const std::string& problem) {
      std::string changed = unhex(snapshot_user);
      put(changed, at, with);
      refused([&] { (void)decode_snapshot_get(changed); }, EIO,
              "snapshot_get: " + problem);
    };
    bad(1, "\2",
        "snapshot has version 1 and asks readers to understand version 2, "
        "this one understands 1");
    bad(6, le(0, 8), "snapshot id 0 is no snapshot id");
    bad(6, le(snap_head, 8),
        "snapshot id 18446744073709551614 is no snapshot id");
    bad(16, le(UINT32_MAX, 4),
        "snapshot namespace needs 4294967295 bytes, 30 left");
    bad(16, le(3, 4), "snapshot namespace type needs 4 bytes, 3 left");
    bad(24, le(0, 4), "snapshot name is empty");
    bad(30, le(UINT64_MAX, 8),
        "snapshot image size 18446744073709551615 is above 2^63 - 1");
  }

  // Made by hand: newer versions append to both frames, and there may be
  // kinds that are not known yet.
  void snapshots_of_the_future() {
    Encoder out;
    out.frame(9, 1, [&] {
      out.u64(12);
      out.frame(2, 1, [&] { out.u32(77).string("of a kind unknown"); });
      out.string("name").u64(4096).u32(1000).u32(5).u32(0);
      out.u64(123).string("more");
    });
    out.string("and more");
    Format2Snapshot expected;
    expected.id = 12;
    expected.name = "name";
    expected.size = 4096;
    expected.kind = Format2SnapshotKind::unknown;
    expected.created = 1000;
    CPPUNIT_ASSERT(expected == decode_snapshot_get(out.str()));

    // The newest version of the namespace is 2, and its first fields are
    // those of version 1.
    std::string changed = unhex(snapshot_trash);
    put(changed, 14, "\2\2");
    CPPUNIT_ASSERT_EQUAL(std::string("doomed"),
                         decode_snapshot_get(changed).original_name);
    put(changed, 14, "\3\3");
    refused([&] { (void)decode_snapshot_get(changed); }, EIO,
            "snapshot_get: snapshot namespace has version 3 and asks readers "
            "to understand version 3, this one understands 2");
  }

  void migration() {
    using Side = Format2Migration::Side;
    CPPUNIT_ASSERT(
        (Format2Migration{Side::source, 1, "", "migdst", "24b54e9ea7df"} ==
         decode_migration_get(unhex(migration_source))));
    CPPUNIT_ASSERT(
        (Format2Migration{Side::destination, 1, "", "mig", "24b3697bc84e"} ==
         decode_migration_get(unhex(migration_destination))));
    for (const char* vector : {migration_source, migration_destination})
      refused_cut_off(
          [](std::string_view in) { (void)decode_migration_get(in); },
          unhex(vector), "migration_get");
    std::string changed = unhex(migration_source);
    put(changed, 6, "\3");
    refused([&] { (void)decode_migration_get(changed); }, EIO,
            "migration_get: migration side 3 is not known");
  }

  void directory() {
    const std::string bytes = unhex(directory_two);
    CPPUNIT_ASSERT((std::map<std::string, std::string>{
                       {"child", "24e4ea2a83c8"}, {"plain", "24959c5cf183"}} ==
                    decode_dir_list(bytes)));
    CPPUNIT_ASSERT(decode_dir_list(le(0, 4)).empty());
    refused_cut_off([](std::string_view in) { (void)decode_dir_list(in); },
                    bytes, "dir_list");
    refused([] { (void)decode_dir_list(le(UINT32_MAX, 4) + "abc"); }, EIO,
            "dir_list: count 4294967295 is more than 3 bytes can hold");
    const auto entry = [](const char* key, const char* value) {
      return with_length(key) + with_length(value);
    };
    refused(
        [&] {
          (void)decode_dir_list(le(2, 4) + entry("a", "1") + entry("a", "2"));
        },
        EIO, "dir_list: image name \"a\" occurs twice");
    refused([&] { (void)decode_dir_list(le(1, 4) + entry("", "1")); }, EIO,
            "dir_list: image name is empty");
    refused([&] { (void)decode_dir_list(le(1, 4) + entry("a", "")); }, EIO,
            "dir_list: image id is empty");

    CPPUNIT_ASSERT_EQUAL(std::string("plain"),
                         decode_dir_get_name(unhex("05000000706c61696e")));
    refused_cut_off(
        [](std::string_view in) { (void)decode_dir_get_name(in); },
        unhex("05000000706c61696e"), "dir_get_name");
  }

  void namespaces() {
    const std::string bytes = unhex("02000000030000006e7331030000006e7332");
    CPPUNIT_ASSERT((std::vector<std::string>{"ns1", "ns2"} ==
                    decode_namespace_list(bytes)));
    CPPUNIT_ASSERT(decode_namespace_list(le(0, 4)).empty());
    refused_cut_off(
        [](std::string_view in) { (void)decode_namespace_list(in); }, bytes,
        "namespace_list");
    refused([] { (void)decode_namespace_list(le(UINT32_MAX, 4)); }, EIO,
            "namespace_list: count 4294967295 is more than 0 bytes can hold");
    refused(
        [] {
          (void)decode_namespace_list(le(2, 4) + with_length("b") +
                                      with_length("a"));
        },
        EIO,
        "namespace_list: namespace name \"a\" is not above \"b\" before it");
  }

  void metadata() {
    const std::string bytes = unhex(
        "020000000e000000636f6e665f7262645f63616368650500000066616c7365"
        "040000006b6579310600000076616c756531");
    CPPUNIT_ASSERT((std::map<std::string, std::string>{
                       {"conf_rbd_cache", "false"}, {"key1", "value1"}} ==
                    decode_metadata_list(bytes)));
    refused_cut_off(
        [](std::string_view in) { (void)decode_metadata_list(in); }, bytes,
        "metadata_list");
    // A value may be empty and may hold anything.
    const std::string odd =
        le(2, 4) + with_length("k") + with_length("") + with_length("l") +
        with_length(std::string_view("\0\n", 2));
    CPPUNIT_ASSERT((std::map<std::string, std::string>{
                       {"k", ""}, {"l", std::string("\0\n", 2)}} ==
                    decode_metadata_list(odd)));
    CPPUNIT_ASSERT_EQUAL(std::string("value1"),
                         decode_metadata_get(unhex("0600000076616c756531")));
    CPPUNIT_ASSERT_EQUAL(std::string(), decode_metadata_get(le(0, 4)));
    refused_cut_off(
        [](std::string_view in) { (void)decode_metadata_get(in); },
        unhex("0600000076616c756531"), "metadata_get");
  }

  void each_byte() {
    for (const char* vector :
         {snapshot_user, snapshot_group, snapshot_trash, snapshot_mirror})
      any_byte(
          [](std::string_view in) {
            const Format2Snapshot snap = decode_snapshot_get(in);
            CPPUNIT_ASSERT(snap.id != 0 && snap.id < snap_head);
            CPPUNIT_ASSERT(!snap.name.empty() && snap.size < two_63);
          },
          unhex(vector));
    for (const char* vector : {parent_here, parent_in_namespace, parent_none})
      any_byte([](std::string_view in) { (void)decode_parent_get(in); },
               unhex(vector));
    any_byte([](std::string_view in) { (void)decode_migration_get(in); },
             unhex(migration_destination));
    any_byte([](std::string_view in) { (void)decode_dir_list(in); },
             unhex(directory_two));
  }
};

// -------------------------------------------------------------- directory

// rbd_directory after three TMAPUP operations with "set".
const char three_images[] =
    "000000000300000003000000616161 00000000 03000000 6f6e65 00000000"
    "030000007a7a7a00000000";
// After TMAPUP with "header".
const char with_header[] =
    "0500000068656c6c6f01000000030000006f6e6500000000";

class DirectoryTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(DirectoryTest);
  CPPUNIT_TEST(real_maps);
  CPPUNIT_TEST(updates);
  CPPUNIT_TEST(refusals);
  CPPUNIT_TEST(each_byte);
  CPPUNIT_TEST_SUITE_END();

 public:
  void real_maps() {
    const TrivialMap three = decode_trivial_map(unhex(three_images));
    CPPUNIT_ASSERT((TrivialMap{"", {{"aaa", ""}, {"one", ""}, {"zzz", ""}}} ==
                    three));
    CPPUNIT_ASSERT_EQUAL(hex(unhex(three_images)),
                         hex(encode_trivial_map(three)));
    const TrivialMap one = decode_trivial_map(unhex(with_header));
    CPPUNIT_ASSERT((TrivialMap{"hello", {{"one", ""}}} == one));
    CPPUNIT_ASSERT_EQUAL(std::string(with_header),
                         hex(encode_trivial_map(one)));
    // The last key removed; and no data at all: only format 2 images.
    CPPUNIT_ASSERT(TrivialMap{} ==
                   decode_trivial_map(unhex("0000000000000000")));
    CPPUNIT_ASSERT(TrivialMap{} == decode_trivial_map({}));
    const TrivialMap values{std::string("\0h", 2), {{"k", "v"}, {"l", ""}}};
    CPPUNIT_ASSERT(values == decode_trivial_map(encode_trivial_map(values)));
  }

  // The OSD took these; they made the maps above.
  void updates() {
    CPPUNIT_ASSERT_EQUAL(std::string("73030000006f6e6500000000"),
                         hex(encode_tmap_set("one")));
    CPPUNIT_ASSERT_EQUAL(std::string("73030000006f6e650100000076"),
                         hex(encode_tmap_set("one", "v")));
    CPPUNIT_ASSERT_EQUAL(std::string("63030000006f6e6500000000"),
                         hex(encode_tmap_create("one")));
    CPPUNIT_ASSERT_EQUAL(std::string("72030000006f6e65"),
                         hex(encode_tmap_remove("one")));
    CPPUNIT_ASSERT_EQUAL(std::string("680500000068656c6c6f"),
                         hex(encode_tmap_header("hello")));
  }

  void refusals() {
    const auto decode = [](std::string_view in) {
      (void)decode_trivial_map(in);
    };
    refused_cut_off(decode, unhex(three_images), "trivial map", 1);
    refused_cut_off(decode, unhex(with_header), "trivial map", 1);
    refused([&] { decode(le(0, 4) + le(UINT32_MAX, 4)); }, EIO,
            "trivial map: count 4294967295 is more than 0 bytes can hold");
    refused([&] { decode(le(UINT32_MAX, 4)); }, EIO,
            "trivial map: header needs 4294967295 bytes, 0 left");
    std::string twice = unhex(three_images);
    put(twice, 34, "aaa");
    refused([&] { decode(twice); }, EIO,
            "trivial map: key \"aaa\" occurs twice");
    refused([&] { decode(le(0, 4) + le(1, 4) + le(0, 8)); }, EIO,
            "trivial map: key is empty");
  }

  void each_byte() {
    any_byte(
        [](std::string_view in) {
          const TrivialMap map = decode_trivial_map(in);
          CPPUNIT_ASSERT(map == decode_trivial_map(encode_trivial_map(map)));
        },
        unhex(three_images));
  }
};

// ------------------------------------------------------------------ locks

// get_info: nobody; one client for some time; two clients with three locks.
const char lock_nobody[] = "010109000000000000000000000000";
const char lock_exclusive[] =
    "0101570000000100000001011100000008522600000000000004000000636f6f"
    "6b01013100000032d1006bc2ec5e0e0101011c000000010000007e19e83d1000"
    "0000020000007f00000100000000000000000200000064320100000000";
const char lock_shared[] =
    "0101f40000000300000001010f00000008522600000000000002000000633101"
    "013400000000000000000000000101011c000000010000007e19e83d10000000"
    "020000007f00000100000000000000000500000066697273740101"
    "0f00000008522600000000000002000000633201012f00000000000000000000"
    "000101011c000000010000007e19e83d10000000020000007f00000100000000"
    "000000000000000001010f000000085426000000000000020000006331010134"
    "00000000000000000000000101011c00000001000000405c21b3100000000200"
    "00007f0000010000000000000000050000007468697264020300000054"
    "6167";

// Made by hand (ceph: src/msg/msg_types.h, entity_addr_t): one holder with
// this encoded address.
std::string lock_with_address(std::string_view address) {
  Encoder out;
  out.frame(1, 1, [&] {
    out.u32(1);
    out.frame(1, 1, [&] { out.u8(8).i64(7).string("c"); });
    out.frame(1, 1, [&] { out.u32(0).u32(0).bytes(address).string("d"); });
    out.u8(1).string("");
  });
  return out.take();
}

// The address of a lock holder, with an address in either encoding.
std::string address_of(std::string_view encoded) {
  const LockInfo info = decode_lock_info(lock_with_address(encoded));
  CPPUNIT_ASSERT_EQUAL(std::size_t{1}, info.holders.size());
  CPPUNIT_ASSERT_EQUAL(std::string("d"), info.holders[0].description);
  return info.holders[0].address;
}

std::string framed_address(std::uint32_t nonce, std::string_view sockaddr) {
  Encoder out;
  out.u8(1).frame(1, 1, [&] { out.u32(1).u32(nonce).string(sockaddr); });
  return out.take();
}

std::string legacy_address(std::uint32_t nonce, std::string sockaddr) {
  sockaddr.resize(128);
  return le(0, 4) + le(nonce, 4) + sockaddr;
}

class LockTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(LockTest);
  CPPUNIT_TEST(inputs);
  CPPUNIT_TEST(durations);
  CPPUNIT_TEST(real_replies);
  CPPUNIT_TEST(addresses);
  CPPUNIT_TEST(refusals);
  CPPUNIT_TEST(each_byte);
  CPPUNIT_TEST_SUITE_END();

 public:
  // The object class of an OSD took such inputs, and librados' own lock
  // functions agreed about the result.
  void inputs() {
    CPPUNIT_ASSERT_EQUAL(
        std::string("01012b000000 040000006e616d65 02 06000000636f6f6b6965 "
                    "03000000746167 0400000064657363 0500000000000000 01"),
        spaced(encode_lock("name", LockType::shared, "cookie", "tag", "desc",
                           std::chrono::seconds(5), lock_flag_may_renew)));
    CPPUNIT_ASSERT_EQUAL(
        std::string("010112000000040000006e616d6506000000636f6f6b6965"),
        hex(encode_unlock("name", "cookie")));
    LockHolder holder;
    holder.entity_type = entity_client;
    holder.entity_number = 1;
    holder.cookie = "cookie";
    CPPUNIT_ASSERT_EQUAL(std::string("01011b000000040000006e616d6508010000"
                                     "000000000006000000636f6f6b6965"),
                         hex(encode_break_lock("name", holder)));
    CPPUNIT_ASSERT_EQUAL(std::string("010108000000040000006e616d65"),
                         hex(encode_get_lock_info("name")));
  }

  void durations() {
    const auto seconds = [](std::chrono::seconds duration) {
      const std::string bytes = encode_lock("n", LockType::exclusive, "", "",
                                            "", duration, 0);
      CPPUNIT_ASSERT_EQUAL(std::size_t{33}, bytes.size());
      return hex(bytes.substr(24, 8));
    };
    CPPUNIT_ASSERT_EQUAL(std::string("0000000000000000"),
                         seconds(std::chrono::seconds(0)));
    CPPUNIT_ASSERT_EQUAL(std::string("0000000000000000"),
                         seconds(std::chrono::seconds(-1)));
    CPPUNIT_ASSERT_EQUAL(std::string("feffffff00000000"),
                         seconds(std::chrono::seconds(0xfffffffe)));
    CPPUNIT_ASSERT_EQUAL(std::string("ffffffff00000000"),
                         seconds(std::chrono::seconds(0x100000005)));
    CPPUNIT_ASSERT_EQUAL(std::string("ffffffff00000000"),
                         seconds(std::chrono::seconds::max()));
  }

  void real_replies() {
    const LockInfo nobody = decode_lock_info(unhex(lock_nobody));
    CPPUNIT_ASSERT(LockInfo{} == nobody);

    const LockInfo one = decode_lock_info(unhex(lock_exclusive));
    CPPUNIT_ASSERT(one.type == LockType::exclusive);
    CPPUNIT_ASSERT_EQUAL(std::string_view("exclusive"), to_string(one.type));
    CPPUNIT_ASSERT_EQUAL(std::string(), one.tag);
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, one.holders.size());
    const LockHolder expected{entity_client, 9810, "cook",
                              "127.0.0.1:0/1038621054", "d2", 1795215666};
    CPPUNIT_ASSERT(expected == one.holders[0]);
    CPPUNIT_ASSERT_EQUAL(std::string("client.9810"), one.holders[0].entity());

    const LockInfo three = decode_lock_info(unhex(lock_shared));
    CPPUNIT_ASSERT(three.type == LockType::shared);
    CPPUNIT_ASSERT_EQUAL(std::string("Tag"), three.tag);
    CPPUNIT_ASSERT(
        (std::vector<LockHolder>{
             {8, 9810, "c1", "127.0.0.1:0/1038621054", "first", 0},
             {8, 9810, "c2", "127.0.0.1:0/1038621054", "", 0},
             {8, 9812, "c1", "127.0.0.1:0/3005307968", "third", 0}} ==
         three.holders));
    LockHolder daemon;
    daemon.entity_type = 4;
    daemon.entity_number = 3;
    CPPUNIT_ASSERT_EQUAL(std::string("osd.3"), daemon.entity());
    daemon.entity_type = 77;
    CPPUNIT_ASSERT_EQUAL(std::string("entity type 77.3"), daemon.entity());
  }

  void addresses() {
    const std::string ipv4 = unhex("1a85c0000201") + std::string(8, '\0');
    const std::string ipv6 =
        unhex("1a8500000000 20010db8000000000000000000000042 00000000");
    CPPUNIT_ASSERT_EQUAL(
        std::string("192.0.2.1:6789/4000000000"),
        address_of(framed_address(4000000000u, le(2, 2) + ipv4)));
    CPPUNIT_ASSERT_EQUAL(std::string("[2001:db8::42]:6789/5"),
                         address_of(framed_address(5, le(10, 2) + ipv6)));
    // The family is in network byte order in this one.
    CPPUNIT_ASSERT_EQUAL(
        std::string("192.0.2.1:6789/6"),
        address_of(legacy_address(6, unhex("0002") + ipv4)));
    CPPUNIT_ASSERT_EQUAL(
        std::string("[2001:db8::42]:6789/7"),
        address_of(legacy_address(7, unhex("000a") + ipv6)));
    CPPUNIT_ASSERT_EQUAL(std::string("-"), address_of(framed_address(1, "")));
    CPPUNIT_ASSERT_EQUAL(std::string("-"),
                         address_of(framed_address(1, le(0, 2))));
    CPPUNIT_ASSERT_EQUAL(std::string("-"), address_of(legacy_address(1, "")));
  }

  void refusals() {
    const auto decode = [](std::string_view in) {
      (void)decode_lock_info(in);
    };
    for (const char* vector : {lock_nobody, lock_exclusive, lock_shared})
      refused_cut_off(decode, unhex(vector), "get_info");
    refused_cut_off(decode, lock_with_address(legacy_address(1, unhex("0002"))),
                    "get_info");
    const auto bad_address = [](std::string_view address,
                                const std::string& problem) {
      refused([&] { (void)decode_lock_info(lock_with_address(address)); }, EIO,
              "get_info: " + problem);
    };
    bad_address("\7", "address marker 7 is not known");
    bad_address(framed_address(1, "x"), "address family needs 2 bytes, 1 left");
    bad_address(framed_address(1, le(2, 2) + "abcde"),
                "IPv4 address needs 4 bytes, 3 left");
    bad_address(framed_address(1, le(10, 2) + "abcdefgh"),
                "IPv6 address needs 16 bytes, 2 left");
    bad_address(framed_address(1, le(1, 2) + std::string(14, 'x')),
                "address family 1 is not known");
    std::string changed = unhex(lock_exclusive);
    put(changed, 6, le(UINT32_MAX, 4));
    refused([&] { decode(changed); }, EIO,
            "get_info: locker count 4294967295 is more than 83 bytes can "
            "hold");
    changed = unhex(lock_nobody);
    put(changed, 10, "\4");
    refused([&] { decode(changed); }, EIO,
            "get_info: lock type 4 is not known");
  }

  void each_byte() {
    for (const char* vector : {lock_nobody, lock_exclusive, lock_shared})
      any_byte([](std::string_view in) { (void)decode_lock_info(in); },
               unhex(vector));
  }

 private:
  // Hexadecimal, with spaces between the fields of a lock input.
  static std::string spaced(const std::string& bytes) {
    std::string out;
    std::size_t at = 0;
    for (const std::size_t size : {6, 8, 1, 10, 7, 8, 8, 1}) {
      if (at != 0) out += ' ';
      out += hex(std::string_view(bytes).substr(at, size));
      at += size;
    }
    CPPUNIT_ASSERT_EQUAL(bytes.size(), at);
    return out;
  }
};

// ---------------------------------------------------------------- striper

class StriperMetadataTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(StriperMetadataTest);
  CPPUNIT_TEST(real_attributes);
  CPPUNIT_TEST(round_trips);
  CPPUNIT_TEST(missing);
  CPPUNIT_TEST(not_decimal);
  CPPUNIT_TEST(out_of_range);
  CPPUNIT_TEST(layouts);
  CPPUNIT_TEST_SUITE_END();

  using Attributes = std::map<std::string, std::string>;

  // After `rados --striper put` of 300,000 bytes.
  static Attributes real() {
    return {{"lock.striper.lock", unhex("01010c000000000000000203000000"
                                        "546167")},
            {"striper.layout.object_size", "4194304"},
            {"striper.layout.stripe_count", "1"},
            {"striper.layout.stripe_unit", "4194304"},
            {"striper.size", "300000"}};
  }

  static void bad(const char* attribute, const std::string& value,
                  const std::string& problem) {
    Attributes attributes = real();
    attributes[attribute] = value;
    refused([&] { (void)StriperMetadata::decode(attributes); }, EIO,
            std::string("striper attribute ") + attribute + ": " + problem);
  }

 public:
  void real_attributes() {
    const StriperMetadata got = StriperMetadata::decode(real());
    CPPUNIT_ASSERT((StriperMetadata{4194304, 4194304, 1, 300000} == got));
    Attributes expected = real();
    expected.erase("lock.striper.lock");
    CPPUNIT_ASSERT(expected == got.encode());
  }

  void round_trips() {
    for (const StriperMetadata& value :
         {StriperMetadata{1, 1, 1, 0},
          StriperMetadata{UINT32_MAX, 5, 2, two_63 - 1},
          StriperMetadata{1u << 31, 1 << 16, UINT32_MAX, 1},
          StriperMetadata{3, 3, UINT32_MAX, 12345678901234}})
      CPPUNIT_ASSERT(value == StriperMetadata::decode(value.encode()));
  }

  void missing() {
    for (const char* name :
         {"striper.layout.object_size", "striper.layout.stripe_unit",
          "striper.layout.stripe_count", "striper.size"}) {
      Attributes attributes = real();
      attributes.erase(name);
      refused([&] { (void)StriperMetadata::decode(attributes); }, ENOENT,
              std::string("not a striper object: it has no attribute ") +
                  name);
    }
    refused([] { (void)StriperMetadata::decode({}); }, ENOENT,
            "not a striper object: it has no attribute "
            "striper.layout.object_size");
    // Missing comes before malformed.
    refused(
        [] {
          (void)StriperMetadata::decode({{"striper.layout.object_size", "x"}});
        },
        ENOENT,
        "not a striper object: it has no attribute "
        "striper.layout.stripe_unit");
  }

  void not_decimal() {
    for (const char* name :
         {"striper.layout.object_size", "striper.layout.stripe_unit",
          "striper.layout.stripe_count", "striper.size"})
      for (const std::string value :
           {"", " 1", "1 ", "1\n", "+1", "-1", "0x10", "1e3", "30M", "one"})
        bad(name, value, in_quotes(value) + " is not a decimal number");
    bad("striper.size", std::string("1\0", 2),
        "\"1\\x00\" is not a decimal number");
    bad("striper.size", "99999999999999999999x",
        "\"99999999999999999999x\" is not a decimal number");
  }

  void out_of_range() {
    bad("striper.layout.object_size", "0", "0 is not in [1, 4294967295]");
    bad("striper.layout.stripe_unit", "0", "0 is not in [1, 4294967295]");
    bad("striper.layout.stripe_count", "0", "0 is not in [1, 4294967295]");
    bad("striper.layout.object_size", "4294967296",
        "4294967296 is not in [1, 4294967295]");
    bad("striper.layout.stripe_count", "18446744073709551617",
        "18446744073709551617 is not in [1, 4294967295]");
    bad("striper.size", "18446744073709551615",
        "18446744073709551615 is not in [0, 9223372036854775807]");
    bad("striper.size", "9223372036854775808",
        "9223372036854775808 is not in [0, 9223372036854775807]");
    bad("striper.size", std::string(1000, '9'),
        std::string(32, '9') + " is not in [0, 9223372036854775807]");
    CPPUNIT_ASSERT_EQUAL(two_63 - 1,
                         decode_striper_size("9223372036854775807"));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, decode_striper_size("0"));
    refused([] { (void)decode_striper_size("-5"); }, EIO,
            "striper attribute striper.size: \"-5\" is not a decimal number");
  }

  void layouts() {
    bad("striper.layout.stripe_unit", "65537",
        "65537 does not divide the object size 4194304");
    bad("striper.layout.stripe_unit", "8388608",
        "8388608 does not divide the object size 4194304");
    Attributes attributes = real();
    attributes["striper.layout.object_size"] = "4294967295";
    attributes["striper.layout.stripe_unit"] = "1";
    attributes["striper.layout.stripe_count"] = "4294967295";
    refused([&] { (void)StriperMetadata::decode(attributes); }, EIO,
            "striper attribute striper.layout.stripe_count: 4294967295 "
            "objects of 4294967295 bytes are above 2^63 - 1");
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(EncodingTest);
CPPUNIT_TEST_SUITE_REGISTRATION(FeaturesTest);
CPPUNIT_TEST_SUITE_REGISTRATION(Format1Test);
CPPUNIT_TEST_SUITE_REGISTRATION(Format2Test);
CPPUNIT_TEST_SUITE_REGISTRATION(DirectoryTest);
CPPUNIT_TEST_SUITE_REGISTRATION(LockTest);
CPPUNIT_TEST_SUITE_REGISTRATION(StriperMetadataTest);

}  // namespace
