// SPDX-License-Identifier: BSD-3-Clause
//
// The exclusive lock, on a store in memory and a model of the object class
// `lock` (ceph: src/cls/lock/cls_lock.cc).

#include <cppunit/extensions/HelperMacros.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "image/ownership/exclusive_lock.hpp"
#include "image/ownership/lock_turns.hpp"
#include "rados/error.hpp"
#include "rados/fault_store.hpp"
#include "rados/memory_store.hpp"
#include "rbd/encoding.hpp"

using namespace nbdrados;
using namespace std::chrono_literals;

namespace {

using Kind = FaultStore::Kind;
using Result = ExclusiveLock::Result;

const std::string header = "rbd_header.1";

/// A client of the cluster; its address is 192.0.2.NODE:0/NUMBER.
struct Client {
  std::uint64_t number;
  unsigned node;
  [[nodiscard]] std::string address() const {
    return "192.0.2." + std::to_string(node) + ":0/" + std::to_string(number);
  }
  [[nodiscard]] Watcher watcher(std::uint64_t cookie) const {
    return {.address = address(), .client = number, .cookie = cookie};
  }
};

constexpr Client self{4100, 1};
constexpr Client other{4200, 2};
constexpr Client third{4300, 3};

/// What happened, by the model and the blocklister.
class Events {
 public:
  void add(const std::string& event) {
    const std::scoped_lock lock(mutex_);
    text_ += text_.empty() ? event : " " + event;
  }
  /// All since the last call.
  std::string take() {
    const std::scoped_lock lock(mutex_);
    return std::exchange(text_, {});
  }

 private:
  std::mutex mutex_;
  std::string text_;
};

// Whose operations those of this thread are.
thread_local const Client* caller = &self;

/// The locks of one object.  Its members that are called by methods run under
/// the mutex of the store; tests change it when nothing is under way, or from
/// a hook.
class LockClass {
 public:
  struct Holder {
    Client client;
    std::string cookie;
    bool operator==(const Holder& o) const {
      return client.number == o.client.number && cookie == o.cookie;
    }
  };

  LockClass(MemoryStore& store, Events& events) : events_(events) {
    const auto on = [&](std::string_view method,
                        int (LockClass::*run)(Decoder&, std::string&)) {
      store.on_exec(
          std::string(lock_class), std::string(method),
          [this, run, name = std::string(method)](
              std::optional<MemoryObject>& object, std::string_view input,
              std::string& output) {
            events_.add(name);
            if (const int nth = ++calls_[name]; before) before(name, nth);
            if (blocked.contains(caller->number)) return -ESHUTDOWN;
            if (!object && name != lock_method_lock) return -ENOENT;
            Decoder outer(input, name);
            Decoder in = outer.frame(1, "input");
            CPPUNIT_ASSERT_EQUAL(std::string(rbd_lock_name),
                                 in.string("name"));
            const int r = (this->*run)(in, output);
            if (r == 0 && !object) object.emplace();
            return r;
          });
    };
    on(lock_method_lock, &LockClass::lock);
    on(lock_method_unlock, &LockClass::unlock);
    on(lock_method_break, &LockClass::break_lock);
    on(lock_method_get_info, &LockClass::get_info);
    on(lock_method_set_cookie, &LockClass::set_cookie);
  }

  std::vector<Holder> holders;
  LockType type = LockType::none;
  std::string tag;
  /// Clients that are blocklisted.
  std::map<std::uint64_t, bool> blocked;
  /// Called before the nth call (1, ...) of a method is carried out.
  std::function<void(const std::string& method, int nth)> before;

  void set(const Client& client, const std::string& cookie,
           LockType lock_type = LockType::exclusive,
           std::string_view lock_tag = rbd_lock_tag) {
    holders = {{client, cookie}};
    type = lock_type;
    tag = lock_tag;
  }

 private:
  int lock(Decoder& in, std::string&) {
    const auto wanted = static_cast<LockType>(in.u8("type"));
    const Holder me{*caller, in.string("cookie")};
    const std::string wanted_tag = in.string("tag");
    CPPUNIT_ASSERT_EQUAL(std::string(), in.string("description"));
    CPPUNIT_ASSERT_EQUAL(0U, in.u32("duration") + in.u32("ns"));
    CPPUNIT_ASSERT_EQUAL(0, int{in.u8("flags")});
    if (!holders.empty() && tag != wanted_tag) return -EBUSY;
    if (has(me)) return -EEXIST;
    if (!holders.empty()) return -EBUSY;
    set(*caller, me.cookie, wanted, wanted_tag);
    return 0;
  }
  int unlock(Decoder& in, std::string&) {
    return remove({*caller, in.string("cookie")});
  }
  int break_lock(Decoder& in, std::string&) {
    CPPUNIT_ASSERT_EQUAL(entity_client, in.u8("entity type"));
    const auto number = static_cast<std::uint64_t>(in.i64("entity number"));
    return remove({{number, 0}, in.string("cookie")});
  }
  int set_cookie(Decoder& in, std::string&) {
    const auto wanted = static_cast<LockType>(in.u8("type"));
    const Holder me{*caller, in.string("cookie")};
    const std::string wanted_tag = in.string("tag");
    const Holder renamed{*caller, in.string("new cookie")};
    if (holders.empty() || type != wanted || tag != wanted_tag || !has(me) ||
        has(renamed))
      return -EBUSY;
    *std::find(holders.begin(), holders.end(), me) = renamed;
    return 0;
  }
  int get_info(Decoder&, std::string& output) {
    Encoder out;
    out.frame(1, 1, [&] {
      out.u32(static_cast<std::uint32_t>(holders.size()));
      for (const Holder& holder : holders) {
        out.frame(1, 1, [&] {
          out.u8(entity_client);
          out.i64(static_cast<std::int64_t>(holder.client.number));
          out.string(holder.cookie);
        });
        out.frame(1, 1, [&] {
          out.u32(0).u32(0);
          put_address(out, holder.client);
          out.string("");
        });
      }
      out.u8(static_cast<std::uint8_t>(type)).string(tag);
    });
    output = out.take();
    return 0;
  }

