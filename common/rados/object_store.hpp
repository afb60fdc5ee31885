// SPDX-License-Identifier: BSD-3-Clause
//
// What the image code needs of an object store, and nothing more.
//
// There are three implementations: RadosStore (librados; the real one),
// MemoryStore and FaultStore (tests).  One ObjectStore is one pool and one
// RADOS namespace.
//
// Thread-safety: every member of ObjectStore may be called by any thread at
// any time.  A ReadOp, WriteOp or Pending belongs to one thread at a time.

#ifndef NBDRADOS_RADOS_OBJECT_STORE_HPP
#define NBDRADOS_RADOS_OBJECT_STORE_HPP

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nbdrados {

/// A self-managed snapshot id.  snap_head is the writable present
/// (CEPH_NOSNAP, ceph: src/include/ceph_fs.h).
using SnapId = std::uint64_t;
inline constexpr SnapId snap_head = ~std::uint64_t{1};

/// The snapshot context of writes: `seq` is the newest snapshot id ever
/// taken, `snaps` are the ids that exist, newest first
/// (ceph: src/common/snap_types.h).  Immutable once published.
struct SnapContext {
  SnapId seq = 0;
  std::vector<SnapId> snaps;
  bool operator==(const SnapContext&) const = default;
};

/// A part of a caller's buffer.  Consecutive pieces are consecutive bytes of
/// one object.
struct MutablePiece {
  char* data;
  std::size_t size;
};
struct ConstPiece {
  const char* data;
  std::size_t size;
};

class ObjectStore;

/// One write to one object: a few steps that RADOS applies atomically, in
/// order.  Everything that a step points to must stay valid until the
/// operation has completed (Pending::wait has returned).
///
/// Errors: more than max_steps steps throws std::length_error.  A write, zero
/// or write_same of no bytes makes the whole operation -EINVAL, as a read of
/// no bytes is: OSDs do not bear them.
class WriteOp {
 public:
  enum class Kind : std::uint8_t {
    create,         // exclusive: EEXIST where the object exists
    touch,          // makes the object where there is none
    assert_exists,  // ENOENT where it does not
    write,          // pieces at offset
    write_same,     // pieces[0] repeated over length (a multiple of its size)
    write_full,     // pieces[0] replaces the object's data
    zero,           // length bytes at offset; never makes the object longer
    truncate,       // to offset bytes
    remove,         // the object
    set_xattr,      // name := value
    cmp_xattr_gt,   // ECANCELED unless number > the decimal xattr `name`
    exec,           // object class `name`, method `method`, input `value`
    alloc_hint,     // expected object size `offset`, write size `length`
    omap_set,       // key `name` := value
    tmap_update,    // `value` is an encoded trivial-map update
    copy_from,      // all of it: that of `name` in `store`, at `offset`
  };
  struct Step {
    Kind kind = Kind::create;
    std::uint64_t offset = 0;
    std::uint64_t length = 0;
    std::span<const ConstPiece> pieces{};
    std::string_view name{};
    std::string_view method{};
    std::string_view value{};
    ObjectStore* store = nullptr;
  };
  static constexpr std::size_t max_steps = 8;

  /// Exclusive: EEXIST where the object exists.  Else it may exist, and then
  /// nothing happens to it.
  WriteOp& create(bool exclusive = true) {
    return add({.kind = exclusive ? Kind::create : Kind::touch});
  }
  WriteOp& assert_exists() { return add({.kind = Kind::assert_exists}); }
  WriteOp& write(std::uint64_t offset, std::span<const ConstPiece> pieces) {
    return add({.kind = Kind::write, .offset = offset, .pieces = pieces});
  }
  WriteOp& write_same(std::uint64_t offset, std::uint64_t length,
                      std::span<const ConstPiece> pattern) {
    return add({.kind = Kind::write_same,
                .offset = offset,
                .length = length,
                .pieces = pattern});
  }
  WriteOp& write_full(std::span<const ConstPiece> pieces) {
    return add({.kind = Kind::write_full, .pieces = pieces});
  }
  WriteOp& zero(std::uint64_t offset, std::uint64_t length) {
    return add({.kind = Kind::zero, .offset = offset, .length = length});
  }
  WriteOp& truncate(std::uint64_t size) {
    return add({.kind = Kind::truncate, .offset = size});
  }
  WriteOp& remove() { return add({.kind = Kind::remove}); }
  WriteOp& set_xattr(std::string_view name, std::string_view value) {
    return add({.kind = Kind::set_xattr, .name = name, .value = value});
  }
  WriteOp& cmp_xattr_gt(std::string_view name, std::uint64_t number) {
    return add({.kind = Kind::cmp_xattr_gt, .offset = number, .name = name});
  }
  /// Calls an object class method, that changes the object or checks it.
  /// What the method puts out is lost; its error is the operation's.
  WriteOp& exec(std::string_view cls, std::string_view method,
                std::string_view input) {
    return add({.kind = Kind::exec,
                .name = cls,
                .method = method,
                .value = input});
  }
  WriteOp& alloc_hint(std::uint64_t object_size, std::uint64_t write_size) {
    return add({.kind = Kind::alloc_hint,
                .offset = object_size,
                .length = write_size});
  }
  WriteOp& omap_set(std::string_view key, std::string_view value) {
    return add({.kind = Kind::omap_set, .name = key, .value = value});
  }
  WriteOp& tmap_update(std::string_view update) {
    return add({.kind = Kind::tmap_update, .value = update});
  }
  /// The object becomes a copy of another one at a snapshot, with attributes
  /// and omap, which OSDs carry out among themselves; at most once an
  /// operation.  What is written in steps before is lost, those that follow
  /// see the copy.  `store` may be that of another client of the cluster.
  ///
  /// The holes of the source become zeros that take space.  The version of the
  /// object becomes that of the source (see ObjectStore::version).
  ///
  /// ENOENT: there is no such source; EXDEV: `store` is of another kind.  The
  /// source must be another object (not a snapshot of this one either), of
  /// which the client has read something before, and to which it is not
  /// writing meanwhile.
  WriteOp& copy_from(ObjectStore& store, std::string_view oid, SnapId snap) {
    return add({.kind = Kind::copy_from,
                .offset = snap,
                .name = oid,
                .store = &store});
  }

  [[nodiscard]] std::span<const Step> steps() const noexcept {
    return {steps_.data(), count_};
  }
  void clear() noexcept { count_ = 0; }

 private:
  WriteOp& add(const Step& step) {
    if (count_ == max_steps)
      throw std::length_error("too many steps in one write operation");
    steps_[count_++] = step;
    return *this;
  }
  std::array<Step, max_steps> steps_;  // the operation is [0, count_)
  std::size_t count_ = 0;
};

/// An operation in flight.  -ENOENT always means the object: when the pool
/// is gone, the result is -ENXIO.  It completes exactly once.  Destroying it
/// before that waits (but see start_notify), for a write until it has happened
/// and for all others no longer than cancelling them takes: nothing that the
/// operation points to is touched afterwards.
class Pending {
 public:
  virtual ~Pending() = default;
  Pending() = default;
  Pending(const Pending&) = delete;
  Pending& operator=(const Pending&) = delete;

  /// Blocks until the operation has completed.  Returns librados' result:
  /// a negative errno, or for reads the number of bytes that the object had
  /// in the range (the rest of the destination is untouched), else >= 0.
  /// May be called again and then returns the same.
  [[nodiscard]] virtual int wait() = 0;

  /// As wait, but gives the operation up after `limit`: it is cancelled,
  /// and the result is -ETIMEDOUT.
  [[nodiscard]] virtual int wait_for(std::chrono::milliseconds limit) = 0;

  /// Whether wait() would return at once.  Never blocks.
  [[nodiscard]] virtual bool completed() = 0;
};

/// Object data present in [offset, offset + length) of an object.
struct ObjectRange {
  std::uint64_t offset;
  std::uint64_t length;
  bool operator==(const ObjectRange&) const = default;
};

/// A version of an object: a clone that snapshots need, or the head.
struct ObjectVersion {
  SnapId id = 0;                           // snap_head: the head
  std::vector<SnapId> snaps = {};          // whose it is; the head: none
  std::uint64_t size = 0;                  // bytes
  std::vector<ObjectRange> overlap = {};   // what the next version still has
  bool operator==(const ObjectVersion&) const = default;
};

/// All versions of an object (ceph: src/include/rados/rados_types.hpp,
/// snap_set_t).
struct SnapSet {
  SnapId seq = 0;                           // newest snapshot at a write
  std::vector<ObjectVersion> versions = {};  // oldest first
  bool operator==(const SnapSet&) const = default;
};

/// A watch on an object, as the OSD lists it.
struct Watcher {
  /// "192.0.2.1:0/1234567", as of LockHolder; what a blocklist takes.
  std::string address;
  std::uint64_t client = 0;  // the number in "client.4711"
  std::uint64_t cookie = 0;  // Watch::cookie of that client
  bool operator==(const Watcher&) const = default;
};

/// Called by threads of the store, so: record and return, never block.
class WatchHandler {
 public:
  virtual ~WatchHandler() = default;
  /// Somebody notified the watched object.  Answer with
  /// ObjectStore::notify_ack, or the notifier waits for its timeout.
  /// notify_ack may be called from here, as it does not wait; the thread
  /// that sent a notification may be waiting, so whoever watches what he
  /// notifies answers his own notifications here.
  virtual void notified(std::uint64_t notify_id, std::uint64_t cookie,
                        std::string_view payload) noexcept = 0;
  /// The watch is broken (ENOTCONN) or notifications may have been missed
  /// (ETIMEDOUT); make a new one and read everything again.  `code` is
  /// positive.
  virtual void watch_lost(int code) noexcept = 0;
};

/// A watch; destroying it unwatches and waits for callbacks under way.
class Watch {
 public:
  virtual ~Watch() = default;
  /// 0 while the watch is good, else the positive errno that broke it.
  [[nodiscard]] virtual int check() = 0;
  /// For how long from now on the OSD is sure to keep it, whatever happens to
  /// this client; negative: it need not have it any more.  Does not know of
  /// time in which the machine was suspended.
  [[nodiscard]] virtual std::chrono::milliseconds kept_for() = 0;
  /// The number that names the watch among those of this client: given to
  /// WatchHandler::notified, listed by list_watchers, part of RBD's lock
  /// cookies.  Another one for each new watch.
  [[nodiscard]] virtual std::uint64_t cookie() const noexcept = 0;
};

/// A call of a method of an object class; both names are of static duration.
struct MethodCall {
  const char* cls;
  const char* method;
  std::string input = {};
};

class ObjectStore {
 public:
  virtual ~ObjectStore() = default;

  /// The one that keeps the objects: this, or what this is wrapped around.
  [[nodiscard]] virtual ObjectStore& keeper() noexcept { return *this; }

  /// Starts reading [offset, offset + total size of `pieces`) of an object
  /// at a snapshot into `pieces`, which must stay valid until completion.
  /// The result is the number of bytes read: all of them where the store has
  /// filled with zeros what the object has not.  -ENOENT: no such object.
  [[nodiscard]] virtual std::unique_ptr<Pending> read(
      const std::string& oid, std::uint64_t offset,
      std::span<const MutablePiece> pieces, SnapId snap) = 0;

  /// Starts a write operation under a snapshot context.
  [[nodiscard]] virtual std::unique_ptr<Pending> write(
      const std::string& oid, const WriteOp& op, const SnapContext& snapc) = 0;

  /// Starts asking for an object's size in bytes.  `size` must stay valid
  /// until completion.
  [[nodiscard]] virtual std::unique_ptr<Pending> stat(const std::string& oid,
                                                      std::uint64_t* size,
                                                      SnapId snap) = 0;

  /// Starts calling an object class method; `output` must stay valid until
  /// completion.  The method may be one that changes the object (lock.lock,
  /// rbd.object_map_update): the OSD knows which do, and that it must carry
  /// one out once, however often it is sent.  Such a method gives no output.
  /// What it changes gets no snapshot context; and a missing object may come
  /// into being, if the method wants that.
  [[nodiscard]] virtual std::unique_ptr<Pending> exec(
      const std::string& oid, std::string_view cls, std::string_view method,
      std::string_view input, std::string* output) = 0;

  /// Starts calling methods that only read, in one operation: what they say
  /// was so at one moment, and it is cheaper than an operation for each.
  /// `outputs` gets as many, in the same order; it must stay valid until
  /// completion.  The result is the first error of a call, and then there are
  /// no outputs.  At most max_calls calls; none is -EINVAL.
  [[nodiscard]] virtual std::unique_ptr<Pending> exec_each(
      const std::string& oid, std::span<const MethodCall> calls,
      std::vector<std::string>* outputs) = 0;
  static constexpr std::size_t max_calls = 256;

  /// Starts reading all extended attributes of an object.
  [[nodiscard]] virtual std::unique_ptr<Pending> xattrs(
      const std::string& oid, std::map<std::string, std::string>* out) = 0;

  /// Starts reading a whole object, at most `limit` bytes of it.
  [[nodiscard]] virtual std::unique_ptr<Pending> read_all(
      const std::string& oid, std::uint64_t limit, std::string* out) = 0;

  /// The parts of [offset, offset + length) of an object that hold data,
  /// ascending, as exactly as the pool can tell.  Blocks (librados has no
  /// asynchronous form of it).  Returns 0 or a negative errno: -ENOENT: no
  /// such object, -EOPNOTSUPP: this pool cannot map objects.
  [[nodiscard]] virtual int map_extents(const std::string& oid,
                                        std::uint64_t offset,
                                        std::uint64_t length, SnapId snap,
                                        std::vector<ObjectRange>* out) = 0;

  /// Watches an object; blocks; throws Error.  `handler` must outlive the
  /// watch.
  [[nodiscard]] virtual std::unique_ptr<Watch> watch(const std::string& oid,
                                                     WatchHandler& handler) = 0;
  /// Starts asking who watches an object.  `out` must stay valid until
  /// completion.
  [[nodiscard]] virtual std::unique_ptr<Pending> list_watchers(
      const std::string& oid, std::vector<Watcher>* out) = 0;
  /// Answers a notification; does not wait.  `payload` reaches the notifier.
  virtual void notify_ack(const std::string& oid, std::uint64_t notify_id,
                          std::uint64_t cookie, std::string_view payload) = 0;
  /// Starts notifying the watchers of an object, this client's own watches
  /// among them.  It completes when all have answered, or with -ETIMEDOUT
  /// after `limit` (which an OSD counts in whole seconds, rounded up here).
  ///
  /// `reply`, where not null, receives the answers with both results; it must
  /// stay valid until completion.  It is encoded as librados does it (see
  /// rados_notify2): a le32 count of {le64 client, le64 cookie, le32 size,
  /// bytes} for each watch that answered, and a le32 count of {le64 client,
  /// le64 cookie} for each that did not.  Empty where the OSD did not answer.
  ///
  /// Unlike other operations, wait() is not for ever: it gives up (-ETIMEDOUT)
  /// soon after `limit` where the OSD does not answer at all.  Destroying it
  /// early does not wait and calls nothing back: watchers are notified all the
  /// same.
  [[nodiscard]] virtual std::unique_ptr<Pending> start_notify(
      const std::string& oid, std::string_view payload,
      std::chrono::milliseconds limit, std::string* reply) = 0;

  /// start_notify and wait.  Not to be called by a thread that must answer
  /// for a watch of this client on the object: it would wait for itself.
  int notify(const std::string& oid, std::string_view payload,
             std::chrono::milliseconds limit, std::string* reply = nullptr) {
    return start_notify(oid, payload, limit, reply)->wait();
  }

  /// Starts asking for the version of an object: a number that is another one
  /// after each change of it, also when it was removed and made again
  /// (user_version; ceph: src/osd/PrimaryLogPG.cc).  But what is copied over it
  /// as a whole (CEPH_OSD_OP_COPY_FROM, `rados cp`) brings the version of its
  /// source, so the same number can stand for another content.  `version` must
  /// stay valid until completion.
  [[nodiscard]] virtual std::unique_ptr<Pending> version(
      const std::string& oid, std::uint64_t* version) = 0;

  /// Starts asking for the versions of an object.  `out` must stay valid until
  /// completion.  -ENOENT: there is none, not even for a snapshot.
  [[nodiscard]] virtual std::unique_ptr<Pending> list_snaps(
      const std::string& oid, SnapSet* out) = 0;

  /// Gives out an id for a snapshot of this pool's objects, larger than all
  /// before it.  One that is never used costs nothing.  Blocks, because it is
  /// the monitors who do it (librados bounds that by rados_mon_op_timeout).
  /// Returns 0 or a negative errno: -EPERM, -ETIMEDOUT, -EINVAL: the pool has
  /// snapshots of the whole pool.
  [[nodiscard]] virtual int make_snap_id(SnapId* snap) = 0;
  /// Takes it back, for ever: what only this snapshot needs is removed from the
  /// pool.  Blocks as make_snap_id.  Returns 0 or a negative errno; that it has
  /// been taken back already is none.
  [[nodiscard]] virtual int release_snap_id(SnapId snap) = 0;

  /// Names of objects of the pool and namespace that `wanted` accepts, in any
  /// order.  That is for people to choose from.  It proves nothing, above all
  /// not that an object is absent (see block_status.cpp): only asking for the
  /// object does.  Objects that only snapshots still have are among them, and
  /// those that are in a cache pool over this one.  `log` receives a line for
  /// each cache pool that cannot be listed.  Blocks.  Throws Error.
  [[nodiscard]] virtual std::vector<std::string> list(
      const std::function<bool(std::string_view)>& wanted,
      const std::function<void(const std::string&)>& log) = 0;
};

/// wait_for, then throws Error "`what`: reason" for a negative result.
int wait_check(Pending& pending, std::chrono::milliseconds limit,
               std::string_view what);

}  // namespace nbdrados

#endif
