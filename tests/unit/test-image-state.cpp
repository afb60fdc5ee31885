// SPDX-License-Identifier: BSD-3-Clause
//
// What is so of an open image, the View and the promise that follow from it,
// and whom that wakes.

#include <cppunit/extensions/HelperMacros.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "image/state/image_state.hpp"
#include "image/state/write_gate.hpp"
#include "rados/error.hpp"

using namespace nbdrados;
using namespace std::chrono_literals;

namespace {

constexpr std::uint64_t M = 1 << 20;

class ImageStateTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(ImageStateTest);
  CPPUNIT_TEST(tenures);
  CPPUNIT_TEST(read_only);
  CPPUNIT_TEST(end_of_a_tenure_waits);
  CPPUNIT_TEST(holds);
  CPPUNIT_TEST(failures_that_end);
  CPPUNIT_TEST(verdicts);
  CPPUNIT_TEST(shut_out);
  CPPUNIT_TEST(parents);
  CPPUNIT_TEST(guards);
  CPPUNIT_TEST(distrusted);
  CPPUNIT_TEST(snapshots_keep_their_promise);
  CPPUNIT_TEST(gates);
  CPPUNIT_TEST_SUITE_END();

  const ImageTraits traits_{.name = "p/vm",
                            .format = "test",
                            .layout = Layout(4 * M, 4 * M, 1),
                            .object_prefix = "o",
                            .header_oid = "h",
                            .details = {}};
  ImageOptions options_;
  KnownExtents known_;
  std::optional<ImageState> state_;
  std::vector<std::string> log_;

  void make(bool writable = true) {
    options_.writable = writable;
    options_.log = [this](const std::string& line, bool) {
      log_.push_back(line);
    };
    state_.emplace(traits_, options_, known_);
    state_->publish(view());
    state_->guard_until(BootClock::time_point::max());
  }
  static View view(std::uint64_t size = 100 * M) {
    View v;
    v.size = size;
    v.lockable = true;
    return v;
  }
  std::uint64_t generation() { return state_->promise()->generation(); }
  std::uint64_t tenure() { return state_->promise()->tenure(); }

 public:
  void setUp() override {
    options_ = {};
    log_.clear();
  }
  void tearDown() override { state_.reset(); }

