// SPDX-License-Identifier: BSD-3-Clause

#include "rbd/format2_create.hpp"

#include <cstddef>

#include "rbd/encoding.hpp"

namespace nbdrados {

namespace {

/// RBD_MAX_IMAGE_ID_LENGTH (ceph: src/include/rbd_types.h).
constexpr std::size_t id_max = 14;

/// ceph: src/cls/rbd/cls_rbd_types.h, DIRECTORY_STATE_READY
constexpr std::uint8_t directory_ready = 0;

std::string hex(std::uint64_t n) { return numbered_oid("", n, 1).substr(1); }

}  // namespace

std::string format2_image_id(std::uint64_t client_id, std::uint32_t random) {
  const std::string id = hex(client_id) + hex(random);
  return id.size() <= id_max ? id : id.substr(id.size() - id_max);
}

std::string format2_object_prefix(std::string_view id,
                                  std::optional<std::int64_t> header_pool) {
  std::string prefix = "rbd_data.";
  if (header_pool) prefix += std::to_string(*header_pool) + ".";
  prefix += id;
  return prefix;
}

std::string encode_create(const Format2NewHeader& header) {
  Encoder out;
  out.u64(header.size)
      .u8(static_cast<std::uint8_t>(header.order))
      .u64(header.features)
      .string(header.object_prefix)
      .i64(header.data_pool);
  return out.take();
}

std::string encode_set_stripe_unit_count(std::uint64_t unit,
                                         std::uint64_t count) {
  Encoder out;
  out.u64(unit).u64(count);
  return out.take();
}

std::string encode_set_id(std::string_view id) {
  Encoder out;
  out.string(id);
  return out.take();
}

std::string encode_dir_add_image(std::string_view image,
                                 std::string_view id) {
  Encoder out;
  out.string(image).string(id);
  return out.take();
}

std::string encode_dir_remove_image(std::string_view image,
                                    std::string_view id) {
  return encode_dir_add_image(image, id);
}

std::string encode_dir_rename_image(std::string_view from,
                                    std::string_view to,
                                    std::string_view id) {
  Encoder out;
  out.string(from);
  out.string(to);
  out.string(id);
  return out.take();
}

std::string encode_dir_state_ready() {
  Encoder out;
  out.u8(directory_ready);
  return out.take();
}

std::uint64_t decode_get_all_features(std::string_view bytes) {
  Decoder in(bytes, "get_all_features");
  return in.u64("features");
}

}  // namespace nbdrados
