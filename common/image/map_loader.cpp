// SPDX-License-Identifier: BSD-3-Clause

#include "image/map_loader.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <utility>

#include "rados/error.hpp"

namespace nbdrados {

namespace {

constexpr std::uint64_t blocks_in_piece = map_piece / StateBlock::bytes;
/// What is in flight; enough to keep an OSD busy while pieces are decoded.
constexpr std::size_t pieces_in_flight = 3;
/// So often may a piece be changed while it is read.
constexpr int rounds = 8;

/// Some blocks of a map, and their checksums.
class Piece {
 public:
  void start(ObjectStore& store, const std::string& oid,
             const ObjectMapPieces& map, std::uint64_t block) {
    first_ = block;
    const std::uint64_t end = std::min(block + blocks_in_piece, map.blocks());
    const ObjectMapPieces::Part data = map.data(first_, end);
    const ObjectMapPieces::Part sums = map.checksums(first_, end);
    data_.resize(data.length);
    sums_.resize(sums.length);
    data_piece_ = {data_.data(), data_.size()};
    sums_piece_ = {sums_.data(), sums_.size()};
    // One after the other, so little comes in between.
    reading_sums_ =
        store.read(oid, sums.offset, {&sums_piece_, 1}, snap_head);
    reading_data_ =
        store.read(oid, data.offset, {&data_piece_, 1}, snap_head);
  }
  [[nodiscard]] bool started() const noexcept {
    return reading_data_ != nullptr;
  }
  [[nodiscard]] std::uint64_t first() const noexcept { return first_; }
  /// False where it must be read again.
  [[nodiscard]] bool finish(const ObjectMapPieces& map, ObjectStates& states,
                            std::string& footer,
                            std::chrono::milliseconds limit,
                            const std::string& what) {
    const int sums = reading_sums_->wait_for(limit);
    const int data = reading_data_->wait_for(limit);
    reading_sums_.reset();
    reading_data_.reset();
    check(sums, what);
    check(data, what);
    if (static_cast<std::size_t>(sums) != sums_.size() ||
        static_cast<std::size_t>(data) != data_.size() ||
        !map.put(states, first_, data_, sums_))
      return false;
    footer.replace(map.checksums(first_, first_).offset -
                       map.footer().offset,
                   sums_.size(), sums_);
    return true;
  }

 private:
  std::uint64_t first_ = 0;
  std::string data_;
  std::string sums_;
  MutablePiece data_piece_{};
  MutablePiece sums_piece_{};
  // Last, so that they go before what they read into.
  std::unique_ptr<Pending> reading_sums_;
  std::unique_ptr<Pending> reading_data_;
};

[[noreturn]] void damaged(const std::string& oid, const std::string& why) {
  throw Error(EINVAL, "object map " + oid + " is damaged: " + why);
}

template <class Decode>
auto decoded(const std::string& oid, Decode&& decode) {
  try {
    return decode();
  } catch (const Error& e) {
    damaged(oid, e.what());
  }
}

/// Of a map that begins with `start`, and has checksums.
LoadedMap load_pieces(ObjectStore& store, const std::string& oid,
                      std::chrono::milliseconds limit,
                      const ObjectMapPieces& map, std::string footer) {
  const std::string what = "cannot read object map " + oid;
  LoadedMap loaded{.states = ObjectStates(map.objects()),
                   .footer_at = map.footer().offset,
                   .footer = std::move(footer)};
  loaded.footer.resize(map.footer().length +
                       map.checksums(0, map.blocks()).length);
  std::array<Piece, pieces_in_flight> pieces;
  std::uint64_t next = 0;
  const auto start_next = [&](Piece& piece) {
    if (next >= map.blocks()) return;
    piece.start(store, oid, map, next);
    next += blocks_in_piece;
  };
  for (Piece& piece : pieces) start_next(piece);
  for (std::size_t i = 0; pieces[i].started(); i = (i + 1) % pieces.size()) {
    Piece& piece = pieces[i];
    for (int round = 1;
         !piece.finish(map, loaded.states, loaded.footer, limit, what);
         ++round) {
      if (round == rounds) damaged(oid, "a checksum of its data is wrong");
      piece.start(store, oid, map, piece.first());
    }
    start_next(piece);
  }
  return loaded;
}

}  // namespace

LoadedMap load_object_map(ObjectStore& store, const std::string& oid,
                          std::chrono::milliseconds limit,
                          std::uint64_t size) {
  const std::string what = "cannot read object map " + oid;
  std::string bytes;
  const auto read_all = [&](std::uint64_t most) {
    wait_check(*store.read_all(oid, most, &bytes), limit, what);
  };
  read_all(std::min(size, map_piece));
  if (bytes.empty()) throw Error(ENOENT, what + ": it is empty");
  const auto map = decoded(oid, [&] { return ObjectMapPieces(bytes); });
  const std::uint64_t footer_at = map.footer().offset;
  if (bytes.size() >= map_piece) {
    std::string footer(map.footer().length, '\0');
    const MutablePiece piece{footer.data(), footer.size()};
    wait_check(*store.read(oid, footer_at, {&piece, 1}, snap_head), limit,
               what);
    if (decoded(oid, [&] { return map.check_footer(footer); })) {
      bytes = {};
      return load_pieces(store, oid, limit, map, std::move(footer));
    }
    // Then nothing shows whether pieces belong together.
    read_all(footer_at + sizeof(std::uint32_t));
  }
  LoadedMap loaded{
      .states = decoded(oid, [&] { return decode_object_map(bytes); }),
      .footer_at = footer_at};
  // Of a map without checksums, it is the length of an empty blob.
  if (bytes.size() > footer_at + sizeof(std::uint32_t))
    loaded.footer = bytes.substr(footer_at);
  return loaded;
}

}  // namespace nbdrados
