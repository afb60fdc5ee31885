// SPDX-License-Identifier: BSD-3-Clause

#ifndef NBDRADOS_IMAGE_OPTIONS_HPP
#define NBDRADOS_IMAGE_OPTIONS_HPP

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "image/ownership/lock_mode.hpp"
#include "image/state/view.hpp"
#include "image/status/extents_mode.hpp"
#include "image/worker_pool.hpp"

namespace nbdrados {

/// How one export uses an image.
struct ImageOptions {
  bool writable = false;
  LockMode lock = LockMode::exclusive;
  ExtentsMode extents = ExtentsMode::exact;
  /// At open, wait until a dead owner of the lock counts as dead, instead of
  /// failing at once.
  bool break_lock = false;
  /// Where the lock is handed over: how long another client may have it
  /// before it is asked for it, until that one is known to write.
  std::chrono::milliseconds lock_wait = default_lock_wait;
  /// Of a parent, which is only read, and which its child's link keeps.
  std::shared_ptr<const Lineage> lineage = {};
  /// Trims are rounded inwards to multiples of it; 0: 64 KiB, or the object
  /// size where that is smaller.
  std::uint64_t discard_granularity = 0;
  /// Of a snapshot: names it, in this process and for ever, and what its block
  /// status says.
  std::string identity = {};
  /// For blocking calls; shared with other images.
  std::shared_ptr<WorkerPool> workers = {};
  /// Receives a line about an event that no request reports (a broken watch
  /// for instance), and whether it is trouble or only good to know.  Called
  /// by any thread.
  std::function<void(const std::string& line, bool trouble)> log = {};
};

}  // namespace nbdrados

#endif