  // ceph: src/msg/msg_types.h, entity_addr_t.  Node 0 has no address.
  static void put_address(Encoder& out, const Client& client) {
    out.u8(1);
    out.frame(1, 1, [&] {
      out.u32(client.node == 0 ? 0 : 1);
      out.u32(static_cast<std::uint32_t>(client.number));
      if (client.node == 0) {
        out.string("");
        return;
      }
      Encoder socket;
      socket.u16(2).u16(0);
      socket.u8(192).u8(0).u8(2).u8(static_cast<std::uint8_t>(client.node));
      socket.u64(0);
      out.string(socket.str());
    });
  }

  [[nodiscard]] bool has(const Holder& holder) const {
    return std::find(holders.begin(), holders.end(), holder) != holders.end();
  }
  int remove(const Holder& holder) {
    return std::erase(holders, holder) == 0 ? -ENOENT : 0;
  }

  Events& events_;
  std::map<std::string, int> calls_;
};

class TestBlocklister final : public Blocklister {
 public:
  TestBlocklister(Events& events, const Client& client = self)
      : events_(events), client_(client) {}
  std::uint64_t client_id() const override { return client_.number; }
  void blocklist(const std::string& address,
                 std::chrono::seconds duration) override {
    // How long is up to the monitors.
    CPPUNIT_ASSERT_EQUAL(0L, static_cast<long>(duration.count()));
    events_.add("blocklist " + address);
    if (error != 0) fail(error, "cannot blocklist " + address);
  }
  void wait_for_latest_osdmap() override {
    events_.add("osdmap");
    if (then) std::exchange(then, {})();
  }
  bool is_own(std::uint64_t client) const override {
    return client == client_.number || client == own;
  }
  int error = 0;
  std::function<void()> then;
  std::uint64_t own = 0;  // another one of the process

 private:
  Events& events_;
  const Client client_;
};

/// Answers notifications as it is told, or as one that has nothing to say.
class Handler : public WatchHandler {
 public:
  explicit Handler(ObjectStore& store) : store_(store) {}
  void notified(std::uint64_t id, std::uint64_t cookie,
                std::string_view payload) noexcept override {
    {
      const std::scoped_lock lock(mutex_);
      payloads_.emplace_back(payload);
    }
    if (answers) store_.notify_ack(header, id, cookie, answer);
  }
  void watch_lost(int) noexcept override {}
  [[nodiscard]] std::vector<std::string> payloads() {
    const std::scoped_lock lock(mutex_);
    return payloads_;
  }
  std::string answer;
  bool answers = true;

 private:
  ObjectStore& store_;
  std::mutex mutex_;
  std::vector<std::string> payloads_;
};

std::string message_of(const std::function<void()>& f, int code) {
  try {
    f();
  } catch (const Error& e) {
    CPPUNIT_ASSERT_EQUAL_MESSAGE(e.what(), code, e.code());
    return e.what();
  }
  CPPUNIT_FAIL("no error");
  return {};
}

class ExclusiveLockTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(ExclusiveLockTest);
  CPPUNIT_TEST(free_lock);
  CPPUNIT_TEST(live_owner);
  CPPUNIT_TEST(live_by_client_number);
  CPPUNIT_TEST(live_by_address);
  CPPUNIT_TEST(dead_owner);
  CPPUNIT_TEST(dead_owner_with_another_watch);
  CPPUNIT_TEST(dead_owner_left_alone);
  CPPUNIT_TEST(dead_owner_that_cannot_be_blocklisted);
  CPPUNIT_TEST(dead_owner_without_address);
  CPPUNIT_TEST(owner_that_watches_anew);
  CPPUNIT_TEST(owner_that_releases_meanwhile);
  CPPUNIT_TEST(owner_that_changes_before_the_break);
  CPPUNIT_TEST(owner_broken_by_another);
  CPPUNIT_TEST(owners_without_end);
  CPPUNIT_TEST(two_breakers);
  CPPUNIT_TEST(foreign_locks);
  CPPUNIT_TEST(lost_answer);
  CPPUNIT_TEST(lost_answer_then_new_watch);
  CPPUNIT_TEST(lost_answer_then_released);
  CPPUNIT_TEST(leftover_of_this_client);
  CPPUNIT_TEST(leftover_of_another_client_of_this_process);
  CPPUNIT_TEST(live_lock_of_this_client);
  CPPUNIT_TEST(new_watch);
  CPPUNIT_TEST(new_watch_lost_answer);
  CPPUNIT_TEST(new_watch_lost_lock);
  CPPUNIT_TEST(new_watch_lock_of_another_image);
  CPPUNIT_TEST(releasing);
  CPPUNIT_TEST(releasing_what_is_lost);
  CPPUNIT_TEST(release_fails);
  CPPUNIT_TEST(removed_image);
  CPPUNIT_TEST(blocklisted);
  CPPUNIT_TEST(request);
  CPPUNIT_TEST(request_without_answer);
  CPPUNIT_TEST(request_with_strange_answers);
  CPPUNIT_TEST(request_with_silent_bystander);
  CPPUNIT_TEST(announcements);
  CPPUNIT_TEST_SUITE_END();

