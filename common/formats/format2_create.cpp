// SPDX-License-Identifier: BSD-3-Clause
//
// Creating images of RBD format 2, in the order of librbd, so that who comes
// across an unfinished one knows it (ceph: src/librbd/internal.cc, create;
// src/librbd/image/CreateRequest.cc, ValidatePoolRequest.cc).
//
// What is visible when the creation of NAME ends after a step:
//
//  1. rbd_info of the pool that the data goes to says that images can be
//     there.  It is about the pool, stays, and the next image finds it.
//  2. rbd_directory has NAME and the id.  `rbd ls` shows NAME, nobody can open
//     it, and creating NAME fails with EEXIST, by us and by librbd.
//  3. rbd_id.NAME holds the id.  As before, but creating fails because the
//     object is there.
//  4. rbd_header.ID exists, without a stripe unit and count.  The image can
//     be opened.  If it was to be striped, it is not: to everybody its stripe
//     unit is the object size, as long as it exists.
//  5. The header has stripe unit and count (only images that are striped).
//     The image is complete, but for the object map.
//  6. rbd_object_map.ID exists (only with the feature object-map): done.
//     Without it who takes the lock finds no map, and flags it as invalid.
//
// `rbd rm` removes what any of these leaves, and then NAME is free.  A step
// that fails undoes those from 2 on, last one first, so that at any time what
// is left is what one of these steps leaves.

#include <bit>
#include <cerrno>
#include <charconv>
#include <map>
#include <optional>
#include <random>
#include <system_error>
#include <utility>

#include "formats/formats.hpp"
#include "rados/error.hpp"
#include "rbd/features.hpp"
#include "rbd/format2.hpp"
#include "rbd/format2_create.hpp"
#include "rbd/object_map.hpp"

namespace nbdrados {

namespace {

/// librbd's defaults, for a cluster that does not say its own.
constexpr std::uint64_t default_order = 22;

/// A number as Ceph's options have it: decimal, perhaps with a unit of a
/// power of 1024 ("64K", "64Ki", "64KiB"; ceph: src/common/strtol.cc).
std::optional<std::uint64_t> option_number(std::string_view text) {
  std::uint64_t n = 0;
  const auto [stop, error] =
      std::from_chars(text.data(), text.data() + text.size(), n);
  if (error != std::errc()) return std::nullopt;
  std::string_view unit =
      text.substr(static_cast<std::size_t>(stop - text.data()));
  if (unit.empty() || unit == "B") return n;
  constexpr std::string_view units = "KMGTPE";
  const auto at = units.find(unit[0]);
  unit.remove_prefix(1);
  if (at == std::string_view::npos ||
      (!unit.empty() && unit != "i" && unit != "B" && unit != "iB"))
    return std::nullopt;
  const unsigned shift = 10 * (static_cast<unsigned>(at) + 1);
  if (n > ~std::uint64_t{0} >> shift) return std::nullopt;
  return n << shift;
}

/// What Ceph's options say about new images: those of the pool first
/// (ceph: src/librbd/api/Config.cc, apply_pool_overrides).
class Defaults {
 public:
  Defaults(Cluster& cluster, const std::string& pool) : cluster_(cluster) {
    constexpr std::uint64_t page = 1024;
    const auto store =
        cluster.open_pool(pool, "", Cluster::Purpose::metadata);
    std::string last(rbd_info_setting);
    for (;;) {
      std::string bytes;
      const int r = store
                        ->exec(std::string(rbd_info_oid), rbd_class,
                               "metadata_list", encode_list(last, page),
                               &bytes)
                        ->wait_for(cluster.timeout());
      // No rbd_info yet; or an erasure-coded pool, which has no metadata.
      if (r == -ENOENT || r == -EOPNOTSUPP) return;
      check(r, "cannot read the settings of pool '" + pool + "'");
      const auto found = decode_metadata_list(bytes);
      for (const auto& [key, value] : found) {
        if (!key.starts_with(rbd_info_setting)) return;
        of_pool_.insert_or_assign(key.substr(rbd_info_setting.size()), value);
      }
      if (found.size() < page) return;
      last = found.rbegin()->first;
    }
  }

