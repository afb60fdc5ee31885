// SPDX-License-Identifier: BSD-3-Clause

#include "image/parent_link.hpp"

#include <cerrno>

namespace nbdrados {

/// A damaged header must not lead in a circle.
std::shared_ptr<const Lineage> ParentLink::lineage_of(
    const ParentSpec& spec) const {
  const std::string& name = format_.traits().name;
  const unsigned depth = options_.lineage ? options_.lineage->depth + 1 : 1;
  if (depth > max_depth)
    throw Error(EIO, name + ": more than " + std::to_string(max_depth) +
                         " generations of parents");
  for (const Lineage* l = options_.lineage.get(); l; l = l->child.get())
    if (l->spec == spec) throw Error(EIO, name + ": is its own ancestor");
  return std::make_shared<Lineage>(Lineage{spec, depth, options_.lineage});
}

std::shared_ptr<Backing> ParentLink::find(const View& view) {
  if (view.overlap == 0) {
    parent_.reset();
    spec_ = {};
    return nullptr;
  }
  if (!parent_ || spec_ != view.parent_spec) {
    ImageOptions options;
    options.lineage = lineage_of(view.parent_spec);
    options.extents = options_.extents;
    options.workers = options_.workers;
    options.log = options_.log;
    parent_ = open_(format_.open_parent(view.parent_spec), std::move(options));
    spec_ = view.parent_spec;
  }
  return parent_;
}

}  // namespace nbdrados