 public:
  void setUp() override {
    caller = &self;
    memory_ = std::make_unique<MemoryStore>(MemoryStore::Options{
        .client = self.number, .address = self.address()});
    store_ = std::make_unique<FaultStore>(*memory_);
    memory_->put(header, MemoryObject{});
    model_ = std::make_unique<LockClass>(*memory_, events_);
    lock_ = make();
  }

  void tearDown() override {
    lock_.reset();
    for (const std::string& problem : store_->problems())
      CPPUNIT_FAIL(problem);
    store_.reset();
    model_.reset();
    memory_.reset();
    blocklister_.error = 0;
    blocklister_.then = {};
    blocklister_.own = 0;
    events_.take();
  }

  // ---- Acquiring

  void free_lock() {
    CPPUNIT_ASSERT(!lock_->held());
    acquire(17);
    CPPUNIT_ASSERT_EQUAL(std::string("lock"), events_.take());
    expect_holder(self, "auto 17");
    CPPUNIT_ASSERT_EQUAL(std::string("internal"), model_->tag);
    CPPUNIT_ASSERT(model_->type == LockType::exclusive);
    CPPUNIT_ASSERT(!lock_->owner());
    CPPUNIT_ASSERT_EQUAL(std::string(), lock_->owner_text());
    // Once more: nothing to do.
    acquire(17);
    CPPUNIT_ASSERT_EQUAL(std::string(), events_.take());
  }

  void live_owner() {
    model_->set(other, "auto 99");
    const auto watch = watched(other, 99);
    busy(true);
    CPPUNIT_ASSERT_EQUAL(std::string("lock get_info"), events_.take());
    CPPUNIT_ASSERT_EQUAL(std::string("rbd/vm1 is locked by client.4200 "
                                     "(192.0.2.2:0/4200), which is alive"),
                         lock_->owner_text());
    CPPUNIT_ASSERT_EQUAL(std::string("auto 99"),
                         lock_->owner()->holder.cookie);
    expect_holder(other, "auto 99");
    // It goes.
    model_->holders.clear();
    acquire(17);
    CPPUNIT_ASSERT(!lock_->owner());
  }

  // The address is spelled in another way.
  void live_by_client_number() {
    model_->set(other, "auto 99");
    const auto watch = watched(
        {.address = "v1:192.0.2.2:0/4200", .client = 4200, .cookie = 99});
    busy(true);
    CPPUNIT_ASSERT_EQUAL(std::string("lock get_info"), events_.take());
  }

  void live_by_address() {
    model_->set(other, "auto 99");
    const auto watch =
        watched({.address = other.address(), .client = 1, .cookie = 99});
    busy(true);
    CPPUNIT_ASSERT_EQUAL(std::string("lock get_info"), events_.take());
  }

  void dead_owner() {
    model_->set(other, "auto 99");
    // Others may watch, also under a cookie that happens to be the same.
    const auto watch1 = watched(third, 99);
    acquire(17);
    CPPUNIT_ASSERT_EQUAL(
        std::string("lock get_info get_info blocklist 192.0.2.2:0/4200 osdmap "
                    "break_lock lock"),
        events_.take());
    expect_holder(self, "auto 17");
  }

  // As librbd has it, another watch of the client does not count.
  void dead_owner_with_another_watch() {
    model_->set(other, "auto 99");
    const auto watch = watched(other, 98);
    acquire(17);
    expect_holder(self, "auto 17");
  }

  void dead_owner_left_alone() {
    lock_ = make({.break_dead = false, .what = "rbd/vm1"});
    model_->set(other, "auto 99");
    busy(false);
    CPPUNIT_ASSERT_EQUAL(std::string("lock get_info get_info"),
                         events_.take());
    CPPUNIT_ASSERT_EQUAL(
        std::string("rbd/vm1 is locked by client.4200 (192.0.2.2:0/4200), "
                    "which seems to be dead"),
        lock_->owner_text());
    expect_holder(other, "auto 99");
  }

