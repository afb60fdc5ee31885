// SPDX-License-Identifier: BSD-3-Clause
//
// The object map in memory, on a store in memory with a model of the object
// classes `lock` and `rbd` as far as maps use them
// (ceph: src/cls/lock/cls_lock.cc, src/cls/rbd/cls_rbd.cc).

#include <cppunit/extensions/HelperMacros.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <future>
#include <latch>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "image/ownership/creation_runs.hpp"
#include "image/ownership/map_loader.hpp"
#include "image/ownership/map_reader.hpp"
#include "image/ownership/object_map.hpp"
#include "object-map-methods.hpp"
#include "rados/error.hpp"
#include "rados/fault_store.hpp"
#include "rados/memory_store.hpp"
#include "rbd/cls_lock.hpp"
#include "rbd/encoding.hpp"
#include "rbd/features.hpp"
#include "rbd/format2.hpp"

using namespace nbdrados;
using namespace std::chrono_literals;

namespace {

using Kind = FaultStore::Kind;
using State = ObjectState;

const std::string id = "10ab";
const std::string oid = "rbd_object_map.10ab";
constexpr std::chrono::milliseconds limit = 10s;

/// MemoryStore that also looks at what is written to the map: each operation
/// with updates begins with assert_locked, and no two of its updates touch
/// the same block of the map, as an OSD would lose the first of them.
class MapStore : public MemoryStore {
 public:
  MapStore() {
    on_exec("lock", "lock", [this](auto& object, auto in, auto&) {
      const std::string cookie = lock_input(in, true);
      CPPUNIT_ASSERT_EQUAL(std::string(), cookie);
      if (holder == self) return -EEXIST;
      if (!holder.empty()) return -EBUSY;
      if (!object) object.emplace();
      holder = self;
      return 0;
    });
    on_exec("lock", "unlock", [this](auto& object, auto in, auto&) {
      CPPUNIT_ASSERT_EQUAL(std::string(), lock_input(in, false));
      if (!object || holder != self) return -ENOENT;
      holder.clear();
      return 0;
    });
    on_exec("lock", "break_lock", [this](auto& object, auto in, auto&) {
      Decoder outer(in, "break_lock");
      Decoder op = outer.frame(1, "input");
      CPPUNIT_ASSERT_EQUAL(std::string("rbd_lock"), op.string("name"));
      CPPUNIT_ASSERT_EQUAL(unsigned{entity_client}, unsigned{op.u8("type")});
      const std::string who = "client." + std::to_string(op.i64("number"));
      if (!object || holder != who) return -ENOENT;
      ++broken;
      holder.clear();
      if (!next_holder.empty()) holder = next_holder;
      return 0;
    });
    on_exec("lock", "get_info", [this](auto& object, auto, auto& out) {
      if (!object) return -ENOENT;
      out = lock_info();
      return 0;
    });
    on_exec("lock", "assert_locked", [this](auto& object, auto in, auto&) {
      CPPUNIT_ASSERT(encode_assert_locked("rbd_lock", LockType::exclusive, "",
                                          "") == in);
      if (!object) return -ENOENT;
      return holder == self ? 0 : -EBUSY;
    });
    add_object_map_methods(*this);
  }

  [[nodiscard]] std::unique_ptr<Pending> write(
      const std::string& name, const WriteOp& op,
      const SnapContext& snapc) override {
    std::vector<MapUpdate> updates;
    std::set<std::uint64_t> blocks;
    for (const WriteOp::Step& step : op.steps()) {
      if (step.method != "object_map_update") continue;
      CPPUNIT_ASSERT_EQUAL(oid, name);
      CPPUNIT_ASSERT(op.steps()[0].method == "assert_locked");
      CPPUNIT_ASSERT(snapc == SnapContext{});
      updates.push_back(decode_map_update(step.value));
      const MapUpdate& u = updates.back();
      CPPUNIT_ASSERT(u.end - u.first <= object_map_update_max);
      for (std::uint64_t b = u.first / 16384; b <= (u.end - 1) / 16384; ++b)
        CPPUNIT_ASSERT_MESSAGE("a block is updated twice in one operation",
                               blocks.insert(b).second);
    }
    if (!updates.empty()) {
      const std::scoped_lock lock(log_mutex_);
      log_.push_back(std::move(updates));
    }
    return MemoryStore::write(name, op, snapc);
  }

  void put_map(const ObjectStates& map) { put(oid, map_object(map)); }
  /// What the pool has.
  ObjectStates map() { return decode_object_map(find(oid)->data.bytes()); }
  /// The operations that reached the object since the last call, each with
  /// its updates.
  std::vector<std::vector<MapUpdate>> take_log() {
    const std::scoped_lock lock(log_mutex_);
    return std::exchange(log_, {});
  }

  // Change these when nothing is under way.
  const std::string self = "client.4100";
  std::string holder;       // of the map's lock
  std::string next_holder;  // who takes it as soon as it was broken
  int broken = 0;

 private:
  static std::string lock_input(std::string_view in, bool exclusive) {
    Decoder outer(in, "lock");
    Decoder op = outer.frame(1, "input");
    CPPUNIT_ASSERT_EQUAL(std::string("rbd_lock"), op.string("name"));
    if (exclusive) CPPUNIT_ASSERT_EQUAL(1U, unsigned{op.u8("type")});
    return op.string("cookie");
  }
  std::string lock_info() const {
    Encoder out;
    out.frame(1, 1, [&] {
      out.u32(holder.empty() ? 0 : 1);
      if (!holder.empty()) {
        out.frame(1, 1, [&] {
          out.u8(entity_client).i64(std::stoll(holder.substr(7))).string("");
        });
        out.frame(1, 1, [&] {
          out.u32(0).u32(0);
          out.u8(1).frame(1, 1, [&] { out.u32(0).u32(0).u32(0); });
          out.string("");
        });
      }
      out.u8(1).string("");
    });
    return out.take();
  }

  std::mutex log_mutex_;
  std::vector<std::vector<MapUpdate>> log_;
};

/// MapStore below a FaultStore, and threads that end before these do.
struct Pool {
  MapStore base;
  FaultStore store{base};
  std::vector<std::jthread> threads;

  explicit Pool(std::uint64_t objects, State state = State::nonexistent) {
    base.put_map(ObjectStates(objects, state));
  }
  ~Pool() {
    threads.clear();
    const std::vector<std::string> problems = store.problems();
    for (const std::string& problem : problems)
      std::fprintf(stderr, "%s\n", problem.c_str());
    if (!problems.empty()) std::abort();
  }
  std::shared_ptr<ObjectMap> open() {
    std::shared_ptr<ObjectMap> map =
        ObjectMap::open(store, id, base.map().size(), limit);
    base.take_log();
    store.clear_log();
    return map;
  }
  void start(std::function<void()> run) {
    threads.emplace_back(std::move(run));
  }
  /// Starts it, too; whether it ends within a time from then on.
  bool ends_within(std::chrono::milliseconds time, std::function<void()> run) {
    std::latch started(1);
    const auto ended = std::make_shared<std::promise<void>>();
    auto end = ended->get_future();
    start([&started, ended, run = std::move(run)] {
      started.count_down();
      run();
      ended->set_value();
    });
    started.wait();
    return end.wait_for(time) == std::future_status::ready;
  }
  void join() { threads.clear(); }
  void hold_writes() {
    store.inject({.kind = Kind::write,
                  .oid = oid,
                  .times = FaultStore::always,
                  .held = true});
  }
  void release() {
    store.clear_faults();
    store.release();
  }
};

void refused(const std::function<void()>& call, int code) {
  try {
    call();
  } catch (const Error& e) {
    CPPUNIT_ASSERT_EQUAL_MESSAGE(e.what(), code, e.code());
    CPPUNIT_ASSERT_MESSAGE(e.what(), std::string_view(e.what()).find(id) !=
                                         std::string_view::npos);
    return;
  }
  CPPUNIT_FAIL("not refused: " + std::to_string(code));
}

/// As "0EPC...", the pool's and the memory's, which must agree.
std::string both(Pool& pool, const ObjectMap& map) {
  const ObjectStates stored = pool.base.map();
  std::string out;
  for (std::uint64_t i = 0; i < stored.size(); ++i) {
    CPPUNIT_ASSERT(stored[i] == map.state(i));
    out += "0EPC"[static_cast<unsigned>(stored[i])];
  }
  return out;
}

ObjectStates parse(std::string_view text) {
  ObjectStates map(text.size());
  for (std::size_t i = 0; i < text.size(); ++i)
    map.set(i, static_cast<State>(std::string_view("0EPC").find(text[i])));
  return map;
}

class ObjectMapTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(ObjectMapTest);
  CPPUNIT_TEST(open_and_close);
  CPPUNIT_TEST(locked_by_others);
  CPPUNIT_TEST(not_opened);
  CPPUNIT_TEST(large);
  CPPUNIT_TEST(first_change_of_a_block);
  CPPUNIT_TEST(end_of_absent);
  CPPUNIT_TEST(readers_while_blocks_are_made);
  CPPUNIT_TEST(marks);
  CPPUNIT_TEST(removals);
  CPPUNIT_TEST(creations);
  CPPUNIT_TEST(creations_around_a_removal);
  CPPUNIT_TEST(behind_the_end);
  CPPUNIT_TEST(one_range_of_many_states);
  CPPUNIT_TEST(blocks);
  CPPUNIT_TEST(word_limits);
  CPPUNIT_TEST(memory_follows_a_mark);
  CPPUNIT_TEST(memory_precedes_a_removal);
  CPPUNIT_TEST(mark_meets_removal);
  CPPUNIT_TEST(group_commit);
  CPPUNIT_TEST(kinds_in_one_batch);
  CPPUNIT_TEST(failure);
  CPPUNIT_TEST(failure_of_a_batch);
  CPPUNIT_TEST(lost_lock);
  CPPUNIT_TEST(many_threads);
  CPPUNIT_TEST(reservations);
  CPPUNIT_TEST(flushed_after_each);
  CPPUNIT_TEST(flush_waits_for_what_is_given_back);
  CPPUNIT_TEST(flush_waits_for_another_flush);
  CPPUNIT_TEST(flush_does_not_wait_for_marks);
  CPPUNIT_TEST(reservations_of_several_runs);
  CPPUNIT_TEST(what_is_not_reserved);
  CPPUNIT_TEST(removal_around_reserved);
  CPPUNIT_TEST(creation_of_reserved);
  CPPUNIT_TEST(reserved_while_waiting);
  CPPUNIT_TEST(taken_at_once);
  CPPUNIT_TEST(created_and_guessed);
  CPPUNIT_TEST(guesses_of_one_batch);
  CPPUNIT_TEST(taken_while_guessed_again);
  CPPUNIT_TEST(taken_while_given_back);
  CPPUNIT_TEST(failure_with_reservations);
  CPPUNIT_TEST(closing_does_not_wait_for_ever);
  CPPUNIT_TEST(reservations_and_many_threads);
  CPPUNIT_TEST_SUITE_END();

