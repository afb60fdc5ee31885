// SPDX-License-Identifier: BSD-3-Clause
//
// The exports of the filter radoscache in write-back mode: what becomes of data
// that is kept when clients come and go, when it cannot be written, and when
// the right to write is given away.

#include <cppunit/TestFixture.h>
#include <cppunit/extensions/HelperMacros.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <cstdint>
#include <latch>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

// It is part of a module that programs cannot link.
#include "exports.cpp"

namespace {

std::mutex message_mutex;
std::string messages;  // guarded by message_mutex

std::string take_messages() {
  const std::scoped_lock lock(message_mutex);
  return std::exchange(messages, {});
}

}  // namespace

// nbdkit has it.
extern "C" void nbdkit_error(const char* format, ...) {
  char line[512];
  va_list args;
  va_start(args, format);
  (void)std::vsnprintf(line, sizeof line, format, args);
  va_end(args);
  const std::scoped_lock lock(message_mutex);
  messages += line;
  messages += '\n';
}

namespace {

using namespace nbdrados;
using namespace std::chrono_literals;

constexpr std::uint32_t block = 4096;
constexpr CachedDisk::Shape shape{
    .size = 1 << 20, .block = block, .max_fetch = 1 << 20, .read_ahead = 0};

/// The disk below, and what a client has of the filter.
struct World {
  explicit World(bool distinct = false)
      : exports(cache, {.most_extents = 64,
                        .dirty = &limit,
                        .age = 1h,
                        .distinct = distinct}) {}

  struct Client {
    Client(World& w, const std::string& name,
           const std::shared_ptr<const Promise>& promise)
        : entry(w.exports.use(name, shape, promise, promise == nullptr)) {
      channel.write = [&w](const char* data, std::uint32_t count,
                           std::uint64_t offset) {
        return w.write(data, count, offset);
      };
      entry->add(channel);
    }
    ~Client() { entry->remove(channel); }
    Client(const Client&) = delete;
    Client& operator=(const Client&) = delete;
    bool put(std::uint64_t offset, char c) {
      const std::string data(block, c);
      return entry->writes()->take(data.data(), block, offset,
                                   entry->tenure()) == block;
    }
    int flush() { return entry->writes()->flush(channel.write); }
    bool keeps(std::uint64_t offset) {
      return !entry->writes()->kept(block, offset).empty();
    }
    std::shared_ptr<Exports::Export> entry;
    Exports::Channel channel;
  };
  std::unique_ptr<Client> connect(
      const std::string& name,
      const std::shared_ptr<const Promise>& promise = nullptr) {
    return std::make_unique<Client>(*this, name, promise);
  }

  int write(const char* data, std::uint32_t count, std::uint64_t offset) {
    const std::scoped_lock lock(mutex);
    if (error != 0) return error;
    disk.replace(offset, count, data, count);
    return 0;
  }
  char at(std::uint64_t offset) {
    const std::scoped_lock lock(mutex);
    return disk[offset];
  }

  std::mutex mutex;
  std::string disk = std::string(shape.size, '.');
  std::atomic<int> error = 0;
  BlockCache cache{1 << 20, block};
  DirtyLimit limit{4 << 20};
  Exports exports;
};

class TestExports : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(TestExports);
  CPPUNIT_TEST(the_last_client_goes);
  CPPUNIT_TEST(a_client_comes_when_the_last_goes);
  CPPUNIT_TEST(perhaps_the_same_disk);
  CPPUNIT_TEST(many_exports);
  CPPUNIT_TEST(another_size);
  CPPUNIT_TEST(another_disk_of_that_name);
  CPPUNIT_TEST(readers_beside_writers);
  CPPUNIT_TEST(a_disk_that_comes_back);
  CPPUNIT_TEST(two_names_of_a_disk);
  CPPUNIT_TEST(given_up);
  CPPUNIT_TEST(given_up_in_vain);
  CPPUNIT_TEST(a_late_keeper);
  CPPUNIT_TEST(promise_that_does_not_hold);
  CPPUNIT_TEST_SUITE_END();

