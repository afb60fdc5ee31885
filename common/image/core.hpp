// SPDX-License-Identifier: BSD-3-Clause
//
// What the rooms of one open image share: io/, status/ and ownership/ each get
// it, and of one another what their constructors say.

#ifndef NBDRADOS_IMAGE_CORE_HPP
#define NBDRADOS_IMAGE_CORE_HPP

#include <memory>
#include <string>
#include <utility>

#include "image/image_format.hpp"
#include "image/options.hpp"
#include "image/parent_link.hpp"
#include "image/state/image_state.hpp"
#include "image/state/metadata.hpp"
#include "image/state/view.hpp"
#include "image/status/known_extents.hpp"
#include "rados/object_store.hpp"

namespace nbdrados {

struct ImageCore {
  ImageCore(std::unique_ptr<ImageFormat> how, ImageOptions chosen,
            ParentLink::Open open_parent)
      : format(std::move(how)),
        traits(format->traits()),
        data(format->data_store()),
        options(std::move(chosen)),
        state(traits, options, known),
        metadata(*format, state, options, std::move(open_parent)) {}
  ImageCore(const ImageCore&) = delete;
  ImageCore& operator=(const ImageCore&) = delete;

  /// Thread-safe.
  void log(const std::string& line, bool trouble = true) const {
    if (options.log) options.log(line, trouble);
  }

  const std::unique_ptr<ImageFormat> format;
  const ImageTraits& traits;
  ObjectStore& data;
  const ImageOptions options;
  KnownExtents known;
  ImageState state;
  Metadata metadata;
};

}  // namespace nbdrados

#endif
