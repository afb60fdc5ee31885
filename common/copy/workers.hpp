// SPDX-License-Identifier: BSD-3-Clause
//
// Threads that carry out blocking operations, first come, first served.

#ifndef NBDRADOS_COPY_WORKERS_HPP
#define NBDRADOS_COPY_WORKERS_HPP

#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace nbdrados::copy {

/// `Job` is called with no arguments, and must not throw.  A thread is started
/// when a job comes and all are busy.  Thread-safe.
template <class Job>
class Workers {
 public:
  explicit Workers(std::size_t most) : most_(most) {}
  /// Waits for all jobs.
  ~Workers() {
    {
      const std::scoped_lock lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& t : threads_) t.join();
  }
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  void add(Job job) {
    const std::scoped_lock lock(mutex_);
    push(std::move(job));
    if (idle_ > 0)
      wake_.notify_one();
    else if (threads_.size() < most_)
      threads_.emplace_back([this] { work(); });
  }

 private:
  // A ring: it keeps its memory.
  void push(Job job) {
    if (count_ == ring_.size()) {
      std::vector<Job> larger(count_ == 0 ? 16 : 2 * count_);
      for (std::size_t i = 0; i < count_; ++i)
        larger[i] = std::move(ring_[(first_ + i) % count_]);
      ring_ = std::move(larger);
      first_ = 0;
    }
    ring_[(first_ + count_++) % ring_.size()] = std::move(job);
  }
  Job pop() {
    Job job = std::move(ring_[first_]);
    ring_[first_] = {};
    first_ = (first_ + 1) % ring_.size();
    --count_;
    return job;
  }

  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      ++idle_;
      wake_.wait(lock, [this] { return stopping_ || count_ > 0; });
      --idle_;
      if (count_ == 0) return;
      Job job = pop();
      lock.unlock();
      job();
      lock.lock();
    }
  }

  const std::size_t most_;
  std::mutex mutex_;
  std::condition_variable wake_;
  // All below guarded by mutex_.
  std::vector<Job> ring_;
  std::size_t first_ = 0, count_ = 0;
  std::size_t idle_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace nbdrados::copy

#endif
