// SPDX-License-Identifier: BSD-3-Clause
//
// The order of a copy: the source, or a range of it, from its start to its end,
// cut into pieces.

#ifndef NBDRADOS_COPY_WALK_HPP
#define NBDRADOS_COPY_WALK_HPP

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "copy/endpoint.hpp"

namespace nbdrados::copy {

/// What one request of a copy is about.
struct Piece {
  std::uint64_t offset, length;  ///< bytes
  bool is_zero;                  ///< reads as zeros, so need not be read
  bool operator==(const Piece&) const = default;
};

struct WalkOptions {
  std::uint64_t begin = 0;       ///< of what is copied; bytes
  std::uint64_t end = 0;         ///< of what is copied; bytes
  std::uint64_t alignment = 1;   ///< of each piece; a power of two
  std::uint64_t most_data = 0;   ///< bytes of a piece to read; a power of two
  std::uint64_t most_zeros = std::uint64_t{1} << 30;  ///< of the others
  std::uint64_t least_zeros = 1;  ///< bytes; fewer are read like data
  bool use_extents = true;
  /// Bytes from the start whose extents the source tells; what is behind is
  /// data.
  std::uint64_t known_end = unknown_size;
};

/// While the pieces of an answer are used, the next answer is on its way.  So
/// memory does not follow the size of the source.  For one thread.
class Walk {
 public:
  /// `source` must outlive this.
  Walk(Endpoint& source, const WalkOptions& options);
  /// Waits for what is under way.
  ~Walk();
  Walk(const Walk&) = delete;
  Walk& operator=(const Walk&) = delete;

  /// The next piece, adjacent to the last one; none: that was the last.
  /// Throws Error about the source's block status, whose range is at().
  [[nodiscard]] std::optional<Piece> next();
  /// How far the walk has come; bytes.
  [[nodiscard]] std::uint64_t at() const noexcept { return at_; }

 private:
  void ask();
  void answered(int error, std::vector<Extent> found);
  void take_answer();
  [[nodiscard]] Extent look_ahead();
  [[nodiscard]] bool extend();
  [[nodiscard]] Piece cut(std::uint64_t end);

  Endpoint& source_;
  const WalkOptions options_;
  const std::uint64_t asked_end_;  // no extents are asked for behind it
  std::uint64_t at_;           // the next piece begins here
  std::uint64_t known_;        // up to here it is known what is what
  bool zeros_ = false;         // what [at_, known_) is
  std::uint64_t asked_;        // the answer under way begins here
  std::vector<Extent> extents_;  // behind known_
  std::size_t next_extent_ = 0;

  std::mutex mutex_;
  std::condition_variable answered_;
  // Guarded by mutex_.
  bool waiting_ = false;
  int error_ = 0;
  std::vector<Extent> answer_;
};

}  // namespace nbdrados::copy

#endif