  std::string text(const std::string& option) const {
    if (const auto it = of_pool_.find(option); it != of_pool_.end())
      return it->second;
    return cluster_.ceph_option(option).value_or("");
  }
  std::uint64_t number(const std::string& option,
                       std::uint64_t fallback) const {
    const std::string value = text(option);
    if (value.empty()) return fallback;
    const auto n = option_number(value);
    if (!n)
      throw Error(EINVAL, "Ceph's option " + option + "=" + value +
                              " is not a number");
    return *n;
  }

 private:
  Cluster& cluster_;
  std::map<std::string, std::string> of_pool_;
};

/// What is to be created.
struct Plan {
  Format2NewHeader header;
  Layout layout{1, 1, 1};
  std::string data_pool;  // "": the image's own
  /// The cluster's choice, from which what its OSDs do not know is left out.
  bool default_features = false;

  bool has(std::uint64_t feature) const {
    return (header.features & feature) != 0;
  }
};

Plan make_plan(const Pool& pool, const ImageSpec& spec,
               const CreateOptions& options) {
  Plan plan;
  const Defaults defaults(*pool.cluster, spec.pool);

  std::uint64_t order = defaults.number("rbd_default_order", default_order);
  if (options.object_size)
    order = static_cast<unsigned>(std::countr_zero(*options.object_size));
  if (order < format2_order_min || order > format2_order_max)
    throw Error(EINVAL, "Ceph's option rbd_default_order=" +
                            std::to_string(order) +
                            " is not from 12 to 25; object-size= wins over "
                            "it");
  const std::uint64_t object_size = std::uint64_t{1} << order;
  std::uint64_t unit = options.stripe_unit.value_or(
      defaults.number("rbd_default_stripe_unit", 0));
  std::uint64_t count = options.stripe_count.value_or(
      defaults.number("rbd_default_stripe_count", 0));
  // librbd takes both or none.
  if (unit == 0) unit = object_size;
  if (count == 0) count = 1;
  if (object_size % unit != 0)
    throw Error(EINVAL, "stripe unit " + std::to_string(unit) +
                            " does not divide object size " +
                            std::to_string(object_size));
  plan.layout = Layout(object_size, unit, count);

  plan.data_pool =
      options.data_pool.value_or(defaults.text("rbd_default_data_pool"));
  if (plan.data_pool == spec.pool) plan.data_pool.clear();

  plan.default_features = !options.features;
  std::uint64_t features = options.features.value_or(
      parse_default_features(defaults.text("rbd_default_features")));
  check_new_features(features,
                     plan.default_features
                         ? "Ceph's option rbd_default_features (features= "
                           "wins over it)"
                         : "features=");
  if ((features & feature_object_map) != 0) features |= feature_fast_diff;
  features &= ~(feature_striping | feature_data_pool);
  if (unit != object_size || count != 1) features |= feature_striping;
  if (!plan.data_pool.empty()) features |= feature_data_pool;

  plan.header.size = options.size;
  plan.header.order = static_cast<unsigned>(order);
  plan.header.features = features;
  if (const auto objects = plan.layout.object_count(options.size);
      plan.has(feature_object_map) && objects > object_map_max)
    throw Error(EINVAL, "an image of " + std::to_string(objects) +
                            " objects cannot have an object map, which has "
                            "at most " + std::to_string(object_map_max) +
                            "; object-size= makes them fewer");
  return plan;
}

/// Makes sure that images can have their data in a pool.  Throws Error.
void validate_pool(Cluster& cluster, const std::string& pool) {
  const auto store = cluster.open_pool(pool, "", Cluster::Purpose::metadata);
  const std::string oid(rbd_info_oid);
  const std::string doing = "cannot prepare pool '" + pool + "' for images";

  std::string state;
  const int r =
      store->read_all(oid, 64, &state)->wait_for(cluster.timeout());
  if (r != -ENOENT) check(r, doing);
  if (state == rbd_info_done) return;

  const auto write = [&](std::string_view text, bool create) {
    const ConstPiece piece{text.data(), text.size()};
    WriteOp op;
    if (create) op.create();
    op.write(0, {&piece, 1});
    const int result =
        store->write(oid, op, {})->wait_for(cluster.timeout());
    if (result == -EOPNOTSUPP)
      throw Error(EINVAL, "pool '" + pool +
                              "' cannot hold images: it is erasure-coded and "
                              "does not allow overwrites (ceph osd pool set " +
                              pool + " allow_ec_overwrites true)");
    // Another client is at it, too.
    if (!create || result != -EEXIST) check(result, doing);
  };
  if (state != rbd_info_begun) {
    cluster.use_self_managed_snapshots(pool);
    write(rbd_info_begun, true);
  }
  // The first write made the object longer; this one overwrites.
  write(rbd_info_done, false);
}

/// The steps from 2 on.
class Creation {
 public:
  Creation(const Pool& pool, const ImageSpec& spec, Plan plan, std::string id)
      : pool_(pool),
        spec_(spec),
        plan_(std::move(plan)),
        id_(std::move(id)),
        id_oid_(format2_id_oid(spec.image)),
        header_oid_(format2_header_oid(id_)),
        map_oid_(format2_object_map_oid(id_, snap_head)) {}

