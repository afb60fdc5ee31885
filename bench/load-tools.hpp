// SPDX-License-Identifier: BSD-3-Clause
//
// What the two load generators (raw-loop and nbd-load) share, so that both
// measure in the same way: command line, random offsets, latency histogram,
// CPU and context switch accounting, and the gate protocol.
//
// Nothing here is thread-safe.  Each program issues and reaps in one thread.

#ifndef NBDRADOS_BENCH_LOAD_TOOLS_HPP
#define NBDRADOS_BENCH_LOAD_TOOLS_HPP

#include <sys/resource.h>

#include <array>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <map>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

namespace nbdrados::bench {

using Clock = std::chrono::steady_clock;

/// A wrong command line.  The message is complete and in one line.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A size in bytes from "4096", "4k", "4M", "2G" or "1T" (powers of 1024).
[[nodiscard]] inline std::uint64_t parse_size(const std::string& name,
                                              const std::string& text) {
  const auto bad = [&] {
    return UsageError("--" + name + "=" + text + ": not a size");
  };
  if (text.empty() || text[0] < '0' || text[0] > '9') throw bad();
  std::size_t used = 0;
  std::uint64_t value = 0;
  try {
    value = std::stoull(text, &used);
  } catch (const std::out_of_range&) {
    throw bad();
  }
  const std::string_view suffix = std::string_view(text).substr(used);
  if (suffix.empty()) return value;
  const std::size_t power = std::string_view("kMGT").find(suffix);
  if (suffix.size() != 1 || power == std::string_view::npos) throw bad();
  const unsigned shift = 10 * (static_cast<unsigned>(power) + 1);
  if (value > (UINT64_MAX >> shift)) throw bad();
  return value << shift;
}

/// Command line of the form --key=value and --switch.  Every key that is
/// asked for is known; finish() refuses what nobody asked for.
class Options {
 public:
  Options(int argc, char** argv) {
    for (const std::string_view arg :
         std::span(argv, static_cast<std::size_t>(argc)).subspan(1)) {
      if (!arg.starts_with("--"))
        throw UsageError("unexpected argument " + std::string(arg));
      const std::size_t equals = arg.find('=');
      const std::string key(arg.substr(2, equals - 2));
      values_[key] = equals == std::string_view::npos
                         ? std::string()
                         : std::string(arg.substr(equals + 1));
    }
  }

  [[nodiscard]] bool has(const std::string& key) {
    known_.insert(key);
    return values_.contains(key);
  }
  /// A switch, which takes no value.
  [[nodiscard]] bool flag(const std::string& key) {
    if (!has(key)) return false;
    if (!values_[key].empty()) throw UsageError("--" + key + " has no value");
    return true;
  }
  [[nodiscard]] std::string text(const std::string& key,
                                 const std::string& fallback) {
    return has(key) ? values_[key] : fallback;
  }
  [[nodiscard]] std::string required(const std::string& key) {
    if (!has(key)) throw UsageError("--" + key + "= is missing");
    return values_[key];
  }
  [[nodiscard]] std::uint64_t size(const std::string& key,
                                   std::uint64_t fallback) {
    return has(key) ? parse_size(key, values_[key]) : fallback;
  }
  /// Seconds, with a fraction if wanted.
  [[nodiscard]] double seconds(const std::string& key, double fallback) {
    if (!has(key)) return fallback;
    char* end = nullptr;
    const double value = std::strtod(values_[key].c_str(), &end);
    if (values_[key].empty() || *end != '\0' || !(value >= 0))
      throw UsageError("--" + key + "=" + values_[key] + ": not seconds");
    return value;
  }
  /// One of two words; true for the second.
  [[nodiscard]] bool choice(const std::string& key, const std::string& first,
                            const std::string& second) {
    const std::string value = text(key, first);
    if (value != first && value != second)
      throw UsageError("--" + key + "= is " + first + " or " + second);
    return value == second;
  }
  void finish() const {
    for (const auto& [key, value] : values_)
      if (!known_.contains(key)) throw UsageError("unknown option --" + key);
  }

 private:
  std::map<std::string, std::string> values_;
  std::set<std::string> known_;
};

/// splitmix64 (Steele, Lea, Flood 2014): small, fast, and good enough for
/// offsets.  The same seed gives the same sequence everywhere.
[[nodiscard]] constexpr std::uint64_t mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
  return z ^ (z >> 31);
}

/// Offsets of the operations: `size / stride` places from `start` on, in
/// ascending order (and then again from the start) or at random.
class Places {
 public:
  /// `size` is at least `stride`, and `stride` is not 0.
  Places(std::uint64_t start, std::uint64_t size, std::uint64_t stride,
         bool random, std::uint64_t seed)
      : start_(start), stride_(stride), count_(size / stride),
        random_(random), state_(seed) {}

  [[nodiscard]] std::uint64_t next() {
    std::uint64_t index = next_;
    if (random_) {
      state_ += 0x9e3779b97f4a7c15U;
      index = mix(state_) % count_;
    } else {
      next_ = next_ + 1 == count_ ? 0 : next_ + 1;
    }
    return start_ + index * stride_;
  }

 private:
  std::uint64_t start_;
  std::uint64_t stride_;
  std::uint64_t count_;
  bool random_;
  std::uint64_t state_;
  std::uint64_t next_ = 0;
};

