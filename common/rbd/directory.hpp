// SPDX-License-Identifier: BSD-3-Clause
//
// rbd_directory, the part that lists format 1 images: a trivial map.
//
// A trivial map is the data of an object: a header (bytes with a length) and
// a map of keys to bytes (ceph: src/osd/PrimaryLogPG.cc, do_tmapup).  OSDs
// change it with the TMAPUP operation, a list of commands
// (ceph: src/include/rados.h, CEPH_OSD_TMAP_*).  In rbd_directory each key is
// the name of a format 1 image with an empty value, and the header is empty
// (ceph: src/librbd/internal.cc, tmap_set and list).
//
// The same object lists the format 2 images in its omap (keys name_NAME and
// id_ID, set and read by the `rbd` object class: dir_add_image, dir_list).
// Data and omap of an object are independent, so both lists live side by
// side.  With Ceph 16 on BlueStore: TMAPUP creates a missing rbd_directory,
// and leaves the omap of an existing one as it is; `rbd create`, `rename`
// and `rm` of format 2 images leave the data as it is; `rbd ls` prints the
// keys of the data, then the names of the omap; `rbd rm` of a format 1
// image removes its key.  The rbd_directory of a namespace is not searched for
// format 1 images: `rbd ls` does not print what its data lists.
//
// All functions are pure and thread-safe.

#ifndef NBDRADOS_RBD_DIRECTORY_HPP
#define NBDRADOS_RBD_DIRECTORY_HPP

#include <map>
#include <string>
#include <string_view>

namespace nbdrados {

struct TrivialMap {
  std::string header;
  std::map<std::string, std::string> entries;
  bool operator==(const TrivialMap&) const = default;
};

/// Decodes the data of an object.  No data at all is an empty map.  Throws
/// Error(EIO): cut off, an empty key, a key twice, or a count that the bytes
/// cannot hold.
[[nodiscard]] TrivialMap decode_trivial_map(std::string_view bytes);

/// The inverse.
[[nodiscard]] std::string encode_trivial_map(const TrivialMap& map);

/// A TMAPUP input (WriteOp::tmap_update) that sets a key, whether it is
/// there or not.
[[nodiscard]] std::string encode_tmap_set(std::string_view key,
                                          std::string_view value = {});
/// That adds a key; the operation fails with EEXIST where it is there.
[[nodiscard]] std::string encode_tmap_create(std::string_view key,
                                             std::string_view value = {});
/// That removes a key; the operation fails with ENOENT where it is not
/// there.
[[nodiscard]] std::string encode_tmap_remove(std::string_view key);
/// That sets the header.
[[nodiscard]] std::string encode_tmap_header(std::string_view header);

}  // namespace nbdrados

#endif
