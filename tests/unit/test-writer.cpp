// SPDX-License-Identifier: BSD-3-Clause
//
// Write, zero and trim: when they may go on, what they do to which objects,
// and what becomes of their errors.  What a stop between two steps leaves is
// in test-windows.

#include <cppunit/extensions/HelperMacros.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <functional>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "image-room.hpp"
#include "image/io/object_changer.hpp"
#include "image/io/reader.hpp"
#include "image/io/writer.hpp"
#include "image/ownership/caretaker.hpp"
#include "image/status/map_learner.hpp"
#include "object-map-methods.hpp"
#include "rbd/format2.hpp"

using namespace nbdrados;
using namespace std::chrono_literals;
using Kind = FaultStore::Kind;
using Step = WriteOp::Kind;
using u64 = std::uint64_t;
using Names = std::vector<std::string>;

namespace {

constexpr u64 K = 1024;
constexpr u64 M = 1024 * K;
constexpr auto to_free = ZeroMode::free;
const Layout four(4 * K, 4 * K, 1);
const Layout eight(8 * K, 8 * K, 1);

class FakeCaretaker final : public Caretaker {
 public:
  void want_lock() override {
    ++locks_wanted;
    if (on_lock) on_lock();
  }
  void doubt_lock() override { ++lock_doubts; }
  void doubt_watch() override { ++watch_doubts; }
  std::function<void()> on_lock;
  std::atomic<int> locks_wanted{0};
  std::atomic<int> lock_doubts{0};
  std::atomic<int> watch_doubts{0};
};

ImageOptions writable(LockMode lock = LockMode::automatic) {
  ImageOptions how;
  how.writable = true;
  how.lock = lock;
  return how;
}

struct Bench : ImageRoom {
  Bench(const Layout& layout, const View& view,
        RoomOptions options = {.image = writable()})
      : ImageRoom(layout, view, std::move(options)) {
    for (const char* method : {"lock", "assert_locked"})
      memory.on_exec("lock", method, [](auto& object, auto, auto&) {
        if (!object) object.emplace();
        return 0;
      });
    // ceph: src/cls/rbd/cls_rbd.cc, copyup; this OSD knows no sparse_copyup.
    memory.on_exec("rbd", "copyup", [](auto& object, auto in, auto&) {
      if (object) return 0;
      object.emplace();
      object->data.write(0, in);
      return 0;
    });
    add_object_map_methods(memory);
  }
  /// From now on the lock is held; there is an object map, where that is
  /// `mapped`.
  void hold_lock(bool mapped) {
    View view;
    {
      const std::scoped_lock lock(state->mutex);
      state->view.lockable = true;
      state->view.mappable = mapped;
      view = state->view;
      view.parent = view.overlap == 0 ? nullptr : parent;
    }
    const u64 objects = core.traits.layout.object_count(view.size);
    if (mapped) memory.put(map_oid, map_object(ObjectStates(objects)));
    core.state.begin_tenure(
        view, mapped ? ObjectMap::open(store, "image", objects, 10s) : nullptr);
    store.clear_log();
  }
  ObjectState map_says(u64 n) {
    return decode_object_map(memory.find(map_oid)->data.bytes())[n];
  }
  void write(const std::string& data, u64 offset) {
    writer.write(data.data(), data.size(), offset);
  }
  void zero(u64 length, u64 offset, ZeroMode how = to_free) {
    writer.zero(length, offset, how);
  }
  std::string read(u64 length, u64 offset) {
    std::string data(length, '?');
    reader.read(data.data(), length, offset);
    return data;
  }
  int write_error(const std::string& data, u64 offset) {
    return error_of([&] { write(data, offset); });
  }
  std::future<int> start_write(u64 offset) {
    return std::async(std::launch::async,
                      [this, offset] { return write_error("x", offset); });
  }
  Names written() { return objects(Kind::write); }

  const std::string map_oid = format2_object_map_oid("image", snap_head);
  MapLearner learner{core};
  Reader reader{core, learner};
  FakeCaretaker caretaker;
  Writer writer{core, reader, &caretaker};
};

View clone(u64 size, u64 overlap, SnapContext snapc = {}) {
  return {.size = size,
          .snapc = std::move(snapc),
          .overlap = overlap,
          .parent_spec = {1, "", "p", 7}};
}

bool waits(std::future<int>& request) {
  return request.wait_for(50ms) == std::future_status::timeout;
}

class WriterTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(WriterTest);
  CPPUNIT_TEST(one_object_is_one_operation);
  CPPUNIT_TEST(several_objects);
  CPPUNIT_TEST(beyond_the_end);
  CPPUNIT_TEST(read_only);
  CPPUNIT_TEST(snapshot_context);
  CPPUNIT_TEST(waits_for_all_objects);
  CPPUNIT_TEST(first_error_of_several);
  CPPUNIT_TEST(errors_stay_distinct);
  CPPUNIT_TEST(zero_removes_whole_objects);
  CPPUNIT_TEST(zero_of_striped_objects);
  CPPUNIT_TEST(zero_keeps_first_object);
  CPPUNIT_TEST(zero_spares_what_is_behind_the_end);
  CPPUNIT_TEST(zero_that_allocates);
  CPPUNIT_TEST(zero_asks_where_little_is);
  CPPUNIT_TEST(zero_with_an_error_in_the_middle);
  CPPUNIT_TEST(many_objects_at_a_time);
  CPPUNIT_TEST(waits_for_the_lock);
  CPPUNIT_TEST(lock_that_is_refused);
  CPPUNIT_TEST(waits_while_the_header_may_have_changed);
  CPPUNIT_TEST(waits_for_the_watch);
  CPPUNIT_TEST(does_not_wait_in_vain);
  CPPUNIT_TEST(nothing_waits_too);
  CPPUNIT_TEST(forgets_what_was_known);
  CPPUNIT_TEST(late_write_is_distrusted);
  CPPUNIT_TEST(map_before_the_object);
  CPPUNIT_TEST(map_that_fails);
  CPPUNIT_TEST(map_that_somebody_else_has);
  CPPUNIT_TEST(map_that_cannot_be_given_up);
  CPPUNIT_TEST(flush);
  CPPUNIT_TEST_SUITE_END();

