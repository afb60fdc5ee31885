// SPDX-License-Identifier: BSD-3-Clause
//
// Reading: objects, what they lack, errors, parents, and which zeros must be
// confirmed.

#include <cppunit/extensions/HelperMacros.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <future>
#include <optional>
#include <string>
#include <vector>

#include "image-room.hpp"
#include "image/io/reader.hpp"
#include "image/status/map_learner.hpp"

using namespace nbdrados;
using namespace std::chrono_literals;
using Kind = FaultStore::Kind;

namespace {

constexpr std::uint64_t K = 1024;
const Layout four(4 * K, 4 * K, 1);
constexpr std::uint64_t size = 64 * K;

struct Bench : ImageRoom {
  using ImageRoom::ImageRoom;
  std::string read(std::uint64_t length, std::uint64_t offset) {
    std::string data(length, '?');
    reader.read(data.data(), length, offset);
    return data;
  }
  /// As a child reads; whether anything absent was taken for zeros.
  std::string read_backing(std::uint64_t length, std::uint64_t offset,
                           bool* missing) {
    std::string data(length, '?');
    *missing = reader.read_backing(data.data(), length, offset);
    return data;
  }
  int error(std::uint64_t length, std::uint64_t offset) {
    return error_of([&] { (void)read(length, offset); });
  }
  /// How often the header was read for this.
  int loads_of_a_read(std::uint64_t length, std::uint64_t offset) {
    const int before = state->loads;
    (void)read(length, offset);
    return state->loads - before;
  }
  MapLearner learner{core};
  Reader reader{core, learner};
};

std::string zeros(std::uint64_t n) { return std::string(n, '\0'); }

View clone(std::uint64_t overlap) {
  return {.size = size, .overlap = overlap, .parent_spec = {1, "", "p", 7}};
}

class ReaderTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(ReaderTest);
  CPPUNIT_TEST(one_object_is_one_operation);
  CPPUNIT_TEST(beyond_the_end);
  CPPUNIT_TEST(short_objects);
  CPPUNIT_TEST(snapshots);
  CPPUNIT_TEST(waits_for_all_objects);
  CPPUNIT_TEST(other_errors_are_not_zeros);
  CPPUNIT_TEST(first_error_of_several);
  CPPUNIT_TEST(failing_image);
  CPPUNIT_TEST(many_objects_in_bounds);
  CPPUNIT_TEST(end_of_the_overlap);
  CPPUNIT_TEST(parents_of_several_objects);
  CPPUNIT_TEST(errors_of_the_parent);
  CPPUNIT_TEST(zeros_of_a_guarded_head);
  CPPUNIT_TEST(zeros_that_need_no_proof);
  CPPUNIT_TEST(zeros_of_a_snapshot);
  CPPUNIT_TEST(deleted_snapshot_is_not_zeros);
  CPPUNIT_TEST(parent_that_goes_meanwhile);
  CPPUNIT_TEST(known_to_be_absent);
  CPPUNIT_TEST(map_of_a_snapshot_is_learnt);
  CPPUNIT_TEST(for_a_child);
  CPPUNIT_TEST(for_a_child_of_another_size);
  CPPUNIT_TEST_SUITE_END();

