// SPDX-License-Identifier: BSD-3-Clause
//
// Snapshots that are made and removed, on a model of the object class `rbd`
// (ceph: src/cls/rbd/cls_rbd.cc): the steps, clients that stop between any two
// of them, steps that fail, and who does it where another client has the lock.

#include <cppunit/extensions/HelperMacros.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "image/ownership/exclusive_lock.hpp"
#include "object-map-methods.hpp"
#include "rados/error.hpp"
#include "rados/fault_store.hpp"
#include "rados/memory_store.hpp"
#include "rbd/encoding.hpp"
#include "rbd/features.hpp"
#include "rbd/format1.hpp"
#include "rbd/format2.hpp"
#include "rbd/object_map.hpp"
#include "rbd/watch_notify.hpp"
#include "snapshots/snapshots.hpp"

using namespace nbdrados;
using namespace std::chrono_literals;

namespace {

using Kind = FaultStore::Kind;
using State = ObjectState;
using Object = std::optional<MemoryObject>;

constexpr std::uint64_t objects = 4;
const std::string id = "img";
const std::string header_oid = format2_header_oid(id);
constexpr std::uint64_t all_features =
    feature_layering | feature_exclusive_lock | feature_object_map |
    feature_fast_diff;
constexpr std::uint64_t invalid =
    flag_object_map_invalid | flag_fast_diff_invalid;
/// The snapshot that the image has.
constexpr SnapId s1 = 1;

struct Snapshot {
  std::string name;
  bool in_trash = false;
  std::uint64_t flags = 0;
  bool has_parent = false;
  std::uint32_t children = 0;
  bool is_protected = false;
};

/// The header, which the methods see under the mutex of the store.
struct Header {
  std::uint64_t features = all_features;
  std::uint64_t flags = 0;
  bool has_parent = false;
  SnapId seq = s1;
  std::map<SnapId, Snapshot> snaps = {{s1, {.name = "s1"}}};
  /// So many times is another client quicker.
  int stale = 0;
  bool full = false;
  bool knows_trash = true;
};

/// A pool, or two, as the OSDs have them; clients come and go.
class Osds {
 public:
  Osds() {
    memory.put(header_oid, MemoryObject{});
    add_object_map_methods(memory);
    add_reading();
    add_changes();
    add_maps();
    add_locks();
    SnapId first = 0;
    CPPUNIT_ASSERT_EQUAL(0, data().make_snap_id(&first));
    CPPUNIT_ASSERT_EQUAL(s1, first);
    // Since then the second has changed, and the third is new.
    put_map(s1, {State::exists, State::exists, State::nonexistent,
                 State::nonexistent});
    put_map(snap_head, {State::exists_clean, State::exists, State::exists,
                        State::nonexistent});
  }

  MemoryStore& data() { return elsewhere ? other : memory; }
  void put_map(SnapId snap, const std::vector<State>& states) {
    ObjectStates map(states.size());
    for (std::size_t i = 0; i < states.size(); ++i) map.set(i, states[i]);
    memory.put(format2_object_map_oid(id, snap), map_object(map));
  }
  std::optional<ObjectStates> map(SnapId snap) {
    const auto object = memory.find(format2_object_map_oid(id, snap));
    if (!object || object->data.size() == 0) return std::nullopt;
    return decode_object_map(object->data.bytes());
  }
  void set_state(std::uint64_t object_no, State state) {
    ObjectStates now = map(snap_head).value();
    now.set(object_no, state);
    memory.put(format2_object_map_oid(id, snap_head), map_object(now));
  }
  std::optional<SnapId> find(const std::string& name) {
    for (const auto& [snap, s] : header.snaps)
      if (s.name == name || (s.in_trash && s.name == "uuid of " + name))
        return snap;
    return std::nullopt;
  }

  Header header;
  MemoryStore memory;
  MemoryStore other;  // the data pool
  bool elsewhere = false;
  /// Another client has the image's lock.
  std::atomic<bool> taken{false};

 private:
  static SnapId snap_of(std::string_view in) {
    return Decoder(in, "snapshot").u64("id");
  }
  void on(const char* name,
          std::function<int(std::string_view, Encoder&)> reply) {
    memory.on_exec("rbd", name, [reply](Object& object, auto in, auto& out) {
      if (!object) return -ENOENT;
      Encoder reply_to;
      const int r = reply(in, reply_to);
      out = reply_to.take();
      return r;
    });
  }

