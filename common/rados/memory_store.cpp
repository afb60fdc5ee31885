// SPDX-License-Identifier: BSD-3-Clause

#include "rados/memory_store.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "rados/error.hpp"

namespace nbdrados {

namespace {

class Done : public Pending {
 public:
  explicit Done(int result) : result_(result) {}
  int wait() override { return result_; }
  int wait_for(std::chrono::milliseconds) override { return result_; }
  bool completed() override { return true; }

 private:
  int result_;
};

std::unique_ptr<Pending> done(int result) {
  return std::make_unique<Done>(result);
}

int clamp_to_int(std::uint64_t n) {
  return static_cast<int>(std::min<std::uint64_t>(
      n, static_cast<std::uint64_t>(std::numeric_limits<int>::max())));
}

// Also required by librados of every context that is set
// (ceph: src/common/snap_types.cc, SnapContext::is_valid).
bool valid(const SnapContext& snapc) {
  if (snapc.snaps.empty()) return true;
  return snapc.snaps.front() <= snapc.seq &&
         std::is_sorted(snapc.snaps.begin(), snapc.snaps.end(),
                        [](SnapId a, SnapId b) { return a >= b; });
}

// Whether a step can fail on what it finds in the object.
bool can_fail(WriteOp::Kind kind) {
  switch (kind) {
    case WriteOp::Kind::touch:
    case WriteOp::Kind::alloc_hint:
    case WriteOp::Kind::set_xattr:
    case WriteOp::Kind::omap_set:
      return false;
    default:
      return true;
  }
}

bool can_modify(WriteOp::Kind kind) {
  return kind != WriteOp::Kind::assert_exists &&
         kind != WriteOp::Kind::cmp_xattr_gt;
}

MemoryObject& made(std::optional<MemoryObject>& object) {
  if (!object) object.emplace();
  return *object;
}

// Little-endian decoding of a trivial map and of updates to it
// (ceph: src/osd/PrimaryLogPG.cc, do_tmapup).
class Decoder {
 public:
  explicit Decoder(std::string_view in) : in_(in) {}
  [[nodiscard]] bool at_end() const { return in_.empty(); }
  [[nodiscard]] bool ok() const { return ok_; }
  unsigned u8() { return static_cast<unsigned char>(take(1)[0]); }
  std::uint32_t u32() {
    const std::string bytes = take(4);
    std::uint32_t n = 0;
    for (int i = 3; i >= 0; --i)
      n = n << 8 |
          static_cast<unsigned char>(bytes[static_cast<std::size_t>(i)]);
    return n;
  }
  std::string text() {
    const std::uint32_t n = u32();
    return n == 0 ? std::string() : take(n);
  }

