// SPDX-License-Identifier: BSD-3-Clause

#include "allow.hpp"

#include <arpa/inet.h>
#include <fnmatch.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "nbdkit/parameters.hpp"
#include "nbdkit/printable.hpp"
#include "rados/error.hpp"

namespace nbdrados {

namespace {

using Kind = AccessList::Kind;

constexpr std::string_view blanks = " \t\r";
/// One more, -1, is nobody's (chown(2)).
constexpr std::uint64_t largest_id = 0xfffffffe;

constexpr Choice<Kind> kinds[] = {
    {"uid", Kind::uid}, {"gid", Kind::gid},       {"addr", Kind::address},
    {"dn", Kind::dn},   {"issuer", Kind::issuer}, {"context", Kind::context}};
constexpr Choice<Access> accesses[] = {{"ro", Access::read},
                                       {"rw", Access::write}};

// What is wrong with a line is said without what is in it: it may be a file
// that is none of rules.
[[noreturn]] void bad(const std::string& text) { throw Error(EINVAL, text); }

std::string_view trimmed(std::string_view text) {
  const auto first = text.find_first_not_of(blanks);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(blanks) - first + 1);
}

/// Takes the last word off, and the blanks before it.
std::string_view take_last_word(std::string_view& text) {
  const auto blank = text.find_last_of(blanks);
  const std::string_view word = text.substr(blank + 1);
  text = blank == std::string_view::npos ? std::string_view()
                                         : trimmed(text.substr(0, blank));
  return word;
}

std::optional<IpAddress> parse_address(const std::string& text) {
  unsigned char bytes[16];
  for (const auto& [family, size] :
       {std::pair(AF_INET, 4), std::pair(AF_INET6, 16)})
    if (::inet_pton(family, text.c_str(), bytes) == 1)
      return IpAddress(bytes, bytes + size);
  return std::nullopt;
}

IpNetwork parse_network(std::string_view text) {
  const auto slash = text.find('/');
  const auto address = parse_address(std::string(text.substr(0, slash)));
  if (!address) bad("addr: wants an IP address, or a network (192.0.2.0/24)");
  const std::uint64_t most = address->size() * 8;
  const auto bits = slash == std::string_view::npos
                        ? most
                        : parse_digits(text.substr(slash + 1));
  if (!bits || *bits > most)
    bad("addr: wants at most " + std::to_string(most) + " bits behind the '/'");
  IpNetwork network{*address, static_cast<unsigned>(*bits)};
  network.normalise();
  return network;
}

bool contains(const IpNetwork& network, const IpAddress& address) {
  if (address.size() != network.bytes.size()) return false;
  const std::size_t whole = network.bits / 8;
  if (address.compare(0, whole, network.bytes, 0, whole) != 0) return false;
  const unsigned rest = network.bits % 8;
  return rest == 0 || ((address[whole] ^ network.bytes[whole]) &
                       (0xff << (8 - rest)) & 0xff) == 0;
}

/// PATTERN is of a shell.  '*' and '?' do not stand for '/': what is in a
/// namespace is only meant where the pattern says so.
bool matches(const std::string& pattern, const std::string& name) {
  const int r = ::fnmatch(pattern.c_str(), name.c_str(), FNM_PATHNAME);
  // A later rule may allow more than this one.
  if (r != 0 && r != FNM_NOMATCH)
    throw Error(EPERM, "a name that cannot be compared with a pattern");
  return r == 0;
}

/// Whether it can match a name that begins so, and goes on without '/'.  Then a
/// part of it matches the beginning, the last '*' of that perhaps more.
bool matches_any(const std::string& pattern, const std::string& beginning) {
  for (std::size_t part = 0; part <= pattern.size(); ++part)
    if (pattern.find('/', part) == std::string::npos &&
        matches(pattern.substr(0, part), beginning))
      return true;
  return false;
}

}  // namespace

void IpNetwork::normalise() {
  constexpr std::string_view mapped("\0\0\0\0\0\0\0\0\0\0\xff\xff", 12);
  if (bytes.size() != 16 || bits < 96 || !bytes.starts_with(mapped)) return;
  bytes.erase(0, mapped.size());
  bits -= 96;
}