  void dead_owner_that_cannot_be_blocklisted() {
    model_->set(other, "auto 99");
    blocklister_.error = EACCES;
    const std::string message = failure(EACCES);
    CPPUNIT_ASSERT_EQUAL(
        std::string("rbd/vm1: cannot take the exclusive lock from client.4200 "
                    "(192.0.2.2:0/4200), which seems to be dead: cannot "
                    "blocklist 192.0.2.2:0/4200: Permission denied"),
        message);
    CPPUNIT_ASSERT_EQUAL(
        std::string("lock get_info get_info blocklist 192.0.2.2:0/4200"),
        events_.take());
    expect_holder(other, "auto 99");
    CPPUNIT_ASSERT(!lock_->held());
  }

  void dead_owner_without_address() {
    model_->set({4200, 0}, "auto 99");
    failure(EBUSY);
    CPPUNIT_ASSERT_EQUAL(std::string("lock get_info get_info"),
                         events_.take());
  }

  // ---- Races

  void owner_that_watches_anew() {
    model_->set(other, "auto 99");
    const auto watch = watched(other, 100);
    model_->before = [this](const std::string& method, int nth) {
      if (method == "get_info" && nth == 2) model_->set(other, "auto 100");
    };
    busy(true);
    CPPUNIT_ASSERT_EQUAL(std::string("lock get_info get_info lock get_info"),
                         events_.take());
    expect_holder(other, "auto 100");
  }

  void owner_that_releases_meanwhile() {
    model_->set(other, "auto 99");
    model_->before = [this](const std::string& method, int nth) {
      if (method == "get_info" && nth == 1) model_->holders.clear();
    };
    acquire(17);
    CPPUNIT_ASSERT_EQUAL(std::string("lock get_info lock"), events_.take());

    lock_->release();
    model_->set(other, "auto 99");
    model_->before = [this](const std::string& method, int nth) {
      if (method == "get_info" && nth == 3) model_->holders.clear();
    };
    events_.take();
    acquire(17);
    CPPUNIT_ASSERT_EQUAL(std::string("lock get_info get_info lock"),
                         events_.take());
  }

  // The dead owner's lock has been broken, and a live client has it now.
  void owner_that_changes_before_the_break() {
    model_->set(other, "auto 99");
    const auto watch = watched(third, 55);
    blocklister_.then = [this] { model_->set(third, "auto 55"); };
    busy(true);
    CPPUNIT_ASSERT_EQUAL(
        std::string("lock get_info get_info blocklist 192.0.2.2:0/4200 osdmap "
                    "break_lock lock get_info"),
        events_.take());
    expect_holder(third, "auto 55");
    CPPUNIT_ASSERT_EQUAL(std::string("rbd/vm1 is locked by client.4300 "
                                     "(192.0.2.3:0/4300), which is alive"),
                         lock_->owner_text());
  }

  void owner_broken_by_another() {
    model_->set(other, "auto 99");
    blocklister_.then = [this] { model_->holders.clear(); };
    acquire(17);
    expect_holder(self, "auto 17");
  }

  void owners_without_end() {
    std::uint64_t cookie = 0;
    model_->before = [&](const std::string& method, int) {
      if (method != "lock") return;
      model_->set(other, "auto " + std::to_string(++cookie));
    };
    CPPUNIT_ASSERT(lock_->try_acquire(17) == Result::busy);
    CPPUNIT_ASSERT(lock_->owner().has_value());
    CPPUNIT_ASSERT(!lock_->held());
  }

  void two_breakers() {
    const auto watch1 = watched(self, 17);
    const auto watch2 = watched(third, 55);
    for (int round = 0; round < 200; ++round) {
      model_->set(other, "auto " + std::to_string(1000 + round));
      std::atomic<int> ready = 0;
      const auto run = [&](const Client& me, std::uint64_t cookie,
                           bool* acquired) {
        caller = &me;
        TestBlocklister blocklister(events_, me);
        ExclusiveLock lock(*memory_, header, blocklister,
                           {.what = "rbd/vm1"});
        ++ready;
        while (ready < 2) std::this_thread::yield();
        *acquired = lock.try_acquire(cookie) == Result::acquired;
      };
      bool first = false;
      bool second = false;
      std::thread a(run, self, 17, &first);
      std::thread b(run, third, 55, &second);
      a.join();
      b.join();
      CPPUNIT_ASSERT(first != second);
      expect_holder(first ? self : third, first ? "auto 17" : "auto 55");
      const std::string events = events_.take();
      CPPUNIT_ASSERT(events.find("blocklist 192.0.2.2:0/4200") !=
                     std::string::npos);
      CPPUNIT_ASSERT(events.find("blocklist 192.0.2.1") == std::string::npos);
      CPPUNIT_ASSERT(events.find("blocklist 192.0.2.3") == std::string::npos);
    }
  }

  // ---- What is not for us

