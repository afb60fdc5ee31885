// SPDX-License-Identifier: BSD-3-Clause

#include "copy/nbd/uring_nbd_endpoint.hpp"

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <utility>

#include "copy/nbd/parts.hpp"
#include "rados/error.hpp"

namespace nbdrados::copy::nbd {

std::vector<Extent> extents_of(const std::vector<StatusExtent>& status,
                               std::uint64_t offset, std::uint64_t length) {
  std::vector<Extent> found;
  const std::uint64_t end = offset + length;
  for (const StatusExtent& s : status) {
    if (offset == end) break;
    const std::uint64_t n = std::min<std::uint64_t>(s.length, end - offset);
    found.push_back({.offset = offset,
                     .length = n,
                     .is_zero = (s.flags & status_zero) != 0,
                     .is_hole = (s.flags & status_hole) != 0});
    offset += n;
  }
  return found;
}

UringNbdEndpoint::UringNbdEndpoint(NbdTarget target)
    : target_(std::move(target)), uring_(true) {
  add(Peer(target_));
}

UringNbdEndpoint::UringNbdEndpoint(std::vector<Peer> peers, bool uring)
    : uring_(uring) {
  for (Peer& peer : peers) add(std::move(peer));
}

void UringNbdEndpoint::add(Peer peer) {
  const Peer& added = peers_.emplace_back(std::move(peer));
  connections_.push_back(std::make_unique<Connection>(
      added.socket(), added.structured(), uring_));
}

bool UringNbdEndpoint::can_multi_conn() const noexcept {
  return target_.command.empty() && peers_.front().multi_conn();
}

void UringNbdEndpoint::connect_more(std::size_t count) {
  while (peers_.size() < count) {
    Peer peer(target_);
    if (peer.traits().size != traits().size ||
        peer.traits().writable != traits().writable)
      throw Error(EIO, "another connection shows another disk");
    add(std::move(peer));
  }
}

std::vector<Peer> UringNbdEndpoint::take_peers() {
  connections_.clear();
  return std::move(peers_);
}

UringNbdEndpoint::~UringNbdEndpoint() {
  for (std::size_t i = 0; i < connections_.size(); ++i) {
    // After the last request: it may be what breaks the connection.
    Connection& connection = *connections_[i];
    connection.finish_all();
    if (!connection.failure().empty()) peers_[i].broken();
  }
  connections_.clear();
}

const Traits& UringNbdEndpoint::traits() const noexcept {
  return peers_.front().traits();
}

const char* UringNbdEndpoint::engine() const noexcept {
  const bool uring = connections_.front()->kind() == SocketIo::Kind::uring;
  return uring ? "io_uring" : "poll";
}

std::string UringNbdEndpoint::explain(int error) const {
  const std::string why = failure();
  return Endpoint::explain(error) + (why.empty() ? "" : " (" + why + ")");
}

std::string UringNbdEndpoint::failure() const {
  for (const auto& connection : connections_)
    if (std::string why = connection->failure(); !why.empty()) return why;
  return {};
}

void UringNbdEndpoint::cancel() noexcept {
  for (const auto& connection : connections_) connection->cancel();
}

void UringNbdEndpoint::start(Operation operation) {
  const std::size_t n = next_.fetch_add(1, std::memory_order_relaxed);
  connections_[n % connections_.size()]->start(std::move(operation));
}

bool UringNbdEndpoint::takes(std::uint64_t offset,
                             std::uint64_t length) const noexcept {
  const Traits& t = traits();
  return length != 0 && offset <= t.size && length <= t.size - offset &&
         offset % t.minimum == 0 &&
         (length % t.minimum == 0 || length == t.size - offset);
}

void UringNbdEndpoint::read(std::uint64_t offset, std::span<char> to,
                            Done done) {
  if (!takes(offset, to.size())) return done(EINVAL);
  assert(to.size() <= traits().maximum);
  start({.command = Command::read,
         .offset = offset,
         .length = static_cast<std::uint32_t>(to.size()),
         .to = to.data(),
         .done = [done = std::move(done)](int error, auto&) { done(error); }});
}

void UringNbdEndpoint::write(std::uint64_t offset, std::span<const char> from,
                             Done done) {
  if (!takes(offset, from.size())) return done(EINVAL);
  assert(from.size() <= traits().maximum);
  start({.command = Command::write,
         .offset = offset,
         .length = static_cast<std::uint32_t>(from.size()),
         .from = from.data(),
         .done = [done = std::move(done)](int error, auto&) { done(error); }});
}

void UringNbdEndpoint::zero(std::uint64_t offset, std::uint64_t length,
                            bool may_trim, Done done) {
  if (!takes(offset, length)) return done(EINVAL);
  if (!traits().can_zero) return done(ENOTSUP);
  in_parts(
      offset, length, traits().minimum,
      [&](std::uint64_t at, std::uint32_t bytes, auto end) {
        start({.command = Command::write_zeroes,
               .flags = may_trim ? std::uint16_t{0} : flag_no_hole,
               .offset = at,
               .length = bytes,
               .done = [end](int error, auto&) { end(error); }});
      },
      std::move(done));
}

// Where there are several connections, one flush is for all of them (proto.md,
// NBD_FLAG_CAN_MULTI_CONN).
void UringNbdEndpoint::flush(Done done) {
  if (!traits().can_flush) return done(0);
  connections_.front()->start(
      {.command = Command::flush,
       .done = [done = std::move(done)](int error, auto&) { done(error); }});
}

void UringNbdEndpoint::extents(
    std::uint64_t offset, std::uint64_t length,
    std::function<void(int error, std::vector<Extent> found)> done) {
  if (!takes(offset, length)) return done(EINVAL, {});
  if (!traits().has_extents) return done(0, {{offset, length, false, false}});
  const std::uint32_t n =
      without_payload(span_.cut(length), traits().minimum);
  start({.command = Command::block_status,
         .offset = offset,
         .length = n,
         .done = [this, offset, n, done = std::move(done)](int error,
                                                          auto& status) {
           if (error != 0) return done(error, {});
           span_.answered(status.size());
           done(0, extents_of(status, offset, n));
         }});
}

}  // namespace nbdrados::copy::nbd
