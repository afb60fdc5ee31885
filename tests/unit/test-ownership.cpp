// SPDX-License-Identifier: BSD-3-Clause
//
// Who owns an image, at random: a few processes have it open at times, hand its
// exclusive lock to each other, and meet what can happen to them.
//
// Threads write to columns of their own in all objects, read them, zero whole
// objects and ask for block status, each time through whatever process comes to
// hand.  Beside them answers and requests are lost, errors come, watches break,
// processes are cut off for a while, blocklisted, let in again, or die.
//
// The pool judges each operation that arrives (World::judge):
//   - data is written only by who has the lock in the header, and is not
//     blocklisted;
//   - by then the object map says that the object may exist, or the header says
//     that the map is not to be believed.
// And the threads judge what they get:
//   - a read gives what was acknowledged last, or what had no answer since;
//   - no hole where there is data;
//   - every request ends.
// In the end nothing is in the way of a new process, which finds everything.
//
// $OWNERSHIP_SECONDS (default 8) is the time it takes, $OWNERSHIP_SEED the first
// seed; threads make each run another one, all the same.

#include <cppunit/extensions/HelperMacros.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "image/image.hpp"
#include "image/ownership/exclusive_lock.hpp"
#include "image/ownership/map_reader.hpp"
#include "image/ownership/object_map.hpp"
#include "object-map-methods.hpp"
#include "rados/cluster.hpp"
#include "rados/error.hpp"
#include "rados/fault_store.hpp"
#include "rados/memory_store.hpp"
#include "rbd/encoding.hpp"
#include "rbd/features.hpp"
#include "rbd/format2.hpp"

namespace {

using namespace nbdrados;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using Kind = FaultStore::Kind;

constexpr std::uint64_t column_size = 512;
constexpr std::uint64_t columns = 6;  // one a thread
constexpr std::uint64_t object_size = 4096;
constexpr std::uint64_t objects = 6;
constexpr std::uint64_t image_size = objects * object_size;
const std::string header = "header";
const std::string image_id = "img";
/// How long a watch is sure to be kept, and when an OSD drops it.
constexpr auto watch_kept = 150ms;
constexpr auto watch_dropped = 250ms;
constexpr auto operation_limit = 100ms;
/// A write of data may take so long.
constexpr auto slowest = 300ms;
/// Longer than anything takes that is no hang.
constexpr auto patience = 30s;

std::string data_oid(std::uint64_t n) {
  return numbered_oid("data", n, 4);
}

/// What happened last.
class Log {
 public:
  void add(std::string line) {
    const std::scoped_lock lock(mutex_);
    const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(
                        Clock::now() - start_)
                        .count();
    lines_.push_back(std::to_string(ms) + " ms: " + std::move(line));
    if (lines_.size() > 120) lines_.pop_front();
  }
  void wrong(const std::string& line) {
    add("WRONG: " + line);
    const std::string all = text();
    const std::scoped_lock lock(mutex_);
    if (wrong_.empty()) wrong_ = all;
  }
  [[nodiscard]] std::string what_was_wrong() {
    const std::scoped_lock lock(mutex_);
    return wrong_;
  }
  [[nodiscard]] std::string text() {
    const std::scoped_lock lock(mutex_);
    std::string all;
    for (const std::string& line : lines_) all += line + "\n";
    return all;
  }

 private:
  std::mutex mutex_;
  const Clock::time_point start_ = Clock::now();
  std::deque<std::string> lines_;
  std::string wrong_;
};

/// Who has the lock of an object: kept in an attribute of the object.
struct Held {
  std::uint64_t client = 0;
  std::string cookie;
  std::string tag;
  bool operator==(const Held&) const = default;
};
std::optional<Held> holder_of(const std::optional<MemoryObject>& object) {
  if (!object) return std::nullopt;
  const auto at = object->xattrs.find("lock");
  if (at == object->xattrs.end()) return std::nullopt;
  Decoder in(at->second, "lock");
  Held held;
  held.client = in.u64("client");
  held.cookie = in.string("cookie");
  held.tag = in.string("tag");
  return held;
}
void set_holder(MemoryObject& object, const std::optional<Held>& held) {
  object.xattrs.erase("lock");
  if (!held) return;
  Encoder out;
  out.u64(held->client);
  out.string(held->cookie);
  out.string(held->tag);
  object.xattrs["lock"] = out.take();
}

thread_local std::uint64_t caller = 0;

/// The pool, its OSDs and the monitors.
class World {
 public:
  World() {
    add_object_map_methods(memory);
    add_lock_methods();
    memory.on_exec("rbd", "get_flags", [](auto& object, auto, auto& out) {
      if (!object) return -ENOENT;
      Encoder e;
      e.u64(object->xattrs.contains("invalid") ? flag_object_map_invalid : 0);
      out = e.take();
      return 0;
    });
    memory.put(header, MemoryObject{});
    memory.put(map_oid(), map_object(ObjectStates(objects)));
  }

