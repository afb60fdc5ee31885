// SPDX-License-Identifier: BSD-3-Clause

#include "image/state/metadata.hpp"

#include <cerrno>
#include <memory>
#include <utility>

#include "image/state/verdict.hpp"

namespace nbdrados {

View Metadata::read() {
  View view = format_.load();
  view.parent = parents_.find(view);
  return view;
}

void Metadata::load_now(bool end_hold) {
  const std::uint64_t mine = loads_started_.fetch_add(1) + 1;
  try {
    state_.publish(read(), end_hold);
  } catch (const Error& e) {
    // Without its header an image must not be used: the snapshot context
    // may be wrong, and writes would change snapshots.  Other errors, a
    // time-out for instance, say nothing about the header.
    if (is_verdict(e.code())) {
      state_.fail(e, end_hold);
      last_verdict_ = mine;
    }
    throw;
  }
  last_verdict_ = mine;
  // It stays lost, even if the header can be read again.
  if (const auto lost = state_.lost()) throw *lost;
}

void Metadata::load(bool end_hold) {
  const std::scoped_lock one_load(format_mutex_);
  load_now(end_hold);
}

void Metadata::load_as_owner(
    const std::function<void(const std::string&)>& log) {
  const std::scoped_lock one_load(format_mutex_);
  const std::uint64_t mine = loads_started_.fetch_add(1) + 1;
  const ImageTraits& traits = format_.traits();
  View view = read();
  std::shared_ptr<ObjectMap> map;
  if (view.mappable) {
    try {
      map = format_.open_map(traits.layout.object_count(view.size));
    } catch (const Error& e) {
      if (e.code() != EINVAL && e.code() != EIO && e.code() != ENOENT) throw;
      log(traits.name + ": the object map cannot be used: " +
          without_name(traits.name, e.what()));
      format_.invalidate_map(snap_head);
      view.mappable = false;
    }
  }
  state_.begin_tenure(std::move(view), std::move(map));
  last_verdict_ = mine;
}

std::optional<std::chrono::milliseconds> Metadata::keep_alive() {
  const std::scoped_lock lock(format_mutex_);
  const auto next = format_.keep_alive();
  if (const auto until = format_.locked_until()) state_.guard_until(*until);
  return next;
}

void Metadata::retry() {
  using Clock = std::chrono::steady_clock;
  const std::scoped_lock one_try(retry_mutex_);
  if (!state_.failing() || Clock::now() < next_retry_) return;
  try {
    load();
  } catch (const Error&) {
    // The View says what it was, the new one or the old one.
  }
  next_retry_ =
      state_.failing() ? Clock::now() + retry_interval : Clock::time_point{};
}

void Metadata::confirm() {
  // The header is asked once more, after the fact.  Any load that began
  // since then, and came to a verdict, will do: of those who wait here one
  // loads for all.
  const std::uint64_t seen = loads_started_.load();
  const std::scoped_lock one_load(format_mutex_);
  if (last_verdict_ > seen) {
    const auto view = state_.read();
    if (view->failure != 0) throw Error(view->failure, view->reason);
    return;
  }
  try {
    load_now(false);
  } catch (const Error& e) {
    if (!is_verdict(e.code())) throw;
    throw Error(failure_for(e.code()), e.what());
  }
}

}  // namespace nbdrados
