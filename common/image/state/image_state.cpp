// SPDX-License-Identifier: BSD-3-Clause

#include "image/state/image_state.hpp"

#include <cerrno>
#include <utility>

#include "image/state/verdict.hpp"

namespace nbdrados {

ImageState::ImageState(const ImageTraits& traits, const ImageOptions& options,
                       KnownExtents& known)
    : traits_(traits),
      options_(options),
      known_(known),
      writable_(options.writable),
      view_(std::make_unique<View>()) {
  if (is_parent()) guarded_until_ = BootClock::time_point::max();
}

void ImageState::end_promise() noexcept {
  if (!promise_ || constant_snap_ != snap_head) return;
  promise_->end();
  promise_->end_tenure();
}

/// mutex_ is held.
void ImageState::publish_locked(View view) {
  if (lost_) {
    view.failure = lost_->code();
    view.reason = lost_->what();
  }
  failing_ = view.failure != 0 && !lost_;
  view.hold_writes = holding_ && view.failure == 0;
  view.needs_lock = writable_ && view.lockable && !tenure_;
  // While notifications may be missing, the lock may have been too.
  view.map = tenure_ && view.mappable && !view.hold_writes && view.failure == 0
                 ? tenure_->map
                 : nullptr;
  view.known = (view.snap != snap_head || tenure_) && !view.hold_writes &&
               !late_writes_;
  // Who reads under a new promise must find the new view: first the end of
  // the old promise, last the beginning of the new one.
  const bool promised = keep_promise(view);
  if (view == last_) {
    if (promised) promise_->begin();
    return;
  }
  if (view.snap != snap_head &&
      (view.snap != last_.snap || view.size != last_.size ||
       view.overlap != last_.overlap ||
       view.parent_spec != last_.parent_spec))
    known_.reset(traits_.layout.object_count(view.size));
  last_ = view;
  view_.store(std::make_unique<View>(std::move(view)));
  if (promised) promise_->begin();
  gate_.change();
}

/// Tells caches above what they may keep no longer.  Returns whether a promise
/// begins with this view.  mutex_ is held.
bool ImageState::keep_promise(const View& view) {
  if (!promise_) {
    promise_ = view.snap == snap_head || is_parent()
                   ? make_promise()
                   : constant_promise(options_.identity);
    constant_snap_ = view.snap;
    if (constant_snap_ == snap_head) promise_->hold_until(guarded_until_);
  }
  // What is in a snapshot stays, whatever happens to the header.
  if (constant_snap_ != snap_head) {
    if (view.failure != 0 || view.snap != constant_snap_) promise_->end();
    return view.failure == 0 && view.snap == constant_snap_ &&
           promise_->generation() == 0;
  }
  const bool constant = view.failure == 0 && view.known;
  const bool same = promise_->generation() != 0 && view.snap == last_.snap &&
                    view.size == last_.size;
  if (!constant || !same) promise_->end();
  return constant && !same;
}

// For requests -------------------------------------------------------------

std::optional<Error> ImageState::lost() {
  const std::scoped_lock lock(mutex_);
  return lost_;
}

bool ImageState::doubtful(const View& view) const noexcept {
  // An absent object reads as zeros, but only as long as the image and the
  // snapshot exist: afterwards all objects are absent.  What is watched or
  // locked is not removed unseen, as long as the OSD has heard of us; the end
  // of a snapshot is seen late, because its objects go before the
  // notification comes.  A parent is kept by its child's link, but its own
  // link to a parent can end unseen.
  if (is_parent()) return view.overlap != 0;
  return view.snap != snap_head || view.hold_writes || !guarded();
}

void ImageState::distrust() {
  if (late_writes_.exchange(true)) return;
  const std::scoped_lock lock(mutex_);
  publish_locked(last_);
}

void ImageState::drop_map(const std::shared_ptr<ObjectMap>& map) {
  const std::scoped_lock lock(mutex_);
  if (!tenure_ || tenure_->map != map) return;
  tenure_->map.reset();
  publish_locked(last_);
}

// For whoever reads the metadata -------------------------------------------

void ImageState::publish(View view, bool end_hold) {
  const std::scoped_lock lock(mutex_);
  if (end_hold) holding_ = false;
  publish_locked(std::move(view));
}

void ImageState::fail(const Error& verdict, bool end_hold) {
  if (verdict.code() == ESHUTDOWN && !is_parent() && !lost())
    lose(ESHUTDOWN, about(traits_.name, verdict.what()));
  const std::scoped_lock lock(mutex_);
  View view = last_;
  view.failure = failure_for(verdict.code());
  view.reason = verdict.what();
  if (end_hold) holding_ = false;
  publish_locked(std::move(view));
}

// For the ownership --------------------------------------------------------

void ImageState::hold_writes() {
  const std::scoped_lock lock(mutex_);
  holding_ = true;
  publish_locked(last_);
}

void ImageState::end_hold() {
  const std::scoped_lock lock(mutex_);
  holding_ = false;
  publish_locked(last_);
}

void ImageState::guard_until(BootClock::time_point until) noexcept {
  guarded_until_ = until;
  // What is in a snapshot stays.
  if (promise_ && constant_snap_ == snap_head) promise_->hold_until(until);
  gate_.nudge();
}

void ImageState::begin_tenure(View view, std::shared_ptr<ObjectMap> map) {
  const std::scoped_lock lock(mutex_);
  tenure_ = Tenure{std::move(map)};
  known_.reset(traits_.layout.object_count(view.size));
  // Others may have had the lock in between.
  promise_->end();
  promise_->begin_tenure();
  publish_locked(std::move(view));
}

std::shared_ptr<ObjectMap> ImageState::end_tenure() {
  std::shared_ptr<ObjectMap> map;
  {
    const std::scoped_lock lock(mutex_);
    if (tenure_) map = std::move(tenure_->map);
    tenure_.reset();
    promise_->end_tenure();
    publish_locked(last_);
  }
  view_.synchronize();
  known_.release();
  return map;
}

void ImageState::lose(int code, const std::string& reason) {
  if (options_.log) options_.log(reason, true);
  const std::scoped_lock lock(mutex_);
  if (!lost_) lost_.emplace(code, reason);
  holding_ = false;
  publish_locked(last_);
}

}  // namespace nbdrados
