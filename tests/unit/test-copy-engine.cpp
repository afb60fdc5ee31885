// SPDX-License-Identifier: BSD-3-Clause
//
// The engine of radoscopy, on endpoints that are late, that end operations in
// any order, and that fail.

#include <cppunit/TestFixture.h>
#include <cppunit/extensions/HelperMacros.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "copy/comparison.hpp"
#include "copy/engine.hpp"
#include "copy/file_descriptor.hpp"
#include "copy/file_endpoint.hpp"
#include "copy/offload.hpp"
#include "copy/rados_uri.hpp"
#include "copy/retrying_source.hpp"
#include "copy/stream_endpoint.hpp"
#include "copy/walk.hpp"
#include "rados/error.hpp"

// Not all of nbdrados, which has an Extent of its own.
using namespace nbdrados::copy;
using nbdrados::Error;
using nbdrados::error_text;
using nbdrados::ImageConfig;
using nbdrados::LockMode;

namespace {

enum class Op : std::uint8_t { read, write, zero, flush, extents };

/// A disk in memory.
class FakeDisk final : public Endpoint {
 public:
  explicit FakeDisk(std::vector<char> content, bool late = false)
      : content_(std::move(content)) {
    traits_.size = content_.size();
    traits_.writable = traits_.can_zero = traits_.can_trim = true;
    traits_.can_flush = true;
    traits_.has_extents = true;
    if (late) thread_ = std::thread([this] { work(); });
  }
  ~FakeDisk() override {
    {
      const std::scoped_lock lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    if (thread_.joinable()) thread_.join();
  }

  Traits traits_;
  std::vector<char> content_;
  std::map<Op, int> errors_;           // of that kind,
  std::map<Op, unsigned> fail_from_;   // from that one on, counted from 0
  std::map<Op, unsigned> fail_until_;  // before that one
  std::uint64_t answer_size_ = 1 << 20;  // bytes of an answer of block status
  std::optional<std::vector<Extent>> answer_;  // always this
  std::function<void()> on_start_;

  std::map<Op, unsigned> started_;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> zeroed_;
  std::atomic<std::uint64_t> written_{0};
  std::uint64_t under_way_ = 0, most_under_way_ = 0;
  std::uint64_t bytes_ = 0, most_bytes_ = 0;
  std::atomic<bool> may_trim_{false};
  bool unaligned_ = false;
  std::atomic<unsigned> after_error_{0};
  std::atomic<bool> failed_{false};

  [[nodiscard]] const Traits& traits() const noexcept override {
    return traits_;
  }
  void read(std::uint64_t offset, std::span<char> to, Done done) override {
    start(Op::read, offset, to.size(), std::move(done), [this, offset, to] {
      std::copy_n(content_.begin() + static_cast<std::ptrdiff_t>(offset),
                  to.size(), to.begin());
    });
  }
  void write(std::uint64_t offset, std::span<const char> from,
             Done done) override {
    start(Op::write, offset, from.size(), std::move(done),
          [this, offset, from] {
            written_ += from.size();
            std::copy(from.begin(), from.end(),
                      content_.begin() + static_cast<std::ptrdiff_t>(offset));
          });
  }
  void zero(std::uint64_t offset, std::uint64_t length, bool may_trim,
            Done done) override {
    may_trim_ = may_trim;
    start(Op::zero, offset, length, std::move(done), [this, offset, length] {
      {
        const std::scoped_lock lock(mutex_);
        zeroed_.emplace_back(offset, length);
      }
      std::fill_n(content_.begin() + static_cast<std::ptrdiff_t>(offset),
                  length, '\0');
    });
  }
  void flush(Done done) override {
    start(Op::flush, 0, 0, std::move(done), [] {});
  }
  void extents(std::uint64_t offset, std::uint64_t length,
               std::function<void(int, std::vector<Extent>)> done) override {
    auto found = std::make_shared<std::vector<Extent>>();
    start(Op::extents, offset, length,
          [found, done = std::move(done)](int error) {
            done(error, std::move(*found));
          },
          [this, offset, length, found] {
            *found = answer_ ? *answer_ : find(offset, length);
          });
  }

 private:
  struct Job {
    std::function<void()> body;
    Done done;
    int error = 0;
    std::uint64_t bytes = 0;
  };

  std::vector<Extent> find(std::uint64_t offset, std::uint64_t length) const {
    std::vector<Extent> found;
    const std::uint64_t end = offset + std::min(length, answer_size_);
    while (offset < end) {
      const bool zero = content_[offset] == 0;
      std::uint64_t n = 1;
      while (offset + n < end && (content_[offset + n] == 0) == zero) ++n;
      found.push_back({offset, n, zero, zero});
      offset += n;
    }
    return found;
  }

  void start(Op op, std::uint64_t offset, std::uint64_t length, Done done,
             std::function<void()> body) {
    Job job{std::move(body), std::move(done), 0, 0};
    {
      const std::scoped_lock lock(mutex_);
      if (failed_) ++after_error_;
      if (op != Op::extents && op != Op::flush) {
        job.bytes = op == Op::zero ? 0 : length;
        unaligned_ |= (offset % traits_.minimum != 0) ||
                      (length % traits_.minimum != 0) ||
                      offset + length > content_.size();
        most_under_way_ = std::max(most_under_way_, ++under_way_);
        most_bytes_ = std::max(most_bytes_, bytes_ += job.bytes);
      }
      const unsigned n = started_[op]++;
      if (const auto at = fail_from_.find(op);
          at != fail_from_.end() && n >= at->second &&
          (!fail_until_.contains(op) || n < fail_until_[op])) {
        job.error = errors_[op];
        failed_ = job.error != EOPNOTSUPP;
      }
      if (op == Op::extents || op == Op::flush) job.bytes = ~0ULL;
      if (thread_.joinable()) jobs_.push_back(std::move(job));
    }
    if (on_start_) on_start_();
    if (thread_.joinable())
      wake_.notify_all();
    else
      finish(job);
  }
  void finish(Job& job) {
    if (job.error == 0) job.body();
    if (job.bytes != ~0ULL) {
      const std::scoped_lock lock(mutex_);
      --under_way_;
      bytes_ -= job.bytes;
    }
    job.done(job.error);
  }
  /// Ends what is under way in any order.
  void work() {
    std::mt19937 random(1);
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      lock.unlock();
      if (random() % 8 == 0)
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      lock.lock();
      std::swap(jobs_[random() % jobs_.size()], jobs_.back());
      Job job = std::move(jobs_.back());
      jobs_.pop_back();
      lock.unlock();
      finish(job);
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Job> jobs_;
  bool stopping_ = false;
  std::thread thread_;
};

/// Random bytes, with holes of `hole` bytes on average.
std::vector<char> disk(std::size_t size, std::size_t hole = 10000) {
  std::mt19937 random(static_cast<unsigned>(size));
  std::vector<char> out(size);
  for (std::size_t at = 0; at < size;) {
    const std::size_t data = 1 + random() % 9000;
    for (std::size_t i = 0; i < data && at < size; ++i)
      out[at++] = static_cast<char>(1 + random() % 255);
    at += hole == 0 ? 0 : random() % (2 * hole);
  }
  return out;
}

EngineOptions small_options() {
  EngineOptions o;
  o.request_size = 8192;
  o.queue_size = 4 * 8192;
  o.requests = 7;
  return o;
}

/// The message of an error; "none".
template <class Body>
std::string failure(Body&& body, int code) {
  try {
    body();
  } catch (const Error& e) {
    CPPUNIT_ASSERT_EQUAL_MESSAGE(e.what(), code, e.code());
    return e.what();
  }
  return "none";
}

/// Moves of data, as a relay makes them.
auto mover(FakeDisk& from, FakeDisk& to) {
  return [&from, &to](std::uint64_t offset, std::uint32_t length,
                      MoveDone done) {
    auto memory = std::make_shared<std::vector<char>>(length);
    from.read(offset, *memory, [=, &to](int error) {
      if (error != 0) return done(error, true);
      to.write(offset, *memory,
               [memory, done](int failed) { done(failed, false); });
    });
  };
}

/// What copies whole units between two disks.
class FakeOffload final : public Offload {
 public:
  FakeOffload(FakeDisk& from, FakeDisk& to, std::uint64_t unit)
      : from_(from), to_(to), unit_(unit) {}

  std::function<bool(std::span<const Piece>)> suits_ = [](auto) {
    return true;
  };
  std::function<int(std::uint64_t offset)> error_ = [](auto) { return 0; };
  std::map<std::uint64_t, std::uint64_t> copied_;  // length by offset

  [[nodiscard]] std::uint64_t unit() const noexcept override { return unit_; }
  bool suits(std::span<const Piece> parts) override {
    // All of a unit, with something in it.
    std::uint64_t at = parts.front().offset;
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, at % unit_);
    bool data = false;
    for (const Piece& p : parts) {
      CPPUNIT_ASSERT_EQUAL(at, p.offset);
      at += p.length;
      data |= !p.is_zero;
    }
    CPPUNIT_ASSERT(data);
    CPPUNIT_ASSERT_EQUAL(
        std::min(parts.front().offset + unit_, from_.traits_.size), at);
    return suits_(parts);
  }
  void copy(std::uint64_t offset, std::uint64_t length, Done done) override {
    if (const int error = error_(offset); error != 0) return done(error);
    copied_[offset] = length;
    auto memory = std::make_shared<std::vector<char>>(length);
    from_.read(offset, *memory, [=, this](int error) {
      if (error != 0) return done(error);
      to_.write(offset, *memory, [memory, done](int e) { done(e); });
    });
  }
  std::string explain(int error) const override { return error_text(error); }

 private:
  FakeDisk& from_;
  FakeDisk& to_;
  const std::uint64_t unit_;
};

void copy_disk(FakeDisk& from, FakeDisk& to, const EngineOptions& options) {
  Engine engine(from, "A", to, "B", options);
  engine.run();
  CPPUNIT_ASSERT_EQUAL(std::uint64_t{from.content_.size()},
                       engine.counts().done());
}

void check_same(const FakeDisk& from, const FakeDisk& to) {
  CPPUNIT_ASSERT(!from.unaligned_);
  CPPUNIT_ASSERT(!to.unaligned_);
  CPPUNIT_ASSERT(std::equal(from.content_.begin(), from.content_.end(),
                            to.content_.begin()));
}

class CopyEngineTest : public CPPUNIT_NS::TestFixture {
  CPPUNIT_TEST_SUITE(CopyEngineTest);
  CPPUNIT_TEST(sizes);
  CPPUNIT_TEST(blocks);
  CPPUNIT_TEST(zeros);
  CPPUNIT_TEST(zeros_of_some_ranges);
  CPPUNIT_TEST(sparse_payload);
  CPPUNIT_TEST(errors);
  CPPUNIT_TEST(bounds);
  CPPUNIT_TEST(too_small);
  CPPUNIT_TEST(stopped);
  CPPUNIT_TEST(moves);
  CPPUNIT_TEST(errors_of_moves);
  CPPUNIT_TEST(offloads);
  CPPUNIT_TEST(offloads_that_fail);
  CPPUNIT_TEST(rate_of_offloads);
  CPPUNIT_TEST(rate);
  CPPUNIT_TEST(requests_a_second);
  CPPUNIT_TEST(checksums);
  CPPUNIT_TEST(ranges);
  CPPUNIT_TEST(bad_ranges);
  CPPUNIT_TEST(wrong_answers);
  CPPUNIT_TEST(huge);
  CPPUNIT_TEST(pieces);
  CPPUNIT_TEST(odd_end);
  CPPUNIT_TEST(comparisons);
  CPPUNIT_TEST(lost_connections);
  CPPUNIT_TEST(lost_for_good);
  CPPUNIT_TEST(streams);
  CPPUNIT_TEST(broken_stream);
  CPPUNIT_TEST(stalled_stream);
  CPPUNIT_TEST(shorter_file);
  CPPUNIT_TEST(uris);
  CPPUNIT_TEST_SUITE_END();

