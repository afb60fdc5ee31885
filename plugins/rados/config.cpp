// SPDX-License-Identifier: BSD-3-Clause

#include "config.hpp"

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <strings.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <memory>

#include "nbdkit/parameters.hpp"
#include "rados/error.hpp"
#include "rbd/features.hpp"

namespace nbdrados {

const char* const config_help =
    "[target=]<POOL>[/[<NAMESPACE>/]<IMAGE>[@<SNAP>]]\n"
    "                           The pool, and the image in it.\n"
    "pool=<POOL>                The pool (required, unless in the target).\n"
    "namespace=<NAMESPACE>      The RBD namespace in the pool.\n"
    "image=<IMAGE>[@<SNAP>]     The image. Without it the export name chooses.\n"
    "image-name=<NAME>          The image, by its exact name.\n"
    "snapshot=<SNAP>            A snapshot of the image.\n"
    "since=<SNAP>               Only what has changed since that snapshot.\n"
    "format=auto|1|2|striper    Format of the image (default auto).\n"
    "list=all|images|none       What the list of exports tells (default all).\n"
    "conf=<FILE>                ceph.conf (default: Ceph's own search).\n"
    "id=<ID>                    The user client.<ID> (default admin).\n"
    "name=<TYPE>.<ID>           The user, in full.\n"
    "cluster=<NAME>             The cluster's name (default ceph).\n"
    "keyring=<FILE>             The user's keyring.\n"
    "keyfile=<FILE>             A file with only the user's key.\n"
    "mon-host=<ADDRESSES>       The monitors.\n"
    "ceph.<OPTION>=<VALUE>      Any Ceph option.\n"
    "connect-timeout=<TIME>     Bound on connecting and opening (default 30s).\n"
    "clients=<N>                Ceph clients that share the images (default 4).\n"
    "create=true                Create the image first.\n"
    "size=<SIZE>                Size of the new image.\n"
    "object-size=<SIZE>         Object size of the new image (default 4M).\n"
    "stripe-unit=<SIZE>         Stripe unit of the new image.\n"
    "stripe-count=<N>           Stripe count of the new image (default 1).\n"
    "features=<NAME>[,<NAME>]   Features of the new image (default: Ceph's).\n"
    "data-pool=<POOL>           The pool for the data of the new image.\n"
    "lock=exclusive|auto|none   The exclusive lock (default exclusive).\n"
    "break-lock=true            Wait for a dead owner's lock.\n"
    "lock-wait=<TIME>           With lock=auto: how long others may maintain the\n"
    "                           image before writes go on (default 10s).\n"
    "extents=exact|object|off   How exact block status is (default exact).\n"
    "discard-granularity=<SIZE> Trims are rounded inwards to it (default 64K).\n"
    "full=error|wait            When cluster or pool are full (default error).";

namespace {

using namespace std::chrono_literals;

[[noreturn]] void bad(const std::string& text) { throw Error(EINVAL, text); }

bool parse_bool(const std::string& key, const std::string& value) {
  for (const char* yes : {"1", "true", "t", "yes", "y", "on"})
    if (::strcasecmp(value.c_str(), yes) == 0) return true;
  for (const char* no : {"0", "false", "f", "no", "n", "off"})
    if (::strcasecmp(value.c_str(), no) == 0) return false;
  bad(key + "=" + value + " is neither true nor false");
}

/// nbdkit may change its directory later.
std::string absolute(const std::string& key, const std::string& path) {
  const std::unique_ptr<char, void (*)(void*)> p(
      nbdkit_absolute_path(path.c_str()), std::free);
  if (!p) bad(key + "=" + path + " is not a path");
  if (::access(p.get(), R_OK) != 0) fail(errno, key + "=" + path);
  return p.get();
}

}  // namespace

void Config::set_target(const std::string& value) {
  const auto slash = value.find('/');
  pool = value.substr(0, slash);
  if (pool.empty()) bad("'" + value + "': the pool name is empty");
  if (slash == std::string::npos) return;
  if (image) bad("'" + value + "': an image is given already");
  image = value.substr(slash + 1);
  if (image->empty()) bad("'" + value + "': the image name is empty");
}

void Config::set(const std::string& key, const std::string& value) {
  constexpr std::string_view ceph = "ceph.";
  if (key.starts_with(ceph) && key.size() > ceph.size()) {
    const std::string option = key.substr(ceph.size());
    if (option == "key")
      bad("ceph.key= would show the secret to every user of this machine; "
          "use keyfile= or keyring=");
    cluster.options.emplace_back(option, value);
    return;
  }
  if (!seen_.insert(key).second) bad(key + "= is given twice");

  if (key == "target") {
    if (seen_.contains("pool"))
      bad("'" + value + "': a pool is given already");
    set_target(value);
  } else if (key == "pool") {
    if (seen_.contains("target"))
      bad("pool=" + value + ": a pool is given already, in the target");
    pool = value;
  } else if (key == "namespace") {
    name_space = value;
  } else if (key == "image" || key == "image-name") {
    if (image) bad(key + "=" + value + ": an image is given already");
    image = value;
  } else if (key == "snapshot") {
    snapshot = value;
    if (snapshot.empty()) bad("snapshot= must not be empty");
  } else if (key == "since") {
    since = value;
    if (since.empty()) bad("since= must not be empty");
  } else if (key == "format") {
    const auto f = parse_format(value);
    if (!f) bad("format=" + value + " is not one of auto, 1, 2, striper");
    format = *f;
  } else if (key == "list") {
    if (value == "all")
      list = ListMode::all;
    else if (value == "images")
      list = ListMode::images;
    else if (value == "none")
      list = ListMode::none;
    else
      bad("list=" + value + " is not one of all, images, none");
  } else if (key == "conf") {
    cluster.conf = absolute(key, value);
  } else if (key == "id") {
    cluster.entity = "client." + value;
  } else if (key == "name") {
    cluster.entity = value;
  } else if (key == "cluster") {
    cluster.cluster_name = value;
  } else if (key == "keyring") {
    cluster.keyring = absolute(key, value);
  } else if (key == "keyfile") {
    cluster.keyfile = absolute(key, value);
  } else if (key == "mon-host") {
    cluster.mon_host = value;
  } else if (key == "connect-timeout") {
    cluster.connect_timeout = parse_time(key, value, 1ms, 24h);
  } else if (key == "clients") {
    clients = parse_number(key, value, 1, 1000);
  } else if (key == "create") {
    create = parse_bool(key, value);
  } else if (key == "size") {
    create_options.size = parse_size(key, value, 1);
  } else if (key == "object-size") {
    create_options.object_size = parse_size(key, value, 1);
  } else if (key == "stripe-unit") {
    create_options.stripe_unit = parse_size(key, value, 1);
  } else if (key == "stripe-count") {
    create_options.stripe_count = parse_number(key, value, 1, 0xffffffff);
  } else if (key == "features") {
    try {
      create_options.features = parse_features(value);
    } catch (const Error& e) {
      bad("features=" + value + ": " + e.what());
    }
  } else if (key == "data-pool") {
    create_options.data_pool = value;
  } else if (key == "lock") {
    if (value == "exclusive")
      lock = LockMode::exclusive;
    else if (value == "auto")
      lock = LockMode::automatic;
    else if (value == "none")
      lock = LockMode::none;
    else
      bad("lock=" + value + " is not one of exclusive, auto, none");
  } else if (key == "break-lock") {
    break_lock = parse_bool(key, value);
  } else if (key == "lock-wait") {
    lock_wait = parse_time(key, value, 0ms, 24h);
  } else if (key == "extents") {
    if (value == "exact")
      extents = ExtentsMode::exact;
    else if (value == "object")
      extents = ExtentsMode::object;
    else if (value == "off")
      extents = ExtentsMode::off;
    else
      bad("extents=" + value + " is not one of exact, object, off");
  } else if (key == "discard-granularity") {
    discard_granularity = parse_size(key, value, 1);
  } else if (key == "full") {
    if (value != "error" && value != "wait")
      bad("full=" + value + " is neither error nor wait");
    cluster.wait_when_full = value == "wait";
  } else {
    bad("unknown parameter '" + key + "'; `nbdkit rados --help` lists them");
  }
}

void Config::split_image() {
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

void Config::complete() {
  if (pool.empty())
    bad("pool= is missing (or POOL/IMAGE as the first argument)");
  if (seen_.contains("id") && seen_.contains("name"))
    bad("id= and name= are given both");
  if (cluster.entity.find('.') == std::string::npos ||
      cluster.entity.ends_with('.'))
    bad("'" + cluster.entity + "' is not a user name of the form TYPE.ID");

  create_options.format = format;
  if (image) {
    if (image->empty()) bad("the image name is empty");
    if (!seen_.contains("image-name")) split_image();
    if (!since.empty() && format == FormatChoice::striper)
      bad("since=" + since + ": striped objects have no snapshots");
    if (!since.empty() && create)
      bad("since=" + since + ": a new image has no snapshots");
    if (seen_.contains("list"))
      bad("list= is for a whole pool, and an image is given");
  } else if (!snapshot.empty()) {
    bad("snapshot= needs image=");
  } else if (!since.empty()) {
    bad("since= needs image=");
  }

  if (create) {
    if (!image) bad("create=true needs image=");
    if (!seen_.contains("size")) bad("create=true needs size=");
    check_create(spec(), create_options);
    return;
  }
  for (const char* key : {"object-size", "stripe-unit", "stripe-count",
                          "features", "data-pool"})
    if (seen_.contains(key))
      bad(std::string(key) + "= needs create=true");
  if (seen_.contains("size") && (format != FormatChoice::striper || !image))
    bad("size= needs create=true, or an image of format=striper to grow");
}

ImageSpec Config::spec() const {
  return {pool, name_space.value_or(""), image.value(), snapshot, since};
}

ImageSpec Config::export_spec(std::string_view export_name) const {
  if (image) return spec();
  if (export_name.empty())
    throw Error(ENOENT, "pool '" + pool +
                            "' is exported as a whole: the client must choose "
                            "an image by its export name");
  ImageSpec wanted = parse_image_name(export_name, format);
  wanted.pool = pool;
  if (name_space) {
    if (!wanted.name_space.empty())
      throw Error(EPERM, "export '" + std::string(export_name) +
                             "' is outside of namespace '" + *name_space +
                             "', to which this server is limited");
    wanted.name_space = *name_space;
  }
  return wanted;
}

}  // namespace nbdrados
