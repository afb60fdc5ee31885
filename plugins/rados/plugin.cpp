// SPDX-License-Identifier: BSD-3-Clause
//
// The nbdkit plugin `rados`: callbacks and nothing else.

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "callback.hpp"
#include "coherence/coherence.hpp"
#include "config.hpp"
#include "gateway.hpp"
#include "nbdkit/gate.hpp"
#include "nbdkit/log.hpp"
#include "nbdkit/throughput.hpp"
#include "peer.hpp"
#include "rados/error.hpp"
#include "rados/quiet.hpp"
#include "rados/tuning.hpp"

#ifdef HAVE_CONFIG_H
#include "config.h"
#endif

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

// nbdkit -D rados.NAME=0; see tuning.hpp.
extern "C" {
extern NBDKIT_DLL_PUBLIC int rados_debug_sparse_reads;
extern NBDKIT_DLL_PUBLIC int rados_debug_reserve;
extern NBDKIT_DLL_PUBLIC int rados_debug_merge_writes;
extern NBDKIT_DLL_PUBLIC int rados_debug_ask_first;
extern NBDKIT_DLL_PUBLIC int rados_debug_batch_threads;
int rados_debug_sparse_reads = 1;
int rados_debug_reserve = 1;
int rados_debug_merge_writes = 1;
int rados_debug_ask_first = 1;
int rados_debug_batch_threads = 1;
}

