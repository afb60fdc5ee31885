// SPDX-License-Identifier: BSD-3-Clause

#include "open/parameters.hpp"

#include <strings.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>

#include "rbd/features.hpp"

namespace nbdrados::parameters {

namespace {

constexpr Choice<bool> booleans[] = {
    {"1", true},  {"true", true},   {"t", true},  {"yes", true},
    {"y", true},  {"on", true},     {"0", false}, {"false", false},
    {"f", false}, {"no", false},    {"n", false}, {"off", false}};

}  // namespace

bool parse_bool(Text key, Text value) {
  for (const auto& [word, meaning] : booleans)
    if (::strcasecmp(value.c_str(), word.data()) == 0) return meaning;
  bad(key + "=" + value + " is neither true nor false");
}

std::string absolute(Text key, Text path) {
  std::error_code error;
  const std::string found = std::filesystem::absolute(path, error).string();
  if (error) bad(key + "=" + path + " is not a path");
  if (::access(found.c_str(), R_OK) != 0) fail(errno, key + "=" + path);
  return found;
}

void set_target(ImageConfig& c, Text, Text value) {
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

void set_pool(ImageConfig& c, Text, Text value) {
  if (c.given.contains("target"))
    bad("pool=" + value + ": a pool is given already, in the target");
  c.pool = value;
}

void set_image(ImageConfig& c, Text key, Text value) {
  if (c.image) bad(key + "=" + value + ": an image is given already");
  c.image = value;
}

void set_snapshot(ImageConfig& c, Text, Text value) {
  if (value.empty()) bad("snapshot= must not be empty");
  c.snapshot = value;
}

void set_since(ImageConfig& c, Text, Text value) {
  if (value.empty()) bad("since= must not be empty");
  c.since = value;
}

void set_ceph_option(ImageConfig& c, Text key, Text value) {
  const std::string option = key.substr(key.find('.') + 1);
  if (option == "key")
    bad("ceph.key= would show the secret to every user of this machine; "
        "use keyfile= or keyring=");
  c.cluster.options.emplace_back(option, value);
}

void set_features(ImageConfig& c, Text, Text value) {
  try {
    c.create_options.features = parse_features(value);
  } catch (const Error& e) {
    bad("features=" + value + ": " + e.what());
  }
}

}  // namespace nbdrados::parameters
