// SPDX-License-Identifier: BSD-3-Clause
//
// What is so of an open image at the moment, in one place, and the View that
// follows from it.
//
//     read     what the format has read last
//     holding  the header may have changed: writes wait
//     tenure   requests may rely on the exclusive lock; with its object map
//     lost     a verdict for good
//     guarded  until then the OSD is sure to keep the watch
//
// A change of any of these but the guard, which requests ask for by itself,
// publishes a View anew.  There is one way into a tenure (begin_tenure), one out
// of it (end_tenure, after which no request relies on the lock), and one verdict
// (lose).  Whoever ends a tenure gives the lock back afterwards:
// Maintenance::release.
//
// The object map in a View, what is known of objects and what caches above may
// keep last no longer than the tenure, because publish() derives them from it.

#ifndef NBDRADOS_IMAGE_STATE_IMAGE_STATE_HPP
#define NBDRADOS_IMAGE_STATE_IMAGE_STATE_HPP

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "coherence/boot_clock.hpp"
#include "coherence/coherence.hpp"
#include "image/options.hpp"
#include "image/state/published.hpp"
#include "image/state/view.hpp"
#include "image/state/write_gate.hpp"
#include "image/status/known_extents.hpp"
#include "rados/error.hpp"

namespace nbdrados {

/// Thread-safe.  Members that say "blocks" wait for requests, so no request
/// may call them.
/// Lock: mutex_, held for moments and never during I/O.
class ImageState {
 public:
  /// What is given must outlive this.
  ImageState(const ImageTraits& traits, const ImageOptions& options,
             KnownExtents& known);

  // ---- For requests

  /// What a request works with; without a lock.
  [[nodiscard]] Published<View>::Reader read() noexcept {
    return view_.read();
  }
  /// Requests fail, and not for good.
  [[nodiscard]] bool failing() const noexcept { return failing_.load(); }
  [[nodiscard]] std::optional<Error> lost();
  /// Whether the image cannot have vanished, nor its header changed, unseen.
  [[nodiscard]] bool guarded() const noexcept {
    return BootClock::now() < guarded_until_.load();
  }
  /// Constant once the image is open.
  [[nodiscard]] bool writable() const noexcept { return writable_; }
  /// A parent is only read, and its child's link keeps it.
  [[nodiscard]] bool is_parent() const noexcept {
    return options_.lineage != nullptr;
  }
  /// Whether what is absent in this View must be confirmed before it counts as
  /// zeros.
  [[nodiscard]] bool doubtful(const View& view) const noexcept;
  /// Whether zeros for an object that is known to be absent need no
  /// confirmation: a parent's do, because it is the child who may be gone.
  [[nodiscard]] bool can_be_sure(const View& view) const noexcept {
    return view.overlap == 0 && !is_parent() && guarded();
  }
  [[nodiscard]] WriteGate& gate() noexcept { return gate_; }

  /// Whether caches above may keep what they have read: during a tenure, and
  /// always of a snapshot.  Null before the first View.
  [[nodiscard]] const std::shared_ptr<Promise>& promise() const noexcept {
    return promise_;
  }

  /// A write was given up that may still be carried out: what is known of
  /// objects is not to be believed any more.
  void distrust();
  /// The object map cannot be believed any more.  No effect where there is
  /// another one by now.
  void drop_map(const std::shared_ptr<ObjectMap>& map);

  /// The image is being closed: nothing is promised any more, but of a
  /// snapshot, which stays what it is.
  void end_promise() noexcept;

  // ---- For whoever reads the metadata

  void publish(View view, bool end_hold = false);
  /// The metadata could not be read, which is a verdict (see verdict.hpp).
  /// ESHUTDOWN is for good: this client has been shut out, or its lock is
  /// lost, and whoever did that may have the image for himself.
  void fail(const Error& verdict, bool end_hold = false);
  /// While the image is being opened; the next View shows it.
  void serve_read_only() noexcept { writable_ = false; }

  // ---- For the ownership

  void hold_writes();
  void end_hold();
  /// Returns when every request under a former View is over.  Blocks.
  void synchronize() { view_.synchronize(); }
  void guard_until(BootClock::time_point until) noexcept;
  /// The lock has just been taken, and this read under it.
  void begin_tenure(View view, std::shared_ptr<ObjectMap> map);
  /// Returns the object map, if there is one.  On return no request relies on
  /// the lock or the map.  No effect without a tenure but that.  Blocks.
  [[nodiscard]] std::shared_ptr<ObjectMap> end_tenure();
  /// From now on every request fails with `code`, a positive errno, for good.
  /// The first verdict stays.  Logs the reason.
  void lose(int code, const std::string& reason);

 private:
  struct Tenure {
    std::shared_ptr<ObjectMap> map;  // null: there is none
  };
  void publish_locked(View view);
  [[nodiscard]] bool keep_promise(const View& view);

  const ImageTraits& traits_;
  const ImageOptions& options_;
  KnownExtents& known_;
  bool writable_;
  WriteGate gate_;
  Published<View> view_;

  std::mutex mutex_;
  View last_;                     // guarded by mutex_: what view_ holds
  bool holding_ = false;          // guarded by mutex_
  std::optional<Tenure> tenure_;  // guarded by mutex_
  std::optional<Error> lost_;     // guarded by mutex_

  std::atomic<bool> failing_{false};  // changed under mutex_
  std::atomic<bool> late_writes_{false};  // see distrust
  /// max() of a parent, which the link of its child keeps; min() where the
  /// header can neither be watched nor locked.
  std::atomic<BootClock::time_point> guarded_until_{
      BootClock::time_point::min()};
  /// Made with the first View, then constant.
  std::shared_ptr<Promise> promise_;
  SnapId constant_snap_ = snap_head;  // what promise_ is of
};

}  // namespace nbdrados

#endif
