// SPDX-License-Identifier: BSD-3-Clause

#include "image/image.hpp"

#include <algorithm>
#include <utility>

namespace nbdrados {

namespace {

constexpr std::uint64_t default_discard_granularity = 64 * 1024;

std::string size_text(std::uint64_t bytes) {
  static constexpr const char* units[] = {"bytes", "KiB", "MiB",
                                          "GiB",   "TiB", "PiB"};
  unsigned u = 0;
  while (bytes != 0 && bytes % 1024 == 0 && u + 1 < std::size(units)) {
    bytes /= 1024;
    ++u;
  }
  return std::to_string(bytes) + " " + units[u];
}

std::uint64_t choose_granularity(std::uint64_t asked, const Layout& layout) {
  return asked != 0 ? asked
                    : std::min(default_discard_granularity,
                               layout.object_size());
}

std::shared_ptr<Backing> open_parent(std::unique_ptr<ImageFormat> format,
                                     ImageOptions options) {
  return std::make_shared<Image>(std::move(format), std::move(options));
}

/// Watch first, then read: nothing can change unseen in between.
std::unique_ptr<Maintenance> open(ImageCore& core) {
  ImageState& state = core.state;
  if (state.is_parent()) {
    core.metadata.load();
    return nullptr;
  }
  auto maintenance = std::make_unique<Maintenance>(core);
  core.metadata.load();
  const auto [unwritable, lockable] = [&] {
    const auto view = state.read();
    return std::pair(view->unwritable, view->lockable);
  }();
  if (state.writable() && !unwritable.empty()) {
    core.log(core.traits.name + " is served read-only: " + unwritable);
    state.serve_read_only();
  }
  if (state.writable() && lockable) maintenance->lock_at_open();
  maintenance->start();
  return maintenance;
}

}  // namespace

Image::Image(std::unique_ptr<ImageFormat> format, ImageOptions options)
    : core_(std::move(format), std::move(options), open_parent),
      discard_granularity_(
          choose_granularity(core_.options.discard_granularity,
                             core_.traits.layout)),
      learner_(core_),
      reader_(core_, learner_),
      status_(core_),
      maintenance_(open(core_)),
      writer_(core_, reader_, maintenance_.get()) {}

std::string Image::description() {
  const Layout& l = core_.traits.layout;
  std::string text = core_.traits.format + ", " + size_text(size()) +
                     ", object size " + size_text(l.object_size());
  if (l.stripe_count() != 1 || l.stripe_unit() != l.object_size())
    text += ", stripe unit " + size_text(l.stripe_unit()) +
            ", stripe count " + std::to_string(l.stripe_count());
  if (!core_.traits.details.empty()) text += ", " + core_.traits.details;
  return text;
}

void Image::trim(std::uint64_t length, std::uint64_t offset) {
  const std::uint64_t g = discard_granularity_;
  const std::uint64_t size_now = size();
  std::uint64_t end = offset + length;
  if (end < size_now) end = end / g * g;
  const std::uint64_t start = offset % g == 0 ? offset : (offset / g + 1) * g;
  // It must be a valid request, also where nothing is left of it; and where the
  // sum of its numbers is a small one, it is none.
  if (start >= end || length > ~offset)
    writer_.nothing(length, offset);
  else
    writer_.zero(end - start, start, ZeroMode::free);
}

}  // namespace nbdrados
