// SPDX-License-Identifier: BSD-3-Clause
//
// How the metadata of an image of RBD format 2 is read: what it says, what is
// refused, and that all that can change is read in one operation, so that it
// was so at one moment.

#include <cppunit/extensions/HelperMacros.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/catalog.hpp"
#include "image/image_format.hpp"
#include "rados/cluster.hpp"
#include "rados/error.hpp"
#include "rados/fault_store.hpp"
#include "rados/memory_store.hpp"
#include "rbd/encoding.hpp"
#include "rbd/features.hpp"
#include "rbd/format2.hpp"

using namespace nbdrados;

namespace {

constexpr std::uint64_t M = 1 << 20;

/// What a header says.
struct Header {
  std::uint64_t features = 0;
  std::uint64_t incompatible = 0;
  std::uint64_t size = 100 * M;
  std::uint64_t flags = 0;
  std::vector<SnapId> snaps = {};  // newest first
  std::map<SnapId, std::uint32_t> kinds = {};  // of snapshots in `snaps`
  std::map<SnapId, std::string> names = {};    // where not "s" and the id
  bool has_parent = false;
  std::uint64_t overlap = 0;
  std::optional<std::pair<std::uint64_t, std::uint64_t>> striping = {};
};

/// A pool with one image, "vm", of which another client may change the header
/// before each operation.
class TestCluster final : public Cluster {
 public:
  TestCluster() {
    MemoryObject named;
    Encoder e;
    named.data.write(0, e.string("abc").str());
    memory.put(format2_id_oid("vm"), named);
    memory.put(oid, MemoryObject{});
    const auto method = [this](const char* name, auto&& reply) {
      memory.on_exec("rbd", name,
                     [reply](auto& object, auto in, auto& out) {
                       if (!object) return -ENOENT;
                       Encoder reply_to;
                       const int r = reply(in, reply_to);
                       out = reply_to.take();
                       return r;
                     });
    };
    method("get_size", [this](auto in, Encoder& out) {
      if (!exists(in)) return -ENOENT;
      out.u8(22).u64(header.size);
      return 0;
    });
    method("get_features", [this](auto, Encoder& out) {
      out.u64(header.features).u64(header.incompatible);
      return 0;
    });
    method("get_object_prefix", [](auto, Encoder& out) {
      out.string("rbd_data.abc");
      return 0;
    });
    method("get_snapcontext", [this](auto, Encoder& out) {
      out.u64(99).u32(static_cast<std::uint32_t>(header.snaps.size()));
      for (const SnapId id : header.snaps) out.u64(id);
      return 0;
    });
    method("get_flags", [this](auto in, Encoder& out) {
      if (!exists(in)) return -ENOENT;
      out.u64(header.flags);
      return 0;
    });
    method("get_stripe_unit_count", [this](auto, Encoder& out) {
      if (!header.striping) return -ENOEXEC;
      out.u64(header.striping->first).u64(header.striping->second);
      return 0;
    });
    method("parent_get", [this](auto, Encoder& out) {
      out.frame(1, 1, [&] {
        out.i64(header.has_parent ? 7 : -1).string("");
        out.string(header.has_parent ? "parent" : "");
        out.u64(header.has_parent ? 5 : snap_head);
      });
      return 0;
    });
    method("parent_overlap_get", [this](auto in, Encoder& out) {
      if (!exists(in)) return -ENOENT;
      out.u8(header.has_parent ? 1 : 0);
      if (header.has_parent) out.u64(header.overlap);
      return 0;
    });
    method("snapshot_get", [this](auto in, Encoder& out) {
      ++snapshots_read;
      if (!exists(in)) return -ENOENT;
      const SnapId id = Decoder(in, "id").u64("id");
      const std::uint32_t kind = header.kinds[id];
      out.frame(1, 1, [&] {
        out.u64(id);
        out.frame(1, 1, [&] {
          out.u32(kind);
          if (kind == 1) out.i64(7).string("group").string("group snapshot");
          if (kind == 2) out.string("was");
        });
        const auto name = header.names.try_emplace(id, "s" + std::to_string(id));
        out.string(name.first->second).u64(header.size).u32(0).u32(0).u32(0);
      });
      return 0;
    });
  }
  ~TestCluster() override {
    for (const std::string& p : faults.problems()) {
      std::fprintf(stderr, "%s\n", p.c_str());
      std::abort();
    }
  }

  std::shared_ptr<ObjectStore> open_pool(const std::string&,
                                         const std::string&,
                                         Purpose) override {
    return {std::shared_ptr<void>(), &faults};
  }
  std::shared_ptr<ObjectStore> open_pool(std::int64_t, const std::string&,
                                         Purpose) override {
    return {std::shared_ptr<void>(), &faults};
  }
  std::chrono::milliseconds timeout() const override {
    return std::chrono::seconds(1);
  }
  std::uint64_t client_id() const override { return 4711; }
  bool is_own(std::uint64_t) const override { return false; }
  void blocklist(const std::string&, std::chrono::seconds) override {}
  void wait_for_latest_osdmap() override {}