  void foreign_locks() {
    model_->set(other, "my backup", LockType::exclusive, "");
    CPPUNIT_ASSERT_EQUAL(
        std::string("rbd/vm1 is locked by client.4200 (192.0.2.2:0/4200) with "
                    "a lock that has the tag \"\", which must release it "
                    "itself (rbd lock ls)"),
        failure(EBUSY));
    model_->set(other, "auto 99", LockType::exclusive, "x");
    failure(EBUSY);
    model_->set(other, "auto 99", LockType::shared);
    CPPUNIT_ASSERT(failure(EBUSY).find("shared") != std::string::npos);
    model_->set(other, "automatic", LockType::exclusive);
    CPPUNIT_ASSERT(failure(EBUSY).find("\"automatic\"") != std::string::npos);
    model_->set(self, "my backup", LockType::exclusive, "");
    failure(EBUSY);
    CPPUNIT_ASSERT(events_.take().find("b") == std::string::npos);
    expect_holder(self, "my backup");
  }

  // ---- Operations whose answers are lost

  void lost_answer() {
    store_->inject(
        {.kind = Kind::write, .error = ETIMEDOUT, .carried_out = true});
    failure(ETIMEDOUT);
    CPPUNIT_ASSERT(!lock_->held());
    acquire(17);
    CPPUNIT_ASSERT_EQUAL(std::string("lock lock"), events_.take());
    expect_holder(self, "auto 17");
  }

  // The old watch still counts as alive, but it was ours.
  void lost_answer_then_new_watch() {
    const auto watch = watched(self, 17);
    store_->inject(
        {.kind = Kind::write, .error = ETIMEDOUT, .carried_out = true});
    failure(ETIMEDOUT);
    acquire(18);
    CPPUNIT_ASSERT_EQUAL(std::string("lock lock get_info get_info set_cookie"),
                         events_.take());
    expect_holder(self, "auto 18");
  }

  void lost_answer_then_released() {
    store_->inject(
        {.kind = Kind::write, .error = ETIMEDOUT, .carried_out = true});
    failure(ETIMEDOUT);
    expect_holder(self, "auto 17");
    lock_->release();
    CPPUNIT_ASSERT(model_->holders.empty());
  }

  void leftover_of_this_client() {
    model_->set(self, "auto 5");
    acquire(17);
    CPPUNIT_ASSERT_EQUAL(std::string("lock get_info get_info set_cookie"),
                         events_.take());
    expect_holder(self, "auto 17");
  }

  void leftover_of_another_client_of_this_process() {
    blocklister_.own = third.number;
    for (const bool break_dead : {true, false}) {
      lock_ = make({.break_dead = break_dead, .what = "rbd/vm1"});
      model_->set(third, "auto 5");
      {
        const auto watch = watched(third, 5);
        busy(true);
        expect_holder(third, "auto 5");
      }
      events_.take();
      acquire(17);
      CPPUNIT_ASSERT_EQUAL(
          std::string("lock get_info get_info break_lock lock"),
          events_.take());
      expect_holder(self, "auto 17");
    }
  }

  void live_lock_of_this_client() {
    model_->set(self, "auto 5");
    const auto watch = watched(self, 5);
    busy(true);
    expect_holder(self, "auto 5");
  }

  // ---- New watches

  void new_watch() {
    lock_->rewatched(16);  // nothing to rename
    acquire(17);
    events_.take();
    lock_->rewatched(17);
    CPPUNIT_ASSERT_EQUAL(std::string(), events_.take());
    lock_->rewatched(18);
    CPPUNIT_ASSERT_EQUAL(std::string("set_cookie"), events_.take());
    CPPUNIT_ASSERT(lock_->held());
    expect_holder(self, "auto 18");
    acquire(19);
    expect_holder(self, "auto 19");
    lock_->release();
    CPPUNIT_ASSERT(model_->holders.empty());
  }

  void new_watch_lost_answer() {
    acquire(17);
    store_->inject(
        {.kind = Kind::write, .error = ETIMEDOUT, .carried_out = true});
    message_of([this] { lock_->rewatched(18); }, ETIMEDOUT);
    CPPUNIT_ASSERT(lock_->held());
    lock_->rewatched(18);
    expect_holder(self, "auto 18");

    store_->inject(
        {.kind = Kind::write, .error = ETIMEDOUT, .carried_out = true});
    message_of([this] { lock_->rewatched(19); }, ETIMEDOUT);
    lock_->rewatched(20);
    CPPUNIT_ASSERT(lock_->held());
    expect_holder(self, "auto 20");

    // Given back without knowing its name.
    for (const bool carried_out : {false, true}) {
      store_->inject({.kind = Kind::write,
                      .error = ETIMEDOUT,
                      .carried_out = carried_out});
      message_of([this] { lock_->rewatched(21); }, ETIMEDOUT);
      store_->inject({.kind = Kind::write, .error = ETIMEDOUT});
      message_of([this] { lock_->rewatched(22); }, ETIMEDOUT);
      lock_->release();
      CPPUNIT_ASSERT(model_->holders.empty());
      acquire(20);
    }
    store_->inject(
        {.kind = Kind::write, .error = ETIMEDOUT, .carried_out = true});
    message_of([this] { lock_->rewatched(21); }, ETIMEDOUT);
    store_->inject({.kind = Kind::write, .skip = 1, .error = ETIMEDOUT});
    message_of([this] { lock_->release(); }, ETIMEDOUT);
    expect_holder(self, "auto 21");
    lock_->release();
    CPPUNIT_ASSERT(model_->holders.empty());
  }

