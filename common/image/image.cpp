// SPDX-License-Identifier: BSD-3-Clause

#include "image/image.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "image/image_internal.hpp"
#include "image/ownership/maintenance.hpp"
#include "rados/error.hpp"
#include "rbd/encoding.hpp"

namespace nbdrados {

namespace {

constexpr std::uint64_t default_discard_granularity = 64 * 1024;

/// Fills what a read left of its destination.
void zero_tail(std::span<const MutablePiece> pieces, std::size_t got) {
  for (const MutablePiece& piece : pieces) {
    if (got >= piece.size) {
      got -= piece.size;
    } else {
      std::memset(piece.data + got, 0, piece.size - got);
      got = 0;
    }
  }
}

std::string size_text(std::uint64_t bytes) {
  static constexpr const char* units[] = {"bytes", "KiB", "MiB",
                                          "GiB",   "TiB", "PiB"};
  unsigned u = 0;
  while (bytes != 0 && bytes % 1024 == 0 && u + 1 < std::size(units)) {
    bytes /= 1024;
    ++u;
  }
  return std::to_string(bytes) + " " + units[u];
}

std::uint64_t choose_granularity(std::uint64_t asked, const Layout& layout) {
  return asked != 0 ? asked
                    : std::min(default_discard_granularity,
                               layout.object_size());
}

}  // namespace

std::unique_ptr<ImageFormat> ImageFormat::open_parent(const ParentSpec&) {
  throw Error(ENOTSUP, "this format has no parents");
}
std::shared_ptr<ObjectMap> ImageFormat::open_map(std::uint64_t) {
  throw Error(ENOTSUP, "this format has no object map");
}
std::shared_ptr<const ObjectStates> ImageFormat::read_map() {
  return nullptr;
}
std::shared_ptr<const ObjectStates> ImageFormat::read_fast_diff(SnapId) {
  return nullptr;
}
void ImageFormat::invalidate_map(SnapId) {
  throw Error(ENOTSUP, "this format has no object map");
}
std::unique_ptr<Pending> ImageFormat::update_snapshot_map(SnapId,
                                                          std::uint64_t,
                                                          ObjectState,
                                                          ObjectState,
                                                          std::string*) {
  throw Error(ENOTSUP, "this format has no object map");
}

Image::Image(std::unique_ptr<ImageFormat> format, ImageOptions options)
    : format_(std::move(format)),
      traits_(format_->traits()),
      data_(format_->data_store()),
      options_(std::move(options)),
      discard_granularity_(
          choose_granularity(options_.discard_granularity, traits_.layout)),
      writable_(options_.writable),
      view_(std::make_unique<View>()) {
  if (options_.lineage) {
    // The link of its child keeps it, and the child is watched.
    guarded_until_ = BootClock::time_point::max();
    load_and_publish();
    return;
  }
  // Watch first, then read: nothing can change unseen in between.
  maintenance_ = std::make_unique<Maintenance>(*this);
  load_and_publish();
  if (writable_) {
    const auto view = view_.read();
    if (!view->unwritable.empty()) {
      log(traits_.name + " is served read-only: " + view->unwritable);
      writable_ = false;
    }
  }
  if (writable_ && view_.read()->lockable) maintenance_->lock_at_open();
  maintenance_->start();
}

// The lock is given away when the members go.
Image::~Image() {
  // A snapshot stays what it is.
  if (!promise_ || constant_snap_ != snap_head) return;
  promise_->end();
  promise_->end_tenure();
}

std::uint64_t Image::size() { return view_.read()->size; }

std::string Image::description() {
  const Layout& l = traits_.layout;
  std::string text = traits_.format + ", " + size_text(size()) +
                     ", object size " + size_text(l.object_size());
  if (l.stripe_count() != 1 || l.stripe_unit() != l.object_size())
    text += ", stripe unit " + size_text(l.stripe_unit()) +
            ", stripe count " + std::to_string(l.stripe_count());
  if (!traits_.details.empty()) text += ", " + traits_.details;
  return text;
}

void Image::log(const std::string& line, bool trouble) const {
  if (options_.log) options_.log(line, trouble);
}

// Metadata ----------------------------------------------------------------

/// The caller holds state_mutex_.
void Image::publish(View view) {
  if (lost_ != 0) {
    view.failure = lost_;
    view.reason = lost_reason_;
  }
  failed_ = view.failure != 0 && lost_ == 0;
  view.hold_writes = holding_ && view.failure == 0;
  view.needs_lock = writable_ && view.lockable && !locked_;
  // While notifications may be missing, the lock may have been too.
  view.map = locked_ && view.mappable && !view.hold_writes && view.failure == 0
                 ? map_
                 : nullptr;
  view.known =
      (view.snap != snap_head || locked_) && !view.hold_writes && !late_writes_;
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
       view.parent_spec != last_.parent_spec)) {
    known_.reset(traits_.layout.object_count(view.size));
    map_learnt_ = false;
  }
  last_ = view;
  view_.store(std::make_unique<View>(std::move(view)));
  if (promised) promise_->begin();
  {
    const std::scoped_lock lock(hold_mutex_);
    ++publications_;
  }
  hold_changed_.notify_all();
}

