// SPDX-License-Identifier: BSD-3-Clause
//
// What may be in a line of text.

#ifndef NBDRADOS_NBDKIT_PRINTABLE_HPP
#define NBDRADOS_NBDKIT_PRINTABLE_HPP

namespace nbdrados {

/// Ends a line, or has a terminal do things.
[[nodiscard]] inline bool is_control(char c) noexcept {
  const auto byte = static_cast<unsigned char>(c);
  return (byte < 0x20 && c != '\t') || byte == 0x7f;
}

}  // namespace nbdrados

#endif
