// SPDX-License-Identifier: BSD-3-Clause
//
// Learns from object maps which objects do not exist.

#ifndef NBDRADOS_IMAGE_STATUS_MAP_LEARNER_HPP
#define NBDRADOS_IMAGE_STATUS_MAP_LEARNER_HPP

#include <atomic>
#include <cstdint>

#include "image/core.hpp"
#include "image/status/known_extents.hpp"
#include "rbd/object_map.hpp"

namespace nbdrados {

/// What the map does not know, because it lies behind its end, may exist.
void learn_map(KnownExtents::Learning& learning, const ObjectStates& map);

/// Thread-safe.
class MapLearner {
 public:
  /// `core` must outlive this.
  explicit MapLearner(ImageCore& core) : core_(core) {}

  /// Of a snapshot that has an object map: reads and learns it, once, so that
  /// objects that do not exist need not be read.  Of anything else: nothing.
  void learn() noexcept;

 private:
  ImageCore& core_;
  /// What is known was forgotten so often when somebody last took it upon
  /// himself.
  std::atomic<std::uint64_t> learnt_{~std::uint64_t{0}};
};

}  // namespace nbdrados

#endif
