// SPDX-License-Identifier: BSD-3-Clause
//
// What the fuzzing targets share.

#ifndef NBDRADOS_FUZZING_FUZZ_CHECKS_HPP
#define NBDRADOS_FUZZING_FUZZ_CHECKS_HPP

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "rados/error.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data,
                                      std::size_t size);

namespace nbdrados::fuzzing {

/// Ends the program where a property does not hold.
inline void require(bool holds, const char* property) {
  if (holds) return;
  std::fprintf(stderr, "property does not hold: %s\n", property);
  std::abort();
}

/// The input as text.
inline std::string_view text(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

/// A refusal has the expected errno and one short printable line, whatever
/// the input had in it.
inline void check_refusal(const Error& error, int code,
                          std::string_view start) {
  const std::string_view message = error.what();
  require(error.code() == code, "a refusal has its errno");
  require(message.starts_with(start), "a refusal names the structure");
  require(message.size() < 1000, "a refusal is short");
  for (const char c : message)
    require(c >= 0x20 && c < 0x7f, "a refusal is printable");
}

}  // namespace nbdrados::fuzzing

#endif
