// SPDX-License-Identifier: BSD-3-Clause
//
// The input is the reply of object_map_load, or an object map's object.

#include <cerrno>
#include <cstdint>
#include <string>
#include <string_view>

#include "fuzz-checks.hpp"
#include "rbd/object_map.hpp"

using namespace nbdrados;
using namespace nbdrados::fuzzing;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data,
                                      std::size_t size) {
  ObjectStates map;
  // Whatever the start and the footer of a map that is read in pieces are.
  try {
    const ObjectMapPieces pieces(text(data, size));
    require(pieces.objects() <= object_map_max, "no absurd number of objects");
    (void)pieces.check_footer(text(data, size));
  } catch (const Error& e) {
    check_refusal(e, EIO, "object map: ");
  }
  try {
    map = decode_object_map(text(data, size));
  } catch (const Error& e) {
    check_refusal(e, EIO, "object map: ");
    return 0;
  }
  require(map.bits().size() < size, "no map is larger than its encoding");
  require(map.bits().size() == (map.size() + 3) / 4, "four objects a byte");
  for (const ObjectMapFooter footer :
       {ObjectMapFooter::empty, ObjectMapFooter::checksums})
    require(decode_object_map(encode_object_map(map, footer)) == map,
            "decode(encode(x)) == x");

  // In pieces of a block: an object's data is what its checksums say.
  const std::string bytes = encode_object_map(map, ObjectMapFooter::checksums);
  const ObjectMapPieces pieces(bytes);
  const auto part = [&](ObjectMapPieces::Part p) {
    return std::string_view(bytes).substr(p.offset, p.length);
  };
  require(pieces.check_footer(part(pieces.footer())), "it has checksums");
  ObjectStates together(pieces.objects());
  for (std::uint64_t b = 0; b < pieces.blocks(); ++b)
    require(pieces.put(together, b, part(pieces.data(b, b + 1)),
                       part(pieces.checksums(b, b + 1))),
            "its checksums are right");
  require(together == map, "the pieces are the map");
  if (map.size() == 0) return 0;

  // One state changes, and no other.
  const std::uint64_t at = data[size / 2] % map.size();
  const ObjectState old = map[at];
  ObjectStates changed = map;
  changed.set(at, static_cast<ObjectState>(3 - static_cast<unsigned>(old)));
  require(changed != map, "a state changes");
  changed.set(at, old);
  require(changed == map, "no other state changes");
  return 0;
}
