// SPDX-License-Identifier: BSD-3-Clause

#include "exports.hpp"

#include <nbdkit-filter.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cinttypes>
#include <cstring>
#include <exception>

#include "nbdkit/log.hpp"

namespace nbdrados {

namespace {

bool same(const CachedDisk::Shape& a, const CachedDisk::Shape& b) {
  return a.size == b.size && a.block == b.block;
}

}  // namespace

Exports::Export::Export(std::string name, BlockCache& cache, std::uint32_t id,
                        const CachedDisk::Shape& shape,
                        std::shared_ptr<const Promise> promise, bool assumed,
                        const Options& options,
                        std::vector<std::weak_ptr<const List>> before)
    : name_(std::move(name)),
      promise_(std::move(promise)),
      assumed_(assumed),
      disk_(cache, id, shape),
      extents_(shape.size, options.most_extents),
      before_(std::move(before)) {
  // As large as the usual object of an image.
  constexpr std::uint32_t largest_chunk = 4 << 20;
  if (options.dirty != nullptr)
    writes_.emplace(
        *options.dirty,
        WriteBack::Shape{.size = shape.size,
                         .chunk = std::min(largest_chunk,
                                           std::bit_floor(shape.max_fetch)),
                         .age = options.age},
        [this](WriteBack::Tenure t) { return t == tenure(); });
}

Exports::Export::~Export() { lose(); }

void Exports::Export::report_loss(std::uint64_t bytes) const noexcept {
  if (bytes != 0)
    log_error("radoscache: export \"%s\": %" PRIu64
              " bytes that clients have written are lost",
              name_.c_str(), bytes);
}

void Exports::Export::lose() noexcept {
  if (writes_) report_loss(writes_->drop());
}

void Exports::Export::add(Channel& channel) {
  const std::scoped_lock lock(mutex_);
  channels_.push_back(&channel);
}

void Exports::Export::remove(Channel& channel) noexcept {
  std::unique_lock lock(mutex_);
  channel.closing = true;
  unused_.wait(lock, [&] { return channel.users == 0; });
  std::erase(channels_, &channel);
  // Under the mutex: what a client writes who comes now must not be among it.
  if (channels_.empty() && (promise_ || shared_)) lose();
}

void Exports::Export::share() noexcept {
  shared_ = true;
  const std::scoped_lock lock(mutex_);
  if (channels_.empty()) lose();
}

Exports::Channel* Exports::Export::acquire() noexcept {
  const std::scoped_lock lock(mutex_);
  for (Channel* const c : channels_) {
    if (c->closing) continue;
    ++c->users;
    return c;
  }
  return nullptr;
}

void Exports::Export::release(Channel& channel) noexcept {
  const std::scoped_lock lock(mutex_);
  if (--channel.users == 0) unused_.notify_all();
}

void Exports::Export::give_up(std::uint64_t tenure) noexcept {
  if (!writes_ || assumed_) return;
  const std::uint64_t lost = writes_->statistics().lost;
  writes_->close(tenure);
  int r = 0;
  try {
    (void)with_channel(
        [&](const WriteBack::Write& write) { r = writes_->flush(write); });
  } catch (const std::exception& e) {
    r = ENOMEM;
  }
  // Somebody else may be about to try again.  His request could wait below
  // until the lock is back.
  writes_->abandon(tenure);
  const std::uint64_t bytes = writes_->statistics().lost - lost;
  if (bytes == 0) return;
  if (r != 0)
    log_error("radoscache: export \"%s\": what clients have written cannot "
              "be written below before the image's lock ends: %s",
              name_.c_str(), std::strerror(r));
  report_loss(bytes);
}

bool Exports::Export::ready() noexcept {
  if (ready_.load(std::memory_order_acquire)) return true;
  const std::scoped_lock lock(mutex_);
  for (const auto& list : before_)
    if (!list.expired()) return false;
  before_.clear();
  ready_.store(true, std::memory_order_release);
  return true;
}

Exports::Exports(BlockCache& cache, const Options& options)
    : cache_(cache), options_(options), list_(std::make_shared<List>()) {}

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
    const bool dirty = (*e)->writes_ && !(*e)->writes_->empty();
    // One of a promise that is in use is still that disk: the plugin may have
    // an image for those who read beside the one for those who write.
    const bool known = !unused && (*e)->promise_ && (*e)->promise_ != promise;
    if ((*e)->name() == name && !known) (*e)->retired_ = true;
    if (unused && ((*e)->retired_ || (!dirty && ++idle > most_idle)))
      e = next->erase(e);
  }
  std::erase_if(earlier_, [](const auto& list) { return list.expired(); });
  earlier_.push_back(list_);
  auto made = std::make_shared<Export>(name, cache_, ++last_id_, shape,
                                       promise, assumed, options_, earlier_);
  if (made->writes() != nullptr && promise) promise->add_keeper(made);
  for (const auto& e : *next) {
    if (different(*e, *made)) continue;
    e->share();
    made->shared_ = true;
  }
  next->push_back(std::move(made));
  list_ = next;
  return next->back();
}

int Exports::settle(const Export& which, std::uint64_t count,
                    std::uint64_t offset) {
  if (!which.shared_ || options_.dirty == nullptr ||
      options_.dirty->used() == 0)
    return 0;
  int r = 0;
  for (const std::shared_ptr<Export>& e : all()) {
    WriteBack* const writes = e->writes();
    const std::uint64_t size = e->disk().shape().size;
    if (e.get() == &which || writes == nullptr || writes->empty() ||
        size <= offset || different(*e, which))
      continue;
    (void)e->with_channel([&](const WriteBack::Write& write) {
      if (const int error = writes->write_out(
              std::min(count, size - offset), offset, write);
          r == 0)
        r = error;
    });
  }
  return r;
}

Exports::Changing::Changing(Exports& exports, Export& which,
                            std::uint32_t count, std::uint64_t offset)
    : snapshot_(exports.snapshot()), mine_(which, count, offset) {
  for (const std::shared_ptr<Export>& e : *snapshot_) {
    if (e.get() == &which || exports.different(*e, which) ||
        e->disk().shape().size <= offset)
      continue;
    const std::uint64_t rest = e->disk().shape().size - offset;
    others_.emplace_back(
        *e, static_cast<std::uint32_t>(std::min<std::uint64_t>(count, rest)),
        offset);
  }
}

Exports::Changing::~Changing() = default;

Exports::Changing::Part::Part(Export& e, std::uint32_t n, std::uint64_t from)
    : which(e),
      count(n),
      offset(from),
      version(e.version()),
      status(e.extents(), n, from) {
  if (version != 0) announced.emplace(which.disk(), count, offset, version);
}

Exports::Changing::Part::~Part() {
  announced.reset();
  const CachedDisk::Version now = which.version();
  if (now != version && now != 0) which.disk().forget(count, offset, now);
}

}  // namespace nbdrados
