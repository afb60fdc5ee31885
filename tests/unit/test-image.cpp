// SPDX-License-Identifier: BSD-3-Clause
//
// An image as a whole, on the stores in memory and with faults: requests of
// all kinds, the upkeep beside them, and the formats.  Its units have tests of
// their own.

#include <cppunit/extensions/HelperMacros.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <future>
#include <memory>
#include <random>
#include <ranges>
#include <string>
#include <thread>
#include <vector>

#include "fake-format.hpp"
#include "formats/catalog.hpp"
#include "formats/striper_metadata.hpp"
#include "image/image.hpp"
#include "image/ownership/exclusive_lock.hpp"
#include "image/ownership/lock_turns.hpp"
#include "image/status/difference.hpp"
#include "layout/sectors.hpp"
#include "rados/error.hpp"
#include "rados/fault_store.hpp"
#include "rados/memory_store.hpp"
#include "rbd/directory.hpp"
#include "rbd/encoding.hpp"
#include "rbd/format1.hpp"
#include "rbd/watch_notify.hpp"

namespace {

using namespace nbdrados;
using namespace std::chrono_literals;
using Kind = FaultStore::Kind;

/// A store with faults, a format and an image on them.
struct Bench {
  explicit Bench(Layout layout, std::uint64_t size,
                 MemoryStore::Options options = {})
      : memory(options), store(memory) {
    memory.put("header", MemoryObject{});
    state->view.size = size;
    make(layout);
  }
  void make(Layout layout) {
    ImageOptions how;
    how.writable = true;
    how.discard_granularity = granularity;
    how.workers = workers;
    how.lock = LockMode::automatic;
    how.lock_wait = lock_wait;
    how.log = [this](const std::string& line, bool) {
      const std::scoped_lock lock(log_mutex);
      log.push_back(line);
    };
    image.reset();
    image = std::make_unique<Image>(
        std::make_unique<FakeFormat>(store, layout, state), how);
    store.clear_log();
  }
  ~Bench() {
    image.reset();
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, store.problems().size());
  }
  void set_view(const View& view) { state->set_view(view); }
  void write(const std::string& data, std::uint64_t offset) {
    image->write(data.data(), data.size(), offset);
  }
  /// The snapshot context of the last write.
  SnapContext last_context() {
    for (const auto ops = store.log(); const auto& r : std::views::reverse(ops))
      if (r.kind == Kind::write) return r.snapc;
    return {};
  }
  std::string read(std::uint64_t length, std::uint64_t offset) {
    std::string data(length, '?');
    image->read(data.data(), length, offset);
    return data;
  }

  /// All extents of a range: a call may end early when time is short.
  std::vector<Extent> extents(std::uint64_t length, std::uint64_t offset) {
    std::vector<Extent> all;
    for (const std::uint64_t end = offset + length; offset < end;) {
      for (const Extent& e : image->extents(end - offset, offset, false)) {
        if (!all.empty() && all.back().data == e.data)
          all.back().length += e.length;
        else
          all.push_back(e);
        offset = e.offset + e.length;
      }
    }
    return all;
  }

  MemoryStore memory;
  FaultStore store;
  std::shared_ptr<FakeFormat::State> state =
      std::make_shared<FakeFormat::State>();
  std::shared_ptr<WorkerPool> workers = std::make_shared<WorkerPool>(4);
  std::uint64_t granularity = 0;
  std::chrono::seconds lock_wait = default_lock_wait;
  std::mutex log_mutex;
  std::vector<std::string> log;
  std::unique_ptr<Image> image;
};

using u64 = std::uint64_t;
constexpr u64 K = 1024;

/// An object with these bytes.
MemoryObject memory_object(const std::string& bytes) {
  MemoryObject object;
  object.data.write(0, bytes);
  return object;
}

class TestRequests : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(TestRequests);
  CPPUNIT_TEST(random_operations);
  CPPUNIT_TEST(trim_rounds_inwards);
  CPPUNIT_TEST(trim_beyond_the_end);
  CPPUNIT_TEST(absurd_layouts);
  CPPUNIT_TEST_SUITE_END();

 public:
  void random_operations() {
    const struct {
      std::uint64_t os, su, sc, size;
    } cases[] = {{64 * K, 64 * K, 1, 1000 * K + 123},
                 {64 * K, 8 * K, 3, 777 * K + 1},
                 {16 * K, 4 * K, 7, 999 * K},
                 {5000, 1000, 4, 200003},
                 {4 * K, 512, 5, 128 * K}};
    // Under valgrind the full number takes more than half an hour.
    const char* const quick = std::getenv("NBDRADOS_QUICK");
    const int rounds = quick != nullptr && *quick == '1' ? 75 : 1500;
    std::mt19937_64 random(4711);
    for (const auto& c : cases) {
      Bench b(Layout(c.os, c.su, c.sc), c.size);
      std::string model(c.size, '\0');
      for (int i = 0; i < rounds; ++i) {
        const std::uint64_t offset = random() % c.size;
        const std::uint64_t length =
            1 + random() % std::min<std::uint64_t>(
                               c.size - offset,
                               random() % 4 == 0 ? 3 * c.os * c.sc : c.os);
        switch (random() % 6) {
          case 0:
          case 1: {
            std::string data(length, '\0');
            for (char& ch : data) ch = static_cast<char>(random() | 1);
            b.write(data, offset);
            model.replace(offset, length, data);
            break;
          }
          case 2:
            b.image->zero(length, offset,
                          random() % 2 ? Image::Zero::free
                                       : Image::Zero::allocate);
            model.replace(offset, length, std::string(length, '\0'));
            break;
          case 3: {
            b.image->trim(length, offset);
            // Either old or zero, but nothing outside of the range.
            const std::string now = b.read(length, offset);
            for (std::uint64_t j = 0; j < length; ++j)
              CPPUNIT_ASSERT(now[j] == 0 || now[j] == model[offset + j]);
            model.replace(offset, length, now);
            break;
          }
          case 4:
            check_extents(b, model, offset, length, random() % 2 == 0);
            break;
          default:
            CPPUNIT_ASSERT(b.read(length, offset) ==
                           model.substr(offset, length));
        }
      }
      CPPUNIT_ASSERT(b.read(c.size, 0) == model);
      check_extents(b, model, 0, c.size, false);
    }
  }

  static void check_extents(Bench& b, const std::string& model,
                            std::uint64_t offset, std::uint64_t length,
                            bool one) {
    const auto list = one ? b.image->extents(length, offset, true)
                          : b.extents(length, offset);
    CPPUNIT_ASSERT(!list.empty());
    CPPUNIT_ASSERT(!one || list.size() == 1);
    std::uint64_t at = offset;
    for (std::size_t i = 0; i < list.size(); ++i) {
      CPPUNIT_ASSERT_EQUAL(at, list[i].offset);
      CPPUNIT_ASSERT(list[i].length > 0);
      CPPUNIT_ASSERT(i == 0 || list[i].data != list[i - 1].data);
      CPPUNIT_ASSERT(at < offset + length);
      at += list[i].length;
      CPPUNIT_ASSERT(at <= model.size());
      if (!list[i].data)
        for (std::uint64_t j = at - list[i].length; j < at; ++j)
          CPPUNIT_ASSERT_EQUAL('\0', model[j]);
    }
    // Only a hole may go on behind the range.
    CPPUNIT_ASSERT(at <= offset + length || !list.back().data);
    if (!one) CPPUNIT_ASSERT(at >= offset + length);
    // Sectors are what they are to a request for all, which is exact.
    std::vector<Extent> all = b.extents(model.size(), 0);
    for (const Extent& e : all) CPPUNIT_ASSERT_EQUAL(u64{0}, e.offset % 512);
    std::erase_if(all, [&](const Extent& e) {
      return e.offset + e.length <= offset;
    });
    cut(all, offset, at);
    CPPUNIT_ASSERT(all == list);
  }

  void trim_rounds_inwards() {
    Bench b(Layout(64 * K, 64 * K, 1), 200 * K + 100);
    b.granularity = 16 * K;
    b.make(Layout(64 * K, 64 * K, 1));
    std::string model(200 * K + 100, 'x');
    b.write(model, 0);
    const auto trim = [&](std::uint64_t length, std::uint64_t offset,
                          std::uint64_t from, std::uint64_t to) {
      b.image->trim(length, offset);
      std::fill(model.begin() + static_cast<long>(from),
                model.begin() + static_cast<long>(to), '\0');
      CPPUNIT_ASSERT(b.read(model.size(), 0) == model);
    };
    trim(16 * K - 1, 1, 0, 0);
    trim(16 * K, 1, 0, 0);
    trim(32 * K, 1, 16 * K, 32 * K);
    trim(16 * K, 48 * K, 48 * K, 64 * K);
    trim(20 * K + 100, 180 * K, 192 * K, 200 * K + 100);  // up to the end
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{64 * K},
                         Bench(Layout(128 * K, 128 * K, 1), 128 * K)
                             .image->discard_granularity());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{4 * K},
                         Bench(Layout(4 * K, 4 * K, 1), 128 * K)
                             .image->discard_granularity());
  }

  void trim_beyond_the_end() {
    Bench b(Layout(64 * K, 64 * K, 1), 100 * K);
    b.write(std::string(100 * K, 'x'), 0);
    for (const auto& [length, offset] : std::vector<std::pair<u64, u64>>{
             {64 * K, 64 * K}, {1, 100 * K}, {200 * K, 0},
             // Their ends are small numbers.
             {100 * K, ~u64{0} - 5}, {~u64{0}, 80 * K}})
      CPPUNIT_ASSERT_EQUAL(
          EINVAL, error_of([&] { b.image->trim(length, offset); }));
    CPPUNIT_ASSERT(b.read(100 * K, 0) == std::string(100 * K, 'x'));
  }

  void absurd_layouts() {
    {
      Bench b(Layout(1 << 20, 1, 3), 100000);
      b.write(std::string(5000, 'q'), 333);
      CPPUNIT_ASSERT(b.read(5000, 333) == std::string(5000, 'q'));
      CPPUNIT_ASSERT(b.read(333, 0) == std::string(333, '\0'));
      b.image->zero(5000, 333, Image::Zero::free);
      CPPUNIT_ASSERT(b.read(5400, 0) == std::string(5400, '\0'));
    }
    {
      Bench b(Layout(64 * K, 64 * K, 4294967295), std::uint64_t{1} << 62);
      const std::uint64_t far = (std::uint64_t{1} << 62) - 70000;
      b.write(std::string(70000, 'q'), far);
      CPPUNIT_ASSERT(b.read(70000, far) == std::string(70000, 'q'));
      const auto list = b.extents(70000, far);
      CPPUNIT_ASSERT_EQUAL(std::size_t{1}, list.size());
      CPPUNIT_ASSERT(list[0].data);
    }
  }
};

