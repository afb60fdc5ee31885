// SPDX-License-Identifier: BSD-3-Clause

#include "rados/fault_store.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <thread>
#include <utility>

#include "rados/error.hpp"

namespace nbdrados {

namespace {

// A test that waits longer than this for one operation waits for ever.
constexpr std::chrono::seconds patience{60};

[[noreturn]] void give_up(const std::string& what) noexcept {
  std::fprintf(stderr, "FaultStore: %s\n", what.c_str());
  std::abort();
}

std::size_t mix(std::size_t seed, std::string_view bytes) {
  return seed * 31 + std::hash<std::string_view>()(bytes);
}

}  // namespace

std::string_view to_string(FaultStore::Kind kind) noexcept {
  switch (kind) {
    case FaultStore::Kind::read:
      return "read";
    case FaultStore::Kind::write:
      return "write";
    case FaultStore::Kind::stat:
      return "stat";
    case FaultStore::Kind::exec:
      return "exec";
    case FaultStore::Kind::xattrs:
      return "xattrs";
    case FaultStore::Kind::read_all:
      return "read_all";
    case FaultStore::Kind::map_extents:
      return "map_extents";
    case FaultStore::Kind::watch:
      return "watch";
    case FaultStore::Kind::notify_ack:
      return "notify_ack";
    case FaultStore::Kind::notify:
      return "notify";
    case FaultStore::Kind::version:
      return "version";
    case FaultStore::Kind::list:
      return "list";
    case FaultStore::Kind::list_watchers:
      return "list_watchers";
    case FaultStore::Kind::list_snaps:
      return "list_snaps";
    case FaultStore::Kind::make_snap_id:
      return "make_snap_id";
    case FaultStore::Kind::release_snap_id:
      return "release_snap_id";
  }
  return "?";
}

// ---- Operations
//
//     submit --> done                          no delay, not held
//            --> waiting --> running --> done  delay is over, or release()
//                        --> done              wait_for: -ETIMEDOUT
//
// Only who moves an operation from waiting to running carries it out, so a
// cancelled one touches nothing.

struct FaultStore::Operation {
  enum class State { waiting, running, done };
  Record record;
  Fault fault;
  Run run;
  Fingerprint fingerprint;
  std::size_t fingerprint_at_start = 0;
  int early_result = 0;  // where the fault says carried_out
  State state = State::waiting;
  int result = 0;
};

class FaultStore::FaultPending : public Pending {
 public:
  FaultPending(FaultStore& store, OperationPtr operation)
      : store_(store),
        operation_(std::move(operation)),
        exceptions_(std::uncaught_exceptions()) {}

  ~FaultPending() override {
    // An exception may leave operations behind; nobody else may.
    if (!asked_ && operation_->record.kind != Kind::notify &&
        std::uncaught_exceptions() <= exceptions_)
      store_.problem(operation_->record, "nobody asked for the result");
    if (!asked_) static_cast<void>(wait());
    timer_ = {};
    const std::scoped_lock lock(store_.mutex_);
    --store_.in_flight_;
  }
  FaultPending(const FaultPending&) = delete;
  FaultPending& operator=(const FaultPending&) = delete;

  int wait() override {
    asked_ = true;
    std::unique_lock lock(store_.mutex_);
    if (!store_.changed_.wait_for(lock, patience, [this] { return done(); }))
      give_up("nobody releases the " + name());
    return operation_->result;
  }

  int wait_for(std::chrono::milliseconds limit) override {
    asked_ = true;
    std::unique_lock lock(store_.mutex_);
    if (!store_.changed_.wait_for(lock, limit, [this] { return done(); })) {
      if (operation_->state == Operation::State::waiting) {
        operation_->state = Operation::State::done;
        operation_->result = -ETIMEDOUT;
        store_.held_.remove(operation_);
        store_.changed_.notify_all();
      }
      store_.changed_.wait(lock, [this] { return done(); });
    }
    return operation_->result;
  }

  bool completed() override {
    const std::scoped_lock lock(store_.mutex_);
    return done();
  }