  void run() {
    try {
      add_name();
      make_id();
      choose_features();
      make_header();
      if (plan_.has(feature_striping)) set_striping();
      if (plan_.has(feature_object_map)) make_map();
    } catch (const Error& e) {
      if (made_ == Made::nothing || undo()) throw;
      throw Error(e.code(), std::string(e.what()) +
                                "; an unfinished image '" + spec_.image +
                                "' is left, which `rbd rm` removes");
    }
  }

 private:
  enum class Made : std::uint8_t { nothing, name, id, header, map };

  int write(const std::string& oid, const WriteOp& op) {
    return pool_.wait(pool_.store->write(oid, op, {}));
  }
  /// A step.  One that got no answer may have been made all the same.
  int make(Made what, const std::string& oid, const WriteOp& op) {
    const int r = write(oid, op);
    if (r >= 0 || r == -ETIMEDOUT) made_ = what;
    return r;
  }

  void add_name() {
    const bool in_namespace = !spec_.name_space.empty();
    const std::string ready = encode_dir_state_ready();
    const std::string input = encode_dir_add_image(spec_.image, id_);
    WriteOp op;
    // rbd_directory comes with the namespace.
    if (in_namespace) op.exec(rbd_class, "dir_state_assert", ready);
    op.exec(rbd_class, "dir_add_image", input);
    const int r = make(Made::name, std::string(rbd_directory_oid), op);
    if (r == -EEXIST)
      throw Error(EEXIST,
                  "image '" + spec_.image + "' exists already in pool '" +
                      spec_.pool +
                      "', but is not finished: it is just being created, or "
                      "that was interrupted, and then `rbd rm` removes it");
    if (in_namespace && r == -ENOENT)
      throw Error(ENOENT, "namespace '" + spec_.name_space +
                              "' does not exist in pool '" + spec_.pool +
                              "'");
    if (in_namespace && r == -EBUSY)
      throw Error(EBUSY, "namespace '" + spec_.name_space +
                             "' is being removed");
    if (r == -EOPNOTSUPP) rbd_class_refused(pool_);
    check(r, "cannot register the image in rbd_directory");
  }

  void make_id() {
    const std::string input = encode_set_id(id_);
    WriteOp op;
    op.create().exec(rbd_class, "set_id", input);
    const int r = make(Made::id, id_oid_, op);
    if (r == -EEXIST)
      throw Error(EEXIST, "image '" + spec_.image + "' exists already");
    // Not to be undone: the object is ours only if it did not exist.
    if (r == -ETIMEDOUT) uncertain_ = true;
    check(r, "cannot create object " + id_oid_);
  }

  void choose_features() {
    if (!plan_.default_features) return;
    std::string bytes;
    const int r =
        pool_.call(rbd_directory_oid, "get_all_features", {}, &bytes);
    // As librbd: who cannot say, is asked by the creation itself.
    if (r >= 0) plan_.header.features &= decode_get_all_features(bytes);
  }

