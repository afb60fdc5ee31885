// SPDX-License-Identifier: BSD-3-Clause
//
// The encodings and the object map against the real object classes.
//
//     rbd-classes POOL methods HEADER
//     rbd-classes POOL map IMAGE-ID OBJECTS
//
// methods  Calls the methods that writing to format 2 needs with our inputs,
//          on objects of its own and, for the flags, on the header object
//          HEADER, and compares what they do with what our headers say.
// map      Breaks a dead owner's lock of the image's object map, then creates
//          and removes data objects in many threads as the map demands, and
//          compares the map in memory with the one in the pool.  Holding the
//          image's exclusive lock is not checked by anybody here.
//
// The cluster is that of $CEPH_CONF.  The exit status is 0 where all is as it
// should be, else 1 with a line on stderr.

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "image/ownership/object_map.hpp"
#include "rados/cluster.hpp"
#include "rados/error.hpp"
#include "rados/object_store.hpp"
#include "rbd/cls_lock.hpp"
#include "rbd/encoding.hpp"
#include "rbd/features.hpp"
#include "rbd/format2.hpp"
#include "rbd/object_map.hpp"

using namespace nbdrados;
using namespace std::chrono_literals;

namespace {

using State = ObjectState;
constexpr std::chrono::milliseconds limit = 30s;

void require(bool holds, const std::string& what) {
  if (!holds) throw std::runtime_error(what);
}

struct Pool {
  explicit Pool(const std::string& name) {
    ClusterConfig config;
    const char* conf = std::getenv("CEPH_CONF");
    require(conf != nullptr, "CEPH_CONF is not set");
    config.conf = conf;
    cluster = Cluster::connect(config);
    store = cluster->open_pool(name, "", Cluster::Purpose::metadata);
  }
  std::shared_ptr<Cluster> cluster;
  std::shared_ptr<ObjectStore> store;