 public:
  void setUp() override { (void)take_messages(); }

  // What is cached is not used while it does not hold, and sees changes all the
  // same: it is used again when it does.
  void promise_that_does_not_hold() {
    World w;
    const std::shared_ptr<Promise> promise = make_promise();
    promise->begin();
    const auto client = w.connect("a", promise);
    Exports::Export& e = *client->entry;
    CPPUNIT_ASSERT(e.ready() && e.holds());
    Streams streams;
    const auto read = [&] {
      char c = '?';
      const int r = e.disk().read(
          &c, 1, 0, streams,
          [&](char* to, std::uint32_t count, std::uint64_t from) {
            w.disk.copy(to, count, from);
            return 0;
          },
          e.version());
      CPPUNIT_ASSERT_EQUAL(0, r);
      return c;
    };
    CPPUNIT_ASSERT_EQUAL('.', read());
    promise->hold_until(BootClock::now());
    CPPUNIT_ASSERT(!e.holds());
    {
      const Exports::Changing changing(w.exports, e, block, 0);
      w.disk[0] = 'x';
    }
    promise->hold_until(BootClock::now() + 1h);
    CPPUNIT_ASSERT(e.holds());
    CPPUNIT_ASSERT_EQUAL('x', read());
    // It was cached.
    w.disk[0] = 'y';
    CPPUNIT_ASSERT_EQUAL('x', read());
  }

