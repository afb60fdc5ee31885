// SPDX-License-Identifier: BSD-3-Clause
//
// The input is lines of NAME=VALUE, the extended attributes of object 0 of a
// striped object.

#include <cerrno>
#include <map>
#include <string>

#include "formats/striper_metadata.hpp"
#include "fuzz-checks.hpp"
#include "layout/layout.hpp"

using namespace nbdrados;
using namespace nbdrados::fuzzing;

namespace {

std::map<std::string, std::string> attributes(std::string_view lines) {
  std::map<std::string, std::string> out;
  while (!lines.empty()) {
    const std::size_t end = lines.find('\n');
    const std::string_view line = lines.substr(0, end);
    lines.remove_prefix(end == std::string_view::npos ? lines.size()
                                                      : end + 1);
    const std::size_t equals = line.find('=');
    if (equals != std::string_view::npos)
      out[std::string(line.substr(0, equals))] = line.substr(equals + 1);
  }
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data,
                                      std::size_t size) {
  StriperMetadata metadata;
  try {
    metadata = StriperMetadata::decode(attributes(text(data, size)));
  } catch (const Error& e) {
    if (e.code() == ENOENT)
      check_refusal(e, ENOENT, "not a striper object: ");
    else
      check_refusal(e, EIO, "striper attribute ");
    return 0;
  }
  require(StriperMetadata::decode(metadata.encode()) == metadata,
          "decode(encode(x)) == x");

  // What was taken is a layout, and the image's last byte is in its last
  // object.
  const Layout layout(metadata.object_size, metadata.stripe_unit,
                      metadata.stripe_count);
  if (metadata.size > 0) {
    const Fragment last = layout.locate(metadata.size - 1, 1);
    require(last.object_offset < metadata.object_size &&
                last.object_no < layout.object_count(metadata.size),
            "the last byte is in an object");
  }
  return 0;
}