 public:
  void one_object_is_one_operation() {
    Bench b(four, {.size = size});
    b.put(3, std::string(4 * K, 'x'));
    CPPUNIT_ASSERT(b.read(2 * K, 14 * K) == std::string(2 * K, 'x'));
    const auto log = b.store.log();
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, log.size());
    CPPUNIT_ASSERT_EQUAL(b.oid(3), log[0].oid);
    CPPUNIT_ASSERT_EQUAL(2 * K, log[0].offset);
    CPPUNIT_ASSERT_EQUAL(2 * K, log[0].length);
    CPPUNIT_ASSERT_EQUAL(snap_head, log[0].snap);
  }

  void beyond_the_end() {
    Bench b(four, {.size = 10 * K + 1});
    b.put(2, std::string(4 * K, 'x'));
    CPPUNIT_ASSERT_EQUAL(std::string("x"), b.read(1, 10 * K));
    b.store.clear_log();
    CPPUNIT_ASSERT_EQUAL(EINVAL, b.error(1, 10 * K + 1));
    CPPUNIT_ASSERT_EQUAL(EINVAL, b.error(2, 10 * K));
    CPPUNIT_ASSERT_EQUAL(EINVAL, b.error(2, ~std::uint64_t{0}));
    CPPUNIT_ASSERT(b.store.log().empty());
    // It has been made smaller.
    b.load({.size = 8 * K});
    CPPUNIT_ASSERT_EQUAL(EINVAL, b.error(1, 10 * K));
  }

  void short_objects() {
    Bench b(Layout(4 * K, K, 2), {.size = size});
    b.put(0, std::string(4 * K, 'a'));
    b.put(1, std::string(1500, 'a'));
    // Object 1 holds the odd units; its first 1500 bytes are unit 1 and a
    // part of unit 3.
    std::string expected(8 * K, 'a');
    std::fill(expected.begin() + 3 * K + 476, expected.begin() + 4 * K, '\0');
    std::fill(expected.begin() + 5 * K, expected.begin() + 6 * K, '\0');
    std::fill(expected.begin() + 7 * K, expected.begin() + 8 * K, '\0');
    CPPUNIT_ASSERT(b.read(8 * K, 0) == expected);
    CPPUNIT_ASSERT(b.read(K, 3 * K) == expected.substr(3 * K, K));
    CPPUNIT_ASSERT(b.read(K, 5 * K) == zeros(K));
    CPPUNIT_ASSERT(b.read(4 * K, 60 * K) == zeros(4 * K));
  }

  void snapshots() {
    Bench b(four, {.size = size, .snapc = {5, {5}}});
    b.put(0, "old");
    b.put(0, "new", 0, {5, {5}});
    b.put(1, "new", 0, {5, {5}});
    CPPUNIT_ASSERT_EQUAL(std::string("new"), b.read(3, 0));
    b.load({.size = size, .snapc = {5, {5}}, .snap = 5});
    CPPUNIT_ASSERT_EQUAL(std::string("old"), b.read(3, 0));
    CPPUNIT_ASSERT(b.read(8 * K, 0) == "old" + zeros(8 * K - 3));
    for (const auto& r : b.store.log())
      CPPUNIT_ASSERT(r.snap == 5 || r.oid == b.oid(0));
  }

  void waits_for_all_objects() {
    Bench b(four, {.size = size});
    for (std::uint64_t n = 0; n < 4; ++n) b.put(n, std::string(4 * K, 'a'));
    b.store.inject({.kind = Kind::read, .oid = b.oid(2), .held = true});
    b.store.inject({.kind = Kind::read, .oid = b.oid(0), .error = EIO});
    auto reading =
        std::async(std::launch::async, [&] { return b.error(16 * K, 0); });
    CPPUNIT_ASSERT(b.store.wait_until_held(1));
    // All objects are in flight, one has failed, and still it waits: whoever
    // gave the buffer may free it afterwards.
    const bool all = eventually([&] { return b.store.count(Kind::read) == 4; });
    const bool waits = reading.wait_for(50ms) == std::future_status::timeout;
    b.store.release();
    CPPUNIT_ASSERT_EQUAL(EIO, reading.get());
    CPPUNIT_ASSERT(all && waits);
    CPPUNIT_ASSERT(b.read(16 * K, 0) == std::string(16 * K, 'a'));
  }

  void other_errors_are_not_zeros() {
    Bench b(four, clone(size));
    for (const int code : {EIO, ESHUTDOWN, ETIMEDOUT, EPERM, ENXIO}) {
      for (const std::uint64_t length : {K, 12 * K}) {
        b.store.inject({.kind = Kind::read, .oid = b.oid(1), .error = code});
        CPPUNIT_ASSERT_EQUAL(code, b.error(length, 4 * K));
      }
      CPPUNIT_ASSERT(b.read(12 * K, 4 * K) == zeros(12 * K));
    }
    b.store.inject({.kind = Kind::read, .oid = b.oid(1), .error = ENXIO});
    const std::string text = message_of([&] { (void)b.read(1, 4 * K); });
    CPPUNIT_ASSERT_EQUAL(
        std::string("pool/image: cannot read object data.0001: its pool has "
                    "been deleted"),
        text);
  }

  void first_error_of_several() {
    // The objects of the second set come after those of the first.
    Bench b(Layout(4 * K, K, 3), {.size = 96 * K});
    b.store.inject({.kind = Kind::read, .oid = b.oid(4), .error = EPERM});
    b.store.inject({.kind = Kind::read, .oid = b.oid(2), .error = ESHUTDOWN});
    const std::string text = message_of([&] { (void)b.read(24 * K, 0); });
    CPPUNIT_ASSERT(text.find("data.0002") != std::string::npos);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{2}, b.store.hits());
  }

  void failing_image() {
    Bench b(four, {.size = size});
    b.state->set_load_error(EIO);
    (void)error_of([&] { b.core.metadata.load(); });
    CPPUNIT_ASSERT_EQUAL(EIO, b.error(1, 0));
    CPPUNIT_ASSERT(b.store.log().empty());
    // The first request asks whether that is over.
    Bench other(four, {.size = size});
    other.state->set_load_error(EIO);
    (void)error_of([&] { other.core.metadata.load(); });
    other.state->set_load_error(0);
    CPPUNIT_ASSERT_EQUAL(0, other.error(1, 0));
  }

  void many_objects_in_bounds() {
    Bench b(four, {.size = 16 << 20});
    b.put(4095, "x", 4 * K - 1);
    CPPUNIT_ASSERT(b.read(16 << 20, 0) == zeros((16 << 20) - 1) + "x");
    CPPUNIT_ASSERT_EQUAL(std::size_t{4096}, b.store.count(Kind::read));
    CPPUNIT_ASSERT(b.store.most_in_flight() <= 128);
    CPPUNIT_ASSERT(b.store.most_in_flight() > 64);
  }

  // Its last byte is in the middle of an object, its parent is longer.
  void end_of_the_overlap() {
    Bench b(four, clone(5 * K));
    b.parent->data = std::string(8 * K, 'p');
    const std::string all = std::string(5 * K, 'p') + zeros(3 * K);
    CPPUNIT_ASSERT(b.read(8 * K, 0) == all);
    CPPUNIT_ASSERT(b.parent->asked() ==
                   (std::vector<FakeBacking::Range>{{5 * K, 0}}));
    CPPUNIT_ASSERT_EQUAL(std::string("p"), b.read(1, 5 * K - 1));
    (void)b.parent->asked();
    CPPUNIT_ASSERT_EQUAL(zeros(1), b.read(1, 5 * K));
    CPPUNIT_ASSERT(b.parent->asked().empty());
    // Where there is an object, however short, there is no parent.
    b.put(0, "x", 2);
    CPPUNIT_ASSERT(b.read(8 * K, 0) ==
                   zeros(2) + "x" + zeros(4 * K - 3) + std::string(K, 'p') +
                       zeros(3 * K));
    CPPUNIT_ASSERT(b.read(4, 0) == zeros(2) + "x" + zeros(1));
    // A parent that is shorter than the overlap.
    b.parent->data = std::string(4 * K + 100, 'p');
    CPPUNIT_ASSERT(b.read(4 * K, 4 * K) ==
                   std::string(100, 'p') + zeros(4 * K - 100));
  }

  // What is missing side by side is one question.
  void parents_of_several_objects() {
    Bench b(Layout(4 * K, K, 2), clone(20 * K));
    for (std::uint64_t i = 0; i < 20 * K; ++i)
      b.parent->data.push_back(static_cast<char>('a' + i / 100 % 26));
    CPPUNIT_ASSERT(b.read(24 * K, 0) == b.parent->data + zeros(4 * K));
    CPPUNIT_ASSERT(b.parent->asked() ==
                   (std::vector<FakeBacking::Range>{{20 * K, 0}}));
    // Object 1 holds the odd units of the first 8 KiB.
    b.put(1, std::string(4 * K, 'X'));
    std::string expected = b.parent->data;
    for (std::uint64_t unit = 1; unit < 8; unit += 2)
      expected.replace(unit * K, K, K, 'X');
    CPPUNIT_ASSERT(b.read(20 * K, 0) == expected);
    CPPUNIT_ASSERT(b.parent->asked() ==
                   (std::vector<FakeBacking::Range>{{K, 0},
                                                    {K, 2 * K},
                                                    {K, 4 * K},
                                                    {K, 6 * K},
                                                    {12 * K, 8 * K}}));
  }

  void errors_of_the_parent() {
    Bench b(four, clone(size));
    for (const int code : {EIO, ENOENT, ETIMEDOUT, ESHUTDOWN}) {
      b.parent->error = code;
      for (const std::uint64_t length : {K, 12 * K})
        CPPUNIT_ASSERT_EQUAL(code, b.error(length, 0));
    }
    CPPUNIT_ASSERT_EQUAL(
        std::string("pool/image: its parent: pool/parent: no answer"),
        message_of([&] { (void)b.read(1, 0); }));
    b.put(0, "x");
    CPPUNIT_ASSERT_EQUAL(std::string("x"), b.read(1, 0));
  }

  void zeros_of_a_guarded_head() {
    Bench b(four, {.size = size});
    b.put(0, "x");
    CPPUNIT_ASSERT_EQUAL(0, b.loads_of_a_read(size, 0));
    b.end_guard();
    // What is there needs no proof; behind an object's end, neither.
    CPPUNIT_ASSERT_EQUAL(0, b.loads_of_a_read(4 * K, 0));
    CPPUNIT_ASSERT_EQUAL(1, b.loads_of_a_read(1, 4 * K));
    CPPUNIT_ASSERT_EQUAL(1, b.loads_of_a_read(size, 0));
    b.state->set_load_error(ENOENT);
    CPPUNIT_ASSERT_EQUAL(std::string("x"), b.read(1, 0));
    CPPUNIT_ASSERT_EQUAL(EIO, b.error(1, 4 * K));
    // From now on all of it fails, what is there too.
    CPPUNIT_ASSERT_EQUAL(EIO, b.error(1, 0));
  }

  /// All of the range is the parent's, which is sure of it.
  void zeros_that_need_no_proof() {
    Bench b(four, clone(8 * K));
    b.end_guard();
    CPPUNIT_ASSERT_EQUAL(0, b.loads_of_a_read(1, 4 * K));
    CPPUNIT_ASSERT_EQUAL(0, b.loads_of_a_read(8 * K, 0));
    CPPUNIT_ASSERT_EQUAL(1, b.loads_of_a_read(9 * K, 0));
    b.parent->missing = true;
    CPPUNIT_ASSERT_EQUAL(1, b.loads_of_a_read(1, 4 * K));
    CPPUNIT_ASSERT_EQUAL(1, b.loads_of_a_read(8 * K, 0));
  }

  void zeros_of_a_snapshot() {
    Bench b(four, {.size = size, .snapc = {5, {5}}, .snap = 5});
    // Its objects go before anybody is told.
    CPPUNIT_ASSERT_EQUAL(1, b.loads_of_a_read(1, 0));
    CPPUNIT_ASSERT_EQUAL(1, b.loads_of_a_read(8 * K, 0));
    b.state->set_load_error(ETIMEDOUT);
    CPPUNIT_ASSERT_EQUAL(ETIMEDOUT, b.error(1, 0));
    // No answer is no verdict.
    b.state->set_load_error(0);
    CPPUNIT_ASSERT_EQUAL(zeros(1), b.read(1, 0));
  }

  void deleted_snapshot_is_not_zeros() {
    for (const std::uint64_t length : {K, 8 * K}) {
      Bench b(four, {.size = size, .snapc = {5, {5}}, .snap = 5});
      b.put(0, "x");
      b.state->set_load_error(ENOENT);
      CPPUNIT_ASSERT_EQUAL(EIO, b.error(length, 40 * K));
    }
  }

  // A clone is flattened while it is read: the object has come in between.
  void parent_that_goes_meanwhile() {
    Bench b(four, clone(size));
    b.parent->missing = true;
    b.end_guard();
    b.parent->on_read = [&] {
      b.put(0, "flattened");
      b.state->set_view({.size = size});
    };
    CPPUNIT_ASSERT_EQUAL(std::string("flattened"), b.read(9, 0));
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, b.parent->asked().size());
    // And one that becomes too small for the request.
    b.load(clone(size));
    b.parent->on_read = [&] { b.state->set_view({.size = 16 * K}); };
    CPPUNIT_ASSERT_EQUAL(EINVAL, b.error(K, 16 * K));
  }

  // Not even asked for, and with a guard no confirmation is needed.
  void known_to_be_absent() {
    Bench b(four, {.size = size, .snapc = {5, {5}}, .snap = 5});
    {
      KnownExtents::Learning learning(b.core.known);
      for (std::uint64_t n = 2; n < 16; ++n) learning.learn_absent(n);
    }
    CPPUNIT_ASSERT_EQUAL(0, b.loads_of_a_read(1, 8 * K));
    CPPUNIT_ASSERT_EQUAL(0, b.loads_of_a_read(8 * K, 8 * K));
    CPPUNIT_ASSERT(b.store.log().empty());
    CPPUNIT_ASSERT_EQUAL(1, b.loads_of_a_read(8 * K, 4 * K));
    CPPUNIT_ASSERT(b.objects(Kind::read) ==
                   std::vector<std::string>{b.oid(1)});
    b.end_guard();
    CPPUNIT_ASSERT_EQUAL(1, b.loads_of_a_read(1, 8 * K));
    CPPUNIT_ASSERT_EQUAL(1, b.loads_of_a_read(8 * K, 8 * K));
    // What is known of the head, without the lock, is not believed.
    b.load({.size = size});
    b.put(2, "x");
    CPPUNIT_ASSERT_EQUAL(std::string("x"), b.read(1, 8 * K));
  }

  void map_of_a_snapshot_is_learnt() {
    Bench b(four, {.size = size, .snapc = {5, {5}}, .snap = 5,
                   .mappable = true});
    auto map = std::make_shared<ObjectStates>(16);
    map->set(1, ObjectState::exists);
    b.state->map = map;
    b.put(1, "x");
    // With the first zeros; not before.
    CPPUNIT_ASSERT_EQUAL(std::string("x"), b.read(1, 4 * K));
    CPPUNIT_ASSERT(!b.core.known.knows_all_absent());
    CPPUNIT_ASSERT_EQUAL(zeros(1), b.read(1, 0));
    CPPUNIT_ASSERT(b.core.known.knows_all_absent());
    b.store.clear_log();
    CPPUNIT_ASSERT(b.read(size, 0) ==
                   zeros(4 * K) + "x" + zeros(60 * K - 1));
    CPPUNIT_ASSERT(b.objects(Kind::read) ==
                   std::vector<std::string>{b.oid(1)});
  }

  void for_a_child() {
    Bench b(four, {.size = size, .snap = 7}, {.image = as_parent()});
    b.put(0, std::string(4 * K, 'x'));
    bool missing = true;
    CPPUNIT_ASSERT(b.read_backing(4 * K, 0, &missing) ==
                   std::string(4 * K, 'x'));
    CPPUNIT_ASSERT(!missing);
    // It is the child that may be gone, so the child must ask.
    CPPUNIT_ASSERT(b.read_backing(8 * K, 0, &missing) ==
                   std::string(4 * K, 'x') + zeros(4 * K));
    CPPUNIT_ASSERT(missing);
    {
      KnownExtents::Learning learning(b.core.known);
      learning.learn_absent(1);
    }
    for (const std::uint64_t length : {K, 5 * K}) {
      (void)b.read_backing(length, 8 * K - length, &missing);
      CPPUNIT_ASSERT(missing);
    }
    CPPUNIT_ASSERT_EQUAL(1, b.state->loads.load());
    // As a clone it has a link to a parent, which can end unseen.
    b.load({.size = size, .snap = 7, .overlap = size,
            .parent_spec = {1, "", "p", 3}});
    b.parent->missing = true;
    const int loads = b.state->loads;
    (void)b.read_backing(4 * K, 8 * K, &missing);
    CPPUNIT_ASSERT(missing);
    CPPUNIT_ASSERT_EQUAL(loads + 1, b.state->loads.load());
  }

  void for_a_child_of_another_size() {
    Bench b(four, {.size = 6 * K, .snap = 7}, {.image = as_parent()});
    b.put(0, std::string(4 * K, 'x'));
    b.put(1, std::string(4 * K, 'x'));
    bool missing = false;
    CPPUNIT_ASSERT(b.read_backing(4 * K, 4 * K, &missing) ==
                   std::string(2 * K, 'x') + zeros(2 * K));
    CPPUNIT_ASSERT(missing);
    b.store.clear_log();
    CPPUNIT_ASSERT(b.read_backing(K, 6 * K, &missing) == zeros(K));
    CPPUNIT_ASSERT(b.read_backing(K, 60 * K, &missing) == zeros(K));
    CPPUNIT_ASSERT(missing && b.store.log().empty());
    b.store.inject({.kind = Kind::read, .error = EIO});
    CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] {
                           (void)b.read_backing(K, 0, &missing);
                         }));
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(ReaderTest);

}  // namespace
