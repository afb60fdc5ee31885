// SPDX-License-Identifier: BSD-3-Clause
//
// Block status: what of an image is data.

#include <algorithm>
#include <cerrno>
#include <functional>
#include <utility>

#include "image/image.hpp"
#include "image/image_internal.hpp"
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

std::vector<std::pair<std::uint64_t, std::uint64_t>> image_ranges(
    std::span<const ObjectExtent* const> extents) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> parts;
  for (const ObjectExtent* e : extents)
    for (const Fragment& f : e->parts)
      parts.emplace_back(f.image_offset, f.length);
  std::sort(parts.begin(), parts.end());
  std::size_t kept = 0;
  for (const auto& part : parts) {
    if (kept != 0 &&
        parts[kept - 1].first + parts[kept - 1].second == part.first)
      parts[kept - 1].second += part.second;
    else
      parts[kept++] = part;
  }
  parts.resize(kept);
  return parts;
}

/// Which objects exist, as far as it is known without asking for each.
///
/// Two are believed that an object is absent, and its place a hole: the OSD
/// that would have it, asked for this object (-ENOENT of a read, stat or
/// mapext), and a valid object map.  A listing of the pool is not, however
/// complete it looks.  It shows what is there, not what is not: under a cache
/// tier it lacks what is only in the cache pool, because listing is the one
/// operation that is not sent there (ceph: src/osdc/Objecter.h,
/// prepare_pg_read_op).
struct Image::Existing {
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
struct Image::Findings {
  /// Where there is something to learn.
  std::unique_ptr<KnownExtents::Learning> learning = {};
  std::vector<std::uint64_t> absent = {};
  std::vector<std::pair<std::uint64_t, std::vector<ObjectRange>>> ranges = {};
  /// The object map, where it has been read.
  std::shared_ptr<const ObjectStates> map = {};

