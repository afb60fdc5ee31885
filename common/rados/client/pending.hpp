// SPDX-License-Identifier: BSD-3-Clause
//
// Operations of librados that are under way.  Each has in its own members what
// librados fills until it has completed.
//
// Waiting.  A thread waits on the completion itself: the messenger's thread
// wakes it directly, whereas a callback would pass through another thread.

#ifndef NBDRADOS_RADOS_CLIENT_PENDING_HPP
#define NBDRADOS_RADOS_CLIENT_PENDING_HPP

#include <rados/librados.hpp>

#include <chrono>
#include <cstdint>
#include <list>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "rados/client/completion.hpp"
#include "rados/object_store.hpp"

namespace nbdrados {

/// The store that has started an operation.  Outlives it.
class PendingOwner {
 public:
  /// The caller's result for librados' one: tells a missing pool from a missing
  /// object, and learns that the client is blocklisted.
  [[nodiscard]] virtual int result(int r) = 0;
  virtual void cancel(librados::AioCompletion* c) = 0;

 protected:
  ~PendingOwner() = default;
};

/// The pending operation of every kind: what differs is finish().
class RadosPending : public Pending {
 public:
  explicit RadosPending(PendingOwner& store) : store_(store) {}

  [[nodiscard]] int wait() final;
  [[nodiscard]] int wait_for(std::chrono::milliseconds limit) final;
  [[nodiscard]] bool completed() final {
    return done_ || submit_result_ != 0 || completion_.get()->is_complete();
  }

  librados::AioCompletion* completion() const noexcept {
    return completion_.get();
  }
  /// The result of the aio_ call itself.  Not zero: nothing was started.
  void submitted(int r) noexcept { submit_result_ = r; }

 protected:
  /// To be called by each final class's destructor: librados must be done
  /// with its members before they go.  What only reads is cancelled where
  /// nobody has waited for it (because another one has failed), lest an OSD
  /// that does not answer makes this hang.  A write that has been cancelled
  /// may still happen: it is waited for.
  void drain(bool reads = true) noexcept;
  /// Turns the raw result into the caller's.
  virtual int finish(int r) = 0;

 private:
  void cancel() { store_.cancel(completion_.get()); }
  void settle();

  PendingOwner& store_;
  Completion completion_;
  int submit_result_ = 0;
  int result_ = 0;
  bool done_ = false;
};

class ReadPending final : public RadosPending {
 public:
  ReadPending(PendingOwner& store, std::span<const MutablePiece> pieces)
      : RadosPending(store), pieces_(pieces) {}
  ~ReadPending() override { drain(); }
  bufferlist data;

 private:
  int finish(int r) override;

  std::span<const MutablePiece> pieces_;
};

class StatPending final : public RadosPending {
 public:
  using RadosPending::RadosPending;
  ~StatPending() override { drain(); }
  librados::ObjectReadOperation op;
  int op_result = 0;

 private:
  int finish(int r) override { return r < 0 ? r : op_result; }
};

class VersionPending final : public RadosPending {
 public:
  VersionPending(PendingOwner& store, std::uint64_t* out)
      : RadosPending(store), out_(out) {}
  ~VersionPending() override { drain(); }
  librados::ObjectReadOperation op;
  int op_result = 0;

 private:
  int finish(int r) override;

  std::uint64_t* out_;
};

class BytesPending final : public RadosPending {
 public:
  BytesPending(PendingOwner& store, std::string* out)
      : RadosPending(store), out_(out) {}
  ~BytesPending() override { drain(); }
  bufferlist input, data;

 private:
  int finish(int r) override;

  std::string* out_;
};

class CallsPending final : public RadosPending {
 public:
  CallsPending(PendingOwner& store, std::size_t count,
               std::vector<std::string>* out)
      : RadosPending(store), data(count), out_(out) {}
  ~CallsPending() override { drain(); }
  librados::ObjectReadOperation op;
  std::vector<bufferlist> data;  // its elements must not move

 private:
  int finish(int r) override;

  std::vector<std::string>* out_;
};

class XattrsPending final : public RadosPending {
 public:
  XattrsPending(PendingOwner& store, std::map<std::string, std::string>* out)
      : RadosPending(store), out_(out) {}
  ~XattrsPending() override { drain(); }
  librados::ObjectReadOperation op;
  std::map<std::string, bufferlist> attrs;
  int op_result = 0;

 private:
  int finish(int r) override;

  std::map<std::string, std::string>* out_;
};

class WatchersPending final : public RadosPending {
 public:
  WatchersPending(PendingOwner& store, std::vector<Watcher>* out)
      : RadosPending(store), out_(out) {}
  ~WatchersPending() override { drain(); }
  librados::ObjectReadOperation op;
  std::list<obj_watch_t> watchers;
  int op_result = 0;

 private:
  int finish(int r) override;

  std::vector<Watcher>* out_;
};

class SnapsPending final : public RadosPending {
 public:
  SnapsPending(PendingOwner& store, SnapSet* out)
      : RadosPending(store), out_(out) {}
  ~SnapsPending() override { drain(); }
  librados::ObjectReadOperation op;
  librados::snap_set_t set;
  int op_result = 0;

 private:
  int finish(int r) override;

  SnapSet* out_;
};

}  // namespace nbdrados

#endif
