// SPDX-License-Identifier: BSD-3-Clause

#include "rbd/object_map.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <stdexcept>

#include "rbd/encoding.hpp"

namespace nbdrados {

namespace {

constexpr std::size_t crc_block = StateBlock::bytes;
constexpr std::string_view what = "object map";

/// Table t has the checksum of each byte with t zeros behind it.
constexpr std::array<std::array<std::uint32_t, 256>, 8> make_crc_tables() {
  std::array<std::array<std::uint32_t, 256>, 8> tables{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit)
      crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78U : 0U);
    tables[0][i] = crc;
  }
  for (std::size_t t = 1; t < tables.size(); ++t)
    for (std::size_t i = 0; i < 256; ++i) {
      const std::uint32_t crc = tables[t - 1][i];
      tables[t][i] = (crc >> 8) ^ tables[0][crc & 0xff];
    }
  return tables;
}

constexpr std::array<std::array<std::uint32_t, 256>, 8> crc_tables =
    make_crc_tables();

// CRC-32C as Ceph's bufferlist::crc32c(0) has it.  Eight bytes at a time, or it
// would be the longest part of reading a map.
std::uint32_t crc32c(std::string_view bytes) noexcept {
  std::uint32_t crc = 0;
  const auto byte = [&](std::size_t i) {
    return static_cast<unsigned char>(bytes[i]);
  };
  std::size_t at = 0;
  for (; bytes.size() - at >= 8; at += 8) {
    std::uint32_t next = 0;
    for (std::size_t i = 0; i < 4; ++i) {
      next ^= crc_tables[7 - i][(crc >> 8 * i & 0xff) ^ byte(at + i)];
      next ^= crc_tables[3 - i][byte(at + 4 + i)];
    }
    crc = next;
  }
  for (; at < bytes.size(); ++at)
    crc = (crc >> 8) ^ crc_tables[0][(crc ^ byte(at)) & 0xff];
  return crc;
}

/// Whether all bytes are the same.
bool one_byte(std::string_view bytes) noexcept {
  return bytes.empty() ||
         std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0;
}

/// The checksum of a block of data.
std::uint32_t block_checksum(std::string_view bytes) noexcept {
  // Most of a large map; so many zeros as you like have this checksum.
  if (bytes[0] == 0 && one_byte(bytes)) return 0;
  return crc32c(bytes);
}

std::uint64_t bytes_for(std::uint64_t objects) { return (objects + 3) / 4; }

constexpr std::uint64_t word_of(ObjectState state) noexcept {
  return static_cast<std::uint64_t>(state) * 0x5555'5555'5555'5555U;
}

/// The number of objects; `bytes`: what the header's checksum is of.
std::uint64_t read_header(Decoder& in, std::string_view* bytes) {
  *bytes = in.blob("header");
  Decoder blob(*bytes, what);
  Decoder header = blob.frame(1, "header");
  const std::uint64_t objects = header.u64("number of objects");
  if (objects > object_map_max)
    header.fail("number of objects", std::to_string(objects) + " is above " +
                                         std::to_string(object_map_max));
  return objects;
}

/// What is before the checksums of the data.
void check_counts(Decoder& in, std::uint32_t header_checksum,
                  std::size_t data_size) {
  if (in.u32("header checksum") != header_checksum)
    in.fail("header checksum", "is wrong");
  const std::uint32_t blocks = in.u32("count of data checksums");
  if (blocks != (data_size + crc_block - 1) / crc_block)
    in.fail("count of data checksums", std::to_string(blocks) +
                                           " is wrong for " +
                                           std::to_string(data_size) +
                                           " bytes of data");
}

void check_footer(Decoder in, std::string_view header, std::string_view data) {
  check_counts(in, crc32c(header), data.size());
  for (std::size_t at = 0; at < data.size(); at += crc_block)
    if (in.u32("data checksum") != block_checksum(data.substr(at, crc_block)))
      in.fail("data checksum",
              "of block " + std::to_string(at / crc_block) + " is wrong");
  in.expect_end();
}

}  // namespace

// States ----------------------------------------------------------------------

constinit StateBlock StateBlock::uniform_blocks[4] = {
    {word_of(ObjectState::nonexistent), std::make_index_sequence<words>()},
    {word_of(ObjectState::exists), std::make_index_sequence<words>()},
    {word_of(ObjectState::pending), std::make_index_sequence<words>()},
    {word_of(ObjectState::exists_clean), std::make_index_sequence<words>()}};

StateBlock::StateBlock(const StateBlock& other) noexcept {
  for (std::size_t i = 0; i < words; ++i)
    words_[i].store(other.words_[i].load(std::memory_order_relaxed),
                    std::memory_order_relaxed);
}

