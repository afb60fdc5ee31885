// SPDX-License-Identifier: BSD-3-Clause
//
// Which image, in which cluster, and how it is opened: what the plugin and
// radoscopy are both told.

#ifndef NBDRADOS_OPEN_IMAGE_CONFIG_HPP
#define NBDRADOS_OPEN_IMAGE_CONFIG_HPP

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "formats/catalog.hpp"
#include "image/image.hpp"
#include "image/ownership/lock_mode.hpp"
#include "image/status/extents_mode.hpp"
#include "image/worker_pool.hpp"
#include "rados/cluster.hpp"

namespace nbdrados {

/// Written while the parameters are read (see open/parameters.hpp), constant
/// afterwards.
struct ImageConfig {
  std::set<std::string> given;  // the keys
  ClusterConfig cluster;
  std::size_t clients = 4;  // see ClientPool
  std::string pool;
  std::optional<std::string> name_space;
  std::optional<std::string> image;
  std::string snapshot;
  std::string since;
  FormatChoice format = FormatChoice::automatic;
  bool create = false;
  CreateOptions create_options;
  LockMode lock = LockMode::exclusive;
  bool break_lock = false;
  std::chrono::milliseconds lock_wait = default_lock_wait;
  ExtentsMode extents = ExtentsMode::exact;
  std::uint64_t discard_granularity = 0;  // bytes; 0: the default

  // These check what can be checked without a cluster.  Throw Error(EINVAL).

  /// Pool and user.
  void check_cluster() const;
  /// Takes apart what image= says, and checks it.
  void check_image();

  /// Only where `image` is set.
  [[nodiscard]] ImageSpec spec() const;

 private:
  void split_image();
};

/// What an image needs of the program that opens it.
struct ImageHost {
  std::shared_ptr<WorkerPool> workers;
  /// ImageOptions::log.
  std::function<void(const std::string& line, bool trouble)> log;
};

/// How many threads that pool should have: they map objects, which librados
/// does only synchronously.  They wait for OSDs, so there may be more of them
/// than processors.
inline constexpr std::size_t mapping_threads = 32;

/// Opens what `identity` stands for as the configuration says; `spec` is what
/// messages call it.  A snapshot is never writable.  Throws Error as
/// open_format.
[[nodiscard]] std::shared_ptr<Image> open_image(
    const std::shared_ptr<Cluster>& cluster, const ImageIdentity& identity,
    const ImageSpec& spec, const ImageConfig& config, bool writable,
    const ImageHost& host);

}  // namespace nbdrados

#endif
