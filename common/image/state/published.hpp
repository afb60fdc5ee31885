// SPDX-License-Identifier: BSD-3-Clause
//
// A value that many threads read while it is now and then replaced.
//
// Readers neither lock nor wait: entering and leaving is one atomic addition
// each, on a counter that threads rarely share.  store() replaces the value
// at once; synchronize() returns when no reader acts on a former value any
// more.  The latter is what a notification about a new snapshot needs: it may
// be acknowledged only when no write under the old snapshot context is under
// way.
//
// Why it is right.  All operations are sequentially consistent.  A reader
// adds to a counter before it loads the pointer.  synchronize() comes after
// the store of the new pointer and sees every counter at zero once.  A reader
// that loaded a former pointer did so before the store, so its addition was
// before the store too, and its counter reaches zero only after it has left.
// The two banks of counters only bound the wait: readers that come after the
// flip of `bank_` use the other bank, so the one waited for drains.  (The
// scheme is that of sleepable RCU, torvalds/linux: kernel/rcu/srcutree.c.)

#ifndef NBDRADOS_IMAGE_STATE_PUBLISHED_HPP
#define NBDRADOS_IMAGE_STATE_PUBLISHED_HPP

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace nbdrados {

template <class T>
class Published {
  struct alignas(64) Counter {
    std::atomic<long> readers{0};
  };
  static constexpr std::size_t counters_per_bank = 16;
  using Bank = std::array<Counter, counters_per_bank>;

 public:
  explicit Published(std::unique_ptr<const T> value)
      : current_(std::move(value)), value_(current_.get()) {}
  /// No reader may be left.
  ~Published() = default;
  Published(const Published&) = delete;
  Published& operator=(const Published&) = delete;

  /// The value, valid and unchanged while the Reader lives.  A Reader must
  /// not live while its thread calls synchronize().
  class Reader {
   public:
    explicit Reader(Published& p) noexcept
        : owner_(p), counter_(p.enter()), value_(p.value_.load()) {}
    ~Reader() { owner_.leave(counter_); }
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;
    const T& operator*() const noexcept { return *value_; }
    const T* operator->() const noexcept { return value_; }

   private:
    Published& owner_;
    Counter& counter_;
    const T* value_;
  };
  [[nodiscard]] Reader read() noexcept { return Reader(*this); }

  /// Replaces the value for readers to come.  Does not wait.  Thread-safe.
  void store(std::unique_ptr<const T> value) {
    const std::scoped_lock lock(store_mutex_);
    former_.push_back(std::move(current_));
    current_ = std::move(value);
    value_.store(current_.get());
    // Freed as soon as it is known that nobody has them.
    if (is_empty(banks_[0]) && is_empty(banks_[1])) former_.clear();
  }

  /// Returns when every reader of a former value has left.  Thread-safe.
  void synchronize() {
    std::vector<std::unique_ptr<const T>> former;
    {
      const std::scoped_lock lock(store_mutex_);
      former.swap(former_);
    }
    const std::scoped_lock one_at_a_time(synchronize_mutex_);
    for (int flip = 0; flip < 2; ++flip) {
      const unsigned bank = bank_.fetch_add(1) & 1;
      wait_empty(banks_[bank]);
    }
  }

 private:
  Counter& enter() noexcept {
    static std::atomic<std::size_t> next{0};
    thread_local const std::size_t mine =
        next.fetch_add(1, std::memory_order_relaxed) % counters_per_bank;
    Counter& c = banks_[bank_.load() & 1][mine];
    c.readers.fetch_add(1);
    return c;
  }
  void leave(Counter& c) noexcept {
    c.readers.fetch_sub(1);
    if (waiting_.load()) {
      // The lock orders this with the check that the waiter makes under it.
      { const std::scoped_lock lock(wait_mutex_); }
      left_.notify_all();
    }
  }
  static bool is_empty(const Bank& bank) noexcept {
    for (const Counter& c : bank)
      if (c.readers.load() != 0) return false;
    return true;
  }
  void wait_empty(const Bank& bank) {
    std::unique_lock lock(wait_mutex_);
    waiting_.store(true);
    left_.wait(lock, [&] { return is_empty(bank); });
    waiting_.store(false);
  }

  std::mutex store_mutex_;
  std::unique_ptr<const T> current_;              // guarded by store_mutex_
  std::vector<std::unique_ptr<const T>> former_;  // guarded by store_mutex_
  std::atomic<const T*> value_;
  std::atomic<unsigned> bank_{0};
  std::array<Bank, 2> banks_;
  std::mutex synchronize_mutex_;  // held while waiting; before wait_mutex_
  std::mutex wait_mutex_;         // only for left_
  std::condition_variable left_;
  std::atomic<bool> waiting_{false};
};

}  // namespace nbdrados

#endif
