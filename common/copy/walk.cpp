// SPDX-License-Identifier: BSD-3-Clause

#include "copy/walk.hpp"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "rados/error.hpp"

namespace nbdrados::copy {

namespace {

std::uint64_t round_down(std::uint64_t n, std::uint64_t unit) {
  return n / unit * unit;
}

/// Whether an answer is what Endpoint::extents promises.  It can come from
/// somebody else's server.
bool makes_sense(const std::vector<Extent>& found, std::uint64_t offset) {
  if (found.empty()) return false;
  for (const Extent& e : found) {
    if (e.offset != offset || e.length == 0 ||
        e.length > unknown_size - e.offset)
      return false;
    offset += e.length;
  }
  return true;
}

}  // namespace

Walk::Walk(Endpoint& source, const WalkOptions& options)
    : source_(source),
      options_(options),
      asked_end_(std::min(options.end, options.known_end)),
      at_(options.begin),
      known_(options.begin),
      asked_(options.begin) {
  if (options_.use_extents)
    ask();
  else
    known_ = options_.end;
}

Walk::~Walk() {
  std::unique_lock lock(mutex_);
  answered_.wait(lock, [this] { return !waiting_; });
}

void Walk::ask() {
  if (asked_ >= asked_end_) return;
  {
    const std::scoped_lock lock(mutex_);
    waiting_ = true;
  }
  source_.extents(asked_, asked_end_ - asked_,
                  [this](int error, std::vector<Extent> found) {
                    answered(error, std::move(found));
                  });
}

void Walk::answered(int error, std::vector<Extent> found) {
  const std::scoped_lock lock(mutex_);
  error_ = error;
  answer_ = std::move(found);
  waiting_ = false;
  answered_.notify_all();
}

/// Makes the answer under way what is used, and asks for the next.
void Walk::take_answer() {
  {
    std::unique_lock lock(mutex_);
    answered_.wait(lock, [this] { return !waiting_; });
    if (error_ != 0) throw Error(error_, error_text(error_));
    extents_ = std::move(answer_);
    answer_.clear();
  }
  if (!makes_sense(extents_, asked_))
    throw Error(EIO, "the server's answer makes no sense");
  next_extent_ = 0;
  asked_ = extents_.back().offset + extents_.back().length;
  ask();
}

/// What is behind known_.
Extent Walk::look_ahead() {
  for (;; ++next_extent_) {
    if (known_ >= asked_end_)
      return {known_, options_.end - known_, false, false};
    if (next_extent_ == extents_.size()) take_answer();
    const Extent& e = extents_[next_extent_];
    const std::uint64_t end = std::min(e.offset + e.length, options_.end);
    if (end > known_) return {known_, end - known_, e.is_zero, e.is_hole};
  }
}

/// Lets the run go on.  False: what follows it is of the other kind.
bool Walk::extend() {
  const Extent e = look_ahead();
  const std::uint64_t end = e.offset + e.length;
  const bool has_run = known_ > at_;
  if (e.is_zero) {
    // Inwards, so data is rounded outwards.
    const std::uint64_t first = round_down(
        known_ + options_.alignment - 1, options_.alignment);
    const std::uint64_t last =
        end == options_.end ? end : round_down(end, options_.alignment);
    const bool goes_on = has_run && zeros_;
    if (first < last &&
        (goes_on || last - first >= options_.least_zeros)) {
      known_ = has_run && !zeros_ ? first : last;
      if (has_run && !zeros_) return false;
      zeros_ = true;
      return true;
    }
  }
  if (has_run && zeros_) return false;
  zeros_ = false;
  known_ = end;
  return true;
}

Piece Walk::cut(std::uint64_t end) {
  const Piece piece{at_, end - at_, zeros_};
  at_ = end;
  return piece;
}

std::optional<Piece> Walk::next() {
  while (at_ < options_.end) {
    const std::uint64_t most =
        zeros_ ? options_.most_zeros : options_.most_data;
    const std::uint64_t boundary = round_down(at_, most);
    const std::uint64_t most_end =
        options_.end - boundary > most ? boundary + most : options_.end;
    if (known_ >= most_end) return cut(most_end);
    if (!extend()) return cut(known_);
  }
  return std::nullopt;
}

}  // namespace nbdrados::copy