  void add_reading() {
    on("get_size", [this](auto in, Encoder& out) {
      if (!exists(snap_of(in))) return -ENOENT;
      out.u8(22).u64(objects << 22);
      return 0;
    });
    on("get_features", [this](auto, Encoder& out) {
      out.u64(header.features).u64(0);
      return 0;
    });
    on("get_object_prefix", [](auto, Encoder& out) {
      out.string("rbd_data.img");
      return 0;
    });
    on("get_data_pool", [](auto, Encoder& out) {
      out.i64(2);
      return 0;
    });
    on("get_snapcontext", [this](auto, Encoder& out) {
      out.u64(header.seq)
          .u32(static_cast<std::uint32_t>(header.snaps.size()));
      for (auto it = header.snaps.rbegin(); it != header.snaps.rend(); ++it)
        out.u64(it->first);
      return 0;
    });
    on("get_flags", [this](auto in, Encoder& out) {
      const SnapId snap = snap_of(in);
      if (!exists(snap)) return -ENOENT;
      out.u64(snap == snap_head ? header.flags : header.snaps[snap].flags);
      return 0;
    });
    on("parent_get", [this](auto, Encoder& out) {
      const bool parent = header.has_parent;
      out.frame(1, 1, [&] {
        out.i64(parent ? 7 : -1).string("").string(parent ? "parent" : "");
        out.u64(parent ? 5 : snap_head);
      });
      return 0;
    });
    on("parent_overlap_get", [this](auto in, Encoder& out) {
      const SnapId snap = snap_of(in);
      if (!exists(snap)) return -ENOENT;
      const bool parent = snap == snap_head ? header.has_parent
                                            : header.snaps[snap].has_parent;
      out.u8(parent ? 1 : 0);
      if (parent) out.u64(1 << 22);
      return 0;
    });
    on("snapshot_get", [this](auto in, Encoder& out) {
      const SnapId snap = snap_of(in);
      if (!header.snaps.contains(snap)) return -ENOENT;
      const Snapshot& s = header.snaps[snap];
      out.frame(1, 1, [&] {
        out.u64(snap);
        out.frame(1, 1, [&] {
          out.u32(s.in_trash ? 2 : 0);
          if (s.in_trash) out.string(s.name.substr(8)).u32(0);
        });
        out.string(s.name).u64(objects << 22).u32(0).u32(0).u32(s.children);
      });
      return 0;
    });
  }
  bool exists(SnapId snap) const {
    return snap == snap_head || header.snaps.contains(snap);
  }

  void add_changes() {
    on("snapshot_add", [this](auto in, Encoder&) {
      Decoder d(in, "snapshot_add");
      const std::string name = d.name("name");
      const SnapId snap = d.u64("id");
      if (header.stale-- > 0) header.seq = snap + 1;
      if (snap < header.seq) return -ESTALE;
      if (header.full) return -EDQUOT;
      if (header.snaps.contains(snap) || find(name)) return -EEXIST;
      header.seq = snap;
      header.snaps[snap] = {.name = name,
                            .flags = header.flags,
                            .has_parent = header.has_parent};
      return 0;
    });
    on("snapshot_trash_add", [this](auto in, Encoder&) {
      if (!header.knows_trash) return -EOPNOTSUPP;
      const auto it = header.snaps.find(snap_of(in));
      if (it == header.snaps.end()) return -ENOENT;
      if (it->second.is_protected) return -EBUSY;
      if (std::exchange(it->second.in_trash, true)) return -EEXIST;
      it->second.name = "uuid of " + it->second.name;
      return 0;
    });
    on("snapshot_remove", [this](auto in, Encoder&) {
      const auto it = header.snaps.find(snap_of(in));
      if (it == header.snaps.end()) return -ENOENT;
      if (it->second.children != 0 || it->second.is_protected) return -EBUSY;
      header.snaps.erase(it);
      return 0;
    });
    on("set_flags", [this](auto in, Encoder&) {
      Decoder d(in, "set_flags");
      const std::uint64_t flags = d.u64("flags");
      const std::uint64_t mask = d.u64("mask");
      const SnapId snap = d.u64("snapshot");
      if (!exists(snap)) return -ENOENT;
      std::uint64_t& to =
          snap == snap_head ? header.flags : header.snaps[snap].flags;
      to = (to & ~mask) | (flags & mask);
      return 0;
    });
  }

  void add_maps() {
    memory.on_exec("rbd", "object_map_snap_add",
                   [](Object& object, auto, auto&) {
                     if (!object) return -ENOENT;
                     ObjectStates map = decode_object_map(object->data.bytes());
                     for (std::uint64_t i = 0; i < map.size(); ++i)
                       if (map[i] == State::exists)
                         map.set(i, State::exists_clean);
                     set_map(*object, map);
                     return 0;
                   });
    memory.on_exec(
        "rbd", "object_map_snap_remove", [](Object& object, auto in, auto&) {
          if (!object) return -ENOENT;
          ObjectStates map = decode_object_map(object->data.bytes());
          const ObjectStates gone = decode_object_map(in);
          for (std::uint64_t i = 0; i < map.size(); ++i)
            if (map[i] == State::exists_clean &&
                (i >= gone.size() || gone[i] == State::exists))
              map.set(i, State::exists);
          set_map(*object, map);
          return 0;
        });
  }
  static void set_map(MemoryObject& object, const ObjectStates& map) {
    object.data = map_object(map).data;
  }