/// Tells caches above what they may keep no longer.  Returns whether a promise
/// begins with this view.  The caller holds state_mutex_.
bool Image::keep_promise(const View& view) {
  if (!promise_) {
    promise_ = view.snap == snap_head || options_.lineage
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

void Image::load_and_publish(bool end_hold) {
  const std::scoped_lock one_load(format_mutex_);
  const std::uint64_t mine = loads_started_.fetch_add(1) + 1;
  View view;
  try {
    view = format_->load();
    view.parent = find_parent(view);
  } catch (const Error& e) {
    // Without its header an image must not be used: the snapshot context
    // may be wrong, and writes would change snapshots.  Other errors, a
    // time-out for instance, say nothing about the header.
    if (is_verdict(e.code())) {
      const std::scoped_lock lock(state_mutex_);
      view = last_;
      view.failure = failure_for(e.code());
      view.reason = e.what();
      if (end_hold) holding_ = false;
      // This client has been shut out, or has lost its lock.  Whoever did that
      // may have the image for himself now, so it stays lost, even if the
      // header can be read again.  A parent is only read.
      if (e.code() == ESHUTDOWN && lost_ == 0 && !options_.lineage) {
        lost_ = ESHUTDOWN;
        lost_reason_ = about(traits_.name, e.what());
        log(lost_reason_);
      }
      publish(std::move(view));
      last_verdict_ = mine;
    }
    throw;
  }
  const std::scoped_lock lock(state_mutex_);
  if (end_hold) holding_ = false;
  publish(std::move(view));
  last_verdict_ = mine;
  if (lost_ != 0) throw Error(lost_, lost_reason_);
}

/// Of a parent of this image.  A damaged header must not lead in a circle.
std::shared_ptr<const Lineage> Image::lineage_of(
    const ParentSpec& spec) const {
  const unsigned depth = options_.lineage ? options_.lineage->depth + 1 : 1;
  if (depth > max_depth)
    throw Error(EIO, traits_.name + ": more than " +
                         std::to_string(max_depth) +
                         " generations of parents");
  for (const Lineage* l = options_.lineage.get(); l; l = l->child.get())
    if (l->spec == spec)
      throw Error(EIO, traits_.name + ": is its own ancestor");
  return std::make_shared<Lineage>(Lineage{spec, depth, options_.lineage});
}

std::shared_ptr<Image> Image::find_parent(const View& view) {
  if (view.overlap == 0) {
    parent_.reset();
    parent_spec_ = {};
    return nullptr;
  }
  if (!parent_ || parent_spec_ != view.parent_spec) {
    ImageOptions options;
    options.lineage = lineage_of(view.parent_spec);
    options.workers = options_.workers;
    options.log = options_.log;
    parent_ = std::make_shared<Image>(format_->open_parent(view.parent_spec),
                                      std::move(options));
    parent_spec_ = view.parent_spec;
  }
  return parent_;
}

void Image::publish_locked() {
  const std::scoped_lock one_load(format_mutex_);
  const std::uint64_t mine = loads_started_.fetch_add(1) + 1;
  View view = format_->load();
  view.parent = find_parent(view);
  std::shared_ptr<ObjectMap> map;
  if (view.mappable) {
    try {
      map = format_->open_map(traits_.layout.object_count(view.size));
    } catch (const Error& e) {
      if (e.code() != EINVAL && e.code() != EIO && e.code() != ENOENT) throw;
      log(traits_.name + ": the object map cannot be used: " +
          without_name(traits_.name, e.what()));
      format_->invalidate_map(snap_head);
      view.mappable = false;
    }
  }
  const std::scoped_lock lock(state_mutex_);
  locked_ = true;
  map_ = std::move(map);
  known_.reset(traits_.layout.object_count(view.size));
  // Others may have had the lock in between.
  promise_->end();
  promise_->begin_tenure();
  publish(std::move(view));
  last_verdict_ = mine;
}

std::shared_ptr<ObjectMap> Image::publish_unlocked() {
  std::shared_ptr<ObjectMap> map;
  {
    const std::scoped_lock lock(state_mutex_);
    locked_ = false;
    promise_->end_tenure();
    map.swap(map_);
    publish(last_);
  }
  view_.synchronize();
  known_.release();
  return map;
}

void Image::refuse_writers(const Error& why) {
  {
    const std::scoped_lock lock(hold_mutex_);
    ++refusals_;
    refusal_ = why;
  }
  hold_changed_.notify_all();
}

void Image::refresh() { load_and_publish(); }

bool Image::lost() {
  const std::scoped_lock lock(state_mutex_);
  return lost_ != 0;
}

void Image::hold_writes() {
  const std::scoped_lock lock(state_mutex_);
  holding_ = true;
  publish(last_);
}

void Image::end_hold() {
  const std::scoped_lock lock(state_mutex_);
  holding_ = false;
  publish(last_);
}

void Image::guard_until(BootClock::time_point until) noexcept {
  guarded_until_ = until;
  // What is in a snapshot stays.
  if (promise_ && constant_snap_ == snap_head) promise_->hold_until(until);
  // Who has just seen that it was not is waiting now.
  { const std::scoped_lock lock(hold_mutex_); }
  hold_changed_.notify_all();
}

void Image::fail_for_good(int code, const std::string& reason) {
  log(reason);
  const std::scoped_lock lock(state_mutex_);
  lost_ = code;
  lost_reason_ = reason;
  holding_ = false;
  publish(last_);
}

/// A View that fails says what was so when the metadata was read: a parent
/// that was being migrated, an OSD's trouble.  That nothing of it is left need
/// not change the header, and so nobody notifies.  So the requests see to it,
/// the first at once and then one in a while.
void Image::retry() {
  using Clock = std::chrono::steady_clock;
  const std::scoped_lock one_try(retry_mutex_);
  if (!failed_ || Clock::now() < next_retry_) return;
  try {
    load_and_publish();
  } catch (const Error&) {
    // The View says what it was, the new one or the old one.
  }
  next_retry_ =
      failed_ ? Clock::now() + retry_interval : Clock::time_point{};
}

void Image::distrust() {
  if (late_writes_.exchange(true)) return;
  const std::scoped_lock lock(state_mutex_);
  publish(last_);
}

bool Image::doubtful(const View& view) const noexcept {
  // An absent object reads as zeros, but only as long as the image and the
  // snapshot exist: afterwards all objects are absent.  What is watched or
  // locked is not removed unseen, as long as the OSD has heard of us; the end
  // of a snapshot is seen late, because its objects go before the
  // notification comes.  A parent is kept by its child's link, but its own
  // link to a parent can end unseen.
  if (options_.lineage) return view.overlap != 0;
  return view.snap != snap_head || view.hold_writes || !guarded();
}

void Image::confirm_image() {
  // The header is asked once more, after the fact.  Any load that began
  // since then, and came to a verdict, will do.
  const std::uint64_t seen = loads_started_.load();
  {
    const std::scoped_lock one_load(format_mutex_);
    if (last_verdict_ > seen) {
      const std::scoped_lock lock(state_mutex_);
      if (last_.failure != 0) throw Error(last_.failure, last_.reason);
      return;
    }
  }
  try {
    load_and_publish();
  } catch (const Error& e) {
    if (!is_verdict(e.code())) throw;
    throw Error(failure_for(e.code()), e.what());
  }
}

// Reading -----------------------------------------------------------------

std::string Image::object_name(std::uint64_t object_no) const {
  return numbered_oid(traits_.object_prefix, object_no, traits_.name_digits);
}

void Image::object_error(int code, const char* doing,
                         std::uint64_t object_no) const {
  const std::string what =
      traits_.name + ": " + doing + " object " + object_name(object_no);
  if (code == ENXIO)
    throw Error(code, what + ": " + traits_.data_pool + " has been deleted");
  fail(code, what);
}

void Image::check_request(const View& view, std::uint64_t length,
                          std::uint64_t offset) const {
  if (view.failure != 0) throw Error(view.failure, view.reason);
  if (offset > view.size || length > view.size - offset)
    throw Error(EINVAL, traits_.name + ": request of " +
                            std::to_string(length) + " bytes at offset " +
                            std::to_string(offset) +
                            " is beyond the end of the image (" +
                            std::to_string(view.size) + " bytes)");
}

std::uint64_t Image::chunk_end(std::uint64_t offset, std::uint64_t end,
                               std::uint64_t units) const noexcept {
  const Layout& l = traits_.layout;
  // Whole object sets where one is small enough, so that no object is cut
  // between two chunks.
  const std::uint64_t unit = unit_size(l);
  const std::uint64_t limit = units > (std::uint64_t{1} << 62) / unit
                                  ? std::uint64_t{1} << 62
                                  : units * unit;
  const std::uint64_t set = l.object_set_size();
  const std::uint64_t step =
      set <= limit ? limit / set * set : limit;
  const std::uint64_t boundary = (offset / step + 1) * step;
  return std::min(end, boundary);
}

bool Image::read_parent(const View& view, char* buffer, std::uint64_t length,
                        std::uint64_t offset) {
  bool missing = false;
  const std::uint64_t backed_length =
      offset < view.overlap ? std::min(length, view.overlap - offset) : 0;
  if (backed_length != 0)
    missing = of_parent(traits_.name, [&] {
      return view.parent->read_backing(buffer, backed_length, offset);
    });
  if (backed_length != length) {
    std::memset(buffer + backed_length, 0, length - backed_length);
    missing = true;
  }
  return missing;
}

bool Image::read_backing(char* buffer, std::uint64_t length,
                         std::uint64_t offset) {
  const bool missing = confirmed([&](const View& view) {
    // Another size than the overlap says is not expected, and harmless.
    const std::uint64_t n =
        offset < view.size ? std::min(length, view.size - offset) : 0;
    check_request(view, n, std::min(offset, view.size));
    bool lacks = n != length;
    if (n != 0) lacks |= read_view(view, buffer, n, offset);
    std::memset(buffer + n, 0, length - n);
    return lacks;
  });
  if (missing) learn_from_map();
  return missing;
}

bool Image::read_chunk(const View& view, char* buffer, std::uint64_t length,
                       std::uint64_t offset) {
  const auto settle = [&](int result, std::span<const MutablePiece> pieces,
                          std::uint64_t object_no) {
    if (result < 0) object_error(-result, "cannot read", object_no);
    zero_tail(pieces, static_cast<std::size_t>(result));
  };

  const Fragment first = traits_.layout.locate(offset, length);
  if (first.length == length) {
    int result = -ENOENT;
    const bool known = known_absent(view, first.object_no);
    if (!known && !absent(view, first.object_no)) {
      const MutablePiece piece{buffer, length};
      result = data_.read(object_name(first.object_no), first.object_offset,
                          {&piece, 1}, view.snap)
                   ->wait();
      if (result != -ENOENT) settle(result, {&piece, 1}, first.object_no);
    }
    return result == -ENOENT && read_parent(view, buffer, length, offset) &&
           !(known && can_be_sure(view));
  }

  const std::vector<ObjectExtent> extents = traits_.layout.cut(offset, length);
  std::vector<MutablePiece> pieces;
  std::size_t parts = 0;
  for (const ObjectExtent& e : extents) parts += e.parts.size();
  pieces.reserve(parts);
  for (const ObjectExtent& e : extents)
    for (const Fragment& f : e.parts)
      pieces.push_back({buffer + (f.image_offset - offset), f.length});

  // Declared after the pieces: destroyed, and so drained, before them.
  std::vector<std::unique_ptr<Pending>> pending(extents.size());
  const MutablePiece* next = pieces.data();
  bool sure = can_be_sure(view);
  for (std::size_t i = 0; i < extents.size(); ++i) {
    const ObjectExtent& e = extents[i];
    if (i >= objects_in_flight && pending[i - objects_in_flight])
      (void)pending[i - objects_in_flight]->wait();
    if (known_absent(view, e.object_no)) {
      // Nothing to ask.
    } else if (absent(view, e.object_no)) {
      sure = false;
    } else {
      pending[i] = data_.read(object_name(e.object_no), e.offset,
                              {next, e.parts.size()}, view.snap);
    }
    next += e.parts.size();
  }
  for (const auto& p : pending)
    if (p) (void)p->wait();
  next = pieces.data();
  std::vector<const ObjectExtent*> missing;
  for (std::size_t i = 0; i < extents.size(); ++i) {
    const std::size_t n = extents[i].parts.size();
    const int result = pending[i] ? pending[i]->wait() : -ENOENT;
    if (result == -ENOENT) {
      missing.push_back(&extents[i]);
      if (pending[i]) sure = false;
    } else {
      settle(result, {next, n}, extents[i].object_no);
    }
    next += n;
  }
  bool zeros = false;
  for (const auto& [at, n] : image_ranges(missing))
    zeros |= read_parent(view, buffer + (at - offset), n, at);
  return zeros && !sure;
}

bool Image::read_view(const View& view, char* buffer, std::uint64_t length,
                      std::uint64_t offset) {
  const std::uint64_t end = offset + length;
  bool missing = false;
  while (offset < end) {
    const std::uint64_t n =
        chunk_end(offset, end, chunk_units(traits_.layout)) - offset;
    missing |= read_chunk(view, buffer, n, offset);
    buffer += n;
    offset += n;
  }
  return missing;
}

void Image::read(char* buffer, std::uint64_t length, std::uint64_t offset) {
  const bool missing = confirmed([&](const View& view) {
    check_request(view, length, offset);
    return read_view(view, buffer, length, offset);
  });
  // The next one need not ask for what is not there.
  if (missing) learn_from_map();
}

}  // namespace nbdrados
