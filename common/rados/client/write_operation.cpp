// SPDX-License-Identifier: BSD-3-Clause

#include "rados/client/write_operation.hpp"

#include <algorithm>
#include <chrono>
#include <string>
#include <thread>
#include <utility>

#include "rados/client/method_calls.hpp"
#include "rados/client/rados_store.hpp"

namespace nbdrados {

bufferlist WriteBuffers::refer(std::span<const ConstPiece> pieces) {
  bufferlist bl;
  for (const ConstPiece& piece : pieces) {
    if (piece.size == 0) continue;
    if (copy_) {
      bl.append(piece.data, static_cast<unsigned>(piece.size));
      continue;
    }
    // librados never writes to the buffers of a write operation; its
    // interface just has no const form.
    ceph::buffer::ptr p(ceph::buffer::create_static(
        static_cast<unsigned>(piece.size), const_cast<char*>(piece.data)));
    held_.push_back(p);
    bl.push_back(std::move(p));
  }
  return bl;
}

void WriteBuffers::wait_released() noexcept {
  for (const ceph::buffer::ptr& p : held_) {
    unsigned tries = 0;
    while (p.raw_nref() > 1) {
      // The messenger drops its reference as soon as it has sent, or given
      // up sending, the message.
      if (++tries < 64)
        std::this_thread::yield();
      else
        std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  }
  held_.clear();
}

// Whether a step is about no bytes, where it must be about some.  An OSD of
// 16.2.15 aborts when it is to zero nothing, and an object becomes unreadable
// when nothing is written behind its end.
bool is_about_nothing(const WriteOp::Step& s) {
  switch (s.kind) {
    case WriteOp::Kind::zero:
      return s.length == 0;
    case WriteOp::Kind::write:
    case WriteOp::Kind::write_same:
      return std::all_of(s.pieces.begin(), s.pieces.end(),
                         [](const ConstPiece& p) { return p.size == 0; });
    default:
      return false;
  }
}

namespace {

RadosStore* source_of(const WriteOp::Step& s) {
  return dynamic_cast<RadosStore*>(&s.store->keeper());
}

}  // namespace

bool is_from_elsewhere(const WriteOp::Step& s) {
  return s.kind == WriteOp::Kind::copy_from && source_of(s) == nullptr;
}

void translate(const WriteOp& op, librados::ObjectWriteOperation& to,
               WriteBuffers& buffers) {
  using Kind = WriteOp::Kind;
  for (const WriteOp::Step& s : op.steps()) {
    switch (s.kind) {
      case Kind::create: to.create(true); break;
      case Kind::touch: to.create(false); break;
      case Kind::assert_exists: to.assert_exists(); break;
      case Kind::write: to.write(s.offset, buffers.refer(s.pieces)); break;
      case Kind::write_same:
        to.writesame(s.offset, s.length, buffers.refer(s.pieces));
        break;
      case Kind::write_full: to.write_full(buffers.refer(s.pieces)); break;
      case Kind::zero: to.zero(s.offset, s.length); break;
      case Kind::truncate: to.truncate(s.offset); break;
      case Kind::remove: to.remove(); break;
      case Kind::set_xattr:
        to.setxattr(std::string(s.name).c_str(), copied(s.value));
        break;
      case Kind::cmp_xattr_gt:
        to.cmpxattr(std::string(s.name).c_str(), LIBRADOS_CMPXATTR_OP_GT,
                    s.offset);
        break;
      case Kind::exec: {
        bufferlist in = copied(s.value);
        add_method_call(to, std::string(s.name), std::string(s.method), in);
        break;
      }
      case Kind::alloc_hint: to.set_alloc_hint(s.offset, s.length); break;
      case Kind::omap_set:
        to.omap_set({{std::string(s.name), copied(s.value)}});
        break;
      case Kind::tmap_update: to.tmap_update(copied(s.value)); break;
      case Kind::copy_from:
        // Of the IoCtx, only pool, namespace and snapshot are sent (ceph:
        // src/librados/librados_cxx.cc).  Version 0: whatever it is.
        to.copy_from(std::string(s.name), source_of(s)->io_at(s.offset), 0, 0);
        break;
    }
  }
}

}  // namespace nbdrados
