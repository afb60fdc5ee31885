// SPDX-License-Identifier: BSD-3-Clause

#include "sides.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <stdexcept>
#include <thread>
#include <utility>

#include "copy/file_endpoint.hpp"
#include "copy/nbd/relay.hpp"
#include "copy/nbd/relay_side.hpp"
#include "copy/nbd/uring_nbd_endpoint.hpp"
#include "copy/nbd_endpoint.hpp"
#include "copy/null_endpoint.hpp"
#include "copy/rados_endpoint.hpp"
#include "copy/rados_offload.hpp"
#include "copy/rados_uri.hpp"
#include "copy/retrying_source.hpp"
#include "copy/stream_endpoint.hpp"
#include "open/image_config.hpp"
#include "rados/error.hpp"
#include "standard_files.hpp"

namespace radoscopy {

namespace {

using namespace nbdrados;
using namespace nbdrados::copy;

/// Operations that are under way in the cluster, at most.
constexpr std::size_t most_rados_threads = 32;

/// To connect to a server again.
constexpr std::chrono::seconds longest_attempt{10};

// Files ---------------------------------------------------------------------

bool has_offsets(mode_t mode) { return S_ISREG(mode) || S_ISBLK(mode); }

/// The standard input or output, which may be a file that the shell has opened.
/// Only at its start, and empty where it is written to, is it more than a
/// stream.
bool is_whole_file(int fd, const struct stat& s, bool writing) {
  return S_ISREG(s.st_mode) && ::lseek(fd, 0, SEEK_CUR) == 0 &&
         (!writing ||
          (s.st_size == 0 && (::fcntl(fd, F_GETFL) & O_APPEND) == 0));
}

std::unique_ptr<Endpoint> open_standard(bool writing) {
  const int number = writing ? STDOUT_FILENO : STDIN_FILENO;
  if (writing && ::isatty(number) == 1)
    throw Error(EINVAL, "refusing to write to a terminal");
  if (was_closed(number)) fail(EBADF, "-");
  FileDescriptor file(::fcntl(number, F_DUPFD_CLOEXEC, 0));
  struct stat s = {};
  if (!file || ::fstat(file.get(), &s) == -1) fail(errno, "-");
  if (is_whole_file(file.get(), s, writing))
    return std::make_unique<FileEndpoint>(std::move(file), writing);
  return std::make_unique<StreamEndpoint>(std::move(file), writing);
}

std::unique_ptr<Endpoint> open_source_file(const std::string& name) {
  if (name == "-") return open_standard(false);
  FileDescriptor file(::open(name.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat s = {};
  if (!file || ::fstat(file.get(), &s) == -1) fail(errno, name);
  if (S_ISDIR(s.st_mode)) fail(EISDIR, name);
  if (has_offsets(s.st_mode))
    return std::make_unique<FileEndpoint>(std::move(file), false);
  return std::make_unique<StreamEndpoint>(std::move(file), false);
}

/// A device is not to become a file by accident, so it is not made first.
FileDescriptor open_or_make(const std::string& name, bool may_make) {
  struct stat s = {};
  const bool exists = ::stat(name.c_str(), &s) == 0;
  const bool stream = exists && !has_offsets(s.st_mode);
  int flags = (stream ? O_WRONLY : O_RDWR) | O_CLOEXEC;
  if (!exists && may_make) flags |= O_CREAT | O_EXCL;
  FileDescriptor file(::open(name.c_str(), flags, 0666));
  if (!file && exists && errno == EACCES)
    file = FileDescriptor(::open(name.c_str(), O_WRONLY | O_CLOEXEC));
  if (!file) fail(errno, name);
  return file;
}

void check_other(const FileEndpoint& file, const Endpoint& source,
                 const std::string& name) {
  const auto* const from = dynamic_cast<const FileEndpoint*>(&source);
  if (from != nullptr && from->is_same(file))
    throw Error(EINVAL, name + ": source and destination are the same");
}

/// What was in a regular file is lost, but for `ranges`, whose ends it has.
std::unique_ptr<Endpoint> open_destination_file(const std::string& name,
                                                const Endpoint& source,
                                                bool ranges) {
  std::unique_ptr<Endpoint> opened;
  if (name == "-") {
    opened = open_standard(true);
  } else {
    FileDescriptor file = open_or_make(name, !ranges);
    struct stat s = {};
    if (::fstat(file.get(), &s) == -1) fail(errno, name);
    if (!has_offsets(s.st_mode))
      return std::make_unique<StreamEndpoint>(std::move(file), true);
    opened = std::make_unique<FileEndpoint>(std::move(file), true);
  }
  if (auto* const file = dynamic_cast<FileEndpoint*>(opened.get())) {
    check_other(*file, source, name);
    if (file->is_regular() && !ranges) file->make_empty(source.traits().size);
  }
  return opened;
}

// NBD -----------------------------------------------------------------------

std::unique_ptr<NbdServer> connect(NbdTarget target) {
  // Not where it would only be found out by a connection: some servers take
  // one, and end.
  if (!target.uri.starts_with("nbds")) {
    try {
      return std::make_unique<nbd::UringNbdEndpoint>(target);
    } catch (const Error& e) {
      if (e.code() != ENOTSUP) throw;
    }
  }
  return std::make_unique<NbdEndpoint>(std::move(target));
}

NbdTarget nbd_target(const Target& target, const Options& options) {
  NbdTarget how;
  if (target.kind == Target::Kind::nbd)
    how.uri = target.text;
  else
    how.command = target.command;
  how.debug = options.verbose;
  how.use_extents = options.extents;
  return how;
}

void open_nbd(Side& side, const Target& target, const Options& options) {
  std::unique_ptr<NbdServer> server = connect(nbd_target(target, options));
  side.engine = server->engine();
  side.endpoint = std::move(server);
}

/// Makes a source, on `connections`, one that is connected to again.
void retry_source(Side& source, const Options& options, unsigned connections) {
  NbdTarget how = nbd_target(options.source, options);
  how.time_limit = longest_attempt;
  RetryingSource::Options retrying;
  retrying.retries = options.retries;
  retrying.log = [name = source.name](const std::string& line) {
    complain(about(name, line));
  };
  source.endpoint = std::make_unique<RetryingSource>(
      std::move(source.endpoint),
      [how, connections] {
        std::unique_ptr<NbdServer> server = connect(how);
        server->connect_more(connections);
        return server;
      },
      std::move(retrying));
}

/// Whether what is copied from one server to the other may go unseen, in
/// blocks that both have.
bool may_relay(const Options& options, const Endpoint& source,
               const Endpoint& destination) {
  return (options.sparse == 0 || options.allocated) &&
         options.verify == Options::Verify::no && options.checksum.empty() &&
         options.ranges.empty() && options.retries == 0 &&
         source.traits().size % destination.traits().minimum == 0 &&
         source.traits().size % source.traits().minimum == 0;
}

/// None: it cannot be.
std::shared_ptr<nbd::Relay> make_relay(const Options& options, Side& source,
                                       Side& destination) {
  const auto servers = [](const Side& side) {
    return dynamic_cast<nbd::UringNbdEndpoint*>(side.endpoint.get());
  };
  nbd::UringNbdEndpoint* const from = servers(source);
  nbd::UringNbdEndpoint* const to = servers(destination);
  if (from == nullptr || to == nullptr || !may_relay(options, *from, *to))
    return nullptr;
  auto relay = std::make_shared<nbd::Relay>(
      from->take_peers(), to->take_peers(),
      nbd::Relay::Options{
          .destination_is_zero = options.destination_is_zero,
          .allocated = options.allocated});
  source.endpoint =
      std::make_unique<nbd::RelaySide>(relay, nbd::Side::source);
  destination.endpoint =
      std::make_unique<nbd::RelaySide>(relay, nbd::Side::destination);
  source.engine = destination.engine = "splice";
  return relay;
}

// RADOS ---------------------------------------------------------------------

struct Opening {
  ImageConfig config;
  std::shared_ptr<Cluster> cluster;
  ImageHost host;
};

Opening connect(const Target& target, const Options& options,
                ImageConfig config) {
  Opening opening{std::move(config), nullptr, {}};
  opening.config.check_image();
  if (!opening.config.since.empty())
    throw Error(ENOTSUP, target.text +
                             ": differences (@since=) are not copied yet");
  opening.cluster = Cluster::connect(opening.config.cluster);
  opening.host.workers = std::make_shared<WorkerPool>(mapping_threads);
  opening.host.log = [verbose = options.verbose](const std::string& line,
                                                 bool trouble) {
    if (trouble || verbose)
      std::fprintf(stderr, "radoscopy: %s\n", line.c_str());
  };
  return opening;
}

RadosEndpoint::Options endpoint_options(const Opening& opening,
                                        const Options& options) {
  RadosEndpoint::Options o;
  o.threads = options.synchronous
                  ? 1
                  : std::min<std::size_t>(options.requests,
                                          most_rados_threads);
  o.cluster = opening.cluster->fsid();
  o.use_extents =
      options.extents && opening.config.extents != ExtentsMode::off;
  if (options.verbose)
    o.log = [log = opening.host.log](const std::string& line) {
      log(line, true);
    };
  return o;
}

std::shared_ptr<Image> open_existing(const Opening& opening, bool writable) {
  const ImageSpec spec = opening.config.spec();
  const ImageIdentity identity =
      resolve_image(opening.cluster, spec, opening.config.format);
  return open_image(opening.cluster, identity, spec, opening.config, writable,
                    opening.host);
}

void use_image(Side& side, const std::shared_ptr<Image>& image,
               RadosEndpoint::Options options) {
  side.endpoint =
      std::make_unique<RadosEndpoint>(image, std::move(options));
  side.request_size = side.endpoint->traits().preferred;
}

/// Opens a snapshot that is taken of the image now.
void use_snapshot(Side& side, const Opening& opening, const Options& options,
                  Running& running) {
  ImageSpec spec = opening.config.spec();
  ImageIdentity identity =
      resolve_image(opening.cluster, spec, opening.config.format);
  running.note(spec.text() + ": a snapshot radoscopy-... may be left, which "
               "`rbd snap rm` removes");
  side.snapshot = std::make_shared<SourceSnapshot>(opening.cluster, identity,
                                                   spec, opening.host.log);
  running.keep({side.snapshot->text(), "rbd snap rm", [] { return true; },
                [snapshot = side.snapshot] { snapshot->remove(); }});
  running.note("");
  identity.snap = side.snapshot->id();
  spec.snapshot = side.snapshot->name();
  try {
    use_image(side,
              open_image(opening.cluster, identity, spec, opening.config,
                         false, opening.host),
              endpoint_options(opening, options));
  } catch (...) {
    try {
      close_source(side, running);
    } catch (const Error& e) {
      opening.host.log(e.what(), true);
    }
    throw;
  }
}

void open_rados_source(Side& side, const Options& options,
                       const Target& target, Running& running) {
  const Opening opening =
      connect(target, options, parse_rados_uri(target.text));
  const bool is_head = opening.config.snapshot.empty();
  // That is a write, and to compare writes nothing.
  if (is_head && options.snapshot &&
      options.verify != Options::Verify::only) {
    use_snapshot(side, opening, options, running);
    return;
  }
  if (is_head)
    opening.host.log(side.name +
                         ": no snapshot is taken: what others write meanwhile "
                         "may be read or not",
                     false);
  use_image(side, open_existing(opening, false),
            endpoint_options(opening, options));
}

/// `config` by value: its image is taken apart.
void check_new_name(ImageConfig config) {
  config.check_image();
  if (!config.snapshot.empty() || !config.since.empty())
    throw Error(EINVAL, "--create makes an image, which has no snapshots, so "
                        "its name has no '@'");
}

void open_rados_destination(Side& side, const Options& options,
                            std::uint64_t size, Running& running) {
  ImageConfig config = parse_rados_uri(options.destination.text);
  if (options.create) {
    check_new_name(config);
    parse_create_options(*options.create, config);
    if (config.format != FormatChoice::automatic &&
        config.format != FormatChoice::format2)
      throw Error(ENOTSUP,
                  "--create makes images of format 2 only, because others "
                  "cannot be renamed when they are complete");
    if (config.given.insert("size").second) {
      if (size == unknown_size)
        throw Error(EINVAL, "--create: the size of the source is not known; "
                            "--create=size=SIZE says it");
      if (size == 0)
        throw Error(EINVAL, "--create: the source has 0 bytes, and an image "
                            "at least 1; --create=size=SIZE makes it larger");
      config.create_options.size = size;
    }
  }
  Opening opening = connect(options.destination, options, std::move(config));
  RadosEndpoint::Options how = endpoint_options(opening, options);
  if (!options.create) {
    use_image(side, open_existing(opening, true), std::move(how));
    return;
  }
  running.note(NewImage::name(opening.config) +
               " may be left, which `rbd rm` removes");
  side.new_image = std::make_shared<NewImage>(opening.cluster, opening.config,
                                              opening.host);
  how.is_new = true;
  use_image(side, side.new_image->image(), std::move(how));
}

/// Why the cluster cannot copy objects from the one to the other; empty: it
/// can.
std::string obstacle(const Options& options, const RadosEndpoint& from,
                     const RadosEndpoint& to) {
  const std::string& cluster = to.options().cluster;
  if (cluster.empty() || from.options().cluster != cluster)
    return "they are in different clusters";
  if (options.allocated) return "--allocated";
  if (!options.checksum.empty()) return "--checksum has to see the data";
  if (!options.ranges.empty()) return "--ranges";
  if (options.offload != Options::Offload::always &&
      !from.traits().has_extents)
    return "the source's holes are not known";
  return RadosOffload::obstacle(*from.image(), *to.image());
}

/// Null: it cannot be, or is not to be.
std::shared_ptr<Offload> make_offload(const Options& options,
                                      const Side& source,
                                      const Side& destination) {
  const bool always = options.offload == Options::Offload::always;
  const auto* const from =
      dynamic_cast<const RadosEndpoint*>(source.endpoint.get());
  const auto* const to =
      dynamic_cast<const RadosEndpoint*>(destination.endpoint.get());
  if (options.offload == Options::Offload::never ||
      (!always && (from == nullptr || to == nullptr)))
    return nullptr;
  const std::string why = from == nullptr || to == nullptr
                              ? "not both sides are in RADOS"
                              : obstacle(options, *from, *to);
  if (why.empty()) {
    RadosOffload::Options how;
    how.always = always;
    how.is_zero =
        options.destination_is_zero || to->traits().reads_as_zeros;
    how.log = to->options().log;
    if (options.synchronous) how.threads = 1;
    return std::make_shared<RadosOffload>(from->image(), to->image(),
                                          std::move(how));
  }
  if (always) throw Error(ENOTSUP, "--offload=always: " + why);
  if (options.verbose)
    std::fprintf(stderr, "radoscopy: not copied inside the cluster: %s\n",
                 why.c_str());
  return nullptr;
}

/// What is said of a side names it.
template <class Open>
void naming(const Side& side, Open&& open) {
  try {
    open();
  } catch (const Error& e) {
    throw Error(e.code(), about(side.name, e.what()));
  } catch (const std::invalid_argument& e) {
    throw Error(EINVAL, about(side.name, e.what()));
  }
}

/// Without the parameters.
std::string name_of(const Target& target) {
  return target.kind == Target::Kind::rados
             ? target.text.substr(0, target.text.find('?'))
             : target.text;
}

/// A side that is read only.
Side open_to_read(const Options& options, const Target& target,
                  Running& running) {
  Side side;
  side.name = name_of(target);
  naming(side, [&] {
    switch (target.kind) {
      case Target::Kind::rados:
        open_rados_source(side, options, target, running);
        break;
      case Target::Kind::nbd:
      case Target::Kind::command:
        open_nbd(side, target, options);
        break;
      case Target::Kind::null:
        side.endpoint = std::make_unique<NullEndpoint>();
        break;
      case Target::Kind::file:
        side.endpoint = open_source_file(target.text);
    }
  });
  return side;
}

/// What has been written must be there to be read.
void check_verify(const Options& options, const Side& side) {
  const bool is_null = options.destination.kind == Target::Kind::null;
  if (options.verify != Options::Verify::no &&
      (is_null || side.endpoint->traits().is_stream))
    throw Error(EINVAL, side.name + ": --verify: it cannot be read again");
}

}  // namespace

Side open_source(const Options& options, Running& running) {
  Side side = open_to_read(options, options.source, running);
  check_verify(options, side);
  return side;
}

void close_source(Side& side, Running& running) {
  side.endpoint.reset();
  if (!side.snapshot || !running.take(side.snapshot->text())) return;
  running.note(side.snapshot->text() + " may be left, which `rbd snap rm` "
               "removes");
  naming(side, [&] { side.snapshot->remove(); });
  running.note("");
}

Side open_destination(const Options& options, Side& source,
                      Running& running) {
  if (options.verify == Options::Verify::only) {
    Side side = open_to_read(options, options.destination, running);
    check_verify(options, side);
    return side;
  }
  Side side;
  side.name = name_of(options.destination);
  naming(side, [&] {
    switch (options.destination.kind) {
      case Target::Kind::rados:
        open_rados_destination(side, options, source.endpoint->traits().size,
                               running);
        break;
      case Target::Kind::nbd:
      case Target::Kind::command:
        open_nbd(side, options.destination, options);
        break;
      case Target::Kind::null:
        side.endpoint = std::make_unique<NullEndpoint>();
        break;
      case Target::Kind::file:
        side.endpoint = open_destination_file(options.destination.text,
                                              *source.endpoint,
                                              !options.ranges.empty());
    }
  });
  check_verify(options, side);
  return side;
}

Joined join(const Options& options, Side& source, Side& destination) {
  Joined joined;
  joined.offload = make_offload(options, source, destination);
  auto* const from = dynamic_cast<NbdServer*>(source.endpoint.get());
  auto* const to = dynamic_cast<NbdServer*>(destination.endpoint.get());
  if (from == nullptr && to == nullptr) return joined;
  const unsigned threads =
      options.threads != 0
          ? options.threads
          : std::max(1U, std::thread::hardware_concurrency());
  if (!options.synchronous && (from == nullptr || from->can_multi_conn()) &&
      (to == nullptr || to->can_multi_conn()))
    joined.connections = std::min(options.connections, threads);
  const unsigned count = joined.connections;
  if (from != nullptr) naming(source, [&] { from->connect_more(count); });
  if (to != nullptr) naming(destination, [&] { to->connect_more(count); });
  if (options.retries != 0) retry_source(source, options, count);
  if (auto relay = make_relay(options, source, destination))
    joined.move = [relay = std::move(relay)](std::uint64_t offset,
                                             std::uint32_t length,
                                             MoveDone done) {
      relay->copy(offset, length,
                  [done = std::move(done)](int error, nbd::Side side) {
                    done(error, side == nbd::Side::source);
                  });
    };
  return joined;
}

}  // namespace radoscopy
