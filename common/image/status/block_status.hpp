// SPDX-License-Identifier: BSD-3-Clause
//
// Block status: what of an image is data.

#ifndef NBDRADOS_IMAGE_STATUS_BLOCK_STATUS_HPP
#define NBDRADOS_IMAGE_STATUS_BLOCK_STATUS_HPP

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <vector>

#include "image/core.hpp"
#include "image/state/view.hpp"
#include "layout/layout.hpp"

namespace nbdrados {

/// A part of an image: data, or a hole that reads as zeros.
struct Extent {
  std::uint64_t offset;
  std::uint64_t length;
  bool data;
  bool operator==(const Extent&) const = default;
};

/// Thread-safe.  Nearly no state of its own: what is found out is learnt by
/// KnownExtents.
class BlockStatus {
 public:
  /// `core` must outlive this.
  explicit BlockStatus(ImageCore& core) : core_(core) {}

  /// Image::extents.
  [[nodiscard]] std::vector<Extent> extents(std::uint64_t length,
                                            std::uint64_t offset, bool one);
  /// Backing::find_backing_data.
  [[nodiscard]] bool find_backing_data(std::uint64_t length,
                                       std::uint64_t offset,
                                       std::vector<Fragment>& data);
  /// Backing::least_object_size.
  [[nodiscard]] std::uint64_t least_object_size();
  /// Backing::knows_holes.
  [[nodiscard]] bool knows_holes();

  /// How long a call works, about.
  static constexpr std::chrono::milliseconds time_limit{100};

 private:
  struct Existing;
  struct Findings;
  class Finder;
  class Walk;

  [[nodiscard]] Existing existing_objects(const View& view,
                                          std::uint64_t length,
                                          Findings& findings);
  [[nodiscard]] std::uint64_t end_of_absent(const View& view,
                                            const Existing& existing,
                                            std::uint64_t offset,
                                            std::uint64_t end) const;
  [[nodiscard]] bool find_data(const View& view, const Existing& existing,
                               std::uint64_t length, std::uint64_t offset,
                               Findings& findings,
                               std::vector<Fragment>& data);
  void learn(Findings& findings);

  ImageCore& core_;
  /// No object had to be taken for data as a whole, so far.
  std::atomic<bool> knows_holes_{true};
};

}  // namespace nbdrados

#endif
