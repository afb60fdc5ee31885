// SPDX-License-Identifier: BSD-3-Clause

#include "rbd/directory.hpp"

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <utility>

#include "rbd/encoding.hpp"

namespace nbdrados {

namespace {

// ceph: src/include/rados.h, CEPH_OSD_TMAP_*
constexpr std::uint8_t tmap_header = 'h';
constexpr std::uint8_t tmap_set = 's';
constexpr std::uint8_t tmap_create = 'c';
constexpr std::uint8_t tmap_remove = 'r';

std::string command(std::uint8_t code, std::string_view key,
                    std::string_view value) {
  Encoder out;
  out.u8(code).string(key).string(value);
  return out.take();
}

}  // namespace

TrivialMap decode_trivial_map(std::string_view bytes) {
  TrivialMap out;
  if (bytes.empty()) return out;
  Decoder in(bytes, "trivial map");
  out.header = in.string("header");
  // Two lengths an entry.
  for (std::size_t n = in.count(8, "count"); n > 0; --n) {
    std::string key = in.name("key");
    std::string value = in.string("value");
    const auto [at, is_new] =
        out.entries.insert_or_assign(std::move(key), std::move(value));
    if (!is_new) in.fail("key", in_quotes(at->first) + " occurs twice");
  }
  return out;
}

std::string encode_trivial_map(const TrivialMap& map) {
  if (map.entries.size() > UINT32_MAX)
    throw std::length_error("too many entries to encode");
  Encoder out;
  out.string(map.header).u32(static_cast<std::uint32_t>(map.entries.size()));
  for (const auto& [key, value] : map.entries) out.string(key).string(value);
  return out.take();
}

std::string encode_tmap_set(std::string_view key, std::string_view value) {
  return command(tmap_set, key, value);
}

std::string encode_tmap_create(std::string_view key, std::string_view value) {
  return command(tmap_create, key, value);
}

std::string encode_tmap_remove(std::string_view key) {
  Encoder out;
  out.u8(tmap_remove).string(key);
  return out.take();
}

std::string encode_tmap_header(std::string_view header) {
  Encoder out;
  out.u8(tmap_header).string(header);
  return out.take();
}

}  // namespace nbdrados
