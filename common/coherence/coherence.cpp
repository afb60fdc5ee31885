// SPDX-License-Identifier: BSD-3-Clause

#include "coherence/coherence.hpp"

#include <map>
#include <utility>

namespace nbdrados {

namespace {

thread_local std::shared_ptr<const Promise> offered;

}  // namespace

void Promise::add_keeper(std::weak_ptr<Keeper> keeper) const {
  const std::shared_ptr<Keeper> late = keeper.lock();
  std::uint64_t given_up = 0;
  {
    const std::scoped_lock lock(mutex_);
    // Who asks them counts on their places.
    if (asking_ == 0)
      std::erase_if(keepers_, [](const auto& k) { return k.expired(); });
    keepers_.push_back(std::move(keeper));
    given_up = given_up_;
  }
  if (late && given_up != 0 && given_up == tenure()) late->give_up(given_up);
}

void Promise::give_up() const noexcept {
  const std::uint64_t now = tenure();
  if (now == 0) return;
  std::unique_lock lock(mutex_);
  ++asking_;
  for (std::size_t i = 0; i < keepers_.size(); ++i) {
    const std::shared_ptr<Keeper> keeper = keepers_[i].lock();
    if (!keeper) continue;
    lock.unlock();
    keeper->give_up(now);
    lock.lock();
  }
  --asking_;
  // Nobody asks those who come later.
  given_up_ = now;
}

std::shared_ptr<Promise> make_promise() {
  return std::make_shared<Promise>();
}

std::shared_ptr<Promise> constant_promise(const std::string& identity) {
  static std::mutex mutex;
  static std::map<std::string, std::weak_ptr<Promise>> all;
  const std::scoped_lock lock(mutex);
  std::erase_if(all, [](const auto& p) { return p.second.expired(); });
  std::weak_ptr<Promise>& known = all[identity];
  std::shared_ptr<Promise> promise = known.lock();
  if (!promise) known = promise = make_promise();
  return promise;
}

void offer_promise(std::shared_ptr<const Promise> promise) noexcept {
  offered = std::move(promise);
}

std::shared_ptr<const Promise> take_promise() noexcept {
  return std::exchange(offered, nullptr);
}

}  // namespace nbdrados
