// SPDX-License-Identifier: BSD-3-Clause
//
// An object store in memory, for tests.  It does what OSDs do, so that code
// which works on it works on a cluster: objects come into being by writes,
// operations are atomic, snapshots are clones made by the first write after
// them.  Rules come from ceph: src/osd/PrimaryLogPG.cc (do_osd_ops,
// make_writeable, find_object_context).
//
//   - write, write_full, write_same, create, touch, set_xattr, omap_set,
//     tmap_update and alloc_hint make a missing object; zero and truncate of
//     one do nothing and succeed.
//   - A zero that reaches the end of the object truncates it.
//   - A copy has no holes, and the version of its source.
//   - cmp_xattr_gt looks at the object as it was before the operation.  The
//     result of an operation that compares but changes nothing is 1, not 0.
//   - Data beyond max_object_size is refused with -EFBIG.
//   - read, write, write_same and zero of no bytes are -EINVAL, because they
//     must never be sent to an OSD.  It takes such a read as one of the whole
//     object.  Seen with 16.2.15: such a write behind the end makes the
//     object longer without updating the checksum that the OSD keeps of it,
//     after which the object cannot be read any more, and such a zero of an
//     object that exists aborts the OSD.
//   - An invalid SnapContext (ids not descending, or above seq) is -EINVAL.
//   - list() gives the names in no useful order, and also names of objects
//     whose head has been removed while clones of it are left, as OSDs do.
//
// All operations are complete when they return, but for notifications, whose
// callbacks come from another thread.
//
//     MemoryStore store;
//     store.on_exec("rbd", "get_size", [](auto& object, auto in, auto& out) {
//       if (!object) return -ENOENT;
//       ...
//       return 0;
//     });
//
// Thread-safety: every member may be called by any thread.  Lock: mutex_
// guards everything; it is never held while a callback of a watch runs, but
// it is held while an exec handler runs.

#ifndef NBDRADOS_RADOS_MEMORY_STORE_HPP
#define NBDRADOS_RADOS_MEMORY_STORE_HPP

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "rados/object_store.hpp"

namespace nbdrados {

/// The bytes of an object, and which of them have been written.  The others
/// are holes and read as zeros; blocks of nothing but holes take no space.
/// Copies share blocks until one of them changes; but copies are not for
/// different threads.
class SparseData {
 public:
  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
  /// Writes `bytes` at `offset`; makes the data longer where needed.
  void write(std::uint64_t offset, std::string_view bytes);
  /// Copies what the data has of [offset, offset + n) to `out`; returns the
  /// number of bytes.
  std::uint64_t read(std::uint64_t offset, char* out, std::uint64_t n) const;
  /// All bytes.
  [[nodiscard]] std::string bytes() const;
  /// Makes a hole; never makes the data longer or shorter.
  void punch(std::uint64_t offset, std::uint64_t length);
  /// Cuts the end off, or adds a hole.
  void resize(std::uint64_t size);
  /// The parts of [offset, offset + length) that are no holes, rounded
  /// outwards to `granularity`, then cut to the range and to the size.
  [[nodiscard]] std::vector<ObjectRange> written(
      std::uint64_t offset, std::uint64_t length,
      std::uint64_t granularity = 1) const;

 private:
  static constexpr std::uint64_t block = 4096;

  /// The block `number` for writing, made if missing.
  char* writable(std::uint64_t number);

  std::map<std::uint64_t, std::shared_ptr<std::string>> blocks_;
  std::map<std::uint64_t, std::uint64_t> written_;  // start: end; not adjacent
  std::uint64_t size_ = 0;
};

/// One version of an object: its head or a clone.
struct MemoryObject {
  SparseData data;
  std::map<std::string, std::string> xattrs;
  std::map<std::string, std::string> omap;
};

class MemoryStore : public ObjectStore {
 public:
  struct Options {
    /// Bytes, at least 1; map_extents rounds outwards to it.  With 1 it gives
    /// just what BlueStore gives, which is exact to the byte.
    std::uint64_t map_granularity = 4096;
    /// false: map_extents returns -EOPNOTSUPP.
    bool can_map = true;
    /// Bytes (ceph: osd_max_object_size).
    std::uint64_t max_object_size = std::uint64_t{128} << 20;
    /// Whose watches those of watch() are, as list_watchers gives them and
    /// notifications answer.
    std::uint64_t client = 4100;
    std::string address = "127.0.0.1:0/4100";
  };