  void make_header() {
    plan_.header.object_prefix = format2_object_prefix(id_, std::nullopt);
    if (plan_.has(feature_data_pool)) {
      plan_.header.object_prefix =
          format2_object_prefix(id_, pool_.cluster->pool_id(spec_.pool));
      plan_.header.data_pool = pool_.cluster->pool_id(plan_.data_pool);
    }
    const std::string input = encode_create(plan_.header);
    WriteOp op;
    op.create().exec(rbd_class, "create", input);
    const int r = make(Made::header, header_oid_, op);
    if (r == -ENOSYS)
      throw Error(ENOTSUP, "the cluster does not know all of the features " +
                               feature_names(plan_.header.features));
    check(r, "cannot create header object " + header_oid_);
  }

  void set_striping() {
    const std::string input = encode_set_stripe_unit_count(
        plan_.layout.stripe_unit(), plan_.layout.stripe_count());
    WriteOp op;
    op.exec(rbd_class, "set_stripe_unit_count", input);
    check(write(header_oid_, op), "cannot set the striping in header object " +
                                      header_oid_);
  }

  void make_map() {
    const std::string input = encode_object_map_resize(
        plan_.layout.object_count(plan_.header.size),
        ObjectState::nonexistent);
    WriteOp op;
    op.exec(rbd_class, object_map_method_resize, input);
    check(make(Made::map, map_oid_, op), "cannot create object " + map_oid_);
  }

  /// False: something is, or may be, left.
  bool undo() {
    if (uncertain_) return false;
    const auto remove = [this](const std::string& oid) {
      WriteOp op;
      op.remove();
      const int r = write(oid, op);
      return r >= 0 || r == -ENOENT;
    };
    if (made_ >= Made::map && !remove(map_oid_)) return false;
    if (made_ >= Made::header && !remove(header_oid_)) return false;
    if (made_ >= Made::id && !remove(id_oid_)) return false;
    const std::string input = encode_dir_remove_image(spec_.image, id_);
    WriteOp op;
    op.exec(rbd_class, "dir_remove_image", input);
    const int r = write(std::string(rbd_directory_oid), op);
    // ESTALE: the name is another image's, so never was ours.
    return r >= 0 || r == -ENOENT || r == -ESTALE;
  }

  const Pool& pool_;
  const ImageSpec& spec_;
  Plan plan_;
  const std::string id_;
  const std::string id_oid_;
  const std::string header_oid_;
  const std::string map_oid_;
  Made made_ = Made::nothing;
  bool uncertain_ = false;
};

}  // namespace

void check_new_features(std::uint64_t features, const std::string& source) {
  const auto bad = [&](int code, const std::string& text) {
    throw Error(code, source + ": " + text);
  };
  if (const auto bits = features & ~features_known; bits != 0)
    bad(ENOTSUP, feature_names(bits) + " is not supported");
  if (const auto bits = features & features_internal; bits != 0)
    bad(EINVAL, "no image is created with " + feature_names(bits));
  if ((features & feature_journaling) != 0)
    bad(ENOTSUP, "journaling is not supported; use `rbd create`");
  if ((features & feature_fast_diff) != 0 &&
      (features & feature_object_map) == 0)
    bad(EINVAL, "fast-diff needs object-map");
  if ((features & feature_object_map) != 0 &&
      (features & feature_exclusive_lock) == 0)
    bad(EINVAL, "object-map needs exclusive-lock");
}

void create_format2(const Pool& pool, const ImageSpec& spec,
                    const CreateOptions& options) {
  const Plan plan = make_plan(pool, spec, options);
  if (!plan.data_pool.empty()) {
    try {
      (void)pool.cluster->pool_id(plan.data_pool);
    } catch (const Error& e) {
      if (e.code() != ENOENT) throw;
      throw Error(ENOENT, "data pool '" + plan.data_pool +
                              "' does not exist");
    }
  }
  const auto validate = pool.cluster->ceph_option("rbd_validate_pool");
  if (!validate || *validate != "false")
    validate_pool(*pool.cluster,
                  plan.data_pool.empty() ? spec.pool : plan.data_pool);

  std::random_device random;
  Creation(pool, spec, plan,
           format2_image_id(pool.cluster->client_id(), random()))
      .run();
}

}  // namespace nbdrados
