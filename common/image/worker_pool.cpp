// SPDX-License-Identifier: BSD-3-Clause

#include "image/worker_pool.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <new>
#include <system_error>

namespace nbdrados {

WorkerPool::~WorkerPool() {
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& t : threads_) t.join();
}

void WorkerPool::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (queue_.empty()) return;  // stopping
    const std::function<void()> job = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    job();
    lock.lock();
  }
}

void WorkerPool::for_each(std::size_t count,
                          const std::function<void(std::size_t)>& task) {
  // Jobs may be taken from the queue after this call has returned (then
  // there is nothing left to do for them), so they share ownership.
  struct Round {
    std::atomic<std::size_t> next{0};
    std::mutex mutex;
    std::condition_variable finished;
    std::size_t running = 0;        // guarded by mutex
    std::exception_ptr exception;   // guarded by mutex
  };
  if (count == 0) return;
  const auto round = std::make_shared<Round>();

  const auto take_part = [round, count, &task] {
    {
      const std::scoped_lock lock(round->mutex);
      if (round->next.load() >= count) return;
      ++round->running;
    }
    try {
      for (std::size_t i; (i = round->next.fetch_add(1)) < count;) task(i);
    } catch (...) {
      const std::scoped_lock lock(round->mutex);
      if (!round->exception) round->exception = std::current_exception();
      round->next.store(count);
    }
    {
      const std::scoped_lock lock(round->mutex);
      --round->running;
    }
    round->finished.notify_all();
  };

  {
    const std::scoped_lock lock(mutex_);
    // Without help it only takes longer, so what fails here (too many
    // threads, no memory) is no error.
    try {
      const std::size_t helpers = std::min(count - 1, limit_);
      while (threads_.size() < helpers)
        threads_.emplace_back([this] { work(); });
      for (std::size_t i = 0; i < helpers; ++i) queue_.push_back(take_part);
    } catch (const std::system_error&) {
    } catch (const std::bad_alloc&) {
    }
  }
  wake_.notify_all();

  take_part();
  std::unique_lock lock(round->mutex);
  round->finished.wait(lock, [&] {
    return round->next.load() >= count && round->running == 0;
  });
  if (round->exception) std::rethrow_exception(round->exception);
}

}  // namespace nbdrados
