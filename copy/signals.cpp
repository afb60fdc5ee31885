// SPDX-License-Identifier: BSD-3-Clause

#include "signals.hpp"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "rados/error.hpp"

namespace radoscopy {

namespace {

constexpr int ending[] = {SIGINT, SIGTERM, SIGHUP};

/// From the handler to the thread.
int pipe_ends[2] = {-1, -1};
volatile sig_atomic_t was_told = 0;

extern "C" void on_signal(int number) {
  const int saved = errno;
  if (number != SIGUSR1) {
    if (was_told != 0) ::_exit(128 + number);
    was_told = 1;
  }
  const auto byte = static_cast<unsigned char>(number);
  (void)!::write(pipe_ends[1], &byte, 1);
  errno = saved;
}

extern "C" void on_nothing(int) {}

void handle(int number, void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  (void)::sigaction(number, &action, nullptr);
}

}  // namespace

Signals::Signals(std::function<void()> stop, std::function<void()> report)
    : stop_(std::move(stop)), report_(std::move(report)) {
  if (::pipe2(pipe_ends, O_CLOEXEC) == -1) nbdrados::fail(errno, "pipe");
  thread_ = std::thread([this] { work(); });
  for (const int number : ending) handle(number, on_signal);
  handle(SIGUSR1, on_signal);
  // A write says so itself.  Not SIG_IGN, which a server would inherit.
  handle(SIGPIPE, on_nothing);
}

Signals::~Signals() {
  for (const int number : ending) handle(number, SIG_DFL);
  handle(SIGUSR1, SIG_IGN);
  ::close(std::exchange(pipe_ends[1], -1));
  thread_.join();
  ::close(std::exchange(pipe_ends[0], -1));
}

void Signals::work() {
  for (;;) {
    unsigned char number = 0;
    const ssize_t n = ::read(pipe_ends[0], &number, 1);
    if (n == -1 && errno == EINTR) continue;
    if (n != 1) return;
    if (number == SIGUSR1) {
      report_();
    } else {
      received_ = number;
      stop_();
    }
  }
}

}  // namespace radoscopy
