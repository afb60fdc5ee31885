// SPDX-License-Identifier: BSD-3-Clause
//
// Parameters: their values, and the table of what a plugin or filter takes.
// The functions of nbdkit that parse values print a line of their own, which
// does not name the parameter.

#ifndef NBDRADOS_NBDKIT_PARAMETERS_HPP
#define NBDRADOS_NBDKIT_PARAMETERS_HPP

#include <cctype>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "layout/decimal.hpp"

namespace nbdrados {

/// The largest size that nbdkit knows.
inline constexpr std::uint64_t largest_size = (std::uint64_t{1} << 63) - 1;

/// `n`, if it is in the range; `what` is what it should be.
[[nodiscard]] inline std::uint64_t check_range(
    std::string_view key, std::string_view value, std::string_view what,
    std::optional<std::uint64_t> n, std::uint64_t least, std::uint64_t most) {
  if (n && *n >= least && *n <= most) return *n;
  std::string text(key);
  text.append("=").append(value).append(" is not ").append(what);
  text += " in the range " + std::to_string(least) + " to " +
          (most == largest_size ? "2^63-1" : std::to_string(most));
  throw std::invalid_argument(text);
}

/// A number of what is counted.  Throws std::invalid_argument, whose text names
/// the key and the range.
[[nodiscard]] inline std::uint64_t parse_number(std::string_view key,
                                                std::string_view value,
                                                std::uint64_t least,
                                                std::uint64_t most) {
  return check_range(key, value, "a number", parse_digits(value), least, most);
}

/// Bytes, with the suffixes of nbdkit_parse_size.  Throws as parse_number.
[[nodiscard]] inline std::uint64_t parse_size(
    std::string_view key, std::string_view value, std::uint64_t least = 0,
    std::uint64_t most = largest_size) {
  // Powers of 1024, except for "b", bytes, and "s", sectors of 512 bytes.
  constexpr std::string_view units = "bkmgtpe";
  std::string_view digits = value;
  std::uint64_t unit = 1;
  if (!digits.empty()) {
    const char last = static_cast<char>(
        std::tolower(static_cast<unsigned char>(digits.back())));
    if (const auto at = units.find(last); at != std::string_view::npos) {
      unit = std::uint64_t{1} << (10 * at);
      digits.remove_suffix(1);
    } else if (last == 's') {
      unit = 512;
      digits.remove_suffix(1);
    }
  }
  auto n = parse_digits(digits);
  if (n && *n > largest_size / unit) n.reset();
  if (n) *n *= unit;
  return check_range(key, value, "a size", n, least, most);
}

/// A time, in the formats of nbdkit_parse_delay(3) (nbdkit 1.40): a decimal
/// number of seconds, or with s, ms, us, μs or ns behind it.  What that
/// function takes besides (1.48.1: signs, blanks, exponents, hexadecimal
/// digits) is none.  Rounded up to a millisecond; a time above 0 is at least
/// one.  Throws as parse_number.
[[nodiscard]] inline std::chrono::milliseconds parse_time(
    std::string_view key, std::string_view value,
    std::chrono::milliseconds least, std::chrono::milliseconds most) {
  static constexpr std::pair<std::string_view, double> units[] = {
      {"ms", 1}, {"us", 1e-3}, {"μs", 1e-3}, {"ns", 1e-6}, {"s", 1e3}};
  std::string_view digits = value;
  double unit = 1e3;
  for (const auto& [name, milliseconds] : units)
    if (digits.ends_with(name)) {
      digits.remove_suffix(name.size());
      unit = milliseconds;
      break;
    }
  double n = -1;
  const char* const end = digits.data() + digits.size();
  // Neither signs nor exponents, and no names such as "inf".
  if (digits.find_first_not_of("0123456789.") == std::string_view::npos) {
    const auto [stop, error] = std::from_chars(digits.data(), end, n);
    if (error != std::errc() || stop != end) n = -1;
  }
  const double ms = std::ceil(n * unit);
  if (n >= 0 && ms >= static_cast<double>(least.count()) &&
      ms <= static_cast<double>(most.count()))
    return std::chrono::milliseconds(static_cast<std::int64_t>(ms));
  const auto text = [](std::chrono::milliseconds t) {
    return t.count() % 1000 == 0 ? std::to_string(t.count() / 1000) + "s"
                                 : std::to_string(t.count()) + "ms";
  };
  std::string message(key);
  message.append("=").append(value).append(" is not a time in the range ");
  throw std::invalid_argument(message + text(least) + " to " + text(most));
}

/// A word that a parameter can have as its value, and what it stands for.
template <class T>
using Choice = std::pair<std::string_view, T>;

/// The words of a table, with `between` between them and `last` before the
/// last.
template <class T, std::size_t n>
[[nodiscard]] std::string words(const Choice<T> (&choices)[n],
                                std::string_view between,
                                std::string_view last) {
  std::string out(choices[0].first);
  for (std::size_t i = 1; i < n; ++i)
    out.append(i == n - 1 ? last : between).append(choices[i].first);
  return out;
}

/// As --help and the manual pages have them.
template <class T, std::size_t n>
[[nodiscard]] std::string words(const Choice<T> (&choices)[n]) {
  return words(choices, "|", "|");
}

/// What a word stands for; none: it is not in the table.
template <class T, std::size_t n>
[[nodiscard]] std::optional<T> find_choice(std::string_view word,
                                           const Choice<T> (&choices)[n]) {
  for (const auto& choice : choices)
    if (choice.first == word) return choice.second;
  return std::nullopt;
}

/// One parameter of a plugin or filter, which keeps what it is told in a
/// Config.
template <class Config>
struct Parameter {
  /// What a parameter needs besides itself.
  struct Need {
    bool (*holds)(const Config&);
    std::string_view otherwise;  ///< what is wrong, behind "KEY= "
  };

