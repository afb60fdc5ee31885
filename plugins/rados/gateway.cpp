// SPDX-License-Identifier: BSD-3-Clause

#include "gateway.hpp"

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <utility>

#include "rados/error.hpp"

namespace nbdrados {

namespace {

/// Threads for mapping objects, which librados does only synchronously.
/// They wait for OSDs, so there may be more of them than processors.
constexpr std::size_t mapping_threads = 32;

}  // namespace

Gateway::Gateway(const Config& config)
    : config_(config),
      cluster_(Cluster::connect(config.cluster)),
      workers_(std::make_shared<WorkerPool>(mapping_threads)) {
  (void)cluster_->open_pool(config.pool, config.name_space.value_or(""));
}

Gateway::~Gateway() = default;

Gateway::Use::Use(Gateway& gateway, std::shared_ptr<Slot> slot,
                  std::shared_ptr<Image> image)
    : gateway_(gateway),
      slot_(std::move(slot)),
      image_(std::move(image)),
      size_(image_->size()),
      description_(image_->description()) {}

Gateway::Use::~Use() {
  const std::string key = image_->traits().name;
  {
    const std::scoped_lock lock(slot_->mutex);
    image_.reset();
  }
  const std::scoped_lock lock(gateway_.mutex_);
  slot_.reset();
  const auto it = gateway_.slots_.find(key);
  // Nobody uses the image nor is about to.
  if (it != gateway_.slots_.end() && it->second.use_count() == 1)
    gateway_.slots_.erase(it);
}

std::unique_ptr<Gateway::Use> Gateway::open(const ImageSpec& spec,
                                            bool writable) {
  std::shared_ptr<Slot> slot;
  {
    const std::scoped_lock lock(mutex_);
    std::shared_ptr<Slot>& s = slots_[spec.text()];
    if (!s) s = std::make_shared<Slot>();
    slot = s;
  }
  const std::unique_lock lock(slot->mutex);
  std::shared_ptr<Image> image = slot->image.lock();
  if (image) {
    // A new client sees the present size, and is told when the image has
    // become unusable.
    image->refresh();
  } else {
    OpenOptions how;
    how.format = config_.format;
    how.writable = writable && spec.snapshot.empty();
    how.grow_to = config_.create ? 0 : config_.create_options.size;
    auto format = open_format(cluster_, spec, how);
    ImageOptions options;
    options.writable = how.writable && format->traits().can_write;
    options.discard_granularity = config_.discard_granularity;
    options.workers = workers_;
    options.log = [](const std::string& line) {
      nbdkit_error("%s", line.c_str());
    };
    image = std::make_shared<Image>(std::move(format), std::move(options));
    slot->image = image;
  }
  return std::make_unique<Use>(*this, slot, std::move(image));
}

std::vector<std::string> Gateway::list() {
  return list_images(cluster_, config_.pool, config_.name_space,
                     config_.format);
}

void Gateway::create() {
  create_image(cluster_, config_.spec(), config_.create_options);
}

}  // namespace nbdrados