 public:
  void open_and_close() {
    Pool pool(0);
    const std::string states = "0EPC00EEPPCC0E";
    pool.base.put_map(parse(states));
    const auto map = ObjectMap::open(pool.store, id, 13, limit);
    CPPUNIT_ASSERT_EQUAL(pool.base.self, pool.base.holder);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{14}, map->objects());
    CPPUNIT_ASSERT_EQUAL(states, both(pool, *map));
    CPPUNIT_ASSERT(!map->may_exist(0) && map->may_exist(1) &&
                   map->may_exist(2) && map->may_exist(3));
    CPPUNIT_ASSERT(map->state(14) == State::exists);
    CPPUNIT_ASSERT(map->state(~std::uint64_t{0}) == State::exists);
    map->close();
    CPPUNIT_ASSERT_EQUAL(std::string(), pool.base.holder);
    map->close();  // not locked: no error

    pool.store.inject({.oid = oid, .error = ESHUTDOWN});
    refused([&] { map->close(); }, ESHUTDOWN);
  }

  void locked_by_others() {
    Pool pool(3);
    pool.base.holder = "client.7";
    auto map = pool.open();
    CPPUNIT_ASSERT_EQUAL(1, pool.base.broken);
    CPPUNIT_ASSERT_EQUAL(pool.base.self, pool.base.holder);
    // Ours already: the answer to the first attempt was lost.
    map = pool.open();
    CPPUNIT_ASSERT_EQUAL(1, pool.base.broken);
    CPPUNIT_ASSERT_EQUAL(pool.base.self, pool.base.holder);
    // Somebody takes it again and again.
    pool.base.holder = "client.7";
    pool.base.next_holder = "client.7";
    refused([&] { (void)pool.open(); }, EBUSY);
    CPPUNIT_ASSERT_EQUAL(std::string("client.7"), pool.base.holder);
  }

  void not_opened() {
    Pool pool(10);
    const auto open = [&](std::uint64_t objects) {
      (void)ObjectMap::open(pool.store, id, objects, limit);
    };
    refused([&] { open(11); }, EINVAL);
    CPPUNIT_ASSERT_EQUAL(std::string(), pool.base.holder);
    open(10);
    pool.base.holder.clear();

    MemoryObject damaged;
    damaged.data.write(0, "not a map at all");
    pool.base.put(oid, damaged);
    refused([&] { open(1); }, EINVAL);
    CPPUNIT_ASSERT_EQUAL(std::string(), pool.base.holder);

    pool.base.put(oid, MemoryObject{});
    refused([&] { open(1); }, ENOENT);
    CPPUNIT_ASSERT_EQUAL(std::string(), pool.base.holder);

    // A lock must not make an object.
    pool.base.put(oid, std::nullopt);
    refused([&] { open(1); }, ENOENT);
    CPPUNIT_ASSERT(!pool.base.find(oid));

    // An error of any of its operations.
    pool.base.put_map(ObjectStates(10));
    for (std::uint64_t n = 0; n < 5; ++n) {
      pool.base.holder = "client.7";
      pool.store.inject({.oid = oid, .skip = n, .error = EIO});
      refused([&] { open(10); }, EIO);
      CPPUNIT_ASSERT(pool.base.holder != pool.base.self);
      CPPUNIT_ASSERT_EQUAL(n + 1, pool.store.hits());
    }
    // A checksum that is wrong.
    MemoryObject changed = map_object(ObjectStates(10));
    changed.data.write(18, "x");
    pool.base.put(oid, changed);
    refused([&] { open(10); }, EINVAL);
    CPPUNIT_ASSERT_EQUAL(std::string(), pool.base.holder);
  }

  // An image of 16 TiB.
  void large() {
    constexpr std::uint64_t objects = std::uint64_t{1} << 22;
    Pool pool(objects, State::exists_clean);
    const auto map = pool.open();
    CPPUNIT_ASSERT(map->state(objects - 1) == State::exists_clean);
    map->mark_exists(objects - 1, 1);
    CPPUNIT_ASSERT(map->state(objects - 1) == State::exists);
    CPPUNIT_ASSERT(pool.base.map()[objects - 1] == State::exists);
    CPPUNIT_ASSERT(pool.base.map()[objects - 2] == State::exists_clean);
  }

  // Two images, and all blocks of one state: each changes one object only.
  void first_change_of_a_block() {
    constexpr std::uint64_t block = object_map_block;
    for (const State state : {State::nonexistent, State::exists_clean}) {
      Pool pool(4 * block + 3, state);
      Pool other(4 * block + 3, state);
      const auto map = pool.open();
      const auto unchanged = other.open();
      std::string all(4 * block + 3, "0EPC"[static_cast<unsigned>(state)]);
      for (const std::uint64_t n : {block, 3 * block - 1, 4 * block + 2}) {
        map->mark_exists(n, 1);
        all[n] = 'E';
        CPPUNIT_ASSERT_EQUAL(all, both(pool, *map));
      }
      map->begin_removal(block - 1, 2);
      map->end_removal(block - 1, 2);
      all[block - 1] = all[block] = '0';
      CPPUNIT_ASSERT_EQUAL(all, both(pool, *map));
      CPPUNIT_ASSERT_EQUAL(
          std::string(all.size(), "0EPC"[static_cast<unsigned>(state)]),
          both(other, *unchanged));
    }
  }

  void end_of_absent() {
    constexpr std::uint64_t objects = 3 * object_map_block + 40;
    Pool pool(objects);
    const auto map = pool.open();
    const auto check = [&](std::uint64_t first, std::uint64_t end) {
      std::uint64_t n = first;
      while (n < end && !map->may_exist(n)) ++n;
      CPPUNIT_ASSERT_EQUAL(n, map->end_of_absent(first, end));
    };
    const auto check_all = [&] {
      for (const std::uint64_t first :
           {std::uint64_t{0}, std::uint64_t{31}, object_map_block - 1,
            2 * object_map_block + 5, objects - 1, objects, objects + 5})
        for (const std::uint64_t end :
             {first, first + 1, first + 33, first + 2 * object_map_block,
              objects, objects + 100})
          if (end >= first) check(first, end);
    };
    check_all();
    for (const std::uint64_t n :
         {objects - 1, 2 * object_map_block + 37, std::uint64_t{32}}) {
      map->mark_exists(n, 1);
      check_all();
    }
    pool.store.inject({.oid = oid, .error = EIO});
    refused([&] { map->mark_exists(5, 1); }, EIO);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{7}, map->end_of_absent(7, 20));
  }

  // What is not changed keeps its state, and a mark that a thread has seen
  // stays, while blocks are copied below the readers.
  void readers_while_blocks_are_made() {
    constexpr std::uint64_t blocks = 60;
    Pool pool(blocks * object_map_block);
    const auto map = pool.open();
    std::atomic<std::uint64_t> marked{0};
    std::atomic<bool> wrong{false};
    for (unsigned t = 0; t < 2; ++t)
      pool.start([&, t] {
        std::mt19937 random(t);
        std::uint64_t seen = 0;
        while (seen < blocks) {
          seen = marked.load();
          const std::uint64_t n = random() % blocks;
          const bool exists =
              map->state(n * object_map_block + 5) == State::exists;
          if (n < seen && !exists) wrong = true;
          if (map->may_exist(n * object_map_block + 4)) wrong = true;
          const std::uint64_t end =
              std::min((n + 1) * object_map_block + 5, map->objects());
          if (map->end_of_absent(n * object_map_block + 6, end) != end)
            wrong = true;
        }
      });
    for (std::uint64_t n = 0; n < blocks; ++n) {
      map->mark_exists(n * object_map_block + 5, 1);
      marked = n + 1;
    }
    pool.join();
    CPPUNIT_ASSERT(!wrong);
  }

  void marks() {
    Pool pool(0);
    pool.base.put_map(parse("0EPC0"));
    const auto map = pool.open();
    map->mark_exists(1, 1);
    map->mark_exists(0, 0);
    map->mark_exists(std::span<const std::uint64_t>());
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, pool.store.log().size());
    map->mark_exists(3, 1);
    CPPUNIT_ASSERT_EQUAL(std::string("0EPE0"), both(pool, *map));
    map->mark_exists(0, 4);
    CPPUNIT_ASSERT_EQUAL(std::string("EEEE0"), both(pool, *map));
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, pool.store.log().size());
    map->mark_exists(0, 4);
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, pool.store.log().size());
    const std::array<std::uint64_t, 3> some{0, 3, 4};
    map->mark_exists(some);
    CPPUNIT_ASSERT_EQUAL(std::string("EEEEE"), both(pool, *map));
    CPPUNIT_ASSERT_EQUAL(std::size_t{3}, pool.store.log().size());
  }

  void removals() {
    Pool pool(0);
    pool.base.put_map(parse("0EPC0EC"));
    const auto map = pool.open();
    map->begin_removal(0, 1);
    map->begin_removal(2, 1);
    map->end_removal(0, 2);
    map->end_removal(3, 4);
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, pool.store.log().size());
    map->begin_removal(0, 5);
    CPPUNIT_ASSERT_EQUAL(std::string("0PPP0EC"), both(pool, *map));
    map->mark_exists(1, 1);
    map->end_removal(0, 7);
    CPPUNIT_ASSERT_EQUAL(std::string("0E000EC"), both(pool, *map));
    CPPUNIT_ASSERT_EQUAL(std::size_t{3}, pool.store.log().size());
    map->begin_removal(0, 7);
    map->end_removal(0, 7);
    CPPUNIT_ASSERT_EQUAL(std::string("0000000"), both(pool, *map));
    map->end_removal(0, 7);
    map->begin_removal(0, 7);
    CPPUNIT_ASSERT_EQUAL(std::size_t{5}, pool.store.log().size());
  }

  void creations() {
    Pool pool(0);
    pool.base.put_map(parse("0EPC0EC"));
    const auto map = pool.open();
    map->begin_creation(1, 3);
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, pool.store.log().size());
    map->begin_creation(0, 7);
    CPPUNIT_ASSERT_EQUAL(std::string("PEPCPEC"), both(pool, *map));
    CPPUNIT_ASSERT(map->may_exist(4));
    map->mark_exists(4, 1);
    CPPUNIT_ASSERT_EQUAL(std::string("PEPCEEC"), both(pool, *map));
    map->begin_removal(4, 1);
    map->end_removal(4, 1);
    const std::array<std::uint64_t, 3> some{0, 4, 5};
    map->begin_creation(some);
    CPPUNIT_ASSERT_EQUAL(std::string("PEPCPEC"), both(pool, *map));
  }

  // A removal that ends between two objects that begin to be made.
  void creations_around_a_removal() {
    Pool pool(0);
    pool.base.put_map(parse("00P00"));
    const auto map = pool.open();
    pool.hold_writes();
    pool.start([&] { map->mark_exists(4, 1); });
    CPPUNIT_ASSERT(pool.store.wait_until_held(1));
    std::latch waiting(2);
    pool.start([&] {
      waiting.count_down();
      const std::array<std::uint64_t, 2> some{1, 3};
      map->begin_creation(some);
    });
    pool.start([&] {
      waiting.count_down();
      map->end_removal(2, 1);
    });
    waiting.wait();
    std::this_thread::sleep_for(50ms);
    pool.release();
    pool.join();
    CPPUNIT_ASSERT_EQUAL(std::string("0P0PE"), both(pool, *map));
  }

  void behind_the_end() {
    Pool pool(10);
    const auto map = pool.open();
    constexpr std::uint64_t top = ~std::uint64_t{0};
    for (const auto& [first, count] :
         std::vector<std::pair<std::uint64_t, std::uint64_t>>{
             {0, 11}, {10, 1}, {9, 2}, {1, top}, {top, 1}, {top, top}}) {
      refused([&] { map->mark_exists(first, count); }, ERANGE);
      refused([&] { map->begin_removal(first, count); }, ERANGE);
      refused([&] { map->end_removal(first, count); }, ERANGE);
      refused([&] { map->begin_creation(first, count); }, ERANGE);
    }
    const std::array<std::uint64_t, 2> some{0, 10};
    refused([&] { map->mark_exists(some); }, ERANGE);
    map->mark_exists(10, 0);
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, pool.store.log().size());
    map->mark_exists(9, 1);
    CPPUNIT_ASSERT_EQUAL(std::string("000000000E"), both(pool, *map));
  }

  // However the states alternate in a range: one update.
  void one_range_of_many_states() {
    std::string mixed;
    for (int i = 0; i < 500; ++i) mixed += "0EPC0E"[i * 7 % 6];
    Pool pool(0);
    pool.base.put_map(parse(mixed));
    const auto map = pool.open();
    map->begin_removal(10, 480);
    std::string want = mixed;
    for (std::size_t i = 10; i < 490; ++i)
      if (want[i] != '0') want[i] = 'P';
    CPPUNIT_ASSERT_EQUAL(want, both(pool, *map));
    map->end_removal(10, 480);
    for (std::size_t i = 10; i < 490; ++i) want[i] = '0';
    CPPUNIT_ASSERT_EQUAL(want, both(pool, *map));
    std::vector<std::uint64_t> odd;
    for (std::uint64_t i = 101; i < 200; i += 2) odd.push_back(i);
    map->mark_exists(100, 1);
    for (std::uint64_t i = 102; i < 200; i += 2) map->mark_exists(i, 1);
    pool.base.take_log();
    map->mark_exists(odd);
    for (std::size_t i = 100; i < 200; ++i) want[i] = 'E';
    CPPUNIT_ASSERT_EQUAL(want, both(pool, *map));
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, pool.base.take_log().size());

    // What lies in between and is not `exists` stays what it is.
    const std::array<std::uint64_t, 2> apart{300, 302};
    map->mark_exists(apart);
    want[300] = want[302] = 'E';
    CPPUNIT_ASSERT_EQUAL(want, both(pool, *map));
  }

  // As many updates in an operation as may be, and no more (MapStore).
  void blocks() {
    constexpr std::uint64_t block = object_map_block;
    Pool pool(40 * block);
    const auto map = pool.open();
    std::vector<std::uint64_t> objects;
    for (std::uint64_t b = 0; b < 14; ++b) objects.push_back(b * block + b);
    map->mark_exists(objects);
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, pool.base.take_log().size());
    objects.clear();
    for (std::uint64_t b = 0; b < 3; ++b)
      for (std::uint64_t i = 0; i < 3; ++i)
        objects.push_back(b * block + 100 + 2 * i);
    map->mark_exists(objects);
    CPPUNIT_ASSERT(pool.base.take_log().size() <= 9);
    // More than one update may change.
    map->mark_exists(block - 2, 39 * block);
    std::uint64_t next = block - 2;
    for (const auto& operation : pool.base.take_log())
      for (const MapUpdate& update : operation) {
        CPPUNIT_ASSERT_EQUAL(next, update.first);
        next = update.end;
      }
    CPPUNIT_ASSERT_EQUAL(40 * block - 2, next);
    const ObjectStates stored = pool.base.map();
    for (std::uint64_t i = 0; i < stored.size(); ++i)
      CPPUNIT_ASSERT(stored[i] == map->state(i));
    CPPUNIT_ASSERT(stored[13 * block + 13] == State::exists &&
                   stored[104] == State::exists &&
                   stored[103] == State::nonexistent &&
                   stored[40 * block - 3] == State::exists &&
                   stored[40 * block - 2] == State::nonexistent);
  }

  // Each range of three words of objects, in memory as in the pool.
  void word_limits() {
    constexpr std::uint64_t objects = 70;
    Pool pool(0);
    std::string states;
    for (std::uint64_t i = 0; i < objects; ++i) states += "0EPC"[i * 5 / 3 % 4];
    for (std::uint64_t first = 0; first < objects; first += 3)
      for (std::uint64_t end = first + 1; end <= objects; ++end) {
        pool.base.put_map(parse(states));
        const auto map = pool.open();
        std::string want = states;
        const auto change = [&](std::string_view from, char to) {
          for (std::uint64_t i = first; i < end; ++i)
            if (from.find(want[i]) != std::string_view::npos) want[i] = to;
        };
        map->begin_removal(first, end - first);
        change("EC", 'P');
        CPPUNIT_ASSERT_EQUAL(want, both(pool, *map));
        map->end_removal(first, end - first);
        change("P", '0');
        CPPUNIT_ASSERT_EQUAL(want, both(pool, *map));
        map->mark_exists(first, end - first);
        change("0PC", 'E');
        CPPUNIT_ASSERT_EQUAL(want, both(pool, *map));
      }
  }

  void memory_follows_a_mark() {
    Pool pool(4);
    const auto map = pool.open();
    pool.hold_writes();
    std::atomic<bool> ended = false;
    pool.start([&] {
      map->mark_exists(1, 2);
      ended = true;
    });
    CPPUNIT_ASSERT(pool.store.wait_until_held(1));
    CPPUNIT_ASSERT(map->state(1) == State::nonexistent);
    CPPUNIT_ASSERT(!ended);
    pool.release();
    pool.join();
    CPPUNIT_ASSERT(ended);
    CPPUNIT_ASSERT_EQUAL(std::string("0EE0"), both(pool, *map));

    // The same for the end of a removal.
    map->begin_removal(1, 2);
    pool.hold_writes();
    pool.start([&] { map->end_removal(1, 2); });
    CPPUNIT_ASSERT(pool.store.wait_until_held(1));
    CPPUNIT_ASSERT(map->state(1) == State::pending);
    pool.release();
    pool.join();
    CPPUNIT_ASSERT_EQUAL(std::string("0000"), both(pool, *map));
  }

  void memory_precedes_a_removal() {
    Pool pool(4, State::exists);
    const auto map = pool.open();
    pool.hold_writes();
    pool.start([&] { map->begin_removal(1, 2); });
    CPPUNIT_ASSERT(pool.store.wait_until_held(1));
    CPPUNIT_ASSERT(map->state(1) == State::pending);
    CPPUNIT_ASSERT(map->state(0) == State::exists);
    CPPUNIT_ASSERT(pool.base.map()[1] == State::exists);
    map->mark_exists(0, 1);  // is not kept waiting
    pool.release();
    pool.join();
    CPPUNIT_ASSERT_EQUAL(std::string("EPPE"), both(pool, *map));
  }

  // A mark that comes while a removal begins is not lost by its end.
  void mark_meets_removal() {
    Pool pool(1, State::exists);
    const auto map = pool.open();
    pool.hold_writes();
    std::atomic<bool> begun = false;
    std::atomic<bool> marked = false;
    pool.start([&] {
      map->begin_removal(0, 1);
      begun = true;
    });
    CPPUNIT_ASSERT(pool.store.wait_until_held(1));
    pool.start([&] {
      map->mark_exists(0, 1);
      marked = true;
    });
    std::this_thread::sleep_for(20ms);
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, pool.store.held());
    CPPUNIT_ASSERT(!begun && !marked);
    pool.store.release();
    CPPUNIT_ASSERT(pool.store.wait_until_held(1));  // the mark
    CPPUNIT_ASSERT(!marked);
    CPPUNIT_ASSERT(map->state(0) == State::pending);
    pool.start([&] { map->end_removal(0, 1); });
    std::this_thread::sleep_for(20ms);
    pool.release();
    pool.join();
    CPPUNIT_ASSERT(begun && marked);
    CPPUNIT_ASSERT_EQUAL(std::string("E"), both(pool, *map));
  }

  // While one operation is under way, all that is asked for collects.
  void group_commit() {
    Pool pool(1000);
    const auto map = pool.open();
    pool.hold_writes();
    pool.start([&] { map->mark_exists(500, 1); });
    CPPUNIT_ASSERT(pool.store.wait_until_held(1));
    constexpr std::uint64_t n = 24;
    std::latch waiting(n);
    for (std::uint64_t i = 0; i < n; ++i)
      pool.start([&, i] {
        waiting.count_down();
        map->mark_exists(100 + i, 1);
        CPPUNIT_ASSERT(map->state(100 + i) == State::exists);
      });
    waiting.wait();
    std::this_thread::sleep_for(50ms);
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, pool.store.log().size());
    pool.release();
    pool.join();
    for (std::uint64_t i = 0; i < n; ++i)
      CPPUNIT_ASSERT(pool.base.map()[100 + i] == State::exists);
    // One more where a thread was very late.
    const std::vector<std::vector<MapUpdate>> log = pool.base.take_log();
    CPPUNIT_ASSERT(log.size() <= 3);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{500}, log.at(0).at(0).first);
    CPPUNIT_ASSERT(log.at(1).at(0).end - log.at(1).at(0).first > n / 2);
  }

  // Removals before ends before marks.
  void kinds_in_one_batch() {
    Pool pool(0);
    pool.base.put_map(parse("0EP"));
    const auto map = pool.open();
    pool.hold_writes();
    pool.base.put_map(parse("0EP"));
    pool.start([&] { map->mark_exists(0, 1); });
    CPPUNIT_ASSERT(pool.store.wait_until_held(1));
    std::latch waiting(3);
    pool.start([&] {
      waiting.count_down();
      map->mark_exists(2, 1);
    });
    pool.start([&] {
      waiting.count_down();
      map->end_removal(2, 1);
    });
    pool.start([&] {
      waiting.count_down();
      map->begin_removal(1, 1);
    });
    waiting.wait();
    std::this_thread::sleep_for(50ms);
    pool.release();
    pool.join();
    CPPUNIT_ASSERT_EQUAL(std::string("EPE"), both(pool, *map));
  }

  void failure() {
    Pool pool(8, State::exists);
    const auto map = pool.open();
    map->begin_removal(0, 2);
    map->end_removal(0, 1);
    CPPUNIT_ASSERT_EQUAL(std::string("0PEEEEEE"), both(pool, *map));
    pool.store.inject({.kind = Kind::write, .oid = oid, .error = ENOSPC});
    refused([&] { map->mark_exists(0, 1); }, ENOSPC);
    // Nothing more is sent, and nothing is believed.
    const std::size_t sent = pool.store.log().size();
    refused([&] { map->mark_exists(0, 1); }, ENOSPC);
    refused([&] { map->begin_removal(3, 1); }, ENOSPC);
    refused([&] { map->end_removal(1, 1); }, ENOSPC);
    map->mark_exists(2, 3);
    CPPUNIT_ASSERT_EQUAL(sent, pool.store.log().size());
    for (std::uint64_t i = 0; i < 8; ++i)
      CPPUNIT_ASSERT(map->state(i) == State::exists);
    map->close();
    CPPUNIT_ASSERT_EQUAL(std::string(), pool.base.holder);
  }

  void failure_of_a_batch() {
    Pool pool(100);
    const auto map = pool.open();
    pool.hold_writes();
    pool.start([&] { map->mark_exists(50, 1); });
    CPPUNIT_ASSERT(pool.store.wait_until_held(1));
    constexpr std::uint64_t n = 10;
    std::atomic<unsigned> errors = 0;
    std::latch waiting(n);
    for (std::uint64_t i = 0; i < n; ++i)
      pool.start([&, i] {
        waiting.count_down();
        try {
          map->mark_exists(2 * i, 1);
        } catch (const Error& e) {
          if (e.code() == EIO) ++errors;
        }
      });
    waiting.wait();
    std::this_thread::sleep_for(50ms);
    pool.store.clear_faults();
    // The third operation of the batch.
    pool.store.inject(
        {.kind = Kind::write, .oid = oid, .skip = 2, .error = EIO});
    pool.store.release();
    pool.join();
    // All of that batch, and those after it.  (A thread that was very late
    // can have made a batch of its own before it.)
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{1}, pool.store.hits() - 1);
    CPPUNIT_ASSERT(errors > n / 2);
    CPPUNIT_ASSERT(map->state(99) == State::exists);
    CPPUNIT_ASSERT(pool.base.map()[50] == State::exists);
  }

  void lost_lock() {
    Pool pool(2);
    const auto map = pool.open();
    pool.base.holder = "client.9";
    refused([&] { map->mark_exists(0, 1); }, EBUSY);
    CPPUNIT_ASSERT(pool.base.map() == ObjectStates(2));
    map->close();
    CPPUNIT_ASSERT_EQUAL(std::string("client.9"), pool.base.holder);
  }

  // Writers share an object and removers have it alone, as ObjectGuards do.
  // No object ever exists that the pool's map calls nonexistent.
  void many_threads() {
    constexpr std::uint64_t objects = 40000;  // three blocks
    constexpr std::size_t threads = 8;
    // A few places, some neighbours, so that threads meet.
    std::vector<std::uint64_t> places;
    for (std::uint64_t b = 0; b < 3; ++b)
      for (std::uint64_t i = 0; i < 8; ++i)
        places.push_back(b * object_map_block + i + i / 4);
    Pool pool(objects);
    const auto map = pool.open();
    std::vector<std::mutex> guards(places.size());
    std::vector<std::atomic<bool>> exists(places.size());
    std::atomic<unsigned> wrong = 0;
    for (std::size_t t = 0; t < threads; ++t)
      pool.start([&, t] {
        std::mt19937 random(static_cast<unsigned>(t));
        for (int round = 0; round < 300; ++round) {
          const std::size_t at = random() % places.size();
          const std::uint64_t object = places[at];
          const std::scoped_lock guard(guards[at]);
          if (random() % 3 != 0) {
            if (random() % 2 != 0) {
              map->begin_creation(object, 1);
              if (!map->may_exist(object)) ++wrong;
            }
            map->mark_exists(object, 1);
            exists[at] = true;
            if (map->state(object) != State::exists) ++wrong;
          } else {
            map->begin_removal(object, 1);
            if (map->state(object) == State::exists) ++wrong;
            exists[at] = false;
            map->end_removal(object, 1);
            if (map->may_exist(object)) ++wrong;
          }
          if (round % 50 != 0) continue;
          const ObjectStates stored = pool.base.map();
          if ((stored[object] == State::exists) != exists[at]) ++wrong;
        }
      });
    pool.join();
    CPPUNIT_ASSERT_EQUAL(0U, wrong.load());
    const ObjectStates stored = pool.base.map();
    for (std::uint64_t i = 0; i < objects; ++i)
      CPPUNIT_ASSERT(stored[i] == map->state(i));
    for (std::size_t at = 0; at < places.size(); ++at)
      CPPUNIT_ASSERT_EQUAL(exists[at].load(), map->may_exist(places[at]));
  }

  /// As both, with "r" for what exists in the pool only.
  static std::string with_reserved(Pool& pool, const ObjectMap& map) {
    const ObjectStates stored = pool.base.map();
    std::string out;
    for (std::uint64_t i = 0; i < stored.size(); ++i)
      if (stored[i] == map.state(i))
        out += "0EPC"[static_cast<unsigned>(stored[i])];
      else if (stored[i] == State::exists &&
               map.state(i) == State::nonexistent)
        out += "r";
      else
        out += "!";
    return out;
  }
  static void fill(ObjectMap& map, std::uint64_t first, std::uint64_t end) {
    for (; first < end; ++first) map.mark_written(first);
  }

  void reservations() {
    Pool pool(24);
    const auto map = pool.open();
    map->mark_written(2);
    CPPUNIT_ASSERT_EQUAL(std::string("00E000000000000000000000"),
                         with_reserved(pool, *map));
    map->mark_written(3);
    CPPUNIT_ASSERT_EQUAL(std::string("00EEr0000000000000000000"),
                         with_reserved(pool, *map));
    CPPUNIT_ASSERT(!map->may_exist(4));
    map->mark_written(4);
    CPPUNIT_ASSERT_EQUAL(std::string("00EEE0000000000000000000"),
                         with_reserved(pool, *map));
    map->mark_written(5);
    CPPUNIT_ASSERT_EQUAL(std::string("00EEEErrr000000000000000"),
                         with_reserved(pool, *map));
    // By any other mark as well.
    map->mark_exists(6, 1);
    map->mark_exists(7, 1);
    map->mark_written(8);
    map->mark_written(8);
    CPPUNIT_ASSERT_EQUAL(std::size_t{3}, pool.base.take_log().size());
    fill(*map, 9, 22);
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, pool.base.take_log().size());
    // Not behind the end.
    CPPUNIT_ASSERT_EQUAL(std::string("00EEEEEEEEEEEEEEEEEEEErr"),
                         with_reserved(pool, *map));
    map->give_back();
    CPPUNIT_ASSERT_EQUAL(std::string("00EEEEEEEEEEEEEEEEEEEE00"),
                         both(pool, *map));
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, pool.base.take_log().size());
    map->give_back();
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, pool.base.take_log().size());
    // A new run.
    map->mark_written(22);
    CPPUNIT_ASSERT_EQUAL(std::string("00EEEEEEEEEEEEEEEEEEEEE0"),
                         both(pool, *map));
    map->mark_written(0);
    map->begin_removal(2, 20);
    map->end_removal(2, 20);
    map->mark_written(1);
    CPPUNIT_ASSERT_EQUAL(std::string("EEr0000000000000000000E0"),
                         with_reserved(pool, *map));
    map->close();
    CPPUNIT_ASSERT_EQUAL(std::string("EE00000000000000000000E0"),
                         both(pool, *map));
    CPPUNIT_ASSERT_EQUAL(std::string(), pool.base.holder);
  }

  // Who flushes after each object pays for its mark, and for nothing else.
  void flushed_after_each() {
    Pool pool(16);
    const auto map = pool.open();
    for (std::uint64_t n = 0; n < 8; ++n) {
      map->mark_written(n);
      map->give_back();
      map->give_back();
    }
    CPPUNIT_ASSERT_EQUAL(std::string("EEEEEEEE00000000"), both(pool, *map));
    CPPUNIT_ASSERT_EQUAL(std::size_t{8}, pool.base.take_log().size());
  }

  // Of a run that left one out, what is given back is under way, and the last
  // that was reserved is taken: a flush waits for it.
  void flush_waits_for_what_is_given_back() {
    Pool pool(40);
    const auto map = pool.open();
    fill(*map, 0, 5);
    map->mark_written(6);
    CPPUNIT_ASSERT_EQUAL(std::string("EEEEErE000"),
                         with_reserved(pool, *map).substr(0, 10));
    pool.hold_writes();
    pool.start([&] { map->mark_written(7); });
    CPPUNIT_ASSERT(pool.store.wait_until_held(1));
    const bool early = pool.ends_within(20ms, [&] { map->give_back(); });
    pool.release();
    pool.join();
    CPPUNIT_ASSERT(!early);
    CPPUNIT_ASSERT_EQUAL(std::string("EEEEE0EE00"),
                         both(pool, *map).substr(0, 10));
  }

  void flush_waits_for_another_flush() {
    Pool pool(16);
    const auto map = pool.open();
    fill(*map, 0, 5);
    pool.hold_writes();
    pool.start([&] { map->give_back(); });
    CPPUNIT_ASSERT(pool.store.wait_until_held(1));
    const bool early = pool.ends_within(20ms, [&] { map->give_back(); });
    pool.release();
    pool.join();
    CPPUNIT_ASSERT(!early);
    CPPUNIT_ASSERT_EQUAL(std::string("EEEEE00000000000"), both(pool, *map));
  }

  // Nothing is reserved, and what is under way reserves nothing.
  void flush_does_not_wait_for_marks() {
    Pool pool(16);
    const auto map = pool.open();
    map->mark_written(3);
    pool.hold_writes();
    pool.start([&] { map->mark_written(9); });
    CPPUNIT_ASSERT(pool.store.wait_until_held(1));
    const bool in_time = pool.ends_within(10s, [&] { map->give_back(); });
    pool.release();
    pool.join();
    CPPUNIT_ASSERT(in_time);
    CPPUNIT_ASSERT_EQUAL(std::string("000E00000E000000"), both(pool, *map));
  }

  // What is left over does not become more and more.
  void reservations_of_several_runs() {
    Pool pool(4000);
    const auto map = pool.open();
    const auto count = [&] {
      const std::string all = with_reserved(pool, *map);
      CPPUNIT_ASSERT_EQUAL(std::string::npos, all.find('!'));
      return std::count(all.begin(), all.end(), 'r');
    };
    for (std::uint64_t run = 0; run < 30; ++run) {
      fill(*map, run * 100, run * 100 + 8);
      CPPUNIT_ASSERT(count() <= 8 * 7);
    }
    CPPUNIT_ASSERT_EQUAL(8 * 7L, static_cast<long>(count()));
    // One that leaves out every other object is none.
    for (std::uint64_t n = 3000; n < 3400; n += 2) map->mark_written(n);
    CPPUNIT_ASSERT_EQUAL(0L, static_cast<long>(count()));
    // What is left out of one is given back when it goes on.
    fill(*map, 3500, 3508);
    CPPUNIT_ASSERT_EQUAL(7L, static_cast<long>(count()));
    map->mark_written(3515);
    CPPUNIT_ASSERT_EQUAL(0L, static_cast<long>(count()));
    map->close();
    CPPUNIT_ASSERT_EQUAL(0L, static_cast<long>(count()));
  }

  // Only what does not exist.
  void what_is_not_reserved() {
    for (const char* const behind : {"E", "P", "C"}) {
      Pool pool(0);
      pool.base.put_map(parse(std::string("00000000") + behind + "0000"));
      const auto map = pool.open();
      fill(*map, 0, 4);
      CPPUNIT_ASSERT_EQUAL(std::string("EEEErrr0") + behind + "0000",
                           with_reserved(pool, *map));
      fill(*map, 4, 8);
      CPPUNIT_ASSERT_EQUAL(std::string("EEEEEEEE") + behind + "0000",
                           both(pool, *map));
    }
  }

  // Two removals in one batch, and one that is reserved in between.
  void removal_around_reserved() {
    Pool pool(16);
    const auto map = pool.open();
    map->mark_exists(5, 1);
    map->mark_written(1);
    map->mark_written(2);
    map->mark_exists(4, 1);
    CPPUNIT_ASSERT_EQUAL(std::string("0EErEE0000000000"),
                         with_reserved(pool, *map));
    map->begin_removal(0, 6);
    CPPUNIT_ASSERT_EQUAL(std::string("0PPrPP0000000000"),
                         with_reserved(pool, *map));
    map->end_removal(0, 6);
    CPPUNIT_ASSERT_EQUAL(std::string("000r000000000000"),
                         with_reserved(pool, *map));
    map->mark_exists(3, 1);
    CPPUNIT_ASSERT_EQUAL(std::string("000E000000000000"), both(pool, *map));
  }

  void creation_of_reserved() {
    Pool pool(16);
    const auto map = pool.open();
    fill(*map, 0, 4);
    CPPUNIT_ASSERT_EQUAL(std::string("EEEErrr000000000"),
                         with_reserved(pool, *map));
    map->begin_creation(5, 1);
    CPPUNIT_ASSERT_EQUAL(std::string("EEEErPr000000000"),
                         with_reserved(pool, *map));
    map->mark_exists(5, 1);
    map->mark_exists(6, 1);
    map->give_back();
    CPPUNIT_ASSERT_EQUAL(std::string("EEEE0EE000000000"), both(pool, *map));
  }

  // It was asked for before the update that reserves it had ended.
  void reserved_while_waiting() {
    Pool pool(16);
    const auto map = pool.open();
    map->mark_written(0);
    pool.base.take_log();
    pool.hold_writes();
    pool.start([&] { map->mark_written(1); });
    CPPUNIT_ASSERT(pool.store.wait_until_held(1));
    const bool early = pool.ends_within(20ms, [&] { map->mark_written(2); });
    const bool seen = map->may_exist(2);
    pool.release();
    pool.join();
    CPPUNIT_ASSERT(!early);
    CPPUNIT_ASSERT(!seen);
    CPPUNIT_ASSERT_EQUAL(std::string("EEE0000000000000"), both(pool, *map));
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, pool.base.take_log().size());
  }

  // Nobody waits for another one's update to take what is reserved.
  void taken_at_once() {
    Pool pool(16);
    const auto map = pool.open();
    fill(*map, 0, 4);
    pool.hold_writes();
    pool.start([&] { map->mark_exists(15, 1); });
    CPPUNIT_ASSERT(pool.store.wait_until_held(1));
    const bool in_time = pool.ends_within(10s, [&] { fill(*map, 4, 7); });
    const State taken = map->state(6);
    pool.release();
    pool.join();
    CPPUNIT_ASSERT(in_time);
    CPPUNIT_ASSERT(taken == State::exists);
    CPPUNIT_ASSERT_EQUAL(std::string("EEEEEEE00000000E"), both(pool, *map));
  }

  // Two requests of one batch: it is made for the parent's data, and comes
  // next in a run.
  void created_and_guessed() {
    Pool pool(16);
    const auto map = pool.open();
    map->mark_written(0);
    pool.hold_writes();
    pool.start([&] { map->mark_exists(15, 1); });
    CPPUNIT_ASSERT(pool.store.wait_until_held(1));
    pool.start([&] { map->mark_written(1); });
    pool.start([&] { map->begin_creation(2, 1); });
    std::this_thread::sleep_for(50ms);
    pool.release();
    pool.join();
    CPPUNIT_ASSERT_EQUAL(std::string("EEP000000000000E"), both(pool, *map));
  }

  // A run whose objects come in one batch is as long as any other: what it
  // left out is not reserved for good.
  void guesses_of_one_batch() {
    Pool pool(64);
    const auto map = pool.open();
    pool.hold_writes();
    pool.start([&] { map->mark_exists(63, 1); });
    CPPUNIT_ASSERT(pool.store.wait_until_held(1));
    for (const std::uint64_t n : {0, 1, 3, 7, 15, 23, 31}) {
      pool.start([&map, n] { map->mark_written(n); });
      std::this_thread::sleep_for(10ms);  // in this order
    }
    pool.release();
    pool.join();
    const std::string all = with_reserved(pool, *map);
    CPPUNIT_ASSERT_EQUAL(std::string::npos, all.find('!'));
    CPPUNIT_ASSERT_MESSAGE(all, std::count(all.begin(), all.end(), 'r') <= 7);

    // What comes in the same batch, in whatever order, is not left out.
    Pool other(64);
    const auto second = other.open();
    fill(*second, 0, 2);
    other.hold_writes();
    other.start([&] { second->mark_exists(63, 1); });
    CPPUNIT_ASSERT(other.store.wait_until_held(1));
    for (const std::uint64_t n : {3, 7, 6, 5, 4, 2}) {
      other.start([&second, n] { second->mark_written(n); });
      std::this_thread::sleep_for(10ms);
    }
    other.release();
    other.join();
    const std::string filled = with_reserved(other, *second);
    CPPUNIT_ASSERT_EQUAL(std::string("EEEEEEEE"), filled.substr(0, 8));
    CPPUNIT_ASSERT_EQUAL(std::string::npos, filled.find('!'));
    CPPUNIT_ASSERT(std::count(filled.begin(), filled.end(), 'r') <= 7);
    second->give_back();
    CPPUNIT_ASSERT_EQUAL("EEEEEEEE" + std::string(55, '0') + "E",
                         both(other, *second));
  }

  // One that is reserved, and comes next in another run too, is taken while
  // that is under way: it is reserved no more.
  void taken_while_guessed_again() {
    Pool pool(16);
    const auto map = pool.open();
    fill(*map, 8, 10);
    map->begin_removal(8, 2);
    map->end_removal(8, 2);
    fill(*map, 0, 7);
    CPPUNIT_ASSERT_EQUAL(std::string("EEEEEEE000r00000"),
                         with_reserved(pool, *map));
    pool.hold_writes();
    pool.start([&] { map->mark_written(7); });
    CPPUNIT_ASSERT(pool.store.wait_until_held(1));
    map->mark_exists(10, 1);
    pool.release();
    pool.join();
    CPPUNIT_ASSERT_EQUAL(std::string("EEEEEEEErrErrrr0"),
                         with_reserved(pool, *map));
    map->give_back();
    CPPUNIT_ASSERT_EQUAL(std::string("EEEEEEEE00E00000"), both(pool, *map));
  }

  void taken_while_given_back() {
    Pool pool(16);
    const auto map = pool.open();
    fill(*map, 0, 4);
    pool.base.take_log();
    pool.hold_writes();
    pool.start([&] { map->give_back(); });
    CPPUNIT_ASSERT(pool.store.wait_until_held(1));
    const bool early = pool.ends_within(20ms, [&] { map->mark_written(5); });
    pool.release();
    pool.join();
    CPPUNIT_ASSERT(!early);
    CPPUNIT_ASSERT_EQUAL(std::string("EEEE0E0000000000"), both(pool, *map));
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, pool.base.take_log().size());
  }

  void failure_with_reservations() {
    Pool pool(16);
    const auto map = pool.open();
    fill(*map, 0, 4);
    pool.store.inject({.kind = Kind::write, .oid = oid, .error = EIO});
    refused([&] { map->mark_exists(12, 1); }, EIO);
    const std::size_t sent = pool.store.log().size();
    refused([&] { map->mark_exists(4, 1); }, EIO);
    CPPUNIT_ASSERT(map->may_exist(4));
    map->give_back();
    CPPUNIT_ASSERT_EQUAL(sent, pool.store.log().size());
    map->close();

    Pool other(16);
    const auto second = other.open();
    fill(*second, 0, 4);
    other.store.inject({.kind = Kind::write, .oid = oid, .error = EIO});
    refused([&] { second->close(); }, EIO);
    CPPUNIT_ASSERT_EQUAL(std::string(), other.base.holder);
  }

  // An OSD that does not answer keeps nobody from giving the lock away.
  void closing_does_not_wait_for_ever() {
    Pool pool(16);
    const auto map = ObjectMap::open(pool.store, id, 16, 50ms);
    fill(*map, 0, 4);
    pool.hold_writes();
    refused([&] { map->close(); }, ETIMEDOUT);
    pool.release();
    CPPUNIT_ASSERT_EQUAL(std::string(), pool.base.holder);
    CPPUNIT_ASSERT_EQUAL(std::string("EEEErrr000000000"),
                         with_reserved(pool, *map));
  }

  // As many_threads, with runs that meet removals of ranges.
  void reservations_and_many_threads() {
    constexpr std::uint64_t objects = 96;
    constexpr std::size_t threads = 8;
    Pool pool(objects);
    const auto map = pool.open();
    std::vector<std::mutex> guards(objects);
    std::vector<std::atomic<bool>> exists(objects);
    std::atomic<unsigned> wrong = 0;
    std::atomic<unsigned> seen = 0;
    for (std::size_t t = 0; t < threads; ++t)
      pool.start([&, t] {
        std::mt19937 random(static_cast<unsigned>(t));
        for (int round = 0; round < 400; ++round) {
          const std::uint64_t first = random() % objects;
          const std::uint64_t count =
              std::min<std::uint64_t>(1 + random() % 12, objects - first);
          switch (random() % 8) {
            default:
              for (std::uint64_t n = first; n < first + count; ++n) {
                const std::scoped_lock guard(guards[n]);
                map->mark_written(n);
                exists[n] = true;
                if (map->state(n) != State::exists) ++wrong;
                const ObjectStates stored = pool.base.map();
                if (stored[n] != State::exists) ++wrong;
                for (std::uint64_t i = 0; i < objects; ++i)
                  if (stored[i] == State::exists && !map->may_exist(i)) {
                    ++seen;
                    break;
                  }
              }
              break;
            case 0: {
              std::vector<std::unique_lock<std::mutex>> held;
              for (std::uint64_t n = first; n < first + count; ++n)
                held.emplace_back(guards[n]);
              map->begin_removal(first, count);
              for (std::uint64_t n = first; n < first + count; ++n)
                exists[n] = false;
              map->end_removal(first, count);
              for (std::uint64_t n = first; n < first + count; ++n)
                if (map->may_exist(n)) ++wrong;
              break;
            }
            case 1: {
              const std::scoped_lock guard(guards[first]);
              map->begin_creation(first, 1);
              if (!map->may_exist(first)) ++wrong;
              map->mark_exists(first, 1);
              exists[first] = true;
              break;
            }
            case 2:
              if (random() % 4 == 0) map->give_back();
              break;
          }
        }
      });
    pool.join();
    CPPUNIT_ASSERT_EQUAL(0U, wrong.load());
    CPPUNIT_ASSERT(seen != 0);
    CPPUNIT_ASSERT_EQUAL(std::string::npos,
                         with_reserved(pool, *map).find('!'));
    map->close();
    const std::string all = both(pool, *map);
    for (std::uint64_t i = 0; i < objects; ++i)
      CPPUNIT_ASSERT_EQUAL(exists[i] ? 'E' : '0', all[i]);
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(ObjectMapTest);

class CreationRunsTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(CreationRunsTest);
  CPPUNIT_TEST(one_run);
  CPPUNIT_TEST(several_runs);
  CPPUNIT_TEST(what_was_missed);
  CPPUNIT_TEST_SUITE_END();

  static std::string text(const CreationRuns::Range& r) {
    return r.first == r.end ? "-"
                            : std::to_string(r.first) + ".." +
                                  std::to_string(r.end);
  }
  /// Guess and what is over.
  std::string made(std::uint64_t n, bool missed = false) {
    const CreationRuns::Guess guess =
        runs_.made(n, [&](const CreationRuns::Range& r) {
          return missed && r.first != r.end;
        });
    return text(guess.next) + " " + text(guess.over);
  }
  static void same(const char* expected, const std::string& got) {
    CPPUNIT_ASSERT_EQUAL(std::string(expected), got);
  }

  CreationRuns runs_;

 public:
  void one_run() {
    same("- -", made(100));
    same("102..103 -", made(101));
    same("104..107 102..103", made(103));
    same("108..115 104..107", made(107));
    same("116..123 108..115", made(115));
    same("- -", made(115));
    same("- -", made(120));
    same("124..131 116..123", made(123));
    runs_.clear();
    same("- -", made(131));
    same("133..134 -", made(132));
  }

  void several_runs() {
    for (std::uint64_t run = 0; run < 8; ++run) {
      same("- -", made(1000 * run));
      (void)made(1000 * run + 1);
    }
    for (std::uint64_t run = 0; run < 8; ++run)
      (void)made(1000 * run + 3);
    // The one that was used least recently makes room.
    same("- 4..7", made(9000));
    same("- 1004..1007", made(7));
    same("2008..2015 2004..2007", made(2007));
  }

  void what_was_missed() {
    (void)made(10);
    (void)made(11);
    same("- 12..13", made(13, true));
    same("15..16 -", made(14, true));
    // At the end of all numbers.
    runs_.clear();
    same("- -", made(~std::uint64_t{0} - 1));
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(CreationRunsTest);

/// Maps that are larger than what is read at once.
class MapLoaderTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(MapLoaderTest);
  CPPUNIT_TEST(any_size);
  CPPUNIT_TEST(changed_while_read);
  CPPUNIT_TEST(changed_again_and_again);
  CPPUNIT_TEST(damaged);
  CPPUNIT_TEST(large_without_checksums);
  CPPUNIT_TEST(errors);
  CPPUNIT_TEST_SUITE_END();

  static constexpr std::uint64_t piece = map_piece * 4;  // objects
  static constexpr std::uint64_t objects = 5 * piece + 70'001;
  MemoryStore memory_;
  FaultStore store_{memory_};

  // Its first and last block have many states, others one.
  static ObjectStates some_map(std::uint64_t count) {
    ObjectStates map(count, State::exists);
    for (std::uint64_t n = 0; n < count; n += 1 + n % 5)
      if (n < 2'000 || n + 2'000 > count) map.set(n, State(n % 4));
    if (count > piece)
      map.set(piece, count / 2, State::nonexistent);
    return map;
  }
  LoadedMap load(std::uint64_t size = map_piece) {
    store_.clear_log();
    return load_object_map(store_, oid, limit, size);
  }
  void refused_with(int code) {
    refused([&] { (void)load(); }, code);
  }
  std::string bytes() { return memory_.find(oid)->data.bytes(); }

 public:
  void any_size() {
    for (const std::uint64_t count :
         {std::uint64_t{0}, std::uint64_t{1}, piece - 200'000, piece - 100,
          piece - 1, piece, piece + 1, 3 * piece, objects}) {
      memory_.put(oid, map_object(some_map(count)));
      const LoadedMap map = load();
      CPPUNIT_ASSERT(map.states == some_map(count));
      CPPUNIT_ASSERT_EQUAL(bytes().substr(map.footer_at), map.footer);
      CPPUNIT_ASSERT_EQUAL(std::size_t{1}, store_.count(Kind::read_all));
      // What is in flight takes memory.
      CPPUNIT_ASSERT(store_.most_in_flight() <= 6);
      for (const FaultStore::Record& r : store_.log())
        CPPUNIT_ASSERT(r.length <= map_piece);
      CPPUNIT_ASSERT(load(bytes().size()).states == some_map(count));
      for (const FaultStore::Record& r : store_.log())
        CPPUNIT_ASSERT(r.length <= bytes().size());
    }
  }

  // Between the checksums of a piece and its data.
  void changed_while_read() {
    memory_.put(oid, map_object(some_map(objects)));
    ObjectStates changed = some_map(objects);
    changed.set(2 * piece + 5, State::pending);
    // After what follows the data, checksums and data in turn.
    store_.inject({.kind = Kind::read, .skip = 6, .held = true});
    std::jthread loading([&] {
      const LoadedMap map = load();
      CPPUNIT_ASSERT(map.states == changed);
      CPPUNIT_ASSERT_EQUAL(bytes().substr(map.footer_at), map.footer);
    });
    CPPUNIT_ASSERT(store_.wait_until_held(1));
    memory_.put(oid, map_object(changed));
    store_.release();
  }

  void changed_again_and_again() {
    memory_.put(oid, map_object(some_map(objects)));
    // The sums of another map each time.
    store_.inject({.kind = Kind::read,
                   .skip = 1,
                   .times = FaultStore::always,
                   .short_read = 4});
    refused_with(EINVAL);
    CPPUNIT_ASSERT(store_.count(Kind::read) < 40);
  }

  void damaged() {
    memory_.put(oid, map_object(some_map(objects)));
    const std::string good = bytes();
    const auto put = [&](std::string content) {
      MemoryObject object;
      object.data.write(0, content);
      memory_.put(oid, object);
    };
    const std::uint64_t footer = load().footer_at;
    // Header, data in each piece, footer, checksums.
    for (const std::uint64_t at :
         {std::uint64_t{0}, std::uint64_t{10}, std::uint64_t{18},
          3 * map_piece, footer - 1, footer, footer + 4, footer + 8,
          footer + 12, good.size() - 1}) {
      std::string bad = good;
      ++bad[at];
      put(bad);
      refused_with(EINVAL);
    }
    for (const std::uint64_t size :
         {std::uint64_t{1}, map_piece, footer - 1, footer + 3, footer + 4,
          footer + 20, good.size() - 1}) {
      put(good.substr(0, size));
      refused_with(EINVAL);
    }
    put(good);
    CPPUNIT_ASSERT(load().states == some_map(objects));
  }

  void large_without_checksums() {
    MemoryObject object;
    object.data.write(0, encode_object_map(some_map(objects),
                                           ObjectMapFooter::empty));
    memory_.put(oid, object);
    const LoadedMap map = load();
    CPPUNIT_ASSERT(map.states == some_map(objects));
    CPPUNIT_ASSERT_EQUAL(std::string(), map.footer);
  }

  void errors() {
    refused_with(ENOENT);
    memory_.put(oid, MemoryObject{});
    refused_with(ENOENT);
    memory_.put(oid, map_object(some_map(objects)));
    const std::size_t operations = (load(), store_.log().size());
    for (std::size_t n = 0; n < operations; ++n) {
      store_.inject({.skip = n, .error = EIO});
      refused_with(EIO);
      store_.inject({.skip = n, .held = true});
      refused([&] { (void)load_object_map(store_, oid, 50ms); }, ETIMEDOUT);
      CPPUNIT_ASSERT_EQUAL(std::size_t{0}, store_.held());
      store_.clear_faults();
    }
    // The limit is for all of them.
    store_.inject({.kind = Kind::read, .times = FaultStore::always,
                   .delay = 40ms});
    refused([&] { (void)load_object_map(store_, oid, 100ms); }, ETIMEDOUT);
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, store_.problems().size());
  }
};
CPPUNIT_TEST_SUITE_REGISTRATION(MapLoaderTest);

