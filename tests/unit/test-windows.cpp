// SPDX-License-Identifier: BSD-3-Clause
//
// A process that stops between any two steps of what it does to an image of
// format 2, with object maps, snapshots and a parent.
//
// Each path is carried out again and again; the first time nothing of it
// reaches the pool, then one operation, then two, until nothing is cut off.
// So every window that is written down in object_change.hpp, copy_up.hpp and
// object_map.hpp is visited, and those that nobody has thought of too.  After each stop
// another client, who sees what the pool has, must find
//   - each object as it was before, or as it is to be; nothing else,
//   - the snapshots as they were,
//   - no object that a map calls nonexistent, no hole over data,
//   - no object that a map says exists, where only the parent has it:
//     librbd's flatten believes that, and the parent's data would be gone,
// and must be able to do the same again, completely.
//
// The same must hold where one operation fails, or is carried out and its
// reply lost, and the process goes on: without an object map, if it was that
// which failed, after it has said in the header that nobody is to believe it.

#include <cppunit/TestFixture.h>
#include <cppunit/extensions/HelperMacros.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "image/image.hpp"
#include "image/ownership/exclusive_lock.hpp"
#include "image/ownership/object_map.hpp"
#include "no-blocklister.hpp"
#include "object-map-methods.hpp"
#include "rados/error.hpp"
#include "rados/fault_store.hpp"
#include "rados/memory_store.hpp"
#include "rbd/encoding.hpp"
#include "rbd/format2.hpp"
#include "rbd/object_map.hpp"

namespace {

using namespace nbdrados;
using namespace std::chrono_literals;
using Kind = FaultStore::Kind;
using State = ObjectState;

constexpr std::uint64_t K = 1024;
constexpr std::uint64_t object_size = 16 * K;
constexpr std::uint64_t objects = 8;
constexpr std::uint64_t image_size = objects * object_size;
constexpr std::uint64_t overlap = 6 * object_size + 5 * K;
constexpr auto to_free = Image::Zero::free;
const std::string id = "img";

/// The OSD's methods, as far as the paths need them.  Locks are always given:
/// what they are for is tested elsewhere.
class Pool : public MemoryStore {
 public:
  Pool() : MemoryStore(options()) {
    for (const char* method :
         {"lock", "unlock", "assert_locked", "break_lock", "set_cookie"})
      on_exec("lock", method, [](auto& object, auto, auto&) {
        if (!object) object.emplace();
        return 0;
      });
    add_object_map_methods(*this);
    // ceph: src/cls/rbd/cls_rbd.cc, copyup
    on_exec("rbd", "copyup", [](auto& object, auto in, auto&) {
      if (object) return 0;
      object.emplace();
      object->data.write(0, in);
      return 0;
    });
    on_exec("rbd", "sparse_copyup", [this](auto& object, auto in, auto&) {
      if (!knows_sparse) return -EOPNOTSUPP;
      ++sparse_copies;
      if (object) return 0;
      object.emplace();
      Decoder d(in, "sparse_copyup");
      std::vector<ObjectRange> extents;
      for (std::uint32_t n = d.u32("extents"); n != 0; --n) {
        const std::uint64_t offset = d.u64("offset");
        extents.push_back({offset, d.u64("length")});
      }
      const std::string data(d.string("data"));
      std::size_t at = 0;
      for (const ObjectRange& e : extents) {
        object->data.write(e.offset, data.substr(at, e.length));
        at += e.length;
      }
      CPPUNIT_ASSERT_EQUAL(data.size(), at);
      return 0;
    });
    put("header", MemoryObject{});
  }
  bool knows_sparse = true;
  int sparse_copies = 0;

