// SPDX-License-Identifier: BSD-3-Clause

#include "standard_files.hpp"

#include <fcntl.h>

#include <cerrno>
#include <string>

#include "rados/error.hpp"

namespace radoscopy {

namespace {

bool closed[3] = {};

bool is_open(int number) noexcept { return ::fcntl(number, F_GETFD) != -1; }

}  // namespace

void keep_standard_numbers() noexcept {
  // open() takes the lowest number that is free.
  for (int number = 0; number < 3; ++number)
    if (!is_open(number)) {
      closed[number] = true;
      (void)::open("/dev/null", O_RDWR);
    }
}

bool was_closed(int number) noexcept { return closed[number]; }

void check_is_open(int number) {
  if (!is_open(number) || (number < 3 && closed[number]))
    throw nbdrados::Error(EBADF, "--progress=" + std::to_string(number) +
                                     ": that is no open file descriptor");
}

}  // namespace radoscopy