 private:
  std::string take(std::size_t n) {
    if (n > in_.size()) {
      ok_ = false;
      in_ = {};
      return std::string(std::min<std::size_t>(n, 4), '\0');
    }
    std::string bytes(in_.substr(0, n));
    in_.remove_prefix(n);
    return bytes;
  }
  std::string_view in_;
  bool ok_ = true;
};

void put_u32(std::string& out, std::size_t n) {
  for (int i = 0; i < 4; ++i) out += static_cast<char>(n >> (8 * i) & 0xff);
}

void put_u64(std::string& out, std::uint64_t n) {
  put_u32(out, n & 0xffffffff);
  put_u32(out, n >> 32);
}

void put_text(std::string& out, std::string_view text) {
  put_u32(out, text.size());
  out += text;
}

int update_tmap(SparseData& data, std::string_view update) {
  std::string header;
  std::map<std::string, std::string> entries;
  const std::string before = data.bytes();
  if (!before.empty()) {
    Decoder in(before);
    header = in.text();
    for (std::uint32_t n = in.u32(); n > 0 && in.ok(); --n) {
      std::string key = in.text();
      entries[std::move(key)] = in.text();
    }
    if (!in.ok()) return -EINVAL;
  }
  Decoder in(update);
  while (!in.at_end() && in.ok()) {
    const unsigned op = in.u8();
    if (op == 'h') {
      header = in.text();
      continue;
    }
    const std::string key = in.text();
    switch (op) {
      case 's':
        entries[key] = in.text();
        break;
      case 'c':
        if (entries.contains(key)) return -EEXIST;
        entries[key] = in.text();
        break;
      case 'r':
        if (entries.erase(key) == 0) return -ENOENT;
        break;
      case 'R':
        entries.erase(key);
        break;
      default:
        return -EINVAL;
    }
  }
  if (!in.ok()) return -EINVAL;
  std::string after;
  put_text(after, header);
  put_u32(after, entries.size());
  for (const auto& [key, value] : entries) {
    put_text(after, key);
    put_text(after, value);
  }
  data.resize(0);
  data.write(0, after);
  return 0;
}

}  // namespace

// ---- SparseData

char* SparseData::writable(std::uint64_t number) {
  std::shared_ptr<std::string>& bytes = blocks_[number];
  if (!bytes)
    bytes = std::make_shared<std::string>(block, '\0');
  else if (bytes.use_count() > 1)
    bytes = std::make_shared<std::string>(*bytes);
  return bytes->data();
}

void SparseData::write(std::uint64_t offset, std::string_view bytes) {
  if (bytes.empty()) return;
  std::uint64_t start = offset;
  std::uint64_t end = offset + bytes.size();
  size_ = std::max(size_, end);
  while (!bytes.empty()) {
    const std::uint64_t in_block = offset % block;
    const std::uint64_t n =
        std::min<std::uint64_t>(bytes.size(), block - in_block);
    std::memcpy(writable(offset / block) + in_block, bytes.data(), n);
    bytes.remove_prefix(n);
    offset += n;
  }
  // Joins all ranges that it touches.
  auto at = written_.upper_bound(start);
  if (at != written_.begin() && std::prev(at)->second >= start) --at;
  while (at != written_.end() && at->first <= end) {
    start = std::min(start, at->first);
    end = std::max(end, at->second);
    at = written_.erase(at);
  }
  written_[start] = end;
}

std::uint64_t SparseData::read(std::uint64_t offset, char* out,
                               std::uint64_t n) const {
  if (offset >= size_) return 0;
  n = std::min(n, size_ - offset);
  std::uint64_t left = n;
  while (left > 0) {
    const std::uint64_t in_block = offset % block;
    const std::uint64_t part = std::min(left, block - in_block);
    const auto found = blocks_.find(offset / block);
    if (found == blocks_.end())
      std::memset(out, 0, part);
    else
      std::memcpy(out, found->second->data() + in_block, part);
    out += part;
    offset += part;
    left -= part;
  }
  return n;
}

std::string SparseData::bytes() const {
  std::string all(size_, '\0');
  read(0, all.data(), size_);
  return all;
}

void SparseData::punch(std::uint64_t offset, std::uint64_t length) {
  if (offset >= size_ || length == 0) return;
  const std::uint64_t end = offset + std::min(length, size_ - offset);
  auto at = written_.upper_bound(offset);
  if (at != written_.begin() && std::prev(at)->second > offset) --at;
  while (at != written_.end() && at->first < end) {
    const auto [from, to] = *at;
    at = written_.erase(at);
    if (from < offset) written_[from] = offset;
    if (to > end) written_[end] = to;
  }
  auto bytes = blocks_.lower_bound(offset / block);
  while (bytes != blocks_.end() && bytes->first * block < end) {
    const std::uint64_t start = bytes->first * block;
    if (written(start, block).empty()) {
      bytes = blocks_.erase(bytes);
      continue;
    }
    const std::uint64_t from = std::max(start, offset);
    const std::uint64_t to = std::min(start + block, end);
    std::memset(writable(bytes->first) + (from - start), 0, to - from);
    ++bytes;
  }
}

void SparseData::resize(std::uint64_t size) {
  if (size < size_) punch(size, size_ - size);
  size_ = size;
}

std::vector<ObjectRange> SparseData::written(std::uint64_t offset,
                                             std::uint64_t length,
                                             std::uint64_t granularity) const {
  std::vector<ObjectRange> ranges;
  if (offset >= size_ || length == 0) return ranges;
  const std::uint64_t limit = offset + std::min(length, size_ - offset);
  auto at = written_.upper_bound(offset / granularity * granularity);
  if (at != written_.begin()) --at;
  for (; at != written_.end(); ++at) {
    const std::uint64_t from =
        std::max(at->first / granularity * granularity, offset);
    const std::uint64_t to = std::min(
        (at->second + granularity - 1) / granularity * granularity, limit);
    if (from >= limit) break;
    if (to <= from) continue;
    if (!ranges.empty() && ranges.back().offset + ranges.back().length >= from)
      ranges.back().length = to - ranges.back().offset;
    else
      ranges.push_back({.offset = from, .length = to - from});
  }
  return ranges;
}

// ---- Watches

class MemoryStore::MemoryWatch : public Watch {
 public:
  MemoryWatch(MemoryStore& store, WatchPtr state)
      : store_(store), state_(std::move(state)) {}
  ~MemoryWatch() override {
    std::unique_lock lock(store_.mutex_);
    state_->closed = true;
    store_.watches_.erase(state_->who.cookie);
    // Who does not watch any more need not answer.
    for (auto& [id, n] : store_.notifications_)
      n.unanswered.erase(state_->who.cookie);
    store_.changed_.notify_all();
    store_.changed_.wait(lock, [this] { return state_->busy == 0; });
  }
  MemoryWatch(const MemoryWatch&) = delete;
  MemoryWatch& operator=(const MemoryWatch&) = delete;
  int check() override {
    const std::scoped_lock lock(store_.mutex_);
    return state_->lost;
  }
  std::chrono::milliseconds kept_for() override {
    return std::chrono::seconds(25);
  }
  std::uint64_t cookie() const noexcept override { return state_->who.cookie; }

