// SPDX-License-Identifier: BSD-3-Clause
//
// Copies from one NBD server to another, without looking at the data: they go
// from socket to pipe to socket by splice(2), which moves pages instead of
// copying them.  Only the messages around them are ours.
//
//     source's socket: [reply head][data ......][reply head][data ...]
//                         parsed      splice       parsed
//     pipe:                        [data ......]
//     destination's:  [write head] [data ......][write head]...
//
// Each piece of data that a reply has becomes one write, so the length that
// must be said before the data is always known.  A piece that is a hole becomes
// a WRITE_ZEROES.  Where a piece is not in whole blocks of the destination, the
// request is read once more, into memory, and written from there.

#ifndef NBDRADOS_COPY_NBD_RELAY_HPP
#define NBDRADOS_COPY_NBD_RELAY_HPP

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "copy/endpoint.hpp"
#include "copy/nbd/peer.hpp"
#include "copy/span_of_answers.hpp"

namespace nbdrados::copy::nbd {

enum class Side { source, destination };

/// Exactly one call, by a thread of the relay; `side` is whose `error` it is.
/// May start more.
using RelayDone = std::function<void(int error, Side side)>;
using RelayExtents =
    std::function<void(int error, std::vector<Extent> found)>;

class RelayPair;

/// Thread-safe.  Ranges are multiples of both sides' minimum, not empty, and
/// not behind the end of either side.
///
/// When a connection breaks, in the middle of some data, too, its pair's
/// requests end with its errno (see UringNbdEndpoint), and so does whatever is
/// started later: the other connection of the pair is then not usable, either.
class Relay {
 public:
  struct Options {
    /// Bytes that a pipe holds; what root has not allowed becomes less
    /// (fs.pipe-max-size).
    std::size_t pipe_bytes = 1 << 20;
    /// Holes in the source's replies need not be written.
    bool destination_is_zero = false;
    /// Zeros are kept allocated.
    bool allocated = false;
  };

  /// Makes pairs; what is left of the longer list is closed.  Throws Error.
  Relay(std::vector<Peer> sources, std::vector<Peer> destinations,
        const Options& options);
  /// Waits for what is under way.
  ~Relay();

  [[nodiscard]] const Traits& source() const noexcept { return source_; }
  [[nodiscard]] const Traits& destination() const noexcept {
    return destination_;
  }
  [[nodiscard]] std::size_t pairs() const noexcept { return pairs_.size(); }

  /// At most both sides' maximum.
  void copy(std::uint64_t offset, std::uint32_t length, RelayDone done);
  /// As Endpoint's, on the destination.
  void zero(std::uint64_t offset, std::uint64_t length, bool may_trim,
            RelayDone done);
  void flush(RelayDone done);
  /// As Endpoint's, of the source.
  void extents(std::uint64_t offset, std::uint64_t length, RelayExtents done);

  /// As Endpoint's, for both sides.
  void cancel() noexcept;

  /// What is wrong with the first pair that is broken; or nothing.
  [[nodiscard]] std::string failure() const;

 private:
  [[nodiscard]] RelayPair& next();

  const Traits source_, destination_;
  std::vector<std::unique_ptr<RelayPair>> pairs_;
  std::atomic<std::size_t> next_{0};
  SpanOfAnswers span_{std::uint64_t{1} << 30};
};

}  // namespace nbdrados::copy::nbd

#endif
