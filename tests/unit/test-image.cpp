// SPDX-License-Identifier: BSD-3-Clause
//
// The request engine and the formats, on the stores in memory and with
// faults.

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

#include "formats/catalog.hpp"
#include "formats/striper_metadata.hpp"
#include "image/image.hpp"
#include "image/ownership/exclusive_lock.hpp"
#include "image/ownership/lock_turns.hpp"
#include "image/published.hpp"
#include "image/status/difference.hpp"
#include "image/worker_pool.hpp"
#include "layout/sectors.hpp"
#include "no-blocklister.hpp"
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

/// A format whose metadata is what the test says.
class TestFormat final : public ImageFormat {
 public:
  /// What the test and the image share.
  struct State {
    std::mutex mutex;
    View view;                 // guarded by mutex
    int load_error = 0;        // guarded by mutex
    std::atomic<int> loads{0};
    std::atomic<int> keep_alive_error{0};
    std::atomic<int> keep_alives{0};
    std::atomic<bool> locked{true};
    std::optional<std::chrono::milliseconds> interval;
    std::shared_ptr<State> parent;  // of what it is a clone
    std::optional<Layout> parent_layout;  // none: as the clone's
    std::shared_ptr<const ObjectStates> map;  // changed between requests
  };

  TestFormat(ObjectStore& store, Layout layout, std::shared_ptr<State> state,
             std::string header = "header", bool keep_first = false,
             std::string prefix = "data")
      : store_(store),
        state_(std::move(state)),
        traits_{.name = "pool/image",
                .format = "test format",
                .layout = layout,
                .object_prefix = std::move(prefix),
                .name_digits = 4,
                .keep_first_object = keep_first,
                .header_oid = std::move(header),
                .details = "no features"},
        lock_(store, traits_.header_oid, blocklister_, {}) {}

  const ImageTraits& traits() const override { return traits_; }
  View load() override {
    ++state_->loads;
    const std::scoped_lock lock(state_->mutex);
    if (state_->load_error != 0)
      throw Error(state_->load_error, "the header says no");
    return state_->view;
  }
  std::optional<std::chrono::milliseconds> keep_alive() override {
    ++state_->keep_alives;
    if (const int e = state_->keep_alive_error)
      throw Error(e, "the lock is lost");
    return state_->interval;
  }
  std::optional<BootClock::time_point> locked_until() const override {
    if (!traits_.header_oid.empty()) return std::nullopt;
    return state_->locked ? BootClock::time_point::max()
                          : BootClock::time_point::min();
  }
  std::unique_ptr<ImageFormat> open_parent(const ParentSpec& spec) override {
    return std::make_unique<TestFormat>(
        store_, state_->parent_layout.value_or(traits_.layout), state_->parent,
        "header" + std::to_string(spec.snap), false,
        "parent" + std::to_string(spec.snap));
  }
  std::shared_ptr<const ObjectStates> read_map() override {
    return state_->map;
  }
  /// Needed where the view says lockable.
  ExclusiveLock* lock() noexcept override { return &lock_; }
  ObjectStore& header_store() override { return store_; }
  ObjectStore& data_store() override { return store_; }

 private:
  ObjectStore& store_;
  std::shared_ptr<State> state_;
  ImageTraits traits_;
  NoBlocklister blocklister_;
  ExclusiveLock lock_;
};

/// A store with faults, a format and an image on them.
struct Bench {
  explicit Bench(Layout layout, std::uint64_t size,
                 MemoryStore::Options options = {}, bool keep_first = false)
      : memory(options), store(memory) {
    memory.put("header", MemoryObject{});
    state->view.size = size;
    make(layout, keep_first);
  }
  void make(Layout layout, bool keep_first = false) {
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
        std::make_unique<TestFormat>(store, layout, state, "header",
                                     keep_first),
        how);
    store.clear_log();
  }
  ~Bench() {
    image.reset();
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, store.problems().size());
  }
  void set_view(const View& view) {
    const std::scoped_lock lock(state->mutex);
    state->view = view;
  }
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
  std::shared_ptr<TestFormat::State> state =
      std::make_shared<TestFormat::State>();
  std::shared_ptr<WorkerPool> workers = std::make_shared<WorkerPool>(4);
  std::uint64_t granularity = 0;
  std::chrono::seconds lock_wait = default_lock_wait;
  std::mutex log_mutex;
  std::vector<std::string> log;
  std::unique_ptr<Image> image;
};

template <class F>
int error_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.code();
  }
  return 0;
}

template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

