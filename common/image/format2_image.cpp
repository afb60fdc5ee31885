// SPDX-License-Identifier: BSD-3-Clause
//
// RBD format 2, for reading: rbd_id.NAME holds the id, rbd_header.ID the
// metadata, behind the `rbd` object class.

#include <algorithm>
#include <cerrno>
#include <utility>

#include "image/formats.hpp"
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

/// False where there is no image of that name.
bool read_id(const Pool& pool, const std::string& image, std::string* id) {
  std::string bytes;
  const std::string oid = format2_id_oid(image);
  const auto pending = pool.store->read_all(oid, id_limit, &bytes);
  const int r = pending->wait_for(pool.timeout());
  if (r == -ENOENT) return false;
  check(r, "cannot read object " + oid);
  *id = decode_image_id(bytes);
  return true;
}

/// Calls of the object class on one header, several in flight.
class HeaderCalls {
 public:
  HeaderCalls(const Pool& pool, std::string oid)
      : pool_(pool), oid_(std::move(oid)) {
    calls_.reserve(16);  // outputs must not move
  }
  /// Starts a call; returns its number.
  std::size_t start(const char* method, std::string_view input = {}) {
    Call& call = calls_.emplace_back();
    call.method = method;
    call.output = std::make_unique<std::string>();
    call.pending = pool_.store->exec(oid_, rbd_class, method, input,
                                     call.output.get());
    return calls_.size() - 1;
  }
  /// The result of a call, which may be negative.
  int result(std::size_t n) {
    return calls_[n].pending->wait_for(pool_.timeout());
  }
  /// The output of a call.  Throws Error where it failed.
  const std::string& output(std::size_t n) {
    check(result(n), "cannot read header object " + oid_ + " (" +
                         calls_[n].method + ")");
    return *calls_[n].output;
  }

 private:
  struct Call {
    const char* method = "";
    std::unique_ptr<std::string> output;
    std::unique_ptr<Pending> pending;
  };
  const Pool& pool_;
  const std::string oid_;
  std::vector<Call> calls_;
};

/// All snapshots of an image: a call each.
std::vector<Format2Snapshot> read_snapshots(const Pool& pool,
                                            const std::string& oid,
                                            const SnapContext& snapc) {
  HeaderCalls calls(pool, oid);
  for (const SnapId id : snapc.snaps)
    (void)calls.start("snapshot_get", encode_snap_id(id));
  std::vector<Format2Snapshot> snapshots;
  for (std::size_t i = 0; i < snapc.snaps.size(); ++i) {
    // Deleted since the snapshot context was read.
    if (calls.result(i) == -ENOENT) continue;
    snapshots.push_back(decode_snapshot_get(calls.output(i)));
  }
  return snapshots;
}

class Format2 final : public ImageFormat {
 public:
  Format2(Pool pool, ImageSpec spec, const std::string& id)
      : pool_(std::move(pool)),
        spec_(std::move(spec)),
        header_oid_(format2_header_oid(id)),
        data_store_(pool_.data),
        core_(read_core()),
        traits_(make_traits()) {}

  const ImageTraits& traits() const override { return traits_; }

  View load() override {
    HeaderCalls calls(pool_, header_oid_);
    const std::string at = encode_snap_id(snap_);
    const auto snapc = calls.start("get_snapcontext");
    const auto features =
        calls.start("get_features", encode_get_features(snap_head, true));
    const auto size = calls.start("get_size", at);
    const bool of_snapshot = snap_ != snap_head;
    const auto info =
        of_snapshot ? calls.start("snapshot_get", at) : std::size_t{0};
    try {
      View view;
      view.snapc = decode_get_snapcontext(calls.output(snapc));
      view.snap = snap_;
      check_features(decode_get_features(calls.output(features)));
      if (of_snapshot) {
        const Format2Snapshot s = decode_snapshot_get(calls.output(info));
        // Removing a snapshot first moves it to the trash.
        if (s.kind != Format2SnapshotKind::user)
          throw Error(EIO, traits_.name + ": the snapshot has been deleted");
      }
      view.size = decode_get_size(calls.output(size)).size;
      return view;
    } catch (const Error& e) {
      if (e.code() != ENOENT) throw;
      throw Error(of_snapshot ? EIO : ENOENT,
                  traits_.name + (of_snapshot
                                      ? ": the snapshot has been deleted"
                                      : ": the image has been deleted"));
    }
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
    Format2Core core;
    {
      HeaderCalls calls(pool_, header_oid_);
      const auto size = calls.start("get_size", encode_snap_id(snap_head));
      const auto features =
          calls.start("get_features", encode_get_features(snap_head, true));
      const auto prefix = calls.start("get_object_prefix");
      const auto snapc = calls.start("get_snapcontext");

      const Format2Features f = decode_get_features(calls.output(features));
      check_features(f);
      core.features = f.features;
      core.incompatible = f.incompatible;
      const Format2Size s = decode_get_size(calls.output(size));
      core.size = s.size;
      core.order = s.order;
      core.object_prefix = decode_get_object_prefix(calls.output(prefix));
      core.snapc = decode_get_snapcontext(calls.output(snapc));
    }
    if (!spec_.snapshot.empty()) find_snapshot(core.snapc);

    HeaderCalls calls(pool_, header_oid_);
    if ((core.features & feature_striping) != 0)
      core.striping = decode_get_stripe_unit_count(
          calls.output(calls.start("get_stripe_unit_count")));
    if ((core.features & feature_data_pool) != 0) {
      core.data_pool =
          decode_get_data_pool(calls.output(calls.start("get_data_pool")));
      if (core.data_pool)
        data_store_ = pool_.cluster->open_pool(
            *core.data_pool, spec_.name_space, Cluster::Purpose::data);
    }
    check_parent(calls);
    return core;
  }

