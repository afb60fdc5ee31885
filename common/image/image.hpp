// SPDX-License-Identifier: BSD-3-Clause
//
// An open image: what every format has in common, which is nearly all.
//
// A request is cut by the layout; all its objects are in flight at once; it
// ends when all of them have ended, with the first error (in the order of
// the objects) if there was one.  What differs between the formats is how
// their metadata is read and kept: that is behind ImageFormat, chosen once,
// at open.
//
// What a request needs to know of the metadata is in an immutable View.  A
// change of the header (a new snapshot, another size) replaces the View:
//
//     somebody            OSD              maintenance thread     requests
//     change header  -->
//     notify         -->  notify --------> hold new writes
//                                          load the header
//                                          publish the new View   go on with
//                                          wait for old requests  the new View
//                         ack <----------- notify_ack
//     notify returns <--
//
// so when the notifier's notify returns, no write under the old snapshot
// context is in flight or will be (ceph: src/librbd/ImageWatcher.cc, the
// HEADER_UPDATE notification).  Writes are held at once, because a notifier
// that gets no answer in time goes on without.  While the watch is broken,
// notifications can be missed, so writes wait until it is made again and the
// header re-read.
//
// An image with the feature exclusive-lock is written to only while its lock
// is held.  The View says so too: where a lock is needed and not held, writes
// wait for the maintenance thread to get it; before it is handed over, a View
// without it is published and requests under the old one are waited for.
//
// What a clone lacks is its parent's, an Image of its own below this one (see
// View::parent).  How an object is changed that the parent still backs is
// told in image_write.cpp.

#ifndef NBDRADOS_IMAGE_IMAGE_HPP
#define NBDRADOS_IMAGE_IMAGE_HPP

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "coherence/boot_clock.hpp"
#include "coherence/coherence.hpp"
#include "image/io/object_guards.hpp"
#include "image/io/write_merger.hpp"
#include "image/ownership/lock_mode.hpp"
#include "image/ownership/object_map.hpp"
#include "image/published.hpp"
#include "image/status/extents_mode.hpp"
#include "image/status/known_extents.hpp"
#include "image/worker_pool.hpp"
#include "layout/layout.hpp"
#include "rados/error.hpp"
#include "rados/object_store.hpp"

namespace nbdrados {

/// A part of an image: data, or a hole that reads as zeros.
struct Extent {
  std::uint64_t offset;
  std::uint64_t length;
  bool data;
  bool operator==(const Extent&) const = default;
};

/// What does not change while an image is open.
struct ImageTraits {
  std::string name;    // for messages: pool/[namespace/]image[@snap]
  std::string format;  // "RBD format 1", ...
  Layout layout;
  /// Data object n is called PREFIX.N with N in `name_digits` hex digits.
  std::string object_prefix;
  unsigned name_digits = 16;
  /// Object 0 carries the metadata and must never be removed.
  bool keep_first_object = false;
  /// Tell the OSD the object size with each write, as librbd does.
  bool alloc_hints = true;
  /// Watched for changes; empty: there is nothing to watch.
  std::string header_oid;
  /// A few words for the export description, such as the features.
  std::string details;
  /// For messages: where the data objects are.
  std::string data_pool = "its pool";
};

/// The snapshot that a clone was made of.
struct ParentSpec {
  std::int64_t pool = -1;
  std::string name_space;
  std::string image_id;
  SnapId snap = 0;
  bool operator==(const ParentSpec&) const = default;
};

/// A parent and the generations between it and the image that is served.
struct Lineage {
  ParentSpec spec;
  unsigned depth = 1;  // 1: that image's own parent
  std::shared_ptr<const Lineage> child = {};
};

class Image;

/// What can change while an image is open.
struct View {
  // What the format reads.
  std::uint64_t size = 0;     // bytes
  SnapContext snapc = {};     // for writes
  SnapId snap = snap_head;    // what is read
  /// So many bytes of the image, from its start, are the parent's where the
  /// image has no object; 0: there is no parent.
  std::uint64_t overlap = 0;
  ParentSpec parent_spec = {};
  /// Writers must hold the exclusive lock.
  bool lockable = false;
  /// There is an object map, and nothing says that it is invalid.
  bool mappable = false;
  /// Snapshots may have valid object maps, whatever the head's is.
  bool snaps_mapped = false;
  /// The object map tells objects that are as in the newest snapshot.
  bool fast_diff = false;
  /// Not empty: why it cannot be written to.
  std::string unwritable = {};

