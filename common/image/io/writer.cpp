// SPDX-License-Identifier: BSD-3-Clause

#include "image/io/writer.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <string>
#include <utility>

#include "image/chunks.hpp"
#include "rados/error.hpp"
#include "rados/tuning.hpp"

namespace nbdrados {

namespace {

using Effect = ObjectTarget::Effect;

/// The OSD repeats this much over a range that is to be zero but allocated,
/// so this much is all that goes over the wire.
constexpr std::size_t zero_page_size = 4096;
alignas(64) constexpr std::array<char, zero_page_size> zero_page{};

/// Parts of one object that ascend; as one operation.
class WriteParts final : public ObjectChange {
 public:
  WriteParts(const ImageTraits& traits, const ObjectTarget& target,
             std::span<const WriteMerger::Part> parts)
      : traits_(traits),
        target_(target),
        parts_(parts),
        single_{parts[0].data, parts[0].length} {
    if (parts.size() == 1) return;
    several_.reserve(parts.size());
    for (const WriteMerger::Part& p : parts)
      several_.push_back({p.data, p.length});
  }
  ObjectTarget target(std::size_t) const override { return target_; }
  void add_steps(WriteOp& op, std::size_t) override {
    const std::span<const ConstPiece> pieces =
        parts_.size() == 1 ? std::span(&single_, 1) : std::span(several_);
    add_hint(traits_, op);
    for (std::size_t i = 0; i < parts_.size();) {
      std::size_t next = i + 1;
      while (next < parts_.size() &&
             parts_[next].offset == parts_[next - 1].end())
        ++next;
      op.write(parts_[i].offset, pieces.subspan(i, next - i));
      i = next;
    }
  }

 private:
  const ImageTraits& traits_;
  const ObjectTarget target_;
  const std::span<const WriteMerger::Part> parts_;
  const ConstPiece single_;
  std::vector<ConstPiece> several_;
};

/// A range of the image that is in several objects.
class WriteExtents final : public ObjectChange {
 public:
  WriteExtents(const ImageTraits& traits, const char* buffer,
               std::uint64_t length, std::uint64_t offset)
      : traits_(traits),
        extents_(traits.layout.cut(offset, length)),
        pieces_(extents_, buffer, offset) {}
  [[nodiscard]] std::size_t count() const { return extents_.size(); }
  ObjectTarget target(std::size_t i) const override {
    const ObjectExtent& e = extents_[i];
    return {.object_no = e.object_no,
            .effect = Effect::write,
            .whole = e.length == traits_.layout.object_size()};
  }
  void add_steps(WriteOp& op, std::size_t i) override {
    add_hint(traits_, op);
    op.write(extents_[i].offset, pieces_.of(i));
  }

 private:
  const ImageTraits& traits_;
  const std::vector<ObjectExtent> extents_;
  const ExtentPieces<ConstPiece> pieces_;
};

class ZeroExtents final : public ObjectChange {
 public:
  ZeroExtents(const ImageTraits& traits, std::uint64_t length,
              std::uint64_t offset, ZeroMode how)
      : traits_(traits),
        how_(how),
        extents_(traits.layout.cut(offset, length)),
        tails_(extents_.size()) {}
  [[nodiscard]] std::size_t count() const { return extents_.size(); }
  ObjectTarget target(std::size_t i) const override {
    // Only what is an object's full size is removed: an image that is
    // being grown by somebody else can have data behind the end that we
    // know of.  The rest is zeroed; truncating is no choice, because it
    // would make shorter objects longer.
    const ObjectExtent& e = extents_[i];
    const bool whole = e.length == traits_.layout.object_size();
    return {.object_no = e.object_no,
            .effect = how_ != ZeroMode::free ? Effect::write
                      : whole                ? Effect::clear
                                             : Effect::zero,
            .whole = whole};
  }
  void add_steps(WriteOp& op, std::size_t i) override {
    const ObjectExtent& e = extents_[i];
    if (how_ == ZeroMode::free) {
      op.zero(e.offset, e.length);
      return;
    }
    add_hint(traits_, op);
    const std::uint64_t body = e.length / zero_page_size * zero_page_size;
    if (body != 0) op.write_same(e.offset, body, {&page_, 1});
    if (body != e.length) {
      tails_[i] = {zero_page.data(), e.length - body};
      op.write(e.offset + body, {&tails_[i], 1});
    }
  }

 private:
  const ImageTraits& traits_;
  const ZeroMode how_;
  const std::vector<ObjectExtent> extents_;
  const ConstPiece page_{zero_page.data(), zero_page.size()};
  std::vector<ConstPiece> tails_;
};

/// Whole objects.
class ClearObjects final : public ObjectChange {
 public:
  /// Those from `first` on.
  explicit ClearObjects(std::uint64_t first) : first_(first) {}
  explicit ClearObjects(std::span<const std::uint64_t> numbers)
      : numbers_(numbers.data()) {}
  ObjectTarget target(std::size_t i) const override {
    return {.object_no = numbers_ == nullptr ? first_ + i : numbers_[i],
            .effect = Effect::clear,
            .whole = true};
  }
  void add_steps(WriteOp&, std::size_t) override {}