  static std::string map_oid() {
    return format2_object_map_oid(image_id, snap_head);
  }
  static std::string address(std::uint64_t client) {
    return "192.0.2.1:0/" + std::to_string(client);
  }

  /// Called with `mutex` held, before something changes data.
  void judge(const std::string& oid, bool makes) {
    const auto h = memory.find(header);
    const auto held = holder_of(h);
    const std::string what =
        "client." + std::to_string(caller) + " writes to " + oid + ", ";
    if (!held || held->client != caller)
      log.wrong(what + "and the lock is " +
                (held ? "client." + std::to_string(held->client) + "'s"
                      : std::string("free")));
    if (makes && !h->xattrs.contains("invalid") && !mapped(oid))
      log.wrong(what + "which the map calls nonexistent");
  }
  [[nodiscard]] bool mapped(const std::string& oid) {
    const auto map = decode_object_map(memory.find(map_oid())->data.bytes());
    for (std::uint64_t n = 0; n < objects; ++n)
      if (data_oid(n) == oid) return map[n] != ObjectState::nonexistent;
    return true;
  }
  /// What `rbd object-map check` looks for, when nothing is under way.
  void judge_map() {
    if (memory.find(header)->xattrs.contains("invalid")) return;
    for (std::uint64_t n = 0; n < objects; ++n)
      if (memory.find(data_oid(n)) && !mapped(data_oid(n)))
        log.wrong("the map lacks " + data_oid(n));
  }

  MemoryStore memory;
  std::mutex mutex;
  std::set<std::uint64_t> blocked;  // guarded by mutex
  Log log;

 private:
  void add_lock_methods() {
    const auto on = [&](std::string_view method, auto run) {
      memory.on_exec(
          std::string(lock_class), std::string(method),
          [run](std::optional<MemoryObject>& object, std::string_view input,
                std::string& output) {
            if (!object) return -ENOENT;
            Decoder outer(input, "lock");
            Decoder in = outer.frame(1, "input");
            (void)in.string("name");
            auto held = holder_of(object);
            const int r = run(in, held, output);
            if (r >= 0) set_holder(*object, held);
            return r;
          });
    };
    using Holder = std::optional<Held>;
    on(lock_method_lock, [](Decoder& in, Holder& held, std::string&) {
      (void)in.u8("type");
      Held me{caller, std::string(in.string("cookie")),
              std::string(in.string("tag"))};
      if (held) return *held == me ? -EEXIST : -EBUSY;
      held = std::move(me);
      return 0;
    });
    on(lock_method_unlock, [](Decoder& in, Holder& held, std::string&) {
      if (!held || held->client != caller ||
          held->cookie != in.string("cookie"))
        return -ENOENT;
      held.reset();
      return 0;
    });
    on(lock_method_break, [](Decoder& in, Holder& held, std::string&) {
      (void)in.u8("entity type");
      const auto number = static_cast<std::uint64_t>(in.i64("number"));
      if (!held || held->client != number ||
          held->cookie != in.string("cookie"))
        return -ENOENT;
      held.reset();
      return 0;
    });
    on(lock_method_assert_locked, [](Decoder& in, Holder& held, std::string&) {
      (void)in.u8("type");
      const std::string cookie(in.string("cookie"));
      return held && held->client == caller && held->cookie == cookie
                 ? 0
                 : -EBUSY;
    });
    on(lock_method_set_cookie, [](Decoder& in, Holder& held, std::string&) {
      (void)in.u8("type");
      const std::string cookie(in.string("cookie"));
      (void)in.string("tag");
      if (!held || held->client != caller || held->cookie != cookie)
        return -EBUSY;
      held->cookie = in.string("new cookie");
      return 0;
    });
    on(lock_method_get_info, [](Decoder&, Holder& held, std::string& output) {
      Encoder out;
      out.frame(1, 1, [&] {
        out.u32(held ? 1 : 0);
        if (held) put_holder(out, *held);
        out.u8(static_cast<std::uint8_t>(held ? LockType::exclusive
                                              : LockType::none));
        out.string(held ? held->tag : "");
      });
      output = out.take();
      return 0;
    });
  }
  // ceph: src/cls/lock/cls_lock_types.h; src/msg/msg_types.h, entity_addr_t
  static void put_holder(Encoder& out, const Held& held) {
    out.frame(1, 1, [&] {
      out.u8(entity_client);
      out.i64(static_cast<std::int64_t>(held.client));
      out.string(held.cookie);
    });
    out.frame(1, 1, [&] {
      out.u32(0).u32(0);
      out.u8(1);
      out.frame(1, 1, [&] {
        out.u32(1);
        out.u32(static_cast<std::uint32_t>(held.client));
        Encoder socket;
        socket.u16(2).u16(0);
        socket.u8(192).u8(0).u8(2).u8(1);
        socket.u64(0);
        out.string(socket.str());
      });
      out.string("");
    });
  }
};

/// What one client sends: it arrives at the pool in its name, unless it is
/// blocklisted or dead.
class ClientStore final : public ObjectStore {
 public:
  ClientStore(World& world, std::uint64_t number)
      : world_(world), number_(number) {}
  /// Nothing that is under way, or comes, arrives.
  std::atomic<bool> dead{false};
  /// The client has been told that it is blocklisted.
  std::atomic<bool> refused{false};

