// SPDX-License-Identifier: BSD-3-Clause
//
// The object map of an image's head, in memory, while the image's exclusive
// lock is held.
//
// Two rules hold at any time, whatever threads do:
//
//   1. Memory says `exists` only where the map in the pool says so.
//   2. Memory and pool never say `nonexistent` of an object that exists, if
//      whoever writes to an object calls mark_exists (or mark_written, or
//      begin_creation) before, whoever removes one calls begin_removal before
//      and end_removal after, and the two are kept apart for each object: from
//      before mark_exists until the write is over there is no removal, and
//      removals are one at a time (ObjectGuards).
//
// How.  All changes go through one queue.  One of the waiting threads, the
// leader, takes everything that is queued as one batch; while that is under
// way, the next batch collects (group commit).  The requests of a batch are
// concurrent calls, so it may order them: begin_removal, then end_removal,
// then what is given back (see below), then begin_creation, then mark_exists.
// Operations on one object happen in the order of their submission, so the map
// in the pool goes through exactly these changes, and a batch begins when the
// one before it has been acknowledged.
//
//   window  map in the pool       memory
//   0       as before             as before
//   1       as before             begin_removal applied
//   2       any part of the batch begin_removal applied
//   3       all of the batch      begin_removal applied
//   4       all of the batch      all of the batch
//
// Rule 1: what lowers `exists` (begin_removal) is applied to memory before it
// is sent, what raises to it is applied after it was acknowledged, and in a
// batch no lowering comes after a raise.  So a mark_exists that finds
// `exists` in memory and sends nothing is right, and one that does not find
// it is queued, and then comes after every change that was sent before it.
// Rule 2: only end_removal makes `nonexistent`, and only of what is
// `pending`; of what begin_creation has made so, it is kept away like from a
// write.  A mark_exists before it in the order leaves nothing `pending`
// for it, one after it raises the object again; both in the pool and, as the
// same rule is applied in the same order, in memory.  A write that needed no
// mark and is still under way is what the callers' guards are for.
// A process killed in any window leaves in the pool, of a removal, `pending`
// or what was there before; of a first write, at worst `exists` without an
// object, with which `rbd object-map check` is content.
//
// But `exists` must not be said of an object that only a parent has: librbd's
// flatten then takes it as copied, and its data is lost (seen with 16.2.15).
// Such an object is `pending` from begin_creation until it is there.
//
// Reservations.  Where objects are made one after the other, mark_written has
// the pool say `exists` of some that will probably come next (CreationRuns).
// Those are `nonexistent` in memory, and reserved.  A mark takes a reserved
// object without an operation: memory then says what the pool has said since
// before.  What did not come is given back: in the pool, `exists` becomes
// `nonexistent`, and the object is reserved no more before that is sent, so
// that a later mark comes after it in the order.  Only objects that are
// `nonexistent` in memory, and of which the batch creates none, are reserved;
// and ranges that are sent never have a reserved object in them for another
// one's sake.  So between batches, memory and pool differ in reserved objects
// only, and in those in one way.  A process that is killed leaves them
// `exists` without an object: at most CreationRuns::most - 1 for each of a few
// places that were being filled.
//
// Memory.  Two bits an object, in blocks, and blocks in which all objects have
// the same state are one for all.  A thread that is about to change the first
// object of such a block puts a copy in its place in the table, and changes
// that.  A reader finds the one or the other there.  Whoever still looks at the
// former one sees what it said when he came.  No reader can find a block that
// has been freed: those that are for all live for ever, and the map's own ones
// stay in the table until the map goes, whose users (View::map) hold it.  (So
// what has been full once and empty again takes its memory until the lock is
// taken the next time.)
//
// Failure.  A batch that fails leaves it open what the pool has.  All its
// callers get the error, and so does every later call that would change
// something.  state() says `exists` of all objects from then on: callers go
// on to write without the map, so memory must not be believed.

#ifndef NBDRADOS_IMAGE_OWNERSHIP_OBJECT_MAP_HPP
#define NBDRADOS_IMAGE_OWNERSHIP_OBJECT_MAP_HPP

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "image/ownership/creation_runs.hpp"
#include "rados/error.hpp"
#include "rados/object_store.hpp"
#include "rbd/object_map.hpp"

namespace nbdrados {

/// Thread-safety: all members may be called by any thread.
/// Lock: mutex_ guards the queue, the leadership and the error, and writes
/// to blocks_ and what is in them; it is never held during I/O.
/// Takes the memory of an ObjectStates.
class ObjectMap {
 public:
  /// Locks the map's object and loads it.  Only for who holds the image's
  /// exclusive lock: a lock on the map that somebody else has is then a former
  /// owner's, and is broken, as librbd does
  /// (ceph: src/librbd/object_map/LockRequest.cc).
  ///
  /// `store` is where the header is, and must outlive the map; `objects` is
  /// the number of objects that the image has; each operation may take
  /// `limit`.  A map of more objects is fine (a shrinking was interrupted).
  ///
  /// Throws Error where there is no map that can be used, in particular
  /// ENOENT (none) and EINVAL (too small, or damaged).  The map is then not
  /// locked.
  [[nodiscard]] static std::shared_ptr<ObjectMap> open(
      ObjectStore& store, std::string image_id, std::uint64_t objects,
      std::chrono::milliseconds limit);

