// SPDX-License-Identifier: BSD-3-Clause
//
// RBD format 2: rbd_id.NAME holds the id, rbd_header.ID the metadata, behind
// the `rbd` object class.

#include <cerrno>
#include <utility>

#include "formats/format2_snapshots.hpp"
#include "formats/formats.hpp"
#include "image/ownership/exclusive_lock.hpp"
#include "image/ownership/map_loader.hpp"
#include "image/ownership/map_reader.hpp"
#include "rados/error.hpp"
#include "rbd/features.hpp"
#include "rbd/format2.hpp"

namespace nbdrados {

namespace {

constexpr std::uint64_t id_limit = 4096;

/// Features whose images cannot be read as their data objects are: with
/// migrating, data is still in another image; with dirty-cache, newer data
/// is on some client's cache device (ceph: src/include/rbd/features.h).
constexpr std::uint64_t unreadable_features =
    feature_migrating | feature_dirty_cache;

/// Features whose images must not be written to as this is done here.  With
/// journaling every write goes to a journal first; a non-primary image is
/// written by its mirror alone.
constexpr std::uint64_t unwritable_features =
    unreadable_features | feature_journaling | feature_non_primary;

/// False where there is no image of that name.
bool read_id(const Pool& pool, const std::string& image, std::string* id) {
  std::string bytes;
  const std::string oid = format2_id_oid(image);
  const int r = pool.wait(pool.store->read_all(oid, id_limit, &bytes));
  if (r == -ENOENT) return false;
  check(r, "cannot read object " + oid);
  *id = decode_image_id(bytes);
  return true;
}

/// Calls of the object class on one header, in one operation: what they say
/// was so at one moment.
class HeaderRead {
 public:
  HeaderRead(const Pool& pool, std::string oid)
      : pool_(pool), oid_(std::move(oid)) {}
  /// Adds a call; returns its number.
  std::size_t add(const char* method, std::string input = {}) {
    calls_.push_back({rbd_class, method, std::move(input)});
    return calls_.size() - 1;
  }
  /// Carries the calls out.  Throws Error; ENOENT: the header, or a snapshot
  /// that a call is about, does not exist.
  void run() {
    const int r = pool_.wait(pool_.store->exec_each(oid_, calls_, &outputs_));
    if (r == -EOPNOTSUPP) rbd_class_refused(pool_);
    check(r, "cannot read header object " + oid_);
  }
  [[nodiscard]] const std::string& output(std::size_t n) const {
    return outputs_.at(n);
  }

 private:
  const Pool& pool_;
  const std::string oid_;
  std::vector<MethodCall> calls_;
  std::vector<std::string> outputs_;
};

/// Finds snapshots of an image by their names.
class SnapshotFinder {
 public:
  /// What is given must outlive this.
  SnapshotFinder(const Pool& pool, const ImageSpec& spec,
                 const std::string& image_id)
      : pool_(pool),
        spec_(spec),
        oid_(format2_header_oid(image_id)),
        // A client of Ceph sees one cluster.
        key_(spec.pool + '\0' + spec.name_space + '\0' + image_id),
        snapc_(read_context()) {}

  /// A user's snapshot before others of that name, and none in the trash: that
  /// is there for clones alone.  Throws Error(ENOENT).
  SnapId find(const std::string& name) {
    if (const auto id = remembered(name)) return *id;
    if (!all_) read_all();
    const auto found = all_->find(name);
    if (found == all_->end())
      throw Error(ENOENT,
                  "image '" + spec_.image + "' has no snapshot '" + name + "'");
    return found->second;
  }

 private:
  SnapContext read_context() const {
    HeaderRead header(pool_, oid_);
    const auto snapc = header.add("get_snapcontext");
    header.run();
    return decode_get_snapcontext(header.output(snapc));
  }

  /// A user's snapshot is the only one of its name, which it may have lost.
  std::optional<SnapId> remembered(const std::string& name) const {
    if (pool_.known_snapshots == nullptr) return std::nullopt;
    const auto id = pool_.known_snapshots->find(key_, snapc_, name);
    if (!id) return std::nullopt;
    std::string output;
    const int r = pool_.call(oid_, "snapshot_get", encode_snap_id(*id),
                             &output);
    if (r == -ENOENT) return std::nullopt;
    check(r, "cannot read header object " + oid_ + " (snapshot_get)");
    const Format2Snapshot s = decode_snapshot_get(output);
    if (s.name != name || s.kind != Format2SnapshotKind::user)
      return std::nullopt;
    return id;
  }