  /// Those of clients here are given, as all have the same number.
  void add_locks() {
    const std::string key = "lock";
    memory.on_exec("lock", "lock", [this, key](Object& object, auto in, auto&) {
      if (!object) return -ENOENT;
      const bool image = in.find("auto ") != std::string_view::npos;
      if (image && taken) return -EBUSY;
      return object->xattrs.emplace(key, "").second ? 0 : -EEXIST;
    });
    memory.on_exec("lock", "unlock", [key](Object& object, auto, auto&) {
      return object && object->xattrs.erase(key) != 0 ? 0 : -ENOENT;
    });
    memory.on_exec("lock", "assert_locked",
                   [key](Object& object, auto, auto&) {
                     return object && object->xattrs.contains(key) ? 0
                                                                   : -EBUSY;
                   });
    memory.on_exec("lock", "get_info", [this](Object&, auto, auto& out) {
      Encoder e;
      e.frame(1, 1, [&] {
        e.u32(taken ? 1 : 0);
        if (taken) {
          e.frame(1, 1, [&] { e.u8(8).i64(4200).string("auto 99"); });
          e.frame(1, 1, [&] {
            e.u32(0).u32(0);
            e.u8(1);
            e.frame(1, 1, [&] {
              e.u32(1).u32(4200);
              Encoder socket;
              socket.u16(2).u16(0).u32(0x0100007f).u64(0);
              e.string(socket.str());
            });
            e.string("");
          });
        }
        e.u8(1).string("internal");
      });
      out = e.take();
      return 0;
    });
  }
};

/// A client of these pools.
class Client final : public Cluster {
 public:
  explicit Client(Osds& osds) : osds_(osds), faults(osds.memory) {}
  std::shared_ptr<ObjectStore> open_pool(const std::string&,
                                         const std::string& ns,
                                         Purpose purpose) override {
    return open_pool(1, ns, purpose);
  }
  std::shared_ptr<ObjectStore> open_pool(std::int64_t pool, const std::string&,
                                         Purpose) override {
    if (pool == 2) return {std::shared_ptr<void>(), &osds_.other};
    return {std::shared_ptr<void>(), &faults};
  }
  std::chrono::milliseconds timeout() const override { return limit; }
  std::uint64_t client_id() const override { return 4100; }
  void blocklist(const std::string&, std::chrono::seconds) override {
    CPPUNIT_FAIL("nobody is to be blocklisted");
  }
  void wait_for_latest_osdmap() override {}

 private:
  Osds& osds_;

 public:
  FaultStore faults;
  std::chrono::milliseconds limit = 300ms;
};

const ImageSpec spec{.pool = "p", .name_space = "", .image = "vm",
                     .snapshot = ""};

/// What a process does with snapshots.
class Process {
 public:
  explicit Process(Osds& osds, FormatChoice format = FormatChoice::format2)
      : client(std::make_shared<Client>(osds)),
        snapshots(client,
                  {.pool = 1,
                   .name_space = "",
                   .format = format,
                   .image = format == FormatChoice::format2 ? id : "old"},
                  spec, [this](const std::string& line) { log += line; }) {}
  ~Process() { (void)client->faults.problems(); }

  /// The code of the Error, 0: none.
  int error_of(const std::function<void()>& run) {
    try {
      run();
    } catch (const Error& e) {
      message = e.what();
      return e.code();
    }
    return 0;
  }
  int create(const std::string& name = "new") {
    return error_of([&] { made = snapshots.create(name); });
  }
  int remove(SnapId snap, const std::string& name = "new") {
    return error_of([&] { snapshots.remove(snap, name); });
  }

