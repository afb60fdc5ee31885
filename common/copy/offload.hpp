// SPDX-License-Identifier: BSD-3-Clause
//
// What copies a part of the source to the destination where both are stored, so
// that the data does not come here.

#ifndef NBDRADOS_COPY_OFFLOAD_HPP
#define NBDRADOS_COPY_OFFLOAD_HPP

#include <cstdint>
#include <span>
#include <string>

#include "copy/endpoint.hpp"
#include "copy/walk.hpp"

namespace nbdrados::copy {

/// Of one source and one destination.  All of it is thread-safe.
class Offload {
 public:
  virtual ~Offload() = default;
  /// Bytes.  What is copied begins at a multiple of it, and is as long, or ends
  /// where the source ends.
  [[nodiscard]] virtual std::uint64_t unit() const noexcept = 0;
  /// Whether it is better to copy a unit so than to read and to write it.
  /// `parts` are adjacent, and all of it.
  [[nodiscard]] virtual bool suits(std::span<const Piece> parts) = 0;
  /// Makes a unit of the destination what it is in the source, durably.
  /// Whatever the error is, reading and writing may do it.
  virtual void copy(std::uint64_t offset, std::uint64_t length, Done done) = 0;
  /// What an errno of copy() says, in a few words.
  [[nodiscard]] virtual std::string explain(int error) const = 0;
};

}  // namespace nbdrados::copy

#endif