StateBlock* StateBlock::uniform(ObjectState state) noexcept {
  return &uniform_blocks[static_cast<std::size_t>(state)];
}

bool StateBlock::is_uniform() const noexcept {
  return std::any_of(std::begin(uniform_blocks), std::end(uniform_blocks),
                     [this](const StateBlock& b) { return &b == this; });
}

bool StateBlock::operator==(const StateBlock& other) const noexcept {
  if (this == &other) return true;
  return std::equal(words_.begin(), words_.end(), other.words_.begin());
}

std::uint64_t StateBlock::end_of_absent(std::uint64_t object_no,
                                        std::uint64_t end) const noexcept {
  while (object_no < end) {
    const std::uint64_t rest =
        word(object_no).load(std::memory_order_acquire)
        << 2 * (object_no % per_word);
    const std::uint64_t next = (object_no / per_word + 1) * per_word;
    if (rest != 0)
      return std::min(end, object_no + static_cast<unsigned>(
                                           std::countl_zero(rest)) / 2);
    object_no = next;
  }
  return end;
}

ObjectStates::ObjectStates(std::uint64_t objects, ObjectState state) {
  grow(objects);
  if (state != ObjectState::nonexistent) set(0, objects, state);
}

void ObjectStates::grow(std::uint64_t objects) {
  if (objects > object_map_max)
    throw std::length_error("too many objects for an object map");
  const std::size_t before = blocks_.size();
  blocks_.resize((objects + object_map_block - 1) / object_map_block);
  for (std::size_t i = before; i < blocks_.size(); ++i)
    blocks_[i].reset(StateBlock::uniform(ObjectState::nonexistent));
  objects_ = objects;
}

ObjectStates::ObjectStates(std::uint64_t objects, std::string_view bits)
    : ObjectStates(objects) {
  if (bits.size() != bytes_for(objects))
    throw std::length_error("an object map with the wrong number of bytes");
  for (std::uint64_t block = 0; block < blocks_.size(); ++block)
    set_block(block, bits.substr(block * crc_block, crc_block));
}

ObjectStates::ObjectStates(const ObjectStates& other)
    : objects_(other.objects_) {
  blocks_.reserve(other.blocks_.size());
  for (const auto& block : other.blocks_)
    blocks_.emplace_back(block->is_uniform() ? block.get()
                                             : new StateBlock(*block));
}

ObjectStates& ObjectStates::operator=(ObjectStates other) noexcept {
  objects_ = other.objects_;
  blocks_.swap(other.blocks_);
  return *this;
}

std::uint64_t ObjectStates::end_of_run(
    std::uint64_t object_no) const noexcept {
  const std::uint64_t block = object_no / object_map_block;
  return blocks_[block]->is_uniform()
             ? std::min(objects_, (block + 1) * object_map_block)
             : object_no + 1;
}

std::uint64_t ObjectStates::end_of_absent(std::uint64_t object_no,
                                          std::uint64_t end) const noexcept {
  end = std::max(object_no, std::min(end, objects_));
  while (object_no < end) {
    const std::uint64_t block = object_no / object_map_block;
    const std::uint64_t stop = std::min(end, (block + 1) * object_map_block);
    object_no = blocks_[block]->end_of_absent(object_no, stop);
    if (object_no != stop) break;
  }
  return object_no;
}

/// The block, for changing it.
StateBlock& ObjectStates::own(std::uint64_t block) {
  auto& at = blocks_[block];
  if (at->is_uniform()) at.reset(new StateBlock(*at));
  return *at;
}

void ObjectStates::set(std::uint64_t object_no, ObjectState state) {
  own(object_no / object_map_block).set(object_no, state);
}

void ObjectStates::set(std::uint64_t first, std::uint64_t end,
                       ObjectState state) {
  while (first < end) {
    const std::uint64_t block = first / object_map_block;
    // What is behind the last object is 0, so its block is no uniform one.
    if (first % object_map_block == 0 && end - first >= object_map_block) {
      blocks_[block].reset(StateBlock::uniform(state));
      first += object_map_block;
      continue;
    }
    const std::uint64_t stop = std::min(end, (block + 1) * object_map_block);
    for (StateBlock& to = own(block); first < stop; ++first)
      to.set(first, state);
  }
}