class TestDifferences : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(TestDifferences);
  CPPUNIT_TEST(differences_within_sectors);
  CPPUNIT_TEST_SUITE_END();

 public:
  void differences_within_sectors() {
    for (unsigned seed = 0; seed < 12; ++seed) {
      std::mt19937 random(seed);
      const bool odd = seed % 3 == 0;  // objects that begin within sectors
      const Layout layout = odd ? Layout(5000, 1000, 3)
                                : Layout(8 * K, seed % 3 == 1 ? 512 : 8 * K,
                                         seed % 3 == 1 ? 4 : 1);
      MemoryStore::Options options;
      options.map_granularity = 1;
      u64 size = 60 * K + random() % 2000;
      Bench b(layout, size, options);
      const auto change = [&](int count) {
        for (int i = 0; i < count; ++i) {
          const u64 at = random() % size;
          const u64 n = std::min(1 + random() % 3000, size - at);
          if (random() % 3 == 0)
            b.image->zero(n, at, Image::Zero::free);
          else
            b.write(std::string(n, static_cast<char>(random() | 1)), at);
        }
      };
      change(15);
      const auto then = std::make_shared<FakeFormat::State>();
      then->view = {.size = size, .snapc = {5, {5}}, .snap = 5};
      const std::string old = b.read(size, 0);
      size += random() % 1500;
      b.set_view({.size = size, .snapc = {5, {5}}});
      b.image->refresh();
      change(5);
      Difference difference(
          std::shared_ptr<Image>(b.image.get(), [](Image*) {}),
          std::make_unique<FakeFormat>(b.store, layout, then));
      check_difference(difference, old, b.read(size, 0), random);
    }
  }

  /// The difference makes of OLD what NEW is, in whole sectors, and any part of
  /// it is the same in any request.
  static void check_difference(Difference& difference, std::string old,
                               const std::string& now, std::mt19937& random) {
    using Difference::Kind::data;
    using Difference::Kind::zero;
    const u64 size = now.size();
    old.resize(size);
    const auto all = difference.extents(size, 0, false);
    std::string made = old;
    u64 end = 0;
    for (const auto& e : all) {
      CPPUNIT_ASSERT_EQUAL(end, e.offset);
      CPPUNIT_ASSERT_EQUAL(u64{0}, e.offset % 512);
      if (e.kind == zero)
        made.replace(e.offset, e.length, std::string(e.length, '\0'));
      else if (e.kind == data)
        made.replace(e.offset, e.length, now, e.offset, e.length);
      end += e.length;
    }
    CPPUNIT_ASSERT_EQUAL(size, end);
    CPPUNIT_ASSERT(made == now);
    for (int i = 0; i < 50; ++i) {
      const u64 offset = random() % size;
      const u64 length = 1 + random() % (size - offset);
      const bool one = random() % 2 == 0;
      const auto list = difference.extents(length, offset, one);
      CPPUNIT_ASSERT(!list.empty() && (!one || list.size() == 1));
      const u64 told = list.back().offset + list.back().length;
      CPPUNIT_ASSERT(one ? told <= offset + length : told == offset + length);
      auto expected = all;
      std::erase_if(expected, [&](const Difference::Extent& e) {
        return e.offset + e.length <= offset;
      });
      cut(expected, offset, told);
      CPPUNIT_ASSERT(expected == list);
    }
  }

};

