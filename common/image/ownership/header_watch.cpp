// SPDX-License-Identifier: BSD-3-Clause

#include "image/ownership/header_watch.hpp"

#include <cerrno>
#include <chrono>
#include <utility>

#include "rados/error.hpp"

namespace nbdrados {

void HeaderWatch::make() {
  retire();
  const ImageTraits& traits = core_.traits;
  const auto now = BootClock::now();
  suspended_ = BootClock::suspended();
  try {
    watch_ = core_.format->header_store().watch(traits.header_oid, handler_);
    core_.state.guard_until(now + watch_->kept_for());
    note_cookies();
  } catch (const Error& e) {
    // A key without write capability cannot watch; who only reads can do
    // without, sees changes at the next open, and must ask whether what is
    // absent is zeros.
    if (core_.state.writable() ||
        (e.code() != EPERM && e.code() != EACCES && e.code() != EROFS))
      throw;
    core_.state.guard_until(BootClock::time_point::min());
    core_.log(traits.name + ": changes will not be noticed: " +
                  without_name(traits.name, e.what()),
              false);
  }
}

int HeaderWatch::check() {
  const auto now = BootClock::now();
  const auto suspended = BootClock::suspended();
  if (const int code = watch_->check(); code != 0) return code;
  // The OSD has counted this time, and librados has not.
  if (suspended > suspended_ + std::chrono::seconds(1)) return ETIMEDOUT;
  core_.state.guard_until(now + watch_->kept_for());
  return 0;
}

void HeaderWatch::retire() {
  if (watch_) former_.push_back(std::move(watch_));
}

void HeaderWatch::forget_former() {
  former_.clear();
  note_cookies();
}

void HeaderWatch::end() {
  watch_.reset();
  forget_former();
}

bool HeaderWatch::is_ours(std::uint64_t cookie) {
  const std::scoped_lock lock(mutex_);
  const auto it = cookies_.find(cookie);
  return it != cookies_.end() && BootClock::now() < it->second;
}

std::set<std::uint64_t> HeaderWatch::cookies_now() const {
  std::set<std::uint64_t> now;
  if (watch_) now.insert(watch_->cookie());
  for (const auto& watch : former_) now.insert(watch->cookie());
  return now;
}

void HeaderWatch::note_cookies() {
  constexpr auto no_end = BootClock::time_point::max();
  const auto now = BootClock::now();
  const std::set<std::uint64_t> present = cookies_now();
  const std::scoped_lock lock(mutex_);
  for (auto& [cookie, until] : cookies_)
    if (until == no_end && !present.contains(cookie)) until = now + named_for;
  std::erase_if(cookies_, [&](const auto& c) { return c.second <= now; });
  for (const std::uint64_t cookie : present) cookies_[cookie] = no_end;
}

}  // namespace nbdrados
