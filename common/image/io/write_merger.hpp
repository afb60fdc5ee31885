// SPDX-License-Identifier: BSD-3-Clause
//
// Neighbouring writes to one object become one operation.
//
// A client that copies a disk has many writes in flight that continue each
// other.  For an OSD, one operation of 1 MiB costs far less than four of
// 256 KiB (librbd merges for that reason: src/librbd/io/
// SimpleSchedulerObjectDispatch.cc).  So a write that is near one to the same
// object that is in flight waits for it, together with others that come
// meanwhile, and then one of the waiting threads writes for them all.  A
// write that is near none does not wait, and a client with one request at a
// time never waits.
//
// Nothing is acknowledged before it is written, so this is no cache.

#ifndef NBDRADOS_IMAGE_IO_WRITE_MERGER_HPP
#define NBDRADOS_IMAGE_IO_WRITE_MERGER_HPP

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <span>
#include <vector>

namespace nbdrados {

/// Thread-safe.  Objects share slots by number, each with a mutex that is held
/// for moments only, never during I/O.
class WriteMerger {
 public:
  /// A part of an object that is to be written.
  struct Part {
    std::uint64_t offset;  // in the object
    const char* data;
    std::size_t length;
    [[nodiscard]] std::uint64_t end() const noexcept {
      return offset + length;
    }
  };
  /// Near writes are sent at once as long as fewer than so many are in flight.
  /// With one, the OSD has nothing to do between two of them (256 KiB at depth
  /// 8: 9 % slower).
  static constexpr unsigned most_in_flight = 2;
  /// At most so many runs of adjacent parts are written together, and so many
  /// bytes where it is more than one part.  (OSDs refuse writes of more than
  /// osd_max_write_size, 90 MiB.)
  static constexpr std::size_t most_runs = 6;
  static constexpr std::uint64_t most_bytes = 16 << 20;

  WriteMerger() = default;
  WriteMerger(const WriteMerger&) = delete;
  WriteMerger& operator=(const WriteMerger&) = delete;

  /// Calls write(parts) with this part and perhaps those of other threads,
  /// which wait here meanwhile; or waits until another thread has done so.
  /// `parts` ascend and do not overlap.  Only parts with the same `context`,
  /// an address that nobody else has meanwhile, come together.  Throws what
  /// that call of `write` threw.
  template <class Write>
  void write(const void* context, std::uint64_t object_no, const Part& part,
             Write&& write);

 private:
  struct Waiter {
    const Part& part;
    enum class State : std::uint8_t { queued, leads, done } state =
        State::queued;
    std::exception_ptr error = {};
    std::condition_variable changed = {};
    /// For the one that leads: all that it writes, itself among them.
    std::vector<Waiter*> batch = {};
  };
  struct alignas(64) Slot {
    std::mutex mutex;
    // Guarded by mutex.
    unsigned in_flight = 0;
    const void* context = nullptr;
    std::uint64_t object_no = 0;
    /// What is in flight or queued lies in between.
    std::uint64_t start = 0;
    std::uint64_t end = 0;
    std::vector<Waiter*> queue;
  };

  /// Whether a part is so near that it may well be adjacent to what else
  /// comes: within as many bytes as a client with eight requests in flight
  /// has.
  [[nodiscard]] static bool near(const Slot& slot, const Part& part) noexcept {
    const std::uint64_t reach =
        std::max<std::uint64_t>(std::uint64_t{part.length} * 8, 64 << 10);
    return part.offset <= slot.end + reach && part.end() + reach >= slot.start;
  }
  static void widen(Slot& slot, const Part& part) noexcept {
    slot.start = std::min(slot.start, part.offset);
    slot.end = std::max(slot.end, part.end());
  }
  /// Moves to `batch` what of the queue can be written together.
  static void take_batch(Slot& slot, std::vector<Waiter*>& batch);
  /// What the thread that leads has to do when it has written.  Others wait
  /// for it, so it must not fail: without memory the process ends.
  static void hand_over(Slot& slot, const std::vector<Waiter*>& batch,
                        const Waiter* self,
                        const std::exception_ptr& error) noexcept;

  std::array<Slot, 64> slots_;
};

template <class Write>
void WriteMerger::write(const void* context, std::uint64_t object_no,
                        const Part& part, Write&& write) {
  Slot& slot = slots_[object_no % slots_.size()];
  Waiter self{.part = part};
  {
    std::unique_lock lock(slot.mutex);
    const bool here = slot.in_flight != 0 && slot.context == context &&
                      slot.object_no == object_no && near(slot, part);
    if (slot.in_flight == 0) {
      slot.in_flight = 1;
      slot.context = context;
      slot.object_no = object_no;
      slot.start = part.offset;
      slot.end = part.end();
    } else if (here && slot.in_flight < most_in_flight) {
      ++slot.in_flight;
      widen(slot, part);
    } else if (here) {
      widen(slot, part);
      slot.queue.push_back(&self);
      self.changed.wait(
          lock, [&] { return self.state != Waiter::State::queued; });
      if (self.state == Waiter::State::done) {
        lock.unlock();
        if (self.error) std::rethrow_exception(self.error);
        return;
      }
    } else {
      lock.unlock();
      write(std::span<const Part>(&part, 1));
      return;
    }
  }

  std::exception_ptr error;
  try {
    if (self.batch.size() <= 1) {
      write(std::span<const Part>(&part, 1));
    } else {
      std::vector<Part> parts;
      parts.reserve(self.batch.size());
      for (const Waiter* w : self.batch) parts.push_back(w->part);
      write(std::span<const Part>(parts));
    }
  } catch (...) {
    error = std::current_exception();
  }
  hand_over(slot, self.batch, &self, error);
  if (error) std::rethrow_exception(error);
}

}  // namespace nbdrados

#endif
