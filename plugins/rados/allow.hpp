// SPDX-License-Identifier: BSD-3-Clause
//
// Who may open which export, and how: the rules of allow=FILE.  Pure: what is
// known of a client comes from peer.hpp.

#ifndef NBDRADOS_PLUGIN_ALLOW_HPP
#define NBDRADOS_PLUGIN_ALLOW_HPP

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nbdrados {

enum class Access : std::uint8_t { none, read, write };

/// 4 or 16 bytes in network order: of IPv4, of IPv6.  An IPv4 address that is
/// written as one of IPv6 (::ffff:192.0.2.1) counts as IPv4, as which it goes
/// over the net.
using IpAddress = std::string;
/// `bytes` as above, `bits` of them: an address, or a network.
struct IpNetwork {
  IpAddress bytes;
  unsigned bits = 0;
  void normalise();
};

/// What is known of a client.  Empty: it has no such thing.
struct Peer {
  std::optional<std::int64_t> uid = {};  ///< over a Unix socket
  std::optional<std::int64_t> gid = {};
  IpAddress address = {};                ///< over IP
  std::string dn = {};                   ///< of its TLS certificate
  std::string issuer = {};               ///< who signed that
  std::string context = {};              ///< security context
  /// For the log.
  [[nodiscard]] std::string text() const;
};

/// Constant, so safe to share between threads.
class AccessList {
 public:
  /// What a rule asks about the client.
  enum class Kind : std::uint8_t {
    any, uid, gid, address, dn, issuer, context
  };

  /// One rule a line, CLIENT PATTERN ro|rw; empty lines and lines that begin
  /// with '#' are none.  Throws Error(EINVAL), whose text begins with `source`
  /// and names the line.
  AccessList(std::string_view text, const std::string& source);

  /// The line of the first rule that asks for this; 0: none does.
  [[nodiscard]] std::size_t line_of(Kind kind) const noexcept;

  /// Whether there is any export that the client might open.
  [[nodiscard]] bool knows(const Peer& peer) const noexcept;

  /// The first rule decides that is for this client and this export.  Throws
  /// Error(EPERM) where a pattern cannot be compared with the name.
  [[nodiscard]] Access access(const Peer& peer,
                              const std::string& export_name) const;

  /// Whether there can be an export whose name begins so, with its '/' if it
  /// has one, and that the client may open.  Throws as access().
  [[nodiscard]] bool access_to_any(const Peer& peer,
                                   const std::string& beginning) const;

 private:
  struct Rule {
    Kind kind = Kind::any;
    std::int64_t id = 0;  ///< uid, gid
    IpNetwork network = {};
    std::string name = {};  ///< dn, issuer, context
    std::string pattern = {};
    Access access = Access::none;
    std::size_t line = 0;
    [[nodiscard]] bool is_for(const Peer& peer) const noexcept;
  };
  [[nodiscard]] static Rule parse_rule(std::string_view line);
  static void parse_client(std::string_view client, Rule& rule);

  std::vector<Rule> rules_;
};

}  // namespace nbdrados

#endif
