// SPDX-License-Identifier: BSD-3-Clause

#ifndef NBDRADOS_COPY_SPAN_OF_ANSWERS_HPP
#define NBDRADOS_COPY_SPAN_OF_ANSWERS_HPP

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace nbdrados::copy {

/// For how many bytes to ask for block status at a time: many of a disk that is
/// nearly empty, and few of one that is in pieces, so that the memory for an
/// answer is bounded: an extent is at least 512 bytes.  Thread-safe.
class SpanOfAnswers {
 public:
  explicit SpanOfAnswers(std::uint64_t most) : most_(most) {}
  [[nodiscard]] std::uint64_t cut(std::uint64_t length) const noexcept {
    return std::min<std::uint64_t>(length, span_);
  }
  void answered(std::size_t extents) noexcept {
    span_ = extents > many ? least : std::min<std::uint64_t>(span_ * 2, most_);
  }

 private:
  static constexpr std::uint64_t least = 128 << 20;
  static constexpr std::size_t many = 1000;
  const std::uint64_t most_;
  std::atomic<std::uint64_t> span_{least};
};

}  // namespace nbdrados::copy

#endif
