// SPDX-License-Identifier: BSD-3-Clause

#include "image/io/reader.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <vector>

#include "image/chunks.hpp"
#include "image/parent_link.hpp"

namespace nbdrados {

namespace {

/// Fills what a read left of its destination.
void zero_tail(std::span<const MutablePiece> pieces, std::size_t got) {
  for (const MutablePiece& piece : pieces) {
    if (got >= piece.size) {
      got -= piece.size;
    } else {
      std::memset(piece.data + got, 0, piece.size - got);
      got = 0;
    }
  }
}

}  // namespace

void Reader::settle(int result, std::span<const MutablePiece> pieces,
                    std::uint64_t object_no) const {
  if (result < 0) core_.traits.object_error(-result, "cannot read", object_no);
  zero_tail(pieces, static_cast<std::size_t>(result));
}

bool Reader::read_parent(const View& view, char* buffer, std::uint64_t length,
                         std::uint64_t offset) {
  bool missing = false;
  const std::uint64_t backed =
      offset < view.overlap ? std::min(length, view.overlap - offset) : 0;
  if (backed != 0)
    missing = of_parent(core_.traits.name, [&] {
      return view.parent->read_backing(buffer, backed, offset);
    });
  if (backed != length) {
    std::memset(buffer + backed, 0, length - backed);
    missing = true;
  }
  return missing;
}

bool Reader::read_backing(char* buffer, std::uint64_t length,
                          std::uint64_t offset) {
  const bool missing = core_.metadata.confirmed([&](const View& view) {
    // Another size than the overlap says is not expected, and harmless.
    const std::uint64_t n =
        offset < view.size ? std::min(length, view.size - offset) : 0;
    view.check_request(core_.traits, n, std::min(offset, view.size));
    bool lacks = n != length;
    if (n != 0) lacks |= read_view(view, buffer, n, offset);
    std::memset(buffer + n, 0, length - n);
    return lacks;
  });
  if (missing) learner_.learn();
  return missing;
}

/// The common case.
bool Reader::read_object(const View& view, char* buffer,
                         const Fragment& where) {
  int result = -ENOENT;
  const bool known = known_absent(view, where.object_no);
  if (!known && !view.absent(where.object_no)) {
    const MutablePiece piece{buffer, where.length};
    result = core_.data
                 .read(core_.traits.object_name(where.object_no),
                       where.object_offset, {&piece, 1}, view.snap)
                 ->wait();
    if (result != -ENOENT) settle(result, {&piece, 1}, where.object_no);
  }
  return result == -ENOENT &&
         read_parent(view, buffer, where.length, where.image_offset) &&
         !(known && core_.state.can_be_sure(view));
}

bool Reader::read_objects(const View& view, char* buffer, std::uint64_t length,
                          std::uint64_t offset) {
  const std::vector<ObjectExtent> extents =
      core_.traits.layout.cut(offset, length);
  const ExtentPieces<MutablePiece> to(extents, buffer, offset);
  std::vector<bool> asked(extents.size());
  std::vector<const ObjectExtent*> missing;
  bool sure = core_.state.can_be_sure(view);
  for_objects(
      extents.size(),
      [&](std::size_t i) -> std::unique_ptr<Pending> {
        const ObjectExtent& e = extents[i];
        if (known_absent(view, e.object_no)) return nullptr;
        if (view.absent(e.object_no)) {
          sure = false;
          return nullptr;
        }
        asked[i] = true;
        return core_.data.read(core_.traits.object_name(e.object_no), e.offset,
                               to.of(i), view.snap);
      },
      [&](std::size_t i, int result) {
        if (asked[i] && result != -ENOENT) {
          settle(result, to.of(i), extents[i].object_no);
          return;
        }
        missing.push_back(&extents[i]);
        if (asked[i]) sure = false;
      });
  bool zeros = false;
  for (const auto& [at, n] : image_ranges(missing))
    zeros |= read_parent(view, buffer + (at - offset), n, at);
  return zeros && !sure;
}

bool Reader::read_view(const View& view, char* buffer, std::uint64_t length,
                       std::uint64_t offset) {
  const Layout& layout = core_.traits.layout;
  const std::uint64_t end = offset + length;
  bool missing = false;
  while (offset < end) {
    const std::uint64_t n = chunk_end(layout, offset, end) - offset;
    const Fragment first = layout.locate(offset, n);
    missing |= first.length == n ? read_object(view, buffer, first)
                                 : read_objects(view, buffer, n, offset);
    buffer += n;
    offset += n;
  }
  return missing;
}

void Reader::read(char* buffer, std::uint64_t length, std::uint64_t offset) {
  const bool missing = core_.metadata.confirmed([&](const View& view) {
    view.check_request(core_.traits, length, offset);
    return read_view(view, buffer, length, offset);
  });
  // The next one need not ask for what is not there.
  if (missing) learner_.learn();
}

// Where an object is -------------------------------------------------------

/// Of the image's own object.
ObjectPlace Reader::place_of(const View& view, std::uint64_t object_no) const {
  const bool more = core_.traits.keep_first_object && object_no == 0;
  return {.kind = more ? ObjectPlace::Kind::parts : ObjectPlace::Kind::object,
          .store = &core_.data,
          .oid = core_.traits.object_name(object_no),
          .snap = view.snap};
}

bool Reader::find_in(const View& view, std::uint64_t object_no,
                     std::uint64_t used, ObjectPlace& place) {
  using Kind = ObjectPlace::Kind;
  const Layout& layout = core_.traits.layout;
  place = {};
  if (!view.absent(object_no)) {
    const std::string oid = core_.traits.object_name(object_no);
    std::uint64_t size = 0;
    const int r = core_.data.stat(oid, &size, view.snap)->wait();
    if (r >= 0) {
      place = place_of(view, object_no);
      return false;
    }
    if (r != -ENOENT) core_.traits.object_error(-r, "cannot stat", object_no);
  }
  const std::uint64_t backed = layout.object_used(object_no, view.overlap);
  if (backed == 0) return true;
  if (backed < used) {
    place.kind = Kind::parts;
    return false;
  }
  const bool missing = of_parent(core_.traits.name, [&] {
    return view.parent->find_backing_object(layout, object_no, used, place);
  });
  if (!place.owner) place.owner = view.parent;
  return missing;
}

bool Reader::find_backing_object(const Layout& layout, std::uint64_t object_no,
                                 std::uint64_t used, ObjectPlace& place) {
  return core_.metadata.confirmed([&](const View& view) {
    view.check_request(core_.traits, 0, 0);
    if (!layout.agrees(core_.traits.layout) ||
        layout.object_used(object_no, view.size) < used) {
      place = {.kind = ObjectPlace::Kind::parts};
      return false;
    }
    return find_in(view, object_no, used, place);
  });
}

ObjectPlace Reader::find_object(std::uint64_t object_no, std::uint64_t used,
                                bool is_known) {
  ObjectPlace place;
  (void)core_.metadata.confirmed([&](const View& view) {
    view.check_request(core_.traits, 0, 0);
    if (core_.traits.layout.object_used(object_no, view.size) < used)
      core_.traits.object_error(EINVAL, "the image ends before", object_no);
    if (is_known && view.overlap == 0) {
      place = place_of(view, object_no);
      return false;
    }
    return find_in(view, object_no, used, place);
  });
  return place;
}

}  // namespace nbdrados