  void read_all() {
    KnownSnapshots::Names& names = all_.emplace();
    KnownSnapshots::Names others;
    // Newest first: of several that are no user's, that one.
    for (const Format2Snapshot& s : read_snapshots(pool_, oid_, snapc_))
      if (s.kind == Format2SnapshotKind::user)
        names.insert_or_assign(s.name, s.id);
      else if (s.kind != Format2SnapshotKind::trash)
        others.emplace(s.name, s.id);
    names.insert(others.begin(), others.end());
    if (pool_.known_snapshots != nullptr)
      pool_.known_snapshots->learn(key_, snapc_, names);
  }

  const Pool& pool_;
  const ImageSpec& spec_;
  const std::string oid_;
  const std::string key_;
  const SnapContext snapc_;
  std::optional<KnownSnapshots::Names> all_;
};

class Format2 final : public ImageFormat {
 public:
  /// Whom a snapshot serves: who asked for it by name, or the clones that were
  /// made of it.
  enum class For : std::uint8_t { user, clones };

  Format2(Pool pool, ImageSpec spec, const std::string& id, SnapId snap,
          For whom, const OpenOptions& options)
      : pool_(std::move(pool)),
        spec_(std::move(spec)),
        id_(id),
        header_oid_(format2_header_oid(id)),
        snap_(snap),
        for_(whom),
        data_store_(pool_.data),
        core_(read_core()),
        traits_(make_traits()),
        map_reader_(*pool_.store, header_oid_,
                    format2_object_map_oid(id_, snap_), snap_,
                    pool_.timeout()) {
    if (options.writable && snap_ == snap_head)
      lock_ = std::make_unique<ExclusiveLock>(
          *pool_.store, header_oid_, *pool_.cluster,
          ExclusiveLock::Options{.limit = pool_.timeout(),
                                 .what = spec_.text()});
  }

  const ImageTraits& traits() const override { return traits_; }

  View load() override {
    HeaderRead header(pool_, header_oid_);
    const std::string at = encode_snap_id(snap_);
    const auto snapc = header.add("get_snapcontext");
    const auto features =
        header.add("get_features", encode_get_features(snap_head, true));
    const auto size = header.add("get_size", at);
    const auto flags = header.add("get_flags", at);
    const auto parent = header.add("parent_get");
    const auto overlap = header.add("parent_overlap_get", at);
    const bool of_snapshot = snap_ != snap_head;
    const auto info =
        of_snapshot ? header.add("snapshot_get", at) : std::size_t{0};
    try {
      header.run();
    } catch (const Error& e) {
      if (e.code() != ENOENT) throw;
      throw Error(of_snapshot ? EIO : ENOENT,
                  traits_.name + (of_snapshot
                                      ? ": the snapshot has been deleted"
                                      : ": the image has been deleted"));
    }
    View view;
    view.snapc = decode_get_snapcontext(header.output(snapc));
    view.snap = snap_;
    const Format2Features f = decode_get_features(header.output(features));
    check_features(f);
    if (of_snapshot) {
      const Format2Snapshot s = decode_snapshot_get(header.output(info));
      // Removing a snapshot that has clones moves it to the trash, where
      // they keep it.
      if (for_ == For::user && s.kind == Format2SnapshotKind::trash)
        throw Error(EIO, traits_.name + ": the snapshot has been deleted");
    }
    view.size = decode_get_size(header.output(size)).size;
    const std::uint64_t bits = decode_get_flags(header.output(flags));
    view.lockable = (f.features & feature_exclusive_lock) != 0;
    view.snaps_mapped = (f.features & feature_object_map) != 0;
    view.mappable = view.snaps_mapped && (bits & flag_object_map_invalid) == 0;
    view.fast_diff = (f.features & feature_fast_diff) != 0;
    if (const auto never =
            f.features & (unwritable_features | ~features_known);
        never != 0)
      view.unwritable = "writing is not supported with feature " +
                        feature_names(never);
    view.overlap =
        decode_parent_overlap_get(header.output(overlap)).value_or(0);
    set_parent(decode_parent_get(header.output(parent)), view);
    return view;
  }

