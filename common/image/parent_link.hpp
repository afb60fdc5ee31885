// SPDX-License-Identifier: BSD-3-Clause
//
// From a clone to its parent.

#ifndef NBDRADOS_IMAGE_PARENT_LINK_HPP
#define NBDRADOS_IMAGE_PARENT_LINK_HPP

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "image/image_format.hpp"
#include "image/options.hpp"
#include "image/state/view.hpp"
#include "rados/error.hpp"

namespace nbdrados {

/// For one thread at a time.
class ParentLink {
 public:
  /// Opens a parent.
  using Open = std::function<std::shared_ptr<Backing>(
      std::unique_ptr<ImageFormat>, ImageOptions)>;
  /// Generations of parents.  A request that goes through all of them does so
  /// by recursion, and a thread has 8 MiB of stack.
  static constexpr unsigned max_depth = 1000;

  /// What is given must outlive this.
  ParentLink(ImageFormat& format, const ImageOptions& options, Open open)
      : format_(format), options_(options), open_(std::move(open)) {}

  /// The parent that a View names; null where it names none.  The same as long
  /// as it is named.  Throws Error.
  [[nodiscard]] std::shared_ptr<Backing> find(const View& view);

 private:
  [[nodiscard]] std::shared_ptr<const Lineage> lineage_of(
      const ParentSpec& spec) const;

  ImageFormat& format_;
  const ImageOptions& options_;
  const Open open_;
  ParentSpec spec_;
  std::shared_ptr<Backing> parent_;
};

/// Runs `body`, which asks the parent of the image `name`; its errors name the
/// image that somebody uses, too.
template <class Body>
auto of_parent(const std::string& name, Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (const Error& e) {
    throw Error(e.code(), name + ": its parent: " + e.what());
  }
}

}  // namespace nbdrados

#endif
