// SPDX-License-Identifier: BSD-3-Clause

#include "rbd/features.hpp"

#include <array>
#include <cerrno>
#include <cstddef>
#include <span>
#include <string_view>

#include "layout/decimal.hpp"
#include "rados/error.hpp"

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

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view space = " \t\r\n";
  const auto first = text.find_first_not_of(space);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(space) - first + 1);
}

/// Calls `use` with each part between commas; one with an empty text.
template <typename Use>
void for_each_name(std::string_view text, Use use) {
  for (;;) {
    const auto comma = text.find(',');
    use(text.substr(0, comma));
    if (comma == std::string_view::npos) return;
    text.remove_prefix(comma + 1);
  }
}

}  // namespace

std::optional<std::uint64_t> feature_of_name(std::string_view name) noexcept {
  for (std::size_t bit = 0; bit < names.size(); ++bit)
    if (names[bit] == name) return std::uint64_t{1} << bit;
  return std::nullopt;
}

std::uint64_t parse_features(std::string_view text) {
  if (const auto n = parse_digits(text)) return *n;
  std::uint64_t features = 0;
  for_each_name(text, [&](std::string_view name) {
    const auto bit = feature_of_name(name);
    if (!bit)
      throw Error(EINVAL, "'" + std::string(name) + "' is not a feature");
    features |= *bit;
  });
  return features;
}

std::uint64_t parse_default_features(std::string_view text) {
  text = trimmed(text);
  if (text.empty()) return features_default;
  std::uint64_t features = 0;
  if (const auto n = parse_digits(text)) {
    features = *n;
  } else {
    for_each_name(text, [&](std::string_view name) {
      features |= feature_of_name(trimmed(name)).value_or(0);
    });
  }
  return features & features_known & ~features_internal;
}

std::string feature_names(std::uint64_t features) {
  return bit_names(features, names);
}

std::string op_feature_names(std::uint64_t op_features) {
  return bit_names(op_features, op_names);
}

}  // namespace nbdrados
