// SPDX-License-Identifier: BSD-3-Clause
//
// Lists of a pool's images, and names that open what they were given for:
// order, cut, names that must be escaped, headers that are late or broken, and
// what is in flight.

#include <cppunit/extensions/HelperMacros.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "formats/catalog.hpp"
#include "formats/listing.hpp"
#include "rados/batch.hpp"
#include "rados/error.hpp"
#include "rados/fault_store.hpp"
#include "rados/memory_store.hpp"
#include "rbd/directory.hpp"
#include "rbd/encoding.hpp"
#include "rbd/format1.hpp"
#include "rbd/format2.hpp"

namespace {

using namespace nbdrados;
using namespace std::chrono_literals;
using Kind = FaultStore::Kind;
using Clock = std::chrono::steady_clock;
using Names = std::vector<std::string>;

std::string strings(const MemoryObject& object, std::string_view input,
                    bool values) {
  Decoder in(input, "a list");
  const std::string start = in.string("start");
  const std::uint64_t most = in.u64("most");
  Encoder entries;
  std::uint32_t n = 0;
  for (auto it = object.omap.upper_bound(start);
       it != object.omap.end() && n < most; ++it, ++n) {
    entries.string(it->first);
    if (values) entries.string(it->second);
  }
  Encoder reply;
  reply.u32(n).bytes(entries.str());
  return reply.take();
}

/// rbd_directory and rbd_namespace have the names as keys here, a header its
/// snapshots: ids as keys, names as values.
void add_methods(MemoryStore& store) {
  for (const bool directory : {true, false})
    store.on_exec("rbd", directory ? "dir_list" : "namespace_list",
                  [directory](auto& object, auto input, auto& output) {
                    if (!object) return -ENOENT;
                    output = strings(*object, input, directory);
                    return 0;
                  });
  store.on_exec("rbd", "get_snapcontext", [](auto& object, auto, auto& output) {
    if (!object) return -ENOENT;
    Encoder ids;
    for (auto it = object->omap.rbegin(); it != object->omap.rend(); ++it)
      ids.u64(std::stoull(it->first));
    Encoder reply;
    reply.u64(999999).u32(static_cast<std::uint32_t>(object->omap.size()));
    output = reply.bytes(ids.str()).take();
    return 0;
  });
  store.on_exec("rbd", "snapshot_get",
                [](auto& object, auto input, auto& output) {
                  if (!object) return -ENOENT;
                  Decoder in(input, "id");
                  const SnapId id = in.u64("id");
                  const auto it = object->omap.find(std::to_string(id));
                  // "gone": it is in the snapshot context, but removed since.
                  if (it == object->omap.end() || it->second == "gone")
                    return -ENOENT;
                  Encoder e;
                  e.frame(1, 1, [&] {
                    e.u64(id);
                    e.frame(1, 1, [&] { e.u32(0); });
                    e.string(it->second).u64(0).u32(0).u32(0).u32(0);
                  });
                  output = e.take();
                  return 0;
                });
}

class TestCluster final : public Cluster {
 public:
  struct Store {
    MemoryStore memory;
    FaultStore faults{memory};
  };
  ~TestCluster() override {
    for (auto& [ns, store] : stores)
      for (const std::string& p : store.faults.problems()) {
        std::fprintf(stderr, "%s\n", p.c_str());
        std::abort();
      }
  }
  Store& store(const std::string& ns) {
    const auto [it, is_new] = stores.try_emplace(ns);
    if (is_new) add_methods(it->second.memory);
    return it->second;
  }
  std::shared_ptr<ObjectStore> open_pool(const std::string&,
                                         const std::string& ns,
                                         Purpose) override {
    return {std::shared_ptr<void>(), &store(ns).faults};
  }
  std::shared_ptr<ObjectStore> open_pool(std::int64_t, const std::string& ns,
                                         Purpose purpose) override {
    return open_pool("pool", ns, purpose);
  }
  std::uint64_t client_id() const override { return 4711; }
  void blocklist(const std::string&, std::chrono::seconds) override {}
  void wait_for_latest_osdmap() override {}
  std::chrono::milliseconds timeout() const override { return limit; }

