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
#include <string>
#include <thread>
#include <vector>

#include "image/published.hpp"
#include "image/worker_pool.hpp"
#include "layout/layout.hpp"
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
  /// Whether this version can write to it.
  bool can_write = true;
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
};

/// What can change while an image is open.
struct View {
  std::uint64_t size = 0;     // bytes
  SnapContext snapc = {};     // for writes
  SnapId snap = snap_head;    // what is read
  /// The header may have changed: writes wait.
  bool hold_writes = false;
  /// Not 0: every request fails with this positive errno and `reason`.
  int failure = 0;
  std::string reason = {};
  bool operator==(const View&) const = default;
};

/// The metadata of one format.  Called by one thread at a time.
class ImageFormat {
 public:
  virtual ~ImageFormat() = default;

  [[nodiscard]] virtual const ImageTraits& traits() const = 0;

  /// Reads the metadata again.  Throws Error: ENOENT where the image or
  /// snapshot is gone, EIO where the header makes no sense.
  [[nodiscard]] virtual View load() = 0;

  /// Whether a lock that this format holds keeps others from removing the
  /// image.
  [[nodiscard]] virtual bool holds_lock() const { return false; }

  /// Renews what expires, such as a lock, and returns after what time to
  /// call it again; none: never.  Throws Error(ESHUTDOWN) when it is lost.
  [[nodiscard]] virtual std::optional<std::chrono::milliseconds>
  keep_alive() {
    return std::nullopt;
  }

  /// Where the header is, and where the data is.
  [[nodiscard]] virtual ObjectStore& header_store() = 0;
  [[nodiscard]] virtual ObjectStore& data_store() = 0;
};

/// How one export uses an image.
struct ImageOptions {
  bool writable = false;
  /// Trims are rounded inwards to multiples of it; 0: 64 KiB, or the object
  /// size where that is smaller.
  std::uint64_t discard_granularity = 0;
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
  [[nodiscard]] bool writable() const noexcept { return options_.writable; }
  /// Bytes.
  [[nodiscard]] std::uint64_t size();
  /// Format, size, striping and features in one line.
  [[nodiscard]] std::string description();
  [[nodiscard]] std::uint64_t discard_granularity() const noexcept {
    return discard_granularity_;
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
  /// next call.  Never calls data a hole.
  [[nodiscard]] std::vector<Extent> extents(std::uint64_t length,
                                            std::uint64_t offset, bool one);
  static constexpr std::chrono::milliseconds extents_time{100};

 private:
  class Maintenance;

  [[nodiscard]] std::string object_name(std::uint64_t object_no) const;
  [[nodiscard]] std::uint64_t chunk_end(std::uint64_t offset,
                                        std::uint64_t end,
                                        std::uint64_t units) const noexcept;
  void check_request(const View& view, std::uint64_t length,
                     std::uint64_t offset) const;
  /// Calls `request` with the View, once writes are possible.
  template <class Request>
  void write_request(std::uint64_t length, std::uint64_t offset,
                     Request&& request);
  /// These return whether an object was missing.
  [[nodiscard]] bool read_chunk(const View& view, char* buffer,
                                std::uint64_t length, std::uint64_t offset);
  [[nodiscard]] bool find_data(const View& view, std::uint64_t length,
                               std::uint64_t offset,
                               std::vector<Fragment>& data);
  void write_chunk(const View& view, const char* buffer, std::uint64_t length,
                   std::uint64_t offset);
  void zero_chunk(const View& view, std::uint64_t length,
                  std::uint64_t offset, Zero how);
  void free_object(WriteOp& op, std::uint64_t object_no) const;
  void zero_objects(const View& view, std::uint64_t first,
                    std::uint64_t count);
  /// Whether an absent object of the View must be confirmed.
  [[nodiscard]] bool doubtful(const View& view) const noexcept;
  void confirm_image();
  [[noreturn]] void object_error(int code, const char* doing,
                                 std::uint64_t object_no) const;

  void load_and_publish(bool end_hold = false);
  void hold_writes();
  void end_hold();
  void fail_for_good(int code, const std::string& reason);
  void publish(View view);
  void log(const std::string& line, bool trouble = true) const;

  const std::unique_ptr<ImageFormat> format_;
  const ImageTraits& traits_;
  ObjectStore& data_;
  const ImageOptions options_;
  const std::uint64_t discard_granularity_;

  Published<View> view_;

  /// Held while the format reads or renews its metadata.  That is I/O under a
  /// lock, but no request takes it, except those that must ask for the
  /// metadata anyway.  Taken before state_mutex_.
  std::mutex format_mutex_;
  std::atomic<std::uint64_t> loads_started_{0};
  std::uint64_t last_verdict_ = 0;  // guarded by format_mutex_: that load

  std::mutex state_mutex_;
  View last_;                // guarded by state_mutex_: what view_ holds
  bool holding_ = false;     // guarded by state_mutex_: writes are held
  int lost_ = 0;             // guarded by state_mutex_: failed for good
  std::string lost_reason_;  // guarded by state_mutex_

  /// The header is watched or locked, so it does not vanish unseen.
  std::atomic<bool> guarded_{false};

  /// For writes that wait while hold_writes is set.
  std::mutex hold_mutex_;
  std::condition_variable hold_changed_;

  std::unique_ptr<Maintenance> maintenance_;
};

}  // namespace nbdrados

#endif
