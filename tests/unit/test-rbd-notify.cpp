// SPDX-License-Identifier: BSD-3-Clause
//
// The codecs that writing to RBD format 2 needs: notifications on the header,
// the object map, and some methods of the object classes.
//
// Vectors are what librbd and the OSD of Ceph 16.2.15 sent or stored: seen by
// a watch on the header while `rbd bench`, `rbd snap create`, `rbd resize`
// and others ran, and read from map objects.  Vectors that are made by hand
// say so.

#include <cppunit/extensions/HelperMacros.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "rados/error.hpp"
#include "rbd/cls_lock.hpp"
#include "rbd/encoding.hpp"
#include "rbd/features.hpp"
#include "rbd/format2.hpp"
#include "rbd/object_map.hpp"
#include "rbd/watch_notify.hpp"

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

// Without the spaces that make a vector readable.
std::string same(std::string_view vector) { return hex(unhex(vector)); }

// `call` throws an Error EIO with exactly this message.
void refused(const std::function<void()>& call, const std::string& message) {
  try {
    call();
  } catch (const Error& e) {
    CPPUNIT_ASSERT_EQUAL(message, std::string(e.what()));
    CPPUNIT_ASSERT_EQUAL(EIO, e.code());
    return;
  }
  CPPUNIT_FAIL("not refused: " + message);
}

// Each proper prefix is refused, with the name of the structure in front.
void refused_cut_off(const std::function<void(std::string_view)>& decode,
                     const std::string& bytes, const std::string& what) {
  decode(bytes);
  for (std::size_t n = 0; n < bytes.size(); ++n) {
    // A copy of that size: valgrind and AddressSanitizer see its end.
    const std::string cut(bytes, 0, n);
    try {
      decode(cut);
    } catch (const Error& e) {
      CPPUNIT_ASSERT_EQUAL(EIO, e.code());
      CPPUNIT_ASSERT_MESSAGE(e.what(),
                             std::string(e.what()).starts_with(what + ": "));
      continue;
    }
    CPPUNIT_FAIL(what + ": not refused at " + std::to_string(n) + " bytes");
  }
}

// ----------------------------------------------------------- notifications

const char acquired[] =
    "07 01 14000000 00000000 2910000000000000 a0140024b97f0000";
const char released[] =
    "07 01 14000000 01000000 2910000000000000 a0140024b97f0000";
const char request[] =
    "07 01 15000000 02000000 3710000000000000 205e01202d7f0000 00";
// rados_notify2 with a request_lock, while librbd's client 4151 had the lock.
const char replies[] =
    "03000000"
    "2710000000000000 c03e920130560000 00000000"
    "3710000000000000 205e01202d7f0000 0a000000 01010400000000000000"
    "3b10000000000000 e068481147560000 00000000"
    "00000000";
// One of three watchers did not answer within two seconds.
const char timed_out[] =
    "02000000"
    "2710000000000000 c03e920130560000 00000000"
    "3f10000000000000 d038fa782c560000 00000000"
    "01000000 3f10000000000000 b079fa782c560000";

class NotifyTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(NotifyTest);
  CPPUNIT_TEST(lock_messages);
  CPPUNIT_TEST(other_messages);
  CPPUNIT_TEST(versions);
  CPPUNIT_TEST(malformed_messages);
  CPPUNIT_TEST(names);
  CPPUNIT_TEST(responses);
  CPPUNIT_TEST(answers);
  CPPUNIT_TEST(malformed_answers);
  CPPUNIT_TEST_SUITE_END();

 public:
  void lock_messages() {
    const NotifyClient bench{4137, 140433149662368};
    CPPUNIT_ASSERT((NotifyMessage{NotifyOp::acquired_lock, bench, false} ==
                    decode_notify(unhex(acquired))));
    CPPUNIT_ASSERT_EQUAL(same(acquired),
                         hex(encode_notify_acquired_lock(bench)));
    CPPUNIT_ASSERT((NotifyMessage{NotifyOp::released_lock, bench, false} ==
                    decode_notify(unhex(released))));
    CPPUNIT_ASSERT_EQUAL(same(released),
                         hex(encode_notify_released_lock(bench)));

    const NotifyClient other{4151, 139831787216416};
    CPPUNIT_ASSERT((NotifyMessage{NotifyOp::request_lock, other, false} ==
                    decode_notify(unhex(request))));
    CPPUNIT_ASSERT_EQUAL(same(request),
                         hex(encode_notify_request_lock(other)));
    std::string forced = unhex(request);
    forced.back() = 1;
    CPPUNIT_ASSERT((NotifyMessage{NotifyOp::request_lock, other, true} ==
                    decode_notify(forced)));
    CPPUNIT_ASSERT_EQUAL(hex(forced),
                         hex(encode_notify_request_lock(other, true)));
  }

  void other_messages() {
    const char header_update[] = "07010400000003000000";
    CPPUNIT_ASSERT_EQUAL(same(header_update),
                         hex(encode_notify_header_update()));
    const struct {
      NotifyOp op;
      const char* vector;
    } seen[] = {
        {NotifyOp::header_update, header_update},
        {NotifyOp::async_progress,
         "07012c000000040000004710000000000000205e01244e7f0000010000000000"
         "000001000000000000000a00000000000000"},
        {NotifyOp::async_complete,
         "070120000000050000004710000000000000205e01244e7f0000010000000000"
         "000000000000"},
        {NotifyOp::resize,
         "070125000000070000000000c003000000004910000000000000f06901a8db7f"
         "0000010000000000000000"},
        {NotifyOp::snap_create,
         "070133000000080000000100000074010104000000000000004710000000000000"
         "205e01244e7f000001000000000000000000000000000000"},
        {NotifyOp::snap_remove,
         "07012b000000090000000100000075010104000000000000005310000000000000"
         "704900e0a17f00000100000000000000"},
        {NotifyOp::rebuild_object_map,
         "07011c0000000a0000005710000000000000d05d0128b17f0000010000000000"
         "0000"},
        {NotifyOp::update_features,
         "0701250000000f0000001000000000000000005510000000000000f05d010c50"
         "7f00000100000000000000"},
        {NotifyOp::quiesce,
         "07011c000000120000004510000000000000005e01c8af7f0000010000000000"
         "0000"},
        {NotifyOp::unquiesce,
         "07011c000000130000004510000000000000005e01c8af7f0000010000000000"
         "0000"},
        {NotifyOp::metadata_update,
         "07012900000014000000010000006b010300000076616c4b1000000000000060"
         "040190357f00000100000000000000"},
    };
    for (const auto& [op, vector] : seen)
      CPPUNIT_ASSERT((NotifyMessage{op, std::nullopt, false} ==
                      decode_notify(unhex(vector))));
    // From a client of the future, made by hand.
    const NotifyMessage unknown =
        decode_notify(unhex("09 01 05000000 e7030000 ff"));
    CPPUNIT_ASSERT_EQUAL(std::uint32_t{999},
                         static_cast<std::uint32_t>(unknown.op));
    CPPUNIT_ASSERT(!unknown.client && !unknown.force);
    CPPUNIT_ASSERT(!asks_lock_holder(unknown.op));
  }

  // Made by hand, by the rules of NotifyMessage::decode.
  void versions() {
    const NotifyMessage first = decode_notify(unhex("01 01 04000000 02000000"));
    CPPUNIT_ASSERT((NotifyMessage{NotifyOp::request_lock, std::nullopt, false} ==
                    first));
    const NotifyMessage second = decode_notify(
        unhex("02 01 14000000 02000000 0100000000000000 0200000000000000"));
    CPPUNIT_ASSERT((NotifyMessage{NotifyOp::request_lock, NotifyClient{1, 2},
                                  false} == second));
    const NotifyMessage third = decode_notify(
        unhex("03 01 15000000 02000000 0100000000000000 0200000000000000 01"));
    CPPUNIT_ASSERT((NotifyMessage{NotifyOp::request_lock, NotifyClient{1, 2},
                                  true} == third));
    refused([] { (void)decode_notify(unhex("08 02 04000000 03000000")); },
            "notification: message has version 8 and asks readers to "
            "understand version 2, this one understands 1");
  }

  void malformed_messages() {
    const auto decode = [](std::string_view in) { (void)decode_notify(in); };
    for (const char* vector : {acquired, released, request})
      refused_cut_off(decode, unhex(vector), "notification");
    // The frame ends before its content does.
    refused([] { (void)decode_notify(unhex("07 01 03000000 03000000")); },
            "notification: operation needs 4 bytes, 3 left");
    refused([] { (void)decode_notify(unhex("07 01 ffffffff 03000000")); },
            "notification: message needs 4294967295 bytes, 4 left");
  }

  void names() {
    CPPUNIT_ASSERT_EQUAL(std::string("AcquiredLock"),
                         to_string(NotifyOp::acquired_lock));
    CPPUNIT_ASSERT_EQUAL(std::string("RebuildObjectMap"),
                         to_string(NotifyOp::rebuild_object_map));
    CPPUNIT_ASSERT_EQUAL(std::string("MetadataUpdate"),
                         to_string(NotifyOp::metadata_update));
    CPPUNIT_ASSERT_EQUAL(std::string("Unknown (21)"),
                         to_string(static_cast<NotifyOp>(21)));
    for (std::uint32_t n = 0; n < 25; ++n) {
      const auto op = static_cast<NotifyOp>(n);
      const bool asks = op == NotifyOp::request_lock ||
                        (n >= 6 && n <= 17) || n == 20;
      CPPUNIT_ASSERT_EQUAL_MESSAGE(to_string(op), asks, asks_lock_holder(op));
    }
  }

  void responses() {
    CPPUNIT_ASSERT_EQUAL(std::int32_t{0},
                         decode_notify_response(unhex("01010400000000000000")));
    CPPUNIT_ASSERT_EQUAL(std::string("01010400000000000000"),
                         hex(encode_notify_response(0)));
    // -EROFS and -EOPNOTSUPP, by hand.
    CPPUNIT_ASSERT_EQUAL(std::string("010104000000e2ffffff"),
                         hex(encode_notify_response(-EROFS)));
    CPPUNIT_ASSERT_EQUAL(-EOPNOTSUPP, decode_notify_response(
                                          encode_notify_response(-EOPNOTSUPP)));
    refused_cut_off(
        [](std::string_view in) { (void)decode_notify_response(in); },
        unhex("01010400000000000000"), "notification response");
  }

  void answers() {
    const NotifyReplies got = decode_notify_replies(unhex(replies));
    CPPUNIT_ASSERT((NotifyReplies{
                        {{{4135, 0x5630'01923ec0ULL}, ""},
                         {{4151, 139831787216416}, unhex("01010400000000000000")},
                         {{4155, 94863232624864}, ""}},
                        {}} == got));
    const NotifyReplies late = decode_notify_replies(unhex(timed_out));
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, late.answers.size());
    CPPUNIT_ASSERT((std::vector<NotifyReplies::Watcher>{
                        {4159, 0x562c'78fa79b0ULL}} == late.timeouts));
    // Nobody watches, by hand.
    CPPUNIT_ASSERT(NotifyReplies{} ==
                   decode_notify_replies(std::string(8, '\0')));
  }

  void malformed_answers() {
    const auto decode = [](std::string_view in) {
      (void)decode_notify_replies(in);
    };
    refused_cut_off(decode, unhex(replies), "notification replies");
    refused_cut_off(decode, unhex(timed_out), "notification replies");
    refused([] { (void)decode_notify_replies(unhex("ffffffff 00000000")); },
            "notification replies: count of answers 4294967295 is more than "
            "4 bytes can hold");
    refused([] { (void)decode_notify_replies(unhex("00000000 ffffffff")); },
            "notification replies: count of timeouts 4294967295 is more than "
            "0 bytes can hold");
    std::string long_answer = unhex(replies);
    long_answer.replace(20, 4, "\xff\xff\xff\x7f");
    refused([&] { (void)decode_notify_replies(long_answer); },
            "notification replies: answer needs 2147483647 bytes, 54 left");
  }
};

// -------------------------------------------------------------- object map

// An image of 10 objects of which only the first has been written; the reply
// of object_map_load, and the object.
const char map_reply[] =
    "0e000000 0101 08000000 0a00000000000000 400000 00000000";
const char map_object[] =
    "0e000000 0101 08000000 0a00000000000000 400000"
    "0c000000 c644f43a 01000000 d98065c7";
// After `rbd snap create`.
const char map_clean[] =
    "0e000000 0101 08000000 0a00000000000000 c00000"
    "0c000000 c644f43a 01000000 9af7424c";

// 40000 objects of which 5 and 20000 exist: data in three blocks.
std::string large_map_object() {
  std::string data(10000, '\0');
  data[5 / 4] = 0x10;
  data[20000 / 4] = 0x40;
  return unhex("0e000000 0101 08000000 409c000000000000") + data +
         unhex("14000000 b0bd4f72 03000000 f22e16dc 9ea062c1 00000000");
}

class ObjectMapCodecTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(ObjectMapCodecTest);
  CPPUNIT_TEST(order_of_bits);
  CPPUNIT_TEST(states);
  CPPUNIT_TEST(blocks_of_states);
  CPPUNIT_TEST(states_as_a_string);
  CPPUNIT_TEST(pieces);
  CPPUNIT_TEST(real_maps);
  CPPUNIT_TEST(blocks);
  CPPUNIT_TEST(empty_map);
  CPPUNIT_TEST(stale_bits);
  CPPUNIT_TEST(truncated);
  CPPUNIT_TEST(absurd_counts);
  CPPUNIT_TEST(checksums);
  CPPUNIT_TEST(each_byte);
  CPPUNIT_TEST(inputs);
  CPPUNIT_TEST_SUITE_END();

 public:
  void order_of_bits() {
    ObjectStates map(6);
    map.set(0, ObjectState::exists);
    map.set(1, ObjectState::pending);
    map.set(3, ObjectState::exists_clean);
    map.set(5, ObjectState::exists);
    CPPUNIT_ASSERT_EQUAL(std::string("6310"), hex(map.bits()));
  }

  void states() {
    for (unsigned s = 0; s < 4; ++s) {
      const auto state = static_cast<ObjectState>(s);
      ObjectStates map(7, state);
      CPPUNIT_ASSERT_EQUAL(std::uint64_t{7}, map.size());
      for (std::uint64_t i = 0; i < 7; ++i) CPPUNIT_ASSERT(map[i] == state);
      // What is behind the end is 0.
      CPPUNIT_ASSERT_EQUAL(0, map.bits()[1] & 3);
      map.set(4, ObjectState::pending);
      for (std::uint64_t i = 0; i < 7; ++i)
        CPPUNIT_ASSERT(map[i] == (i == 4 ? ObjectState::pending : state));
    }
    CPPUNIT_ASSERT_THROW(ObjectStates(object_map_max + 1), std::length_error);
    CPPUNIT_ASSERT_THROW(ObjectStates(5, std::string(1, '\0')),
                         std::length_error);
    CPPUNIT_ASSERT_THROW(ObjectStates(4, std::string(2, '\0')),
                         std::length_error);
  }

  // Blocks of one state have no memory, whatever made them so; and no copy
  // changes with another one.
  void blocks_of_states() {
    constexpr std::uint64_t block = object_map_block;
    for (unsigned s = 0; s < 4; ++s) {
      const auto state = static_cast<ObjectState>(s);
      const ObjectStates map(3 * block + 5, state);
      CPPUNIT_ASSERT_EQUAL(block, map.end_of_run(0));
      CPPUNIT_ASSERT_EQUAL(block, map.end_of_run(block - 1));
      CPPUNIT_ASSERT_EQUAL(2 * block, map.end_of_run(block));
      const ObjectStates decoded(map.size(), map.bits());
      CPPUNIT_ASSERT(decoded == map);
      CPPUNIT_ASSERT_EQUAL(3 * block, decoded.end_of_run(2 * block + 7));
      ObjectStates set(map.size());
      set.set(0, map.size(), state);
      CPPUNIT_ASSERT(set == map);
      CPPUNIT_ASSERT_EQUAL(2 * block, set.end_of_run(block));

      ObjectStates changed = map;
      const auto other = static_cast<ObjectState>(3 - s);
      changed.set(block + 9, other);
      CPPUNIT_ASSERT(changed[block + 8] == state);
      CPPUNIT_ASSERT(changed[block + 9] == other);
      CPPUNIT_ASSERT(map[block + 9] == state && decoded == map);
      CPPUNIT_ASSERT_EQUAL(block + 10, changed.end_of_run(block + 9));
      CPPUNIT_ASSERT(changed != map);
      const ObjectStates copy = changed;
      changed.set(block + 9, state);
      CPPUNIT_ASSERT(changed == map && copy != map);
      CPPUNIT_ASSERT(ObjectStates(3 * block + 5, state) == map);
    }
    // Takes hardly more than this.
    const ObjectStates largest(object_map_max);
    CPPUNIT_ASSERT_EQUAL(object_map_max,
                         largest.end_of_absent(0, ~std::uint64_t{0}));
  }

  void states_as_a_string() {
    std::mt19937 random(3);
    std::string model(2 * object_map_block + 77, '0');
    ObjectStates map(model.size());
    const auto any = [&] { return random() % model.size(); };
    for (int i = 0; i < 400; ++i) {
      const unsigned s = random() % 4;
      std::size_t first = any();
      std::size_t end = first + 1;
      if (i % 4 == 1) end = std::min(model.size(), first + random() % 100);
      if (i % 40 == 2) end = first + random() % (model.size() - first);
      if (i % 40 == 3) first = 0;
      std::fill(model.begin() + static_cast<std::ptrdiff_t>(first),
                model.begin() + static_cast<std::ptrdiff_t>(end),
                static_cast<char>('0' + s));
      if (end == first + 1)
        map.set(first, static_cast<ObjectState>(s));
      else
        map.set(first, end, static_cast<ObjectState>(s));
      if (i % 100 == 99) {
        map.grow(map.size() + 10'000);
        model.resize(model.size() + 10'000, '0');
      }
      const std::size_t from = any();
      const std::size_t to = from + random() % (model.size() - from);
      CPPUNIT_ASSERT_EQUAL(
          std::min(to, std::min(model.size(),
                                model.find_first_not_of('0', from))),
          std::size_t{map.end_of_absent(from, to)});
      const std::size_t run = map.end_of_run(from);
      CPPUNIT_ASSERT(run > from && run <= model.size());
      CPPUNIT_ASSERT(run <= model.find_first_not_of(model[from], from));
    }
    for (std::size_t n = 0; n < model.size(); ++n)
      CPPUNIT_ASSERT_EQUAL(model[n], "0123"[static_cast<unsigned>(map[n])]);
    // It says nothing of what is behind its end.
    map = ObjectStates(5);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{5}, map.end_of_absent(2, 100));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{70}, map.end_of_absent(70, 100));
    CPPUNIT_ASSERT_THROW(map.grow(object_map_max + 1), std::length_error);
  }

  void pieces() {
    const std::string bytes = large_map_object();
    const ObjectMapPieces map(bytes);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{40000}, map.objects());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{3}, map.blocks());
    const auto part = [&](ObjectMapPieces::Part p) {
      CPPUNIT_ASSERT(p.offset + p.length <= bytes.size());
      return bytes.substr(p.offset, p.length);
    };
    CPPUNIT_ASSERT(map.check_footer(part(map.footer())));
    for (const std::uint64_t step : {1, 2, 3}) {
      ObjectStates states(map.objects());
      for (std::uint64_t b = 0; b < 3; b += step) {
        const std::uint64_t end = std::min<std::uint64_t>(b + step, 3);
        CPPUNIT_ASSERT(map.put(states, b, part(map.data(b, end)),
                               part(map.checksums(b, end))));
      }
      CPPUNIT_ASSERT(states == decode_object_map(bytes));
    }
    ObjectStates states(map.objects());
    CPPUNIT_ASSERT(!map.put(states, 0, part(map.data(0, 1)),
                            part(map.checksums(1, 2))));
    // Footers that are not this map's.
    CPPUNIT_ASSERT(!map.check_footer(std::string(12, '\0')));
    const std::string footer = part(map.footer());
    const auto changed = [&](std::size_t at) {
      std::string other = footer;
      ++other[at];
      return other;
    };
    refused([&] { (void)map.check_footer(changed(0)); },
            "object map: footer has 21 bytes");
    refused([&] { (void)map.check_footer(changed(4)); },
            "object map: header checksum is wrong");
    refused([&] { (void)map.check_footer(changed(8)); },
            "object map: count of data checksums 4 is wrong for 10000 bytes "
            "of data");
    refused_cut_off(
        [&](std::string_view in) { (void)map.check_footer(in); }, footer,
        "object map");
    refused_cut_off([](std::string_view in) { (void)ObjectMapPieces(in); },
                    bytes.substr(0, 18), "object map");
  }

  void real_maps() {
    ObjectStates first(10);
    first.set(0, ObjectState::exists);
    CPPUNIT_ASSERT(first == decode_object_map(unhex(map_reply)));
    CPPUNIT_ASSERT(first == decode_object_map(unhex(map_object)));
    CPPUNIT_ASSERT_EQUAL(same(map_reply),
                         hex(encode_object_map(first, ObjectMapFooter::empty)));
    CPPUNIT_ASSERT_EQUAL(
        same(map_object),
        hex(encode_object_map(first, ObjectMapFooter::checksums)));
    ObjectStates clean(10);
    clean.set(0, ObjectState::exists_clean);
    CPPUNIT_ASSERT(clean == decode_object_map(unhex(map_clean)));
    CPPUNIT_ASSERT_EQUAL(
        same(map_clean),
        hex(encode_object_map(clean, ObjectMapFooter::checksums)));
  }

  void blocks() {
    const ObjectStates map = decode_object_map(large_map_object());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{40000}, map.size());
    for (std::uint64_t i = 0; i < map.size(); ++i)
      CPPUNIT_ASSERT_EQUAL(i == 5 || i == 20000,
                           map[i] == ObjectState::exists);
    CPPUNIT_ASSERT(large_map_object() ==
                   encode_object_map(map, ObjectMapFooter::checksums));
  }

  // By hand; the object class makes the same of an image of size 0.
  void empty_map() {
    const ObjectStates none;
    for (const ObjectMapFooter footer :
         {ObjectMapFooter::empty, ObjectMapFooter::checksums})
      CPPUNIT_ASSERT(none ==
                     decode_object_map(encode_object_map(none, footer)));
    CPPUNIT_ASSERT_EQUAL(
        same("0e000000 0101 08000000 0000000000000000 00000000"),
        hex(encode_object_map(none, ObjectMapFooter::empty)));
  }

  // A map that has been made smaller keeps bits behind its end.
  void stale_bits() {
    const ObjectStates map = decode_object_map(
        unhex("0e000000 0101 08000000 0500000000000000 407f 00000000"));
    CPPUNIT_ASSERT_EQUAL(std::string("4040"), hex(map.bits()));
  }

  void truncated() {
    const auto decode = [](std::string_view in) {
      (void)decode_object_map(in);
    };
    refused_cut_off(decode, unhex(map_reply), "object map");
    refused_cut_off(decode, unhex(map_object), "object map");
    refused([&] { decode(unhex(map_reply) + "x"); },
            "object map: 1 byte too many");
  }

  void absurd_counts() {
    const auto map_of = [](std::uint64_t objects) {
      Encoder header;
      header.frame(1, 1, [&] { header.u64(objects); });
      Encoder out;
      out.string(header.str()).bytes("abcd").u32(0);
      return out.take();
    };
    refused([&] { (void)decode_object_map(map_of(~std::uint64_t{0})); },
            "object map: number of objects 18446744073709551615 is above "
            "256000000");
    refused([&] { (void)decode_object_map(map_of(object_map_max + 1)); },
            "object map: number of objects 256000001 is above 256000000");
    refused([&] { (void)decode_object_map(map_of(object_map_max)); },
            "object map: data needs 64000000 bytes, 8 left");
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{16},
                         decode_object_map(map_of(16)).size());
    // The length of the footer is then the data's last bytes.
    CPPUNIT_ASSERT_THROW((void)decode_object_map(map_of(12)), Error);
    CPPUNIT_ASSERT_THROW((void)decode_object_map(map_of(17)), Error);
  }

  void checksums() {
    std::string bytes = unhex(map_object);
    bytes[18] = 0;  // the first object
    refused([&] { (void)decode_object_map(bytes); },
            "object map: data checksum of block 0 is wrong");
    bytes = unhex(map_object);
    bytes[10] = 9;  // the number of objects
    refused([&] { (void)decode_object_map(bytes); },
            "object map: header checksum is wrong");
    bytes = large_map_object();
    bytes[18 + 9999] = 1;
    refused([&] { (void)decode_object_map(bytes); },
            "object map: data checksum of block 2 is wrong");
    bytes = unhex(map_object);
    bytes[18 + 3 + 8] = 0;  // the count
    refused([&] { (void)decode_object_map(bytes); },
            "object map: count of data checksums 0 is wrong for 3 bytes of "
            "data");
  }

  void each_byte() {
    const std::string bytes = unhex(map_object);
    std::size_t taken = 0;
    for (std::size_t at = 0; at < bytes.size(); ++at)
      for (unsigned value = 0; value < 256; ++value) {
        std::string changed = bytes;
        changed[at] = static_cast<char>(static_cast<unsigned char>(value));
        try {
          const ObjectStates map = decode_object_map(changed);
          // The frame's first byte is a version, which readers may not know
          // but which the checksum covers.
          CPPUNIT_ASSERT(changed == bytes);
          CPPUNIT_ASSERT_EQUAL(std::uint64_t{10}, map.size());
          ++taken;
        } catch (const Error& e) {
          CPPUNIT_ASSERT_EQUAL(EIO, e.code());
        }
      }
    CPPUNIT_ASSERT_EQUAL(bytes.size(), taken);
  }

  // By hand; test-object-map.sh has the object class read them.
  void inputs() {
    CPPUNIT_ASSERT_EQUAL(
        same("0500000000000000 0601000000000000 01 00"),
        hex(encode_object_map_update(5, 262, ObjectState::exists)));
    CPPUNIT_ASSERT_EQUAL(
        same("0000000000000000 ffffffff00000000 02 01 01"),
        hex(encode_object_map_update(0, 0xffffffff, ObjectState::pending,
                                     ObjectState::exists)));
    CPPUNIT_ASSERT_EQUAL(
        same("0000000000000000 0100000000000000 00 01 02"),
        hex(encode_object_map_update(0, 1, ObjectState::nonexistent,
                                     ObjectState::pending)));
    CPPUNIT_ASSERT_EQUAL(
        same("0004000000000000 03"),
        hex(encode_object_map_resize(1024, ObjectState::exists_clean)));
  }
};

