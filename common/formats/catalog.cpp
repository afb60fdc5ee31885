// SPDX-License-Identifier: BSD-3-Clause

#include "formats/catalog.hpp"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <charconv>

#include "formats/formats.hpp"
#include "rados/error.hpp"
#include "rbd/features.hpp"
#include "rbd/format1.hpp"
#include "rbd/format2_create.hpp"

namespace nbdrados {

namespace {

constexpr std::uint64_t max_size = (std::uint64_t{1} << 63) - 1;

/// What libradosstriper accepts (ceph: src/include/ceph_fs.h,
/// CEPH_MIN_STRIPE_UNIT), and can read again: it parses the attributes as
/// 32-bit signed numbers.
constexpr std::uint64_t striper_unit = 64 * 1024;
constexpr std::uint64_t striper_max = (std::uint64_t{1} << 31) - 1;

[[noreturn]] void bad(const std::string& text) { throw Error(EINVAL, text); }

/// What in the place of a snapshot means another thing.
constexpr std::string_view since_prefix = "since=";

/// A part of an image's name: separators, the escape itself and what cannot
/// be seen as %XX.
std::string escaped(std::string_view part) {
  static constexpr char digits[] = "0123456789ABCDEF";
  std::string out;
  for (const char c : part) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '%' || c == '@' || c == '/' || byte < 0x20 || byte == 0x7f) {
      out += '%';
      out += digits[byte >> 4];
      out += digits[byte & 15];
    } else {
      out += c;
    }
  }
  return out;
}

std::string unescaped(std::string_view part) {
  std::string out;
  for (std::size_t i = 0; i < part.size(); ++i) {
    unsigned byte = 0;
    const char* const digits = part.data() + i + 1;
    if (part[i] == '%' && part.size() - i > 2 &&
        std::from_chars(digits, digits + 2, byte, 16).ptr == digits + 2) {
      // librbd's names are strings that end there (ImageIdentity::text).
      if (byte == 0) bad("'" + std::string(part) + "': %00 in a name");
      out += static_cast<char>(byte);
      i += 2;
    } else {
      out += part[i];
    }
  }
  return out;
}

/// What knows a format.
struct Format {
  FormatChoice choice;
  std::optional<ImageIdentity> (*resolve)(const Pool&, const ImageSpec&);
  std::unique_ptr<ImageFormat> (*open)(const Pool&, const ImageIdentity&,
                                       const ImageSpec&, const OpenOptions&);
};
/// In the order in which `auto` looks.
constexpr Format formats[] = {
    {FormatChoice::format2, resolve_format2, open_format2},
    {FormatChoice::format1, resolve_format1, open_format1},
    {FormatChoice::striper, resolve_striper, open_striper},
};

std::optional<ImageIdentity> resolve_in(const Pool& pool,
                                        const ImageSpec& spec,
                                        FormatChoice wanted) {
  for (const Format& f : formats)
    if (wanted == FormatChoice::automatic || wanted == f.choice)
      if (auto found = f.resolve(pool, spec)) {
        found->name_space = spec.name_space;
        found->format = f.choice;
        return found;
      }
  return std::nullopt;
}

/// For RBD, of whatever format.
void check_object_size(std::uint64_t object_size) {
  static_assert(format1_order_min == format2_order_min &&
                format1_order_max == format2_order_max);
  if (!std::has_single_bit(object_size) ||
      object_size < std::uint64_t{1} << format2_order_min ||
      object_size > std::uint64_t{1} << format2_order_max)
    bad("object-size=" + std::to_string(object_size) +
        " is not a power of two from 4K to 32M, which RBD needs");
}

}  // namespace

Pool open_pool(const std::shared_ptr<Cluster>& cluster,
               const std::string& pool, const std::string& name_space) {
  // Looked up once: both stores are of the same pool, whatever gets its name.
  return open_pool(cluster, cluster->pool_id(pool), name_space);
}
Pool open_pool(const std::shared_ptr<Cluster>& cluster, std::int64_t pool,
               const std::string& name_space) {
  using Purpose = Cluster::Purpose;
  return {cluster, cluster->open_pool(pool, name_space, Purpose::metadata),
          cluster->open_pool(pool, name_space, Purpose::data)};
}

std::string_view to_string(FormatChoice format) noexcept {
  switch (format) {
    case FormatChoice::automatic: return "auto";
    case FormatChoice::format1: return "1";
    case FormatChoice::format2: return "2";
    case FormatChoice::striper: return "striper";
  }
  return "?";
}

std::string ImageSpec::name() const {
  std::string t;
  if (!name_space.empty()) t += escaped(name_space) + "/";
  t += escaped(image);
  if (snapshot.starts_with(since_prefix))
    t += "@since%3D" + escaped(snapshot.substr(since_prefix.size()));
  else if (!snapshot.empty())
    t += "@" + escaped(snapshot);
  if (!since.empty()) t += "@since=" + escaped(since);
  return t;
}