  std::unique_ptr<Pending> read(const std::string& oid, std::uint64_t offset,
                                std::span<const MutablePiece> pieces,
                                SnapId snap) override {
    return sent([&] { return world_.memory.read(oid, offset, pieces, snap); });
  }
  std::unique_ptr<Pending> write(const std::string& oid, const WriteOp& op,
                                 const SnapContext& snapc) override {
    return sent([&] {
      if (oid.starts_with("data")) {
        const auto steps = op.steps();
        world_.judge(oid, std::ranges::any_of(steps, [](const auto& step) {
                       return step.kind == WriteOp::Kind::write ||
                              step.kind == WriteOp::Kind::write_full ||
                              step.kind == WriteOp::Kind::write_same;
                     }));
      }
      return world_.memory.write(oid, op, snapc);
    });
  }
  std::unique_ptr<Pending> stat(const std::string& oid, std::uint64_t* size,
                                SnapId snap) override {
    return sent([&] { return world_.memory.stat(oid, size, snap); });
  }
  std::unique_ptr<Pending> exec(const std::string& oid, std::string_view cls,
                                std::string_view method,
                                std::string_view input,
                                std::string* output) override {
    return sent(
        [&] { return world_.memory.exec(oid, cls, method, input, output); });
  }
  std::unique_ptr<Pending> exec_each(
      const std::string& oid, std::span<const MethodCall> calls,
      std::vector<std::string>* outputs) override {
    return sent([&] { return world_.memory.exec_each(oid, calls, outputs); });
  }
  std::unique_ptr<Pending> xattrs(
      const std::string& oid,
      std::map<std::string, std::string>* out) override {
    return sent([&] { return world_.memory.xattrs(oid, out); });
  }
  std::unique_ptr<Pending> read_all(const std::string& oid,
                                    std::uint64_t limit,
                                    std::string* out) override {
    return sent([&] { return world_.memory.read_all(oid, limit, out); });
  }
  int map_extents(const std::string& oid, std::uint64_t offset,
                  std::uint64_t length, SnapId snap,
                  std::vector<ObjectRange>* out) override {
    const std::scoped_lock lock(world_.mutex);
    if (!admitted()) return -ESHUTDOWN;
    return world_.memory.map_extents(oid, offset, length, snap, out);
  }
  int make_snap_id(SnapId* snap) override {
    return world_.memory.make_snap_id(snap);
  }
  int release_snap_id(SnapId snap) override {
    return world_.memory.release_snap_id(snap);
  }
  std::unique_ptr<Watch> watch(const std::string& oid,
                               WatchHandler& handler) override {
    const std::scoped_lock lock(world_.mutex);
    if (!admitted()) throw Error(ESHUTDOWN, "cannot watch: blocklisted");
    return world_.memory.watch_as({.address = World::address(number_),
                                   .client = number_,
                                   .cookie = 0},
                                  oid, handler);
  }
  void notify_ack(const std::string& oid, std::uint64_t notify_id,
                  std::uint64_t cookie, std::string_view payload) override {
    if (!dead) world_.memory.notify_ack(oid, notify_id, cookie, payload);
  }
  std::unique_ptr<Pending> list_watchers(const std::string& oid,
                                         std::vector<Watcher>* out) override {
    return sent([&] { return world_.memory.list_watchers(oid, out); });
  }
  std::unique_ptr<Pending> start_notify(const std::string& oid,
                                        std::string_view payload,
                                        std::chrono::milliseconds limit,
                                        std::string* reply) override {
    return sent([&] {
      return world_.memory.start_notify(
          oid, payload, std::min<std::chrono::milliseconds>(limit, 500ms),
          reply);
    });
  }
  std::unique_ptr<Pending> version(const std::string& oid,
                                   std::uint64_t* version) override {
    return sent([&] { return world_.memory.version(oid, version); });
  }
  std::unique_ptr<Pending> list_snaps(const std::string& oid,
                                      SnapSet* out) override {
    return sent([&] { return world_.memory.list_snaps(oid, out); });
  }
  std::vector<std::string> list(
      const std::function<bool(std::string_view)>&,
      const std::function<void(const std::string&)>&) override {
    return {};
  }

