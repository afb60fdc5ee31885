// SPDX-License-Identifier: BSD-3-Clause
//
// The Ceph clients of a server.
//
// A client has its own address, and that is what a cluster blocklists: with
// it, all images go that are open through it.  So a few images have a client
// each, and many share some; measured with 16.2.15, a client takes 12 threads,
// 1.5 MB and a connection to each OSD.  One that has been blocklisted serves
// the images that it has, whose requests fail, and no others: whoever opens an
// image from then on gets another client.

#ifndef NBDRADOS_RADOS_CLIENT_POOL_HPP
#define NBDRADOS_RADOS_CLIENT_POOL_HPP

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "rados/cluster.hpp"
#include "rados/error.hpp"

namespace nbdrados {

/// Thread-safe.  Its mutex is never held during I/O.
class ClientPool {
 public:
  using Connect = std::function<std::shared_ptr<Cluster>()>;
  using Log = std::function<void(const std::string&)>;

  struct Client {
    std::shared_ptr<Cluster> cluster;
  };
  /// An image's share in a client.  The client ends with the last one, but not
  /// before the pool has given it up.
  using Share = std::shared_ptr<const Client>;

  /// Connects the first client; there will be at most `most`, those not
  /// counted that are shut out.  `log` gets a line for each of these.  Throws
  /// what `connect` throws, like all below.
  ClientPool(Connect connect, std::size_t most, Log log);

  /// Calls f(cluster) for what belongs to no image, or not yet, and again with
  /// another client where the cluster turns out to have shut the first one out.
  /// Returns what f returns.
  template <class F>
  auto with_cluster(F&& f) {
    return twice(false, [&](const Share& s) { return f(s->cluster); });
  }

  /// The same for one more image, as f(share): the client with the fewest
  /// shares, but a new one before any gets a second.
  template <class F>
  auto with_share(F&& f) {
    return twice(true, std::forward<F>(f));
  }

 private:
  template <class F>
  auto twice(bool for_image, F&& f) {
    const Share first = get(for_image);
    try {
      return f(first);
    } catch (const Error&) {
      if (!first->cluster->shut_out()) throw;
    }
    return f(get(for_image));
  }
  [[nodiscard]] Share get(bool for_image);
  [[nodiscard]] Share least() const;
  [[nodiscard]] std::vector<Share> take_shut_out();

  const Connect connect_;
  const std::size_t most_;
  const Log log_;
  std::mutex mutex_;
  std::condition_variable changed_;
  // All below guarded by mutex_.
  std::vector<Share> clients_;
  std::size_t connecting_ = 0;
  std::exception_ptr failure_;  // of the last one that could not connect
  std::uint64_t failures_ = 0;
};

}  // namespace nbdrados

#endif
