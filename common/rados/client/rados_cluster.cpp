// SPDX-License-Identifier: BSD-3-Clause

#include "rados/client/rados_cluster.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <list>
#include <mutex>
#include <set>

#include "rados/client/connect.hpp"
#include "rados/client/rados_store.hpp"
#include "rados/error.hpp"
#include "rados/pool_list.hpp"

namespace nbdrados {

namespace {

/// Which clients of the cluster this process is, but for those that are shut
/// out; their numbers are the same for all of it.  Thread-safe.
class OwnClients {
 public:
  void add(std::uint64_t client) {
    const std::scoped_lock lock(mutex_);
    clients_.insert(client);
  }
  void remove(std::uint64_t client) {
    const std::scoped_lock lock(mutex_);
    clients_.erase(client);
  }
  [[nodiscard]] bool contains(std::uint64_t client) {
    const std::scoped_lock lock(mutex_);
    return clients_.contains(client);
  }

 private:
  std::mutex mutex_;
  std::set<std::uint64_t> clients_;  // guarded by mutex_
};
OwnClients& own_clients() {
  static OwnClients own;
  return own;
}

}  // namespace

RadosCluster::RadosCluster(const ClusterConfig& config)
    : timeout_(config.connect_timeout),
      wait_when_full_(config.wait_when_full) {
  connect_client(rados_, config);
  operations_time_out_ =
      std::strtod(client_option(rados_, "rados_osd_op_timeout").c_str(),
                  nullptr) > 0;
  client_id_ = rados_.get_instance_id();
  own_clients().add(client_id_);
  // The monitors may have told it only now.
  if (const long t = std::strtol(
          client_option(rados_, "osd_client_watch_timeout").c_str(), nullptr,
          10);
      t > 0)
    watch_timeout_ = std::chrono::seconds(t);
}

RadosCluster::~RadosCluster() {
  if (client_id_ != 0) own_clients().remove(client_id_);
  rados_.shutdown();
}

bool RadosCluster::is_own(std::uint64_t client) const {
  return own_clients().contains(client);
}

int RadosCluster::why_missing(std::int64_t pool) {
  std::string name;
  return rados_.pool_reverse_lookup(pool, &name) == -ENOENT ? -ENXIO
                                                            : -ENOENT;
}

void RadosCluster::found_shut_out() noexcept {
  if (!shut_out_.exchange(true)) own_clients().remove(client_id_);
}

std::optional<std::string> RadosCluster::ceph_option(const std::string& name) {
  std::string value;
  if (rados_.conf_get(name.c_str(), value) < 0) return std::nullopt;
  return value;
}

std::vector<std::pair<librados::IoCtx, std::string>>
RadosCluster::cache_pools(librados::IoCtx& like) {
  std::vector<std::pair<librados::IoCtx, std::string>> found;
  std::list<std::pair<std::int64_t, std::string>> pools;
  check(rados_.pool_list2(pools), "cannot list the pools");
  for (const auto& [id, name] : pools) {
    std::int64_t base = id;  // a pool that is no tier is its own base
    if (id == like.get_id() || rados_.pool_get_base_tier(id, &base) < 0 ||
        base != like.get_id())
      continue;
    librados::IoCtx io;
    if (rados_.ioctx_create2(id, io) < 0) continue;  // deleted just now
    io.set_namespace(like.get_namespace());
    found.emplace_back(std::move(io), name);
  }
  return found;
}

void RadosCluster::use_self_managed_snapshots(const std::string& pool) {
  librados::IoCtx io;
  check(rados_.ioctx_create2(pool_id(pool), io),
        "cannot open pool '" + pool + "'");
  std::uint64_t id = 0;
  const int r = io.selfmanaged_snap_create(&id);
  if (r == -EINVAL)
    throw Error(EINVAL, "pool '" + pool +
                            "' has snapshots of the whole pool (`rados "
                            "mksnap`), so it cannot hold images");
  check(r, "cannot allocate a snapshot id in pool '" + pool + "'");
  // An id that is never used costs nothing, so this may fail.
  (void)io.selfmanaged_snap_remove(id);
}

void RadosCluster::blocklist(const std::string& address,
                             std::chrono::seconds duration) {
  // Waits for the newest map itself (ceph: src/librados/RadosClient.cc).
  check(rados_.blocklist_add(
            address, static_cast<std::uint32_t>(std::clamp<std::int64_t>(
                         duration.count(), 0, 0xffffffff))),
        "cannot blocklist " + address);
}

void RadosCluster::wait_for_latest_osdmap() {
  check(rados_.wait_for_latest_osdmap(), "cannot get the newest OSD map");
}

std::string RadosCluster::fsid() {
  std::string fsid;
  return rados_.cluster_fsid(&fsid) < 0 ? std::string() : fsid;
}

// The map of a client follows when an OSD tells it of a newer one, which may
// be after the answer to the first operation that the OSD has a newer map for;
// librados itself asks the monitors only for names that its map lacks, and
// without a time limit.
std::int64_t RadosCluster::pool_id(const std::string& pool) {
  librados::bufferlist none;
  librados::bufferlist answer;
  check(rados_.mon_command(list_pools_command, none, &answer, nullptr),
        "cannot ask the monitors for pool '" + pool + "'");
  const auto id = find_pool(answer.to_str(), pool);
  if (!id) throw Error(ENOENT, "pool '" + pool + "' does not exist");
  return *id;
}

std::shared_ptr<ObjectStore> RadosCluster::make_store(
    librados::IoCtx io, const std::string& name_space, Purpose purpose) {
  io.set_namespace(name_space);
  // Makes writes to a full cluster or pool fail (ENOSPC, EDQUOT) instead of
  // waiting for ever; removing still works.
  if (!wait_when_full_ || purpose == Purpose::metadata)
    io.set_pool_full_try();
  return std::make_shared<RadosStore>(
      std::static_pointer_cast<RadosCluster>(shared_from_this()),
      std::move(io), purpose == Purpose::metadata || operations_time_out_);
}

std::shared_ptr<ObjectStore> RadosCluster::open_pool(
    const std::string& pool, const std::string& name_space,
    Purpose purpose) {
  return open_pool(pool_id(pool), name_space, purpose);
}

std::shared_ptr<ObjectStore> RadosCluster::open_pool(
    std::int64_t pool_id, const std::string& name_space, Purpose purpose) {
  librados::IoCtx io;
  const int r = rados_.ioctx_create2(pool_id, io);
  if (r == -ENOENT)
    throw Error(ENOENT,
                "pool number " + std::to_string(pool_id) + " does not exist");
  check(r, "cannot open pool number " + std::to_string(pool_id));
  return make_store(std::move(io), name_space, purpose);
}

std::shared_ptr<Cluster> Cluster::connect(const ClusterConfig& config) {
  return std::make_shared<RadosCluster>(config);
}

}  // namespace nbdrados