 private:
  class Refused final : public Pending {
   public:
    int wait() override { return -ESHUTDOWN; }
    int wait_for(std::chrono::milliseconds) override { return -ESHUTDOWN; }
    bool completed() override { return true; }
  };
  /// The caller holds world_.mutex.
  bool admitted() {
    caller = number_;
    if (!dead && !world_.blocked.contains(number_)) return true;
    refused = true;
    return false;
  }
  template <class Operation>
  std::unique_ptr<Pending> sent(Operation&& operation) {
    const std::scoped_lock lock(world_.mutex);
    if (!admitted()) return std::make_unique<Refused>();
    return operation();
  }

  World& world_;
  const std::uint64_t number_;
};

/// The header of an image of format 2, as short as can be.
class OwnedFormat final : public ImageFormat {
 public:
  OwnedFormat(ObjectStore& store, Blocklister& blocklister)
      : store_(store),
        traits_{.name = "pool/image",
                .format = "test format",
                .layout = Layout(object_size, object_size, 1),
                .object_prefix = "data",
                .name_digits = 4,
                .header_oid = header,
                .details = ""},
        lock_(store, header, blocklister,
              ExclusiveLock::Options{.limit = operation_limit,
                                     .what = "pool/image"}),
        map_(store, header, World::map_oid(), snap_head, operation_limit) {}
  const ImageTraits& traits() const override { return traits_; }
  View load() override {
    std::string output;
    check(store_.exec(header, "rbd", "get_flags", {}, &output)
              ->wait_for(operation_limit),
          "cannot read the header");
    View view{.size = image_size};
    view.lockable = true;
    view.mappable = (decode_get_flags(output) & flag_object_map_invalid) == 0;
    return view;
  }
  ExclusiveLock* lock() noexcept override { return &lock_; }
  std::shared_ptr<ObjectMap> open_map(std::uint64_t count) override {
    return ObjectMap::open(store_, image_id, count, operation_limit);
  }
  std::shared_ptr<const ObjectStates> read_map() override {
    return map_.read();
  }
  void invalidate_map(SnapId) override {
    check(store_
              .write(header,
                     WriteOp().assert_exists().set_xattr("invalid", "1"), {})
              ->wait_for(operation_limit),
          "cannot mark the map as invalid");
  }
  ObjectStore& header_store() override { return store_; }
  ObjectStore& data_store() override { return store_; }

 private:
  ObjectStore& store_;
  const ImageTraits traits_;
  ExclusiveLock lock_;
  MapReader map_;
};

/// A process that may have the image open.
class Process final : public Blocklister {
 public:
  Process(World& world, std::uint64_t number)
      : client(world, number),
        faults(client),
        world_(world),
        number_(number) {
    faults.keep_watches_for(watch_kept);
  }
  ~Process() override {
    for (const std::string& problem : faults.problems())
      world_.log.wrong("client." + std::to_string(number_) + ": " + problem);
  }
  std::uint64_t client_id() const override { return number_; }
  void blocklist(const std::string& address, std::chrono::seconds) override {
    const std::scoped_lock lock(world_.mutex);
    const std::uint64_t victim =
        std::stoull(address.substr(address.find('/') + 1));
    world_.blocked.insert(victim);
    world_.memory.drop_watches(victim, true);
    world_.log.add("client." + std::to_string(number_) + " blocklists client." +
                   std::to_string(victim));
  }
  void wait_for_latest_osdmap() override {}

