// SPDX-License-Identifier: BSD-3-Clause
//
// The pieces of a copy, and of them those units that an offload copies.
//
//     object      0       1       2       3       4       5
//     source      DDDDDDDDDD--D---DDDDDDDD----------------DDDD
//     from Walk   [      ][]  []   [     ][zeros         ][  ]
//     from this   [whole ][][][][][whole ][zeros         ][  ]

#ifndef NBDRADOS_COPY_UNITS_HPP
#define NBDRADOS_COPY_UNITS_HPP

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "copy/offload.hpp"
#include "copy/walk.hpp"

namespace nbdrados::copy {

/// For one thread.
class Units {
 public:
  struct Task {
    Piece piece;
    /// Not empty: `piece` is a unit that the offload copies; or else they are
    /// to be copied each by itself.
    std::vector<Piece> parts = {};
  };

  /// Both must outlive this.  Without an offload the pieces are the walk's.
  Units(Walk& walk, Offload* offload) : walk_(walk), offload_(offload) {}

  /// The next one, adjacent to the last one; none: that was the last.  Throws
  /// as Walk::next.
  [[nodiscard]] std::optional<Task> next();

 private:
  [[nodiscard]] std::optional<Piece> take(std::uint64_t most_end);
  [[nodiscard]] std::optional<Task> gather();

  Walk& walk_;
  Offload* const offload_;
  std::optional<Piece> rest_;     // of what the walk has given
  std::vector<Piece> parts_;      // of a unit, that are copied by themselves
  std::size_t next_part_ = 0;
};

}  // namespace nbdrados::copy

#endif
