// SPDX-License-Identifier: BSD-3-Clause
//
// What the thread that handles signals must know of a copy: how to stop it, how
// far it is, and what it would leave.
//
// A copy that is told to end ends by itself, tidily, as long as what it waits
// for happens.  Where nothing happens for `patience` the thread of the signals
// ends the program: it removes what a side that answers would keep, says what
// is left, and ends the servers that were started.

#ifndef NBDRADOS_RADOSCOPY_RUNNING_HPP
#define NBDRADOS_RADOSCOPY_RUNNING_HPP

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "copy/engine.hpp"
#include "progress.hpp"

namespace radoscopy {

/// Prints "radoscopy: TEXT".
void complain(const std::string& text);

/// What a copy that ends too early would leave.
struct Leftover {
  std::string name;  ///< for messages
  std::string remedy;  ///< the command that removes it, without its arguments
  /// Whether nobody uses it any more; until then it cannot be removed.
  std::function<bool()> is_free;
  /// Throws Error that says what is left.
  std::function<void()> remove;
};

/// Thread-safe.
class Running {
 public:
  static constexpr std::chrono::milliseconds patience{1000};
  /// For removing what is left, when the copy is stuck.
  static constexpr std::chrono::milliseconds removal_time{700};

  /// `json`: the end is told on the standard output, too.
  explicit Running(bool json) : json_(json) {}

  // The copy.

  /// Says what is at work, as long as this exists.
  class Announce {
   public:
    Announce(Running& running, nbdrados::copy::Engine& engine,
             Progress& progress);
    ~Announce();
    Announce(const Announce&) = delete;
    Announce& operator=(const Announce&) = delete;

   private:
    Running& running_;
  };

  void keep(Leftover leftover);
  /// What has that name is the caller's to deal with; false: nothing has.  Does
  /// not return where the thread of the signals deals with all of them already:
  /// then the program is about to end.
  bool take(const std::string& name);
  /// What is to be said if the program ends now; "": nothing.
  void note(const std::string& text);
  /// Something has happened.
  void tick() noexcept { ++ticks_; }

  // The thread of the signals.

  void stop();
  void report();
  /// Now and then, after stop(): ends the program by that signal where nothing
  /// has happened for a while.
  void end_if_stuck(int signal_number);

 private:
  [[nodiscard]] std::uint64_t activity();
  [[nodiscard]] std::vector<Leftover> take_for_good();
  void remove_leftovers();

  const bool json_;
  std::atomic<std::uint64_t> ticks_{0};
  std::mutex mutex_;
  // All below guarded by mutex_.
  nbdrados::copy::Engine* engine_ = nullptr;
  Progress* progress_ = nullptr;
  std::vector<Leftover> leftovers_;
  std::string note_;
  bool taken_ = false;  // by the thread of the signals

  // Only of that thread.
  std::uint64_t last_activity_ = 0;
  std::chrono::steady_clock::time_point last_change_{};
};

}  // namespace radoscopy

#endif
