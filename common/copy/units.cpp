// SPDX-License-Identifier: BSD-3-Clause

#include "copy/units.hpp"

#include <algorithm>
#include <utility>

namespace nbdrados::copy {

/// Of the walk's next piece, what is before `most_end`; none: nothing.
std::optional<Piece> Units::take(std::uint64_t most_end) {
  if (!rest_) rest_ = walk_.next();
  if (!rest_ || rest_->offset >= most_end) return std::nullopt;
  Piece piece = *rest_;
  piece.length = std::min(piece.length, most_end - piece.offset);
  if (piece.length == rest_->length) {
    rest_.reset();
  } else {
    rest_->offset += piece.length;
    rest_->length -= piece.length;
  }
  return piece;
}

/// What begins where a unit does.
std::optional<Units::Task> Units::gather() {
  const std::uint64_t unit = offload_->unit();
  if (!rest_) rest_ = walk_.next();
  if (!rest_) return std::nullopt;
  const std::uint64_t begin = rest_->offset;
  // Whole units of zeros need no offload.
  if (rest_->is_zero && rest_->length >= unit)
    return Task{*take(begin + rest_->length / unit * unit)};
  parts_.clear();
  next_part_ = 0;
  bool has_data = false;
  while (const auto piece = take(begin + unit)) {
    has_data |= !piece->is_zero;
    parts_.push_back(*piece);
  }
  const std::uint64_t end = parts_.back().offset + parts_.back().length;
  if (has_data && offload_->suits(parts_))
    return Task{{begin, end - begin, false}, std::exchange(parts_, {})};
  return Task{parts_[next_part_++]};
}

std::optional<Units::Task> Units::next() {
  if (next_part_ < parts_.size()) return Task{parts_[next_part_++]};
  if (offload_ != nullptr) return gather();
  const auto piece = walk_.next();
  if (!piece) return std::nullopt;
  return Task{*piece};
}

}  // namespace nbdrados::copy