class TestUpkeep : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(TestUpkeep);
  CPPUNIT_TEST(writes_carry_the_snapshot_context);
  CPPUNIT_TEST(notify_waits_for_old_writes);
  CPPUNIT_TEST(broken_watch_holds_writes);
  CPPUNIT_TEST(deleted_image);
  CPPUNIT_TEST(blocklisted_client);
  CPPUNIT_TEST(blocklisted_client_that_wants_the_lock);
  CPPUNIT_TEST(another_image_of_this_client_wants_the_lock);
  CPPUNIT_TEST(lost_image_gives_the_lock_back);
  CPPUNIT_TEST(release_that_fails);
  CPPUNIT_TEST(lock_that_cannot_be_used);
  CPPUNIT_TEST(owner_of_the_lock_always_watches);
  CPPUNIT_TEST(other_clients_have_their_turns);
  CPPUNIT_TEST(lock_is_not_wanted_for_ever);
  CPPUNIT_TEST(lost_image_takes_no_lock);
  CPPUNIT_TEST(watch_is_kept_while_caches_write);
  CPPUNIT_TEST(caches_of_a_lost_image_are_asked);
  CPPUNIT_TEST(unread_notification_holds_writes);
  CPPUNIT_TEST(refresh_does_not_end_a_hold);
  CPPUNIT_TEST(writes_wait_while_the_header_is_read);
  CPPUNIT_TEST(writes_wait_for_the_watch);
  CPPUNIT_TEST(failure_while_the_watch_is_made);
  CPPUNIT_TEST(watch_that_is_refused_for_a_while);
  CPPUNIT_TEST(failure_of_a_parent_ends);
  CPPUNIT_TEST(many_generations);
  CPPUNIT_TEST(parents_in_a_circle);
  CPPUNIT_TEST(lost_lock);
  CPPUNIT_TEST_SUITE_END();

 public:
  void writes_carry_the_snapshot_context() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    b.write("old", 0);
    View view = {.size = 64 * K, .snapc = {7, {7}}};
    b.set_view(view);
    CPPUNIT_ASSERT_EQUAL(0, b.store.notify("header", "", 10s));
    b.write("new", 0);
    CPPUNIT_ASSERT(b.last_context() == (SnapContext{7, {7}}));
    CPPUNIT_ASSERT_EQUAL(std::string("old"),
                         b.memory.find("data.0000", 7)->data.bytes());
    CPPUNIT_ASSERT_EQUAL(std::string("new"), b.read(3, 0));
    b.image->zero(64 * K, 0, Image::Zero::free);
    CPPUNIT_ASSERT(b.last_context() == (SnapContext{7, {7}}));
    CPPUNIT_ASSERT_EQUAL(std::string("old"),
                         b.memory.find("data.0000", 7)->data.bytes());
  }

  void notify_waits_for_old_writes() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    b.store.inject({.kind = Kind::write, .held = true});
    auto old_write =
        std::async(std::launch::async, [&] { b.write("old", 0); });
    CPPUNIT_ASSERT(b.store.wait_until_held(1));
    b.set_view({.size = 64 * K, .snapc = {7, {7}}});
    auto notify = std::async(std::launch::async,
                             [&] { return b.store.notify("header", "", 20s); });
    // The new context is in use while the notifier still waits.
    CPPUNIT_ASSERT(eventually([&] {
      b.write("new", 4 * K);
      return b.last_context().seq == 7;
    }));
    CPPUNIT_ASSERT(notify.wait_for(50ms) == std::future_status::timeout);
    b.store.release();
    CPPUNIT_ASSERT_EQUAL(0, notify.get());
    old_write.get();
  }

  void broken_watch_holds_writes() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    b.store.inject({.kind = Kind::watch, .times = 2, .error = ETIMEDOUT});
    b.set_view({.size = 64 * K, .snapc = {9, {9}}});
    b.store.clear_log();
    b.store.lose_watches("header", ENOTCONN);
    auto write = std::async(std::launch::async, [&] {
      // Until the loss has been noticed a write may still pass.
      do b.write("x", 0);
      while (b.last_context().seq != 9);
    });
    // Reads go on.
    (void)b.read(1, 0);
    write.get();
    CPPUNIT_ASSERT(b.store.hits() >= 2);
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, b.memory.watchers("header"));
    // No write was between the loss and the new watch with the old context:
    // once the new context was seen, the old one never came back.
    bool seen = false;
    for (const auto& r : b.store.log()) {
      if (r.kind != Kind::write) continue;
      if (r.snapc.seq == 9) seen = true;
      CPPUNIT_ASSERT(!seen || r.snapc.seq == 9);
    }
    // And notifications work again.
    b.set_view({.size = 64 * K, .snapc = {11, {11, 9}}});
    CPPUNIT_ASSERT_EQUAL(0, b.store.notify("header", "", 10s));
    b.write("y", 0);
    CPPUNIT_ASSERT_EQUAL(SnapId{11}, b.last_context().seq);
  }

  void deleted_image() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    {
      const std::scoped_lock lock(b.state->mutex);
      b.state->load_error = ENOENT;
    }
    b.memory.put("header", std::nullopt);
    b.store.lose_watches("header", ENOTCONN);
    CPPUNIT_ASSERT(eventually(
        [&] { return error_of([&] { b.write("x", 0); }) == EIO; }));
    CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] { (void)b.read(1, 0); }));
    CPPUNIT_ASSERT(message_of([&] { (void)b.read(1, 0); }).find("deleted") !=
                   std::string::npos);
  }

  void blocklisted_client() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    b.store.inject(
        {.kind = Kind::watch, .times = FaultStore::always, .error = ESHUTDOWN});
    b.store.lose_watches("header", ENOTCONN);
    CPPUNIT_ASSERT(eventually(
        [&] { return error_of([&] { b.write("x", 0); }) == ESHUTDOWN; }));
    CPPUNIT_ASSERT(
        message_of([&] { (void)b.read(1, 0); }).find("blocklist") !=
        std::string::npos);
    // It stays at that: it is not tried, and not said, again and again (each
    // second).
    std::this_thread::sleep_for(1200ms);
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, b.store.count(Kind::watch));
    const std::scoped_lock lock(b.log_mutex);
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, b.log.size());
  }

  void blocklisted_client_that_wants_the_lock() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    b.set_view({.size = 64 * K, .lockable = true});
    b.image->refresh();
    b.store.inject({.kind = Kind::watch, .error = ESHUTDOWN, .held = true});
    b.store.lose_watches("header", ENOTCONN);
    CPPUNIT_ASSERT(b.store.wait_until_held(1));
    auto write = std::async(std::launch::async, [&] {
      return error_of([&] { b.write("x", 0); });
    });
    // Time to say that it waits for the lock.
    CPPUNIT_ASSERT(write.wait_for(50ms) == std::future_status::timeout);
    b.store.release();
    CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, write.get());
    std::this_thread::sleep_for(50ms);
    CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, error_of([&] { b.write("x", 0); }));
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, b.store.count(Kind::write));
  }

  // In one process two images can be one, for instance while a lost one is
  // still open.  Each of them must answer the other.
  void another_image_of_this_client_wants_the_lock() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    for (const char* method : {"lock", "unlock"})
      b.memory.on_exec("lock", method, [](auto&, auto, auto&) { return 0; });
    b.set_view({.size = 64 * K, .lockable = true});
    b.image->refresh();
    b.write("x", 0);
    std::vector<Watcher> watchers;
    CPPUNIT_ASSERT_EQUAL(0,
                         b.store.list_watchers("header", &watchers)->wait());
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, watchers.size());
    const auto answer = [&](std::uint64_t handle) {
      std::string reply;
      CPPUNIT_ASSERT_EQUAL(
          0, b.store.notify("header",
                            encode_notify_request_lock(
                                {.gid = watchers[0].client, .handle = handle}),
                            5s, &reply));
      const NotifyReplies replies = decode_notify_replies(reply);
      CPPUNIT_ASSERT_EQUAL(std::size_t{1}, replies.answers.size());
      return replies.answers[0].payload;
    };
    CPPUNIT_ASSERT_EQUAL(std::string(), answer(watchers[0].cookie));
    CPPUNIT_ASSERT_EQUAL(encode_notify_response(0),
                         answer(watchers[0].cookie + 1));
  }

  /// Makes the image the owner of its lock; `unlocked` counts the releases.
  static void hold_lock(Bench& b, std::atomic<int>& unlocked) {
    for (const char* method : {"lock", "set_cookie"})
      b.memory.on_exec("lock", method, [](auto&, auto, auto&) { return 0; });
    b.memory.on_exec("lock", "unlock", [&](auto&, auto, auto&) {
      ++unlocked;
      return 0;
    });
    b.set_view({.size = 64 * K, .lockable = true});
    b.image->refresh();
    b.write("x", 0);
  }

  // Whoever opens a lost image anew, in this process too, finds no trace of it.
  void lost_image_gives_the_lock_back() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    std::atomic<int> unlocked = 0;
    hold_lock(b, unlocked);
    set_load_error(b, ENOENT);
    b.store.lose_watches("header", ENOTCONN);
    CPPUNIT_ASSERT(eventually([&] { return b.image->lost(); }));
    CPPUNIT_ASSERT(eventually([&] { return unlocked == 1; }));
    b.image.reset();
    CPPUNIT_ASSERT_EQUAL(1, unlocked.load());
  }

  // Whoever asked for the lock waits for it, and nobody here wants it.
  void release_that_fails() {
    for (const int error : {ETIMEDOUT, EIO}) {
      Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
      std::atomic<int> unlocked = 0;
      hold_lock(b, unlocked);
      b.store.inject({.kind = Kind::write, .oid = "header", .error = error});
      CPPUNIT_ASSERT_EQUAL(
          0, b.store.notify("header", encode_notify_request_lock(
                                          {.gid = 99, .handle = 1}),
                            10s));
      CPPUNIT_ASSERT(eventually([&] { return unlocked == 1; }));
      // Once is enough.
      std::this_thread::sleep_for(1200ms);
      CPPUNIT_ASSERT_EQUAL(1, unlocked.load());
      b.write("y", 0);
      // The last one to go tries once more: without its watch the lock is a
      // dead client's.
      b.store.inject({.kind = Kind::write, .oid = "header", .error = error});
      b.image.reset();
      CPPUNIT_ASSERT_EQUAL(2, unlocked.load());
    }
  }

  // It cannot be used, and given back only later.
  void lock_that_cannot_be_used() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    std::atomic<int> unlocked = 0;
    b.memory.on_exec("lock", "lock", [](auto&, auto, auto&) { return 0; });
    b.memory.on_exec("lock", "unlock", [&](auto&, auto, auto&) {
      ++unlocked;
      return 0;
    });
    b.set_view({.size = 64 * K, .lockable = true});
    b.image->refresh();
    set_load_error(b, EIO);
    b.store.inject(
        {.kind = Kind::write, .oid = "header", .skip = 1, .error = EIO});
    CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] { b.write("x", 0); }));
    CPPUNIT_ASSERT(eventually([&] { return unlocked == 1; }));
  }

  void owner_of_the_lock_always_watches() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    for (const char* method : {"lock", "set_cookie", "unlock"})
      b.memory.on_exec("lock", method, [](auto&, auto, auto&) { return 0; });
    b.set_view({.size = 64 * K, .lockable = true});
    b.image->refresh();
    b.write("x", 0);
    // A watch that we hear nothing of, but others see.
    b.store.inject({.kind = Kind::write, .oid = "header", .held = true});
    b.store.lose_watches("header", ETIMEDOUT);
    CPPUNIT_ASSERT(b.store.wait_until_held(1));
    // The lock still names the old watch.
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, b.memory.watchers("header"));
    b.store.release();
    b.write("y", 0);
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, b.memory.watchers("header"));

    // The lock has the new name, but what was missed cannot be read: the new
    // watch stays.
    set_load_error(b, ETIMEDOUT);
    b.store.clear_log();
    const int loads = b.state->loads;
    b.store.lose_watches("header", ETIMEDOUT);
    CPPUNIT_ASSERT(eventually([&] { return b.state->loads >= loads + 2; }));
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, b.store.count(Kind::watch));
    // Now it breaks in turn.
    b.store.inject({.kind = Kind::write, .oid = "header", .held = true});
    b.store.lose_watches("header", ETIMEDOUT);
    CPPUNIT_ASSERT(b.store.wait_until_held(1));
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, b.memory.watchers("header"));
    set_load_error(b, 0);
    b.store.release();
    b.write("z", 0);
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, b.memory.watchers("header"));

    // The lock gets the new name, which nobody says, and then that breaks.
    b.store.inject({.kind = Kind::write, .oid = "header", .error = ETIMEDOUT,
                    .held = true, .carried_out = true});
    b.store.lose_watches("header", ETIMEDOUT);
    CPPUNIT_ASSERT(b.store.wait_until_held(1));
    b.store.lose_watches("header", ETIMEDOUT);
    b.store.inject({.kind = Kind::write, .oid = "header", .held = true});
    b.store.release();
    CPPUNIT_ASSERT(b.store.wait_until_held(1));
    CPPUNIT_ASSERT_EQUAL(std::size_t{3}, b.memory.watchers("header"));
    // What is said late of the old ones is not said of the newest.
    b.store.clear_log();
    b.store.lose_watches("header", ENOTCONN, 2);
    b.store.release();
    b.write("z", 0);
    std::this_thread::sleep_for(100ms);
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, b.store.count(Kind::watch));
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, b.memory.watchers("header"));

    // The image is closed before the lock has its new name: it goes first.
    b.store.inject({.kind = Kind::write, .oid = "header", .error = ETIMEDOUT,
                    .held = true});
    b.store.lose_watches("header", ETIMEDOUT);
    CPPUNIT_ASSERT(b.store.wait_until_held(1));
    auto closed = std::async(std::launch::async, [&] { b.image.reset(); });
    std::this_thread::sleep_for(50ms);
    b.store.inject({.kind = Kind::write, .oid = "header", .held = true});
    b.store.release();
    CPPUNIT_ASSERT(b.store.wait_until_held(1));
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, b.memory.watchers("header"));
    b.store.release();
    closed.get();
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, b.memory.watchers("header"));
  }

  /// Another client that takes the lock and gives it back.
  class OtherClient final : public WatchHandler {
   public:
    OtherClient(MemoryStore& store, std::uint64_t number)
        : store_(store),
          client_{.gid = number, .handle = number},
          watch_(store.watch_as({.address = "192.0.2.2:0/7",
                                 .client = number,
                                 .cookie = client_.handle},
                                "header", *this)) {
      store.on_exec("lock", "lock",
                    [this](auto&, auto, auto&) { return owner ? -EBUSY : 0; });
      store.on_exec("lock", "unlock", [](auto&, auto, auto&) { return 0; });
      store.on_exec("lock", "get_info", [this](auto&, auto, auto& out) {
        out = lock_info();
        return 0;
      });
    }
    /// As librbd does when it wants the lock.
    void take() {
      free_ = false;
      CPPUNIT_ASSERT_EQUAL(
          0, store_.notify("header", encode_notify_request_lock(client_), 5s));
      CPPUNIT_ASSERT(eventually([&] { return free_.load(); }));
      owner = true;
      CPPUNIT_ASSERT_EQUAL(
          0, store_.notify("header", encode_notify_acquired_lock(client_), 5s));
    }
    void give_back() {
      owner = false;
      CPPUNIT_ASSERT_EQUAL(
          0, store_.notify("header", encode_notify_released_lock(client_), 5s));
    }
    void notified(std::uint64_t id, std::uint64_t cookie,
                  std::string_view payload) noexcept override {
      std::string answer;
      const NotifyMessage message = decode_notify(payload);
      if (message.op == NotifyOp::request_lock && owner) {
        ++asked;
        answer = encode_notify_response(0);
      }
      if (message.op == NotifyOp::released_lock) free_ = true;
      store_.notify_ack("header", id, cookie, answer);
    }
    void watch_lost(int) noexcept override {}

    std::atomic<bool> owner{false};
    std::atomic<int> asked{0};

   private:
    std::string lock_info() {
      Encoder out;
      out.frame(1, 1, [&] {
        out.u32(owner ? 1 : 0);
        if (owner) {
          out.frame(1, 1, [&] {
            out.u8(8).i64(static_cast<std::int64_t>(client_.gid));
            out.string("auto " + std::to_string(client_.handle));
          });
          out.frame(1, 1, [&] {
            out.u32(0).u32(0).u8(1);
            out.frame(1, 1, [&] { out.u32(0).u32(0).string(""); });
            out.string("");
          });
        }
        out.u8(1).string("internal");
      });
      return out.take();
    }

    MemoryStore& store_;
    const NotifyClient client_;
    std::atomic<bool> free_{false};
    std::unique_ptr<Watch> watch_;
  };

  void other_clients_have_their_turns() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    b.lock_wait = 1s;
    b.make(Layout(4 * K, 4 * K, 1));
    OtherClient other(b.memory, 4200);
    b.set_view({.size = 64 * K, .lockable = true});
    b.image->refresh();
    b.write("a", 0);

    // It has something to do that takes time, and is left alone.
    const auto start_write = [&] {
      return std::async(std::launch::async, [&] { b.write("b", 0); });
    };
    other.take();
    auto write = start_write();
    CPPUNIT_ASSERT(write.wait_for(600ms) == std::future_status::timeout);
    CPPUNIT_ASSERT_EQUAL(0, other.asked.load());
    other.give_back();
    CPPUNIT_ASSERT(write.wait_for(5s) == std::future_status::ready);
    CPPUNIT_ASSERT_EQUAL(0, other.asked.load());

    // It keeps the lock: it is asked when the patience is at its end ...
    const auto asked_after = [&] {
      const auto start = std::chrono::steady_clock::now();
      const int before = other.asked;
      other.take();
      write = start_write();
      CPPUNIT_ASSERT(eventually([&] { return other.asked > before; }));
      const auto time = std::chrono::steady_clock::now() - start;
      other.give_back();
      CPPUNIT_ASSERT(write.wait_for(5s) == std::future_status::ready);
      return time;
    };
    const auto first = asked_after();
    CPPUNIT_ASSERT(first >= 1s && first < 4s);
    // ... and from then on much earlier, if the machine is not too busy.
    auto later = asked_after();
    for (int i = 0; i < 4 && later >= 900ms; ++i)
      later = std::min(later, asked_after());
    CPPUNIT_ASSERT(later >= LockTurns::writers_turn && later < 900ms);

    // It forgets to say that the lock is free.
    OtherClient silent(b.memory, 4300);
    silent.take();
    write = start_write();
    silent.owner = false;
    CPPUNIT_ASSERT(write.wait_for(5s) == std::future_status::ready);
    CPPUNIT_ASSERT_EQUAL(0, silent.asked.load());
  }

  /// Two writers ask for the lock; the second one while it is being taken.
  static void lock_for_two(Bench& b, OtherClient& other,
                           std::atomic<int>& locks) {
    b.memory.on_exec("lock", "lock", [&](auto&, auto, auto&) {
      ++locks;
      return other.owner ? -EBUSY : 0;
    });
    b.set_view({.size = 64 * K, .lockable = true});
    b.image->refresh();
    b.store.inject({.kind = Kind::write, .oid = "header", .held = true});
    auto first = std::async(std::launch::async, [&] { b.write("a", 0); });
    CPPUNIT_ASSERT(b.store.wait_until_held(1));
    auto second = std::async(std::launch::async, [&] { b.write("b", 0); });
    std::this_thread::sleep_for(50ms);
    b.store.release();
    first.get();
    second.get();
    CPPUNIT_ASSERT_EQUAL(1, locks.load());
  }

  // When both have it, nobody wants it any more.
  void lock_is_not_wanted_for_ever() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    OtherClient other(b.memory, 4200);
    std::atomic<int> locks = 0;
    lock_for_two(b, other, locks);
    other.take();
    other.give_back();
    std::this_thread::sleep_for(300ms);
    CPPUNIT_ASSERT_EQUAL(1, locks.load());
  }

  // Nor when it has been lost: it might be free by then.
  void lost_image_takes_no_lock() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    OtherClient other(b.memory, 4200);
    std::atomic<int> locks = 0;
    lock_for_two(b, other, locks);
    b.memory.on_exec("lock", "set_cookie",
                     [](auto&, auto, auto&) { return -EBUSY; });
    b.store.lose_watches("header", ENOTCONN);
    CPPUNIT_ASSERT(eventually([&] { return b.image->lost(); }));
    CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, error_of([&] { b.write("x", 0); }));
    std::this_thread::sleep_for(1200ms);
    CPPUNIT_ASSERT_EQUAL(1, locks.load());
  }

  /// A cache that has something to write for longer than the watch is sure.
  class SlowKeeper final : public Keeper {
   public:
    explicit SlowKeeper(Bench& b) : b_(b) {}
    void give_up(std::uint64_t) noexcept override {
      std::this_thread::sleep_for(400ms);
      b_.store.keep_watches_for(25s);
      result = error_of([&] { b_.write("kept", 8 * K); });
    }
    std::atomic<int> result{-1};

   private:
    Bench& b_;
  };
  void watch_is_kept_while_caches_write() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    OtherClient other(b.memory, 4200);
    b.set_view({.size = 64 * K, .lockable = true});
    b.image->refresh();
    b.write("a", 0);
    const auto keeper = std::make_shared<SlowKeeper>(b);
    b.image->promise()->add_keeper(keeper);
    b.store.keep_watches_for(300ms);
    other.take();
    CPPUNIT_ASSERT_EQUAL(0, keeper->result.load());
    CPPUNIT_ASSERT_EQUAL(std::string("kept"), b.read(4, 8 * K));
  }

  // They cannot write any more, and are to say so.
  void caches_of_a_lost_image_are_asked() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    std::atomic<int> unlocked = 0;
    hold_lock(b, unlocked);
    const auto keeper = std::make_shared<SlowKeeper>(b);
    b.image->promise()->add_keeper(keeper);
    set_load_error(b, ENOENT);
    b.store.lose_watches("header", ENOTCONN);
    CPPUNIT_ASSERT(eventually([&] { return unlocked == 1; }));
    CPPUNIT_ASSERT_EQUAL(EIO, keeper->result.load());
  }

  void failure_while_the_watch_is_made() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    b.write("x", 0);
    set_load_error(b, ENOTSUP);
    const int loads = b.state->loads;
    b.store.lose_watches("header", ENOTCONN);
    CPPUNIT_ASSERT(eventually([&] { return b.state->loads > loads; }));
    CPPUNIT_ASSERT(eventually(
        [&] { return error_of([&] { b.write("y", 0); }) == EIO; }));
    // Notifications are answered in the meantime.
    CPPUNIT_ASSERT_EQUAL(0, b.store.notify("header", "", 10s));
    CPPUNIT_ASSERT(!b.image->lost());
    set_load_error(b, 0);
    CPPUNIT_ASSERT(
        eventually([&] { return error_of([&] { b.write("y", 0); }) == 0; }));
    CPPUNIT_ASSERT_EQUAL(std::string("y"), b.read(1, 0));
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, b.memory.watchers("header"));
  }

  /// A key whose rights are taken away, and given back.
  void watch_that_is_refused_for_a_while() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    b.write("x", 0);
    b.store.inject(
        {.kind = Kind::watch, .times = FaultStore::always, .error = EACCES});
    b.store.lose_watches("header", ENOTCONN);
    CPPUNIT_ASSERT(eventually([&] { return b.store.hits() >= 1; }));
    // Writers are told, and do not wait.
    CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] { b.write("y", 0); }));
    CPPUNIT_ASSERT_EQUAL(std::string("x"), b.read(1, 0));
    b.store.clear_faults();
    CPPUNIT_ASSERT(
        eventually([&] { return error_of([&] { b.write("y", 0); }) == 0; }));
    CPPUNIT_ASSERT(!b.image->lost());
  }

  void failure_of_a_parent_ends() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    const auto parent = std::make_shared<FakeFormat::State>();
    const auto grandparent = std::make_shared<FakeFormat::State>();
    grandparent->view = {.size = 64 * K, .snap = 3};
    const auto spec = [](const char* id, SnapId snap) {
      return ParentSpec{.name_space = "", .image_id = id, .snap = snap};
    };
    parent->view = {.size = 64 * K,
                    .snap = 2,
                    .overlap = 64 * K,
                    .parent_spec = spec("g", 3)};
    parent->parent = grandparent;
    b.state->parent = parent;
    b.memory.put("parent3.0000", memory_object("old"));
    b.set_view({.size = 64 * K,
                .overlap = 64 * K,
                .parent_spec = spec("p", 2)});
    b.image->refresh();
    CPPUNIT_ASSERT_EQUAL(std::string("old"), b.read(3, 0));
    // The grandparent is moved.  Only the header of the parent says so, which
    // nobody watches.
    {
      const std::scoped_lock lock(parent->mutex);
      parent->load_error = ENOTSUP;
    }
    b.memory.put("parent3.0000", std::nullopt);
    CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] { (void)b.read(3, 0); }));
    // It does not help that the image itself is well.
    b.image->refresh();
    CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] { (void)b.read(3, 0); }));
    b.memory.put("parent4.0000", memory_object("new"));
    {
      const std::scoped_lock lock(parent->mutex);
      parent->load_error = 0;
      parent->view.parent_spec = spec("h", 4);
    }
    CPPUNIT_ASSERT(eventually([&] {
      return error_of([&] {
               CPPUNIT_ASSERT_EQUAL(std::string("new"), b.read(3, 0));
             }) == 0;
    }));
    CPPUNIT_ASSERT(b.extents(64 * K, 0)[0].data);
  }

  void unread_notification_holds_writes() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    set_load_error(b, ETIMEDOUT);
    auto notify = std::async(std::launch::async, [&] {
      return b.store.notify("header", "", 20s);
    });
    CPPUNIT_ASSERT(eventually([&] { return b.state->loads >= 2; }));
    std::this_thread::sleep_for(50ms);
    auto write = std::async(std::launch::async, [&] { b.write("x", 0); });
    CPPUNIT_ASSERT(write.wait_for(100ms) == std::future_status::timeout);
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, b.store.count(Kind::write));
    b.set_view({.size = 64 * K, .snapc = {5, {5}}});
    set_load_error(b, 0);
    write.get();
    CPPUNIT_ASSERT_EQUAL(SnapId{5}, b.last_context().seq);
    (void)notify.get();
  }

  void refresh_does_not_end_a_hold() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    b.store.inject(
        {.kind = Kind::watch, .times = FaultStore::always, .error = ETIMEDOUT});
    b.store.lose_watches("header", ENOTCONN);
    CPPUNIT_ASSERT(eventually([&] { return b.store.hits() >= 1; }));
    auto write = std::async(std::launch::async, [&] { b.write("x", 0); });
    CPPUNIT_ASSERT(write.wait_for(50ms) == std::future_status::timeout);
    // A new client comes.
    b.image->refresh();
    const bool waits = write.wait_for(100ms) == std::future_status::timeout;
    b.store.clear_faults();
    write.get();
    CPPUNIT_ASSERT(waits);
  }

  void writes_wait_while_the_header_is_read() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    std::unique_lock header(b.state->mutex);
    auto notify = std::async(std::launch::async, [&] {
      return b.store.notify("header", "", 20s);
    });
    // The header is being read, and the read takes its time.
    CPPUNIT_ASSERT(eventually([&] { return b.state->loads >= 2; }));
    auto write = std::async(std::launch::async, [&] { b.write("x", 0); });
    const bool waits = write.wait_for(100ms) == std::future_status::timeout;
    b.state->view.snapc = {5, {5}};
    header.unlock();
    write.get();
    CPPUNIT_ASSERT_EQUAL(0, notify.get());
    CPPUNIT_ASSERT(waits);
    CPPUNIT_ASSERT_EQUAL(SnapId{5}, b.last_context().seq);
  }

  // Of a snapshot that was taken in the meantime nobody would know.
  void writes_wait_for_the_watch() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    b.store.keep_watches_for(-5s);
    CPPUNIT_ASSERT_EQUAL(0, b.store.notify("header", "", 10s));
    auto writer = std::async(std::launch::async, [&] { b.write("x", 0); });
    CPPUNIT_ASSERT(writer.wait_for(100ms) == std::future_status::timeout);
    b.store.keep_watches_for(25s);
    // Looked at when a writer asks, and every 5 seconds.
    b.write("y", 4 * K);
    CPPUNIT_ASSERT(writer.wait_for(10s) == std::future_status::ready);
    CPPUNIT_ASSERT_EQUAL(std::string("x"), b.read(1, 0));
  }

  void many_generations() {
    // Each object is another generation's.
    constexpr int generations = 150;
    Bench b(Layout(4 * K, 4 * K, 1), generations * 4 * K);
    auto* child = b.state.get();
    for (int i = 0; i < generations; ++i) {
      const auto snap = static_cast<SnapId>(i + 1);
      child->view.overlap = generations * 4 * K;
      child->view.parent_spec = {1, "", "p", snap};
      child->parent = std::make_shared<FakeFormat::State>();
      child->parent->view = {.size = generations * 4 * K, .snap = snap};
      child = child->parent.get();
      b.memory.put(
          numbered_oid("parent" + std::to_string(snap), i, 4),
          memory_object(std::string(1, static_cast<char>('a' + i % 26))));
    }
    b.image->refresh();
    for (int i = 0; i < generations; ++i)
      CPPUNIT_ASSERT_EQUAL(std::string(1, static_cast<char>('a' + i % 26)),
                           b.read(1, i * 4 * K));
    CPPUNIT_ASSERT(b.extents(generations * 4 * K, 0)[0].data);
  }

  void parents_in_a_circle() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    const auto first = std::make_shared<FakeFormat::State>();
    const auto second = std::make_shared<FakeFormat::State>();
    b.state->parent = first;
    first->parent = second;
    second->parent = first;
    const auto clone_of = [](SnapId snap) {
      return View{.size = 64 * K, .overlap = 64 * K,
                  .parent_spec = {1, "", "p", snap}};
    };
    first->view = clone_of(2);
    second->view = clone_of(1);
    b.set_view(clone_of(1));
    CPPUNIT_ASSERT(message_of([&] {
                     b.image->refresh();
                   }).find("its own ancestor") != std::string::npos);
    CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] { (void)b.read(1, 0); }));
    CPPUNIT_ASSERT(first->loads + second->loads < 20);
    // The circle does not keep itself alive.
    second->parent.reset();
  }

  void lost_lock() {
    MemoryStore memory;
    const auto state = std::make_shared<FakeFormat::State>();
    state->view.size = 64 * K;
    state->interval = 5ms;
    ImageOptions how;
    how.writable = true;
    how.workers = std::make_shared<WorkerPool>(1);
    Image image(std::make_unique<FakeFormat>(memory, Layout(4 * K, 4 * K, 1),
                                             state, ""),
                how);
    CPPUNIT_ASSERT(eventually([&] { return state->keep_alives > 2; }));
    char c = 'x';
    image.write(&c, 1, 0);
    // It may have run out: writes wait.
    state->locked = false;
    const int before = state->keep_alives;
    CPPUNIT_ASSERT(eventually([&] { return state->keep_alives > before + 1; }));
    auto writer = std::async(std::launch::async, [&] {
      char d = 'y';
      image.write(&d, 1, 0);
    });
    const bool waits = writer.wait_for(50ms) == std::future_status::timeout;
    state->locked = true;
    writer.get();
    CPPUNIT_ASSERT(waits);
    state->keep_alive_error = ESHUTDOWN;
    CPPUNIT_ASSERT(eventually([&] {
      return error_of([&] { image.write(&c, 1, 0); }) == ESHUTDOWN;
    }));
    CPPUNIT_ASSERT_EQUAL(ESHUTDOWN,
                         error_of([&] { image.read(&c, 1, 0); }));
    // For good.
    state->keep_alive_error = 0;
    CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, error_of([&] { image.refresh(); }));
    CPPUNIT_ASSERT(image.lost());
    CPPUNIT_ASSERT_EQUAL(ESHUTDOWN,
                         error_of([&] { image.write(&c, 1, 0); }));
  }

 private:
  static void set_load_error(Bench& b, int code) {
    b.state->set_load_error(code);
  }
};

