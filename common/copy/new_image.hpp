// SPDX-License-Identifier: BSD-3-Clause
//
// An image that is made for a copy.  Until the copy is complete it is called
// NAME.radoscopy, so that nobody takes it for NAME.

#ifndef NBDRADOS_COPY_NEW_IMAGE_HPP
#define NBDRADOS_COPY_NEW_IMAGE_HPP

#include <functional>
#include <memory>
#include <string>

#include "image/image.hpp"
#include "open/image_config.hpp"
#include "rados/cluster.hpp"

namespace nbdrados::copy {

class NewImage {
 public:
  /// Creates the image of `config`, of format 2, and opens it for writing.
  /// Throws Error: EEXIST: NAME exists, or NAME.radoscopy, which a copy that
  /// was killed left, or which somebody is making now.
  NewImage(std::shared_ptr<Cluster> cluster, const ImageConfig& config,
           const ImageHost& host);
  NewImage(const NewImage&) = delete;
  NewImage& operator=(const NewImage&) = delete;

  [[nodiscard]] const std::shared_ptr<Image>& image() const noexcept {
    return image_;
  }
  /// How the image is called meanwhile, POOL/[NAMESPACE/]NAME.radoscopy.
  [[nodiscard]] std::string name() const { return spec_.text(); }
  [[nodiscard]] static std::string name(const ImageConfig& config) {
    return config.spec().text() + suffix;
  }

  // One of these is called at the end, when nobody else has the image any more.

  /// Closes it and gives it its name, unless that of now is another image's.
  /// Throws Error that says what is to do.
  void publish();
  /// Removes it with all data; calls `tick` now and then.  Throws Error that
  /// says what is left.
  void discard(const std::function<void()>& tick = [] {});

 private:
  static constexpr const char* suffix = ".radoscopy";

  void close();

  const std::shared_ptr<Cluster> cluster_;
  const ImageSpec final_;
  ImageSpec spec_;  // how it is called meanwhile
  ImageIdentity identity_;
  std::shared_ptr<Image> image_;
};

}  // namespace nbdrados::copy

#endif