  // What the image adds.
  /// Where the overlap is read; its size may be less than the overlap.
  std::shared_ptr<Image> parent = {};
  /// Of the head, while the lock is held and the map can be believed.
  std::shared_ptr<ObjectMap> map = {};
  /// The lock is needed for writing and not held: writes wait.
  bool needs_lock = false;
  /// The header may have changed: writes wait.
  bool hold_writes = false;
  /// What is known of its objects holds (see known_extents.hpp).
  bool known = false;
  /// Not 0: requests fail with this positive errno and `reason`.  Each one
  /// first sees whether that has ended: see Image::retry.
  int failure = 0;
  std::string reason = {};
  bool operator==(const View&) const = default;
};

class ExclusiveLock;

/// The metadata of one format.  Called by one thread at a time, except for
/// the members that say otherwise.
class ImageFormat {
 public:
  virtual ~ImageFormat() = default;

  [[nodiscard]] virtual const ImageTraits& traits() const = 0;

  /// Reads the metadata again.  Throws Error: ENOENT where the image or
  /// snapshot is gone, EIO where the header makes no sense.
  [[nodiscard]] virtual View load() = 0;

  /// Until when a lock that this format holds keeps others from removing the
  /// image; none: there is no such lock, and the header is watched.  Not to be
  /// called beside keep_alive.
  [[nodiscard]] virtual std::optional<BootClock::time_point> locked_until()
      const {
    return std::nullopt;
  }

  /// Renews what expires, such as a lock, and returns after what time to
  /// call it again; none: never.  Throws Error(ESHUTDOWN) when it is lost.
  [[nodiscard]] virtual std::optional<std::chrono::milliseconds>
  keep_alive() {
    return std::nullopt;
  }

  /// The format of a parent that a View names, for reading.  Throws Error;
  /// ENOENT becomes EIO, because it is not this image that is missing.
  [[nodiscard]] virtual std::unique_ptr<ImageFormat> open_parent(
      const ParentSpec& spec);

  /// The exclusive lock; null where the format knows none.  Only the
  /// maintenance of the image uses it.
  [[nodiscard]] virtual ExclusiveLock* lock() noexcept { return nullptr; }
  /// Opens the object map of the head; the lock is held.  Throws Error:
  /// EINVAL or EIO where it cannot be believed.
  [[nodiscard]] virtual std::shared_ptr<ObjectMap> open_map(
      std::uint64_t objects);
  /// The object map of what is read, as it is in the pool; null where there
  /// is no map or it cannot be believed.  For each object it is right for some
  /// moment during the call, whoever holds the lock (see map_reader.hpp).
  /// Thread-safe.
  /// Throws Error.
  [[nodiscard]] virtual std::shared_ptr<const ObjectStates> read_map();
  /// The object map of a snapshot, or of the head, if it can be believed
  /// about what has changed since the snapshot before; else null.
  /// Thread-safe.  Throws Error.
  [[nodiscard]] virtual std::shared_ptr<const ObjectStates> read_fast_diff(
      SnapId snap);
  /// Marks the object map of the head, or of a snapshot, as not to be
  /// believed; the lock is held.  Thread-safe.  Throws Error.
  virtual void invalidate_map(SnapId snap);
  /// Starts to set an object's state in the map of a snapshot, if it is
  /// `current` there.  The result is -ENOENT where there is no such map, -ERANGE where the snapshot is
  /// smaller.  `request` must stay valid until completion.  Thread-safe.
  [[nodiscard]] virtual std::unique_ptr<Pending> update_snapshot_map(
      SnapId snap, std::uint64_t object_no, ObjectState state,
      ObjectState current, std::string* request);

