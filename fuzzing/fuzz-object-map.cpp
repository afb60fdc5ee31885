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