  /// Completes the operation when its delay is over.
  void start_timer() {
    timer_ = std::jthread([&store = store_, operation = operation_] {
      std::unique_lock lock(store.mutex_);
      const bool cancelled = store.changed_.wait_for(
          lock, operation->fault.delay, [&operation] {
            return operation->state != Operation::State::waiting;
          });
      if (cancelled) return;
      operation->state = Operation::State::running;
      lock.unlock();
      store.complete(*operation);
    });
  }

 private:
  bool done() const { return operation_->state == Operation::State::done; }
  std::string name() const {
    return std::string(to_string(operation_->record.kind)) + " of " +
           operation_->record.oid;
  }

  FaultStore& store_;
  OperationPtr operation_;
  int exceptions_;
  bool asked_ = false;
  std::jthread timer_;
};

FaultStore::~FaultStore() {
  for (const std::string& problem : problems_)
    std::fprintf(stderr, "FaultStore: %s\n", problem.c_str());
  if (!problems_.empty()) give_up("a test did not ask for problems");
  if (in_flight_ != 0) give_up("operations outlive the store");
  if (!watches_.empty()) give_up("watches outlive the store");
}

FaultStore::Fault FaultStore::next_fault(const Record& record) {
  for (Fault& fault : faults_) {
    if (fault.kind && *fault.kind != record.kind) continue;
    if (!fault.oid.empty() && fault.oid != record.oid) continue;
    if (fault.times == 0) continue;
    if (fault.skip > 0) {
      --fault.skip;
      continue;
    }
    if (fault.times != always) --fault.times;
    ++hits_;
    return fault;
  }
  return {};
}

std::unique_ptr<FaultStore::FaultPending> FaultStore::submit(
    Record record, Run run, Fingerprint fingerprint) {
  auto operation = std::make_shared<Operation>();
  operation->record = std::move(record);
  operation->run = std::move(run);
  operation->fingerprint = std::move(fingerprint);
  {
    const std::scoped_lock lock(mutex_);
    log_.push_back(operation->record);
    operation->fault = next_fault(operation->record);
    most_in_flight_ = std::max(most_in_flight_, ++in_flight_);
  }
  const Fault& fault = operation->fault;
  auto pending = std::make_unique<FaultPending>(*this, operation);
  if (fault.carried_out) operation->early_result = operation->run(fault);
  if (operation->fingerprint)
    operation->fingerprint_at_start = operation->fingerprint();
  if (fault.held) {
    const std::scoped_lock lock(mutex_);
    held_.push_back(operation);
    changed_.notify_all();
  } else if (fault.delay.count() > 0 ||
             operation->record.kind == Kind::notify) {
    // A notification lasts until watchers answer.
    pending->start_timer();
  } else {
    operation->state = Operation::State::running;
    complete(*operation);
  }
  return pending;
}

// Only called by who set the state to running.
void FaultStore::complete(Operation& operation) {
  if (operation.fingerprint &&
      operation.fingerprint() != operation.fingerprint_at_start)
    problem(operation.record, "its memory changed while it was in flight");
  int result = 0;
  if (operation.fault.error != 0)
    result = -operation.fault.error;
  else if (operation.fault.carried_out)
    result = operation.early_result;
  else
    result = operation.run(operation.fault);
  const std::scoped_lock lock(mutex_);
  operation.result = result;
  operation.state = Operation::State::done;
  changed_.notify_all();
}

// The calls that block.
int FaultStore::run_now(Record record, Run run) {
  return submit(std::move(record), std::move(run))->wait();
}

void FaultStore::problem(const Record& record, const std::string& what) {
  const std::scoped_lock lock(mutex_);
  problems_.push_back(std::string(to_string(record.kind)) + " of " +
                      record.oid + ": " + what);
}

// ---- For tests

void FaultStore::inject(const Fault& fault) {
  const std::scoped_lock lock(mutex_);
  faults_.push_back(fault);
}

void FaultStore::clear_faults() {
  const std::scoped_lock lock(mutex_);
  faults_.clear();
}

std::uint64_t FaultStore::hits() {
  const std::scoped_lock lock(mutex_);
  return hits_;
}

std::size_t FaultStore::held() {
  const std::scoped_lock lock(mutex_);
  return held_.size();
}

bool FaultStore::wait_until_held(std::size_t count,
                                 std::chrono::milliseconds limit) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, limit,
                           [&] { return held_.size() >= count; });
}

