// SPDX-License-Identifier: BSD-3-Clause

#include "open/image_config.hpp"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "nbdkit/parameters.hpp"
#include "rados/error.hpp"

namespace nbdrados {

namespace {

[[noreturn]] void bad(const std::string& text) { throw Error(EINVAL, text); }

/// Only the OSDs know what they refuse; what this client's configuration says
/// is a hint.
void warn_of_large_objects(Cluster& cluster, Image& image,
                           const ImageHost& host) {
  const std::uint64_t limit =
      parse_digits(cluster.ceph_option("osd_max_object_size").value_or(""))
          .value_or(0);
  const std::uint64_t largest =
      std::min(image.traits().layout.object_size(), image.size());
  if (limit != 0 && largest > limit)
    host.log(image.traits().name + ": objects can become " +
                 std::to_string(largest) +
                 " bytes long, but OSDs refuse writes beyond " +
                 std::to_string(limit) + " (osd_max_object_size)",
             true);
}

}  // namespace

void ImageConfig::split_image() {
  const ImageSpec parsed = parse_image_name(*image, format);
  image = parsed.image;
  if (!parsed.name_space.empty()) {
    if (name_space && *name_space != parsed.name_space)
      bad("namespace=" + *name_space + " and a namespace in the image name");
    name_space = parsed.name_space;
  }
  if (!parsed.snapshot.empty()) {
    if (!snapshot.empty())
      bad("snapshot=" + snapshot + " and a snapshot in the image name");
    snapshot = parsed.snapshot;
  }
  if (!parsed.since.empty()) {
    if (!since.empty())
      bad("since=" + since + " and '@since=' in the image name");
    since = parsed.since;
  }
}

void ImageConfig::check_cluster() const {
  if (pool.empty())
    bad("pool= is missing (or POOL/IMAGE as the first argument)");
  if (given.contains("id") && given.contains("name"))
    bad("id= and name= are given both");
  if (cluster.entity.find('.') == std::string::npos ||
      cluster.entity.ends_with('.'))
    bad("'" + cluster.entity + "' is not a user name of the form TYPE.ID");
}

void ImageConfig::check_image() {
  create_options.format = format;
  if (image) {
    if (image->empty()) bad("the image name is empty");
    if (!given.contains("image-name")) split_image();
    if (!since.empty() && format == FormatChoice::striper)
      bad("since=" + since + ": striped objects have no snapshots");
    if (!since.empty() && create)
      bad("since=" + since + ": a new image has no snapshots");
  }
  if (create) {
    if (!image) bad("create=true needs image=");
    if (!given.contains("size")) bad("create=true needs size=");
    check_create(spec(), create_options);
  }
}

ImageSpec ImageConfig::spec() const {
  return {pool, name_space.value_or(""), image.value(), snapshot, since};
}

std::shared_ptr<Image> open_image(const std::shared_ptr<Cluster>& cluster,
                                  const ImageIdentity& identity,
                                  const ImageSpec& spec,
                                  const ImageConfig& config, bool writable,
                                  const ImageHost& host) {
  OpenOptions how;
  how.writable = writable && identity.snap == snap_head;
  how.grow_to = config.create ? 0 : config.create_options.size;
  auto format = open_format(cluster, identity, spec, how);
  ImageOptions options;
  options.writable = how.writable;
  options.lock = config.lock;
  options.break_lock = config.break_lock;
  options.lock_wait = config.lock_wait;
  options.extents = config.extents;
  options.discard_granularity = config.discard_granularity;
  options.identity = identity.text();
  options.workers = host.workers;
  options.log = host.log;
  auto image =
      std::make_shared<Image>(std::move(format), std::move(options));
  if (image->writable()) warn_of_large_objects(*cluster, *image, host);
  return image;
}

}  // namespace nbdrados
