// SPDX-License-Identifier: BSD-3-Clause

#include "copy/new_image.hpp"

#include <cerrno>
#include <optional>
#include <utility>

#include "rados/error.hpp"

namespace nbdrados::copy {

namespace {

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
  spec_.image += ".radoscopy";
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
    rename_image(cluster_, spec_, final_.image);
  } catch (const Error& e) {
    throw Error(e.code(), final_.text() +
                              ": the copy is complete, but called " +
                              spec_.text() + ": " + e.what());
  }
}

void NewImage::discard() {
  try {
    if (image_) image_->zero(image_->size(), 0, Image::Zero::free);
    close();
    remove_empty_image(cluster_, spec_, identity_);
  } catch (const Error& e) {
    throw Error(e.code(), spec_.text() +
                              " is left, which `rbd rm` removes: " + e.what());
  }
}

}  // namespace nbdrados::copy