  /// Where the header is, and where the data is.
  [[nodiscard]] virtual ObjectStore& header_store() = 0;
  [[nodiscard]] virtual ObjectStore& data_store() = 0;
};

/// How one export uses an image.
struct ImageOptions {
  bool writable = false;
  LockMode lock = LockMode::exclusive;
  ExtentsMode extents = ExtentsMode::exact;
  /// At open, wait until a dead owner of the lock counts as dead, instead of
  /// failing at once.
  bool break_lock = false;
  /// Where the lock is handed over: how long another client may have it
  /// before it is asked for it, until that one is known to write.
  std::chrono::milliseconds lock_wait = default_lock_wait;
  /// Of a parent, which is only read, and which its child's link keeps.
  std::shared_ptr<const Lineage> lineage = {};
  /// Trims are rounded inwards to multiples of it; 0: 64 KiB, or the object
  /// size where that is smaller.
  std::uint64_t discard_granularity = 0;
  /// Of a snapshot: names it, in this process and for ever, and what its block
  /// status says.
  std::string identity = {};
  /// For blocking calls; shared with other images.
  std::shared_ptr<WorkerPool> workers = {};
  /// Receives a line about an event that no request reports (a broken watch
  /// for instance), and whether it is trouble or only good to know.  Called
  /// by any thread.
  std::function<void(const std::string& line, bool trouble)> log = {};
};

/// An open image.  Every member may be called by any thread at any time,
/// except the destructor, which must come last.  All I/O throws Error:
/// EINVAL beyond the end, EROFS for a write to what is read-only, ESHUTDOWN
/// when this client has been blocklisted or its lock lost, ENOSPC when the
/// cluster or pool is full, else what RADOS said.
class Image {
 public:
  Image(std::unique_ptr<ImageFormat> format, ImageOptions options);
  ~Image();
  Image(const Image&) = delete;
  Image& operator=(const Image&) = delete;

  [[nodiscard]] const ImageTraits& traits() const noexcept { return traits_; }
  /// Not where the image itself cannot be written to, whatever was asked.
  [[nodiscard]] bool writable() const noexcept { return writable_; }
  /// Bytes.
  [[nodiscard]] std::uint64_t size();
  /// Format, size, striping and features in one line.
  [[nodiscard]] std::string description();
  [[nodiscard]] std::uint64_t discard_granularity() const noexcept {
    return discard_granularity_;
  }

  /// Whether caches above may keep what they have read: while the exclusive
  /// lock is held, and always of a snapshot.
  [[nodiscard]] std::shared_ptr<const Promise> promise() const noexcept {
    return promise_;
  }

  /// Reads the metadata again, as for a new client.  Throws Error, also
  /// where the image has been lost for good.
  void refresh();

  /// Whether the image can never be used again, because its lock or its
  /// header is lost; it must be opened anew.
  [[nodiscard]] bool lost();

  /// Missing objects and what is beyond an object's end are zeros; every
  /// other error is an error.
  void read(char* buffer, std::uint64_t length, std::uint64_t offset);
  /// On return the data is on every replica.
  void write(const char* buffer, std::uint64_t length, std::uint64_t offset);

  /// All writes that have returned are durable already.  On return the object
  /// map says no more of what exists than is true, except for what is being
  /// written, and if it can be updated now.  Throws Error where the image is
  /// lost.
  void flush();

  enum class Zero {
    allocate,  // the range keeps, or gets, its space
    free,      // the range need not keep its space
  };
  /// On return the range reads as zeros, on every replica.
  void zero(std::uint64_t length, std::uint64_t offset, Zero how);

