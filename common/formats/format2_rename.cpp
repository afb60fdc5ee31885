// SPDX-License-Identifier: BSD-3-Clause
//
// Another name for an image of RBD format 2, and removing a new one, in the
// order of librbd (ceph: src/librbd/operation/RenameRequest.cc,
// src/librbd/image/RemoveRequest.cc).
//
// What is visible when renaming OLD to NEW ends after a step:
//
//  1. rbd_id.NEW holds the id.  Both names open the image, `rbd ls` shows OLD.
//     Nobody can create NEW.
//  2. rbd_directory has NEW instead of OLD.  Both names still open it.
//  3. rbd_id.OLD is gone: done.
//
// Doing it again goes on from each of them.
//
// What is visible when removing ends after a step:
//
//  1. The object map is gone.  Who takes the lock finds no map, and flags it as
//     invalid.
//  2. The header is gone: nobody can open the image.
//  3. rbd_id.NAME is gone.  `rbd ls` shows NAME.
//  4. rbd_directory does not have it: done.
//
// `rbd rm` goes on from each of them.

#include <cerrno>
#include <cstdint>
#include <string>
#include <string_view>

#include "formats/formats.hpp"
#include "rados/error.hpp"
#include "rbd/format2.hpp"
#include "rbd/format2_create.hpp"

namespace nbdrados {

namespace {

/// Bytes of rbd_id.NAME, at most.
constexpr std::uint64_t id_limit = 4096;

/// -ENOENT, or 0 and the content of rbd_id.NAME.
int read_id_object(const Pool& pool, const std::string& name,
                   std::string* bytes) {
  const std::string oid = format2_id_oid(name);
  const int r = pool.wait(pool.store->read_all(oid, id_limit, bytes));
  if (r != -ENOENT) check(r, "cannot read object " + oid);
  return r == -ENOENT ? r : 0;
}

int remove_object(const Pool& pool, const std::string& oid) {
  WriteOp op;
  op.remove();
  const int r = pool.wait(pool.store->write(oid, op, {}));
  return r == -ENOENT ? 0 : r;
}

void change_directory(const Pool& pool, std::string_view method,
                      const std::string& input, int harmless) {
  WriteOp op;
  op.exec(rbd_class, method, input);
  const int r =
      pool.wait(pool.store->write(std::string(rbd_directory_oid), op, {}));
  if (r != harmless) check(r, "cannot change rbd_directory");
}

}  // namespace

void rename_format2(const Pool& pool, const ImageSpec& from,
                    const std::string& to) {
  std::string content;
  if (read_id_object(pool, from.image, &content) == -ENOENT)
    fail(ENOENT, "image '" + from.image + "'");
  const std::string id = decode_image_id(content);

  const ConstPiece piece{content.data(), content.size()};
  WriteOp op;
  op.create().write_full({&piece, 1});
  const std::string oid = format2_id_oid(to);
  const int r = pool.wait(pool.store->write(oid, op, {}));
  if (r == -EEXIST) {
    std::string other;
    (void)read_id_object(pool, to, &other);
    if (other != content)
      throw Error(EEXIST, "image '" + to + "' exists already in pool '" +
                              from.pool + "'");
  } else {
    check(r, "cannot create object " + oid);
  }

  std::string at_new_name;
  const int known = pool.call(rbd_directory_oid, "dir_get_id",
                              encode_dir_get_id(to), &at_new_name);
  if (known != -ENOENT) check(known, "cannot read rbd_directory");
  if (known == -ENOENT || decode_image_id(at_new_name) != id)
    change_directory(pool, "dir_rename_image",
                     encode_dir_rename_image(from.image, to, id), 0);
  // As librbd: the image has its name.
  (void)remove_object(pool, format2_id_oid(from.image));
}

void remove_empty_format2(const Pool& pool, const ImageSpec& spec,
                          const std::string& id) {
  for (const std::string& oid :
       {format2_object_map_oid(id, snap_head), format2_header_oid(id),
        format2_id_oid(spec.image)})
    check(remove_object(pool, oid), "cannot remove object " + oid);
  change_directory(pool, "dir_remove_image",
                   encode_dir_remove_image(spec.image, id), -ENOENT);
}

}  // namespace nbdrados
