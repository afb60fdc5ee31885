// SPDX-License-Identifier: BSD-3-Clause

#include "copy/rados_uri.hpp"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <optional>
#include <utility>

#include "open/parameters.hpp"
#include "rados/error.hpp"

namespace nbdrados::copy {

namespace {

using parameters::Table;

template <class... Tables>
Parameters<ImageConfig> one_table(Tables... tables) {
  Table<ImageConfig> all;
  (all.insert(all.end(), tables.begin(), tables.end()), ...);
  return Parameters<ImageConfig>(std::move(all));
}

/// How to find and open an image.
const Parameters<ImageConfig>& opening() {
  static const auto all =
      one_table(parameters::image_parameters<ImageConfig>(),
                parameters::cluster_parameters<ImageConfig>(),
                parameters::serving_parameters<ImageConfig>());
  return all;
}

const Parameters<ImageConfig>& creating() {
  static const auto all =
      one_table(parameters::creation_parameters<ImageConfig>());
  return all;
}

void set(const Parameters<ImageConfig>& all, ImageConfig& config,
         std::string_view assignment) {
  const auto equals = assignment.find('=');
  const std::string key(assignment.substr(0, equals));
  if (equals == std::string_view::npos)
    throw Error(EINVAL, "'" + key + "' is not of the form KEY=VALUE");
  if (config.given.contains(key) && !key.starts_with("ceph."))
    throw Error(EINVAL, key + "= is given twice");
  // create= is what --create says.
  if (key == "create" || key == "target" ||
      !all.set(config, key, std::string(assignment.substr(equals + 1))))
    throw Error(EINVAL, "unknown parameter '" + key + "'");
}

std::optional<unsigned> hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return std::nullopt;
}

/// "%XX" is a byte, any other '%' itself.
std::string decode_percent(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size()) {
      const auto high = hex_digit(text[i + 1]);
      const auto low = hex_digit(text[i + 2]);
      if (high && low) {
        out += static_cast<char>(*high * 16 + *low);
        i += 2;
        continue;
      }
    }
    out += text[i];
  }
  return out;
}

/// Where KEY=VALUE ends, before a comma that another KEY= follows.
std::size_t end_of_assignment(std::string_view text) {
  std::size_t end = text.find(',');
  while (end != std::string_view::npos) {
    const std::string_view rest = text.substr(end + 1);
    const std::string_view word = rest.substr(0, rest.find(','));
    if (word.find('=') != std::string_view::npos) return end;
    end = text.find(',', end + 1);
  }
  return text.size();
}

}  // namespace

ImageConfig parse_rados_uri(std::string_view text) {
  text.remove_prefix(std::string_view("rados:").size());
  ImageConfig config;
  const auto question = text.find('?');
  if (question != std::string_view::npos) {
    std::string_view rest = text.substr(question + 1);
    text = text.substr(0, question);
    while (!rest.empty()) {
      const auto end = std::min(rest.find('&'), rest.size());
      set(opening(), config, decode_percent(rest.substr(0, end)));
      rest.remove_prefix(std::min(end + 1, rest.size()));
    }
  }
  if (!text.empty())
    parameters::set_target(config, "target", std::string(text));
  config.check_cluster();
  if (!config.image)
    throw Error(EINVAL, "an image is missing behind the pool '" + config.pool +
                            "'");
  return config;
}

void parse_create_options(std::string_view text, ImageConfig& config) {
  config.create = true;
  while (!text.empty()) {
    const std::size_t end = end_of_assignment(text);
    set(creating(), config, text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

}  // namespace nbdrados::copy
