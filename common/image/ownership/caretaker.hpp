// SPDX-License-Identifier: BSD-3-Clause

#ifndef NBDRADOS_IMAGE_OWNERSHIP_CARETAKER_HPP
#define NBDRADOS_IMAGE_OWNERSHIP_CARETAKER_HPP

namespace nbdrados {

/// What a writer says to the one who looks after the lock and the watch.  No
/// member blocks; the answer comes through ImageState.  Thread-safe.
class Caretaker {
 public:
  virtual ~Caretaker() = default;
  /// A writer waits for the lock; the gate or a View answers it.
  virtual void want_lock() = 0;
  /// Something speaks against that the lock is held: have a look.
  virtual void doubt_lock() = 0;
  /// A writer cannot be sure of the watch: have a look.
  /// ImageState::guard_until answers it, or a View.
  virtual void doubt_watch() = 0;
};

}  // namespace nbdrados

#endif