  /// As zero(free), for the part of the range that is left when it is
  /// rounded inwards to discard_granularity(); the rest is untouched.  The
  /// image's end counts as a multiple.
  void trim(std::uint64_t length, std::uint64_t offset);

  /// What is data and what is a hole, ascending and adjacent, neighbours of
  /// different kinds, the first from `offset`.  At least one extent, and the
  /// whole range unless `one` is set (then at least the first extent) or
  /// time runs out: a call works about extents_time, and the rest is for the
  /// next call.  A hole at the end may go on behind the range, as far as that
  /// is known.  Never calls data a hole.  Begins and ends are multiples of 512,
  /// but for those of the range and of the image (see sectors.hpp).
  [[nodiscard]] std::vector<Extent> extents(std::uint64_t length,
                                            std::uint64_t offset, bool one);
  static constexpr std::chrono::milliseconds extents_time{100};

 private:
  friend class Difference;
  class Maintenance;
  /// Generations of parents.  A request that goes through all of them does so
  /// by recursion, and a thread has 8 MiB of stack.
  static constexpr unsigned max_depth = 1000;
  struct Target;  // this and the next three: see image_write.cpp
  struct Plan;
  struct MapFailure;
  class CopyUpTurn;

  [[nodiscard]] std::string object_name(std::uint64_t object_no) const;
  [[nodiscard]] std::uint64_t chunk_end(std::uint64_t offset,
                                        std::uint64_t end,
                                        std::uint64_t units) const noexcept;
  void check_request(const View& view, std::uint64_t length,
                     std::uint64_t offset) const;
  [[noreturn]] void object_error(int code, const char* doing,
                                 std::uint64_t object_no) const;

  // Reading.  These return whether anything absent was taken for zeros.
  [[nodiscard]] bool read_view(const View& view, char* buffer,
                               std::uint64_t length, std::uint64_t offset);
  [[nodiscard]] bool read_chunk(const View& view, char* buffer,
                                std::uint64_t length, std::uint64_t offset);
  [[nodiscard]] bool read_parent(const View& view, char* buffer,
                                 std::uint64_t length, std::uint64_t offset);
  [[nodiscard]] bool read_backing(char* buffer, std::uint64_t length,
                                  std::uint64_t offset);

  // Block status: see image_extents.cpp.
  struct Existing;
  struct Findings;
  [[nodiscard]] bool find_data(const View& view, const Existing& existing,
                               std::uint64_t length, std::uint64_t offset,
                               Findings& findings,
                               std::vector<Fragment>& data);
  [[nodiscard]] Existing existing_objects(const View& view,
                                          std::uint64_t length,
                                          Findings& findings);
  [[nodiscard]] std::uint64_t end_of_absent(const View& view,
                                            const Existing& existing,
                                            std::uint64_t offset,
                                            std::uint64_t end) const;
  [[nodiscard]] std::uint64_t least_object_size(const View& view);
  void learn(Findings& findings);
  /// Of a snapshot that has an object map: learns which objects do not exist,
  /// so that they need not be read.
  void learn_from_map();
  [[nodiscard]] bool find_backing_data(std::uint64_t length,
                                       std::uint64_t offset,
                                       std::vector<Fragment>& data);
  /// Calls `request` with the View until what it took for zeros has been
  /// confirmed; returns what it returned.
  template <class Request>
  bool confirmed(Request&& request);
  /// Whether an absent object of the View must be confirmed.
  [[nodiscard]] bool doubtful(const View& view) const noexcept;
  void confirm_image();
  /// Whether the object map says that the object does not exist.
  [[nodiscard]] static bool absent(const View& view,
                                   std::uint64_t object_no) noexcept {
    return view.map && !view.map->may_exist(object_no);
  }
  /// Whether it is known, and needs no confirmation.
  [[nodiscard]] bool known_absent(const View& view,
                                  std::uint64_t object_no) const noexcept {
    return view.known && known_.absent(object_no);
  }
  /// Whether zeros for such an object need no confirmation: a parent's do,
  /// because it is the child who may be gone.
  [[nodiscard]] bool can_be_sure(const View& view) const noexcept {
    return view.overlap == 0 && !options_.lineage && guarded();
  }
  [[nodiscard]] bool guarded() const noexcept {
    return BootClock::now() < guarded_until_.load();
  }
  void guard_until(BootClock::time_point until) noexcept;
  [[nodiscard]] bool keep_promise(const View& view);
  /// What is known of objects is not to be believed any more.
  void distrust();