/// A cluster of stores in memory.
class TestCluster final : public Cluster {
 public:
  std::shared_ptr<ObjectStore> open_pool(const std::string& pool,
                                         const std::string& ns,
                                         Purpose) override {
    if (pool != "pool") throw Error(ENOENT, "pool '" + pool + "'");
    return {std::shared_ptr<void>(), &stores[ns]};
  }
  std::shared_ptr<ObjectStore> open_pool(std::int64_t, const std::string& ns,
                                         Purpose purpose) override {
    return open_pool("pool", ns, purpose);
  }
  std::uint64_t client_id() const override { return 4711; }
  void blocklist(const std::string&, std::chrono::seconds) override {}
  void wait_for_latest_osdmap() override {}
  std::chrono::milliseconds timeout() const override { return 5s; }
  std::map<std::string, MemoryStore> stores;
};

/// A pool, and another one that has its name by now.  The client hears of that
/// when it asks.
class TwoPools final : public Cluster {
 public:
  TwoPools() {
    for (const int id : {1, 2}) {
      MemoryObject header;
      Format1Header h;
      h.object_prefix = "rb." + std::to_string(id);
      h.order = 16;
      h.size = 1 << 20;
      header.data.write(0, encode_format1(h));
      stores[id].put("a.rbd", header);
    }
  }
  std::shared_ptr<ObjectStore> open_pool(const std::string&,
                                         const std::string&,
                                         Purpose) override {
    throw Error(ENOENT, "pools are to be opened by number");
  }
  std::shared_ptr<ObjectStore> open_pool(std::int64_t id, const std::string&,
                                         Purpose) override {
    newest = 2;
    if (id == 1) return {std::shared_ptr<void>(), &gone};
    return {std::shared_ptr<void>(), &stores[id]};
  }
  std::int64_t pool_id(const std::string&) override { return newest; }
  std::uint64_t client_id() const override { return 4711; }
  void blocklist(const std::string&, std::chrono::seconds) override {}
  void wait_for_latest_osdmap() override {}
  std::chrono::milliseconds timeout() const override { return 5s; }