  std::map<std::string, Store> stores;
  std::chrono::milliseconds limit = 20s;
};

class TestListing : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(TestListing);
  CPPUNIT_TEST(all_of_a_pool);
  CPPUNIT_TEST(names_that_open);
  CPPUNIT_TEST(other_spellings);
  CPPUNIT_TEST(too_many);
  CPPUNIT_TEST(shown);
  CPPUNIT_TEST(names_too_long);
  CPPUNIT_TEST(many_at_once);
  CPPUNIT_TEST(snapshots_at_once);
  CPPUNIT_TEST(no_answer);
  CPPUNIT_TEST(broken);
  CPPUNIT_TEST(no_directory);
  CPPUNIT_TEST(stopped);
  CPPUNIT_TEST(the_only_image);
  CPPUNIT_TEST(batch_weights);
  CPPUNIT_TEST(batch_is_patient);
  CPPUNIT_TEST_SUITE_END();

  std::shared_ptr<TestCluster> cluster_;
  ListOptions options_;
  Names log_;

  void add_image(const std::string& ns, const std::string& name,
                 const Names& snapshots = {}) {
    MemoryStore& store = cluster_->store(ns).memory;
    const std::string dir(rbd_directory_oid);
    MemoryObject directory = store.find(dir).value_or(MemoryObject{});
    const std::string id = "id" + std::to_string(directory.omap.size()) + ns;
    directory.omap[name] = id;
    store.put(dir, directory);
    MemoryObject header;
    for (std::size_t i = 0; i < snapshots.size(); ++i)
      header.omap[std::to_string(100000 + i)] = snapshots[i];
    store.put("rbd_header." + id, header);
  }
  void add_namespace(const std::string& name) {
    MemoryStore& store = cluster_->store("").memory;
    MemoryObject all =
        store.find(std::string(rbd_namespace_oid)).value_or(MemoryObject{});
    all.omap[name] = "";
    store.put(std::string(rbd_namespace_oid), all);
  }
  void add_format1(const std::string& name, const Names& snapshots,
                   bool header = true) {
    MemoryStore& store = cluster_->store("").memory;
    const std::string dir(rbd_directory_oid);
    MemoryObject directory = store.find(dir).value_or(MemoryObject{});
    TrivialMap map = decode_trivial_map(directory.data.bytes());
    map.entries[name];
    directory.data.write(0, encode_trivial_map(map));
    store.put(dir, directory);
    if (!header) return;
    Format1Header h;
    h.object_prefix = "rb.0." + std::to_string(map.entries.size());
    h.order = 22;
    for (const std::string& s : snapshots)
      h.snapshots.insert(h.snapshots.begin(), {++h.snap_seq, 5, s});
    MemoryObject object;
    object.data.write(0, encode_format1(h));
    store.put(format1_header_oid(name), object);
  }
  Names list(const std::optional<std::string>& ns = std::nullopt) {
    log_.clear();
    options_.log = [this](const std::string& line) { log_.push_back(line); };
    return list_images(cluster_, "pool", ns, options_);
  }
  void check_log(const Names& parts) {
    CPPUNIT_ASSERT_EQUAL(parts.size(), log_.size());
    for (std::size_t i = 0; i < parts.size(); ++i)
      CPPUNIT_ASSERT_MESSAGE(log_[i],
                             log_[i].find(parts[i]) != std::string::npos);
  }
  std::size_t calls(const std::string& ns, const std::string& method) {
    const auto all = cluster_->store(ns).faults.log();
    return static_cast<std::size_t>(
        std::count_if(all.begin(), all.end(),
                      [&](const auto& r) { return r.method == method; }));
  }
  template <class Body>
  static int error_of(Body&& body) {
    try {
      body();
    } catch (const Error& e) {
      return e.code();
    }
    return 0;
  }

 public:
  void setUp() override {
    cluster_ = std::make_shared<TestCluster>();
    options_ = {};
  }
  void tearDown() override { cluster_.reset(); }

