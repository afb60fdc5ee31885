// SPDX-License-Identifier: BSD-3-Clause

#include "image/ownership/object_map.hpp"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "image/ownership/map_loader.hpp"
#include "layout/ranges.hpp"
#include "rbd/cls_lock.hpp"
#include "rbd/format2.hpp"

namespace nbdrados {

namespace {

/// The lock of a map has no cookie and no tag: who has the image's lock has
/// the right to it (ceph: src/librbd/object_map/LockRequest.cc).
constexpr std::string_view no_cookie;
constexpr std::string_view no_tag;

/// So many times may somebody else be found to have the map's lock.
constexpr int lock_rounds = 8;

}  // namespace

/// What one call wants; guarded by mutex_ once queued.
struct ObjectMap::Request {
  Kind kind;
  std::vector<Range> ranges;  // ascending
  bool may_reserve = false;   // behind its only object
  bool done = false;
  std::optional<Error> error;
};

/// What is carried out together, in this order.
struct ObjectMap::Batch {
  std::vector<Range> removals;
  std::vector<Range> ends;
  std::vector<Range> returned;
  std::vector<Range> creations;
  std::vector<Range> marks;     // what was asked for,
  std::vector<Range> reserves;  // and what becomes `exists` besides; ascending
};

/// One operation on the map's object.
struct ObjectMap::Operation {
  static constexpr std::size_t max_updates = WriteOp::max_steps - 1;
  WriteOp op;
  std::vector<std::string> inputs;  // what op points to
  std::unique_ptr<Pending> pending;
};

ObjectMap::ObjectMap(ObjectStore& store, std::string image_id,
                     std::string oid, ObjectStates states,
                     std::chrono::milliseconds limit)
    : store_(store),
      image_id_(std::move(image_id)),
      oid_(std::move(oid)),
      assert_locked_(encode_assert_locked(rbd_lock_name, LockType::exclusive,
                                          no_cookie, no_tag)),
      objects_(states.size()),
      limit_(limit),
      blocks_((states.size() + object_map_block - 1) / object_map_block) {
  std::vector<StateBlockPointer> blocks = states.take_blocks();
  for (std::size_t i = 0; i < blocks_.size(); ++i)
    blocks_[i].store(blocks[i].release(), std::memory_order_relaxed);
}

ObjectMap::~ObjectMap() {
  for (const auto& block : blocks_) FreeStateBlock()(block.load());
}

std::shared_ptr<ObjectMap> ObjectMap::open(ObjectStore& store,
                                           std::string image_id,
                                           std::uint64_t objects,
                                           std::chrono::milliseconds limit) {
  std::string oid = format2_object_map_oid(image_id, snap_head);
  const std::string request = encode_lock(
      rbd_lock_name, LockType::exclusive, no_cookie, no_tag, "");
  int locked = -EBUSY;
  for (int round = 0; locked == -EBUSY && round < lock_rounds; ++round) {
    WriteOp op;
    // A map that does not exist must not come into being by its lock.
    op.assert_exists().exec(lock_class, lock_method_lock, request);
    locked = store.write(oid, op, {})->wait_for(limit);
    // By an operation of ours whose answer we did not get.
    if (locked == -EEXIST) locked = 0;
    if (locked != -EBUSY) break;
    // A former owner's, who did not live to unlock it.
    std::string reply;
    wait_check(*store.exec(oid, lock_class, lock_method_get_info,
                           encode_get_lock_info(rbd_lock_name), &reply),
               limit, "cannot see who has locked object map " + oid);
    for (const LockHolder& holder : decode_lock_info(reply).holders) {
      const int r =
          store.exec(oid, lock_class, lock_method_break,
                     encode_break_lock(rbd_lock_name, holder), &reply)
              ->wait_for(limit);
      if (r != -ENOENT) check(r, "cannot break the lock of object map " + oid);
    }
  }
  check(locked, "cannot lock object map " + oid);

  const auto unlock = [&]() noexcept {
    try {
      std::string ignored;
      (void)store
          .exec(oid, lock_class, lock_method_unlock,
                encode_unlock(rbd_lock_name, no_cookie), &ignored)
          ->wait_for(limit);
    } catch (...) {
      // What led here matters more; the next owner breaks the lock.
    }
  };
  try {
    ObjectStates states = load_object_map(store, oid, limit).states;
    if (states.size() < objects)
      throw Error(EINVAL, "object map " + oid + " is for " +
                              std::to_string(states.size()) +
                              " objects, and the image has " +
                              std::to_string(objects));
    return std::shared_ptr<ObjectMap>(new ObjectMap(
        store, std::move(image_id), std::move(oid), std::move(states), limit));
  } catch (...) {
    unlock();
    throw;
  }
}

void ObjectMap::close() {
  // Not by give_back: whoever waits for the lock must not wait for ever.
  Batch batch;
  {
    const std::scoped_lock lock(mutex_);
    no_more_reserved({0, objects_}, batch.returned);
    runs_.clear();
  }
  const int returned = send(batch, std::chrono::steady_clock::now() + limit_);
  std::string ignored;
  const int r = store_
                    .exec(oid_, lock_class, lock_method_unlock,
                          encode_unlock(rbd_lock_name, no_cookie), &ignored)
                    ->wait_for(limit_);
  if (r != -ENOENT) check(r, "cannot unlock object map " + oid_);
  check(returned, "cannot update object map " + oid_);
}

// Memory -------------------------------------------------------------------

ObjectState ObjectMap::state(std::uint64_t object_no) const noexcept {
  if (object_no >= objects_ || failed_.load(std::memory_order_acquire))
    return ObjectState::exists;
  return raw(object_no);
}

ObjectState ObjectMap::raw(std::uint64_t object_no) const noexcept {
  return (*blocks_[object_no / object_map_block].load(
      std::memory_order_acquire))[object_no];
}

std::uint64_t ObjectMap::end_of_absent(std::uint64_t object_no,
                                       std::uint64_t end) const noexcept {
  const std::uint64_t last = std::min(end, objects_);
  while (object_no < last && !failed_.load(std::memory_order_acquire)) {
    const std::uint64_t block = object_no / object_map_block;
    const std::uint64_t stop = std::min(last, (block + 1) * object_map_block);
    object_no = blocks_[block].load(std::memory_order_acquire)
                    ->end_of_absent(object_no, stop);
    if (object_no != stop) break;
  }
  return object_no;
}

bool ObjectMap::concerns(Kind kind, std::uint64_t object_no) const noexcept {
  const ObjectState now = raw(object_no);
  switch (kind) {
    case Kind::begin_removal:
      return now == ObjectState::exists || now == ObjectState::exists_clean;
    case Kind::end_removal:
      return now == ObjectState::pending;
    case Kind::begin_creation:
      return now == ObjectState::nonexistent;
    case Kind::give_back:
      return false;
    case Kind::mark_exists:
      return now != ObjectState::exists;
  }
  return true;
}

ObjectState ObjectMap::target(Kind kind) noexcept {
  switch (kind) {
    case Kind::begin_removal:
    case Kind::begin_creation: return ObjectState::pending;
    case Kind::end_removal:
    case Kind::give_back: return ObjectState::nonexistent;
    case Kind::mark_exists: break;
  }
  return ObjectState::exists;
}

void ObjectMap::add_needed(Kind kind, Range range,
                           std::vector<Range>& out) const {
  for (std::uint64_t n = range.first; n < range.end; ++n) {
    if (concerns(kind, n)) add(n, out);
  }
}

/// Appends an object.
void ObjectMap::add(std::uint64_t object_no, std::vector<Range>& out) {
  if (!out.empty() && out.back().end == object_no)
    ++out.back().end;
  else
    out.push_back({object_no, object_no + 1});
}

/// The caller holds mutex_, as for own, so that nobody else changes a block.
void ObjectMap::apply(Kind kind, std::span<const Range> ranges) {
  for (const Range& r : ranges)
    for (std::uint64_t n = r.first; n < r.end; ++n)
      if (concerns(kind, n)) own(n / object_map_block).set(n, target(kind));
}

/// The block, for changing it.
StateBlock& ObjectMap::own(std::uint64_t block) {
  StateBlock* const now = blocks_[block].load(std::memory_order_relaxed);
  if (!now->is_uniform()) return *now;
  auto* const copy = new StateBlock(*now);
  blocks_[block].store(copy, std::memory_order_release);
  return *copy;
}

// Changes ------------------------------------------------------------------

void ObjectMap::mark_exists(std::uint64_t first, std::uint64_t count) {
  change(Kind::mark_exists, first, count);
}

void ObjectMap::mark_exists(std::span<const std::uint64_t> objects) {
  change(Kind::mark_exists, objects);
}

void ObjectMap::mark_written(std::uint64_t object_no) {
  check_range(object_no, 1);
  if (concerns(Kind::mark_exists, object_no))
    submit(Kind::mark_exists, {{object_no, object_no + 1}}, true);
}

void ObjectMap::give_back() {
  {
    const std::scoped_lock lock(mutex_);
    if (error_) return;
    // Whoever flushes after each object does not fill an image.
    runs_.clear();
    if (reserved_.empty() && !reserving_) return;
  }
  submit(Kind::give_back, {});
}

void ObjectMap::begin_creation(std::uint64_t first, std::uint64_t count) {
  change(Kind::begin_creation, first, count);
}

void ObjectMap::begin_creation(std::span<const std::uint64_t> objects) {
  change(Kind::begin_creation, objects);
}

void ObjectMap::begin_removal(std::uint64_t first, std::uint64_t count) {
  change(Kind::begin_removal, first, count);
}

void ObjectMap::end_removal(std::uint64_t first, std::uint64_t count) {
  change(Kind::end_removal, first, count);
}

void ObjectMap::check_range(std::uint64_t first, std::uint64_t count) const {
  if (first > objects_ || count > objects_ - first)
    throw Error(ERANGE, "object " + std::to_string(first + count - 1) +
                            " is behind the end of object map " + oid_);
}

void ObjectMap::change(Kind kind, std::uint64_t first, std::uint64_t count) {
  check_range(first, count);
  std::vector<Range> ranges;
  add_needed(kind, {first, first + count}, ranges);
  if (!ranges.empty()) submit(kind, std::move(ranges));
}

void ObjectMap::change(Kind kind, std::span<const std::uint64_t> objects) {
  std::vector<Range> ranges;
  for (const std::uint64_t n : objects) {
    check_range(n, 1);
    add_needed(kind, {n, n + 1}, ranges);
  }
  if (!ranges.empty()) submit(kind, std::move(ranges));
}

void ObjectMap::submit(Kind kind, std::vector<Range> ranges,
                       bool may_reserve) {
  Request request{.kind = kind,
                  .ranges = std::move(ranges),
                  .may_reserve = may_reserve,
                  .error = {}};
  std::unique_lock lock(mutex_);
  if (error_) throw *error_;
  if (kind == Kind::mark_exists) {
    take_reserved(request.ranges);
    if (request.ranges.empty()) return;
  }
  queue_.push_back(&request);
  while (!request.done) {
    if (!led_) {
      led_ = true;
      lead(lock);
      led_ = false;
      // Whoever has queued in between leads the next batch.
      changed_.notify_all();
    } else {
      changed_.wait(lock);
    }
  }
  if (request.error) throw *request.error;
}

/// Carries out everything that is queued.  The lock is held on entry and on
/// return.
void ObjectMap::lead(std::unique_lock<std::mutex>& lock) {
  std::vector<Request*> requests;
  requests.swap(queue_);
  std::optional<Error> error = error_;
  if (!error) {
    try {
      const Batch batch = prepare(requests);
      reserving_ = !batch.reserves.empty() || !batch.returned.empty();
      lock.unlock();
      int r = 0;
      try {
        r = send(batch);
      } catch (...) {
        lock.lock();
        throw;
      }
      lock.lock();
      check(r, "cannot update object map " + oid_);
      complete(batch);
    } catch (const Error& e) {
      error = e;
    } catch (const std::exception& e) {
      error = Error(ENOMEM, "cannot update object map " + oid_ + ": " +
                                e.what());
    }
    reserving_ = false;
    if (error) {
      error_ = error;
      failed_.store(true, std::memory_order_release);
      reserved_.clear();
    }
  }
  for (Request* const request : requests) {
    request->error = error;
    request->done = true;
  }
}

/// The caller holds mutex_, as for all down to complete.
ObjectMap::Batch ObjectMap::prepare(std::span<Request* const> requests) {
  Batch batch;
  batch.removals = joined(requests, Kind::begin_removal);
  // First of all: what joins the others looks at memory.
  apply(Kind::begin_removal, batch.removals);
  batch.ends = joined(requests, Kind::end_removal);
  // What has become reserved while they waited.
  for (Request* const request : requests)
    if (request->kind == Kind::mark_exists) take_reserved(request->ranges);
  for (const Request* const request : requests)
    if (request->kind == Kind::give_back) {
      no_more_reserved({0, objects_}, batch.returned);
      runs_.clear();
    }
  batch.creations = joined(requests, Kind::begin_creation);
  for (const Range& created : batch.creations)
    no_more_reserved(created, batch.returned);
  batch.marks = joined(requests, Kind::mark_exists);

  const auto in = [](std::span<const Range> ranges, std::uint64_t n) {
    return std::any_of(ranges.begin(), ranges.end(), [n](const Range& r) {
      return n >= r.first && n < r.end;
    });
  };
  // A later request of the batch can give up the guess of an earlier one.
  std::set<std::uint64_t> guessed;
  for (const Request* const request : requests) {
    if (!request->may_reserve || request->ranges.empty()) continue;
    const CreationRuns::Guess guess = runs_.made(
        request->ranges.front().first, [&](const Range& range) {
          return any_in(reserved_, range) || any_in(guessed, range);
        });
    no_more_reserved(guess.over, batch.returned);
    guessed.erase(guessed.lower_bound(guess.over.first),
                  guessed.lower_bound(guess.over.end));
    const std::uint64_t end = std::min(guess.next.end, objects_);
    for (std::uint64_t n = guess.next.first;
         n < end && raw(n) == ObjectState::nonexistent &&
         !in(batch.creations, n);
         ++n)
      if (!in(batch.marks, n)) guessed.insert(n);
  }
  for (const std::uint64_t n : guessed) add(n, batch.reserves);
  return batch;
}

/// All of a batch is in the pool.
void ObjectMap::complete(const Batch& batch) {
  apply(Kind::end_removal, batch.ends);
  apply(Kind::begin_creation, batch.creations);
  apply(Kind::mark_exists, batch.marks);
  for (const Range& r : batch.reserves)
    for (std::uint64_t n = r.first; n < r.end; ++n)
      // It may have been reserved before, and taken since.
      if (raw(n) == ObjectState::nonexistent) reserved_.insert(n);
}

bool ObjectMap::any_in(const std::set<std::uint64_t>& objects, Range range) {
  const auto at = objects.lower_bound(range.first);
  return at != objects.end() && *at < range.end;
}

/// Takes away what is reserved, and has memory say that it exists.
void ObjectMap::take_reserved(std::vector<Range>& ranges) {
  if (reserved_.empty()) return;
  std::vector<Range> left;
  for (Range range : ranges) {
    auto at = reserved_.lower_bound(range.first);
    while (at != reserved_.end() && *at < range.end) {
      const Range taken{*at, *at + 1};
      if (range.first != taken.first)
        left.push_back({range.first, taken.first});
      range.first = taken.end;
      apply(Kind::mark_exists, {&taken, 1});
      at = reserved_.erase(at);
    }
    if (range.first != range.end) left.push_back(range);
  }
  ranges = std::move(left);
}

/// Moves what is reserved to `out`.
void ObjectMap::no_more_reserved(Range range, std::vector<Range>& out) {
  auto at = reserved_.lower_bound(range.first);
  while (at != reserved_.end() && *at < range.end) {
    add(*at, out);
    at = reserved_.erase(at);
  }
}

/// The ranges of all requests of a kind, ascending, each object once.  Where
/// the change would change nothing between two ranges of the same block, they
/// become one: each range of a block costs an operation of its own.
/// The caller holds mutex_.
std::vector<ObjectMap::Range> ObjectMap::joined(
    std::span<Request* const> batch, Kind kind) const {
  std::vector<Range> all;
  for (const Request* const request : batch)
    if (request->kind == kind)
      all.insert(all.end(), request->ranges.begin(), request->ranges.end());
  const auto idle = [&](std::uint64_t first, std::uint64_t end) {
    // An end_removal of the same batch may change what is in between.
    if (kind == Kind::begin_creation) return false;
    if ((first - 1) / object_map_block != end / object_map_block) return false;
    if (any_in(reserved_, {first, end})) return false;
    for (; first < end; ++first)
      if (concerns(kind, first)) return false;
    return true;
  };
  join(all, &Range::first, &Range::end, idle);
  return all;
}

/// Adds the updates of ranges to operations, the last of which may have room
/// left.  Two updates in one operation must not touch the same block; see
/// encode_object_map_update.
void ObjectMap::add_operations(
    Kind kind, std::span<const Range> ranges,
    std::vector<std::unique_ptr<Operation>>& out) const {
  std::optional<ObjectState> current;
  if (kind == Kind::begin_removal) current = ObjectState::exists;
  if (kind == Kind::end_removal) current = ObjectState::pending;
  if (kind == Kind::give_back) current = ObjectState::exists;
  if (kind == Kind::begin_creation) current = ObjectState::nonexistent;
  // The first update of a kind begins an operation, so that the kinds are
  // carried out one after the other.
  std::uint64_t next_block = ~std::uint64_t{0};
  for (const Range& whole : ranges)
    for (std::uint64_t first = whole.first; first < whole.end;) {
      const std::uint64_t end = std::min(
          whole.end, (first / object_map_update_max + 1) *
                         object_map_update_max);
      const std::uint64_t block = first / object_map_block;
      if (block < next_block || next_block == ~std::uint64_t{0} ||
          out.back()->inputs.size() == Operation::max_updates) {
        auto& op = *out.emplace_back(std::make_unique<Operation>());
        op.inputs.reserve(Operation::max_updates);
        op.op.exec(lock_class, lock_method_assert_locked, assert_locked_);
      }
      Operation& op = *out.back();
      op.op.exec(rbd_class, object_map_method_update,
                 op.inputs.emplace_back(encode_object_map_update(
                     first, end, target(kind), current)));
      next_block = (end - 1) / object_map_block + 1;
      first = end;
    }
}

/// Returns the first error, when all operations have ended, or were given up
/// at the deadline.
int ObjectMap::send(
    const Batch& batch,
    std::optional<std::chrono::steady_clock::time_point> deadline) {
  // What is reserved follows what was asked for.
  std::vector<Range> marks = batch.marks;
  marks.insert(marks.end(), batch.reserves.begin(), batch.reserves.end());
  join(marks, &Range::first, &Range::end);

  std::vector<std::unique_ptr<Operation>> operations;
  add_operations(Kind::begin_removal, batch.removals, operations);
  add_operations(Kind::end_removal, batch.ends, operations);
  add_operations(Kind::give_back, batch.returned, operations);
  add_operations(Kind::begin_creation, batch.creations, operations);
  add_operations(Kind::mark_exists, marks, operations);
  for (const auto& o : operations) o->pending = store_.write(oid_, o->op, {});
  int result = 0;
  for (const auto& o : operations) {
    using namespace std::chrono;
    const int r =
        deadline ? o->pending->wait_for(std::max(
                       0ms, duration_cast<milliseconds>(
                                *deadline - steady_clock::now())))
                 : o->pending->wait();
    if (r < 0 && result == 0) result = r;
  }
  return result;
}

}  // namespace nbdrados
