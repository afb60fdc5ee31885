// SPDX-License-Identifier: BSD-3-Clause

#include "image/io/object_change.hpp"

namespace nbdrados {

bool removes(const ImageTraits& traits, const View& view,
             const ObjectTarget& target) noexcept {
  return target.effect == ObjectTarget::Effect::clear &&
         !(traits.keep_first_object && target.object_no == 0) &&
         !view.backed(traits.layout, target.object_no);
}

void add_operation(const ImageTraits& traits, const View& view,
                   ObjectChange& change, std::size_t i, WriteOp& op) {
  const ObjectTarget target = change.target(i);
  if (target.effect != ObjectTarget::Effect::clear) {
    change.add_steps(op, i);
  } else if (removes(traits, view, target)) {
    op.remove();
  } else {
    // A missing object that the parent backs must come into being.
    if (view.backed(traits.layout, target.object_no)) op.create(false);
    op.truncate(0);
  }
}

void add_hint(const ImageTraits& traits, WriteOp& op) {
  const std::uint64_t size = traits.layout.object_size();
  if (traits.alloc_hints) op.alloc_hint(size, size);
}

}  // namespace nbdrados