void FaultStore::release_if(
    const std::function<bool(const Operation&)>& chosen) {
  std::vector<OperationPtr> released;
  {
    const std::scoped_lock lock(mutex_);
    held_.remove_if([&](const OperationPtr& operation) {
      if (!chosen(*operation)) return false;
      operation->state = Operation::State::running;
      released.push_back(operation);
      return true;
    });
  }
  for (const OperationPtr& operation : released) complete(*operation);
}

void FaultStore::release() {
  release_if([](const Operation&) { return true; });
}

void FaultStore::release(const std::string& oid) {
  release_if([&](const Operation& operation) {
    return operation.record.oid == oid;
  });
}

std::vector<FaultStore::Record> FaultStore::log() {
  const std::scoped_lock lock(mutex_);
  return log_;
}

std::size_t FaultStore::count(Kind kind) {
  const std::scoped_lock lock(mutex_);
  return static_cast<std::size_t>(
      std::count_if(log_.begin(), log_.end(), [kind](const Record& record) {
        return record.kind == kind;
      }));
}

void FaultStore::clear_log() {
  const std::scoped_lock lock(mutex_);
  log_.clear();
}

std::size_t FaultStore::most_in_flight() {
  const std::scoped_lock lock(mutex_);
  return most_in_flight_;
}

std::vector<std::string> FaultStore::problems() {
  const std::scoped_lock lock(mutex_);
  return std::exchange(problems_, {});
}

// ---- ObjectStore

std::unique_ptr<Pending> FaultStore::read(
    const std::string& oid, std::uint64_t offset,
    std::span<const MutablePiece> pieces, SnapId snap) {
  Record record{.kind = Kind::read, .oid = oid, .offset = offset, .snap = snap};
  for (const MutablePiece& piece : pieces) record.length += piece.size;
  // Held by value, as the interface does not say that the list of pieces
  // stays; only the memory does.
  std::vector<MutablePiece> all(pieces.begin(), pieces.end());
  const auto run = [this, oid, offset, all, snap](const Fault& fault) {
    if (!fault.short_read) return base_.read(oid, offset, all, snap)->wait();
    std::vector<MutablePiece> first;
    std::size_t left = *fault.short_read;
    for (const MutablePiece& piece : all) {
      const std::size_t n = std::min(left, piece.size);
      if (n > 0) first.push_back({.data = piece.data, .size = n});
      left -= n;
    }
    if (!first.empty()) return base_.read(oid, offset, first, snap)->wait();
    std::uint64_t size = 0;
    return base_.stat(oid, &size, snap)->wait();
  };
  const auto fingerprint = [all] {
    std::size_t sum = 0;
    for (const MutablePiece& piece : all)
      sum = mix(sum, {piece.data, piece.size});
    return sum;
  };
  return submit(std::move(record), run, fingerprint);
}

std::unique_ptr<Pending> FaultStore::write(const std::string& oid,
                                           const WriteOp& op,
                                           const SnapContext& snapc) {
  Record record{.kind = Kind::write, .oid = oid, .snapc = snapc};
  for (const WriteOp::Step& step : op.steps())
    record.steps.push_back(step.kind);
  const auto run = [this, oid, op, snapc](const Fault&) {
    return base_.write(oid, op, snapc)->wait();
  };
  const auto fingerprint = [op] {
    std::size_t sum = 0;
    for (const WriteOp::Step& step : op.steps()) {
      for (const ConstPiece& piece : step.pieces)
        sum = mix(sum, {piece.data, piece.size});
      for (const std::string_view text : {step.name, step.method, step.value})
        sum = mix(sum, text);
    }
    return sum;
  };
  return submit(std::move(record), run, fingerprint);
}

std::unique_ptr<Pending> FaultStore::stat(const std::string& oid,
                                          std::uint64_t* size, SnapId snap) {
  return submit({.kind = Kind::stat, .oid = oid, .snap = snap},
                [this, oid, size, snap](const Fault&) {
                  return base_.stat(oid, size, snap)->wait();
                });
}