  std::shared_ptr<Client> client;
  Snapshots snapshots;
  SnapId made = 0;
  std::string message;
  std::string log;
};

/// What must be so at any time.  `changed`: the fourth object has been made
/// since the new snapshot.
void check(Osds& osds, bool changed) {
  const Header& header = osds.header;
  const std::set<SnapId> ids = osds.data().snap_ids();
  // What can be opened by its name can be read.
  for (const auto& [snap, s] : header.snaps)
    CPPUNIT_ASSERT(s.in_trash || ids.contains(snap));
  // No map is left behind.
  const std::string prefix = format2_object_map_oid(id, snap_head) + ".";
  for (const std::string& oid : osds.memory.list(
           [&](auto name) { return name.starts_with(prefix); }, {}))
    CPPUNIT_ASSERT(header.snaps.contains(
        std::stoull(oid.substr(prefix.size()), nullptr, 16)));
  const auto believed = [&](SnapId snap) -> std::optional<ObjectStates> {
    const std::uint64_t flags =
        snap == snap_head ? header.flags : header.snaps.at(snap).flags;
    return (flags & invalid) != 0 ? std::nullopt : osds.map(snap);
  };
  const auto head = believed(snap_head);
  const auto found = osds.find("new");
  const auto middle = found ? believed(*found) : std::nullopt;
  for (const auto* map : {&head, &middle})
    for (std::uint64_t i = 0; *map && i < 3; ++i)
      CPPUNIT_ASSERT((**map)[i] != State::nonexistent);
  if (head && changed)
    CPPUNIT_ASSERT((*head)[3] == State::exists);
  // What has changed since s1 is found, whatever snapshots there are.
  for (const std::uint64_t i : {1, 2}) {
    const bool in_head = !head || (*head)[i] == State::exists;
    const bool in_middle =
        found && (!middle || (*middle)[i] == State::exists);
    CPPUNIT_ASSERT(in_head || in_middle);
  }
}

/// As if nothing had been.
void check_clean(Osds& osds, bool changed) {
  check(osds, changed);
  CPPUNIT_ASSERT_EQUAL(std::size_t{1}, osds.header.snaps.size());
  CPPUNIT_ASSERT(osds.header.snaps.contains(s1));
  CPPUNIT_ASSERT(osds.map(s1).has_value());
}

bool is_locked(Osds& osds, const std::string& oid = header_oid) {
  return osds.memory.find(oid)->xattrs.contains("lock");
}

/// The owner of the image's lock.
class Owner final : public WatchHandler {
 public:
  explicit Owner(Osds& osds)
      : osds_(osds),
        watch_(osds.memory.watch_as({.address = "127.0.0.1:0/4200",
                                     .client = 4200,
                                     .cookie = 99},
                                    header_oid, *this)) {
    osds.taken = true;
  }
  void notified(std::uint64_t notify_id, std::uint64_t cookie,
                std::string_view payload) noexcept override {
    const NotifyOp op = decode_notify(payload).op;
    std::string answer;
    if (osds_.taken && op == NotifyOp::request_lock) {
      asked_for_lock = true;
      if (on_request_lock != 1)
        answer = encode_notify_response(on_request_lock);
      if (on_request_lock == 0) osds_.taken = false;
    } else if (osds_.taken && asks_lock_holder(op)) {
      {
        const std::scoped_lock lock(mutex);
        requests.push_back(to_string(op));
      }
      if (carry_out) carry_out(payload);
      if (on_request != 1) answer = encode_notify_response(on_request);
    }
    osds_.memory.notify_ack(header_oid, notify_id, cookie, answer);
  }
  void watch_lost(int) noexcept override {}

  // 1: no answer.
  int on_request = 0;
  int on_request_lock = 1;
  std::function<void(std::string_view)> carry_out;
  std::atomic<bool> asked_for_lock{false};
  std::mutex mutex;
  std::vector<std::string> requests;  // guarded by mutex

 private:
  Osds& osds_;
  std::unique_ptr<Watch> watch_;
};

class SnapshotsTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(SnapshotsTest);
  CPPUNIT_TEST(encodings);
  CPPUNIT_TEST(steps);
  CPPUNIT_TEST(features);
  CPPUNIT_TEST(data_pool);
  CPPUNIT_TEST(refused);
  CPPUNIT_TEST(clones);
  CPPUNIT_TEST(damaged_maps);
  CPPUNIT_TEST(stopped_while_making);
  CPPUNIT_TEST(stopped_while_removing);
  CPPUNIT_TEST(failures);
  CPPUNIT_TEST(by_the_owner);
  CPPUNIT_TEST(handed_over);
  CPPUNIT_TEST(not_handed_over);
  CPPUNIT_TEST(format1);
  CPPUNIT_TEST_SUITE_END();

 public:
  void encodings() {
    const auto hex = [](std::string_view bytes) {
      std::string out;
      for (const char c : bytes) {
        out += "0123456789abcdef"[static_cast<unsigned char>(c) >> 4];
        out += "0123456789abcdef"[c & 15];
      }
      return out;
    };
    const std::string user = "010104000000" "00000000";
    CPPUNIT_ASSERT_EQUAL("0200000073310c00000000000000" + user,
                         hex(encode_snapshot_add("s1", 12)));
    CPPUNIT_ASSERT_EQUAL(std::string("0200000073310c00000000000000"),
                         hex(encode_snap_add("s1", 12)));
    CPPUNIT_ASSERT_EQUAL(std::string("020000007331"),
                         hex(encode_snap_remove("s1")));
    CPPUNIT_ASSERT_EQUAL("060114000000" "08000000" "020000007331" + user,
                         hex(encode_notify_snap_create("s1")));
    CPPUNIT_ASSERT_EQUAL("060114000000" "09000000" "020000007331" + user,
                         hex(encode_notify_snap_remove("s1")));
    CPPUNIT_ASSERT(decode_notify(encode_notify_snap_create("x")).op ==
                   NotifyOp::snap_create);
  }

