// SPDX-License-Identifier: BSD-3-Clause

#include "formats/striper_metadata.hpp"

#include <cerrno>
#include <charconv>
#include <limits>
#include <system_error>

#include "rados/error.hpp"

namespace nbdrados {

namespace {

constexpr std::uint64_t layout_max = std::numeric_limits<std::uint32_t>::max();
constexpr std::uint64_t size_max =
    static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());

[[noreturn]] void refuse(std::string_view attr, const std::string& problem) {
  throw Error(EIO, "striper attribute " + std::string(attr) + ": " + problem);
}

// Only digits: std::from_chars takes no sign for unsigned types, no space
// and no prefix.
std::uint64_t decimal(std::string_view attr, std::string_view value,
                      std::uint64_t least, std::uint64_t most) {
  std::uint64_t number = 0;
  const char* end = value.data() + value.size();
  const auto [stop, ec] = std::from_chars(value.data(), end, number);
  if (ec == std::errc::invalid_argument || stop != end)
    refuse(attr, in_quotes(value) + " is not a decimal number");
  if (ec == std::errc::result_out_of_range || number < least || number > most)
    refuse(attr, std::string(value.substr(0, 32)) + " is not in [" +
                     std::to_string(least) + ", " + std::to_string(most) +
                     "]");
  return number;
}

std::string_view find(const std::map<std::string, std::string>& xattrs,
                      std::string_view attr) {
  const auto at = xattrs.find(std::string(attr));
  if (at == xattrs.end())
    throw Error(ENOENT, "not a striper object: it has no attribute " +
                            std::string(attr));
  return at->second;
}

}  // namespace

StriperMetadata StriperMetadata::decode(
    const std::map<std::string, std::string>& xattrs) {
  // What is missing is said first: then it is not a striper object at all.
  const std::string_view object_size = find(xattrs, striper_attr_object_size);
  const std::string_view unit = find(xattrs, striper_attr_stripe_unit);
  const std::string_view count = find(xattrs, striper_attr_stripe_count);
  const std::string_view size = find(xattrs, striper_attr_size);

  StriperMetadata out;
  out.object_size =
      decimal(striper_attr_object_size, object_size, 1, layout_max);
  out.stripe_unit = decimal(striper_attr_stripe_unit, unit, 1, layout_max);
  out.stripe_count = decimal(striper_attr_stripe_count, count, 1, layout_max);
  if (out.object_size % out.stripe_unit != 0)
    refuse(striper_attr_stripe_unit,
           std::to_string(out.stripe_unit) +
               " does not divide the object size " +
               std::to_string(out.object_size));
  // So that a byte of an object set has a number in 63 bits.
  if (out.stripe_count > size_max / out.object_size)
    refuse(striper_attr_stripe_count,
           std::to_string(out.stripe_count) + " objects of " +
               std::to_string(out.object_size) + " bytes are above 2^63 - 1");
  out.size = decode_striper_size(size);
  return out;
}

std::map<std::string, std::string> StriperMetadata::encode() const {
  return {
      {std::string(striper_attr_object_size), std::to_string(object_size)},
      {std::string(striper_attr_stripe_unit), std::to_string(stripe_unit)},
      {std::string(striper_attr_stripe_count), std::to_string(stripe_count)},
      {std::string(striper_attr_size), std::to_string(size)},
  };
}

std::uint64_t decode_striper_size(std::string_view value) {
  return decimal(striper_attr_size, value, 0, size_max);
}

}  // namespace nbdrados
