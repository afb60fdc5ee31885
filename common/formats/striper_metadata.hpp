// SPDX-License-Identifier: BSD-3-Clause
//
// The extended attributes that make a RADOS object the first of a
// libradosstriper object.
//
// Format (ceph: src/libradosstriper/RadosStriperImpl.cc): a striped object
// NAME is in the RADOS objects NAME.%016x.  Object 0 always exists and has
// four attributes in ASCII decimal:
//
//     striper.layout.object_size    bytes, 32 bits
//     striper.layout.stripe_unit    bytes, 32 bits, divides object_size
//     striper.layout.stripe_count   32 bits
//     striper.size                  bytes of the striped object, 64 bits
//
// libradosstriper itself reads layout values only up to 2^31 - 1 (EINVAL
// above: strict_strtol) and crashes where stripe_unit does not divide
// object_size.
//
// libradosstriper takes a shared lock of the `lock` class on object 0 for
// each read and write, and an exclusive one to truncate and to remove.
//
// All functions are pure and thread-safe.

#ifndef NBDRADOS_FORMATS_STRIPER_METADATA_HPP
#define NBDRADOS_FORMATS_STRIPER_METADATA_HPP

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "rbd/encoding.hpp"

namespace nbdrados {

inline constexpr std::string_view striper_attr_object_size =
    "striper.layout.object_size";
inline constexpr std::string_view striper_attr_stripe_unit =
    "striper.layout.stripe_unit";
inline constexpr std::string_view striper_attr_stripe_count =
    "striper.layout.stripe_count";
inline constexpr std::string_view striper_attr_size = "striper.size";

/// The lock that libradosstriper takes on object 0, and its tag.
inline constexpr std::string_view striper_lock_name = "striper.lock";
inline constexpr std::string_view striper_lock_tag = "Tag";

struct StriperMetadata {
  std::uint64_t object_size = 0;   // bytes, [1, 2^32 - 1]
  std::uint64_t stripe_unit = 0;   // bytes, divides object_size
  // [1, 2^32 - 1], and object_size * stripe_count at most 2^63 - 1
  std::uint64_t stripe_count = 0;
  std::uint64_t size = 0;          // of the striped object, bytes < 2^63
  bool operator==(const StriperMetadata&) const = default;

  /// Decodes the attributes of object 0; others are ignored.  Throws
  /// Error(ENOENT) "not a striper object: ..." where one of the four is
  /// missing, and Error(EIO) that names the attribute and its value where
  /// one is malformed or out of range.
  [[nodiscard]] static StriperMetadata decode(
      const std::map<std::string, std::string>& xattrs);

  /// The inverse.
  [[nodiscard]] std::map<std::string, std::string> encode() const;
};

/// Decodes the value of striper.size alone, as read after another client may
/// have made the object larger.  Throws Error(EIO).
[[nodiscard]] std::uint64_t decode_striper_size(std::string_view value);

/// The name of a RADOS object of a striped object: "NAME.%016x".
[[nodiscard]] inline std::string striper_oid(std::string_view name,
                                             std::uint64_t n) {
  return numbered_oid(name, n, 16);
}

}  // namespace nbdrados

#endif