 private:
  static Options options() {
    Options o;
    o.map_granularity = 1;
    return o;
  }
};

/// Is there where the header's flags say that a map is invalid.
std::string invalid_flag(SnapId snap) {
  return "invalid." + std::to_string(snap);
}

/// What an image is in a test.
struct Setup {
  std::string prefix = "data";
  Layout layout = Layout(object_size, object_size, 1);
  View view = {.size = image_size};
  bool writable = true;
  /// Of the parent; none: there is none.
  std::optional<Layout> parent;
  /// 0, or why the header cannot be read.
  std::shared_ptr<int> load_error = std::make_shared<int>(0);
};

class WindowFormat final : public ImageFormat {
 public:
  WindowFormat(ObjectStore& store, const Setup& setup)
      : store_(store),
        setup_(setup),
        traits_{.name = "pool/image",
                .format = "test format",
                .layout = setup.layout,
                .object_prefix = setup.prefix,
                .name_digits = 4,
                .header_oid = setup.writable ? "header" : "",
                .details = ""} {
    if (setup.writable)
      lock_ = std::make_unique<ExclusiveLock>(store, "header", blocklister_,
                                              ExclusiveLock::Options{});
  }
  const ImageTraits& traits() const override { return traits_; }
  View load() override {
    if (*setup_.load_error != 0) throw Error(*setup_.load_error, "no header");
    View view = setup_.view;
    view.mappable = mappable();
    view.snaps_mapped = setup_.view.mappable;
    return view;
  }
  ExclusiveLock* lock() noexcept override { return lock_.get(); }
  std::shared_ptr<ObjectMap> open_map(std::uint64_t count) override {
    return ObjectMap::open(store_, id, count, 10s);
  }
  std::shared_ptr<const ObjectStates> read_map() override {
    std::string reply;
    const int r = store_
                      .exec(format2_object_map_oid(id, setup_.view.snap), "rbd",
                            "object_map_load", {}, &reply)
                      ->wait();
    if (!mappable() || r < 0) return nullptr;
    return std::make_shared<const ObjectStates>(decode_object_map(reply));
  }
  void invalidate_map(SnapId snap) override {
    // Who has stopped cannot even say this.
    const int r =
        store_.write(invalid_flag(snap), WriteOp().create(false), {})->wait();
    if (r < 0) throw Error(-r, "cannot mark the map as invalid");
  }
  std::unique_ptr<Pending> update_snapshot_map(SnapId snap, std::uint64_t n,
                                               State state, State current,
                                               std::string* request) override {
    *request = encode_object_map_update(n, n + 1, state, current);
    return store_.write(
        format2_object_map_oid(id, snap),
        WriteOp().assert_exists().exec("rbd", "object_map_update", *request),
        {});
  }
  std::unique_ptr<ImageFormat> open_parent(const ParentSpec&) override {
    Setup parent;
    parent.prefix = "parent";
    parent.layout = *setup_.parent;
    parent.view = {.size = image_size};
    parent.writable = false;
    return std::make_unique<WindowFormat>(store_, parent);
  }
  ObjectStore& header_store() override { return store_; }
  ObjectStore& data_store() override { return store_; }

 private:
  bool mappable() {
    std::uint64_t size = 0;
    return setup_.view.mappable &&
           store_.stat(invalid_flag(setup_.view.snap), &size, snap_head)
                   ->wait() == -ENOENT;
  }

  ObjectStore& store_;
  const Setup setup_;
  const ImageTraits traits_;
  NoBlocklister blocklister_;
  std::unique_ptr<ExclusiveLock> lock_;
};

std::unique_ptr<Image> open(ObjectStore& store, const Setup& setup) {
  ImageOptions how;
  how.writable = setup.writable;
  how.workers = std::make_shared<WorkerPool>(1);
  return std::make_unique<Image>(std::make_unique<WindowFormat>(store, setup),
                                 std::move(how));
}

std::string read_all(Image& image) {
  std::string data(image_size, '?');
  image.read(data.data(), data.size(), 0);
  return data;
}

/// One path: how the image is made, and what is done to it.
struct Path {
  Setup setup;
  std::vector<SnapId> snaps;  // ascending
  /// What is written before the snapshot n of `snaps`, and (-1) after all of
  /// them.
  std::function<void(Image& image, int n)> fill = [](Image&, int) {};
  /// One after the other.
  std::vector<std::function<void(Image&)>> run;
  /// Operations that the path takes at least, or it does not test what it
  /// is to test.
  unsigned least = 1;
  /// That of the head is not to be believed.
  bool map_is_invalid = false;
};

class TestWindows : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(TestWindows);
  CPPUNIT_TEST(first_write);
  CPPUNIT_TEST(writes_to_several_objects);
  CPPUNIT_TEST(writes_in_order);
  CPPUNIT_TEST(writes_in_order_to_a_clone);
  CPPUNIT_TEST(removal);
  CPPUNIT_TEST(removal_with_snapshots);
  CPPUNIT_TEST(write_after_a_snapshot);
  CPPUNIT_TEST(copy_up);
  CPPUNIT_TEST(copy_up_with_snapshots);
  CPPUNIT_TEST(copy_up_with_an_invalid_map);
  CPPUNIT_TEST(copy_up_at_the_end_of_the_overlap);
  CPPUNIT_TEST(copy_up_from_another_layout);
  CPPUNIT_TEST(sparse_copy_up);
  CPPUNIT_TEST(whole_object_of_a_clone);
  CPPUNIT_TEST(trim_of_a_clone);
  CPPUNIT_TEST(zero_of_a_clone);
  CPPUNIT_TEST(without_a_map);
  CPPUNIT_TEST(late_write_beside_a_failed_copy_up);
  CPPUNIT_TEST(deleted_clone_is_not_zeros);
  CPPUNIT_TEST_SUITE_END();