std::unique_ptr<Pending> FaultStore::exec(const std::string& oid,
                                          std::string_view cls,
                                          std::string_view method,
                                          std::string_view input,
                                          std::string* output) {
  Record record{.kind = Kind::exec, .oid = oid};
  record.method.append(cls).append(".").append(method);
  return submit(
      std::move(record),
      [this, oid, cls = std::string(cls), method = std::string(method),
       input = std::string(input), output](const Fault&) {
        return base_.exec(oid, cls, method, input, output)->wait();
      });
}

std::unique_ptr<Pending> FaultStore::exec_each(
    const std::string& oid, std::span<const MethodCall> calls,
    std::vector<std::string>* outputs) {
  Record record{.kind = Kind::exec, .oid = oid};
  std::string last;
  for (const MethodCall& c : calls) {
    const std::string name = std::string(c.cls) + "." + c.method;
    if (name != last) record.method += (last.empty() ? "" : " ") + name;
    last = name;
  }
  return submit(std::move(record),
                [this, oid, all = std::vector(calls.begin(), calls.end()),
                 outputs](const Fault&) {
                  return base_.exec_each(oid, all, outputs)->wait();
                });
}

std::unique_ptr<Pending> FaultStore::xattrs(
    const std::string& oid, std::map<std::string, std::string>* out) {
  return submit({.kind = Kind::xattrs, .oid = oid},
                [this, oid, out](const Fault&) {
                  return base_.xattrs(oid, out)->wait();
                });
}

std::unique_ptr<Pending> FaultStore::read_all(const std::string& oid,
                                              std::uint64_t limit,
                                              std::string* out) {
  return submit({.kind = Kind::read_all, .oid = oid, .length = limit},
                [this, oid, limit, out](const Fault& fault) {
                  const std::uint64_t most =
                      fault.short_read
                          ? std::min<std::uint64_t>(limit, *fault.short_read)
                          : limit;
                  return base_.read_all(oid, most, out)->wait();
                });
}

int FaultStore::map_extents(const std::string& oid, std::uint64_t offset,
                            std::uint64_t length, SnapId snap,
                            std::vector<ObjectRange>* out) {
  return run_now({.kind = Kind::map_extents,
                  .oid = oid,
                  .offset = offset,
                  .length = length,
                  .snap = snap},
                 [&](const Fault&) {
                   return base_.map_extents(oid, offset, length, snap, out);
                 });
}

int FaultStore::make_snap_id(SnapId* snap) {
  return run_now({.kind = Kind::make_snap_id},
                 [&](const Fault&) { return base_.make_snap_id(snap); });
}

int FaultStore::release_snap_id(SnapId snap) {
  return run_now({.kind = Kind::release_snap_id, .snap = snap},
                 [&](const Fault&) { return base_.release_snap_id(snap); });
}

std::unique_ptr<Pending> FaultStore::list_watchers(
    const std::string& oid, std::vector<Watcher>* out) {
  return submit({.kind = Kind::list_watchers, .oid = oid},
                [this, oid, out](const Fault&) {
                  return base_.list_watchers(oid, out)->wait();
                });
}

std::unique_ptr<Pending> FaultStore::start_notify(
    const std::string& oid, std::string_view payload,
    std::chrono::milliseconds limit, std::string* reply) {
  return submit({.kind = Kind::notify, .oid = oid},
                [this, oid, payload = std::string(payload), limit,
                 reply](const Fault&) {
                  return base_.start_notify(oid, payload, limit, reply)->wait();
                });
}

void FaultStore::notify_ack(const std::string& oid, std::uint64_t notify_id,
                            std::uint64_t cookie, std::string_view payload) {
  static_cast<void>(
      run_now({.kind = Kind::notify_ack, .oid = oid}, [&](const Fault&) {
        base_.notify_ack(oid, notify_id, cookie, payload);
        return 0;
      }));
}

std::unique_ptr<Pending> FaultStore::version(const std::string& oid,
                                             std::uint64_t* version) {
  return submit({.kind = Kind::version, .oid = oid},
                [this, oid, version](const Fault&) {
                  return base_.version(oid, version)->wait();
                });
}

