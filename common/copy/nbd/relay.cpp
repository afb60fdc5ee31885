// SPDX-License-Identifier: BSD-3-Clause

#include "copy/nbd/relay.hpp"

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <utility>

#include "copy/nbd/relay_pair.hpp"
#include "copy/nbd/uring_nbd_endpoint.hpp"

namespace nbdrados::copy::nbd {

Relay::Relay(std::vector<Peer> sources, std::vector<Peer> destinations,
             const Options& options)
    : source_(sources.front().traits()),
      destination_(destinations.front().traits()) {
  const std::size_t n = std::min(sources.size(), destinations.size());
  for (std::size_t i = 0; i < n; ++i)
    pairs_.push_back(std::make_unique<RelayPair>(
        std::move(sources[i]), std::move(destinations[i]), options));
}

Relay::~Relay() = default;

RelayPair& Relay::next() {
  return *pairs_[next_.fetch_add(1, std::memory_order_relaxed) % pairs_.size()];
}

std::string Relay::failure() const {
  for (const auto& pair : pairs_)
    if (std::string why = pair->failure(); !why.empty()) return why;
  return {};
}

void Relay::copy(std::uint64_t offset, std::uint32_t length, RelayDone done) {
  assert(length <= source_.maximum && length <= destination_.maximum);
  next().start({.kind = RelayJob::Kind::copy,
                .offset = offset,
                .length = length,
                .done = std::move(done)});
}

void Relay::zero(std::uint64_t offset, std::uint64_t length, bool may_trim,
                 RelayDone done) {
  if (!destination_.can_zero) return done(ENOTSUP, Side::destination);
  struct All {
    std::atomic<std::size_t> left;
    std::atomic<int> error{0};
    RelayDone done;
  };
  const std::uint64_t most = without_payload(length, destination_.minimum);
  const auto all = std::make_shared<All>((length + most - 1) / most, 0,
                                         std::move(done));
  for (std::uint64_t n = 0; length != 0; offset += n, length -= n) {
    n = std::min(length, most);
    next().start({.kind = RelayJob::Kind::zero,
                  .may_trim = may_trim,
                  .offset = offset,
                  .length = static_cast<std::uint32_t>(n),
                  .done = [all](int error, Side) {
                    int none = 0;
                    if (error != 0)
                      all->error.compare_exchange_strong(none, error);
                    if (all->left.fetch_sub(1) == 1)
                      all->done(all->error, Side::destination);
                  }});
  }
}

// One flush is for all connections (proto.md, NBD_FLAG_CAN_MULTI_CONN).
void Relay::flush(RelayDone done) {
  if (!destination_.can_flush) return done(0, Side::destination);
  pairs_.front()->start(
      {.kind = RelayJob::Kind::flush, .done = std::move(done)});
}

void Relay::extents(std::uint64_t offset, std::uint64_t length,
                    RelayExtents done) {
  if (!source_.has_extents) return done(0, {{offset, length, false, false}});
  next().start({.kind = RelayJob::Kind::extents,
                .offset = offset,
                .length = without_payload(length, source_.minimum),
                .found = std::move(done)});
}

}  // namespace nbdrados::copy::nbd
