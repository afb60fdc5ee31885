// SPDX-License-Identifier: BSD-3-Clause
//
// Whose turn it is to have an image's exclusive lock, where it is handed over
// (lock=auto).
//
// librbd gives the lock away whenever it is asked, also in the middle of
// maintenance (ceph: src/librbd/exclusive_lock/PreReleaseRequest.cc, which
// cancels it).  Most operations then begin again (Operations.cc,
// C_InvokeAsyncRequest, ERESTART), an object map's rebuild or check from its
// first object; sparsify fails with EROFS (SparsifyRequest.cc, start_op), and
// a rollback stays half done.  Not all of them ask the owner first to do the
// work, so nothing tells what a client has the lock for.  But a client that
// maintains gives it back as soon as it has done, and one that writes keeps it
// until it is asked.  So a client may have the lock for the time of the
// patience, until it has once been found to keep it; from then on it is a
// writer, which shares with ours by short turns.
//
// Thus a write here waits at most the patience, and what the other client needs
// to give the lock away, for each client that comes.  Only a client that had
// the lock before the image was opened here is asked at once: that it took it
// has not been seen, and it may have it for long.
//
// Not thread-safe.

#ifndef NBDRADOS_IMAGE_OWNERSHIP_LOCK_TURNS_HPP
#define NBDRADOS_IMAGE_OWNERSHIP_LOCK_TURNS_HPP

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>

namespace nbdrados {

class LockTurns {
 public:
  using Clock = std::chrono::steady_clock;
  /// Number of a RADOS client; nothing: too old a client to say so.
  using Client = std::optional<std::uint64_t>;

  /// Between tries to take the lock from whoever does not say that it is free.
  static constexpr std::chrono::seconds interval{1};
  /// A writer's turn: enough for a snapshot or a small resize.
  static constexpr std::chrono::milliseconds writers_turn{100};

  explicit LockTurns(Clock::duration patience)
      : patience_(std::max<Clock::duration>(patience, writers_turn)) {}

  /// When this client may try to take the lock.
  [[nodiscard]] Clock::time_point next_try() const noexcept {
    return next_try_;
  }

  /// This client tries.
  void trying(Clock::time_point now) noexcept { next_try_ = now + interval; }

  /// This client begins to give the lock away, to who asked for it; who has
  /// taken it says so.
  void handing_over(Client to, Clock::time_point now) noexcept {
    begin(to, now);
    next_try_ = now + interval;
  }
  void acquired_by(Client owner, Clock::time_point now) noexcept {
    begin(owner, now);
    next_try_ = std::min(turn_end_, now + interval);
  }
  /// Another client has given it back, or this one has got it.
  void free() noexcept {
    was_free_ = true;
    owner_.reset();
    turn_end_ = {};
    next_try_ = {};
  }

  /// Whether the owner is to be asked for the lock now.
  [[nodiscard]] bool ask(std::uint64_t owner, Clock::time_point now) {
    // It has taken the lock just now, and has not said so yet.
    if (was_free_ && owner_ != owner) begin(owner, now);
    if (now < turn_end_) {
      next_try_ = std::min(turn_end_, now + interval);
      return false;
    }
    if (!is_writer(owner)) writers_.push_back(owner);
    // Who is forgotten has a long turn again.
    if (writers_.size() > writers_max) writers_.pop_front();
    return true;
  }

 private:
  static constexpr std::size_t writers_max = 64;

  [[nodiscard]] bool is_writer(std::uint64_t client) const {
    return std::find(writers_.begin(), writers_.end(), client) !=
           writers_.end();
  }
  void begin(Client owner, Clock::time_point now) noexcept {
    const bool writer = !owner || is_writer(*owner);
    turn_end_ = now + (writer ? writers_turn : patience_);
    owner_ = owner;
  }

  const Clock::duration patience_;
  std::deque<std::uint64_t> writers_;
  Clock::time_point next_try_{};
  Client owner_;  ///< whose turn it is, as far as is known
  Clock::time_point turn_end_{};
  bool was_free_ = false;  ///< since the image was opened
};

}  // namespace nbdrados

#endif