  void find_snapshot(const SnapContext& snapc) {
    for (const Format2Snapshot& s :
         read_snapshots(pool_, header_oid_, snapc))
      if (s.kind == Format2SnapshotKind::user && s.name == spec_.snapshot) {
        snap_ = s.id;
        return;
      }
    throw Error(ENOENT, "image '" + spec_.image + "' has no snapshot '" +
                            spec_.snapshot + "'");
  }

  /// Objects that a clone does not have are its parent's, not zeros.
  void check_parent(HeaderCalls& calls) const {
    const auto spec = calls.start("parent_get");
    const auto at =
        calls.start("parent_overlap_get", encode_snap_id(snap_));
    bool has_parent;
    if (calls.result(spec) == -EOPNOTSUPP) {
      // OSDs before Nautilus.
      has_parent = decode_get_parent(
                       calls.output(calls.start("get_parent",
                                                encode_snap_id(snap_))))
                       .has_value();
    } else {
      has_parent = decode_parent_get(calls.output(spec)).has_value() &&
                   decode_parent_overlap_get(calls.output(at)).value_or(0) > 0;
    }
    if (has_parent)
      throw Error(ENOTSUP,
                  "image '" + spec_.image +
                      "' is a clone: reading through a parent (feature "
                      "layering) is not supported; `rbd flatten` makes it "
                      "independent");
  }

  ImageTraits make_traits() const {
    const std::uint64_t object_size = std::uint64_t{1} << core_.order;
    const auto [unit, count] =
        core_.striping.value_or(std::pair<std::uint64_t, std::uint64_t>{
            object_size, 1});
    return {.name = spec_.text(),
            .format = "RBD format 2",
            .can_write = false,
            .layout = Layout(object_size, unit, count),
            .object_prefix = core_.object_prefix,
            .name_digits = 16,
            .header_oid = header_oid_,
            .details = core_.features == 0
                           ? std::string("no features")
                           : "features " + feature_names(core_.features)};
  }

  const Pool pool_;
  const ImageSpec spec_;
  const std::string header_oid_;
  std::shared_ptr<ObjectStore> data_store_;
  SnapId snap_ = snap_head;
  const Format2Core core_;
  const ImageTraits traits_;
};

}  // namespace

bool exists_format2(const Pool& pool, const std::string& image) {
  return object_exists(pool, format2_id_oid(image));
}

std::unique_ptr<ImageFormat> open_format2(const Pool& pool,
                                          const ImageSpec& spec,
                                          const OpenOptions& /*options*/) {
  std::string id;
  if (!read_id(pool, spec.image, &id)) return nullptr;
  return std::make_unique<Format2>(pool, spec, id);
}

void list_format2(const Pool& pool, Listing& into) {
  // As many as librbd asks for at a time (RBD_MAX_KEYS_READ is 64, the
  // object class allows more).
  constexpr std::uint64_t page = 1024;
  std::string last;
  for (;;) {
    std::string bytes;
    const auto pending =
        pool.store->exec(std::string(rbd_directory_oid), rbd_class,
                         "dir_list", encode_list(last, page), &bytes);
    const int r = pending->wait_for(pool.timeout());
    if (r == -ENOENT) return;
    check(r, "cannot list rbd_directory");
    const auto images = decode_dir_list(bytes);
    for (const auto& [name, id] : images) {
      std::vector<std::string>& snapshots = into[name];
      try {
        const std::string oid = format2_header_oid(id);
        HeaderCalls calls(pool, oid);
        const SnapContext snapc = decode_get_snapcontext(
            calls.output(calls.start("get_snapcontext")));
        for (const Format2Snapshot& s : read_snapshots(pool, oid, snapc))
          if (s.kind == Format2SnapshotKind::user)
            snapshots.push_back(s.name);
      } catch (const Error&) {
        // Listed without snapshots; opening it says what is wrong.
      }
    }
    if (images.size() < page) return;
    last = images.rbegin()->first;
  }
}

std::vector<std::string> list_namespaces(const Pool& pool) {
  constexpr std::uint64_t page = 1024;
  std::vector<std::string> all;
  for (;;) {
    std::string bytes;
    const auto pending = pool.store->exec(
        std::string(rbd_namespace_oid), rbd_class, "namespace_list",
        encode_list(all.empty() ? "" : all.back(), page), &bytes);
    const int r = pending->wait_for(pool.timeout());
    if (r == -ENOENT) return all;
    check(r, "cannot list rbd_namespace");
    const auto names = decode_namespace_list(bytes);
    all.insert(all.end(), names.begin(), names.end());
    if (names.size() < page) return all;
  }
}

}  // namespace nbdrados