  void tenures() {
    make();
    CPPUNIT_ASSERT(state_->read()->needs_lock);
    CPPUNIT_ASSERT(!state_->read()->writable_now());
    CPPUNIT_ASSERT(!state_->read()->known);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, generation());
    state_->begin_tenure(view(), nullptr);
    CPPUNIT_ASSERT(state_->read()->writable_now());
    CPPUNIT_ASSERT(state_->read()->known);
    const auto first = generation();
    CPPUNIT_ASSERT(first != 0 && tenure() != 0);
    {
      KnownExtents::Learning learning(known_);
      learning.learn_absent(3);
    }
    CPPUNIT_ASSERT(known_.absent(3));
    CPPUNIT_ASSERT(!state_->end_tenure());
    CPPUNIT_ASSERT(state_->read()->needs_lock && !state_->read()->known);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, generation());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, tenure());
    CPPUNIT_ASSERT(!known_.absent(3));
    // Once more is no harm; and what comes is another one.
    CPPUNIT_ASSERT(!state_->end_tenure());
    state_->begin_tenure(view(), nullptr);
    CPPUNIT_ASSERT(generation() != 0 && generation() != first);
    // A change of size is a change of data.
    const auto second = generation();
    state_->publish(view(50 * M));
    CPPUNIT_ASSERT(generation() != 0 && generation() != second);
    state_->end_promise();
    CPPUNIT_ASSERT(generation() == 0 && tenure() == 0);
  }

  void read_only() {
    make(false);
    CPPUNIT_ASSERT(!state_->read()->needs_lock);
    make();
    state_->serve_read_only();
    state_->publish(view(50 * M));
    CPPUNIT_ASSERT(!state_->read()->needs_lock && !state_->writable());
  }

  void end_of_a_tenure_waits() {
    make();
    state_->begin_tenure(view(), nullptr);
    std::atomic<bool> reads{false};
    std::atomic<bool> ended{false};
    std::thread request([&] {
      const auto view = state_->read();
      reads = true;
      std::this_thread::sleep_for(50ms);
      CPPUNIT_ASSERT(!ended);
    });
    while (!reads) std::this_thread::yield();
    (void)state_->end_tenure();
    ended = true;
    request.join();
  }

  void holds() {
    make();
    state_->begin_tenure(view(), nullptr);
    const auto before = generation();
    state_->hold_writes();
    CPPUNIT_ASSERT(!state_->read()->writable_now() && !state_->read()->known);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, generation());
    CPPUNIT_ASSERT(tenure() != 0);
    // What is read meanwhile does not end it, unless it says so.
    state_->publish(view(50 * M));
    CPPUNIT_ASSERT(!state_->read()->writable_now());
    state_->publish(view(), true);
    CPPUNIT_ASSERT(state_->read()->writable_now());
    CPPUNIT_ASSERT(generation() != 0 && generation() != before);
    state_->hold_writes();
    state_->end_hold();
    CPPUNIT_ASSERT(state_->read()->writable_now());
  }

  void failures_that_end() {
    make();
    state_->begin_tenure(view(), nullptr);
    state_->hold_writes();
    state_->fail(Error(EACCES, "no"), true);
    CPPUNIT_ASSERT(state_->failing() && !state_->lost());
    CPPUNIT_ASSERT_EQUAL(EIO, state_->read()->failure);
    CPPUNIT_ASSERT_EQUAL(std::string("no"), state_->read()->reason);
    // They do not wait: they fail.
    CPPUNIT_ASSERT(state_->read()->writable_now());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, generation());
    state_->publish(view());
    CPPUNIT_ASSERT(!state_->failing() && state_->read()->failure == 0);
    CPPUNIT_ASSERT(generation() != 0);
    CPPUNIT_ASSERT(log_.empty());
  }

  void verdicts() {
    make();
    state_->begin_tenure(view(), nullptr);
    state_->hold_writes();
    state_->lose(EIO, "deleted");
    state_->lose(ESHUTDOWN, "and more");
    CPPUNIT_ASSERT_EQUAL(EIO, state_->lost()->code());
    CPPUNIT_ASSERT_EQUAL(std::string("deleted"), state_->read()->reason);
    CPPUNIT_ASSERT(!state_->failing());  // nobody tries again
    CPPUNIT_ASSERT(state_->read()->writable_now());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, generation());
    CPPUNIT_ASSERT((std::vector<std::string>{"deleted", "and more"}) == log_);
    // Nothing brings it back.
    state_->publish(view());
    state_->fail(Error(EACCES, "no"));
    state_->end_hold();
    (void)state_->end_tenure();
    state_->begin_tenure(view(), nullptr);
    CPPUNIT_ASSERT_EQUAL(EIO, state_->read()->failure);
    CPPUNIT_ASSERT_EQUAL(std::string("deleted"), state_->read()->reason);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, generation());
  }

  void shut_out() {
    make();
    state_->fail(Error(ESHUTDOWN, "blocklisted"));
    CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, state_->lost()->code());
    CPPUNIT_ASSERT_EQUAL(std::string("p/vm: blocklisted"), log_.at(0));
    state_->publish(view());
    CPPUNIT_ASSERT_EQUAL(ESHUTDOWN, state_->read()->failure);
    // Said once.
    state_->fail(Error(ESHUTDOWN, "blocklisted"));
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, log_.size());
  }

  void parents() {
    options_.lineage = std::make_shared<const Lineage>();
    make(false);
    CPPUNIT_ASSERT(state_->is_parent());
    state_->fail(Error(ESHUTDOWN, "blocklisted"));
    CPPUNIT_ASSERT(!state_->lost() && state_->failing());
    state_->publish(view());
    CPPUNIT_ASSERT_EQUAL(0, state_->read()->failure);
    // Its child's link keeps it, but nobody its own link.
    View v = view();
    CPPUNIT_ASSERT(!state_->doubtful(v));
    v.overlap = 1;
    CPPUNIT_ASSERT(state_->doubtful(v));
    CPPUNIT_ASSERT(!state_->can_be_sure(v));
  }

  void guards() {
    make();
    View v = view();
    CPPUNIT_ASSERT(state_->guarded() && !state_->doubtful(v));
    CPPUNIT_ASSERT(state_->can_be_sure(v));
    v.hold_writes = true;
    CPPUNIT_ASSERT(state_->doubtful(v));
    v.hold_writes = false;
    v.snap = 4;
    CPPUNIT_ASSERT(state_->doubtful(v));
    v.snap = snap_head;
    state_->begin_tenure(view(), nullptr);
    CPPUNIT_ASSERT(state_->promise()->holds());
    state_->guard_until(BootClock::now() - 1s);
    CPPUNIT_ASSERT(!state_->guarded() && state_->doubtful(v));
    CPPUNIT_ASSERT(!state_->can_be_sure(v));
    CPPUNIT_ASSERT(!state_->promise()->holds());
    state_->guard_until(BootClock::now() + 1h);
    CPPUNIT_ASSERT(state_->guarded() && state_->promise()->holds());
  }

  void distrusted() {
    make();
    state_->begin_tenure(view(), nullptr);
    state_->distrust();
    CPPUNIT_ASSERT(!state_->read()->known);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, generation());
    state_->publish(view(50 * M));
    CPPUNIT_ASSERT(!state_->read()->known);
    CPPUNIT_ASSERT(state_->read()->writable_now());
  }

  void snapshots_keep_their_promise() {
    options_.identity = "test-image-state";
    options_.writable = false;
    state_.emplace(traits_, options_, known_);
    View v = view();
    v.snap = 4;
    state_->publish(v);
    const auto before = generation();
    CPPUNIT_ASSERT(before != 0 && state_->read()->known);
    state_->guard_until(BootClock::now() - 1s);
    CPPUNIT_ASSERT(state_->promise()->holds());
    state_->end_promise();
    CPPUNIT_ASSERT_EQUAL(before, generation());
    // But for one that is deleted.
    state_->fail(Error(EIO, "deleted"));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, generation());
  }

  void gates() {
    WriteGate gate;
    const auto before = gate.seen();
    gate.change();
    gate.wait(before, [] { return false; });  // does not wait
    const auto now = gate.seen();
    gate.wait(now, [] { return true; });
    std::atomic<bool> enough{false};
    std::thread nudges([&] {
      std::this_thread::sleep_for(20ms);
      enough = true;
      gate.nudge();
    });
    gate.wait(now, [&] { return enough.load(); });
    nudges.join();
    std::thread refuses([&] {
      std::this_thread::sleep_for(20ms);
      gate.refuse(Error(EROFS, "kept"));
    });
    try {
      gate.wait(now, [] { return false; });
      CPPUNIT_FAIL("not refused");
    } catch (const Error& e) {
      CPPUNIT_ASSERT_EQUAL(EROFS, e.code());
    }
    refuses.join();
    // Who comes now is not refused for that.
    const auto later = gate.seen();
    gate.change();
    gate.wait(later, [] { return false; });
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(ImageStateTest);

}  // namespace
