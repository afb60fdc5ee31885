// SPDX-License-Identifier: BSD-3-Clause
//
// Images by name: find, open, create and list them in a pool.

#ifndef NBDRADOS_FORMATS_CATALOG_HPP
#define NBDRADOS_FORMATS_CATALOG_HPP

#include <compare>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/known_snapshots.hpp"
#include "image/image.hpp"
#include "rados/cluster.hpp"

namespace nbdrados {

enum class FormatChoice : std::uint8_t { automatic, format1, format2, striper };

[[nodiscard]] std::string_view to_string(FormatChoice format) noexcept;

/// Where an image is.
struct ImageSpec {
  std::string pool;
  std::string name_space;  // "": the default one
  std::string image;
  std::string snapshot;    // "": the head
  /// Not "": what has changed since that snapshot is wanted.
  std::string since = {};
  bool operator==(const ImageSpec&) const = default;
  /// [namespace/]image[@snapshot][@since=snapshot], as parse_image_name takes
  /// it: of no other image.
  [[nodiscard]] std::string name() const;
  /// pool/name()
  [[nodiscard]] std::string text() const { return pool + "/" + name(); }
};

/// Splits [NAMESPACE/]IMAGE[@SNAP][@since=SNAP].  In each part "%XX", with two
/// hexadecimal digits, stands for that byte, which is no separator; any other
/// '%' for itself.  Throws Error(EINVAL) for empty parts and for more than one
/// '/' or '@' (but that of "@since="): a name cannot lead out of its pool.
/// With format striper the whole text is the name, because a striped object's
/// name may contain anything.
[[nodiscard]] ImageSpec parse_image_name(std::string_view text,
                                         FormatChoice format);

/// What a name means at some moment.  Names can be given to something else at
/// any time; this never is.
struct ImageIdentity {
  std::int64_t pool = -1;
  std::string name_space;  // "": the default one
  FormatChoice format = FormatChoice::automatic;  // of the image: never that
  /// Format 2: the image's id.  The others: its name, by which it is found.
  /// Striped objects have nothing else; all of a name are the same RADOS
  /// objects.  When one is made in place of another, the lock tells.
  std::string image;
  /// Format 1: the prefix of its data objects, which no other image has.
  std::string prefix = {};
  SnapId snap = snap_head;
  /// Of ImageSpec::since.
  std::optional<SnapId> since = {};
  auto operator<=>(const ImageIdentity&) const = default;
  /// Different for different identities.
  [[nodiscard]] std::string text() const;
};

/// What a name means now.  A few reads, each bounded in time.  `known` makes it
/// quicker for many snapshots of one image.  Throws Error as open_format.
[[nodiscard]] ImageIdentity resolve_image(
    const std::shared_ptr<Cluster>& cluster, const ImageSpec& spec,
    FormatChoice format, KnownSnapshots* known = nullptr);

struct OpenOptions {
  FormatChoice format = FormatChoice::automatic;
  bool writable = false;
  /// Striped objects only: make it at least so many bytes long, as a write
  /// by libradosstriper would.
  std::uint64_t grow_to = 0;
};

/// Reads the metadata of an image, whatever its name means by now; `spec` is
/// for messages only.  Throws Error: ENOENT (pool, image or snapshot), ENOTSUP
/// (a feature that is not implemented, by name), EIO (metadata that makes no
/// sense), EBUSY (locked by somebody, by name).
[[nodiscard]] std::unique_ptr<ImageFormat> open_format(
    const std::shared_ptr<Cluster>& cluster, const ImageIdentity& identity,
    const ImageSpec& spec, const OpenOptions& options);

/// As resolve_image and open_format.
[[nodiscard]] std::unique_ptr<ImageFormat> open_format(
    const std::shared_ptr<Cluster>& cluster, const ImageSpec& spec,
    const OpenOptions& options);

/// What is not given, is for format 2 what Ceph's options rbd_default_* say,
/// those of the pool (`rbd config pool set`) first, as for `rbd create`.
struct CreateOptions {
  FormatChoice format = FormatChoice::automatic;  // automatic: format 2
  std::uint64_t size = 0;                          // bytes
  std::optional<std::uint64_t> object_size = {};   // bytes, default 4 MiB
  std::optional<std::uint64_t> stripe_unit = {};   // bytes
  std::optional<std::uint64_t> stripe_count = {};
  // Format 2 only.
  /// Feature bits; the bits striping and data-pool follow from the other
  /// options, whatever these say.
  std::optional<std::uint64_t> features = {};
  std::optional<std::string> data_pool = {};
};

/// Checks all that can be checked without a cluster.  Throws Error(EINVAL)
/// or Error(ENOTSUP) that names the parameter.
void check_create(const ImageSpec& spec, const CreateOptions& options);

/// Creates an image.  Throws Error: EEXIST where one of that name exists,
/// in whatever format, ENOENT where there is no such pool, data pool or
/// namespace, and the errors of check_create.
void create_image(const std::shared_ptr<Cluster>& cluster,
                  const ImageSpec& spec, const CreateOptions& options);

/// Gives an image of format 2 another name in its pool and namespace.  Who has
/// it open keeps it.  Calling it again completes a call that was interrupted.
/// Throws Error: ENOENT, EEXIST: another image has that name.
void rename_image(const std::shared_ptr<Cluster>& cluster,
                  const ImageSpec& from, const std::string& to);

/// Removes an image of format 2 that has neither data nor snapshots nor other
/// users: whoever made it has found that he does not need it.  `identity` is
/// the image's.  Throws Error; what is left then, `rbd rm` removes.
void remove_empty_image(const std::shared_ptr<Cluster>& cluster,
                        const ImageSpec& spec, const ImageIdentity& identity);

}  // namespace nbdrados

#endif