  /// KEY=VALUE as --help has it; [KEY=]VALUE: the key may be left out.  In a
  /// KEY that ends with <...> that part stands for any text.
  std::string usage;
  /// For --help; lines of at most 52 columns.
  std::string_view help;
  /// Throws std::exception, whose text names the key.
  void (*set)(Config&, const std::string& key, const std::string& value);
  /// Null: nothing.
  const Need* need = nullptr;

  [[nodiscard]] std::string_view key() const {
    std::string_view key = usage;
    key = key.substr(0, key.find('='));
    if (key.starts_with('[')) key.remove_prefix(1);
    return key;
  }
  [[nodiscard]] bool takes(std::string_view given) const {
    const std::string_view own = key();
    if (!own.ends_with('>')) return own == given;
    const std::string_view begin = own.substr(0, own.find('<'));
    return given.starts_with(begin) && given.size() > begin.size();
  }
};

/// All parameters.  Config has a std::set<std::string> `given`: the keys.
template <class Config>
class Parameters {
 public:
  explicit Parameters(std::vector<Parameter<Config>> all)
      : all_(std::move(all)) {
    // Where the texts begin.
    constexpr std::size_t column = 27;
    for (const auto& p : all_) {
      help_ += help_.empty() ? "" : "\n";
      help_ += p.usage;
      help_ += p.usage.size() < column
                   ? std::string(column - p.usage.size(), ' ')
                   : "\n" + std::string(column, ' ');
      for (const char c : p.help) {
        help_ += c;
        if (c == '\n') help_.append(column, ' ');
      }
    }
  }

  /// False: there is no such parameter.  Throws as Parameter::set.
  [[nodiscard]] bool set(Config& config, const std::string& key,
                         const std::string& value) const {
    for (const auto& p : all_)
      if (p.takes(key)) {
        p.set(config, key, value);
        config.given.insert(key);
        return true;
      }
    return false;
  }

  /// When all have been set.  Throws std::invalid_argument, whose text names
  /// the parameter and what it lacks.
  void check_needs(const Config& config) const {
    for (const auto& p : all_)
      if (const std::string key(p.key());
          p.need && config.given.contains(key) && !p.need->holds(config))
        throw std::invalid_argument(key + "= " +
                                    std::string(p.need->otherwise));
  }

  /// For --help; one paragraph a parameter.
  [[nodiscard]] const char* help() const noexcept { return help_.c_str(); }

 private:
  std::vector<Parameter<Config>> all_;
  std::string help_;
};

}  // namespace nbdrados

#endif
