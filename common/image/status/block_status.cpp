// SPDX-License-Identifier: BSD-3-Clause

#include "image/status/block_status.hpp"

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>

#include "image/chunks.hpp"
#include "image/parent_link.hpp"
#include "image/status/map_learner.hpp"
#include "layout/sectors.hpp"
#include "rados/error.hpp"
#include "rbd/object_map.hpp"

namespace nbdrados {

namespace {

/// What NBD can say in one extent, in bytes (NBD protocol: the length in
/// NBD_REPLY_TYPE_BLOCK_STATUS has 32 bits), rounded down so that the next
/// request begins at no odd place.  nbdkit 1.32.5 aborts on a longer one that
/// begins where a request of 2^32-1 bytes does (nbdkit: server/protocol.c,
/// extents_to_block_descriptors).
constexpr std::uint64_t longest_extent = (std::uint64_t{1} << 32) - (1 << 20);

}  // namespace

/// Which objects exist, as far as it is known without asking for each.
///
/// Two are believed that an object is absent, and its place a hole: the OSD
/// that would have it, asked for this object (-ENOENT of a read, stat or
/// mapext), and a valid object map.  A listing of the pool is not, however
/// complete it looks.  It shows what is there, not what is not: under a cache
/// tier it lacks what is only in the cache pool, because listing is the one
/// operation that is not sent there (ceph: src/osdc/Objecter.h,
/// prepare_pg_read_op).
struct BlockStatus::Existing {
  /// The first object in [object_no, end) that may exist, or `end`.  Empty:
  /// that is not known.
  std::function<std::uint64_t(std::uint64_t object_no, std::uint64_t end)>
      end_of_absent = {};
  /// What does not exist needs no confirmation.
  bool sure = false;
  /// An object map says so, and what it says exists is taken to exist.
  bool mapped = false;

  [[nodiscard]] bool absent(std::uint64_t object_no) const {
    return end_of_absent &&
           end_of_absent(object_no, object_no + 1) != object_no;
  }
};

/// What a request finds out.  It is learnt when the request is over, because
/// then it is confirmed.
struct BlockStatus::Findings {
  /// Where there is something to learn.
  std::unique_ptr<KnownExtents::Learning> learning = {};
  std::vector<std::uint64_t> absent = {};
  std::vector<std::pair<std::uint64_t, std::vector<ObjectRange>>> ranges = {};
  /// The object map, where it has been read.
  std::shared_ptr<const ObjectStates> map = {};

  explicit Findings(ImageCore& core) {
    if (core.state.read()->known)
      learning = std::make_unique<KnownExtents::Learning>(core.known);
  }
  void clear() {
    absent.clear();
    ranges.clear();
    map.reset();
  }
};

void BlockStatus::learn(Findings& findings) {
  if (!findings.learning) return;
  for (const std::uint64_t n : findings.absent)
    findings.learning->learn_absent(n);
  for (auto& [n, ranges] : findings.ranges)
    findings.learning->learn(n, std::move(ranges));
  if (findings.map) learn_map(*findings.learning, *findings.map);
}

BlockStatus::Existing BlockStatus::existing_objects(const View& view,
                                                    std::uint64_t length,
                                                    Findings& findings) {
  if (view.known && core_.known.knows_all_absent())
    return {.end_of_absent =
                [this](std::uint64_t n, std::uint64_t end) {
                  return core_.known.end_of_absent(n, end);
                },
            .sure = true};
  if (view.map)
    return {.end_of_absent =
                [map = view.map.get()](std::uint64_t n, std::uint64_t end) {
                  return map->end_of_absent(n, end);
                },
            .mapped = true};
  // For a few objects it is cheaper to ask them.
  constexpr std::uint64_t few = 8;
  if (view.hold_writes || !view.mappable ||
      length / unit_size(core_.traits.layout) < few)
    return {};
  const auto map = core_.format->read_map();
  if (!map) return {};
  if (view.known) findings.map = map;
  return {.end_of_absent =
              [map](std::uint64_t n, std::uint64_t end) {
                return map->end_of_absent(n, end);
              },
          .mapped = true};
}

/// Where the first object set after `offset` begins that may have an object,
/// but at most `end`; `offset` where its own set may have one.
std::uint64_t BlockStatus::end_of_absent(const View& view,
                                         const Existing& existing,
                                         std::uint64_t offset,
                                         std::uint64_t end) const {
  if (!existing.end_of_absent || offset < view.overlap) return offset;
  return core_.traits.layout.skip_sets(offset, end, existing.end_of_absent);
}

// The objects of a range ---------------------------------------------------

/// Finds out what is data in a range, in one chunk.
class BlockStatus::Finder {
 public:
  Finder(ImageCore& core, const View& view, const Existing& existing,
         Findings& findings, std::uint64_t length, std::uint64_t offset)
      : core_(core),
        view_(view),
        existing_(existing),
        findings_(findings),
        offset_(offset),
        end_(offset + length),
        extents_(core.traits.layout.cut(offset, length)),
        exact_(core.options.extents == ExtentsMode::exact),
        learning_(view.known && findings.learning != nullptr),
        sure_(!core.state.is_parent() && core.state.guarded()) {}