bool eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 2000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(5ms);
  }
  return false;
}

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
  CPPUNIT_TEST(small_request_is_one_operation);
  CPPUNIT_TEST(beyond_the_end);
  CPPUNIT_TEST(read_only);
  CPPUNIT_TEST(short_reads_are_zeros);
  CPPUNIT_TEST(waits_for_all_objects);
  CPPUNIT_TEST(first_error_of_several);
  CPPUNIT_TEST(other_errors_are_not_zeros);
  CPPUNIT_TEST(zero_removes_whole_objects);
  CPPUNIT_TEST(zero_keeps_first_object);
  CPPUNIT_TEST(zero_spares_what_is_behind_the_end);
  CPPUNIT_TEST(zero_that_allocates);
  CPPUNIT_TEST(trim_rounds_inwards);
  CPPUNIT_TEST(huge_zero_is_bounded);
  CPPUNIT_TEST(zero_asks_where_little_is);
  CPPUNIT_TEST(changes_many_objects_at_a_time);
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

  void small_request_is_one_operation() {
    Bench b(Layout(4096 * K, 4096 * K, 1), 1 << 30);
    b.write(std::string(4096, 'x'), 4096 * K - 4096);
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, b.store.log().size());
    CPPUNIT_ASSERT_EQUAL(std::string("data.0000"), b.store.log()[0].oid);
    b.store.clear_log();
    CPPUNIT_ASSERT(b.read(4096, 4096 * K - 4096) == std::string(4096, 'x'));
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, b.store.log().size());
  }

  void beyond_the_end() {
    Bench b(Layout(64 * K, 64 * K, 1), 100 * K);
    char c = 'x';
    CPPUNIT_ASSERT_EQUAL(EINVAL,
                         error_of([&] { b.image->read(&c, 1, 100 * K); }));
    CPPUNIT_ASSERT_EQUAL(EINVAL,
                         error_of([&] { b.image->write(&c, 1, 100 * K); }));
    CPPUNIT_ASSERT_EQUAL(
        EINVAL, error_of([&] { b.write(std::string(2, 'x'), 100 * K - 1); }));
    CPPUNIT_ASSERT_EQUAL(EINVAL, error_of([&] {
                           b.image->zero(~std::uint64_t{0}, 5,
                                         Image::Zero::free);
                         }));
    CPPUNIT_ASSERT_EQUAL(
        EINVAL, error_of([&] { b.image->trim(64 * K, 64 * K); }));
    CPPUNIT_ASSERT_EQUAL(
        EINVAL, error_of([&] { (void)b.image->extents(2, 100 * K, false); }));
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, b.store.log().size());
  }

  void read_only() {
    MemoryStore memory;
    memory.put("header", MemoryObject{});
    const auto state = std::make_shared<TestFormat::State>();
    state->view.size = 64 * K;
    ImageOptions how;
    how.workers = std::make_shared<WorkerPool>(1);
    Image image(std::make_unique<TestFormat>(memory, Layout(4 * K, 4 * K, 1),
                                             state),
                how);
    char c = 'x';
    CPPUNIT_ASSERT_EQUAL(EROFS, error_of([&] { image.write(&c, 1, 0); }));
    CPPUNIT_ASSERT_EQUAL(
        EROFS, error_of([&] { image.zero(1, 0, Image::Zero::free); }));
    CPPUNIT_ASSERT_EQUAL(EROFS, error_of([&] { image.trim(64 * K, 0); }));
    CPPUNIT_ASSERT(!memory.find("data.0000"));
  }

  void short_reads_are_zeros() {
    Bench b(Layout(4 * K, K, 2), 64 * K);
    b.write(std::string(8 * K, 'a'), 0);
    b.store.inject({.kind = Kind::read, .oid = "data.0001", .short_read = 1500});
    // Object 1 holds the odd units; its first 1500 bytes are unit 1 and a
    // part of unit 3.
    std::string expected(8 * K, 'a');
    std::fill(expected.begin() + 3 * K + 476, expected.begin() + 4 * K, '\0');
    std::fill(expected.begin() + 5 * K, expected.begin() + 6 * K, '\0');
    std::fill(expected.begin() + 7 * K, expected.begin() + 8 * K, '\0');
    CPPUNIT_ASSERT(b.read(8 * K, 0) == expected);
    CPPUNIT_ASSERT(b.read(4 * K, 60 * K) == std::string(4 * K, '\0'));
  }

  void waits_for_all_objects() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    b.store.inject({.kind = Kind::write, .oid = "data.0001", .held = true});
    b.store.inject({.kind = Kind::write, .oid = "data.0000", .error = EIO});
    const std::string data(16 * K, 'a');
    auto request = std::async(std::launch::async, [&] {
      return error_of([&] { b.write(data, 0); });
    });
    CPPUNIT_ASSERT(b.store.wait_until_held(1));
    // All objects are in flight, one has failed, and still it waits.
    const bool all =
        eventually([&] { return b.store.count(Kind::write) == 4; });
    if (!all) b.store.release();
    CPPUNIT_ASSERT(all);
    CPPUNIT_ASSERT(request.wait_for(50ms) == std::future_status::timeout);
    b.store.release();
    CPPUNIT_ASSERT_EQUAL(EIO, request.get());
    CPPUNIT_ASSERT(b.memory.find("data.0003")->data.bytes() ==
                   std::string(4 * K, 'a'));

    b.store.inject({.kind = Kind::read, .oid = "data.0002", .held = true});
    std::string back(16 * K, '?');
    auto reading = std::async(std::launch::async,
                              [&] { b.image->read(back.data(), 16 * K, 0); });
    CPPUNIT_ASSERT(b.store.wait_until_held(1));
    CPPUNIT_ASSERT(reading.wait_for(50ms) == std::future_status::timeout);
    b.store.release();
    reading.get();
    CPPUNIT_ASSERT(back.substr(4 * K) == data.substr(4 * K));
  }

  void first_error_of_several() {
    Bench b(Layout(4 * K, K, 3), 96 * K);
    b.store.inject({.kind = Kind::write, .oid = "data.0002", .error = EPERM});
    b.store.inject({.kind = Kind::write, .oid = "data.0001", .error = ENOSPC});
    const std::string text =
        message_of([&] { b.write(std::string(24 * K, 'x'), 0); });
    CPPUNIT_ASSERT(text.find("data.0001") != std::string::npos);
    CPPUNIT_ASSERT(text.find("pool/image") != std::string::npos);
    CPPUNIT_ASSERT_EQUAL(std::size_t{6}, b.store.count(Kind::write));
    // The same request again works.
    b.write(std::string(24 * K, 'y'), 0);
    CPPUNIT_ASSERT(b.read(24 * K, 0) == std::string(24 * K, 'y'));
  }

  void other_errors_are_not_zeros() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    for (const int code : {EIO, ESHUTDOWN, ETIMEDOUT, EPERM}) {
      b.store.inject({.kind = Kind::read, .oid = "data.0001", .error = code});
      CPPUNIT_ASSERT_EQUAL(code, error_of([&] { (void)b.read(16 * K, 0); }));
      b.store.inject({.kind = Kind::stat, .oid = "data.0001", .error = code});
      CPPUNIT_ASSERT_EQUAL(
          code, error_of([&] { (void)b.image->extents(64 * K, 0, false); }));
    }
    b.write("x", 0);
    b.store.inject({.kind = Kind::map_extents, .error = EIO});
    CPPUNIT_ASSERT_EQUAL(
        EIO, error_of([&] { (void)b.image->extents(64 * K, 0, false); }));
    CPPUNIT_ASSERT_EQUAL(std::size_t{2},
                         b.extents(64 * K, 0).size());
  }

  void zero_removes_whole_objects() {
    Bench b(Layout(8 * K, 8 * K, 1), 64 * K);
    b.write(std::string(64 * K, 'x'), 0);
    b.store.clear_log();
    b.image->zero(20 * K, 6 * K, Image::Zero::free);
    using Step = WriteOp::Kind;
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
    CPPUNIT_ASSERT(!b.memory.find("data.0001"));
    // What is not there any more can be zeroed again.
    b.image->zero(64 * K, 0, Image::Zero::free);
    b.image->zero(64 * K, 0, Image::Zero::free);
  }

  void zero_keeps_first_object() {
    Bench b(Layout(8 * K, 8 * K, 1), 32 * K, {}, true);
    MemoryObject first;
    first.xattrs["striper.size"] = "32768";
    b.memory.put("data.0000", first);
    b.write(std::string(32 * K, 'x'), 0);
    b.image->zero(32 * K, 0, Image::Zero::free);
    const auto left = b.memory.find("data.0000");
    CPPUNIT_ASSERT(left);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, left->data.size());
    CPPUNIT_ASSERT_EQUAL(std::string("32768"),
                         left->xattrs.at("striper.size"));
    CPPUNIT_ASSERT(!b.memory.find("data.0001"));
    b.image->trim(32 * K, 0);
    CPPUNIT_ASSERT(b.memory.find("data.0000"));
  }

  void zero_spares_what_is_behind_the_end() {
    // Somebody else has grown the image and written behind our end.
    Bench b(Layout(8 * K, 8 * K, 1), 12 * K);
    MemoryObject other;
    other.data.write(5 * K, "data of the grown image");
    b.memory.put("data.0001", other);
    b.image->zero(12 * K, 0, Image::Zero::free);
    b.image->trim(12 * K, 0);
    char buffer[4] = {};
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{4},
                         b.memory.find("data.0001")->data.read(5 * K, buffer,
                                                               4));
    CPPUNIT_ASSERT_EQUAL(std::string("data"), std::string(buffer, 4));
  }

  void zero_that_allocates() {
    Bench b(Layout(64 * K, 64 * K, 1), 256 * K);
    b.write(std::string(1000, 'x'), 0);
    b.store.clear_log();
    b.image->zero(100 * K + 77, 50, Image::Zero::allocate);
    for (const auto& r : b.store.log())
      for (const auto s : r.steps)
        CPPUNIT_ASSERT(s == WriteOp::Kind::write_same ||
                       s == WriteOp::Kind::write ||
                       s == WriteOp::Kind::alloc_hint);
    CPPUNIT_ASSERT(b.read(50, 0) == std::string(50, 'x'));
    CPPUNIT_ASSERT(b.read(100 * K, 50) == std::string(100 * K, '\0'));
    const auto list = b.extents(256 * K, 0);
    CPPUNIT_ASSERT(list[0].data);
    CPPUNIT_ASSERT_EQUAL(100 * K + 512, list[0].length);  // 127 in a sector
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

  void huge_zero_is_bounded() {
    // 4 GiB - 1 of 4 KiB objects: a million, but not at once.
    Bench b(Layout(4 * K, 4 * K, 1), std::uint64_t{1} << 40);
    b.write("x", 123456);
    b.store.clear_log();
    b.image->zero(64 << 20, 0, Image::Zero::free);
    CPPUNIT_ASSERT(b.store.most_in_flight() <= 128);
    CPPUNIT_ASSERT_EQUAL(std::string(1, '\0'), b.read(1, 123456));
  }

  /// To ask for an object takes less of an OSD than to remove one that is not
  /// there, and more than to remove one that is.
  void zero_asks_where_little_is() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 << 20);
    b.write("x", 123456);
    b.store.clear_log();
    b.image->zero(64 << 20, 0, Image::Zero::free);
    CPPUNIT_ASSERT_EQUAL(std::size_t{16384}, b.store.count(Kind::stat));
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, b.store.count(Kind::write));
    CPPUNIT_ASSERT(!b.memory.find("data.001e"));

    b.write(std::string(16 << 20, 'x'), 0);
    b.store.clear_log();
    b.image->zero(64 << 20, 0, Image::Zero::free);
    // A few of the first chunk were asked for in vain; from the fifth on, where
    // nothing is, again.
    CPPUNIT_ASSERT_EQUAL(std::size_t{8 + 11 * 1024},
                         b.store.count(Kind::stat));
    CPPUNIT_ASSERT_EQUAL(std::size_t{5 * 1024}, b.store.count(Kind::write));
    CPPUNIT_ASSERT(b.read(16 << 20, 0) == std::string(16 << 20, '\0'));

    // What cannot be asked is removed, or not, with a reason.
    b.write("x", 5 * 4 * K);
    b.store.inject({.kind = Kind::stat, .oid = "data.0005", .error = EIO});
    b.image->zero(1 << 20, 0, Image::Zero::free);
    CPPUNIT_ASSERT(!b.memory.find("data.0005"));
    b.store.inject(
        {.kind = Kind::stat, .times = FaultStore::always, .error = ESHUTDOWN});
    b.store.inject(
        {.kind = Kind::write, .times = FaultStore::always, .error = ESHUTDOWN});
    CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, error_of([&] {
                           b.image->zero(1 << 20, 0, Image::Zero::free);
                         }));
  }

  void changes_many_objects_at_a_time() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 << 20);
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
    all_at_once([&] { b.write(std::string(4 << 20, 'x'), 4 * K); });
    all_at_once([&] { b.image->zero(4 << 20, 0, Image::Zero::free); });
    all_at_once([&] { b.image->zero(16 << 20, 0, Image::Zero::allocate); });
    all_at_once(
        [&] { b.image->zero(16 << 20, 4 * K + 5, Image::Zero::allocate); });
    CPPUNIT_ASSERT(b.store.most_in_flight() <= 128);
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

