// SPDX-License-Identifier: BSD-3-Clause
//
// Which nbdkit runs this: it can be newer than the one whose headers this was
// built with.

#ifndef NBDRADOS_NBDKIT_SERVER_HPP
#define NBDRADOS_NBDKIT_SERVER_HPP

#include <dlfcn.h>

namespace nbdrados {

/// A function that not all versions of nbdkit have; null: this one has not.
/// Thread-safe.
template <class Function>
[[nodiscard]] Function* server_function(const char* name) noexcept {
  return reinterpret_cast<Function*>(::dlsym(RTLD_DEFAULT, name));
}

/// Whether a client whose connection is refused may get the last line of
/// nbdkit_error.  1.42.3 and 1.48.1 send it, 1.32.5 does not; what is asked
/// here is for a function that came in 1.40.  Thread-safe.
[[nodiscard]] inline bool errors_reach_clients() noexcept {
  static const bool yes = server_function<void()>("nbdkit_parse_delay");
  return yes;
}

/// Filters tell what they are in --dump-plugin since 1.36.
template <class Filter>
void set_dump_plugin(Filter& filter, void (*dump)()) {
  if constexpr (requires { filter.dump_plugin; }) filter.dump_plugin = dump;
}

/// What tells who a client is, since which version.  Each returns a string that
/// the caller must free; null after a line of nbdkit_error; "" for none.
struct PeerFunction {
  const char* name;
  const char* since;
  using Type = char*();
};
inline constexpr PeerFunction peer_tls_dn{"nbdkit_peer_tls_dn", "1.40"};
inline constexpr PeerFunction peer_tls_issuer_dn{"nbdkit_peer_tls_issuer_dn",
                                                 "1.40"};
inline constexpr PeerFunction peer_security_context{
    "nbdkit_peer_security_context", "1.36"};

}  // namespace nbdrados

#endif
