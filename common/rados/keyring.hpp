// SPDX-License-Identifier: BSD-3-Clause
//
// Keys of cephx, as far as a message needs to look at them.  librados reads
// them by itself; of a key that it cannot decode it says only EIO.

#ifndef NBDRADOS_RADOS_KEYRING_HPP
#define NBDRADOS_RADOS_KEYRING_HPP

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace nbdrados {

/// Types of keys (ceph: src/include/ceph_fs.h, CEPH_CRYPTO_*).  AES-256 is what
/// clusters of 19.2.6 and 20.2.4 make new keys of; older librados cannot
/// decode it.
inline constexpr std::uint16_t key_type_aes = 1;
inline constexpr std::uint16_t key_type_aes256k = 2;

/// The type of a key in base64, white space around it allowed; none: it is no
/// key.  Thread-safe.
[[nodiscard]] std::optional<std::uint16_t> key_type(std::string_view base64);

/// The key of `entity` ("client.admin") in the text of a keyring file, in
/// base64; empty: there is none.  Of several the last one, as Ceph takes it.
/// Thread-safe.
[[nodiscard]] std::string find_key(std::string_view keyring,
                                   std::string_view entity);

}  // namespace nbdrados

#endif