  void steps() {
    Osds osds;
    osds.header.stale = 2;
    Process p(osds);
    CPPUNIT_ASSERT_EQUAL_MESSAGE(p.message, 0, p.create());
    CPPUNIT_ASSERT_EQUAL(osds.find("new").value(), p.made);
    CPPUNIT_ASSERT_EQUAL(p.made, osds.header.seq);
    const ObjectStates map = osds.map(p.made).value();
    CPPUNIT_ASSERT(map[0] == State::exists_clean && map[1] == State::exists &&
                   map[2] == State::exists && map[3] == State::nonexistent);
    const ObjectStates head = osds.map(snap_head).value();
    CPPUNIT_ASSERT(head[0] == State::exists_clean &&
                   head[1] == State::exists_clean &&
                   head[2] == State::exists_clean &&
                   head[3] == State::nonexistent);
    check(osds, false);
    CPPUNIT_ASSERT(p.snapshots.list() ==
                   (std::vector<Snapshots::Entry>{
                       {.id = p.made, .name = "new"},
                       {.id = s1, .name = "s1"}}));
    CPPUNIT_ASSERT_EQUAL(EEXIST, p.create());

    osds.set_state(3, State::exists);
    CPPUNIT_ASSERT_EQUAL_MESSAGE(p.message, 0, p.remove(p.made));
    check_clean(osds, true);
    CPPUNIT_ASSERT(!is_locked(osds));
    CPPUNIT_ASSERT(!is_locked(osds, format2_object_map_oid(id, snap_head)));
    CPPUNIT_ASSERT(!osds.data().snap_ids().contains(p.made));
    CPPUNIT_ASSERT(osds.map(snap_head).value()[0] == State::exists_clean);
    CPPUNIT_ASSERT_EQUAL_MESSAGE(p.message, 0, p.remove(p.made));
    // The one before: what is new in the other is then new since ever.
    CPPUNIT_ASSERT_EQUAL(0, p.create());
    CPPUNIT_ASSERT_EQUAL(0, p.remove(s1, "s1"));
    CPPUNIT_ASSERT(osds.map(p.made).value()[0] == State::exists);
    CPPUNIT_ASSERT(osds.map(snap_head).value()[0] == State::exists_clean);
    CPPUNIT_ASSERT_EQUAL(std::string(), p.log);
    CPPUNIT_ASSERT(p.client->faults.problems().empty());
  }

  void features() {
    for (const std::uint64_t missing :
         {feature_fast_diff, feature_fast_diff | feature_object_map,
          feature_fast_diff | feature_object_map | feature_exclusive_lock}) {
      Osds osds;
      osds.header.features &= ~missing;
      osds.header.flags = invalid;  // nobody keeps it up
      const bool mapped = (osds.header.features & feature_object_map) != 0;
      if (mapped) osds.header.flags = 0;
      Process p(osds);
      CPPUNIT_ASSERT_EQUAL_MESSAGE(p.message, 0, p.create());
      CPPUNIT_ASSERT_EQUAL(mapped, osds.map(p.made).has_value());
      // Nothing is said of what has changed.
      CPPUNIT_ASSERT(osds.map(snap_head).value()[1] == State::exists);
      // Removing needs no lock then.
      osds.taken = true;
      CPPUNIT_ASSERT_EQUAL_MESSAGE(p.message, 0, p.remove(p.made));
      check_clean(osds, false);
      CPPUNIT_ASSERT(!osds.data().snap_ids().contains(p.made));
    }
  }

  void data_pool() {
    Osds osds;
    osds.header.features |= feature_data_pool;
    osds.elsewhere = true;
    SnapId first = 0;
    CPPUNIT_ASSERT_EQUAL(0, osds.other.make_snap_id(&first));
    Process p(osds);
    CPPUNIT_ASSERT_EQUAL_MESSAGE(p.message, 0, p.create());
    CPPUNIT_ASSERT(osds.other.snap_ids() == (std::set<SnapId>{s1, p.made}));
    CPPUNIT_ASSERT(osds.memory.snap_ids() == std::set<SnapId>{s1});
    CPPUNIT_ASSERT_EQUAL_MESSAGE(p.message, 0, p.remove(p.made));
    CPPUNIT_ASSERT(osds.other.snap_ids() == std::set<SnapId>{s1});
  }

  void refused() {
    for (const std::uint64_t feature :
         {feature_journaling, feature_non_primary}) {
      Osds osds;
      osds.header.features |= feature;
      Process p(osds);
      CPPUNIT_ASSERT_EQUAL(ENOTSUP, p.create());
      CPPUNIT_ASSERT(p.message.ends_with(feature_names(feature)));
      check_clean(osds, false);
    }
    Osds osds;
    osds.header.full = true;
    Process p(osds);
    CPPUNIT_ASSERT_EQUAL(EDQUOT, p.create());
    CPPUNIT_ASSERT(p.message.find("snap limit") != std::string::npos);
    CPPUNIT_ASSERT(osds.data().snap_ids() == std::set<SnapId>{s1});
    check_clean(osds, false);
    Process striper(osds, FormatChoice::striper);
    CPPUNIT_ASSERT_EQUAL(ENOTSUP, striper.create());
    CPPUNIT_ASSERT(striper.snapshots.list().empty());
  }

