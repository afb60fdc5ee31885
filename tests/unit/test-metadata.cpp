// SPDX-License-Identifier: BSD-3-Clause
//
// Reading an image's metadata: verdicts, retries, confirmations, the lock; and
// the way from a clone to its parent.

#include <cppunit/extensions/HelperMacros.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "image-room.hpp"
#include "image/parent_link.hpp"
#include "object-map-methods.hpp"
#include "rbd/format2.hpp"

using namespace nbdrados;
using namespace std::chrono_literals;

namespace {

constexpr std::uint64_t K = 1024;
const Layout four(4 * K, 4 * K, 1);
constexpr std::uint64_t size = 64 * K;

View clone(std::uint64_t overlap, SnapId of = 7) {
  return {.size = size, .overlap = overlap, .parent_spec = {1, "", "p", of}};
}

RoomOptions writable(std::string header = "header") {
  RoomOptions options;
  options.image.writable = true;
  options.header = std::move(header);
  return options;
}

class MetadataTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(MetadataTest);
  CPPUNIT_TEST(loads);
  CPPUNIT_TEST(verdicts);
  CPPUNIT_TEST(no_verdicts);
  CPPUNIT_TEST(shut_out_for_good);
  CPPUNIT_TEST(holds);
  CPPUNIT_TEST(does_not_wait_for_requests);
  CPPUNIT_TEST(parent_that_cannot_be_opened);
  CPPUNIT_TEST(asks_again_at_once_and_then_now_and_then);
  CPPUNIT_TEST(all_wait_for_one_who_asks_again);
  CPPUNIT_TEST(lost_image_is_not_asked_again);
  CPPUNIT_TEST(confirms_what_is_doubtful);
  CPPUNIT_TEST(confirms_what_has_changed_anew);
  CPPUNIT_TEST(unconfirmed_is_an_error);
  CPPUNIT_TEST(shares_a_confirmation);
  CPPUNIT_TEST(shares_a_verdict_and_no_timeout);
  CPPUNIT_TEST(takes_over);
  CPPUNIT_TEST(takes_over_without_a_map);
  CPPUNIT_TEST(does_not_take_over);
  CPPUNIT_TEST(keeps_alive);
  CPPUNIT_TEST_SUITE_END();

  static int load_error(ImageRoom& b, bool end_hold = false) {
    return error_of([&] { b.core.metadata.load(end_hold); });
  }
  /// What a request of this moment fails with, and how often it was asked.
  static int failure(ImageRoom& b) {
    return b.core.metadata.request_view()->failure;
  }
  /// Runs a request that found something missing; returns its error, and how
  /// often it ran.  `found` counts all such requests.
  static std::pair<int, int> confirm(ImageRoom& b,
                                     std::atomic<int>* found = nullptr) {
    int runs = 0;
    const int code = error_of([&] {
      (void)b.core.metadata.confirmed([&](const View& view) {
        if (view.failure != 0) throw Error(view.failure, view.reason);
        ++runs;
        if (found != nullptr) ++*found;
        return true;
      });
    });
    return {code, runs};
  }
  /// Several at a time: one has begun to read the header, which gives the error
  /// `code`, when the others look.  Returns how often it is read.
  static int confirm_together(ImageRoom& b, int others, int code) {
    const int before = b.state->loads;
    std::atomic<int> found{0};
    std::vector<std::future<std::pair<int, int>>> requests;
    const auto start = [&] {
      requests.push_back(
          std::async(std::launch::async, [&] { return confirm(b, &found); }));
    };
    {
      const std::scoped_lock slow(b.state->mutex);
      b.state->load_error = code;
      start();
      CPPUNIT_ASSERT(eventually([&] { return b.state->loads > before; }));
      for (int i = 0; i < others; ++i) start();
      CPPUNIT_ASSERT(eventually([&] { return found == 1 + others; }));
      for (auto& r : requests)
        CPPUNIT_ASSERT(r.wait_for(20ms) == std::future_status::timeout);
    }
    for (auto& r : requests) CPPUNIT_ASSERT(r.get() == (std::pair{code, 1}));
    return b.state->loads - before;
  }

