// SPDX-License-Identifier: BSD-3-Clause
//
// The input is the data of rbd_directory, a trivial map.

#include <cerrno>

#include "fuzz-checks.hpp"
#include "rbd/directory.hpp"
#include "rbd/encoding.hpp"

using namespace nbdrados;
using namespace nbdrados::fuzzing;

namespace {

// An update says what it was made of.
void check_update(const std::string& update, std::uint8_t code,
                  std::string_view key, const std::string* value) {
  Decoder in(update, "update");
  require(in.u8("code") == code && in.blob("key") == key,
          "an update has its code and key");
  if (value) require(in.blob("value") == *value, "an update has its value");
  in.expect_end();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data,
                                      std::size_t size) {
  TrivialMap map;
  try {
    map = decode_trivial_map(text(data, size));
  } catch (const Error& e) {
    check_refusal(e, EIO, "trivial map: ");
    return 0;
  }
  const std::string again = encode_trivial_map(map);
  require(decode_trivial_map(again) == map, "decode(encode(x)) == x");
  require(size == 0 || again.size() <= size, "no map grows when written back");
  for (const auto& [key, value] : map.entries) {
    require(!key.empty(), "a key is not empty");
    check_update(encode_tmap_set(key, value), 's', key, &value);
    check_update(encode_tmap_create(key, value), 'c', key, &value);
    check_update(encode_tmap_remove(key), 'r', key, nullptr);
  }
  check_update(encode_tmap_header(map.header), 'h', map.header, nullptr);
  return 0;
}
