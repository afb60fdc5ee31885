// SPDX-License-Identifier: BSD-3-Clause

#include "exports.hpp"

#include <algorithm>

namespace nbdrados {

namespace {

bool same(const CachedDisk::Shape& a, const CachedDisk::Shape& b) {
  return a.size == b.size && a.block == b.block;
}

}  // namespace

bool Exports::Export::ready() noexcept {
  if (ready_.load(std::memory_order_acquire)) return true;
  const std::scoped_lock lock(mutex_);
  for (const auto& list : before_)
    if (!list.expired()) return false;
  before_.clear();
  ready_.store(true, std::memory_order_release);
  return true;
}

Exports::Exports(BlockCache& cache)
    : cache_(cache), list_(std::make_shared<List>()) {}

std::shared_ptr<Exports::Export> Exports::use(
    const std::string& name, const CachedDisk::Shape& shape,
    const std::shared_ptr<const Promise>& promise, bool assumed) {
  const std::scoped_lock lock(mutex_);
  const auto found = std::ranges::find_if(*list_, [&](const auto& e) {
    return e->name() == name && !e->retired_ &&
           e->promise_ == promise && same(e->disk().shape(), shape);
  });
  if (found != list_->end()) return *found;

  // A list refers to every export once; so does each connection.
  auto next = std::make_shared<List>(*list_);
  std::size_t idle = 0;
  for (auto e = next->end(); e != next->begin();) {
    --e;
    // The one in *list_, the one in *next.  Earlier lists only add to it.
    const bool unused = e->use_count() <= 2;
    if ((*e)->name() == name) (*e)->retired_ = true;
    if (unused && ((*e)->retired_ || ++idle > most_idle)) e = next->erase(e);
  }
  std::erase_if(earlier_, [](const auto& list) { return list.expired(); });
  earlier_.push_back(list_);
  next->push_back(std::make_shared<Export>(name, cache_, ++last_id_, shape,
                                           promise, assumed, earlier_));
  list_ = next;
  return next->back();
}

Exports::Changing::Changing(Exports& exports, Export& which,
                            std::uint32_t count, std::uint64_t offset)
    : snapshot_(exports.snapshot()), mine_(which, count, offset) {
  for (const std::shared_ptr<Export>& e : *snapshot_) {
    const bool different =
        e->promise_ && which.promise_ && e->promise_ != which.promise_;
    if (e.get() == &which || different || e->disk().shape().size <= offset)
      continue;
    const std::uint64_t rest = e->disk().shape().size - offset;
    others_.emplace_back(
        *e, static_cast<std::uint32_t>(std::min<std::uint64_t>(count, rest)),
        offset);
  }
}

Exports::Changing::~Changing() = default;

Exports::Changing::Part::Part(Export& e, std::uint32_t n, std::uint64_t from)
    : which(e), count(n), offset(from), version(e.version()) {
  if (version != 0) announced.emplace(which.disk(), count, offset, version);
}

Exports::Changing::Part::~Part() {
  announced.reset();
  const CachedDisk::Version now = which.version();
  if (now != version && now != 0) which.disk().forget(count, offset, now);
}

}  // namespace nbdrados
