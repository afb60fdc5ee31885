// SPDX-License-Identifier: BSD-3-Clause
//
// The input is the content of a format 1 header object.

#include <cerrno>

#include "fuzz-checks.hpp"
#include "rbd/format1.hpp"

using namespace nbdrados;
using namespace nbdrados::fuzzing;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data,
                                      std::size_t size) {
  Format1Header header;
  try {
    header = decode_format1(text(data, size));
  } catch (const Error& e) {
    check_refusal(e, EIO, "format 1 header: ");
    return 0;
  }
  const std::string again = encode_format1(header);
  require(again.size() <= size, "no header grows when written back");
  require(decode_format1(again) == header, "decode(encode(x)) == x");

  // What librados asks of a snapshot context.
  const SnapContext snapc = header.snap_context();
  require(snapc.snaps.size() == header.snapshots.size(), "no id is lost");
  SnapId newer = snapc.seq + 1;
  for (const SnapId id : snapc.snaps) {
    require(id > 0 && id < newer, "snapshot ids descend from seq");
    newer = id;
  }
  require(!header.object_prefix.empty() && header.order < 32 &&
              header.size < std::uint64_t{1} << 63,
          "values are in their ranges");
  return 0;
}
