// SPDX-License-Identifier: BSD-3-Clause

#include "rados/client/pending.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

namespace nbdrados {

int RadosPending::wait() {
  if (!done_) {
    if (submit_result_ == 0) completion_.get()->wait_for_complete();
    settle();
  }
  return result_;
}

// Only metadata operations are bounded in time, so looking now and then is good
// enough, and spares all others a completion callback.
int RadosPending::wait_for(std::chrono::milliseconds limit) {
  using namespace std::chrono_literals;
  if (done_ || submit_result_ != 0) return wait();
  const auto deadline = std::chrono::steady_clock::now() + limit;
  auto pause = std::chrono::microseconds(50);
  while (!completion_.get()->is_complete()) {
    if (std::chrono::steady_clock::now() >= deadline) {
      cancel();
      completion_.get()->wait_for_complete();
      settle();
      if (result_ == -ECANCELED) result_ = -ETIMEDOUT;
      return result_;
    }
    std::this_thread::sleep_for(pause);
    pause = std::min<std::chrono::microseconds>(pause * 2, 2ms);
  }
  return wait();
}

void RadosPending::drain(bool reads) noexcept {
  if (!done_ && submit_result_ == 0) {
    if (reads && !completion_.get()->is_complete()) cancel();
    completion_.get()->wait_for_complete();
  }
  done_ = true;
}

void RadosPending::settle() {
  const int r = submit_result_ != 0 ? submit_result_
                                    : completion_.get()->get_return_value();
  done_ = true;
  result_ = store_.result(finish(r));
}

int ReadPending::finish(int r) {
  if (r < 0) return r;
  auto from = data.cbegin();
  std::size_t left = data.length();
  int total = 0;
  for (const MutablePiece& piece : pieces_) {
    const std::size_t n = std::min(piece.size, left);
    if (n == 0) break;
    from.copy(static_cast<unsigned>(n), piece.data);
    left -= n;
    total += static_cast<int>(n);
  }
  data.clear();
  return total;
}

int VersionPending::finish(int r) {
  if (r >= 0) r = op_result;
  if (r >= 0) *out_ = completion()->get_version64();
  return r;
}

int BytesPending::finish(int r) {
  if (r >= 0) *out_ = data.to_str();
  return r;
}

int CallsPending::finish(int r) {
  if (r < 0) return r;
  out_->clear();
  for (bufferlist& bl : data) out_->push_back(bl.to_str());
  return r;
}

int XattrsPending::finish(int r) {
  if (r < 0) return r;
  if (op_result < 0) return op_result;
  out_->clear();
  for (auto& [name, value] : attrs) out_->emplace(name, value.to_str());
  return 0;
}

int WatchersPending::finish(int r) {
  if (r < 0) return r;
  if (op_result < 0) return op_result;
  out_->clear();
  for (const obj_watch_t& w : watchers)
    out_->push_back({.address = std::string(
                         w.addr, ::strnlen(w.addr, sizeof(w.addr))),
                     .client = static_cast<std::uint64_t>(w.watcher_id),
                     .cookie = w.cookie});
  return 0;
}

int SnapsPending::finish(int r) {
  if (r < 0) return r;
  if (op_result < 0) return op_result;
  out_->seq = set.seq;
  out_->versions.clear();
  for (const librados::clone_info_t& c : set.clones) {
    ObjectVersion v{.id = c.cloneid == librados::SNAP_HEAD ? snap_head
                                                           : c.cloneid,
                    .snaps = {c.snaps.begin(), c.snaps.end()},
                    .size = c.size};
    for (const auto& [offset, length] : c.overlap)
      v.overlap.push_back({offset, length});
    out_->versions.push_back(std::move(v));
  }
  return 0;
}

}  // namespace nbdrados
