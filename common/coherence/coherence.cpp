// SPDX-License-Identifier: BSD-3-Clause

#include "coherence/coherence.hpp"

#include <utility>

namespace nbdrados {

namespace {

thread_local std::shared_ptr<const Promise> offered;

}  // namespace

std::shared_ptr<Promise> make_promise() {
  return std::make_shared<Promise>();
}

void offer_promise(std::shared_ptr<const Promise> promise) noexcept {
  offered = std::move(promise);
}

std::shared_ptr<const Promise> take_promise() noexcept {
  return std::exchange(offered, nullptr);
}

}  // namespace nbdrados
