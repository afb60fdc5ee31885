// SPDX-License-Identifier: BSD-3-Clause
//
// The formats, for the catalog.  Each function throws Error as catalog.hpp's
// resolve_image, open_format and create_image say.

#ifndef NBDRADOS_FORMATS_FORMATS_HPP
#define NBDRADOS_FORMATS_FORMATS_HPP

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/catalog.hpp"
#include "image/image.hpp"
#include "rbd/format2.hpp"

namespace nbdrados {

/// A pool's stores and the bound on metadata operations.
struct Pool {
  std::shared_ptr<Cluster> cluster;
  std::shared_ptr<ObjectStore> store;  // for metadata
  std::shared_ptr<ObjectStore> data;
  /// Null: nothing is remembered.
  KnownSnapshots* known_snapshots = nullptr;
  [[nodiscard]] std::chrono::milliseconds timeout() const {
    return cluster->timeout();
  }
  /// The result of an operation, or -ETIMEDOUT when timeout() is over; then it
  /// has been cancelled.
  [[nodiscard]] int wait(const std::unique_ptr<Pending>& operation) const {
    return operation->wait_for(timeout());
  }
  /// The result of a method of the class rbd; as wait.
  [[nodiscard]] int call(std::string_view oid, std::string_view method,
                         std::string_view input, std::string* output) const {
    return wait(
        store->exec(std::string(oid), rbd_class, method, input, output));
  }
};

/// These leave pool, namespace and format to the caller; none: there is no
/// image of that format and name.
[[nodiscard]] std::optional<ImageIdentity> resolve_format1(
    const Pool& pool, const ImageSpec& spec);
[[nodiscard]] std::optional<ImageIdentity> resolve_format2(
    const Pool& pool, const ImageSpec& spec);
[[nodiscard]] std::optional<ImageIdentity> resolve_striper(
    const Pool& pool, const ImageSpec& spec);

[[nodiscard]] std::unique_ptr<ImageFormat> open_format1(
    const Pool& pool, const ImageIdentity& identity, const ImageSpec& spec,
    const OpenOptions& options);
[[nodiscard]] std::unique_ptr<ImageFormat> open_format2(
    const Pool& pool, const ImageIdentity& identity, const ImageSpec& spec,
    const OpenOptions& options);
[[nodiscard]] std::unique_ptr<ImageFormat> open_striper(
    const Pool& pool, const ImageIdentity& identity, const ImageSpec& spec,
    const OpenOptions& options);

[[nodiscard]] bool exists_format1(const Pool& pool, const std::string& image);
[[nodiscard]] bool exists_format2(const Pool& pool, const std::string& image);
[[nodiscard]] bool exists_striper(const Pool& pool, const std::string& image);

void create_format1(const Pool& pool, const ImageSpec& spec,
                    const CreateOptions& options);
void create_format2(const Pool& pool, const ImageSpec& spec,
                    const CreateOptions& options);
/// Throws Error where no image of format 2 can be created with these
/// features: EINVAL (one needs another, or comes by itself only), ENOTSUP.
/// `source` says where they come from.
void check_new_features(std::uint64_t features, const std::string& source);
void create_striper(const Pool& pool, const ImageSpec& spec,
                    const CreateOptions& options);

/// As catalog.hpp says.
void rename_format2(const Pool& pool, const ImageSpec& from,
                    const std::string& to);
void remove_empty_format2(const Pool& pool, const ImageSpec& spec,
                          const std::string& id);

/// Names of images, with the names of their (user's) snapshots.
using Listing = std::map<std::string, std::vector<std::string>>;
/// `log` receives a line about what cannot be listed.
void list_striper(const Pool& pool, Listing& into,
                  const std::function<void(const std::string&)>& log);

/// Throws Error(ENOTSUP) that says why a method of the class rbd that changes
/// an object gave EOPNOTSUPP: its OSDs lack the class, or the pool is
/// erasure-coded.  Throws Error where that cannot be asked.
[[noreturn]] void rbd_class_refused(const Pool& pool);

/// A pool's stores, by its name or number.  Throws Error ENOENT where there is
/// no such pool.
[[nodiscard]] Pool open_pool(const std::shared_ptr<Cluster>& cluster,
                             const std::string& pool,
                             const std::string& name_space);
[[nodiscard]] Pool open_pool(const std::shared_ptr<Cluster>& cluster,
                             std::int64_t pool,
                             const std::string& name_space);

/// Whether an object exists.  Throws Error.
[[nodiscard]] bool object_exists(const Pool& pool, const std::string& oid);

}  // namespace nbdrados

#endif