  std::unique_ptr<ImageFormat> open_parent(const ParentSpec& spec) override {
    try {
      const Pool pool = open_parent_pool(spec);
      const ImageSpec name{.pool = "pool " + std::to_string(spec.pool),
                           .name_space = spec.name_space,
                           .image = image_name(pool, spec.image_id),
                           .snapshot = std::to_string(spec.snap)};
      return std::make_unique<Format2>(pool, name, spec.image_id, spec.snap,
                                       For::clones, OpenOptions{});
    } catch (const Error& e) {
      throw Error(e.code() == ENOENT ? EIO : e.code(),
                  traits_.name + ": its parent cannot be read: " + e.what());
    }
  }

  ExclusiveLock* lock() noexcept override { return lock_.get(); }

  std::shared_ptr<ObjectMap> open_map(std::uint64_t objects) override {
    map_reader_.forget();
    return ObjectMap::open(*pool_.store, id_, objects, pool_.timeout());
  }

  std::shared_ptr<const ObjectStates> read_map() override {
    return map_reader_.read();
  }

  std::shared_ptr<const ObjectStates> read_fast_diff(SnapId snap) override {
    // As in MapReader: valid before and after, so in between.
    const auto valid = [&] {
      HeaderRead header(pool_, header_oid_);
      const auto flags = header.add("get_flags", encode_snap_id(snap));
      try {
        header.run();
      } catch (const Error& e) {
        if (e.code() == ENOENT) return false;
        throw;
      }
      return (decode_get_flags(header.output(flags)) &
              (flag_object_map_invalid | flag_fast_diff_invalid)) == 0;
    };
    if (!valid()) return nullptr;
    std::shared_ptr<const ObjectStates> states;
    if (snap == snap_) {
      states = read_map();
    } else {
      try {
        states = std::make_shared<const ObjectStates>(
            load_object_map(*pool_.store, format2_object_map_oid(id_, snap),
                            pool_.timeout())
                .states);
      } catch (const Error& e) {
        // Without it, it only takes longer.
        if (e.code() == ENOENT || e.code() == EINVAL) return nullptr;
        throw Error(e.code(), traits_.name + ": " + e.what());
      }
    }
    return valid() ? states : nullptr;
  }

  void invalidate_map(SnapId snap) override {
    const std::uint64_t flags =
        flag_object_map_invalid | flag_fast_diff_invalid;
    const std::string input = encode_set_flags(snap, flags, flags);
    std::string output;
    const int r = pool_.call(header_oid_, "set_flags", input, &output);
    // A snapshot that has been deleted meanwhile.
    if (r == -ENOENT && snap != snap_head) return;
    check(r, traits_.name + ": cannot mark the object map as invalid");
  }

  std::unique_ptr<Pending> update_snapshot_map(SnapId snap,
                                               std::uint64_t object_no,
                                               ObjectState state,
                                               ObjectState current,
                                               std::string* request) override {
    *request =
        encode_object_map_update(object_no, object_no + 1, state, current);
    // A map that does not exist must not come into being.
    return pool_.store->write(format2_object_map_oid(id_, snap),
                              WriteOp().assert_exists().exec(
                                  rbd_class, "object_map_update", *request),
                              {});
  }

  ObjectStore& header_store() override { return *pool_.store; }
  ObjectStore& data_store() override { return *data_store_; }

 private:
  void check_features(const Format2Features& f) const {
    if (const auto bits = f.features & unreadable_features; bits != 0)
      throw Error(ENOTSUP, "image '" + spec_.image +
                               "' cannot be read: feature " +
                               feature_names(bits) + " is not supported");
    if (const auto bits = f.incompatible & ~features_known; bits != 0)
      throw Error(ENOTSUP, "image '" + spec_.image +
                               "' cannot be read: it needs " +
                               feature_names(bits) +
                               ", which this version does not know");
  }

  Format2Core read_core() {
    HeaderRead header(pool_, header_oid_);
    const auto size = header.add("get_size", encode_snap_id(snap_head));
    const auto features =
        header.add("get_features", encode_get_features(snap_head, true));
    const auto prefix = header.add("get_object_prefix");
    header.run();
    const Format2Features f = decode_get_features(header.output(features));
    check_features(f);
    const Format2Size s = decode_get_size(header.output(size));
    Format2Core core;
    core.features = f.features;
    core.incompatible = f.incompatible;
    core.size = s.size;
    core.order = s.order;
    core.object_prefix = decode_get_object_prefix(header.output(prefix));

    // These never change.
    const bool striped = (f.features & feature_striping) != 0;
    const bool elsewhere = (f.features & feature_data_pool) != 0;
    if (!striped && !elsewhere) return core;
    HeaderRead rest(pool_, header_oid_);
    const auto striping = striped ? rest.add("get_stripe_unit_count") : 0;
    const auto data_pool = elsewhere ? rest.add("get_data_pool") : 0;
    rest.run();
    if (striped)
      core.striping = decode_get_stripe_unit_count(rest.output(striping));
    if (elsewhere)
      core.data_pool = decode_get_data_pool(rest.output(data_pool));
    if (core.data_pool) data_store_ = open_data_pool(*core.data_pool);
    return core;
  }

