// SPDX-License-Identifier: BSD-3-Clause

#include "rados/keyring.hpp"

#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <utility>

namespace nbdrados {

namespace {

constexpr std::string_view white = " \t\r\n";

std::string_view trim(std::string_view text) {
  const auto first = text.find_first_not_of(white);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(white) - first + 1);
}

/// None: it is no base64.
std::optional<std::string> decode_base64(std::string_view text) {
  constexpr std::string_view digits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  if (text.size() % 4 != 0) return std::nullopt;
  for (int i = 0; i < 2 && text.ends_with('='); ++i) text.remove_suffix(1);
  std::string bytes;
  std::uint32_t bits = 0;
  unsigned count = 0;  // of bits that no byte has yet
  for (const char c : text) {
    const auto digit = digits.find(c);
    if (digit == std::string_view::npos) return std::nullopt;
    bits = bits << 6 | static_cast<std::uint32_t>(digit);
    count += 6;
    if (count < 8) continue;
    count -= 8;
    bytes += static_cast<char>(bits >> count & 0xff);
  }
  return bytes;
}

/// The content of a file; none: it cannot be read, or is not a plain file, of
/// which a second reader would get nothing, or wait for ever.
std::optional<std::string> content(const std::string& path) {
  std::error_code error;
  std::ifstream file(path);
  if (!file || !std::filesystem::is_regular_file(path, error))
    return std::nullopt;
  std::ostringstream text;
  text << file.rdbuf();  // unlike an iterator, throws nothing
  return std::move(text).str();
}

}  // namespace

// ceph: src/auth/Crypto.cc, CryptoKey::encode: the type in two bytes, the time
// in eight, the length of the secret in two, the lower ones first, the secret.
// The types are CEPH_CRYPTO_* in src/include/ceph_fs.h.
KeyState key_state(std::string_view base64) {
  constexpr std::size_t header = 12;
  constexpr unsigned type_aes = 1;
  constexpr unsigned type_aes256k = 2;
  const auto bytes = decode_base64(trim(base64));
  if (!bytes || bytes->size() < header) return KeyState::damaged;
  const auto number = [&](std::size_t at) {
    return static_cast<unsigned char>((*bytes)[at]) |
           static_cast<unsigned>(static_cast<unsigned char>((*bytes)[at + 1]))
               << 8;
  };
  const unsigned type = number(0);
  const std::size_t length = number(header - 2);
  if (bytes->size() - header != length) return KeyState::damaged;
  if (type == type_aes && length == 16) return KeyState::good;
  if (type == type_aes256k && length == 32) return KeyState::aes256k;
  return KeyState::damaged;
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

// ceph: src/auth/KeyRing.cc, from_ceph_context: the first of these that is set;
// src/common/config.cc, ceph_resolve_file_search: the first file that opens.
KeyReport report_key(const KeyOptions& options, std::string_view entity) {
  if (!options.key.empty())
    return {key_state(options.key), "Ceph's option key"};
  if (!options.keyfile.empty()) {
    const auto text = content(options.keyfile);
    return {text ? key_state(*text) : KeyState::unreadable,
            "keyfile " + options.keyfile};
  }
  std::string tried;
  for (std::string_view rest = options.keyring; !rest.empty();) {
    const auto end = rest.find_first_of(",;");
    const std::string path(trim(rest.substr(0, end)));
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    if (path.empty()) continue;
    if (!std::ifstream(path)) {
      tried += (tried.empty() ? "" : " or ") + path;
      continue;
    }
    const auto text = content(path);
    if (!text) return {KeyState::unreadable, "keyring " + path};
    const std::string key = find_key(*text, entity);
    return {key.empty() ? KeyState::missing : key_state(key),
            "keyring " + path};
  }
  return {KeyState::unreadable, "keyring " + tried};
}

}  // namespace nbdrados
