// SPDX-License-Identifier: BSD-3-Clause
//
// Keys of cephx, as far as a message needs to look at them.  librados reads
// them by itself; of what it cannot use it says only EIO, EINVAL or EACCES.

#ifndef NBDRADOS_RADOS_KEYRING_HPP
#define NBDRADOS_RADOS_KEYRING_HPP

#include <cstdint>
#include <string>
#include <string_view>

namespace nbdrados {

enum class KeyState : std::uint8_t {
  good,     ///< as far as it can be seen without the cluster
  aes256k,  ///< well-formed, of the type that only newer librados can decode
  damaged,
  missing,     ///< the keyring has none for this user
  unreadable,  ///< there is no such file, or it cannot be read
};

/// What a key in base64 is, white space around it allowed: good, aes256k or
/// damaged.  Thread-safe.
[[nodiscard]] KeyState key_state(std::string_view base64);

/// The key of `entity` ("client.admin") in the text of a keyring file, in
/// base64; empty: there is none.  Of several the last one, as Ceph takes it.
/// Thread-safe.
[[nodiscard]] std::string find_key(std::string_view keyring,
                                   std::string_view entity);

/// What Ceph's options of these names say.
struct KeyOptions {
  std::string key;
  std::string keyfile;
  std::string keyring;  ///< paths, with , or ; between them
};

/// The key that librados takes, and where it is from, in words.
struct KeyReport {
  KeyState state;
  std::string where;  ///< "keyring /etc/ceph/ceph.keyring"
};

/// Looks for the key of `entity` where librados does.  Reads files, never
/// throws for what is wrong with them.  Thread-safe.
[[nodiscard]] KeyReport report_key(const KeyOptions& options,
                                   std::string_view entity);

}  // namespace nbdrados

#endif
