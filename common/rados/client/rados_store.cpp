// SPDX-License-Identifier: BSD-3-Clause
//
// Copies.  A write hands the caller's memory to librados as it is
// (write_operation.hpp).  A read copies once, from the buffer that the
// messenger received into the caller's.

#include "rados/client/rados_store.hpp"

#include <algorithm>
#include <cerrno>
#include <exception>
#include <set>

#include "rados/client/method_calls.hpp"
#include "rados/client/write_operation.hpp"
#include "rados/error.hpp"
#include "rados/tuning.hpp"

namespace nbdrados {

namespace {

/// Adds the names that are in a pool itself, whatever tiers are over it.
void list_pool(librados::IoCtx& io,
               const std::function<bool(std::string_view)>& wanted,
               std::set<std::string>& names) {
  try {
    for (auto it = io.nobjects_begin(); it != io.nobjects_end(); ++it)
      if (wanted(it->get_oid())) names.insert(it->get_oid());
  } catch (const std::exception& e) {
    throw Error(EIO, std::string("cannot list the pool's objects: ") +
                         e.what());
  }
}

}  // namespace

int RadosStore::result(int r) {
  // EBLOCKLISTED has the same number, and nothing else answers so.
  if (r == -ESHUTDOWN) cluster_->found_shut_out();
  return r == -ENOENT ? cluster_->why_missing(pool_id_) : r;
}

std::unique_ptr<Pending> RadosStore::read(
    const std::string& oid, std::uint64_t offset,
    std::span<const MutablePiece> pieces, SnapId snap) {
  std::size_t length = 0;
  for (const MutablePiece& piece : pieces) length += piece.size;
  if (tuning.sparse_reads && sparse_reads_.wanted(length)) {
    auto p = std::make_unique<SparseReadPending>(*this, sparse_reads_, oid,
                                                 offset, length, pieces,
                                                 snap);
    p->op.sparse_read(offset, length, &p->extents, &p->data, &p->op_result);
    p->submitted(
        io_at(snap).aio_operate(oid, p->completion(), &p->op, nullptr));
    return p;
  }
  return read_plainly(oid, offset, length, pieces, snap);
}

std::unique_ptr<Pending> RadosStore::read_plainly(
    const std::string& oid, std::uint64_t offset, std::size_t length,
    std::span<const MutablePiece> pieces, SnapId snap) {
  auto p = std::make_unique<ReadPending>(*this, pieces);
  // To an OSD, no bytes are all bytes.
  p->submitted(length == 0 ? -EINVAL
                           : io_.aio_read(oid, p->completion(), &p->data,
                                          length, offset, snap));
  return p;
}

std::unique_ptr<Pending> RadosStore::stat(const std::string& oid,
                                          std::uint64_t* size, SnapId snap) {
  auto p = std::make_unique<StatPending>(*this);
  p->op.stat2(size, nullptr, &p->op_result);
  p->submitted(
      io_at(snap).aio_operate(oid, p->completion(), &p->op, nullptr));
  return p;
}

std::unique_ptr<Pending> RadosStore::exec(const std::string& oid,
                                          std::string_view cls,
                                          std::string_view method,
                                          std::string_view input,
                                          std::string* output) {
  auto p = std::make_unique<BytesPending>(*this, output);
  p->input = copied(input);
  p->submitted(call_method(io_, oid, p->completion(), std::string(cls),
                           std::string(method), p->input, &p->data));
  return p;
}

std::unique_ptr<Pending> RadosStore::exec_each(
    const std::string& oid, std::span<const MethodCall> calls,
    std::vector<std::string>* outputs) {
  auto p = std::make_unique<CallsPending>(*this, calls.size(), outputs);
  if (calls.empty() || calls.size() > max_calls) {
    p->submitted(-EINVAL);
    return p;
  }
  for (std::size_t i = 0; i < calls.size(); ++i) {
    bufferlist input = copied(calls[i].input);
    // The error of a call is that of the operation.
    add_method_call(p->op, calls[i].cls, calls[i].method, input,
                    &p->data[i]);
  }
  p->submitted(io_.aio_operate(oid, p->completion(), &p->op, nullptr));
  return p;
}

std::unique_ptr<Pending> RadosStore::xattrs(
    const std::string& oid, std::map<std::string, std::string>* out) {
  // Not aio_getxattrs, which cannot be cancelled: its completion is not
  // that of the operation (ceph: src/librados/IoCtxImpl.cc).
  auto p = std::make_unique<XattrsPending>(*this, out);
  p->op.getxattrs(&p->attrs, &p->op_result);
  p->submitted(io_.aio_operate(oid, p->completion(), &p->op, nullptr));
  return p;
}

std::unique_ptr<Pending> RadosStore::read_all(const std::string& oid,
                                              std::uint64_t limit,
                                              std::string* out) {
  auto p = std::make_unique<BytesPending>(*this, out);
  p->submitted(
      io_.aio_read(oid, p->completion(), &p->data, limit, 0, snap_head));
  return p;
}

void RadosStore::notify_ack(const std::string& oid, std::uint64_t notify_id,
                            std::uint64_t cookie, std::string_view payload) {
  bufferlist bl = copied(payload);
  io_.notify_ack(oid, notify_id, cookie, bl);
}

std::unique_ptr<Pending> RadosStore::list_watchers(
    const std::string& oid, std::vector<Watcher>* out) {
  auto p = std::make_unique<WatchersPending>(*this, out);
  p->op.list_watchers(&p->watchers, &p->op_result);
  p->submitted(io_.aio_operate(oid, p->completion(), &p->op, nullptr));
  return p;
}

std::unique_ptr<Pending> RadosStore::version(const std::string& oid,
                                             std::uint64_t* version) {
  auto p = std::make_unique<VersionPending>(*this, version);
  p->op.stat2(nullptr, nullptr, &p->op_result);
  p->submitted(io_.aio_operate(oid, p->completion(), &p->op, nullptr));
  return p;
}

std::unique_ptr<Pending> RadosStore::list_snaps(const std::string& oid,
                                                SnapSet* out) {
  auto p = std::make_unique<SnapsPending>(*this, out);
  p->op.list_snaps(&p->set, &p->op_result);
  p->submitted(io_at(librados::SNAP_DIR)
                   .aio_operate(oid, p->completion(), &p->op, nullptr));
  return p;
}

librados::IoCtx& RadosStore::io_at(SnapId snap) {
  if (snap == snap_head) return io_;
  const std::scoped_lock lock(mutex_);
  const auto [it, is_new] = at_snap_.try_emplace(snap);
  if (is_new) {
    it->second.dup(io_);
    it->second.snap_set_read(snap);
  }
  return it->second;
}

std::unique_ptr<Pending> RadosStore::write(const std::string& oid,
                                           const WriteOp& op,
                                           const SnapContext& snapc) {
  auto p = std::make_unique<WritePending>(*this, copy_writes_);
  const auto steps = op.steps();
  if (std::any_of(steps.begin(), steps.end(), is_about_nothing)) {
    p->submitted(-EINVAL);
    return p;
  }
  if (std::any_of(steps.begin(), steps.end(), is_from_elsewhere)) {
    p->submitted(-EXDEV);
    return p;
  }
  librados::ObjectWriteOperation to;
  translate(op, to, p->buffers);
  int r;
  if (snapc.seq == 0) {
    r = io_.aio_operate(oid, p->completion(), &to);
  } else {
    std::vector<librados::snap_t> snaps(snapc.snaps.begin(),
                                        snapc.snaps.end());
    r = io_.aio_operate(oid, p->completion(), &to, snapc.seq, snaps);
  }
  p->submitted(r);
  return p;
}

int RadosStore::map_extents(const std::string& oid, std::uint64_t offset,
                            std::uint64_t length, SnapId snap,
                            std::vector<ObjectRange>* out) {
  // The Objecter counts the range against the bytes it allows in flight,
  // and in an int (ceph: src/osdc/Objecter.cc, calc_op_budget).
  constexpr std::uint64_t slice = 32 << 20;
  out->clear();
  for (const std::uint64_t end = offset + length; offset < end;) {
    const std::uint64_t stop = std::min(end, offset + slice);
    std::map<std::uint64_t, std::uint64_t> map;
    const int r = io_at(snap).mapext(oid, offset, stop - offset, map);
    if (r < 0) return result(r);
    for (const auto& [start, size] : map) {
      // BlueStore answers in whole allocation units: clip.
      const std::uint64_t from = std::max(start, offset);
      const std::uint64_t to = std::min(start + size, stop);
      if (from >= to) continue;
      if (!out->empty() && out->back().offset + out->back().length == from)
        out->back().length += to - from;
      else
        out->push_back({from, to - from});
    }
    offset = stop;
  }
  return 0;
}

int RadosStore::release_snap_id(SnapId snap) {
  const int r = io_.selfmanaged_snap_remove(snap);
  return r == -ENOENT ? 0 : result(r);
}

std::vector<std::string> RadosStore::list(
    const std::function<bool(std::string_view)>& wanted,
    const std::function<void(const std::string&)>& log) {
  std::set<std::string> names;
  list_pool(io_, wanted, names);
  for (auto& [io, pool] : cluster_->cache_pools(io_)) {
    std::set<std::string> cached;
    try {
      list_pool(io, wanted, cached);
    } catch (const Error& e) {
      log("what is only in the cache pool '" + pool +
          "' is missing from the list: " + e.what());
    }
    // A cache pool remembers with an object of the name what does not exist
    // (ceph: src/osd/PrimaryLogPG.cc, whiteouts).
    std::vector<std::uint64_t> sizes(cached.size());
    std::vector<std::unique_ptr<Pending>> pending;
    for (const std::string& oid : cached)
      pending.push_back(stat(oid, &sizes[pending.size()], snap_head));
    auto asked = pending.begin();
    for (const std::string& oid : cached)
      if ((*asked++)->wait() == -ENOENT)
        names.erase(oid);
      else
        names.insert(oid);
  }
  return {names.begin(), names.end()};
}

}  // namespace nbdrados