  void sizes() {
    for (const std::size_t size : {0, 1, 511, 512, 4097, 8192, 8193, 300001})
      for (const bool late : {false, true})
        for (const bool extents : {false, true})
          for (const std::uint64_t sparse : {0, 512, 4096}) {
            FakeDisk from(disk(size), late);
            FakeDisk to(disk(size + 1000, 0), late);
            EngineOptions o = small_options();
            o.use_extents = extents;
            o.sparse = sparse;
            o.flush = true;
            copy_disk(from, to, o);
            check_same(from, to);
            CPPUNIT_ASSERT_EQUAL(1U, to.started_[Op::flush]);
            const auto rest = disk(size + 1000, 0);
            CPPUNIT_ASSERT(std::equal(
                to.content_.begin() + static_cast<std::ptrdiff_t>(size),
                to.content_.end(),
                rest.begin() + static_cast<std::ptrdiff_t>(size)));
          }
  }

  // Requests are multiples of what each side wants, and what is in the
  // destination's last block behind the source's end stays.
  void blocks() {
    for (const std::uint32_t block : {512, 4096, 16384})
      for (const std::size_t size : {100, 512, 20480, 100300}) {
        FakeDisk from(disk(size), true);
        FakeDisk to(disk((size + 65535) / 65536 * 65536, 0), true);
        to.traits_.minimum = block;
        const auto before = to.content_;
        copy_disk(from, to, small_options());
        check_same(from, to);
        CPPUNIT_ASSERT(std::equal(
            before.begin() + static_cast<std::ptrdiff_t>(size), before.end(),
            to.content_.begin() + static_cast<std::ptrdiff_t>(size)));
      }
    FakeDisk from(disk(65536));
    from.traits_.minimum = 4096;
    FakeDisk to(disk(65536, 0));
    copy_disk(from, to, small_options());
    check_same(from, to);
  }