ImageSpec parse_image_name(std::string_view text, FormatChoice format) {
  ImageSpec spec;
  if (text.empty()) bad("the image name is empty");
  if (format == FormatChoice::striper) {
    spec.image = text;
    return spec;
  }
  const std::string whole(text);
  constexpr std::string_view at_since = "@since=";
  const auto snapshot_name = [&whole](std::string_view name,
                                      const std::string& behind) {
    if (name.empty() || name.find_first_of("@/") != std::string::npos)
      bad("'" + whole + "': the part behind '" + behind +
          "' is no snapshot name");
    return unescaped(name);
  };
  if (const auto at = text.find(at_since); at != std::string_view::npos) {
    spec.since =
        snapshot_name(text.substr(at + at_since.size()), std::string(at_since));
    text = text.substr(0, at);
  }
  if (const auto at = text.find('@'); at != std::string_view::npos) {
    spec.snapshot = snapshot_name(text.substr(at + 1), "@");
    text = text.substr(0, at);
  }
  if (const auto slash = text.find('/'); slash != std::string_view::npos) {
    spec.name_space = unescaped(text.substr(0, slash));
    text = text.substr(slash + 1);
    if (spec.name_space.empty() || text.find('/') != std::string_view::npos)
      bad("'" + whole + "' is not [NAMESPACE/]IMAGE[@SNAP][@since=SNAP]");
  }
  if (text.empty()) bad("'" + whole + "': the image name is empty");
  spec.image = unescaped(text);
  return spec;
}

void rbd_class_refused(const Pool& pool) {
  // This method looks at no object and no omap.  An OSD that has the class
  // answers it, or that there is no such object, in every kind of pool (ceph:
  // src/cls/rbd/cls_rbd.cc, get_all_features).
  std::string output;
  const int r = pool.call(rbd_directory_oid, "get_all_features", {}, &output);
  if (r == -EOPNOTSUPP)
    throw Error(ENOTSUP,
                "the OSDs of this pool do not have the object class rbd, which "
                "images need (osd_class_dir, osd_class_load_list)");
  if (r != -ENOENT) check(r, "cannot ask the OSDs for the object class rbd");
  throw Error(ENOTSUP, "an erasure-coded pool cannot hold an image's "
                       "metadata, only its data (data-pool=)");
}

bool object_exists(const Pool& pool, const std::string& oid) {
  std::uint64_t size = 0;
  const int r = pool.wait(pool.store->stat(oid, &size, snap_head));
  if (r == -ENOENT) return false;
  check(r, "cannot stat object " + oid);
  return true;
}

std::string ImageIdentity::text() const {
  std::string t = std::to_string(pool);
  // Names hold any character but this one.
  for (const std::string& part :
       {name_space, std::string(to_string(format)), image, prefix,
        std::to_string(snap), since ? std::to_string(*since) : ""})
    t += '\0' + part;
  return t;
}

ImageIdentity resolve_image(const std::shared_ptr<Cluster>& cluster,
                            const ImageSpec& spec, FormatChoice format,
                            KnownSnapshots* known) {
  for (;;) {
    const std::int64_t id = cluster->pool_id(spec.pool);
    std::optional<ImageIdentity> found;
    try {
      Pool pool = open_pool(cluster, id, spec.name_space);
      pool.known_snapshots = known;
      found = resolve_in(pool, spec, format);
    } catch (const Error& e) {
      if (e.code() != ENXIO || cluster->pool_id(spec.pool) == id) throw;
      continue;
    }
    if (found) {
      found->pool = id;
      return *found;
    }
    std::string what = "image '" + spec.image + "'";
    if (format != FormatChoice::automatic)
      what += " of format " + std::string(to_string(format));
    what += " does not exist in pool '" + spec.pool + "'";
    if (!spec.name_space.empty())
      what += ", namespace '" + spec.name_space + "'";
    throw Error(ENOENT, what);
  }
}

std::unique_ptr<ImageFormat> open_format(
    const std::shared_ptr<Cluster>& cluster, const ImageIdentity& identity,
    const ImageSpec& spec, const OpenOptions& options) {
  const auto* const format = std::ranges::find(formats, identity.format,
                                               &Format::choice);
  return format->open(open_pool(cluster, identity.pool, identity.name_space),
                      identity, spec, options);
}

std::unique_ptr<ImageFormat> open_format(
    const std::shared_ptr<Cluster>& cluster, const ImageSpec& spec,
    const OpenOptions& options) {
  return open_format(cluster, resolve_image(cluster, spec, options.format),
                     spec, options);
}