  Findings(Image& image) {
    if (image.view_.read()->known)
      learning = std::make_unique<KnownExtents::Learning>(image.known_);
  }
  void clear() {
    absent.clear();
    ranges.clear();
    map.reset();
  }
};

namespace {

/// What the map does not know, because it lies behind its end, may exist.
void learn_map(KnownExtents::Learning& learning, const ObjectStates& map) {
  learning.learn_existing(
      [&](std::uint64_t n) {
        return n >= map.size() || map[n] != ObjectState::nonexistent;
      },
      [&](std::uint64_t n) {
        return n < map.size() ? map.end_of_run(n) : ~std::uint64_t{0};
      });
}

}  // namespace

void Image::learn(Findings& findings) {
  if (!findings.learning) return;
  for (const std::uint64_t n : findings.absent)
    findings.learning->learn_absent(n);
  for (auto& [n, ranges] : findings.ranges)
    findings.learning->learn(n, std::move(ranges));
  if (findings.map) learn_map(*findings.learning, *findings.map);
}

void Image::learn_from_map() {
  {
    const auto view = view_.read();
    if (view->snap == snap_head || !view->known || !view->mappable ||
        known_.knows_all_absent() || map_learnt_.exchange(true))
      return;
  }
  try {
    KnownExtents::Learning learning(known_);
    if (const auto map = format_->read_map()) learn_map(learning, *map);
  } catch (const Error&) {
    // It was only to save work.
  }
}

Image::Existing Image::existing_objects(const View& view, std::uint64_t length,
                                        Findings& findings) {
  if (view.known && known_.knows_all_absent())
    return {.end_of_absent =
                [this](std::uint64_t n, std::uint64_t end) {
                  return known_.end_of_absent(n, end);
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
      length / unit_size(traits_.layout) < few)
    return {};
  const auto map = format_->read_map();
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
std::uint64_t Image::end_of_absent(const View& view, const Existing& existing,
                                   std::uint64_t offset,
                                   std::uint64_t end) const {
  if (!existing.end_of_absent || offset >= end || offset < view.overlap)
    return offset;
  const std::uint64_t set = traits_.layout.object_set_size();
  const std::uint64_t per_set = traits_.layout.stripe_count();
  const std::uint64_t stop = ((end - 1) / set + 1) * per_set;
  const std::uint64_t next =
      existing.end_of_absent(offset / set * per_set, stop);
  return next == stop ? end : std::max(offset, next / per_set * set);
}

bool Image::find_data(const View& view, const Existing& existing,
                      std::uint64_t length, std::uint64_t offset,
                      Findings& findings, std::vector<Fragment>& data) {
  struct Object {
    const ObjectExtent* extent;
    std::uint64_t size = 0;
    int result = 0;
    std::vector<ObjectRange> ranges = {};
  };
  const Layout& layout = traits_.layout;
  const std::vector<ObjectExtent> extents = layout.cut(offset, length);
  const bool exact = options_.extents == ExtentsMode::exact;
  const bool learning = view.known && findings.learning != nullptr;
  /// What the parent, if any, has instead.
  std::vector<const ObjectExtent*> gone;
  bool sure = !options_.lineage && guarded();  // see can_be_sure
  const auto found_absent = [&](const ObjectExtent& e) {
    gone.push_back(&e);
    sure = false;
    if (learning) findings.absent.push_back(e.object_no);
  };

  const auto stat = [&](std::vector<Object>& objects) {
    for_objects(
        objects.size(),
        [&](std::size_t i) {
          return data_.stat(object_name(objects[i].extent->object_no),
                            &objects[i].size, view.snap);
        },
        [&](std::size_t i, int result) { objects[i].result = result; });
  };

  std::vector<Object> objects;
  std::vector<Object> settled;
  objects.reserve(extents.size());
  for (const ObjectExtent& e : extents) {
    Object o{.extent = &e};
    if (known_absent(view, e.object_no)) {
      gone.push_back(&e);
    } else if (existing.absent(e.object_no)) {
      gone.push_back(&e);
      sure = sure && existing.sure;
    } else if (existing.mapped && !exact) {
      o.ranges.push_back({e.offset, e.length});
      settled.push_back(std::move(o));
    } else if (view.known && known_.find(e.object_no, &o.ranges)) {
      settled.push_back(std::move(o));
    } else {
      objects.push_back(std::move(o));
    }
  }

  // Most objects of a sparse image do not exist.  Asking for their size is
  // asynchronous, mapping them is not; so ask first, unless there is only
  // one, or it is known which exist.
  if (objects.size() > 1 && !existing.end_of_absent) {
    stat(objects);
    std::erase_if(objects, [&](const Object& o) {
      if (o.result < 0 && o.result != -ENOENT)
        object_error(-o.result, "cannot stat", o.extent->object_no);
      if (o.result == -ENOENT) found_absent(*o.extent);
      return o.result == -ENOENT || o.size <= o.extent->offset;
    });
  }

  options_.workers->for_each(objects.size(), [&](std::size_t i) {
    Object& o = objects[i];
    if (!exact) {
      o.result = -EOPNOTSUPP;
      return;
    }
    std::uint64_t start = o.extent->offset;
    std::uint64_t bytes = o.extent->length;
    if (o.size != 0) bytes = std::min(bytes, o.size - start);
    // What is learnt, is the whole object.
    if (learning) {
      start = 0;
      bytes = layout.object_size();
    }
    o.result = data_.map_extents(object_name(o.extent->object_no), start,
                                 bytes, view.snap, &o.ranges);
  });

  std::vector<Object> unmapped;
  for (Object& o : objects) {
    if (o.result == -EOPNOTSUPP) {
      // This pool cannot map (it is erasure-coded), or is not to: the object
      // is data as far as it goes.
      unmapped.push_back({.extent = o.extent});
    } else if (o.result == -ENOENT) {
      found_absent(*o.extent);
    } else if (o.result < 0) {
      object_error(-o.result, "cannot map", o.extent->object_no);
    } else {
      if (learning)
        findings.ranges.emplace_back(o.extent->object_no, o.ranges);
      settled.push_back(std::move(o));
    }
  }
  if (!unmapped.empty()) {
    stat(unmapped);
    for (Object& o : unmapped) {
      if (o.result == -ENOENT) {
        found_absent(*o.extent);
        continue;
      }
      if (o.result < 0)
        object_error(-o.result, "cannot stat", o.extent->object_no);
      if (o.size != 0) o.ranges.push_back({0, o.size});
      if (learning)
        findings.ranges.emplace_back(o.extent->object_no, o.ranges);
      settled.push_back(std::move(o));
    }
  }

  for (const Object& o : settled)
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
        const std::uint64_t from = std::max(f.image_offset, offset);
        const std::uint64_t to =
            std::min(f.image_offset + f.length, offset + length);
        if (from >= to) continue;
        f.object_offset += from - f.image_offset;
        f.image_offset = from;
        f.length = to - from;
        data.push_back(f);
      }
    }

  bool missing = false;
  for (const auto& [at, n] : image_ranges(gone)) {
    const std::uint64_t backed_length =
        at < view.overlap ? std::min(n, view.overlap - at) : 0;
    missing |= backed_length != n && !sure;
    if (backed_length != 0)
      missing |= of_parent(traits_.name, [&] {
        return view.parent->find_backing_data(backed_length, at, data);
      });
  }
  std::sort(data.begin(), data.end(), [](const Fragment& a, const Fragment& b) {
    return a.image_offset < b.image_offset;
  });
  return missing;
}

bool Image::find_backing_data(std::uint64_t length, std::uint64_t offset,
                              std::vector<Fragment>& data) {
  const std::size_t before = data.size();
  Findings findings(*this);
  const bool missing = confirmed([&](const View& view) {
    findings.clear();
    data.resize(before);
    const std::uint64_t end =
        std::max(offset, std::min(offset + length, view.size));
    check_request(view, end - offset, std::min(offset, view.size));
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
      const std::uint64_t stop =
          chunk_end(at, end, chunk_units(traits_.layout));
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

/// In bytes, of this image's objects and those of the parents that back it.
std::uint64_t Image::least_object_size(const View& view) {
  const std::uint64_t own = traits_.layout.object_size();
  if (!view.parent) return own;
  const auto parents = view.parent->view_.read();
  return std::min(own, view.parent->least_object_size(*parents));
}

std::vector<Extent> Image::extents(std::uint64_t length, std::uint64_t offset,
                                   bool one) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const auto spent = [&](std::chrono::milliseconds time) {
    return Clock::now() - start >= time;
  };
  std::vector<Extent> list;
  const auto append = [&list](std::uint64_t at, std::uint64_t n, bool data) {
    if (n == 0) return;
    if (!list.empty() && list.back().data == data)
      list.back().length += n;
    else
      list.push_back({at, n, data});
  };
  if (options_.extents == ExtentsMode::off) {
    check_request(*view_.read(), length, offset);
    append(offset, length, true);
    return list;
  }

  Findings findings(*this);
  (void)confirmed([&](const View& view) {
    check_request(view, length, offset);
    list.clear();
    findings.clear();
    // Whole sectors, data rounded outwards: see sectors.hpp.
    const std::uint64_t begin = sector_begin(offset);
    const std::uint64_t end = sector_end(offset + length, view.size);
    bool missing = false;
    // Small steps first: a client that wants one extent often has it in the
    // first object.  And where the parents have smaller objects, of as many.
    const std::uint64_t smaller = std::max<std::uint64_t>(
        1, unit_size(traits_.layout) / least_object_size(view));
    const std::uint64_t most_units = std::max<std::uint64_t>(
        1, chunk_units(traits_.layout) / smaller);
    std::uint64_t units = one ? 1 : std::min<std::uint64_t>(256, most_units);
    Existing existing = existing_objects(
        view,
        one ? std::min(end - begin, unit_size(traits_.layout)) : end - begin,
        findings);
    bool asked = !one;
    std::vector<Fragment> data;
    const auto skip_absent = [&](std::uint64_t from, std::uint64_t to) {
      std::uint64_t next = end_of_absent(view, existing, from, to);
      // An object can begin within a sector.
      if (next != to) next = sector_begin(next);
      if (next != from) missing |= !existing.sure;
      append(from, next - from, false);
      return next;
    };
    for (std::uint64_t at = begin; at < end;) {
      at = skip_absent(at, end);
      if (at == end || (one && list.size() > 1)) break;
      const std::uint64_t stop = sector_end(chunk_end(at, end, units), end);
      data.clear();
      missing |= find_data(view, existing, stop - at, at, findings, data);
      for (const Fragment& f : data) {
        const std::uint64_t from =
            std::max(at, sector_begin(f.image_offset));
        const std::uint64_t to = sector_end(f.image_offset + f.length, stop);
        if (to <= from) continue;
        append(at, from - at, false);
        append(from, to - from, true);
        at = to;
      }
      append(at, stop - at, false);
      at = stop;
      if ((one && list.size() > 1) || spent(extents_time)) break;
      if (!asked && at != end) {
        existing = existing_objects(view, end - at, findings);
        asked = true;
      }
      // Longer steps, as long as they are quick.
      if (!spent(extents_time / 8)) units = std::min(units * 4, most_units);
    }
    // NBD lets the last extent go on behind the range.
    std::uint64_t until = offset + length;
    if (!one && !list.empty() && !list.back().data &&
        list.back().offset + list.back().length == end &&
        list.back().length < longest_extent && end < view.size) {
      const std::uint64_t next = skip_absent(
          end, std::min(view.size, list.back().offset + longest_extent));
      if (next != end) until = next;
    }
    cut(list, offset, until);
    return missing;
  });
  learn(findings);
  if (one && list.size() > 1) list.resize(1);
  return list;
}

}  // namespace nbdrados
