// SPDX-License-Identifier: BSD-3-Clause
//
// The monitors' list of pools, as far as a look-up of a name needs it.

#ifndef NBDRADOS_RADOS_POOL_LIST_HPP
#define NBDRADOS_RADOS_POOL_LIST_HPP

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace nbdrados {

/// The monitor command whose answer is a list of pools.  Needs no more than
/// "allow r" of the monitors (ceph: src/mon/MonCommands.h).
inline constexpr const char* list_pools_command =
    R"({"prefix": "osd lspools", "format": "json"})";

/// The number of the pool `name` in the answer to list_pools_command; none:
/// it is not in there.  Thread-safe.
[[nodiscard]] std::optional<std::int64_t> find_pool(std::string_view answer,
                                                    std::string_view name);

}  // namespace nbdrados

#endif