void ObjectStates::set_block(std::uint64_t block, std::string_view bits) {
  const std::uint64_t first = block * object_map_block;
  const std::uint64_t in_block = std::min(object_map_block, objects_ - first);
  if (bits.size() != bytes_for(in_block))
    throw std::length_error("a block of the wrong number of bytes");
  const auto byte = static_cast<unsigned char>(bits[0]);
  if (in_block == object_map_block || byte == 0)
    for (auto& uniform : StateBlock::uniform_blocks)
      if (byte == (uniform.words_[0] & 0xff) && one_byte(bits)) {
        blocks_[block].reset(&uniform);
        return;
      }
  StateBlock& to = own(block);
  for (std::size_t i = 0; i < StateBlock::words; ++i) {
    std::uint64_t word = 0;
    for (std::size_t at = 8 * i; at < 8 * i + 8; ++at)
      word = word << 8 | (at < bits.size()
                              ? static_cast<unsigned char>(bits[at])
                              : 0U);
    to.words_[i].store(word, std::memory_order_relaxed);
  }
  for (std::uint64_t n = in_block; n < bits.size() * 4; ++n)
    to.set(n, ObjectState::nonexistent);
}

std::string ObjectStates::bits() const {
  std::string out;
  out.reserve(blocks_.size() * crc_block);
  for (const auto& block : blocks_)
    for (const auto& word : block->words_)
      for (int shift = 56; shift >= 0; shift -= 8)
        out.push_back(static_cast<char>(
            static_cast<unsigned char>(word.load() >> shift & 0xff)));
  out.resize(bytes_for(objects_));
  return out;
}

std::vector<StateBlockPointer> ObjectStates::take_blocks() noexcept {
  objects_ = 0;
  return std::exchange(blocks_, {});
}

bool ObjectStates::operator==(const ObjectStates& other) const noexcept {
  return objects_ == other.objects_ &&
         std::equal(blocks_.begin(), blocks_.end(), other.blocks_.begin(),
                    [](const auto& a, const auto& b) { return *a == *b; });
}

// Encodings -------------------------------------------------------------------

ObjectStates decode_object_map(std::string_view bytes) {
  Decoder in(bytes, what);
  std::string_view header;
  const std::uint64_t objects = read_header(in, &header);
  const std::string_view data = in.bytes(bytes_for(objects), "data");
  const std::string_view footer = in.blob("footer");
  if (!footer.empty()) check_footer(Decoder(footer, what), header, data);
  in.expect_end();
  return ObjectStates(objects, data);
}

ObjectMapPieces::ObjectMapPieces(std::string_view start) {
  Decoder in(start, what);
  std::string_view header;
  objects_ = read_header(in, &header);
  data_at_ = start.size() - in.remaining();
  header_checksum_ = crc32c(header);
}

ObjectMapPieces::Part ObjectMapPieces::data(std::uint64_t first,
                                            std::uint64_t end) const noexcept {
  const std::uint64_t stop = std::min(end * crc_block, bytes_for(objects_));
  return {data_at_ + first * crc_block, stop - first * crc_block};
}

ObjectMapPieces::Part ObjectMapPieces::footer() const noexcept {
  return {data_at_ + bytes_for(objects_), 3 * sizeof(std::uint32_t)};
}

ObjectMapPieces::Part ObjectMapPieces::checksums(
    std::uint64_t first, std::uint64_t end) const noexcept {
  const Part before = footer();
  return {before.offset + before.length + first * sizeof(std::uint32_t),
          (end - first) * sizeof(std::uint32_t)};
}

bool ObjectMapPieces::check_footer(std::string_view footer) const {
  Decoder in(footer, what);
  const std::uint32_t length = in.u32("footer");
  if (length == 0) return false;
  check_counts(in, header_checksum_, bytes_for(objects_));
  if (length != (2 + blocks()) * sizeof(std::uint32_t))
    in.fail("footer", "has " + std::to_string(length) + " bytes");
  return true;
}

bool ObjectMapPieces::put(ObjectStates& states, std::uint64_t first,
                          std::string_view data,
                          std::string_view checksums) const {
  Decoder in(checksums, what);
  for (; !data.empty(); ++first) {
    const std::string_view bits = data.substr(0, crc_block);
    if (in.u32("data checksum") != block_checksum(bits)) return false;
    states.set_block(first, bits);
    data.remove_prefix(bits.size());
  }
  return true;
}

std::string encode_object_map(const ObjectStates& states,
                              ObjectMapFooter footer) {
  Encoder header;
  header.frame(1, 1, [&] { header.u64(states.size()); });
  const std::string bits = states.bits();
  const std::string_view data = bits;
  Encoder checksums;
  if (footer == ObjectMapFooter::checksums) {
    checksums.u32(crc32c(header.str()));
    checksums.u32(static_cast<std::uint32_t>((data.size() + crc_block - 1) /
                                             crc_block));
    for (std::size_t at = 0; at < data.size(); at += crc_block)
      checksums.u32(block_checksum(data.substr(at, crc_block)));
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
