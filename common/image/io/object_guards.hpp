// SPDX-License-Identifier: BSD-3-Clause
//
// Keeps the removal of an object apart from writes to it.
//
// An object map must not say "nonexistent" of an object that exists.  A
// write looks at the map and then goes to the object; a removal goes to the
// object and then changes the map.  If a write came between a removal and
// its change of the map, the map would be wrong, so who writes shares the
// object and who removes has it alone.
//
// Objects share guards (by number, modulo `guards`), so two requests may
// wait for each other without need, but never wrongly.  One atomic addition
// each way where nobody removes.

#ifndef NBDRADOS_IMAGE_IO_OBJECT_GUARDS_HPP
#define NBDRADOS_IMAGE_IO_OBJECT_GUARDS_HPP

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace nbdrados {

/// All members are thread-safe.
class ObjectGuards {
 public:
  ObjectGuards() = default;
  ObjectGuards(const ObjectGuards&) = delete;
  ObjectGuards& operator=(const ObjectGuards&) = delete;

  /// Holds the guards of some objects while it lives; of none when made
  /// without.  One at a time per thread, or two threads could wait for each
  /// other.
  class Hold {
   public:
    Hold() = default;
    /// Blocks until the object may be used.
    Hold(ObjectGuards& owner, std::uint64_t object_no, bool alone)
        : owner_(&owner), alone_(alone), single_(index(object_no)) {
      owner_->enter(single_, alone_);
    }
    /// `object_no(i)` for i in [0, count).  Guards are taken in the order of
    /// their places, so no two requests wait for each other.
    template <class ObjectNo>
    Hold(ObjectGuards& owner, std::size_t count, ObjectNo&& object_no,
         bool alone)
        : owner_(count == 0 ? nullptr : &owner), alone_(alone) {
      many_.reserve(std::min(count, guards));
      for (std::size_t i = 0; i < count && i < guards; ++i)
        many_.push_back(index(object_no(i)));
      if (count > guards)
        for (std::size_t i = 0; i < guards; ++i) many_[i] = i;
      std::sort(many_.begin(), many_.end());
      many_.erase(std::unique(many_.begin(), many_.end()), many_.end());
      for (const std::size_t i : many_) owner_->enter(i, alone_);
    }
    ~Hold() {
      if (owner_ == nullptr) return;
      if (many_.empty()) {
        owner_->leave(single_, alone_);
      } else {
        for (const std::size_t i : many_) owner_->leave(i, alone_);
      }
    }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

   private:
    ObjectGuards* owner_ = nullptr;
    bool alone_ = false;
    std::size_t single_ = 0;
    std::vector<std::size_t> many_;
  };

 private:
  static constexpr std::size_t guards = 256;
  static constexpr std::uint32_t taken = std::uint32_t{1} << 31;

  static std::size_t index(std::uint64_t object_no) noexcept {
    return static_cast<std::size_t>(object_no % guards);
  }

  void enter(std::size_t i, bool alone) noexcept {
    std::atomic<std::uint32_t>& g = guards_[i].state;
    std::uint32_t now = g.load();
    for (;;) {
      if ((now & taken) != 0) {
        g.wait(now);
        now = g.load();
      } else if (g.compare_exchange_weak(now, alone ? now | taken : now + 1)) {
        break;
      }
    }
    if (!alone) return;
    // Newcomers wait now; those who share it leave.
    for (now = g.load(); now != taken; now = g.load()) g.wait(now);
  }
  void leave(std::size_t i, bool alone) noexcept {
    std::atomic<std::uint32_t>& g = guards_[i].state;
    if (alone) {
      g.store(0);
      g.notify_all();
    } else if ((g.fetch_sub(1) & taken) != 0) {
      g.notify_all();
    }
  }

  struct alignas(64) Guard {
    /// How many share it, and whether one has it, or waits to have it, alone.
    std::atomic<std::uint32_t> state{0};
  };
  std::array<Guard, guards> guards_;
};

}  // namespace nbdrados

#endif
