// SPDX-License-Identifier: BSD-3-Clause

#include "options.hpp"

#include <getopt.h>

#include <algorithm>
#include <bit>
#include <cctype>
#include <charconv>
#include <climits>
#include <cstddef>
#include <limits>
#include <string_view>
#include <utility>

#include "nbdkit/parameters.hpp"

#ifdef HAVE_CONFIG_H
#include "config.h"
#endif

namespace radoscopy {

namespace {

enum LongOption : int {
  help_option = CHAR_MAX + 1,
  long_options_option,
  short_options_option,
  allocated_option,
  bwlimit_option,
  checksum_option,
  create_option,
  zero_option,
  flush_option,
  in_place_option,
  iops_limit_option,
  json_option,
  no_extents_option,
  no_snapshot_option,
  offload_option,
  queue_size_option,
  ranges_option,
  request_size_option,
  retries_option,
  synchronous_option,
  verify_option,
};

constexpr const char* short_options = "C:pR:S:T:vV";
constexpr struct option long_options[] = {
    {"help", no_argument, nullptr, help_option},
    {"long-options", no_argument, nullptr, long_options_option},
    {"short-options", no_argument, nullptr, short_options_option},
    {"allocated", no_argument, nullptr, allocated_option},
    {"bwlimit", required_argument, nullptr, bwlimit_option},
    {"checksum", required_argument, nullptr, checksum_option},
    {"connections", required_argument, nullptr, 'C'},
    {"create", optional_argument, nullptr, create_option},
    {"destination-is-zero", no_argument, nullptr, zero_option},
    {"flush", no_argument, nullptr, flush_option},
    {"in-place", no_argument, nullptr, in_place_option},
    {"iops-limit", required_argument, nullptr, iops_limit_option},
    {"json", no_argument, nullptr, json_option},
    {"no-extents", no_argument, nullptr, no_extents_option},
    {"no-snapshot", no_argument, nullptr, no_snapshot_option},
    {"offload", required_argument, nullptr, offload_option},
    {"progress", optional_argument, nullptr, 'p'},
    {"queue-size", required_argument, nullptr, queue_size_option},
    {"ranges", required_argument, nullptr, ranges_option},
    {"request-size", required_argument, nullptr, request_size_option},
    {"requests", required_argument, nullptr, 'R'},
    {"retries", required_argument, nullptr, retries_option},
    {"sparse", required_argument, nullptr, 'S'},
    {"synchronous", no_argument, nullptr, synchronous_option},
    {"target-is-zero", no_argument, nullptr, zero_option},
    {"threads", required_argument, nullptr, 'T'},
    {"verbose", no_argument, nullptr, 'v'},
    {"verify", optional_argument, nullptr, verify_option},
    {"version", no_argument, nullptr, 'V'},
    {nullptr, 0, nullptr, 0}};

constexpr std::uint64_t least_request = 4096;
constexpr std::uint64_t most_request = 32 << 20;

/// A command line for getopt, which wants to change it.
class Arguments {
 public:
  explicit Arguments(const std::vector<std::string>& words) {
    copies_.emplace_back("radoscopy");
    copies_.insert(copies_.end(), words.begin(), words.end());
    for (std::string& word : copies_) pointers_.push_back(word.data());
    pointers_.push_back(nullptr);
  }
  [[nodiscard]] int count() const noexcept {
    return static_cast<int>(copies_.size());
  }
  [[nodiscard]] char** words() noexcept { return pointers_.data(); }
  /// In the order that getopt has left: options first.
  [[nodiscard]] std::vector<std::string> rest(int from) const {
    std::vector<std::string> out;
    for (int i = from; i < count(); ++i)
      out.emplace_back(pointers_[static_cast<std::size_t>(i)]);
    return out;
  }