  void clones() {
    Osds osds;
    osds.header.has_parent = true;
    Process p(osds);
    CPPUNIT_ASSERT_EQUAL_MESSAGE(p.message, 0, p.create());
    osds.header.has_parent = false;
    CPPUNIT_ASSERT_EQUAL(EBUSY, p.remove(p.made));
    CPPUNIT_ASSERT(p.message.find("flattened") != std::string::npos);
    // Nothing has been done.
    CPPUNIT_ASSERT(!osds.header.snaps[p.made].in_trash);
    check(osds, false);
    osds.header.has_parent = true;
    osds.header.snaps[p.made].is_protected = true;
    CPPUNIT_ASSERT_EQUAL(EBUSY, p.remove(p.made));
    CPPUNIT_ASSERT(p.message.find("unprotect") != std::string::npos);
    osds.header.snaps[p.made].is_protected = false;
    // Somebody has made a clone of it, who keeps all of it.
    osds.header.snaps[p.made].children = 1;
    CPPUNIT_ASSERT_EQUAL_MESSAGE(p.message, 0, p.remove(p.made));
    CPPUNIT_ASSERT(osds.header.snaps[p.made].in_trash);
    CPPUNIT_ASSERT(osds.map(p.made).has_value());
    CPPUNIT_ASSERT(osds.data().snap_ids().contains(p.made));
    CPPUNIT_ASSERT(p.snapshots.list().front() ==
                   (Snapshots::Entry{
                       .id = p.made, .name = "new", .in_trash = true}));
    osds.header.snaps[p.made].children = 0;
    CPPUNIT_ASSERT_EQUAL_MESSAGE(p.message, 0, p.remove(p.made));
    check_clean(osds, false);
    // Old OSDs.
    osds.header.knows_trash = false;
    CPPUNIT_ASSERT_EQUAL_MESSAGE(p.message, 0, p.create());
    CPPUNIT_ASSERT_EQUAL_MESSAGE(p.message, 0, p.remove(p.made));
    check_clean(osds, false);
  }

  void damaged_maps() {
    Osds osds;
    osds.memory.put(format2_object_map_oid(id, snap_head), std::nullopt);
    Process p(osds);
    CPPUNIT_ASSERT_EQUAL_MESSAGE(p.message, 0, p.create());
    CPPUNIT_ASSERT(p.log.find("object map cannot be used") !=
                   std::string::npos);
    CPPUNIT_ASSERT_EQUAL(invalid, osds.header.flags);
    CPPUNIT_ASSERT_EQUAL(invalid, osds.header.snaps[p.made].flags);
    CPPUNIT_ASSERT_EQUAL_MESSAGE(p.message, 0, p.remove(p.made));
    check_clean(osds, false);

    // Of the snapshot: it is not known what the head would have to say.
    for (const bool flagged : {false, true}) {
      Osds other;
      Process q(other);
      CPPUNIT_ASSERT_EQUAL_MESSAGE(q.message, 0, q.create());
      if (flagged) {
        other.header.snaps[q.made].flags = invalid;
      } else {
        MemoryObject bad;
        bad.data.write(0, "no map");
        other.memory.put(format2_object_map_oid(id, q.made), bad);
      }
      CPPUNIT_ASSERT_EQUAL_MESSAGE(q.message, 0, q.remove(q.made));
      CPPUNIT_ASSERT_EQUAL(invalid, other.header.flags);
      check_clean(other, false);
    }
  }

  // The process is killed after n operations of any kind, for each n.
  void stopped_while_making() {
    std::set<std::string> seen;
    for (unsigned n = 0;; ++n) {
      CPPUNIT_ASSERT(n < 100);
      Osds osds;
      if (!stop_after(osds, n, [](Process& p) { return p.create(); })) break;
      check(osds, false);
      seen.insert(window(osds));
      Process next(osds);
      if (const auto left = osds.find("new"))
        CPPUNIT_ASSERT_EQUAL_MESSAGE(next.message, 0, next.remove(*left));
      check_clean(osds, false);
      CPPUNIT_ASSERT_EQUAL_MESSAGE(next.message, 0, next.create());
      check(osds, false);
    }
    // Those of format2_changes.hpp.
    CPPUNIT_ASSERT(seen == (std::set<std::string>{
                               "", "id", "id header", "id header map",
                               "id header map clean"}));
  }

  void stopped_while_removing() {
    std::set<std::string> seen;
    for (unsigned n = 0;; ++n) {
      CPPUNIT_ASSERT(n < 100);
      Osds osds;
      Process before(osds);
      CPPUNIT_ASSERT_EQUAL_MESSAGE(before.message, 0, before.create());
      osds.set_state(3, State::exists);
      const SnapId snap = before.made;
      const bool stopped =
          stop_after(osds, n, [&](Process& p) { return p.remove(snap); });
      check(osds, true);
      if (!stopped) break;
      seen.insert(window(osds));
      Process next(osds);
      CPPUNIT_ASSERT_EQUAL_MESSAGE(next.message, 0, next.remove(snap));
      check_clean(osds, true);
      CPPUNIT_ASSERT(!osds.data().snap_ids().contains(snap));
    }
    CPPUNIT_ASSERT(
        seen == (std::set<std::string>{
                    "id header map clean", "id header trash map clean",
                    "id header trash map", "id header trash",
                    "header trash"}));
  }

