// SPDX-License-Identifier: BSD-3-Clause
//
// radoscopy: copies a disk.

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "copy/checksum.hpp"
#include "copy/comparison.hpp"
#include "copy/engine.hpp"
#include "copy/rados_endpoint.hpp"
#include "copy/ranges.hpp"
#include "json.hpp"
#include "options.hpp"
#include "progress.hpp"
#include "rados/error.hpp"
#include "running.hpp"
#include "sides.hpp"
#include "signals.hpp"
#include "standard_files.hpp"

namespace {

using namespace radoscopy;
using nbdrados::Error;
using nbdrados::copy::Checksum;
using nbdrados::copy::Comparison;
using nbdrados::copy::Digest;
using nbdrados::copy::Endpoint;
using nbdrados::copy::Engine;
using nbdrados::copy::EngineOptions;
using nbdrados::copy::RadosEndpoint;
using nbdrados::copy::Range;
using nbdrados::copy::read_ranges;

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
  o.iops = options.iops_limit;
  o.move = joined.move;
  o.offload = joined.offload.get();
  o.must_offload = options.offload == Options::Offload::always;
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

/// Of one that has been copied; bytes.
std::uint64_t disk_size(const Endpoint& source) {
  const std::uint64_t size = source.traits().size;
  return size != nbdrados::copy::unknown_size ? size : source.end().value();
}

/// A member of an object of JSON.
std::string json_of(const std::vector<Digest>& digests) {
  std::string text;
  for (const Digest& d : digests)
    text += (text.empty() ? "" : ", ") + json_string(d.name) + ": " +
            json_string(d.hex);
  return ", \"checksums\": {" + text + "}";
}

/// On the standard output, if that is not the destination.
void print(const std::vector<Digest>& digests, const Options& options) {
  if (options.json) return;
  std::FILE* const to = options.destination.text == "-" ? stderr : stdout;
  for (const Digest& d : digests)
    std::fprintf(to, "%s  %s  %s\n", d.name.c_str(), d.hex.c_str(),
                 options.source.text.c_str());
  if (std::fflush(to) != 0 && !digests.empty())
    nbdrados::fail(errno, "cannot print the checksum");
}

/// One run of the program.
struct Task {
  const Options& options;
  Running& running;
  const Signals& signals;
  const char* phase = "open";  // for --json; null: a failure is told already
  std::vector<Range> ranges = {};
  std::unique_ptr<Checksum> checksum = {};
  std::vector<Digest> digests = {};  // when they are complete
};

/// What belongs together while there is a copy.
struct Work {
  Task& task;
  Side& source;
  Side& destination;
  EngineOptions how;
};

/// `check` throws where what has been done is not enough.  Throws Error.
template <class Check>
void run_engine(const Work& work, const char* operation, Checksum* checksum,
                Engine& engine, Check&& check) {
  Task& task = work.task;
  Progress progress(operation, engine, task.options);
  task.phase = nullptr;
  try {
    const Running::Announce announce(task.running, engine, progress);
    // One that came before there was an engine.
    if (task.signals.received() != 0) engine.stop();
    engine.run();
    check();
    if (checksum != nullptr)
      task.digests = checksum->finish(disk_size(*work.source.endpoint));
  } catch (const std::exception& e) {
    progress.finish(e.what());
    throw;
  }
  progress.finish("", checksum != nullptr ? json_of(task.digests) : "");
}

/// Throws Error.
void verify(const Work& work) {
  Engine* engine = nullptr;
  Comparison comparison(*work.destination.endpoint,
                        [&engine] { engine->end_early(); });
  EngineOptions how = work.how;
  how.offload = nullptr;
  how.flush = how.allocated = how.destination_is_zero = false;
  how.sparse = 0;
  how.most_zeros = how.request_size;
  // After a copy it is known.
  if (work.task.options.verify != Options::Verify::only)
    how.checksum = nullptr;
  Engine comparing(*work.source.endpoint, work.source.name, comparison,
                   work.destination.name, how);
  engine = &comparing;
  run_engine(work, "verify", how.checksum, comparing, [&] {
    if (const auto at = comparison.difference())
      throw Error(EIO, work.destination.name + ": differs from " +
                           work.source.name + " at " + std::to_string(*at));
  });
}

void describe(const Work& work, unsigned connections) {
  describe(work.source, "source");
  describe(work.destination, "destination");
  std::fprintf(stderr,
               "radoscopy: connections=%u requests=%zu request-size=%llu "
               "queue-size=%llu\n",
               connections, work.how.requests,
               static_cast<unsigned long long>(work.how.request_size),
               static_cast<unsigned long long>(work.how.queue_size));
}

/// Throws Error.
void run(Task& task, Side& source, Side& destination) {
  const Options& options = task.options;
  const Joined joined = join(options, source, destination);
  Work work{task, source, destination,
            engine_options(options, source, destination, joined)};
  work.how.checksum = task.checksum.get();
  if (!task.ranges.empty()) work.how.ranges = &task.ranges;
  if (options.verbose) describe(work, joined.connections);
  if (options.verify != Options::Verify::only) {
    Engine engine(*source.endpoint, source.name, *destination.endpoint,
                  destination.name, work.how);
    run_engine(work, "copy", work.how.checksum, engine, [] {});
    if (options.verbose && joined.offload)
      std::fprintf(stderr,
                   "radoscopy: %llu bytes were copied inside the cluster\n",
                   static_cast<unsigned long long>(
                       engine.counts().offloaded));
  }
  if (options.verify != Options::Verify::no) verify(work);
}

/// What is left of a copy that ends too early; `destination` must outlive it.
Leftover leftover_of(const Side& destination) {
  return {destination.new_image->name(), "rbd rm",
          [&destination] {
            auto* const rados =
                dynamic_cast<RadosEndpoint*>(destination.endpoint.get());
            return rados != nullptr && rados->is_idle();
          },
          [image = destination.new_image] { image->discard(); }};
}

/// Removes what is left of a copy that has failed.
void discard(Side& destination, Running& running) {
  // Nobody else does it.
  const bool is_left = running.take(
      destination.new_image ? destination.new_image->name() : "");
  destination.endpoint.reset();
  if (!is_left) return;
  running.note(destination.new_image->name() +
               " is left, which `rbd rm` removes: removing it takes too long");
  try {
    destination.new_image->discard([&running] { running.tick(); });
  } catch (const Error& e) {
    complain(e.what());
  }
  running.note("");
}

/// What needs neither side.  Throws Error.
void prepare(Task& task) {
  const Options& options = task.options;
  if (!options.checksum.empty())
    task.checksum =
        std::make_unique<Checksum>(options.checksum, options.synchronous);
  if (options.ranges == "-") {
    task.ranges = read_ranges(std::cin, "--ranges=-");
  } else if (!options.ranges.empty()) {
    std::ifstream file(options.ranges);
    if (!file) nbdrados::fail(errno, options.ranges);
    task.ranges = read_ranges(file, options.ranges);
  }
}

/// Copies, and ends the destination.  Throws Error.
void copy_from(Side& source, Task& task) {
  if (task.signals.received() != 0) throw Error(ECANCELED, "stopped");
  Side destination = open_destination(task.options, source, task.running);
  if (destination.new_image) task.running.keep(leftover_of(destination));
  task.running.note("");
  try {
    run(task, source, destination);
    task.phase = "close";
    if (const int error = destination.endpoint->close(); error != 0)
      throw Error(error, destination.name + ": close: " +
                             destination.endpoint->explain(error));
  } catch (...) {
    discard(destination, task.running);
    throw;
  }
  (void)task.running.take(
      destination.new_image ? destination.new_image->name() : "");
  destination.endpoint.reset();
  if (!destination.new_image) return;
  task.running.note("the copy is complete, but perhaps still called " +
                    destination.new_image->name());
  destination.new_image->publish();
  task.running.note("");
}

/// Copies, and ends both sides.  Throws Error.
void copy(Task& task) {
  prepare(task);
  Side source = open_source(task.options, task.running);
  try {
    copy_from(source, task);
  } catch (...) {
    try {
      close_source(source, task.running);
    } catch (const Error& e) {
      complain(e.what());
    }
    throw;
  }
  try {
    close_source(source, task.running);
  } catch (const Error& e) {
    throw Error(e.code(),
                std::string("the copy is complete, but ") + e.what());
  }
}

/// The exit status.
int copy_or_complain(const Options& options) {
  Running running(options.json);
  int signal_number = 0;
  int status = EXIT_FAILURE;
  {
    const Signals signals([&] { running.stop(); }, [&] { running.report(); },
                          [&](int number) { running.end_if_stuck(number); });
    Task task{options, running, signals};
    try {
      copy(task);
      print(task.digests, options);
      status = EXIT_SUCCESS;
    } catch (const std::exception& e) {
      if (signals.received() == 0) complain(e.what());
      if (options.json && task.phase != nullptr)
        print_json_end(task.phase, e.what());
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