  void zeros() {
    const auto with_hole = [] {
      std::vector<char> content(100000, 'x');
      std::fill_n(content.begin() + 20480, 40960, '\0');
      return content;
    };
    // The destination makes them,
    FakeDisk from(with_hole());
    FakeDisk to(disk(100000, 0));
    copy_disk(from, to, small_options());
    check_same(from, to);
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, to.zeroed_.size());
    CPPUNIT_ASSERT(to.zeroed_[0] == std::make_pair(std::uint64_t{20480},
                                                   std::uint64_t{40960}));
    CPPUNIT_ASSERT(to.may_trim_);
    // must keep them allocated,
    EngineOptions allocated = small_options();
    allocated.allocated = true;
    FakeDisk allocating(disk(100000, 0));
    copy_disk(from, allocating, allocated);
    check_same(from, allocating);
    CPPUNIT_ASSERT(!allocating.may_trim_);
    // has them,
    FakeDisk empty(std::vector<char>(100000));
    empty.traits_.reads_as_zeros = true;
    copy_disk(from, empty, small_options());
    check_same(from, empty);
    CPPUNIT_ASSERT(empty.zeroed_.empty());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{59040}, empty.written_.load());
    FakeDisk said(std::vector<char>(100000));
    EngineOptions is_zero = small_options();
    is_zero.destination_is_zero = true;
    copy_disk(from, said, is_zero);
    CPPUNIT_ASSERT(said.zeroed_.empty());
    // cannot make any, and says so at once or late.
    for (const bool at_once : {true, false})
      for (const bool late : {true, false}) {
        FakeDisk unable(disk(100000, 0), late);
        unable.traits_.can_zero = !at_once;
        unable.errors_[Op::zero] = EOPNOTSUPP;
        unable.fail_from_[Op::zero] = 0;
        copy_disk(from, unable, small_options());
        check_same(from, unable);
        CPPUNIT_ASSERT_EQUAL(std::uint64_t{100000}, unable.written_.load());
      }
  }

  // A range that cannot be zeroed says nothing of the others.
  void zeros_of_some_ranges() {
    for (const bool late : {false, true})
      for (const bool extents : {false, true}) {
        FakeDisk from(disk(300000), late);
        FakeDisk to(disk(300000, 0), late);
        to.errors_[Op::zero] = EOPNOTSUPP;
        to.fail_from_[Op::zero] = 2;
        to.fail_until_[Op::zero] = 4;
        EngineOptions o = small_options();
        o.use_extents = extents;
        o.sparse = 512;
        copy_disk(from, to, o);
        check_same(from, to);
        CPPUNIT_ASSERT(to.started_[Op::zero] > 10);
        CPPUNIT_ASSERT_EQUAL(std::size_t{to.started_[Op::zero]},
                             to.zeroed_.size() + 2);
      }
  }

  // Without block status, zeros are found, but not in blocks that are smaller
  // than was asked for.
  void sparse_payload() {
    std::vector<char> content(65536, 'x');
    std::fill_n(content.begin() + 4096, 8192, '\0');
    std::fill_n(content.begin() + 30000, 4095, '\0');
    for (const std::uint64_t sparse : {0, 512, 4096}) {
      FakeDisk from(content);
      FakeDisk to(std::vector<char>(65536));
      to.traits_.reads_as_zeros = true;
      EngineOptions o = small_options();
      o.use_extents = false;
      o.sparse = sparse;
      copy_disk(from, to, o);
      check_same(from, to);
      const std::uint64_t left_out = sparse == 0      ? 0
                                     : sparse == 4096 ? 8192
                                                      : 8192 + 7 * 512;
      CPPUNIT_ASSERT_EQUAL(65536 - left_out, to.written_.load());
    }
  }

  // In the middle: one line that says where, and nothing is begun afterwards.
  void errors() {
    struct Case {
      bool source;
      Op op;
      unsigned from;
      const char* text;
    };
    const Case cases[] = {
        {true, Op::read, 3, "A: read at "},
        {true, Op::extents, 2, "A: block status at "},
        {false, Op::write, 3, "B: write at "},
        {false, Op::zero, 1, "B: zero at "},
        {false, Op::flush, 0, "B: flush: "},
    };
    for (const Case& c : cases)
      for (const bool late : {false, true}) {
        FakeDisk from(disk(300000), late);
        from.answer_size_ = 50000;
        FakeDisk to(disk(300000, 0), late);
        FakeDisk& bad = c.source ? from : to;
        bad.errors_[c.op] = ENOSPC;
        bad.fail_from_[c.op] = c.from;
        EngineOptions o = small_options();
        o.flush = true;
        Engine engine(from, "A", to, "B", o);
        const std::string text =
            failure([&] { engine.run(); }, ENOSPC);
        CPPUNIT_ASSERT_MESSAGE(text, text.starts_with(c.text));
        CPPUNIT_ASSERT_MESSAGE(
            text, text.ends_with(": No space left on device"));
        CPPUNIT_ASSERT_MESSAGE(
            text, c.op == Op::flush || to.started_[Op::flush] == 0);
        // Block status is asked for before it is needed.
        if (!late && c.op != Op::extents)
          CPPUNIT_ASSERT_EQUAL(0U, bad.after_error_.load());
      }
    FakeDisk from(std::vector<char>(100000, 'x'));
    FakeDisk to(std::vector<char>(100000));
    to.errors_[Op::write] = EIO;
    to.fail_from_[Op::write] = 2;
    Engine engine(from, "A", to, "B", small_options());
    CPPUNIT_ASSERT_EQUAL("B: write at 16384+8192: " + error_text(EIO),
                         failure([&] { engine.run(); }, EIO));
  }

