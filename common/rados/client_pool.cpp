// SPDX-License-Identifier: BSD-3-Clause

#include "rados/client_pool.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

namespace nbdrados {

ClientPool::ClientPool(Connect connect, std::size_t most, Log log)
    : connect_(std::move(connect)), most_(most), log_(std::move(log)) {
  clients_.push_back(std::make_shared<const Client>(Client{connect_()}));
}

/// Those that are not to be used any more.  The caller holds mutex_, and must
/// not when he lets go of them: the last share ends the client.
std::vector<ClientPool::Share> ClientPool::take_shut_out() {
  const auto it = std::stable_partition(
      clients_.begin(), clients_.end(),
      [](const Share& share) { return !share->cluster->shut_out(); });
  std::vector<Share> taken(std::make_move_iterator(it),
                           std::make_move_iterator(clients_.end()));
  clients_.erase(it, clients_.end());
  return taken;
}

/// The client with the fewest shares; null: there is none.  The caller holds
/// mutex_.
ClientPool::Share ClientPool::least() const {
  const auto it = std::min_element(
      clients_.begin(), clients_.end(), [](const Share& a, const Share& b) {
        return a.use_count() < b.use_count();
      });
  return it == clients_.end() ? nullptr : *it;
}

ClientPool::Share ClientPool::get(bool for_image) {
  std::vector<Share> shut_out;  // outlives the lock
  std::unique_lock lock(mutex_);
  shut_out = take_shut_out();
  for (const Share& share : shut_out)
    log_("the cluster has blocklisted client." +
         std::to_string(share->cluster->client_id()) +
         "; whoever opens an image from now on gets another client");
  for (;;) {
    const bool full = clients_.size() + connecting_ >= most_;
    if (Share share = least()) {
      // Two: the pool's share, and this one.
      if (!for_image || full || share.use_count() == 2) return share;
    }
    if (!full) break;
    // All that there may be are being connected.
    const std::uint64_t before = failures_;
    changed_.wait(lock);
    if (clients_.empty() && failures_ != before)
      std::rethrow_exception(failure_);
  }
  ++connecting_;
  lock.unlock();
  Share made;
  std::exception_ptr failure;
  try {
    made = std::make_shared<const Client>(Client{connect_()});
  } catch (...) {
    failure = std::current_exception();
  }
  lock.lock();
  --connecting_;
  if (made) {
    clients_.push_back(made);
  } else {
    failure_ = failure;
    ++failures_;
    made = least();  // better than none
  }
  changed_.notify_all();
  if (!made) std::rethrow_exception(failure);
  return made;
}

}  // namespace nbdrados
