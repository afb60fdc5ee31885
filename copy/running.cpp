// SPDX-License-Identifier: BSD-3-Clause

#include "running.hpp"

#include <dirent.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <future>
#include <memory>
#include <sstream>
#include <thread>
#include <utility>

namespace radoscopy {

namespace {

/// Whether a process is a child of this one, and no zombie.
bool is_child(const std::string& process) {
  std::ifstream file("/proc/" + process + "/stat");
  std::string line;
  std::getline(file, line);
  // "PID (NAME) STATE PARENT ..."; a name may have any characters (proc(5)).
  const auto name_end = line.rfind(')');
  if (name_end == std::string::npos) return false;
  std::istringstream rest(line.substr(name_end + 1));
  char state = 'Z';
  int parent = -1;
  return rest >> state >> parent && state != 'Z' && parent == ::getpid();
}

/// To the servers that were started: libnbd, which started them, may be
/// waiting for one.
void signal_children(int number) {
  DIR* const all = ::opendir("/proc");
  if (all == nullptr) return;
  while (const dirent* const entry = ::readdir(all)) {
    const std::string name = entry->d_name;
    if (name.find_first_not_of("0123456789") == std::string::npos &&
        is_child(name))
      (void)::kill(std::atoi(name.c_str()), number);
  }
  ::closedir(all);
}

}  // namespace

void complain(const std::string& text) {
  std::fprintf(stderr, "radoscopy: %s\n", text.c_str());
}

Running::Announce::Announce(Running& running, nbdrados::copy::Engine& engine,
                            Progress& progress)
    : running_(running) {
  const std::scoped_lock lock(running_.mutex_);
  running_.engine_ = &engine;
  running_.progress_ = &progress;
}

Running::Announce::~Announce() {
  const std::scoped_lock lock(running_.mutex_);
  running_.ticks_ += running_.engine_->activity();
  running_.engine_ = nullptr;
  running_.progress_ = nullptr;
}

void Running::keep(Leftover leftover) {
  const std::scoped_lock lock(mutex_);
  leftovers_.push_back(std::move(leftover));
}

bool Running::take(const std::string& name) {
  {
    const std::scoped_lock lock(mutex_);
    if (!taken_)
      return std::erase_if(leftovers_, [&](const Leftover& leftover) {
               return leftover.name == name;
             }) != 0;
  }
  for (;;) ::pause();
}

std::vector<Leftover> Running::take_for_good() {
  const std::scoped_lock lock(mutex_);
  taken_ = true;
  return std::exchange(leftovers_, {});
}

void Running::note(const std::string& text) {
  const std::scoped_lock lock(mutex_);
  note_ = text;
}

void Running::stop() {
  const std::scoped_lock lock(mutex_);
  if (engine_ != nullptr) engine_->stop();
  last_change_ = std::chrono::steady_clock::now();
}

void Running::report() {
  const std::scoped_lock lock(mutex_);
  if (progress_ != nullptr) complain(progress_->line());
}

std::uint64_t Running::activity() {
  const std::scoped_lock lock(mutex_);
  return ticks_ + (engine_ != nullptr ? engine_->activity() : 0);
}

void Running::end_if_stuck(int signal_number) {
  const auto now = std::chrono::steady_clock::now();
  if (const std::uint64_t n = activity(); n != last_activity_) {
    last_activity_ = n;
    last_change_ = now;
  }
  if (now - last_change_ < patience) return;
  // One that has been stopped can end, too.
  signal_children(SIGTERM);
  signal_children(SIGCONT);
  remove_leftovers();
  signal_children(SIGKILL);
  if (json_) print_json_end("interrupted", "ended by a signal");
  (void)::signal(signal_number, SIG_DFL);
  (void)::raise(signal_number);
}

/// Or says that they are left.
void Running::remove_leftovers() {
  const auto end = std::chrono::steady_clock::now() + removal_time;
  for (Leftover& leftover : take_for_good()) {
    const std::string text =
        leftover.name + " is left, which `" + leftover.remedy +
                             "` removes: ";
    std::string why = text + "what is under way there does not end";
    if (leftover.is_free()) {
      why = text + "it cannot be removed in time";
      auto result = std::make_shared<std::promise<std::string>>();
      auto told = result->get_future();
      // It may never end.
      std::thread([result, remove = std::move(leftover.remove)] {
        try {
          remove();
          result->set_value("");
        } catch (const std::exception& e) {
          result->set_value(e.what());
        }
      }).detach();
      if (told.wait_until(end) == std::future_status::ready) why = told.get();
    }
    if (!why.empty()) complain(why);
  }
  // Servers that were told to end have a moment even where nothing was left.
  std::this_thread::sleep_until(
      std::min(end, std::chrono::steady_clock::now() + removal_time / 3));
  const std::scoped_lock lock(mutex_);
  if (!note_.empty()) complain(note_);
}

}  // namespace radoscopy
