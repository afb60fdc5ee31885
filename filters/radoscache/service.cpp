// SPDX-License-Identifier: BSD-3-Clause

#include "service.hpp"

#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <exception>
#include <system_error>
#include <utility>

namespace nbdrados {

// Writers -------------------------------------------------------------------

Writers::Writers(Exports& exports, DirtyLimit& dirty)
    : exports_(exports), dirty_(dirty) {
  for (unsigned i = 0; i < thread_count; ++i)
    threads_.emplace_back([this] { work(); });
}

Writers::~Writers() {
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& t : threads_) t.join();
}

void Writers::notify() noexcept {
  if (asleep_.load() == 0) return;
  {
    const std::scoped_lock lock(mutex_);
    wanted_ = true;
  }
  wake_.notify_all();
}

void Writers::work() noexcept {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    // From here on a notification is seen, now or by the next look.
    wanted_ = false;
    ++asleep_;
    lock.unlock();
    bool done = false;
    try {
      done = write_something();
    } catch (const std::exception&) {
      // Without memory: later.
    }
    lock.lock();
    const auto called = [this] { return stopping_ || wanted_; };
    if (!done) {
      // Who keeps something looks at resting_ afterwards.
      ++resting_;
      wake_.wait(lock, [&] { return called() || dirty_.used() != 0; });
      --resting_;
      wake_.wait_for(lock, look_interval, called);
    }
    --asleep_;
  }
}

bool Writers::write_something() {
  bool done = false;
  for (const auto& e : exports_.all()) {
    WriteBack* const writes = e->writes();
    if (writes == nullptr || writes->empty()) continue;
    (void)e->with_channel([&](const WriteBack::Write& write) {
      done |= writes->work(dirty_.pressing(), write);
    });
  }
  return done;
}

// Signals -------------------------------------------------------------------

namespace {

/// The handler writes to it; -1: there is nobody.
std::atomic<int> signal_fd{-1};
static_assert(std::atomic<int>::is_always_lock_free);

void handle_signal(int) {
  const int saved = errno;
  const std::uint64_t one = 1;
  if (const int fd = signal_fd.load(); fd != -1)
    [[maybe_unused]] const ssize_t r = ::write(fd, &one, sizeof one);
  errno = saved;
}

}  // namespace

void survive_signal() noexcept {
  // Not SIG_IGN, which the command of --run would inherit.
  struct sigaction how = {};
  how.sa_handler = handle_signal;
  how.sa_flags = SA_RESTART;
  ::sigemptyset(&how.sa_mask);
  (void)::sigaction(SIGUSR1, &how, nullptr);
}

void ignore_signal() noexcept { (void)::signal(SIGUSR1, SIG_IGN); }

SignalThread::SignalThread(std::function<void()> action)
    : action_(std::move(action)) {
  const int fd = ::eventfd(0, EFD_CLOEXEC);
  if (fd == -1)
    throw std::system_error(errno, std::generic_category(), "eventfd");
  try {
    thread_ = std::thread([this, fd] {
      std::uint64_t count;
      while (::read(fd, &count, sizeof count) == sizeof count ||
             errno == EINTR) {
        if (stopping_) return;
        action_();
      }
    });
  } catch (...) {
    ::close(fd);
    throw;
  }
  signal_fd = fd;
}

SignalThread::~SignalThread() {
  // The handler's code may be unloaded.
  ignore_signal();
  const int fd = signal_fd.exchange(-1);
  stopping_ = true;
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t r = ::write(fd, &one, sizeof one);
  thread_.join();
  ::close(fd);
}

}  // namespace nbdrados
