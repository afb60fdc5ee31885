// SPDX-License-Identifier: BSD-3-Clause

#include "config.hpp"

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <strings.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <sstream>

#include "nbdkit/parameters.hpp"
#include "peer.hpp"
#include "rados/error.hpp"
#include "rbd/features.hpp"

namespace nbdrados {

namespace {

using namespace std::chrono_literals;

using Need = Parameter<Config>::Need;
using Table = std::vector<Parameter<Config>>;
using Text = const std::string&;

[[noreturn]] void bad(const std::string& text) { throw Error(EINVAL, text); }

constexpr Choice<bool> booleans[] = {
    {"1", true},  {"true", true},   {"t", true},  {"yes", true},
    {"y", true},  {"on", true},     {"0", false}, {"false", false},
    {"f", false}, {"no", false},    {"n", false}, {"off", false}};

constexpr Choice<FormatChoice> formats[] = {
    {"auto", FormatChoice::automatic},
    {"1", FormatChoice::format1},
    {"2", FormatChoice::format2},
    {"striper", FormatChoice::striper}};

constexpr Choice<ListMode> list_modes[] = {{"all", ListMode::all},
                                           {"images", ListMode::images},
                                           {"none", ListMode::none}};

constexpr Choice<LockMode> lock_modes[] = {{"exclusive", LockMode::exclusive},
                                           {"auto", LockMode::automatic},
                                           {"none", LockMode::none}};

constexpr Choice<ExtentsMode> extents_modes[] = {
    {"exact", ExtentsMode::exact},
    {"object", ExtentsMode::object},
    {"off", ExtentsMode::off}};

/// Whether writes wait.
constexpr Choice<bool> when_full[] = {{"error", false}, {"wait", true}};

template <class T, std::size_t n>
T choose(Text key, Text value, const Choice<T> (&choices)[n]) {
  if (const auto found = find_choice(value, choices)) return *found;
  bad(key + "=" + value +
      (n == 2 ? " is neither " + words(choices, "", " nor ")
              : " is not one of " + words(choices, ", ", ", ")));
}

/// nbdkit has as many words.
bool parse_bool(Text key, Text value) {
  for (const auto& [word, meaning] : booleans)
    if (::strcasecmp(value.c_str(), word.data()) == 0) return meaning;
  bad(key + "=" + value + " is neither true nor false");
}

/// nbdkit may change its directory later.
std::string absolute(Text key, Text path) {
  const std::unique_ptr<char, void (*)(void*)> p(
      nbdkit_absolute_path(path.c_str()), std::free);
  if (!p) bad(key + "=" + path + " is not a path");
  if (::access(p.get(), R_OK) != 0) fail(errno, key + "=" + path);
  return p.get();
}

void set_target(Config& c, Text, Text value) {
  if (c.given.contains("pool"))
    bad("'" + value + "': a pool is given already");
  const auto slash = value.find('/');
  c.pool = value.substr(0, slash);
  if (c.pool.empty()) bad("'" + value + "': the pool name is empty");
  if (slash == std::string::npos) return;
  if (c.image) bad("'" + value + "': an image is given already");
  c.image = value.substr(slash + 1);
  if (c.image->empty()) bad("'" + value + "': the image name is empty");
}

void set_pool(Config& c, Text, Text value) {
  if (c.given.contains("target"))
    bad("pool=" + value + ": a pool is given already, in the target");
  c.pool = value;
}

void set_image(Config& c, Text key, Text value) {
  if (c.image) bad(key + "=" + value + ": an image is given already");
  c.image = value;
}

void set_snapshot(Config& c, Text, Text value) {
  if (value.empty()) bad("snapshot= must not be empty");
  c.snapshot = value;
}

void set_since(Config& c, Text, Text value) {
  if (value.empty()) bad("since= must not be empty");
  c.since = value;
}

void set_ceph_option(Config& c, Text key, Text value) {
  const std::string option = key.substr(key.find('.') + 1);
  if (option == "key")
    bad("ceph.key= would show the secret to every user of this machine; "
        "use keyfile= or keyring=");
  c.cluster.options.emplace_back(option, value);
}

void set_features(Config& c, Text, Text value) {
  try {
    c.create_options.features = parse_features(value);
  } catch (const Error& e) {
    bad("features=" + value + ": " + e.what());
  }
}

/// Read once: what a client may do does not change while it is connected.
void set_allow(Config& c, Text key, Text value) {
  const std::string source = key + "=" + value;
  std::ifstream file(absolute(key, value), std::ios::binary);
  std::ostringstream text;
  // Nothing to put into a stream is an error there.
  if (file.peek() != std::ifstream::traits_type::eof()) text << file.rdbuf();
  if (!file.is_open() || file.bad() || !text)
    fail(EIO, source + " cannot be read");
  c.allow.emplace(text.str(), source);
  check_peer_functions(*c.allow, source);
}

constexpr Need an_image = {
    [](const Config& c) { return c.image.has_value(); }, "needs image="};
constexpr Need a_whole_pool = {
    [](const Config& c) { return !c.image; },
    "is for a whole pool, and an image is given"};
constexpr Need creation = {[](const Config& c) { return c.create; },
                           "needs create=true"};
constexpr Need something_to_size = {
    [](const Config& c) {
      return c.create || (c.image && c.format == FormatChoice::striper);
    },
    "needs create=true, or an image of format=striper to grow"};

/// Which image.
Table image_parameters() {
  return {
      {"[target=]<POOL>[/[<NAMESPACE>/]<IMAGE>[@<SNAP>]]",
       "The pool, and the image in it.", set_target},
      {"pool=<POOL>", "The pool (required, unless in the target).", set_pool},
      {"namespace=<NAMESPACE>", "The RBD namespace in the pool.",
       [](Config& c, Text, Text v) { c.name_space = v; }},
      {"image=<IMAGE>[@<SNAP>]",
       "The image. Without it the export name chooses.", set_image},
      {"image-name=<NAME>", "The image, by its exact name.", set_image},
      {"snapshot=<SNAP>", "A snapshot of the image.", set_snapshot, &an_image},
      {"since=<SNAP>", "Only what has changed since that snapshot.", set_since,
       &an_image},
      {"format=" + words(formats), "Format of the image (default auto).",
       [](Config& c, Text k, Text v) { c.format = choose(k, v, formats); }},
      {"list=" + words(list_modes),
       "What the list of exports tells (default all).",
       [](Config& c, Text k, Text v) { c.list = choose(k, v, list_modes); },
       &a_whole_pool},
  };
}

/// Who may have it.
Table client_parameters() {
  return {
      {"allow=<FILE>", "Rules: which client may open which exports.",
       set_allow},
  };
}

/// How to reach the cluster.
Table cluster_parameters() {
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
      {"ceph.<OPTION>=<VALUE>", "Any Ceph option.", set_ceph_option},
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
Table creation_parameters() {
  return {
      {"create=true", "Create the image first.",
       [](Config& c, Text k, Text v) { c.create = parse_bool(k, v); }},
      {"size=<SIZE>", "Size of the new image.",
       [](Config& c, Text k, Text v) {
         c.create_options.size = parse_size(k, v, 1);
       },
       &something_to_size},
      {"object-size=<SIZE>", "Object size of the new image (default 4M).",
       [](Config& c, Text k, Text v) {
         c.create_options.object_size = parse_size(k, v, 1);
       },
       &creation},
      {"stripe-unit=<SIZE>", "Stripe unit of the new image.",
       [](Config& c, Text k, Text v) {
         c.create_options.stripe_unit = parse_size(k, v, 1);
       },
       &creation},
      {"stripe-count=<N>", "Stripe count of the new image (default 1).",
       [](Config& c, Text k, Text v) {
         c.create_options.stripe_count = parse_number(k, v, 1, 0xffffffff);
       },
       &creation},
      {"features=<NAME>[,<NAME>]",
       "Features of the new image (default: Ceph's).", set_features, &creation},
      {"data-pool=<POOL>", "The pool for the data of the new image.",
       [](Config& c, Text, Text v) { c.create_options.data_pool = v; },
       &creation},
  };
}

/// How to serve it.
Table serving_parameters() {
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

const Parameters<Config>& parameters() {
  static const Parameters<Config> all([] {
    Table p;
    for (const Table& part :
         {image_parameters(), client_parameters(), cluster_parameters(),
          creation_parameters(), serving_parameters()})
      p.insert(p.end(), part.begin(), part.end());
    return p;
  }());
  return all;
}

}  // namespace

const char* Config::help() { return parameters().help(); }

void Config::set(const std::string& key, const std::string& value) {
  if (given.contains(key) && !key.starts_with("ceph."))
    bad(key + "= is given twice");
  if (!parameters().set(*this, key, value))
    bad("unknown parameter '" + key + "'; `nbdkit rados --help` lists them");
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
  if (given.contains("id") && given.contains("name"))
    bad("id= and name= are given both");
  if (cluster.entity.find('.') == std::string::npos ||
      cluster.entity.ends_with('.'))
    bad("'" + cluster.entity + "' is not a user name of the form TYPE.ID");
  parameters().check_needs(*this);

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

std::string Config::listed_name(const ImageSpec& spec) const {
  // Of these the whole name is taken as it is (parse_image_name).
  if (format == FormatChoice::striper) return spec.image;
  ImageSpec listed = spec;
  if (name_space) listed.name_space.clear();
  return listed.name();
}

}  // namespace nbdrados