/// Latencies in buckets of 1/32 of a power of two (error below 3.2 %), so
/// that recording one is a few instructions and no allocation.
class Histogram {
 public:
  void add(Clock::duration latency) {
    const auto ns = static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(latency)
            .count());
    ++buckets_[bucket(ns)];
    ++total_;
  }
  /// Microseconds; the upper edge of the bucket that holds the quantile.
  [[nodiscard]] double quantile_us(double quantile) const {
    const double rank = quantile * static_cast<double>(total_);
    double seen = 0;
    for (std::size_t i = 0; i < buckets_.size(); ++i) {
      seen += static_cast<double>(buckets_[i]);
      if (seen >= rank && seen > 0)
        return static_cast<double>(lower_edge(i + 1)) / 1000.0;
    }
    return 0;
  }

 private:
  static constexpr unsigned bits = 5;
  static constexpr std::uint64_t per_power = std::uint64_t{1} << bits;

  static constexpr std::size_t bucket(std::uint64_t ns) {
    if (ns < per_power) return ns;
    const auto power = static_cast<unsigned>(std::bit_width(ns)) - 1;
    return (power - bits + 1) * per_power +
           ((ns >> (power - bits)) & (per_power - 1));
  }
  static constexpr std::uint64_t lower_edge(std::size_t index) {
    if (index < per_power) return index;
    const unsigned shift = static_cast<unsigned>(index / per_power) - 1;
    return (per_power + index % per_power) << shift;
  }

  std::array<std::uint64_t, 60 * per_power> buckets_{};
  std::uint64_t total_ = 0;
};

/// CPU time and context switches of this process so far, with all its
/// threads, also those that have ended (getrusage(2), RUSAGE_SELF).
struct Usage {
  double user_us = 0;
  double system_us = 0;
  double voluntary = 0;
  double involuntary = 0;

  [[nodiscard]] static Usage now() {
    rusage r{};
    ::getrusage(RUSAGE_SELF, &r);
    const auto us = [](const timeval& t) {
      return static_cast<double>(t.tv_sec) * 1e6 +
             static_cast<double>(t.tv_usec);
    };
    return {us(r.ru_utime), us(r.ru_stime), static_cast<double>(r.ru_nvcsw),
            static_cast<double>(r.ru_nivcsw)};
  }
};

/// When a phase ends: after so many operations (0: no bound), or when this
/// time has passed, whichever is first.
struct Bound {
  std::uint64_t operations = 0;
  Clock::duration duration = Clock::duration::max();
};

[[nodiscard]] inline Bound bound_of(std::uint64_t operations,
                                    double seconds) {
  Bound bound{.operations = operations};
  if (seconds > 0)
    bound.duration = std::chrono::duration_cast<Clock::duration>(
        std::chrono::duration<double>(seconds));
  return bound;
}

/// What one phase did.
struct Result {
  std::uint64_t operations = 0;
  std::uint64_t missing = 0;  // reads of objects that do not exist
  double elapsed_s = 0;       // from the first submit to the last completion
  Histogram latency;
  Usage before;
  Usage after;
};

/// The gate: the driver reads a server's counters while nothing is in
/// flight and every connection is still open (a thread that has ended
/// takes its context switches with it).  After connecting and warming up
/// this program prints "ready" and waits for a line; after the measured
/// phase it prints its result and waits for a line before it disconnects.
/// Without --gate nothing waits.
class Gate {
 public:
  explicit Gate(bool enabled) : enabled_(enabled) {}
  void before_measuring() const {
    if (!enabled_) return;
    std::cout << "ready" << std::endl;
    wait();
  }
  void after_measuring() const {
    if (enabled_) wait();
  }

 private:
  static void wait() {
    std::string line;
    std::getline(std::cin, line);
  }
  bool enabled_;
};

/// One line of JSON from numbers, booleans and plain words (nothing that
/// needs escaping).
class Json {
 public:
  Json& add(std::string_view key, double value) {
    begin(key);
    std::array<char, 40> text{};
    std::snprintf(text.data(), text.size(), "%.3f", value);
    out_ += text.data();
    return *this;
  }
  Json& add(std::string_view key, std::uint64_t value) {
    begin(key);
    out_ += std::to_string(value);
    return *this;
  }
  Json& add(std::string_view key, bool value) {
    begin(key);
    out_ += value ? "true" : "false";
    return *this;
  }
  Json& add(std::string_view key, const std::string& value) {
    begin(key);
    out_ += '"' + value + '"';
    return *this;
  }
  /// The fields that every result has.
  Json& add(const Result& result, std::uint64_t block_size) {
    const auto ops = static_cast<double>(result.operations);
    const double rate =
        result.elapsed_s > 0 ? ops / result.elapsed_s : 0;
    add("block_size", block_size);
    add("ops", result.operations);
    add("bytes", result.operations * block_size);
    add("missing", result.missing);
    add("seconds", result.elapsed_s);
    add("iops", rate);
    add("mb_per_s", rate * static_cast<double>(block_size) / 1e6);
    add("latency_us_p50", result.latency.quantile_us(0.50));
    add("latency_us_p99", result.latency.quantile_us(0.99));
    add("cpu_user_us", result.after.user_us - result.before.user_us);
    add("cpu_system_us", result.after.system_us - result.before.system_us);
    add("switches_voluntary",
        result.after.voluntary - result.before.voluntary);
    return add("switches_involuntary",
               result.after.involuntary - result.before.involuntary);
  }
  [[nodiscard]] std::string line() const { return "{" + out_ + "}"; }

 private:
  void begin(std::string_view key) {
    if (!out_.empty()) out_ += ", ";
    out_ += '"';
    out_ += key;
    out_ += "\": ";
  }
  std::string out_;
};

}  // namespace nbdrados::bench

#endif  // NBDRADOS_BENCH_LOAD_TOOLS_HPP