 private:
  std::vector<std::string> copies_;
  std::vector<char*> pointers_;
};

[[noreturn]] void bad(const std::string& text) {
  throw UsageError(text, false);
}

/// Bytes; nbdcopy has no suffixes.
std::uint64_t size_of(const std::string& option, std::string_view value,
                      std::uint64_t least, std::uint64_t most) {
  try {
    return nbdrados::parse_size(option, value, least, most);
  } catch (const std::invalid_argument& e) {
    bad(e.what());
  }
}

unsigned count_of(const std::string& option, std::string_view value,
                  unsigned least) {
  try {
    return static_cast<unsigned>(
        nbdrados::parse_number(option, value, least, INT_MAX));
  } catch (const std::invalid_argument& e) {
    bad(e.what());
  }
}

std::uint64_t power_of_two(const std::string& option, std::uint64_t n) {
  if (n != 0 && !std::has_single_bit(n))
    bad(option + ": must be a power of 2");
  return n;
}

std::string list_long_options() {
  std::string text;
  for (const struct option* o = long_options; o->name != nullptr; ++o)
    if (o->val != long_options_option && o->val != short_options_option)
      text += "--" + std::string(o->name) + "\n";
  return text;
}

std::string list_short_options() {
  std::string text;
  for (const char c : std::string_view(short_options))
    if (c != ':') text += std::string("-") + c + "\n";
  return text;
}

void set_progress(Options& options, const char* value) {
  options.progress = true;
  if (value != nullptr)
    options.progress_fd =
        static_cast<int>(count_of("--progress", value, 0));
}

void set_verify(Options& options, const char* value) {
  if (value != nullptr && std::string_view(value) != "only")
    bad(std::string("--verify=") + value + ": only 'only' may follow");
  options.verify =
      value != nullptr ? Options::Verify::only : Options::Verify::after;
}

void set_checksum(Options& options, std::string_view value) {
  options.checksum.clear();
  while (true) {
    const auto end = std::min(value.find(','), value.size());
    std::string name(value.substr(0, end));
    for (char& c : name)
      c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    if (name.empty() || std::ranges::count(options.checksum, name) != 0)
      bad("--checksum: each algorithm once, with commas in between");
    options.checksum.push_back(std::move(name));
    if (end == value.size()) return;
    value.remove_prefix(end + 1);
  }
}

void set_ranges(Options& options, const char* value) {
  if (*value == '\0') bad("--ranges: the name of a file is missing");
  options.ranges = value;
}

void set_offload(Options& options, std::string_view value) {
  using Offload = Options::Offload;
  if (value == "auto")
    options.offload = Offload::automatic;
  else if (value == "always")
    options.offload = Offload::always;
  else if (value == "never")
    options.offload = Offload::never;
  else
    bad("--offload=" + std::string(value) + ": auto, always or never");
}

void set_sizes(Options& options, int option, const std::string& value) {
  switch (option) {
    case bwlimit_option:
      options.bwlimit =
          size_of("--bwlimit", value, 1, nbdrados::largest_size);
      break;
    case queue_size_option:
      options.queue_size = size_of("--queue-size", value, 0, UINT_MAX);
      break;
    case request_size_option:
      options.request_size = power_of_two(
          "--request-size",
          size_of("--request-size", value, least_request, most_request));
      break;
    default: {
      const std::uint64_t n = size_of("--sparse", value, 0, UINT_MAX);
      if (n != 0 && n < 512) bad("--sparse: must be 0 or at least 512");
      options.sparse = power_of_two("--sparse", n);
    }
  }
}

void set(Options& options, int option, const char* value) {
  switch (option) {
    case help_option: throw Information{usage()};
    case long_options_option: throw Information{list_long_options()};
    case short_options_option: throw Information{list_short_options()};
    case 'V': throw Information{"radoscopy " PACKAGE_VERSION "\n"};
    case allocated_option: options.allocated = true; break;
    case checksum_option: set_checksum(options, value); break;
    case create_option:
      options.create = value != nullptr ? value : "";
      break;
    case zero_option: options.destination_is_zero = true; break;
    case flush_option: options.flush = true; break;
    case in_place_option: options.in_place = true; break;
    case iops_limit_option:
      options.iops_limit = count_of("--iops-limit", value, 1);
      break;
    case json_option: options.json = true; break;
    case no_extents_option: options.extents = false; break;
    case no_snapshot_option: options.snapshot = false; break;
    case offload_option: set_offload(options, value); break;
    case ranges_option: set_ranges(options, value); break;
    case retries_option:
      options.retries = count_of("--retries", value, 0);
      break;
    case synchronous_option: options.synchronous = true; break;
    case verify_option: set_verify(options, value); break;
    case 'p': set_progress(options, value); break;
    case 'C':
      options.connections = count_of("--connections", value, 1);
      break;
    case 'R': options.requests = count_of("--requests", value, 1); break;
    case 'T': options.threads = count_of("--threads", value, 0); break;
    case 'v': options.verbose = true; break;
    case 'S':
    case bwlimit_option:
    case queue_size_option:
    case request_size_option:
      set_sizes(options, option, value);
      break;
    default:
      // getopt has said what is wrong.
      throw UsageError("", true);
  }
}

bool is_nbd_uri(std::string_view text) {
  for (const std::string_view scheme :
       {"nbd:", "nbds:", "nbd+unix:", "nbds+unix:", "nbd+vsock:",
        "nbds+vsock:"})
    if (text.starts_with(scheme)) return true;
  return false;
}

/// Takes one side away from the front.
Target take_target(std::vector<std::string>& words, bool is_destination) {
  if (words.empty())
    throw UsageError("SOURCE and DESTINATION are needed", true);
  Target target;
  target.text = words.front();
  words.erase(words.begin());
  using Kind = Target::Kind;
  if (target.text == "[") {
    std::size_t n = 0;
    while (n < words.size() && words[n] != "]") ++n;
    if (n == words.size()) throw UsageError("']' is missing", true);
    if (n == 0) throw UsageError("a command is missing in '[ ]'", true);
    const auto end = words.begin() + static_cast<std::ptrdiff_t>(n);
    target.kind = Kind::command;
    target.command.assign(words.begin(), end);
    target.text = target.command.front();
    words.erase(words.begin(), end + 1);
  } else if (target.text.starts_with("rados:")) {
    target.kind = Kind::rados;
  } else if (is_nbd_uri(target.text)) {
    target.kind = Kind::nbd;
  } else if (is_destination && target.text == "null:") {
    target.kind = Kind::null;
  }
  return target;
}

/// What does not go together.
void check(const Options& options) {
  const bool to_rados = options.destination.kind == Target::Kind::rados;
  if (options.create && options.in_place)
    bad("--create and --in-place: an image is either new or not");
  if ((options.create || options.in_place) && !to_rados)
    bad(std::string(options.create ? "--create" : "--in-place") +
        " is for a destination rados:");
  const bool only = options.verify == Options::Verify::only;
  if (only && (options.create || options.in_place))
    bad("--verify=only: nothing is written, so neither --create nor "
        "--in-place");
  if (to_rados && !options.create && !options.in_place && !only)
    bad(options.destination.text +
        ": --create makes the image, --in-place writes into one that exists");
  if (options.retries != 0 && options.source.kind != Target::Kind::nbd)
    bad("--retries is for a source that is an NBD URI");
  if (!options.ranges.empty() && !options.checksum.empty())
    bad("--checksum is of a whole disk, not of --ranges");
  if (options.ranges == "-" && options.source.text == "-")
    bad("--ranges=-: the standard input is the source");
  if (options.offload == Options::Offload::always && options.allocated)
    bad("--offload=always and --allocated: what is copied inside the cluster "
        "keeps the holes behind its data");
  if (options.offload == Options::Offload::always &&
      !(options.checksum.empty() && options.ranges.empty()))
    bad("--offload=always: what is copied inside the cluster has no --checksum, "
        "and no --ranges");
  if (options.json && options.destination.text == "-")
    bad("--json: the standard output is the destination");
}

}  // namespace

std::string usage() {
  return
      "\n"
      "Copy disks between RADOS, NBD and files:\n"
      "\n"
      "    radoscopy [--allocated] [--bwlimit=RATE]\n"
      "              [--checksum=ALGORITHM,...] [-C N|--connections=N]\n"
      "              [--create[=OPTIONS]|--in-place]\n"
      "              [--destination-is-zero|--target-is-zero] [--flush]\n"
      "              [--iops-limit=N] [--json] [--no-extents] [--no-snapshot]\n"
      "              [--offload=auto|always|never]\n"
      "              [-p|--progress|--progress=FD] [--queue-size=N]\n"
      "              [--ranges=FILE|-] [--request-size=N] [-R N|--requests=N]\n"
      "              [--retries=N] [-S N|--sparse=N] [--synchronous]\n"
      "              [-T N|--threads=N] [-v|--verbose] [--verify[=only]]\n"
      "              SOURCE DESTINATION\n"
      "\n"
      "    SOURCE, DESTINATION := - | FILE | DEVICE | NBD-URI |\n"
      "        [ CMD ARGS ... ] |\n"
      "        rados:POOL/[NAMESPACE/]IMAGE[@SNAP][?KEY=VALUE[&KEY=VALUE...]]\n"
      "    DESTINATION += null:\n"
      "\n"
      "Other options:\n"
      "\n"
      "    radoscopy --help\n"
      "    radoscopy -V|--version\n"
      "\n"
      "Please read the radoscopy(1) manual page for full usage.\n"
      "\n";
}

Options parse_options(const std::vector<std::string>& arguments) {
  Arguments line(arguments);
  Options options;
  ::optind = 0;  // from the beginning, also for the second time (getopt(3))
  for (;;) {
    const int c = ::getopt_long(line.count(), line.words(), short_options,
                                long_options, nullptr);
    if (c == -1) break;
    set(options, c, ::optarg);
  }
  std::vector<std::string> rest = line.rest(::optind);
  options.source = take_target(rest, false);
  options.destination = take_target(rest, true);
  if (!rest.empty())
    throw UsageError("too many arguments: '" + rest.front() + "'", true);
  check(options);
  return options;
}

}  // namespace radoscopy
