// SPDX-License-Identifier: BSD-3-Clause

#include "image/ownership/exclusive_lock.hpp"

#include <algorithm>
#include <cerrno>
#include <exception>
#include <utility>
#include <vector>

#include "rados/error.hpp"
#include "rbd/encoding.hpp"

namespace nbdrados {

namespace {

// Others that come and go can make a try start again, but not for ever.
constexpr int rounds_max = 20;

}  // namespace

ExclusiveLock::ExclusiveLock(ObjectStore& store, std::string header_oid,
                             Blocklister& blocklister, Options options)
    : store_(store),
      oid_(std::move(header_oid)),
      blocklister_(blocklister),
      options_(std::move(options)),
      client_(blocklister.client_id()) {}

ExclusiveLock::~ExclusiveLock() = default;

// ---- Operations on the header

LockInfo ExclusiveLock::info() {
  const std::string input = encode_get_lock_info(rbd_lock_name);
  std::string output;
  const int r = store_.exec(oid_, lock_class, lock_method_get_info, input,
                            &output)
                    ->wait_for(options_.limit);
  check(r, options_.what + ": cannot ask who has the exclusive lock");
  return decode_lock_info(output);
}

// The header must exist: lock would make one where an image has been removed.
int ExclusiveLock::change(std::string_view method, std::string_view input) {
  WriteOp op;
  op.assert_exists().exec(lock_class, method, input);
  return store_.write(oid_, op, {})->wait_for(options_.limit);
}

void ExclusiveLock::check_change(int r, std::string_view doing) const {
  if (r >= 0) return;
  std::string message = options_.what;
  message.append(": ").append(doing);
  fail(-r, message);
}

// ---- Owners

bool ExclusiveLock::ours(const LockHolder& holder) const {
  return holder.entity_type == entity_client &&
         holder.entity_number == static_cast<std::int64_t>(client_);
}

bool ExclusiveLock::left_over(const LockHolder& holder) const {
  return holder.entity_type == entity_client &&
         blocklister_.is_own(static_cast<std::uint64_t>(holder.entity_number));
}

std::string ExclusiveLock::text(const LockHolder& holder) {
  return holder.entity() + " (" + holder.address + ")";
}

std::string ExclusiveLock::owner_text() const {
  if (!owner_) return {};
  return options_.what + " is locked by " + text(owner_->holder) +
         (owner_->alive ? ", which is alive" : ", which seems to be dead");
}

/// The holder, if it is a client that takes and releases the lock as we do.
const LockHolder& ExclusiveLock::checked(const LockInfo& info) const {
  const LockHolder& holder = info.holders.front();
  const std::string who = options_.what + " is locked by " + text(holder);
  const char* const never = ", which must release it itself (rbd lock ls)";
  if (info.type != LockType::exclusive)
    throw Error(EBUSY, who + " with a lock that is " +
                           std::string(to_string(info.type)) + never);
  if (info.tag != rbd_lock_tag)
    throw Error(EBUSY, who + " with a lock that has the tag " +
                           in_quotes(info.tag) + never);
  if (!parse_rbd_lock_cookie(holder.cookie))
    throw Error(EBUSY, who + " with a lock that has the name " +
                           in_quotes(holder.cookie) + never);
  return holder;
}

// librbd compares the addresses, krbd as well.  The number of the client is as
// unique, and who is alive by either must not be shut out because of a
// difference in spelling.
bool ExclusiveLock::alive(const LockHolder& holder) {
  std::vector<Watcher> watchers;
  const int r =
      store_.list_watchers(oid_, &watchers)->wait_for(options_.limit);
  check(r, options_.what + ": cannot ask who watches the header");
  const auto handle = parse_rbd_lock_cookie(holder.cookie);
  return std::any_of(
      watchers.begin(), watchers.end(), [&](const Watcher& watcher) {
        return watcher.cookie == handle &&
               (watcher.address == holder.address ||
                (holder.entity_type == entity_client &&
                 holder.entity_number ==
                     static_cast<std::int64_t>(watcher.client)));
      });
}

void ExclusiveLock::break_lock(const LockHolder& holder) {
  const std::string doing =
      "cannot take the exclusive lock from " + text(holder) +
      ", which seems to be dead";
  if (!left_over(holder)) {
    try {
      blocklister_.blocklist(holder.address, std::chrono::seconds(0));
      blocklister_.wait_for_latest_osdmap();
    } catch (const Error& e) {
      throw Error(e.code(), options_.what + ": " + doing + ": " + e.what());
    }
  }
  const int r =
      change(lock_method_break, encode_break_lock(rbd_lock_name, holder));
  // ENOENT: another client was faster.
  if (r != -ENOENT) check_change(r, doing);
}

// ---- Acquiring and releasing

ExclusiveLock::Result ExclusiveLock::acquired(std::string cookie) {
  cookie_ = std::move(cookie);
  renames_.clear();
  state_ = State::held;
  owner_.reset();
  return Result::acquired;
}

void ExclusiveLock::forget() noexcept {
  state_ = State::none;
  cookie_.clear();
  renames_.clear();
}

/// There was no answer.
void ExclusiveLock::may_be_left(std::string cookie) {
  cookie_ = std::move(cookie);
  state_ = State::left;
}

ExclusiveLock::Result ExclusiveLock::try_acquire(std::uint64_t watch_cookie) {
  const std::string doing = "cannot take the exclusive lock";
  std::string cookie = rbd_lock_cookie(watch_cookie);
  owner_.reset();
  if (held()) {
    rewatched(watch_cookie);
    return Result::acquired;
  }
  const std::string request =
      encode_lock(rbd_lock_name, LockType::exclusive, cookie, rbd_lock_tag, "");
  std::optional<LockOwner> last;
  for (int round = 0; round < rounds_max; ++round) {
    const int r = change(lock_method_lock, request);
    // EEXIST: by an operation of ours whose answer we did not get.
    if (r == 0 || r == -EEXIST) return acquired(std::move(cookie));
    if (r == -ETIMEDOUT) may_be_left(cookie);
    if (r == -ESHUTDOWN) forget();
    if (r != -EBUSY) check_change(r, doing);

    const LockInfo seen = info();
    if (seen.holders.empty()) continue;
    const LockHolder& holder = checked(seen);
    // By an operation of ours whose answer we did not get, and under the name
    // of an earlier watch, which the OSD may still list.
    const bool mine = ours(holder) && holder.cookie == cookie_;
    last = LockOwner{.holder = holder, .alive = !mine && alive(holder)};
    if (last->alive) break;
    if (info() != seen) continue;
    if (ours(holder)) {
      const int changed =
          change(lock_method_set_cookie,
                 encode_set_lock_cookie(rbd_lock_name, LockType::exclusive,
                                        holder.cookie, rbd_lock_tag, cookie));
      if (changed >= 0) return acquired(std::move(cookie));
      if (changed == -ETIMEDOUT) may_be_left(cookie);
      if (changed != -EBUSY) check_change(changed, doing);
      continue;
    }
    if (!options_.break_dead && !left_over(holder)) break;
    if (holder.address.empty() || holder.address == "-")
      throw Error(EBUSY, options_.what + " is locked by " + holder.entity() +
                             ", which seems to be dead, but has no address to "
                             "shut it out by (rbd lock ls)");
    break_lock(holder);
  }
  owner_ = std::move(last);
  return Result::busy;
}

void ExclusiveLock::rewatched(std::uint64_t watch_cookie) {
  if (!held()) return;
  const std::string cookie = rbd_lock_cookie(watch_cookie);
  for (int round = 0; round < rounds_max && cookie_ != cookie; ++round) {
    const int r =
        change(lock_method_set_cookie,
               encode_set_lock_cookie(rbd_lock_name, LockType::exclusive,
                                      cookie_, rbd_lock_tag, cookie));
    if (r >= 0) {
      cookie_ = cookie;
      break;
    }
    if (r != -EBUSY) {
      if (renames_.empty() || renames_.back() != cookie)
        renames_.push_back(cookie);
      check_change(r, "cannot keep the exclusive lock");
    }
    // Not by this name.  By another one, if an earlier call had no answer; one
    // that was never tried is of another image of this client.
    const LockInfo now = info();
    if (now.holders.size() == 1 && now.type == LockType::exclusive &&
        now.tag == rbd_lock_tag && ours(now.holders.front()) &&
        (now.holders.front().cookie == cookie ||
         std::ranges::find(renames_, now.holders.front().cookie) !=
             renames_.end())) {
      cookie_ = now.holders.front().cookie;
      continue;
    }
    forget();
    throw Error(ESHUTDOWN,
                options_.what + ": the exclusive lock has been lost" +
                    (now.holders.empty()
                         ? ""
                         : " to " + text(now.holders.front())));
  }
  if (cookie_ == cookie) renames_.clear();
}

void ExclusiveLock::release() {
  if (state_ == State::none) return;
  if (held()) state_ = State::leaving;
  // Whatever comes of it.
  struct Settle {
    std::atomic<State>& state;
    ~Settle() {
      if (state == State::leaving) state = State::left;
    }
  } const settle{state_};
  const auto unlock = [this] {
    return change(lock_method_unlock, encode_unlock(rbd_lock_name, cookie_));
  };
  int r = unlock();
  for (; r == -ENOENT && !renames_.empty(); r = unlock()) {
    cookie_ = std::move(renames_.back());
    renames_.pop_back();
  }
  if (r >= 0 || r == -ENOENT || r == -ESHUTDOWN)
    forget();
  if (r != -ENOENT) check_change(r, "cannot release the exclusive lock");
}

// ---- Notifications

int ExclusiveLock::request_release(std::uint64_t watch_cookie) {
  return ask(encode_notify_request_lock(client_id(watch_cookie)));
}

int ExclusiveLock::ask(const std::string& payload) {
  std::string reply;
  const int r = store_.notify(
      oid_, payload,
      std::min<std::chrono::milliseconds>(options_.limit, notify_limit),
      &reply);
  // Late: of some watcher that is not the owner, perhaps.
  if (r != -ETIMEDOUT)
    check_change(r, "cannot ask the owner of the exclusive lock");
  if (reply.empty()) return -ETIMEDOUT;
  const NotifyReplies replies = decode_notify_replies(reply);
  const NotifyReplies::Answer* owner = nullptr;
  for (const NotifyReplies::Answer& answer : replies.answers) {
    if (answer.payload.empty()) continue;
    if (owner != nullptr) return -EINVAL;
    owner = &answer;
  }
  if (owner == nullptr) return -ETIMEDOUT;
  try {
    return std::min(decode_notify_response(owner->payload), 0);
  } catch (const Error&) {
    return -EINVAL;
  }
}

void ExclusiveLock::announce(const std::string& payload) noexcept {
  try {
    announcement_ = store_.start_notify(oid_, payload, notify_limit, nullptr);
  } catch (const std::exception&) {
    // Others wait for their time limit and try themselves.
    announcement_.reset();
  }
}

void ExclusiveLock::announce_acquired(std::uint64_t watch_cookie) noexcept {
  announce(encode_notify_acquired_lock(client_id(watch_cookie)));
}

void ExclusiveLock::announce_released(std::uint64_t watch_cookie) noexcept {
  announce(encode_notify_released_lock(client_id(watch_cookie)));
}

void ExclusiveLock::finish_announcing(
    std::chrono::milliseconds limit) noexcept {
  if (!announcement_) return;
  try {
    static_cast<void>(announcement_->wait_for(limit));
  } catch (const std::exception&) {
    // As for announce.
  }
  announcement_.reset();
}

}  // namespace nbdrados
