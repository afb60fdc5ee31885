// SPDX-License-Identifier: BSD-3-Clause
//
// Requests without payload, whose lengths have no limit but the 32 bits they
// are said in.

#ifndef NBDRADOS_COPY_NBD_PARTS_HPP
#define NBDRADOS_COPY_NBD_PARTS_HPP

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

namespace nbdrados::copy::nbd {

/// The most of `length` bytes that one request without payload asks for, in
/// whole blocks of `minimum`.  Less than the 4 GiB that a request can say,
/// because a server works on one request as long as it takes.
[[nodiscard]] inline std::uint32_t without_payload(
    std::uint64_t length, std::uint32_t minimum) noexcept {
  constexpr std::uint64_t most = std::uint64_t{1} << 30;
  return static_cast<std::uint32_t>(
      std::min(length, most / minimum * minimum));
}

/// Makes requests of a range with `start`(offset, length, end); each calls
/// `end`(errno or 0), in any thread.  The last one calls `done` with the first
/// error.  The range is not empty.
template <class Start>
void in_parts(std::uint64_t offset, std::uint64_t length,
              std::uint32_t minimum, Start&& start,
              std::function<void(int error)> done) {
  struct All {
    All(std::size_t parts, std::function<void(int error)> then)
        : left(parts), done(std::move(then)) {}
    std::atomic<std::size_t> left;
    std::atomic<int> first{0};
    const std::function<void(int error)> done;
  };
  const std::uint64_t most = without_payload(length, minimum);
  const auto all =
      std::make_shared<All>((length + most - 1) / most, std::move(done));
  for (std::uint64_t n = 0; length != 0; offset += n, length -= n) {
    n = std::min(length, most);
    start(offset, static_cast<std::uint32_t>(n), [all](int error) {
      int none = 0;
      if (error != 0) all->first.compare_exchange_strong(none, error);
      if (all->left.fetch_sub(1) == 1) all->done(all->first);
    });
  }
}

}  // namespace nbdrados::copy::nbd

#endif