  // Over a promise nobody can write it later, otherwise the next client can.
  void the_last_client_goes() {
    const std::shared_ptr<Promise> promise = make_promise();
    promise->begin_tenure();
    for (const bool promised : {true, false}) {
      World w;
      const auto p = promised ? promise : nullptr;
      auto one = w.connect("a", p);
      auto two = w.connect("a", p);
      CPPUNIT_ASSERT(one->put(0, 'x'));
      w.error = EIO;
      one.reset();
      CPPUNIT_ASSERT(two->keeps(0));
      two.reset();
      CPPUNIT_ASSERT_EQUAL(
          std::string(promised ? "radoscache: export \"a\": 4096 bytes that "
                                 "clients have written are lost\n"
                               : ""),
          take_messages());
      w.error = 0;
      auto next = w.connect("a", p);
      CPPUNIT_ASSERT_EQUAL(!promised, next->keeps(0));
      CPPUNIT_ASSERT_EQUAL(0, next->flush());
      CPPUNIT_ASSERT_EQUAL(promised ? '.' : 'x', w.at(0));
      CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, w.limit.used());
    }
  }

  // What the new one writes does not go with the old one.
  void a_client_comes_when_the_last_goes() {
    World w;
    const std::shared_ptr<Promise> promise = make_promise();
    promise->begin_tenure();
    // Keeps the entry.
    const auto entry = w.exports.use("a", shape, promise, false);
    for (int i = 0; i < 500; ++i) {
      const char c = static_cast<char>('a' + i % 26);
      auto old = w.connect("a", promise);
      std::latch go(2);
      std::thread goes([&] {
        go.arrive_and_wait();
        old.reset();
      });
      go.arrive_and_wait();
      auto next = w.connect("a", promise);
      CPPUNIT_ASSERT(next->put(0, c));
      goes.join();
      CPPUNIT_ASSERT(next->keeps(0));
      CPPUNIT_ASSERT_EQUAL(0, next->flush());
      CPPUNIT_ASSERT_EQUAL(c, w.at(0));
    }
    CPPUNIT_ASSERT_EQUAL(std::string(), take_messages());
  }

  // Data that nobody can write now must not come after what another export
  // writes to what may be the same disk.
  void perhaps_the_same_disk() {
    for (const bool known_before : {false, true}) {
      World w;
      if (known_before) w.connect("b").reset();
      auto one = w.connect("a");
      CPPUNIT_ASSERT(one->put(0, 'x'));
      w.error = EIO;
      one.reset();
      w.error = 0;
      auto other = w.connect("b");
      CPPUNIT_ASSERT_EQUAL(std::string("radoscache: export \"a\": 4096 bytes "
                                       "that clients have written are lost\n"),
                           take_messages());
      CPPUNIT_ASSERT_EQUAL(0, w.exports.settle(*other->entry, block, 0));
      CPPUNIT_ASSERT(other->put(0, 'y'));
      CPPUNIT_ASSERT_EQUAL(0, other->flush());
      one = w.connect("a");
      CPPUNIT_ASSERT_EQUAL(0, one->flush());
      CPPUNIT_ASSERT_EQUAL('y', w.at(0));
    }
  }

  // What is kept is not forgotten for the sake of other exports.
  void many_exports() {
    World w(true);
    auto one = w.connect("a");
    CPPUNIT_ASSERT(one->put(0, 'x'));
    w.error = EIO;
    one.reset();
    for (std::size_t i = 0; i < Exports::most_idle + 10; ++i)
      w.connect("b" + std::to_string(i)).reset();
    w.error = 0;
    one = w.connect("a");
    CPPUNIT_ASSERT_EQUAL(0, one->flush());
    CPPUNIT_ASSERT_EQUAL('x', w.at(0));
    CPPUNIT_ASSERT_EQUAL(std::string(), take_messages());
  }

  // Of another size it is another disk, and somebody must be told.
  void another_size() {
    World w(true);
    auto one = w.connect("a");
    CPPUNIT_ASSERT(one->put(0, 'x'));
    w.error = EIO;
    one.reset();
    CachedDisk::Shape smaller = shape;
    smaller.size /= 2;
    (void)w.exports.use("a", smaller, nullptr, true);
    CPPUNIT_ASSERT_EQUAL(std::string("radoscache: export \"a\": 4096 bytes "
                                     "that clients have written are lost\n"),
                         take_messages());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, w.limit.used());
  }

  // Those who have it keep it, beside the new one.
  void another_disk_of_that_name() {
    World w;
    const std::shared_ptr<Promise> before = make_promise();
    const std::shared_ptr<Promise> now = make_promise();
    for (const auto& p : {before, now}) p->begin_tenure();
    for (const auto& p : {before, now}) p->begin();
    auto one = w.connect("a", before);
    CPPUNIT_ASSERT(one->put(0, 'x'));
    auto two = w.connect("a", now);
    CPPUNIT_ASSERT(one->entry != two->entry);
    CPPUNIT_ASSERT(!two->keeps(0));
    CPPUNIT_ASSERT(one->keeps(0));
    CPPUNIT_ASSERT(one->put(block, 'y'));
    CPPUNIT_ASSERT(two->entry == w.connect("a", now)->entry);
    CPPUNIT_ASSERT_EQUAL(std::string(), take_messages());
  }

  // They have an image each, and so a promise each, at the same time: what is
  // cached for one of them stays when another one comes.
  void readers_beside_writers() {
    for (const bool distinct : {false, true}) {
      World w(distinct);
      const std::shared_ptr<Promise> reading = make_promise();
      const std::shared_ptr<Promise> writing = make_promise();
      writing->begin_tenure();
      writing->begin();
      const auto reader = w.connect("a", reading);
      const auto writer = w.connect("a", writing);
      for (int i = 0; i < 2; ++i) {
        CPPUNIT_ASSERT(w.connect("a", reading)->entry == reader->entry);
        CPPUNIT_ASSERT(w.connect("a", writing)->entry == writer->entry);
      }
      CPPUNIT_ASSERT_EQUAL(std::size_t{2}, w.exports.all().size());
      // It is one disk.
      CPPUNIT_ASSERT(writer->put(0, 'x'));
      CPPUNIT_ASSERT_EQUAL(0, w.exports.settle(*reader->entry, block, 0));
      CPPUNIT_ASSERT_EQUAL('x', w.at(0));
    }
  }

  // What was cached of it is of before: others may have changed it meanwhile,
  // or it may be another one.
  void a_disk_that_comes_back() {
    const std::shared_ptr<Promise> promise = make_promise();
    const std::shared_ptr<Promise> other = make_promise();
    for (const auto& p : {promise, std::shared_ptr<Promise>()}) {
      World w;
      // With a client that stays only where nothing tells which disk it is.
      auto first = w.connect("a", p);
      const std::weak_ptr<Exports::Export> entry = first->entry;
      if (p) first.reset();
      const auto between = w.connect("a", other);
      CPPUNIT_ASSERT(w.connect("a", p)->entry != entry.lock());
      CPPUNIT_ASSERT_EQUAL(p == nullptr, !entry.expired());
    }
    // Of another size meanwhile.
    World w;
    const auto first = w.connect("a", promise);
    CachedDisk::Shape larger = shape;
    larger.size *= 2;
    (void)w.exports.use("a", larger, promise, false);
    CPPUNIT_ASSERT(w.connect("a", promise)->entry != first->entry);
  }

  // What the plugin knows counts more than what the user thinks.
  void two_names_of_a_disk() {
    World w(true);
    const std::shared_ptr<Promise> promise = make_promise();
    promise->begin_tenure();
    promise->begin();
    auto one = w.connect("a", promise);
    auto two = w.connect("b", promise);
    CPPUNIT_ASSERT(one->put(0, 'x'));
    CPPUNIT_ASSERT_EQUAL(0, w.exports.settle(*two->entry, block, 0));
    CPPUNIT_ASSERT_EQUAL('x', w.at(0));
  }

  void given_up() {
    World w;
    const std::shared_ptr<Promise> promise = make_promise();
    promise->begin_tenure();
    auto one = w.connect("a", promise);
    CPPUNIT_ASSERT(one->put(0, 'x'));
    promise->give_up();
    CPPUNIT_ASSERT_EQUAL('x', w.at(0));
    CPPUNIT_ASSERT(!one->put(0, 'y'));
    promise->end_tenure();
    CPPUNIT_ASSERT_EQUAL(0, one->flush());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, one->entry->writes()->losses());
    promise->begin_tenure();
    CPPUNIT_ASSERT(one->put(0, 'z'));
    CPPUNIT_ASSERT_EQUAL(std::string(), take_messages());
  }

  // What could not be written is neither read nor written later, also as long
  // as the lock is not yet given away.
  void given_up_in_vain() {
    World w;
    const std::shared_ptr<Promise> promise = make_promise();
    promise->begin_tenure();
    auto one = w.connect("a", promise);
    CPPUNIT_ASSERT(one->put(0, 'x'));
    w.error = ENOSPC;
    promise->give_up();
    w.error = 0;
    CPPUNIT_ASSERT_EQUAL(
        std::string("radoscache: export \"a\": what clients have written "
                    "cannot be written below before the image's lock ends: "
                    "No space left on device\n"
                    "radoscache: export \"a\": 4096 bytes that clients have "
                    "written are lost\n"),
        take_messages());
    CPPUNIT_ASSERT(!one->keeps(0));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{1}, one->entry->writes()->losses());
    CPPUNIT_ASSERT_EQUAL(0, one->flush());
    CPPUNIT_ASSERT_EQUAL('.', w.at(0));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, w.limit.used());
  }

  // Who comes when the others have been asked already keeps nothing.
  void a_late_keeper() {
    World w;
    const std::shared_ptr<Promise> promise = make_promise();
    promise->begin_tenure();
    promise->give_up();
    auto one = w.connect("a", promise);
    CPPUNIT_ASSERT(!one->put(0, 'x'));
    promise->end_tenure();
    promise->begin_tenure();
    CPPUNIT_ASSERT(one->put(0, 'x'));
    auto two = w.connect("b", promise);
    CPPUNIT_ASSERT(two->put(block, 'x'));
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(TestExports);

}  // namespace
