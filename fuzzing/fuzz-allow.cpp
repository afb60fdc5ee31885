// SPDX-License-Identifier: BSD-3-Clause
//
// The input is a file of rules for allow=.

#include <cerrno>
#include <string>

#include "fuzz-checks.hpp"

// It is part of a module that programs cannot link.
#include "allow.cpp"

using namespace nbdrados;
using namespace nbdrados::fuzzing;

namespace {

AccessList::Kind kind_of(const Peer& peer) {
  if (peer.uid) return AccessList::Kind::uid;
  if (!peer.address.empty()) return AccessList::Kind::address;
  if (!peer.dn.empty()) return AccessList::Kind::dn;
  return AccessList::Kind::any;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data,
                                      std::size_t size) {
  try {
    const AccessList rules(text(data, size), "allow=FILE");
    // Of whom one thing is known, a rule for that lets in, or one for all.
    for (const Peer& peer :
         {Peer{}, Peer{.uid = 1000},
          Peer{.address = std::string("\x7f\0\0\1", 4)},
          Peer{.address = std::string(16, '\0')}, Peer{.dn = "CN=a"}})
      for (const std::string name : {"", "vm1", "ns/vm1@s"})
        if (rules.access(peer, name) != Access::none) {
          require(rules.knows(peer), "who may open something is known");
          require(rules.line_of(kind_of(peer)) != 0 ||
                      rules.line_of(AccessList::Kind::any) != 0,
                  "a rule is for this client");
        }
  } catch (const Error& e) {
    check_refusal(e, EINVAL, "allow=FILE");
  }
  return 0;
}
