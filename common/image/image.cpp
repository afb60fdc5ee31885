// SPDX-License-Identifier: BSD-3-Clause

#include "image/image.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "rados/error.hpp"
#include "rbd/encoding.hpp"

namespace nbdrados {

namespace {

/// The OSD repeats this much over a range that is to be zero but allocated,
/// so this much is all that goes over the wire.
constexpr std::size_t zero_page_size = 4096;
alignas(64) constexpr std::array<char, zero_page_size> zero_page{};

constexpr std::uint64_t default_discard_granularity = 64 * 1024;

/// At most so many objects of a request are in flight, which is also
/// librados' own bound on operations (objecter_inflight_ops).
constexpr std::uint64_t chunk_objects = 1024;

/// Consecutive bytes of the image that are in one object.
std::uint64_t unit_size(const Layout& layout) {
  return layout.stripe_count() == 1 ? layout.object_size()
                                    : layout.stripe_unit();
}

/// A request is worked on in chunks of at most so many units, which bounds
/// its memory.  Units of a few bytes must be many, or a chunk would be
/// nothing.
std::uint64_t chunk_units(const Layout& layout) {
  if (layout.stripe_count() > chunk_objects) return chunk_objects;
  return std::clamp<std::uint64_t>((4 << 20) / unit_size(layout),
                                   chunk_objects, 64 * chunk_objects);
}

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

/// Whether an error of loading the metadata means that the image cannot be
/// used, and not only that it could not be asked.
bool is_verdict(int code) {
  switch (code) {
    case ENOENT:
    case ENXIO:
    case EIO:
    case EPERM:
    case EACCES:
    case ENOTSUP:
    case ESHUTDOWN:
      return true;
    default:
      return false;
  }
}

/// What requests fail with after such a verdict.
int failure_for(int code) { return code == ESHUTDOWN ? ESHUTDOWN : EIO; }

}  // namespace

/// Watches the header and renews what must be renewed, in a thread of its
/// own: an OSD that is slow for one image must not delay another image's
/// answers.
class Image::Maintenance final : public WatchHandler {
 public:
  explicit Maintenance(Image& image) : image_(image) {
    if (!image_.traits_.header_oid.empty()) make_watch();
    image_.guarded_ = watch_ != nullptr || image_.format_->holds_lock();
  }

  /// Begins to act on notifications.  The image must have its first View.
  void start() {
    next_renewal_ = image_.format_->keep_alive();
    if (watch_ || next_renewal_) thread_ = std::thread([this] { work(); });
  }

