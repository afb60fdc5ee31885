// SPDX-License-Identifier: BSD-3-Clause
//
// The stores that other tests build on: what MemoryStore does must be what
// OSDs do, and FaultStore must do what it is told.  The expectations of
// MemoryStoreTest have been compared with a cluster (BlueStore, 16.2.15).

#include <cppunit/extensions/HelperMacros.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "rados/error.hpp"
#include "rados/fault_store.hpp"
#include "rados/memory_store.hpp"
#include "rados/object_store.hpp"

using namespace nbdrados;
using namespace std::chrono_literals;

namespace {

using Kind = FaultStore::Kind;

// ---- Operations in one line each.

int write(ObjectStore& store, const std::string& oid, const WriteOp& op,
          const SnapContext& snapc = {}) {
  return store.write(oid, op, snapc)->wait();
}

int write_at(ObjectStore& store, const std::string& oid, std::uint64_t offset,
             std::string_view bytes, const SnapContext& snapc = {}) {
  const ConstPiece piece{bytes.data(), bytes.size()};
  WriteOp op;
  op.write(offset, {&piece, 1});
  return write(store, oid, op, snapc);
}

int make(ObjectStore& store, const std::string& oid) {
  WriteOp op;
  op.create();
  return write(store, oid, op);
}

// The bytes read, or "errno N".
std::string read_at(ObjectStore& store, const std::string& oid,
                    std::uint64_t offset, std::size_t size,
                    SnapId snap = snap_head) {
  std::string bytes(size, '#');
  const MutablePiece piece{bytes.data(), bytes.size()};
  const int r = store.read(oid, offset, {&piece, 1}, snap)->wait();
  if (r < 0) return "errno " + std::to_string(-r);
  // What was not there is not touched.
  const auto n = static_cast<std::size_t>(r);
  if (n > size || bytes.find_first_not_of('#', n) != std::string::npos)
    return "touched too much";
  return bytes.substr(0, n);
}

std::string error(int code) { return "errno " + std::to_string(code); }

std::string content(ObjectStore& store, const std::string& oid,
                    SnapId snap = snap_head) {
  return read_at(store, oid, 0, 100000, snap);
}

int size_of(ObjectStore& store, const std::string& oid,
            SnapId snap = snap_head) {
  std::uint64_t size = 12345;
  const int r = store.stat(oid, &size, snap)->wait();
  return r < 0 ? r : static_cast<int>(size);
}

std::string map_of(ObjectStore& store, const std::string& oid,
                   std::uint64_t offset = 0,
                   std::uint64_t length = std::uint64_t{1} << 30,
                   SnapId snap = snap_head) {
  std::vector<ObjectRange> ranges;
  const int r = store.map_extents(oid, offset, length, snap, &ranges);
  if (r < 0) return error(-r);
  std::string text;
  for (const ObjectRange& range : ranges)
    text += std::to_string(range.offset) + "+" +
            std::to_string(range.length) + " ";
  return text;
}

std::string zeros(std::size_t n) { return std::string(n, '\0'); }

SnapContext snaps(SnapId seq, std::vector<SnapId> ids) {
  return {.seq = seq, .snaps = std::move(ids)};
}

bool any_name(std::string_view) { return true; }

// ---- A watcher that records, and answers if it is told to.

class Recorder : public WatchHandler {
 public:
  Recorder(ObjectStore& store, std::string oid, bool answers = true)
      : store_(store), oid_(std::move(oid)), answers_(answers) {}

  void notified(std::uint64_t id, std::uint64_t cookie,
                std::string_view payload) noexcept override {
    if (answers_) store_.notify_ack(oid_, id, cookie, answer_);
    const std::scoped_lock lock(mutex_);
    ids_.insert(id);
    cookies_.insert(cookie);
    threads_.insert(std::this_thread::get_id());
    payloads_.emplace_back(payload);
  }
  void watch_lost(int code) noexcept override {
    const std::scoped_lock lock(mutex_);
    threads_.insert(std::this_thread::get_id());
    lost_.push_back(code);
    changed_.notify_all();
  }
  /// Before notifications come.
  void answer_with(std::string answer) { answer_ = std::move(answer); }
  std::vector<std::string> payloads() {
    const std::scoped_lock lock(mutex_);
    return payloads_;
  }
  // Of the notifications.
  std::set<std::uint64_t> ids() {
    const std::scoped_lock lock(mutex_);
    return ids_;
  }
  std::set<std::uint64_t> cookies() {
    const std::scoped_lock lock(mutex_);
    return cookies_;
  }
  std::set<std::thread::id> threads() {
    const std::scoped_lock lock(mutex_);
    return threads_;
  }
  // The errors so far, after waiting for the first.
  std::vector<int> lost() {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, 20s, [this] { return !lost_.empty(); });
    return lost_;
  }
  std::vector<int> lost_now() {
    const std::scoped_lock lock(mutex_);
    return lost_;
  }

 private:
  ObjectStore& store_;
  const std::string oid_;
  const bool answers_;
  std::string answer_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> payloads_;
  std::set<std::uint64_t> ids_;
  std::set<std::uint64_t> cookies_;
  std::set<std::thread::id> threads_;
  std::vector<int> lost_;
};

}  // namespace

class MemoryStoreTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(MemoryStoreTest);
  CPPUNIT_TEST(write_and_read);
  CPPUNIT_TEST(pieces);
  CPPUNIT_TEST(read_of_nothing_is_refused);
  CPPUNIT_TEST(missing_object);
  CPPUNIT_TEST(write_extends_with_zeros);
  CPPUNIT_TEST(empty_write_is_refused);
  CPPUNIT_TEST(write_full_replaces);
  CPPUNIT_TEST(write_same);
  CPPUNIT_TEST(zero);
  CPPUNIT_TEST(truncate);
  CPPUNIT_TEST(remove);
  CPPUNIT_TEST(create_is_exclusive);
  CPPUNIT_TEST(assert_exists);
  CPPUNIT_TEST(alloc_hint_makes_the_object);
  CPPUNIT_TEST(xattrs);
  CPPUNIT_TEST(cmp_xattr);
  CPPUNIT_TEST(omap);
  CPPUNIT_TEST(tmap);
  CPPUNIT_TEST(steps_are_atomic);
  CPPUNIT_TEST(steps_see_each_other);
  CPPUNIT_TEST(too_big);
  CPPUNIT_TEST(too_many_steps);
  CPPUNIT_TEST(snapshot_clones_on_first_write);
  CPPUNIT_TEST(snapshot_before_the_object);
  CPPUNIT_TEST(snapshots_share_a_clone);
  CPPUNIT_TEST(snapshot_of_removed_object);
  CPPUNIT_TEST(old_context_makes_no_clone);
  CPPUNIT_TEST(object_written_without_context);
  CPPUNIT_TEST(operations_without_effect_make_no_clone);
  CPPUNIT_TEST(failed_operation_makes_no_clone);
  CPPUNIT_TEST(invalid_context);
  CPPUNIT_TEST(clones_do_not_change);
  CPPUNIT_TEST(exec);
  CPPUNIT_TEST(map_extents);
  CPPUNIT_TEST(map_extents_coarse);
  CPPUNIT_TEST(map_extents_unsupported);
  CPPUNIT_TEST(map_extents_of_snapshots);
  CPPUNIT_TEST(list);
  CPPUNIT_TEST(find_and_put);
  CPPUNIT_TEST(versions);
  CPPUNIT_TEST(copies);
  CPPUNIT_TEST(copies_that_fail);
  CPPUNIT_TEST(notify_reaches_watchers);
  CPPUNIT_TEST(notify_times_out);
  CPPUNIT_TEST(notify_without_watchers);
  CPPUNIT_TEST(notify_gives_answers);
  CPPUNIT_TEST(notify_and_answer_oneself);
  CPPUNIT_TEST(notify_without_waiting);
  CPPUNIT_TEST(watchers_are_listed);
  CPPUNIT_TEST(touch);
  CPPUNIT_TEST(watch_of_missing_object);
  CPPUNIT_TEST(removing_breaks_watches);
  CPPUNIT_TEST(no_callback_after_unwatching);
  CPPUNIT_TEST(unwatching_ends_callbacks);
  CPPUNIT_TEST(many_threads);
  CPPUNIT_TEST_SUITE_END();

  MemoryStore store_;

  int step(const std::string& oid, WriteOp& op) {
    return write(store_, oid, op);
  }

 public:
  void write_and_read() {
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "hello world"));
    CPPUNIT_ASSERT_EQUAL(std::string("hello world"), content(store_, "x"));
    CPPUNIT_ASSERT_EQUAL(std::string("o wo"), read_at(store_, "x", 4, 4));
    CPPUNIT_ASSERT_EQUAL(std::string("ld"), read_at(store_, "x", 9, 50));
    CPPUNIT_ASSERT_EQUAL(std::string(), read_at(store_, "x", 11, 1));
    CPPUNIT_ASSERT_EQUAL(std::string(), read_at(store_, "x", 1u << 30, 1));
    CPPUNIT_ASSERT_EQUAL(11, size_of(store_, "x"));
    std::string all = "old";
    CPPUNIT_ASSERT_EQUAL(11, store_.read_all("x", 100, &all)->wait());
    CPPUNIT_ASSERT_EQUAL(std::string("hello world"), all);
    CPPUNIT_ASSERT_EQUAL(5, store_.read_all("x", 5, &all)->wait());
    CPPUNIT_ASSERT_EQUAL(std::string("hello"), all);
    const auto pending = store_.read_all("x", 5, &all);
    CPPUNIT_ASSERT_EQUAL(5, pending->wait_for(1ms));
    CPPUNIT_ASSERT_EQUAL(5, pending->wait());
  }

  void pieces() {
    const ConstPiece from[] = {{"abc", 3}, {"", 0}, {"defgh", 5}};
    WriteOp op;
    op.write(2, from);
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
    std::string a(4, '#');
    std::string b(1, '#');
    std::string c(9, '#');
    const MutablePiece to[] = {
        {a.data(), 4}, {b.data(), 1}, {c.data(), 9}};
    CPPUNIT_ASSERT_EQUAL(10, store_.read("x", 0, to, snap_head)->wait());
    CPPUNIT_ASSERT_EQUAL(zeros(2) + "ab", a);
    CPPUNIT_ASSERT_EQUAL(std::string("c"), b);
    CPPUNIT_ASSERT_EQUAL(std::string("defgh####"), c);
  }

  void read_of_nothing_is_refused() {
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "hello"));
    CPPUNIT_ASSERT_EQUAL(error(EINVAL), read_at(store_, "x", 0, 0));
    CPPUNIT_ASSERT_EQUAL(-EINVAL,
                         store_.read("x", 0, {}, snap_head)->wait());
  }

  void missing_object() {
    CPPUNIT_ASSERT_EQUAL(error(ENOENT), content(store_, "x"));
    CPPUNIT_ASSERT_EQUAL(-ENOENT, size_of(store_, "x"));
    CPPUNIT_ASSERT_EQUAL(error(ENOENT), map_of(store_, "x"));
    std::string all = "old";
    CPPUNIT_ASSERT_EQUAL(-ENOENT, store_.read_all("x", 9, &all)->wait());
    CPPUNIT_ASSERT_EQUAL(std::string("old"), all);
    std::map<std::string, std::string> attributes;
    CPPUNIT_ASSERT_EQUAL(-ENOENT, store_.xattrs("x", &attributes)->wait());
    CPPUNIT_ASSERT(store_.list(any_name, {}).empty());
  }

  void write_extends_with_zeros() {
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 9000, "end"));
    CPPUNIT_ASSERT_EQUAL(zeros(9000) + "end", content(store_, "x"));
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 4095, "ab"));
    CPPUNIT_ASSERT_EQUAL(zeros(4095) + "ab" + zeros(4903) + "end",
                         content(store_, "x"));
    // Nothing of what was cut off comes back.
    WriteOp cut;
    cut.truncate(4096);
    CPPUNIT_ASSERT_EQUAL(0, step("x", cut));
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 4098, "c"));
    CPPUNIT_ASSERT_EQUAL(zeros(4095) + "a" + zeros(2) + "c",
                         content(store_, "x"));
  }

  void empty_write_is_refused() {
    CPPUNIT_ASSERT_EQUAL(-EINVAL, write_at(store_, "x", 0, ""));
    CPPUNIT_ASSERT_EQUAL(-ENOENT, size_of(store_, "x"));
    const ConstPiece empty{"", 0};
    WriteOp op;
    op.write_full({&empty, 1});
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
    CPPUNIT_ASSERT_EQUAL(0, size_of(store_, "x"));
  }

  void write_full_replaces() {
    const ConstPiece piece{"new", 3};
    WriteOp op;
    op.write_full({&piece, 1});
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
    CPPUNIT_ASSERT_EQUAL(std::string("new"), content(store_, "x"));
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 5000, "old"));
    WriteOp attribute;
    attribute.set_xattr("a", "1");
    CPPUNIT_ASSERT_EQUAL(0, step("x", attribute));
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
    CPPUNIT_ASSERT_EQUAL(std::string("new"), content(store_, "x"));
    std::map<std::string, std::string> attributes;
    CPPUNIT_ASSERT_EQUAL(0, store_.xattrs("x", &attributes)->wait());
    CPPUNIT_ASSERT_EQUAL(std::string("1"), attributes["a"]);
  }

  void write_same() {
    const ConstPiece piece{"abc", 3};
    WriteOp op;
    op.write_same(2, 9, {&piece, 1});
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
    CPPUNIT_ASSERT_EQUAL(zeros(2) + "abcabcabc", content(store_, "x"));
    op.clear();
    op.write_same(2, 10, {&piece, 1});
    CPPUNIT_ASSERT_EQUAL(-EINVAL, step("x", op));
    CPPUNIT_ASSERT_EQUAL(-EINVAL, step("y", op));
    CPPUNIT_ASSERT_EQUAL(-ENOENT, size_of(store_, "y"));
    op.clear();
    const ConstPiece empty{"", 0};
    op.write_same(2, 10, {&empty, 1});
    CPPUNIT_ASSERT_EQUAL(-EINVAL, step("x", op));
    op.clear();
    op.write_same(2, 0, {&piece, 1});
    CPPUNIT_ASSERT_EQUAL(-EINVAL, step("x", op));
    CPPUNIT_ASSERT_EQUAL(-EINVAL, step("y", op));
    CPPUNIT_ASSERT_EQUAL(-ENOENT, size_of(store_, "y"));
  }

  void zero() {
    WriteOp op;
    op.zero(0, 4096);
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
    CPPUNIT_ASSERT_EQUAL(-ENOENT, size_of(store_, "x"));
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "0123456789"));
    op.clear();
    op.zero(3, 4);
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
    CPPUNIT_ASSERT_EQUAL("012" + zeros(4) + "789", content(store_, "x"));
    op.clear();
    op.zero(50, 100);
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
    CPPUNIT_ASSERT_EQUAL(10, size_of(store_, "x"));
    op.clear();
    op.zero(8, 1);
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
    CPPUNIT_ASSERT_EQUAL("012" + zeros(4) + "7" + zeros(1) + "9",
                         content(store_, "x"));
    // Zeros up to the end are cut off.
    op.clear();
    op.zero(8, 2);
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
    CPPUNIT_ASSERT_EQUAL("012" + zeros(4) + "7", content(store_, "x"));
    op.clear();
    op.zero(2, ~std::uint64_t{0} >> 40);
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
    CPPUNIT_ASSERT_EQUAL(std::string("01"), content(store_, "x"));
    op.clear();
    op.zero(2, 0);
    CPPUNIT_ASSERT_EQUAL(-EINVAL, step("x", op));
    CPPUNIT_ASSERT_EQUAL(-EINVAL, step("y", op));
  }

  void truncate() {
    WriteOp op;
    op.truncate(100);
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
    CPPUNIT_ASSERT_EQUAL(-ENOENT, size_of(store_, "x"));
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "0123456789"));
    op.clear();
    op.truncate(4);
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
    CPPUNIT_ASSERT_EQUAL(std::string("0123"), content(store_, "x"));
    op.clear();
    op.truncate(8);
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
    CPPUNIT_ASSERT_EQUAL("0123" + zeros(4), content(store_, "x"));
    op.clear();
    op.truncate(0);
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
    CPPUNIT_ASSERT_EQUAL(0, size_of(store_, "x"));
  }

  void remove() {
    WriteOp op;
    op.remove();
    CPPUNIT_ASSERT_EQUAL(-ENOENT, step("x", op));
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "data"));
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
    CPPUNIT_ASSERT_EQUAL(-ENOENT, size_of(store_, "x"));
    CPPUNIT_ASSERT_EQUAL(-ENOENT, step("x", op));
    CPPUNIT_ASSERT(store_.list(any_name, {}).empty());
  }

  void create_is_exclusive() {
    WriteOp op;
    op.create();
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
    CPPUNIT_ASSERT_EQUAL(0, size_of(store_, "x"));
    CPPUNIT_ASSERT_EQUAL(-EEXIST, step("x", op));
  }

  void assert_exists() {
    WriteOp op;
    op.assert_exists().set_xattr("a", "1");
    CPPUNIT_ASSERT_EQUAL(-ENOENT, step("x", op));
    CPPUNIT_ASSERT_EQUAL(-ENOENT, size_of(store_, "x"));
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "data"));
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
  }

  void alloc_hint_makes_the_object() {
    WriteOp op;
    op.alloc_hint(4u << 20, 4u << 20).zero(0, 4096);
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
    CPPUNIT_ASSERT_EQUAL(0, size_of(store_, "x"));
  }

  void xattrs() {
    WriteOp op;
    op.set_xattr("size", "10").set_xattr("empty", "");
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
    CPPUNIT_ASSERT_EQUAL(0, size_of(store_, "x"));
    op.clear();
    op.set_xattr("size", "20");
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
    std::map<std::string, std::string> attributes{{"old", "x"}};
    CPPUNIT_ASSERT_EQUAL(0, store_.xattrs("x", &attributes)->wait());
    const std::map<std::string, std::string> expected{{"size", "20"},
                                                      {"empty", ""}};
    CPPUNIT_ASSERT(expected == attributes);
  }

  void cmp_xattr() {
    WriteOp set;
    set.set_xattr("size", "100").set_xattr("empty", "").set_xattr("no", "x");
    CPPUNIT_ASSERT_EQUAL(0, step("x", set));
    const auto compare = [&](std::string_view name, std::uint64_t number) {
      WriteOp op;
      op.cmp_xattr_gt(name, number).set_xattr("done", "1");
      return step("x", op);
    };
    CPPUNIT_ASSERT_EQUAL(0, compare("size", 101));
    CPPUNIT_ASSERT_EQUAL(0, compare("size", ~std::uint64_t{0}));
    CPPUNIT_ASSERT_EQUAL(-ECANCELED, compare("size", 100));
    CPPUNIT_ASSERT_EQUAL(-ECANCELED, compare("size", 99));
    CPPUNIT_ASSERT_EQUAL(0, compare("empty", 1));
    CPPUNIT_ASSERT_EQUAL(-ECANCELED, compare("empty", 0));
    CPPUNIT_ASSERT_EQUAL(0, compare("missing", 1));
    CPPUNIT_ASSERT_EQUAL(-ECANCELED, compare("missing", 0));
    CPPUNIT_ASSERT_EQUAL(0, compare("no", 1));
    CPPUNIT_ASSERT_EQUAL(-ECANCELED, compare("no", 0));
    WriteOp only;  // a comparison that is true has a result of its own
    only.cmp_xattr_gt("size", 101);
    CPPUNIT_ASSERT_EQUAL(1, step("x", only));
    CPPUNIT_ASSERT_EQUAL(-ENOENT, step("y", only));
    // What the operation itself does is not seen.
    WriteOp late;
    late.set_xattr("other", "7").cmp_xattr_gt("other", 5);
    CPPUNIT_ASSERT_EQUAL(0, step("x", late));
    CPPUNIT_ASSERT_EQUAL(-ENOENT, step("y", late));
    CPPUNIT_ASSERT_EQUAL(-ENOENT, size_of(store_, "y"));
    WriteOp op;
    op.cmp_xattr_gt("size", 5).set_xattr("size", "5");
    CPPUNIT_ASSERT_EQUAL(-ECANCELED, step("x", op));
    std::map<std::string, std::string> attributes;
    CPPUNIT_ASSERT_EQUAL(0, store_.xattrs("x", &attributes)->wait());
    CPPUNIT_ASSERT_EQUAL(std::string("100"), attributes["size"]);
  }

  void omap() {
    WriteOp op;
    op.omap_set("key", "value").omap_set("other", "");
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
    const auto object = store_.find("x");
    CPPUNIT_ASSERT(object.has_value());
    const std::map<std::string, std::string> expected{{"key", "value"},
                                                      {"other", ""}};
    CPPUNIT_ASSERT(expected == object->omap);
    CPPUNIT_ASSERT(object->xattrs.empty());
  }

  void tmap() {
    using namespace std::string_view_literals;
    const auto update = [&](std::string_view bytes) {
      WriteOp op;
      op.tmap_update(bytes);
      return step("x", op);
    };
    CPPUNIT_ASSERT_EQUAL(0, update("s\3\0\0\0vm1\0\0\0\0"sv));
    CPPUNIT_ASSERT_EQUAL(
        std::string("\0\0\0\0\1\0\0\0\3\0\0\0vm1\0\0\0\0"sv),
        content(store_, "x"));
    CPPUNIT_ASSERT_EQUAL(0, update("c\2\0\0\0ab\1\0\0\0v"sv));
    CPPUNIT_ASSERT_EQUAL(
        std::string("\0\0\0\0\2\0\0\0\2\0\0\0ab\1\0\0\0v"
                    "\3\0\0\0vm1\0\0\0\0"sv),
        content(store_, "x"));
    CPPUNIT_ASSERT_EQUAL(-EEXIST, update("c\2\0\0\0ab\1\0\0\0v"sv));
    CPPUNIT_ASSERT_EQUAL(0, update("r\2\0\0\0ab"sv));
    CPPUNIT_ASSERT_EQUAL(-ENOENT, update("r\2\0\0\0ab"sv));
    CPPUNIT_ASSERT_EQUAL(0, update("R\2\0\0\0ab"sv));
    CPPUNIT_ASSERT_EQUAL(0, update(""sv));
    CPPUNIT_ASSERT_EQUAL(-EINVAL, update("?\2\0\0\0ab"sv));
    CPPUNIT_ASSERT_EQUAL(-EINVAL, update("s\3\0\0\0vm"sv));
    CPPUNIT_ASSERT_EQUAL(0, update("h\2\0\0\0HH"sv));
    CPPUNIT_ASSERT_EQUAL(
        std::string("\2\0\0\0HH\1\0\0\0\3\0\0\0vm1\0\0\0\0"sv),
        content(store_, "x"));
  }

  void steps_are_atomic() {
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "before"));
    const ConstPiece piece{"after", 5};
    WriteOp op;
    op.write(0, {&piece, 1})
        .set_xattr("a", "1")
        .omap_set("k", "v")
        .truncate(2)
        .create();
    CPPUNIT_ASSERT_EQUAL(-EEXIST, step("x", op));
    CPPUNIT_ASSERT_EQUAL(std::string("before"), content(store_, "x"));
    const auto object = store_.find("x");
    CPPUNIT_ASSERT(object->xattrs.empty());
    CPPUNIT_ASSERT(object->omap.empty());
    op.clear();
    op.write(0, {&piece, 1}).cmp_xattr_gt("a", 0);
    CPPUNIT_ASSERT_EQUAL(-ECANCELED, step("x", op));
    CPPUNIT_ASSERT_EQUAL(std::string("before"), content(store_, "x"));
    op.clear();
    op.create().write(0, {&piece, 1}).exec("no", "such", "method");
    CPPUNIT_ASSERT_EQUAL(-EOPNOTSUPP, step("y", op));
    CPPUNIT_ASSERT_EQUAL(-ENOENT, size_of(store_, "y"));
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, store_.list(any_name, {}).size());
    // The first step that fails decides.
    op.clear();
    op.remove().create();
    CPPUNIT_ASSERT_EQUAL(-ENOENT, step("y", op));
  }

  void steps_see_each_other() {
    const ConstPiece piece{"data", 4};
    WriteOp op;
    op.create().write(0, {&piece, 1}).zero(1, 2).set_xattr("a", "1");
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
    CPPUNIT_ASSERT_EQUAL("d" + zeros(2) + "a", content(store_, "x"));
    op.clear();
    op.remove().write(1, {&piece, 1});
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
    CPPUNIT_ASSERT_EQUAL(zeros(1) + "data", content(store_, "x"));
    std::map<std::string, std::string> attributes;
    CPPUNIT_ASSERT_EQUAL(0, store_.xattrs("x", &attributes)->wait());
    CPPUNIT_ASSERT(attributes.empty());
  }

  void too_big() {
    const std::uint64_t most = std::uint64_t{128} << 20;
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", most - 1, "a"));
    CPPUNIT_ASSERT_EQUAL(-EFBIG, write_at(store_, "x", most, "a"));
    CPPUNIT_ASSERT_EQUAL(-EFBIG, write_at(store_, "y", ~0ull, "a"));
    CPPUNIT_ASSERT_EQUAL(-ENOENT, size_of(store_, "y"));
    WriteOp op;
    op.zero(most, 1);
    CPPUNIT_ASSERT_EQUAL(-EFBIG, step("x", op));
    CPPUNIT_ASSERT_EQUAL(-EFBIG, step("y", op));
    op.clear();
    op.zero(most - 1, 2);
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
    CPPUNIT_ASSERT_EQUAL(-EFBIG, step("y", op));
    op.clear();
    op.truncate(most + 1);
    CPPUNIT_ASSERT_EQUAL(-EFBIG, step("x", op));
    CPPUNIT_ASSERT_EQUAL(0, step("y", op));
    CPPUNIT_ASSERT_EQUAL(static_cast<int>(most - 1), size_of(store_, "x"));
    MemoryStore big({.max_object_size = std::uint64_t{1} << 50});
    CPPUNIT_ASSERT_EQUAL(0, write_at(big, "x", std::uint64_t{1} << 49, "a"));
    CPPUNIT_ASSERT_EQUAL(std::string("a"),
                         read_at(big, "x", std::uint64_t{1} << 49, 2));
  }

  void too_many_steps() {
    WriteOp op;
    for (std::size_t i = 0; i < WriteOp::max_steps; ++i) op.truncate(i);
    CPPUNIT_ASSERT_THROW(op.truncate(0), std::length_error);
    CPPUNIT_ASSERT_EQUAL(WriteOp::max_steps, op.steps().size());
  }

  void snapshot_clones_on_first_write() {
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "one"));
    const SnapContext at3 = snaps(3, {3});
    CPPUNIT_ASSERT_EQUAL(std::string("one"), content(store_, "x", 3));
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "two", at3));
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "TWO!", at3));
    CPPUNIT_ASSERT_EQUAL(std::string("TWO!"), content(store_, "x"));
    CPPUNIT_ASSERT_EQUAL(std::string("one"), content(store_, "x", 3));
    CPPUNIT_ASSERT_EQUAL(3, size_of(store_, "x", 3));
    CPPUNIT_ASSERT_EQUAL(4, size_of(store_, "x"));
    const SnapContext at7 = snaps(7, {7, 3});
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "three", at7));
    CPPUNIT_ASSERT_EQUAL(std::string("three"), content(store_, "x"));
    CPPUNIT_ASSERT_EQUAL(std::string("TWO!"), content(store_, "x", 7));
    CPPUNIT_ASSERT_EQUAL(std::string("one"), content(store_, "x", 3));
    // A snapshot that is newer than all writes sees the head.
    CPPUNIT_ASSERT_EQUAL(std::string("three"), content(store_, "x", 9));
  }

  void snapshot_before_the_object() {
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "new", snaps(3, {3})));
    CPPUNIT_ASSERT_EQUAL(error(ENOENT), content(store_, "x", 3));
    CPPUNIT_ASSERT_EQUAL(-ENOENT, size_of(store_, "x", 3));
    CPPUNIT_ASSERT_EQUAL(error(ENOENT), content(store_, "x", 2));
    CPPUNIT_ASSERT_EQUAL(std::string("new"), content(store_, "x", 4));
    CPPUNIT_ASSERT_EQUAL(
        0, write_at(store_, "x", 0, "NEW", snaps(5, {5, 3})));
    CPPUNIT_ASSERT_EQUAL(error(ENOENT), content(store_, "x", 3));
    CPPUNIT_ASSERT_EQUAL(std::string("new"), content(store_, "x", 5));
    // No snapshot has seen this one, so nothing is left of it.
    WriteOp op;
    op.remove();
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "y", 0, "new", snaps(3, {3})));
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "y", 0, "NEW", snaps(3, {3})));
    CPPUNIT_ASSERT_EQUAL(0, write(store_, "y", op, snaps(3, {3})));
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, store_.list(any_name, {}).size());
  }

  void snapshots_share_a_clone() {
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "one"));
    // The newest snapshot, 8, has been removed before this write.
    CPPUNIT_ASSERT_EQUAL(
        0, write_at(store_, "x", 0, "two", snaps(8, {7, 5, 2})));
    for (const SnapId snap : {2, 5, 7})
      CPPUNIT_ASSERT_EQUAL(std::string("one"), content(store_, "x", snap));
    for (const SnapId snap : {3, 6, 8})
      CPPUNIT_ASSERT_EQUAL(error(ENOENT), content(store_, "x", snap));
    CPPUNIT_ASSERT_EQUAL(std::string("two"), content(store_, "x", 9));
    CPPUNIT_ASSERT_EQUAL(error(ENOENT), content(store_, "x", 1));
  }

  void snapshot_of_removed_object() {
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "one"));
    WriteOp op;
    op.remove();
    CPPUNIT_ASSERT_EQUAL(0, write(store_, "x", op, snaps(3, {3})));
    CPPUNIT_ASSERT_EQUAL(error(ENOENT), content(store_, "x"));
    CPPUNIT_ASSERT_EQUAL(std::string("one"), content(store_, "x", 3));
    CPPUNIT_ASSERT_EQUAL(-ENOENT, write(store_, "x", op, snaps(3, {3})));
    // While clones are left, the name is.
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, store_.list(any_name, {}).size());
    // Made again: snapshot 4 fell into the gap.
    CPPUNIT_ASSERT_EQUAL(
        0, write_at(store_, "x", 0, "again", snaps(4, {4, 3})));
    CPPUNIT_ASSERT_EQUAL(std::string("one"), content(store_, "x", 3));
    CPPUNIT_ASSERT_EQUAL(error(ENOENT), content(store_, "x", 4));
    CPPUNIT_ASSERT_EQUAL(std::string("again"), content(store_, "x", 5));
    CPPUNIT_ASSERT_EQUAL(
        0, write_at(store_, "x", 0, "AGAIN", snaps(6, {6, 4, 3})));
    CPPUNIT_ASSERT_EQUAL(std::string("again"), content(store_, "x", 6));
    CPPUNIT_ASSERT_EQUAL(error(ENOENT), content(store_, "x", 4));
    CPPUNIT_ASSERT_EQUAL(std::string("one"), content(store_, "x", 3));
  }

  void old_context_makes_no_clone() {
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "one"));
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "two", snaps(5, {5})));
    // A writer that has not heard of snapshot 5.
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "three", snaps(3, {3})));
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "THREE"));
    CPPUNIT_ASSERT_EQUAL(std::string("one"), content(store_, "x", 5));
    CPPUNIT_ASSERT_EQUAL(std::string("THREE"), content(store_, "x"));
    // The object's seq is still 5: no second clone for it.
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "four", snaps(5, {5})));
    CPPUNIT_ASSERT_EQUAL(std::string("one"), content(store_, "x", 5));
  }

  void object_written_without_context() {
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "one"));
    CPPUNIT_ASSERT_EQUAL(std::string("one"), content(store_, "x", 3));
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "two"));
    // Nobody told the object of snapshot 3, so the snapshot is spoiled.
    CPPUNIT_ASSERT_EQUAL(std::string("two"), content(store_, "x", 3));
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "new", snaps(3, {})));
    CPPUNIT_ASSERT_EQUAL(error(ENOENT), content(store_, "x", 3));
  }

  void operations_without_effect_make_no_clone() {
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "one"));
    WriteOp op;
    op.assert_exists();
    CPPUNIT_ASSERT_EQUAL(0, write(store_, "x", op, snaps(3, {3})));
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "two"));
    CPPUNIT_ASSERT_EQUAL(std::string("two"), content(store_, "x", 3));
  }

  void failed_operation_makes_no_clone() {
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "one"));
    const ConstPiece piece{"xxxxx", 5};
    WriteOp op;
    op.write(0, {&piece, 1}).create();
    CPPUNIT_ASSERT_EQUAL(-EEXIST, write(store_, "x", op, snaps(3, {3})));
    CPPUNIT_ASSERT_EQUAL(std::string("one"), content(store_, "x"));
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "two"));
    CPPUNIT_ASSERT_EQUAL(std::string("two"), content(store_, "x", 3));
  }

  void invalid_context() {
    CPPUNIT_ASSERT_EQUAL(-EINVAL,
                         write_at(store_, "x", 0, "a", snaps(2, {3})));
    CPPUNIT_ASSERT_EQUAL(-EINVAL,
                         write_at(store_, "x", 0, "a", snaps(5, {3, 4})));
    CPPUNIT_ASSERT_EQUAL(-EINVAL,
                         write_at(store_, "x", 0, "a", snaps(5, {4, 4})));
    CPPUNIT_ASSERT_EQUAL(-ENOENT, size_of(store_, "x"));
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "a", snaps(5, {4, 3})));
  }

  // Clones share memory with the head until that changes.
  void clones_do_not_change() {
    const std::string before(20000, 'a');
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, before));
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 5, "b", snaps(1, {1})));
    WriteOp op;
    op.zero(4096, 8192 + 100).truncate(17000);
    CPPUNIT_ASSERT_EQUAL(0, write(store_, "x", op, snaps(1, {1})));
    CPPUNIT_ASSERT_EQUAL(before, content(store_, "x", 1));
    CPPUNIT_ASSERT_EQUAL("aaaaab" + std::string(4090, 'a') + zeros(8292) +
                             std::string(4612, 'a'),
                         content(store_, "x"));
    op.clear();
    op.remove();
    CPPUNIT_ASSERT_EQUAL(0, write(store_, "x", op, snaps(1, {1})));
    CPPUNIT_ASSERT_EQUAL(before, content(store_, "x", 1));
  }

  void exec() {
    std::string output = "old";
    CPPUNIT_ASSERT_EQUAL(
        -EOPNOTSUPP, store_.exec("x", "rbd", "get", "in", &output)->wait());
    store_.on_exec("rbd", "get", [](auto& object, auto input, auto& out) {
      if (!object) return -ENOENT;
      out = std::string(input) + object->data.bytes() + object->omap["k"];
      return 7;
    });
    store_.on_exec("rbd", "set", [](auto& object, auto input, auto&) {
      if (!object) object.emplace();
      object->omap["k"] = input;
      return object->omap["k"] == "bad" ? -EPERM : 0;
    });
    store_.on_exec("rbd", "drop", [](auto& object, auto, auto&) {
      object.reset();
      return 0;
    });
    const auto call = [&](const char* method, const char* input) {
      return store_.exec("x", "rbd", method, input, &output)->wait();
    };
    CPPUNIT_ASSERT_EQUAL(-ENOENT, call("get", "in"));
    CPPUNIT_ASSERT_EQUAL(std::string("old"), output);
    CPPUNIT_ASSERT_EQUAL(-EPERM, call("set", "bad"));
    CPPUNIT_ASSERT_EQUAL(-ENOENT, size_of(store_, "x"));
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "data"));
    CPPUNIT_ASSERT_EQUAL(0, call("set", "good"));
    CPPUNIT_ASSERT_EQUAL(-EPERM, call("set", "bad"));
    CPPUNIT_ASSERT_EQUAL(7, call("get", "in"));
    CPPUNIT_ASSERT_EQUAL(std::string("indatagood"), output);
    // As a step of a write operation.
    WriteOp op;
    op.exec("rbd", "set", "step").truncate(1);
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
    op.clear();
    op.truncate(0).exec("rbd", "set", "bad");
    CPPUNIT_ASSERT_EQUAL(-EPERM, step("x", op));
    op.clear();
    op.exec("rbd", "set", "bad");
    CPPUNIT_ASSERT_EQUAL(-EPERM, step("x", op));
    CPPUNIT_ASSERT_EQUAL(-EPERM, step("y", op));
    CPPUNIT_ASSERT_EQUAL(-ENOENT, size_of(store_, "y"));
    CPPUNIT_ASSERT_EQUAL(7, call("get", ""));
    CPPUNIT_ASSERT_EQUAL(std::string("dstep"), output);
    CPPUNIT_ASSERT_EQUAL(0, call("drop", ""));
    CPPUNIT_ASSERT_EQUAL(-ENOENT, size_of(store_, "x"));
    CPPUNIT_ASSERT(store_.list(any_name, {}).empty());
  }

  void map_extents() {
    MemoryStore exact({.map_granularity = 1});
    CPPUNIT_ASSERT_EQUAL(0, make(exact, "x"));
    CPPUNIT_ASSERT_EQUAL(std::string(), map_of(exact, "x"));
    CPPUNIT_ASSERT_EQUAL(
        0, write_at(exact, "x", 8192, std::string(8192, 'a')));
    CPPUNIT_ASSERT_EQUAL(std::string("8192+8192 "), map_of(exact, "x"));
    CPPUNIT_ASSERT_EQUAL(
        0, write_at(exact, "x", 40000, std::string(4000, 'b')));
    CPPUNIT_ASSERT_EQUAL(std::string("8192+8192 40000+4000 "),
                         map_of(exact, "x"));
    CPPUNIT_ASSERT_EQUAL(std::string("10000+6384 40000+1000 "),
                         map_of(exact, "x", 10000, 31000));
    CPPUNIT_ASSERT_EQUAL(std::string(), map_of(exact, "x", 16384, 20000));
    CPPUNIT_ASSERT_EQUAL(std::string(), map_of(exact, "x", 1u << 30, 1));
    CPPUNIT_ASSERT_EQUAL(std::string(), map_of(exact, "x", 8192, 0));
    // Zeros that were written are data; what was zeroed is not.
    CPPUNIT_ASSERT_EQUAL(0, write_at(exact, "x", 16384, zeros(4096)));
    CPPUNIT_ASSERT_EQUAL(std::string("8192+12288 40000+4000 "),
                         map_of(exact, "x"));
    WriteOp op;
    op.zero(12000, 4500).zero(42000, 1).zero(30000, 100);
    CPPUNIT_ASSERT_EQUAL(0, write(exact, "x", op));
    CPPUNIT_ASSERT_EQUAL(
        std::string("8192+3808 16500+3980 40000+2000 42001+1999 "),
        map_of(exact, "x"));
    CPPUNIT_ASSERT_EQUAL(0, write_at(exact, "x", 11000, "c"));
    CPPUNIT_ASSERT_EQUAL(
        0, write_at(exact, "x", 41000, std::string(1001, 'd')));
    CPPUNIT_ASSERT_EQUAL(
        std::string("8192+3808 16500+3980 40000+4000 "),
        map_of(exact, "x"));
    op.clear();
    op.truncate(16600);
    CPPUNIT_ASSERT_EQUAL(0, write(exact, "x", op));
    CPPUNIT_ASSERT_EQUAL(std::string("8192+3808 16500+100 "),
                         map_of(exact, "x"));
    op.clear();
    op.truncate(50000);
    CPPUNIT_ASSERT_EQUAL(0, write(exact, "x", op));
    CPPUNIT_ASSERT_EQUAL(std::string("8192+3808 16500+100 "),
                         map_of(exact, "x"));
    CPPUNIT_ASSERT_EQUAL(zeros(8192) + std::string(2808, 'a') + "c" +
                             std::string(999, 'a') + zeros(38000),
                         content(exact, "x"));
    op.clear();
    op.zero(0, 49999);
    CPPUNIT_ASSERT_EQUAL(0, write(exact, "x", op));
    CPPUNIT_ASSERT_EQUAL(std::string(), map_of(exact, "x"));
    CPPUNIT_ASSERT_EQUAL(zeros(50000), content(exact, "x"));
  }

  void map_extents_coarse() {
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 10000, "a"));
    CPPUNIT_ASSERT_EQUAL(std::string("8192+1809 "), map_of(store_, "x"));
    MemoryStore coarse({.map_granularity = 65536});
    CPPUNIT_ASSERT_EQUAL(0, write_at(coarse, "x", 70000, "a"));
    CPPUNIT_ASSERT_EQUAL(std::string("65536+4465 "), map_of(coarse, "x"));
    CPPUNIT_ASSERT_EQUAL(0, write_at(coarse, "x", 200000, "a"));
    CPPUNIT_ASSERT_EQUAL(std::string("65536+65536 196608+3393 "),
                         map_of(coarse, "x"));
    CPPUNIT_ASSERT_EQUAL(std::string("80000+20000 "),
                         map_of(coarse, "x", 80000, 20000));
    CPPUNIT_ASSERT_EQUAL(std::string(), map_of(coarse, "x", 140000, 1000));
    CPPUNIT_ASSERT_EQUAL(0, write_at(coarse, "x", 131072 + 60000, "a"));
    CPPUNIT_ASSERT_EQUAL(std::string("65536+134465 "), map_of(coarse, "x"));
    CPPUNIT_ASSERT_EQUAL(std::string("140000+1000 "),
                         map_of(coarse, "x", 140000, 1000));
    CPPUNIT_ASSERT_THROW(MemoryStore({.map_granularity = 0}), Error);
  }

  void map_extents_unsupported() {
    MemoryStore cannot({.can_map = false});
    CPPUNIT_ASSERT_EQUAL(0, write_at(cannot, "x", 0, "a"));
    CPPUNIT_ASSERT_EQUAL(error(EOPNOTSUPP), map_of(cannot, "x"));
  }

  void map_extents_of_snapshots() {
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, std::string(4096, 'a')));
    CPPUNIT_ASSERT_EQUAL(
        0, write_at(store_, "x", 8192, std::string(4096, 'b'),
                    snaps(2, {2})));
    CPPUNIT_ASSERT_EQUAL(std::string("0+4096 "),
                         map_of(store_, "x", 0, 1u << 20, 2));
    CPPUNIT_ASSERT_EQUAL(std::string("0+4096 8192+4096 "),
                         map_of(store_, "x"));
    CPPUNIT_ASSERT_EQUAL(error(ENOENT), map_of(store_, "x", 0, 1u << 20, 1));
  }

  void list() {
    std::set<std::string> expected;
    for (int i = 0; i < 100; ++i) {
      const std::string name = "a." + std::to_string(i);
      CPPUNIT_ASSERT_EQUAL(0, write_at(store_, name, 0, "x"));
      expected.insert(name);
    }
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "b.1", 0, "x"));
    const auto names = store_.list(
        [](std::string_view name) { return name[0] == 'a'; }, {});
    CPPUNIT_ASSERT_EQUAL(std::size_t{100}, names.size());
    CPPUNIT_ASSERT(expected ==
                   std::set<std::string>(names.begin(), names.end()));
    CPPUNIT_ASSERT(!std::is_sorted(names.begin(), names.end()));
  }

  void copies() {
    MemoryStore other;
    const auto version = [](ObjectStore& store, const std::string& oid) {
      std::uint64_t v = 0;
      CPPUNIT_ASSERT(store.version(oid, &v)->wait() >= 0);
      return v;
    };
    WriteOp attribute;
    attribute.set_xattr("a", "1");
    CPPUNIT_ASSERT_EQUAL(0, write(other, "from", attribute));
    CPPUNIT_ASSERT_EQUAL(0, write_at(other, "from", 5000, "old"));
    CPPUNIT_ASSERT_EQUAL(0, write_at(other, "from", 0, "new", snaps(3, {3})));
    attribute.clear();
    attribute.set_xattr("b", "2");
    CPPUNIT_ASSERT_EQUAL(0, write(store_, "to", attribute));
    for (int i = 0; i < 9; ++i)
      CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "to", 7000, "longer"));

    CPPUNIT_ASSERT_EQUAL(
        0, write(store_, "to", WriteOp().copy_from(other, "from", snap_head),
                 snaps(5, {5})));
    const auto copy = store_.find("to");
    CPPUNIT_ASSERT_EQUAL("new" + std::string(4997, '\0') + "old",
                         copy->data.bytes());
    // Its holes are filled, and nothing is left of what was there.
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, copy->data.written(0, 10000).size());
    CPPUNIT_ASSERT_EQUAL(std::string("1"), copy->xattrs.at("a"));
    CPPUNIT_ASSERT(!copy->xattrs.contains("b"));
    CPPUNIT_ASSERT_EQUAL(version(other, "from"), version(store_, "to"));
    CPPUNIT_ASSERT_EQUAL(7006, size_of(store_, "to", 5));

    // Of a snapshot; what comes before is lost, what follows sees the copy.
    const ConstPiece x{"x", 1};
    WriteOp op;
    op.assert_exists().write(0, {&x, 1}).copy_from(other, "from", 3);
    op.zero(5001, 10000).write(2, {&x, 1});
    CPPUNIT_ASSERT_EQUAL(0, write(store_, "to", op));
    CPPUNIT_ASSERT_EQUAL(std::string(2, '\0') + "x" +
                             std::string(4997, '\0') + "o",
                         content(store_, "to"));
    CPPUNIT_ASSERT_EQUAL(0, write(store_, "new",
                                  WriteOp().copy_from(store_, "to", 5)));
    CPPUNIT_ASSERT_EQUAL(7006, size_of(store_, "new"));
  }

  void copies_that_fail() {
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "1"));
    const auto copy = [&](const std::string& to, const std::string& from) {
      return write(store_, to, WriteOp().copy_from(store_, from, snap_head));
    };
    CPPUNIT_ASSERT_EQUAL(-ENOENT, copy("x", "missing"));
    CPPUNIT_ASSERT_EQUAL(-EINVAL, copy("x", "x"));
    CPPUNIT_ASSERT_EQUAL(-ENOENT, copy("y", "missing"));
    CPPUNIT_ASSERT(!store_.find("y"));
    WriteOp op;
    op.assert_exists().copy_from(store_, "x", snap_head);
    CPPUNIT_ASSERT_EQUAL(-ENOENT, write(store_, "y", op));
    CPPUNIT_ASSERT_EQUAL(std::string("1"), content(store_, "x"));

    FaultStore faulty(store_);
    faulty.inject({.kind = Kind::write, .error = EIO});
    const WriteOp through = WriteOp().copy_from(faulty, "x", snap_head);
    CPPUNIT_ASSERT_EQUAL(-EIO, write(faulty, "y", through));
    CPPUNIT_ASSERT_EQUAL(0, write(faulty, "y", through));
    CPPUNIT_ASSERT_EQUAL(std::string("1"), content(store_, "y"));
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, faulty.problems().size());
  }

  void versions() {
    const auto version = [&](const std::string& oid) {
      std::uint64_t v = 0;
      const int r = store_.version(oid, &v)->wait();
      return r < 0 ? 0 : v;
    };
    store_.on_exec("c", "set", [](auto& object, auto input, auto&) {
      if (!object) object.emplace();
      object->omap["k"] = input;
      return 0;
    });
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, version("x"));
    std::set<std::uint64_t> seen;
    const auto changed = [&] { return seen.insert(version("x")).second; };
    std::string out;
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "1"));
    CPPUNIT_ASSERT(changed());
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "1", snaps(2, {2})));
    CPPUNIT_ASSERT(changed());
    CPPUNIT_ASSERT_EQUAL(0, store_.exec("x", "c", "set", "v", &out)->wait());
    CPPUNIT_ASSERT(changed());
    CPPUNIT_ASSERT_EQUAL(
        0, store_.write("x", WriteOp().remove(), snaps(2, {2}))->wait());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, version("x"));
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "1"));
    CPPUNIT_ASSERT(changed());
    CPPUNIT_ASSERT_EQUAL(std::string("1"), content(store_, "x"));
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "y", 0, "1"));
    CPPUNIT_ASSERT(!changed());
  }

  void find_and_put() {
    CPPUNIT_ASSERT(!store_.find("x"));
    MemoryObject object;
    object.data.write(5, "data");
    object.xattrs["a"] = "1";
    store_.put("x", object);
    CPPUNIT_ASSERT_EQUAL(zeros(5) + "data", content(store_, "x"));
    auto copy = store_.find("x");
    CPPUNIT_ASSERT_EQUAL(zeros(5) + "data", copy->data.bytes());
    CPPUNIT_ASSERT_EQUAL(std::string("1"), copy->xattrs["a"]);
    copy->data.write(0, "X");
    CPPUNIT_ASSERT_EQUAL(zeros(5) + "data", content(store_, "x"));
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "new", snaps(1, {1})));
    CPPUNIT_ASSERT_EQUAL(zeros(5) + "data",
                         store_.find("x", 1)->data.bytes());
    store_.put("x", std::nullopt);
    CPPUNIT_ASSERT(!store_.find("x"));
    CPPUNIT_ASSERT(store_.find("x", 1).has_value());
    store_.put("y", object);
    store_.put("y", std::nullopt);
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, store_.list(any_name, {}).size());
  }

  void notify_reaches_watchers() {
    CPPUNIT_ASSERT_EQUAL(0, make(store_, "x"));
    CPPUNIT_ASSERT_EQUAL(0, make(store_, "y"));
    Recorder first(store_, "x");
    Recorder second(store_, "x");
    Recorder other(store_, "y");
    const auto watch1 = store_.watch("x", first);
    const auto watch2 = store_.watch("x", second);
    const auto watch3 = store_.watch("y", other);
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, store_.watchers("x"));
    CPPUNIT_ASSERT_EQUAL(0, store_.notify("x", "hello", 20s));
    CPPUNIT_ASSERT_EQUAL(0, store_.notify("x", "again", 20s));
    const std::vector<std::string> expected{"hello", "again"};
    CPPUNIT_ASSERT(expected == first.payloads());
    CPPUNIT_ASSERT(expected == second.payloads());
    CPPUNIT_ASSERT(other.payloads().empty());
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, first.cookies().size());
    CPPUNIT_ASSERT(first.cookies() != second.cookies());
    CPPUNIT_ASSERT(!first.threads().contains(std::this_thread::get_id()));
    CPPUNIT_ASSERT_EQUAL(0, watch1->check());
    CPPUNIT_ASSERT(first.lost_now().empty());
  }

  void notify_times_out() {
    CPPUNIT_ASSERT_EQUAL(0, make(store_, "x"));
    Recorder good(store_, "x");
    Recorder silent(store_, "x", false);
    const auto watch1 = store_.watch("x", good);
    auto watch2 = store_.watch("x", silent);
    const auto start = std::chrono::steady_clock::now();
    CPPUNIT_ASSERT_EQUAL(-ETIMEDOUT, store_.notify("x", "1", 30ms));
    CPPUNIT_ASSERT(std::chrono::steady_clock::now() - start >= 30ms);
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, silent.payloads().size());
    // A late answer is harmless.
    store_.notify_ack("x", 12345, *silent.cookies().begin(), "");
    // Who stops to watch need not answer.
    std::thread unwatch([&] {
      std::this_thread::sleep_for(30ms);
      watch2.reset();
    });
    CPPUNIT_ASSERT_EQUAL(0, store_.notify("x", "2", 20s));
    unwatch.join();
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, store_.watchers("x"));
  }

  void notify_without_watchers() {
    CPPUNIT_ASSERT_EQUAL(-ENOENT, store_.notify("x", "1", 20s));
    CPPUNIT_ASSERT_EQUAL(0, make(store_, "x"));
    CPPUNIT_ASSERT_EQUAL(0, store_.notify("x", "1", 20s));
  }

  void notify_gives_answers() {
    make(store_, "x");
    Recorder first(store_, "x");
    Recorder second(store_, "x");
    Recorder silent(store_, "x", false);
    first.answer_with("one");
    const auto watch1 = store_.watch_as(
        {.address = "a", .client = 0x0102, .cookie = 0x0a}, "x", first);
    const auto watch2 = store_.watch_as(
        {.address = "b", .client = 0x01, .cookie = 0x0b}, "x", second);
    std::string reply = "?";
    CPPUNIT_ASSERT_EQUAL(0, store_.notify("x", "hi", 20s, &reply));
    using namespace std::string_literals;
    const std::string answers =
        "\x02\0\0\0"
        "\x01\0\0\0\0\0\0\0" "\x0b\0\0\0\0\0\0\0" "\0\0\0\0"
        "\x02\x01\0\0\0\0\0\0" "\x0a\0\0\0\0\0\0\0" "\x03\0\0\0one"s;
    CPPUNIT_ASSERT_EQUAL(answers + "\0\0\0\0"s, reply);

    // Who did not answer is named, and the others' answers are there.
    const auto watch3 = store_.watch_as(
        {.address = "c", .client = 0x03, .cookie = 0x0c}, "x", silent);
    CPPUNIT_ASSERT_EQUAL(-ETIMEDOUT, store_.notify("x", "hi", 30ms, &reply));
    CPPUNIT_ASSERT_EQUAL(
        answers + "\x01\0\0\0"
                  "\x03\0\0\0\0\0\0\0" "\x0c\0\0\0\0\0\0\0"s,
        reply);
    // Given up earlier: no answers.
    const auto pending = store_.start_notify("x", "hi", 20s, &reply);
    CPPUNIT_ASSERT_EQUAL(-ETIMEDOUT, pending->wait_for(1ms));
    CPPUNIT_ASSERT_EQUAL(std::string(), reply);
    CPPUNIT_ASSERT_EQUAL(-ETIMEDOUT, pending->wait());
  }

  // One thread starts, answers for its own watch, and waits.
  void notify_and_answer_oneself() {
    make(store_, "x");
    Recorder handler(store_, "x", false);
    const auto watch = store_.watch("x", handler);
    const auto pending = store_.start_notify("x", "hi", 20s, nullptr);
    while (handler.payloads().empty()) std::this_thread::yield();
    store_.notify_ack("x", *handler.ids().begin(), watch->cookie(), "");
    CPPUNIT_ASSERT_EQUAL(0, pending->wait());
  }

  void notify_without_waiting() {
    make(store_, "x");
    Recorder handler(store_, "x", false);
    const auto watch = store_.watch("x", handler);
    store_.start_notify("x", "hi", 20s, nullptr).reset();
    while (handler.payloads().empty()) std::this_thread::yield();
    CPPUNIT_ASSERT_EQUAL(std::string("hi"), handler.payloads()[0]);
    // Nobody waits for this any more.
    store_.notify_ack("x", *handler.ids().begin(), watch->cookie(), "");
  }

  void watchers_are_listed() {
    std::vector<Watcher> watchers{{}};
    CPPUNIT_ASSERT_EQUAL(-ENOENT, store_.list_watchers("x", &watchers)->wait());
    make(store_, "x");
    make(store_, "y");
    CPPUNIT_ASSERT_EQUAL(0, store_.list_watchers("x", &watchers)->wait());
    CPPUNIT_ASSERT(watchers.empty());
    Recorder handler(store_, "x");
    const auto mine = store_.watch("x", handler);
    const auto elsewhere = store_.watch("y", handler);
    const Watcher other{
        .address = "192.0.2.1:0/7", .client = 7, .cookie = 77777};
    auto theirs = store_.watch_as(other, "x", handler);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{77777}, theirs->cookie());
    CPPUNIT_ASSERT(mine->cookie() != elsewhere->cookie());
    CPPUNIT_ASSERT_EQUAL(0, store_.list_watchers("x", &watchers)->wait());
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, watchers.size());
    CPPUNIT_ASSERT(watchers[0] == (Watcher{.address = "127.0.0.1:0/4100",
                                           .client = 4100,
                                           .cookie = mine->cookie()}));
    CPPUNIT_ASSERT(watchers[1] == other);
    theirs.reset();
    CPPUNIT_ASSERT_EQUAL(0, store_.list_watchers("x", &watchers)->wait());
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, watchers.size());
  }

  void touch() {
    WriteOp op;
    op.create(false);
    CPPUNIT_ASSERT_EQUAL(0, write(store_, "x", op));
    CPPUNIT_ASSERT_EQUAL(0, size_of(store_, "x"));
    CPPUNIT_ASSERT_EQUAL(0, write_at(store_, "x", 0, "data"));
    CPPUNIT_ASSERT_EQUAL(0, write(store_, "x", op));
    CPPUNIT_ASSERT_EQUAL(std::string("data"), content(store_, "x"));
    op.clear();
    op.create(true);
    CPPUNIT_ASSERT_EQUAL(-EEXIST, write(store_, "x", op));
  }

  void watch_of_missing_object() {
    Recorder handler(store_, "x");
    try {
      const auto watch = store_.watch("x", handler);
      CPPUNIT_FAIL("no exception");
    } catch (const Error& e) {
      CPPUNIT_ASSERT_EQUAL(ENOENT, e.code());
    }
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, store_.watchers("x"));
  }

  void removing_breaks_watches() {
    CPPUNIT_ASSERT_EQUAL(0, make(store_, "x"));
    Recorder handler(store_, "x");
    const auto watch = store_.watch("x", handler);
    WriteOp op;
    op.remove();
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
    CPPUNIT_ASSERT(std::vector<int>{ENOTCONN} == handler.lost());
    CPPUNIT_ASSERT(!handler.threads().contains(std::this_thread::get_id()));
    CPPUNIT_ASSERT_EQUAL(ENOTCONN, watch->check());
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, store_.watchers("x"));
    // The object is back, but the watch is not.
    CPPUNIT_ASSERT_EQUAL(0, make(store_, "x"));
    CPPUNIT_ASSERT_EQUAL(0, store_.notify("x", "1", 20s));
    CPPUNIT_ASSERT(handler.payloads().empty());
    CPPUNIT_ASSERT_EQUAL(ENOTCONN, watch->check());
    // Nobody waits for the answer of a broken watch.
    Recorder silent(store_, "x", false);
    const auto other = store_.watch("x", silent);
    auto notify = std::async(std::launch::async,
                             [&] { return store_.notify("x", "2", 20s); });
    while (silent.payloads().empty()) std::this_thread::yield();
    CPPUNIT_ASSERT_EQUAL(0, step("x", op));
    CPPUNIT_ASSERT_EQUAL(0, notify.get());
  }

  void no_callback_after_unwatching() {
    CPPUNIT_ASSERT_EQUAL(0, make(store_, "x"));
    struct Blocker : WatchHandler {
      void notified(std::uint64_t, std::uint64_t,
                    std::string_view) noexcept override {
        entered.set_value();
        gone.get_future().wait();
      }
      void watch_lost(int) noexcept override {}
      std::promise<void> entered;
      std::promise<void> gone;
    } blocker;
    Recorder handler(store_, "x");
    auto first = store_.watch("x", blocker);
    auto second = store_.watch("x", handler);
    auto notify = std::async(std::launch::async,
                             [&] { return store_.notify("x", "1", 1ms); });
    blocker.entered.get_future().wait();
    second.reset();
    blocker.gone.set_value();
    CPPUNIT_ASSERT_EQUAL(-ETIMEDOUT, notify.get());
    CPPUNIT_ASSERT(handler.payloads().empty());
  }

  // The handler is destroyed right after its watch: sanitizers see callbacks
  // that come later.
  void unwatching_ends_callbacks() {
    CPPUNIT_ASSERT_EQUAL(0, make(store_, "x"));
    std::atomic<bool> stop = false;
    std::thread notifier([&] {
      while (!stop) store_.notify("x", "1", 1s);
    });
    for (int i = 0; i < 300; ++i) {
      Recorder handler(store_, "x");
      const auto watch = store_.watch("x", handler);
      if (i % 3 == 0)
        while (handler.payloads().empty()) std::this_thread::yield();
    }
    stop = true;
    notifier.join();
  }

  void many_threads() {
    store_.on_exec("c", "count", [](auto& object, auto, auto& out) {
      if (!object) object.emplace();
      std::string& counter = object->omap["n"];
      counter += 'x';
      out = counter;
      return 0;
    });
    std::vector<std::thread> threads;
    std::atomic<int> failures = 0;
    for (char id = 'a'; id < 'e'; ++id)
      threads.emplace_back([this, id, &failures] {
        const std::string own(1, id);
        const std::string bytes(5000, id);
        std::string output;
        for (SnapId i = 1; i <= 200; ++i) {
          if (store_.exec("counter", "c", "count", "", &output)->wait() != 0)
            ++failures;
          if (write_at(store_, own, i, bytes, snaps(i, {i})) != 0) ++failures;
          // Atomic: never a mixture.
          write_at(store_, "shared", 0, bytes);
          const std::string seen = read_at(store_, "shared", 0, 5000);
          if (seen != std::string(5000, seen[0])) ++failures;
          if (!store_.find(own, i + 1)) ++failures;
        }
      });
    for (std::thread& thread : threads) thread.join();
    CPPUNIT_ASSERT_EQUAL(0, failures.load());
    CPPUNIT_ASSERT_EQUAL(std::size_t{800},
                         store_.find("counter")->omap["n"].size());
    CPPUNIT_ASSERT_EQUAL(zeros(1) + std::string(5099, 'a'),
                         content(store_, "a", 101));
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(MemoryStoreTest);

class FaultStoreTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(FaultStoreTest);
  CPPUNIT_TEST(without_faults);
  CPPUNIT_TEST(error_before_applying);
  CPPUNIT_TEST(error_after_applying);
  CPPUNIT_TEST(error_of_the_nth_operation);
  CPPUNIT_TEST(error_of_some_objects);
  CPPUNIT_TEST(errors_until_cleared);
  CPPUNIT_TEST(errors_of_blocking_calls);
  CPPUNIT_TEST(short_read);
  CPPUNIT_TEST(late_completion);
  CPPUNIT_TEST(held_until_released);
  CPPUNIT_TEST(released_by_object);
  CPPUNIT_TEST(held_with_error);
  CPPUNIT_TEST(held_blocking_call);
  CPPUNIT_TEST(cancelled_operation_touches_nothing);
  CPPUNIT_TEST(cancelled_write_may_have_happened);
  CPPUNIT_TEST(wait_for_in_time);
  CPPUNIT_TEST(records);
  CPPUNIT_TEST(most_in_flight);
  CPPUNIT_TEST(result_not_asked_for);
  CPPUNIT_TEST(exceptions_may_leave_operations);
  CPPUNIT_TEST(memory_changed_in_flight);
  CPPUNIT_TEST(memory_changed_afterwards);
  CPPUNIT_TEST(watches_work);
  CPPUNIT_TEST(lost_watch);
  CPPUNIT_TEST(watch_with_missed_notifications);
  CPPUNIT_TEST(notifications_and_watchers);
  CPPUNIT_TEST(lost_ack);
  CPPUNIT_TEST(watch_fails);
  CPPUNIT_TEST(many_late_operations);
  CPPUNIT_TEST_SUITE_END();

  std::unique_ptr<MemoryStore> memory_;
  std::unique_ptr<FaultStore> store_;

 public:
  void setUp() override {
    memory_ = std::make_unique<MemoryStore>();
    store_ = std::make_unique<FaultStore>(*memory_);
    CPPUNIT_ASSERT_EQUAL(0, write_at(*memory_, "x", 0, "0123456789"));
    CPPUNIT_ASSERT_EQUAL(0, write_at(*memory_, "y", 0, "abcdefghij"));
  }

  void tearDown() override {
    const auto problems = store_->problems();
    store_.reset();
    memory_.reset();
    CPPUNIT_ASSERT_MESSAGE(problems.empty() ? "" : problems[0],
                           problems.empty());
  }

  void without_faults() {
    CPPUNIT_ASSERT_EQUAL(0, write_at(*store_, "x", 2, "AB"));
    CPPUNIT_ASSERT_EQUAL(std::string("01AB456789"), content(*store_, "x"));
    CPPUNIT_ASSERT_EQUAL(std::string("01AB456789"), content(*memory_, "x"));
    CPPUNIT_ASSERT_EQUAL(10, size_of(*store_, "x"));
    CPPUNIT_ASSERT_EQUAL(error(ENOENT), content(*store_, "z"));
    CPPUNIT_ASSERT_EQUAL(std::string("0+10 "), map_of(*store_, "x"));
    std::string all;
    CPPUNIT_ASSERT_EQUAL(4, store_->read_all("x", 4, &all)->wait());
    CPPUNIT_ASSERT_EQUAL(std::string("01AB"), all);
    std::map<std::string, std::string> attributes;
    CPPUNIT_ASSERT_EQUAL(0, store_->xattrs("x", &attributes)->wait());
    memory_->on_exec("c", "m", [](auto&, auto input, auto& out) {
      out = std::string(input) + "!";
      return 0;
    });
    CPPUNIT_ASSERT_EQUAL(0, store_->exec("x", "c", "m", "hi", &all)->wait());
    CPPUNIT_ASSERT_EQUAL(std::string("hi!"), all);
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, store_->list(any_name, {}).size());
    std::uint64_t before = 0;
    std::uint64_t after = 0;
    CPPUNIT_ASSERT_EQUAL(0, store_->version("x", &before)->wait());
    CPPUNIT_ASSERT_EQUAL(
        0, write_at(*store_, "x", 0, "new", snaps(4, {4})));
    CPPUNIT_ASSERT_EQUAL(0, store_->version("x", &after)->wait());
    CPPUNIT_ASSERT(before != after);
    CPPUNIT_ASSERT_EQUAL(std::string("01AB456789"),
                         content(*store_, "x", 4));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, store_->hits());
  }

  void error_before_applying() {
    store_->inject({.kind = Kind::write, .error = ENOSPC});
    CPPUNIT_ASSERT_EQUAL(-ENOSPC, write_at(*store_, "x", 0, "new"));
    CPPUNIT_ASSERT_EQUAL(std::string("0123456789"), content(*store_, "x"));
    CPPUNIT_ASSERT_EQUAL(0, write_at(*store_, "x", 0, "new"));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{1}, store_->hits());
    store_->inject({.error = EIO});
    CPPUNIT_ASSERT_EQUAL(error(EIO), content(*store_, "x"));
  }

  void error_after_applying() {
    store_->inject(
        {.kind = Kind::write, .error = EIO, .carried_out = true});
    CPPUNIT_ASSERT_EQUAL(-EIO, write_at(*store_, "x", 0, "new"));
    CPPUNIT_ASSERT_EQUAL(std::string("new3456789"), content(*store_, "x"));
  }

  void error_of_the_nth_operation() {
    store_->inject({.kind = Kind::read, .skip = 2, .times = 2, .error = EIO});
    const bool expected[] = {true, true, false, false, true};
    for (const bool good : expected) {
      CPPUNIT_ASSERT_EQUAL(0, write_at(*store_, "x", 0, "0"));
      CPPUNIT_ASSERT_EQUAL(good ? std::string("0") : error(EIO),
                           read_at(*store_, "x", 0, 1));
    }
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{2}, store_->hits());
  }

  void error_of_some_objects() {
    store_->inject({.oid = "y", .times = FaultStore::always, .error = EIO});
    store_->inject({.kind = Kind::stat, .error = EPERM});
    CPPUNIT_ASSERT_EQUAL(-EIO, size_of(*store_, "y"));
    CPPUNIT_ASSERT_EQUAL(-EPERM, size_of(*store_, "x"));
    CPPUNIT_ASSERT_EQUAL(10, size_of(*store_, "x"));
    CPPUNIT_ASSERT_EQUAL(error(EIO), content(*store_, "y"));
    CPPUNIT_ASSERT_EQUAL(-EIO, write_at(*store_, "y", 0, "1"));
    CPPUNIT_ASSERT_EQUAL(0, write_at(*store_, "x", 0, "1"));
  }

  // As after blocklisting.
  void errors_until_cleared() {
    store_->inject({.times = FaultStore::always, .error = ESHUTDOWN});
    for (int i = 0; i < 5; ++i) {
      CPPUNIT_ASSERT_EQUAL(error(ESHUTDOWN), content(*store_, "x"));
      CPPUNIT_ASSERT_EQUAL(-ESHUTDOWN, write_at(*store_, "x", 0, "1"));
      CPPUNIT_ASSERT_EQUAL(-ESHUTDOWN, size_of(*store_, "x"));
    }
    store_->clear_faults();
    CPPUNIT_ASSERT_EQUAL(std::string("0123456789"), content(*store_, "x"));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{15}, store_->hits());
  }

  void errors_of_blocking_calls() {
    for (const Kind kind : {Kind::map_extents, Kind::notify, Kind::list})
      store_->inject({.kind = kind, .error = EIO});
    CPPUNIT_ASSERT_EQUAL(error(EIO), map_of(*store_, "x"));
    CPPUNIT_ASSERT_EQUAL(-EIO, store_->notify("x", "", 1s));
    try {
      static_cast<void>(store_->list(any_name, {}));
      CPPUNIT_FAIL("no exception");
    } catch (const Error& e) {
      CPPUNIT_ASSERT_EQUAL(EIO, e.code());
    }
  }

  void short_read() {
    store_->inject({.kind = Kind::read, .times = 2, .short_read = 4});
    CPPUNIT_ASSERT_EQUAL(std::string("0123"), content(*store_, "x"));
    std::string a(3, '#');
    std::string b(3, '#');
    const MutablePiece pieces[] = {{a.data(), 3}, {b.data(), 3}};
    CPPUNIT_ASSERT_EQUAL(4, store_->read("x", 5, pieces, snap_head)->wait());
    CPPUNIT_ASSERT_EQUAL(std::string("567"), a);
    CPPUNIT_ASSERT_EQUAL(std::string("8##"), b);
    store_->inject({.kind = Kind::read, .times = 2, .short_read = 0});
    CPPUNIT_ASSERT_EQUAL(std::string(), content(*store_, "x"));
    CPPUNIT_ASSERT_EQUAL(error(ENOENT), content(*store_, "z"));
    store_->inject({.kind = Kind::read, .short_read = 100});
    CPPUNIT_ASSERT_EQUAL(std::string("0123456789"), content(*store_, "x"));
    store_->inject({.kind = Kind::read_all, .short_read = 2});
    std::string all;
    CPPUNIT_ASSERT_EQUAL(2, store_->read_all("x", 100, &all)->wait());
    CPPUNIT_ASSERT_EQUAL(std::string("01"), all);
  }

  void late_completion() {
    store_->inject({.kind = Kind::write, .delay = 40ms});
    const auto start = std::chrono::steady_clock::now();
    const ConstPiece piece{"new", 3};
    WriteOp op;
    op.write(0, {&piece, 1});
    const auto pending = store_->write("x", op, {});
    // The operation itself, not only the news of it, is late.
    if (std::chrono::steady_clock::now() - start < 20ms)
      CPPUNIT_ASSERT_EQUAL(std::string("0123456789"),
                           content(*memory_, "x"));
    CPPUNIT_ASSERT_EQUAL(0, pending->wait());
    CPPUNIT_ASSERT(std::chrono::steady_clock::now() - start >= 40ms);
    CPPUNIT_ASSERT_EQUAL(std::string("new3456789"), content(*memory_, "x"));
  }

  void held_until_released() {
    store_->inject({.oid = "y", .held = true});
    std::string x(10, '#');
    std::string y(10, '#');
    std::atomic<bool> finished = false;
    std::thread request([&] {
      const MutablePiece to_x{x.data(), 10};
      const MutablePiece to_y{y.data(), 10};
      const auto first = store_->read("x", 0, {&to_x, 1}, snap_head);
      const auto second = store_->read("y", 0, {&to_y, 1}, snap_head);
      if (first->wait() == 10 && second->wait() == 10) finished = true;
    });
    CPPUNIT_ASSERT(store_->wait_until_held(1));
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, store_->held());
    std::this_thread::sleep_for(20ms);
    CPPUNIT_ASSERT(!finished);
    CPPUNIT_ASSERT_EQUAL(std::string("##########"), y);
    store_->release();
    request.join();
    CPPUNIT_ASSERT(finished);
    CPPUNIT_ASSERT_EQUAL(std::string("0123456789"), x);
    CPPUNIT_ASSERT_EQUAL(std::string("abcdefghij"), y);
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, store_->held());
    CPPUNIT_ASSERT(!store_->wait_until_held(1, 1ms));
  }

  void released_by_object() {
    store_->inject({.times = 3, .held = true});
    std::uint64_t sizes[3] = {};
    const auto a = store_->stat("x", &sizes[0], snap_head);
    const auto b = store_->stat("y", &sizes[1], snap_head);
    const auto c = store_->stat("x", &sizes[2], snap_head);
    CPPUNIT_ASSERT_EQUAL(std::size_t{3}, store_->held());
    store_->release("x");
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, store_->held());
    CPPUNIT_ASSERT_EQUAL(0, a->wait());
    CPPUNIT_ASSERT_EQUAL(0, c->wait());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, sizes[1]);
    store_->release("y");
    CPPUNIT_ASSERT_EQUAL(0, b->wait());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{10}, sizes[1]);
  }

  void held_with_error() {
    store_->inject({.error = EIO, .held = true});
    std::uint64_t size = 77;
    const auto pending = store_->stat("x", &size, snap_head);
    store_->release();
    CPPUNIT_ASSERT_EQUAL(-EIO, pending->wait());
    CPPUNIT_ASSERT_EQUAL(-EIO, pending->wait_for(1ms));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{77}, size);
  }

  void held_blocking_call() {
    store_->inject({.kind = Kind::map_extents, .held = true});
    auto map = std::async(std::launch::async,
                          [&] { return map_of(*store_, "x"); });
    CPPUNIT_ASSERT(store_->wait_until_held(1));
    CPPUNIT_ASSERT(map.wait_for(10ms) == std::future_status::timeout);
    store_->release();
    CPPUNIT_ASSERT_EQUAL(std::string("0+10 "), map.get());
  }

  void cancelled_operation_touches_nothing() {
    store_->inject({.kind = Kind::read, .held = true});
    store_->inject({.kind = Kind::write, .delay = 10min});
    auto bytes = std::make_unique<std::string>(10, '#');
    const MutablePiece piece{bytes->data(), 10};
    const auto read = store_->read("x", 0, {&piece, 1}, snap_head);
    CPPUNIT_ASSERT_EQUAL(-ETIMEDOUT, read->wait_for(5ms));
    CPPUNIT_ASSERT_EQUAL(-ETIMEDOUT, read->wait());
    CPPUNIT_ASSERT_EQUAL(std::string("##########"), *bytes);
    bytes.reset();
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, store_->held());
    store_->release();

    auto data = std::make_unique<std::string>("new");
    const ConstPiece from{data->data(), 3};
    WriteOp op;
    op.write(0, {&from, 1});
    {
      const auto write = store_->write("x", op, {});
      CPPUNIT_ASSERT_EQUAL(-ETIMEDOUT, write->wait_for(5ms));
      data.reset();
    }
    CPPUNIT_ASSERT_EQUAL(std::string("0123456789"), content(*memory_, "x"));
  }

  void cancelled_write_may_have_happened() {
    store_->inject({.kind = Kind::write, .held = true, .carried_out = true});
    const ConstPiece from{"new", 3};
    WriteOp op;
    op.write(0, {&from, 1});
    const auto pending = store_->write("x", op, {});
    CPPUNIT_ASSERT_EQUAL(std::string("new3456789"), content(*memory_, "x"));
    CPPUNIT_ASSERT_EQUAL(-ETIMEDOUT, pending->wait_for(5ms));
    // And in time it has its own result, of the one time that it is done.
    store_->inject(
        {.kind = Kind::write, .times = 2, .held = true, .carried_out = true});
    op.clear();
    op.create();
    const auto exists = store_->write("x", op, {});
    const auto created = store_->write("z", op, {});
    store_->release();
    CPPUNIT_ASSERT_EQUAL(-EEXIST, exists->wait());
    CPPUNIT_ASSERT_EQUAL(0, created->wait());
  }

  void wait_for_in_time() {
    store_->inject({.delay = 10ms});
    std::uint64_t size = 0;
    const auto pending = store_->stat("x", &size, snap_head);
    CPPUNIT_ASSERT_EQUAL(0, pending->wait_for(20s));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{10}, size);
    CPPUNIT_ASSERT_EQUAL(0, wait_check(*pending, 20s, "stat"));
  }

  void records() {
    CPPUNIT_ASSERT_EQUAL(std::string("2345"), read_at(*store_, "x", 2, 4, 9));
    const ConstPiece from{"new", 3};
    WriteOp op;
    op.alloc_hint(10, 10).write(0, {&from, 1});
    CPPUNIT_ASSERT_EQUAL(0, write(*store_, "y", op, snaps(6, {6, 5})));
    CPPUNIT_ASSERT_EQUAL(10, size_of(*store_, "x"));
    std::string output;
    CPPUNIT_ASSERT_EQUAL(
        -EOPNOTSUPP, store_->exec("x", "rbd", "m", "", &output)->wait());
    map_of(*store_, "y", 3, 5, 8);
    const auto log = store_->log();
    CPPUNIT_ASSERT_EQUAL(std::size_t{5}, log.size());
    CPPUNIT_ASSERT(log[0].kind == Kind::read);
    CPPUNIT_ASSERT_EQUAL(std::string("x"), log[0].oid);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{2}, log[0].offset);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{4}, log[0].length);
    CPPUNIT_ASSERT_EQUAL(SnapId{9}, log[0].snap);
    CPPUNIT_ASSERT(log[1].kind == Kind::write);
    CPPUNIT_ASSERT(log[1].snapc == snaps(6, {6, 5}));
    const std::vector<WriteOp::Kind> steps{WriteOp::Kind::alloc_hint,
                                           WriteOp::Kind::write};
    CPPUNIT_ASSERT(steps == log[1].steps);
    CPPUNIT_ASSERT(log[2].kind == Kind::stat);
    CPPUNIT_ASSERT_EQUAL(std::string("rbd.m"), log[3].method);
    CPPUNIT_ASSERT(log[4].kind == Kind::map_extents);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{5}, log[4].length);
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, store_->count(Kind::write));
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, store_->count(Kind::list));
    store_->clear_log();
    CPPUNIT_ASSERT(store_->log().empty());
  }

  void most_in_flight() {
    std::uint64_t size = 0;
    {
      const auto a = store_->stat("x", &size, snap_head);
      const auto b = store_->stat("x", &size, snap_head);
      CPPUNIT_ASSERT_EQUAL(0, a->wait() + b->wait());
    }
    size_of(*store_, "x");
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, store_->most_in_flight());
  }

  void result_not_asked_for() {
    std::uint64_t size = 0;
    static_cast<void>(store_->stat("x", &size, snap_head));
    CPPUNIT_ASSERT(std::vector<std::string>{
                       "stat of x: nobody asked for the result"} ==
                   store_->problems());
    CPPUNIT_ASSERT(store_->problems().empty());
  }

  void exceptions_may_leave_operations() {
    std::uint64_t size = 0;
    store_->inject({.delay = 20ms});
    try {
      const auto pending = store_->stat("x", &size, snap_head);
      throw Error(EIO, "test");
    } catch (const Error&) {
    }
    // But destruction has waited.
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{10}, size);
    CPPUNIT_ASSERT(store_->problems().empty());

    store_->inject({.held = true});
    auto leave = std::async(std::launch::async, [&] {
      try {
        const auto pending = store_->stat("y", &size, snap_head);
        throw Error(EIO, "test");
      } catch (const Error&) {
      }
    });
    CPPUNIT_ASSERT(store_->wait_until_held(1));
    CPPUNIT_ASSERT(leave.wait_for(20ms) == std::future_status::timeout);
    store_->release();
    leave.get();
  }

  void memory_changed_in_flight() {
    store_->inject({.times = 2, .held = true});
    std::string data = "new";
    const ConstPiece from{data.data(), 3};
    WriteOp op;
    op.write(0, {&from, 1});
    const auto write = store_->write("x", op, {});
    std::string bytes(10, '#');
    const MutablePiece to{bytes.data(), 10};
    const auto read = store_->read("y", 0, {&to, 1}, snap_head);
    data[1] = 'E';
    bytes[9] = '\0';
    store_->release();
    CPPUNIT_ASSERT_EQUAL(0, write->wait());
    CPPUNIT_ASSERT_EQUAL(10, read->wait());
    const std::vector<std::string> expected{
        "write of x: its memory changed while it was in flight",
        "read of y: its memory changed while it was in flight"};
    CPPUNIT_ASSERT(expected == store_->problems());
  }

  void memory_changed_afterwards() {
    store_->inject({.times = 2, .delay = 1ms});
    std::string data = "new";
    const ConstPiece from{data.data(), 3};
    WriteOp op;
    op.write(0, {&from, 1});
    const auto write = store_->write("x", op, {});
    op.clear();  // the list of steps is the caller's again
    CPPUNIT_ASSERT_EQUAL(0, write->wait());
    data = "NEW";
    CPPUNIT_ASSERT_EQUAL(std::string("new3456789"), content(*memory_, "x"));
  }

  void watches_work() {
    Recorder handler(*store_, "x");
    const auto watch = store_->watch("x", handler);
    CPPUNIT_ASSERT_EQUAL(0, store_->notify("x", "hello", 20s));
    CPPUNIT_ASSERT_EQUAL(0, memory_->notify("x", "again", 20s));
    const std::vector<std::string> expected{"hello", "again"};
    CPPUNIT_ASSERT(expected == handler.payloads());
    CPPUNIT_ASSERT_EQUAL(0, watch->check());
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, store_->count(Kind::notify_ack));
    WriteOp op;
    op.remove();
    CPPUNIT_ASSERT_EQUAL(0, write(*store_, "x", op));
    CPPUNIT_ASSERT(std::vector<int>{ENOTCONN} == handler.lost());
    CPPUNIT_ASSERT_EQUAL(ENOTCONN, watch->check());
  }

  void notifications_and_watchers() {
    Recorder handler(*store_, "x");
    handler.answer_with("yes");
    const auto watch = store_->watch("x", handler);
    std::vector<Watcher> watchers;
    CPPUNIT_ASSERT_EQUAL(0, store_->list_watchers("x", &watchers)->wait());
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, watchers.size());
    CPPUNIT_ASSERT_EQUAL(watch->cookie(), watchers[0].cookie);
    store_->inject({.kind = Kind::list_watchers, .error = EACCES});
    CPPUNIT_ASSERT_EQUAL(-EACCES,
                         store_->list_watchers("x", &watchers)->wait());

    std::string reply;
    CPPUNIT_ASSERT_EQUAL(0, store_->notify("x", "?", 20s, &reply));
    CPPUNIT_ASSERT(reply.find("yes") != std::string::npos);
    // Its answer is lost, or it is late, and nobody waits for it.
    store_->inject(
        {.kind = Kind::notify, .error = ETIMEDOUT, .carried_out = true});
    CPPUNIT_ASSERT_EQUAL(-ETIMEDOUT, store_->notify("x", "?", 20s));
    store_->inject({.kind = Kind::notify, .held = true});
    auto pending = store_->start_notify("x", "?", 20s, nullptr);
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, handler.payloads().size());
    store_->release();
    CPPUNIT_ASSERT_EQUAL(std::size_t{3}, handler.payloads().size());
    pending.reset();
    CPPUNIT_ASSERT(store_->problems().empty());
    CPPUNIT_ASSERT_EQUAL(std::size_t{3}, store_->count(Kind::notify));

    // The thread that started it answers.
    Recorder silent(*store_, "x", false);
    const auto other = store_->watch("x", silent);
    pending = store_->start_notify("x", "?", 20s, nullptr);
    while (silent.ids().empty()) std::this_thread::yield();
    store_->notify_ack("x", *silent.ids().begin(), other->cookie(), "");
    CPPUNIT_ASSERT_EQUAL(0, pending->wait());
  }

  void lost_watch() {
    Recorder handler(*store_, "x");
    Recorder other(*store_, "y");
    const auto watch = store_->watch("x", handler);
    const auto other_watch = store_->watch("y", other);
    store_->lose_watches("x", ENOTCONN);
    CPPUNIT_ASSERT(std::vector<int>{ENOTCONN} == handler.lost_now());
    CPPUNIT_ASSERT(!handler.threads().contains(std::this_thread::get_id()));
    CPPUNIT_ASSERT_EQUAL(ENOTCONN, watch->check());
    CPPUNIT_ASSERT_EQUAL(0, other_watch->check());
    CPPUNIT_ASSERT(other.lost_now().empty());
    CPPUNIT_ASSERT_EQUAL(0, store_->notify("x", "unheard", 20s));
    CPPUNIT_ASSERT(handler.payloads().empty());
    // A new watch works.
    Recorder again(*store_, "x");
    const auto new_watch = store_->watch("x", again);
    CPPUNIT_ASSERT_EQUAL(0, store_->notify("x", "heard", 20s));
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, again.payloads().size());
    CPPUNIT_ASSERT_EQUAL(0, new_watch->check());
  }

  void watch_with_missed_notifications() {
    Recorder handler(*store_, "x");
    const auto watch = store_->watch("x", handler);
    store_->lose_watches("x", ETIMEDOUT);
    CPPUNIT_ASSERT(std::vector<int>{ETIMEDOUT} == handler.lost_now());
    CPPUNIT_ASSERT_EQUAL(ETIMEDOUT, watch->check());
    CPPUNIT_ASSERT_EQUAL(0, store_->notify("x", "heard", 20s));
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, handler.payloads().size());
  }

  void lost_ack() {
    Recorder handler(*store_, "x");
    const auto watch = store_->watch("x", handler);
    store_->inject({.kind = Kind::notify_ack, .error = EIO});
    CPPUNIT_ASSERT_EQUAL(-ETIMEDOUT, store_->notify("x", "1", 20ms));
    CPPUNIT_ASSERT_EQUAL(0, store_->notify("x", "2", 20s));
  }

  void watch_fails() {
    Recorder handler(*store_, "x");
    for (const bool carried_out : {false, true}) {
      store_->inject({.kind = Kind::watch,
                      .error = ESHUTDOWN,
                      .carried_out = carried_out});
      try {
        const auto watch = store_->watch("x", handler);
        CPPUNIT_FAIL("no exception");
      } catch (const Error& e) {
        CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, e.code());
      }
      CPPUNIT_ASSERT_EQUAL(std::size_t{0}, memory_->watchers("x"));
    }
    CPPUNIT_ASSERT_THROW(static_cast<void>(store_->watch("z", handler)),
                         Error);
  }

  void many_late_operations() {
    for (int ms = 1; ms < 20; ++ms)
      store_->inject({.times = 10, .delay = std::chrono::milliseconds(ms)});
    std::vector<std::thread> threads;
    std::atomic<int> failures = 0;
    for (int t = 0; t < 4; ++t)
      threads.emplace_back([&, t] {
        const std::string oid = "t" + std::to_string(t);
        std::vector<std::string> bytes;
        std::vector<ConstPiece> pieces;
        std::vector<std::unique_ptr<Pending>> pending;
        for (std::size_t i = 0; i < 60; ++i)
          bytes.emplace_back(10, static_cast<char>('A' + i));
        for (const std::string& b : bytes)
          pieces.push_back({b.data(), b.size()});
        for (std::size_t i = 0; i < 60; ++i) {
          WriteOp op;
          op.write(i * 10, {&pieces[i], 1});
          pending.push_back(store_->write(oid, op, {}));
        }
        for (const auto& p : pending)
          if (p->wait() != 0) ++failures;
        std::string all;
        for (const std::string& b : bytes) all += b;
        if (content(*store_, oid) != all) ++failures;
      });
    for (std::thread& thread : threads) thread.join();
    CPPUNIT_ASSERT_EQUAL(0, failures.load());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{190}, store_->hits());
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(FaultStoreTest);