  // Writing.
  /// Calls `request` with the View, once writes are possible.
  template <class Request>
  void write_request(std::uint64_t length, std::uint64_t offset,
                     Request&& request);
  void write_chunk(const View& view, const char* buffer, std::uint64_t length,
                   std::uint64_t offset);
  void write_parts(const View& view, const Target& target,
                   std::span<const WriteMerger::Part> parts);
  void zero_chunk(const View& view, std::uint64_t length,
                  std::uint64_t offset, Zero how);
  void zero_objects(const View& view, std::uint64_t first,
                    std::uint64_t count);
  [[nodiscard]] std::vector<std::uint64_t> objects_to_clear(
      const View& view, std::uint64_t first, std::uint64_t count);
  [[nodiscard]] bool backed(const View& view,
                            std::uint64_t object_no) const noexcept;
  [[nodiscard]] bool removes(const View& view,
                             const Target& target) const noexcept;
  [[nodiscard]] Plan make_plan(const View& view, const Target& target) const;
  template <class AddSteps>
  void change(const View& view, const Target& target, AddSteps&& add,
              const char* doing);
  template <class GetTarget, class AddSteps>
  std::size_t change_many(const View& view, std::size_t count,
                          GetTarget&& target, AddSteps&& add,
                          const char* doing);
  template <class AddSteps>
  void add_steps(const View& view, const Target& target, WriteOp& op,
                 AddSteps&& add) const;
  template <class AddSteps>
  [[nodiscard]] int copy_up(const View& view, const Target& target,
                            AddSteps&& add);
  [[nodiscard]] std::string parent_data(const View& view,
                                        std::uint64_t object_no);
  /// Of the object map of a snapshot.
  struct SnapshotUpdate {
    SnapId snap;
    std::string request;  // what `pending` needs
    std::unique_ptr<Pending> pending;
  };
  [[nodiscard]] std::vector<SnapshotUpdate> update_snapshots(
      const View& view, std::uint64_t object_no, bool made);
  void finish(std::vector<SnapshotUpdate>& updates);
  [[nodiscard]] int copied_up(const View& view, std::uint64_t object_no,
                              int r);
  [[nodiscard]] static bool can_write_to(const View& view) noexcept {
    return (!view.hold_writes && !view.needs_lock) || view.failure != 0;
  }
  /// The object map could not be updated: it must not be believed.
  void give_up_map(const MapFailure& failure);

  // Metadata.
  void load_and_publish(bool end_hold = false);
  /// As load_and_publish, with the lock just taken.
  void publish_locked();
  /// The lock is about to be released: ends the requests that rely on it and
  /// returns the object map.
  [[nodiscard]] std::shared_ptr<ObjectMap> publish_unlocked();
  [[nodiscard]] std::shared_ptr<Image> find_parent(const View& view);
  [[nodiscard]] std::shared_ptr<const Lineage> lineage_of(
      const ParentSpec& spec) const;
  /// Writers that wait for the lock get this error.
  void refuse_writers(const Error& why);
  void hold_writes();
  void end_hold();
  void fail_for_good(int code, const std::string& reason);
  void retry();
  /// What a request works with.
  [[nodiscard]] Published<View>::Reader request_view() {
    if (failed_.load(std::memory_order_relaxed)) retry();
    return view_.read();
  }
  void publish(View view);
  void log(const std::string& line, bool trouble = true) const;