class TestExtents : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(TestExtents);
  CPPUNIT_TEST(exact_below_the_object);
  CPPUNIT_TEST(data_within_sectors);
  CPPUNIT_TEST(the_largest_request_at_any_byte);
  CPPUNIT_TEST(differences_within_sectors);
  CPPUNIT_TEST(one_extent_is_cheap);
  CPPUNIT_TEST(pool_that_cannot_map);
  CPPUNIT_TEST(empty_image_in_one_call);
  CPPUNIT_TEST(by_an_object_map);
  CPPUNIT_TEST(huge_and_mapped);
  CPPUNIT_TEST(parent_of_smaller_objects);
  CPPUNIT_TEST(snapshot_is_asked_once);
  CPPUNIT_TEST(doubtful_snapshot_is_not_learnt);
  CPPUNIT_TEST(head_is_asked_each_time);
  CPPUNIT_TEST(nothing_is_listed);
  CPPUNIT_TEST(removed_objects);
  CPPUNIT_TEST(object_that_vanishes);
  CPPUNIT_TEST_SUITE_END();

 public:
  void exact_below_the_object() {
    Bench b(Layout(64 * K, 64 * K, 1), 1 << 20);
    b.write("x", 5 * K);
    b.write("x", 200 * K);
    const std::vector<Extent> expected = {
        {0, 4 * K, false},           // nothing
        {4 * K, K + 512, true},      // up to the object's end, 5 K + 1
        {5 * K + 512, 195 * K - 512, false},
        {200 * K, 512, true},
        {200 * K + 512, (1 << 20) - 200 * K - 512, false}};
    CPPUNIT_ASSERT(b.extents(1 << 20, 0) == expected);
  }

  void data_within_sectors() {
    MemoryStore::Options options;
    options.map_granularity = 1;
    Bench b(Layout(64 * K, 64 * K, 1), 100 * K + 300, options);
    b.write(std::string(600, 'x'), 1000);
    b.write("x", 100 * K + 299);
    const std::vector<Extent> expected = {{0, 512, false},
                                          {512, 1536, true},
                                          {2048, 98 * K, false},
                                          {100 * K, 300, true}};
    CPPUNIT_ASSERT(b.extents(100 * K + 300, 0) == expected);
    // The hole before the data is in its sector.
    CPPUNIT_ASSERT(b.image->extents(90 * K, 600, true) ==
                   (std::vector<Extent>{{600, 1448, true}}));
    CPPUNIT_ASSERT(b.image->extents(1, 1999, false) ==
                   (std::vector<Extent>{{1999, 1, true}}));
    CPPUNIT_ASSERT(b.image->extents(1, 100 * K + 5, false) ==
                   (std::vector<Extent>{{100 * K + 5, 1, true}}));
  }

  // nbdkit aborts on an extent of more than 32 bits.
  void the_largest_request_at_any_byte() {
    constexpr u64 most = 0xffffffff;
    Bench b(Layout(4096 * K, 4096 * K, 1), u64{1} << 40);
    b.write("x", (u64{4} << 30) + 4096 * K);
    for (const bool one : {false, true})
      for (const u64 offset : {0, 1, 511, 512, 513, 4096 * 1024 + 1}) {
        const auto list = b.image->extents(most, offset, one);
        CPPUNIT_ASSERT_EQUAL(offset, list[0].offset);
        CPPUNIT_ASSERT(list[0].length <= most);
      }
    CPPUNIT_ASSERT(b.extents(most, 4096 * K + 2).size() == 2);
  }

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
      const auto then = std::make_shared<TestFormat::State>();
      then->view = {.size = size, .snapc = {5, {5}}, .snap = 5};
      const std::string old = b.read(size, 0);
      size += random() % 1500;
      b.set_view({.size = size, .snapc = {5, {5}}});
      b.image->refresh();
      change(5);
      Difference difference(
          std::shared_ptr<Image>(b.image.get(), [](Image*) {}),
          std::make_unique<TestFormat>(b.store, layout, then));
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

  void one_extent_is_cheap() {
    Bench b(Layout(64 * K, 64 * K, 1), 1 << 30);
    b.write(std::string(64 * K, 'x'), 0);
    b.store.clear_log();
    const auto list = b.image->extents((1 << 30) - 10, 10, true);
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, list.size());
    CPPUNIT_ASSERT(list[0] == (Extent{10, 64 * K - 10, true}));
    CPPUNIT_ASSERT(b.store.log().size() < 20);
  }

  void pool_that_cannot_map() {
    MemoryStore::Options options;
    options.can_map = false;
    Bench b(Layout(64 * K, 64 * K, 1), 1 << 20, options);
    b.write("x", 70 * K);
    b.write("x", 10 * K);
    const std::vector<Extent> expected = {
        {0, 10 * K + 512, true},
        {10 * K + 512, 54 * K - 512, false},
        {64 * K, 6 * K + 512, true},
        {70 * K + 512, (1 << 20) - 70 * K - 512, false}};
    CPPUNIT_ASSERT(b.extents(1 << 20, 0) == expected);
    CPPUNIT_ASSERT(b.extents(K, 0) ==
                   (std::vector<Extent>{{0, K, true}}));
    CPPUNIT_ASSERT(b.extents(K, 20 * K) ==
                   (std::vector<Extent>{{20 * K, K, false}}));
  }

  void empty_image_in_one_call() {
    Bench b(Layout(4096 * K, 4096 * K, 1), std::uint64_t{1} << 40);
    const auto list = b.extents(0xffffffff, 0);
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, list.size());
    CPPUNIT_ASSERT(!list[0].data);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0xffffffff}, list[0].length);
  }

  // The same as without the map, whose end can be before the image's.
  void by_an_object_map() {
    std::mt19937 random(6);
    for (const Layout& layout :
         {Layout(8 * K, 8 * K, 1), Layout(8 * K, 1 * K, 5),
          Layout(5000, 1000, 3)})
      for (int round = 0; round < 8; ++round) {
        const u64 size = 3000 * K + random() % 2000;
        MemoryStore::Options options;
        options.map_granularity = 1;
        Bench b(layout, size, options);
        for (int i = 0; i < round * 3; ++i)
          b.write("x", random() % size);
        const u64 objects = layout.object_count(size);
        ObjectStates map(objects - (round == 3 ? objects / 2 : 0));
        for (u64 n = 0; n < map.size(); ++n)
          if (b.memory.find(numbered_oid("data", n, 4)) || random() % 50 == 0)
            map.set(n, n % 2 == 0 ? ObjectState::exists
                                  : ObjectState::pending);
        View view{.size = size, .snapc = {5, {5}}};
        for (const SnapId snap : {snap_head, SnapId{5}}) {
          view.snap = snap;
          view.mappable = false;
          b.set_view(view);
          b.image->refresh();
          const auto expected = b.extents(size, 0);
          view.mappable = true;
          // And of a snapshot, as if nothing were known yet.
          view.snap = snap == snap_head ? snap : SnapId{4};
          view.snapc = {5, {5, 4}};
          b.set_view(view);
          b.state->map = std::make_shared<const ObjectStates>(map);
          b.image->refresh();
          for (int again = 0; again < 2; ++again) {
            CPPUNIT_ASSERT(b.extents(size, 0) == expected);
            for (int i = 0; i < 40; ++i) {
              const u64 offset = random() % size;
              const auto one = b.image->extents(size - offset, offset, true);
              auto rest = expected;
              std::erase_if(rest, [&](const Extent& e) {
                return e.offset + e.length <= offset;
              });
              cut(rest, offset, size);
              CPPUNIT_ASSERT_EQUAL(std::size_t{1}, one.size());
              CPPUNIT_ASSERT_EQUAL(rest[0].data, one[0].data);
              CPPUNIT_ASSERT(one[0].length <= rest[0].length);
            }
          }
        }
      }
  }

  // As much as an object map can be of.
  void huge_and_mapped() {
    constexpr u64 object = u64{4} << 20;
    const u64 size = object_map_max * object;
    for (const SnapId snap : {snap_head, SnapId{5}}) {
      Bench b(Layout(object, object, 1), size);
      b.write("x", size - 5 * object);
      auto map = std::make_shared<ObjectStates>(object_map_max);
      map->set(object_map_max - 5, ObjectState::exists);
      b.state->map = map;
      b.set_view({.size = size, .snapc = {5, {5}}, .snap = snap,
                  .mappable = true});
      b.image->refresh();
      b.store.clear_log();
      // The largest hole that is told of, again and again.
      for (int i = 0; i < 50; ++i) {
        const u64 offset = size / 50 * static_cast<unsigned>(i) / 512 * 512;
        const auto list = b.image->extents(16 * object, offset, false);
        CPPUNIT_ASSERT_EQUAL(std::size_t{1}, list.size());
        CPPUNIT_ASSERT(!list[0].data && list[0].length >= 16 * object);
      }
      const auto list = b.extents(64 * object, size - 64 * object);
      CPPUNIT_ASSERT(list ==
                     (std::vector<Extent>{
                         {size - 64 * object, 59 * object, false},
                         {size - 5 * object, 512, true},
                         {size - 5 * object + 512, 5 * object - 512, false}}));
      CPPUNIT_ASSERT_EQUAL(std::size_t{0}, b.store.count(Kind::stat));
    }
  }

  // One step of a clone is none of a million of its parent's objects.
  void parent_of_smaller_objects() {
    Bench b(Layout(4096 * K, 4096 * K, 1), u64{4} << 30);
    b.state->parent = std::make_shared<TestFormat::State>();
    b.state->parent->view = {.size = u64{4} << 30, .snap = 7};
    b.state->parent_layout = Layout(4 * K, 4 * K, 1);
    b.memory.put("parent7.0000", memory_object("x"));
    b.set_view({.size = u64{4} << 30,
                .overlap = u64{4} << 30,
                .parent_spec = {1, "", "p", 7}});
    b.image->refresh();
    b.store.clear_log();
    // The time for a call is over after the first step.
    b.store.inject({.kind = Kind::stat, .skip = 500, .delay = 150ms});
    const auto list = b.image->extents(u64{2} << 30, 0, false);
    CPPUNIT_ASSERT(list[0] == (Extent{0, 512, true}));
    CPPUNIT_ASSERT(b.store.count(Kind::stat) < 2 * 1024);
  }

  void snapshot_is_asked_once() {
    Bench b(Layout(64 * K, 64 * K, 1), 16384 * K);
    for (const std::uint64_t at : {0, 1000, 5000})
      b.write(std::string(1000, 'x'), at * K);
    b.set_view({.size = 16384 * K, .snapc = {5, {5}}, .snap = 5});
    b.image->refresh();
    const auto before = b.extents(16384 * K, 0);
    CPPUNIT_ASSERT_EQUAL(std::size_t{6}, before.size());
    b.store.clear_log();
    const int loads = b.state->loads;
    CPPUNIT_ASSERT(b.extents(16384 * K, 0) == before);
    CPPUNIT_ASSERT(b.image->extents(8192 * K, 10, true) ==
                   (std::vector<Extent>{{10, K - 10, true}}));
    // What is known not to exist is not read either.
    CPPUNIT_ASSERT(b.read(4096 * K, 6000 * K) == std::string(4096 * K, '\0'));
    CPPUNIT_ASSERT(b.read(K, 6000 * K) == std::string(K, '\0'));
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, b.store.log().size());
    CPPUNIT_ASSERT_EQUAL(loads, b.state->loads.load());
    // What is seen of a clone changes with the link to its parent.
    b.set_view({.size = 16380 * K, .snapc = {5, {5}}, .snap = 5});
    b.image->refresh();
    (void)b.extents(16380 * K, 0);
    CPPUNIT_ASSERT(b.store.count(Kind::map_extents) == 3);
  }

  void doubtful_snapshot_is_not_learnt() {
    Bench b(Layout(64 * K, 64 * K, 1), 16384 * K);
    b.set_view({.size = 16384 * K, .snapc = {5, {5}}, .snap = 5});
    b.image->refresh();
    {
      const std::scoped_lock lock(b.state->mutex);
      b.state->load_error = EIO;
    }
    // Absent, but perhaps because the snapshot has been deleted.
    CPPUNIT_ASSERT_EQUAL(
        EIO, error_of([&] { (void)b.image->extents(K, 0, false); }));
    {
      const std::scoped_lock lock(b.state->mutex);
      b.state->load_error = 0;
    }
    b.image->refresh();
    b.store.clear_log();
    (void)b.extents(16384 * K, 0);
    CPPUNIT_ASSERT(!b.store.log().empty());
  }

  void head_is_asked_each_time() {
    Bench b(Layout(64 * K, 64 * K, 1), 1024 * K);
    for (int i = 0; i < 3; ++i) {
      b.store.clear_log();
      (void)b.extents(1024 * K, 0);
      CPPUNIT_ASSERT_EQUAL(std::size_t{16}, b.store.count(Kind::stat));
      // Somebody else.
      MemoryObject object;
      object.data.write(0, "x");
      b.memory.put("data.000" + std::to_string(i), object);
      CPPUNIT_ASSERT_EQUAL(512 * (std::uint64_t{1} + static_cast<unsigned>(i)),
                           data_in(b.extents(1024 * K, 0)));
    }
  }

  static std::uint64_t data_in(const std::vector<Extent>& list) {
    std::uint64_t n = 0;
    for (const Extent& e : list)
      if (e.data) n += e.length;
    return n;
  }

  // A listing can lack what is there (in a cache pool, for instance), so
  // nothing is concluded from one: each object is asked for.
  void nothing_is_listed() {
    for (const bool striped : {false, true}) {
      const Layout layout(64 * K, striped ? 16 * K : 64 * K, striped ? 5 : 1);
      MemoryStore::Options options;
      options.map_granularity = 1;
      Bench b(layout, 320 * 1024 * K, options);
      b.write("x", 77 * 320 * K + 33 * K);
      b.write("y", 0);
      // As a snapshot, too, of which what is absent is learnt for ever.
      for (const SnapId snap : {snap_head, SnapId{5}}) {
        b.set_view({.size = 320 * 1024 * K, .snapc = {5, {5}}, .snap = snap});
        b.image->refresh();
        b.store.clear_log();
        for (int i = 0; i < 2; ++i)
          CPPUNIT_ASSERT_EQUAL(std::uint64_t{2 * 512},
                               data_in(b.extents(320 * 1024 * K, 0)));
        // What is known of a snapshot is not asked again.
        const std::size_t rounds = snap == snap_head ? 2 : 1;
        CPPUNIT_ASSERT_EQUAL(5'120 * rounds, b.store.count(Kind::stat));
        CPPUNIT_ASSERT(b.store.most_in_flight() <= 128);
        CPPUNIT_ASSERT_EQUAL(std::size_t{0}, b.store.count(Kind::list));
        CPPUNIT_ASSERT_EQUAL(std::string("x"),
                             b.read(1, 77 * 320 * K + 33 * K));
      }
    }
  }

  // What only a snapshot has is no hole in it.
  void removed_objects() {
    Bench b(Layout(64 * K, 64 * K, 1), 64 * 200 * K);
    b.write("y", 640 * K);
    b.set_view({.size = 64 * 200 * K, .snapc = {5, {5}}});
    b.image->refresh();
    b.image->zero(64 * 200 * K, 0, Image::Zero::free);
    CPPUNIT_ASSERT(!b.memory.find("data.000a"));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, data_in(b.extents(64 * 200 * K, 0)));
    b.set_view({.size = 64 * 200 * K, .snapc = {5, {5}}, .snap = 5});
    b.image->refresh();
    CPPUNIT_ASSERT_EQUAL(u64{512}, data_in(b.extents(64 * 200 * K, 0)));
  }

  void object_that_vanishes() {
    // Between asking for its size and mapping it.
    Bench b(Layout(64 * K, 64 * K, 1), 256 * K);
    b.write("x", 0);
    b.store.inject({.kind = Kind::map_extents, .error = ENOENT});
    CPPUNIT_ASSERT(b.extents(256 * K, 0) ==
                   (std::vector<Extent>{{0, 256 * K, false}}));
  }
};

