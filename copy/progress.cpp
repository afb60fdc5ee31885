// SPDX-License-Identifier: BSD-3-Clause

#include "progress.hpp"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <utility>

#include "json.hpp"

namespace radoscopy {

namespace {

using namespace std::chrono_literals;
using nbdrados::copy::unknown_size;

constexpr auto bar_interval = 100ms;
constexpr auto json_interval = 1s;

/// "1.5 GiB"
std::string human(double bytes) {
  static constexpr const char* units[] = {"B",   "KiB", "MiB", "GiB",
                                          "TiB", "PiB", "EiB"};
  std::size_t unit = 0;
  for (; bytes >= 1024 && unit + 1 < std::size(units); ++unit) bytes /= 1024;
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", bytes,
                units[unit]);
  return text;
}

std::string human_time(double seconds) {
  const auto all = static_cast<std::uint64_t>(std::min(seconds, 1e9));
  char text[32];
  if (all >= 3600)
    std::snprintf(text, sizeof text, "%u:%02u:%02u",
                  static_cast<unsigned>(all / 3600),
                  static_cast<unsigned>(all / 60 % 60),
                  static_cast<unsigned>(all % 60));
  else
    std::snprintf(text, sizeof text, "%u:%02u",
                  static_cast<unsigned>(all / 60),
                  static_cast<unsigned>(all % 60));
  return text;
}

void write_all(int fd, const std::string& text) {
  for (std::size_t at = 0; at < text.size();) {
    const ssize_t n = ::write(fd, text.data() + at, text.size() - at);
    // Nobody reads it: that is no reason to end the copy.
    if (n <= 0) return;
    at += static_cast<std::size_t>(n);
  }
}

}  // namespace

void print_json_end(const std::string& operation, const std::string& error) {
  write_all(STDOUT_FILENO, "{\"operation\": " + json_string(operation) +
                               ", \"complete\": false, \"error\": " +
                               json_string(error) + "}\n");
}

Progress::Progress(std::string operation,
                   const nbdrados::copy::Engine& engine,
                   const Options& options)
    : operation_(std::move(operation)),
      engine_(engine),
      options_(options),
      begin_(std::chrono::steady_clock::now()) {
  if (!options_.progress && !options_.json) return;
  if (options_.progress_fd) show_percent(false);
  thread_ = std::thread([this] { work(); });
}

Progress::~Progress() { finish("stopped"); }

double Progress::seconds() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() -
                                       begin_)
      .count();
}

/// 0 where the size is not known.
unsigned Progress::percent() const {
  const std::uint64_t size = engine_.size();
  if (size == unknown_size || size == 0) return 0;
  return static_cast<unsigned>(
      std::min(100.0, 100.0 * static_cast<double>(engine_.counts().done()) /
                          static_cast<double>(size)));
}

std::string Progress::line() const {
  const auto done = static_cast<double>(engine_.counts().done());
  const double rate = done / std::max(seconds(), 1e-3);
  std::string text = human(done);
  const std::uint64_t size = engine_.size();
  if (size != unknown_size) text += " of " + human(static_cast<double>(size));
  text += ", " + human(rate) + "/s";
  if (size != unknown_size && rate > 0)
    text += ", " + human_time((static_cast<double>(size) - done) / rate) +
            " left";
  return text;
}

void Progress::show_percent(bool complete) const {
  write_all(options_.progress_fd.value(),
            std::to_string(complete ? 100 : percent()) + "/100\n");
}

void Progress::show_bar() const {
  constexpr std::size_t width = 30;
  const unsigned n = percent();
  std::string bar(n * width / 100, '*');
  bar.resize(width, '-');
  char begin[16];
  std::snprintf(begin, sizeof begin, "\r%3u%% [", n);
  // To the end of the line, where the last one was longer.
  write_all(STDERR_FILENO, begin + bar + "] " + line() + "\033[K");
}

void Progress::show_json(const std::string& more) const {
  const auto& counts = engine_.counts();
  char text[512];
  const std::uint64_t size = engine_.size();
  const std::string of_all =
      size == unknown_size ? "null" : std::to_string(size);
  std::snprintf(text, sizeof text,
                "{\"operation\": \"%s\", \"seconds\": %.3f, "
                "\"size\": %s, \"copied\": %llu, \"offloaded\": %llu, "
                "\"zeroed\": %llu, \"skipped\": %llu",
                operation_.c_str(), seconds(), of_all.c_str(),
                static_cast<unsigned long long>(counts.copied),
                static_cast<unsigned long long>(counts.offloaded),
                static_cast<unsigned long long>(counts.zeroed),
                static_cast<unsigned long long>(counts.skipped));
  write_all(STDOUT_FILENO, text + more + "}\n");
}

void Progress::show(bool with_json) {
  if (options_.json && with_json) show_json("");
  if (!options_.progress) return;
  if (!options_.progress_fd) {
    show_bar();
  } else if (const unsigned n = percent(); n != shown_ && n < 100) {
    shown_ = n;
    show_percent(false);
  }
}

void Progress::work() {
  auto next_json = begin_ + json_interval;
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, bar_interval, [this] { return stopping_; })) {
    const auto now = std::chrono::steady_clock::now();
    const bool json_is_due = now >= next_json;
    if (json_is_due) next_json += json_interval;
    show(json_is_due);
  }
}

void Progress::finish(const std::string& error, const std::string& more) {
  if (!thread_.joinable()) return;
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  thread_.join();
  if (options_.progress && options_.progress_fd) {
    if (error.empty()) show_percent(true);
  } else if (options_.progress) {
    show_bar();
    write_all(STDERR_FILENO, "\n");
  }
  if (options_.json)
    show_json(error.empty() ? more + ", \"complete\": true"
                            : ", \"complete\": false, \"error\": " +
                                  json_string(error));
}

}  // namespace radoscopy
