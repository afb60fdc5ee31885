// SPDX-License-Identifier: BSD-3-Clause

#include "gateway.hpp"

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <cerrno>
#include <utility>

#include "nbdkit/log.hpp"
#include "rados/error.hpp"

namespace nbdrados {

namespace {

/// With more nbdkit gives the client an error and no list (server/exports.c,
/// MAX_EXPORTS).
constexpr std::size_t most_exports = 10000;

/// For a list that the client of the calling thread waits for.
ListOptions list_options(const Config& config) {
  ListOptions options;
  options.format = config.format;
  options.most = most_exports;
  options.longest = 4096;  // as most_exports: NBD_MAX_STRING
  // Fails where the server stops or the client has gone, and says so in the
  // log (nbdkit: server/public.c).
  options.stop = [] { return nbdkit_nanosleep(0, 0) == -1; };
  options.log = [](const std::string& line) {
    log_error("%s", line.c_str());
  };
  return options;
}

}  // namespace

Gateway::Gateway(const Config& config)
    : config_(config),
      clients_([&config] { return Cluster::connect(config.cluster); },
               config.clients,
               [](const std::string& line) {
                 log_error("%s", line.c_str());
               }),
      workers_(std::make_shared<WorkerPool>(mapping_threads)) {
  clients_.with_cluster([&](const std::shared_ptr<Cluster>& cluster) {
    (void)cluster->open_pool(config.pool, config.name_space.value_or(""),
                             Cluster::Purpose::metadata);
  });
}

Gateway::~Gateway() {
  // No request is under way any more, but clients may still be connected.
  uses_.clear();
}

Gateway::Use::Use(std::shared_ptr<Slot> slot, std::shared_ptr<Image> image,
                  std::shared_ptr<Difference> difference)
    : slot_(std::move(slot)),
      image_(std::move(image)),
      difference_(std::move(difference)),
      size_(image_->size()),
      description_(image_->description()) {
  if (difference_) description_ += ", as a difference";
}

Gateway::Use::~Use() {
  const std::scoped_lock lock(slot_->mutex);
  difference_.reset();
  image_.reset();
}

std::shared_ptr<Image> Gateway::make_image(const Slot& slot,
                                           const ImageSpec& spec,
                                           bool writable) {
  ImageHost host;
  host.workers = workers_;
  host.log = [](const std::string& line, bool trouble) {
    if (trouble)
      log_error("%s", line.c_str());
    else
      nbdkit_debug("%s", line.c_str());
  };
  return nbdrados::open_image(slot.client->cluster, slot.key.identity, spec,
                              config_, writable, host);
}

/// A key that may only read still gets something to read.
std::shared_ptr<Image> Gateway::make_readable_image(const Slot& slot,
                                                    const ImageSpec& spec) {
  try {
    return make_image(slot, spec, slot.key.writable);
  } catch (const Error& e) {
    if (!slot.key.writable || (e.code() != EPERM && e.code() != EACCES)) throw;
    auto image = make_image(slot, spec, false);
    log_error("%s is served read-only: %s", spec.text().c_str(),
              without_name(spec.text(), e.what()).c_str());
    return image;
  }
}

std::shared_ptr<Difference> Gateway::make_difference(
    const Slot& slot, const ImageSpec& spec, std::shared_ptr<Image> image) {
  ImageIdentity old = slot.key.identity;
  old.snap = *old.since;
  old.since.reset();
  ImageSpec old_spec = spec;
  old_spec.snapshot = spec.since;
  old_spec.since.clear();
  return std::make_shared<Difference>(
      std::move(image), open_format(slot.client->cluster, old, old_spec, {}));
}

/// The image of a slot, as a new client finds it.  The slot's mutex is held.
std::shared_ptr<Image> Gateway::open_image(Slot& slot,
                                           const ImageSpec& spec) {
  if (std::shared_ptr<Image> image = slot.image.lock()) {
    // A new client sees the present size, and is told when the image has
    // become unusable; but one that is lost only to those who have it open is
    // opened anew.
    try {
      image->refresh();
      if (const std::string& name = image->traits().name; name != spec.text())
        nbdkit_debug("%s was opened as %s, and messages call it that",
                     spec.text().c_str(), name.c_str());
      return image;
    } catch (const Error&) {
      if (!image->lost()) throw;
    }
  }
  return clients_.with_share([&](const ClientPool::Share& client) {
    slot.client = client;
    return make_readable_image(slot, spec);
  });
}

Gateway::Use* Gateway::open(const ImageSpec& spec, bool writable) {
  const ImageIdentity identity =
      clients_.with_cluster([&](const std::shared_ptr<Cluster>& cluster) {
        return resolve_image(cluster, spec, config_.format, &known_snapshots_);
      });
  const SlotKey key{identity, writable && identity.snap == snap_head &&
                                  !identity.since.has_value()};
  std::shared_ptr<Slot> slot;
  {
    const std::scoped_lock lock(mutex_);
    std::shared_ptr<Slot>& s = slots_[key];
    if (!s) {
      s = std::make_shared<Slot>();
      s->key = key;
    }
    slot = s;
  }
  try {
    const std::scoped_lock opening(slot->mutex);
    std::shared_ptr<Image> image = open_image(*slot, spec);
    std::shared_ptr<Difference> difference;
    if (identity.since) {
      if (slot->image.lock() == image) difference = slot->difference.lock();
      if (!difference) difference = make_difference(*slot, spec, image);
    }
    slot->image = image;
    slot->difference = difference;
    auto use =
        std::make_unique<Use>(slot, std::move(image), std::move(difference));
    const std::scoped_lock lock(mutex_);
    Use* const handle = use.get();
    uses_.emplace(handle, std::move(use));
    return handle;
  } catch (...) {
    release(std::move(slot));
    throw;
  }
}

void Gateway::close(Use* use) {
  std::unique_ptr<Use> owned;
  std::shared_ptr<Slot> slot;
  {
    const std::scoped_lock lock(mutex_);
    const auto it = uses_.find(use);
    owned = std::move(it->second);
    uses_.erase(it);
  }
  slot = owned->slot();
  owned.reset();
  release(std::move(slot));
}

void Gateway::release(std::shared_ptr<Slot> slot) noexcept {
  const std::scoped_lock lock(mutex_);
  const auto it = slots_.find(slot->key);
  slot.reset();
  if (it != slots_.end() && it->second.use_count() == 1) slots_.erase(it);
}

std::vector<std::string> Gateway::list(Shown shown) {
  if (config_.list == ListMode::none) return {};
  ListOptions options = list_options(config_);
  options.snapshots = config_.list == ListMode::all;
  options.shown = std::move(shown);
  return clients_.with_cluster([&](const std::shared_ptr<Cluster>& cluster) {
    return list_images(cluster, config_.pool, config_.name_space, options);
  });
}

std::optional<std::string> Gateway::only_image() {
  if (config_.list == ListMode::none) return std::nullopt;
  return clients_.with_cluster([&](const std::shared_ptr<Cluster>& cluster) {
    return nbdrados::only_image(cluster, config_.pool, config_.name_space,
                                list_options(config_));
  });
}

void Gateway::create() {
  clients_.with_cluster([&](const std::shared_ptr<Cluster>& cluster) {
    create_image(cluster, config_.spec(), config_.create_options);
  });
}

}  // namespace nbdrados