std::string Peer::text() const {
  std::string out;
  const auto add = [&](const char* what, const std::string& value) {
    if (value.empty()) return;
    out.append(out.empty() ? "" : ", ").append(what).append(" ").append(value);
  };
  if (uid) add("uid", std::to_string(*uid));
  if (gid) add("gid", std::to_string(*gid));
  if (!address.empty()) {
    char shown[INET6_ADDRSTRLEN] = "";
    (void)::inet_ntop(address.size() == 4 ? AF_INET : AF_INET6,
                      address.data(), shown, sizeof shown);
    add("address", shown);
  }
  add("DN", dn);
  add("issuer", issuer);
  add("context", context);
  return out.empty() ? "of which nothing is known" : out;
}

AccessList::AccessList(std::string_view text, const std::string& source) {
  for (std::size_t number = 1; !text.empty(); ++number) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = trimmed(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.empty() || line.starts_with('#')) continue;
    try {
      rules_.push_back(parse_rule(line));
      rules_.back().line = number;
    } catch (const Error& e) {
      bad(source + ", line " + std::to_string(number) + ": " + e.what());
    }
  }
  if (rules_.empty())
    bad(source + " has no rules, so nobody could open anything");
}

AccessList::Rule AccessList::parse_rule(std::string_view line) {
  if (std::ranges::any_of(line, is_control)) bad("a control character");
  const auto access = find_choice(take_last_word(line), accesses);
  if (!access) bad("the last word is neither ro nor rw");
  Rule rule;
  rule.access = *access;
  rule.pattern = take_last_word(line);
  // What is left may have blanks: names in certificates do.
  if (line.empty()) bad("a rule is CLIENT PATTERN ro|rw");
  parse_client(line, rule);
  return rule;
}

void AccessList::parse_client(std::string_view client, Rule& rule) {
  if (client == "*") return;
  const auto colon = std::min(client.find(':'), client.size());
  const auto kind = find_choice(client.substr(0, colon), kinds);
  if (!kind || colon == client.size())
    bad("the client is none of *, " + words(kinds, ":, ", ":, ") + ":");
  const std::string_view value = client.substr(colon + 1);
  const std::string key(client.substr(0, colon + 1));
  if (value.empty()) bad(key + " wants a value");
  rule.kind = *kind;
  if (*kind == Kind::uid || *kind == Kind::gid) {
    const auto id = parse_digits(value);
    if (!id || *id > largest_id) bad(key + " wants a number");
    rule.id = static_cast<std::int64_t>(*id);
  } else if (*kind == Kind::address) {
    rule.network = parse_network(value);
  } else {
    rule.name = value;
  }
}

bool AccessList::Rule::is_for(const Peer& peer) const noexcept {
  switch (kind) {
    case Kind::any: return true;
    case Kind::uid: return peer.uid == id;
    case Kind::gid: return peer.gid == id;
    case Kind::address: return contains(network, peer.address);
    // `name` is never empty.
    case Kind::dn: return peer.dn == name;
    case Kind::issuer: return peer.issuer == name;
    case Kind::context: return peer.context == name;
  }
  return false;
}

std::size_t AccessList::line_of(Kind kind) const noexcept {
  const auto found = std::ranges::find(rules_, kind, &Rule::kind);
  return found == rules_.end() ? 0 : found->line;
}

bool AccessList::knows(const Peer& peer) const noexcept {
  return std::ranges::any_of(rules_,
                             [&](const Rule& r) { return r.is_for(peer); });
}

Access AccessList::access(const Peer& peer,
                          const std::string& export_name) const {
  for (const Rule& rule : rules_)
    if (rule.is_for(peer) && matches(rule.pattern, export_name))
      return rule.access;
  return Access::none;
}

bool AccessList::access_to_any(const Peer& peer,
                               const std::string& beginning) const {
  return std::ranges::any_of(rules_, [&](const Rule& rule) {
    return rule.is_for(peer) && matches_any(rule.pattern, beginning);
  });
}

}  // namespace nbdrados
