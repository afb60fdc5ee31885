// SPDX-License-Identifier: BSD-3-Clause

#include "copy/nbd/reply_parser.hpp"

#include <algorithm>
#include <cerrno>
#include <iterator>

#include "rados/error.hpp"

namespace nbdrados::copy::nbd {

namespace {

// A chunk with data begins with their offset.
constexpr std::size_t data_bytes = structured_reply_bytes + 8;

// The servers that proto.md describes send at most 2^20 extents
// ("NBD_REPLY_TYPE_BLOCK_STATUS").
constexpr std::uint32_t max_status_bytes = 4 + 8 * (1 << 20);

// Errors of types that nobody knows yet have further fields behind the
// message.
constexpr std::uint32_t max_error_bytes = 64 << 10;

[[noreturn]] void violation(const std::string& what) {
  throw Error(EPROTO, "the NBD server breaks the protocol: " + what);
}

}  // namespace

std::uint64_t ReplyParser::begin(Command command, std::uint64_t offset,
                                 std::uint32_t length) {
  std::uint32_t number = 0;
  if (free_.empty()) {
    number = static_cast<std::uint32_t>(slots_.size());
    slots_.emplace_back();
    free_.reserve(slots_.size());
  } else {
    number = free_.back();
    free_.pop_back();
  }
  Slot& slot = slots_[number];
  const std::uint32_t generation = slot.generation + 1;
  slot = {.used = true,
          .generation = generation,
          .command = command,
          .offset = offset,
          .length = length,
          .ranges = {}};
  ++in_flight_;
  return std::uint64_t{generation} << 32 | number;
}

// A reply to a cookie that is not in use is one that nobody asked for, or the
// second one.
ReplyParser::Slot& ReplyParser::find(std::uint64_t cookie) {
  const std::size_t number = slot(cookie);
  if (number >= slots_.size() || !slots_[number].used ||
      slots_[number].generation != cookie >> 32)
    violation("a reply to no request (cookie " + std::to_string(cookie) + ")");
  return slots_[number];
}

// Of structured replies, the shortest message has 20 bytes, and payload comes
// only after 28.  Of simple ones, payload comes after 16.
std::size_t ReplyParser::wanted() const noexcept {
  if (payload_ != 0) return 0;
  const std::size_t sure = structured_ ? data_bytes : simple_reply_bytes;
  return std::max(sure, need_) - message_.size();
}

std::size_t ReplyParser::feed(std::span<const char> bytes) {
  std::size_t taken = 0;
  while (taken < bytes.size() && payload_ == 0 && event_count_ == 0) {
    const std::size_t n =
        std::min(need_ - message_.size(), bytes.size() - taken);
    message_.append(bytes.data() + taken, n);
    taken += n;
    if (message_.size() == need_ && message_complete()) {
      message_.clear();
      need_ = simple_reply_bytes;
    }
  }
  return taken;
}

std::optional<Event> ReplyParser::next() noexcept {
  if (event_at_ == event_count_) {
    event_at_ = event_count_ = 0;
    return std::nullopt;
  }
  return events_[event_at_++];
}

void ReplyParser::moved(std::uint32_t bytes) {
  payload_ -= bytes;
  if (payload_ != 0 || !finish_after_) return;
  const std::uint64_t cookie = *finish_after_;
  finish_after_.reset();
  finish(cookie);
}

// Returns false where there is more of the message, and need_ says how much.
bool ReplyParser::message_complete() {
  const std::uint32_t magic = get32(message_);
  if (magic == simple_reply_magic) {
    simple_reply();
    return true;
  }
  if (magic != structured_reply_magic || !structured_)
    violation("a reply begins with wrong bytes");
  if (need_ < structured_reply_bytes) {
    need_ = structured_reply_bytes;
    return false;
  }
  if (need_ == structured_reply_bytes) {
    need_ += chunk_bytes(get32(std::span(message_).subspan(16)));
    if (need_ != structured_reply_bytes) return false;
  }
  chunk();
  return true;
}

void ReplyParser::simple_reply() {
  const std::span<const char> m(message_);
  const std::uint32_t error = get32(m.subspan(4));
  const std::uint64_t cookie = get64(m.subspan(8));
  Slot& slot = find(cookie);
  const bool has_payload = slot.command == Command::read ||
                           slot.command == Command::block_status;
  // proto.md, "Simple reply message".  That an error is told this way does no
  // harm, and some servers do it.
  if (structured_ && has_payload && error == 0)
    violation("a simple reply to a request for data");
  if (!slot.ranges.empty() || slot.covered != 0 || slot.has_status)
    violation("a simple reply after chunks");
  if (error != 0) {
    slot.error = errno_of(error);
  } else if (slot.command == Command::read && slot.length != 0) {
    slot.covered = payload_ = slot.length;
    finish_after_ = cookie;
    add({.kind = Event::Kind::payload,
         .cookie = cookie,
         .offset = slot.offset,
         .length = slot.length});
    return;
  }
  finish(cookie);
}

// How many bytes of a chunk of `length` are to be looked at.  Throws where the
// type cannot have this length.
std::size_t ReplyParser::chunk_bytes(std::uint32_t length) const {
  const std::uint16_t type = get16(std::span(message_).subspan(6));
  const auto is = [&](ReplyType t) {
    return type == static_cast<std::uint16_t>(t);
  };
  const auto need = [](bool good) {
    if (!good) violation("a chunk has a length that its type cannot have");
  };
  if (is(ReplyType::none)) {
    need(length == 0);
    return 0;
  }
  if (is(ReplyType::offset_data)) {
    need(length >= 9);
    return 8;
  }
  if (is(ReplyType::offset_hole)) {
    need(length == 12);
  } else if (is(ReplyType::block_status)) {
    need(length >= 12 && length % 8 == 4 && length <= max_status_bytes);
  } else if ((type & reply_error_bit) != 0) {
    need(length >= (is(ReplyType::error_offset) ? 14 : 6) &&
         length <= max_error_bytes);
  } else {
    violation("a chunk of the unknown type " + std::to_string(type));
  }
  return length;
}

void ReplyParser::chunk() {
  const std::span<const char> m(message_);
  const bool done = (get16(m.subspan(4)) & reply_flag_done) != 0;
  const std::uint16_t type = get16(m.subspan(6));
  const std::uint64_t cookie = get64(m.subspan(8));
  const std::uint32_t length = get32(m.subspan(16));
  Slot& slot = find(cookie);
  switch (static_cast<ReplyType>(type)) {
    case ReplyType::none:
      if (!done) violation("an empty chunk that is not the last one");
      break;
    case ReplyType::offset_data: {
      const std::uint64_t offset = get64(m.subspan(20));
      content(slot, offset, length - 8);
      payload_ = length - 8;
      if (done) finish_after_ = cookie;
      add({.kind = Event::Kind::payload,
           .cookie = cookie,
           .offset = offset,
           .length = payload_});
      return;
    }
    case ReplyType::offset_hole: {
      const std::uint64_t offset = get64(m.subspan(20));
      const std::uint32_t bytes = get32(m.subspan(28));
      content(slot, offset, bytes);
      add({.kind = Event::Kind::hole,
           .cookie = cookie,
           .offset = offset,
           .length = bytes});
      break;
    }
    case ReplyType::block_status:
      status_chunk(slot);
      add({.kind = Event::Kind::status, .cookie = cookie});
      break;
    default:  // chunk_bytes() let only errors pass
      error_chunk(slot, type);
  }
  if (done) finish(cookie);
}

// Content lies within what was asked for, and is told once.  Most replies have
// one chunk; only where there are more, the ranges are noted.
void ReplyParser::content(Slot& slot, std::uint64_t offset,
                          std::uint64_t length) {
  if (slot.command != Command::read)
    violation("data for a request that is no read");
  if (length == 0) violation("a hole of no bytes");
  if (offset < slot.offset || offset - slot.offset > slot.length ||
      length > slot.length - (offset - slot.offset))
    violation("data outside of what was asked for");
  slot.covered += length;
  if (slot.covered > slot.length) violation("the same data twice");
  if (length == slot.length) return;
  auto& ranges = slot.ranges;
  const auto after = ranges.upper_bound(offset);
  const std::uint64_t end = offset + length;
  const bool free_before =
      after == ranges.begin() || std::prev(after)->second <= offset;
  if (!free_before || (after != ranges.end() && after->first < end))
    violation("the same data twice");
  // Joined with its neighbours, so that chunks in order are one range.
  auto here = after;
  if (after != ranges.begin() && std::prev(after)->second == offset) {
    here = std::prev(after);
    here->second = end;
  } else {
    here = ranges.emplace_hint(after, offset, end);
  }
  if (after != ranges.end() && after->first == end) {
    here->second = after->second;
    ranges.erase(after);
  }
}

void ReplyParser::error_chunk(Slot& slot, std::uint16_t type) {
  const std::span<const char> m(message_);
  const std::uint32_t error = get32(m.subspan(20));
  const std::size_t text = get16(m.subspan(24));
  const bool has_offset =
      type == static_cast<std::uint16_t>(ReplyType::error_offset);
  const std::size_t rest = m.size() - structured_reply_bytes - 6;
  if (error == 0) violation("an error that is none");
  if (text > max_message_bytes || text + (has_offset ? 8 : 0) > rest)
    violation("an error message that is too long");
  if (has_offset) {
    const std::uint64_t offset = get64(m.subspan(26 + text));
    if (offset < slot.offset || offset - slot.offset > slot.length)
      violation("an error outside of what was asked for");
  }
  // The first one says most.
  if (slot.error == 0) slot.error = errno_of(error);
}

void ReplyParser::status_chunk(Slot& slot) {
  if (slot.command != Command::block_status)
    violation("block status for another request");
  if (slot.has_status) violation("block status twice");
  slot.has_status = true;
  status_.clear();
  // Whoever negotiates asks for one context only, so its id says nothing.
  std::span<const char> rest =
      std::span<const char>(message_).subspan(structured_reply_bytes + 4);
  for (; !rest.empty(); rest = rest.subspan(8)) {
    status_.push_back({get32(rest), get32(rest.subspan(4))});
    if (status_.back().length == 0) violation("an extent of no bytes");
  }
}

void ReplyParser::finish(std::uint64_t cookie) {
  Slot& slot = find(cookie);
  if (slot.error == 0) {
    if (slot.command == Command::read && slot.covered != slot.length)
      violation("a read ends before all its data have come");
    if (slot.command == Command::block_status && !slot.has_status)
      violation("a reply without block status");
  }
  const int error = slot.error;
  slot.used = false;
  slot.ranges.clear();
  free_.push_back(static_cast<std::uint32_t>(ReplyParser::slot(cookie)));
  --in_flight_;
  add({.kind = Event::Kind::finished, .cookie = cookie, .error = error});
}

}  // namespace nbdrados::copy::nbd
