// SPDX-License-Identifier: BSD-3-Clause

#include "image/status/map_learner.hpp"

#include <exception>

namespace nbdrados {

void learn_map(KnownExtents::Learning& learning, const ObjectStates& map) {
  learning.learn_existing(
      [&](std::uint64_t n) {
        return n >= map.size() || map[n] != ObjectState::nonexistent;
      },
      [&](std::uint64_t n) {
        return n < map.size() ? map.end_of_run(n) : ~std::uint64_t{0};
      });
}

void MapLearner::learn() noexcept {
  {
    const auto view = core_.state.read();
    const std::uint64_t epoch = core_.known.epoch();
    if (view->snap == snap_head || !view->known || !view->mappable ||
        core_.known.knows_all_absent() || learnt_.exchange(epoch) == epoch)
      return;
  }
  try {
    KnownExtents::Learning learning(core_.known);
    if (const auto map = core_.format->read_map()) learn_map(learning, *map);
  } catch (const std::exception&) {
    // It was only to save work.
  }
}

}  // namespace nbdrados
