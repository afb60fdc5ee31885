// SPDX-License-Identifier: BSD-3-Clause
//
// radoscopy: copies a disk.

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "copy/comparison.hpp"
#include "copy/engine.hpp"
#include "options.hpp"
#include "progress.hpp"
#include "rados/error.hpp"
#include "sides.hpp"
#include "signals.hpp"
#include "standard_files.hpp"

namespace {

using namespace radoscopy;
using nbdrados::Error;
using nbdrados::copy::Comparison;
using nbdrados::copy::Engine;
using nbdrados::copy::EngineOptions;

void complain(const std::string& text) {
  std::fprintf(stderr, "radoscopy: %s\n", text.c_str());
}

EngineOptions engine_options(const Options& options, const Side& source,
                             const Side& destination, const Joined& joined) {
  EngineOptions o;
  o.request_size = options.request_size.value_or(
      std::max(source.request_size, destination.request_size));
  // Sixteen whole objects on their way, where it is about objects.
  o.queue_size = options.queue_size.value_or(
      std::max<std::uint64_t>(16 << 20, 16 * o.request_size));
  // librados receives into memory of its own, and then copies it to ours.
  if (options.source.kind == Target::Kind::rados) o.queue_size /= 2;
  o.requests = options.synchronous
                   ? 1
                   : std::size_t{options.requests} * joined.connections;
  o.sparse = options.sparse;
  o.use_extents = options.extents;
  o.allocated = options.allocated;
  o.destination_is_zero = options.destination_is_zero;
  o.flush = options.flush || destination.new_image;
  o.rate = options.bwlimit;
  o.move = joined.move;
  return o;
}

void describe(const Side& side, const char* what) {
  const auto& t = side.endpoint->traits();
  const std::string size = t.size == nbdrados::copy::unknown_size
                               ? "unknown"
                               : std::to_string(t.size);
  std::fprintf(stderr,
               "radoscopy: %s: %s: size=%s preferred=%u extents=%s%s%s\n", what,
               side.name.c_str(), size.c_str(), t.preferred,
               t.has_extents ? "yes" : "no",
               side.engine.empty() ? "" : " engine=", side.engine.c_str());
}

/// For the handler of signals, while there is a copy.
struct Running {
  std::mutex mutex;
  Engine* engine = nullptr;      // guarded by mutex
  Progress* progress = nullptr;  // guarded by mutex
};

class Announce {
 public:
  Announce(Running& running, Engine& engine, Progress& progress)
      : running_(running) {
    const std::scoped_lock lock(running_.mutex);
    running_.engine = &engine;
    running_.progress = &progress;
  }
  ~Announce() {
    const std::scoped_lock lock(running_.mutex);
    running_.engine = nullptr;
    running_.progress = nullptr;
  }
  Announce(const Announce&) = delete;
  Announce& operator=(const Announce&) = delete;

 private:
  Running& running_;
};

/// What belongs together while there is a copy.
struct Work {
  const Options& options;
  Side& source;
  Side& destination;
  EngineOptions how;
  Running& running;
  const Signals& signals;
};

/// `check` throws where what has been done is not enough.  Throws Error.
template <class Check>
void run_engine(const Work& work, Engine& engine, Check&& check) {
  Progress progress(engine, work.options);
  try {
    const Announce announce(work.running, engine, progress);
    // One that came before there was an engine.
    if (work.signals.received() != 0) engine.stop();
    engine.run();
    check();
  } catch (const std::exception& e) {
    progress.finish(e.what());
    throw;
  }
  progress.finish("");
}

/// Throws Error.
void verify(const Work& work) {
  Engine* engine = nullptr;
  Comparison comparison(*work.destination.endpoint,
                        [&engine] { engine->end_early(); });
  EngineOptions how = work.how;
  how.flush = how.allocated = how.destination_is_zero = false;
  how.sparse = 0;
  how.most_zeros = how.request_size;
  Engine comparing(*work.source.endpoint, work.source.name, comparison,
                   work.destination.name, how);
  engine = &comparing;
  run_engine(work, comparing, [&] {
    if (const auto at = comparison.difference())
      throw Error(EIO, work.destination.name + ": differs from " +
                           work.source.name + " at " + std::to_string(*at));
  });
}

/// Throws Error.
void run(const Options& options, Side& source, Side& destination,
         Running& running, const Signals& signals) {
  const Joined joined = join(options, source, destination);
  const Work work{
      options, source, destination,
      engine_options(options, source, destination, joined),
      running, signals};
  if (options.verbose) {
    describe(source, "source");
    describe(destination, "destination");
    std::fprintf(stderr,
                 "radoscopy: connections=%u requests=%zu request-size=%llu "
                 "queue-size=%llu\n",
                 joined.connections, work.how.requests,
                 static_cast<unsigned long long>(work.how.request_size),
                 static_cast<unsigned long long>(work.how.queue_size));
  }
  if (options.verify != Options::Verify::only) {
    Engine engine(*source.endpoint, source.name, *destination.endpoint,
                  destination.name, work.how);
    run_engine(work, engine, [] {});
  }
  if (options.verify != Options::Verify::no) verify(work);
}

/// Copies, and ends both sides.  Throws Error.
void copy(const Options& options, Running& running, const Signals& signals) {
  Side source = open_source(options);
  Side destination = open_destination(options, source);
  try {
    run(options, source, destination, running, signals);
    if (const int error = destination.endpoint->close(); error != 0)
      throw Error(error, destination.name + ": close: " +
                             destination.endpoint->explain(error));
  } catch (...) {
    destination.endpoint.reset();
    if (destination.new_image) {
      try {
        destination.new_image->discard();
      } catch (const Error& e) {
        complain(e.what());
      }
    }
    throw;
  }
  destination.endpoint.reset();
  if (destination.new_image) destination.new_image->publish();
}

/// The exit status.
int copy_or_complain(const Options& options) {
  Running running;
  int signal_number = 0;
  int status = EXIT_FAILURE;
  {
    const auto stop = [&running] {
      const std::scoped_lock lock(running.mutex);
      if (running.engine != nullptr) running.engine->stop();
    };
    const auto report = [&running] {
      const std::scoped_lock lock(running.mutex);
      if (running.progress != nullptr) complain(running.progress->line());
    };
    const Signals signals(stop, report);
    try {
      copy(options, running, signals);
      status = EXIT_SUCCESS;
    } catch (const std::exception& e) {
      if (signals.received() == 0) complain(e.what());
    }
    signal_number = signals.received();
  }
  // What its parent expects of a program that a signal has ended.
  if (signal_number != 0 && status != EXIT_SUCCESS)
    (void)std::raise(signal_number);
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  keep_standard_numbers();
  try {
    const Options options =
        parse_options(std::vector<std::string>(argv + 1, argv + argc));
    if (options.progress_fd) check_is_open(*options.progress_fd);
    return copy_or_complain(options);
  } catch (const Information& information) {
    std::fputs(information.text.c_str(), stdout);
    return std::fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
  } catch (const UsageError& e) {
    if (*e.what() != '\0') complain(e.what());
    if (e.show_usage()) std::fputs(usage().c_str(), stderr);
  } catch (const std::exception& e) {
    complain(e.what());
  }
  return EXIT_FAILURE;
}
