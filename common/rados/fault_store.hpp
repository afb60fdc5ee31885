// SPDX-License-Identifier: BSD-3-Clause
//
// An object store that wraps another one and misbehaves as a test tells it
// to: errors, short reads, late and lost replies, broken watches.  It also
// counts and records what it was asked to do, and watches over its user.
//
//     MemoryStore memory;
//     FaultStore store(memory);
//     store.inject({.kind = Kind::write, .skip = 2, .error = EIO});
//     store.inject({.oid = "x.01", .held = true});
//     std::thread request(...);         // writes x.00, x.01 and x.02
//     store.wait_until_held(1);         // all that can be done is done
//     ...                               // the request must not be finished
//     store.release();                  // completes x.01
//
// What it holds against its user (problems()):
//   - the result of an operation that nobody asked for: the Pending was
//     destroyed without a wait, other than by an exception;
//   - memory of an operation (data to write, destination of a read) that
//     changed while the operation was in flight.  Only of late operations.
// A notification may be destroyed without a wait.
// Memory is only read or written by the store while the operation is in
// flight, never after it has completed or was cancelled.
//
// Thread-safety: every member may be called by any thread.  Late operations
// complete in threads of their own.  Lock: mutex_ guards everything; it is
// not held while the wrapped store or a callback runs.

#ifndef NBDRADOS_RADOS_FAULT_STORE_HPP
#define NBDRADOS_RADOS_FAULT_STORE_HPP

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "rados/object_store.hpp"

namespace nbdrados {

class FaultStore : public ObjectStore {
 public:
  enum class Kind : std::uint8_t {
    read,
    write,
    stat,
    exec,
    xattrs,
    read_all,
    map_extents,
    watch,
    notify_ack,
    notify,
    version,
    list,
    list_watchers,
    list_snaps,
    make_snap_id,
    release_snap_id,
  };

  /// What shall happen to which operations.
  struct Fault {
    /// Which: those that agree with `kind` and `oid` where these are given;
    /// of these `skip` pass, and then `times` are hit.
    std::optional<Kind> kind = std::nullopt;
    std::string oid = {};
    std::uint64_t skip = 0;
    std::uint64_t times = 1;

    /// Positive errno; the operation is not carried out.  A notify_ack is
    /// lost.  0: none.
    int error = 0;
    /// Bytes; a read finds no more than that.
    std::optional<std::size_t> short_read = std::nullopt;
    /// Completes this late.
    std::chrono::milliseconds delay{0};
    /// Completes when the test releases it, or when wait_for cancels it.
    bool held = false;
    /// Carried out when it is submitted, although it then fails, is late or
    /// is cancelled: the reply was lost.
    bool carried_out = false;
  };
  static constexpr std::uint64_t always = ~std::uint64_t{0};

  /// An operation as it was submitted.
  struct Record {
    Kind kind = Kind::read;
    std::string oid = {};
    std::uint64_t offset = 0;  // of read and map_extents
    std::uint64_t length = 0;  // of these, and the limit of read_all
    SnapId snap = snap_head;   // of read, stat, map_extents, release_snap_id
    SnapContext snapc = {};    // of write
    std::vector<WriteOp::Kind> steps = {};  // of write
    std::string method = {};                // of exec: "class.method", or some
  };

  /// `base` must outlive the store.
  explicit FaultStore(ObjectStore& base) : base_(base) {}
  /// Prints to stderr and aborts where an operation or a watch is still
  /// there, or where problems() has not been asked for.
  ~FaultStore() override;
  FaultStore(const FaultStore&) = delete;
  FaultStore& operator=(const FaultStore&) = delete;

  /// The first injected fault that agrees with an operation hits it; faults
  /// do not add up.
  void inject(const Fault& fault);
  /// Later operations meet no fault.  Held ones stay held.
  void clear_faults();
  /// Number of operations that a fault has hit.
  [[nodiscard]] std::uint64_t hits();

  /// Number of operations that are held now.
  [[nodiscard]] std::size_t held();
  /// Blocks until `count` operations are held; false: not within `limit`.
  [[nodiscard]] bool wait_until_held(
      std::size_t count,
      std::chrono::milliseconds limit = std::chrono::seconds(20));
  /// Completes held operations, in the order of submission: all, or those
  /// on one object.  They have completed when this returns.
  void release();
  void release(const std::string& oid);

  /// Breaks the watches on an object: calls watch_lost(code), after which
  /// check() gives `code`, and no notifications come any more if `code` is
  /// ENOTCONN.  All of them, or the `oldest` ones of this store.  The
  /// callbacks have ended when this returns.
  void lose_watches(const std::string& oid, int code,
                    std::size_t oldest = ~std::size_t{0});
  /// From now on Watch::kept_for() gives `time`.
  void keep_watches_for(std::chrono::milliseconds time);

  /// Operations submitted so far, in order; and their number by kind.
  [[nodiscard]] std::vector<Record> log();
  [[nodiscard]] std::size_t count(Kind kind);
  void clear_log();
  /// The largest number of asynchronous operations that were in flight at
  /// one time, that is, submitted and not yet destroyed.
  [[nodiscard]] std::size_t most_in_flight();

  /// What the user of the store did wrong, one line each; forgets it.
  [[nodiscard]] std::vector<std::string> problems();

  [[nodiscard]] ObjectStore& keeper() noexcept override {
    return base_.keeper();
  }
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
  /// Carried out by a thread of its own, or by the one that releases it.
  [[nodiscard]] std::unique_ptr<Pending> start_notify(
      const std::string& oid, std::string_view payload,
      std::chrono::milliseconds limit, std::string* reply) override;
  [[nodiscard]] std::unique_ptr<Pending> version(
      const std::string& oid, std::uint64_t* version) override;
  [[nodiscard]] std::unique_ptr<Pending> list_snaps(const std::string& oid,
                                                    SnapSet* out) override;
  [[nodiscard]] int make_snap_id(SnapId* snap) override;
  [[nodiscard]] int release_snap_id(SnapId snap) override;
  [[nodiscard]] std::vector<std::string> list(
      const std::function<bool(std::string_view)>& wanted,
      const std::function<void(const std::string&)>& log) override;

 private:
  struct Operation;
  class FaultPending;
  class FaultWatch;
  using OperationPtr = std::shared_ptr<Operation>;
  /// Carries an operation out; the fault says how short a read is.
  using Run = std::function<int(const Fault&)>;
  /// A number that depends on all bytes of an operation's memory.
  using Fingerprint = std::function<std::size_t()>;

  [[nodiscard]] Fault next_fault(const Record& record);
  [[nodiscard]] std::unique_ptr<FaultPending> submit(
      Record record, Run run, Fingerprint fingerprint = {});
  [[nodiscard]] int run_now(Record record, Run run);
  void complete(Operation& operation);
  void release_if(const std::function<bool(const Operation&)>& chosen);
  void problem(const Record& record, const std::string& what);

  ObjectStore& base_;
  std::mutex mutex_;
  std::condition_variable changed_;  // states of operations, held_
  std::deque<Fault> faults_;
  std::uint64_t hits_ = 0;
  std::list<OperationPtr> held_;
  std::vector<Record> log_;
  std::vector<std::string> problems_;
  std::vector<FaultWatch*> watches_;
  std::chrono::milliseconds watches_kept_for_{25000};
  std::size_t in_flight_ = 0;
  std::size_t most_in_flight_ = 0;
};

/// "read", "write", ...
[[nodiscard]] std::string_view to_string(FaultStore::Kind kind) noexcept;

}  // namespace nbdrados

#endif
