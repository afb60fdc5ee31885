// SPDX-License-Identifier: BSD-3-Clause
//
// Threads that wait for a busy messenger.
//
// librados wakes the thread that waits for an operation from its messenger's
// thread, while that thread holds the lock of the completion.  The kernel
// then often lets the woken thread push the messenger off its processor; it
// runs into the lock, sleeps again, and the messenger has to be scheduled
// back: three context switches instead of one, which is where most of the
// CPU time of a small request goes.  Threads of the policy SCHED_BATCH do not
// push others off when they wake (sched(7)), so the messenger handles all the
// replies that have arrived first.
//
// With few requests in flight this would only delay them, because on a busy
// machine a woken SCHED_BATCH thread waits for the end of somebody's time
// slice.  So it is for many requests in flight only, where what counts is
// how many are done in a second.

#ifndef NBDRADOS_NBDKIT_THROUGHPUT_HPP
#define NBDRADOS_NBDKIT_THROUGHPUT_HPP

#include <sched.h>

#include <atomic>

#include "rados/tuning.hpp"

namespace nbdrados {

/// The requests in flight of one server.  Thread-safe.
class Throughput {
 public:
  /// Lives as long as a request.
  class Request {
   public:
    explicit Request(Throughput& all) noexcept : all_(all) {
      const int before =
          all_.in_flight_.fetch_add(1, std::memory_order_relaxed);
      if (tuning.batch_threads) prefer(before + 1);
    }
    ~Request() { all_.in_flight_.fetch_sub(1, std::memory_order_relaxed); }
    Request(const Request&) = delete;
    Request& operator=(const Request&) = delete;

   private:
    Throughput& all_;
  };

 private:
  /// So many requests in flight, or more, are many; so many, or less, few.
  static constexpr int many = 10;
  static constexpr int few = 5;

  /// Chooses the policy of this thread for `requests` in flight.  What cannot
  /// be changed stays as it is: it is only about speed.
  static void prefer(int requests) noexcept {
    // A policy that the user has chosen is left alone.
    thread_local const bool allowed = ::sched_getscheduler(0) == SCHED_OTHER;
    thread_local bool batch = false;
    const bool wanted = batch ? requests > few : requests >= many;
    if (wanted == batch || !allowed) return;
    batch = wanted;
    const sched_param none{};
    (void)::sched_setscheduler(0, batch ? SCHED_BATCH : SCHED_OTHER, &none);
  }

  std::atomic<int> in_flight_{0};
};

}  // namespace nbdrados

#endif