// ----------------------------------------------------------- other methods

class WritingMethodsTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(WritingMethodsTest);
  CPPUNIT_TEST(lock_inputs);
  CPPUNIT_TEST(lock_cookies);
  CPPUNIT_TEST(flags);
  CPPUNIT_TEST(sparse_copyup);
  CPPUNIT_TEST_SUITE_END();

 public:
  // By hand, from cls_lock_ops.h; test-object-map.sh has the object class
  // read them.
  void lock_inputs() {
    CPPUNIT_ASSERT_EQUAL(
        same("01 01 15000000 08000000 7262645f6c6f636b 01 00000000 00000000"),
        hex(encode_assert_locked("rbd_lock", LockType::exclusive, "", "")));
    CPPUNIT_ASSERT_EQUAL(
        same("01 01 2e000000 08000000 7262645f6c6f636b 01"
             "06000000 6175746f2031 08000000 696e7465726e616c"
             "07000000 6175746f203132"),
        hex(encode_set_lock_cookie(rbd_lock_name, LockType::exclusive,
                                   rbd_lock_cookie(1), rbd_lock_tag,
                                   rbd_lock_cookie(12))));
  }

  void lock_cookies() {
    // As `rbd lock ls` showed it.
    CPPUNIT_ASSERT_EQUAL(std::string("auto 139831787216416"),
                         rbd_lock_cookie(139831787216416));
    CPPUNIT_ASSERT(parse_rbd_lock_cookie("auto 139831787216416") ==
                   std::uint64_t{139831787216416});
    CPPUNIT_ASSERT(parse_rbd_lock_cookie("auto 18446744073709551615") ==
                   ~std::uint64_t{0});
    for (const char* other :
         {"", "auto", "auto ", "auto x", "auto 1x", "auto  1", "auto -1",
          "auto +1", "Auto 1", " auto 1", "auto 1 ",
          "auto 18446744073709551616", "mine"})
      CPPUNIT_ASSERT_MESSAGE(other, !parse_rbd_lock_cookie(other));
  }

  void flags() {
    CPPUNIT_ASSERT_EQUAL(
        same("0100000000000000 0300000000000000 feffffffffffffff"),
        hex(encode_set_flags(snap_head, flag_object_map_invalid,
                             flag_object_map_invalid |
                                 flag_fast_diff_invalid)));
  }

  void sparse_copyup() {
    const std::vector<ObjectRange> extents = {{0, 2}, {4096, 3}};
    CPPUNIT_ASSERT_EQUAL(
        same("02000000 0000000000000000 0200000000000000"
             "0010000000000000 0300000000000000 05000000 6162636465"),
        hex(encode_sparse_copyup(extents, "abcde")));
    CPPUNIT_ASSERT_EQUAL(same("00000000 00000000"),
                         hex(encode_sparse_copyup({}, "")));
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(NotifyTest);
CPPUNIT_TEST_SUITE_REGISTRATION(ObjectMapCodecTest);
CPPUNIT_TEST_SUITE_REGISTRATION(WritingMethodsTest);

}  // namespace
