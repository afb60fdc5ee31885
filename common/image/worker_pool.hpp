// SPDX-License-Identifier: BSD-3-Clause
//
// Threads for the operations that librados offers only in blocking form.

#ifndef NBDRADOS_IMAGE_WORKER_POOL_HPP
#define NBDRADOS_IMAGE_WORKER_POOL_HPP

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace nbdrados {

/// A few threads, started when they are first needed.  Thread-safe.
class WorkerPool {
 public:
  explicit WorkerPool(std::size_t threads) : limit_(threads) {}
  /// Waits for what runs.
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  /// Calls task(0) ... task(count - 1), several at a time, and returns when
  /// all have returned.  The calling thread takes part, so it also works
  /// when all threads are busy with others' tasks.  Where tasks throw, the
  /// rest of them is skipped and one of the exceptions is thrown.
  void for_each(std::size_t count,
                const std::function<void(std::size_t)>& task);

 private:
  void work();

  const std::size_t limit_;
  std::mutex mutex_;
  std::condition_variable wake_;
  // All below guarded by mutex_.
  std::deque<std::function<void()>> queue_;
  std::vector<std::thread> threads_;
  bool stopping_ = false;
};

}  // namespace nbdrados

#endif
