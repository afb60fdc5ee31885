// SPDX-License-Identifier: BSD-3-Clause
//
// Reads that bring what an object has, and where.

#ifndef NBDRADOS_RADOS_CLIENT_SPARSE_READ_HPP
#define NBDRADOS_RADOS_CLIENT_SPARSE_READ_HPP

#include <rados/librados.hpp>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>

#include "rados/client/pending.hpp"

namespace nbdrados {

/// Whether reads had better be sparse, which an OSD answers with what the
/// object has and where.  Measured with 16.2.15, eight reads in flight: an
/// object that is nearly all holes takes 0.35 (64 KiB) to 0.08 (4 MiB) of the
/// time of a plain read, one that is half full in pieces of 64 KiB 1.1 to 0.6,
/// a full one 1.0 to 1.1.  So it depends on what the last ones brought, and now
/// and then it is tried again.  (librbd's are sparse from 64 KiB:
/// rbd_sparse_read_threshold_bytes.)  Thread-safe.
class SparseReads {
 public:
  static constexpr std::size_t smallest = 64 << 10;

  [[nodiscard]] bool wanted(std::size_t length) noexcept {
    if (length < smallest || never_.load(std::memory_order_relaxed))
      return false;
    constexpr auto relaxed = std::memory_order_relaxed;
    return score_.load(relaxed) > 0 || plain_.fetch_add(1, relaxed) % 16 == 15;
  }
  void learn(std::size_t length, std::size_t got) noexcept {
    constexpr auto relaxed = std::memory_order_relaxed;
    // An update that another thread overwrites does no harm.
    const int score = score_.load(relaxed);
    score_.store(got <= length / 4 * 3 ? std::min(score + 4, 16)
                                       : std::max(score - 1, 0),
                 relaxed);
  }
  void never_again() noexcept { never_ = true; }

 private:
  std::atomic<int> score_{4};
  std::atomic<unsigned> plain_{0};
  std::atomic<bool> never_{false};
};

/// Reads whole ranges, and waits.
class PlainReader : public PendingOwner {
 public:
  [[nodiscard]] virtual int read_now(const std::string& oid,
                                     std::uint64_t offset, std::size_t length,
                                     std::span<const MutablePiece> pieces,
                                     SnapId snap) = 0;

 protected:
  ~PlainReader() = default;
};

class SparseReadPending final : public RadosPending {
 public:
  SparseReadPending(PlainReader& reader, SparseReads& reads,
                    const std::string& oid, std::uint64_t offset,
                    std::size_t length, std::span<const MutablePiece> pieces,
                    SnapId snap)
      : RadosPending(reader),
        reader_(reader),
        reads_(reads),
        oid_(oid),
        snap_(snap),
        offset_(offset),
        length_(length),
        pieces_(pieces) {}
  ~SparseReadPending() override { drain(); }
  librados::ObjectReadOperation op;
  std::map<std::uint64_t, std::uint64_t> extents;
  bufferlist data;
  int op_result = 0;

 private:
  /// An OSD of 16.2.15 answers the sparse read of an erasure-coded object
  /// with half of an answer, which librados calls EIO, where the object ends
  /// before (ceph: src/osd/PrimaryLogPG.cc, do_sparse_read).  There the others
  /// are no sparser than plain ones.
  int read_plainly();

  int finish(int r) override;
  /// Fills the next n bytes, with data or with zeros.
  void next(std::uint64_t n, bufferlist::const_iterator* from);

  PlainReader& reader_;
  SparseReads& reads_;
  const std::string oid_;
  const SnapId snap_;
  const std::uint64_t offset_;
  const std::size_t length_;
  const std::span<const MutablePiece> pieces_;
  std::size_t piece_ = 0;  // how far pieces_ are filled
  std::size_t used_ = 0;
};

}  // namespace nbdrados

#endif