  // One method as an operation; its result.
  int call(const std::string& oid, std::string_view cls,
           std::string_view method, std::string_view input) {
    WriteOp op;
    op.exec(cls, method, input);
    return store->write(oid, op, SnapContext{})->wait();
  }
  void expect(int result, const std::string& oid, std::string_view cls,
              std::string_view method, std::string_view input) {
    const int r = call(oid, cls, method, input);
    require(r == result, std::string(method) + " gives " + std::to_string(r) +
                             ", not " + std::to_string(result));
  }
  std::string read(const std::string& oid) {
    std::string out;
    check(store->read_all(oid, 64 << 20, &out)->wait(), oid);
    return out;
  }
  std::string ask(const std::string& oid, std::string_view cls,
                  std::string_view method, std::string_view input) {
    std::string out;
    check(store->exec(oid, cls, method, input, &out)->wait(),
          oid + ": " + std::string(method));
    return out;
  }
  void remove(const std::string& oid) {
    WriteOp op;
    op.remove();
    const int r = store->write(oid, op, SnapContext{})->wait();
    if (r != -ENOENT) check(r, oid);
  }
};

void check_map_methods(Pool& pool) {
  const std::string oid = "rbd-classes.map";
  pool.remove(oid);
  const auto same = [&](const ObjectStates& want, const std::string& when) {
    require(pool.read(oid) ==
                encode_object_map(want, ObjectMapFooter::checksums),
            when + ": the object is another one");
    require(pool.ask(oid, rbd_class, object_map_method_load, "") ==
                encode_object_map(want, ObjectMapFooter::empty),
            when + ": the reply of object_map_load is another one");
  };
  const auto expect = [&](int result, std::string_view method,
                          const std::string& input) {
    pool.expect(result, oid, rbd_class, method, input);
  };

  expect(-EINVAL, object_map_method_resize,
         encode_object_map_resize(object_map_max + 1, State::nonexistent));
  expect(0, object_map_method_resize,
         encode_object_map_resize(0, State::nonexistent));
  same(ObjectStates(), "empty");
  ObjectStates map(20001, State::exists_clean);
  expect(0, object_map_method_resize,
         encode_object_map_resize(20001, State::exists_clean));
  same(map, "resized");
  const auto update = [&](std::uint64_t first, std::uint64_t end, State state,
                          std::optional<State> current = std::nullopt) {
    expect(0, object_map_method_update,
           encode_object_map_update(first, end, state, current));
    for (std::uint64_t i = first; i < end; ++i)
      if (!current || map[i] == *current ||
          (current == State::exists && map[i] == State::exists_clean))
        map.set(i, state);
    same(map, "updated");
  };
  update(3, 16390, State::nonexistent);
  update(7, 9, State::exists);
  update(8, 10, State::pending);
  update(20000, 20001, State::exists);
  update(0, 20001, State::pending, State::exists);
  update(5, 9, State::nonexistent, State::pending);
  update(0, 12, State::exists, State::nonexistent);
  expect(-ERANGE, object_map_method_update,
         encode_object_map_update(20000, 20002, State::exists));
  expect(-ERANGE, object_map_method_update,
         encode_object_map_update(5, 5, State::exists));

  // Two operations one after the other on one block, without a wait.
  const std::string first = encode_object_map_update(100, 101, State::exists);
  const std::string second = encode_object_map_update(102, 103, State::exists);
  WriteOp ops[2];
  ops[0].exec(rbd_class, object_map_method_update, first);
  ops[1].exec(rbd_class, object_map_method_update, second);
  auto p0 = pool.store->write(oid, ops[0], SnapContext{});
  auto p1 = pool.store->write(oid, ops[1], SnapContext{});
  check(p0->wait(), "first update");
  check(p1->wait(), "second update");
  map.set(100, State::exists);
  map.set(102, State::exists);
  same(map, "updated without a wait");
  // Two updates of different blocks in one.
  const std::string third = encode_object_map_update(104, 105, State::exists);
  const std::string fourth =
      encode_object_map_update(19000, 19001, State::exists);
  WriteOp two;
  two.exec(rbd_class, object_map_method_update, third)
      .exec(rbd_class, object_map_method_update, fourth);
  check(pool.store->write(oid, two, SnapContext{})->wait(), "two blocks");
  map.set(104, State::exists);
  map.set(19000, State::exists);
  same(map, "two blocks");

  const ObjectStates snapshot = map;
  expect(0, object_map_method_snap_add, "");
  for (std::uint64_t i = 0; i < map.size(); ++i)
    if (map[i] == State::exists) map.set(i, State::exists_clean);
  same(map, "snapshot added");
  ObjectStates shorter(20000);
  for (std::uint64_t i = 0; i < shorter.size(); ++i)
    shorter.set(i, snapshot[i]);
  expect(0, object_map_method_snap_remove,
         encode_object_map(shorter, ObjectMapFooter::empty));
  for (std::uint64_t i = 0; i < map.size(); ++i)
    if (map[i] == State::exists_clean &&
        (i >= shorter.size() || shorter[i] == State::exists))
      map.set(i, State::exists);
  same(map, "snapshot removed");

  expect(-ESTALE, object_map_method_resize,
         encode_object_map_resize(10, State::nonexistent));
  map = ObjectStates(5);
  map.set(4, State::pending);
  for (const ObjectMapFooter footer :
       {ObjectMapFooter::empty, ObjectMapFooter::checksums}) {
    expect(0, object_map_method_save, encode_object_map(map, footer));
    same(map, "saved");
  }

  // Locked by us, or not.
  WriteOp locked;
  const std::string assertion =
      encode_assert_locked(rbd_lock_name, LockType::exclusive, "", "");
  const std::string input = encode_object_map_update(0, 1, State::exists);
  locked.exec(lock_class, lock_method_assert_locked, assertion)
      .exec(rbd_class, object_map_method_update, input);
  const auto guarded = [&](const std::string& name) {
    return pool.store->write(name, locked, SnapContext{})->wait();
  };
  require(guarded(oid) == -EBUSY, "assert_locked of no lock");
  same(map, "not locked");
  require(guarded(oid + ".none") == -ENOENT, "assert_locked of no object");
  pool.expect(0, oid, lock_class, lock_method_lock,
              encode_lock(rbd_lock_name, LockType::exclusive, "", "", ""));
  check(guarded(oid), "assert_locked");
  map.set(0, State::exists);
  same(map, "locked");

  WriteOp empty;
  empty.truncate(0);
  check(pool.store->write(oid, empty, SnapContext{})->wait(), "truncate");
  std::string reply;
  require(pool.store->exec(oid, rbd_class, object_map_method_load, "", &reply)
                  ->wait() == -ENOENT,
          "object_map_load of an empty object");
  pool.remove(oid);
}

void check_lock_methods(Pool& pool) {
  const std::string oid = "rbd-classes.lock";
  pool.remove(oid);
  const auto expect = [&](int result, std::string_view method,
                          const std::string& input) {
    pool.expect(result, oid, lock_class, method, input);
  };
  const auto held = [](const std::string& cookie, std::string_view tag) {
    return encode_assert_locked(rbd_lock_name, LockType::exclusive, cookie,
                                tag);
  };
  const auto rename = [](std::uint64_t from, std::uint64_t to) {
    return encode_set_lock_cookie(rbd_lock_name, LockType::exclusive,
                                  rbd_lock_cookie(from), rbd_lock_tag,
                                  rbd_lock_cookie(to));
  };
  expect(0, lock_method_lock,
         encode_lock(rbd_lock_name, LockType::exclusive, rbd_lock_cookie(1),
                     rbd_lock_tag, ""));
  expect(0, lock_method_assert_locked, held(rbd_lock_cookie(1), rbd_lock_tag));
  expect(-EBUSY, lock_method_assert_locked,
         held(rbd_lock_cookie(2), rbd_lock_tag));
  expect(-EBUSY, lock_method_assert_locked, held(rbd_lock_cookie(1), ""));
  expect(-EBUSY, lock_method_set_cookie, rename(2, 3));
  expect(-EBUSY, lock_method_set_cookie, rename(1, 1));
  expect(0, lock_method_set_cookie, rename(1, 12));
  expect(-EBUSY, lock_method_assert_locked,
         held(rbd_lock_cookie(1), rbd_lock_tag));
  expect(0, lock_method_assert_locked, held(rbd_lock_cookie(12), rbd_lock_tag));
  const LockInfo info = decode_lock_info(
      pool.ask(oid, lock_class, lock_method_get_info,
               encode_get_lock_info(rbd_lock_name)));
  require(info.holders.size() == 1 && info.tag == rbd_lock_tag &&
              parse_rbd_lock_cookie(info.holders[0].cookie) ==
                  std::uint64_t{12},
          "get_info after set_cookie");
  pool.remove(oid);
}

void check_flags(Pool& pool, const std::string& header) {
  const auto flags = [&] {
    return decode_get_flags(pool.ask(header, rbd_class, "get_flags",
                                     encode_snap_id(snap_head)));
  };
  require(flags() == 0, "the image has flags already");
  const std::uint64_t all = flag_object_map_invalid | flag_fast_diff_invalid;
  const auto set = [&](std::uint64_t value, std::uint64_t mask) {
    pool.expect(0, header, rbd_class, "set_flags",
                encode_set_flags(snap_head, value, mask));
  };
  set(all, all);
  require(flags() == all, "set_flags sets");
  set(0, flag_fast_diff_invalid);
  require(flags() == flag_object_map_invalid, "set_flags masks");
  set(0, all);
  require(flags() == 0, "set_flags clears");
}

void check_copyup(Pool& pool) {
  const std::string oid = "rbd-classes.data";
  const auto made = [&](std::string_view method, const std::string& input,
                        int result, const std::string& want) {
    pool.remove(oid);
    pool.expect(result, oid, rbd_class, method, input);
    if (result == 0)
      require(pool.read(oid) == want, std::string(method) + ": the content");
  };
  made("copyup", "some data", 0, "some data");
  made("copyup", "", 0, "");
  const std::vector<ObjectRange> extents = {{2, 3}, {8, 1}};
  made("sparse_copyup", encode_sparse_copyup(extents, "abcd"), 0,
       std::string("\0\0abc\0\0\0d", 9));
  made("sparse_copyup", encode_sparse_copyup({}, ""), 0, "");
  made("sparse_copyup", encode_sparse_copyup(extents, "abc"), -EINVAL, "");
  // An object that exists stays what it is.
  made("copyup", "first", 0, "first");
  pool.expect(0, oid, rbd_class, "copyup", "second");
  require(pool.read(oid) == "first", "copyup of an object that exists");
  pool.expect(0, oid, rbd_class, "sparse_copyup",
              encode_sparse_copyup(extents, "abcd"));
  require(pool.read(oid) == "first", "sparse_copyup of one that exists");
  pool.remove(oid);
}

void check_map(const std::string& pool_name, const std::string& id,
               std::uint64_t objects) {
  const std::string oid = format2_object_map_oid(id, snap_head);
  Pool pool(pool_name);
  {
    // Its lock outlives it.
    Pool dead(pool_name);
    dead.expect(0, oid, lock_class, lock_method_lock,
                encode_lock(rbd_lock_name, LockType::exclusive, "", "", ""));
  }
  const auto start = std::chrono::steady_clock::now();
  const auto map = ObjectMap::open(*pool.store, id, objects, limit);
  std::printf("opened a map of %llu objects in %lld us\n",
              static_cast<unsigned long long>(objects),
              static_cast<long long>(
                  std::chrono::duration_cast<std::chrono::microseconds>(
                      std::chrono::steady_clock::now() - start)
                      .count()));
  require(map->objects() == objects, "the size of the map");

  const std::string prefix = decode_get_object_prefix(pool.ask(
      format2_header_oid(id), rbd_class, "get_object_prefix", ""));
  // A few neighbours and the ends.
  std::vector<std::uint64_t> places;
  for (std::uint64_t i = 0; i < 12; ++i) places.push_back(i + i / 4);
  for (std::uint64_t i = 1; i <= 4; ++i) places.push_back(objects - i);
  std::vector<std::mutex> guards(places.size());
  std::mutex error_mutex;
  std::string error;
  const auto run = [&](unsigned seed) {
    std::mt19937 random(seed);
    for (int round = 0; round < 60; ++round) {
      const std::size_t at = random() % places.size();
      const std::uint64_t n = places[at];
      const std::string data = format2_data_oid(prefix, n);
      const std::scoped_lock guard(guards[at]);
      if (random() % 3 != 0) {
        map->mark_exists(n, 1);
        const char byte = 'x';
        const ConstPiece piece{&byte, 1};
        WriteOp op;
        op.write(0, {&piece, 1});
        check(pool.store->write(data, op, SnapContext{})->wait(), data);
      } else {
        map->begin_removal(n, 1);
        pool.remove(data);
        map->end_removal(n, 1);
      }
    }
  };
  {
    std::vector<std::jthread> threads;
    for (unsigned seed = 0; seed < 8; ++seed)
      threads.emplace_back([&, seed] {
        try {
          run(seed);
        } catch (const std::exception& e) {
          const std::scoped_lock lock(error_mutex);
          error = e.what();
        }
      });
  }
  require(error.empty(), error);
  const ObjectStates stored = decode_object_map(pool.read(oid));
  require(stored.size() == objects, "the size of the map at the end");
  std::size_t exist = 0;
  for (std::uint64_t n = 0; n < objects; ++n) {
    require(stored[n] == map->state(n),
            "object " + std::to_string(n) + " differs in memory");
    if (stored[n] != State::nonexistent) ++exist;
  }
  std::uint64_t size = 0;
  for (const std::uint64_t n : places) {
    const int r =
        pool.store->stat(format2_data_oid(prefix, n), &size, snap_head)
            ->wait();
    require((r == 0) == (stored[n] == State::exists),
            "object " + std::to_string(n) + ": the map is wrong");
  }
  require(exist > 0 && exist < places.size(), "some objects exist");
  map->close();
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::vector<std::string> args(argv + 1, argv + argc);
    if (args.size() == 3 && args[1] == "methods") {
      Pool pool(args[0]);
      check_map_methods(pool);
      check_lock_methods(pool);
      check_flags(pool, args[2]);
      check_copyup(pool);
    } else if (args.size() == 4 && args[1] == "map") {
      check_map(args[0], args[2], std::stoull(args[3]));
    } else {
      std::fprintf(stderr,
                   "usage: rbd-classes POOL methods HEADER\n"
                   "       rbd-classes POOL map IMAGE-ID OBJECTS\n");
      return 1;
    }
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "rbd-classes: %s\n", e.what());
    return 1;
  }
}
