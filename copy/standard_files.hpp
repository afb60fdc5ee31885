// SPDX-License-Identifier: BSD-3-Clause
//
// The file descriptors that a program is started with.

#ifndef RADOSCOPY_STANDARD_FILES_HPP
#define RADOSCOPY_STANDARD_FILES_HPP

namespace radoscopy {

/// First of all: what is opened later must not get one of the numbers 0, 1 and
/// 2 because it was closed, or messages would be written into it.
void keep_standard_numbers() noexcept;

/// Whether standard input (0) or output (1) was closed at the start.
[[nodiscard]] bool was_closed(int number) noexcept;

/// Throws Error(EBADF) where that is no open file descriptor.  To be called
/// before anything is opened.
void check_is_open(int number);

}  // namespace radoscopy

#endif
