// SPDX-License-Identifier: BSD-3-Clause
//
// Writes, as librados takes them.
//
// A write hands the caller's memory to librados as it is: the bufferlist refers
// to it ("static" buffers).  librados may keep a reference a little longer than
// the operation takes: an operation that is sent again to another OSD can
// complete while the connection to the first one still holds the old message.
// So a write is over only when the operation has completed and the last
// reference to the caller's memory is gone (WriteBuffers::wait_released);
// normally that is so at completion (Objecter::handle_osd_op_reply drops the
// operation before it completes it, ceph: src/osdc/Objecter.cc).
// An operation that is given up before it is sent (a metadata operation that
// takes too long, or any where the user has set rados_osd_op_timeout) would
// keep its message for as long as the OSD is away, so there data is copied.

#ifndef NBDRADOS_RADOS_CLIENT_WRITE_OPERATION_HPP
#define NBDRADOS_RADOS_CLIENT_WRITE_OPERATION_HPP

#include <rados/librados.hpp>

#include <span>
#include <vector>

#include "rados/client/pending.hpp"
#include "rados/object_store.hpp"

namespace nbdrados {

/// The caller's memory while librados uses it.
class WriteBuffers {
 public:
  explicit WriteBuffers(bool copy) : copy_(copy) {}

  bufferlist refer(std::span<const ConstPiece> pieces);

  /// Returns when nobody but this object refers to the memory.
  void wait_released() noexcept;

 private:
  const bool copy_;
  std::vector<ceph::buffer::ptr> held_;
};

class WritePending final : public RadosPending {
 public:
  WritePending(PendingOwner& store, bool copy)
      : RadosPending(store), buffers(copy) {}
  ~WritePending() override {
    drain(false);
    buffers.wait_released();
  }
  WriteBuffers buffers;

 private:
  int finish(int r) override {
    buffers.wait_released();
    return r;
  }
};

/// Whether a step is about no bytes, where it must be about some.
[[nodiscard]] bool is_about_nothing(const WriteOp::Step& step);

/// Whether a step copies from what is no object of librados.
[[nodiscard]] bool is_from_elsewhere(const WriteOp::Step& step);

/// The librados form of `op`.  `buffers` keeps what refers to the caller's
/// memory.
void translate(const WriteOp& op, librados::ObjectWriteOperation& to,
               WriteBuffers& buffers);

}  // namespace nbdrados

#endif