  /// The pool with the image as it is before, and what is in it.
  struct World {
    Pool pool;
    std::vector<std::string> snapshots;
    std::string before;
  };

  static View view_of(const Path& path, std::size_t snapshots) {
    View view = path.setup.view;
    for (std::size_t i = 0; i < snapshots; ++i) {
      view.snapc.seq = path.snaps[i];
      view.snapc.snaps.insert(view.snapc.snaps.begin(), path.snaps[i]);
    }
    return view;
  }

  static Setup at_snapshot(const Path& path, std::size_t n) {
    Setup setup = path.setup;
    setup.view = view_of(path, path.snaps.size());
    setup.view.snap = path.snaps[n];
    setup.view.lockable = false;
    setup.writable = false;
    return setup;
  }
  static Setup head(const Path& path) {
    Setup setup = path.setup;
    setup.view = view_of(path, path.snaps.size());
    return setup;
  }

  static void prepare(const Path& path, World& world) {
    Pool& pool = world.pool;
    if (path.setup.view.mappable)
      pool.put(format2_object_map_oid(id, snap_head),
               map_object(ObjectStates(objects)));
    if (path.setup.parent) {
      Setup parent;
      parent.prefix = "parent";
      parent.layout = *path.setup.parent;
      parent.view = {.size = image_size};
      const auto image = open(pool, parent);
      std::string data(image_size, '\0');
      // Data, with a hole that is an object of the child.
      for (std::uint64_t i = 0; i < image_size; ++i)
        if (i / object_size != 4 && !sparse(i))
          data[i] = static_cast<char>('a' + i / 1000 % 26);
      image->write(data.data(), 4 * object_size, 0);
      image->write(data.data() + 5 * object_size, 3 * object_size,
                   5 * object_size);
    }
    for (std::size_t n = 0; n <= path.snaps.size(); ++n) {
      Setup setup = path.setup;
      setup.view = view_of(path, n);
      {
        const auto image = open(pool, setup);
        path.fill(*image,
                  n == path.snaps.size() ? -1 : static_cast<int>(n));
        world.before = read_all(*image);
      }
      if (n == path.snaps.size()) break;
      world.snapshots.push_back(world.before);
      // What taking a snapshot does to the maps (object_map_snap_add).
      if (!setup.view.mappable) continue;
      ObjectStates map = decode_object_map(
          pool.find(format2_object_map_oid(id, snap_head))->data.bytes());
      pool.put(format2_object_map_oid(id, path.snaps[n]), map_object(map));
      for (std::uint64_t i = 0; i < objects; ++i)
        if (map[i] == State::exists) map.set(i, State::exists_clean);
      pool.put(format2_object_map_oid(id, snap_head), map_object(map));
    }
    if (path.map_is_invalid)
      pool.put(invalid_flag(snap_head), MemoryObject{});
  }

  /// A hole within an object of the parent.
  static bool sparse(std::uint64_t offset) {
    return offset >= 5 * object_size + 4 * K &&
           offset < 5 * object_size + 12 * K;
  }

  static std::string object_of(std::uint64_t n) {
    return numbered_oid("data", n, 4);
  }

  static void check_map(Pool& pool, const Path& path, SnapId snap) {
    if (!path.setup.view.mappable || pool.find(invalid_flag(snap))) return;
    const ObjectStates map = decode_object_map(
        pool.find(format2_object_map_oid(id, snap))->data.bytes());
    for (std::uint64_t n = 0; n < objects; ++n) {
      if (pool.find(object_of(n), snap))
        CPPUNIT_ASSERT(map[n] != State::nonexistent);
      else if (path.setup.layout.image_parts(n, 0, 1)[0].image_offset <
               path.setup.view.overlap)
        CPPUNIT_ASSERT(map[n] == State::nonexistent ||
                       map[n] == State::pending);
    }
  }