  std::int64_t newest = 1;
  std::map<std::int64_t, MemoryStore> stores;
  FaultStore gone{stores[1]};
};

class TestCatalog : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(TestCatalog);
  CPPUNIT_TEST(names);
  CPPUNIT_TEST(create_checks);
  CPPUNIT_TEST(format1);
  CPPUNIT_TEST(striper);
  CPPUNIT_TEST(identities_are_distinct);
  CPPUNIT_TEST(identity_of_format1);
  CPPUNIT_TEST(replaced_striped_object);
  CPPUNIT_TEST(identity_of_a_pool);
  CPPUNIT_TEST_SUITE_END();

 public:
  void names() {
    const auto parse = [](std::string_view text) {
      return parse_image_name(text, FormatChoice::automatic);
    };
    CPPUNIT_ASSERT(parse("a") == (ImageSpec{"", "", "a", ""}));
    CPPUNIT_ASSERT(parse("a@b") == (ImageSpec{"", "", "a", "b"}));
    CPPUNIT_ASSERT(parse("n/a@b") == (ImageSpec{"", "n", "a", "b"}));
    for (const char* bad : {"", "@s", "a@", "/a", "n/", "p/n/a", "a@b@c",
                            "a@b/c", "../a/b", "n//a", "n/@s"})
      CPPUNIT_ASSERT_EQUAL_MESSAGE(bad, EINVAL,
                                   error_of([&] { (void)parse(bad); }));
    CPPUNIT_ASSERT(parse_image_name("p/n/a@b", FormatChoice::striper) ==
                   (ImageSpec{"", "", "p/n/a@b", ""}));
  }

  void create_checks() {
    const ImageSpec spec{"pool", "", "a", ""};
    const auto code = [&](CreateOptions o) {
      return error_of([&] { check_create(spec, o); });
    };
    using enum FormatChoice;
    CPPUNIT_ASSERT_EQUAL(0, code({.size = 1}));
    CPPUNIT_ASSERT_EQUAL(EINVAL, code({}));
    CPPUNIT_ASSERT_EQUAL(EINVAL, code({.size = std::uint64_t{1} << 63}));
    CPPUNIT_ASSERT_EQUAL(0, code({.size = (std::uint64_t{1} << 63) - 1}));
    CPPUNIT_ASSERT_EQUAL(EINVAL, code({.size = 1, .object_size = 0}));
    CPPUNIT_ASSERT_EQUAL(EINVAL, code({.size = 1, .object_size = 5000}));
    CPPUNIT_ASSERT_EQUAL(EINVAL, code({.size = 1, .object_size = 2048}));
    CPPUNIT_ASSERT_EQUAL(EINVAL, code({.size = 1, .object_size = 64 << 20}));
    CPPUNIT_ASSERT_EQUAL(
        EINVAL, code({.format = format1, .size = 1, .object_size = 2048}));
    CPPUNIT_ASSERT_EQUAL(
        EINVAL, code({.format = format1, .size = 1, .stripe_unit = 4096}));
    CPPUNIT_ASSERT_EQUAL(
        EINVAL, code({.format = format1, .size = 1, .stripe_count = 2}));
    CPPUNIT_ASSERT_EQUAL(
        0, code({.format = striper, .size = 1, .object_size = 192 * K,
                 .stripe_unit = 64 * K, .stripe_count = 5}));
    CPPUNIT_ASSERT_EQUAL(0, code({.format = striper, .size = 1,
                                  .stripe_unit = 8 << 20}));
    CPPUNIT_ASSERT_EQUAL(0, code({.format = striper, .size = 1,
                                  .object_size = 64 * K}));
    CPPUNIT_ASSERT_EQUAL(
        EINVAL, code({.format = striper, .size = 1, .object_size = 128 * K,
                      .stripe_unit = 96 * K}));
    CPPUNIT_ASSERT_EQUAL(
        EINVAL, code({.format = striper, .size = 1, .object_size = 192 * K,
                      .stripe_unit = 128 * K}));
    CPPUNIT_ASSERT_EQUAL(
        EINVAL, code({.format = striper, .size = 1, .object_size = 1000}));
  }

  void format1() {
    const auto cluster = std::make_shared<TestCluster>();
    MemoryStore& store = cluster->stores[""];
    const ImageSpec spec{"pool", "", "a", ""};
    create_image(cluster, spec,
                 {.format = FormatChoice::format1, .size = 1 << 20,
                  .object_size = 64 * K});
    for (const auto format : {FormatChoice::automatic, FormatChoice::format1})
      CPPUNIT_ASSERT_EQUAL(EEXIST, error_of([&] {
                             create_image(cluster, spec,
                                          {.format = format, .size = 5});
                           }));
    Format1Header header = decode_format1(store.find("a.rbd")->data.bytes());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{1} << 20, header.size);
    CPPUNIT_ASSERT_EQUAL(16U, header.order);
    CPPUNIT_ASSERT(header.object_prefix.starts_with("rb.0.1267."));
    CPPUNIT_ASSERT(decode_trivial_map(
                       store.find("rbd_directory")->data.bytes())
                       .entries.contains("a"));
    CPPUNIT_ASSERT_EQUAL(ENOENT, error_of([&] {
                           (void)open_format(
                               cluster, {"pool", "", "b", ""}, {});
                         }));
    CPPUNIT_ASSERT_EQUAL(ENOENT, error_of([&] {
                           (void)open_format(
                               cluster, {"pool", "ns", "a", ""}, {});
                         }));
    CPPUNIT_ASSERT_EQUAL(ENOENT, error_of([&] {
                           (void)open_format(cluster,
                                             {"pool", "", "a", "s"}, {});
                         }));

    ImageOptions how;
    how.writable = true;
    how.workers = std::make_shared<WorkerPool>(1);
    Image image(open_format(cluster, spec, {.writable = true}), how);
    image.write("old", 3, 65 * K);
    // A snapshot, as librbd takes one.
    header.snap_seq = 3;
    header.snapshots = {{3, header.size, "snap"}};
    put_header(store, header);
    CPPUNIT_ASSERT_EQUAL(0, store.notify("a.rbd", "", 5s));
    image.write("new", 3, 65 * K);

    Image snap(open_format(cluster, {"pool", "", "a", "snap"}, {}),
               {.workers = how.workers});
    char buffer[3];
    snap.read(buffer, 3, 65 * K);
    CPPUNIT_ASSERT_EQUAL(std::string("old"), std::string(buffer, 3));
    image.read(buffer, 3, 65 * K);
    CPPUNIT_ASSERT_EQUAL(std::string("new"), std::string(buffer, 3));

    // The snapshot is removed, and another of the same name taken.
    header.snap_seq = 4;
    header.snapshots = {{4, header.size, "snap"}};
    put_header(store, header);
    CPPUNIT_ASSERT_EQUAL(0, store.notify("a.rbd", "", 5s));
    CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] { snap.read(buffer, 3, 0); }));

    // Noise.
    MemoryObject noise;
    noise.data.write(0, "noise");
    store.put("a.rbd", noise);
    CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] { image.refresh(); }));
    CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] { image.write("x", 1, 0); }));
    CPPUNIT_ASSERT_EQUAL(
        EIO, error_of([&] { (void)open_format(cluster, spec, {}); }));
    // Another image under the same name.
    header.object_prefix = "rb.0.1.2";
    put_header(store, header);
    CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] { image.refresh(); }));
    CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] { image.write("x", 1, 0); }));
  }

  void striper() {
    const auto cluster = std::make_shared<TestCluster>();
    MemoryStore& store = cluster->stores[""];
    int locks = 0;
    int lock_result = 0;
    store.on_exec("lock", "lock",
                  [&](std::optional<MemoryObject>&, std::string_view,
                      std::string&) {
                    // Also where it is renewed.
                    if (lock_result == 0) locks = 1;
                    return lock_result;
                  });
    store.on_exec("lock", "unlock",
                  [&](std::optional<MemoryObject>&, std::string_view,
                      std::string&) {
                    --locks;
                    return 0;
                  });
    const ImageSpec spec{"pool", "", "dir/a@b", ""};
    const OpenOptions open{.format = FormatChoice::striper, .writable = true};
    create_image(cluster, spec,
                 {.format = FormatChoice::striper, .size = 1000001,
                  .object_size = 128 * K, .stripe_unit = 64 * K,
                  .stripe_count = 3});
    const auto first = store.find("dir/a@b.0000000000000000");
    CPPUNIT_ASSERT_EQUAL(std::string("1000001"),
                         first->xattrs.at("striper.size"));
    CPPUNIT_ASSERT_EQUAL(std::string("65536"),
                         first->xattrs.at("striper.layout.stripe_unit"));
    CPPUNIT_ASSERT_EQUAL(EEXIST, error_of([&] {
                           create_image(cluster, spec,
                                        {.format = FormatChoice::striper,
                                         .size = 5});
                         }));
    {
      Image image(open_format(cluster, spec, open),
                  {.writable = true,
                   .workers = std::make_shared<WorkerPool>(1)});
      CPPUNIT_ASSERT_EQUAL(1, locks);
      CPPUNIT_ASSERT_EQUAL(std::uint64_t{1000001}, image.size());
      image.write("x", 1, 1000000);
      CPPUNIT_ASSERT(store.find("dir/a@b.0000000000000006"));
      image.zero(1000001, 0, Image::Zero::free);
      CPPUNIT_ASSERT(store.find("dir/a@b.0000000000000000"));
    }
    CPPUNIT_ASSERT_EQUAL(0, locks);
    // Grows, and never shrinks.
    OpenOptions grow = open;
    grow.grow_to = 2000000;
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{2000000},
                         open_format(cluster, spec, grow)->load().size);
    grow.grow_to = 1000;
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{2000000},
                         open_format(cluster, spec, grow)->load().size);
    // Locked exclusively by another.
    lock_result = -EBUSY;
    CPPUNIT_ASSERT_EQUAL(
        EBUSY, error_of([&] { (void)open_format(cluster, spec, open); }));
    // A key that may not write can still read.
    lock_result = -EPERM;
    CPPUNIT_ASSERT_EQUAL(
        EPERM, error_of([&] { (void)open_format(cluster, spec, open); }));
    (void)open_format(cluster, spec, {.format = FormatChoice::striper});
    CPPUNIT_ASSERT_EQUAL(0, locks);
  }

  void identities_are_distinct() {
    using enum FormatChoice;
    const ImageIdentity all[] = {
        {1, "", format2, "ab"},
        {1, "", format2, "a", "b"},
        {1, "a", format2, "b"},
        {1, "", format1, "ab"},
        {11, "", format2, "ab"},
        {1, "", format2, "ab", "", 5},
        {1, "", format2, "ab", "", 5, 4},
        {1, "", format2, "ab", "", snap_head, 5},
    };
    for (const ImageIdentity& one : all)
      for (const ImageIdentity& other : all) {
        CPPUNIT_ASSERT_EQUAL(&one == &other, one == other);
        CPPUNIT_ASSERT_EQUAL(&one == &other, one.text() == other.text());
      }
  }

  void identity_of_format1() {
    const auto cluster = std::make_shared<TestCluster>();
    MemoryStore& store = cluster->stores[""];
    const ImageSpec spec{"pool", "", "a", ""};
    const auto resolve = [&](const ImageSpec& s) {
      return resolve_image(cluster, s, FormatChoice::automatic);
    };
    Format1Header header{.object_prefix = "rb.1", .order = 16, .size = 1 << 20,
                         .snap_seq = 4,
                         .snapshots = {{4, 1 << 20, "new"}, {3, 5, "snap"}}};
    put_header(store, header);
    const ImageIdentity head = resolve(spec);
    const ImageIdentity snap = resolve({"pool", "", "a", "snap"});
    CPPUNIT_ASSERT(head.format == FormatChoice::format1);
    CPPUNIT_ASSERT_EQUAL(snap_head, head.snap);
    CPPUNIT_ASSERT_EQUAL(SnapId{3}, snap.snap);
    CPPUNIT_ASSERT(resolve({"pool", "", "a", "new", "snap"}).since == 3);
    CPPUNIT_ASSERT_EQUAL(ENOENT, error_of([&] {
                           (void)resolve({"pool", "", "a", "new", "none"});
                         }));

    // The snapshot is renamed, and another one gets its name.
    header.snap_seq = 5;
    header.snapshots = {
        {5, 1 << 20, "snap"}, {4, 1 << 20, "new"}, {3, 5, "old"}};
    put_header(store, header);
    CPPUNIT_ASSERT(resolve(spec) == head);
    CPPUNIT_ASSERT(resolve({"pool", "", "a", "old"}) == snap);
    CPPUNIT_ASSERT_EQUAL(SnapId{5},
                         resolve({"pool", "", "a", "snap"}).snap);
    // The old one can be opened all the same.
    CPPUNIT_ASSERT_EQUAL(
        std::uint64_t{5},
        open_format(cluster, snap, {"pool", "", "a", "snap"}, {})->load().size);

    // So is the image.
    store.put("b.rbd", store.find("a.rbd"));
    header.object_prefix = "rb.2";
    put_header(store, header);
    CPPUNIT_ASSERT(resolve(spec) != head);
    CPPUNIT_ASSERT_EQUAL(ENOENT, error_of([&] {
                           (void)open_format(cluster, head, spec, {});
                         }));
  }

  // Only the lock, or another layout, tells that one is made in place of
  // another.  Who has it open is out, and a new client opens it anew.
  void replaced_striped_object() {
    const auto cluster = std::make_shared<TestCluster>();
    MemoryStore& store = cluster->stores[""];
    int lock_result = 0;
    store.on_exec("lock", "lock",
                  [&](auto&, auto, auto&) { return lock_result; });
    store.on_exec("lock", "unlock", [](auto&, auto, auto&) { return 0; });
    const ImageSpec spec{"pool", "", "a", ""};
    const auto create = [&](std::uint64_t object_size) {
      store.put("a.0000000000000000", std::nullopt);
      create_image(cluster, spec,
                   {.format = FormatChoice::striper, .size = 128 * K,
                    .object_size = object_size});
    };
    const auto refresh = [](Image& image) {
      CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, error_of([&] { image.refresh(); }));
      CPPUNIT_ASSERT(image.lost());
      char c = 0;
      CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, error_of([&] { image.read(&c, 1, 0); }));
    };
    create(64 * K);
    {
      Image image(open_format(cluster, spec, {}), {});
      image.refresh();
      create(64 * K);
      lock_result = -ENOENT;
      refresh(image);
      lock_result = 0;
    }
    // Without a lock.
    lock_result = -EPERM;
    Image image(open_format(cluster, spec, {}), {});
    create(64 * K);
    image.refresh();
    create(128 * K);
    refresh(image);
  }

  // The pool is removed, and another one gets its name, between the look-up of
  // its number and the first operation in it.
  void identity_of_a_pool() {
    const auto cluster = std::make_shared<TwoPools>();
    cluster->gone.inject({.times = FaultStore::always, .error = ENXIO});
    const ImageSpec spec{"pool", "", "a", ""};
    const ImageIdentity identity =
        resolve_image(cluster, spec, FormatChoice::automatic);
    CPPUNIT_ASSERT_EQUAL(std::int64_t{2}, identity.pool);
    CPPUNIT_ASSERT_EQUAL(
        std::string("rb.2"),
        open_format(cluster, identity, spec, {})->traits().object_prefix);
  }

 private:
  static void put_header(MemoryStore& store, const Format1Header& header) {
    MemoryObject object;
    object.data.write(0, encode_format1(header));
    store.put("a.rbd", object);
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(TestRequests);
CPPUNIT_TEST_SUITE_REGISTRATION(TestDifferences);
CPPUNIT_TEST_SUITE_REGISTRATION(TestUpkeep);
CPPUNIT_TEST_SUITE_REGISTRATION(TestCatalog);

}  // namespace