  [[nodiscard]] std::shared_ptr<Image> open(LockMode mode) {
    ImageOptions how;
    how.writable = true;
    how.lock = mode;
    how.lock_wait = 0s;
    how.workers = std::make_shared<WorkerPool>(1);
    how.discard_granularity = 512;
    how.log = [this](const std::string& line, bool) {
      world_.log.add("client." + std::to_string(number_) + ": " + line);
    };
    return std::make_shared<Image>(
        std::make_unique<OwnedFormat>(faults, *this), std::move(how));
  }

  /// What it sends arrives again, and what has been held up.
  void reconnect() {
    faults.clear_faults();
    // What met the fault before may be about to be held.
    for (int i = 0; i < 3; ++i) {
      faults.release();
      std::this_thread::sleep_for(2ms);
    }
    faults.keep_watches_for(watch_kept);
  }

  ClientStore client;
  FaultStore faults;

 private:
  World& world_;
  const std::uint64_t number_;
};

/// An image that a process has open.  A lost one can be there beside the next
/// one of the same process.
struct Open {
  std::shared_ptr<Process> process;
  std::shared_ptr<Image> image;  // ends before the process
};

/// What the bytes of a column of an object may be now: all the same one.
class Column {
 public:
  /// Held by who changes it, or compares.
  std::mutex mutex;

  [[nodiscard]] bool may_be(unsigned char value) const {
    return values_.contains(value);
  }
  void acknowledged(unsigned char value) { values_ = {value}; }
  /// It may have happened or not.
  void tried(unsigned char value) { values_.insert(value); }
  [[nodiscard]] bool may_be_absent() const { return values_.contains(0); }
  [[nodiscard]] std::string text() const {
    std::string text;
    for (const unsigned char v : values_) text += " " + std::to_string(v);
    return text;
  }

 private:
  std::set<unsigned char> values_{0};
};

/// One run.
class Run {
 public:
  Run(std::uint64_t seed, Clock::time_point end) : end_(end), chaos_(seed) {
    for (Open& slot : slots_) slot.process = make_process();
  }

  std::string operator()() {
    std::vector<std::thread> threads;
    for (std::uint64_t column = 0; column < columns; ++column)
      threads.emplace_back([this, column, seed = chaos_()] {
        work(column, seed);
      });
    std::thread chaos([this] { make_trouble(); });
    for (std::thread& t : threads) t.join();
    chaos.join();
    if (world_.log.what_was_wrong().empty()) in_the_end();
    return world_.log.what_was_wrong();
  }
  [[nodiscard]] std::string log() { return world_.log.text(); }
  [[nodiscard]] std::uint64_t requests() const { return requests_; }
  [[nodiscard]] std::uint64_t acknowledged() const { return acknowledged_; }
  [[nodiscard]] std::uint64_t processes() const { return next_number_ - 4100; }
  [[nodiscard]] std::uint64_t troubles() const { return troubles_; }

 private:
  using Random = std::mt19937_64;
  static bool one_in(Random& random, unsigned n) { return random() % n == 0; }

  std::shared_ptr<Process> make_process() {
    return std::make_shared<Process>(world_, next_number_++);
  }
  /// The image in some process; null: it cannot be opened now.
  Open some_image(Random& random) {
    // Handing over takes a tenth of a second, so not for each request.
    if (one_in(random, 100)) favourite_ = random() % slots_.size();
    const std::size_t n =
        one_in(random, 15) ? random() % slots_.size() : favourite_.load();
    Open old;  // ends without the mutex
    const std::scoped_lock lock(slot_mutexes_[n]);
    Open& slot = slots_[n];
    // A client that was shut out serves nobody new.
    if (one_in(random, 200) || slot.process->client.refused) {
      old = std::move(slot);
      slot = {.process = make_process(), .image = nullptr};
    } else if (slot.image && slot.image->lost()) {
      old = {.process = slot.process, .image = std::move(slot.image)};
    }
    if (!slot.image) {
      try {
        slot.image = slot.process->open(
            one_in(random, 4) ? LockMode::exclusive : LockMode::automatic);
      } catch (const Error&) {
        return {};
      }
    }
    return slot;
  }