/// The flags are the header's only bytes here.  Asking for them gives it no
/// other version, as methods of MemoryStore do.
class FlagsStore : public MemoryStore {
 public:
  [[nodiscard]] std::unique_ptr<Pending> exec(const std::string& name,
                                              std::string_view,
                                              std::string_view method,
                                              std::string_view,
                                              std::string* output) override {
    CPPUNIT_ASSERT(method == "get_flags");
    return read_all(name, 8, output);
  }
};

/// A map in the pool, and the header that says whether it is valid.
class MapReaderTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(MapReaderTest);
  CPPUNIT_TEST(kept);
  CPPUNIT_TEST(changed);
  CPPUNIT_TEST(changed_while_read);
  CPPUNIT_TEST(not_believed);
  CPPUNIT_TEST(map_copied_over);
  CPPUNIT_TEST(header_copied_over);
  CPPUNIT_TEST(without_checksums);
  CPPUNIT_TEST(asks_for_what_there_is);
  CPPUNIT_TEST(no_answer);
  CPPUNIT_TEST_SUITE_END();

  static constexpr std::uint64_t objects = 3 * object_map_block + 5;
  const std::string header_ = "rbd_header.10ab";
  FlagsStore memory_;
  FaultStore store_{memory_};
  MapReader reader_{store_, header_, oid, snap_head, limit};

 public:
  MapReaderTest() {
    put_flags(0);
    put_map({});
  }

 private:
  void put_flags(std::uint64_t flags, std::uint64_t version = 0) {
    Encoder bytes;
    bytes.u64(flags);
    MemoryObject object;
    object.data.write(0, bytes.str());
    memory_.put(header_, object, version);
  }
  static ObjectStates map_with(const std::set<std::uint64_t>& existing) {
    ObjectStates map(objects);
    for (const std::uint64_t n : existing) map.set(n, State::exists);
    return map;
  }
  void put_map(const std::set<std::uint64_t>& existing,
               std::uint64_t version = 0) {
    memory_.put(oid, map_object(map_with(existing)), version);
  }
  std::uint64_t version(const std::string& name) {
    std::uint64_t v = 0;
    CPPUNIT_ASSERT_EQUAL(0, memory_.version(name, &v)->wait());
    return v;
  }
  /// What it reads is this, and whether it had to read the whole map.
  void reads(const std::set<std::uint64_t>& existing, bool whole) {
    store_.clear_log();
    const auto map = reader_.read();
    CPPUNIT_ASSERT(map != nullptr);
    CPPUNIT_ASSERT(*map == map_with(existing));
    CPPUNIT_ASSERT_EQUAL(std::size_t{whole}, store_.count(Kind::read_all));
  }
  void reads_none() { CPPUNIT_ASSERT(reader_.read() == nullptr); }

  void kept() {
    reads({}, true);
    for (int i = 0; i < 3; ++i) reads({}, false);
    CPPUNIT_ASSERT(reader_.read() == reader_.read());
  }

  void changed() {
    reads({}, true);
    put_map({7});
    reads({7}, true);
    // Another header with the same flags: that had to be read.
    put_flags(0);
    reads({7}, true);
    reads({7}, false);
    memory_.put(oid, map_object(ObjectStates(objects + 1)));
    CPPUNIT_ASSERT(*reader_.read() == ObjectStates(objects + 1));
    memory_.put(oid, map_object(ObjectStates(1)));
    CPPUNIT_ASSERT(*reader_.read() == ObjectStates(1));
    CPPUNIT_ASSERT(*reader_.read() == ObjectStates(1));
  }

  // The map changes after its version was asked, and then comes back.
  void changed_while_read() {
    const std::uint64_t v = version(oid);
    store_.inject({.kind = Kind::read_all, .delay = 200ms});
    std::jthread reading([&] { (void)reader_.read(); });
    while (store_.count(Kind::exec) == 0) std::this_thread::sleep_for(1ms);
    put_map({7});
    reading.join();
    put_map({8}, v);
    reads({8}, true);
  }

  void not_believed() {
    put_flags(flag_object_map_invalid);
    reads_none();
    put_flags(0);
    reads({}, true);
    put_flags(flag_object_map_invalid | flag_fast_diff_invalid);
    reads_none();
    put_flags(flag_fast_diff_invalid);
    reads({}, true);
    MemoryObject damaged = map_object(map_with({}));
    damaged.data.write(100, "x");
    memory_.put(oid, damaged);
    reads_none();
    memory_.put(oid, MemoryObject{});
    reads_none();
    memory_.put(oid, std::nullopt);
    reads_none();
    put_map({3});
    reads({3}, true);
    memory_.put(oid, std::nullopt);
    reads_none();
    memory_.put(header_, std::nullopt);
    try {
      (void)reader_.read();
      CPPUNIT_FAIL("no exception");
    } catch (const Error& e) {
      CPPUNIT_ASSERT_EQUAL(ENOENT, e.code());
    }
  }

  // Another map of the same version.
  void map_copied_over() {
    reads({}, true);
    const std::uint64_t v = version(oid);
    for (const std::uint64_t n : {std::uint64_t{0}, std::uint64_t{20'000},
                                  objects - 1}) {
      put_map({n}, v);
      reads({n}, true);
      reads({n}, false);
    }
    memory_.put(oid, map_object(ObjectStates(object_map_block)), v);
    CPPUNIT_ASSERT(*reader_.read() == ObjectStates(object_map_block));
  }

  // Another header of the same version.
  void header_copied_over() {
    reads({}, true);
    put_flags(flag_object_map_invalid, version(header_));
    reads_none();
  }

  // Objects in a pool have them; what has not, is right all the same.
  void without_checksums() {
    const auto put = [&](const std::set<std::uint64_t>& existing,
                         std::uint64_t v) {
      MemoryObject object;
      object.data.write(0, encode_object_map(map_with(existing),
                                             ObjectMapFooter::empty));
      memory_.put(oid, object, v);
    };
    put({5}, 0);
    reads({5}, true);
    put({6}, version(oid));
    reads({6}, true);
  }

  // A read's limit is taken from what all images may have in flight.
  void asks_for_what_there_is() {
    const std::uint64_t size = memory_.find(oid)->data.bytes().size();
    reads({}, true);
    for (const FaultStore::Record& r : store_.log())
      if (r.kind == Kind::read_all) CPPUNIT_ASSERT_EQUAL(size, r.length);
  }

  // Header and map are on an OSD that does not answer.
  void no_answer() {
    MapReader reader(store_, header_, oid, snap_head, 50ms);
    for (const bool kept : {false, true}) {
      if (kept) CPPUNIT_ASSERT(reader.read() != nullptr);
      store_.inject({.times = FaultStore::always, .held = true});
      try {
        (void)reader.read();
        CPPUNIT_FAIL("no exception");
      } catch (const Error& e) {
        CPPUNIT_ASSERT_EQUAL(ETIMEDOUT, e.code());
      }
      CPPUNIT_ASSERT_EQUAL(std::size_t{0}, store_.held());
      store_.clear_faults();
    }
  }
};
CPPUNIT_TEST_SUITE_REGISTRATION(MapReaderTest);

}  // namespace
