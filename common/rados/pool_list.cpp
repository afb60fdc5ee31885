// SPDX-License-Identifier: BSD-3-Clause

#include "rados/pool_list.hpp"

#include <cstddef>
#include <cstdio>
#include <limits>

#include "layout/decimal.hpp"

namespace nbdrados {

namespace {

/// As Ceph writes strings (ceph: src/common/escape.cc, escape_json_attr).
std::string json_string(std::string_view text) {
  std::string s = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      s += '\\';
      s += c;
    } else if (c == '\n') {
      s += "\\n";
    } else if (c == '\t') {
      s += "\\t";
    } else if (byte < 0x20 || byte == 0x7f) {
      char buffer[8];
      std::snprintf(buffer, sizeof buffer, "\\u%04x", byte);
      s += buffer;
    } else {
      s += c;
    }
  }
  return s + '"';
}

}  // namespace

std::optional<std::int64_t> find_pool(std::string_view answer,
                                      std::string_view name) {
  // No string in the answer can hold this: its quotes are escaped there.
  const auto at =
      answer.find(",\"poolname\":" + json_string(name) + '}');
  if (at == std::string_view::npos) return std::nullopt;
  const std::string_view key = "\"poolnum\":";
  const auto start = answer.rfind(key, at);
  if (start == std::string_view::npos) return std::nullopt;
  const std::size_t digits = start + key.size();
  const auto number = parse_digits(answer.substr(digits, at - digits));
  if (!number || *number > std::numeric_limits<std::int64_t>::max())
    return std::nullopt;
  return static_cast<std::int64_t>(*number);
}

}  // namespace nbdrados