  void bounds() {
    FakeDisk from(disk(3000000, 100), true);
    FakeDisk to(disk(3000000, 0), true);
    EngineOptions o = small_options();
    copy_disk(from, to, o);
    check_same(from, to);
    CPPUNIT_ASSERT(from.most_under_way_ <= 4);
    CPPUNIT_ASSERT(from.most_bytes_ <= o.queue_size);
    CPPUNIT_ASSERT(from.most_under_way_ > 1);
    o.requests = 3;
    FakeDisk few(disk(3000000, 0), true);
    FakeDisk again(disk(3000000, 100), true);
    copy_disk(again, few, o);
    CPPUNIT_ASSERT(again.most_under_way_ <= 3);
    // Scattered data does not wait for large buffers.
    o.requests = 64;
    o.request_size = o.queue_size = 1 << 20;
    FakeDisk scattered(disk(3000000), true);
    FakeDisk target(disk(3000000, 0), true);
    copy_disk(scattered, target, o);
    check_same(scattered, target);
    CPPUNIT_ASSERT(scattered.most_under_way_ > 4);
    CPPUNIT_ASSERT(scattered.most_bytes_ <= (1 << 20) + 64 * 65536);
  }

  void too_small() {
    FakeDisk from(disk(1000));
    FakeDisk to(disk(999, 0));
    Engine engine(from, "A", to, "B", small_options());
    CPPUNIT_ASSERT_EQUAL(std::string("B: destination size 999 is smaller than "
                                     "source size 1000"),
                         failure([&] { engine.run(); }, ENOSPC));
    FakeDisk read_only(disk(1000));
    read_only.traits_.writable = false;
    Engine other(from, "A", read_only, "B", small_options());
    CPPUNIT_ASSERT(failure([&] { other.run(); }, EROFS).starts_with("B: "));
    CPPUNIT_ASSERT(to.started_.empty() && read_only.started_.empty());
  }

  void stopped() {
    for (const bool late : {false, true}) {
      FakeDisk from(disk(3000000), late);
      FakeDisk to(disk(3000000, 0), late);
      Engine engine(from, "A", to, "B", small_options());
      std::atomic<unsigned> count{0};
      to.on_start_ = [&] {
        if (++count == 20) engine.stop();
      };
      CPPUNIT_ASSERT_EQUAL(std::string("stopped"),
                           failure([&] { engine.run(); }, ECANCELED));
      CPPUNIT_ASSERT(engine.counts().done() < 1500000);
    }
  }