  void work(std::uint64_t column, std::uint64_t seed) {
    Random random(seed);
    while (Clock::now() < end_ && world_.log.what_was_wrong().empty()) {
      const Open open = some_image(random);
      if (!open.image) {
        std::this_thread::sleep_for(5ms);
        continue;
      }
      const auto start = Clock::now();
      const std::uint64_t n = random() % objects;
      switch (random() % 12) {
        case 0: whole_object(open, n, random); break;
        case 1: status(open, n); break;
        case 2: flush(open); break;
        case 3:
        case 4:
        case 5:
        case 6: read(open, n, column); break;
        default: write(open, n, column, random); break;
      }
      ++requests_;
      if (Clock::now() - start > patience)
        world_.log.wrong("a request has taken too long");
    }
  }
  static std::uint64_t at(std::uint64_t n, std::uint64_t column) {
    return n * object_size + column * column_size;
  }
  std::string place(std::uint64_t n, std::uint64_t column) {
    return "column " + std::to_string(column) + " of " + data_oid(n);
  }

  void write(const Open& open, std::uint64_t n, std::uint64_t column,
             Random& random) {
    Column& c = model_[n][column];
    const std::scoped_lock lock(c.mutex);
    const auto value = static_cast<unsigned char>(random() % 255 + 1);
    const std::string data(column_size, static_cast<char>(value));
    try {
      if (one_in(random, 8)) {
        open.image->zero(column_size, at(n, column),
                            one_in(random, 2) ? Image::Zero::free
                                              : Image::Zero::allocate);
        c.acknowledged(0);
      } else {
        open.image->write(data.data(), data.size(), at(n, column));
        c.acknowledged(value);
      }
      ++acknowledged_;
    } catch (const Error&) {
      c.tried(value);
      c.tried(0);
    }
  }
  /// False: it fails.
  bool read(const Open& open, std::uint64_t n, std::uint64_t column) {
    Column& c = model_[n][column];
    const std::scoped_lock lock(c.mutex);
    std::string data(column_size, '?');
    try {
      open.image->read(data.data(), data.size(), at(n, column));
    } catch (const Error&) {
      return false;
    }
    const auto value = static_cast<unsigned char>(data[0]);
    if (data != std::string(column_size, data[0]) ||
        !c.may_be(value))
      world_.log.wrong("client." + std::to_string(open.process->client_id()) +
                       " reads " + std::to_string(value) + " from " +
                       place(n, column) + ", which may be" + c.text());
    return true;
  }
  /// Objects are removed only as a whole.
  void whole_object(const Open& open, std::uint64_t n, Random& random) {
    const auto locks = all_of(n);
    try {
      if (one_in(random, 2))
        open.image->trim(object_size, n * object_size);
      else
        open.image->zero(object_size, n * object_size, Image::Zero::free);
      for (Column& c : model_[n]) c.acknowledged(0);
    } catch (const Error&) {
      for (Column& c : model_[n]) c.tried(0);
    }
  }
  void status(const Open& open, std::uint64_t n) {
    const auto locks = all_of(n);
    std::vector<Extent> extents;
    try {
      extents = open.image->extents(object_size, n * object_size, false);
    } catch (const Error&) {
      return;
    }
    for (const Extent& e : extents) {
      if (e.data) continue;
      for (std::uint64_t c = 0; c < columns; ++c) {
        const std::uint64_t start = at(n, c);
        if (e.offset < start + column_size && start < e.offset + e.length &&
            !model_[n][c].may_be_absent())
          world_.log.wrong("client." + std::to_string(open.process->client_id()) +
                           " calls " + place(n, c) + " a hole, and it may be" +
                           model_[n][c].text());
      }
    }
  }
  std::vector<std::unique_lock<std::mutex>> all_of(std::uint64_t n) {
    std::vector<std::unique_lock<std::mutex>> locks;
    for (Column& c : model_[n]) locks.emplace_back(c.mutex);
    return locks;
  }
  static void flush(const Open& open) {
    try {
      open.image->flush();
    } catch (const Error&) {
      // It is lost.
    }
  }

  // ---- Trouble