  const std::unique_ptr<ImageFormat> format_;
  const ImageTraits& traits_;
  ObjectStore& data_;
  const ImageOptions options_;
  const std::uint64_t discard_granularity_;
  bool writable_;  // constant once the image is open

  Published<View> view_;

  /// Held while the format reads or renews its metadata.  That is I/O under a
  /// lock, but no request takes it, except those that must ask for the
  /// metadata anyway.  Taken before state_mutex_.
  std::mutex format_mutex_;
  std::atomic<std::uint64_t> loads_started_{0};
  std::uint64_t last_verdict_ = 0;  // guarded by format_mutex_: that load
  ParentSpec parent_spec_;          // guarded by format_mutex_
  std::shared_ptr<Image> parent_;   // guarded by format_mutex_

  std::mutex state_mutex_;
  View last_;                // guarded by state_mutex_: what view_ holds
  bool holding_ = false;     // guarded by state_mutex_: writes are held
  bool locked_ = false;      // guarded by state_mutex_: the lock is held
  std::shared_ptr<ObjectMap> map_;  // guarded by state_mutex_
  int lost_ = 0;             // guarded by state_mutex_: failed for good
  std::string lost_reason_;  // guarded by state_mutex_

  /// How often the metadata of an image that fails is asked for again.
  static constexpr std::chrono::seconds retry_interval{1};
  /// The View fails, and not for good.  Changed under state_mutex_.
  std::atomic<bool> failed_{false};
  /// Held during that: the requests of the time wait for its outcome.  Taken
  /// before format_mutex_.
  std::mutex retry_mutex_;
  std::chrono::steady_clock::time_point next_retry_;  // guarded by retry_mutex_

  /// Until then the header is watched or locked, so it does not vanish unseen:
  /// max() of a parent, which the link of its child keeps, and min() where it
  /// cannot be watched.
  std::atomic<BootClock::time_point> guarded_until_{
      BootClock::time_point::min()};

  /// For writes that wait while hold_writes or needs_lock is set, or until the
  /// image is guarded.
  std::mutex hold_mutex_;
  std::condition_variable hold_changed_;
  std::uint64_t publications_ = 0;  // guarded by hold_mutex_
  std::uint64_t refusals_ = 0;      // guarded by hold_mutex_
  std::optional<Error> refusal_;    // guarded by hold_mutex_: the last one

  ObjectGuards guards_;
  WriteMerger merger_;
  KnownExtents known_;
  /// Changed under state_mutex_.
  /// Made with the first view.
  std::shared_ptr<Promise> promise_;
  SnapId constant_snap_ = snap_head;  ///< what promise_ is of
  /// OSDs know the method sparse_copyup, as far as is known.
  std::atomic<bool> sparse_copyup_{true};
  /// A write was given up that may still be carried out.
  std::atomic<bool> late_writes_{false};
  /// Set by who takes it upon himself to learn from the map.
  std::atomic<bool> map_learnt_{false};

  /// Objects that are being copied up.
  std::mutex copy_ups_mutex_;
  std::condition_variable copy_ups_changed_;
  std::set<std::uint64_t> copy_ups_;  // guarded by copy_ups_mutex_

  std::unique_ptr<Maintenance> maintenance_;
};

template <class Request>
bool Image::confirmed(Request&& request) {
  for (;;) {
    std::uint64_t size = 0;
    std::uint64_t overlap = 0;
    ParentSpec parent;
    {
      const auto view = request_view();
      const bool missing = request(*view);
      if (!missing || !doubtful(*view)) return missing;
      size = view->size;
      overlap = view->overlap;
      parent = view->parent_spec;
    }
    confirm_image();
    // What has got another parent, or none, must be read anew: its own
    // objects may have come in between.  Of another size, it may end before.
    const auto view = view_.read();
    if (view->size == size && view->overlap == overlap &&
        view->parent_spec == parent)
      return true;
  }
}

}  // namespace nbdrados

#endif
