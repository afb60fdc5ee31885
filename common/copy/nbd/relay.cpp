// SPDX-License-Identifier: BSD-3-Clause

#include "copy/nbd/relay.hpp"

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <utility>

#include "copy/nbd/parts.hpp"
#include "copy/nbd/relay_pair.hpp"

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

void Relay::cancel() noexcept {
  for (const auto& pair : pairs_) pair->cancel();
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
  in_parts(
      offset, length, destination_.minimum,
      [&](std::uint64_t at, std::uint32_t bytes, auto end) {
        next().start({.kind = RelayJob::Kind::zero,
                      .may_trim = may_trim,
                      .offset = at,
                      .length = bytes,
                      .done = [end](int error, Side) { end(error); }});
      },
      [done = std::move(done)](int error) { done(error, Side::destination); });
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
                .length = without_payload(span_.cut(length), source_.minimum),
                .found = [this, done = std::move(done)](
                             int error, std::vector<Extent> found) {
                  span_.answered(found.size());
                  done(error, std::move(found));
                }});
}

}  // namespace nbdrados::copy::nbd
