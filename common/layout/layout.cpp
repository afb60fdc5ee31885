// SPDX-License-Identifier: BSD-3-Clause

#include "layout/layout.hpp"

#include <algorithm>
#include <cerrno>
#include <string>

#include "layout/ranges.hpp"
#include "rados/error.hpp"

namespace nbdrados {

namespace {

constexpr std::uint64_t max_object_size = std::uint64_t{1} << 40;
constexpr std::uint64_t max_stripe_count = 0xffffffff;
constexpr std::uint64_t image_limit = std::uint64_t{1} << 63;

[[noreturn]] void refuse(const std::string& what) {
  throw Error(EINVAL, what);
}

}  // namespace

Layout::Layout(std::uint64_t object_size, std::uint64_t stripe_unit,
               std::uint64_t stripe_count)
    : os_(object_size),
      su_(stripe_unit),
      sc_(stripe_count),
      linear_(stripe_count == 1 || stripe_unit == object_size) {
  if (os_ < 1 || os_ > max_object_size)
    refuse("object size " + std::to_string(os_) + " is not in [1, " +
           std::to_string(max_object_size) + "]");
  if (su_ < 1 || su_ > os_)
    refuse("stripe unit " + std::to_string(su_) +
           " is not in [1, object size " + std::to_string(os_) + "]");
  if (os_ % su_ != 0)
    refuse("stripe unit " + std::to_string(su_) +
           " does not divide the object size " + std::to_string(os_));
  if (sc_ < 1 || sc_ > max_stripe_count)
    refuse("stripe count " + std::to_string(sc_) + " is not in [1, " +
           std::to_string(max_stripe_count) + "]");
  if (sc_ > (image_limit - 1) / os_)
    refuse("object size " + std::to_string(os_) + " times stripe count " +
           std::to_string(sc_) + " is not below 2^63");
}

Fragment Layout::locate(std::uint64_t offset,
                        std::uint64_t length) const noexcept {
  if (linear_) {
    const std::uint64_t object_offset = offset % os_;
    return {.object_no = offset / os_,
            .object_offset = object_offset,
            .image_offset = offset,
            .length = std::min(length, os_ - object_offset)};
  }
  const std::uint64_t set = offset / object_set_size();
  const std::uint64_t in_set = offset % object_set_size();
  const std::uint64_t unit = in_set / su_;
  const std::uint64_t in_unit = in_set % su_;
  return {.object_no = set * sc_ + unit % sc_,
          .object_offset = unit / sc_ * su_ + in_unit,
          .image_offset = offset,
          .length = std::min(length, su_ - in_unit)};
}

std::vector<ObjectExtent> Layout::cut(std::uint64_t offset,
                                      std::uint64_t length) const {
  std::vector<ObjectExtent> extents;
  if (length == 0) return extents;
  if (offset > image_limit || length > image_limit - offset)
    refuse("a range ends beyond 2^63");
  if (linear_)
    cut_linear(offset, length, extents);
  else
    cut_striped(offset, length, extents);
  return extents;
}

void Layout::cut_linear(std::uint64_t offset, std::uint64_t length,
                        std::vector<ObjectExtent>& extents) const {
  const std::uint64_t end = offset + length;
  extents.reserve((end - 1) / os_ - offset / os_ + 1);
  while (offset < end) {
    const Fragment part = locate(offset, end - offset);
    extents.push_back({.object_no = part.object_no,
                       .offset = part.object_offset,
                       .length = part.length,
                       .parts = {part}});
    offset += part.length;
  }
}

// Goes by object set and then by position in the set, so that objects come in
// ascending order and nothing must be sorted or looked up.  Every part that
// is visited goes into the result.
void Layout::cut_striped(std::uint64_t offset, std::uint64_t length,
                         std::vector<ObjectExtent>& extents) const {
  const std::uint64_t set_size = object_set_size();
  const std::uint64_t end = offset + length;
  for (std::uint64_t set = offset / set_size; set * set_size < end; ++set) {
    const std::uint64_t set_start = set * set_size;
    // The range inside of this set, and its first and last unit.
    const std::uint64_t first = offset > set_start ? offset - set_start : 0;
    const std::uint64_t last = std::min(end - set_start, set_size) - 1;
    const std::uint64_t first_unit = first / su_;
    const std::uint64_t last_unit = last / su_;
    const std::uint64_t first_position = first_unit % sc_;
    const std::uint64_t first_stripe = first_unit / sc_;
    // The units of the range go round the positions from first_position:
    // `ahead` of them in the first stripe, the others, `wrapped` of which
    // are in different positions, from position 0 of the next stripe.
    const std::uint64_t count = std::min(last_unit - first_unit + 1, sc_);
    const std::uint64_t ahead = std::min(count, sc_ - first_position);
    const std::uint64_t wrapped = count - ahead;

    const auto add = [&](std::uint64_t position, std::uint64_t stripe) {
      ObjectExtent extent;
      extent.object_no = set * sc_ + position;
      std::uint64_t unit = stripe * sc_ + position;
      extent.parts.reserve((last_unit - unit) / sc_ + 1);
      for (; unit <= last_unit; unit += sc_, ++stripe) {
        // Only the first unit starts, and only the last unit ends, inside.
        const std::uint64_t from = std::max(unit * su_, first);
        const std::uint64_t to = std::min(unit * su_ + su_ - 1, last);
        extent.parts.push_back({.object_no = extent.object_no,
                                .object_offset =
                                    stripe * su_ + (from - unit * su_),
                                .image_offset = set_start + from,
                                .length = to - from + 1});
        extent.length += to - from + 1;
      }
      extent.offset = extent.parts.front().object_offset;
      extents.push_back(std::move(extent));
    };

    extents.reserve(extents.size() + count);
    for (std::uint64_t i = 0; i < wrapped; ++i) add(i, first_stripe + 1);
    for (std::uint64_t i = 0; i < ahead; ++i)
      add(first_position + i, first_stripe);
  }
}

std::vector<Fragment> Layout::image_parts(std::uint64_t object_no,
                                          std::uint64_t offset,
                                          std::uint64_t length) const {
  if (offset > os_ || length > os_ - offset)
    refuse("a range ends beyond the object size " + std::to_string(os_));
  std::vector<Fragment> parts;
  // The first image byte of the object's set.  The number may be too high for
  // any image.
  const std::uint64_t set = object_no / sc_;
  if (set > (image_limit - 1) / object_set_size()) return parts;
  const std::uint64_t set_start = set * object_set_size();
  const std::uint64_t position = object_no % sc_;

  // With a linear layout the object is one unit.
  const std::uint64_t unit_size = linear_ ? os_ : su_;
  if (length > 0)
    parts.reserve((offset + length - 1) / unit_size - offset / unit_size + 1);
  while (length > 0) {
    const std::uint64_t stripe = offset / unit_size;
    const std::uint64_t in_unit = offset % unit_size;
    // Below 2^64: set_start and the size of a set are below 2^63.
    const std::uint64_t image_offset =
        set_start + (stripe * sc_ + position) * unit_size + in_unit;
    if (image_offset >= image_limit) break;
    const std::uint64_t n = std::min(length, unit_size - in_unit);
    parts.push_back({.object_no = object_no,
                     .object_offset = offset,
                     .image_offset = image_offset,
                     .length = std::min(n, image_limit - image_offset)});
    offset += n;
    length -= n;
  }
  return parts;
}

std::uint64_t Layout::object_count(std::uint64_t image_size) const noexcept {
  const std::uint64_t sets = image_size / object_set_size();
  const std::uint64_t rest = image_size % object_set_size();
  const std::uint64_t units = rest / su_ + (rest % su_ != 0 ? 1 : 0);
  // With more than one stripe in the last set, all of its objects are used.
  return sets * sc_ + std::min(units, sc_);
}

std::uint64_t Layout::object_used(std::uint64_t object_no,
                                  std::uint64_t image_size) const noexcept {
  const std::uint64_t set = object_no / sc_;
  const std::uint64_t full_sets = image_size / object_set_size();
  if (set < full_sets) return os_;
  if (set > full_sets) return 0;
  const std::uint64_t rest = image_size % object_set_size();
  const std::uint64_t stripe_size = su_ * sc_;
  const std::uint64_t before = object_no % sc_ * su_;
  const std::uint64_t in_stripe = rest % stripe_size;
  const std::uint64_t partial =
      in_stripe > before ? std::min(in_stripe - before, su_) : 0;
  return rest / stripe_size * su_ + partial;
}

std::vector<std::pair<std::uint64_t, std::uint64_t>> image_ranges(
    std::span<const ObjectExtent* const> extents) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> parts;
  for (const ObjectExtent* e : extents)
    for (const Fragment& f : e->parts)
      parts.emplace_back(f.image_offset, f.image_offset + f.length);
  using Part = decltype(parts)::value_type;
  join(parts, &Part::first, &Part::second);
  for (auto& [at, end] : parts) end -= at;
  return parts;
}

}  // namespace nbdrados