namespace {

using namespace nbdrados;

std::unique_ptr<Config> config;
/// Made after nbdkit has gone into the background: librados starts threads.
std::unique_ptr<Gateway> gateway;
Throughput throughput;

/// One client: a handle of nbdkit's.
struct Client {
  Gateway::Use* use = nullptr;  ///< lives as long as the gateway
  Gate gate;
};
std::mutex clients_mutex;
std::list<Client> clients;  ///< guarded by clients_mutex

Client& client_of(void* handle) { return *static_cast<Client*>(handle); }
Gateway::Use& use_of(void* handle) { return *client_of(handle).use; }
Image& image_of(void* handle) { return use_of(handle).image(); }

/// Makes a request for a client.  Returns 0, or -1 and sets an errno.
template <class Body>
int request(const char* operation, void* handle, Body&& body) noexcept {
  const Gate::Pass pass(client_of(handle).gate);
  if (pass) return guard(operation, std::forward<Body>(body));
  set_error(ESHUTDOWN);
  return -1;
}

// Start and end -------------------------------------------------------------

void load() { config = std::make_unique<Config>(); }

void unload() {
  clients.clear();
  config.reset();
}

int set_config(const char* key, const char* value) {
  return guard("rados", [&] { config->set(key, value); });
}

int config_complete() {
  return guard("rados", [] { config->complete(); });
}

void dump_plugin() {
  std::printf("rados_librados_version=%s\n", librados_version().c_str());
  std::printf("rados_ceph_version=%s\n", ceph_version().c_str());
  std::printf("rados_ceph_built_version=%s\n", CEPH_BUILT_VERSION);
  std::printf("rados_formats=1,2,striper\n");
  std::printf("rados_formats_writable=1,2,striper\n");
  std::printf("rados_features=fast-zero,fua,multi-conn,extents,snapshots,"
              "since,striping,data-pool,namespaces\n");
  std::printf("rados_allow=%s\n", known_kinds().c_str());
}

/// What can be wrong with cluster, pool and image is found out before nbdkit
/// goes into the background, so that the user sees it.  A child process
/// does it: it leaves no thread and no state of librados behind.
int get_ready() {
  const pid_t child = ::fork();
  if (child == -1) {
    nbdkit_error("rados: fork: %m");
    return -1;
  }
  if (child == 0) {
    // Who ends nbdkit does not want to wait for the cluster.
    (void)::prctl(PR_SET_PDEATHSIG, SIGKILL);
    connect_quietly();
    const int r = guard("rados", [] {
      Gateway probe(*config);
      if (config->create) probe.create();
      if (config->image) (void)probe.open(config->spec(), false);
    });
    ::_exit(r == 0 ? 0 : 1);
  }
  int status = 0;
  pid_t r;
  do {
    r = ::waitpid(child, &status, 0);
  } while (r == -1 && errno == EINTR);
  if (r == child && WIFEXITED(status)) return WEXITSTATUS(status) == 0 ? 0 : -1;
  nbdkit_error("rados: checking the configuration failed unexpectedly");
  return -1;
}

int after_fork() {
  tuning = {.sparse_reads = rados_debug_sparse_reads != 0,
            .reserve = rados_debug_reserve != 0,
            .merge_writes = rados_debug_merge_writes != 0,
            .ask_first = rados_debug_ask_first != 0,
            .batch_threads = rados_debug_batch_threads != 0};
  return guard("rados",
               [] { gateway = std::make_unique<Gateway>(*config); });
}

void cleanup() {
  {
    const std::scoped_lock lock(clients_mutex);
    for (Client& c : clients) c.gate.shut();
  }
  gateway.reset();
}

// Exports -------------------------------------------------------------------

/// What a client may know of the reason why it is refused: no names but its
/// own, and no addresses.
const char* public_reason(int code) {
  switch (code) {
    case ENOENT: return "there is no image or snapshot of that name";
    case EBUSY: return "another client has the lock of the image";
    // The server, or this client.
    case EPERM:
    case EACCES: return "that is not allowed";
    case ESHUTDOWN: return "the cluster has shut the server out; try again";
    case ETIMEDOUT: return "the cluster does not answer";
    case ENOMEM: return "the server is out of memory";
    default: return "that cannot be served";
  }
}

/// As guard, while a client connects.
template <class Result, class Body>
Result connecting(const char* operation, Result failure, Body&& body) {
  LastLine last_line;
  return guard(operation, failure, std::forward<Body>(body), [&](int code) {
    const char* const name = nbdkit_export_name();
    const bool unnamed = !config->image && code == ENOENT &&
                         (name == nullptr || *name == '\0');
    last_line.refuse(unnamed ? "choose an image by its name"
                             : public_reason(code));
  });
}

/// The exports of the calling thread's client, by their names in the list.
/// (What it must not know costs the cluster nothing.)
class Rights {
 public:
  Rights() {
    if (config->allow) peer_ = ask_peer(*config->allow);
  }
  /// False: none at all.
  [[nodiscard]] bool any() const {
    return !config->allow || config->allow->knows(peer_);
  }
  [[nodiscard]] Access to(const std::string& listed) const {
    return config->allow ? config->allow->access(peer_, listed)
                         : Access::write;
  }
  /// Whether a listed name that begins so may be one that it may open.
  [[nodiscard]] bool to_any(const std::string& beginning) const {
    return !config->allow || config->allow->access_to_any(peer_, beginning);
  }
  /// Throws Error(EPERM) where the client may not open the export; the same
  /// whether there is one of that name or not.
  [[nodiscard]] Access require(const std::string& export_name) const {
    if (!config->allow) return Access::write;
    const std::string listed = listed_name(export_name);
    const Access access = to(listed);
    if (access == Access::none)
      throw Error(EPERM, "no rule of allow= lets this client (" +
                             peer_.text() + ") open '" + listed + "'");
    return access;
  }

 private:
  [[nodiscard]] static std::string listed_name(
      const std::string& export_name) {
    // Whose rule has the pattern '*' is told that a name is missing.
    if (!config->image && export_name.empty()) return {};
    try {
      return config->listed_name(config->export_spec(export_name));
    } catch (const Error& e) {
      throw Error(EPERM, e.what());
    }
  }

