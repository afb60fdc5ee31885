// SPDX-License-Identifier: BSD-3-Clause

#include "rbd/object_map.hpp"

#include <array>
#include <cstddef>
#include <stdexcept>

#include "rbd/encoding.hpp"

namespace nbdrados {

namespace {

constexpr std::size_t crc_block = object_map_block / 4;  // bytes

constexpr std::array<std::uint32_t, 256> make_crc_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < table.size(); ++i) {
    std::uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit)
      crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78U : 0U);
    table[i] = crc;
  }
  return table;
}

constexpr std::array<std::uint32_t, 256> crc_table = make_crc_table();

// CRC-32C as Ceph's bufferlist::crc32c(0) has it.
std::uint32_t crc32c(std::string_view bytes) noexcept {
  std::uint32_t crc = 0;
  for (const char c : bytes)
    crc = (crc >> 8) ^ crc_table[(crc ^ static_cast<unsigned char>(c)) & 0xff];
  return crc;
}

std::uint64_t bytes_for(std::uint64_t objects) { return (objects + 3) / 4; }

void check_footer(Decoder in, std::string_view header, std::string_view data) {
  if (in.u32("header checksum") != crc32c(header))
    in.fail("header checksum", "is wrong");
  const std::size_t blocks = in.count(4, "count of data checksums");
  if (blocks != (data.size() + crc_block - 1) / crc_block)
    in.fail("count of data checksums",
            std::to_string(blocks) + " is wrong for " +
                std::to_string(data.size()) + " bytes of data");
  for (std::size_t at = 0; at < data.size(); at += crc_block)
    if (in.u32("data checksum") != crc32c(data.substr(at, crc_block)))
      in.fail("data checksum",
              "of block " + std::to_string(at / crc_block) + " is wrong");
  in.expect_end();
}

}  // namespace

ObjectStates::ObjectStates(std::uint64_t objects, ObjectState state)
    : objects_(objects) {
  if (objects > object_map_max)
    throw std::length_error("too many objects for an object map");
  // The same state four times.
  const unsigned fill = static_cast<unsigned>(state) * 0x55U;
  bits_.assign(bytes_for(objects),
               static_cast<char>(static_cast<unsigned char>(fill)));
  for (std::uint64_t i = objects; i < bits_.size() * 4; ++i)
    set(i, ObjectState::nonexistent);
}

ObjectStates::ObjectStates(std::uint64_t objects, std::string bits)
    : objects_(objects), bits_(std::move(bits)) {
  if (objects > object_map_max || bits_.size() != bytes_for(objects))
    throw std::length_error("an object map with the wrong number of bytes");
  for (std::uint64_t i = objects; i < bits_.size() * 4; ++i)
    set(i, ObjectState::nonexistent);
}

void ObjectStates::set(std::uint64_t object_no, ObjectState state) noexcept {
  char& at = bits_[object_no / 4];
  const unsigned others =
      static_cast<unsigned char>(at) & ~(3U << shift(object_no));
  at = static_cast<char>(static_cast<unsigned char>(
      others | static_cast<unsigned>(state) << shift(object_no)));
}

ObjectStates decode_object_map(std::string_view bytes) {
  Decoder in(bytes, "object map");
  const std::string_view header_bytes = in.blob("header");
  Decoder header_blob(header_bytes, "object map");
  Decoder header = header_blob.frame(1, "header");
  const std::uint64_t objects = header.u64("number of objects");
  if (objects > object_map_max)
    header.fail("number of objects", std::to_string(objects) + " is above " +
                                         std::to_string(object_map_max));
  const std::string_view data = in.bytes(bytes_for(objects), "data");
  const std::string_view footer = in.blob("footer");
  if (!footer.empty())
    check_footer(Decoder(footer, "object map"), header_bytes, data);
  in.expect_end();
  return ObjectStates(objects, std::string(data));
}

std::size_t object_map_footer_offset(std::string_view bytes) {
  Decoder in(bytes, "object map");
  Decoder header_blob(in.blob("header"), "object map");
  const std::uint64_t objects =
      header_blob.frame(1, "header").u64("number of objects");
  const std::string_view data = in.bytes(bytes_for(objects), "data");
  return static_cast<std::size_t>(data.data() + data.size() - bytes.data());
}

std::string encode_object_map(const ObjectStates& states,
                              ObjectMapFooter footer) {
  Encoder header;
  header.frame(1, 1, [&] { header.u64(states.size()); });
  const std::string_view data = states.bits();
  Encoder checksums;
  if (footer == ObjectMapFooter::checksums) {
    checksums.u32(crc32c(header.str()));
    checksums.u32(static_cast<std::uint32_t>((data.size() + crc_block - 1) /
                                             crc_block));
    for (std::size_t at = 0; at < data.size(); at += crc_block)
      checksums.u32(crc32c(data.substr(at, crc_block)));
  }
  Encoder out;
  out.string(header.str()).bytes(data).string(checksums.str());
  return out.take();
}

std::string encode_object_map_update(std::uint64_t first, std::uint64_t end,
                                     ObjectState state,
                                     std::optional<ObjectState> current) {
  Encoder out;
  out.u64(first).u64(end).u8(static_cast<std::uint8_t>(state));
  out.u8(current ? 1 : 0);
  if (current) out.u8(static_cast<std::uint8_t>(*current));
  return out.take();
}

std::string encode_object_map_resize(std::uint64_t objects,
                                     ObjectState state) {
  Encoder out;
  out.u64(objects).u8(static_cast<std::uint8_t>(state));
  return out.take();
}

}  // namespace nbdrados