 private:
  MemoryStore& store_;
  WatchPtr state_;
};

template <class Callback>
void MemoryStore::deliver(WatchState& state, Callback callback) {
  std::unique_lock lock(mutex_);
  if (state.closed) return;
  ++state.busy;
  lock.unlock();
  callback(*state.handler);
  lock.lock();
  --state.busy;
  changed_.notify_all();
}

std::unique_ptr<Watch> MemoryStore::watch(const std::string& oid,
                                          WatchHandler& handler) {
  return watch_as({.address = options_.address,
                   .client = options_.client,
                   .cookie = 0},
                  oid, handler);
}

std::unique_ptr<Watch> MemoryStore::watch_as(const Watcher& who,
                                             const std::string& oid,
                                             WatchHandler& handler) {
  const std::scoped_lock lock(mutex_);
  if (at(oid, snap_head) == nullptr) fail(ENOENT, "cannot watch " + oid);
  auto state = std::make_shared<WatchState>();
  state->oid = oid;
  state->who = who;
  if (who.cookie == 0) state->who.cookie = ++last_id_;
  state->handler = &handler;
  if (!watches_.try_emplace(state->who.cookie, state).second)
    throw Error(EEXIST, "two watches with one cookie");
  return std::make_unique<MemoryWatch>(*this, std::move(state));
}

std::unique_ptr<Pending> MemoryStore::list_watchers(
    const std::string& oid, std::vector<Watcher>* out) {
  const std::scoped_lock lock(mutex_);
  if (at(oid, snap_head) == nullptr) return done(-ENOENT);
  out->clear();
  for (const auto& [cookie, state] : watches_)
    if (state->oid == oid) out->push_back(state->who);
  return done(0);
}

std::size_t MemoryStore::watchers(const std::string& oid) {
  const std::scoped_lock lock(mutex_);
  return static_cast<std::size_t>(
      std::count_if(watches_.begin(), watches_.end(), [&](const auto& watch) {
        return watch.second->oid == oid;
      }));
}

void MemoryStore::notify_ack(const std::string&, std::uint64_t notify_id,
                             std::uint64_t cookie, std::string_view payload) {
  const std::scoped_lock lock(mutex_);
  const auto found = notifications_.find(notify_id);
  if (found == notifications_.end()) return;
  Notification& n = found->second;
  const auto watch = n.unanswered.find(cookie);
  if (watch == n.unanswered.end()) return;
  n.answers.emplace(std::pair(watch->second->who.client, cookie), payload);
  n.unanswered.erase(watch);
  changed_.notify_all();
}

class MemoryStore::MemoryNotify : public Pending {
 public:
  MemoryNotify(MemoryStore& store, std::uint64_t id,
               std::chrono::milliseconds limit, std::string* reply)
      : store_(store),
        id_(id),
        deadline_(std::chrono::steady_clock::now() + limit),
        reply_(reply) {}
  ~MemoryNotify() override {
    const std::scoped_lock lock(store_.mutex_);
    store_.notifications_.erase(id_);
    // Does not wait where nobody has waited.
    if (!result_) store_.callbacks_.push_back(std::move(deliverer_));
  }
  MemoryNotify(const MemoryNotify&) = delete;
  MemoryNotify& operator=(const MemoryNotify&) = delete;