  ~Maintenance() override {
    {
      const std::scoped_lock lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    if (thread_.joinable()) thread_.join();
    watch_.reset();
  }

  void notified(std::uint64_t notify_id, std::uint64_t cookie,
                std::string_view /*payload*/) noexcept override {
    {
      const std::scoped_lock lock(mutex_);
      try {
        notifications_.emplace_back(notify_id, cookie);
      } catch (...) {
        // Out of memory.  Unanswered, the notifier waits for its timeout,
        // and the header is read again all the same.
        lost_watch_ = ETIMEDOUT;
      }
    }
    wake_.notify_all();
  }

  void watch_lost(int code) noexcept override {
    {
      const std::scoped_lock lock(mutex_);
      lost_watch_ = code;
    }
    wake_.notify_all();
  }

 private:
  using Notifications = std::vector<std::pair<std::uint64_t, std::uint64_t>>;
  using Clock = std::chrono::steady_clock;

  /// How often to look whether the watch is alive.  An OSD drops a watch
  /// after 30 seconds (osd_client_watch_timeout), and who is cut off is not
  /// told.
  static constexpr std::chrono::seconds check_interval{5};

  void make_watch() {
    try {
      watch_ = image_.format_->header_store().watch(
          image_.traits_.header_oid, *this);
    } catch (const Error& e) {
      // A key without write capability cannot watch; who only reads can do
      // without, sees changes at the next open, and must ask whether what
      // is absent is zeros.
      if (image_.options_.writable ||
          (e.code() != EPERM && e.code() != EACCES && e.code() != EROFS))
        throw;
      image_.guarded_ = false;
      image_.log(image_.traits_.name + ": changes will not be noticed: " +
                     e.what(),
                 false);
    }
  }

  void work() {
    for (;;) {
      Notifications notifications;
      int code = 0;
      {
        std::unique_lock lock(mutex_);
        const auto something = [this] {
          return stopping_ || !notifications_.empty() || lost_watch_ != 0;
        };
        const auto pause = std::min<std::chrono::milliseconds>(
            next_renewal_.value_or(check_interval), check_interval);
        const auto before = Clock::now();
        wake_.wait_for(lock, pause, something);
        if (stopping_) return;
        if (next_renewal_)
          *next_renewal_ -=
              std::chrono::duration_cast<std::chrono::milliseconds>(
                  Clock::now() - before);
        notifications.swap(notifications_);
        code = lost_watch_;
      }
      // Nothing may end this thread, or notifications stay unanswered.
      try {
        serve(code, notifications);
      } catch (const std::exception& e) {
        image_.log(image_.traits_.name + ": " + e.what());
        const std::scoped_lock lock(mutex_);
        if (lost_watch_ == 0 && watch_) lost_watch_ = ETIMEDOUT;
      }
    }
  }

  void serve(int code, const Notifications& notifications) {
    if (code == 0 && watch_) code = watch_->check();
    if (code != 0) {
      restore_watch(code);
    } else if (!notifications.empty()) {
      image_.hold_writes();
      try {
        image_.load_and_publish(true);
      } catch (const Error& e) {
        image_.log(image_.traits_.name + ": " + e.what());
        // After a verdict every request fails, until a later notification
        // brings a better header.  Otherwise writes must wait until the
        // change has been seen.
        if (!is_verdict(e.code())) restore_watch(e.code());
      }
    }
    if (!notifications.empty()) image_.view_.synchronize();
    for (const auto& [id, cookie] : notifications)
      image_.format_->header_store().notify_ack(image_.traits_.header_oid, id,
                                                cookie, {});
    if (next_renewal_ && next_renewal_->count() <= 0) renew();
  }

  /// Makes the watch again and reads what may have been missed.
  void restore_watch(int code) {
    image_.log(image_.traits_.name + ": the watch on the header is broken: " +
               error_text(code));
    image_.hold_writes();
    for (;;) {
      {
        const std::scoped_lock lock(mutex_);
        lost_watch_ = 0;
      }
      watch_.reset();
      try {
        make_watch();
        image_.load_and_publish();
        {
          const std::scoped_lock lock(mutex_);
          code = lost_watch_;
        }
        if (code == 0) {
          image_.end_hold();
          image_.log(image_.traits_.name + ": the header is watched again",
                     false);
          return;
        }
      } catch (const Error& e) {
        if (is_verdict(e.code())) {
          image_.fail_for_good(
              failure_for(e.code()),
              image_.traits_.name +
                  (e.code() == ENOENT
                       ? ": the image has been deleted"
                       : ": the header cannot be watched: " +
                             error_text(e.code())));
          watch_.reset();
          return;
        }
        image_.log(image_.traits_.name + ": " + e.what());
      }
      std::unique_lock lock(mutex_);
      if (wake_.wait_for(lock, std::chrono::seconds(1),
                         [this] { return stopping_; }))
        return;
    }
  }

  void renew() {
    try {
      const std::scoped_lock lock(image_.format_mutex_);
      next_renewal_ = image_.format_->keep_alive();
    } catch (const Error& e) {
      next_renewal_.reset();
      image_.fail_for_good(ESHUTDOWN, image_.traits_.name + ": " + e.what());
    }
  }

  Image& image_;
  /// Time left until the next renewal; used by the thread.
  std::optional<std::chrono::milliseconds> next_renewal_;
  std::unique_ptr<Watch> watch_;  // used by the thread, or before it starts
  std::mutex mutex_;
  std::condition_variable wake_;
  Notifications notifications_;  // guarded by mutex_
  int lost_watch_ = 0;           // guarded by mutex_: positive errno
  bool stopping_ = false;        // guarded by mutex_
  std::thread thread_;
};

Image::Image(std::unique_ptr<ImageFormat> format, ImageOptions options)
    : format_(std::move(format)),
      traits_(format_->traits()),
      data_(format_->data_store()),
      options_(std::move(options)),
      discard_granularity_(
          choose_granularity(options_.discard_granularity, traits_.layout)),
      view_(std::make_unique<View>()) {
  // Watch first, then read: nothing can change unseen in between.
  maintenance_ = std::make_unique<Maintenance>(*this);
  load_and_publish();
  maintenance_->start();
}

Image::~Image() = default;

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
  view.hold_writes = holding_ && view.failure == 0;
  if (view == last_) return;
  last_ = view;
  view_.store(std::make_unique<View>(std::move(view)));
  { const std::scoped_lock lock(hold_mutex_); }
  hold_changed_.notify_all();
}

void Image::load_and_publish(bool end_hold) {
  const std::scoped_lock one_load(format_mutex_);
  const std::uint64_t mine = loads_started_.fetch_add(1) + 1;
  View view;
  try {
    view = format_->load();
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

void Image::fail_for_good(int code, const std::string& reason) {
  log(reason);
  const std::scoped_lock lock(state_mutex_);
  lost_ = code;
  lost_reason_ = reason;
  holding_ = false;
  publish(last_);
}

bool Image::doubtful(const View& view) const noexcept {
  // An absent object reads as zeros, but only as long as the image and the
  // snapshot exist: afterwards all objects are absent.  What is watched or
  // locked is not removed unseen; the end of a snapshot is seen late,
  // because its objects go before the notification comes.
  return view.snap != snap_head || view.hold_writes || !guarded_.load();
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

// Requests ----------------------------------------------------------------

std::string Image::object_name(std::uint64_t object_no) const {
  return numbered_oid(traits_.object_prefix, object_no, traits_.name_digits);
}

void Image::object_error(int code, const char* doing,
                         std::uint64_t object_no) const {
  fail(code, traits_.name + ": " + doing + " object " +
                 object_name(object_no));
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

bool Image::read_chunk(const View& view, char* buffer, std::uint64_t length,
                       std::uint64_t offset) {
  bool missing = false;
  const auto settle = [&](int result, std::span<const MutablePiece> pieces,
                          std::uint64_t object_no) {
    if (result == -ENOENT) {
      missing = true;
      result = 0;
    }
    if (result < 0) object_error(-result, "cannot read", object_no);
    zero_tail(pieces, static_cast<std::size_t>(result));
  };

  const Fragment first = traits_.layout.locate(offset, length);
  if (first.length == length) {
    const MutablePiece piece{buffer, length};
    const auto pending = data_.read(object_name(first.object_no),
                                    first.object_offset, {&piece, 1},
                                    view.snap);
    settle(pending->wait(), {&piece, 1}, first.object_no);
    return missing;
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
  std::vector<std::unique_ptr<Pending>> pending;
  pending.reserve(extents.size());
  const MutablePiece* next = pieces.data();
  for (const ObjectExtent& e : extents) {
    pending.push_back(data_.read(object_name(e.object_no), e.offset,
                                 {next, e.parts.size()}, view.snap));
    next += e.parts.size();
  }
  for (const auto& p : pending) (void)p->wait();
  next = pieces.data();
  for (std::size_t i = 0; i < extents.size(); ++i) {
    const std::size_t n = extents[i].parts.size();
    settle(pending[i]->wait(), {next, n}, extents[i].object_no);
    next += n;
  }
  return missing;
}

void Image::read(char* buffer, std::uint64_t length, std::uint64_t offset) {
  bool confirm = false;
  {
    const auto view = view_.read();
    check_request(*view, length, offset);
    const std::uint64_t end = offset + length;
    bool missing = false;
    while (offset < end) {
      const std::uint64_t n = chunk_end(offset, end, chunk_units(traits_.layout)) - offset;
      missing |= read_chunk(*view, buffer, n, offset);
      buffer += n;
      offset += n;
    }
    confirm = missing && doubtful(*view);
  }
  if (confirm) confirm_image();
}

template <class Request>
void Image::write_request(std::uint64_t length, std::uint64_t offset,
                          Request&& request) {
  if (!options_.writable)
    throw Error(EROFS, traits_.name + ": this export is read-only");
  for (;;) {
    {
      const auto view = view_.read();
      check_request(*view, length, offset);
      if (!view->hold_writes) {
        request(*view);
        return;
      }
    }
    std::unique_lock lock(hold_mutex_);
    hold_changed_.wait(lock, [this] {
      const auto view = view_.read();
      return !view->hold_writes || view->failure != 0;
    });
  }
}

void Image::write_chunk(const View& view, const char* buffer,
                        std::uint64_t length, std::uint64_t offset) {
  const Layout& layout = traits_.layout;
  const auto submit = [&](std::uint64_t object_no, std::uint64_t at,
                          std::span<const ConstPiece> pieces) {
    WriteOp op;
    if (traits_.alloc_hints)
      op.alloc_hint(layout.object_size(), layout.object_size());
    op.write(at, pieces);
    return data_.write(object_name(object_no), op, view.snapc);
  };

  const Fragment first = layout.locate(offset, length);
  if (first.length == length) {
    const ConstPiece piece{buffer, length};
    const int r =
        submit(first.object_no, first.object_offset, {&piece, 1})->wait();
    if (r < 0) object_error(-r, "cannot write", first.object_no);
    return;
  }

  const std::vector<ObjectExtent> extents = layout.cut(offset, length);
  std::vector<ConstPiece> pieces;
  std::size_t parts = 0;
  for (const ObjectExtent& e : extents) parts += e.parts.size();
  pieces.reserve(parts);
  for (const ObjectExtent& e : extents)
    for (const Fragment& f : e.parts)
      pieces.push_back({buffer + (f.image_offset - offset), f.length});

  std::vector<std::unique_ptr<Pending>> pending;
  pending.reserve(extents.size());
  const ConstPiece* next = pieces.data();
  for (const ObjectExtent& e : extents) {
    pending.push_back(
        submit(e.object_no, e.offset, {next, e.parts.size()}));
    next += e.parts.size();
  }
  for (const auto& p : pending) (void)p->wait();
  for (std::size_t i = 0; i < extents.size(); ++i)
    if (const int r = pending[i]->wait(); r < 0)
      object_error(-r, "cannot write", extents[i].object_no);
}

void Image::write(const char* buffer, std::uint64_t length,
                  std::uint64_t offset) {
  write_request(length, offset, [&](const View& view) {
    const std::uint64_t end = offset + length;
    const char* from = buffer;
    for (std::uint64_t at = offset; at < end;) {
      const std::uint64_t n = chunk_end(at, end, chunk_units(traits_.layout)) - at;
      write_chunk(view, from, n, at);
      from += n;
      at += n;
    }
  });
}

void Image::zero_chunk(const View& view, std::uint64_t length,
                       std::uint64_t offset, Zero how) {
  const Layout& layout = traits_.layout;
  const std::vector<ObjectExtent> extents = layout.cut(offset, length);
  std::vector<ConstPiece> tails(extents.size());
  const ConstPiece page{zero_page.data(), zero_page.size()};

  std::vector<std::unique_ptr<Pending>> pending;
  pending.reserve(extents.size());
  for (std::size_t i = 0; i < extents.size(); ++i) {
    const ObjectExtent& e = extents[i];
    WriteOp op;
    if (how == Zero::free) {
      // Only what is an object's full size is removed: an image that is
      // being grown by somebody else can have data behind the end that we
      // know of.  The rest is zeroed; truncating is no choice, because it
      // would make shorter objects longer.
      if (e.length == layout.object_size())
        free_object(op, e.object_no);
      else
        op.zero(e.offset, e.length);
    } else {
      if (traits_.alloc_hints)
        op.alloc_hint(layout.object_size(), layout.object_size());
      const std::uint64_t body = e.length / zero_page_size * zero_page_size;
      if (body != 0) op.write_same(e.offset, body, {&page, 1});
      if (body != e.length) {
        tails[i] = {zero_page.data(), e.length - body};
        op.write(e.offset + body, {&tails[i], 1});
      }
    }
    pending.push_back(data_.write(object_name(e.object_no), op, view.snapc));
  }
  for (const auto& p : pending) (void)p->wait();
  for (std::size_t i = 0; i < extents.size(); ++i) {
    const int r = pending[i]->wait();
    // What is to be removed may well not be there.
    if (r < 0 && !(r == -ENOENT && how == Zero::free))
      object_error(-r, "cannot zero", extents[i].object_no);
  }
}

void Image::free_object(WriteOp& op, std::uint64_t object_no) const {
  if (traits_.keep_first_object && object_no == 0)
    op.truncate(0);
  else
    op.remove();
}

void Image::zero_objects(const View& view, std::uint64_t first,
                         std::uint64_t count) {
  std::vector<std::unique_ptr<Pending>> pending;
  pending.reserve(count);
  for (std::uint64_t i = 0; i < count; ++i) {
    WriteOp op;
    free_object(op, first + i);
    pending.push_back(data_.write(object_name(first + i), op, view.snapc));
  }
  for (const auto& p : pending) (void)p->wait();
  for (std::uint64_t i = 0; i < count; ++i)
    if (const int r = pending[i]->wait(); r < 0 && r != -ENOENT)
      object_error(-r, "cannot remove", first + i);
}

void Image::zero(std::uint64_t length, std::uint64_t offset, Zero how) {
  write_request(length, offset, [&](const View& view) {
    const std::uint64_t end = offset + length;
    const std::uint64_t set = traits_.layout.object_set_size();
    for (std::uint64_t at = offset; at < end;) {
      if (how == Zero::free && at % set == 0 && end - at >= set) {
        // Whole object sets need no arithmetic: their objects go.
        const std::uint64_t count =
            (end - at) / set * traits_.layout.stripe_count();
        const std::uint64_t first = at / set * traits_.layout.stripe_count();
        for (std::uint64_t i = 0; i < count; i += chunk_objects)
          zero_objects(view, first + i, std::min(chunk_objects, count - i));
        at += (end - at) / set * set;
        continue;
      }
      // Up to the next object set, so that the above finds it whole.
      const std::uint64_t stop =
          set <= end - at ? (at / set + 1) * set : end;
      const std::uint64_t n = chunk_end(at, stop, chunk_units(traits_.layout)) - at;
      zero_chunk(view, n, at, how);
      at += n;
    }
  });
}

void Image::trim(std::uint64_t length, std::uint64_t offset) {
  const std::uint64_t g = discard_granularity_;
  const std::uint64_t size_now = size();
  std::uint64_t end = offset + length;
  if (end < size_now) end = end / g * g;
  const std::uint64_t start = offset % g == 0 ? offset : (offset / g + 1) * g;
  if (start >= end) {
    // Nothing is left of it; it must be a valid request all the same.
    write_request(length, offset, [](const View&) {});
    return;
  }
  zero(end - start, start, Zero::free);
}

// Extents -----------------------------------------------------------------

bool Image::find_data(const View& view, std::uint64_t length,
                      std::uint64_t offset, std::vector<Fragment>& data) {
  struct Object {
    const ObjectExtent* extent;
    std::uint64_t size = 0;
    int result = 0;
    std::vector<ObjectRange> ranges;
  };
  const Layout& layout = traits_.layout;
  const std::vector<ObjectExtent> extents = layout.cut(offset, length);
  bool missing = false;

  const auto stat = [&](std::vector<Object>& objects) {
    std::vector<std::unique_ptr<Pending>> pending;
    pending.reserve(objects.size());
    for (Object& o : objects)
      pending.push_back(data_.stat(object_name(o.extent->object_no), &o.size,
                                   view.snap));
    for (std::size_t i = 0; i < objects.size(); ++i)
      objects[i].result = pending[i]->wait();
  };

  std::vector<Object> objects(extents.size());
  for (std::size_t i = 0; i < extents.size(); ++i)
    objects[i].extent = &extents[i];

  // Most objects of a sparse image do not exist.  Asking for their size is
  // asynchronous, mapping them is not; so ask first, unless there is only
  // one.
  if (objects.size() > 1) {
    stat(objects);
    std::erase_if(objects, [&](const Object& o) {
      if (o.result < 0 && o.result != -ENOENT)
        object_error(-o.result, "cannot stat", o.extent->object_no);
      missing |= o.result == -ENOENT;
      return o.result == -ENOENT || o.size <= o.extent->offset;
    });
  }

  options_.workers->for_each(objects.size(), [&](std::size_t i) {
    Object& o = objects[i];
    std::uint64_t bytes = o.extent->length;
    if (o.size != 0) bytes = std::min(bytes, o.size - o.extent->offset);
    o.result = data_.map_extents(object_name(o.extent->object_no),
                                 o.extent->offset, bytes, view.snap,
                                 &o.ranges);
  });

  std::vector<Object> unmapped;
  for (Object& o : objects) {
    if (o.result == -EOPNOTSUPP) {
      // This pool cannot map (it is erasure-coded): the object is data as
      // far as it goes.
      unmapped.push_back({o.extent, 0, 0, {}});
    } else if (o.result == -ENOENT) {
      missing = true;
    } else if (o.result < 0) {
      object_error(-o.result, "cannot map", o.extent->object_no);
    }
  }
  if (!unmapped.empty()) {
    stat(unmapped);
    for (Object& o : unmapped) {
      if (o.result == -ENOENT) {
        missing = true;
        continue;
      }
      if (o.result < 0)
        object_error(-o.result, "cannot stat", o.extent->object_no);
      const std::uint64_t end =
          std::min(o.size, o.extent->offset + o.extent->length);
      if (end > o.extent->offset)
        o.ranges.push_back({o.extent->offset, end - o.extent->offset});
      objects.push_back(std::move(o));
    }
  }

  for (const Object& o : objects)
    for (const ObjectRange& range : o.ranges)
      for (Fragment f : layout.image_parts(o.extent->object_no, range.offset,
                                           range.length)) {
        // An object's range between two parts of the request can hold parts
        // of the image outside of it.
        const std::uint64_t from = std::max(f.image_offset, offset);
        const std::uint64_t to =
            std::min(f.image_offset + f.length, offset + length);
        if (from >= to) continue;
        f.object_offset += from - f.image_offset;
        f.image_offset = from;
        f.length = to - from;
        data.push_back(f);
      }
  std::sort(data.begin(), data.end(), [](const Fragment& a, const Fragment& b) {
    return a.image_offset < b.image_offset;
  });
  return missing;
}

std::vector<Extent> Image::extents(std::uint64_t length, std::uint64_t offset,
                                   bool one) {
  using Clock = std::chrono::steady_clock;
  const auto deadline = Clock::now() + extents_time;
  std::vector<Extent> list;
  const auto append = [&list](std::uint64_t at, std::uint64_t n, bool data) {
    if (n == 0) return;
    if (!list.empty() && list.back().data == data)
      list.back().length += n;
    else
      list.push_back({at, n, data});
  };

  bool confirm = false;
  {
    const auto view = view_.read();
    check_request(*view, length, offset);
    const std::uint64_t end = offset + length;
    bool missing = false;
    // Small steps first: a client that wants one extent often has it in the
    // first object.
    std::uint64_t units = one ? 1 : 256;
    std::vector<Fragment> data;
    for (std::uint64_t at = offset; at < end;) {
      const std::uint64_t stop = chunk_end(at, end, units);
      data.clear();
      missing |= find_data(*view, stop - at, at, data);
      for (const Fragment& f : data) {
        const std::uint64_t from = std::max(at, f.image_offset);
        const std::uint64_t to = f.image_offset + f.length;
        if (to <= from) continue;
        append(at, from - at, false);
        append(from, to - from, true);
        at = to;
      }
      append(at, stop - at, false);
      at = stop;
      if ((one && list.size() > 1) || Clock::now() >= deadline) break;
      units = std::min(units * 4, chunk_units(traits_.layout));
    }
    confirm = missing && doubtful(*view);
  }
  if (confirm) confirm_image();
  if (one && list.size() > 1) list.resize(1);
  return list;
}

}  // namespace nbdrados
