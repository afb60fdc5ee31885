// SPDX-License-Identifier: BSD-3-Clause
//
// Says how far a copy is.

#ifndef NBDRADOS_RADOSCOPY_PROGRESS_HPP
#define NBDRADOS_RADOSCOPY_PROGRESS_HPP

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

#include "copy/engine.hpp"
#include "options.hpp"

namespace radoscopy {

/// --json of what has failed without or after a Progress of its own.
void print_json_end(const std::string& operation, const std::string& error);

/// From its making on, until finish().
class Progress {
 public:
  /// `engine` must outlive this.  `operation` is what JSON calls it.
  Progress(std::string operation, const nbdrados::copy::Engine& engine,
           const Options& options);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// Once.  `error` is why the copy has failed; empty: it is complete, and
  /// `more` are further members of the object of JSON, each behind a comma.
  void finish(const std::string& error, const std::string& more = "");

  /// How far it is, in one line without an end.  Any thread.
  [[nodiscard]] std::string line() const;

 private:
  void work();
  void show(bool with_json);
  void show_percent(bool complete) const;
  void show_bar() const;
  void show_json(const std::string& more) const;
  [[nodiscard]] unsigned percent() const;
  [[nodiscard]] double seconds() const;

  const std::string operation_;
  const nbdrados::copy::Engine& engine_;
  const Options& options_;
  const std::chrono::steady_clock::time_point begin_;
  unsigned shown_ = 0;  // percent; only of the thread

  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace radoscopy

#endif