namespace {

void check_format2(std::uint64_t object_size, const CreateOptions& options) {
  check_object_size(object_size);
  // With a default object size, which is in the cluster, later.
  if (options.object_size && options.stripe_unit &&
      object_size % *options.stripe_unit != 0)
    bad("stripe-unit=" + std::to_string(*options.stripe_unit) +
        " does not divide object-size=" + std::to_string(object_size));
  if (options.features) check_new_features(*options.features, "features=");
  if (options.data_pool && options.data_pool->empty())
    bad("data-pool= must not be empty");
}

void check_striper(std::uint64_t object_size, const CreateOptions& options) {
  const std::uint64_t unit =
      options.stripe_unit.value_or(std::min<std::uint64_t>(
          object_size, std::uint64_t{4} << 20));
  const std::uint64_t size =
      options.object_size.value_or(std::max(object_size, unit));
  // What is given is to blame, not what is derived from it.
  const auto check_unit = [](const char* key,
                             std::optional<std::uint64_t> given) {
    if (given && (*given % striper_unit != 0 || *given > striper_max))
      bad(key + std::to_string(*given) +
          " is not a multiple of 64K below 2G");
  };
  check_unit("object-size=", options.object_size);
  check_unit("stripe-unit=", options.stripe_unit);
  if (size % unit != 0)
    bad((options.stripe_unit ? "stripe-unit=" : "default stripe unit ") +
        std::to_string(unit) + " does not divide " +
        (options.object_size ? "object-size=" : "default object size ") +
        std::to_string(size));
  if (options.stripe_count && *options.stripe_count > striper_max)
    bad("stripe-count=" + std::to_string(*options.stripe_count) +
        " is too large");
}

}  // namespace

void check_create(const ImageSpec& spec, const CreateOptions& options) {
  if (options.size == 0) bad("create=true needs size=");
  if (options.size > max_size)
    bad("size=" + std::to_string(options.size) +
        " is larger than 2^63-1 bytes");
  if (!spec.snapshot.empty())
    bad("create=true cannot create snapshot '" + spec.snapshot + "'");
  // As `rbd create`, whose users could not name it.
  if (options.format != FormatChoice::striper &&
      spec.image.find_first_of("@/") != std::string::npos)
    bad("create=true: the name '" + spec.image + "' of a new image must not "
        "contain '/' or '@'");
  if (options.object_size == 0) bad("object-size= must not be 0");
  if (options.stripe_unit == 0) bad("stripe-unit= must not be 0");
  if (options.stripe_count == 0) bad("stripe-count= must not be 0");

  const std::uint64_t object_size = options.object_size.value_or(4 << 20);
  const bool is_format2 = options.format == FormatChoice::automatic ||
                          options.format == FormatChoice::format2;
  if (options.features && !is_format2)
    bad("features= is not possible with format " +
        std::string(to_string(options.format)));
  if (options.data_pool && !is_format2)
    bad("data-pool= is not possible with format " +
        std::string(to_string(options.format)));

  switch (options.format) {
    case FormatChoice::automatic:
    case FormatChoice::format2:
      check_format2(object_size, options);
      return;
    case FormatChoice::format1:
      check_object_size(object_size);
      if ((options.stripe_unit && *options.stripe_unit != object_size) ||
          (options.stripe_count && *options.stripe_count != 1))
        bad("stripe-unit= and stripe-count= are not possible with format 1");
      return;
    case FormatChoice::striper:
      check_striper(object_size, options);
      return;
  }
}

void create_image(const std::shared_ptr<Cluster>& cluster,
                  const ImageSpec& spec, const CreateOptions& options) {
  check_create(spec, options);
  const Pool pool = open_pool(cluster, spec.pool, spec.name_space);
  if (exists_format2(pool, spec.image) || exists_format1(pool, spec.image) ||
      exists_striper(pool, spec.image))
    throw Error(EEXIST, "image '" + spec.image + "' exists already in pool '" +
                            spec.pool + "'");
  switch (options.format) {
    case FormatChoice::automatic:
    case FormatChoice::format2:
      create_format2(pool, spec, options);
      return;
    case FormatChoice::format1:
      create_format1(pool, spec, options);
      return;
    case FormatChoice::striper:
      create_striper(pool, spec, options);
      return;
  }
}

void rename_image(const std::shared_ptr<Cluster>& cluster,
                  const ImageSpec& from, const std::string& to) {
  const Pool pool = open_pool(cluster, from.pool, from.name_space);
  if (exists_format1(pool, to) || exists_striper(pool, to))
    throw Error(EEXIST, "image '" + to + "' exists already in pool '" +
                            from.pool + "'");
  rename_format2(pool, from, to);
}

void remove_empty_image(const std::shared_ptr<Cluster>& cluster,
                        const ImageSpec& spec, const ImageIdentity& identity) {
  const Pool pool = open_pool(cluster, identity.pool, identity.name_space);
  remove_empty_format2(pool, spec, identity.image);
}

}  // namespace nbdrados
