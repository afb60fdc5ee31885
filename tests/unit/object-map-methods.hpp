// SPDX-License-Identifier: BSD-3-Clause
//
// The methods of the `rbd` object class that object maps need, in memory
// (ceph: src/cls/rbd/cls_rbd.cc, object_map_load, object_map_update).

#ifndef NBDRADOS_TESTS_OBJECT_MAP_METHODS_HPP
#define NBDRADOS_TESTS_OBJECT_MAP_METHODS_HPP

#include <cerrno>
#include <cstdint>
#include <optional>
#include <string_view>

#include "rados/error.hpp"
#include "rados/memory_store.hpp"
#include "rbd/encoding.hpp"
#include "rbd/object_map.hpp"

/// The input of object_map_update.
struct MapUpdate {
  std::uint64_t first = 0;
  std::uint64_t end = 0;
  nbdrados::ObjectState state = nbdrados::ObjectState::nonexistent;
  std::optional<nbdrados::ObjectState> current;
  bool operator==(const MapUpdate&) const = default;
};

inline MapUpdate decode_map_update(std::string_view input) {
  using nbdrados::ObjectState;
  nbdrados::Decoder in(input, "object_map_update");
  MapUpdate update;
  update.first = in.u64("first");
  update.end = in.u64("end");
  update.state = static_cast<ObjectState>(in.u8("state"));
  if (in.u8("presence") != 0)
    update.current = static_cast<ObjectState>(in.u8("current"));
  in.expect_end();
  return update;
}

/// The object that holds a map.
inline nbdrados::MemoryObject map_object(const nbdrados::ObjectStates& map) {
  nbdrados::MemoryObject object;
  object.data.write(
      0, encode_object_map(map, nbdrados::ObjectMapFooter::checksums));
  return object;
}

inline void add_object_map_methods(nbdrados::MemoryStore& store) {
  using namespace nbdrados;
  store.on_exec("rbd", "object_map_load", [](auto& object, auto, auto& out) {
    if (!object || object->data.size() == 0) return -ENOENT;
    try {
      out = encode_object_map(decode_object_map(object->data.bytes()),
                              ObjectMapFooter::empty);
    } catch (const Error&) {
      return -EINVAL;
    }
    return 0;
  });
  store.on_exec("rbd", "object_map_update", [](auto& object, auto in, auto&) {
    if (!object) return -ENOENT;
    ObjectStates map = decode_object_map(object->data.bytes());
    const MapUpdate update = decode_map_update(in);
    if (update.first >= update.end || update.end > map.size()) return -ERANGE;
    for (std::uint64_t i = update.first; i < update.end; ++i)
      if (!update.current || map[i] == *update.current ||
          (update.current == ObjectState::exists &&
           map[i] == ObjectState::exists_clean))
        map.set(i, update.state);
    object = map_object(map);
    return 0;
  });
}

#endif