  // One operation fails, or its answer is lost, and the process goes on.
  void failures() {
    for (const Kind kind :
         {Kind::write, Kind::exec, Kind::read_all, Kind::make_snap_id,
          Kind::release_snap_id, Kind::notify, Kind::watch})
      for (const bool carried_out : {false, true}) {
        if (carried_out && kind != Kind::write) continue;
        for (unsigned n = 0; fail_one({.kind = kind,
                                       .skip = n,
                                       .error = carried_out ? ETIMEDOUT : EIO,
                                       .carried_out = carried_out});
             ++n)
          CPPUNIT_ASSERT(n < 100);
      }
  }

  void by_the_owner() {
    Osds osds;
    Owner owner(osds);
    owner.carry_out = [&](std::string_view payload) {
      // Its own answer counts, not how it does it.
      const bool making =
          decode_notify(payload).op == NotifyOp::snap_create;
      std::string ignored;
      const std::string input = making ? encode_snapshot_add("new", 17)
                                       : encode_snap_id(17);
      (void)osds.memory
          .exec(header_oid, "rbd",
                making ? "snapshot_add" : "snapshot_remove", input, &ignored)
          ->wait();
    };
    Process p(osds);
    CPPUNIT_ASSERT_EQUAL_MESSAGE(p.message, 0, p.create());
    CPPUNIT_ASSERT_EQUAL(SnapId{17}, p.made);
    CPPUNIT_ASSERT_EQUAL_MESSAGE(p.message, 0, p.remove(17));
    CPPUNIT_ASSERT(!osds.find("new"));
    CPPUNIT_ASSERT(owner.requests ==
                   (std::vector<std::string>{"SnapCreate", "SnapRemove"}));
    CPPUNIT_ASSERT(!owner.asked_for_lock);
    // It had done it when it was asked before, and the answer was late.
    owner.on_request = -EEXIST;
    CPPUNIT_ASSERT_EQUAL_MESSAGE(p.message, 0, p.create());
    CPPUNIT_ASSERT_EQUAL(SnapId{17}, p.made);
    owner.on_request = -ENOENT;
    CPPUNIT_ASSERT_EQUAL_MESSAGE(p.message, 0, p.remove(17));
    // It says so, and it is not true.
    owner.carry_out = {};
    owner.on_request = 0;
    CPPUNIT_ASSERT_EQUAL(EIO, p.create());
    owner.on_request = -ENOSPC;
    CPPUNIT_ASSERT_EQUAL(ENOSPC, p.create());
    CPPUNIT_ASSERT(p.message.starts_with("the owner of the exclusive lock"));
  }

  void handed_over() {
    Osds osds;
    Owner owner(osds);
    owner.on_request = -EOPNOTSUPP;
    owner.on_request_lock = 0;
    Process p(osds);
    p.client->limit = 5s;
    CPPUNIT_ASSERT_EQUAL_MESSAGE(p.message, 0, p.create());
    CPPUNIT_ASSERT(owner.asked_for_lock);
    check(osds, false);
    CPPUNIT_ASSERT_EQUAL_MESSAGE(p.message, 0, p.remove(p.made));
    check_clean(osds, false);
  }

  void not_handed_over() {
    Osds osds;
    Owner owner(osds);
    owner.on_request = -EOPNOTSUPP;
    owner.on_request_lock = -EROFS;
    Process p(osds);
    CPPUNIT_ASSERT_EQUAL(EROFS, p.create());
    CPPUNIT_ASSERT(p.message.starts_with(
        "p/vm is locked by client.4200 (127.0.0.1:0/4200), which is alive"));
    // Nobody answers.
    owner.on_request = 1;
    CPPUNIT_ASSERT_EQUAL(EBUSY, p.create());
    CPPUNIT_ASSERT(p.message.ends_with("and may still make new"));
    owner.on_request = -EOPNOTSUPP;
    owner.on_request_lock = 1;
    CPPUNIT_ASSERT_EQUAL(EBUSY, p.create());
    check_clean(osds, false);
    // It does it all the same.
    owner.on_request = 1;
    owner.carry_out = [&](std::string_view) {
      std::string ignored;
      (void)osds.memory
          .exec(header_oid, "rbd", "snapshot_add",
                encode_snapshot_add("new", 17), &ignored)
          ->wait();
    };
    CPPUNIT_ASSERT_EQUAL_MESSAGE(p.message, 0, p.create());
    CPPUNIT_ASSERT_EQUAL(SnapId{17}, p.made);
  }