  /// Appends what is data, by offset in the image.  Returns whether anything
  /// absent was taken for zeros.
  [[nodiscard]] bool find(std::vector<Fragment>& data);
  /// Whether it was known where within objects there is data.
  [[nodiscard]] bool knew_holes() const noexcept { return knew_holes_; }

 private:
  struct Object {
    const ObjectExtent* extent;
    std::uint64_t size = 0;
    int result = 0;
    std::vector<ObjectRange> ranges = {};
  };

  void sort_out();
  void stat(std::vector<Object>& objects);
  void stat_first();
  void map();
  void take_whole(std::vector<Object>& objects);
  void add_data(std::vector<Fragment>& data) const;
  [[nodiscard]] bool add_parents(std::vector<Fragment>& data);
  void found_absent(const ObjectExtent& e);
  void found(Object object);

  ImageCore& core_;
  const View& view_;
  const Existing& existing_;
  Findings& findings_;
  const std::uint64_t offset_;
  const std::uint64_t end_;
  const std::vector<ObjectExtent> extents_;
  const bool exact_;
  const bool learning_;
  bool sure_;                    // see ImageState::can_be_sure
  bool knew_holes_ = true;
  std::vector<Object> objects_;  // to be asked
  std::vector<Object> settled_;
  /// What the parent, if any, has instead.
  std::vector<const ObjectExtent*> gone_;
};

void BlockStatus::Finder::found_absent(const ObjectExtent& e) {
  gone_.push_back(&e);
  sure_ = false;
  if (learning_) findings_.absent.push_back(e.object_no);
}

void BlockStatus::Finder::found(Object object) {
  if (learning_)
    findings_.ranges.emplace_back(object.extent->object_no, object.ranges);
  settled_.push_back(std::move(object));
}

/// Finds those objects that must be asked.
void BlockStatus::Finder::sort_out() {
  objects_.reserve(extents_.size());
  for (const ObjectExtent& e : extents_) {
    Object o{.extent = &e};
    if (view_.known && core_.known.absent(e.object_no)) {
      gone_.push_back(&e);
    } else if (existing_.absent(e.object_no)) {
      gone_.push_back(&e);
      sure_ = sure_ && existing_.sure;
    } else if (existing_.mapped && !exact_) {
      o.ranges.push_back({e.offset, e.length});
      settled_.push_back(std::move(o));
    } else if (view_.known && core_.known.find(e.object_no, &o.ranges)) {
      settled_.push_back(std::move(o));
    } else {
      objects_.push_back(std::move(o));
    }
  }
}

/// Asks for the sizes.  Throws where an OSD has another answer than that, or
/// that there is no such object.
void BlockStatus::Finder::stat(std::vector<Object>& objects) {
  for_objects(
      objects.size(),
      [&](std::size_t i) {
        return core_.data.stat(
            core_.traits.object_name(objects[i].extent->object_no),
            &objects[i].size, view_.snap);
      },
      [&](std::size_t i, int result) { objects[i].result = result; });
  for (const Object& o : objects) {
    if (o.result < 0 && o.result != -ENOENT)
      core_.traits.object_error(-o.result, "cannot stat",
                                o.extent->object_no);
    if (o.result == -ENOENT) found_absent(*o.extent);
  }
  std::erase_if(objects, [](const Object& o) { return o.result == -ENOENT; });
}

/// Most objects of a sparse image do not exist.  Asking for their size is
/// asynchronous, mapping them is not; so ask first, unless there is only
/// one, or it is known which exist.
void BlockStatus::Finder::stat_first() {
  if (!exact_ || objects_.size() <= 1 || existing_.end_of_absent) return;
  stat(objects_);
  std::erase_if(objects_, [](const Object& o) {
    return o.size <= o.extent->offset;
  });
}

void BlockStatus::Finder::map() {
  core_.options.workers->for_each(objects_.size(), [&](std::size_t i) {
    Object& o = objects_[i];
    std::uint64_t start = o.extent->offset;
    std::uint64_t bytes = o.extent->length;
    if (o.size != 0) bytes = std::min(bytes, o.size - start);
    // What is learnt, is the whole object.
    if (learning_) {
      start = 0;
      bytes = core_.traits.layout.object_size();
    }
    o.result = core_.data.map_extents(
        core_.traits.object_name(o.extent->object_no), start, bytes,
        view_.snap, &o.ranges);
  });
}

/// The objects are data as far as they go.
void BlockStatus::Finder::take_whole(std::vector<Object>& objects) {
  knew_holes_ = false;
  stat(objects);
  for (Object& o : objects) {
    if (o.size != 0) o.ranges.push_back({0, o.size});
    found(std::move(o));
  }
}

void BlockStatus::Finder::add_data(std::vector<Fragment>& data) const {
  const Layout& layout = core_.traits.layout;
  for (const Object& o : settled_)
    for (const ObjectRange& range : o.ranges) {
      const std::uint64_t start = std::max(range.offset, o.extent->offset);
      const std::uint64_t stop =
          std::min(range.offset + range.length,
                   o.extent->offset + o.extent->length);
      if (start >= stop) continue;
      for (Fragment f :
           layout.image_parts(o.extent->object_no, start, stop - start)) {
        // An object's range between two parts of the request can hold parts
        // of the image outside of it.
        const std::uint64_t from = std::max(f.image_offset, offset_);
        const std::uint64_t to = std::min(f.image_offset + f.length, end_);
        if (from >= to) continue;
        f.object_offset += from - f.image_offset;
        f.image_offset = from;
        f.length = to - from;
        data.push_back(f);
      }
    }
}

/// Returns whether anything absent was taken for zeros.
bool BlockStatus::Finder::add_parents(std::vector<Fragment>& data) {
  bool missing = false;
  for (const auto& [at, n] : image_ranges(gone_)) {
    const std::uint64_t backed =
        at < view_.overlap ? std::min(n, view_.overlap - at) : 0;
    missing |= backed != n && !sure_;
    if (backed != 0)
      missing |= of_parent(core_.traits.name, [&] {
        return view_.parent->find_backing_data(backed, at, data);
      });
  }
  return missing;
}

bool BlockStatus::Finder::find(std::vector<Fragment>& data) {
  sort_out();
  stat_first();
  if (exact_) map();
  std::vector<Object> unmapped;
  for (Object& o : objects_) {
    if (!exact_ || o.result == -EOPNOTSUPP) {
      // It is not to be mapped, or this pool cannot (it is erasure-coded).
      unmapped.push_back({.extent = o.extent});
    } else if (o.result == -ENOENT) {
      found_absent(*o.extent);
    } else if (o.result < 0) {
      core_.traits.object_error(-o.result, "cannot map", o.extent->object_no);
    } else {
      found(std::move(o));
    }
  }
  if (!unmapped.empty()) take_whole(unmapped);
  add_data(data);
  const bool missing = add_parents(data);
  std::sort(data.begin(), data.end(), [](const Fragment& a, const Fragment& b) {
    return a.image_offset < b.image_offset;
  });
  return missing;
}

bool BlockStatus::find_data(const View& view, const Existing& existing,
                            std::uint64_t length, std::uint64_t offset,
                            Findings& findings, std::vector<Fragment>& data) {
  Finder finder(core_, view, existing, findings, length, offset);
  const bool missing = finder.find(data);
  if (!finder.knew_holes()) knows_holes_ = false;
  return missing;
}

// For a child --------------------------------------------------------------

bool BlockStatus::find_backing_data(std::uint64_t length, std::uint64_t offset,
                                    std::vector<Fragment>& data) {
  const std::size_t before = data.size();
  Findings findings(core_);
  const bool missing = core_.metadata.confirmed([&](const View& view) {
    findings.clear();
    data.resize(before);
    const std::uint64_t end =
        std::max(offset, std::min(offset + length, view.size));
    view.check_request(core_.traits, end - offset,
                       std::min(offset, view.size));
    bool lacks = end != offset + length;
    if (end == offset) return lacks;
    const Existing existing = existing_objects(view, end - offset, findings);
    std::vector<Fragment> found;
    for (std::uint64_t at = offset; at < end;) {
      const std::uint64_t next = end_of_absent(view, existing, at, end);
      if (next != at) {
        lacks = true;
        at = next;
        continue;
      }
      const std::uint64_t stop = chunk_end(core_.traits.layout, at, end);
      found.clear();
      lacks |= find_data(view, existing, stop - at, at, findings, found);
      data.insert(data.end(), found.begin(), found.end());
      at = stop;
    }
    return lacks;
  });
  learn(findings);
  return missing;
}

std::uint64_t BlockStatus::least_object_size() {
  const std::uint64_t own = core_.traits.layout.object_size();
  const auto view = core_.state.read();
  return view->parent ? std::min(own, view->parent->least_object_size()) : own;
}

bool BlockStatus::knows_holes() {
  if (!knows_holes_ || core_.options.extents != ExtentsMode::exact)
    return false;
  const auto view = core_.state.read();
  return !view->parent || view->parent->knows_holes();
}

// For a client -------------------------------------------------------------

/// From the begin of a range to its end, or until there is enough for one
/// answer.
class BlockStatus::Walk {
 public:
  Walk(BlockStatus& owner, std::uint64_t length, std::uint64_t offset, bool one)
      : owner_(owner), core_(owner.core_), length_(length), offset_(offset),
        one_(one) {}

