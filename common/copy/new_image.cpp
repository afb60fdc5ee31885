// SPDX-License-Identifier: BSD-3-Clause

#include "copy/new_image.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <optional>
#include <utility>

#include "rados/error.hpp"

namespace nbdrados::copy {

namespace {

/// Objects whose removal is one step.
constexpr std::uint64_t removed_at_once = 256;

std::optional<ImageIdentity> find_image(
    const std::shared_ptr<Cluster>& cluster, const ImageSpec& spec) {
  try {
    return resolve_image(cluster, spec, FormatChoice::automatic);
  } catch (const Error& e) {
    if (e.code() != ENOENT) throw;
    return std::nullopt;
  }
}

}  // namespace

NewImage::NewImage(std::shared_ptr<Cluster> cluster,
                   const ImageConfig& config, const ImageHost& host)
    : cluster_(std::move(cluster)), final_(config.spec()), spec_(final_) {
  spec_.image += suffix;
  check_create(final_, config.create_options);
  const auto old = find_image(cluster_, final_);
  const auto begun = find_image(cluster_, spec_);
  if (old && begun && *old == *begun) {
    // Complete, and killed while it got its name.
    rename_image(cluster_, spec_, final_.image);
    throw Error(EEXIST, final_.text() +
                            ": a copy that was killed had been complete; now "
                            "the image has its name");
  }
  if (old)
    throw Error(EEXIST, final_.text() +
                            ": the image exists; --in-place writes into it");
  if (begun)
    throw Error(EEXIST,
                final_.text() + ": " + spec_.text() +
                    " exists: a copy makes it just now, or was killed, and "
                    "then `rbd rm " + spec_.text() + "` removes it");
  create_image(cluster_, spec_, config.create_options);
  identity_ = resolve_image(cluster_, spec_, FormatChoice::format2);
  try {
    image_ = open_image(cluster_, identity_, spec_, config, true, host);
  } catch (...) {
    discard();
    throw;
  }
}

void NewImage::close() { image_.reset(); }

void NewImage::publish() {
  close();
  try {
    const auto now = find_image(cluster_, spec_);
    if (!now || *now != identity_)
      throw Error(ESTALE, "somebody has renamed it, or removed it");
    rename_image(cluster_, spec_, final_.image);
  } catch (const Error& e) {
    throw Error(e.code(), final_.text() +
                              ": the copy is complete, but called " +
                              spec_.text() + ": " + e.what());
  }
}

void NewImage::discard(const std::function<void()>& tick) {
  try {
    if (image_) {
      const std::uint64_t size = image_->size();
      const Layout& layout = image_->traits().layout;
      const std::uint64_t part =
          std::max<std::uint64_t>(removed_at_once / layout.stripe_count(), 1) *
          layout.object_set_size();
      for (std::uint64_t at = 0; at < size; tick()) {
        const std::uint64_t n = std::min(part, size - at);
        image_->zero(n, at, Image::Zero::free);
        at += n;
      }
    }
    close();
    remove_empty_image(cluster_, spec_, identity_);
  } catch (const Error& e) {
    throw Error(e.code(), spec_.text() +
                              " is left, which `rbd rm` removes: " + e.what());
  }
}

}  // namespace nbdrados::copy
