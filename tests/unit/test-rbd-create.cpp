// SPDX-License-Identifier: BSD-3-Clause
//
// Creating images of RBD format 2: encodings, the order of the steps, errors
// in each of them, and what a crash after each of them leaves.
//
// The vectors are what `rbd create` and `rbd rm` of Ceph 16.2.15 sent.

#include <cppunit/extensions/HelperMacros.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "formats/catalog.hpp"
#include "rados/error.hpp"
#include "rados/fault_store.hpp"
#include "rados/memory_store.hpp"
#include "rbd/encoding.hpp"
#include "rbd/features.hpp"
#include "rbd/format2.hpp"
#include "rbd/format2_create.hpp"
#include "rbd/object_map.hpp"

using namespace nbdrados;
using namespace std::chrono_literals;

namespace {

using Kind = FaultStore::Kind;
constexpr std::uint64_t K = 1024;

std::string hex(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    out += "0123456789abcdef"[byte >> 4];
    out += "0123456789abcdef"[byte & 15];
  }
  return out;
}

/// The code of the Error that `run` throws, 0: none.
template <typename Run>
int error_of(Run&& run, std::string* message = nullptr) {
  try {
    run();
  } catch (const Error& e) {
    if (message != nullptr) *message = e.what();
    return e.code();
  }
  return 0;
}

bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

#define ASSERT_CONTAINS(part, text) \
  CPPUNIT_ASSERT_MESSAGE(text, contains(text, part))

// What the object class does (ceph: src/cls/rbd/cls_rbd.cc), as far as
// creating an image sees it.

int dir_state_assert(std::optional<MemoryObject>& object, std::string_view in,
                     std::string&) {
  if (!object) return -ENOENT;
  const auto it = object->omap.find("state");
  return it == object->omap.end() || it->second == in ? 0 : -EBUSY;
}

int dir_add_image(std::optional<MemoryObject>& object, std::string_view in,
                  std::string&) {
  Decoder d(in, "dir_add_image");
  const std::string name = d.name("name");
  const std::string id = d.name("id");
  d.expect_end();
  if (!object) object.emplace();
  if (object->omap.contains("name_" + name) ||
      object->omap.contains("id_" + id))
    return -EEXIST;
  object->omap["name_" + name] = id;
  object->omap["id_" + id] = name;
  return 0;
}

int dir_remove_image(std::optional<MemoryObject>& object, std::string_view in,
                     std::string&) {
  Decoder d(in, "dir_remove_image");
  const std::string name = d.name("name");
  const std::string id = d.name("id");
  d.expect_end();
  if (!object || !object->omap.contains("name_" + name)) return -ENOENT;
  if (object->omap["name_" + name] != id) return -ESTALE;
  object->omap.erase("name_" + name);
  object->omap.erase("id_" + id);
  return 0;
}

int set_id(std::optional<MemoryObject>& object, std::string_view in,
           std::string&) {
  if (!object) return -ENOENT;
  if (object->data.size() != 0) return -EEXIST;
  object->data.write(0, in);
  return 0;
}

int create(std::optional<MemoryObject>& object, std::string_view in,
           std::string&) {
  Decoder d(in, "create");
  if (!object) object.emplace();
  const auto put = [&](const char* key, std::uint64_t value) {
    object->omap[key] = std::to_string(value);
  };
  put("size", d.u64("size"));
  put("order", d.u8("order"));
  const std::uint64_t features = d.u64("features");
  if ((features & ~features_known) != 0) return -ENOSYS;
  put("features", features);
  object->omap["object_prefix"] = d.name("prefix");
  if (const auto pool = d.i64("data pool"); pool != -1)
    put("data_pool_id", static_cast<std::uint64_t>(pool));
  d.expect_end();
  return 0;
}

int set_stripe_unit_count(std::optional<MemoryObject>& object,
                          std::string_view in, std::string&) {
  if (!object) return -ENOENT;
  Decoder d(in, "set_stripe_unit_count");
  object->omap["stripe_unit"] = std::to_string(d.u64("unit"));
  object->omap["stripe_count"] = std::to_string(d.u64("count"));
  d.expect_end();
  return 0;
}

int object_map_resize(std::optional<MemoryObject>& object,
                      std::string_view in, std::string&) {
  Decoder d(in, "object_map_resize");
  if (!object) object.emplace();
  object->omap["objects"] = std::to_string(d.u64("objects"));
  object->omap["state"] = std::to_string(d.u8("state"));
  d.expect_end();
  return 0;
}

/// Pages as large as asked for, of the settings in the object's omap.
int metadata_list(std::optional<MemoryObject>& object, std::string_view in,
                  std::string& out) {
  if (!object) return -ENOENT;
  Decoder d(in, "metadata_list");
  const std::string start = d.string("start");
  const std::uint64_t most = d.u64("max_return");
  Encoder entries;
  std::uint32_t n = 0;
  for (auto it = object->omap.upper_bound(start);
       it != object->omap.end() && n < most; ++it, ++n)
    entries.string(it->first).string(it->second);
  Encoder reply;
  reply.u32(n).bytes(entries.str());
  out = reply.take();
  return 0;
}

/// A cluster of two pools, "pool" (number 1) and "data" (2), in memory.
class TestCluster final : public Cluster {
 public:
  struct Store {
    MemoryStore memory;
    FaultStore faults{memory};
  };

  ~TestCluster() override {
    // Nothing was left without a wait.
    for (auto& [key, store] : stores) {
      const auto problems = store.faults.problems();
      if (!problems.empty()) std::abort();
    }
  }