  void new_watch_lost_lock() {
    acquire(17);
    model_->set(other, "auto 99");
    CPPUNIT_ASSERT_EQUAL(
        std::string("rbd/vm1: the exclusive lock has been lost to client.4200 "
                    "(192.0.2.2:0/4200)"),
        message_of([this] { lock_->rewatched(18); }, ESHUTDOWN));
    CPPUNIT_ASSERT(!lock_->held());
    lock_->release();
    expect_holder(other, "auto 99");

    model_->holders.clear();
    acquire(18);
    model_->holders.clear();
    CPPUNIT_ASSERT_EQUAL(
        std::string("rbd/vm1: the exclusive lock has been lost"),
        message_of([this] { lock_->rewatched(19); }, ESHUTDOWN));
  }

  // Of this client, but under a name that was never tried: it is no answer to
  // an earlier call.
  void new_watch_lock_of_another_image() {
    acquire(17);
    model_->set(self, "auto 99");
    CPPUNIT_ASSERT_EQUAL(
        std::string("rbd/vm1: the exclusive lock has been lost to client.4100 "
                    "(192.0.2.1:0/4100)"),
        message_of([this] { lock_->rewatched(18); }, ESHUTDOWN));
    CPPUNIT_ASSERT(!lock_->held());
    lock_->release();
    expect_holder(self, "auto 99");
  }

  // ---- Releasing

  void releasing() {
    lock_->release();
    CPPUNIT_ASSERT_EQUAL(std::string(), events_.take());
    acquire(17);
    events_.take();
    lock_->release();
    CPPUNIT_ASSERT(!lock_->held());
    CPPUNIT_ASSERT(model_->holders.empty());
    CPPUNIT_ASSERT_EQUAL(std::string("unlock"), events_.take());
    lock_->release();
    CPPUNIT_ASSERT_EQUAL(std::string(), events_.take());
    acquire(17);
  }

  void releasing_what_is_lost() {
    acquire(17);
    model_->set(other, "auto 99");
    lock_->release();
    CPPUNIT_ASSERT(!lock_->held());
    expect_holder(other, "auto 99");
  }

  void release_fails() {
    acquire(17);
    store_->inject({.kind = Kind::write, .error = ETIMEDOUT});
    CPPUNIT_ASSERT_EQUAL(
        std::string("rbd/vm1: cannot release the exclusive lock: no answer "
                    "from the cluster within the time limit"),
        message_of([this] { lock_->release(); }, ETIMEDOUT));
    CPPUNIT_ASSERT(!lock_->held());
    expect_holder(self, "auto 17");
    lock_->release();
    CPPUNIT_ASSERT(model_->holders.empty());
  }

  void removed_image() {
    acquire(17);
    memory_->put(header, std::nullopt);
    message_of([this] { lock_->rewatched(18); }, ENOENT);
    message_of([this] { static_cast<void>(lock_->request_release(17)); },
               ENOENT);
    lock_->release();
    failure(ENOENT);
    // It is not made again.
    CPPUNIT_ASSERT(!memory_->find(header));
  }

  void blocklisted() {
    acquire(17);
    model_->blocked[self.number] = true;
    message_of([this] { lock_->rewatched(18); }, ESHUTDOWN);
    message_of([this] { lock_->release(); }, ESHUTDOWN);
    CPPUNIT_ASSERT_EQUAL(
        std::string("rbd/vm1: cannot take the exclusive lock: this client has "
                    "been blocklisted by the cluster"),
        failure(ESHUTDOWN));
    store_->inject({.kind = Kind::notify, .error = ESHUTDOWN});
    message_of([this] { static_cast<void>(lock_->request_release(17)); },
               ESHUTDOWN);
  }

  // ---- Notifications

  // The watch of the client that asks is notified too.
  void request() {
    Handler mine(*memory_);
    Handler owner(*memory_);
    Handler bystander(*memory_);
    const auto watch1 = memory_->watch(header, mine);
    const auto watch2 = memory_->watch_as(other.watcher(99), header, owner);
    const auto watch3 =
        memory_->watch_as(third.watcher(55), header, bystander);
    owner.answer = encode_notify_response(0);
    CPPUNIT_ASSERT_EQUAL(0, lock_->request_release(watch1->cookie()));
    owner.answer = encode_notify_response(-EROFS);
    CPPUNIT_ASSERT_EQUAL(-EROFS, lock_->request_release(watch1->cookie()));
    for (Handler* const handler : {&mine, &owner, &bystander}) {
      const auto payloads = handler->payloads();
      CPPUNIT_ASSERT_EQUAL(std::size_t{2}, payloads.size());
      const NotifyMessage message = decode_notify(payloads[0]);
      CPPUNIT_ASSERT(message.op == NotifyOp::request_lock);
      CPPUNIT_ASSERT(message.client == lock_->client_id(watch1->cookie()));
      CPPUNIT_ASSERT(!message.force);
    }
    CPPUNIT_ASSERT_EQUAL(self.number,
                         lock_->client_id(watch1->cookie()).gid);
  }

