// SPDX-License-Identifier: BSD-3-Clause
//
// Who a client is, as far as nbdkit can tell.

#ifndef NBDRADOS_PLUGIN_PEER_HPP
#define NBDRADOS_PLUGIN_PEER_HPP

#include <string>

#include "allow.hpp"

namespace nbdrados {

/// Throws Error(ENOTSUP), whose text begins with `source` and names the line,
/// where a rule asks for what this nbdkit cannot tell.
void check_peer_functions(const AccessList& rules, const std::string& source);

/// The kinds of clients that rules can name with this nbdkit, for
/// --dump-plugin: "uid,gid,addr,...".
[[nodiscard]] std::string known_kinds();

/// What `rules` ask for of the client of the calling thread.  Throws
/// Error(EPERM) where any of that cannot be found out: a rule that is not for
/// the client because nobody knows who it is would leave it to later rules.
[[nodiscard]] Peer ask_peer(const AccessList& rules);

}  // namespace nbdrados

#endif
