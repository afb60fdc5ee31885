// SPDX-License-Identifier: BSD-3-Clause
//
// Many operations that only read, for whoever wants the answers of them all,
// or of as many as can be had in time.
//
// A bounded number is in flight.  When one OSD does not answer, its operations
// would soon be all of these, and those for other OSDs would never be started.
// So an operation without an answer keeps its place only for a while, if others
// want it: then it is cancelled, and started again, with more time, when all
// others have been.

#ifndef NBDRADOS_RADOS_BATCH_HPP
#define NBDRADOS_RADOS_BATCH_HPP

#include <chrono>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "rados/object_store.hpp"

namespace nbdrados {

struct BatchOptions {
  /// Whatever has no answer at that time is given up.
  std::chrono::steady_clock::time_point deadline;
  /// How long an operation keeps its place at first; twice as long each time
  /// that it is started again.
  std::chrono::milliseconds patience{100};
  /// The sum of the weights of what is in flight, at least 1.
  std::size_t in_flight = 128;
  /// Asked every 20 ms or so; true: nobody wants the answers any more.  It may
  /// be empty.
  std::function<bool()> stop = {};
};

/// For one thread, which also calls all functions that are given here.
class Batch {
 public:
  /// Starts the operation.  May be called again, but not while it is in
  /// flight.
  using Start = std::function<std::unique_ptr<Pending>()>;
  /// Takes its result, once: -ETIMEDOUT where there was no answer in time.
  /// May add more operations.
  using Done = std::function<void(int result)>;

  explicit Batch(BatchOptions options) : options_(std::move(options)) {}

  /// An operation, which run() will start.
  void add(Start start, Done done, std::size_t weight = 1);

  /// Returns when each operation has a result.  Throws what the functions
  /// throw, and Error(ECANCELED) when `stop` says so.  Nothing is in flight
  /// any more when it returns or throws.
  void run();

 private:
  struct Operation {
    Start start;
    Done done;
    std::size_t weight;
    std::chrono::milliseconds patience;
  };
  struct Flight;
  using Clock = std::chrono::steady_clock;

  [[nodiscard]] bool land(std::vector<Flight>& flights, Clock::time_point now);
  [[nodiscard]] bool launch(std::vector<Flight>& flights);
  [[nodiscard]] bool stopped(Clock::time_point now);
  void give_up();

  const BatchOptions options_;
  std::deque<Operation> waiting_;
  std::deque<Operation> late_;
  std::size_t weight_ = 0;  // in flight
  Clock::time_point next_stop_{};
};

}  // namespace nbdrados

#endif