  /// Gives back what is reserved and unlocks the map's object, each within
  /// open's `limit`; no other call may be under way, and none but close may
  /// follow.
  /// That it was not locked (any more) is no error.  Throws Error.
  /// The destructor does not unlock.
  void close();
  ~ObjectMap();

  ObjectMap(const ObjectMap&) = delete;
  ObjectMap& operator=(const ObjectMap&) = delete;

  /// Objects in the map; not fewer than the image has.
  [[nodiscard]] std::uint64_t objects() const noexcept { return objects_; }
  /// Without a lock.  `exists` behind the end and after a failure.
  [[nodiscard]] ObjectState state(std::uint64_t object_no) const noexcept;
  [[nodiscard]] bool may_exist(std::uint64_t object_no) const noexcept {
    return state(object_no) != ObjectState::nonexistent;
  }

  /// The first object in [object_no, end) that may exist, or `end`; without a
  /// lock.
  [[nodiscard]] std::uint64_t end_of_absent(std::uint64_t object_no,
                                            std::uint64_t end) const noexcept;

  /// Before objects are written to: when it returns they are `exists` in the
  /// pool.  No operation and no lock where they were already.  Throws Error;
  /// ERANGE: an object is behind the end.
  void mark_exists(std::uint64_t first, std::uint64_t count);
  /// `objects` ascend.
  void mark_exists(std::span<const std::uint64_t> objects);

  /// As mark_exists of one object, for one that no parent has.  May reserve
  /// objects behind it, which none may have either.
  void mark_written(std::uint64_t object_no);
  /// Gives back what is reserved: on return the pool says `nonexistent` of
  /// objects that do not exist, except of what is marked at the same time.
  /// No operation where nothing is reserved.  Throws Error.
  void give_back();

  /// Before objects are made that a parent may still have: those that are
  /// `nonexistent` become `pending`.  When they are there, mark_exists.
  /// Throws as mark_exists.
  void begin_creation(std::uint64_t first, std::uint64_t count);
  void begin_creation(std::span<const std::uint64_t> objects);

  /// Before objects are removed: those that exist or exist_clean become
  /// `pending`; no operation where there is none.  Throws as mark_exists.
  void begin_removal(std::uint64_t first, std::uint64_t count);
  /// After objects were removed: those still `pending` become
  /// `nonexistent`.  Throws as mark_exists.
  void end_removal(std::uint64_t first, std::uint64_t count);

 private:
  enum class Kind : std::uint8_t {
    begin_removal,
    end_removal,
    give_back,  // of no range of its own
    begin_creation,
    mark_exists,
  };
  using Range = CreationRuns::Range;
  struct Request;
  struct Operation;

  ObjectMap(ObjectStore& store, std::string image_id, std::string oid,
            ObjectStates states, std::chrono::milliseconds limit);

  [[nodiscard]] ObjectState raw(std::uint64_t object_no) const noexcept;
  /// Whether a change changes an object.
  [[nodiscard]] bool concerns(Kind kind,
                              std::uint64_t object_no) const noexcept;
  [[nodiscard]] static ObjectState target(Kind kind) noexcept;
  void add_needed(Kind kind, Range range, std::vector<Range>& out) const;
  static void add(std::uint64_t object_no, std::vector<Range>& out);
  void apply(Kind kind, std::span<const Range> ranges);
  [[nodiscard]] StateBlock& own(std::uint64_t block);
  void check_range(std::uint64_t first, std::uint64_t count) const;
  void change(Kind kind, std::uint64_t first, std::uint64_t count);
  void change(Kind kind, std::span<const std::uint64_t> objects);
  void submit(Kind kind, std::vector<Range> ranges, bool may_reserve = false);
  void lead(std::unique_lock<std::mutex>& lock);
  [[nodiscard]] static bool any_in(const std::set<std::uint64_t>& objects,
                                   Range range);
  void take_reserved(std::vector<Range>& ranges);
  void no_more_reserved(Range range, std::vector<Range>& out);
  [[nodiscard]] std::vector<Range> joined(std::span<Request* const> batch,
                                          Kind kind) const;
  struct Batch;
  [[nodiscard]] Batch prepare(std::span<Request* const> requests);
  void complete(const Batch& batch);
  void add_operations(Kind kind, std::span<const Range> ranges,
                      std::vector<std::unique_ptr<Operation>>& out) const;
  [[nodiscard]] int send(
      const Batch& batch,
      std::optional<std::chrono::steady_clock::time_point> deadline = {});

  ObjectStore& store_;
  const std::string image_id_;
  const std::string oid_;
  const std::string assert_locked_;  // input of that method
  const std::uint64_t objects_;
  const std::chrono::milliseconds limit_;
  std::vector<std::atomic<StateBlock*>> blocks_;
  std::atomic<bool> failed_{false};

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Request*> queue_;  // guarded by mutex_
  bool led_ = false;             // guarded by mutex_: a batch is under way
  std::optional<Error> error_;   // guarded by mutex_
  CreationRuns runs_;            // guarded by mutex_
  std::set<std::uint64_t> reserved_;  // guarded by mutex_
  /// Guarded by mutex_: the batch under way reserves objects, or gives some
  /// back.
  bool reserving_ = false;
};

}  // namespace nbdrados

#endif