  static void check_extents(Image& image, const std::string& data) {
    for (const Extent& e : image.extents(image_size, 0, false))
      if (!e.data)
        CPPUNIT_ASSERT(data.substr(e.offset, e.length)
                           .find_first_not_of('\0') == std::string::npos);
  }

  /// A flatten skips objects that exist, and afterwards snapshots have no
  /// parent either (deep-flatten).
  static void check_flattened(World& world, const Path& path, std::size_t n) {
    Setup setup = at_snapshot(path, n);
    setup.view.overlap = 0;
    const std::string data = read_all(*open(world.pool, setup));
    for (std::uint64_t o = 0; o < objects; ++o)
      if (world.pool.find(object_of(o)))
        for (const Fragment& f :
             path.setup.layout.image_parts(o, 0, object_size))
          CPPUNIT_ASSERT(data.substr(f.image_offset, f.length) ==
                         world.snapshots[n].substr(f.image_offset, f.length));
  }

  /// Whoever opens the image now.  Each object is as in `before` or as in
  /// `after`.
  static void check(World& world, const Path& path, const std::string& before,
                    const std::string& after) {
    for (std::size_t n = 0; n < path.snaps.size(); ++n) {
      const auto snapshot = open(world.pool, at_snapshot(path, n));
      CPPUNIT_ASSERT(read_all(*snapshot) == world.snapshots[n]);
      check_extents(*snapshot, world.snapshots[n]);
      check_map(world.pool, path, path.snaps[n]);
      check_flattened(world, path, n);
    }
    check_map(world.pool, path, snap_head);
    Setup setup = head(path);
    for (const bool writable : {false, true}) {
      setup.writable = writable;
      setup.view.lockable = path.setup.view.lockable && writable;
      const auto image = open(world.pool, setup);
      const std::string now = read_all(*image);
      for (std::uint64_t n = 0; n < objects; ++n) {
        std::string part;
        std::string old_part;
        std::string new_part;
        for (const Fragment& f :
             path.setup.layout.image_parts(n, 0, object_size)) {
          part += now.substr(f.image_offset, f.length);
          old_part += before.substr(f.image_offset, f.length);
          new_part += after.substr(f.image_offset, f.length);
        }
        CPPUNIT_ASSERT(part == new_part || part == old_part);
      }
      check_extents(*image, now);
    }
  }

  /// Returns how many operations the path takes.
  static unsigned visit(const Path& path) {
    // The image before all, and after each part of the path.
    std::vector<std::string> states;
    {
      World world;
      prepare(path, world);
      states.push_back(world.before);
      {
        const auto image = open(world.pool, head(path));
        for (const auto& part : path.run) {
          part(*image);
          states.push_back(read_all(*image));
        }
      }
      CPPUNIT_ASSERT(states.front() != states.back());
      check(world, path, states.back(), states.back());
    }
    unsigned steps = 0;
    while (cut(path, states, steps,
               {.times = FaultStore::always, .error = ESHUTDOWN}))
      ++steps;
    CPPUNIT_ASSERT_MESSAGE("only " + std::to_string(steps) + " operations",
                           steps >= path.least);
    // One only; and what was sent together with it is carried out.
    for (const FaultStore::Fault& fault : std::vector<FaultStore::Fault>{
             {.error = ESHUTDOWN},
             {.error = EIO},
             {.error = EIO, .carried_out = true}})
      for (unsigned n = 0; cut(path, states, n, fault);) ++n;
    return steps;
  }