  /// Returns whether anything absent was taken for zeros.
  [[nodiscard]] bool go(const View& view, Findings& findings);
  [[nodiscard]] std::vector<Extent> take() { return std::move(list_); }

 private:
  using Clock = std::chrono::steady_clock;

  [[nodiscard]] bool spent(std::chrono::milliseconds time) const {
    return Clock::now() - start_ >= time;
  }
  [[nodiscard]] bool enough() const { return one_ && list_.size() > 1; }
  void append(std::uint64_t at, std::uint64_t n, bool data);
  [[nodiscard]] std::uint64_t skip_absent(const View& view,
                                          const Existing& existing,
                                          std::uint64_t from, std::uint64_t to);
  [[nodiscard]] std::uint64_t most_units(const View& view) const;
  void append_data(const std::vector<Fragment>& data, std::uint64_t at,
                   std::uint64_t stop);
  [[nodiscard]] std::uint64_t go_on(const View& view, const Existing& existing,
                                    std::uint64_t end);

  BlockStatus& owner_;
  ImageCore& core_;
  const std::uint64_t length_;
  const std::uint64_t offset_;
  const bool one_;
  const Clock::time_point start_ = Clock::now();
  std::vector<Extent> list_;
  bool missing_ = false;
};

void BlockStatus::Walk::append(std::uint64_t at, std::uint64_t n, bool data) {
  if (n == 0) return;
  if (!list_.empty() && list_.back().data == data)
    list_.back().length += n;
  else
    list_.push_back({at, n, data});
}

std::uint64_t BlockStatus::Walk::skip_absent(const View& view,
                                             const Existing& existing,
                                             std::uint64_t from,
                                             std::uint64_t to) {
  std::uint64_t next = owner_.end_of_absent(view, existing, from, to);
  // An object can begin within a sector.
  if (next != to) next = sector_begin(next);
  if (next != from) missing_ |= !existing.sure;
  append(from, next - from, false);
  return next;
}

/// In one step.  Where the parents have smaller objects, of as many.
std::uint64_t BlockStatus::Walk::most_units(const View& view) const {
  const Layout& layout = core_.traits.layout;
  const std::uint64_t least =
      view.parent ? std::min(layout.object_size(),
                             view.parent->least_object_size())
                  : layout.object_size();
  const std::uint64_t smaller =
      std::max<std::uint64_t>(1, unit_size(layout) / least);
  return std::max<std::uint64_t>(1, chunk_units(layout) / smaller);
}

void BlockStatus::Walk::append_data(const std::vector<Fragment>& data,
                                    std::uint64_t at, std::uint64_t stop) {
  for (const Fragment& f : data) {
    const std::uint64_t from = std::max(at, sector_begin(f.image_offset));
    const std::uint64_t to = sector_end(f.image_offset + f.length, stop);
    if (to <= from) continue;
    append(at, from - at, false);
    append(from, to - from, true);
    at = to;
  }
  append(at, stop - at, false);
}

/// NBD lets the last extent go on behind the range.  Returns where it ends.
std::uint64_t BlockStatus::Walk::go_on(const View& view,
                                       const Existing& existing,
                                       std::uint64_t end) {
  if (!one_ && !list_.empty() && !list_.back().data &&
      list_.back().offset + list_.back().length == end &&
      list_.back().length < longest_extent && end < view.size) {
    const std::uint64_t next = skip_absent(
        view, existing, end,
        std::min(view.size, list_.back().offset + longest_extent));
    if (next != end) return next;
  }
  return offset_ + length_;
}

bool BlockStatus::Walk::go(const View& view, Findings& findings) {
  const Layout& layout = core_.traits.layout;
  view.check_request(core_.traits, length_, offset_);
  list_.clear();
  missing_ = false;
  // Whole sectors, data rounded outwards: see sectors.hpp.
  const std::uint64_t begin = sector_begin(offset_);
  const std::uint64_t end = sector_end(offset_ + length_, view.size);
  // Small steps first: a client that wants one extent often has it in the
  // first object.
  const std::uint64_t most = most_units(view);
  std::uint64_t units = one_ ? 1 : std::min<std::uint64_t>(256, most);
  Existing existing = owner_.existing_objects(
      view, one_ ? std::min(end - begin, unit_size(layout)) : end - begin,
      findings);
  bool asked = !one_;
  std::vector<Fragment> data;
  for (std::uint64_t at = begin; at < end;) {
    at = skip_absent(view, existing, at, end);
    if (at == end || enough()) break;
    const std::uint64_t stop =
        sector_end(chunk_end(layout, at, end, units), end);
    data.clear();
    missing_ |=
        owner_.find_data(view, existing, stop - at, at, findings, data);
    append_data(data, at, stop);
    at = stop;
    if (enough() || spent(time_limit)) break;
    if (!asked && at != end) {
      existing = owner_.existing_objects(view, end - at, findings);
      asked = true;
    }
    // Longer steps, as long as they are quick.
    if (!spent(time_limit / 8)) units = std::min(units * 4, most);
  }
  const std::uint64_t until = go_on(view, existing, end);
  cut(list_, offset_, until);
  return missing_;
}

std::vector<Extent> BlockStatus::extents(std::uint64_t length,
                                         std::uint64_t offset, bool one) {
  if (core_.options.extents == ExtentsMode::off) {
    core_.state.read()->check_request(core_.traits, length, offset);
    if (length == 0) return {};
    return {{offset, length, true}};
  }
  Findings findings(core_);
  Walk walk(*this, length, offset, one);
  (void)core_.metadata.confirmed([&](const View& view) {
    findings.clear();
    return walk.go(view, findings);
  });
  learn(findings);
  std::vector<Extent> list = walk.take();
  if (one && list.size() > 1) list.resize(1);
  return list;
}

}  // namespace nbdrados