  void all_of_a_pool() {
    CPPUNIT_ASSERT(list().empty());
    add_image("", "b", {"2", "1", "gone", "3"});
    add_image("", "a");
    add_format1("old", {"y", "x"});
    add_format1("b", {"hidden"});  // format 2 is what opens
    add_format1("left over", {}, false);
    add_namespace("n");
    add_namespace("empty");
    add_image("n", "in", {"s"});
    add_image("n", "b");
    const Names all = {"a",     "b",       "b@1",  "b@2", "b@3", "left over",
                       "old",   "old@x",   "old@y", "n/b", "n/in", "n/in@s"};
    CPPUNIT_ASSERT(all == list());
    CPPUNIT_ASSERT((Names{"b", "in", "in@s"}) == list("n"));
    CPPUNIT_ASSERT(
        (Names{all.begin(), all.begin() + 9}) == list(""));
    check_log({});
    options_.format = FormatChoice::format1;
    CPPUNIT_ASSERT((Names{"b", "b@hidden", "left over", "old", "old@x",
                          "old@y"}) == list());
    options_.format = FormatChoice::format2;
    CPPUNIT_ASSERT((Names{"a", "b", "b@1", "b@2", "b@3"}) == list(""));
    options_ = {};
    options_.snapshots = false;
    cluster_->store("").faults.clear_log();
    CPPUNIT_ASSERT((Names{"a", "b", "left over", "old", "n/b", "n/in"}) ==
                   list());
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, calls("", "rbd.get_snapcontext"));
  }

  // What is listed is taken apart into just what there is.
  void names_that_open() {
    const Names odd = {"@",     "/",      "a@b",    "@a",     "a@",
                       "a/b",   "/a",     "a/",     "since=", "since=b",
                       "%",     "%%",     "50%off", "%40",    "a%2",
                       "%zz",   "\n",     "a b",    "\x7f",   "\xc3\xa4",
                       "a@b@c", "a//b@",  "a@since=b", "..",  "+%+"};
    for (const std::string& name : odd) add_image("", name, odd);
    add_namespace("n%/");
    add_image("n%/", "a@b", {"c/d"});
    std::vector<std::string> texts;
    std::vector<ImageSpec> wanted;
    for (const std::string& name : odd) {
      wanted.push_back({"pool", "", name, ""});
      for (const std::string& s : odd) wanted.push_back({"pool", "", name, s});
    }
    wanted.push_back({"pool", "n%/", "a@b", ""});
    wanted.push_back({"pool", "n%/", "a@b", "c/d"});
    std::vector<ImageSpec> got;
    for (const std::string& name : list()) {
      got.push_back(parse_image_name(name, FormatChoice::automatic));
      got.back().pool = "pool";
      CPPUNIT_ASSERT_EQUAL("pool/" + name, got.back().text());
      for (const char c : name)
        CPPUNIT_ASSERT(static_cast<unsigned char>(c) >= 0x20 && c != 0x7f);
    }
    CPPUNIT_ASSERT_EQUAL(wanted.size(), got.size());
    for (const ImageSpec& w : wanted)
      CPPUNIT_ASSERT_EQUAL_MESSAGE(
          w.text(), std::ptrdiff_t{1}, std::count(got.begin(), got.end(), w));
    // The same as differences.
    for (const std::string& name : odd)
      for (const std::string& s : odd) {
        const ImageSpec spec{"", "", name, s, name};
        CPPUNIT_ASSERT(spec ==
                       parse_image_name(spec.name(), FormatChoice::automatic));
      }
  }

  void other_spellings() {
    const auto parse = [](std::string_view text) {
      return parse_image_name(text, FormatChoice::automatic);
    };
    CPPUNIT_ASSERT(parse("%61%2f%2F@%40@since=%since=") ==
                   (ImageSpec{"", "", "a//", "@", "%since="}));
    // No escapes.
    for (const char* plain : {"%", "a%", "a%4", "%4g", "%+4", "%-4", "% 4",
                              "%0x", "%%4"})
      CPPUNIT_ASSERT_EQUAL(std::string(plain), parse(plain).image);
    CPPUNIT_ASSERT_EQUAL(std::string("%@"), parse("%%40").image);
    CPPUNIT_ASSERT_EQUAL(std::string("%40"), parse("%2540").image);
    CPPUNIT_ASSERT_EQUAL(EINVAL, error_of([&] { (void)parse("a%00"); }));
    // To a striped object nothing is an escape.
    CPPUNIT_ASSERT_EQUAL(
        std::string("a%40@b/c"),
        parse_image_name("a%40@b/c", FormatChoice::striper).image);
    // What `rbd create` refuses.
    for (const char* name : {"a@b", "a/b"})
      CPPUNIT_ASSERT_EQUAL(EINVAL, error_of([&] {
                             check_create({"pool", "", name, ""}, {.size = 1});
                           }));
  }

  void too_many() {
    for (const char* name : {"a", "b", "c"}) add_image("", name, {"1", "2"});
    options_.most = 9;
    CPPUNIT_ASSERT_EQUAL(std::size_t{9}, list().size());
    check_log({});
    options_.most = 6;
    CPPUNIT_ASSERT((Names{"a", "a@1", "a@2", "b", "b@1", "c"}) == list());
    check_log({"3 images and 6 snapshots, of which 3 snapshots are not"});
    cluster_->store("").faults.clear_log();
    options_.most = 2;
    CPPUNIT_ASSERT((Names{"a", "b"}) == list());
    check_log({"3 images, of which only the first 2"});
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, calls("", "rbd.get_snapcontext"));
    // More than a page of the directory.
    for (int i = 0; i < 1100; ++i) add_image("", "x" + std::to_string(i));
    options_.most = 10000;
    CPPUNIT_ASSERT_EQUAL(std::size_t{1109}, list().size());
  }

  // Who may not see all: what is hidden takes no place, and no header of it is
  // read.
  void shown() {
    for (const char* name : {"a", "b", "c", "d"})
      add_image("", name, {"1", "2"});
    add_format1("old", {"1"});
    add_namespace("n");
    add_image("n", "a", {"1"});
    Names may = {"b", "c@2", "d", "d@1", "d@2", "n/a"};
    options_.shown.name = [&](const std::string& name) {
      return std::ranges::count(may, name) != 0;
    };
    options_.shown.any = [&](const std::string& beginning) {
      return std::ranges::any_of(
          may, [&](const auto& n) { return n.starts_with(beginning); });
    };
    CPPUNIT_ASSERT(may == list());
    check_log({});
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, calls("", "rbd.get_snapcontext"));
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, calls("n", "rbd.get_snapcontext"));
    // Images before snapshots, of those that are shown.
    options_.most = 4;
    CPPUNIT_ASSERT((Names{"b", "c@2", "d", "n/a"}) == list());
    check_log({"3 images and 3 snapshots, of which 2 snapshots are not"});
    cluster_->store("").faults.clear_log();
    options_.most = 3;
    CPPUNIT_ASSERT((Names{"b", "d", "n/a"}) == list());
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, calls("", "rbd.get_snapcontext"));
    // A header that fails, of an image that is not shown itself.
    options_.most = 100;
    cluster_->store("").faults.inject({.oid = "rbd_header.id2", .error = EIO});
    CPPUNIT_ASSERT((Names{"b", "d", "d@1", "d@2", "n/a"}) == list());
    check_log({"1 of 4 images are listed without their snapshots: c: "});
    options_.snapshots = false;
    CPPUNIT_ASSERT((Names{"b", "d", "n/a"}) == list());
    // Without any, there is nothing.
    may.clear();
    CPPUNIT_ASSERT(list().empty());
    options_.format = FormatChoice::striper;
    cluster_->store("").memory.put("x.0000000000000000", MemoryObject{});
    CPPUNIT_ASSERT(list().empty());
    may = {"x"};
    CPPUNIT_ASSERT(may == list());
  }

  void names_too_long() {
    add_image("", std::string(10, 'a'), {"1"});
    add_image("", std::string(9, 'a') + "@", {});
    options_.longest = 11;
    CPPUNIT_ASSERT((Names{std::string(10, 'a')}) == list());
    check_log({"2 names are not listed"});
    options_.longest = 12;
    CPPUNIT_ASSERT_EQUAL(std::size_t{3}, list().size());
    check_log({});
    // As they are, which is not possible for all.
    options_.format = FormatChoice::striper;
    const std::string first = ".0000000000000000";
    for (const auto& name : {std::string("a\0b", 3), std::string("c@%")})
      cluster_->store("").memory.put(name + first, MemoryObject{});
    CPPUNIT_ASSERT((Names{"c@%"}) == list());
    check_log({"1 names are not listed"});
  }

  // Each answer takes 200 ms; one after the other that would be 80 s.
  void many_at_once() {
    cluster_->limit = 60s;
    for (int i = 0; i < 200; ++i)
      add_image("", "x" + std::to_string(i), {"s"});
    FaultStore& faults = cluster_->store("").faults;
    faults.inject(
        {.kind = Kind::exec, .times = FaultStore::always, .delay = 200ms});
    const auto start = Clock::now();
    CPPUNIT_ASSERT_EQUAL(std::size_t{400}, list().size());
    CPPUNIT_ASSERT(Clock::now() - start < 30s);
    CPPUNIT_ASSERT(faults.most_in_flight() >= 32);
    CPPUNIT_ASSERT(faults.most_in_flight() <= 128);
  }

  // Of one image, also when it is opened.
  void snapshots_at_once() {
    cluster_->limit = 60s;  // for sanitizers on a busy machine
    Names snapshots;
    for (int i = 0; i < 1000; ++i) snapshots.push_back(std::to_string(i));
    snapshots[500] = "gone";
    add_image("", "a", snapshots);
    const Names names = list();
    CPPUNIT_ASSERT_EQUAL(std::size_t{1000}, names.size());
    CPPUNIT_ASSERT_EQUAL(std::string("a@0"), names[1]);
    CPPUNIT_ASSERT(calls("", "rbd.snapshot_get") < 150);
  }

  // Half of the images are on an OSD that does not answer.
  void no_answer() {
    cluster_->limit = 2s;
    for (int i = 0; i < 400; ++i) {
      add_image("", "x" + std::to_string(i), {"s"});
      if (i % 2 == 0)
        cluster_->store("").faults.inject(
            {.oid = "rbd_header.id" + std::to_string(i),
             .times = FaultStore::always,
             .held = true});
    }
    const auto start = Clock::now();
    const Names names = list();
    CPPUNIT_ASSERT(Clock::now() - start < 4s);
    CPPUNIT_ASSERT_EQUAL(std::size_t{600}, names.size());
    for (const auto& name : {"x0", "x1", "x1@s", "x398", "x399@s"})
      CPPUNIT_ASSERT(std::count(names.begin(), names.end(), name) == 1);
    check_log(
        {"200 of 400 images are listed without their snapshots: x0, x10"});
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, cluster_->store("").faults.held());
    // Slow ones are waited for.
    cluster_->limit = 20s;
    cluster_->store("").faults.clear_faults();
    cluster_->store("").faults.inject(
        {.oid = "rbd_header.id0", .times = FaultStore::always, .delay = 1s});
    CPPUNIT_ASSERT_EQUAL(std::size_t{800}, list().size());
    check_log({});
  }

  void broken() {
    add_image("", "a", {"s"});
    add_image("", "b", {"s"});
    add_format1("c", {"s"});
    MemoryObject noise;
    noise.data.write(0, "no header");
    cluster_->store("").memory.put("c.rbd", noise);
    cluster_->store("").faults.inject(
        {.kind = Kind::exec, .oid = "rbd_header.id1", .error = EIO});
    CPPUNIT_ASSERT((Names{"a", "a@s", "b", "c"}) == list());
    check_log({"2 of 3 images are listed without their snapshots: b, c"});
  }

  void no_directory() {
    cluster_->limit = 1s;
    const FaultStore::Fault stuck{.oid = std::string(rbd_directory_oid),
                                  .times = FaultStore::always,
                                  .held = true};
    add_namespace("m");
    add_namespace("n");
    add_image("", "a", {"s"});
    add_image("m", "b", {"s"});
    add_image("n", "c", {"s"});
    // One of three.
    cluster_->store("m").faults.inject(stuck);
    CPPUNIT_ASSERT((Names{"a", "a@s", "n/c", "n/c@s"}) == list());
    check_log({"lacks the images of 1 of 3 namespaces: 'm': no answer"});
    // Which namespaces there are.
    cluster_->store("").faults.inject({.oid = std::string(rbd_namespace_oid),
                                       .times = FaultStore::always,
                                       .held = true});
    CPPUNIT_ASSERT((Names{"a", "a@s"}) == list());
    check_log({"lacks the images of namespaces"});
    // All.
    cluster_->store("").faults.inject(stuck);
    const auto start = Clock::now();
    CPPUNIT_ASSERT_EQUAL(ETIMEDOUT, error_of([&] { (void)list(); }));
    CPPUNIT_ASSERT(Clock::now() - start < 3s);
  }

  void stopped() {
    add_image("", "a", {"s"});
    cluster_->store("").faults.inject(
        {.oid = "rbd_header.id0", .times = FaultStore::always, .held = true});
    const auto start = Clock::now();
    options_.stop = [&] { return Clock::now() - start > 200ms; };
    CPPUNIT_ASSERT_EQUAL(ECANCELED, error_of([&] { (void)list(); }));
    CPPUNIT_ASSERT(Clock::now() - start < 5s);
    CPPUNIT_ASSERT_EQUAL(std::size_t{0}, cluster_->store("").faults.held());
  }

  void the_only_image() {
    const auto only = [&](const std::optional<std::string>& ns = std::nullopt) {
      return only_image(cluster_, "pool", ns, options_);
    };
    CPPUNIT_ASSERT(!only());
    add_namespace("n");
    add_image("n", "a@b", {"s"});
    CPPUNIT_ASSERT(only() == "n/a%40b");
    CPPUNIT_ASSERT(only("n") == "a%40b");
    CPPUNIT_ASSERT(!only(""));
    // It cannot be known.
    cluster_->store("").faults.inject(
        {.oid = std::string(rbd_directory_oid), .error = EIO});
    CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] { (void)only(); }));
    for (int i = 0; i < 1100; ++i)
      add_image("", "x" + std::to_string(i), {"s"});
    cluster_->store("").faults.clear_log();
    CPPUNIT_ASSERT(!only());
    // The directory in its two forms.
    CPPUNIT_ASSERT_EQUAL(std::size_t{2},
                         cluster_->store("").faults.log().size());
  }

  void batch_weights() {
    MemoryStore memory;
    FaultStore faults(memory);
    faults.inject({.times = FaultStore::always, .delay = 5ms});
    Batch batch({.deadline = Clock::now() + 20s, .in_flight = 10});
    int results = 0;
    std::uint64_t size = 0;
    for (int i = 0; i < 20; ++i)
      batch.add([&] { return faults.stat("a", &size, snap_head); },
                [&](int r) { results += r == -ENOENT ? 1 : 100; }, 4);
    // More than may be in flight: alone.
    batch.add([&] { return faults.stat("a", &size, snap_head); },
              [&](int r) { results += r == -ENOENT ? 1 : 100; }, 40);
    batch.run();
    CPPUNIT_ASSERT_EQUAL(21, results);
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, faults.most_in_flight());
    CPPUNIT_ASSERT(faults.problems().empty());
  }

  // Nobody wants its place: it keeps that until the deadline.
  void batch_is_patient() {
    MemoryStore memory;
    FaultStore faults(memory);
    faults.inject({.times = FaultStore::always, .delay = 1200ms});
    Batch batch({.deadline = Clock::now() + 2s, .patience = 10ms});
    int result = 0;
    std::uint64_t size = 0;
    batch.add([&] { return faults.stat("a", &size, snap_head); },
              [&](int r) { result = r; });
    batch.run();
    CPPUNIT_ASSERT_EQUAL(-ENOENT, result);
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, faults.count(Kind::stat));
    CPPUNIT_ASSERT(faults.problems().empty());
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(TestListing);

}  // namespace
