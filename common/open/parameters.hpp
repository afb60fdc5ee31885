// SPDX-License-Identifier: BSD-3-Clause
//
// The parameters of ImageConfig.  Config is a class derived from it, so that
// a program can have more of its own in one table.

#ifndef NBDRADOS_OPEN_PARAMETERS_HPP
#define NBDRADOS_OPEN_PARAMETERS_HPP

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "nbdkit/parameters.hpp"
#include "open/image_config.hpp"
#include "rados/error.hpp"

namespace nbdrados {

// The values.  These throw Error(EINVAL) that names the key.
namespace parameters {

using namespace std::chrono_literals;
using Text = const std::string&;
template <class Config>
using Table = std::vector<Parameter<Config>>;

[[noreturn]] inline void bad(const std::string& text) {
  throw Error(EINVAL, text);
}

inline constexpr Choice<FormatChoice> formats[] = {
    {"auto", FormatChoice::automatic},
    {"1", FormatChoice::format1},
    {"2", FormatChoice::format2},
    {"striper", FormatChoice::striper}};

inline constexpr Choice<LockMode> lock_modes[] = {
    {"exclusive", LockMode::exclusive},
    {"auto", LockMode::automatic},
    {"none", LockMode::none}};

inline constexpr Choice<ExtentsMode> extents_modes[] = {
    {"exact", ExtentsMode::exact},
    {"object", ExtentsMode::object},
    {"off", ExtentsMode::off}};

/// Whether writes wait.
inline constexpr Choice<bool> when_full[] = {{"error", false},
                                            {"wait", true}};

template <class T, std::size_t n>
T choose(Text key, Text value, const Choice<T> (&choices)[n]) {
  if (const auto found = find_choice(value, choices)) return *found;
  bad(key + "=" + value +
      (n == 2 ? " is neither " + words(choices, "", " nor ")
              : " is not one of " + words(choices, ", ", ", ")));
}

/// nbdkit has as many words.
[[nodiscard]] bool parse_bool(Text key, Text value);
/// A file that can be read.  The process may change its directory later.
[[nodiscard]] std::string absolute(Text key, Text path);

void set_target(ImageConfig& c, Text key, Text value);
void set_pool(ImageConfig& c, Text key, Text value);
void set_image(ImageConfig& c, Text key, Text value);
void set_snapshot(ImageConfig& c, Text key, Text value);
void set_since(ImageConfig& c, Text key, Text value);
void set_ceph_option(ImageConfig& c, Text key, Text value);
void set_features(ImageConfig& c, Text key, Text value);

/// A setter of the base class.
template <class Config, void (*set)(ImageConfig&, Text, Text)>
void wrap(Config& c, Text key, Text value) {
  set(c, key, value);
}

/// What a parameter needs.
template <class Config>
inline constexpr typename Parameter<Config>::Need an_image = {
    [](const Config& c) { return c.image.has_value(); }, "needs image="};
template <class Config>
inline constexpr typename Parameter<Config>::Need creation = {
    [](const Config& c) { return c.create; }, "needs create=true"};
template <class Config>
inline constexpr typename Parameter<Config>::Need something_to_size = {
    [](const Config& c) {
      return c.create || (c.image && c.format == FormatChoice::striper);
    },
    "needs create=true, or an image of format=striper to grow"};

/// Which image.
template <class Config>
Table<Config> image_parameters() {
  return {
      {"[target=]<POOL>[/[<NAMESPACE>/]<IMAGE>[@<SNAP>]]",
       "The pool, and the image in it.", wrap<Config, set_target>},
      {"pool=<POOL>", "The pool (required, unless in the target).",
       wrap<Config, set_pool>},
      {"namespace=<NAMESPACE>", "The RBD namespace in the pool.",
       [](Config& c, Text, Text v) { c.name_space = v; }},
      {"image=<IMAGE>[@<SNAP>]",
       "The image. Without it the export name chooses.",
       wrap<Config, set_image>},
      {"image-name=<NAME>", "The image, by its exact name.",
       wrap<Config, set_image>},
      {"snapshot=<SNAP>", "A snapshot of the image.",
       wrap<Config, set_snapshot>, &an_image<Config>},
      {"since=<SNAP>", "Only what has changed since that snapshot.",
       wrap<Config, set_since>, &an_image<Config>},
      {"format=" + words(formats), "Format of the image (default auto).",
       [](Config& c, Text k, Text v) { c.format = choose(k, v, formats); }},
  };
}

/// How to reach the cluster.
template <class Config>
Table<Config> cluster_parameters() {
  return {
      {"conf=<FILE>", "ceph.conf (default: Ceph's own search).",
       [](Config& c, Text k, Text v) { c.cluster.conf = absolute(k, v); }},
      {"id=<ID>", "The user client.<ID> (default admin).",
       [](Config& c, Text, Text v) { c.cluster.entity = "client." + v; }},
      {"name=<TYPE>.<ID>", "The user, in full.",
       [](Config& c, Text, Text v) { c.cluster.entity = v; }},
      {"cluster=<NAME>", "The cluster's name (default ceph).",
       [](Config& c, Text, Text v) { c.cluster.cluster_name = v; }},
      {"keyring=<FILE>", "The user's keyring.",
       [](Config& c, Text k, Text v) { c.cluster.keyring = absolute(k, v); }},
      {"keyfile=<FILE>", "A file with only the user's key.",
       [](Config& c, Text k, Text v) { c.cluster.keyfile = absolute(k, v); }},
      {"mon-host=<ADDRESSES>", "The monitors.",
       [](Config& c, Text, Text v) { c.cluster.mon_host = v; }},
      {"ceph.<OPTION>=<VALUE>", "Any Ceph option.",
       wrap<Config, set_ceph_option>},
      {"connect-timeout=<TIME>",
       "Bound on connecting and opening (default 30s).",
       [](Config& c, Text k, Text v) {
         c.cluster.connect_timeout = parse_time(k, v, 1ms, 24h);
       }},
      {"clients=<N>", "Ceph clients that share the images (default 4).",
       [](Config& c, Text k, Text v) {
         c.clients = parse_number(k, v, 1, 1000);
       }},
  };
}

/// How to create an image.
template <class Config>
Table<Config> creation_parameters() {
  return {
      {"create=true", "Create the image first.",
       [](Config& c, Text k, Text v) { c.create = parse_bool(k, v); }},
      {"size=<SIZE>", "Size of the new image.",
       [](Config& c, Text k, Text v) {
         c.create_options.size = parse_size(k, v, 1);
       },
       &something_to_size<Config>},
      {"object-size=<SIZE>", "Object size of the new image (default 4M).",
       [](Config& c, Text k, Text v) {
         c.create_options.object_size = parse_size(k, v, 1);
       },
       &creation<Config>},
      {"stripe-unit=<SIZE>", "Stripe unit of the new image.",
       [](Config& c, Text k, Text v) {
         c.create_options.stripe_unit = parse_size(k, v, 1);
       },
       &creation<Config>},
      {"stripe-count=<N>", "Stripe count of the new image (default 1).",
       [](Config& c, Text k, Text v) {
         c.create_options.stripe_count = parse_number(k, v, 1, 0xffffffff);
       },
       &creation<Config>},
      {"features=<NAME>[,<NAME>]",
       "Features of the new image (default: Ceph's).",
       wrap<Config, set_features>, &creation<Config>},
      {"data-pool=<POOL>", "The pool for the data of the new image.",
       [](Config& c, Text, Text v) { c.create_options.data_pool = v; },
       &creation<Config>},
  };
}

/// How to serve it.
template <class Config>
Table<Config> serving_parameters() {
  return {
      {"lock=" + words(lock_modes),
       "The exclusive lock (default exclusive).",
       [](Config& c, Text k, Text v) { c.lock = choose(k, v, lock_modes); }},
      {"break-lock=true", "Wait for a dead owner's lock.",
       [](Config& c, Text k, Text v) { c.break_lock = parse_bool(k, v); }},
      {"lock-wait=<TIME>",
       "With lock=auto: how long others may maintain the\n"
       "image before writes go on (default 10s).",
       [](Config& c, Text k, Text v) {
         c.lock_wait = parse_time(k, v, 0ms, 24h);
       }},
      {"extents=" + words(extents_modes),
       "How exact block status is (default exact).",
       [](Config& c, Text k, Text v) {
         c.extents = choose(k, v, extents_modes);
       }},
      {"discard-granularity=<SIZE>",
       "Trims are rounded inwards to it (default 64K).",
       [](Config& c, Text k, Text v) {
         c.discard_granularity = parse_size(k, v, 1);
       }},
      {"full=" + words(when_full),
       "When cluster or pool are full (default error).",
       [](Config& c, Text k, Text v) {
         c.cluster.wait_when_full = choose(k, v, when_full);
       }},
  };
}

}  // namespace parameters

}  // namespace nbdrados

#endif