 private:
  const std::uint64_t first_ = 0;
  const std::uint64_t* const numbers_ = nullptr;
};

/// An object that becomes a copy of another one.
class CopyObject final : public ObjectChange {
 public:
  CopyObject(const ImageTraits& traits, std::uint64_t object_no,
             std::uint64_t used, const ObjectPlace& from)
      : traits_(traits), object_no_(object_no), used_(used), from_(from) {}
  ObjectTarget target(std::size_t) const override {
    return {.object_no = object_no_, .effect = Effect::write, .whole = true};
  }
  void add_steps(WriteOp& op, std::size_t) override {
    op.copy_from(*from_.store, from_.oid, from_.snap);
    // What is behind the image's end is nobody's, and would show when it grows.
    // No object gets longer by this.
    const std::uint64_t size = traits_.layout.object_size();
    if (used_ < size) op.zero(used_, size - used_);
    // After the copy, or it would not last.
    add_hint(traits_, op);
  }

 private:
  const ImageTraits& traits_;
  const std::uint64_t object_no_;
  const std::uint64_t used_;
  const ObjectPlace& from_;
};

}  // namespace

// When to write ------------------------------------------------------------

template <class Request>
void Writer::when_writable(std::uint64_t length, std::uint64_t offset,
                           Request&& request) {
  ImageState& state = core_.state;
  const std::string& name = core_.traits.name;
  if (!state.writable())
    throw Error(EROFS, name + ": this export is read-only");
  bool unsure = false;
  const auto attempt = [&] {
    try {
      const auto view = core_.metadata.request_view();
      view->check_request(core_.traits, length, offset);
      if (!view->unwritable.empty())
        throw Error(EROFS, name + ": " + view->unwritable);
      // While nobody is sure to be told of a snapshot, its data could be
      // changed.
      unsure = view->failure == 0 && !state.guarded();
      if (unsure || !view->writable_now()) return false;
      request(*view);
      return true;
    } catch (const MapFailure& failure) {
      give_up_map(failure);
      return false;
    }
  };
  if (attempt()) return;
  for (;;) {
    const WriteGate::Seen seen = state.gate().seen();
    if (attempt()) return;
    if (state.read()->needs_lock) {
      if (core_.options.lock == LockMode::none)
        throw Error(EROFS, name + ": its exclusive lock is needed for "
                                  "writing, and lock=none was given");
      caretaker_->want_lock();
    }
    if (unsure) caretaker_->doubt_watch();
    state.gate().wait(seen, [&] { return unsure && state.guarded(); });
  }
}

void Writer::give_up_map(const MapFailure& failure) {
  const int code = failure.error.code();
  if (code == EBUSY) caretaker_->doubt_lock();
  // Somebody else has locked the map, or shut this client out.
  if (code == EBUSY || code == ESHUTDOWN)
    throw Error(ESHUTDOWN, failure.error.what());
  core_.log(core_.traits.name +
            ": the object map is given up: " + failure.error.what());
  // Nobody may believe it any more before something is written without it.
  core_.format->invalidate_map(snap_head);
  core_.state.drop_map(failure.map);
}

// Requests -----------------------------------------------------------------

void Writer::write_parts(const View& view, const ObjectTarget& target,
                         std::span<const WriteMerger::Part> parts) {
  WriteParts change(core_.traits, target, parts);
  (void)changer_.run(view, 1, change, "cannot write");
}

void Writer::write_chunk(const View& view, const char* buffer,
                         std::uint64_t length, std::uint64_t offset) {
  const Layout& layout = core_.traits.layout;
  const Fragment first = layout.locate(offset, length);
  if (first.length != length) {
    WriteExtents change(core_.traits, buffer, length, offset);
    (void)changer_.run(view, change.count(), change, "cannot write");
    return;
  }
  const ObjectTarget target{.object_no = first.object_no,
                            .effect = Effect::write,
                            .whole = length == layout.object_size()};
  const WriteMerger::Part part{first.object_offset, buffer, length};
  const auto write = [&](std::span<const WriteMerger::Part> parts) {
    write_parts(view, target, parts);
  };
  // A copy-up is per request; and there is nothing next to a whole object.
  if (target.whole || view.backed(layout, target.object_no) ||
      !tuning.merge_writes)
    write({&part, 1});
  else
    merger_.write(&view, target.object_no, part, write);
}

void Writer::write(const char* buffer, std::uint64_t length,
                   std::uint64_t offset) {
  when_writable(length, offset, [&](const View& view) {
    const std::uint64_t end = offset + length;
    const char* from = buffer;
    for (std::uint64_t at = offset; at < end;) {
      const std::uint64_t n = chunk_end(core_.traits.layout, at, end) - at;
      write_chunk(view, from, n, at);
      from += n;
      at += n;
    }
  });
}

void Writer::copy_object(std::uint64_t object_no, std::uint64_t used,
                         const ObjectPlace& from) {
  const ImageTraits& traits = core_.traits;
  // The attributes of the source would take the place of the metadata.
  if (traits.keep_first_object && object_no == 0)
    traits.object_error(EOPNOTSUPP, "cannot copy", object_no);
  // Its own snapshot's, or that of a clone without an object of its own: who
  // writes the object must not have to wait for who reads it.  By the name
  // only, which two pools may have.
  if (from.oid == traits.object_name(object_no))
    traits.object_error(EOPNOTSUPP, "cannot copy onto itself", object_no);
  when_writable(0, 0, [&](const View& view) {
    // What the image has behind that is not to be lost.
    if (traits.layout.object_used(object_no, view.size) != used)
      traits.object_error(EOPNOTSUPP, "cannot copy", object_no);
    CopyObject change(traits, object_no, used, from);
    (void)changer_.run(view, 1, change, "cannot copy");
  });
}

void Writer::nothing(std::uint64_t length, std::uint64_t offset) {
  when_writable(length, offset, [](const View&) {});
}

void Writer::flush() {
  const auto view = core_.state.read();
  // Caches above may have had more to write, which went with the lock: a client
  // that repeats a failed flush is not to be told that it is safe now.
  if (view->failure != 0 && core_.state.lost())
    throw Error(view->failure, view->reason);
  if (!view->map) return;
  try {
    view->map->give_back();
  } catch (const Error&) {
    // The next change finds the map unusable, and sees to it.
  }
}

void Writer::zero_chunk(const View& view, std::uint64_t length,
                        std::uint64_t offset, ZeroMode how) {
  ZeroExtents change(core_.traits, length, offset, how);
  (void)changer_.run(view, change.count(), change, "cannot zero");
}

/// Those of the objects [first, first + count) that are to be cleared: all but
/// those that are not there.  To an OSD the removal of a missing object is a
/// write that failed, which every replica notes in its log: the question
/// whether it is there takes a fraction of that.  Who makes an object after
/// the question could as well have made it after the removal.
std::vector<std::uint64_t> Writer::objects_to_clear(
    const View& view, std::uint64_t first, std::uint64_t count) {
  std::vector<std::uint64_t> sizes(count);
  std::vector<std::uint64_t> numbers;
  for_objects(
      count,
      [&](std::size_t i) -> std::unique_ptr<Pending> {
        // What the parent backs must come into being.
        if (view.backed(core_.traits.layout, first + i)) return nullptr;
        return core_.data.stat(core_.traits.object_name(first + i), &sizes[i],
                               snap_head);
      },
      [&](std::size_t i, int result) {
        // Where the answer is an error, the removal says what is wrong.
        if (result != -ENOENT) numbers.push_back(first + i);
      });
  return numbers;
}

/// Clears the objects [first, first + count).  Asks whether they are there as
/// long as most are not, at first about a few: where all are, a question more
/// for each would take up to 1.8 times as long.
void Writer::clear_objects(const View& view, std::uint64_t first,
                           std::uint64_t count) {
  constexpr std::uint64_t few = 8;
  constexpr std::uint64_t many = 64;
  // A map knows.
  const bool may_ask = tuning.ask_first && !view.map && count > many;
  bool ask = may_ask;
  std::uint64_t asked = few;
  for (const std::uint64_t end = first + count; first < end;) {
    if (ask) {
      const std::uint64_t n = std::min(asked, end - first);
      const auto there = objects_to_clear(view, first, n);
      if (there.size() <= n / 2) {
        ClearObjects change(there);
        (void)changer_.run(view, there.size(), change, "cannot remove");
        asked = std::min(2 * asked, chunk_objects);
        first += n;
        continue;
      }
    }
    const std::uint64_t n = std::min(chunk_objects, end - first);
    ClearObjects change(first);
    const std::uint64_t missing =
        changer_.run(view, n, change, "cannot remove");
    ask = may_ask && missing >= n / 2;
    asked = few;
    first += n;
  }
}

void Writer::zero(std::uint64_t length, std::uint64_t offset, ZeroMode how) {
  const Layout& layout = core_.traits.layout;
  when_writable(length, offset, [&](const View& view) {
    const std::uint64_t end = offset + length;
    const std::uint64_t set = layout.object_set_size();
    const std::uint64_t per_set = layout.stripe_count();
    for (std::uint64_t at = offset; at < end;) {
      const std::uint64_t sets = (end - at) / set;
      if (how == ZeroMode::free && at % set == 0 && sets != 0) {
        // Whole object sets need no arithmetic: their objects go.
        clear_objects(view, at / set * per_set, sets * per_set);
        at += sets * set;
        continue;
      }
      // Up to the next object set, so that the above finds it whole.
      const std::uint64_t stop =
          how == ZeroMode::free && sets != 0 ? (at / set + 1) * set : end;
      const std::uint64_t n = chunk_end(layout, at, stop) - at;
      zero_chunk(view, n, at, how);
      at += n;
    }
  });
}

}  // namespace nbdrados