  std::shared_ptr<Process> some_victim() {
    const std::size_t n = chaos_() % slots_.size();
    const std::scoped_lock lock(slot_mutexes_[n]);
    return slots_[n].process;
  }
  void note(const std::string& what, const Process& process) {
    world_.log.add(what + " client." + std::to_string(process.client_id()));
    ++troubles_;
  }
  void make_trouble() {
    // Some runs have much of it, others little.
    const unsigned pause = 30U << chaos_() % 5;
    while (Clock::now() < end_ && world_.log.what_was_wrong().empty()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(chaos_() % pause));
      const std::shared_ptr<Process> victim = some_victim();
      if (!victim) continue;
      switch (chaos_() % 14) {
        case 0:
        case 1:
        case 2: lose_something(*victim); break;
        case 10:
        case 11:
        case 12:
        case 13: delay_writes(*victim); break;
        case 3:
        case 4: break_watches(*victim); break;
        case 5:
        case 6: cut_off(*victim); break;
        case 7: shut_out(*victim); break;
        case 8: fail_something(*victim); break;
        default: die(*victim); break;
      }
    }
  }
  /// A request or its answer, of what is bounded in time.
  void lose_something(Process& victim) {
    const bool answer = one_in(chaos_, 2);
    note(answer ? "no answer for" : "no request of", victim);
    victim.faults.inject(
        {.kind = one_in(chaos_, 2) ? Kind::write : Kind::exec,
         .oid = one_in(chaos_, 3) ? World::map_oid() : header,
         .skip = chaos_() % 3,
         .error = ETIMEDOUT,
         .carried_out = answer});
  }
  /// Data, while others want the lock.
  void delay_writes(Process& victim) {
    note("slow writes of", victim);
    for (std::uint64_t n = 0; n < objects; ++n)
      victim.faults.inject({.kind = Kind::write,
                            .oid = data_oid(n),
                            .times = 2,
                            .delay = std::chrono::milliseconds(
                                chaos_() % slowest.count())});
    std::this_thread::sleep_for(10ms);
    turn_to_others(victim);
  }
  void turn_to_others(const Process& victim) {
    for (std::size_t n = 0; n < slots_.size(); ++n) {
      // Who has the mutex may be waiting for what the victim is cut off from.
      const std::unique_lock lock(slot_mutexes_[n], std::try_to_lock);
      if (lock && slots_[n].process.get() != &victim) favourite_ = n;
    }
  }
  void fail_something(Process& victim) {
    note("an error for", victim);
    static constexpr Kind kinds[] = {Kind::write, Kind::exec, Kind::watch,
                                     Kind::list_watchers, Kind::notify};
    victim.faults.inject({.kind = kinds[chaos_() % std::size(kinds)],
                          .oid = one_in(chaos_, 4) ? World::map_oid() : header,
                          .skip = chaos_() % 3,
                          .error = one_in(chaos_, 2) ? EIO : EAGAIN});
  }
  void break_watches(Process& victim) {
    note("broken watches of", victim);
    if (one_in(chaos_, 2))
      victim.faults.lose_watches(header, ETIMEDOUT);
    else
      world_.memory.drop_watches(victim.client_id(), true);
  }
  /// For so long that its watch is dropped, or not; nobody tells it.
  void cut_off(Process& victim) {
    note("cut off:", victim);
    // What it reads now, without asking, must be true.
    std::atomic<bool> over{false};
    std::vector<std::thread> readers;
    if (const Open open = open_in(victim); open.image)
      for (std::uint64_t n = 0; n < objects; ++n)
        readers.emplace_back([this, open, n, &over] {
          for (std::uint64_t c = 0; !over; c = (c + 1) % columns) {
            (void)read(open, n, c);
            std::this_thread::sleep_for(3ms);
          }
        });
    victim.faults.keep_watches_for(0ms);
    victim.faults.inject({.times = FaultStore::always, .held = true});
    std::this_thread::sleep_for(5ms);
    turn_to_others(victim);
    if (one_in(chaos_, 2)) {
      std::this_thread::sleep_for(std::chrono::milliseconds(chaos_() % 150));
    } else {
      std::this_thread::sleep_for(watch_dropped);
      world_.memory.drop_watches(victim.client_id(), false);
      std::this_thread::sleep_for(std::chrono::milliseconds(chaos_() % 1500));
      victim.faults.lose_watches(header, ENOTCONN);
    }
    over = true;
    victim.reconnect();
    for (std::thread& t : readers) t.join();
    world_.log.add("again there: client." +
                   std::to_string(victim.client_id()));
  }
  Open open_in(const Process& process) {
    for (std::size_t n = 0; n < slots_.size(); ++n) {
      const std::unique_lock lock(slot_mutexes_[n], std::try_to_lock);
      if (lock && slots_[n].process.get() == &process) return slots_[n];
    }
    return {};
  }
  void shut_out(Process& victim) {
    note("blocklisted:", victim);
    {
      const std::scoped_lock lock(world_.mutex);
      world_.blocked.insert(victim.client_id());
    }
    world_.memory.drop_watches(victim.client_id(), true);
    // When it knows, and what was under way has arrived, and was refused.  Who
    // lets it in before that lets in old writes.
    for (int i = 0; i < 40 && !victim.client.refused; ++i)
      std::this_thread::sleep_for(5ms);
    std::this_thread::sleep_for(slowest + 50ms);
    if (!victim.client.refused || one_in(chaos_, 2)) return;
    world_.log.add("let in again: client." +
                   std::to_string(victim.client_id()));
    const std::scoped_lock lock(world_.mutex);
    world_.blocked.erase(victim.client_id());
  }
  void die(Process& victim) {
    note("dead:", victim);
    victim.client.dead = true;
    std::this_thread::sleep_for(watch_dropped);
    world_.memory.drop_watches(victim.client_id(), false);
    // Its threads would go on for ever otherwise.
    victim.faults.lose_watches(header, ENOTCONN);
  }

