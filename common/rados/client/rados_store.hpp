// SPDX-License-Identifier: BSD-3-Clause
//
// ObjectStore on librados.

#ifndef NBDRADOS_RADOS_CLIENT_RADOS_STORE_HPP
#define NBDRADOS_RADOS_CLIENT_RADOS_STORE_HPP

#include <rados/librados.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rados/client/rados_cluster.hpp"
#include "rados/client/sparse_read.hpp"
#include "rados/client/watch.hpp"
#include "rados/object_store.hpp"

namespace nbdrados {

class RadosStore final : public ObjectStore, public PlainReader {
 public:
  RadosStore(std::shared_ptr<RadosCluster> cluster, librados::IoCtx io,
             bool copy_writes)
      : cluster_(std::move(cluster)),
        io_(std::move(io)),
        pool_id_(io_.get_id()),
        copy_writes_(copy_writes) {}

  std::unique_ptr<Pending> read(const std::string& oid, std::uint64_t offset,
                                std::span<const MutablePiece> pieces,
                                SnapId snap) override;
  std::unique_ptr<Pending> write(const std::string& oid, const WriteOp& op,
                                 const SnapContext& snapc) override;

  std::unique_ptr<Pending> stat(const std::string& oid, std::uint64_t* size,
                                SnapId snap) override;

  std::unique_ptr<Pending> exec(const std::string& oid, std::string_view cls,
                                std::string_view method,
                                std::string_view input,
                                std::string* output) override;

  std::unique_ptr<Pending> exec_each(
      const std::string& oid, std::span<const MethodCall> calls,
      std::vector<std::string>* outputs) override;

  std::unique_ptr<Pending> xattrs(
      const std::string& oid,
      std::map<std::string, std::string>* out) override;

  std::unique_ptr<Pending> read_all(const std::string& oid,
                                    std::uint64_t limit,
                                    std::string* out) override;

  int map_extents(const std::string& oid, std::uint64_t offset,
                  std::uint64_t length, SnapId snap,
                  std::vector<ObjectRange>* out) override;

  std::unique_ptr<Watch> watch(const std::string& oid,
                               WatchHandler& handler) override {
    return start_watch(cluster_, *this, io_, oid, handler);
  }

  void notify_ack(const std::string& oid, std::uint64_t notify_id,
                  std::uint64_t cookie, std::string_view payload) override;

  std::unique_ptr<Pending> list_watchers(const std::string& oid,
                                         std::vector<Watcher>* out) override;

  std::unique_ptr<Pending> start_notify(const std::string& oid,
                                        std::string_view payload,
                                        std::chrono::milliseconds limit,
                                        std::string* reply) override {
    return start_notification(cluster_, *this, io_, oid, payload, limit,
                              reply);
  }

  std::unique_ptr<Pending> version(const std::string& oid,
                                   std::uint64_t* version) override;

  std::unique_ptr<Pending> list_snaps(const std::string& oid,
                                      SnapSet* out) override;

  int make_snap_id(SnapId* snap) override {
    return result(io_.selfmanaged_snap_create(snap));
  }
  int release_snap_id(SnapId snap) override;

  std::vector<std::string> list(
      const std::function<bool(std::string_view)>& wanted,
      const std::function<void(const std::string&)>& log) override;

  /// An IoCtx whose reads are of `snap`, as long as this.  aio_read takes the
  /// snapshot as an argument; for mapext, compound reads and what is copied the
  /// IoCtx is the only place.
  librados::IoCtx& io_at(SnapId snap);

  // What its pending operations ask of it.
  [[nodiscard]] int result(int r) override;
  void cancel(librados::AioCompletion* c) override { io_.aio_cancel(c); }
  [[nodiscard]] int read_now(const std::string& oid, std::uint64_t offset,
                             std::size_t length,
                             std::span<const MutablePiece> pieces,
                             SnapId snap) override {
    return read_plainly(oid, offset, length, pieces, snap)->wait();
  }

 private:
  std::unique_ptr<Pending> read_plainly(const std::string& oid,
                                        std::uint64_t offset,
                                        std::size_t length,
                                        std::span<const MutablePiece> pieces,
                                        SnapId snap);

  std::shared_ptr<RadosCluster> cluster_;
  librados::IoCtx io_;
  const std::int64_t pool_id_;
  const bool copy_writes_;
  SparseReads sparse_reads_;
  std::mutex mutex_;
  std::map<SnapId, librados::IoCtx> at_snap_;  // guarded by mutex_; nodes stay
};

}  // namespace nbdrados

#endif