 public:
  void loads() {
    ImageRoom b(four, {.size = size, .snapc = {3, {3}}});
    CPPUNIT_ASSERT_EQUAL(size, b.core.state.read()->size);
    CPPUNIT_ASSERT(!b.core.state.read()->parent);
    b.load(clone(5 * K));
    const auto view = b.core.state.read();
    CPPUNIT_ASSERT_EQUAL(5 * K, view->overlap);
    CPPUNIT_ASSERT(view->parent == b.parent);
    CPPUNIT_ASSERT(view->snapc == SnapContext{});
  }

  void verdicts() {
    for (const int code : {ENOENT, ENXIO, EIO, EPERM, EACCES, ENOTSUP}) {
      ImageRoom b(four, {.size = size}, writable());
      b.state->set_load_error(code);
      CPPUNIT_ASSERT_EQUAL(code, load_error(b));
      {
        const auto view = b.core.state.read();
        CPPUNIT_ASSERT_EQUAL(EIO, view->failure);
        CPPUNIT_ASSERT_EQUAL(std::string("the header says no"), view->reason);
        CPPUNIT_ASSERT_EQUAL(size, view->size);
      }
      CPPUNIT_ASSERT(b.core.state.failing() && !b.core.state.lost());
      // Somebody repairs it.
      b.state->set_load_error(0);
      CPPUNIT_ASSERT_EQUAL(0, load_error(b));
      CPPUNIT_ASSERT_EQUAL(0, b.core.state.read()->failure);
    }
  }

  // Nothing was learnt of the image.
  void no_verdicts() {
    for (const int code : {ETIMEDOUT, EAGAIN, ENOMEM, EBUSY}) {
      ImageRoom b(four, {.size = size}, writable());
      b.state->set_load_error(code);
      CPPUNIT_ASSERT_EQUAL(code, load_error(b));
      CPPUNIT_ASSERT_EQUAL(0, failure(b));
      // Nor does it end what was found before.
      b.state->set_load_error(EIO);
      (void)load_error(b);
      b.state->set_load_error(code);
      CPPUNIT_ASSERT_EQUAL(code, load_error(b));
      CPPUNIT_ASSERT_EQUAL(EIO, b.core.state.read()->failure);
    }
  }

