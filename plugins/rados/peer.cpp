// SPDX-License-Identifier: BSD-3-Clause

#include "peer.hpp"

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstdlib>
#include <memory>

#include "nbdkit/server.hpp"
#include "rados/error.hpp"

namespace nbdrados {

namespace {

using Kind = AccessList::Kind;

struct Text {
  Kind kind;
  const char* key;
  const PeerFunction& function;
  std::string Peer::*member;
};
constexpr Text texts[] = {
    {Kind::dn, "dn", peer_tls_dn, &Peer::dn},
    {Kind::issuer, "issuer", peer_tls_issuer_dn, &Peer::issuer},
    {Kind::context, "context", peer_security_context, &Peer::context},
};

bool is_there(const PeerFunction& function) {
  return server_function<PeerFunction::Type>(function.name) != nullptr;
}

[[noreturn]] void unknown(const std::string& what) {
  throw Error(EPERM, what + " of the client cannot be found out, and a rule of "
                            "allow= asks for it");
}

std::string ask_text(const char* name) {
  const auto function = server_function<PeerFunction::Type>(name);
  const std::unique_ptr<char, void (*)(void*)> text(
      function != nullptr ? function() : nullptr, std::free);
  if (!text) unknown(name);
  return text.get();
}

template <class Address>
IpAddress bytes_of(const Address& address) {
  const auto* const first = reinterpret_cast<const char*>(&address);
  IpNetwork n{{first, sizeof address}, 8 * sizeof address};
  n.normalise();
  return n.bytes;
}

/// Over a Unix socket there are ids, over IP there is an address.
void ask_socket(Peer& peer) {
  sockaddr_storage storage{};
  auto* const address = reinterpret_cast<sockaddr*>(&storage);
  socklen_t length = sizeof storage;
  if (nbdkit_peer_name(address, &length) == -1) unknown("the address");
  if (address->sa_family == AF_UNIX) {
    peer.uid = nbdkit_peer_uid();
    peer.gid = nbdkit_peer_gid();
    if (*peer.uid < 0 || *peer.gid < 0) unknown("the user");
  } else if (address->sa_family == AF_INET) {
    peer.address =
        bytes_of(reinterpret_cast<const sockaddr_in*>(address)->sin_addr);
  } else if (address->sa_family == AF_INET6) {
    peer.address =
        bytes_of(reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr);
  }
}

}  // namespace

void check_peer_functions(const AccessList& rules, const std::string& source) {
  for (const Text& t : texts) {
    const std::size_t line = rules.line_of(t.kind);
    if (line == 0 || is_there(t.function)) continue;
    throw Error(ENOTSUP, source + ", line " + std::to_string(line) +
                             " needs " + t.function.name +
                             ", which nbdkit has since " + t.function.since +
                             ", and this one has not");
  }
}

std::string known_kinds() {
  std::string kinds = "uid,gid,addr";
  for (const Text& t : texts)
    if (is_there(t.function)) kinds.append(",").append(t.key);
  return kinds;
}

Peer ask_peer(const AccessList& rules) {
  Peer peer;
  for (const Kind kind : {Kind::uid, Kind::gid, Kind::address})
    if (rules.line_of(kind) != 0) {
      ask_socket(peer);
      break;
    }
  for (const Text& t : texts)
    if (rules.line_of(t.kind) != 0) peer.*t.member = ask_text(t.function.name);
  return peer;
}

}  // namespace nbdrados