  /// An object class method.  `object` is empty where there is no such
  /// object; the method may change, make or remove it.  Returns a negative
  /// errno, which undoes its changes, or >= 0.  It must not call the store.
  using Method = std::function<int(std::optional<MemoryObject>& object,
                                   std::string_view input,
                                   std::string& output)>;

  MemoryStore() : MemoryStore(Options{}) {}
  explicit MemoryStore(const Options& options);
  /// All watches must have been destroyed before.
  ~MemoryStore() override;
  MemoryStore(const MemoryStore&) = delete;
  MemoryStore& operator=(const MemoryStore&) = delete;

  /// Adds or replaces a method.  Methods that are not there: -EOPNOTSUPP.
  void on_exec(std::string cls, std::string method, Method run);

  /// A copy of an object at a snapshot; empty: there is none.
  [[nodiscard]] std::optional<MemoryObject> find(const std::string& oid,
                                                 SnapId snap = snap_head);

  /// Replaces the head of an object, or removes it, behind everybody's back:
  /// no snapshot is made of the old one.  Not 0: it gets that version, as what
  /// is copied over an object brings its own.
  void put(const std::string& oid, std::optional<MemoryObject> object,
           std::uint64_t version = 0);

  /// As watch, for another client: one with the `client` and `address` of
  /// `who`.  With `who.cookie` where that is not 0, else with a new one.
  [[nodiscard]] std::unique_ptr<Watch> watch_as(const Watcher& who,
                                                const std::string& oid,
                                                WatchHandler& handler);

  /// As an OSD that has heard nothing of a client for too long: its watches
  /// are gone, and it is told so, or not, as one that is cut off.
  void drop_watches(std::uint64_t client, bool told);

  /// Number of watches on an object.
  [[nodiscard]] std::size_t watchers(const std::string& oid);

  [[nodiscard]] std::unique_ptr<Pending> read(
      const std::string& oid, std::uint64_t offset,
      std::span<const MutablePiece> pieces, SnapId snap) override;
  [[nodiscard]] std::unique_ptr<Pending> write(
      const std::string& oid, const WriteOp& op,
      const SnapContext& snapc) override;
  [[nodiscard]] std::unique_ptr<Pending> stat(const std::string& oid,
                                              std::uint64_t* size,
                                              SnapId snap) override;
  [[nodiscard]] std::unique_ptr<Pending> exec(const std::string& oid,
                                              std::string_view cls,
                                              std::string_view method,
                                              std::string_view input,
                                              std::string* output) override;
  [[nodiscard]] std::unique_ptr<Pending> exec_each(
      const std::string& oid, std::span<const MethodCall> calls,
      std::vector<std::string>* outputs) override;
  [[nodiscard]] std::unique_ptr<Pending> xattrs(
      const std::string& oid, std::map<std::string, std::string>* out) override;
  [[nodiscard]] std::unique_ptr<Pending> read_all(const std::string& oid,
                                                  std::uint64_t limit,
                                                  std::string* out) override;
  [[nodiscard]] int map_extents(const std::string& oid, std::uint64_t offset,
                                std::uint64_t length, SnapId snap,
                                std::vector<ObjectRange>* out) override;
  [[nodiscard]] std::unique_ptr<Watch> watch(const std::string& oid,
                                             WatchHandler& handler) override;
  void notify_ack(const std::string& oid, std::uint64_t notify_id,
                  std::uint64_t cookie, std::string_view payload) override;
  [[nodiscard]] std::unique_ptr<Pending> list_watchers(
      const std::string& oid, std::vector<Watcher>* out) override;
  /// `limit` to the millisecond.
  [[nodiscard]] std::unique_ptr<Pending> start_notify(
      const std::string& oid, std::string_view payload,
      std::chrono::milliseconds limit, std::string* reply) override;
  [[nodiscard]] std::unique_ptr<Pending> version(
      const std::string& oid, std::uint64_t* version) override;
  /// What the next version still has are all bytes that are equal.
  [[nodiscard]] std::unique_ptr<Pending> list_snaps(const std::string& oid,
                                                    SnapSet* out) override;
  [[nodiscard]] int make_snap_id(SnapId* snap) override;
  [[nodiscard]] int release_snap_id(SnapId snap) override;
  [[nodiscard]] std::vector<std::string> list(
      const std::function<bool(std::string_view)>& wanted,
      const std::function<void(const std::string&)>& log) override;

