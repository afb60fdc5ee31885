// SPDX-License-Identifier: BSD-3-Clause
//
// ObjectStore on librados.
//
// Copies.  A write hands the caller's memory to librados as it is: the
// bufferlist refers to it ("static" buffers).  librados may keep a reference
// a little longer than the operation takes: an operation that is sent again
// to another OSD can complete while the connection to the first one still
// holds the old message.  So a write is over only when the operation has
// completed and the last reference to the caller's memory is gone
// (WriteBuffers::wait_released); normally that is so at completion
// (Objecter::handle_osd_op_reply drops the operation before it completes
// it, ceph: src/osdc/Objecter.cc).
// An operation that is given up before it is sent (a metadata operation that
// takes too long, or any where the user has set rados_osd_op_timeout) would
// keep its message for as long as the OSD is away, so there data is copied.
// A read copies once, from the buffer that the messenger received into the
// caller's.
//
// Waiting.  A thread waits on the completion itself: the messenger's thread
// wakes it directly, whereas a callback would pass through another thread.

#include <rados/librados.hpp>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <list>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

#include "rados/cluster.hpp"
#include "rados/connect.hpp"
#include "rados/error.hpp"
#include "rados/method_calls.hpp"
#include "rados/pool_list.hpp"
#include "rados/tuning.hpp"

namespace nbdrados {

namespace {

using librados::bufferlist;

bufferlist copied(std::string_view bytes) {
  bufferlist bl;
  bl.append(bytes.data(), static_cast<unsigned>(bytes.size()));
  return bl;
}

/// An AioCompletion, released with the object.
class Completion {
 public:
  Completion() : c_(librados::Rados::aio_create_completion()) {}
  ~Completion() { c_->release(); }
  Completion(const Completion&) = delete;
  Completion& operator=(const Completion&) = delete;
  librados::AioCompletion* get() const noexcept { return c_; }
  /// Before the operation starts; makes is_complete_and_cb() meaningful.
  void set_empty_callback() {
    c_->set_complete_callback(nullptr, [](rados_completion_t, void*) {});
  }

