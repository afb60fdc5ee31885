// SPDX-License-Identifier: BSD-3-Clause
//
// Block status: what of an image is data.

#include <algorithm>
#include <cerrno>
#include <utility>

#include "image/image.hpp"
#include "image/image_internal.hpp"
#include "rados/error.hpp"

namespace nbdrados {

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

std::optional<ObjectStates> Image::read_map(const View& view,
                                            std::uint64_t length) {
  // For a few objects it is cheaper to ask them.
  constexpr std::uint64_t few = 8;
  if (view.map || !view.mappable || view.hold_writes ||
      length / unit_size(traits_.layout) < few)
    return std::nullopt;
  return format_->read_map();
}

bool Image::find_data(const View& view, const ObjectStates* states,
                      std::uint64_t length, std::uint64_t offset,
                      std::vector<Fragment>& data) {
  struct Object {
    const ObjectExtent* extent;
    std::uint64_t size = 0;
    int result = 0;
    std::vector<ObjectRange> ranges;
  };
  const Layout& layout = traits_.layout;
  const std::vector<ObjectExtent> extents = layout.cut(offset, length);
  /// What the parent, if any, has instead.
  std::vector<const ObjectExtent*> gone;

  const auto stat = [&](std::vector<Object>& objects) {
    std::vector<std::unique_ptr<Pending>> pending;
    pending.reserve(objects.size());
    for (Object& o : objects)
      pending.push_back(data_.stat(object_name(o.extent->object_no), &o.size,
                                   view.snap));
    for (std::size_t i = 0; i < objects.size(); ++i)
      objects[i].result = pending[i]->wait();
  };

  std::vector<Object> objects;
  objects.reserve(extents.size());
  for (const ObjectExtent& e : extents) {
    if (absent(view, e.object_no) ||
        (states != nullptr && e.object_no < states->size() &&
         (*states)[e.object_no] == ObjectState::nonexistent)) {
      gone.push_back(&e);
    } else {
      objects.emplace_back();
      objects.back().extent = &e;
    }
  }

  // Most objects of a sparse image do not exist.  Asking for their size is
  // asynchronous, mapping them is not; so ask first, unless there is only
  // one, or the object map has told which exist.
  if (objects.size() > 1 && states == nullptr && !view.map) {
    stat(objects);
    std::erase_if(objects, [&](const Object& o) {
      if (o.result < 0 && o.result != -ENOENT)
        object_error(-o.result, "cannot stat", o.extent->object_no);
      if (o.result == -ENOENT) gone.push_back(o.extent);
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
      gone.push_back(o.extent);
    } else if (o.result < 0) {
      object_error(-o.result, "cannot map", o.extent->object_no);
    }
  }
  if (!unmapped.empty()) {
    stat(unmapped);
    for (Object& o : unmapped) {
      if (o.result == -ENOENT) {
        gone.push_back(o.extent);
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

  bool missing = false;
  for (const auto& [at, n] : image_ranges(gone)) {
    const std::uint64_t backed_length =
        at < view.overlap ? std::min(n, view.overlap - at) : 0;
    missing |= backed_length != n;
    if (backed_length != 0)
      missing |= view.parent->find_backing_data(backed_length, at, data);
  }
  std::sort(data.begin(), data.end(), [](const Fragment& a, const Fragment& b) {
    return a.image_offset < b.image_offset;
  });
  return missing;
}

bool Image::find_backing_data(std::uint64_t length, std::uint64_t offset,
                              std::vector<Fragment>& data) {
  const std::size_t before = data.size();
  return confirmed([&](const View& view) {
    data.resize(before);
    const std::uint64_t end =
        std::max(offset, std::min(offset + length, view.size));
    check_request(view, end - offset, std::min(offset, view.size));
    bool missing = end != offset + length;
    const auto states = read_map(view, end - offset);
    std::vector<Fragment> found;
    for (std::uint64_t at = offset; at < end;) {
      const std::uint64_t stop =
          chunk_end(at, end, chunk_units(traits_.layout));
      found.clear();
      missing |= find_data(view, states ? &*states : nullptr, stop - at, at,
                           found);
      data.insert(data.end(), found.begin(), found.end());
      at = stop;
    }
    return missing;
  });
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

  (void)confirmed([&](const View& view) {
    check_request(view, length, offset);
    list.clear();
    const std::uint64_t end = offset + length;
    bool missing = false;
    // Small steps first: a client that wants one extent often has it in the
    // first object.
    std::uint64_t units = one ? 1 : 256;
    std::optional<ObjectStates> states;
    if (!one) states = read_map(view, length);
    std::vector<Fragment> data;
    for (std::uint64_t at = offset; at < end;) {
      const std::uint64_t stop = chunk_end(at, end, units);
      data.clear();
      missing |= find_data(view, states ? &*states : nullptr, stop - at, at,
                           data);
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
      if (!states) states = read_map(view, end - at);
      units = std::min(units * 4, chunk_units(traits_.layout));
    }
    return missing;
  });
  if (one && list.size() > 1) list.resize(1);
  return list;
}

}  // namespace nbdrados