  /// The methods that were called, an entry for each operation.
  std::vector<std::string> calls() {
    std::vector<std::string> all;
    for (const auto& r : faults.log())
      if (r.oid == oid) all.push_back(r.method);
    return all;
  }

  Header header;
  std::size_t snapshots_read = 0;
  const std::string oid = format2_header_oid("abc");
  MemoryStore memory;
  FaultStore faults{memory};

 private:
  /// Whether the snapshot that the input names, or the head, exists.
  bool exists(std::string_view in) const {
    const SnapId id = Decoder(in, "snapshot").u64("id");
    if (id == snap_head) return true;
    for (const SnapId snap : header.snaps)
      if (snap == id) return true;
    return false;
  }
};

class Format2Test : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(Format2Test);
  CPPUNIT_TEST(what_it_says);
  CPPUNIT_TEST(one_operation);
  CPPUNIT_TEST(parents);
  CPPUNIT_TEST(snapshots);
  CPPUNIT_TEST(snapshots_by_name);
  CPPUNIT_TEST(many_snapshots_by_name);
  CPPUNIT_TEST(what_never_changes);
  CPPUNIT_TEST(refused);
  CPPUNIT_TEST(gone);
  CPPUNIT_TEST(no_class);
  CPPUNIT_TEST_SUITE_END();

  std::shared_ptr<TestCluster> cluster_;

  std::unique_ptr<ImageFormat> open(const std::string& snapshot = {}) {
    return open_format(
        cluster_,
        ImageSpec{.pool = "p", .name_space = "", .image = "vm",
                  .snapshot = snapshot},
        OpenOptions{.format = FormatChoice::format2});
  }
  template <class Body>
  static void throws(int code, std::string_view part, Body&& body) {
    try {
      body();
    } catch (const Error& e) {
      CPPUNIT_ASSERT_EQUAL_MESSAGE(e.what(), code, e.code());
      CPPUNIT_ASSERT_MESSAGE(
          e.what(), std::string_view(e.what()).find(part) !=
                        std::string_view::npos);
      return;
    }
    CPPUNIT_FAIL("no error");
  }

 public:
  void setUp() override { cluster_ = std::make_shared<TestCluster>(); }
  void tearDown() override { cluster_.reset(); }

  void what_it_says() {
    Header& h = cluster_->header;
    h.features = feature_exclusive_lock | feature_object_map;
    h.snaps = {9, 4};
    const auto format = open();
    CPPUNIT_ASSERT_EQUAL(std::string("rbd_data.abc"),
                         format->traits().object_prefix);
    CPPUNIT_ASSERT_EQUAL(4 * M, format->traits().layout.object_size());
    View view = format->load();
    CPPUNIT_ASSERT_EQUAL(100 * M, view.size);
    CPPUNIT_ASSERT((SnapContext{99, {9, 4}}) == view.snapc);
    CPPUNIT_ASSERT_EQUAL(snap_head, view.snap);
    CPPUNIT_ASSERT(view.lockable && view.mappable && view.snaps_mapped);
    CPPUNIT_ASSERT(!view.fast_diff);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, view.overlap);
    CPPUNIT_ASSERT(view.unwritable.empty());