  /// Carries the path out with a fault after `steps` operations.  False: it
  /// takes no more than these.
  static bool cut(const Path& path, const std::vector<std::string>& states,
                  unsigned steps, FaultStore::Fault fault) {
    CPPUNIT_ASSERT(steps < 200);
    World world;
    prepare(path, world);
    std::size_t done = 0;
    bool hit = false;
    {
      FaultStore store(world.pool);
      auto image = open(store, head(path));
      fault.kind = Kind::write;
      fault.skip = steps;
      store.inject(fault);
      bool failed = false;
      try {
        for (const auto& part : path.run) {
          part(*image);
          ++done;
        }
      } catch (const Error& e) {
        CPPUNIT_ASSERT_EQUAL(fault.error, e.code());
        failed = true;
      }
      hit = store.hits() != 0;
      CPPUNIT_ASSERT(hit || !failed);
      store.clear_faults();
      // Whoever is told that all is well has it all.
      if (fault.times == FaultStore::always) CPPUNIT_ASSERT_EQUAL(hit, failed);
      // Who is shut out has no say about the map.
      if (fault.error == ESHUTDOWN) {
        CPPUNIT_ASSERT(path.map_is_invalid ||
                       !world.pool.find(invalid_flag(snap_head)));
      } else {
        check(world, path, states[done], states[failed ? done + 1 : done]);
        for (const auto& part : path.run) part(*image);
        CPPUNIT_ASSERT(read_all(*image) == states.back());
        check_extents(*image, states.back());
      }
      image.reset();
      (void)store.problems();
      if (fault.error == ESHUTDOWN) {
        check(world, path, states[done], states[failed ? done + 1 : done]);
        const auto next = open(world.pool, head(path));
        for (const auto& part : path.run) part(*next);
      }
    }
    check(world, path, states.back(), states.back());
    return hit;
  }

  static Path plain() {
    Path path;
    path.setup.view.lockable = true;
    path.setup.view.mappable = true;
    path.setup.view.fast_diff = true;
    return path;
  }
  static Path clone() {
    Path path = plain();
    path.setup.view.overlap = overlap;
    path.setup.view.parent_spec = {1, "", "parent", 3};
    path.setup.parent = Layout(object_size, object_size, 1);
    return path;
  }
  static void put(Image& image, std::uint64_t offset, std::uint64_t length,
                  char c) {
    const std::string data(length, c);
    image.write(data.data(), data.size(), offset);
  }
  static void put_all(Image& image, int) { put(image, 0, image_size, 'A'); }

 public:
  void first_write() {
    Path path = plain();
    path.run = {[](Image& i) { put(i, 3 * object_size + 100, 1000, 'X'); }};
    path.least = 2;  // the map and the object
    CPPUNIT_ASSERT_EQUAL(2U, visit(path));
  }

  void writes_to_several_objects() {
    Path path = plain();
    path.fill = [](Image& i, int) { put(i, 2 * object_size, 10, 'A'); };
    path.run = {
        [](Image& i) { put(i, object_size - 10, 3 * object_size, 'X'); },
        [](Image& i) { put(i, 6 * object_size, object_size, 'Y'); },
    };
    path.least = 7;
    visit(path);
    path.setup.layout = Layout(object_size, 4 * K, 2);
    visit(path);
  }

  // The map is told of objects in advance, which a trim meets, another one
  // takes, and a flush and the end give back.
  void writes_in_order() {
    Path path = plain();
    const auto write = [](std::uint64_t n) {
      return [n](Image& i) { put(i, n * object_size + 7, 100, 'X'); };
    };
    path.run = {
        write(1), write(2),
        [](Image& i) { i.zero(3 * object_size, object_size, to_free); },
        write(3), write(4),
        [](Image& i) { i.flush(); },
        write(6), write(7),
    };
    path.least = 12;
    visit(path);
  }

  // What the parent has is not told of, whatever is written before it.
  void writes_in_order_to_a_clone() {
    Path path = clone();
    path.snaps = {4};
    path.fill = [](Image& i, int n) {
      if (n == 0) put(i, 0, 2 * object_size, 'A');
    };
    path.run = {
        [](Image& i) { put(i, 7, 100, 'X'); },
        [](Image& i) { put(i, object_size + 7, 100, 'Y'); },
    };
    path.least = 4;  // two maps and two objects
    CPPUNIT_ASSERT_EQUAL(4U, visit(path));
  }

  void removal() {
    Path path = plain();
    path.fill = put_all;
    path.run = {
        [](Image& i) { i.zero(4 * object_size, object_size, to_free); },
    };
    path.least = 6;  // pending, four objects, nonexistent
    CPPUNIT_ASSERT_EQUAL(6U, visit(path));
    path.run = {
        [](Image& i) { i.trim(2 * object_size + 8 * K, object_size - 4 * K); },
    };
    path.least = 4;
    visit(path);
  }

  void removal_with_snapshots() {
    Path path = plain();
    path.snaps = {4, 9};
    path.fill = put_all;
    path.run = {
        [](Image& i) { i.zero(4 * object_size, object_size, to_free); },
        [](Image& i) { put(i, 2 * object_size, 100, 'X'); },
    };
    path.least = 8;
    visit(path);
  }

