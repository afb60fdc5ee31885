// SPDX-License-Identifier: BSD-3-Clause
//
// RBD format 1: everything about the image is in the object NAME.rbd.

#include <algorithm>
#include <bit>
#include <cerrno>
#include <random>

#include "formats/formats.hpp"
#include "rados/error.hpp"
#include "rbd/directory.hpp"
#include "rbd/format1.hpp"
#include "rbd/format2.hpp"

namespace nbdrados {

namespace {

/// A header of 500 snapshots with long names is 60 KiB.
constexpr std::uint64_t header_limit = 8 << 20;

/// False where the image has no header.
bool read_header(const Pool& pool, const std::string& image,
                 Format1Header* header) {
  std::string bytes;
  const std::string oid = format1_header_oid(image);
  const int r = pool.wait(pool.store->read_all(oid, header_limit, &bytes));
  if (r == -ENOENT) return false;
  check(r, "cannot read header object " + oid);
  try {
    *header = decode_format1(bytes);
  } catch (const Error& e) {
    throw Error(e.code(), "header object " + oid + ": " + e.what());
  }
  return true;
}

class Format1 final : public ImageFormat {
 public:
  Format1(Pool pool, const ImageIdentity& identity, ImageSpec spec,
          const Format1Header& header)
      : pool_(std::move(pool)),
        spec_(std::move(spec)),
        header_(header),
        snap_(identity.snap),
        traits_{.name = spec_.text(),
                .format = "RBD format 1",
                .layout = Layout(std::uint64_t{1} << header.order,
                                 std::uint64_t{1} << header.order, 1),
                .object_prefix = header.object_prefix,
                .name_digits = 12,
                .header_oid = format1_header_oid(spec_.image),
                .details = "no features"} {}

  const ImageTraits& traits() const override { return traits_; }

  View load() override {
    Format1Header now;
    if (!read_header(pool_, spec_.image, &now))
      throw Error(ENOENT, traits_.name + ": the image has been deleted");
    if (now.object_prefix != header_.object_prefix ||
        now.order != header_.order)
      throw Error(EIO, traits_.name +
                           ": the image has been replaced by another of the "
                           "same name");
    View view;
    view.size = now.size;
    view.snapc = now.snap_context();
    if (snap_ != snap_head) {
      const auto s = std::find_if(
          now.snapshots.begin(), now.snapshots.end(),
          [this](const Format1Snapshot& each) { return each.id == snap_; });
      if (s == now.snapshots.end())
        throw Error(EIO, traits_.name + ": the snapshot has been deleted");
      view.size = s->size;
      view.snap = snap_;
    }
    return view;
  }

  ObjectStore& header_store() override { return *pool_.store; }
  ObjectStore& data_store() override { return *pool_.data; }

 private:
  const Pool pool_;
  const ImageSpec spec_;
  const Format1Header header_;
  const SnapId snap_;
  const ImageTraits traits_;
};

SnapId find_snapshot(const Format1Header& header, const std::string& image,
                     const std::string& name) {
  for (const Format1Snapshot& s : header.snapshots)
    if (s.name == name) return s.id;
  throw Error(ENOENT, "image '" + image + "' has no snapshot '" + name + "'");
}

}  // namespace

bool exists_format1(const Pool& pool, const std::string& image) {
  return object_exists(pool, format1_header_oid(image));
}

std::optional<ImageIdentity> resolve_format1(const Pool& pool,
                                             const ImageSpec& spec) {
  Format1Header header;
  if (!read_header(pool, spec.image, &header)) return std::nullopt;
  ImageIdentity identity;
  identity.image = spec.image;
  identity.prefix = header.object_prefix;
  if (!spec.snapshot.empty())
    identity.snap = find_snapshot(header, spec.image, spec.snapshot);
  if (!spec.since.empty())
    identity.since = find_snapshot(header, spec.image, spec.since);
  return identity;
}

std::unique_ptr<ImageFormat> open_format1(const Pool& pool,
                                          const ImageIdentity& identity,
                                          const ImageSpec& spec,
                                          const OpenOptions& /*options*/) {
  Format1Header header;
  if (!read_header(pool, identity.image, &header) ||
      header.object_prefix != identity.prefix)
    throw Error(ENOENT, spec.text() + ": the image has just been removed");
  return std::make_unique<Format1>(pool, identity, spec, header);
}

// What is visible when:
//
//  1. rbd_directory names the image; no header.  `rbd ls` shows a name that
//     cannot be opened; creating it again completes it.
//  2. The header exists: the image is there, all zeros.
//
// librbd uses the same order (ceph: src/librbd/internal.cc, create_v1).  The
// header is made exclusively, so of two that create the same name one fails.
void create_format1(const Pool& pool, const ImageSpec& spec,
                    const CreateOptions& options) {
  Format1Header header;
  header.size = options.size;
  header.order = static_cast<unsigned>(
      std::countr_zero(options.object_size.value_or(4 << 20)));
  // Unique in the pool: the id of this client and a random number, in the
  // form of librbd's.
  std::random_device random;
  const auto hex = [](std::uint64_t n, unsigned digits) {
    return numbered_oid("", n, digits).substr(1);
  };
  header.object_prefix = "rb.0." + hex(pool.cluster->client_id(), 1) + "." +
                         hex(random() & 0x7fffffff, 8);
  const std::string bytes = encode_format1(header);

  const std::string update = encode_tmap_set(spec.image);
  WriteOp directory;
  directory.tmap_update(update);
  const int registration = pool.wait(
      pool.store->write(std::string(rbd_directory_oid), directory, {}));
  if (registration == -EOPNOTSUPP)
    throw Error(ENOTSUP, "an erasure-coded pool cannot hold an image's "
                         "metadata, only a data pool can be erasure-coded");
  check(registration, "cannot register the image in rbd_directory");

  const ConstPiece piece{bytes.data(), bytes.size()};
  WriteOp write;
  write.create().write(0, {&piece, 1});
  const std::string oid = format1_header_oid(spec.image);
  const int r = pool.wait(pool.store->write(oid, write, {}));
  if (r == -EEXIST)
    throw Error(EEXIST, "image '" + spec.image + "' exists already");
  check(r, "cannot create header object " + oid);
}

}  // namespace nbdrados
