// SPDX-License-Identifier: BSD-3-Clause
//
// The command line of radoscopy.  Options that nbdcopy has, too, have its
// meaning (libnbd: copy/nbdcopy.pod).

#ifndef NBDRADOS_RADOSCOPY_OPTIONS_HPP
#define NBDRADOS_RADOSCOPY_OPTIONS_HPP

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace radoscopy {

/// SOURCE or DESTINATION.
struct Target {
  enum class Kind : std::uint8_t { file, null, nbd, command, rados };
  Kind kind = Kind::file;
  std::string text;                  ///< as given; of a command its first word
  std::vector<std::string> command;  ///< with arguments
};

struct Options {
  Target source, destination;
  bool allocated = false;
  unsigned connections = 4;  ///< to an NBD server, at most
  bool destination_is_zero = false;
  bool extents = true;
  bool flush = false;
  bool progress = false;
  std::optional<int> progress_fd;  ///< none: a bar for people
  std::optional<std::uint64_t> queue_size;    ///< bytes
  std::optional<std::uint64_t> request_size;  ///< bytes
  unsigned requests = 64;     ///< on each connection
  std::uint64_t sparse = 4096;  ///< bytes; 0: off
  bool synchronous = false;
  unsigned threads = 0;  ///< 0: as there are processors
  bool verbose = false;
  // These are not nbdcopy's.
  std::optional<std::string> create;  ///< the options behind the =
  bool in_place = false;
  bool json = false;
  bool snapshot = true;  ///< of a source that is the head of an image
  enum class Verify : std::uint8_t { no, after, only };
  Verify verify = Verify::no;
  enum class Offload : std::uint8_t { automatic, always, never };
  Offload offload = Offload::automatic;
  std::uint64_t bwlimit = 0;  ///< bytes a second; 0: none
  std::uint64_t iops_limit = 0;  ///< requests a second; 0: none
  std::vector<std::string> checksum;  ///< algorithms
  unsigned retries = 0;  ///< of connecting to a source
  std::string ranges;  ///< file, "-", or "": the whole disk
};

/// What is printed instead of a copy.
struct Information {
  std::string text;
};

/// The command line makes no sense.
class UsageError : public std::runtime_error {
 public:
  UsageError(const std::string& text, bool show_usage)
      : std::runtime_error(text), show_usage_(show_usage) {}
  /// Whether the options are to be listed, too.
  [[nodiscard]] bool show_usage() const noexcept { return show_usage_; }

 private:
  bool show_usage_;
};

[[nodiscard]] std::string usage();

/// What the arguments, without the program's name, say.  Throws UsageError, and
/// Information where that is what they ask for.
[[nodiscard]] Options parse_options(const std::vector<std::string>& arguments);

}  // namespace radoscopy

#endif
