// SPDX-License-Identifier: BSD-3-Clause
//
// Cluster on librados.

#ifndef NBDRADOS_RADOS_CLIENT_RADOS_CLUSTER_HPP
#define NBDRADOS_RADOS_CLIENT_RADOS_CLUSTER_HPP

#include <rados/librados.hpp>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "rados/client/linger.hpp"
#include "rados/cluster.hpp"

namespace nbdrados {

class RadosCluster final : public Cluster {
 public:
  explicit RadosCluster(const ClusterConfig& config);
  ~RadosCluster() override;

  std::shared_ptr<ObjectStore> open_pool(const std::string& pool,
                                         const std::string& name_space,
                                         Purpose purpose) override;
  std::shared_ptr<ObjectStore> open_pool(std::int64_t pool_id,
                                         const std::string& name_space,
                                         Purpose purpose) override;
  std::uint64_t client_id() const override { return client_id_; }
  bool is_own(std::uint64_t client) const override;
  std::chrono::milliseconds timeout() const override { return timeout_; }
  /// For how long an OSD keeps a watch of this client without a sign of life.
  std::chrono::seconds watch_timeout() const { return watch_timeout_; }

  /// What the answer -ENOENT means: the Objecter gives it for a missing
  /// object and for a missing pool alike (ceph: src/osdc/Objecter.cc,
  /// _check_op_pool_dne).
  int why_missing(std::int64_t pool);

  bool shut_out() const noexcept override { return shut_out_.load(); }
  /// Whoever takes a lock of this client makes sure from then on, as of any
  /// other dead client: what it has sent may still be under way, and its images
  /// are lost anyway.
  void found_shut_out() noexcept;

  /// Returns when no watch callback is queued or under way.
  void flush_watches() { rados_.watch_flush(); }

  std::optional<std::string> ceph_option(const std::string& name) override;
  std::int64_t pool_id(const std::string& pool) override;
  std::string fsid() override;
  /// The pools that are cache tiers over a pool, as far as this client's map
  /// says it, open where `like` is, and their names.
  std::vector<std::pair<librados::IoCtx, std::string>> cache_pools(
      librados::IoCtx& like);
  void use_self_managed_snapshots(const std::string& pool) override;
  void blocklist(const std::string& address,
                 std::chrono::seconds duration) override;
  void wait_for_latest_osdmap() override;

  /// What its watches and notifications leave behind.
  Retired& retired() noexcept { return retired_; }

 private:
  std::shared_ptr<ObjectStore> make_store(librados::IoCtx io,
                                          const std::string& name_space,
                                          Purpose purpose);

  librados::Rados rados_;
  std::uint64_t client_id_ = 0;
  std::chrono::milliseconds timeout_;
  std::chrono::seconds watch_timeout_{30};
  bool wait_when_full_;
  bool operations_time_out_ = false;
  std::atomic<bool> shut_out_{false};
  Retired retired_;  // destroyed when librados has been shut down
};

}  // namespace nbdrados

#endif
