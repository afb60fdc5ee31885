// SPDX-License-Identifier: BSD-3-Clause

#include "rados/client/connect.hpp"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <iterator>
#include <utility>
#include <vector>

#include "rados/error.hpp"
#include "rados/keyring.hpp"

namespace nbdrados {

std::string client_option(librados::Rados& rados, const char* name) {
  std::string value;
  return rados.conf_get(name, value) < 0 ? std::string() : value;
}

std::string librados_version() {
  int major = 0;
  int minor = 0;
  int extra = 0;
  librados::Rados::version(&major, &minor, &extra);
  return std::to_string(major) + "." + std::to_string(minor) + "." +
         std::to_string(extra);
}

std::string ceph_version() {
  // No header of librados tells, but the library below it has this function
  // (Ceph: src/common/version.h).
  void* const found = ::dlsym(RTLD_DEFAULT, "_Z19ceph_version_to_strv");
  if (found == nullptr) return "unknown";
  return reinterpret_cast<const char* (*)()>(found)();
}

namespace {

// Defaults of ours, in effect where the user says nothing else.
// In-memory debug logs cost a fifth of the CPU of a small request, and
// what librados prints on stderr repeats in many lines what our one line
// says.
constexpr std::pair<const char*, const char*> defaults[] = {
    {"debug_ms", "0/0"},          {"debug_objecter", "0/0"},
    {"debug_rados", "0/0"},       {"debug_monc", "0/0"},
    {"debug_auth", "0/0"},        {"debug_context", "0/0"},
    {"log_to_stderr", "false"},   {"err_to_stderr", "false"},
    {"log_file", ""},             {"admin_socket", ""},
    // At a client's limits of what is in flight (1024 operations, 100 MiB)
    // librados does not even start an operation, for no image, not even one
    // that answers a notification: so one OSD that does not answer would
    // stop all images of the server.  nbdkit bounds the requests, and
    // objects_in_flight the operations of each.  0: no limit (ceph:
    // src/common/Throttle.cc, get).
    {"objecter_inflight_ops", "0"},
    {"objecter_inflight_op_bytes", "0"},
};

/// Reads ceph.conf and the environment.  Returns whether there was a ceph.conf.
bool read_conf(librados::Rados& rados, const ClusterConfig& config) {
  std::vector<std::string> built_in;
  for (const auto& [name, value] : defaults)
    built_in.push_back(client_option(rados, name));

  int r = 0;
  if (config.conf) {
    if (::access(config.conf->c_str(), R_OK) != 0)
      fail(errno, "conf=" + *config.conf);
    r = rados.conf_read_file(config.conf->c_str());
    if (r < 0) fail(-r, "cannot read conf=" + *config.conf);
  } else {
    r = rados.conf_read_file(nullptr);
    if (r < 0 && r != -ENOENT) fail(-r, "cannot read the Ceph configuration");
  }
  rados.conf_parse_env(nullptr);

  for (std::size_t i = 0; i < std::size(defaults); ++i)
    if (client_option(rados, defaults[i].first) == built_in[i])
      rados.conf_set(defaults[i].first, defaults[i].second);
  return r != -ENOENT;
}

void set_option(librados::Rados& rados, const std::string& name,
                const std::string& value) {
  const int r = rados.conf_set(name.c_str(), value.c_str());
  if (r == -ENOENT)
    throw Error(EINVAL, "ceph." + name + ": Ceph has no such option");
  if (r < 0)
    throw Error(EINVAL, "ceph." + name + "=" + value + ": " + error_text(-r));
}

/// What the parameters say.
void set_options(librados::Rados& rados, const ClusterConfig& config) {
  const auto set_file = [&](const char* key,
                            const std::optional<std::string>& path) {
    if (!path) return;
    if (::access(path->c_str(), R_OK) != 0)
      fail(errno, std::string(key) + "=" + *path);
    set_option(rados, key, *path);
  };
  set_file("keyring", config.keyring);
  set_file("keyfile", config.keyfile);
  if (config.mon_host) set_option(rados, "mon_host", *config.mon_host);
  const std::string seconds = std::to_string(
      std::chrono::ceil<std::chrono::seconds>(config.connect_timeout).count());
  set_option(rados, "client_mount_timeout", seconds);
  // Bounds commands to monitors (blocklist), which wait for ever by default.
  set_option(rados, "rados_mon_op_timeout", seconds);
  for (const auto& [name, value] : config.options)
    set_option(rados, name, value);
}

/// Whether this librados reads keys of that type: since 19.2.6 and 20.2.4.
bool reads_aes256k() {
  int major = 0;
  int minor = 0;
  int patch = 0;
  (void)std::sscanf(ceph_version().c_str(), "%d.%d.%d", &major, &minor,
                    &patch);
  const std::array version{major, minor, patch};
  return version >= std::array{20, 2, 4} ||
         (major == 19 && version >= std::array{19, 2, 6});
}

/// Says what is wrong, where the key may be to blame.
[[noreturn]] void key_failed(librados::Rados& rados, int r,
                             const ClusterConfig& config) {
  const std::string& entity = config.entity;
  const KeyReport key = report_key({.key = client_option(rados, "key"),
                                    .keyfile = client_option(rados, "keyfile"),
                                    .keyring = client_option(rados, "keyring")},
                                   entity);
  const bool refused = r == -EACCES || r == -EPERM;
  const std::string as = "cannot connect to Ceph as " + entity + ": ";
  switch (key.state) {
    case KeyState::unreadable:
      throw Error(-r, as + key.where + " cannot be read");
    case KeyState::damaged:
      throw Error(-r, as + "the key in " + key.where + " is damaged");
    case KeyState::missing:
      if (!refused && r != -ENOENT) break;
      throw Error(EACCES, as + key.where + " has no key for " + entity);
    case KeyState::aes256k:
      if (refused || reads_aes256k()) break;
      throw Error(-r, as + "the key in " + key.where +
                          " is of the new type aes256k, which this librados "
                          "cannot read; it needs one that was made with "
                          "--key-type aes");
    case KeyState::good:
      break;
  }
  if (refused)
    throw Error(EACCES, "the cluster does not accept " + entity +
                            ": wrong key (in " + key.where +
                            ") or unknown user");
  // All of a keyring must be right, also what is of other users.  (Ceph 20
  // calls one that is not "not found".)
  if (r == -EIO || r == -ENOENT)
    throw Error(EIO, as + key.where + " is damaged");
  const std::string monitors = client_option(rados, "mon_host");
  // ceph: src/mon/MonMap.cc, build_initial.
  if (r == -EINVAL)
    throw Error(EINVAL, (config.mon_host ? "mon-host=" : "mon_host=") +
                            monitors +
                            " is neither addresses nor hosts that are found");
  fail(-r,
       "cannot connect to Ceph (mon_host=" + monitors + ") as " + entity);
}

/// Says what is wrong; `r` is what connect returned.
[[noreturn]] void connect_failed(librados::Rados& rados, int r,
                                 const ClusterConfig& config) {
  const std::string monitors = client_option(rados, "mon_host");
  if (r == -ETIMEDOUT)
    throw Error(ETIMEDOUT, "no Ceph monitor (mon_host=" + monitors +
                               ") answered within " +
                               std::to_string(config.connect_timeout.count()) +
                               " ms (connect-timeout=)");
  if (r == -ENOENT && monitors.empty())
    throw Error(ENOENT, "no Ceph monitors known: ceph.conf has no mon_host");
  key_failed(rados, r, config);
}

}  // namespace

void connect_client(librados::Rados& rados, const ClusterConfig& config) {
  int r = rados.init2(config.entity.c_str(), config.cluster_name.c_str(), 0);
  if (r < 0) fail(-r, "cannot start librados as " + config.entity);
  const bool has_conf = read_conf(rados, config);
  set_options(rados, config);
  // Without any hint librados asks DNS and complains on stderr.
  if (!has_conf && client_option(rados, "mon_host").empty() &&
      std::none_of(config.options.begin(), config.options.end(),
                   [](const auto& o) { return o.first.starts_with("mon"); }))
    throw Error(ENOENT,
                "no Ceph monitors known: no ceph.conf found and neither conf= "
                "nor mon-host= given");
  r = rados.connect();
  if (r < 0) connect_failed(rados, r, config);
}

}  // namespace nbdrados