  void write_after_a_snapshot() {
    Path path = plain();
    path.snaps = {4};
    path.fill = [](Image& i, int n) {
      if (n == 0) put(i, 0, image_size, 'A');
    };
    path.run = {
        [](Image& i) { put(i, 100, 100, 'X'); },
        [](Image& i) { put(i, 5 * object_size, object_size, 'Y'); },
        [](Image& i) { i.zero(2000, 3 * object_size + 1, to_free); },
        [](Image& i) {
          i.zero(2000, 4 * object_size + 1, Image::Zero::allocate);
        },
    };
    path.least = 8;
    visit(path);
  }

  void copy_up() {
    Path path = clone();
    path.run = {
        [](Image& i) { put(i, object_size + 7, 100, 'X'); },
        [](Image& i) { put(i, 4 * object_size + 7, 100, 'Y'); },
        [](Image& i) { put(i, 7 * object_size + 7, 100, 'Z'); },
    };
    path.least = 6;
    visit(path);
  }

  void copy_up_with_snapshots() {
    Path path = clone();
    path.snaps = {4, 9, 12};
    path.fill = [](Image& i, int n) {
      if (n == 1) put(i, 3 * object_size, 50, 'B');
    };
    path.run = {
        [](Image& i) { put(i, object_size + 7, 100, 'X'); },
        [](Image& i) { put(i, 3 * object_size + 7, 100, 'Y'); },
        [](Image& i) { put(i, 4 * object_size + 7, 100, 'Z'); },
    };
    // Maps of three snapshots and of the head, the copy, the change; and the
    // others.
    path.least = 10;
    visit(path);
  }

  // The head's map is; those of the snapshots must stay right.
  void copy_up_with_an_invalid_map() {
    Path path = clone();
    path.map_is_invalid = true;
    path.snaps = {4, 9};
    path.run = {
        [](Image& i) { put(i, object_size + 7, 100, 'X'); },
        [](Image& i) { put(i, 3 * object_size, object_size, 'Y'); },
    };
    path.least = 8;
    visit(path);
  }

  void copy_up_at_the_end_of_the_overlap() {
    for (const bool snapshots : {false, true}) {
      Path path = clone();
      if (snapshots) path.snaps = {4};
      path.run = {
          [](Image& i) { put(i, 6 * object_size + 4 * K, 2 * K, 'X'); },
      };
      path.least = snapshots ? 4 : 2;
      visit(path);
      path.run = {
          [](Image& i) { put(i, 6 * object_size + 8 * K, 10, 'X'); },
      };
      visit(path);
    }
  }

  void copy_up_from_another_layout() {
    for (const bool snapshots : {false, true}) {
      Path path = clone();
      path.setup.parent = Layout(8 * K, 2 * K, 3);
      path.setup.layout = Layout(object_size, 4 * K, 2);
      if (snapshots) path.snaps = {4};
      path.run = {
          [](Image& i) { put(i, 10 * K, 7 * K, 'X'); },
          [](Image& i) { put(i, 60 * K, 40 * K, 'Y'); },
      };
      path.least = 6;
      visit(path);
    }
  }

  void sparse_copy_up() {
    for (const bool snapshots : {false, true}) {
      Path path = clone();
      if (snapshots) path.snaps = {4};
      path.run = {
          [](Image& i) { put(i, 5 * object_size + 100, 100, 'X'); },
      };
      path.least = snapshots ? 4 : 2;
      visit(path);
      for (const bool knows : {true, false}) {
        World world;
        world.pool.knows_sparse = knows;
        prepare(path, world);
        std::string wanted = world.before;
        wanted.replace(5 * object_size + 100, 100, 100, 'X');
        {
          const auto image = open(world.pool, head(path));
          path.run[0](*image);
          CPPUNIT_ASSERT(read_all(*image) == wanted);
        }
        check(world, path, wanted, wanted);
        // What the parent has not, takes no space.
        const auto ranges =
            world.pool.find(object_of(5))->data.written(0, object_size);
        CPPUNIT_ASSERT_EQUAL(knows ? 1 : 0, world.pool.sparse_copies);
        CPPUNIT_ASSERT(
            ranges == (knows ? std::vector<ObjectRange>{{0, 4 * K},
                                                        {12 * K, 4 * K}}
                             : std::vector<ObjectRange>{{0, 16 * K}}));
      }
    }
  }

