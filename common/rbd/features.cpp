// SPDX-License-Identifier: BSD-3-Clause

#include "rbd/features.hpp"

#include <array>
#include <cstddef>
#include <span>
#include <string_view>

namespace nbdrados {

namespace {

// Index: bit number.
constexpr std::array<std::string_view, 12> names = {
    "layering",     "striping",      "exclusive-lock", "object-map",
    "fast-diff",    "deep-flatten",  "journaling",     "data-pool",
    "operations",   "migrating",     "non-primary",    "dirty-cache",
};
static_assert(features_known == (std::uint64_t{1} << names.size()) - 1);

constexpr std::array<std::string_view, 4> op_names = {
    "clone-parent",
    "clone-child",
    "group",
    "snap-trash",
};

std::string bit_names(std::uint64_t bits,
                      std::span<const std::string_view> known) {
  std::string out;
  for (std::size_t bit = 0; bit < 64; ++bit) {
    if (((bits >> bit) & 1) == 0) continue;
    if (!out.empty()) out += ", ";
    if (bit < known.size())
      out += known[bit];
    else
      out += "unknown bit " + std::to_string(bit);
  }
  return out;
}

}  // namespace

std::string feature_names(std::uint64_t features) {
  return bit_names(features, names);
}

std::string op_feature_names(std::uint64_t op_features) {
  return bit_names(op_features, op_names);
}

}  // namespace nbdrados
