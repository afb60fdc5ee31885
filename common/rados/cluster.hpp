// SPDX-License-Identifier: BSD-3-Clause
//
// A connection to a Ceph cluster, and the pools in it as ObjectStores.

#ifndef NBDRADOS_RADOS_CLUSTER_HPP
#define NBDRADOS_RADOS_CLUSTER_HPP

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "rados/object_store.hpp"

namespace nbdrados {

/// How to find and enter a cluster.
struct ClusterConfig {
  /// ceph.conf; must exist where given.  Without it Ceph's own search finds
  /// one, or none, which is no error (rados_conf_read_file, NULL path).
  std::optional<std::string> conf;
  /// TYPE.ID of the user.
  std::string entity = "client.admin";
  std::string cluster_name = "ceph";
  std::optional<std::string> keyring;
  std::optional<std::string> keyfile;
  std::optional<std::string> mon_host;
  /// Ceph options, set last, so that they win.
  std::vector<std::pair<std::string, std::string>> options;
  /// Bound on connecting and on each metadata operation while opening.
  std::chrono::milliseconds connect_timeout{30000};
  /// Wait for space in a full cluster or pool, as Ceph does by default,
  /// instead of failing with ENOSPC.
  bool wait_when_full = false;
};

/// The version of the librados in use, "major.minor.extra" of its API.
[[nodiscard]] std::string librados_version();

/// The release of Ceph that this librados is of, for example "18.2.7", or
/// "unknown".  Needs no cluster.  Thread-safe.
[[nodiscard]] std::string ceph_version();

/// What taking a lock from a client needs of the cluster.  Thread-safe.
class Blocklister {
 public:
  virtual ~Blocklister() = default;

  /// This client's id, the number in "client.4711".
  [[nodiscard]] virtual std::uint64_t client_id() const = 0;

  /// Whether that is a client of this process, this one or another, that has not
  /// been found to be blocklisted.
  [[nodiscard]] virtual bool is_own(std::uint64_t client) const {
    return client == client_id();
  }

  /// Shuts a client out of the cluster: no OSD takes anything from it any
  /// more, and what it tries fails with ESHUTDOWN.  `address` is that of a
  /// Watcher or LockHolder; `duration` 0 is the monitors' default
  /// (mon_osd_blocklist_default_expire, one hour).  Returns when this client
  /// has the map that says so, thus later operations of this client reach OSDs
  /// that know.  Blocks; throws Error: EACCES where the key does not allow it
  /// ("profile rbd" does), ETIMEDOUT where no monitor answers.
  virtual void blocklist(const std::string& address,
                         std::chrono::seconds duration) = 0;

  /// Returns when this client has the newest OSD map of the monitors.  Blocks,
  /// while there are no monitors for ever; throws Error.
  virtual void wait_for_latest_osdmap() = 0;
};

/// A connected client.  Thread-safe.  librados starts threads, so one must
/// not be made before a fork whose child uses it.
class Cluster : public Blocklister,
                public std::enable_shared_from_this<Cluster> {
 public:
  /// Connects.  Throws Error: ENOENT (conf, keyring or monitors not found),
  /// EACCES (the key is wrong or the user unknown), ETIMEDOUT (no monitor
  /// answered within connect_timeout), EINVAL (an unknown or malformed Ceph
  /// option).
  [[nodiscard]] static std::shared_ptr<Cluster> connect(
      const ClusterConfig& config);
  /// What a store is for.  Metadata operations (locks, watches, headers)
  /// never wait for space, whatever wait_when_full says.
  enum class Purpose : std::uint8_t { metadata, data };

  /// A pool and RADOS namespace ("": the default one).  Throws Error ENOENT
  /// where there is no such pool.
  [[nodiscard]] virtual std::shared_ptr<ObjectStore> open_pool(
      const std::string& pool, const std::string& name_space,
      Purpose purpose) = 0;
  [[nodiscard]] virtual std::shared_ptr<ObjectStore> open_pool(
      std::int64_t pool_id, const std::string& name_space,
      Purpose purpose) = 0;

  /// The number of a pool now: the monitors are asked, as this client's map
  /// may be of a time when the name was another pool's.  Blocks; throws Error:
  /// ENOENT where there is none, ETIMEDOUT where no monitor answers within
  /// timeout().
  [[nodiscard]] virtual std::int64_t pool_id(const std::string& /*pool*/) {
    return -1;
  }

  /// What tells the cluster from all others; empty: that is not known.
  [[nodiscard]] virtual std::string fsid() { return {}; }

  /// Bound on one metadata operation.
  [[nodiscard]] virtual std::chrono::milliseconds timeout() const = 0;

  /// Whether an operation has failed because the cluster has blocklisted this
  /// client.  Once true it stays so, although an entry of the blocklist can be
  /// removed, and ends some time: meanwhile others may have taken what this
  /// client had, so it is fit for nothing new.
  [[nodiscard]] virtual bool shut_out() const noexcept { return false; }

  // What creating an image needs besides stores.  Clusters in which nobody
  // creates an image of format 2 need not have it.

  /// The value of a Ceph option, from all of this client's sources; none:
  /// there is no such option.
  [[nodiscard]] virtual std::optional<std::string> ceph_option(
      const std::string& /*name*/) {
    return std::nullopt;
  }
  /// Makes a pool that has no snapshots yet one of self-managed snapshots, for
  /// ever; does nothing where it is one.  Blocks; throws Error: EINVAL where
  /// it has snapshots of the whole pool (`rados mksnap`), EPERM, ETIMEDOUT.
  virtual void use_self_managed_snapshots(const std::string& /*pool*/) {}
};

}  // namespace nbdrados

#endif
