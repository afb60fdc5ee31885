// SPDX-License-Identifier: BSD-3-Clause

#include "rados/client/sparse_read.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace nbdrados {

int SparseReadPending::read_plainly() {
  const int r = reader_.read_now(oid_, offset_, length_, pieces_, snap_);
  if (r >= 0) reads_.never_again();
  return r;
}

int SparseReadPending::finish(int r) {
  if (r == -EIO || (r >= 0 && op_result == -EIO)) return read_plainly();
  if (r < 0) return r;
  if (op_result < 0) return op_result;
  auto from = data.cbegin();
  std::uint64_t at = offset_;
  const std::uint64_t end = offset_ + length_;
  for (const auto& [start, size] : extents) {
    if (start < at || start > end || size > end - start ||
        from.get_remaining() < size)
      return -EIO;  // not an answer to what was asked
    next(start - at, nullptr);
    next(size, &from);
    at = start + size;
  }
  next(end - at, nullptr);
  reads_.learn(length_, data.length());
  data.clear();
  return static_cast<int>(length_);
}

void SparseReadPending::next(std::uint64_t n,
                             bufferlist::const_iterator* from) {
  while (n != 0) {
    const MutablePiece& piece = pieces_[piece_];
    const std::size_t part =
        std::min<std::uint64_t>(n, piece.size - used_);
    if (from != nullptr)
      from->copy(static_cast<unsigned>(part), piece.data + used_);
    else
      std::memset(piece.data + used_, 0, part);
    n -= part;
    used_ += part;
    if (used_ == piece.size) {
      ++piece_;
      used_ = 0;
    }
  }
}

}  // namespace nbdrados
