// SPDX-License-Identifier: BSD-3-Clause
//
// One side of a copy.

#ifndef NBDRADOS_COPY_ENDPOINT_HPP
#define NBDRADOS_COPY_ENDPOINT_HPP

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <system_error>
#include <vector>

namespace nbdrados::copy {

/// The size of what has none that is known before its end.
inline constexpr std::uint64_t unknown_size = ~std::uint64_t{0};

/// What a side is and can do; does not change while it is open.
struct Traits {
  std::uint64_t size = 0;       ///< bytes, or unknown_size
  bool is_stream = false;       ///< only from the start to the end, in order
  bool writable = false;
  bool can_zero = false;        ///< zero() without sending zeros
  bool can_trim = false;
  bool can_flush = false;
  bool has_extents = false;     ///< extents() knows more than "data"
  bool reads_as_zeros = false;  ///< all of it, until something is written
  std::uint32_t minimum = 1;    ///< bytes that requests are multiples of
  std::uint32_t preferred = 64 << 10;  ///< bytes; best multiple
  std::uint32_t maximum = 32 << 20;    ///< bytes of one read or write
};

struct Extent {
  std::uint64_t offset, length;  ///< bytes
  bool is_zero;                  ///< reads as zeros
  bool is_hole;                  ///< not allocated
};

/// An operation's end: 0 or an errno.  Called exactly once, by a thread of the
/// endpoint or within the call that started it.  It may start further
/// operations, and must not wait for any.
using Done = std::function<void(int error)>;

/// All of it is thread-safe.  Memory stays the caller's until Done is called.
/// The destructor waits for what is under way.
class Endpoint {
 public:
  virtual ~Endpoint() = default;
  [[nodiscard]] virtual const Traits& traits() const noexcept = 0;
  /// Of a stream: may end early, see end().
  virtual void read(std::uint64_t offset, std::span<char> to, Done done) = 0;
  virtual void write(std::uint64_t offset, std::span<const char> from,
                     Done done) = 0;
  /// Makes the range read as zeros; with may_trim without keeping it allocated.
  /// EOPNOTSUPP: this range it cannot, write zeros instead; others it may.
  virtual void zero(std::uint64_t offset, std::uint64_t length, bool may_trim,
                    Done done) = 0;
  /// All that was written before is durable when it is done.
  virtual void flush(Done done) = 0;
  /// The extents of a range, ascending and adjacent from its start, at least
  /// one; they may end before it.
  virtual void extents(
      std::uint64_t offset, std::uint64_t length,
      std::function<void(int error, std::vector<Extent> found)> done) = 0;

  /// Where a stream that is read has ended; none: no read has come to it yet.
  /// Known before the Done of the read that found it.
  [[nodiscard]] virtual std::optional<std::uint64_t> end() const {
    return std::nullopt;
  }
  /// The last call, when all operations have ended: ends what was written.
  /// Returns 0, or an errno that nobody could know before.
  [[nodiscard]] virtual int close() noexcept { return 0; }
  /// What an errno of its operations says, in a few words.  Any thread.
  [[nodiscard]] virtual std::string explain(int error) const {
    return std::generic_category().message(error);
  }
  /// The copy has failed.  What waits for other operations, or for a peer that
  /// may never answer, ends soon with ECANCELED.
  virtual void cancel() noexcept {}
};

}  // namespace nbdrados::copy

#endif