 public:
  void one_object_is_one_operation() {
    Bench b(Layout(4 * M, 4 * M, 1), {.size = 1024 * M});
    b.write(std::string(4096, 'x'), 4 * M - 4096);
    const auto log = b.store.log();
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, log.size());
    CPPUNIT_ASSERT_EQUAL(b.oid(0), log[0].oid);
    CPPUNIT_ASSERT(log[0].steps ==
                   (std::vector<Step>{Step::alloc_hint, Step::write}));
    CPPUNIT_ASSERT(b.bytes(0) ==
                   std::string(4 * M - 4096, '\0') + std::string(4096, 'x'));
  }

  void several_objects() {
    Bench b(Layout(4 * K, K, 3), {.size = 96 * K});
    std::string data;
    for (u64 i = 0; i < 20 * K; ++i)
      data.push_back(static_cast<char>('a' + i / 100 % 26));
    b.write(data, 1500);
    CPPUNIT_ASSERT(b.read(20 * K, 1500) == data);
    CPPUNIT_ASSERT(b.written() == (Names{b.oid(0), b.oid(1), b.oid(2),
                                         b.oid(3), b.oid(4), b.oid(5)}));
    // The first unit of object 1 begins 524 bytes before.
    CPPUNIT_ASSERT_EQUAL(std::string(476, '\0') + data.substr(0, 24),
                         b.bytes(1).substr(0, 500));
  }

  void beyond_the_end() {
    Bench b(four, {.size = 10 * K + 1});
    const auto zero_error = [&](u64 length, u64 offset, ZeroMode how) {
      return error_of([&] { b.zero(length, offset, how); });
    };
    CPPUNIT_ASSERT_EQUAL(EINVAL, b.write_error("x", 10 * K + 1));
    CPPUNIT_ASSERT_EQUAL(EINVAL, b.write_error("xx", 10 * K));
    CPPUNIT_ASSERT_EQUAL(EINVAL, b.write_error("xx", ~u64{0}));
    for (const ZeroMode how : {to_free, ZeroMode::allocate}) {
      CPPUNIT_ASSERT_EQUAL(EINVAL, zero_error(12 * K, 0, how));
      CPPUNIT_ASSERT_EQUAL(EINVAL, zero_error(5, ~u64{0}, how));
      CPPUNIT_ASSERT_EQUAL(EINVAL, zero_error(~u64{0}, 5, how));
    }
    CPPUNIT_ASSERT_EQUAL(
        EINVAL, error_of([&] { b.writer.nothing(2, 10 * K); }));
    CPPUNIT_ASSERT(b.store.log().empty());
    b.write("x", 10 * K);
    CPPUNIT_ASSERT_EQUAL(std::string("x"), b.read(1, 10 * K));
  }

  void read_only() {
    const auto check = [](Bench& b, const std::string& reason) {
      for (const auto& request : std::vector<std::function<void()>>{
               [&] { b.write("x", 0); }, [&] { b.zero(4 * K, 0); },
               [&] { b.writer.nothing(4 * K, 0); }}) {
        CPPUNIT_ASSERT_EQUAL(EROFS, error_of(request));
        CPPUNIT_ASSERT_EQUAL("pool/image: " + reason, message_of(request));
      }
      CPPUNIT_ASSERT(b.store.log().empty());
    };
    Bench b(four, {.size = 64 * K}, {});
    check(b, "this export is read-only");
    Bench parent(four, {.size = 64 * K}, {.image = as_parent()});
    check(parent, "this export is read-only");
    // It has become so while it was open.
    Bench other(four, {.size = 64 * K});
    other.load({.size = 64 * K, .unwritable = "it is a mirror"});
    check(other, "it is a mirror");
  }

  void snapshot_context() {
    Bench b(eight, {.size = 64 * K});
    b.write("old", 0);
    b.write("old", 8 * K);
    b.load({.size = 64 * K, .snapc = {7, {7, 3}}});
    b.store.clear_log();
    b.write("new", 0);
    b.zero(8 * K, 8 * K);
    b.zero(K, 0);
    b.zero(K, 2 * K, ZeroMode::allocate);
    b.write(std::string(20 * K, 'x'), 10 * K);
    for (const auto& r : b.store.log())
      CPPUNIT_ASSERT(r.snapc == (SnapContext{7, {7, 3}}));
    CPPUNIT_ASSERT_EQUAL(std::string("old"), b.bytes(0, 7));
    CPPUNIT_ASSERT_EQUAL(std::string("old"), b.bytes(1, 7));
  }

  void waits_for_all_objects() {
    Bench b(four, {.size = 64 * K});
    b.store.inject({.kind = Kind::write, .oid = b.oid(1), .held = true});
    b.store.inject({.kind = Kind::write, .oid = b.oid(0), .error = EIO});
    const std::string data(16 * K, 'a');
    auto request = std::async(std::launch::async,
                              [&] { return b.write_error(data, 0); });
    CPPUNIT_ASSERT(b.store.wait_until_held(1));
    // All objects are in flight, one has failed, and still it waits.
    const bool all =
        eventually([&] { return b.store.count(Kind::write) == 4; });
    const bool waited = waits(request);
    b.store.release();
    CPPUNIT_ASSERT_EQUAL(EIO, request.get());
    CPPUNIT_ASSERT(all && waited);
    CPPUNIT_ASSERT(b.bytes(3) == std::string(4 * K, 'a'));
  }

  void first_error_of_several() {
    Bench b(Layout(4 * K, K, 3), {.size = 96 * K});
    b.store.inject({.kind = Kind::write, .oid = b.oid(2), .error = EPERM});
    b.store.inject({.kind = Kind::write, .oid = b.oid(1), .error = ENOSPC});
    CPPUNIT_ASSERT_EQUAL(
        std::string("pool/image: cannot write object data.0001: the cluster "
                    "or the pool is full"),
        message_of([&] { b.write(std::string(24 * K, 'x'), 0); }));
    CPPUNIT_ASSERT_EQUAL(std::size_t{6}, b.store.count(Kind::write));
    // The same request again works.
    b.write(std::string(24 * K, 'y'), 0);
    CPPUNIT_ASSERT(b.read(24 * K, 0) == std::string(24 * K, 'y'));
  }

  void errors_stay_distinct() {
    Bench b(four, {.size = 64 * K});
    // Not there is no answer to a write, but it is one to a zero.
    for (const int code :
         {EIO, ENOSPC, EDQUOT, ESHUTDOWN, ETIMEDOUT, EPERM, ENXIO, ENOENT})
      for (const u64 length : {K, 9 * K}) {
        b.store.inject({.kind = Kind::write, .oid = b.oid(1), .error = code});
        CPPUNIT_ASSERT_EQUAL(code,
                             b.write_error(std::string(length, 'x'), 4 * K));
        for (const ZeroMode how : {ZeroMode::allocate, to_free}) {
          b.store.inject({.kind = Kind::write, .oid = b.oid(1), .error = code});
          const bool gone = code == ENOENT && how == to_free;
          CPPUNIT_ASSERT_EQUAL(
              gone ? 0 : code, error_of([&] { b.zero(length, 4 * K, how); }));
        }
      }
    b.store.inject({.kind = Kind::write, .error = ESHUTDOWN});
    CPPUNIT_ASSERT_EQUAL(
        std::string("pool/image: cannot remove object data.0000: this client "
                    "has been blocklisted by the cluster"),
        message_of([&] { b.zero(4 * K, 0); }));
    b.store.inject({.kind = Kind::write, .error = ESHUTDOWN});
    CPPUNIT_ASSERT(message_of([&] { b.zero(K, 0); })
                       .starts_with("pool/image: cannot zero object"));
  }

  void zero_removes_whole_objects() {
    Bench b(eight, {.size = 64 * K});
    b.write(std::string(64 * K, 'x'), 0);
    b.store.clear_log();
    b.zero(20 * K, 6 * K);
    // Truncating would make shorter objects longer.
    const std::vector<Step> expected[] = {
        {Step::zero}, {Step::remove}, {Step::remove}, {Step::zero}};
    const auto log = b.store.log();
    CPPUNIT_ASSERT_EQUAL(std::size_t{4}, log.size());
    for (std::size_t i = 0; i < 4; ++i)
      CPPUNIT_ASSERT(log[i].steps == expected[i]);
    std::string model(64 * K, 'x');
    std::fill(model.begin() + 6 * K, model.begin() + 26 * K, '\0');
    CPPUNIT_ASSERT(b.read(64 * K, 0) == model);
    CPPUNIT_ASSERT_EQUAL(std::string("none"), b.bytes(1));
    // What is not there any more can be zeroed again.
    b.zero(64 * K, 0);
    b.zero(64 * K, 0);
  }

  // Object sets are whole where all of their objects are.
  void zero_of_striped_objects() {
    Bench b(Layout(4 * K, K, 2), {.size = 64 * K});
    std::string model(64 * K, 'x');
    b.write(model, 0);
    b.store.clear_log();
    b.zero(20 * K, 5 * K);  // 3 K of a set, 2 sets, 1 K of one
    std::fill(model.begin() + 5 * K, model.begin() + 25 * K, '\0');
    CPPUNIT_ASSERT(b.read(64 * K, 0) == model);
    std::size_t removed = 0;
    for (const auto& r : b.store.log())
      removed += r.kind == Kind::write && r.steps[0] == Step::remove;
    CPPUNIT_ASSERT_EQUAL(std::size_t{4}, removed);
    CPPUNIT_ASSERT_EQUAL(std::string("none"), b.bytes(2));
    CPPUNIT_ASSERT_EQUAL(std::string("none"), b.bytes(5));
  }

  void zero_keeps_first_object() {
    Bench b(eight, {.size = 32 * K},
            {.image = writable(), .keep_first = true});
    MemoryObject first;
    first.xattrs["striper.size"] = "32768";
    b.memory.put(b.oid(0), first);
    b.write(std::string(32 * K, 'x'), 0);
    b.zero(32 * K, 0);
    const auto left = b.memory.find(b.oid(0));
    CPPUNIT_ASSERT(left);
    CPPUNIT_ASSERT_EQUAL(u64{0}, left->data.size());
    CPPUNIT_ASSERT_EQUAL(std::string("32768"),
                         left->xattrs.at("striper.size"));
    CPPUNIT_ASSERT_EQUAL(std::string("none"), b.bytes(1));
  }

  void zero_spares_what_is_behind_the_end() {
    // Somebody else has grown the image and written behind our end.
    Bench b(eight, {.size = 12 * K});
    b.put(1, "data of the grown image", 5 * K);
    b.zero(12 * K, 0);
    CPPUNIT_ASSERT_EQUAL(std::string("data"), b.bytes(1).substr(5 * K, 4));
  }

  void zero_that_allocates() {
    Bench b(Layout(64 * K, 64 * K, 1), {.size = 256 * K});
    b.write(std::string(1000, 'x'), 0);
    b.store.clear_log();
    b.zero(100 * K + 77, 50, ZeroMode::allocate);
    for (const auto& r : b.store.log())
      for (const auto s : r.steps)
        CPPUNIT_ASSERT(s == Step::write_same || s == Step::write ||
                       s == Step::alloc_hint);
    CPPUNIT_ASSERT_EQUAL(std::string(50, 'x'), b.bytes(0).substr(0, 50));
    CPPUNIT_ASSERT(b.bytes(0).substr(50) == std::string(64 * K - 50, '\0'));
    CPPUNIT_ASSERT(b.bytes(1) == std::string(36 * K + 127, '\0'));
    std::vector<ObjectRange> ranges;
    CPPUNIT_ASSERT_EQUAL(0, b.memory.map_extents(b.oid(1), 0, 64 * K, snap_head,
                                                 &ranges));
    CPPUNIT_ASSERT(ranges ==
                   (std::vector<ObjectRange>{{0, 36 * K + 127}}));
  }

  /// To ask for an object takes less of an OSD than to remove one that is not
  /// there, and more than to remove one that is.
  void zero_asks_where_little_is() {
    Bench b(four, {.size = 64 * M});
    b.put(30, "x");
    b.zero(64 * M, 0);
    CPPUNIT_ASSERT_EQUAL(std::size_t{16384}, b.store.count(Kind::stat));
    CPPUNIT_ASSERT(b.written() == Names{b.oid(30)});
    CPPUNIT_ASSERT(b.store.most_in_flight() <= 128);

    for (u64 n = 0; n < 4096; ++n) b.put(n, "x");
    b.store.clear_log();
    b.zero(64 * M, 0);
    // A few of the first chunk were asked for in vain; from the fifth on, where
    // nothing is, again.
    CPPUNIT_ASSERT_EQUAL(std::size_t{8 + 11 * 1024},
                         b.store.count(Kind::stat));
    CPPUNIT_ASSERT_EQUAL(std::size_t{5 * 1024}, b.store.count(Kind::write));
    CPPUNIT_ASSERT(b.read(16 * M, 0) == std::string(16 * M, '\0'));
    // Few objects are not asked for; where there is a map, none.
    b.store.clear_log();
    b.zero(64 * 4 * K, 0);
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, b.store.count(Kind::stat));
    b.hold_lock(true);
    b.zero(64 * M, 0);
    CPPUNIT_ASSERT(b.store.log().empty());

    // What cannot be asked is removed, or not, with a reason.
    Bench other(four, {.size = M});
    other.put(5, "x");
    other.store.inject({.kind = Kind::stat, .oid = b.oid(5), .error = EIO});
    other.zero(M, 0);
    CPPUNIT_ASSERT_EQUAL(std::string("none"), other.bytes(5));
    other.store.inject(
        {.kind = Kind::stat, .times = FaultStore::always, .error = ESHUTDOWN});
    other.store.inject(
        {.kind = Kind::write, .times = FaultStore::always, .error = ESHUTDOWN});
    CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, error_of([&] { other.zero(M, 0); }));
  }

  void zero_with_an_error_in_the_middle() {
    Bench b(four, {.size = 64 * M});
    for (u64 n = 0; n < 3000; ++n) b.put(n, "x");
    b.store.inject({.kind = Kind::write, .oid = b.oid(1500), .error = EIO});
    CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] { b.zero(64 * M, 0); }));
    // What is in flight together comes to its end; the rest is not begun.
    CPPUNIT_ASSERT_EQUAL(std::string("none"), b.bytes(1501));
    CPPUNIT_ASSERT_EQUAL(std::string("x"), b.bytes(2999));
    CPPUNIT_ASSERT(b.read(4, 1500 * 4 * K) == std::string("x\0\0\0", 4));
    b.zero(64 * M, 0);
    CPPUNIT_ASSERT(b.read(12 * M, 0) == std::string(12 * M, '\0'));
  }

  void many_objects_at_a_time() {
    Bench b(four, {.size = 64 * M});
    const auto all_at_once = [&](auto&& request) {
      b.store.inject(
          {.kind = Kind::write, .times = FaultStore::always, .held = true});
      auto done = std::async(std::launch::async, request);
      const bool many = b.store.wait_until_held(128);
      std::this_thread::sleep_for(20ms);
      CPPUNIT_ASSERT_EQUAL(std::size_t{128}, b.store.held());
      b.store.clear_faults();
      b.store.release();
      done.get();
      CPPUNIT_ASSERT(many);
    };
    all_at_once([&] { b.write(std::string(4 * M, 'x'), 4 * K); });
    all_at_once([&] { b.zero(4 * M, 0); });
    all_at_once([&] { b.zero(16 * M, 0, ZeroMode::allocate); });
    all_at_once([&] { b.zero(16 * M, 4 * K + 5, ZeroMode::allocate); });
    CPPUNIT_ASSERT(b.store.most_in_flight() <= 128);
  }

  void waits_for_the_lock() {
    Bench b(four, {.size = 64 * K, .lockable = true});
    auto write = b.start_write(0);
    CPPUNIT_ASSERT(eventually([&] { return b.caretaker.locks_wanted == 1; }));
    CPPUNIT_ASSERT(waits(write));
    CPPUNIT_ASSERT(b.store.log().empty());
    // Something else changes: it goes on to wait, and says so again.
    b.load({.size = 128 * K, .lockable = true});
    CPPUNIT_ASSERT(eventually([&] { return b.caretaker.locks_wanted == 2; }));
    CPPUNIT_ASSERT(waits(write));
    b.hold_lock(false);
    CPPUNIT_ASSERT_EQUAL(0, write.get());
    CPPUNIT_ASSERT_EQUAL(std::string("x"), b.bytes(0));
    (void)b.core.state.end_tenure();
    // The caretaker may be quicker than the writer's next look.
    b.caretaker.on_lock = [&] { b.hold_lock(false); };
    b.write("y", 0);
    CPPUNIT_ASSERT_EQUAL(std::string("y"), b.bytes(0));
  }

  void lock_that_is_refused() {
    Bench b(four, {.size = 64 * K, .lockable = true});
    auto write = b.start_write(0);
    CPPUNIT_ASSERT(eventually([&] { return b.caretaker.locks_wanted == 1; }));
    b.core.state.gate().refuse(Error(EBUSY, "somebody has it"));
    CPPUNIT_ASSERT_EQUAL(EBUSY, write.get());
    CPPUNIT_ASSERT(b.store.log().empty());

    Bench none(four, {.size = 64 * K, .lockable = true},
               {.image = writable(LockMode::none)});
    CPPUNIT_ASSERT_EQUAL(EROFS, none.write_error("x", 0));
    CPPUNIT_ASSERT_EQUAL(0, none.caretaker.locks_wanted.load());
  }

  void waits_while_the_header_may_have_changed() {
    Bench b(four, {.size = 64 * K});
    b.core.state.hold_writes();
    auto write = b.start_write(0);
    auto gone = b.start_write(60 * K);
    CPPUNIT_ASSERT(waits(write) && waits(gone));
    CPPUNIT_ASSERT(b.store.log().empty());
    CPPUNIT_ASSERT_EQUAL(0, b.caretaker.locks_wanted.load());
    // What has come of it is so for those who have waited.
    b.state->set_view({.size = 32 * K, .snapc = {5, {5}}});
    b.core.metadata.load(true);
    CPPUNIT_ASSERT_EQUAL(0, write.get());
    CPPUNIT_ASSERT_EQUAL(EINVAL, gone.get());
    CPPUNIT_ASSERT(b.store.log()[0].snapc == (SnapContext{5, {5}}));
  }

  // Of a snapshot that was taken in the meantime nobody would know.
  void waits_for_the_watch() {
    Bench b(four, {.size = 64 * K});
    b.end_guard();
    auto write = b.start_write(0);
    CPPUNIT_ASSERT(eventually([&] { return b.caretaker.watch_doubts == 1; }));
    CPPUNIT_ASSERT(waits(write));
    CPPUNIT_ASSERT(b.store.log().empty());
    b.core.state.guard_until(BootClock::now() - 1ms);
    CPPUNIT_ASSERT(waits(write));
    b.core.state.guard_until(BootClock::now() + 1h);
    CPPUNIT_ASSERT_EQUAL(0, write.get());
    CPPUNIT_ASSERT_EQUAL(0, b.caretaker.locks_wanted.load());
  }

  void does_not_wait_in_vain() {
    Bench b(four, {.size = 64 * K, .lockable = true});
    b.core.state.hold_writes();
    b.end_guard();
    auto write = b.start_write(0);
    CPPUNIT_ASSERT(waits(write));
    b.core.state.lose(ESHUTDOWN, "shut out");
    CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, write.get());
    CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, b.write_error("x", 0));
    CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, error_of([&] { b.zero(64 * K, 0); }));
    CPPUNIT_ASSERT(b.store.log().empty());
    // So does a failure that is not for good.
    Bench other(four, {.size = 64 * K, .lockable = true});
    write = other.start_write(0);
    CPPUNIT_ASSERT(waits(write));
    other.state->set_load_error(EIO);
    (void)error_of([&] { other.core.metadata.load(); });
    CPPUNIT_ASSERT_EQUAL(EIO, write.get());
    // The first one asks whether that is over.
    Bench well(four, {.size = 64 * K});
    well.state->set_load_error(EIO);
    (void)error_of([&] { well.core.metadata.load(); });
    well.state->set_load_error(0);
    CPPUNIT_ASSERT_EQUAL(0, well.write_error("x", 0));
  }

  // What changes nothing must be possible, too, to be told that it is done.
  void nothing_waits_too() {
    Bench b(four, {.size = 64 * K, .lockable = true});
    b.caretaker.on_lock = [&] { b.hold_lock(false); };
    b.writer.nothing(K, 0);
    CPPUNIT_ASSERT_EQUAL(1, b.caretaker.locks_wanted.load());
    CPPUNIT_ASSERT(b.store.log().empty());
  }

  void forgets_what_was_known() {
    Bench b(four, {.size = 64 * K});
    b.hold_lock(false);
    const auto learn = [&] {
      KnownExtents::Learning learning(b.core.known);
      for (u64 n = 0; n < 16; ++n) learning.learn_absent(n);
    };
    const auto forgotten = [&] {
      std::vector<u64> all;
      for (u64 n = 0; n < 16; ++n)
        if (!b.core.known.absent(n)) all.push_back(n);
      return all;
    };
    using Numbers = std::vector<u64>;
    learn();
    b.write("x", 0);
    CPPUNIT_ASSERT(forgotten() == Numbers{0});
    b.write(std::string(9 * K, 'x'), 9 * K);
    CPPUNIT_ASSERT(forgotten() == (Numbers{0, 2, 3, 4}));
    // It may have been carried out all the same.
    b.store.inject({.kind = Kind::write, .oid = b.oid(6), .error = EIO,
                    .carried_out = true});
    CPPUNIT_ASSERT_EQUAL(EIO, b.write_error(std::string(8 * K, 'x'), 24 * K));
    CPPUNIT_ASSERT(forgotten() == (Numbers{0, 2, 3, 4, 6, 7}));
    b.zero(8 * K, 38 * K);
    CPPUNIT_ASSERT(forgotten() == (Numbers{0, 2, 3, 4, 6, 7, 9, 10, 11}));
    // Not before it has happened, or somebody would learn what was before.
    b.store.inject({.kind = Kind::write, .oid = b.oid(15), .held = true});
    auto write = b.start_write(60 * K);
    CPPUNIT_ASSERT(b.store.wait_until_held(1));
    learn();
    b.store.release();
    CPPUNIT_ASSERT_EQUAL(0, write.get());
    CPPUNIT_ASSERT(forgotten() == Numbers{15});
  }

  // It can still be carried out, long after everybody has forgotten it.
  void late_write_is_distrusted() {
    Bench b(four, {.size = 64 * K});
    b.hold_lock(false);
    b.store.inject({.kind = Kind::write, .oid = b.oid(1), .error = EIO});
    CPPUNIT_ASSERT_EQUAL(EIO, b.write_error(std::string(12 * K, 'x'), 0));
    CPPUNIT_ASSERT(b.core.state.read()->known);
    // It is not the first error.
    b.store.inject({.kind = Kind::write, .oid = b.oid(1), .error = EIO});
    b.store.inject({.kind = Kind::write, .oid = b.oid(2), .error = ETIMEDOUT});
    CPPUNIT_ASSERT_EQUAL(EIO, b.write_error(std::string(12 * K, 'x'), 0));
    CPPUNIT_ASSERT(!b.core.state.read()->known);
  }

  void map_before_the_object() {
    Bench b(four, {.size = 64 * K});
    b.hold_lock(true);
    b.write("x", 8 * K);
    CPPUNIT_ASSERT(b.written() == (Names{b.map_oid, b.oid(2)}));
    CPPUNIT_ASSERT(b.map_says(2) == ObjectState::exists);
    b.store.clear_log();
    b.write("y", 8 * K);
    CPPUNIT_ASSERT(b.written() == Names{b.oid(2)});
    // Neither is anything said of what is not there.
    b.store.clear_log();
    b.zero(16 * K, 16 * K);
    b.zero(K, 16 * K);
    CPPUNIT_ASSERT(b.written().empty());
    b.zero(4 * K, 8 * K);
    CPPUNIT_ASSERT(b.written() == (Names{b.map_oid, b.oid(2), b.map_oid}));
    CPPUNIT_ASSERT(b.map_says(2) == ObjectState::nonexistent);
    // A removal that failed may have happened, or may not.
    b.write("x", 8 * K);
    b.store.inject({.kind = Kind::write, .oid = b.oid(2), .error = EIO});
    CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] { b.zero(4 * K, 8 * K); }));
    CPPUNIT_ASSERT(b.map_says(2) == ObjectState::pending);
    CPPUNIT_ASSERT_EQUAL(std::string("x"), b.read(1, 8 * K));
    // One of several.
    b.write(std::string(12 * K, 'x'), 0);
    b.store.inject({.kind = Kind::write, .oid = b.oid(1), .error = EIO});
    CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] { b.zero(12 * K, 0); }));
    CPPUNIT_ASSERT(b.map_says(0) == ObjectState::pending);
    CPPUNIT_ASSERT(b.map_says(1) == ObjectState::pending);
  }

  void map_that_fails() {
    Bench b(four, {.size = 64 * K});
    b.hold_lock(true);
    b.store.inject({.kind = Kind::write, .oid = b.map_oid, .error = EIO});
    // Nobody may believe it before something is written without it.
    b.store.inject({.kind = Kind::write, .oid = b.oid(2), .held = true});
    auto write = b.start_write(8 * K);
    CPPUNIT_ASSERT(b.store.wait_until_held(1));
    CPPUNIT_ASSERT(b.state->invalidated == std::vector<SnapId>{snap_head});
    CPPUNIT_ASSERT(!b.core.state.read()->map);
    b.store.release();
    CPPUNIT_ASSERT_EQUAL(0, write.get());
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, b.log.size());
    CPPUNIT_ASSERT(b.log[0].starts_with(
        "pool/image: the object map is given up: "));
    b.write("y", 12 * K);
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, b.state->invalidated.size());
  }

  void map_that_somebody_else_has() {
    for (const int code : {EBUSY, ESHUTDOWN}) {
      Bench b(four, {.size = 64 * K});
      b.hold_lock(true);
      b.store.inject({.kind = Kind::write, .oid = b.map_oid, .error = code});
      CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, b.write_error("x", 8 * K));
      CPPUNIT_ASSERT_EQUAL(code == EBUSY ? 1 : 0,
                           b.caretaker.lock_doubts.load());
      CPPUNIT_ASSERT(b.state->invalidated.empty());
      CPPUNIT_ASSERT_EQUAL(std::string("none"), b.bytes(2));
    }
  }

  void map_that_cannot_be_given_up() {
    Bench b(four, {.size = 64 * K});
    b.hold_lock(true);
    b.state->invalidate_error = EIO;
    b.store.inject({.kind = Kind::write, .oid = b.map_oid, .error = EIO});
    CPPUNIT_ASSERT_EQUAL(EIO, b.write_error("x", 8 * K));
    CPPUNIT_ASSERT_EQUAL(EIO, b.write_error("x", 8 * K));
    CPPUNIT_ASSERT_EQUAL(std::string("none"), b.bytes(2));
    b.state->invalidate_error = 0;
    CPPUNIT_ASSERT_EQUAL(0, b.write_error("x", 8 * K));
  }

  void flush() {
    Bench b(four, {.size = 64 * K});
    b.writer.flush();
    b.hold_lock(true);
    // One after the other: the map says more than is true for a while.
    for (u64 n = 0; n < 4; ++n) b.write(std::string(4 * K, 'x'), n * 4 * K);
    CPPUNIT_ASSERT(b.map_says(4) == ObjectState::exists);
    b.store.inject({.kind = Kind::write, .oid = b.map_oid, .error = EIO});
    b.writer.flush();
    // That is seen to by the next write.
    CPPUNIT_ASSERT(b.state->invalidated.empty());
    b.write("x", 60 * K);
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, b.state->invalidated.size());
    (void)b.core.state.end_tenure();
    b.hold_lock(true);
    for (u64 n = 0; n < 4; ++n) b.write(std::string(4 * K, 'x'), n * 4 * K);
    b.writer.flush();
    CPPUNIT_ASSERT(b.map_says(3) == ObjectState::exists);
    CPPUNIT_ASSERT(b.map_says(4) == ObjectState::nonexistent);
    // What fails for now has nothing unwritten; what is lost, perhaps.
    b.state->set_load_error(EIO);
    (void)error_of([&] { b.core.metadata.load(); });
    b.writer.flush();
    b.core.state.lose(EIO, "gone");
    CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] { b.writer.flush(); }));
  }
};