  void whole_object_of_a_clone() {
    for (const bool snapshots : {false, true}) {
      Path path = clone();
      if (snapshots) path.snaps = {4};
      path.run = {
          [](Image& i) { put(i, 2 * object_size, object_size, 'X'); },
      };
      path.least = snapshots ? 4 : 2;
      visit(path);
    }
  }

  void trim_of_a_clone() {
    for (const bool snapshots : {false, true}) {
      Path path = clone();
      path.fill = [](Image& i, int) { put(i, object_size, 100, 'B'); };
      if (snapshots) path.snaps = {4};
      path.run = {
          [](Image& i) { i.trim(4 * object_size, object_size); },
          [](Image& i) { i.trim(object_size, 7 * object_size); },
          [](Image& i) { put(i, 2 * object_size, 10, 'X'); },
      };
      path.least = 5;
      visit(path);
    }
  }

  void zero_of_a_clone() {
    for (const auto how : {Image::Zero::free, Image::Zero::allocate})
      for (const bool snapshots : {false, true}) {
        Path path = clone();
        path.fill = [](Image& i, int) { put(i, object_size, 100, 'B'); };
        if (snapshots) path.snaps = {4, 5};
        path.run = {
            [how](Image& i) {
              i.zero(2 * object_size + 3 * K, object_size - 2 * K, how);
            },
            [how](Image& i) { i.zero(K, 4 * object_size, how); },
            [how](Image& i) { i.zero(20 * K, 6 * object_size, how); },
        };
        path.least = 6;
        visit(path);
      }
  }

  // What took too long can happen later, whatever else the request met.
  void late_write_beside_a_failed_copy_up() {
    Path path = clone();
    path.fill = [](Image& i, int) {
      i.trim(object_size, object_size);
      put(i, object_size, 100, 'B');
    };
    World world;
    prepare(path, world);
    FaultStore store(world.pool);
    auto image = open(store, head(path));
    const std::string oid = object_of(1);
    store.inject({.kind = Kind::write, .oid = oid, .error = ETIMEDOUT});
    store.inject({.kind = Kind::read, .oid = "parent.0002", .error = EIO});
    try {
      put(*image, object_size + 8 * K, 9 * K, 'X');
      CPPUNIT_FAIL("the parent could not be read");
    } catch (const Error& e) {
      CPPUNIT_ASSERT_EQUAL(EIO, e.code());
    }
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{2}, store.hits());
    check_extents(*image, read_all(*image));
    // Now it does.
    const std::string late(8 * K, 'X');
    const ConstPiece piece{late.data(), late.size()};
    WriteOp op;
    op.write(8 * K, std::span(&piece, 1));
    CPPUNIT_ASSERT_EQUAL(0, world.pool.write(oid, op, {})->wait());
    check_extents(*image, read_all(*image));
    image.reset();
    CPPUNIT_ASSERT(store.problems().empty());
  }

  // What is known of a parent says nothing about its child.
  void deleted_clone_is_not_zeros() {
    const Path path = clone();
    World world;
    prepare(path, world);
    Setup setup = head(path);
    setup.writable = false;  // and not watched
    setup.view.lockable = false;
    setup.view.mappable = false;
    const auto image = open(world.pool, setup);
    check_extents(*image, read_all(*image));
    std::string data(100, '?');
    image->read(data.data(), data.size(), 4 * object_size);
    CPPUNIT_ASSERT(data == std::string(100, '\0'));
    *setup.load_error = EIO;
    const auto error_of = [](auto&& request) {
      try {
        request();
      } catch (const Error& e) {
        return e.code();
      }
      return 0;
    };
    CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] {
                           image->read(data.data(), 100, 4 * object_size);
                         }));
    *setup.load_error = 0;
    image->refresh();
    *setup.load_error = EIO;
    CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] {
                           (void)image->extents(100, 4 * object_size, false);
                         }));
  }

  void without_a_map() {
    for (const bool snapshots : {false, true}) {
      Path path = clone();
      path.setup.view.mappable = false;
      path.setup.view.fast_diff = false;
      path.fill = [](Image& i, int) { put(i, object_size, 100, 'B'); };
      if (snapshots) path.snaps = {4, 5};
      path.run = {
          [](Image& i) { put(i, object_size / 2, 2 * object_size, 'X'); },
          [](Image& i) { i.trim(2 * object_size, 5 * object_size); },
          [](Image& i) { i.zero(5000, 100, to_free); },
      };
      path.least = 5;
      visit(path);
    }
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(TestWindows);

}  // namespace
