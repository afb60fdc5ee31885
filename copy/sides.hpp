// SPDX-License-Identifier: BSD-3-Clause
//
// Opens what the command line names.

#ifndef NBDRADOS_RADOSCOPY_SIDES_HPP
#define NBDRADOS_RADOSCOPY_SIDES_HPP

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "copy/endpoint.hpp"
#include "copy/new_image.hpp"
#include "options.hpp"

namespace radoscopy {

/// A side of the copy, open.
struct Side {
  std::string name;  ///< for messages
  /// Of a destination that was made for this copy: its end is to be told to it
  /// when the endpoint has gone.
  std::unique_ptr<nbdrados::copy::NewImage> new_image;
  std::unique_ptr<nbdrados::copy::Endpoint> endpoint;
  /// Bytes of a request that suit it.
  std::uint64_t request_size = 256 << 10;
};

/// Both throw Error whose text names the side.
[[nodiscard]] Side open_source(const Options& options);
[[nodiscard]] Side open_destination(const Options& options, Side& source);

/// Makes NBD servers on both sides have their connections.  Returns how many.
[[nodiscard]] unsigned connect_all(const Options& options, Side& source,
                                   Side& destination);

}  // namespace radoscopy

#endif
