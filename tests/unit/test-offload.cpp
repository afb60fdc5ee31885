// SPDX-License-Identifier: BSD-3-Clause
//
// Objects that one image copies from another: which are worth it, where they
// are, and what the destination's parents, snapshots and size make of it.

#include <cppunit/TestFixture.h>
#include <cppunit/extensions/HelperMacros.h>

#include <cerrno>
#include <cstdint>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "copy/rados_offload.hpp"
#include "fake-format.hpp"
#include "image/image.hpp"
#include "image/worker_pool.hpp"
#include "rados/error.hpp"
#include "rados/fault_store.hpp"
#include "rados/memory_store.hpp"

using namespace nbdrados;
using copy::Piece;
using copy::RadosOffload;
using Kind = FaultStore::Kind;
using Step = WriteOp::Kind;
using u64 = std::uint64_t;

namespace {

constexpr u64 K = 1024;
const Layout eight(8 * K, 8 * K, 1);

/// An image on one of the stores.
struct Side {
  Side(FaultStore& where, std::string prefix, bool writable,
       const Layout& layout = eight, bool keep_first = false)
      : store(where),
        prefix_(std::move(prefix)),
        writable_(writable),
        layout_(layout),
        keep_first_(keep_first) {
    state->view = {.size = 80 * K};
  }
  void open() {
    ImageOptions how;
    how.writable = writable_;
    how.workers = workers;
    image = std::make_shared<Image>(
        std::make_unique<FakeFormat>(store, layout_, state,
                                     "header." + prefix_, keep_first_, prefix_),
        how);
    store.clear_log();
  }
  /// The image is a clone of an image that this returns.
  View& parent(u64 overlap) {
    state->view.overlap = overlap;
    state->view.parent_spec = {1, "", "id", 7};
    state->parent = std::make_shared<FakeFormat::State>();
    state->parent->view = {.size = 80 * K, .snap = 7};
    return state->parent->view;
  }
  [[nodiscard]] std::string oid(u64 n) const {
    return prefix_ + "." + numbered(n);
  }
  [[nodiscard]] static std::string numbered(u64 n) {
    return "000" + std::to_string(n);
  }

  FaultStore& store;
  std::shared_ptr<FakeFormat::State> state =
      std::make_shared<FakeFormat::State>();
  std::shared_ptr<WorkerPool> workers = std::make_shared<WorkerPool>(4);
  std::shared_ptr<Image> image;

 private:
  const std::string prefix_;
  const bool writable_;
  const Layout layout_;
  const bool keep_first_;
};

class OffloadTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(OffloadTest);
  CPPUNIT_TEST(whole_objects);
  CPPUNIT_TEST(last_object);
  CPPUNIT_TEST(onto_itself);
  CPPUNIT_TEST(absent_objects);
  CPPUNIT_TEST(parents);
  CPPUNIT_TEST(parents_that_do_not_fit);
  CPPUNIT_TEST(hidden_parent);
  CPPUNIT_TEST(destination_is_a_clone);
  CPPUNIT_TEST(snapshots);
  CPPUNIT_TEST(objects_that_vanish);
  CPPUNIT_TEST(refused);
  CPPUNIT_TEST(more_than_data);
  CPPUNIT_TEST(other_layouts);
  CPPUNIT_TEST(striped);
  CPPUNIT_TEST(what_suits);
  CPPUNIT_TEST(holes_unknown);
  CPPUNIT_TEST_SUITE_END();

 public:
  void setUp() override {
    memory_ = std::make_unique<MemoryStore>();
    store_ = std::make_unique<FaultStore>(*memory_);
    for (const char* header : {"header.src", "header.dst", "header7"})
      memory_->put(header, MemoryObject{});
    src_ = std::make_unique<Side>(*store_, "src", false);
    dst_ = std::make_unique<Side>(*store_, "dst", true);
  }
  void tearDown() override {
    offload_.reset();
    src_.reset();
    dst_.reset();
    const auto problems = store_->problems();
    CPPUNIT_ASSERT_EQUAL(std::string(),
                         problems.empty() ? "" : problems.front());
  }

