// SPDX-License-Identifier: BSD-3-Clause
//
// What a server answers, taken apart.  Nothing here reads or writes a socket,
// and no payload of a read goes through it: the parser says how many bytes of
// payload come next and where they belong, and whoever has the socket moves
// them to where they shall be (into memory, or by splice(2) to elsewhere).
//
//     bytes of messages --feed()--> Event: payload    move it, moved()
//                                          hole
//                                          status
//                                          finished
//
// A server that breaks the protocol cannot be believed any more: the parser
// throws Error(EPROTO), and the connection has to be given up.

#ifndef NBDRADOS_COPY_NBD_REPLY_PARSER_HPP
#define NBDRADOS_COPY_NBD_REPLY_PARSER_HPP

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "copy/nbd/wire.hpp"

namespace nbdrados::copy::nbd {

struct StatusExtent {
  std::uint32_t length;  ///< bytes, at least 1
  std::uint32_t flags;   ///< status_hole, status_zero
};

struct Event {
  enum class Kind {
    payload,   ///< `length` bytes of data for `offset` follow in the stream
    hole,      ///< `length` bytes from `offset` are zeros
    status,    ///< ReplyParser::status() has extents
    finished,  ///< the request has ended, with `error`
  };
  Kind kind;
  std::uint64_t cookie;
  std::uint64_t offset = 0;  ///< in the export
  std::uint32_t length = 0;
  int error = 0;  ///< 0, or an errno
};

/// Which of the requests' cookies are in use is known here, too: a cookie's
/// lower half is a small number that is used again, see slot().
///
/// For one thread.
class ReplyParser {
 public:
  /// `structured`: structured replies were negotiated.
  explicit ReplyParser(bool structured) : structured_(structured) {}

  /// A request is about to be sent.  Returns its cookie, which is in use until
  /// the request is finished.
  [[nodiscard]] std::uint64_t begin(Command command, std::uint64_t offset,
                                    std::uint32_t length);

  /// A number below the largest number of requests that were ever in flight.
  [[nodiscard]] static std::size_t slot(std::uint64_t cookie) noexcept {
    return static_cast<std::uint32_t>(cookie);
  }

  [[nodiscard]] std::size_t in_flight() const noexcept { return in_flight_; }

  /// How many bytes can be received so that no payload is among them; 0 while
  /// payload comes next.
  [[nodiscard]] std::size_t wanted() const noexcept;

  /// Takes bytes up to the next event, and returns how many.  Takes none while
  /// there are events, or payload comes next.  Throws Error(EPROTO).
  std::size_t feed(std::span<const char> bytes);

  /// The next event; none: more bytes are needed.
  [[nodiscard]] std::optional<Event> next() noexcept;

  /// Bytes of payload that come next.
  [[nodiscard]] std::uint32_t payload_left() const noexcept { return payload_; }

  /// So many of them were taken from the stream.
  void moved(std::uint32_t bytes);

  /// The extents of the last event "status", until feed() is called again.
  [[nodiscard]] const std::vector<StatusExtent>& status() const noexcept {
    return status_;
  }

 private:
  struct Slot {
    bool used = false;
    std::uint32_t generation = 0;
    Command command{};
    std::uint64_t offset = 0;
    std::uint32_t length = 0;
    int error = 0;
    bool has_status = false;
    std::uint64_t covered = 0;  // bytes of content that were announced
    // begin and end of it, where more than one chunk is needed
    std::map<std::uint64_t, std::uint64_t> ranges;
  };

  [[nodiscard]] bool message_complete();
  void simple_reply();
  void chunk();
  [[nodiscard]] std::size_t chunk_bytes(std::uint32_t length) const;
  void content(Slot& slot, std::uint64_t offset, std::uint64_t length);
  void error_chunk(Slot& slot, std::uint16_t type);
  void status_chunk(Slot& slot);
  [[nodiscard]] Slot& find(std::uint64_t cookie);
  void finish(std::uint64_t cookie);
  void add(const Event& event) noexcept { events_[event_count_++] = event; }

  const bool structured_;
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> free_;
  std::size_t in_flight_ = 0;

  std::string message_;  // what has come of it, without payload
  std::size_t need_ = simple_reply_bytes;
  std::uint32_t payload_ = 0;
  std::optional<std::uint64_t> finish_after_;  // the payload: this cookie

  // One message makes at most two.
  std::array<Event, 2> events_{};
  std::size_t event_count_ = 0;
  std::size_t event_at_ = 0;
  std::vector<StatusExtent> status_;
};

}  // namespace nbdrados::copy::nbd

#endif
