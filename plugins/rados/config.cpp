// SPDX-License-Identifier: BSD-3-Clause

#include "config.hpp"

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <cerrno>
#include <fstream>
#include <sstream>

#include "nbdkit/parameters.hpp"
#include "open/parameters.hpp"
#include "peer.hpp"
#include "rados/error.hpp"

namespace nbdrados {

namespace {

using namespace parameters;

using Need = Parameter<Config>::Need;
using OwnTable = Table<Config>;

constexpr Choice<ListMode> list_modes[] = {{"all", ListMode::all},
                                           {"images", ListMode::images},
                                           {"none", ListMode::none}};

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

constexpr Need a_whole_pool = {
    [](const Config& c) { return !c.image; },
    "is for a whole pool, and an image is given"};

/// Which image.
OwnTable all_image_parameters() {
  OwnTable table = image_parameters<Config>();
  table.push_back(
      {"list=" + words(list_modes),
       "What the list of exports tells (default all).",
       [](Config& c, Text k, Text v) { c.list = choose(k, v, list_modes); },
       &a_whole_pool});
  return table;
}

/// Who may have it.
OwnTable client_parameters() {
  return {
      {"allow=<FILE>", "Rules: which client may open which exports.",
       set_allow},
  };
}

const Parameters<Config>& all_parameters() {
  static const Parameters<Config> all([] {
    OwnTable p;
    for (const OwnTable& part :
         {all_image_parameters(), client_parameters(),
          cluster_parameters<Config>(), creation_parameters<Config>(),
          serving_parameters<Config>()})
      p.insert(p.end(), part.begin(), part.end());
    return p;
  }());
  return all;
}

}  // namespace

const char* Config::help() { return all_parameters().help(); }

void Config::set(const std::string& key, const std::string& value) {
  if (given.contains(key) && !key.starts_with("ceph."))
    bad(key + "= is given twice");
  if (!all_parameters().set(*this, key, value))
    bad("unknown parameter '" + key + "'; `nbdkit rados --help` lists them");
}

void Config::complete() {
  check_cluster();
  all_parameters().check_needs(*this);
  check_image();
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
