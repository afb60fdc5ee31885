// SPDX-License-Identifier: BSD-3-Clause
//
// What there is in a pool: the names of its images and their snapshots.

#ifndef NBDRADOS_FORMATS_LISTING_HPP
#define NBDRADOS_FORMATS_LISTING_HPP

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "formats/catalog.hpp"
#include "rados/cluster.hpp"

namespace nbdrados {

/// What somebody may see of a list.  Both are called by the calling thread.
struct Shown {
  /// Whether a name is listed.
  std::function<bool(const std::string& name)> name =
      [](const std::string&) { return true; };
  /// Whether a name that begins so could be: otherwise headers need not be read
  /// to find out.
  std::function<bool(const std::string& beginning)> any =
      [](const std::string&) { return true; };
};

struct ListOptions {
  FormatChoice format = FormatChoice::automatic;
  /// Snapshots that users took of the images, too: takes reading headers.
  bool snapshots = true;
  /// The others count for nothing.
  Shown shown = {};
  /// Names; images go before snapshots where there are more.
  std::size_t most = ~std::size_t{0};
  /// Bytes of a name; longer ones are left out.
  std::size_t longest = ~std::size_t{0};
  /// Asked now and then by the calling thread; true: nobody wants the list
  /// any more.  It may be empty.
  std::function<bool()> stop = {};
  /// Takes a line about what the list lacks.  It may be empty.
  std::function<void(const std::string& line)> log = {};
};

/// Names that parse_image_name and open_format take, for the images of a pool
/// and their snapshots: each image, sorted, with its snapshots behind it, also
/// sorted.  With `name_space` only those of that namespace, by their names in
/// it; without it those of all namespaces.  Striped objects are listed only
/// with format striper, because finding them takes a listing of all objects.
///
/// But for striped objects it takes at most Cluster::timeout().  An image
/// whose header has not answered until then, or cannot be read, is listed
/// without snapshots; a namespace whose directory could not be read is left
/// out; `log` says so.  Throws Error where no directory at all could be read,
/// and ECANCELED where `stop` ended it.
[[nodiscard]] std::vector<std::string> list_images(
    const std::shared_ptr<Cluster>& cluster, const std::string& pool,
    const std::optional<std::string>& name_space, const ListOptions& options);

/// The name of the only image that list_images would list; none where there
/// are several, or none.  Reads no headers, and no more of the directories
/// than it takes to find the second image.  `options` as for list_images, of
/// which it needs `format` and `stop`.  Throws Error, also where only a part
/// of the directories could be read.
[[nodiscard]] std::optional<std::string> only_image(
    const std::shared_ptr<Cluster>& cluster, const std::string& pool,
    const std::optional<std::string>& name_space, const ListOptions& options);

}  // namespace nbdrados

#endif