  // The payload is not looked at, zeros that are known are zeroed, also by a
  // destination that cannot.
  void moves() {
    for (const bool late : {false, true})
      for (const int zero : {0, 1, 2}) {
        // The source, whose thread calls the other one, goes first.
        FakeDisk to(disk(300032, 0), late);
        FakeDisk from(disk(300032), late);
        to.traits_.can_zero = zero != 0;
        if (zero == 2) {
          to.errors_[Op::zero] = EOPNOTSUPP;
          to.fail_from_[Op::zero] = 2;
        }
        to.traits_.minimum = 512;
        to.traits_.maximum = 8192;
        EngineOptions o = small_options();
        o.move = mover(from, to);
        copy_disk(from, to, o);
        CPPUNIT_ASSERT(from.content_ == to.content_);
        CPPUNIT_ASSERT(!to.unaligned_);
        CPPUNIT_ASSERT_EQUAL(zero == 0, to.zeroed_.empty());
        CPPUNIT_ASSERT(to.most_bytes_ <= o.queue_size + 64 * 8192);
      }
    FakeDisk from(std::vector<char>(100000)), to(disk(100000, 0));
    EngineOptions o = small_options();
    o.use_extents = false;
    o.move = mover(from, to);
    copy_disk(from, to, o);
    check_same(from, to);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{100000}, to.written_.load());
  }

  void offloads() {
    // Units that are larger than requests, smaller, and no multiple of them.
    for (const std::uint64_t unit : {4096, 8192, 24000, 32768})
      for (const bool late : {false, true})
        for (const bool some : {false, true}) {
          // The source, whose thread calls the other one, goes first.
          FakeDisk to(disk(300001, 3), late), from(disk(300001), late);
          FakeOffload offload(from, to, unit);
          if (some)
            offload.suits_ = [unit](std::span<const Piece> parts) {
              return parts.front().offset / unit % 2 == 0;
            };
          EngineOptions o = small_options();
          o.offload = &offload;
          Engine engine(from, "A", to, "B", o);
          engine.run();
          check_same(from, to);
          const Counts& counts = engine.counts();
          CPPUNIT_ASSERT_EQUAL(std::uint64_t{300001}, counts.done());
          std::uint64_t sum = 0;
          for (const auto& [at, n] : offload.copied_) sum += n;
          CPPUNIT_ASSERT_EQUAL(sum, counts.offloaded.load());
          CPPUNIT_ASSERT(sum > 0);
          CPPUNIT_ASSERT_EQUAL(some, counts.copied != 0);
        }
  }

  /// Then all is read and written, or it is an error.
  void offloads_that_fail() {
    for (const bool late : {false, true}) {
      FakeDisk to(disk(300001, 3), late), from(disk(300001), late);
      FakeOffload offload(from, to, 16384);
      offload.error_ = [](std::uint64_t at) {
        return at % 32768 == 0 ? EPERM : 0;
      };
      EngineOptions o = small_options();
      o.offload = &offload;
      copy_disk(from, to, o);
      check_same(from, to);
      CPPUNIT_ASSERT(!offload.copied_.empty());

      o.must_offload = true;
      o.requests = 1;
      Engine strict(from, "A", to, "B", o);
      CPPUNIT_ASSERT_EQUAL(
          "B: offload at 0+16384: " + error_text(EPERM),
          failure([&] { strict.run(); }, EPERM));

      // The error of a side is that of the side.
      from.errors_[Op::read] = EIO;
      from.fail_from_[Op::read] = 0;
      o.must_offload = false;
      offload.error_ = [](std::uint64_t) { return EIO; };
      Engine broken(from, "A", to, "B", o);
      CPPUNIT_ASSERT_EQUAL(
          std::size_t{0},
          failure([&] { broken.run(); }, EIO).find("A: read at "));
    }
  }

  void rate_of_offloads() {
    FakeDisk from(std::vector<char>(100000, 'x')), to(disk(100000, 0));
    FakeOffload offload(from, to, 10000);
    EngineOptions o = small_options();
    o.offload = &offload;
    o.rate = 500000;
    const auto begin = std::chrono::steady_clock::now();
    copy_disk(from, to, o);
    CPPUNIT_ASSERT(std::chrono::steady_clock::now() - begin >=
                   std::chrono::milliseconds(170));
    CPPUNIT_ASSERT_EQUAL(std::size_t{10}, offload.copied_.size());
  }

  void errors_of_moves() {
    for (const bool late : {false, true})
      for (const bool source : {false, true}) {
        FakeDisk to(std::vector<char>(100000), late);
        FakeDisk from(std::vector<char>(100000, 'x'), late);
        FakeDisk& bad = source ? from : to;
        const Op op = source ? Op::read : Op::write;
        bad.errors_[op] = EIO;
        bad.fail_from_[op] = 2;
        EngineOptions o = small_options();
        o.requests = 1;
        o.move = mover(from, to);
        Engine engine(from, "A", to, "B", o);
        CPPUNIT_ASSERT_EQUAL(
            std::string(source ? "A: read" : "B: write") +
                " at 16384+8192: " + error_text(EIO),
            failure([&] { engine.run(); }, EIO));
      }
  }

  void rate() {
    FakeDisk from(std::vector<char>(100000, 'x'));
    FakeDisk to(std::vector<char>(100000));
    EngineOptions o = small_options();
    o.rate = 500000;
    const auto begin = std::chrono::steady_clock::now();
    copy_disk(from, to, o);
    const auto took = std::chrono::steady_clock::now() - begin;
    // The last request is not waited for.
    CPPUNIT_ASSERT(took >= std::chrono::milliseconds(180));
    check_same(from, to);
  }

  void requests_a_second() {
    // Each piece of 8192 bytes becomes four requests to the destination.
    std::vector<char> content(81920, 'x');
    for (std::size_t at = 0; at < content.size(); at += 4096)
      std::fill_n(content.begin() + static_cast<std::ptrdiff_t>(at), 2048,
                  '\0');
    FakeDisk from(content);
    FakeDisk to(disk(81920, 0));
    EngineOptions o = small_options();
    o.use_extents = false;
    o.sparse = 2048;
    o.iops = 200;
    const auto begin = std::chrono::steady_clock::now();
    copy_disk(from, to, o);
    const auto took = std::chrono::steady_clock::now() - begin;
    check_same(from, to);
    CPPUNIT_ASSERT_EQUAL(40U, to.started_[Op::write] + to.started_[Op::zero]);
    // The last four are not waited for.
    CPPUNIT_ASSERT(took >= std::chrono::milliseconds(175));
  }

  // Whatever way the data goes, all of it is seen.
  void checksums() {
    for (const std::size_t size : {0, 1, 65536, 300001, 3000001})
      for (const bool late : {false, true})
        for (const int kind : {0, 1, 2, 3}) {
          FakeDisk from(disk(size, 50000), late);
          FakeDisk to(std::vector<char>((size + 511) / 512 * 512), late);
          EngineOptions o = small_options();
          o.use_extents = kind != 1;
          to.traits_.reads_as_zeros = kind == 2;
          to.traits_.minimum = kind == 3 ? 512 : 1;
          if (size == 300001) o.requests = 1;
          Checksum whole({"sha256"}, true);
          whole.data(0, from.content_);
          Checksum seen({"sha256"}, size == 300001);
          o.checksum = &seen;
          copy_disk(from, to, o);
          check_same(from, to);
          const auto wanted = whole.finish(size);
          const auto found = seen.finish(size);
          for (std::size_t i = 0; i < found.size(); ++i)
            CPPUNIT_ASSERT_EQUAL(wanted[i].hex, found[i].hex);
        }
  }

  void ranges() {
    const std::vector<Range> ranges = {{5000, 100000, 20000},
                                       {0, 0, 1},
                                       {5000, 70000, 20001},
                                       {300000, 1, 1}};
    const std::vector<Range> aligned = {{5120, 102400, 20480},
                                        {5120, 0, 512}};
    for (const bool late : {false, true})
      for (const bool extents : {false, true})
        for (const std::uint32_t block : {1, 512}) {
          FakeDisk from(disk(300032), late);
          FakeDisk to(disk(150016, 0), late);
          to.traits_.minimum = block;
          EngineOptions o = small_options();
          o.use_extents = extents;
          o.ranges = block == 1 ? &ranges : &aligned;
          auto wanted = to.content_;
          std::uint64_t all = 0;
          for (const Range& r : *o.ranges) {
            std::copy_n(
                from.content_.begin() + static_cast<std::ptrdiff_t>(r.source),
                r.length,
                wanted.begin() + static_cast<std::ptrdiff_t>(r.destination));
            all += r.length;
          }
          Engine engine(from, "A", to, "B", o);
          engine.run();
          CPPUNIT_ASSERT(wanted == to.content_);
          CPPUNIT_ASSERT(!to.unaligned_);
          CPPUNIT_ASSERT_EQUAL(all, engine.size());
          CPPUNIT_ASSERT_EQUAL(all, engine.counts().done());
          // Compared likewise: only what was copied is looked at.
          from.content_[1] ^= 1;
          to.content_[50000] ^= 1;
          Engine* comparing = nullptr;
          Comparison comparison(to, [&] { comparing->end_early(); });
          o.sparse = 0;
          o.most_zeros = o.request_size;
          Engine again(from, "A", comparison, "B", o);
          comparing = &again;
          again.run();
          CPPUNIT_ASSERT(!comparison.difference());
        }
    // Block status is asked for where that is worth it, and errors name the
    // side's own place.
    FakeDisk from(disk(3000000));
    FakeDisk to(disk(3000000, 0));
    const std::vector<Range> large = {{0, 0, 1000}, {1000, 2000, 2000000}};
    EngineOptions o = small_options();
    o.ranges = &large;
    Engine engine(from, "A", to, "B", o);
    engine.run();
    CPPUNIT_ASSERT(from.started_[Op::extents] >= 2);
    CPPUNIT_ASSERT(std::equal(from.content_.begin() + 1000,
                              from.content_.begin() + 2001000,
                              to.content_.begin() + 2000));
    to.errors_[Op::write] = EIO;
    to.fail_from_[Op::write] = 0;
    const std::vector<Range> one = {{0, 500000, 1000}};
    o.ranges = &one;
    from.content_.assign(3000000, 'x');
    Engine failing(from, "A", to, "B", o);
    CPPUNIT_ASSERT_EQUAL("B: write at 500000+1000: " + error_text(EIO),
                         failure([&] { failing.run(); }, EIO));
  }

  // Before anything is written.
  void bad_ranges() {
    const std::pair<Range, const char*> cases[] = {
        {{100, 0, 901}, "A: the range 100+901 ends behind its size, 1000"},
        {{1001, 0, 1}, "A: the range 1001+1 ends behind its size, 1000"},
        {{0, 500, 13}, "B: the range 500+13 ends behind its size, 512"}};
    for (const auto& [range, text] : cases) {
      FakeDisk from(disk(1000));
      FakeDisk to(disk(512, 0));
      const std::vector<Range> ranges = {{0, 0, 1}, range};
      EngineOptions o = small_options();
      o.ranges = &ranges;
      Engine engine(from, "A", to, "B", o);
      CPPUNIT_ASSERT_EQUAL(std::string(text),
                           failure([&] { engine.run(); }, EINVAL));
      to.traits_.minimum = 512;
      Engine blocks(from, "A", to, "B", o);
      CPPUNIT_ASSERT_EQUAL(
          std::string("A: the range 0+1 is not in blocks of 512 bytes"),
          failure([&] { blocks.run(); }, EINVAL));
      CPPUNIT_ASSERT(from.started_.empty() && to.started_.empty());
    }
  }

  // Block status of servers that do not know what they say.
  void wrong_answers() {
    const std::vector<std::vector<Extent>> answers = {
        {},
        {{0, 0, false, false}},
        {{1, 999, false, false}},
        {{0, 500, false, false}, {501, 499, true, true}},
        {{0, 500, false, false}, {400, 600, true, true}},
        {{0, ~0ULL - 5, false, false}, {~0ULL - 5, 6, true, true}},
    };
    for (const auto& answer : answers) {
      FakeDisk from(disk(1000));
      from.answer_ = answer;
      FakeDisk to(disk(1000, 0));
      Engine engine(from, "A", to, "B", small_options());
      const std::string text = failure([&] { engine.run(); }, EIO);
      const bool behind_the_end = answer.size() == 2 && answer[0].length > 1000;
      CPPUNIT_ASSERT(behind_the_end ||
                     text.starts_with("A: block status at "));
    }
    // One that tells more than was asked for is right.
    FakeDisk from(disk(1000));
    from.answer_ = {{0, 5000, false, false}};
    FakeDisk to(disk(1000, 0));
    copy_disk(from, to, small_options());
    check_same(from, to);
  }

  // The memory for a map does not follow the size.
  void huge() {
    class Hole final : public Endpoint {
     public:
      Hole() {
        traits_.size = std::uint64_t{16} << 40;
        traits_.has_extents = traits_.writable = true;
        traits_.reads_as_zeros = true;
      }
      Traits traits_;
      unsigned asked_ = 0;
      [[nodiscard]] const Traits& traits() const noexcept override {
        return traits_;
      }
      void read(std::uint64_t, std::span<char>, Done done) override {
        done(EIO);
      }
      void write(std::uint64_t, std::span<const char>, Done done) override {
        done(EIO);
      }
      void zero(std::uint64_t, std::uint64_t, bool, Done done) override {
        done(EIO);
      }
      void flush(Done done) override { done(EIO); }
      void extents(
          std::uint64_t offset, std::uint64_t length,
          std::function<void(int, std::vector<Extent>)> done) override {
        ++asked_;
        done(0, {{offset, std::min<std::uint64_t>(length, 1 << 30), true,
                  true}});
      }
    };
    Hole from, to;
    Engine engine(from, "A", to, "B", {});
    engine.run();
    CPPUNIT_ASSERT_EQUAL(16384U, from.asked_);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{16} << 40,
                         engine.counts().skipped.load());
  }

  // How extents become pieces.
  void pieces() {
    std::vector<char> content(50000);
    const auto put = [&](std::size_t offset, std::size_t length) {
      std::fill_n(content.begin() + static_cast<std::ptrdiff_t>(offset),
                  length, 'x');
    };
    put(1000, 100);
    put(9000, 9000);
    put(18200, 100);  // behind a hole that is too small to count
    put(49999, 1);
    FakeDisk source(content);
    source.answer_size_ = 700;
    WalkOptions o;
    o.end = content.size();
    o.alignment = 512;
    o.most_data = 8192;
    o.most_zeros = 16384;
    o.least_zeros = 512;
    Walk walk(source, o);
    std::vector<Piece> got;
    while (const auto piece = walk.next()) got.push_back(*piece);
    const std::vector<Piece> wanted = {
        {0, 512, true},         {512, 1024, false},   {1536, 7168, true},
        {8704, 7680, false},    {16384, 2048, false}, {18432, 14336, true},
        {32768, 16384, true},   {49152, 512, true},   {49664, 336, false}};
    // Answers that end anywhere cut more, but no byte is missing or wrong.
    std::uint64_t at = 0;
    for (const Piece& p : got) {
      CPPUNIT_ASSERT_EQUAL(at, p.offset);
      at += p.length;
      CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, p.offset % 512);
      if (p.is_zero)
        CPPUNIT_ASSERT(std::all_of(
            content.begin() + static_cast<std::ptrdiff_t>(p.offset),
            content.begin() + static_cast<std::ptrdiff_t>(at),
            [](char c) { return c == 0; }));
    }
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{50000}, at);
    source.answer_size_ = 1 << 20;
    Walk whole(source, o);
    got.clear();
    while (const auto piece = whole.next()) got.push_back(*piece);
    std::string text;
    for (const Piece& p : got)
      text += std::to_string(p.offset) + "+" + std::to_string(p.length) +
              (p.is_zero ? "z " : " ");
    CPPUNIT_ASSERT_MESSAGE(text, wanted == got);
  }

  // A disk whose size is not in its own blocks: nothing else is asked for.
  void odd_end() {
    class Blocks final : public Endpoint {
     public:
      explicit Blocks(FakeDisk& disk) : disk_(disk) {}
      [[nodiscard]] const Traits& traits() const noexcept override {
        return disk_.traits();
      }
      void read(std::uint64_t offset, std::span<char> to, Done done) override {
        disk_.read(offset, to, std::move(done));
      }
      void write(std::uint64_t, std::span<const char>, Done) override {}
      void zero(std::uint64_t, std::uint64_t, bool, Done) override {}
      void flush(Done) override {}
      void extents(
          std::uint64_t offset, std::uint64_t length,
          std::function<void(int, std::vector<Extent>)> done) override {
        CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, offset % 512);
        CPPUNIT_ASSERT_EQUAL(std::uint64_t{0}, length % 512);
        disk_.extents(offset, length, std::move(done));
      }
      FakeDisk& disk_;
    };
    for (const std::size_t size : {0, 1, 511, 512, 100001})
      for (const std::uint32_t block : {1, 512}) {
        FakeDisk content(disk(size));
        content.traits_.minimum = 512;
        content.answer_size_ = 5120;
        Blocks from(content);
        FakeDisk to(disk(size + 512, 0));
        to.traits_.minimum = block;
        Engine engine(from, "A", to, "B", small_options());
        engine.run();
        CPPUNIT_ASSERT(std::equal(content.content_.begin(),
                                  content.content_.end(),
                                  to.content_.begin()));
      }
  }

  // The first byte that differs is found, in data and in holes, and nothing is
  // written.
  void comparisons() {
    for (const std::size_t at : {0, 5000, 123456, 300000})
      for (const bool late : {false, true})
        for (const std::uint32_t block : {1, 512}) {
          FakeDisk from(disk(300001), late);
          FakeDisk to(from.content_, late);
          to.content_.resize(300544);
          to.traits_.size = to.content_.size();
          to.traits_.minimum = block;
          Engine* engine = nullptr;
          Comparison comparison(to, [&engine] { engine->end_early(); });
          EngineOptions o = small_options();
          o.sparse = 0;
          o.most_zeros = o.request_size;
          const auto compare = [&] {
            Engine e(from, "A", comparison, "B", o);
            engine = &e;
            e.run();
            return comparison.difference();
          };
          CPPUNIT_ASSERT(!compare());
          to.content_[at] ^= 1;
          to.content_[300000] ^= 1;
          if (at == 300000) to.content_[at] ^= 1;  // once only
          CPPUNIT_ASSERT_EQUAL(std::uint64_t{at}, compare().value());
          CPPUNIT_ASSERT_EQUAL(0U, to.started_[Op::write]);
          CPPUNIT_ASSERT(!to.unaligned_);
        }
  }

  /// A source that loses its connection, and what it has at each time; null: it
  /// cannot be connected to.
  static std::unique_ptr<Endpoint> next_of(
      std::vector<std::unique_ptr<FakeDisk>>& disks) {
    std::unique_ptr<FakeDisk> next = std::move(disks.front());
    disks.erase(disks.begin());
    if (!next) throw Error(ECONNREFUSED, "refused");
    return next;
  }
  static std::unique_ptr<FakeDisk> losing(std::size_t size, bool late, Op op,
                                          unsigned from) {
    auto made = std::make_unique<FakeDisk>(disk(size), late);
    made->answer_size_ = 20000;
    made->errors_[op] = late ? ECONNRESET : EPIPE;
    if (from != 0) made->fail_from_[op] = from - 1;
    return made;
  }
  static RetryingSource::Options retries(unsigned n) {
    RetryingSource::Options o;
    o.retries = n;
    o.pause = std::chrono::milliseconds(1);
    return o;
  }

  void lost_connections() {
    for (const bool late : {false, true})
      for (const Op op : {Op::read, Op::extents}) {
        std::vector<std::unique_ptr<FakeDisk>> disks;
        for (const unsigned from : {1, 3, 1, 0})
          disks.push_back(losing(300001, late, op, from));
        disks.insert(disks.begin() + 1, nullptr);
        auto first = next_of(disks);
        RetryingSource source(std::move(first),
                              [&] { return next_of(disks); }, retries(3));
        FakeDisk to(disk(300001, 0), late);
        Engine engine(source, "A", to, "B", small_options());
        engine.run();
        CPPUNIT_ASSERT(disks.empty());
        CPPUNIT_ASSERT(to.content_ == disk(300001));
      }
  }

  void lost_for_good() {
    // Too often; another disk; an error that is the server's; cancelled.
    for (const int kind : {0, 1, 2, 3})
      for (const bool late : {false, true}) {
        std::vector<std::unique_ptr<FakeDisk>> disks;
        disks.push_back(losing(300001, late, Op::read, 5));
        if (kind == 2) disks.back()->errors_[Op::read] = EIO;
        for (int i = 0; i < 100; ++i)
          disks.push_back(kind == 1 ? losing(300002, late, Op::read, 0)
                                    : nullptr);
        auto first = next_of(disks);
        RetryingSource source(std::move(first),
                              [&] { return next_of(disks); },
                              retries(kind == 3 ? 1000 : 2));
        FakeDisk to(disk(300001, 0), late);
        Engine engine(source, "A", to, "B", small_options());
        std::thread other([&] {
          if (kind != 3) return;
          std::this_thread::sleep_for(std::chrono::milliseconds(20));
          engine.stop();
        });
        const int code = kind == 2 ? EIO : kind == 3 ? ECANCELED : ECONNRESET;
        const std::string text = failure([&] { engine.run(); }, code);
        other.join();
        const char* const wanted[] = {"(refused)", "another disk", "A: read",
                                      "stopped"};
        CPPUNIT_ASSERT_MESSAGE(text,
                               text.find(wanted[kind]) != std::string::npos);
        CPPUNIT_ASSERT_EQUAL(kind == 2, disks.size() == 100);
      }
  }

  static std::vector<char> read_all(int fd) {
    std::vector<char> out;
    char part[5000];
    for (ssize_t n; (n = ::read(fd, part, sizeof part)) > 0;)
      out.insert(out.end(), part, part + n);
    return out;
  }

  // From a pipe, and to one though reads end in any order.
  void streams() {
    for (const std::size_t size : {0, 1, 511, 4097, 300001}) {
      FakeDisk from(disk(size), true);
      int ends[2];
      CPPUNIT_ASSERT_EQUAL(0, ::pipe(ends));
      std::vector<char> got;
      std::thread reader([&] { got = read_all(ends[0]); });
      {
        StreamEndpoint to(FileDescriptor(ends[1]), true);
        Engine engine(from, "A", to, "-", small_options());
        engine.run();
      }
      reader.join();
      ::close(ends[0]);
      CPPUNIT_ASSERT(got == from.content_);

      CPPUNIT_ASSERT_EQUAL(0, ::pipe(ends));
      std::thread writer([&] {
        for (std::size_t at = 0; at < got.size();)
          at += static_cast<std::size_t>(
              ::write(ends[1], got.data() + at,
                      std::min<std::size_t>(got.size() - at, 7777)));
        ::close(ends[1]);
      });
      {
        StreamEndpoint source{FileDescriptor(ends[0]), false};
        FakeDisk to(disk((size + 511) / 512 * 512, 0), true);
        to.traits_.minimum = 512;
        Engine engine(source, "-", to, "B", small_options());
        engine.run();
        check_same(from, to);
      }
      writer.join();
    }
  }

  void broken_stream() {
    // Longer than the destination.
    int ends[2];
    CPPUNIT_ASSERT_EQUAL(0, ::pipe(ends));
    const std::vector<char> content(20000, 'x');
    CPPUNIT_ASSERT_EQUAL(ssize_t{20000},
                         ::write(ends[1], content.data(), content.size()));
    {
      StreamEndpoint source{FileDescriptor(ends[0]), false};
      FakeDisk to(disk(10000, 0));
      Engine engine(source, "-", to, "B", small_options());
      CPPUNIT_ASSERT(failure([&] { engine.run(); }, ENOSPC)
                         .starts_with("B: write at 8192+8192: "));
    }
    ::close(ends[1]);
    // Nothing comes, and somebody ends the copy.
    CPPUNIT_ASSERT_EQUAL(0, ::pipe(ends));
    {
      StreamEndpoint source{FileDescriptor(ends[0]), false};
      FakeDisk to(disk(10000, 0));
      Engine engine(source, "-", to, "B", small_options());
      std::thread other([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        engine.stop();
      });
      CPPUNIT_ASSERT_EQUAL(std::string("stopped"),
                           failure([&] { engine.run(); }, ECANCELED));
      other.join();
    }
    ::close(ends[1]);
    // A read fails while what is behind it waits to be written.
    CPPUNIT_ASSERT_EQUAL(0, ::pipe(ends));
    {
      FakeDisk from(std::vector<char>(300000, 'x'), true);
      from.errors_[Op::read] = EIO;
      from.fail_from_[Op::read] = 0;
      from.fail_from_[Op::read] = 4;
      StreamEndpoint to(FileDescriptor(ends[1]), true);
      Engine engine(from, "A", to, "-", small_options());
      std::thread reader([fd = ends[0]] { (void)read_all(fd); });
      reader.detach();
      CPPUNIT_ASSERT(failure([&] { engine.run(); }, EIO)
                         .starts_with("A: read at "));
    }
  }

  // Nobody reads what is written, and the copy is ended; also where the file
  // cannot be opened once more.
  void stalled_stream() {
    for (const bool socket : {false, true}) {
      int ends[2];
      CPPUNIT_ASSERT_EQUAL(0, socket ? ::socketpair(AF_UNIX, SOCK_STREAM, 0,
                                                    ends)
                                     : ::pipe(ends));
      FakeDisk from(std::vector<char>(3000000, 'x'), true);
      {
        StreamEndpoint to{FileDescriptor(ends[1]), true};
        EngineOptions o = small_options();
        o.request_size = o.queue_size = 1 << 20;
        Engine engine(from, "A", to, "-", o);
        std::thread other([&] {
          std::this_thread::sleep_for(std::chrono::milliseconds(50));
          engine.stop();
        });
        CPPUNIT_ASSERT_EQUAL(std::string("stopped"),
                             failure([&] { engine.run(); }, ECANCELED));
        other.join();
      }
      ::close(ends[0]);
    }
  }

  /// What is behind the end of a file that has become shorter is no hole.
  void shorter_file() {
    std::FILE* const made = std::tmpfile();
    CPPUNIT_ASSERT(made != nullptr);
    CPPUNIT_ASSERT_EQUAL(0, ::ftruncate(::fileno(made), 1 << 20));
    FileEndpoint file(FileDescriptor(::dup(::fileno(made))), false);
    const auto ask = [&](std::vector<Extent>& found) {
      int result = -1;
      file.extents(0, 1 << 20, [&](int error, std::vector<Extent> all) {
        result = error;
        found = std::move(all);
      });
      return result;
    };
    std::vector<Extent> found;
    CPPUNIT_ASSERT_EQUAL(0, ask(found));
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, found.size());
    CPPUNIT_ASSERT(found[0].is_hole && found[0].length == 1 << 20);
    CPPUNIT_ASSERT_EQUAL(0, ::ftruncate(::fileno(made), 1 << 19));
    CPPUNIT_ASSERT_EQUAL(EIO, ask(found));
    (void)std::fclose(made);
  }

  void uris() {
    const ImageConfig c = parse_rados_uri(
        "rados:rbd/ns/im%40ge@snap?id=a%26b&lock=none&ceph.x=1&ceph.y=2");
    ImageConfig checked = c;
    checked.check_image();
    CPPUNIT_ASSERT_EQUAL(std::string("rbd"), checked.spec().pool);
    CPPUNIT_ASSERT_EQUAL(std::string("ns"), checked.spec().name_space);
    CPPUNIT_ASSERT_EQUAL(std::string("im@ge"), checked.spec().image);
    CPPUNIT_ASSERT_EQUAL(std::string("snap"), checked.spec().snapshot);
    CPPUNIT_ASSERT_EQUAL(std::string("client.a&b"), c.cluster.entity);
    CPPUNIT_ASSERT(c.lock == LockMode::none);
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, c.cluster.options.size());
    for (const char* const bad :
         {"rados:", "rados:rbd", "rados:rbd/", "rados:/x", "rados:rbd/x?id",
          "rados:rbd/x?nothing=1", "rados:rbd/x?id=a&id=b",
          "rados:rbd/x?create=true", "rados:rbd/x?size=1M"})
      CPPUNIT_ASSERT_THROW_MESSAGE(bad, (void)parse_rados_uri(bad), Error);
    for (const char* const bad : {",x", "x", ",", "size=1M,", "size=1M,,a=b",
                                  "features=layering,,exclusive-lock",
                                  "size=1M,size=2M", "lock=none"}) {
      ImageConfig config = parse_rados_uri("rados:rbd/x");
      CPPUNIT_ASSERT_THROW_MESSAGE(bad, parse_create_options(bad, config),
                                   std::exception);
    }
    ImageConfig created = parse_rados_uri("rados:rbd/x");
    parse_create_options("object-size=1M,features=layering,exclusive-lock,"
                         "data-pool=d",
                         created);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{1 << 20},
                         created.create_options.object_size.value());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{5},
                         created.create_options.features.value());
    CPPUNIT_ASSERT_EQUAL(std::string("d"),
                         created.create_options.data_pool.value());
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(CopyEngineTest);

}  // namespace
