// SPDX-License-Identifier: BSD-3-Clause
//
// The first byte of the input chooses a method of the `rbd` object class (or
// the rbd_id object), the rest is its reply.

#include <cerrno>
#include <cstdint>
#include <functional>
#include <iterator>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fuzz-checks.hpp"
#include "rbd/encoding.hpp"
#include "rbd/format2.hpp"
#include "rbd/format2_create.hpp"

using namespace nbdrados;
using namespace nbdrados::fuzzing;

namespace {

// decode(encode(decode(x))) == decode(x), with an encoder for each reply:
// only servers need those, so they are here.
template <typename Value>
void round_trip(std::string_view reply, Value (*decode)(std::string_view),
                const std::function<void(Encoder&, const Value&)>& encode) {
  const Value value = decode(reply);
  Encoder out;
  encode(out, value);
  require(decode(out.str()) == value, "decode(encode(x)) == x");
}

void put_string(Encoder& out, const std::string& value) {
  require(!value.empty() && value.find('\0') == std::string::npos,
          "a name is not empty and has no NUL byte");
  out.string(value);
}

void put_u64(Encoder& out, const std::uint64_t& value) { out.u64(value); }

void put_map(Encoder& out, const std::map<std::string, std::string>& map) {
  out.u32(static_cast<std::uint32_t>(map.size()));
  for (const auto& [key, value] : map) out.string(key).string(value);
}

void put_parent(Encoder& out, const std::optional<Format2Parent>& parent) {
  const Format2Parent spec = parent.value_or(Format2Parent{});
  out.frame(1, 1, [&] {
    out.i64(spec.pool).string(spec.pool_namespace);
    out.string(spec.image_id).u64(spec.snap);
  });
}

void put_snapshot(Encoder& out, const Format2Snapshot& snap) {
  require(snap.size < std::uint64_t{1} << 63, "a size fits 63 bits");
  out.frame(1, 1, [&] {
    out.u64(snap.id);
    out.frame(1, 1, [&] {
      switch (snap.kind) {
        case Format2SnapshotKind::user:
          out.u32(0);
          break;
        case Format2SnapshotKind::group:
          out.u32(1);
          break;
        case Format2SnapshotKind::trash:
          out.u32(2).string(snap.original_name);
          break;
        case Format2SnapshotKind::mirror:
          out.u32(3);
          break;
        case Format2SnapshotKind::unknown:
          out.u32(99);
          break;
      }
    });
    out.string(snap.name).u64(snap.size);
    out.u32(static_cast<std::uint32_t>(snap.created)).u32(0);
    out.u32(snap.children);
  });
}

struct Method {
  const char* name;
  void (*run)(std::string_view reply);
};

// New ones go to the end: the corpus knows these by number.
const Method methods[] = {
    {"rbd_id object",
     [](std::string_view in) {
       round_trip<std::string>(in, decode_image_id, put_string);
     }},
    {"get_size",
     [](std::string_view in) {
       round_trip<Format2Size>(
           in, decode_get_size, [](Encoder& out, const Format2Size& v) {
             require(v.order < 32 && v.size < std::uint64_t{1} << 63,
                     "order and size are in their ranges");
             out.u8(static_cast<std::uint8_t>(v.order)).u64(v.size);
           });
     }},
    {"get_features",
     [](std::string_view in) {
       round_trip<Format2Features>(
           in, decode_get_features, [](Encoder& out, const Format2Features& v) {
             out.u64(v.features).u64(v.incompatible);
           });
     }},
    {"get_object_prefix",
     [](std::string_view in) {
       round_trip<std::string>(in, decode_get_object_prefix, put_string);
     }},
    {"get_snapcontext",
     [](std::string_view in) {
       round_trip<SnapContext>(
           in, decode_get_snapcontext, [](Encoder& out, const SnapContext& v) {
             out.u64(v.seq).u32(static_cast<std::uint32_t>(v.snaps.size()));
             SnapId newer = v.seq + 1;
             for (const SnapId id : v.snaps) {
               require(id > 0 && id < newer, "snapshot ids descend from seq");
               newer = id;
               out.u64(id);
             }
           });
     }},
    {"get_stripe_unit_count",
     [](std::string_view in) {
       using Striping = std::pair<std::uint64_t, std::uint64_t>;
       round_trip<Striping>(in, decode_get_stripe_unit_count,
                            [](Encoder& out, const Striping& v) {
                              require(v.first > 0 && v.second > 0,
                                      "striping is not 0");
                              out.u64(v.first).u64(v.second);
                            });
     }},
    {"get_data_pool",
     [](std::string_view in) {
       round_trip<std::optional<std::int64_t>>(
           in, decode_get_data_pool,
           [](Encoder& out, const std::optional<std::int64_t>& v) {
             require(!v || *v >= 0, "a pool is not negative");
             out.i64(v.value_or(-1));
           });
     }},
    {"get_flags",
     [](std::string_view in) {
       round_trip<std::uint64_t>(in, decode_get_flags, put_u64);
     }},
    {"op_features_get",
     [](std::string_view in) {
       round_trip<std::uint64_t>(in, decode_op_features_get, put_u64);
     }},
    {"parent_get",
     [](std::string_view in) {
       round_trip<std::optional<Format2Parent>>(in, decode_parent_get,
                                                put_parent);
     }},
    {"parent_overlap_get",
     [](std::string_view in) {
       round_trip<std::optional<std::uint64_t>>(
           in, decode_parent_overlap_get,
           [](Encoder& out, const std::optional<std::uint64_t>& v) {
             out.u8(v ? 1 : 0);
             if (v) out.u64(*v);
           });
     }},
    {"snapshot_get",
     [](std::string_view in) {
       round_trip<Format2Snapshot>(in, decode_snapshot_get, put_snapshot);
     }},
    {"migration_get",
     [](std::string_view in) {
       round_trip<Format2Migration>(
           in, decode_migration_get,
           [](Encoder& out, const Format2Migration& v) {
             out.frame(3, 1, [&] {
               out.u8(static_cast<std::uint8_t>(v.side)).i64(v.pool);
               out.string(v.pool_namespace).string(v.image_name);
               out.string(v.image_id);
             });
           });
     }},
    {"dir_list",
     [](std::string_view in) {
       round_trip<std::map<std::string, std::string>>(in, decode_dir_list,
                                                      put_map);
     }},
    {"dir_get_name",
     [](std::string_view in) {
       round_trip<std::string>(in, decode_dir_get_name, put_string);
     }},
    {"namespace_list",
     [](std::string_view in) {
       round_trip<std::vector<std::string>>(
           in, decode_namespace_list,
           [](Encoder& out, const std::vector<std::string>& v) {
             out.u32(static_cast<std::uint32_t>(v.size()));
             for (const std::string& name : v) put_string(out, name);
           });
     }},
    {"metadata_list",
     [](std::string_view in) {
       round_trip<std::map<std::string, std::string>>(
           in, decode_metadata_list, put_map);
     }},
    {"metadata_get",
     [](std::string_view in) {
       round_trip<std::string>(
           in, decode_metadata_get,
           [](Encoder& out, const std::string& v) { out.string(v); });
     }},
    {"get_all_features",
     [](std::string_view in) {
       round_trip<std::uint64_t>(in, decode_get_all_features, put_u64);
     }},
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data,
                                      std::size_t size) {
  if (size == 0) return 0;
  const Method& method = methods[data[0] % std::size(methods)];
  try {
    method.run(text(data + 1, size - 1));
  } catch (const Error& e) {
    check_refusal(e, EIO, std::string(method.name) + ": ");
  }
  return 0;
}