  Store& store(const std::string& pool, const std::string& ns) {
    const auto [it, is_new] = stores.try_emplace({pool, ns});
    if (is_new) {
      MemoryStore& m = it->second.memory;
      const auto add = [&m](const char* name, MemoryStore::Method method) {
        m.on_exec("rbd", name, std::move(method));
      };
      add("dir_state_assert", dir_state_assert);
      add("dir_add_image", dir_add_image);
      add("dir_remove_image", dir_remove_image);
      add("set_id", set_id);
      add("create", create);
      add("set_stripe_unit_count", set_stripe_unit_count);
      add("object_map_resize", object_map_resize);
      add("metadata_list", metadata_list);
      add("get_all_features",
          [this](auto&, auto, std::string& out) {
            if (!all_features) return -EOPNOTSUPP;
            Encoder e;
            e.u64(*all_features);
            out = e.take();
            return 0;
          });
    }
    return it->second;
  }

  std::shared_ptr<ObjectStore> open_pool(const std::string& pool,
                                         const std::string& ns,
                                         Purpose) override {
    (void)pool_id(pool);
    return {std::shared_ptr<void>(), &store(pool, ns).faults};
  }
  std::shared_ptr<ObjectStore> open_pool(std::int64_t id,
                                         const std::string& ns,
                                         Purpose purpose) override {
    return open_pool(id == 1 ? "pool" : "data", ns, purpose);
  }
  std::uint64_t client_id() const override { return 4711; }
  void blocklist(const std::string&, std::chrono::seconds) override {}
  void wait_for_latest_osdmap() override {}
  std::chrono::milliseconds timeout() const override { return 5s; }

  std::optional<std::string> ceph_option(const std::string& name) override {
    const auto it = options.find(name);
    if (it == options.end()) return std::nullopt;
    return it->second;
  }
  std::int64_t pool_id(const std::string& pool) override {
    if (pool == "pool") return 1;
    if (pool == "data") return 2;
    throw Error(ENOENT, "pool '" + pool + "' does not exist");
  }
  void use_self_managed_snapshots(const std::string& pool) override {
    self_managed.push_back(pool);
    if (snapshot_error != 0) throw Error(snapshot_error, "snapshots");
  }

  std::map<std::pair<std::string, std::string>, Store> stores;
  std::map<std::string, std::string> options = {
      {"rbd_default_features", "61"},    {"rbd_default_order", "22"},
      {"rbd_default_stripe_unit", "0"},  {"rbd_default_stripe_count", "0"},
      {"rbd_default_data_pool", ""},     {"rbd_validate_pool", "true"},
  };
  std::optional<std::uint64_t> all_features = features_known;
  std::vector<std::string> self_managed;
  int snapshot_error = 0;
};

/// What a test needs: the cluster and the image a of the pool.
struct Fixture {
  std::shared_ptr<TestCluster> cluster = std::make_shared<TestCluster>();
  ImageSpec spec{"pool", "", "a", ""};
  CreateOptions options{.size = 100 << 20};

  MemoryStore& memory(const std::string& pool = "pool",
                      const std::string& ns = "") {
    return cluster->store(pool, ns).memory;
  }
  FaultStore& faults(const std::string& pool = "pool",
                     const std::string& ns = "") {
    return cluster->store(pool, ns).faults;
  }
  void create() { create_image(cluster, spec, options); }
  int create_error(std::string* message = nullptr) {
    return error_of([this] { create(); }, message);
  }
  /// The pool is known to be good, so creating does nothing to it.
  void put_info(const std::string& content = "overwrite validated",
                const std::string& pool = "pool") {
    MemoryObject info;
    info.data.write(0, content);
    memory(pool).put("rbd_info", info);
  }
  void put_setting(const std::string& key, const std::string& value) {
    auto info = memory().find("rbd_info").value_or(MemoryObject{});
    info.omap["conf_" + key] = value;
    memory().put("rbd_info", info);
  }
  std::set<std::string> objects(const std::string& ns = "") {
    const auto names =
        memory("pool", ns).list([](std::string_view) { return true; }, {});
    return {names.begin(), names.end()};
  }
  std::string id(const std::string& ns = "") {
    return decode_image_id(
        memory("pool", ns).find("rbd_id.a").value().data.bytes());
  }
  std::map<std::string, std::string> header(const std::string& ns = "") {
    return memory("pool", ns).find("rbd_header." + id(ns)).value().omap;
  }
  std::map<std::string, std::string> map() {
    return memory().find("rbd_object_map." + id()).value().omap;
  }
  /// Whether rbd_directory has any image.
  bool has_names() {
    const auto directory = memory().find("rbd_directory");
    return directory && !directory->omap.empty();
  }
};