  // And let in again: somebody else has had the image in the meantime.
  void shut_out_for_good() {
    ImageRoom b(four, {.size = size}, writable());
    b.state->set_load_error(ESHUTDOWN);
    CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, load_error(b));
    b.state->set_load_error(0);
    CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, load_error(b));
    CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, failure(b));
    CPPUNIT_ASSERT(b.core.state.lost());
    // A parent is not: its child is who is shut out.
    ImageRoom parent(four, {.size = size}, {.image = as_parent()});
    parent.state->set_load_error(ESHUTDOWN);
    CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, load_error(parent));
    CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, parent.core.state.read()->failure);
    parent.state->set_load_error(0);
    CPPUNIT_ASSERT_EQUAL(0, load_error(parent));
    CPPUNIT_ASSERT_EQUAL(0, parent.core.state.read()->failure);
  }

  void holds() {
    ImageRoom b(four, {.size = size}, writable());
    const auto held = [&] { return b.core.state.read()->hold_writes; };
    b.core.state.hold_writes();
    // A new client comes, which knows nothing of the reason for the hold.
    b.core.metadata.load();
    CPPUNIT_ASSERT(held());
    b.state->set_load_error(ETIMEDOUT);
    CPPUNIT_ASSERT_EQUAL(ETIMEDOUT, load_error(b, true));
    CPPUNIT_ASSERT(held());
    b.state->set_load_error(0);
    b.core.metadata.load(true);
    CPPUNIT_ASSERT(!held());
    // A verdict ends it, too.
    b.core.state.hold_writes();
    b.state->set_load_error(EIO);
    CPPUNIT_ASSERT_EQUAL(EIO, load_error(b, true));
    b.state->set_load_error(0);
    b.core.metadata.load();
    CPPUNIT_ASSERT(!held());
  }

  void does_not_wait_for_requests() {
    ImageRoom b(four, {.size = size});
    const auto stuck = b.core.state.read();
    auto client = std::async(std::launch::async, [&] {
      b.load({.size = 2 * size});
    });
    const bool loaded = client.wait_for(10s) == std::future_status::ready;
    CPPUNIT_ASSERT(loaded);
    CPPUNIT_ASSERT_EQUAL(size, stuck->size);
    CPPUNIT_ASSERT_EQUAL(2 * size, b.core.state.read()->size);
  }

  void parent_that_cannot_be_opened() {
    ImageRoom b(four, {.size = size});
    // A format without parents says so; so does one that finds none.
    MemoryStore memory;
    const auto state = std::make_shared<FakeFormat::State>();
    state->view = clone(size);
    int code = EIO;
    ImageCore core(std::make_unique<FakeFormat>(memory, four, state), {},
                   [&](auto, auto) -> std::shared_ptr<Backing> {
                     if (code != 0) throw Error(code, "no parent");
                     return b.parent;
                   });
    CPPUNIT_ASSERT_EQUAL(EIO, error_of([&] { core.metadata.load(); }));
    CPPUNIT_ASSERT_EQUAL(EIO, core.state.read()->failure);
    code = ETIMEDOUT;
    CPPUNIT_ASSERT_EQUAL(ETIMEDOUT, error_of([&] { core.metadata.load(); }));
    code = 0;
    core.metadata.load();
    CPPUNIT_ASSERT(core.state.read()->parent == b.parent);
  }

  void asks_again_at_once_and_then_now_and_then() {
    ImageRoom b(four, {.size = size});
    const auto loads = [&, before = b.state->loads.load()] {
      return b.state->loads - before;
    };
    CPPUNIT_ASSERT_EQUAL(0, failure(b));
    CPPUNIT_ASSERT_EQUAL(0, loads());
    b.state->set_load_error(EIO);
    (void)load_error(b);
    // The first request asks, whatever is the reason.
    const auto start = std::chrono::steady_clock::now();
    CPPUNIT_ASSERT_EQUAL(EIO, failure(b));
    CPPUNIT_ASSERT_EQUAL(2, loads());
    while (std::chrono::steady_clock::now() - start < 900ms) {
      CPPUNIT_ASSERT_EQUAL(EIO, failure(b));
      std::this_thread::sleep_for(1ms);
    }
    CPPUNIT_ASSERT(loads() == 2 ||
                   std::chrono::steady_clock::now() - start > 1s);
    b.state->set_load_error(0);
    CPPUNIT_ASSERT(eventually([&] { return failure(b) == 0; }));
    CPPUNIT_ASSERT(std::chrono::steady_clock::now() - start >= 1s);
    const int well = loads();
    CPPUNIT_ASSERT_EQUAL(0, failure(b));
    CPPUNIT_ASSERT_EQUAL(well, loads());
    // What fails then is asked for at once again.
    b.state->set_load_error(EACCES);
    (void)load_error(b);
    b.state->set_load_error(0);
    CPPUNIT_ASSERT_EQUAL(0, failure(b));
  }

  void all_wait_for_one_who_asks_again() {
    ImageRoom b(four, {.size = size});
    b.state->set_load_error(EIO);
    (void)load_error(b);
    const int before = b.state->loads;
    std::vector<std::future<int>> requests;
    {
      const std::scoped_lock slow(b.state->mutex);
      b.state->load_error = 0;
      for (int i = 0; i < 4; ++i)
        requests.push_back(
            std::async(std::launch::async, [&] { return failure(b); }));
      CPPUNIT_ASSERT(eventually([&] { return b.state->loads > before; }));
      for (auto& r : requests)
        CPPUNIT_ASSERT(r.wait_for(20ms) == std::future_status::timeout);
    }
    for (auto& r : requests) CPPUNIT_ASSERT_EQUAL(0, r.get());
    CPPUNIT_ASSERT_EQUAL(before + 1, b.state->loads.load());
  }

  void lost_image_is_not_asked_again() {
    ImageRoom b(four, {.size = size});
    b.core.state.lose(EIO, "deleted");
    const int before = b.state->loads;
    CPPUNIT_ASSERT_EQUAL(EIO, failure(b));
    CPPUNIT_ASSERT_EQUAL(before, b.state->loads.load());
    CPPUNIT_ASSERT_EQUAL(EIO, load_error(b));
  }

  void confirms_what_is_doubtful() {
    ImageRoom b(four, {.size = size});
    const auto loads = [&](bool missing) {
      const int before = b.state->loads;
      int runs = 0;
      CPPUNIT_ASSERT_EQUAL(missing,
                           b.core.metadata.confirmed([&](const View&) {
                             ++runs;
                             return missing;
                           }));
      CPPUNIT_ASSERT_EQUAL(1, runs);
      return b.state->loads - before;
    };
    CPPUNIT_ASSERT_EQUAL(0, loads(true));
    b.end_guard();
    CPPUNIT_ASSERT_EQUAL(0, loads(false));
    CPPUNIT_ASSERT_EQUAL(1, loads(true));
    b.core.state.guard_until(BootClock::time_point::max());
    b.core.state.hold_writes();
    CPPUNIT_ASSERT_EQUAL(1, loads(true));
    b.core.state.end_hold();
    b.load({.size = size, .snapc = {5, {5}}, .snap = 5});
    CPPUNIT_ASSERT_EQUAL(0, loads(false));
    CPPUNIT_ASSERT_EQUAL(1, loads(true));
    // The same header with another snapshot: nothing that was read changes.
    b.state->set_view({.size = size, .snapc = {6, {6, 5}}, .snap = 5});
    CPPUNIT_ASSERT_EQUAL(1, loads(true));
  }

  void confirms_what_has_changed_anew() {
    const View old = clone(16 * K);
    View smaller = old;
    smaller.size = 32 * K;
    for (const View& now :
         {smaller, clone(8 * K), clone(16 * K, 9), View{.size = size}}) {
      ImageRoom b(four, old);
      b.end_guard();
      b.state->set_view(now);
      std::vector<View> seen;
      (void)b.core.metadata.confirmed([&](const View& view) {
        seen.push_back(view);
        return true;
      });
      CPPUNIT_ASSERT_EQUAL(std::size_t{2}, seen.size());
      CPPUNIT_ASSERT_EQUAL(now.size, seen[1].size);
      CPPUNIT_ASSERT_EQUAL(now.overlap, seen[1].overlap);
      CPPUNIT_ASSERT(now.parent_spec == seen[1].parent_spec);
      CPPUNIT_ASSERT_EQUAL(3, b.state->loads.load());
    }
  }

  void unconfirmed_is_an_error() {
    for (const auto& [code, becomes] : std::vector<std::pair<int, int>>{
             {ENOENT, EIO}, {ENXIO, EIO}, {EIO, EIO}, {EPERM, EIO},
             {ESHUTDOWN, ESHUTDOWN}, {ETIMEDOUT, ETIMEDOUT}}) {
      ImageRoom b(four, {.size = size});
      b.end_guard();
      b.state->set_load_error(code);
      CPPUNIT_ASSERT(confirm(b) == (std::pair{becomes, 1}));
    }
  }

  // A load that began after the request looked will do for it; one that was
  // under way already will not.
  void shares_a_confirmation() {
    for (int i = 0; i < 10; ++i) {
      ImageRoom b(four, {.size = size, .snap = 5});
      CPPUNIT_ASSERT_EQUAL(2, confirm_together(b, 6, 0));
    }
  }

  void shares_a_verdict_and_no_timeout() {
    ImageRoom gone(four, {.size = size, .snap = 5});
    CPPUNIT_ASSERT_EQUAL(2, confirm_together(gone, 3, EIO));
    ImageRoom slow(four, {.size = size, .snap = 5});
    CPPUNIT_ASSERT_EQUAL(4, confirm_together(slow, 3, ETIMEDOUT));
  }

  /// An image whose lock has just been taken.
  struct Owner : ImageRoom {
    explicit Owner(bool mapped) : ImageRoom(four, view(mapped), writable()) {
      memory.on_exec("lock", "lock", [](auto&, auto, auto&) { return 0; });
      add_object_map_methods(memory);
      memory.put(format2_object_map_oid("image", snap_head),
                 map_object(ObjectStates(16)));
    }
    static View view(bool mapped) {
      return {.size = size, .lockable = true, .mappable = mapped};
    }
    int take_over() {
      return error_of([&] {
        core.metadata.load_as_owner(
            [&](const std::string& line) { lines.push_back(line); });
      });
    }
    std::vector<std::string> lines;
  };

  void takes_over() {
    for (const bool mapped : {true, false}) {
      Owner b(mapped);
      CPPUNIT_ASSERT(!b.core.state.read()->writable_now());
      {
        // Somebody has resized it before the lock was free.
        const std::scoped_lock lock(b.state->mutex);
        b.state->view.size = 2 * K;
      }
      CPPUNIT_ASSERT_EQUAL(0, b.take_over());
      const auto view = b.core.state.read();
      CPPUNIT_ASSERT(view->writable_now() && view->known);
      CPPUNIT_ASSERT_EQUAL(2 * K, view->size);
      CPPUNIT_ASSERT_EQUAL(mapped, view->map != nullptr);
      CPPUNIT_ASSERT(b.lines.empty() && b.state->invalidated.empty());
    }
  }

  // Nobody is to believe it, before something is written without it.
  void takes_over_without_a_map() {
    for (const int code : {EINVAL, EIO, ENOENT}) {
      Owner b(true);
      b.state->map_error = code;
      CPPUNIT_ASSERT_EQUAL(0, b.take_over());
      CPPUNIT_ASSERT(b.core.state.read()->writable_now());
      CPPUNIT_ASSERT(!b.core.state.read()->map);
      CPPUNIT_ASSERT(!b.core.state.read()->mappable);
      CPPUNIT_ASSERT(b.state->invalidated == std::vector<SnapId>{snap_head});
      CPPUNIT_ASSERT(b.lines ==
                     std::vector<std::string>{
                         "pool/image: the object map cannot be used: the map "
                         "says no"});
    }
  }

  void does_not_take_over() {
    Owner b(true);
    const auto refused = [&](int code) {
      CPPUNIT_ASSERT_EQUAL(code, b.take_over());
      CPPUNIT_ASSERT(!b.core.state.read()->writable_now());
      CPPUNIT_ASSERT(b.lines.size() <= 1);
    };
    for (const int code : {ETIMEDOUT, ESHUTDOWN, EBUSY}) {
      b.state->map_error = code;
      refused(code);
    }
    CPPUNIT_ASSERT(b.state->invalidated.empty());
    b.state->map_error = EIO;
    b.state->invalidate_error = ETIMEDOUT;
    refused(ETIMEDOUT);
    b.state->map_error = 0;
    for (const int code : {EIO, ETIMEDOUT}) {
      b.state->set_load_error(code);
      refused(code);
    }
    b.state->set_load_error(0);
    CPPUNIT_ASSERT_EQUAL(0, b.take_over());
  }

  // Where a lock is kept alive, that is the guard.
  void keeps_alive() {
    ImageRoom b(four, {.size = size}, writable(""));
    b.state->interval = 7ms;
    b.state->locked = false;
    CPPUNIT_ASSERT(b.core.metadata.keep_alive() == 7ms);
    CPPUNIT_ASSERT(!b.core.state.guarded());
    b.state->locked = true;
    (void)b.core.metadata.keep_alive();
    CPPUNIT_ASSERT(b.core.state.guarded());
    b.state->keep_alive_error = ESHUTDOWN;
    CPPUNIT_ASSERT_EQUAL(
        ESHUTDOWN, error_of([&] { (void)b.core.metadata.keep_alive(); }));
    // And where there is a watch, this changes nothing.
    ImageRoom watched(four, {.size = size}, writable());
    watched.end_guard();
    CPPUNIT_ASSERT(!watched.core.metadata.keep_alive());
    CPPUNIT_ASSERT(!watched.core.state.guarded());
  }
};

class ParentLinkTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(ParentLinkTest);
  CPPUNIT_TEST(the_same_as_long_as_it_is_named);
  CPPUNIT_TEST(failed_opening);
  CPPUNIT_TEST(how_it_is_opened);
  CPPUNIT_TEST(circle);
  CPPUNIT_TEST(too_many_generations);
  CPPUNIT_TEST(errors_name_both);
  CPPUNIT_TEST_SUITE_END();

  MemoryStore memory_;
  std::shared_ptr<FakeFormat::State> state_ =
      std::make_shared<FakeFormat::State>();
  FakeFormat format_{memory_, four, state_};
  ImageOptions options_;
  int error_ = 0;
  std::vector<ImageOptions> opened_;
  std::vector<std::string> prefixes_;
  ParentLink link_{format_, options_,
                   [this](std::unique_ptr<ImageFormat> format,
                          ImageOptions how) -> std::shared_ptr<Backing> {
                     if (error_ != 0) throw Error(error_, "no parent");
                     opened_.push_back(std::move(how));
                     prefixes_.push_back(format->traits().object_prefix);
                     return std::make_shared<FakeBacking>();
                   }};

 public:
  void the_same_as_long_as_it_is_named() {
    CPPUNIT_ASSERT(!link_.find({.size = size}));
    auto first = link_.find(clone(size));
    CPPUNIT_ASSERT(first);
    View other = clone(4 * K);
    other.size = 100 * K;
    CPPUNIT_ASSERT(link_.find(other) == first);
    const auto second = link_.find(clone(size, 8));
    CPPUNIT_ASSERT(second && second != first);
    // Nobody else keeps it.
    const std::weak_ptr<Backing> former = first;
    first.reset();
    CPPUNIT_ASSERT(former.expired());
    CPPUNIT_ASSERT(!link_.find(clone(0, 8)));
    CPPUNIT_ASSERT(link_.find(clone(size, 8)) != second);
    CPPUNIT_ASSERT(prefixes_ == (std::vector<std::string>{
                                    "parent7", "parent8", "parent8"}));
  }

  void failed_opening() {
    error_ = ETIMEDOUT;
    CPPUNIT_ASSERT_EQUAL(ETIMEDOUT,
                         error_of([&] { (void)link_.find(clone(size)); }));
    error_ = 0;
    const auto first = link_.find(clone(size));
    CPPUNIT_ASSERT(first);
    error_ = EIO;
    CPPUNIT_ASSERT_EQUAL(EIO,
                         error_of([&] { (void)link_.find(clone(size, 8)); }));
    // The image is served as it was.
    CPPUNIT_ASSERT(link_.find(clone(size)) == first);
  }

  void how_it_is_opened() {
    options_.writable = true;
    options_.workers = std::make_shared<WorkerPool>(1);
    options_.extents = ExtentsMode::object;
    int lines = 0;
    options_.log = [&](const std::string&, bool) { ++lines; };
    (void)link_.find(clone(size));
    const ImageOptions& how = opened_.at(0);
    CPPUNIT_ASSERT(!how.writable);
    CPPUNIT_ASSERT(how.workers == options_.workers);
    how.log("line", true);
    CPPUNIT_ASSERT_EQUAL(1, lines);
    CPPUNIT_ASSERT_EQUAL(1U, how.lineage->depth);
    CPPUNIT_ASSERT(how.lineage->spec == clone(size).parent_spec);
    CPPUNIT_ASSERT(!how.lineage->child);
    // Block status of a clone is as exact as was asked for, all the way down.
    CPPUNIT_ASSERT(how.extents == ExtentsMode::object);
  }

  // A damaged header must not lead in one.
  void circle() {
    const auto child = std::make_shared<Lineage>(
        Lineage{clone(size, 7).parent_spec, 1, nullptr});
    options_.lineage = std::make_shared<Lineage>(
        Lineage{clone(size, 8).parent_spec, 2, child});
    for (const SnapId snap : {7, 8})
      CPPUNIT_ASSERT_EQUAL(
          std::string("pool/image: is its own ancestor"),
          message_of([&] { (void)link_.find(clone(size, snap)); }));
    CPPUNIT_ASSERT_EQUAL(EIO,
                         error_of([&] { (void)link_.find(clone(size, 8)); }));
    CPPUNIT_ASSERT(opened_.empty());
    (void)link_.find(clone(size, 9));
    CPPUNIT_ASSERT_EQUAL(3U, opened_.at(0).lineage->depth);
    CPPUNIT_ASSERT(opened_.at(0).lineage->child == options_.lineage);
  }

  void too_many_generations() {
    options_.lineage = std::make_shared<Lineage>(
        Lineage{{}, ParentLink::max_depth, nullptr});
    CPPUNIT_ASSERT_EQUAL(EIO,
                         error_of([&] { (void)link_.find(clone(size)); }));
    options_.lineage = std::make_shared<Lineage>(
        Lineage{{}, ParentLink::max_depth - 1, nullptr});
    CPPUNIT_ASSERT(link_.find(clone(size)));
  }

  void errors_name_both() {
    CPPUNIT_ASSERT_EQUAL(5, of_parent("pool/image", [] { return 5; }));
    const auto fails = [] {
      of_parent("pool/image", [] { throw Error(ENXIO, "pool/parent: gone"); });
    };
    CPPUNIT_ASSERT_EQUAL(ENXIO, error_of(fails));
    CPPUNIT_ASSERT_EQUAL(
        std::string("pool/image: its parent: pool/parent: gone"),
        message_of(fails));
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(MetadataTest);
CPPUNIT_TEST_SUITE_REGISTRATION(ParentLinkTest);

}  // namespace