std::unique_ptr<Pending> FaultStore::list_snaps(const std::string& oid,
                                                SnapSet* out) {
  return submit({.kind = Kind::list_snaps, .oid = oid},
                [this, oid, out](const Fault&) {
                  return base_.list_snaps(oid, out)->wait();
                });
}

std::vector<std::string> FaultStore::list(
    const std::function<bool(std::string_view)>& wanted,
    const std::function<void(const std::string&)>& log) {
  std::vector<std::string> names;
  const int r = run_now({.kind = Kind::list}, [&](const Fault&) {
    names = base_.list(wanted, log);
    return 0;
  });
  check(r, "cannot list objects");
  return names;
}

// ---- Watches

class FaultStore::FaultWatch : public Watch, private WatchHandler {
 public:
  FaultWatch(FaultStore& store, std::string oid, WatchHandler& handler)
      : store_(store), oid_(std::move(oid)), handler_(handler) {}
  ~FaultWatch() override {
    base_watch_.reset();
    std::unique_lock lock(store_.mutex_);
    std::erase(store_.watches_, this);
    store_.changed_.wait(lock, [this] { return busy_ == 0; });
  }
  FaultWatch(const FaultWatch&) = delete;
  FaultWatch& operator=(const FaultWatch&) = delete;

  std::uint64_t cookie() const noexcept override {
    return base_watch_->cookie();
  }

  void start() {
    base_watch_ = store_.base_.watch(oid_, *this);
    const std::scoped_lock lock(store_.mutex_);
    store_.watches_.push_back(this);
  }

  int check() override {
    {
      const std::scoped_lock lock(store_.mutex_);
      if (lost_ != 0) return lost_;
    }
    return base_watch_->check();
  }
  std::chrono::milliseconds kept_for() override {
    const std::scoped_lock lock(store_.mutex_);
    return store_.watches_kept_for_;
  }

 private:
  friend class FaultStore;

  void notified(std::uint64_t notify_id, std::uint64_t cookie,
                std::string_view payload) noexcept override {
    bool gone = false;
    {
      const std::scoped_lock lock(store_.mutex_);
      gone = lost_ == ENOTCONN;
    }
    if (gone)  // the OSD knows no such watch, so no notifier waits for it
      store_.base_.notify_ack(oid_, notify_id, cookie, {});
    else
      handler_.notified(notify_id, cookie, payload);
  }
  void watch_lost(int code) noexcept override { handler_.watch_lost(code); }

  FaultStore& store_;
  const std::string oid_;
  WatchHandler& handler_;
  std::unique_ptr<Watch> base_watch_;
  int lost_ = 0;  // guarded by store_.mutex_
  int busy_ = 0;  // guarded by store_.mutex_: injected callbacks under way
};

std::unique_ptr<Watch> FaultStore::watch(const std::string& oid,
                                         WatchHandler& handler) {
  std::unique_ptr<FaultWatch> watch;
  std::exception_ptr thrown;
  const int r =
      run_now({.kind = Kind::watch, .oid = oid}, [&](const Fault&) {
        try {
          watch = std::make_unique<FaultWatch>(*this, oid, handler);
          watch->start();
          return 0;
        } catch (const Error& error) {
          thrown = std::current_exception();
          return -error.code();
        }
      });
  if (thrown) std::rethrow_exception(thrown);
  check(r, "cannot watch " + oid);
  return watch;
}

void FaultStore::keep_watches_for(std::chrono::milliseconds time) {
  const std::scoped_lock lock(mutex_);
  watches_kept_for_ = time;
}

void FaultStore::lose_watches(const std::string& oid, int code,
                              std::size_t oldest) {
  std::vector<FaultWatch*> lost;
  {
    const std::scoped_lock lock(mutex_);
    for (FaultWatch* const watch : watches_) {
      if (watch->oid_ != oid || lost.size() == oldest) continue;
      watch->lost_ = code;
      ++watch->busy_;
      lost.push_back(watch);
    }
  }
  const std::jthread caller([&] {
    for (FaultWatch* const watch : lost) {
      watch->handler_.watch_lost(code);
      const std::scoped_lock lock(mutex_);
      --watch->busy_;
      changed_.notify_all();
    }
  });
}

}  // namespace nbdrados
