// SPDX-License-Identifier: BSD-3-Clause

#include "signals.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <utility>

#include "rados/error.hpp"

namespace radoscopy {

namespace {

constexpr int ending[] = {SIGINT, SIGTERM, SIGHUP};

/// From the handler to the thread.
int pipe_ends[2] = {-1, -1};
/// Of the first signal that ends; seconds of CLOCK_MONOTONIC, 0: none yet.
std::atomic<long> first_told{0};
static_assert(std::atomic<long>::is_always_lock_free);

/// Signals that come together are one: timeout(1) sends its signal to its child
/// and then to the group, a session that ends SIGHUP from several sides.
constexpr long second_signal_after = 2;  // seconds

constexpr int check_interval = 100;  // milliseconds

constexpr char at_once[] =
    "radoscopy: ended at once; see IMAGE.radoscopy and SNAPSHOTS THAT ARE LEFT "
    "in radoscopy(1)\n";

extern "C" void on_signal(int number) {
  const int saved = errno;
  if (number != SIGUSR1) {
    struct timespec now = {};
    (void)::clock_gettime(CLOCK_MONOTONIC, &now);
    long first = 0;
    if (!first_told.compare_exchange_strong(first, now.tv_sec + 1) &&
        now.tv_sec + 1 - first >= second_signal_after) {
      (void)!::write(STDERR_FILENO, at_once, sizeof at_once - 1);
      ::_exit(128 + number);
    }
  }
  const auto byte = static_cast<unsigned char>(number);
  (void)!::write(pipe_ends[1], &byte, 1);
  errno = saved;
}

extern "C" void on_nothing(int) {}

/// What is ignored because of nohup(1), or in a shell's background, stays so.
bool is_ignored(int number) {
  struct sigaction action = {};
  return ::sigaction(number, nullptr, &action) == 0 &&
         action.sa_handler == SIG_IGN;
}

void handle(int number, void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  (void)::sigaction(number, &action, nullptr);
}

}  // namespace

Signals::Signals(std::function<void()> stop, std::function<void()> report,
                 std::function<void(int)> check)
    : stop_(std::move(stop)),
      report_(std::move(report)),
      check_(std::move(check)) {
  if (::pipe2(pipe_ends, O_CLOEXEC) == -1) nbdrados::fail(errno, "pipe");
  thread_ = std::thread([this] { work(); });
  for (const int number : ending)
    if (!is_ignored(number)) handle(number, on_signal);
  handle(SIGUSR1, on_signal);
  // A write says so itself.  Not SIG_IGN, which a server would inherit.
  handle(SIGPIPE, on_nothing);
  handle(SIGXFSZ, on_nothing);
}

Signals::~Signals() {
  for (const int number : ending)
    if (!is_ignored(number)) handle(number, SIG_DFL);
  handle(SIGUSR1, SIG_IGN);
  ::close(std::exchange(pipe_ends[1], -1));
  thread_.join();
  ::close(std::exchange(pipe_ends[0], -1));
}

/// For the next signal; false: it is time to check.
bool Signals::wait() const {
  struct pollfd fd = {pipe_ends[0], POLLIN, 0};
  const int limit = received_ == 0 ? -1 : check_interval;
  return ::poll(&fd, 1, limit) != 0;
}

void Signals::work() {
  for (;;) {
    if (!wait()) {
      check_(received_);
      continue;
    }
    unsigned char number = 0;
    const ssize_t n = ::read(pipe_ends[0], &number, 1);
    if (n == -1 && errno == EINTR) continue;
    if (n != 1) return;
    if (number == SIGUSR1) {
      report_();
    } else {
      if (received_.exchange(number) == 0) stop_();
    }
  }
}

}  // namespace radoscopy