/// Writes "new" to the begin of some objects, or what their targets say.
class Change final : public ObjectChange {
 public:
  explicit Change(std::vector<ObjectTarget> targets)
      : targets_(std::move(targets)) {}
  ObjectTarget target(std::size_t i) const override { return targets_[i]; }
  void add_steps(WriteOp& op, std::size_t i) override {
    if (targets_[i].effect == ObjectTarget::Effect::zero)
      op.zero(0, 3);
    else
      op.write(0, {&piece_, 1});
  }

 private:
  const std::vector<ObjectTarget> targets_;
  const ConstPiece piece_{"new", 3};
};

/// Objects that a parent backs; and how many were missing.
class ObjectChangerTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(ObjectChangerTest);
  CPPUNIT_TEST(counts_what_is_missing);
  CPPUNIT_TEST(object_that_is_there);
  CPPUNIT_TEST(object_that_the_parent_has);
  CPPUNIT_TEST(object_that_nobody_has);
  CPPUNIT_TEST(end_of_the_overlap);
  CPPUNIT_TEST(whole_objects);
  CPPUNIT_TEST(snapshots_get_the_parents_data);
  CPPUNIT_TEST(copy_fails_for_one_of_several);
  CPPUNIT_TEST(parent_fails_for_one_of_several);
  CPPUNIT_TEST(one_copies_up_and_others_wait);
  CPPUNIT_TEST(others_try_anew);
  CPPUNIT_TEST(map_says_pending_until_it_is_there);
  CPPUNIT_TEST(sparse_data_of_the_parent);
  CPPUNIT_TEST(late_copy_is_distrusted);
  CPPUNIT_TEST_SUITE_END();

  using Effect = ObjectTarget::Effect;
  struct ChangeBench : Bench {
    using Bench::Bench;
    std::size_t run(std::vector<ObjectTarget> targets) {
      Change change(targets);
      const auto view = core.state.read();
      return changer.run(*view, targets.size(), change, "cannot change");
    }
    int error(const std::vector<ObjectTarget>& targets) {
      return error_of([&] { (void)run(targets); });
    }
    ObjectChanger changer{core, reader};
  };
  static ObjectTarget write_to(u64 n) { return {.object_no = n}; }
  static ObjectTarget zero_of(u64 n) {
    return {.object_no = n, .effect = Effect::zero};
  }
  static ObjectTarget clear(u64 n) {
    return {.object_no = n, .effect = Effect::clear, .whole = true};
  }
  static std::string ppp(u64 n) { return std::string(n, 'p'); }

 public:
  void counts_what_is_missing() {
    ChangeBench b(four, {.size = 64 * K});
    b.put(1, "old data");
    CPPUNIT_ASSERT_EQUAL(std::size_t{3},
                         b.run({clear(0), clear(1), clear(2), clear(3)}));
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, b.run({clear(1)}));
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, b.run({write_to(1), write_to(4)}));
    // A zero of a missing object is no error of the OSD.
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, b.run({zero_of(5)}));
    CPPUNIT_ASSERT_EQUAL(std::string("none"), b.bytes(5));
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, b.run({}));
    b.store.inject({.kind = Kind::write, .oid = b.oid(1), .error = ENOENT});
    CPPUNIT_ASSERT_EQUAL(ENOENT, b.error({write_to(0), write_to(1)}));
  }

  void object_that_is_there() {
    ChangeBench b(four, clone(64 * K, 64 * K));
    b.parent->data = ppp(64 * K);
    b.put(2, "old data");
    (void)b.run({write_to(2)});
    CPPUNIT_ASSERT_EQUAL(std::string("new data"), b.bytes(2));
    (void)b.run({zero_of(2)});
    CPPUNIT_ASSERT_EQUAL(std::string("\0\0\0 data", 8), b.bytes(2));
    CPPUNIT_ASSERT(b.parent->asked().empty());
    for (const auto& r : b.store.log())
      CPPUNIT_ASSERT(r.steps[0] == Step::assert_exists);
  }

  void object_that_the_parent_has() {
    ChangeBench b(four, clone(64 * K, 64 * K));
    b.parent->data = ppp(64 * K);
    (void)b.run({write_to(2)});
    CPPUNIT_ASSERT(b.bytes(2) == "new" + ppp(4 * K - 3));
    CPPUNIT_ASSERT(b.parent->asked() ==
                   (std::vector<FakeBacking::Range>{{4 * K, 8 * K}}));
    // First without, then with the parent's data in one operation.
    const auto log = b.store.log();
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, log.size());
    CPPUNIT_ASSERT(log[1].steps == (std::vector<Step>{Step::exec,
                                                      Step::alloc_hint,
                                                      Step::write}));
    (void)b.run({zero_of(3)});
    CPPUNIT_ASSERT(b.bytes(3) == std::string(3, '\0') + ppp(4 * K - 3));
    // A striped one: its parts are far from each other.
    ChangeBench striped(Layout(4 * K, K, 2), clone(64 * K, 64 * K));
    for (u64 i = 0; i < 8; ++i)
      striped.parent->data += std::string(K, static_cast<char>('0' + i));
    (void)striped.run({write_to(1)});
    CPPUNIT_ASSERT(striped.bytes(1) == "new" + std::string(K - 3, '1') +
                                           std::string(K, '3') +
                                           std::string(K, '5') +
                                           std::string(K, '7'));
  }

  void object_that_nobody_has() {
    ChangeBench b(four, clone(64 * K, 64 * K));
    (void)b.run({zero_of(1)});
    CPPUNIT_ASSERT_EQUAL(std::string("none"), b.bytes(1));
    b.store.clear_log();
    (void)b.run({write_to(1)});
    CPPUNIT_ASSERT_EQUAL(std::string("new"), b.bytes(1));
    CPPUNIT_ASSERT(b.store.log()[1].steps == std::vector<Step>{Step::write});
    // Zeros at the end are no data.
    b.parent->data = std::string(12 * K, '\0') + "data";
    (void)b.run({write_to(3)});
    CPPUNIT_ASSERT_EQUAL(std::string("newa"), b.bytes(3));
  }

  void end_of_the_overlap() {
    ChangeBench b(four, clone(64 * K, 9 * K));
    b.parent->data = ppp(64 * K);
    (void)b.run({write_to(1), write_to(2), write_to(3)});
    CPPUNIT_ASSERT(b.bytes(1) == "new" + ppp(4 * K - 3));
    CPPUNIT_ASSERT(b.bytes(2) == "new" + ppp(K - 3));
    CPPUNIT_ASSERT_EQUAL(std::string("new"), b.bytes(3));
    // Just at the end of an object.
    ChangeBench other(four, clone(64 * K, 8 * K));
    other.parent->data = ppp(64 * K);
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, other.run({clear(1), clear(2)}));
    CPPUNIT_ASSERT_EQUAL(std::string(), other.bytes(1));
    CPPUNIT_ASSERT_EQUAL(std::string("none"), other.bytes(2));
    CPPUNIT_ASSERT(other.parent->asked().empty());
  }

  // They are made empty, or the parent would show again.
  void whole_objects() {
    ChangeBench b(four, clone(64 * K, 64 * K));
    b.parent->data = ppp(64 * K);
    b.put(1, "old data");
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, b.run({clear(0), clear(1)}));
    CPPUNIT_ASSERT_EQUAL(std::string(), b.bytes(0));
    CPPUNIT_ASSERT_EQUAL(std::string(), b.bytes(1));
    (void)b.run({{.object_no = 2, .whole = true}});
    CPPUNIT_ASSERT_EQUAL(std::string("new"), b.bytes(2));
    CPPUNIT_ASSERT(b.parent->asked().empty());
  }

  void snapshots_get_the_parents_data() {
    ChangeBench b(four, clone(64 * K, 64 * K, {7, {7, 3}}));
    b.parent->data = ppp(64 * K);
    (void)b.run({write_to(0)});
    (void)b.run({clear(1)});
    (void)b.run({{.object_no = 2, .whole = true}});
    for (const u64 n : {0, 1, 2})
      for (const SnapId snap : {3, 7})
        CPPUNIT_ASSERT(b.bytes(n, snap) == ppp(4 * K));
    CPPUNIT_ASSERT(b.bytes(0) == "new" + ppp(4 * K - 3));
    CPPUNIT_ASSERT_EQUAL(std::string(), b.bytes(1));
    CPPUNIT_ASSERT(b.bytes(2) == "new" + ppp(4 * K - 3));
    // Tried, copied under no snapshot context, changed.
    const auto log = b.store.log();
    CPPUNIT_ASSERT_EQUAL(std::size_t{9}, log.size());
    for (std::size_t i = 0; i < 9; ++i)
      CPPUNIT_ASSERT(log[i].snapc ==
                     (i % 3 == 1 ? SnapContext{} : SnapContext{7, {7, 3}}));
    // A copy that fails leaves the object alone.
    b.store.inject(
        {.kind = Kind::write, .oid = b.oid(4), .skip = 1, .error = ENOSPC});
    CPPUNIT_ASSERT_EQUAL(ENOSPC, b.error({write_to(4)}));
    CPPUNIT_ASSERT_EQUAL(std::string("none"), b.bytes(4));
  }

  void copy_fails_for_one_of_several() {
    ChangeBench b(four, clone(64 * K, 64 * K));
    b.parent->data = ppp(64 * K);
    b.store.inject(
        {.kind = Kind::write, .oid = b.oid(1), .skip = 1, .error = ENOSPC});
    CPPUNIT_ASSERT_EQUAL(ENOSPC,
                         b.error({write_to(0), write_to(1), write_to(2)}));
    CPPUNIT_ASSERT_EQUAL(std::string("none"), b.bytes(1));
    CPPUNIT_ASSERT(b.bytes(0) == "new" + ppp(4 * K - 3));
    CPPUNIT_ASSERT(b.bytes(2) == b.bytes(0));
  }

  void parent_fails_for_one_of_several() {
    ChangeBench b(four, clone(64 * K, 64 * K));
    b.put(0, "old data");
    b.put(2, "old data");
    b.parent->error = EIO;
    CPPUNIT_ASSERT_EQUAL(
        std::string("pool/image: cannot copy object data.0001 from the "
                    "parent: pool/image: its parent: pool/parent: no answer"),
        message_of([&] {
          (void)b.run({write_to(0), write_to(1), write_to(2)});
        }));
    // The others are changed, and none is left half.
    CPPUNIT_ASSERT_EQUAL(std::string("new data"), b.bytes(0));
    CPPUNIT_ASSERT_EQUAL(std::string("none"), b.bytes(1));
    CPPUNIT_ASSERT_EQUAL(std::string("new data"), b.bytes(2));
    for (const int code : {ETIMEDOUT, ESHUTDOWN}) {
      b.parent->error = code;
      CPPUNIT_ASSERT_EQUAL(code, b.error({write_to(1)}));
    }
  }

  void one_copies_up_and_others_wait() {
    ChangeBench b(four, clone(64 * K, 64 * K));
    b.parent->data = ppp(64 * K);
    std::promise<void> go_on;
    auto gate = go_on.get_future().share();
    b.parent->on_read = [&] { gate.wait(); };
    std::vector<std::future<int>> writers;
    for (int i = 0; i < 4; ++i)
      writers.push_back(std::async(std::launch::async,
                                   [&] { return b.error({write_to(1)}); }));
    // All have found that it is missing; another object need not wait.
    const bool all =
        eventually([&] { return b.store.count(Kind::write) == 4; });
    b.put(2, "old data");
    (void)b.run({write_to(2)});
    bool waiting = true;
    for (auto& w : writers) waiting &= waits(w);
    go_on.set_value();
    for (auto& w : writers) CPPUNIT_ASSERT_EQUAL(0, w.get());
    CPPUNIT_ASSERT(all && waiting);
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, b.parent->asked().size());
    CPPUNIT_ASSERT(b.bytes(1) == "new" + ppp(4 * K - 3));
  }

  void others_try_anew() {
    ChangeBench b(four, clone(64 * K, 64 * K));
    b.parent->data = ppp(64 * K);
    std::atomic<int> reads{0};
    std::promise<void> go_on;
    auto gate = go_on.get_future().share();
    b.parent->on_read = [&] {
      if (++reads > 1) return;
      gate.wait();
      throw Error(EIO, "once");
    };
    auto first = std::async(std::launch::async,
                            [&] { return b.error({write_to(1)}); });
    const bool reading = eventually([&] { return reads == 1; });
    auto second = std::async(std::launch::async,
                             [&] { return b.error({write_to(1)}); });
    const bool waiting = waits(second);
    go_on.set_value();
    CPPUNIT_ASSERT_EQUAL(EIO, first.get());
    CPPUNIT_ASSERT_EQUAL(0, second.get());
    CPPUNIT_ASSERT(reading && waiting);
    CPPUNIT_ASSERT(b.bytes(1) == "new" + ppp(4 * K - 3));
  }

  // librbd's flatten takes what "exists" for copied.
  void map_says_pending_until_it_is_there() {
    ChangeBench b(four, clone(64 * K, 64 * K));
    b.parent->data = ppp(64 * K);
    b.hold_lock(true);
    b.store.inject({.kind = Kind::write, .oid = b.oid(1), .held = true});
    auto write = std::async(std::launch::async,
                            [&] { return b.error({write_to(1)}); });
    CPPUNIT_ASSERT(b.store.wait_until_held(1));
    const ObjectState before = b.map_says(1);
    b.store.release();
    CPPUNIT_ASSERT_EQUAL(0, write.get());
    CPPUNIT_ASSERT(before == ObjectState::pending);
    CPPUNIT_ASSERT(b.map_says(1) == ObjectState::exists);
    // The map knew that it is missing: it was not tried before.
    CPPUNIT_ASSERT(b.written() == (Names{b.map_oid, b.oid(1), b.map_oid}));
    // Of what failed, nobody may say "exists".
    b.store.inject({.kind = Kind::write, .oid = b.oid(2), .error = ENOSPC});
    CPPUNIT_ASSERT_EQUAL(ENOSPC, b.error({write_to(2)}));
    CPPUNIT_ASSERT(b.map_says(2) == ObjectState::pending);
    (void)b.run({write_to(2)});
    CPPUNIT_ASSERT(b.map_says(2) == ObjectState::exists);
    CPPUNIT_ASSERT(b.bytes(2) == "new" + ppp(4 * K - 3));
  }

  void sparse_data_of_the_parent() {
    ChangeBench b(Layout(64 * K, 64 * K, 1), clone(M, M));
    b.parent->data = std::string(30 * K, '\0') + ppp(M);
    (void)b.run({write_to(0)});
    CPPUNIT_ASSERT(b.bytes(0) ==
                   "new" + std::string(30 * K - 3, '\0') + ppp(34 * K));
    // The OSD did not know how; it is not asked that again.
    CPPUNIT_ASSERT_EQUAL(std::size_t{3}, b.store.count(Kind::write));
    b.parent->data = std::string(94 * K, '\0') + ppp(M);
    (void)b.run({write_to(1)});
    CPPUNIT_ASSERT_EQUAL(std::size_t{5}, b.store.count(Kind::write));
    CPPUNIT_ASSERT(b.bytes(1) ==
                   "new" + std::string(30 * K - 3, '\0') + ppp(34 * K));
  }

  void late_copy_is_distrusted() {
    ChangeBench b(four, clone(64 * K, 64 * K));
    b.parent->data = ppp(64 * K);
    b.hold_lock(false);
    b.store.inject(
        {.kind = Kind::write, .oid = b.oid(1), .skip = 1, .error = ETIMEDOUT});
    CPPUNIT_ASSERT_EQUAL(ETIMEDOUT, b.error({write_to(1)}));
    CPPUNIT_ASSERT(!b.core.state.read()->known);
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(WriterTest);
CPPUNIT_TEST_SUITE_REGISTRATION(ObjectChangerTest);

}  // namespace