  void whole_objects() {
    put("src.0001", std::string(8 * K, 'a'));
    put("dst.0001", "old");
    open();
    CPPUNIT_ASSERT_EQUAL(0, copy(1));
    CPPUNIT_ASSERT_EQUAL(std::string(8 * K, 'a'), bytes("dst.0001"));
    // Nothing came here.
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, store_->count(Kind::read));
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, store_->count(Kind::write));
    // The block status has asked for it already.
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, store_->count(Kind::stat));
  }

  /// What is behind the end stays behind.
  void last_object() {
    src_->state->view.size = dst_->state->view.size = 9 * K + 3;
    put("src.0001", std::string(8 * K, 'a'));
    open();
    CPPUNIT_ASSERT_EQUAL(0, copy(1));
    CPPUNIT_ASSERT_EQUAL(std::string(K + 3, 'a'), bytes("dst.0001"));
    // It does not become longer by that.
    put("src.0001", "short");
    CPPUNIT_ASSERT_EQUAL(0, copy(1));
    CPPUNIT_ASSERT_EQUAL(std::string("short"), bytes("dst.0001"));
    // The destination goes on there.
    dst_->state->set_view({.size = 10 * K});
    dst_->image->refresh();
    CPPUNIT_ASSERT_EQUAL(EOPNOTSUPP, copy(1));
    // The source has become smaller.
    src_->state->set_view({.size = 8 * K});
    src_->image->refresh();
    CPPUNIT_ASSERT_EQUAL(EINVAL, copy(1));
    CPPUNIT_ASSERT_EQUAL(std::string("short"), bytes("dst.0001"));
  }

  /// A snapshot of the destination, or of a clone of it.
  void onto_itself() {
    put("dst.0001", std::string(8 * K, 'a'));
    open();
    const ObjectPlace place{.kind = ObjectPlace::Kind::object,
                            .store = &dst_->store,
                            .oid = "dst.0001",
                            .snap = 3};
    int error = 0;
    try {
      dst_->image->copy_object(1, 8 * K, place);
    } catch (const Error& e) {
      error = e.code();
    }
    CPPUNIT_ASSERT_EQUAL(EOPNOTSUPP, error);
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, store_->count(Kind::write));
    CPPUNIT_ASSERT_EQUAL(std::string(8 * K, 'a'), bytes("dst.0001"));
  }

  void absent_objects() {
    put("dst.0001", "old");
    open();
    CPPUNIT_ASSERT_EQUAL(0, copy(1));
    CPPUNIT_ASSERT_EQUAL(std::string("none"), bytes("dst.0001"));
    store_->clear_log();
    open({.always = true, .is_zero = true});
    CPPUNIT_ASSERT_EQUAL(0, copy(1));
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, store_->count(Kind::write));
  }

  void parents() {
    src_->parent(80 * K);
    put("parent7.0001", "parent");
    put("parent7.0002", "parent");
    put("src.0002", "child");
    open();
    for (const u64 n : {1, 2, 3}) CPPUNIT_ASSERT_EQUAL(0, copy(n));
    CPPUNIT_ASSERT_EQUAL(std::string("parent"), bytes("dst.0001"));
    CPPUNIT_ASSERT_EQUAL(std::string("child"), bytes("dst.0002"));
    CPPUNIT_ASSERT_EQUAL(std::string("none"), bytes("dst.0003"));
  }

  void parents_that_do_not_fit() {
    View& parent = src_->parent(12 * K);
    put("parent7.0000", "whole");
    put("parent7.0001", "partly");
    put("parent7.0002", "behind");
    open();
    CPPUNIT_ASSERT_EQUAL(0, copy(0));
    CPPUNIT_ASSERT_EQUAL(std::string("whole"), bytes("dst.0000"));
    CPPUNIT_ASSERT_EQUAL(EOPNOTSUPP, copy(1));
    CPPUNIT_ASSERT_EQUAL(0, copy(2));
    CPPUNIT_ASSERT_EQUAL(std::string("none"), bytes("dst.0002"));
    // Smaller than the overlap says.
    parent.size = 6 * K;
    open();
    CPPUNIT_ASSERT_EQUAL(EOPNOTSUPP, copy(0));
    parent.size = 80 * K;
    src_->state->parent_layout = Layout(4 * K, 4 * K, 1);
    open();
    CPPUNIT_ASSERT_EQUAL(EOPNOTSUPP, copy(0));
  }

  /// A discarded object hides the parent's.
  void hidden_parent() {
    src_->parent(80 * K);
    put("parent7.0001", "parent");
    put("src.0001", "");
    put("dst.0001", "old");
    open();
    CPPUNIT_ASSERT_EQUAL(0, copy(1));
    CPPUNIT_ASSERT_EQUAL(std::string(), bytes("dst.0001"));
  }

  void destination_is_a_clone() {
    dst_->parent(80 * K);
    put("parent7.0001", "parent");
    put("parent7.0002", "parent");
    put("src.0001", "data");
    open();
    for (const u64 n : {1, 2}) CPPUNIT_ASSERT_EQUAL(0, copy(n));
    CPPUNIT_ASSERT_EQUAL(std::string("data"), bytes("dst.0001"));
    // Zeros hide the parent.
    CPPUNIT_ASSERT_EQUAL(std::string(), bytes("dst.0002"));
  }

  void snapshots() {
    put("src.0001", "old");
    put("src.0001", "new", {4, {4}});
    src_->state->view.snap = 4;
    put("dst.0001", "before");
    dst_->state->view.snapc = {9, {9}};
    open();
    CPPUNIT_ASSERT_EQUAL(0, copy(1));
    CPPUNIT_ASSERT_EQUAL(std::string("old"), bytes("dst.0001"));
    CPPUNIT_ASSERT_EQUAL(std::string("before"), bytes("dst.0001", 9));
  }

  /// It is looked for again.
  void objects_that_vanish() {
    put("src.0001", "data");
    put("dst.0001", "old");
    open();
    store_->inject({.kind = Kind::write, .oid = "dst.0001", .held = true});
    auto done = std::async(std::launch::async, [this] { return copy(1); });
    CPPUNIT_ASSERT(store_->wait_until_held(1));
    memory_->put("src.0001", std::nullopt);
    store_->release();
    CPPUNIT_ASSERT_EQUAL(0, done.get());
    CPPUNIT_ASSERT_EQUAL(std::string("none"), bytes("dst.0001"));
    // But not for ever.
    put("src.0001", "data");
    store_->inject({.kind = Kind::write,
                    .oid = "dst.0001",
                    .times = FaultStore::always,
                    .error = ENOENT});
    CPPUNIT_ASSERT_EQUAL(ENOENT, copy(1));
    store_->clear_faults();
  }

  void refused() {
    put("src.0001", "data");
    open();
    const Piece piece{8 * K, 8 * K, false};
    for (const int error : {EIO, ENOSPC, EPERM}) {
      CPPUNIT_ASSERT(offload_->suits({&piece, 1}));
      store_->inject({.kind = Kind::write, .error = error});
      CPPUNIT_ASSERT_EQUAL(error, copy(1));
    }
    // There is no use in trying again.
    CPPUNIT_ASSERT(!offload_->suits({&piece, 1}));
    // A source that this client may not read is not copied.
    open({.always = true});
    store_->inject({.kind = Kind::stat, .oid = "src.0001", .error = EPERM});
    CPPUNIT_ASSERT_EQUAL(EPERM, copy(1));
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, store_->count(Kind::write));
    CPPUNIT_ASSERT_EQUAL(std::string("none"), bytes("dst.0001"));
  }

  /// The first object of a striped object carries what is not data.
  void more_than_data() {
    for (const bool source : {false, true}) {
      src_ = std::make_unique<Side>(*store_, "src", false, eight, source);
      dst_ = std::make_unique<Side>(*store_, "dst", true, eight, !source);
      put("src.0000", "data");
      put("src.0001", "data");
      open();
      CPPUNIT_ASSERT_EQUAL(EOPNOTSUPP, copy(0));
      CPPUNIT_ASSERT_EQUAL(std::string("none"), bytes("dst.0000"));
      CPPUNIT_ASSERT_EQUAL(0, copy(1));
    }
  }

  void other_layouts() {
    const auto obstacle = [&](const Layout& from, const Layout& to) {
      src_ = std::make_unique<Side>(*store_, "src", false, from);
      dst_ = std::make_unique<Side>(*store_, "dst", true, to);
      src_->open();
      dst_->open();
      return !RadosOffload::obstacle(*src_->image, *dst_->image).empty();
    };
    CPPUNIT_ASSERT(!obstacle(eight, eight));
    CPPUNIT_ASSERT(!obstacle(eight, Layout(8 * K, 4 * K, 1)));
    CPPUNIT_ASSERT(obstacle(eight, Layout(4 * K, 4 * K, 1)));
    CPPUNIT_ASSERT(obstacle(eight, Layout(8 * K, 4 * K, 2)));
    CPPUNIT_ASSERT(!obstacle(Layout(8 * K, 2 * K, 3), Layout(8 * K, 2 * K, 3)));
    CPPUNIT_ASSERT(obstacle(Layout(8 * K, 2 * K, 3), Layout(8 * K, 4 * K, 3)));
  }

  /// A set of three objects, of which one is absent, and the last set.
  void striped() {
    const Layout layout(8 * K, 2 * K, 3);
    src_ = std::make_unique<Side>(*store_, "src", false, layout);
    dst_ = std::make_unique<Side>(*store_, "dst", true, layout);
    // Of the second set 2, 1 and no stripe unit.
    src_->state->view.size = dst_->state->view.size = 24 * K + 3 * K;
    for (const u64 n : {0, 2, 3, 4}) put(src_->oid(n), std::string(8 * K, 'a'));
    for (const u64 n : {0, 1, 4, 5}) put(dst_->oid(n), std::string(8 * K, 'b'));
    open();
    CPPUNIT_ASSERT_EQUAL(24 * K, offload_->unit());
    for (const u64 set : {0, 1}) CPPUNIT_ASSERT_EQUAL(0, copy(set));
    std::string read(27 * K, '?');
    std::string wanted(27 * K, '?');
    src_->image->read(wanted.data(), wanted.size(), 0);
    dst_->image->read(read.data(), read.size(), 0);
    CPPUNIT_ASSERT(wanted == read);
    CPPUNIT_ASSERT_EQUAL(std::string(2 * K, 'a'), bytes("dst.0003"));
    CPPUNIT_ASSERT_EQUAL(std::string(K, 'a'), bytes("dst.0004"));
    CPPUNIT_ASSERT_EQUAL(std::string(8 * K, 'b'), bytes("dst.0005"));
  }

  /// Seven eighths of what is before the last byte.
  void what_suits() {
    open();
    const auto suits = [this](std::vector<Piece> parts) {
      return offload_->suits(parts);
    };
    CPPUNIT_ASSERT(suits({{0, 8 * K, false}}));
    CPPUNIT_ASSERT(suits({{0, K, false}, {K, 7 * K, true}}));
    CPPUNIT_ASSERT(!suits({{0, 7 * K, true}, {7 * K, K, false}}));
    CPPUNIT_ASSERT(suits({{0, K, true}, {K, 7 * K, false}}));
    CPPUNIT_ASSERT(!suits({{0, K + 1, true}, {K + 1, 7 * K - 1, false}}));
    CPPUNIT_ASSERT(!suits({{0, K, false},
                           {K, K, true},
                           {2 * K, K, false},
                           {3 * K, 5 * K, true}}));
    open({.always = true});
    CPPUNIT_ASSERT(suits({{0, 7 * K, true}, {7 * K, K, false}}));
    // Each object of a set counts.
    const Layout layout(8 * K, 2 * K, 2);
    src_ = std::make_unique<Side>(*store_, "src", false, layout);
    dst_ = std::make_unique<Side>(*store_, "dst", true, layout);
    open();
    CPPUNIT_ASSERT(suits({{0, 4 * K, false}, {4 * K, 12 * K, true}}));
    CPPUNIT_ASSERT(!suits({{0, 13 * K, false},
                           {13 * K, K, true},
                           {14 * K, K + 1, true},
                           {15 * K + 1, K - 1, false}}));
  }

  /// As in an erasure-coded pool, here or in a parent's.
  void holes_unknown() {
    const Piece piece{8 * K, 8 * K, false};
    for (const bool of_parent : {false, true}) {
      MemoryStore coarse({.can_map = false});
      FaultStore store(coarse);
      for (const char* header : {"header.src", "header7"})
        coarse.put(header, MemoryObject{});
      src_ = std::make_unique<Side>(store, "src", false);
      if (of_parent) src_->parent(80 * K);
      MemoryObject object;
      object.data.write(0, "data");
      coarse.put(of_parent ? "parent7.0001" : "src.0001", object);
      open();
      CPPUNIT_ASSERT(offload_->suits({&piece, 1}));
      (void)src_->image->extents(80 * K, 0, false);
      CPPUNIT_ASSERT(!offload_->suits({&piece, 1}));
      open({.always = true});
      CPPUNIT_ASSERT(offload_->suits({&piece, 1}));
      offload_.reset();
      src_.reset();
      CPPUNIT_ASSERT_EQUAL(std::size_t{0}, store.problems().size());
    }
  }

 private:
  void open() { open(RadosOffload::Options{}); }
  void open(const RadosOffload::Options& options) {
    src_->open();
    dst_->open();
    store_->clear_log();
    offload_ = std::make_unique<RadosOffload>(src_->image, dst_->image,
                                              options);
  }
  /// The error of copying a unit.
  int copy(u64 unit) {
    std::promise<int> done;
    offload_->copy(unit * offload_->unit(), offload_->unit(),
                   [&](int error) { done.set_value(error); });
    return done.get_future().get();
  }
  void put(const std::string& oid, const std::string& bytes,
           const SnapContext& snapc = {}) {
    const ConstPiece piece{bytes.data(), bytes.size()};
    WriteOp op;
    op.write_full({&piece, 1});
    CPPUNIT_ASSERT_EQUAL(0, memory_->write(oid, op, snapc)->wait());
  }
  std::string bytes(const std::string& oid, SnapId snap = snap_head) {
    const auto object = memory_->find(oid, snap);
    return object ? object->data.bytes() : "none";
  }

  std::unique_ptr<MemoryStore> memory_;
  std::unique_ptr<FaultStore> store_;
  std::unique_ptr<Side> src_, dst_;
  std::unique_ptr<RadosOffload> offload_;
};

CPPUNIT_TEST_SUITE_REGISTRATION(OffloadTest);

}  // namespace
