// SPDX-License-Identifier: BSD-3-Clause
//
// Watches and notifications on librados.

#ifndef NBDRADOS_RADOS_CLIENT_WATCH_HPP
#define NBDRADOS_RADOS_CLIENT_WATCH_HPP

#include <rados/librados.hpp>

#include <chrono>
#include <memory>
#include <string>
#include <string_view>

#include "rados/client/pending.hpp"
#include "rados/client/rados_cluster.hpp"
#include "rados/object_store.hpp"

namespace nbdrados {

/// Watches `oid`.  Blocks, for cluster->timeout() at most; throws Error.
[[nodiscard]] std::unique_ptr<Watch> start_watch(
    std::shared_ptr<RadosCluster> cluster, PendingOwner& store,
    librados::IoCtx& io, const std::string& oid, WatchHandler& handler);

/// Notifies the watchers of `oid`; see ObjectStore::start_notify.
[[nodiscard]] std::unique_ptr<Pending> start_notification(
    std::shared_ptr<RadosCluster> cluster, PendingOwner& store,
    librados::IoCtx& io, const std::string& oid, std::string_view payload,
    std::chrono::milliseconds limit, std::string* reply);

}  // namespace nbdrados

#endif