  Peer peer_;
};

int list_exports(int /*readonly*/, int /*is_tls*/,
                 struct nbdkit_exports* exports) {
  return connecting("list_exports", -1, [&] {
    const Rights rights;
    const auto shown = [&](const std::string& name) {
      return rights.to(name) != Access::none;
    };
    if (!rights.any()) return 0;
    if (config->image) {
      if (shown(config->listed_name(config->spec())) &&
          nbdkit_use_default_export(exports) == -1)
        throw Error(errno, "cannot add an export");
      return 0;
    }
    const auto any_shown = [&](const std::string& beginning) {
      return rights.to_any(beginning);
    };
    for (const std::string& name : gateway->list({shown, any_shown}))
      if (nbdkit_add_export(exports, name.c_str(), nullptr) == -1)
        throw Error(errno, "cannot add export " + name);
    return 0;
  });
}

/// A configured image needs no name.  In a pool with one image that is the
/// default; where there are several the client must choose.
const char* default_export(int /*readonly*/, int /*is_tls*/) {
  return connecting("default_export", static_cast<const char*>(nullptr),
                    []() -> const char* {
                      const Rights rights;
                      if (config->image || !rights.any()) return "";
                      const auto only = gateway->only_image();
                      return only && rights.to(*only) != Access::none
                                 ? nbdkit_strdup_intern(only->c_str())
                                 : "";
                    });
}

void* open_export(int readonly) {
  return connecting("open", static_cast<void*>(nullptr), [&]() -> void* {
    const char* const given = nbdkit_export_name();
    const std::string name = given != nullptr ? given : "";
    const bool writable =
        Rights().require(name) == Access::write && readonly == 0;
    std::list<Client> made(1);
    Client* const client = &made.front();
    client->use = gateway->open(config->export_spec(name), writable);
    // For a cache above, which has called this.
    offer_promise(client->use->image().promise());
    const std::scoped_lock lock(clients_mutex);
    clients.splice(clients.end(), made);
    return client;
  });
}

void close_export(void* handle) {
  // The client may go on to another export (NBD_OPT_INFO).
  const LastLine last_line;
  gateway->close(&use_of(handle));
  const std::scoped_lock lock(clients_mutex);
  clients.remove_if([&](const Client& c) { return &c == handle; });
}

const char* export_description(void* handle) {
  return use_of(handle).description();
}

// Properties ----------------------------------------------------------------

int64_t get_size(void* handle) {
  return static_cast<int64_t>(use_of(handle).size());
}

int block_size(void* handle, std::uint32_t* minimum, std::uint32_t* preferred,
               std::uint32_t* maximum) {
  // RADOS writes single bytes.  nbdcopy takes the preferred size as the
  // smallest piece of zeros that it leaves out, so a large one would make
  // copies less sparse; and its requests are large enough without being told.
  // NBD wants a power of two from 512 bytes to 32 MiB.
  constexpr std::uint64_t smallest = 4096;
  constexpr std::uint64_t largest = 64 << 10;
  const std::uint64_t object =
      image_of(handle).traits().layout.object_size();
  *minimum = 1;
  *preferred = static_cast<std::uint32_t>(
      std::bit_floor(std::clamp(object, smallest, largest)));
  *maximum = 32 << 20;
  return 0;
}

int can_write(void* handle) { return image_of(handle).writable() ? 1 : 0; }

// A flush has nothing to write, because RADOS acknowledges only what is on
// every replica.  Clients that ask for it get it at next to no cost, whereas
// one that does not see it might believe that its data is never safe.
int can_flush(void*) { return 1; }

// Each acknowledged write is durable, so FUA costs nothing.
int can_fua(void*) { return NBDKIT_FUA_NATIVE; }

// Nothing here turns; and a scheduler that sorts requests for the sake of
// seeks only delays them.
int is_rotational(void*) { return 0; }

int can_trim(void*) { return 1; }

int can_zero(void*) { return 1; }

// Zeroing that may free the space is fast; zeroing that must keep it is not,
// and is refused when the client asks for fast or nothing.
int can_fast_zero(void*) { return 1; }

// Without it nbdkit says that all is data.
int can_extents(void*) {
  return config->extents == ExtentsMode::off ? 0 : 1;
}

// An acknowledged write is seen by every reader of the cluster, so by every
// connection, and a flush on any of them has nothing left to write.
int can_multi_conn(void*) { return 1; }

// RADOS has no request that would make a later read cheaper and that costs
// less than the read.
int can_cache(void*) { return NBDKIT_CACHE_NONE; }

// Requests ------------------------------------------------------------------

int pread(void* handle, void* buffer, std::uint32_t count,
          std::uint64_t offset, std::uint32_t /*flags*/) {
  const Throughput::Request counted(throughput);
  return request("pread", handle, [&] {
    image_of(handle).read(static_cast<char*>(buffer), count, offset);
  });
}

int pwrite(void* handle, const void* buffer, std::uint32_t count,
           std::uint64_t offset, std::uint32_t /*flags*/) {
  const Throughput::Request counted(throughput);
  return request("pwrite", handle, [&] {
    image_of(handle).write(static_cast<const char*>(buffer), count, offset);
  });
}

int flush(void* handle, std::uint32_t /*flags*/) {
  return request("flush", handle, [&] { image_of(handle).flush(); });
}

int zero(void* handle, std::uint32_t count, std::uint64_t offset,
         std::uint32_t flags) {
  const bool may_free = (flags & NBDKIT_FLAG_MAY_TRIM) != 0;
  if ((flags & NBDKIT_FLAG_FAST_ZERO) != 0 && !may_free) {
    set_error(EOPNOTSUPP);
    return -1;
  }
  return request("zero", handle, [&] {
    image_of(handle).zero(count, offset,
                          may_free ? Image::Zero::free
                                   : Image::Zero::allocate);
  });
}

int trim(void* handle, std::uint32_t count, std::uint64_t offset,
         std::uint32_t /*flags*/) {
  return request("trim", handle,
                 [&] { image_of(handle).trim(count, offset); });
}

// Clients that copy an image leave out what they are told reads as zeros, and
// nothing else.  So what has not changed must not be called ZERO: whoever does
// not know that this is a difference then copies all of the image.
std::uint32_t extent_type(Difference::Kind kind) {
  switch (kind) {
    case Difference::Kind::data: return 0;
    case Difference::Kind::zero: return NBDKIT_EXTENT_ZERO;
    case Difference::Kind::unchanged: return NBDKIT_EXTENT_HOLE;
  }
  return 0;
}

void add_difference(Difference& difference, std::uint32_t count,
                    std::uint64_t offset, bool one,
                    struct nbdkit_extents* list) {
  for (const Difference::Extent& e : difference.extents(count, offset, one))
    if (nbdkit_add_extent(list, e.offset, e.length, extent_type(e.kind)) == -1)
      throw Error(errno, "cannot add an extent");
}

int extents(void* handle, std::uint32_t count, std::uint64_t offset,
            std::uint32_t flags, struct nbdkit_extents* list) {
  return request("extents", handle, [&] {
    const bool one = (flags & NBDKIT_FLAG_REQ_ONE) != 0;
    if (Difference* const difference = use_of(handle).difference()) {
      add_difference(*difference, count, offset, one, list);
      return;
    }
    for (const Extent& e : image_of(handle).extents(count, offset, one)) {
      const std::uint32_t type =
          e.data ? 0 : NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO;
      if (nbdkit_add_extent(list, e.offset, e.length, type) == -1)
        throw Error(errno, "cannot add an extent");
    }
  });
}

struct nbdkit_plugin make_plugin() {
  struct nbdkit_plugin p = {};
  p.name = "rados";
  p.longname = "nbdkit rados plugin";
  p.version = PACKAGE_VERSION;
  p.description =
      "Serve Ceph images (RBD and striped RADOS objects) over NBD";
  p.magic_config_key = "target";
  p.config_help = Config::help();
  p.errno_is_preserved = 1;  // see set_error
  p.load = load;
  p.unload = unload;
  p.config = set_config;
  p.config_complete = config_complete;
  p.dump_plugin = dump_plugin;
  p.get_ready = get_ready;
  p.after_fork = after_fork;
  p.cleanup = cleanup;
  p.list_exports = list_exports;
  p.default_export = default_export;
  p.open = open_export;
  p.close = close_export;
  p.export_description = export_description;
  p.get_size = get_size;
  p.block_size = block_size;
  p.can_write = can_write;
  p.can_flush = can_flush;
  p.can_fua = can_fua;
  p.is_rotational = is_rotational;
  p.can_trim = can_trim;
  p.can_zero = can_zero;
  p.can_fast_zero = can_fast_zero;
  p.can_extents = can_extents;
  p.can_multi_conn = can_multi_conn;
  p.can_cache = can_cache;
  p.pread = pread;
  p.pwrite = pwrite;
  p.flush = flush;
  p.zero = zero;
  p.trim = trim;
  p.extents = extents;
  return p;
}

struct nbdkit_plugin plugin = make_plugin();

}  // namespace

NBDKIT_REGISTER_PLUGIN(plugin)