  void request_without_answer() {
    CPPUNIT_ASSERT_EQUAL(-ETIMEDOUT, lock_->request_release(17));
    Handler mine(*memory_);
    const auto watch1 = memory_->watch(header, mine);
    CPPUNIT_ASSERT_EQUAL(-ETIMEDOUT, lock_->request_release(17));
    // Without an answer of the OSD.
    store_->inject({.kind = Kind::notify, .error = ETIMEDOUT});
    CPPUNIT_ASSERT_EQUAL(-ETIMEDOUT, lock_->request_release(17));
  }

  void request_with_strange_answers() {
    Handler owner(*memory_);
    Handler second(*memory_);
    const auto watch2 = memory_->watch_as(other.watcher(99), header, owner);
    owner.answer = "nonsense";
    CPPUNIT_ASSERT_EQUAL(-EINVAL, lock_->request_release(17));
    owner.answer = encode_notify_response(7);
    CPPUNIT_ASSERT_EQUAL(0, lock_->request_release(17));
    const auto watch3 = memory_->watch_as(third.watcher(55), header, second);
    second.answer = owner.answer;
    CPPUNIT_ASSERT_EQUAL(-EINVAL, lock_->request_release(17));
  }

  // A client that has died, but whose watch has not.
  void request_with_silent_bystander() {
    lock_ = make({.limit = 200ms, .what = "rbd/vm1"});
    Handler owner(*memory_);
    Handler silent(*memory_);
    silent.answers = false;
    owner.answer = encode_notify_response(-EROFS);
    const auto watch2 = memory_->watch_as(other.watcher(99), header, owner);
    const auto watch3 = memory_->watch_as(third.watcher(55), header, silent);
    CPPUNIT_ASSERT_EQUAL(-EROFS, lock_->request_release(17));
    owner.answer.clear();
    CPPUNIT_ASSERT_EQUAL(-ETIMEDOUT, lock_->request_release(17));
  }

  void announcements() {
    Handler theirs(*memory_);
    const auto watch = memory_->watch_as(other.watcher(99), header, theirs);
    lock_->finish_announcing(20s);  // nothing to wait for
    lock_->announce_acquired(17);
    lock_->finish_announcing(20s);
    lock_->announce_released(17);
    lock_->finish_announcing(20s);
    const auto payloads = theirs.payloads();
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, payloads.size());
    const NotifyMessage first = decode_notify(payloads[0]);
    CPPUNIT_ASSERT(first.op == NotifyOp::acquired_lock);
    CPPUNIT_ASSERT(first.client == lock_->client_id(17));
    const NotifyMessage second = decode_notify(payloads[1]);
    CPPUNIT_ASSERT(second.op == NotifyOp::released_lock);
    CPPUNIT_ASSERT(second.client == lock_->client_id(17));
    // Errors are no errors, and nobody waits for the silent.
    memory_->put(header, std::nullopt);
    lock_->announce_released(17);
    lock_->finish_announcing(20s);
  }

 private:
  std::unique_ptr<ExclusiveLock> make(
      ExclusiveLock::Options options = {.what = "rbd/vm1"}) {
    return std::make_unique<ExclusiveLock>(*store_, header, blocklister_,
                                           std::move(options));
  }
  void acquire(std::uint64_t cookie) {
    CPPUNIT_ASSERT(lock_->try_acquire(cookie) == Result::acquired);
    CPPUNIT_ASSERT(lock_->held());
  }
  void busy(bool alive) {
    CPPUNIT_ASSERT(lock_->try_acquire(17) == Result::busy);
    CPPUNIT_ASSERT(!lock_->held());
    CPPUNIT_ASSERT(lock_->owner().has_value());
    CPPUNIT_ASSERT_EQUAL(alive, lock_->owner()->alive);
  }
  std::string failure(int code) {
    const std::string message = message_of(
        [this] { static_cast<void>(lock_->try_acquire(17)); }, code);
    CPPUNIT_ASSERT(!lock_->held());
    return message;
  }
  std::unique_ptr<Watch> watched(const Watcher& who) {
    return memory_->watch_as(who, header, silent_);
  }
  std::unique_ptr<Watch> watched(const Client& client, std::uint64_t cookie) {
    return watched(client.watcher(cookie));
  }
  void expect_holder(const Client& client, const std::string& cookie) {
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, model_->holders.size());
    CPPUNIT_ASSERT_EQUAL(client.number,
                         model_->holders.front().client.number);
    CPPUNIT_ASSERT_EQUAL(cookie, model_->holders.front().cookie);
  }

  class Silent : public WatchHandler {
    void notified(std::uint64_t, std::uint64_t,
                  std::string_view) noexcept override {}
    void watch_lost(int) noexcept override {}
  };

  Silent silent_;
  Events events_;
  TestBlocklister blocklister_{events_};
  std::unique_ptr<MemoryStore> memory_;
  std::unique_ptr<FaultStore> store_;
  std::unique_ptr<LockClass> model_;
  std::unique_ptr<ExclusiveLock> lock_;
};

