// SPDX-License-Identifier: BSD-3-Clause

#include "image/ownership/map_loader.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <utility>

#include "rados/error.hpp"

namespace nbdrados {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint64_t blocks_in_piece = map_piece / StateBlock::bytes;
/// What is in flight; enough to keep an OSD busy while pieces are decoded.
constexpr std::size_t pieces_in_flight = 3;
/// So often may a piece be changed while it is read.
constexpr int rounds = 8;

/// The object that is read, and until when.
struct Source {
  ObjectStore& store;
  const std::string& oid;
  const std::string what = "cannot read object map " + oid;
  const Clock::time_point deadline;

  /// The result, which is not negative.
  [[nodiscard]] int wait(Pending& pending) const {
    using std::chrono::milliseconds;
    const auto left =
        std::chrono::duration_cast<milliseconds>(deadline - Clock::now());
    return wait_check(pending, std::max(left, milliseconds(0)), what);
  }
  [[nodiscard]] std::unique_ptr<Pending> read(std::uint64_t offset,
                                              const MutablePiece& to) const {
    return store.read(oid, offset, {&to, 1}, snap_head);
  }
  void read_all(std::uint64_t most, std::string* bytes) const {
    (void)wait(*store.read_all(oid, most, bytes));
  }
  [[noreturn]] void damaged(const std::string& why) const {
    throw Error(EINVAL, "object map " + oid + " is damaged: " + why);
  }
  template <class Decode>
  auto decoded(Decode&& decode) const {
    try {
      return decode();
    } catch (const Error& e) {
      damaged(e.what());
    }
  }
};

/// Some blocks of a map, and their checksums.
class Piece {
 public:
  void start(const Source& source, const ObjectMapPieces& map,
             std::uint64_t block) {
    first_ = block;
    const std::uint64_t end = std::min(block + blocks_in_piece, map.blocks());
    const ObjectMapPieces::Part data = map.data(first_, end);
    const ObjectMapPieces::Part sums = map.checksums(first_, end);
    data_.resize(data.length);
    sums_.resize(sums.length);
    data_piece_ = {data_.data(), data_.size()};
    sums_piece_ = {sums_.data(), sums_.size()};
    // One after the other, so little comes in between.
    reading_sums_ = source.read(sums.offset, sums_piece_);
    reading_data_ = source.read(data.offset, data_piece_);
  }
  [[nodiscard]] bool started() const noexcept {
    return reading_data_ != nullptr;
  }
  [[nodiscard]] std::uint64_t first() const noexcept { return first_; }
  /// False where it must be read again.
  [[nodiscard]] bool finish(const Source& source, const ObjectMapPieces& map,
                            ObjectStates& states, std::string& footer) {
    const auto sums = static_cast<std::size_t>(source.wait(*reading_sums_));
    const auto data = static_cast<std::size_t>(source.wait(*reading_data_));
    reading_sums_.reset();
    reading_data_.reset();
    if (sums != sums_.size() || data != data_.size() ||
        !map.put(states, first_, data_, sums_))
      return false;
    footer.replace(map.checksums(first_, first_).offset - map.footer().offset,
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

/// Of a map that has checksums; `footer` is what is between these and the data.
LoadedMap load_pieces(const Source& source, const ObjectMapPieces& map,
                      std::string footer) {
  LoadedMap loaded{.states = ObjectStates(map.objects()),
                   .footer_at = map.footer().offset,
                   .footer = std::move(footer)};
  loaded.footer.resize(map.footer().length +
                       map.checksums(0, map.blocks()).length);
  std::array<Piece, pieces_in_flight> pieces;
  std::uint64_t next = 0;
  const auto start_next = [&](Piece& piece) {
    if (next >= map.blocks()) return;
    piece.start(source, map, next);
    next += blocks_in_piece;
  };
  for (Piece& piece : pieces) start_next(piece);
  for (std::size_t i = 0; pieces[i].started(); i = (i + 1) % pieces.size()) {
    Piece& piece = pieces[i];
    for (int round = 1;
         !piece.finish(source, map, loaded.states, loaded.footer); ++round) {
      if (round == rounds) source.damaged("a checksum of its data is wrong");
      piece.start(source, map, piece.first());
    }
    start_next(piece);
  }
  return loaded;
}

}  // namespace

LoadedMap load_object_map(ObjectStore& store, const std::string& oid,
                          std::chrono::milliseconds limit, std::uint64_t size) {
  const Source source{
      .store = store, .oid = oid, .deadline = Clock::now() + limit};
  std::string bytes;
  source.read_all(std::min(size, map_piece), &bytes);
  if (bytes.empty()) throw Error(ENOENT, source.what + ": it is empty");
  const auto map = source.decoded([&] { return ObjectMapPieces(bytes); });
  const std::uint64_t footer_at = map.footer().offset;
  if (bytes.size() >= map_piece) {
    std::string footer(map.footer().length, '\0');
    const MutablePiece piece{footer.data(), footer.size()};
    (void)source.wait(*source.read(footer_at, piece));
    if (source.decoded([&] { return map.check_footer(footer); })) {
      bytes = {};
      return load_pieces(source, map, std::move(footer));
    }
    // Then nothing shows whether pieces belong together.
    source.read_all(footer_at + sizeof(std::uint32_t), &bytes);
  }
  LoadedMap loaded{
      .states = source.decoded([&] { return decode_object_map(bytes); }),
      .footer_at = footer_at};
  // Of a map without checksums, it is the length of an empty blob.
  if (bytes.size() > footer_at + sizeof(std::uint32_t))
    loaded.footer = bytes.substr(footer_at);
  return loaded;
}

}  // namespace nbdrados