  void deliver_by(std::jthread deliverer) { deliverer_ = std::move(deliverer); }

  int wait() override { return wait_until(deadline_, true); }
  int wait_for(std::chrono::milliseconds limit) override {
    const auto until = std::chrono::steady_clock::now() + limit;
    return wait_until(std::min(deadline_, until), until >= deadline_);
  }
  bool completed() override {
    const std::scoped_lock lock(store_.mutex_);
    return result_ || store_.notifications_.at(id_).unanswered.empty();
  }

 private:
  // `answer`: at `until`, the store gives the answers that it has.
  int wait_until(std::chrono::steady_clock::time_point until, bool answer) {
    std::unique_lock lock(store_.mutex_);
    if (result_) return *result_;
    const Notification& n = store_.notifications_.at(id_);
    const bool all = store_.changed_.wait_until(
        lock, until, [&n] { return n.unanswered.empty(); });
    if (reply_ != nullptr) {
      reply_->clear();
      if (all || answer) *reply_ = encoded(n);
    }
    store_.notifications_.erase(id_);
    return result_.emplace(all ? 0 : -ETIMEDOUT);
  }

  static std::string encoded(const Notification& n) {
    std::string out;
    put_u32(out, n.answers.size());
    for (const auto& [who, payload] : n.answers) {
      put_u64(out, who.first);
      put_u64(out, who.second);
      put_text(out, payload);
    }
    put_u32(out, n.unanswered.size());
    for (const auto& [cookie, state] : n.unanswered) {
      put_u64(out, state->who.client);
      put_u64(out, cookie);
    }
    return out;
  }

