// SPDX-License-Identifier: BSD-3-Clause
//
// Configures a client of Ceph and connects it.

#ifndef NBDRADOS_RADOS_CLIENT_CONNECT_HPP
#define NBDRADOS_RADOS_CLIENT_CONNECT_HPP

#include <rados/librados.hpp>

#include <string>

#include "rados/cluster.hpp"

namespace nbdrados {

/// `rados` has just been made.  Blocks, for about config.connect_timeout at
/// most.  Throws Error that says which of parameters, files, keys and monitors
/// is wrong.
void connect_client(librados::Rados& rados, const ClusterConfig& config);

/// An option of a client, or nothing where it has none of that name.
[[nodiscard]] std::string client_option(librados::Rados& rados,
                                      const char* name);

}  // namespace nbdrados

#endif