  /// All have gone; one comes, and finds everything, and nothing in its way.
  void in_the_end() {
    for (Open& slot : slots_) const Open old = std::move(slot);
    Open last{.process = make_process(), .image = nullptr};
    const auto deadline = Clock::now() + patience;
    while (!last.image) {
      try {
        last.image = last.process->open(LockMode::exclusive);
      } catch (const Error& e) {
        if (Clock::now() > deadline) {
          world_.log.wrong(std::string("in the end: ") + e.what());
          return;
        }
        std::this_thread::sleep_for(20ms);
      }
    }
    for (std::uint64_t n = 0; n < objects; ++n)
      for (std::uint64_t c = 0; c < columns; ++c)
        if (!read(last, n, c)) world_.log.wrong("in the end: a read fails");
    world_.judge_map();
  }

  const Clock::time_point end_;
  Random chaos_;
  World world_;
  std::atomic<std::uint64_t> next_number_{4101};
  std::atomic<std::uint64_t> requests_{0};
  std::atomic<std::uint64_t> acknowledged_{0};
  std::atomic<std::uint64_t> troubles_{0};
  std::array<std::array<Column, columns>, objects> model_;
  static constexpr std::size_t processes_ = 3;
  std::atomic<std::size_t> favourite_{0};
  std::array<std::mutex, processes_> slot_mutexes_;
  std::array<Open, processes_> slots_;
};

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const char* const text = std::getenv(name);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
}

class OwnershipTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(OwnershipTest);
  CPPUNIT_TEST(random_lives);
  CPPUNIT_TEST_SUITE_END();

 public:
  void random_lives() {
    const auto end = Clock::now() + std::chrono::seconds(
                                        from_environment("OWNERSHIP_SECONDS", 8));
    const std::uint64_t seed = from_environment(
        "OWNERSHIP_SEED",
        static_cast<std::uint64_t>(
            std::chrono::system_clock::now().time_since_epoch().count()) %
            1000000);
    // Most of the time is spent waiting.
    constexpr std::size_t at_once = 12;
    std::deque<Run> runs;
    for (std::size_t i = 0; i < at_once; ++i) runs.emplace_back(seed + i, end);
    std::vector<std::future<std::string>> results;
    for (Run& run : runs)
      results.push_back(std::async(std::launch::async, std::ref(run)));
    std::array<std::uint64_t, 4> sums{};
    std::string wrong;
    for (std::size_t i = 0; i < at_once; ++i) {
      const std::string name = "seed " + std::to_string(seed + i) + "\n";
      if (results[i].wait_until(end + 3 * patience) !=
          std::future_status::ready) {
        std::fprintf(stderr, "it does not end: %s%s", name.c_str(),
                     runs[i].log().c_str());
        std::abort();  // nothing else would end it
      }
      const std::string result = results[i].get();
      if (wrong.empty() && !result.empty()) wrong = name + result;
      sums[0] += runs[i].requests();
      sums[1] += runs[i].acknowledged();
      sums[2] += runs[i].processes();
      sums[3] += runs[i].troubles();
    }
    std::fprintf(stderr,
                 "\n%llu requests, of them %llu writes that were acknowledged, "
                 "%llu processes, %llu troubles\n",
                 static_cast<unsigned long long>(sums[0]),
                 static_cast<unsigned long long>(sums[1]),
                 static_cast<unsigned long long>(sums[2]),
                 static_cast<unsigned long long>(sums[3]));
    CPPUNIT_ASSERT_MESSAGE(wrong, wrong.empty());
    // Else it has tried nothing.
    CPPUNIT_ASSERT(sums[1] > 100);
    CPPUNIT_ASSERT(sums[2] > 10);
    CPPUNIT_ASSERT(sums[3] > 10);
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(OwnershipTest);

}  // namespace