 private:
  librados::AioCompletion* c_;
};

/// Waits for the completion of a watch, unwatch or notification, at most until
/// `deadline`.  Returns its result, or -ETIMEDOUT.  Not only for the completion
/// but also for its callback, which must be set: librados ends what it keeps
/// of a watch or notification in a task of its own that it queues before the
/// callback, and that must not meet a client that has been shut down
/// (ceph: src/librados/IoCtxImpl.cc, C_aio_linger_Complete).
int wait_linger(Completion& c,
                std::chrono::steady_clock::time_point deadline) {
  while (!c.get()->is_complete_and_cb()) {
    if (std::chrono::steady_clock::now() >= deadline) return -ETIMEDOUT;
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return c.get()->get_return_value();
}

class RadosStore;

/// The pending operation of every kind: what differs is finish().
class RadosPending : public Pending {
 public:
  explicit RadosPending(RadosStore& store) : store_(store) {}

  [[nodiscard]] int wait() final {
    if (!done_) {
      if (submit_result_ == 0) completion_.get()->wait_for_complete();
      settle();
    }
    return result_;
  }

  // Only metadata operations are bounded in time, so looking now and then
  // is good enough, and spares all others a completion callback.
  [[nodiscard]] int wait_for(std::chrono::milliseconds limit) final {
    using namespace std::chrono_literals;
    if (done_ || submit_result_ != 0) return wait();
    const auto deadline = std::chrono::steady_clock::now() + limit;
    auto pause = std::chrono::microseconds(50);
    while (!completion_.get()->is_complete()) {
      if (std::chrono::steady_clock::now() >= deadline) {
        cancel();
        completion_.get()->wait_for_complete();
        settle();
        if (result_ == -ECANCELED) result_ = -ETIMEDOUT;
        return result_;
      }
      std::this_thread::sleep_for(pause);
      pause = std::min<std::chrono::microseconds>(pause * 2, 2ms);
    }
    return wait();
  }

  [[nodiscard]] bool completed() final {
    return done_ || submit_result_ != 0 || completion_.get()->is_complete();
  }

  librados::AioCompletion* completion() const noexcept {
    return completion_.get();
  }
  /// The result of the aio_ call itself.  Not zero: nothing was started.
  void submitted(int r) noexcept { submit_result_ = r; }

 protected:
  /// To be called by each final class's destructor: librados must be done
  /// with its members before they go.  What only reads is cancelled where
  /// nobody has waited for it (because another one has failed), lest an OSD
  /// that does not answer makes this hang.  A write that has been cancelled
  /// may still happen: it is waited for.
  void drain(bool reads = true) noexcept {
    if (!done_ && submit_result_ == 0) {
      if (reads && !completion_.get()->is_complete()) cancel();
      completion_.get()->wait_for_complete();
    }
    done_ = true;
  }
  /// Turns the raw result into the caller's.
  virtual int finish(int r) = 0;

 private:
  void cancel();
  void settle();

  RadosStore& store_;
  Completion completion_;
  int submit_result_ = 0;
  int result_ = 0;
  bool done_ = false;
};

class ReadPending final : public RadosPending {
 public:
  ReadPending(RadosStore& store, std::span<const MutablePiece> pieces)
      : RadosPending(store), pieces_(pieces) {}
  ~ReadPending() override { drain(); }
  bufferlist data;

 private:
  int finish(int r) override {
    if (r < 0) return r;
    auto from = data.cbegin();
    std::size_t left = data.length();
    int total = 0;
    for (const MutablePiece& piece : pieces_) {
      const std::size_t n = std::min(piece.size, left);
      if (n == 0) break;
      from.copy(static_cast<unsigned>(n), piece.data);
      left -= n;
      total += static_cast<int>(n);
    }
    data.clear();
    return total;
  }
  std::span<const MutablePiece> pieces_;
};

/// Whether reads had better be sparse, which an OSD answers with what the object
/// has and where.  Measured with 16.2.15, eight reads in flight: an object that
/// is nearly all holes takes 0.35 (64 KiB) to 0.08 (4 MiB) of the time of a
/// plain read, one that is half full in pieces of 64 KiB 1.1 to 0.6, a full one
/// 1.0 to 1.1.  So it depends on what the last ones brought, and now and then it
/// is tried again.  (librbd's are sparse from 64 KiB: rbd_sparse_read_threshold_
/// bytes.)  Thread-safe.
class SparseReads {
 public:
  static constexpr std::size_t smallest = 64 << 10;

  [[nodiscard]] bool wanted(std::size_t length) noexcept {
    if (length < smallest || never_.load(std::memory_order_relaxed))
      return false;
    constexpr auto relaxed = std::memory_order_relaxed;
    return score_.load(relaxed) > 0 || plain_.fetch_add(1, relaxed) % 16 == 15;
  }
  void learn(std::size_t length, std::size_t got) noexcept {
    constexpr auto relaxed = std::memory_order_relaxed;
    // An update that another thread overwrites does no harm.
    const int score = score_.load(relaxed);
    score_.store(got <= length / 4 * 3 ? std::min(score + 4, 16)
                                       : std::max(score - 1, 0),
                 relaxed);
  }
  void never_again() noexcept { never_ = true; }

 private:
  std::atomic<int> score_{4};
  std::atomic<unsigned> plain_{0};
  std::atomic<bool> never_{false};
};

class SparseReadPending final : public RadosPending {
 public:
  SparseReadPending(RadosStore& store, SparseReads& reads,
                    const std::string& oid, std::uint64_t offset,
                    std::size_t length, std::span<const MutablePiece> pieces,
                    SnapId snap)
      : RadosPending(store),
        rados_store_(store),
        reads_(reads),
        oid_(oid),
        snap_(snap),
        offset_(offset),
        length_(length),
        pieces_(pieces) {}
  ~SparseReadPending() override { drain(); }
  librados::ObjectReadOperation op;
  std::map<std::uint64_t, std::uint64_t> extents;
  bufferlist data;
  int op_result = 0;

 private:
  /// An OSD of 16.2.15 answers the sparse read of an erasure-coded object
  /// with half of an answer, which librados calls EIO, where the object ends
  /// before (ceph: src/osd/PrimaryLogPG.cc, do_sparse_read).  There the others
  /// are no sparser than plain ones.
  int read_plainly();

  int finish(int r) override {
    if (r == -EIO || (r >= 0 && op_result == -EIO)) return read_plainly();
    if (r < 0) return r;
    if (op_result < 0) return op_result;
    auto from = data.cbegin();
    std::uint64_t at = offset_;
    const std::uint64_t end = offset_ + length_;
    for (const auto& [start, size] : extents) {
      if (start < at || start > end || size > end - start ||
          from.get_remaining() < size)
        return -EIO;  // not an answer to what was asked
      next(start - at, nullptr);
      next(size, &from);
      at = start + size;
    }
    next(end - at, nullptr);
    reads_.learn(length_, data.length());
    data.clear();
    return static_cast<int>(length_);
  }
  /// Fills the next n bytes, with data or with zeros.
  void next(std::uint64_t n, bufferlist::const_iterator* from) {
    while (n != 0) {
      const MutablePiece& piece = pieces_[piece_];
      const std::size_t part =
          std::min<std::uint64_t>(n, piece.size - used_);
      if (from != nullptr)
        from->copy(static_cast<unsigned>(part), piece.data + used_);
      else
        std::memset(piece.data + used_, 0, part);
      n -= part;
      used_ += part;
      if (used_ == piece.size) {
        ++piece_;
        used_ = 0;
      }
    }
  }

  RadosStore& rados_store_;
  SparseReads& reads_;
  const std::string oid_;
  const SnapId snap_;
  const std::uint64_t offset_;
  const std::size_t length_;
  const std::span<const MutablePiece> pieces_;
  std::size_t piece_ = 0;  // how far pieces_ are filled
  std::size_t used_ = 0;
};

/// The caller's memory while librados uses it.
class WriteBuffers {
 public:
  explicit WriteBuffers(bool copy) : copy_(copy) {}

  bufferlist refer(std::span<const ConstPiece> pieces) {
    bufferlist bl;
    for (const ConstPiece& piece : pieces) {
      if (piece.size == 0) continue;
      if (copy_) {
        bl.append(piece.data, static_cast<unsigned>(piece.size));
        continue;
      }
      // librados never writes to the buffers of a write operation; its
      // interface just has no const form.
      ceph::buffer::ptr p(ceph::buffer::create_static(
          static_cast<unsigned>(piece.size), const_cast<char*>(piece.data)));
      held_.push_back(p);
      bl.push_back(std::move(p));
    }
    return bl;
  }

  /// Returns when nobody but this object refers to the memory.
  void wait_released() noexcept {
    for (const ceph::buffer::ptr& p : held_) {
      unsigned tries = 0;
      while (p.raw_nref() > 1) {
        // The messenger drops its reference as soon as it has sent, or given
        // up sending, the message.
        if (++tries < 64)
          std::this_thread::yield();
        else
          std::this_thread::sleep_for(std::chrono::microseconds(100));
      }
    }
    held_.clear();
  }

 private:
  const bool copy_;
  std::vector<ceph::buffer::ptr> held_;
};

class WritePending final : public RadosPending {
 public:
  WritePending(RadosStore& store, bool copy)
      : RadosPending(store), buffers(copy) {}
  ~WritePending() override {
    drain(false);
    buffers.wait_released();
  }
  WriteBuffers buffers;

 private:
  int finish(int r) override {
    buffers.wait_released();
    return r;
  }
};

class StatPending final : public RadosPending {
 public:
  using RadosPending::RadosPending;
  ~StatPending() override { drain(); }
  librados::ObjectReadOperation op;
  int op_result = 0;

 private:
  int finish(int r) override { return r < 0 ? r : op_result; }
};

class VersionPending final : public RadosPending {
 public:
  VersionPending(RadosStore& store, std::uint64_t* out)
      : RadosPending(store), out_(out) {}
  ~VersionPending() override { drain(); }
  librados::ObjectReadOperation op;
  int op_result = 0;

 private:
  int finish(int r) override {
    if (r >= 0) r = op_result;
    if (r >= 0) *out_ = completion()->get_version64();
    return r;
  }
  std::uint64_t* out_;
};

class BytesPending final : public RadosPending {
 public:
  BytesPending(RadosStore& store, std::string* out)
      : RadosPending(store), out_(out) {}
  ~BytesPending() override { drain(); }
  bufferlist input, data;

 private:
  int finish(int r) override {
    if (r >= 0) *out_ = data.to_str();
    return r;
  }
  std::string* out_;
};

class CallsPending final : public RadosPending {
 public:
  CallsPending(RadosStore& store, std::size_t count,
               std::vector<std::string>* out)
      : RadosPending(store), data(count), out_(out) {}
  ~CallsPending() override { drain(); }
  librados::ObjectReadOperation op;
  std::vector<bufferlist> data;  // its elements must not move

 private:
  int finish(int r) override {
    if (r < 0) return r;
    out_->clear();
    for (bufferlist& bl : data) out_->push_back(bl.to_str());
    return r;
  }
  std::vector<std::string>* out_;
};

class XattrsPending final : public RadosPending {
 public:
  XattrsPending(RadosStore& store, std::map<std::string, std::string>* out)
      : RadosPending(store), out_(out) {}
  ~XattrsPending() override { drain(); }
  librados::ObjectReadOperation op;
  std::map<std::string, bufferlist> attrs;
  int op_result = 0;

 private:
  int finish(int r) override {
    if (r < 0) return r;
    if (op_result < 0) return op_result;
    out_->clear();
    for (auto& [name, value] : attrs) out_->emplace(name, value.to_str());
    return 0;
  }
  std::map<std::string, std::string>* out_;
};

class WatchersPending final : public RadosPending {
 public:
  WatchersPending(RadosStore& store, std::vector<Watcher>* out)
      : RadosPending(store), out_(out) {}
  ~WatchersPending() override { drain(); }
  librados::ObjectReadOperation op;
  std::list<obj_watch_t> watchers;
  int op_result = 0;

 private:
  int finish(int r) override {
    if (r < 0) return r;
    if (op_result < 0) return op_result;
    out_->clear();
    for (const obj_watch_t& w : watchers)
      out_->push_back({.address = std::string(
                           w.addr, ::strnlen(w.addr, sizeof(w.addr))),
                       .client = static_cast<std::uint64_t>(w.watcher_id),
                       .cookie = w.cookie});
    return 0;
  }
  std::vector<Watcher>* out_;
};

class SnapsPending final : public RadosPending {
 public:
  SnapsPending(RadosStore& store, SnapSet* out)
      : RadosPending(store), out_(out) {}
  ~SnapsPending() override { drain(); }
  librados::ObjectReadOperation op;
  librados::snap_set_t set;
  int op_result = 0;

 private:
  int finish(int r) override {
    if (r < 0) return r;
    if (op_result < 0) return op_result;
    out_->seq = set.seq;
    out_->versions.clear();
    for (const librados::clone_info_t& c : set.clones) {
      ObjectVersion v{.id = c.cloneid == librados::SNAP_HEAD ? snap_head
                                                             : c.cloneid,
                      .snaps = {c.snaps.begin(), c.snaps.end()},
                      .size = c.size};
      for (const auto& [offset, length] : c.overlap)
        v.overlap.push_back({offset, length});
      out_->versions.push_back(std::move(v));
    }
    return 0;
  }
  SnapSet* out_;
};

/// What librados uses of a notification.  That cannot be cancelled, so when
/// it is given up, this stays.
struct NotifyContext {
  /// librados uses it until the notification has completed, and does not
  /// count that use (ceph: src/librados/IoCtxImpl.cc, aio_notify): without it
  /// a notification that outlives its store meets freed memory.
  librados::IoCtx io;
  bufferlist payload, reply;
  Completion done;
};

/// What librados calls for a watch.  It may call until the watch is gone
/// from the OSD, which can be later than our Watch is.  Then `handler_` is
/// null, and notifications are answered at once, so that no notifier waits
/// for us.
class WatchContext final : public librados::WatchCtx2 {
 public:
  WatchContext(librados::IoCtx& io, std::string oid, WatchHandler& handler)
      : io_(io), oid_(std::move(oid)), handler_(&handler) {}

  void handle_notify(std::uint64_t notify_id, std::uint64_t cookie,
                     std::uint64_t /*notifier_id*/,
                     bufferlist& bl) override {
    const std::scoped_lock lock(mutex_);
    if (handler_ != nullptr) {
      handler_->notified(notify_id, cookie, {bl.c_str(), bl.length()});
      return;
    }
    bufferlist empty;
    io_.notify_ack(oid_, notify_id, cookie, empty);
  }
  void handle_error(std::uint64_t /*cookie*/, int err) override {
    const std::scoped_lock lock(mutex_);
    if (handler_ != nullptr) handler_->watch_lost(-err);
  }
  /// After this no call reaches the handler, and none is under way.
  void disarm() noexcept {
    const std::scoped_lock lock(mutex_);
    handler_ = nullptr;
  }

  /// Written by librados until `registered` is complete.
  std::uint64_t handle = 0;
  Completion registered;

 private:
  librados::IoCtx io_;
  const std::string oid_;
  std::mutex mutex_;
  WatchHandler* handler_;  // guarded by mutex_
};

class RadosCluster;

class RadosWatch final : public Watch {
 public:
  RadosWatch(std::shared_ptr<RadosCluster> cluster, librados::IoCtx& io,
             std::shared_ptr<WatchContext> context)
      : cluster_(std::move(cluster)), io_(io), context_(std::move(context)) {}
  ~RadosWatch() override;
  RadosWatch(const RadosWatch&) = delete;
  RadosWatch& operator=(const RadosWatch&) = delete;

  [[nodiscard]] int check() override {
    // Milliseconds since the OSD last confirmed the watch.
    constexpr int stale = 20 * 1000;
    const int r = io_.watch_check(context_->handle);
    if (r < 0) return -r;
    return r > stale ? ETIMEDOUT : 0;
  }
  [[nodiscard]] std::chrono::milliseconds kept_for() override;
  std::uint64_t cookie() const noexcept override { return context_->handle; }

 private:
  std::shared_ptr<RadosCluster> cluster_;
  librados::IoCtx io_;
  std::shared_ptr<WatchContext> context_;
};

/// Which clients of the cluster this process is, but for those that are shut out;
/// their numbers are the same for all of it.  Thread-safe.
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
  bool is_own(std::uint64_t client) const override {
    return own_clients().contains(client);
  }
  std::chrono::milliseconds timeout() const override { return timeout_; }
  /// For how long an OSD keeps a watch of this client without a sign of life.
  std::chrono::seconds watch_timeout() const { return watch_timeout_; }

  /// What the answer -ENOENT means: the Objecter gives it for a missing
  /// object and for a missing pool alike (ceph: src/osdc/Objecter.cc,
  /// _check_op_pool_dne).
  int why_missing(std::int64_t pool) {
    std::string name;
    return rados_.pool_reverse_lookup(pool, &name) == -ENOENT ? -ENXIO
                                                              : -ENOENT;
  }

  bool shut_out() const noexcept override { return shut_out_.load(); }
  /// Whoever takes a lock of this client makes sure from then on, as of any
  /// other dead client: what it has sent may still be under way, and its images
  /// are lost anyway.
  void found_shut_out() noexcept {
    if (!shut_out_.exchange(true)) own_clients().remove(client_id_);
  }

  /// Returns when no watch callback is queued or under way.
  void flush_watches() { rados_.watch_flush(); }

  std::optional<std::string> ceph_option(const std::string& name) override {
    std::string value;
    if (rados_.conf_get(name.c_str(), value) < 0) return std::nullopt;
    return value;
  }
  std::int64_t pool_id(const std::string& pool) override;
  /// The pools that are cache tiers over a pool, as far as this client's map
  /// says it, open where `like` is, and their names.
  std::vector<std::pair<librados::IoCtx, std::string>> cache_pools(
      librados::IoCtx& like) {
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
  void use_self_managed_snapshots(const std::string& pool) override {
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
  void blocklist(const std::string& address,
                 std::chrono::seconds duration) override {
    // Waits for the newest map itself (ceph: src/librados/RadosClient.cc).
    check(rados_.blocklist_add(
              address, static_cast<std::uint32_t>(std::clamp<std::int64_t>(
                           duration.count(), 0, 0xffffffff))),
          "cannot blocklist " + address);
  }
  void wait_for_latest_osdmap() override {
    check(rados_.wait_for_latest_osdmap(), "cannot get the newest OSD map");
  }

  /// Keeps a context that the OSD did not let go of until this client is
  /// gone.
  void retire(std::shared_ptr<WatchContext> context) {
    const std::scoped_lock lock(mutex_);
    retired_.push_back(std::move(context));
  }
  /// Keeps what librados uses of a notification until that is complete.
  void retire(std::shared_ptr<NotifyContext> context) {
    const std::scoped_lock lock(mutex_);
    std::erase_if(notifications_, [](const auto& old) {
      return old->done.get()->is_complete_and_cb();
    });
    notifications_.push_back(std::move(context));
  }

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
  std::mutex mutex_;
  // Guarded by mutex_.  Destroyed when librados has been shut down.
  std::vector<std::shared_ptr<WatchContext>> retired_;
  std::vector<std::shared_ptr<NotifyContext>> notifications_;
};

class NotifyPending final : public Pending {
 public:
  NotifyPending(std::shared_ptr<RadosCluster> cluster, RadosStore& store,
                std::chrono::milliseconds limit, std::string* reply)
      : cluster_(std::move(cluster)),
        store_(store),
        deadline_(std::chrono::steady_clock::now() + limit + grace),
        reply_(reply) {}
  ~NotifyPending() override {
    if (!result_ && !context_->done.get()->is_complete_and_cb())
      cluster_->retire(std::move(context_));
  }
  NotifyPending(const NotifyPending&) = delete;
  NotifyPending& operator=(const NotifyPending&) = delete;

  [[nodiscard]] int wait() override { return wait_until(deadline_); }
  [[nodiscard]] int wait_for(std::chrono::milliseconds limit) override {
    return wait_until(
        std::min(deadline_, std::chrono::steady_clock::now() + limit));
  }
  [[nodiscard]] bool completed() override {
    return result_ || context_->done.get()->is_complete_and_cb();
  }

  NotifyContext& context() noexcept { return *context_; }
  /// Nothing was started.
  void failed(int r) noexcept { result_ = r; }

 private:
  // For the answer's way back.
  static constexpr std::chrono::seconds grace{2};

  int wait_until(std::chrono::steady_clock::time_point deadline);

  std::shared_ptr<RadosCluster> cluster_;
  RadosStore& store_;
  const std::chrono::steady_clock::time_point deadline_;
  std::string* const reply_;
  std::shared_ptr<NotifyContext> context_ = std::make_shared<NotifyContext>();
  std::optional<int> result_;
};

std::chrono::milliseconds RadosWatch::kept_for() {
  // Clocks need not go alike.
  const std::chrono::milliseconds sure = cluster_->watch_timeout() * 5 / 6;
  const int r = io_.watch_check(context_->handle);
  return r < 0 ? -sure : sure - std::chrono::milliseconds(r);
}

RadosWatch::~RadosWatch() {
  context_->disarm();
  // An OSD that does not answer must not make closing hang.
  const auto deadline = std::chrono::steady_clock::now() +
                        std::min<std::chrono::milliseconds>(
                            cluster_->timeout(), std::chrono::seconds(5));
  Completion done;
  done.set_empty_callback();
  if (io_.aio_unwatch(context_->handle, done.get()) == 0 &&
      wait_linger(done, deadline) != -ETIMEDOUT)
    cluster_->flush_watches();
  else
    cluster_->retire(std::move(context_));
}

class RadosStore final : public ObjectStore {
 public:
  RadosStore(std::shared_ptr<RadosCluster> cluster, librados::IoCtx io,
             bool copy_writes)
      : cluster_(std::move(cluster)),
        io_(std::move(io)),
        pool_id_(io_.get_id()),
        copy_writes_(copy_writes) {}

  /// For results: tells a missing pool from a missing object.
  int result(int r) {
    // EBLOCKLISTED has the same number, and nothing else answers so.
    if (r == -ESHUTDOWN) cluster_->found_shut_out();
    return r == -ENOENT ? cluster_->why_missing(pool_id_) : r;
  }
  void cancel(librados::AioCompletion* c) { io_.aio_cancel(c); }

  std::unique_ptr<Pending> read(const std::string& oid, std::uint64_t offset,
                                std::span<const MutablePiece> pieces,
                                SnapId snap) override {
    std::size_t length = 0;
    for (const MutablePiece& piece : pieces) length += piece.size;
    if (tuning.sparse_reads && sparse_reads_.wanted(length)) {
      auto p = std::make_unique<SparseReadPending>(*this, sparse_reads_, oid,
                                                   offset, length, pieces,
                                                   snap);
      p->op.sparse_read(offset, length, &p->extents, &p->data, &p->op_result);
      p->submitted(
          io_at(snap).aio_operate(oid, p->completion(), &p->op, nullptr));
      return p;
    }
    return read_plainly(oid, offset, length, pieces, snap);
  }
  std::unique_ptr<Pending> read_plainly(const std::string& oid,
                                        std::uint64_t offset,
                                        std::size_t length,
                                        std::span<const MutablePiece> pieces,
                                        SnapId snap) {
    auto p = std::make_unique<ReadPending>(*this, pieces);
    // To an OSD, no bytes are all bytes.
    p->submitted(length == 0 ? -EINVAL
                             : io_.aio_read(oid, p->completion(), &p->data,
                                            length, offset, snap));
    return p;
  }

  std::unique_ptr<Pending> write(const std::string& oid, const WriteOp& op,
                                 const SnapContext& snapc) override;

  std::unique_ptr<Pending> stat(const std::string& oid, std::uint64_t* size,
                                SnapId snap) override {
    auto p = std::make_unique<StatPending>(*this);
    p->op.stat2(size, nullptr, &p->op_result);
    p->submitted(
        io_at(snap).aio_operate(oid, p->completion(), &p->op, nullptr));
    return p;
  }

  std::unique_ptr<Pending> exec(const std::string& oid, std::string_view cls,
                                std::string_view method,
                                std::string_view input,
                                std::string* output) override {
    auto p = std::make_unique<BytesPending>(*this, output);
    p->input = copied(input);
    p->submitted(call_method(io_, oid, p->completion(), std::string(cls),
                             std::string(method), p->input, &p->data));
    return p;
  }

  std::unique_ptr<Pending> exec_each(
      const std::string& oid, std::span<const MethodCall> calls,
      std::vector<std::string>* outputs) override {
    auto p = std::make_unique<CallsPending>(*this, calls.size(), outputs);
    if (calls.empty() || calls.size() > max_calls) {
      p->submitted(-EINVAL);
      return p;
    }
    for (std::size_t i = 0; i < calls.size(); ++i) {
      bufferlist input = copied(calls[i].input);
      // The error of a call is that of the operation.
      add_method_call(p->op, calls[i].cls, calls[i].method, input,
                      &p->data[i]);
    }
    p->submitted(io_.aio_operate(oid, p->completion(), &p->op, nullptr));
    return p;
  }

  std::unique_ptr<Pending> xattrs(
      const std::string& oid,
      std::map<std::string, std::string>* out) override {
    // Not aio_getxattrs, which cannot be cancelled: its completion is not
    // that of the operation (ceph: src/librados/IoCtxImpl.cc).
    auto p = std::make_unique<XattrsPending>(*this, out);
    p->op.getxattrs(&p->attrs, &p->op_result);
    p->submitted(io_.aio_operate(oid, p->completion(), &p->op, nullptr));
    return p;
  }

  std::unique_ptr<Pending> read_all(const std::string& oid,
                                    std::uint64_t limit,
                                    std::string* out) override {
    auto p = std::make_unique<BytesPending>(*this, out);
    p->submitted(
        io_.aio_read(oid, p->completion(), &p->data, limit, 0, snap_head));
    return p;
  }

  int map_extents(const std::string& oid, std::uint64_t offset,
                  std::uint64_t length, SnapId snap,
                  std::vector<ObjectRange>* out) override;

  std::unique_ptr<Watch> watch(const std::string& oid,
                               WatchHandler& handler) override {
    auto context = std::make_shared<WatchContext>(io_, oid, handler);
    const std::string doing = "cannot watch object " + oid;
    context->registered.set_empty_callback();
    check(io_.aio_watch2(oid, context->registered.get(), &context->handle,
                         context.get(), cluster_->watch_timeout().count()),
          doing);
    const int r = wait_linger(
        context->registered,
        std::chrono::steady_clock::now() + cluster_->timeout());
    if (r < 0) {
      context->disarm();
      // The OSD may still answer, or have answered without our knowing.
      cluster_->retire(context);
      check(result(r), doing);
    }
    return std::make_unique<RadosWatch>(cluster_, io_, context);
  }

  void notify_ack(const std::string& oid, std::uint64_t notify_id,
                  std::uint64_t cookie, std::string_view payload) override {
    bufferlist bl = copied(payload);
    io_.notify_ack(oid, notify_id, cookie, bl);
  }

  std::unique_ptr<Pending> list_watchers(const std::string& oid,
                                         std::vector<Watcher>* out) override {
    auto p = std::make_unique<WatchersPending>(*this, out);
    p->op.list_watchers(&p->watchers, &p->op_result);
    p->submitted(io_.aio_operate(oid, p->completion(), &p->op, nullptr));
    return p;
  }

  std::unique_ptr<Pending> start_notify(const std::string& oid,
                                        std::string_view payload,
                                        std::chrono::milliseconds limit,
                                        std::string* reply) override;

  std::unique_ptr<Pending> version(const std::string& oid,
                                   std::uint64_t* version) override {
    auto p = std::make_unique<VersionPending>(*this, version);
    p->op.stat2(nullptr, nullptr, &p->op_result);
    p->submitted(io_.aio_operate(oid, p->completion(), &p->op, nullptr));
    return p;
  }

  std::unique_ptr<Pending> list_snaps(const std::string& oid,
                                      SnapSet* out) override {
    auto p = std::make_unique<SnapsPending>(*this, out);
    p->op.list_snaps(&p->set, &p->op_result);
    p->submitted(io_at(librados::SNAP_DIR)
                     .aio_operate(oid, p->completion(), &p->op, nullptr));
    return p;
  }

  std::vector<std::string> list(
      const std::function<bool(std::string_view)>& wanted,
      const std::function<void(const std::string&)>& log) override;

 private:
  /// An IoCtx whose reads are of `snap`.  aio_read takes the snapshot as an
  /// argument; for mapext and compound reads the IoCtx is the only place.
  librados::IoCtx& io_at(SnapId snap) {
    if (snap == snap_head) return io_;
    const std::scoped_lock lock(mutex_);
    const auto [it, is_new] = at_snap_.try_emplace(snap);
    if (is_new) {
      it->second.dup(io_);
      it->second.snap_set_read(snap);
    }
    return it->second;
  }

  std::shared_ptr<RadosCluster> cluster_;
  librados::IoCtx io_;
  const std::int64_t pool_id_;
  const bool copy_writes_;
  SparseReads sparse_reads_;
  std::mutex mutex_;
  std::map<SnapId, librados::IoCtx> at_snap_;  // guarded by mutex_; nodes stay
};

/// Whether a step is about no bytes, where it must be about some.  An OSD of
/// 16.2.15 aborts when it is to zero nothing, and an object becomes unreadable
/// when nothing is written behind its end.
bool is_about_nothing(const WriteOp::Step& s) {
  switch (s.kind) {
    case WriteOp::Kind::zero:
      return s.length == 0;
    case WriteOp::Kind::write:
    case WriteOp::Kind::write_same:
      return std::all_of(s.pieces.begin(), s.pieces.end(),
                         [](const ConstPiece& p) { return p.size == 0; });
    default:
      return false;
  }
}

/// The librados form of `op`.  `buffers` keeps what refers to the caller's
/// memory.
void translate(const WriteOp& op, librados::ObjectWriteOperation& to,
               WriteBuffers& buffers) {
  using Kind = WriteOp::Kind;
  for (const WriteOp::Step& s : op.steps()) {
    switch (s.kind) {
      case Kind::create: to.create(true); break;
      case Kind::touch: to.create(false); break;
      case Kind::assert_exists: to.assert_exists(); break;
      case Kind::write: to.write(s.offset, buffers.refer(s.pieces)); break;
      case Kind::write_same:
        to.writesame(s.offset, s.length, buffers.refer(s.pieces));
        break;
      case Kind::write_full: to.write_full(buffers.refer(s.pieces)); break;
      case Kind::zero: to.zero(s.offset, s.length); break;
      case Kind::truncate: to.truncate(s.offset); break;
      case Kind::remove: to.remove(); break;
      case Kind::set_xattr:
        to.setxattr(std::string(s.name).c_str(), copied(s.value));
        break;
      case Kind::cmp_xattr_gt:
        to.cmpxattr(std::string(s.name).c_str(), LIBRADOS_CMPXATTR_OP_GT,
                    s.offset);
        break;
      case Kind::exec: {
        bufferlist in = copied(s.value);
        add_method_call(to, std::string(s.name), std::string(s.method), in);
        break;
      }
      case Kind::alloc_hint: to.set_alloc_hint(s.offset, s.length); break;
      case Kind::omap_set:
        to.omap_set({{std::string(s.name), copied(s.value)}});
        break;
      case Kind::tmap_update: to.tmap_update(copied(s.value)); break;
    }
  }
}

int SparseReadPending::read_plainly() {
  const int r =
      rados_store_.read_plainly(oid_, offset_, length_, pieces_, snap_)->wait();
  if (r >= 0) reads_.never_again();
  return r;
}

void RadosPending::cancel() { store_.cancel(completion_.get()); }

void RadosPending::settle() {
  const int r = submit_result_ != 0 ? submit_result_
                                    : completion_.get()->get_return_value();
  done_ = true;
  result_ = store_.result(finish(r));
}

std::unique_ptr<Pending> RadosStore::write(const std::string& oid,
                                           const WriteOp& op,
                                           const SnapContext& snapc) {
  auto p = std::make_unique<WritePending>(*this, copy_writes_);
  const auto steps = op.steps();
  if (std::any_of(steps.begin(), steps.end(), is_about_nothing)) {
    p->submitted(-EINVAL);
    return p;
  }
  librados::ObjectWriteOperation to;
  translate(op, to, p->buffers);
  int r;
  if (snapc.seq == 0) {
    r = io_.aio_operate(oid, p->completion(), &to);
  } else {
    std::vector<librados::snap_t> snaps(snapc.snaps.begin(),
                                        snapc.snaps.end());
    r = io_.aio_operate(oid, p->completion(), &to, snapc.seq, snaps);
  }
  p->submitted(r);
  return p;
}

int NotifyPending::wait_until(std::chrono::steady_clock::time_point deadline) {
  if (result_) return *result_;
  librados::AioCompletion* const done = context_->done.get();
  // -ETIMEDOUT is also what an OSD says where a watcher did not answer.
  if (wait_linger(context_->done, deadline) == -ETIMEDOUT &&
      !done->is_complete_and_cb()) {
    if (reply_ != nullptr) reply_->clear();
    cluster_->retire(std::move(context_));
    return result_.emplace(-ETIMEDOUT);
  }
  if (reply_ != nullptr) *reply_ = context_->reply.to_str();
  return result_.emplace(store_.result(done->get_return_value()));
}

std::unique_ptr<Pending> RadosStore::start_notify(
    const std::string& oid, std::string_view payload,
    std::chrono::milliseconds limit, std::string* reply) {
  // librados cuts the timeout to whole seconds, and to an OSD 0 is 30 seconds
  // (ceph: src/librados/IoCtxImpl.cc, osd_default_notify_timeout).
  const auto seconds =
      std::max(std::chrono::ceil<std::chrono::seconds>(limit),
               std::chrono::seconds(1));
  auto p = std::make_unique<NotifyPending>(cluster_, *this, seconds, reply);
  NotifyContext& context = p->context();
  context.io = io_;
  context.payload = copied(payload);
  context.done.set_empty_callback();
  const int r = io_.aio_notify(
      oid, context.done.get(), context.payload,
      static_cast<std::uint64_t>(std::chrono::milliseconds(seconds).count()),
      &context.reply);
  if (r < 0) p->failed(r);
  return p;
}

int RadosStore::map_extents(const std::string& oid, std::uint64_t offset,
                            std::uint64_t length, SnapId snap,
                            std::vector<ObjectRange>* out) {
  // The Objecter counts the range against the bytes it allows in flight,
  // and in an int (ceph: src/osdc/Objecter.cc, calc_op_budget).
  constexpr std::uint64_t slice = 32 << 20;
  out->clear();
  for (const std::uint64_t end = offset + length; offset < end;) {
    const std::uint64_t stop = std::min(end, offset + slice);
    std::map<std::uint64_t, std::uint64_t> map;
    const int r = io_at(snap).mapext(oid, offset, stop - offset, map);
    if (r < 0) return result(r);
    for (const auto& [start, size] : map) {
      // BlueStore answers in whole allocation units: clip.
      const std::uint64_t from = std::max(start, offset);
      const std::uint64_t to = std::min(start + size, stop);
      if (from >= to) continue;
      if (!out->empty() && out->back().offset + out->back().length == from)
        out->back().length += to - from;
      else
        out->push_back({from, to - from});
    }
    offset = stop;
  }
  return 0;
}

/// Adds the names that are in a pool itself, whatever tiers are over it.
void list_pool(librados::IoCtx& io,
               const std::function<bool(std::string_view)>& wanted,
               std::set<std::string>& names) {
  try {
    for (auto it = io.nobjects_begin(); it != io.nobjects_end(); ++it)
      if (wanted(it->get_oid())) names.insert(it->get_oid());
  } catch (const std::exception& e) {
    throw Error(EIO, std::string("cannot list the pool's objects: ") +
                         e.what());
  }
}

std::vector<std::string> RadosStore::list(
    const std::function<bool(std::string_view)>& wanted,
    const std::function<void(const std::string&)>& log) {
  std::set<std::string> names;
  list_pool(io_, wanted, names);
  for (auto& [io, pool] : cluster_->cache_pools(io_)) {
    std::set<std::string> cached;
    try {
      list_pool(io, wanted, cached);
    } catch (const Error& e) {
      log("what is only in the cache pool '" + pool +
          "' is missing from the list: " + e.what());
    }
    // A cache pool remembers with an object of the name what does not exist
    // (ceph: src/osd/PrimaryLogPG.cc, whiteouts).
    std::vector<std::uint64_t> sizes(cached.size());
    std::vector<std::unique_ptr<Pending>> pending;
    for (const std::string& oid : cached)
      pending.push_back(stat(oid, &sizes[pending.size()], snap_head));
    auto asked = pending.begin();
    for (const std::string& oid : cached)
      if ((*asked++)->wait() == -ENOENT)
        names.erase(oid);
      else
        names.insert(oid);
  }
  return {names.begin(), names.end()};
}

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

}  // namespace

std::shared_ptr<Cluster> Cluster::connect(const ClusterConfig& config) {
  return std::make_shared<RadosCluster>(config);
}

}  // namespace nbdrados