/// Times are those after the start.
class LockTurnsTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(LockTurnsTest);
  CPPUNIT_TEST(who_maintains_is_left_alone);
  CPPUNIT_TEST(who_keeps_it_is_a_writer);
  CPPUNIT_TEST(handing_over_begins_the_turn);
  CPPUNIT_TEST(who_has_not_yet_said_so);
  CPPUNIT_TEST(nobody_says_anything);
  CPPUNIT_TEST(patience_of_nothing);
  CPPUNIT_TEST(writers_are_forgotten);
  CPPUNIT_TEST_SUITE_END();

 public:
  void who_maintains_is_left_alone() {
    LockTurns turns(10s);
    turns.acquired_by(1, at(5s));
    // That it is free shows by trying, without asking.
    CPPUNIT_ASSERT(turns.next_try() == at(6s));
    CPPUNIT_ASSERT(!turns.ask(1, at(6s)));
    CPPUNIT_ASSERT(turns.next_try() == at(7s));
    CPPUNIT_ASSERT(!turns.ask(1, at(14500ms)));
    CPPUNIT_ASSERT(turns.next_try() == at(15s));
    // It says so: at once.
    turns.free();
    CPPUNIT_ASSERT(turns.next_try() <= at(0s));
    // It comes again.
    turns.acquired_by(1, at(20s));
    CPPUNIT_ASSERT(!turns.ask(1, at(29999ms)));
  }

  void who_keeps_it_is_a_writer() {
    LockTurns turns(10s);
    turns.acquired_by(1, at(0s));
    CPPUNIT_ASSERT(turns.ask(1, at(10s)));
    turns.free();
    turns.acquired_by(1, at(11s));
    CPPUNIT_ASSERT(turns.next_try() == at(11100ms));
    CPPUNIT_ASSERT(!turns.ask(1, at(11099ms)));
    CPPUNIT_ASSERT(turns.ask(1, at(11100ms)));
    // Another one may have it for longer.
    turns.acquired_by(2, at(12s));
    CPPUNIT_ASSERT(!turns.ask(2, at(21s)));
  }

  void handing_over_begins_the_turn() {
    LockTurns turns(10s);
    turns.handing_over(1, at(0s));
    CPPUNIT_ASSERT(turns.next_try() == at(1s));
    CPPUNIT_ASSERT(!turns.ask(1, at(1s)));
    CPPUNIT_ASSERT(turns.ask(1, at(10s)));
    // A writer needs time to take it, too.
    turns.handing_over(1, at(20s));
    CPPUNIT_ASSERT(turns.next_try() == at(21s));
    turns.acquired_by(1, at(20500ms));
    CPPUNIT_ASSERT(turns.next_try() == at(20600ms));
  }

  // Of two who waited for the lock, the other one was faster.
  void who_has_not_yet_said_so() {
    LockTurns turns(10s);
    turns.acquired_by(1, at(0s));
    turns.free();
    CPPUNIT_ASSERT(!turns.ask(2, at(1s)));
    CPPUNIT_ASSERT(!turns.ask(2, at(10999ms)));
    CPPUNIT_ASSERT(turns.ask(2, at(11s)));
    // This client has had it; somebody else than who asked for it has taken it.
    turns.free();
    turns.handing_over(2, at(20s));
    CPPUNIT_ASSERT(!turns.ask(3, at(21s)));
    CPPUNIT_ASSERT(!turns.ask(3, at(30s)));
    CPPUNIT_ASSERT(turns.ask(3, at(31s)));
  }

  // Who has had the lock for longer than we know is asked at once.
  void nobody_says_anything() {
    LockTurns turns(10s);
    CPPUNIT_ASSERT(turns.ask(1, at(0s)));
    turns.trying(at(0s));
    CPPUNIT_ASSERT(turns.next_try() == at(1s));
    // One that is too old to say who it is.
    turns.acquired_by(std::nullopt, at(2s));
    CPPUNIT_ASSERT(turns.ask(7, at(2100ms)));
  }

  void patience_of_nothing() {
    LockTurns turns(0s);
    turns.acquired_by(1, at(0s));
    CPPUNIT_ASSERT(!turns.ask(1, at(99ms)));
    CPPUNIT_ASSERT(turns.ask(1, at(100ms)));
  }

  void writers_are_forgotten() {
    LockTurns turns(10s);
    for (std::uint64_t client = 1; client <= 65; ++client)
      CPPUNIT_ASSERT(turns.ask(client, at(0s)));
    turns.acquired_by(2, at(1s));
    CPPUNIT_ASSERT(turns.ask(2, at(2s)));
    turns.acquired_by(1, at(3s));
    CPPUNIT_ASSERT(!turns.ask(1, at(4s)));
  }

 private:
  static LockTurns::Clock::time_point at(std::chrono::milliseconds time) {
    return LockTurns::Clock::time_point(1h) + time;
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(ExclusiveLockTest);
CPPUNIT_TEST_SUITE_REGISTRATION(LockTurnsTest);

}  // namespace