class TestMetadata : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(TestMetadata);
  CPPUNIT_TEST(writes_carry_the_snapshot_context);
  CPPUNIT_TEST(notify_waits_for_old_writes);
  CPPUNIT_TEST(shrunk_image);
  CPPUNIT_TEST(broken_watch_holds_writes);
  CPPUNIT_TEST(deleted_image);
  CPPUNIT_TEST(blocklisted_client);
  CPPUNIT_TEST(blocklisted_for_a_moment);
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
  CPPUNIT_TEST(noise_in_the_header);
  CPPUNIT_TEST(a_timeout_is_no_verdict);
  CPPUNIT_TEST(unread_notification_holds_writes);
  CPPUNIT_TEST(refresh_does_not_end_a_hold);
  CPPUNIT_TEST(writes_wait_while_the_header_is_read);
  CPPUNIT_TEST(failed_load_confirms_nothing);
  CPPUNIT_TEST(unguarded_image_is_asked_for);
  CPPUNIT_TEST(old_watch_is_not_believed);
  CPPUNIT_TEST(writes_wait_for_the_watch);
  CPPUNIT_TEST(stuck_request_does_not_stop_refresh);
  CPPUNIT_TEST(failure_ends_with_its_reason);
  CPPUNIT_TEST(failure_is_asked_for_now_and_then);
  CPPUNIT_TEST(failure_while_the_watch_is_made);
  CPPUNIT_TEST(watch_that_is_refused_for_a_while);
  CPPUNIT_TEST(failure_of_a_parent_ends);
  CPPUNIT_TEST(many_generations);
  CPPUNIT_TEST(parents_in_a_circle);
  CPPUNIT_TEST(deleted_snapshot_is_not_zeros);
  CPPUNIT_TEST(lost_lock);
  CPPUNIT_TEST(published_value_under_load);
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

  void shrunk_image() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    b.write("x", 63 * K);
    b.set_view({.size = 32 * K});
    CPPUNIT_ASSERT_EQUAL(0, b.store.notify("header", "", 10s));
    CPPUNIT_ASSERT_EQUAL(EINVAL, error_of([&] { b.write("x", 32 * K); }));
    CPPUNIT_ASSERT_EQUAL(EINVAL, error_of([&] { (void)b.read(1, 63 * K); }));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{32 * K}, b.image->size());
    b.write("x", 32 * K - 1);
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

  // Shut out, and let in again before the watch shows it: somebody else has
  // had the image in the meantime.
  void blocklisted_for_a_moment() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    b.write("x", 0);
    set_load_error(b, ESHUTDOWN);
    CPPUNIT_ASSERT_EQUAL(0, b.store.notify("header", "", 10s));
    set_load_error(b, 0);
    b.store.clear_log();
    CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, error_of([&] { b.write("y", 0); }));
    CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, error_of([&] { b.image->refresh(); }));
    CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, error_of([&] { b.write("y", 0); }));
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, b.store.count(Kind::write));
    CPPUNIT_ASSERT(b.image->lost());
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

  void noise_in_the_header() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    set_load_error(b, EIO);
    CPPUNIT_ASSERT_EQUAL(0, b.store.notify("header", "", 10s));
    CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] { b.write("x", 0); }));
    CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] { (void)b.read(1, 0); }));
    CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] { b.image->refresh(); }));
    // Somebody repairs it.
    set_load_error(b, 0);
    b.image->refresh();
    b.write("x", 0);
  }

  /// No notification and no new client says so.
  void failure_ends_with_its_reason() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    b.write("x", 0);
    const auto fail_once = [&](int code) {
      set_load_error(b, code);
      CPPUNIT_ASSERT_EQUAL(code, error_of([&] { b.image->refresh(); }));
      set_load_error(b, 0);
    };
    // The first request asks at once, whatever it is.
    fail_once(EIO);
    CPPUNIT_ASSERT_EQUAL(std::string("x"), b.read(1, 0));
    fail_once(ENOTSUP);
    b.write("y", 0);
    fail_once(EACCES);
    CPPUNIT_ASSERT(b.extents(64 * K, 0)[0].data);
    // What was seen is what is so now.
    set_load_error(b, EIO);
    CPPUNIT_ASSERT_EQUAL(0, b.store.notify("header", "", 10s));
    b.set_view({.size = 32 * K, .snapc = {7, {7}}});
    set_load_error(b, 0);
    b.write("z", 0);
    CPPUNIT_ASSERT(b.last_context() == (SnapContext{7, {7}}));
    CPPUNIT_ASSERT_EQUAL(EINVAL, error_of([&] { (void)b.read(1, 32 * K); }));
  }

  void failure_is_asked_for_now_and_then() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    b.write("x", 0);
    set_load_error(b, EIO);
    CPPUNIT_ASSERT_EQUAL(0, b.store.notify("header", "", 10s));
    const int loads = b.state->loads;
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::future<void>> clients;
    for (int i = 0; i < 4; ++i)
      clients.push_back(std::async(std::launch::async, [&] {
        for (int n = 0; n < 100; ++n)
          CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] { (void)b.read(1, 0); }));
      }));
    for (auto& c : clients) c.get();
    const auto took = std::chrono::steady_clock::now() - start;
    const int asked = b.state->loads - loads;
    CPPUNIT_ASSERT(asked >= 1);
    CPPUNIT_ASSERT(asked <= 1 + took / 1s);
    set_load_error(b, 0);
    CPPUNIT_ASSERT(
        eventually([&] { return error_of([&] { b.write("y", 0); }) == 0; }));
    // When all is well it is not asked for.
    const int well = b.state->loads;
    CPPUNIT_ASSERT_EQUAL(std::string("y"), b.read(1, 0));
    CPPUNIT_ASSERT_EQUAL(well, b.state->loads.load());
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
    const auto parent = std::make_shared<TestFormat::State>();
    const auto grandparent = std::make_shared<TestFormat::State>();
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

  void a_timeout_is_no_verdict() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    set_load_error(b, ETIMEDOUT);
    CPPUNIT_ASSERT_EQUAL(ETIMEDOUT, error_of([&] { b.image->refresh(); }));
    b.write("x", 0);
    CPPUNIT_ASSERT_EQUAL(std::string("x"), b.read(1, 0));
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

  void failed_load_confirms_nothing() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    b.set_view({.size = 64 * K, .snapc = {5, {5}}, .snap = 5});
    b.image->refresh();
    set_load_error(b, ETIMEDOUT);
    std::vector<std::future<int>> readers;
    for (int i = 0; i < 4; ++i)
      readers.push_back(std::async(std::launch::async, [&] {
        return error_of([&] { (void)b.read(1, 0); });
      }));
    for (auto& r : readers) CPPUNIT_ASSERT_EQUAL(ETIMEDOUT, r.get());
  }

  void unguarded_image_is_asked_for() {
    // A key that may not watch.
    MemoryStore memory;
    FaultStore store(memory);
    memory.put("header", MemoryObject{});
    store.inject(
        {.kind = Kind::watch, .times = FaultStore::always, .error = EPERM});
    const auto state = std::make_shared<TestFormat::State>();
    state->view.size = 64 * K;
    {
      Image image(std::make_unique<TestFormat>(
                      store, Layout(4 * K, 4 * K, 1), state),
                  {.workers = std::make_shared<WorkerPool>(1)});
      char c = 'x';
      image.read(&c, 1, 0);
      CPPUNIT_ASSERT_EQUAL('\0', c);
      {
        const std::scoped_lock lock(state->mutex);
        state->load_error = ENOENT;
      }
      CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] {
                             image.read(&c, 1, 0);
                             image.read(&c, 1, 0);
                           }));
    }
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, store.problems().size());
  }

  // The OSD has not heard of the watch for longer than it keeps one.
  void old_watch_is_not_believed() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    CPPUNIT_ASSERT_EQUAL(std::string(1, '\0'), b.read(1, 0));
    const auto loads_of_a_read = [&](std::chrono::milliseconds kept_for) {
      b.store.keep_watches_for(kept_for);
      CPPUNIT_ASSERT_EQUAL(0, b.store.notify("header", "", 10s));
      const int loads = b.state->loads;
      CPPUNIT_ASSERT_EQUAL(std::string(1, '\0'), b.read(1, 0));
      return b.state->loads - loads;
    };
    CPPUNIT_ASSERT_EQUAL(0, loads_of_a_read(15s));
    CPPUNIT_ASSERT_EQUAL(1, loads_of_a_read(-5s));
    CPPUNIT_ASSERT_EQUAL(0, loads_of_a_read(25s));
    // What is there is believed, and what is not only if the image is.
    b.write("x", 4 * K);
    (void)loads_of_a_read(-5s);
    set_load_error(b, ENOENT);
    CPPUNIT_ASSERT_EQUAL(std::string("x"), b.read(1, 4 * K));
    CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] { (void)b.read(1, 0); }));
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

  void stuck_request_does_not_stop_refresh() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    b.store.inject({.kind = Kind::read, .oid = "data.0000", .held = true});
    auto stuck = std::async(std::launch::async, [&] { return b.read(1, 0); });
    const bool held = b.store.wait_until_held(1);
    b.set_view({.size = 128 * K});
    auto client = std::async(std::launch::async, [&] { b.image->refresh(); });
    const bool refreshed =
        client.wait_for(10s) == std::future_status::ready;
    b.store.release();
    (void)stuck.get();
    CPPUNIT_ASSERT(held && refreshed);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{128 * K}, b.image->size());
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
      child->parent = std::make_shared<TestFormat::State>();
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
    const auto first = std::make_shared<TestFormat::State>();
    const auto second = std::make_shared<TestFormat::State>();
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

  void deleted_snapshot_is_not_zeros() {
    Bench b(Layout(4 * K, 4 * K, 1), 64 * K);
    b.set_view({.size = 64 * K, .snapc = {5, {5}}});
    b.image->refresh();
    b.write("x", 0);
    b.set_view({.size = 64 * K, .snapc = {5, {5}}, .snap = 5});
    b.image->refresh();
    // Absent, and the snapshot exists: zeros.
    CPPUNIT_ASSERT_EQUAL(std::string(1, '\0'), b.read(1, 0));
    CPPUNIT_ASSERT_EQUAL(std::string(1, '\0'), b.read(1, 40 * K));
    // Absent because the snapshot is gone, and nobody has told us.
    set_load_error(b, EIO);
    CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] { (void)b.read(1, 40 * K); }));
    set_load_error(b, 0);
    b.image->refresh();
    set_load_error(b, EIO);
    CPPUNIT_ASSERT_EQUAL(
        EIO, error_of([&] { (void)b.extents(64 * K, 0); }));
  }

  void lost_lock() {
    MemoryStore memory;
    const auto state = std::make_shared<TestFormat::State>();
    state->view.size = 64 * K;
    state->interval = 5ms;
    ImageOptions how;
    how.writable = true;
    how.workers = std::make_shared<WorkerPool>(1);
    Image image(std::make_unique<TestFormat>(memory, Layout(4 * K, 4 * K, 1),
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

  void published_value_under_load() {
    // A reader never sees a value that has been given up: each value is
    // marked dead when publish() has returned.
    struct Value {
      std::shared_ptr<std::atomic<bool>> alive;
    };
    const auto make = [](std::shared_ptr<std::atomic<bool>>& mark) {
      mark = std::make_shared<std::atomic<bool>>(true);
      return std::make_unique<Value>(Value{mark});
    };
    std::shared_ptr<std::atomic<bool>> mark;
    Published<Value> value(make(mark));
    std::atomic<bool> stop{false};
    std::atomic<long> wrong{0}, reads{0};
    std::vector<std::thread> readers;
    for (int i = 0; i < 4; ++i)
      readers.emplace_back([&] {
        while (!stop) {
          const auto v = value.read();
          for (int j = 0; j < 50; ++j)
            if (!v->alive->load()) ++wrong;
          ++reads;
        }
      });
    for (int i = 0; i < 2000 || reads < 1000; ++i) {
      const auto former = mark;
      value.store(make(mark));
      if (i % 2) continue;
      value.synchronize();
      former->store(false);
    }
    stop = true;
    for (auto& t : readers) t.join();
    CPPUNIT_ASSERT_EQUAL(0L, wrong.load());
    CPPUNIT_ASSERT(reads > 0);
  }

 private:
  static void set_load_error(Bench& b, int code) {
    const std::scoped_lock lock(b.state->mutex);
    b.state->load_error = code;
  }
};

class TestWorkers : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(TestWorkers);
  CPPUNIT_TEST(runs_each_once);
  CPPUNIT_TEST(passes_exceptions_on);
  CPPUNIT_TEST_SUITE_END();

 public:
  void runs_each_once() {
    WorkerPool pool(4);
    std::vector<std::thread> users;
    for (int u = 0; u < 4; ++u)
      users.emplace_back([&pool] {
        for (std::size_t n : {0, 1, 2, 7, 1000}) {
          std::vector<std::atomic<int>> calls(n);
          pool.for_each(n, [&](std::size_t i) { ++calls[i]; });
          for (const auto& c : calls)
            if (c != 1) std::abort();
        }
      });
    for (auto& t : users) t.join();
  }
  void passes_exceptions_on() {
    WorkerPool pool(3);
    CPPUNIT_ASSERT_THROW(pool.for_each(100,
                                       [](std::size_t i) {
                                         if (i == 50) throw Error(EIO, "x");
                                       }),
                         Error);
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
CPPUNIT_TEST_SUITE_REGISTRATION(TestExtents);
CPPUNIT_TEST_SUITE_REGISTRATION(TestMetadata);
CPPUNIT_TEST_SUITE_REGISTRATION(TestWorkers);
CPPUNIT_TEST_SUITE_REGISTRATION(TestCatalog);

}  // namespace
