// SPDX-License-Identifier: BSD-3-Clause

#include "copy/nbd/peer.hpp"

#include <fcntl.h>
#include <libnbd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>

#include "rados/error.hpp"

namespace nbdrados::copy::nbd {

namespace {

// How long a server may take to close after the last request.
constexpr std::chrono::seconds goodbye_time{5};

bool yes(int answer) { return check_nbd(answer) == 1; }

// What the server says of block sizes; `unsaid` where it says nothing.
std::uint32_t block_size(nbd_handle* nbd, int which, std::uint32_t unsaid) {
  const std::int64_t said = check_nbd(nbd_get_block_size(nbd, which));
  if (said == 0) return unsaid;
  return static_cast<std::uint32_t>(
      std::min<std::int64_t>(said, std::int64_t{1} << 30));
}

Traits traits_of(nbd_handle* nbd) {
  Traits t;
  t.size = static_cast<std::uint64_t>(check_nbd(nbd_get_size(nbd)));
  t.writable = !yes(nbd_is_read_only(nbd));
  t.can_zero = t.writable && yes(nbd_can_zero(nbd));
  t.can_trim = t.writable && yes(nbd_can_trim(nbd));
  t.can_flush = t.writable && yes(nbd_can_flush(nbd));
  t.has_extents =
      yes(nbd_can_meta_context(nbd, LIBNBD_CONTEXT_BASE_ALLOCATION));
  // proto.md, "Block size constraints": servers that say nothing should take
  // requests of a byte, and clients should not ask for more than 32 MiB.
  t.minimum = block_size(nbd, LIBNBD_SIZE_MINIMUM, t.minimum);
  t.preferred = std::max(
      block_size(nbd, LIBNBD_SIZE_PREFERRED, t.preferred), t.minimum);
  t.maximum = std::max(std::min(block_size(nbd, LIBNBD_SIZE_MAXIMUM, t.maximum),
                                t.maximum) /
                           t.minimum * t.minimum,
                       t.minimum);
  return t;
}

}  // namespace

Peer::Peer(const NbdTarget& target) : handle_(connect_nbd(target, true)) {
  nbd_handle* const nbd = handle_.get();
  if (yes(nbd_get_tls_negotiated(nbd)))
    throw Error(ENOTSUP, "the connection is encrypted");
  traits_ = traits_of(nbd);
  structured_ = yes(nbd_get_structured_replies_negotiated(nbd));
  multi_conn_ = yes(nbd_can_multi_conn(nbd));
  socket_ = check_nbd(nbd_aio_get_fd(nbd));
}

Peer::Peer(Peer&&) noexcept = default;

Peer::~Peer() {
  if (!handle_ || broken_ || socket_ < 0) return;
  // As libnbd left it.
  const int flags = fcntl(socket_, F_GETFL);
  if (flags < 0 || fcntl(socket_, F_SETFL, flags | O_NONBLOCK) < 0) return;
  // Not nbd_shutdown(), which waits for as long as the server takes to close.
  nbd_handle* const nbd = handle_.get();
  if (nbd_aio_disconnect(nbd, 0) == -1) return;
  const auto end = std::chrono::steady_clock::now() + goodbye_time;
  while (nbd_aio_is_closed(nbd) != 1 && nbd_aio_is_dead(nbd) != 1) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        end - std::chrono::steady_clock::now());
    if (left.count() <= 0) return;
    if (nbd_poll(nbd, static_cast<int>(left.count())) == -1) return;
  }
}

void Peer::broken() noexcept { broken_ = true; }

}  // namespace nbdrados::copy::nbd