class TestEncodings : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(TestEncodings);
  CPPUNIT_TEST(inputs);
  CPPUNIT_TEST(names);
  CPPUNIT_TEST(features);
  CPPUNIT_TEST(default_features);
  CPPUNIT_TEST_SUITE_END();

 public:
  void inputs() {
    const std::string id = "10f329371ad9";
    const std::string pair =
        "06000000766563746f720c000000313066333239333731616439";
    CPPUNIT_ASSERT_EQUAL(pair, hex(encode_dir_add_image("vector", id)));
    CPPUNIT_ASSERT_EQUAL(pair, hex(encode_dir_remove_image("vector", id)));
    CPPUNIT_ASSERT_EQUAL(std::string("00"), hex(encode_dir_state_ready()));
    CPPUNIT_ASSERT_EQUAL(std::string("0c000000313066333239333731616439"),
                         hex(encode_set_id(id)));
    CPPUNIT_ASSERT_EQUAL(
        std::string("000040060000000016bf00000000000000"
                    "170000007262645f646174612e312e313066333239333731616439"
                    "0300000000000000"),
        hex(encode_create({.size = 100 << 20,
                           .order = 22,
                           .features = 0xbf,
                           .object_prefix = format2_object_prefix(id, 1),
                           .data_pool = 3})));
    CPPUNIT_ASSERT_EQUAL(
        std::string("ffffffffffffffff"),
        hex(encode_create({.object_prefix = "p"})).substr(2 * 22));
    CPPUNIT_ASSERT_EQUAL(std::string("00000100000000000300000000000000"),
                         hex(encode_set_stripe_unit_count(64 * K, 3)));
    CPPUNIT_ASSERT_EQUAL(
        std::string("1b0000000000000000"),
        hex(encode_object_map_resize(27, ObjectState::nonexistent)));

    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0x0fff},
                         decode_get_all_features({"\xff\x0f\0\0\0\0\0\0", 8}));
    for (std::size_t n = 0; n < 8; ++n)
      CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] {
                             (void)decode_get_all_features(
                                 std::string(n, '\0'));
                           }));
  }

  void names() {
    CPPUNIT_ASSERT_EQUAL(std::string("1267ffffffff"),
                         format2_image_id(4711, 0xffffffff));
    CPPUNIT_ASSERT_EQUAL(std::string("00"), format2_image_id(0, 0));
    // The last 14 digits.
    CPPUNIT_ASSERT_EQUAL(std::string("bcdef089abcdef"),
                         format2_image_id(0x123456789abcdef0, 0x89abcdef));
    CPPUNIT_ASSERT_EQUAL(std::string("rbd_data.ab"),
                         format2_object_prefix("ab", std::nullopt));
    CPPUNIT_ASSERT_EQUAL(std::string("rbd_data.7.ab"),
                         format2_object_prefix("ab", 7));
  }

  void features() {
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{61}, parse_features("61"));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, parse_features("0"));
    CPPUNIT_ASSERT_EQUAL(~std::uint64_t{0},
                         parse_features("18446744073709551615"));
    CPPUNIT_ASSERT_EQUAL(
        features_default,
        parse_features(
            "layering,exclusive-lock,object-map,fast-diff,deep-flatten"));
    CPPUNIT_ASSERT_EQUAL(feature_data_pool | feature_striping,
                         parse_features("data-pool,striping"));
    for (const char* bad : {"", "layering,", ",layering", "x", "layering,,",
                            "Layering", "-1", "61,layering", "0x3d",
                            "18446744073709551616", "layering striping"})
      CPPUNIT_ASSERT_EQUAL_MESSAGE(
          bad, EINVAL, error_of([&] { (void)parse_features(bad); }));
    // Every name is read back.
    for (unsigned bit = 0; bit < 12; ++bit) {
      const std::uint64_t feature = std::uint64_t{1} << bit;
      CPPUNIT_ASSERT_EQUAL(feature, parse_features(feature_names(feature)));
    }
    CPPUNIT_ASSERT(!feature_of_name("unknown bit 12"));
  }

  void default_features() {
    CPPUNIT_ASSERT_EQUAL(features_default, parse_default_features(""));
    CPPUNIT_ASSERT_EQUAL(features_default, parse_default_features("  "));
    CPPUNIT_ASSERT_EQUAL(features_default, parse_default_features(" 61 "));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, parse_default_features("0"));
    CPPUNIT_ASSERT_EQUAL(feature_layering | feature_exclusive_lock,
                         parse_default_features(" layering, exclusive-lock "));
    // Unknown and internal ones are left out.
    CPPUNIT_ASSERT_EQUAL(feature_layering,
                         parse_default_features("layering,x,migrating"));
    CPPUNIT_ASSERT_EQUAL(feature_layering, parse_default_features("769"));
    CPPUNIT_ASSERT_EQUAL(feature_layering,
                         parse_default_features("1099511627777"));
  }
};