  static std::string data_pool_text(std::int64_t number) {
    return "its data pool (number " + std::to_string(number) + ")";
  }

  Pool open_parent_pool(const ParentSpec& spec) const {
    try {
      return open_pool(pool_.cluster, spec.pool, spec.name_space);
    } catch (const Error& e) {
      if (e.code() != ENOENT) throw;
      throw Error(ENXIO, "the parent's pool (number " +
                             std::to_string(spec.pool) +
                             ") does not exist");
    }
  }

  std::shared_ptr<ObjectStore> open_data_pool(std::int64_t number) const {
    try {
      return pool_.cluster->open_pool(number, spec_.name_space,
                                      Cluster::Purpose::data);
    } catch (const Error& e) {
      // Not ENOENT, because the image is there.
      if (e.code() != ENOENT) throw;
      throw Error(ENXIO, spec_.text() + ": " + data_pool_text(number) +
                             " does not exist");
    }
  }

  static void set_parent(const std::optional<Format2Parent>& found,
                         View& view) {
    if (!found) view.overlap = 0;
    if (view.overlap == 0) return;
    view.parent_spec = {.pool = found->pool,
                        .name_space = found->pool_namespace,
                        .image_id = found->image_id,
                        .snap = found->snap};
  }

  /// For messages: the name of an image in another pool, or its id.
  static std::string image_name(const Pool& pool, const std::string& id) {
    std::string output;
    const int r = pool.call(rbd_directory_oid, "dir_get_name",
                            encode_dir_get_name(id), &output);
    try {
      if (r >= 0) return decode_dir_get_name(output);
    } catch (const Error&) {
      // The id will do.
    }
    return "id " + id;
  }

  ImageTraits make_traits() const {
    const std::uint64_t object_size = std::uint64_t{1} << core_.order;
    const auto [unit, count] =
        core_.striping.value_or(std::pair<std::uint64_t, std::uint64_t>{
            object_size, 1});
    return {.name = spec_.text(),
            .format = "RBD format 2",
            .layout = Layout(object_size, unit, count),
            .object_prefix = core_.object_prefix,
            .name_digits = 16,
            .header_oid = header_oid_,
            .details = core_.features == 0
                           ? std::string("no features")
                           : "features " + feature_names(core_.features),
            .data_pool = core_.data_pool ? data_pool_text(*core_.data_pool)
                                         : "its pool"};
  }

  const Pool pool_;
  const ImageSpec spec_;
  const std::string id_;
  const std::string header_oid_;
  const SnapId snap_;
  const For for_;
  std::shared_ptr<ObjectStore> data_store_;
  const Format2Core core_;
  const ImageTraits traits_;
  std::unique_ptr<ExclusiveLock> lock_;
  MapReader map_reader_;
};

}  // namespace

bool exists_format2(const Pool& pool, const std::string& image) {
  return object_exists(pool, format2_id_oid(image));
}

std::optional<ImageIdentity> resolve_format2(const Pool& pool,
                                             const ImageSpec& spec) {
  ImageIdentity identity;
  if (!read_id(pool, spec.image, &identity.image)) return std::nullopt;
  if (spec.snapshot.empty() && spec.since.empty()) return identity;
  SnapshotFinder snapshots(pool, spec, identity.image);
  if (!spec.snapshot.empty()) identity.snap = snapshots.find(spec.snapshot);
  if (!spec.since.empty()) identity.since = snapshots.find(spec.since);
  return identity;
}

std::unique_ptr<ImageFormat> open_format2(const Pool& pool,
                                          const ImageIdentity& identity,
                                          const ImageSpec& spec,
                                          const OpenOptions& options) {
  return std::make_unique<Format2>(pool, spec, identity.image, identity.snap,
                                   Format2::For::user, options);
}

}  // namespace nbdrados
