// SPDX-License-Identifier: BSD-3-Clause

#include "rados/client/watch.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <optional>
#include <utility>

#include "rados/client/linger.hpp"
#include "rados/error.hpp"

namespace nbdrados {

namespace {

class RadosWatch final : public Watch {
 public:
  RadosWatch(std::shared_ptr<RadosCluster> cluster, librados::IoCtx& io,
             std::shared_ptr<WatchContext> context)
      : cluster_(std::move(cluster)), io_(io), context_(std::move(context)) {}
  ~RadosWatch() override;
  RadosWatch(const RadosWatch&) = delete;
  RadosWatch& operator=(const RadosWatch&) = delete;

  [[nodiscard]] int check() override;
  [[nodiscard]] std::chrono::milliseconds kept_for() override;
  std::uint64_t cookie() const noexcept override { return context_->handle; }

 private:
  std::shared_ptr<RadosCluster> cluster_;
  librados::IoCtx io_;
  std::shared_ptr<WatchContext> context_;
};

class NotifyPending final : public Pending {
 public:
  NotifyPending(std::shared_ptr<RadosCluster> cluster, PendingOwner& store,
                std::chrono::milliseconds limit, std::string* reply)
      : cluster_(std::move(cluster)),
        store_(store),
        deadline_(std::chrono::steady_clock::now() + limit + grace),
        reply_(reply) {}
  ~NotifyPending() override;
  NotifyPending(const NotifyPending&) = delete;
  NotifyPending& operator=(const NotifyPending&) = delete;

  [[nodiscard]] int wait() override { return wait_until(deadline_); }
  [[nodiscard]] int wait_for(std::chrono::milliseconds limit) override {
    return wait_until(
        std::min(deadline_, std::chrono::steady_clock::now() + limit));
  }
  [[nodiscard]] bool completed() override {
    return result_ || context_->done.get()->is_complete_and_cb();
  }

  NotifyContext& context() noexcept { return *context_; }
  /// Nothing was started.
  void failed(int r) noexcept { result_ = r; }

 private:
  // For the answer's way back.
  static constexpr std::chrono::seconds grace{2};

  int wait_until(std::chrono::steady_clock::time_point deadline);

  std::shared_ptr<RadosCluster> cluster_;
  PendingOwner& store_;
  const std::chrono::steady_clock::time_point deadline_;
  std::string* const reply_;
  std::shared_ptr<NotifyContext> context_ = std::make_shared<NotifyContext>();
  std::optional<int> result_;
};

int RadosWatch::check() {
  // Milliseconds since the OSD last confirmed the watch.
  constexpr int stale = 20 * 1000;
  const int r = io_.watch_check(context_->handle);
  if (r < 0) return -r;
  return r > stale ? ETIMEDOUT : 0;
}

NotifyPending::~NotifyPending() {
  if (!result_ && !context_->done.get()->is_complete_and_cb())
    cluster_->retired().keep(std::move(context_));
}

std::chrono::milliseconds RadosWatch::kept_for() {
  // Clocks need not go alike.
  const std::chrono::milliseconds sure = cluster_->watch_timeout() * 5 / 6;
  const int r = io_.watch_check(context_->handle);
  return r < 0 ? -sure : sure - std::chrono::milliseconds(r);
}

RadosWatch::~RadosWatch() {
  context_->disarm();
  // An OSD that does not answer must not make closing hang.
  const auto deadline = std::chrono::steady_clock::now() +
                        std::min<std::chrono::milliseconds>(
                            cluster_->timeout(), std::chrono::seconds(5));
  Completion done;
  done.set_empty_callback();
  if (io_.aio_unwatch(context_->handle, done.get()) == 0 &&
      wait_linger(done, deadline) != -ETIMEDOUT)
    cluster_->flush_watches();
  else
    cluster_->retired().keep(std::move(context_));
}

int NotifyPending::wait_until(std::chrono::steady_clock::time_point deadline) {
  if (result_) return *result_;
  librados::AioCompletion* const done = context_->done.get();
  // -ETIMEDOUT is also what an OSD says where a watcher did not answer.
  if (wait_linger(context_->done, deadline) == -ETIMEDOUT &&
      !done->is_complete_and_cb()) {
    if (reply_ != nullptr) reply_->clear();
    cluster_->retired().keep(std::move(context_));
    return result_.emplace(-ETIMEDOUT);
  }
  if (reply_ != nullptr) *reply_ = context_->reply.to_str();
  return result_.emplace(store_.result(done->get_return_value()));
}

}  // namespace

std::unique_ptr<Watch> start_watch(std::shared_ptr<RadosCluster> cluster,
                                   PendingOwner& store, librados::IoCtx& io,
                                   const std::string& oid,
                                   WatchHandler& handler) {
  auto context = std::make_shared<WatchContext>(io, oid, handler);
  const std::string doing = "cannot watch object " + oid;
  context->registered.set_empty_callback();
  check(io.aio_watch2(oid, context->registered.get(), &context->handle,
                      context.get(), cluster->watch_timeout().count()),
        doing);
  const int r = wait_linger(
      context->registered,
      std::chrono::steady_clock::now() + cluster->timeout());
  if (r < 0) {
    context->disarm();
    // The OSD may still answer, or have answered without our knowing.
    cluster->retired().keep(context);
    check(store.result(r), doing);
  }
  return std::make_unique<RadosWatch>(std::move(cluster), io, context);
}

std::unique_ptr<Pending> start_notification(
    std::shared_ptr<RadosCluster> cluster, PendingOwner& store,
    librados::IoCtx& io, const std::string& oid, std::string_view payload,
    std::chrono::milliseconds limit, std::string* reply) {
  // librados cuts the timeout to whole seconds, and to an OSD 0 is 30 seconds
  // (ceph: src/librados/IoCtxImpl.cc, osd_default_notify_timeout).
  const auto seconds =
      std::max(std::chrono::ceil<std::chrono::seconds>(limit),
               std::chrono::seconds(1));
  auto p = std::make_unique<NotifyPending>(std::move(cluster), store, seconds,
                                           reply);
  NotifyContext& context = p->context();
  context.io = io;
  context.payload = copied(payload);
  context.done.set_empty_callback();
  const int r = io.aio_notify(
      oid, context.done.get(), context.payload,
      static_cast<std::uint64_t>(std::chrono::milliseconds(seconds).count()),
      &context.reply);
  if (r < 0) p->failed(r);
  return p;
}

}  // namespace nbdrados