class TestCreate : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(TestCreate);
  CPPUNIT_TEST(defaults);
  CPPUNIT_TEST(steps);
  CPPUNIT_TEST(feature_sets);
  CPPUNIT_TEST(striping);
  CPPUNIT_TEST(data_pool);
  CPPUNIT_TEST(settings_of_cluster_and_pool);
  CPPUNIT_TEST(many_settings);
  CPPUNIT_TEST(unsuitable_settings);
  CPPUNIT_TEST(old_osds);
  CPPUNIT_TEST(checks);
  CPPUNIT_TEST(name_space);
  CPPUNIT_TEST(existing);
  CPPUNIT_TEST(pool_preparation);
  CPPUNIT_TEST(errors_are_undone);
  CPPUNIT_TEST(crashes);
  CPPUNIT_TEST(lost_replies);
  CPPUNIT_TEST(interrupted_undo);
  CPPUNIT_TEST_SUITE_END();

 public:
  void defaults() {
    Fixture f;
    f.create();
    const std::string id = f.id();
    CPPUNIT_ASSERT(id.starts_with("1267"));
    CPPUNIT_ASSERT_EQUAL(std::string("a"),
                         f.memory().find("rbd_directory")->omap["id_" + id]);
    const std::map<std::string, std::string> header = {
        {"size", std::to_string(100 << 20)}, {"order", "22"},
        {"features", "61"},                  {"object_prefix",
                                              "rbd_data." + id}};
    CPPUNIT_ASSERT(header == f.header());
    const std::map<std::string, std::string> map = {{"objects", "25"},
                                                    {"state", "0"}};
    CPPUNIT_ASSERT(map == f.map());
    CPPUNIT_ASSERT(
        (std::set<std::string>{"rbd_directory", "rbd_header." + id,
                               "rbd_id.a", "rbd_info",
                               "rbd_object_map." + id}) == f.objects());
    // Another image gets another id.
    f.spec.image = "b";
    f.create();
    CPPUNIT_ASSERT_EQUAL(std::size_t{8}, f.objects().size());
  }

  void steps() {
    Fixture f;
    f.put_info();
    f.options.stripe_unit = 64 * K;
    f.create();
    const std::string id = f.id();
    // Objects in the order in which they were written.
    std::vector<std::string> oids;
    for (const auto& record : f.faults().log())
      if (record.kind == Kind::write) oids.push_back(record.oid);
    CPPUNIT_ASSERT(
        (std::vector<std::string>{"rbd_directory", "rbd_id.a",
                                  "rbd_header." + id, "rbd_header." + id,
                                  "rbd_object_map." + id}) == oids);
    CPPUNIT_ASSERT(f.cluster->self_managed.empty());
  }

  void feature_sets() {
    // Every set of those that can be chosen.
    unsigned possible = 0;
    for (std::uint64_t features = 0; features < 64; ++features) {
      Fixture f;
      f.put_info();
      f.options.features = features;
      const bool lock = (features & feature_exclusive_lock) != 0;
      const bool map = (features & feature_object_map) != 0;
      const bool diff = (features & feature_fast_diff) != 0;
      const bool ok = (lock || !map) && (map || !diff);
      CPPUNIT_ASSERT_EQUAL_MESSAGE(feature_names(features), ok ? 0 : EINVAL,
                                   f.create_error());
      if (!ok) {
        CPPUNIT_ASSERT(f.objects() == std::set<std::string>{"rbd_info"});
        continue;
      }
      ++possible;
      // An object map comes with fast-diff; striping is not asked for.
      std::uint64_t wanted = features & ~feature_striping;
      if (map) wanted |= feature_fast_diff;
      CPPUNIT_ASSERT_EQUAL(std::to_string(wanted), f.header()["features"]);
      CPPUNIT_ASSERT_EQUAL(
          map, f.objects().contains("rbd_object_map." + f.id()));
    }
    CPPUNIT_ASSERT_EQUAL(32U, possible);
  }

  void striping() {
    // Unit, count, whether the image is striped, unit, count, objects.
    using O = std::optional<std::uint64_t>;
    const std::tuple<O, O, bool, std::uint64_t, std::uint64_t, std::uint64_t>
        cases[] = {
            {O(), O(), false, 0, 0, 1600},
            {O(64 * K), O(), false, 0, 0, 1600},
            {O(64 * K), O(1), false, 0, 0, 1600},
            {O(), O(1), false, 0, 0, 1600},
            {O(), O(3), true, 64 * K, 3, 1600},
            {O(64 * K), O(3), true, 64 * K, 3, 1600},
            {O(4 * K), O(), true, 4 * K, 1, 1600},
            {O(4 * K), O(1), true, 4 * K, 1, 1600},
            {O(4 * K), O(3), true, 4 * K, 3, 1602},
            {O(1), O(7), true, 1, 7, 1603},
        };
    for (const auto& [unit, count, striped, is_unit, is_count, objects] :
         cases) {
      Fixture f;
      f.put_info();
      f.options.object_size = 64 * K;
      f.options.stripe_unit = unit;
      f.options.stripe_count = count;
      f.create();
      auto header = f.header();
      const std::uint64_t features =
          features_default | (striped ? feature_striping : 0);
      CPPUNIT_ASSERT_EQUAL(std::to_string(features), header["features"]);
      CPPUNIT_ASSERT_EQUAL(striped, header.contains("stripe_unit"));
      if (striped) {
        CPPUNIT_ASSERT_EQUAL(std::to_string(is_unit), header["stripe_unit"]);
        CPPUNIT_ASSERT_EQUAL(std::to_string(is_count),
                             header["stripe_count"]);
      }
      CPPUNIT_ASSERT_EQUAL(std::to_string(objects), f.map()["objects"]);
    }
    Fixture f;
    f.options.stripe_unit = 3 << 20;  // does not divide the default 4 MiB
    CPPUNIT_ASSERT_EQUAL(EINVAL, f.create_error());
    CPPUNIT_ASSERT(f.objects().empty());
  }

  void data_pool() {
    Fixture f;
    f.options.data_pool = "data";
    f.create();
    auto header = f.header();
    CPPUNIT_ASSERT_EQUAL("rbd_data.1." + f.id(), header["object_prefix"]);
    CPPUNIT_ASSERT_EQUAL(std::string("2"), header["data_pool_id"]);
    CPPUNIT_ASSERT_EQUAL(std::to_string(61 | feature_data_pool),
                         header["features"]);
    // The data's pool is prepared, and nothing else is in it.
    CPPUNIT_ASSERT(f.cluster->self_managed ==
                   std::vector<std::string>{"data"});
    CPPUNIT_ASSERT_EQUAL(
        std::string("overwrite validated"),
        f.memory("data").find("rbd_info").value().data.bytes());
    CPPUNIT_ASSERT(!f.memory().find("rbd_info"));
    CPPUNIT_ASSERT_EQUAL(
        std::size_t{1},
        f.memory("data")
            .list([](std::string_view) { return true; }, {})
            .size());

    // The image's own pool is none.
    f.spec.image = "own";
    f.options.data_pool = "pool";
    f.options.features = feature_layering | feature_data_pool;
    f.create();
    const std::string id =
        decode_image_id(f.memory().find("rbd_id.own").value().data.bytes());
    header = f.memory().find("rbd_header." + id).value().omap;
    CPPUNIT_ASSERT_EQUAL("rbd_data." + id, header["object_prefix"]);
    CPPUNIT_ASSERT(!header.contains("data_pool_id"));
    CPPUNIT_ASSERT_EQUAL(std::string("1"), header["features"]);

    f.spec.image = "none";
    f.options.data_pool = "nowhere";
    std::string message;
    CPPUNIT_ASSERT_EQUAL(ENOENT, f.create_error(&message));
    ASSERT_CONTAINS("data pool 'nowhere'", message);
    CPPUNIT_ASSERT(!f.memory().find("rbd_id.none"));
  }

  void settings_of_cluster_and_pool() {
    Fixture f;
    f.put_info();
    auto& options = f.cluster->options;
    options["rbd_default_features"] = "layering,exclusive-lock";
    options["rbd_default_order"] = "20";
    options["rbd_default_stripe_unit"] = "65536";
    options["rbd_default_stripe_count"] = "5";
    options["rbd_default_data_pool"] = "data";
    f.create();
    auto header = f.header();
    CPPUNIT_ASSERT_EQUAL(
        std::to_string(feature_layering | feature_exclusive_lock |
                       feature_striping | feature_data_pool),
        header["features"]);
    CPPUNIT_ASSERT_EQUAL(std::string("20"), header["order"]);
    CPPUNIT_ASSERT_EQUAL(std::string("65536"), header["stripe_unit"]);
    CPPUNIT_ASSERT_EQUAL(std::string("5"), header["stripe_count"]);
    CPPUNIT_ASSERT_EQUAL(std::string("2"), header["data_pool_id"]);

    // The pool's settings win.
    const auto again = [&] {
      f.memory().put("rbd_id.a", std::nullopt);
      f.memory().put("rbd_directory", std::nullopt);
      f.create();
      header = f.header();
    };
    f.put_setting("rbd_default_features", "layering");
    f.put_setting("rbd_default_order", "16");
    f.put_setting("rbd_default_stripe_unit", "16K");
    f.put_setting("rbd_default_stripe_count", "2");
    f.put_setting("rbd_default_data_pool", "");
    f.put_setting("rbd_validate_pool", "false");  // not for pools
    again();
    CPPUNIT_ASSERT_EQUAL(std::to_string(feature_layering | feature_striping),
                         header["features"]);
    CPPUNIT_ASSERT_EQUAL(std::string("16"), header["order"]);
    CPPUNIT_ASSERT_EQUAL(std::string("16384"), header["stripe_unit"]);
    CPPUNIT_ASSERT_EQUAL(std::string("2"), header["stripe_count"]);
    CPPUNIT_ASSERT(!header.contains("data_pool_id"));

    // What is asked for wins over all.
    f.options.features = feature_exclusive_lock;
    f.options.object_size = 8 << 20;
    f.options.stripe_unit = 8 << 20;
    f.options.stripe_count = 1;
    again();
    CPPUNIT_ASSERT_EQUAL(std::to_string(feature_exclusive_lock),
                         header["features"]);
    CPPUNIT_ASSERT_EQUAL(std::string("23"), header["order"]);
    CPPUNIT_ASSERT(!header.contains("stripe_unit"));
  }

  void many_settings() {
    // More than one page, before and behind the one that matters; and keys
    // that are no settings.
    Fixture f;
    f.put_info();
    for (int i = 0; i < 1500; ++i) {
      f.put_setting("a" + std::to_string(i), "x");
      f.put_setting("z" + std::to_string(i), "x");
    }
    auto info = f.memory().find("rbd_info").value();
    info.omap["a"] = info.omap["z"] = "x";
    f.memory().put("rbd_info", info);
    f.put_setting("rbd_default_order", "13");
    f.create();
    CPPUNIT_ASSERT_EQUAL(std::string("13"), f.header()["order"]);
  }

  void unsuitable_settings() {
    const std::tuple<const char*, const char*, int> cases[] = {
        {"rbd_default_order", "11", EINVAL},
        {"rbd_default_order", "26", EINVAL},
        {"rbd_default_order", "4294967308", EINVAL},
        {"rbd_default_order", "many", EINVAL},
        {"rbd_default_stripe_unit", "3", EINVAL},
        {"rbd_default_stripe_unit", "8M", EINVAL},
        {"rbd_default_stripe_unit", "4Q", EINVAL},
        {"rbd_default_stripe_unit", "99999999999E", EINVAL},
        {"rbd_default_stripe_count", "4294967296", EINVAL},
        {"rbd_default_data_pool", "nowhere", ENOENT},
        {"rbd_default_features", "125", ENOTSUP},  // journaling
        {"rbd_default_features", "8", EINVAL},     // object-map alone
    };
    for (const auto& [name, value, code] : cases) {
      Fixture f;
      f.put_info();
      f.put_setting(name, value);
      std::string message;
      CPPUNIT_ASSERT_EQUAL_MESSAGE(std::string(name) + "=" + value, code,
                                   f.create_error(&message));
      CPPUNIT_ASSERT(f.objects() == std::set<std::string>{"rbd_info"});
    }
    for (const auto& [text, number] :
         {std::pair("4K", "4096"), std::pair("4Ki", "4096"),
          std::pair("4KiB", "4096"), std::pair("4KB", "4096"),
          std::pair("512B", "512"), std::pair("1M", "1048576")}) {
      Fixture f;
      f.put_info();
      f.put_setting("rbd_default_stripe_unit", text);
      f.create();
      CPPUNIT_ASSERT_EQUAL(std::string(number), f.header()["stripe_unit"]);
    }
  }

  void old_osds() {
    // Default features are limited to what the OSDs know ...
    Fixture f;
    f.put_info();
    f.cluster->all_features = feature_layering | feature_striping;
    f.create();
    CPPUNIT_ASSERT_EQUAL(std::string("1"), f.header()["features"]);
    CPPUNIT_ASSERT(!f.objects().contains("rbd_object_map." + f.id()));
    // ... and not limited where they do not say.
    Fixture silent;
    silent.put_info();
    silent.cluster->all_features.reset();
    silent.create();
    CPPUNIT_ASSERT_EQUAL(std::string("61"), silent.header()["features"]);
    // What is asked for is not limited, but can be refused.
    Fixture refuses;
    refuses.put_info();
    refuses.cluster->all_features = feature_layering;
    refuses.options.features = 61;
    refuses.memory().on_exec("rbd", "create",
                             [](auto&, auto, auto&) { return -ENOSYS; });
    std::string message;
    CPPUNIT_ASSERT_EQUAL(ENOTSUP, refuses.create_error(&message));
    ASSERT_CONTAINS("deep-flatten", message);
    CPPUNIT_ASSERT(!refuses.has_names());
  }

  void checks() {
    const ImageSpec spec{"pool", "", "a", ""};
    const auto code = [&](const CreateOptions& o) {
      return error_of([&] { check_create(spec, o); });
    };
    using enum FormatChoice;
    for (const auto format : {automatic, format2}) {
      CPPUNIT_ASSERT_EQUAL(0, code({.format = format, .size = 1}));
      const auto size = [&](std::uint64_t object_size) {
        return code({.format = format, .size = 1, .object_size = object_size});
      };
      CPPUNIT_ASSERT_EQUAL(0, size(4 * K));
      CPPUNIT_ASSERT_EQUAL(0, size(32 << 20));
      CPPUNIT_ASSERT_EQUAL(EINVAL, size(2 * K));
      CPPUNIT_ASSERT_EQUAL(EINVAL, size(64 << 20));
      CPPUNIT_ASSERT_EQUAL(EINVAL, size(12 * K));
      const auto unit = [&](std::uint64_t u) {
        return code({.format = format, .size = 1, .object_size = 64 * K,
                     .stripe_unit = u});
      };
      CPPUNIT_ASSERT_EQUAL(0, unit(64 * K));
      CPPUNIT_ASSERT_EQUAL(0, unit(512));
      CPPUNIT_ASSERT_EQUAL(EINVAL, unit(0));
      CPPUNIT_ASSERT_EQUAL(EINVAL, unit(48 * K));
      CPPUNIT_ASSERT_EQUAL(EINVAL, unit(128 * K));
      const auto features = [&](std::uint64_t bits) {
        return code({.format = format, .size = 1, .features = bits});
      };
      CPPUNIT_ASSERT_EQUAL(0, features(0));
      CPPUNIT_ASSERT_EQUAL(0, features(0xbf));
      CPPUNIT_ASSERT_EQUAL(ENOTSUP, features(feature_exclusive_lock |
                                             feature_journaling));
      CPPUNIT_ASSERT_EQUAL(EINVAL, features(feature_operations));
      CPPUNIT_ASSERT_EQUAL(EINVAL, features(feature_dirty_cache));
      CPPUNIT_ASSERT_EQUAL(ENOTSUP, features(features_known + 1));
      CPPUNIT_ASSERT_EQUAL(
          EINVAL, code({.format = format, .size = 1, .data_pool = ""}));
    }
    for (const auto format : {format1, striper}) {
      CPPUNIT_ASSERT_EQUAL(
          EINVAL, code({.format = format, .size = 1, .features = 1}));
      CPPUNIT_ASSERT_EQUAL(
          EINVAL, code({.format = format, .size = 1, .data_pool = "data"}));
    }
    // An object map of at most 256 million objects.
    Fixture f;
    f.put_info();
    f.options.object_size = 4 * K;
    f.options.size = 256'000'000 * 4 * K;
    f.create();
    CPPUNIT_ASSERT_EQUAL(std::string("256000000"), f.map()["objects"]);
    f.spec.image = "b";
    ++f.options.size;
    CPPUNIT_ASSERT_EQUAL(EINVAL, f.create_error());
    f.options.features = feature_layering;
    f.create();
    f.spec.image = "c";
    f.options.size = (std::uint64_t{1} << 63) - 1;
    f.create();
  }

  void name_space() {
    Fixture f;
    f.spec.name_space = "ns";
    std::string message;
    CPPUNIT_ASSERT_EQUAL(ENOENT, f.create_error(&message));
    ASSERT_CONTAINS("namespace 'ns' does not exist", message);
    CPPUNIT_ASSERT(f.objects("ns").empty());
    // `rbd namespace create` makes the directory; removing disables it.
    MemoryObject directory;
    directory.omap["state"] = std::string(1, '\1');
    f.memory("pool", "ns").put("rbd_directory", directory);
    CPPUNIT_ASSERT_EQUAL(EBUSY, f.create_error(&message));
    ASSERT_CONTAINS("namespace 'ns'", message);
    directory.omap["state"] = std::string(1, '\0');
    f.memory("pool", "ns").put("rbd_directory", directory);
    f.create();
    CPPUNIT_ASSERT_EQUAL(std::string("61"), f.header("ns")["features"]);
    // Pools are prepared in their default namespace.
    CPPUNIT_ASSERT(f.objects() == std::set<std::string>{"rbd_info"});
    CPPUNIT_ASSERT(!f.objects("ns").contains("rbd_info"));
  }

  void existing() {
    for (const char* oid :
         {"rbd_id.a", "a.rbd", "a.0000000000000000"}) {
      Fixture f;
      f.memory().put(oid, MemoryObject{});
      CPPUNIT_ASSERT_EQUAL_MESSAGE(oid, EEXIST, f.create_error());
      CPPUNIT_ASSERT(f.objects() == std::set<std::string>{oid});
    }
    // Made by another between our look and our steps: theirs stays.
    Fixture f;
    f.put_info();
    f.memory().on_exec("rbd", "set_id",
                       [](auto&, auto, auto&) { return -EEXIST; });
    CPPUNIT_ASSERT_EQUAL(EEXIST, f.create_error());
    for (const auto& record : f.faults().log())
      CPPUNIT_ASSERT(record.oid != "rbd_id.a" ||
                     record.kind != Kind::write ||
                     record.steps.front() != WriteOp::Kind::remove);
    CPPUNIT_ASSERT(!f.has_names());
    // An id that is in use: the other image keeps its header.
    Fixture taken;
    taken.put_info();
    taken.memory().on_exec("rbd", "create",
                           [](auto&, auto, auto&) { return -EEXIST; });
    CPPUNIT_ASSERT_EQUAL(EEXIST, taken.create_error());
    for (const auto& record : taken.faults().log())
      CPPUNIT_ASSERT(!record.oid.starts_with("rbd_header.") ||
                     record.kind != Kind::write ||
                     record.steps.front() == WriteOp::Kind::create);
    CPPUNIT_ASSERT(!taken.has_names());
    CPPUNIT_ASSERT(!taken.memory().find("rbd_id.a"));
  }

  void pool_preparation() {
    {
      Fixture f;
      f.create();
      CPPUNIT_ASSERT(f.cluster->self_managed ==
                     std::vector<std::string>{"pool"});
      CPPUNIT_ASSERT_EQUAL(
          std::string("overwrite validated"),
          f.memory().find("rbd_info").value().data.bytes());
    }
    {
      // A client died in the middle.
      Fixture f;
      f.put_info("validate");
      f.create();
      CPPUNIT_ASSERT(f.cluster->self_managed.empty());
      CPPUNIT_ASSERT_EQUAL(
          std::string("overwrite validated"),
          f.memory().find("rbd_info").value().data.bytes());
    }
    {
      // Settings of a pool make an rbd_info without content.
      Fixture f;
      f.put_setting("x", "y");
      f.create();
      CPPUNIT_ASSERT_EQUAL(std::size_t{1}, f.cluster->self_managed.size());
      CPPUNIT_ASSERT_EQUAL(
          std::string("overwrite validated"),
          f.memory().find("rbd_info").value().data.bytes());
    }
    {
      Fixture f;
      f.cluster->options["rbd_validate_pool"] = "false";
      f.create();
      CPPUNIT_ASSERT(f.cluster->self_managed.empty());
      CPPUNIT_ASSERT(!f.memory().find("rbd_info"));
    }
    {
      Fixture f;
      f.cluster->snapshot_error = EINVAL;
      CPPUNIT_ASSERT_EQUAL(EINVAL, f.create_error());
      CPPUNIT_ASSERT(f.objects().empty());
    }
    // An erasure-coded pool that refuses the first or the second write.
    for (const std::uint64_t skip : {0, 1}) {
      Fixture f;
      f.faults().inject({.kind = Kind::write, .oid = "rbd_info",
                         .skip = skip, .error = EOPNOTSUPP});
      std::string message;
      CPPUNIT_ASSERT_EQUAL(EINVAL, f.create_error(&message));
      ASSERT_CONTAINS("allow_ec_overwrites", message);
      CPPUNIT_ASSERT(!f.has_names());
    }
    for (const int code : {EIO, EPERM, ENOSPC})
      for (const auto kind : {Kind::read_all, Kind::write, Kind::exec}) {
        Fixture f;
        f.faults().inject({.kind = kind, .oid = "rbd_info", .error = code});
        CPPUNIT_ASSERT_EQUAL(code, f.create_error());
        CPPUNIT_ASSERT(!f.has_names());
      }
    {
      // An erasure-coded pool has no settings, and no directory.
      Fixture f;
      f.put_info();
      f.faults().inject(
          {.kind = Kind::exec, .oid = "rbd_info", .error = EOPNOTSUPP});
      f.faults().inject(
          {.kind = Kind::write, .oid = "rbd_directory", .error = EOPNOTSUPP});
      std::string message;
      CPPUNIT_ASSERT_EQUAL(ENOTSUP, f.create_error(&message));
      ASSERT_CONTAINS("erasure-coded", message);
      // OSDs that do not have the class refuse all its methods.
      f.faults().inject({.kind = Kind::exec, .times = FaultStore::always,
                         .error = EOPNOTSUPP});
      f.faults().inject(
          {.kind = Kind::write, .oid = "rbd_directory", .error = EOPNOTSUPP});
      CPPUNIT_ASSERT_EQUAL(ENOTSUP, f.create_error(&message));
      ASSERT_CONTAINS("do not have the object class rbd", message);
    }
  }

  /// A fixture whose image takes all five steps.
  static void prepare(Fixture& f) {
    f.put_info();
    f.options.stripe_unit = 64 * K;
  }
  static constexpr std::uint64_t all_steps = 5;

  void errors_are_undone() {
    for (std::uint64_t step = 0; step < all_steps; ++step)
      for (const int code : {ENOSPC, EPERM, EIO}) {
        Fixture f;
        prepare(f);
        f.faults().inject({.kind = Kind::write, .skip = step, .error = code});
        std::string message;
        CPPUNIT_ASSERT_EQUAL(code, f.create_error(&message));
        CPPUNIT_ASSERT_MESSAGE(message, !contains(message, "rbd rm"));
        CPPUNIT_ASSERT(!f.has_names());
        auto left = f.objects();
        left.erase("rbd_directory");
        CPPUNIT_ASSERT_EQUAL(std::size_t{1}, left.size());
        CPPUNIT_ASSERT_EQUAL(std::string("rbd_info"), *left.begin());
        // The name is free.
        f.create();
        CPPUNIT_ASSERT_EQUAL(std::string("63"), f.header()["features"]);
      }
  }

  void crashes() {
    // After `done` steps this client does nothing any more.
    for (std::uint64_t done = 0; done < all_steps; ++done) {
      Fixture f;
      prepare(f);
      f.faults().inject({.kind = Kind::write,
                         .skip = done,
                         .times = FaultStore::always,
                         .error = ESHUTDOWN});
      std::string message;
      CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, f.create_error(&message));
      // What is visible is what the source says of window done + 1.
      CPPUNIT_ASSERT_EQUAL(done >= 1, f.has_names());
      CPPUNIT_ASSERT_EQUAL(done >= 1, contains(message, "rbd rm"));
      CPPUNIT_ASSERT_EQUAL(done >= 2, f.objects().contains("rbd_id.a"));
      if (done >= 2) {
        const std::string id = f.id();
        CPPUNIT_ASSERT_EQUAL(done >= 3,
                             f.objects().contains("rbd_header." + id));
        CPPUNIT_ASSERT(!f.objects().contains("rbd_object_map." + id));
      }
      if (done >= 3)
        CPPUNIT_ASSERT_EQUAL(done >= 4, f.header().contains("stripe_unit"));

      f.faults().clear_faults();
      const auto before = f.objects();
      // The name is taken, and nothing that is there is touched ...
      if (done >= 1) {
        CPPUNIT_ASSERT_EQUAL(EEXIST, f.create_error(&message));
        if (done == 1) ASSERT_CONTAINS("rbd rm", message);
        CPPUNIT_ASSERT(before == f.objects());
        CPPUNIT_ASSERT(f.has_names());
      }
      // ... and other names are not in the way.
      f.spec.image = "other";
      f.create();
    }
  }

  void lost_replies() {
    // The step was made, but nobody said so.
    for (std::uint64_t step = 0; step < all_steps; ++step) {
      Fixture f;
      prepare(f);
      f.faults().inject({.kind = Kind::write,
                         .skip = step,
                         .error = ETIMEDOUT,
                         .carried_out = true});
      std::string message;
      CPPUNIT_ASSERT_EQUAL(ETIMEDOUT, f.create_error(&message));
      if (step == 1) {
        // The object might be another's, so it stays.
        ASSERT_CONTAINS("rbd rm", message);
        CPPUNIT_ASSERT(f.has_names());
        CPPUNIT_ASSERT(f.objects().contains("rbd_id.a"));
        continue;
      }
      CPPUNIT_ASSERT(!f.has_names());
      CPPUNIT_ASSERT(f.objects() ==
                     (std::set<std::string>{"rbd_directory", "rbd_info"}));
      f.create();
    }
  }

  void interrupted_undo() {
    // The last step fails; then `removed` removals succeed and no more.
    for (std::uint64_t removed = 0; removed < 3; ++removed) {
      Fixture f;
      prepare(f);
      f.faults().inject({.kind = Kind::write, .skip = 4, .error = ENOSPC});
      f.faults().inject({.kind = Kind::write,
                         .skip = 4 + removed,
                         .times = FaultStore::always,
                         .error = EIO});
      std::string message;
      CPPUNIT_ASSERT_EQUAL(ENOSPC, f.create_error(&message));
      ASSERT_CONTAINS("rbd rm", message);
      // As after a crash: from the end on.
      CPPUNIT_ASSERT(f.has_names());
      CPPUNIT_ASSERT_EQUAL(removed < 2, f.objects().contains("rbd_id.a"));
      if (removed < 2)
        CPPUNIT_ASSERT_EQUAL(removed < 1,
                             f.objects().contains("rbd_header." + f.id()));
    }
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(TestEncodings);
CPPUNIT_TEST_SUITE_REGISTRATION(TestCreate);

}  // namespace
