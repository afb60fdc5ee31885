// SPDX-License-Identifier: BSD-3-Clause

#include "copy/ranges.hpp"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string_view>

#include "nbdkit/parameters.hpp"
#include "rados/error.hpp"

namespace nbdrados::copy {

namespace {

std::optional<std::uint64_t> parse_offset(std::string_view word) {
  if (word.starts_with("0x") || word.starts_with("0X")) {
    word.remove_prefix(2);
    std::uint64_t n = 0;
    const char* const end = word.data() + word.size();
    const auto [stop, error] = std::from_chars(word.data(), end, n, 16);
    if (error != std::errc() || stop != end || n > largest_size)
      return std::nullopt;
    return n;
  }
  try {
    return parse_size("", word);
  } catch (const std::invalid_argument&) {
    return std::nullopt;
  }
}

/// Takes a word away from the front; empty: there is none.
std::string_view next_word(std::string_view& line) {
  constexpr std::string_view blanks = " \t\r";
  line.remove_prefix(std::min(line.find_first_not_of(blanks), line.size()));
  const std::string_view word =
      line.substr(0, std::min(line.find_first_of(blanks), line.size()));
  line.remove_prefix(word.size());
  return word;
}

/// Of a line without comment that is not empty; none: it makes no sense.
std::optional<Range> parse_range(std::string_view line) {
  const auto source = parse_offset(next_word(line));
  const auto destination = parse_offset(next_word(line));
  const auto length = parse_offset(next_word(line));
  if (!source || !destination || !length || !next_word(line).empty() ||
      *length == 0 || *length > largest_size - *source ||
      *length > largest_size - *destination)
    return std::nullopt;
  return Range{*source, *destination, *length};
}

[[noreturn]] void bad(const std::string& name, const std::string& text) {
  throw Error(EINVAL, name + ": " + text);
}

std::string text_of(const Range& r) {
  return std::to_string(r.destination) + "+" + std::to_string(r.length);
}

void check_overlaps(const std::vector<Range>& ranges, const std::string& name) {
  std::vector<std::uint32_t> order(ranges.size());
  std::iota(order.begin(), order.end(), 0U);
  std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
    return ranges[a].destination < ranges[b].destination;
  });
  for (std::size_t i = 1; i < order.size(); ++i) {
    const Range& a = ranges[order[i - 1]];
    const Range& b = ranges[order[i]];
    if (a.destination + a.length > b.destination)
      bad(name, "destinations overlap: " + text_of(a) + " and " + text_of(b));
  }
}

}  // namespace

std::vector<Range> read_ranges(std::istream& from, const std::string& name) {
  std::vector<Range> ranges;
  std::string line;
  for (std::size_t number = 1; std::getline(from, line); ++number) {
    const std::string where = "line " + std::to_string(number);
    std::string_view text = line;
    text = text.substr(0, text.find('#'));
    std::string_view rest = text;
    if (next_word(rest).empty()) continue;
    const auto range = parse_range(text);
    if (!range)
      bad(name, where + ": not 'SOURCE-OFFSET DESTINATION-OFFSET LENGTH'");
    if (ranges.size() == most_ranges)
      bad(name,
          where + ": more than " + std::to_string(most_ranges) + " ranges");
    ranges.push_back(*range);
  }
  if (from.bad()) throw Error(EIO, name + ": cannot be read");
  if (ranges.empty()) bad(name, "there are no ranges");
  check_overlaps(ranges, name);
  return ranges;
}

}  // namespace nbdrados::copy