  void format1() {
    Osds osds;
    const auto load = [&osds] {
      return decode_format1(osds.memory.find("old.rbd")->data.bytes());
    };
    const auto store = [](Object& object, const Format1Header& header) {
      object.emplace().data.write(0, encode_format1(header));
    };
    Format1Header empty;
    empty.object_prefix = "rb.0.1";
    empty.order = 22;
    empty.size = 100;
    Object first;
    store(first, empty);
    osds.memory.put("old.rbd", first);
    int stale = 1;
    osds.memory.on_exec("rbd", "snap_add", [&](Object& o, auto in, auto&) {
      Format1Header h = decode_format1(o->data.bytes());
      Decoder d(in, "snap_add");
      const std::string name = d.name("name");
      if (stale-- > 0) return -ESTALE;
      h.snap_seq = d.u64("id");
      h.snapshots.insert(h.snapshots.begin(), {h.snap_seq, h.size, name});
      store(o, h);
      return 0;
    });
    osds.memory.on_exec("rbd", "snap_remove", [&](Object& o, auto in, auto&) {
      Format1Header h = decode_format1(o->data.bytes());
      const std::string name = Decoder(in, "snap_remove").name("name");
      const auto gone = std::erase_if(
          h.snapshots, [&](const auto& s) { return s.name == name; });
      store(o, h);
      return gone == 1 ? 0 : -ENOENT;
    });
    Process p(osds, FormatChoice::format1);
    CPPUNIT_ASSERT_EQUAL_MESSAGE(p.message, 0, p.create());
    CPPUNIT_ASSERT_EQUAL(p.made, load().snapshots.at(0).id);
    CPPUNIT_ASSERT(p.snapshots.list() ==
                   std::vector<Snapshots::Entry>{
                       (Snapshots::Entry{.id = p.made, .name = "new"})});
    // Killed in between: the other half is done by the next one.
    p.client->faults.inject({.kind = Kind::write, .error = ESHUTDOWN});
    CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, p.remove(p.made));
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, load().snapshots.size());
    CPPUNIT_ASSERT_EQUAL_MESSAGE(p.message, 0, p.remove(p.made));
    CPPUNIT_ASSERT(load().snapshots.empty());
    CPPUNIT_ASSERT(!osds.data().snap_ids().contains(p.made));
    CPPUNIT_ASSERT_EQUAL_MESSAGE(p.message, 0, p.remove(p.made));
    // Clients that cannot be told may write into it: it goes again.
    const auto ids = osds.data().snap_ids();
    p.client->faults.inject({.kind = Kind::notify, .error = ESHUTDOWN});
    CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, p.create());
    CPPUNIT_ASSERT(load().snapshots.empty());
    CPPUNIT_ASSERT(osds.data().snap_ids() == ids);
  }

 private:
  /// What there is of the snapshot "new".
  static std::string window(Osds& osds) {
    std::vector<std::string> parts;
    const auto ids = osds.data().snap_ids();
    if (ids.size() > 1) parts.emplace_back("id");
    if (const auto snap = osds.find("new")) {
      parts.emplace_back("header");
      if (osds.header.snaps[*snap].in_trash) parts.emplace_back("trash");
      if (osds.map(*snap)) parts.emplace_back("map");
      if (osds.map(snap_head).value()[1] == State::exists_clean)
        parts.emplace_back("clean");
    }
    std::string out;
    for (const std::string& part : parts)
      out += (out.empty() ? "" : " ") + part;
    return out;
  }

  /// Nothing of what a process does reaches the pool after `n` operations.
  /// False: it is done before.
  static bool stop_after(Osds& osds, unsigned n,
                         const std::function<int(Process&)>& run) {
    Process p(osds);
    // Nobody waits for the answers of the dead here.
    p.client->faults.inject(
        {.kind = Kind::notify_ack, .times = FaultStore::always});
    p.client->faults.inject(
        {.skip = n, .times = FaultStore::always, .error = ESHUTDOWN});
    // Giving the lock back comes after that, and its errors are nobody's.
    return run(p) != 0;
  }

  /// False: nothing has been hit.
  static bool fail_one(const FaultStore::Fault& fault) {
    bool hit = false;
    for (const bool making : {true, false}) {
      Osds osds;
      Process before(osds);
      if (!making) CPPUNIT_ASSERT_EQUAL(0, before.create());
      Process p(osds);
      p.client->faults.inject(fault);
      const int error = making ? p.create() : p.remove(before.made);
      hit = hit || p.client->faults.hits() != 0;
      p.client->faults.clear_faults();
      check(osds, false);
      CPPUNIT_ASSERT(!is_locked(osds));
      if (making) {
        CPPUNIT_ASSERT_EQUAL(error == 0, osds.find("new") == p.made);
        // Of what has not been made, nothing is left, but an id that nobody
        // knows.
        if (error != 0) check_clean(osds, false);
      } else if (error != 0) {
        CPPUNIT_ASSERT_EQUAL_MESSAGE(p.message, 0, p.remove(before.made));
      }
      if (!making) check_clean(osds, false);
    }
    return hit;
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(SnapshotsTest);

}  // namespace