  MemoryStore& store_;
  const std::uint64_t id_;
  const std::chrono::steady_clock::time_point deadline_;
  std::string* const reply_;
  std::optional<int> result_;
  std::jthread deliverer_;
};

std::unique_ptr<Pending> MemoryStore::start_notify(
    const std::string& oid, std::string_view payload,
    std::chrono::milliseconds limit, std::string* reply) {
  const std::scoped_lock lock(mutex_);
  if (at(oid, snap_head) == nullptr) return done(-ENOENT);
  const std::uint64_t id = ++last_id_;
  Notification& n = notifications_[id];
  std::vector<WatchPtr> receivers;
  for (const auto& [cookie, state] : watches_)
    if (state->oid == oid) {
      receivers.push_back(state);
      n.unanswered.emplace(cookie, state);
    }
  auto pending = std::make_unique<MemoryNotify>(*this, id, limit, reply);
  pending->deliver_by(
      std::jthread([this, id, receivers = std::move(receivers),
                    payload = std::string(payload)] {
        for (const WatchPtr& state : receivers)
          deliver(*state, [&](WatchHandler& handler) {
            handler.notified(id, state->who.cookie, payload);
          });
      }));
  return pending;
}

void MemoryStore::drop_watches(std::uint64_t client, bool told) {
  const std::scoped_lock lock(mutex_);
  lose_watches(
      [client](const WatchState& w) { return w.who.client == client; }, told);
}

// Removing an object breaks the watches on it.
void MemoryStore::lose_watches(const std::string& oid) {
  lose_watches([&](const WatchState& w) { return w.oid == oid; }, true);
}

/// The caller holds mutex_.
void MemoryStore::lose_watches(
    const std::function<bool(const WatchState&)>& which, bool told) {
  std::vector<WatchPtr> lost;
  for (auto at = watches_.begin(); at != watches_.end();) {
    if (!which(*at->second)) {
      ++at;
      continue;
    }
    if (told) at->second->lost = ENOTCONN;
    for (auto& [id, n] : notifications_) n.unanswered.erase(at->first);
    lost.push_back(at->second);
    at = watches_.erase(at);
  }
  if (lost.empty()) return;
  changed_.notify_all();
  if (!told) return;
  callbacks_.emplace_back([this, lost = std::move(lost)] {
    for (const auto& state : lost)
      deliver(*state,
              [](WatchHandler& handler) { handler.watch_lost(ENOTCONN); });
  });
}

// ---- Objects

MemoryStore::MemoryStore(const Options& options) : options_(options) {
  if (options_.map_granularity == 0)
    throw Error(EINVAL, "map granularity 0");
}

MemoryStore::~MemoryStore() = default;

void MemoryStore::on_exec(std::string cls, std::string method, Method run) {
  const std::scoped_lock lock(mutex_);
  methods_[{std::move(cls), std::move(method)}] = std::move(run);
}

// The version of an object that a snapshot sees, or null.
const MemoryObject* MemoryStore::at(const std::string& oid, SnapId snap,
                                    std::uint64_t* version) const {
  const auto found = objects_.find(oid);
  if (found == objects_.end()) return nullptr;
  const Entry& entry = found->second;
  if (snap > entry.seq) {  // not written since, so the head is what it sees
    if (version != nullptr) *version = entry.version;
    return entry.head ? &*entry.head : nullptr;
  }
  for (const Clone& clone : entry.clones) {
    if (clone.id < snap) continue;
    if (version != nullptr) *version = clone.version;
    return std::find(clone.snaps.begin(), clone.snaps.end(), snap) !=
                   clone.snaps.end()
               ? &clone.object
               : nullptr;
  }
  return nullptr;
}

std::optional<MemoryObject> MemoryStore::find(const std::string& oid,
                                              SnapId snap) {
  const std::scoped_lock lock(mutex_);
  const MemoryObject* object = at(oid, snap);
  if (object == nullptr) return std::nullopt;
  // Blocks must not be shared with what another thread gets to see.
  MemoryObject copy{.data = {}, .xattrs = object->xattrs, .omap = object->omap};
  for (const ObjectRange& range :
       object->data.written(0, object->data.size())) {
    std::string bytes(range.length, '\0');
    object->data.read(range.offset, bytes.data(), bytes.size());
    copy.data.write(range.offset, bytes);
  }
  copy.data.resize(object->data.size());
  return copy;
}

void MemoryStore::put(const std::string& oid,
                      std::optional<MemoryObject> object,
                      std::uint64_t version) {
  const std::scoped_lock lock(mutex_);
  Entry& entry = objects_[oid];
  entry.head = std::move(object);
  entry.version = version != 0 ? version : ++last_version_;
  if (!entry.head) {
    lose_watches(oid);
    if (entry.clones.empty()) objects_.erase(oid);
  }
}

std::unique_ptr<Pending> MemoryStore::read(
    const std::string& oid, std::uint64_t offset,
    std::span<const MutablePiece> pieces, SnapId snap) {
  const std::scoped_lock lock(mutex_);
  std::uint64_t wanted = 0;
  for (const MutablePiece& piece : pieces) wanted += piece.size;
  if (wanted == 0) return done(-EINVAL);
  const MemoryObject* object = at(oid, snap);
  if (object == nullptr) return done(-ENOENT);
  std::uint64_t total = 0;
  for (const MutablePiece& piece : pieces)
    total += object->data.read(offset + total, piece.data, piece.size);
  return done(clamp_to_int(total));
}

std::unique_ptr<Pending> MemoryStore::stat(const std::string& oid,
                                           std::uint64_t* size, SnapId snap) {
  const std::scoped_lock lock(mutex_);
  const MemoryObject* object = at(oid, snap);
  if (object == nullptr) return done(-ENOENT);
  *size = object->data.size();
  return done(0);
}

std::unique_ptr<Pending> MemoryStore::xattrs(
    const std::string& oid, std::map<std::string, std::string>* out) {
  const std::scoped_lock lock(mutex_);
  const MemoryObject* object = at(oid, snap_head);
  if (object == nullptr) return done(-ENOENT);
  *out = object->xattrs;
  return done(0);
}

std::unique_ptr<Pending> MemoryStore::read_all(const std::string& oid,
                                               std::uint64_t limit,
                                               std::string* out) {
  const std::scoped_lock lock(mutex_);
  const MemoryObject* object = at(oid, snap_head);
  if (object == nullptr) return done(-ENOENT);
  std::string bytes(std::min(limit, object->data.size()), '\0');
  object->data.read(0, bytes.data(), bytes.size());
  *out = std::move(bytes);
  return done(clamp_to_int(out->size()));
}

int MemoryStore::map_extents(const std::string& oid, std::uint64_t offset,
                             std::uint64_t length, SnapId snap,
                             std::vector<ObjectRange>* out) {
  const std::scoped_lock lock(mutex_);
  if (!options_.can_map) return -EOPNOTSUPP;
  const MemoryObject* object = at(oid, snap);
  if (object == nullptr) return -ENOENT;
  *out = object->data.written(offset, length, options_.map_granularity);
  return 0;
}

int MemoryStore::make_snap_id(SnapId* snap) {
  const std::scoped_lock lock(mutex_);
  for (const auto& [oid, entry] : objects_)
    last_snap_ = std::max(last_snap_, entry.seq);
  *snap = ++last_snap_;
  snap_ids_.insert(*snap);
  return 0;
}

int MemoryStore::release_snap_id(SnapId snap) {
  const std::scoped_lock lock(mutex_);
  snap_ids_.erase(snap);
  for (auto& [oid, entry] : objects_) {
    for (Clone& clone : entry.clones) std::erase(clone.snaps, snap);
    std::erase_if(entry.clones,
                  [](const Clone& clone) { return clone.snaps.empty(); });
  }
  return 0;
}

std::set<SnapId> MemoryStore::snap_ids() {
  const std::scoped_lock lock(mutex_);
  return snap_ids_;
}

std::unique_ptr<Pending> MemoryStore::list_snaps(const std::string& oid,
                                                 SnapSet* out) {
  const std::scoped_lock lock(mutex_);
  const auto found = objects_.find(oid);
  if (found == objects_.end()) return done(-ENOENT);
  const Entry& entry = found->second;
  *out = {.seq = entry.seq, .versions = {}};
  std::vector<std::string> contents;
  for (const Clone& clone : entry.clones) {
    out->versions.push_back({.id = clone.id,
                             .snaps = {clone.snaps.rbegin(),
                                       clone.snaps.rend()},
                             .size = clone.object.data.size()});
    contents.push_back(clone.object.data.bytes());
  }
  if (entry.head) {
    out->versions.push_back(
        {.id = snap_head, .size = entry.head->data.size()});
    contents.push_back(entry.head->data.bytes());
  }
  for (std::size_t i = 0; i + 1 < contents.size(); ++i) {
    const std::string& a = contents[i];
    const std::string& b = contents[i + 1];
    std::vector<ObjectRange>& overlap = out->versions[i].overlap;
    for (std::size_t at = 0; at < std::min(a.size(), b.size()); ++at) {
      if (a[at] != b[at]) continue;
      if (!overlap.empty() &&
          overlap.back().offset + overlap.back().length == at)
        ++overlap.back().length;
      else
        overlap.push_back({at, 1});
    }
  }
  return done(0);
}

std::unique_ptr<Pending> MemoryStore::version(const std::string& oid,
                                              std::uint64_t* version) {
  const std::scoped_lock lock(mutex_);
  const auto found = objects_.find(oid);
  if (found == objects_.end() || !found->second.head) return done(-ENOENT);
  *version = found->second.version;
  return done(0);
}

std::vector<std::string> MemoryStore::list(
    const std::function<bool(std::string_view)>& wanted,
    const std::function<void(const std::string&)>& /*log*/) {
  const std::scoped_lock lock(mutex_);
  std::vector<std::string> names;
  for (const auto& [oid, entry] : objects_)
    if (wanted(oid)) names.push_back(oid);
  // A cluster gives names by their hash.  Nobody may count on an order.
  std::sort(names.begin(), names.end(),
            [](const std::string& a, const std::string& b) {
              const std::hash<std::string> hash;
              return std::pair(hash(a), a) < std::pair(hash(b), b);
            });
  return names;
}

int MemoryStore::call(std::optional<MemoryObject>& object,
                      std::string_view cls, std::string_view method,
                      std::string_view input, std::string& output) {
  const auto found =
      methods_.find({std::string(cls), std::string(method)});
  if (found == methods_.end()) return -EOPNOTSUPP;
  return found->second(object, input, output);
}

std::unique_ptr<Pending> MemoryStore::exec(const std::string& oid,
                                           std::string_view cls,
                                           std::string_view method,
                                           std::string_view input,
                                           std::string* output) {
  const std::scoped_lock lock(mutex_);
  const auto found = objects_.find(oid);
  std::optional<MemoryObject> object;
  if (found != objects_.end()) object = found->second.head;
  const bool existed = object.has_value();
  std::string result;
  const int r = call(object, cls, method, input, result);
  if (r < 0) return done(r);
  *output = std::move(result);
  if (existed || object) {
    Entry& entry = objects_[oid];
    entry.head = std::move(object);
    entry.version = ++last_version_;
    if (!entry.head) {
      lose_watches(oid);
      if (entry.clones.empty()) objects_.erase(oid);
    }
  }
  return done(r);
}

std::unique_ptr<Pending> MemoryStore::exec_each(
    const std::string& oid, std::span<const MethodCall> calls,
    std::vector<std::string>* outputs) {
  if (calls.empty() || calls.size() > max_calls) return done(-EINVAL);
  const std::scoped_lock lock(mutex_);
  const auto found = objects_.find(oid);
  std::vector<std::string> results;
  for (const MethodCall& c : calls) {
    // A copy: what the method changes is lost.
    std::optional<MemoryObject> object;
    if (found != objects_.end()) object = found->second.head;
    const int r =
        call(object, c.cls, c.method, c.input, results.emplace_back());
    if (r < 0) return done(r);
  }
  *outputs = std::move(results);
  return done(0);
}

std::unique_ptr<Pending> MemoryStore::write(const std::string& oid,
                                            const WriteOp& op,
                                            const SnapContext& snapc) {
  // Without the lock: the source may be another store, or this one.
  const Copied copied = source(oid, op);
  const std::scoped_lock lock(mutex_);
  return done(apply(oid, op, snapc, copied));
}

/// A copy has no holes.
MemoryStore::Copied MemoryStore::copy_of(const std::string& oid, SnapId snap) {
  const std::scoped_lock lock(mutex_);
  Copied copied;
  const MemoryObject* const object = at(oid, snap, &copied.version);
  if (object == nullptr) return {.error = -ENOENT};
  copied.object.data.write(0, object->data.bytes());
  copied.object.xattrs = object->xattrs;
  copied.object.omap = object->omap;
  return copied;
}

/// What the operation is to copy, if it is to copy anything.
MemoryStore::Copied MemoryStore::source(const std::string& oid,
                                        const WriteOp& op) {
  for (const WriteOp::Step& what : op.steps()) {
    if (what.kind != WriteOp::Kind::copy_from) continue;
    auto* const from = dynamic_cast<MemoryStore*>(&what.store->keeper());
    if (from == nullptr) return {.error = -EXDEV};
    if (from == this && what.name == oid) return {.error = -EINVAL};
    return from->copy_of(std::string(what.name), what.offset);
  }
  return {};
}

bool MemoryStore::too_big(std::uint64_t offset,
                          std::uint64_t length) const noexcept {
  return offset > options_.max_object_size ||
         length > options_.max_object_size - offset;
}

int MemoryStore::apply(const std::string& oid, const WriteOp& op,
                       const SnapContext& snapc, const Copied& copied) {
  if (!valid(snapc)) return -EINVAL;
  const auto found = objects_.find(oid);
  Entry fresh;
  Entry& entry = found == objects_.end() ? fresh : found->second;
  const bool existed = entry.head.has_value();

  // The object as it was is needed for the clone, or to undo.  Copies are
  // cheap but not free, so only then.
  const bool clone = existed && !snapc.snaps.empty() &&
                     snapc.snaps.front() > entry.seq;
  bool undo = false;
  bool may_be_modified = false;
  for (const WriteOp::Step& what : op.steps()) {
    if (may_be_modified && can_fail(what.kind)) undo = true;
    if (what.kind == WriteOp::Kind::exec) undo = true;
    if (can_modify(what.kind)) may_be_modified = true;
  }
  std::optional<MemoryObject> before;
  if (clone || undo) before = entry.head;

  // A removed object of which clones are left is a "whiteout", which
  // comparisons of operations that write take for an empty object.
  static const std::optional<MemoryObject> whiteout{MemoryObject{}};
  const std::optional<MemoryObject>& compared =
      !existed && !entry.clones.empty() && may_be_modified ? whiteout
      : clone || undo                                      ? before
                                                           : entry.head;

  bool modified = false;
  bool removed = false;
  bool is_copy = false;
  int result = 0;
  for (const WriteOp::Step& what : op.steps()) {
    const int r = step(entry.head, compared, what, copied, modified);
    if (r < 0) {
      if (clone || undo) entry.head = std::move(before);
      return r;
    }
    result = std::max(result, r);
    if (what.kind == WriteOp::Kind::remove) removed = true;
    if (what.kind == WriteOp::Kind::copy_from) is_copy = true;
  }
  if (!modified) return result;

  if (clone) {
    Clone made_clone{.id = snapc.seq, .snaps = {}, .object = {}};
    made_clone.version = entry.version;
    for (const SnapId snap : snapc.snaps)
      if (snap > entry.seq) made_clone.snaps.push_back(snap);
    made_clone.object = std::move(*before);
    entry.clones.push_back(std::move(made_clone));
  }
  entry.seq = std::max(entry.seq, snapc.seq);
  entry.version = is_copy ? copied.version : ++last_version_;
  if (removed) lose_watches(oid);
  if (found == objects_.end()) {
    if (entry.head) objects_.emplace(oid, std::move(fresh));
  } else if (!entry.head && entry.clones.empty()) {
    objects_.erase(found);
  }
  return 0;
}

// Steps check before they change anything.  A comparison that is true gives
// 1, which is the result of operations that change nothing.
int MemoryStore::step(std::optional<MemoryObject>& object,
                      const std::optional<MemoryObject>& before,
                      const WriteOp::Step& what, const Copied& copied,
                      bool& modified) {
  switch (what.kind) {
    case WriteOp::Kind::create:
      if (object) return -EEXIST;
      object.emplace();
      break;
    case WriteOp::Kind::touch:
      made(object);
      break;
    case WriteOp::Kind::assert_exists:
      return object ? 0 : -ENOENT;
    case WriteOp::Kind::write:
    case WriteOp::Kind::write_same:
    case WriteOp::Kind::write_full:
      if (const int r = write_step(object, what); r < 0) return r;
      break;
    case WriteOp::Kind::zero:
      if (what.length == 0) return -EINVAL;
      if (too_big(what.offset, 1) || too_big(0, what.length)) return -EFBIG;
      if (!object) return too_big(what.offset, what.length) ? -EFBIG : 0;
      if (what.offset >= object->data.size()) return 0;
      if (what.length >= object->data.size() - what.offset)
        object->data.resize(what.offset);
      else
        object->data.punch(what.offset, what.length);
      break;
    case WriteOp::Kind::truncate:
      if (!object) return 0;
      if (too_big(what.offset, 0)) return -EFBIG;
      object->data.resize(what.offset);
      break;
    case WriteOp::Kind::remove:
      if (!object) return -ENOENT;
      object.reset();
      break;
    case WriteOp::Kind::set_xattr:
      made(object).xattrs[std::string(what.name)] = what.value;
      break;
    case WriteOp::Kind::cmp_xattr_gt: {
      if (!before) return -ENOENT;
      // Read as by strtoull: what is no number counts as 0.
      const auto found = before->xattrs.find(std::string(what.name));
      const std::uint64_t stored =
          found == before->xattrs.end()
              ? 0
              : std::strtoull(found->second.c_str(), nullptr, 10);
      return what.offset > stored ? 1 : -ECANCELED;
    }
    case WriteOp::Kind::exec: {
      std::string output;
      if (const int r =
              call(object, what.name, what.method, what.value, output);
          r < 0)
        return r;
      break;
    }
    case WriteOp::Kind::alloc_hint:
      made(object);
      break;
    case WriteOp::Kind::omap_set:
      made(object).omap[std::string(what.name)] = what.value;
      break;
    case WriteOp::Kind::tmap_update: {
      SparseData data;
      if (object) data = object->data;
      if (const int r = update_tmap(data, what.value); r < 0) return r;
      made(object).data = std::move(data);
      break;
    }
    case WriteOp::Kind::copy_from:
      if (copied.error != 0) return copied.error;
      object = copied.object;
      break;
  }
  modified = true;
  return 0;
}

int MemoryStore::write_step(std::optional<MemoryObject>& object,
                            const WriteOp::Step& what) {
  std::uint64_t length = 0;
  for (const ConstPiece& piece : what.pieces) length += piece.size;
  if (what.kind == WriteOp::Kind::write_same) {
    if (what.pieces.size() != 1 || length == 0 || what.length % length != 0)
      return -EINVAL;
    length = what.length;
  }
  if (what.kind != WriteOp::Kind::write_full && length == 0) return -EINVAL;
  if (too_big(what.offset, length)) return -EFBIG;

  SparseData& data = made(object).data;
  if (what.kind == WriteOp::Kind::write_full) data.resize(0);
  if (what.kind == WriteOp::Kind::write_same) {
    const std::string_view pattern(what.pieces[0].data, what.pieces[0].size);
    for (std::uint64_t at = 0; at < length; at += pattern.size())
      data.write(what.offset + at, pattern);
    return 0;
  }
  std::uint64_t at = what.offset;
  for (const ConstPiece& piece : what.pieces) {
    data.write(at, {piece.data, piece.size});
    at += piece.size;
  }
  return 0;
}

}  // namespace nbdrados
