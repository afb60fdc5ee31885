// SPDX-License-Identifier: BSD-3-Clause

#include "image/io/write_merger.hpp"

#include <utility>

namespace nbdrados {

void WriteMerger::take_batch(Slot& slot, std::vector<Waiter*>& batch) {
  std::vector<Waiter*>& queue = slot.queue;
  std::stable_sort(queue.begin(), queue.end(),
                   [](const Waiter* a, const Waiter* b) {
                     return a->part.offset < b->part.offset;
                   });
  // What overlaps is for another operation: clients that write to one place
  // at the same time get one or the other, but not a mixture.
  std::size_t runs = 0;
  std::uint64_t end = 0;
  std::uint64_t bytes = 0;
  std::size_t kept = 0;
  for (Waiter* w : queue) {
    const bool overlaps = !batch.empty() && w->part.offset < end;
    const bool new_run = batch.empty() || w->part.offset != end;
    const bool too_much =
        !batch.empty() && bytes + w->part.length > most_bytes;
    if (overlaps || too_much || (new_run && runs == most_runs)) {
      queue[kept++] = w;
      continue;
    }
    if (new_run) ++runs;
    end = w->part.end();
    bytes += w->part.length;
    batch.push_back(w);
  }
  queue.resize(kept);
}

void WriteMerger::hand_over(Slot& slot, const std::vector<Waiter*>& batch,
                            const Waiter* self,
                            const std::exception_ptr& error) noexcept {
  const std::scoped_lock lock(slot.mutex);
  for (Waiter* w : batch) {
    if (w == self) continue;
    w->error = error;
    w->state = Waiter::State::done;
    // With the mutex held: it is gone as soon as it is let go.
    w->changed.notify_one();
  }
  if (slot.queue.empty()) {
    --slot.in_flight;
    return;
  }
  std::vector<Waiter*> next;
  take_batch(slot, next);
  Waiter* const leader = next.front();
  leader->batch = std::move(next);
  leader->state = Waiter::State::leads;
  leader->changed.notify_one();
}

}  // namespace nbdrados