  /// The ids that have been given out and not been taken back.
  [[nodiscard]] std::set<SnapId> snap_ids();

 private:
  class MemoryWatch;
  class MemoryNotify;
  struct Clone {
    SnapId id;                  // the seq of the write that made it
    std::vector<SnapId> snaps;  // the snapshots it stands for, newest first
    MemoryObject object;
    std::uint64_t version = 0;
  };
  struct Entry {
    std::optional<MemoryObject> head;
    SnapId seq = 0;             // of the newest SnapContext that wrote it
    std::uint64_t version = 0;  // of the head
    std::vector<Clone> clones;  // oldest first
  };
  struct WatchState {
    std::string oid;
    Watcher who;
    WatchHandler* handler;
    int busy = 0;         // callbacks under way
    bool closed = false;  // no more callbacks
    int lost = 0;         // positive errno
  };

  using WatchPtr = std::shared_ptr<WatchState>;
  struct Notification {
    std::map<std::uint64_t, WatchPtr> unanswered;  // by cookie
    // The payloads of those that answered.
    std::map<std::pair<std::uint64_t, std::uint64_t>, std::string> answers;
  };

  /// What an operation copies.
  struct Copied {
    int error = 0;  // a negative errno
    MemoryObject object = {};
    std::uint64_t version = 0;
  };

  /// Sets the version where that is not null.
  [[nodiscard]] const MemoryObject* at(const std::string& oid, SnapId snap,
                                       std::uint64_t* version = nullptr) const;
  [[nodiscard]] Copied copy_of(const std::string& oid, SnapId snap);
  [[nodiscard]] Copied source(const std::string& oid, const WriteOp& op);
  [[nodiscard]] int apply(const std::string& oid, const WriteOp& op,
                          const SnapContext& snapc, const Copied& copied);
  [[nodiscard]] int step(std::optional<MemoryObject>& object,
                         const std::optional<MemoryObject>& before,
                         const WriteOp::Step& what, const Copied& copied,
                         bool& modified);
  [[nodiscard]] int write_step(std::optional<MemoryObject>& object,
                               const WriteOp::Step& what);
  [[nodiscard]] int call(std::optional<MemoryObject>& object,
                         std::string_view cls, std::string_view method,
                         std::string_view input, std::string& output);
  [[nodiscard]] bool too_big(std::uint64_t offset,
                             std::uint64_t length) const noexcept;
  void lose_watches(const std::string& oid);
  void lose_watches(const std::function<bool(const WatchState&)>& which,
                    bool told);
  template <class Callback>
  void deliver(WatchState& state, Callback callback);

  const Options options_;
  std::mutex mutex_;
  std::condition_variable changed_;  // acks and ends of callbacks
  std::map<std::string, Entry> objects_;
  std::map<std::pair<std::string, std::string>, Method> methods_;
  std::map<std::uint64_t, WatchPtr> watches_;           // by cookie
  std::map<std::uint64_t, Notification> notifications_;  // by notify id
  std::uint64_t last_id_ = 0;
  std::uint64_t last_version_ = 0;
  SnapId last_snap_ = 0;
  std::set<SnapId> snap_ids_;
  std::vector<std::jthread> callbacks_;  // last: joined first
};

}  // namespace nbdrados

#endif
