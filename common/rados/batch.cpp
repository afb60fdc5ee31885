// SPDX-License-Identifier: BSD-3-Clause

#include "rados/batch.hpp"

#include <algorithm>
#include <cerrno>
#include <thread>
#include <utility>

#include "rados/error.hpp"

namespace nbdrados {

using namespace std::chrono_literals;

/// An operation in flight, which is cancelled when this goes.
struct Batch::Flight {
  Flight(Operation what, Clock::time_point deadline)
      : operation(std::move(what)),
        pending(operation.start()),
        until(std::min(Clock::now() + operation.patience, deadline)) {}
  ~Flight() {
    if (pending) (void)result();
  }
  Flight(Flight&&) = default;
  Flight& operator=(Flight&&) = default;

  /// Does not wait: what has no result is cancelled.
  [[nodiscard]] int result() { return pending->wait_for(0ms); }

  Operation operation;
  std::unique_ptr<Pending> pending;
  Clock::time_point until;
};

void Batch::add(Start start, Done done, std::size_t weight) {
  waiting_.push_back(
      {std::move(start), std::move(done), weight, options_.patience});
}

/// Takes out what has a result, or has been in flight for too long while others
/// wait for its place.
bool Batch::land(std::vector<Flight>& flights, Clock::time_point now) {
  bool landed = false;
  for (std::size_t i = 0; i < flights.size();) {
    const bool wanted = !waiting_.empty() || !late_.empty();
    const auto until = wanted ? flights[i].until : options_.deadline;
    if (!flights[i].pending->completed() && now < until) {
      ++i;
      continue;
    }
    landed = true;
    const int r = flights[i].result();
    Operation operation = std::move(flights[i].operation);
    if (i + 1 < flights.size()) flights[i] = std::move(flights.back());
    flights.pop_back();
    weight_ -= operation.weight;
    if (r == -ETIMEDOUT) {
      operation.patience *= 2;
      late_.push_back(std::move(operation));
    } else {
      operation.done(r);
    }
  }
  return landed;
}

bool Batch::launch(std::vector<Flight>& flights) {
  bool launched = false;
  for (;;) {
    if (waiting_.empty()) waiting_.swap(late_);
    if (waiting_.empty()) return launched;
    const std::size_t weight = waiting_.front().weight;
    if (weight_ != 0 && weight_ + weight > options_.in_flight) return launched;
    flights.emplace_back(std::move(waiting_.front()), options_.deadline);
    waiting_.pop_front();
    weight_ += weight;
    launched = true;
  }
}

bool Batch::stopped(Clock::time_point now) {
  if (!options_.stop || now < next_stop_) return false;
  next_stop_ = now + 20ms;
  return options_.stop();
}

void Batch::give_up() {
  for (auto* const left : {&late_, &waiting_})
    while (!left->empty()) {
      const Operation operation = std::move(left->front());
      left->pop_front();
      operation.done(-ETIMEDOUT);
    }
}

void Batch::run() {
  std::vector<Flight> flights;
  weight_ = 0;
  auto pause = 50us;
  for (;;) {
    const auto now = Clock::now();
    if (stopped(now)) throw Error(ECANCELED, "nobody waits for it any more");
    bool progress = land(flights, now);
    if (now >= options_.deadline) {
      give_up();
      return;
    }
    if (launch(flights)) progress = true;
    if (flights.empty()) return;
    if (progress) {
      pause = 50us;
      continue;
    }
    std::this_thread::sleep_for(pause);
    pause = std::min<std::chrono::microseconds>(pause * 2, 2ms);
  }
}

}  // namespace nbdrados
