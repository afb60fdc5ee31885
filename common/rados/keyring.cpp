// SPDX-License-Identifier: BSD-3-Clause

#include "rados/keyring.hpp"

namespace nbdrados {

namespace {

constexpr std::string_view white = " \t\r\n";

std::string_view trim(std::string_view text) {
  const auto first = text.find_first_not_of(white);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(white) - first + 1);
}

}  // namespace

std::optional<std::uint16_t> key_type(std::string_view base64) {
  constexpr std::string_view digits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  base64 = trim(base64);
  // The type comes first, in two bytes, the lower one first (ceph:
  // src/auth/Crypto.cc, CryptoKey::encode).  Three digits have 18 bits.
  if (base64.size() < 4) return std::nullopt;
  std::uint32_t bits = 0;
  for (const char c : base64.substr(0, 3)) {
    const auto digit = digits.find(c);
    if (digit == std::string_view::npos) return std::nullopt;
    bits = bits << 6 | static_cast<std::uint32_t>(digit);
  }
  const std::uint32_t low = bits >> 10 & 0xff;
  const std::uint32_t high = bits >> 2 & 0xff;
  return static_cast<std::uint16_t>(high << 8 | low);
}

std::string find_key(std::string_view keyring, std::string_view entity) {
  std::string key;
  bool wanted = false;
  while (!keyring.empty()) {
    const auto end = keyring.find('\n');
    const std::string_view line = trim(keyring.substr(0, end));
    keyring.remove_prefix(end == std::string_view::npos ? keyring.size()
                                                        : end + 1);
    if (line.starts_with('[') && line.ends_with(']')) {
      wanted = trim(line.substr(1, line.size() - 2)) == entity;
    } else if (const auto equals = line.find('=');
               wanted && equals != std::string_view::npos &&
               trim(line.substr(0, equals)) == "key") {
      key = trim(line.substr(equals + 1));
    }
  }
  return key;
}

}  // namespace nbdrados