    h.features |= feature_fast_diff | feature_journaling;
    h.flags = flag_object_map_invalid;
    h.size = 5;
    view = format->load();
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{5}, view.size);
    CPPUNIT_ASSERT(!view.mappable && view.snaps_mapped && view.fast_diff);
    CPPUNIT_ASSERT(view.unwritable.find("journaling") != std::string::npos);
  }

  /// Size and overlap, size and flags, features and flags: of two moments,
  /// they can make an image that there never was.
  void one_operation() {
    cluster_->header.has_parent = true;
    cluster_->header.overlap = 50 * M;
    cluster_->header.snaps = {4};
    const auto head = open();
    const auto snapshot = open("s4");
    cluster_->faults.clear_log();
    (void)head->load();
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, cluster_->calls().size());
    CPPUNIT_ASSERT_EQUAL(
        std::string("rbd.get_snapcontext rbd.get_features rbd.get_size "
                    "rbd.get_flags rbd.parent_get rbd.parent_overlap_get"),
        cluster_->calls().front());
    cluster_->faults.clear_log();
    (void)snapshot->load();
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, cluster_->calls().size());
    CPPUNIT_ASSERT(cluster_->calls().front().ends_with(" rbd.snapshot_get"));
  }

  void parents() {
    Header& h = cluster_->header;
    const auto format = open();
    h.has_parent = true;
    h.overlap = 50 * M;
    View view = format->load();
    CPPUNIT_ASSERT_EQUAL(50 * M, view.overlap);
    CPPUNIT_ASSERT((ParentSpec{7, "", "parent", 5}) == view.parent_spec);
    h.overlap = 0;
    view = format->load();
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, view.overlap);
    CPPUNIT_ASSERT(ParentSpec{} == view.parent_spec);
    h.has_parent = false;
    CPPUNIT_ASSERT(ParentSpec{} == format->load().parent_spec);
  }

  void snapshots() {
    Header& h = cluster_->header;
    h.snaps = {9, 4};
    const auto format = open("s4");
    CPPUNIT_ASSERT_EQUAL(SnapId{4}, format->load().snap);
    // Somebody removes it, and clones of it keep it.
    h.kinds[4] = 2;
    throws(EIO, "the snapshot has been deleted", [&] { (void)format->load(); });
    h.snaps = {9};
    throws(EIO, "the snapshot has been deleted", [&] { (void)format->load(); });
    throws(ENOENT, "has no snapshot 's4'", [&] { (void)open("s4"); });
  }

  void snapshots_by_name() {
    KnownSnapshots known;
    const auto find = [&](const std::string& name) {
      return resolve_image(cluster_, {"p", "", "vm", name},
                           FormatChoice::format2, &known)
          .snap;
    };
    Header& h = cluster_->header;
    h.snaps = {9, 6, 5, 4};
    CPPUNIT_ASSERT_EQUAL(SnapId{4}, find("s4"));
    // Two change places, which changes no id.
    h.names = {{4, "s5"}, {5, "s4"}};
    CPPUNIT_ASSERT_EQUAL(SnapId{5}, find("s4"));
    CPPUNIT_ASSERT_EQUAL(SnapId{4}, find("s5"));
    // A group's has the name of a user's, and then is the only one of it.
    h.kinds[9] = 1;
    h.names = {{9, "s4"}, {5, "other"}, {6, "six"}};
    CPPUNIT_ASSERT_EQUAL(SnapId{4}, find("s4"));
    h.names[4] = "four";
    CPPUNIT_ASSERT_EQUAL(SnapId{9}, find("s4"));
    // A user's gets that name.
    h.names[6] = "s4";
    CPPUNIT_ASSERT_EQUAL(SnapId{6}, find("s4"));
    // It goes to the trash, or for good.
    h.kinds[6] = 2;
    CPPUNIT_ASSERT_EQUAL(SnapId{9}, find("s4"));
    h.snaps = {5, 4};
    throws(ENOENT, "has no snapshot 's4'", [&] { (void)find("s4"); });
    CPPUNIT_ASSERT_EQUAL(SnapId{4}, find("four"));
  }

  /// `nbdinfo --list` opens each of them.
  void many_snapshots_by_name() {
    KnownSnapshots known;
    const SnapId most = 90;
    for (SnapId id = most; id > 0; --id) cluster_->header.snaps.push_back(id);
    const auto find_all = [&] {
      cluster_->snapshots_read = 0;
      for (SnapId id = 1; id <= most; ++id)
        CPPUNIT_ASSERT_EQUAL(
            id, resolve_image(cluster_,
                              {"p", "", "vm", "s" + std::to_string(id)},
                              FormatChoice::format2, &known)
                    .snap);
      return cluster_->snapshots_read;
    };
    CPPUNIT_ASSERT_EQUAL(std::size_t{most + most - 1}, find_all());
    CPPUNIT_ASSERT_EQUAL(std::size_t{most}, find_all());
    // One more: all are read once more.
    cluster_->header.snaps.insert(cluster_->header.snaps.begin(), most + 1);
    CPPUNIT_ASSERT_EQUAL(std::size_t{most + 1 + most - 1}, find_all());
  }

  void what_never_changes() {
    cluster_->header.features = feature_striping;
    cluster_->header.striping = std::pair(64 * 1024, 3);
    const auto format = open();
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{3},
                         format->traits().layout.stripe_count());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{64 * 1024},
                         format->traits().layout.stripe_unit());
    cluster_->header.striping.reset();
    throws(ENOEXEC, "cannot read header object", [&] { (void)open(); });
  }

  void refused() {
    Header& h = cluster_->header;
    const auto format = open();
    h.features = feature_migrating;
    throws(ENOTSUP, "migrating", [&] { (void)open(); });
    throws(ENOTSUP, "migrating", [&] { (void)format->load(); });
    h.features = h.incompatible = std::uint64_t{1} << 40;
    throws(ENOTSUP, "which this version does not know",
           [&] { (void)format->load(); });
    h = {};
    h.size = ~std::uint64_t{0};
    throws(EIO, "get_size", [&] { (void)format->load(); });
  }

  void gone() {
    const auto format = open();
    CPPUNIT_ASSERT_EQUAL(
        0, cluster_->memory.write(cluster_->oid, WriteOp().remove(), {})
               ->wait());
    throws(ENOENT, "the image has been deleted",
           [&] { (void)format->load(); });
  }

  void no_class() {
    const auto format = open();
    cluster_->faults.inject({.kind = FaultStore::Kind::exec,
                             .oid = cluster_->oid,
                             .error = EOPNOTSUPP});
    throws(ENOTSUP, "do not have the object class rbd",
           [&] { (void)format->load(); });
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(Format2Test);

}  // namespace
