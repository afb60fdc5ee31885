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
#include "copy/engine.hpp"
#include "copy/new_image.hpp"
#include "copy/offload.hpp"
#include "copy/source_snapshot.hpp"
#include "options.hpp"
#include "running.hpp"

namespace radoscopy {

/// A side of the copy, open.
struct Side {
  std::string name;  ///< for messages
  /// Of a destination that was made for this copy: its end is to be told to it
  /// when the endpoint has gone.
  std::shared_ptr<nbdrados::copy::NewImage> new_image;
  /// Of a source that changes: to be removed when the endpoint has gone.
  std::shared_ptr<nbdrados::copy::SourceSnapshot> snapshot;
  std::unique_ptr<nbdrados::copy::Endpoint> endpoint;
  /// Of an NBD server: what does its data phase.
  std::string engine;
  /// Bytes of a request that suit it.
  std::uint64_t request_size = 256 << 10;
};

/// Both throw Error whose text names the side.
[[nodiscard]] Side open_source(const Options& options, Running& running);
[[nodiscard]] Side open_destination(const Options& options, Side& source,
                                    Running& running);

/// Ends a source, whatever has come of the copy.  Throws Error that says what
/// is left of it.
void close_source(Side& side, Running& running);

/// What both sides together make possible.
struct Joined {
  unsigned connections = 1;  ///< to NBD servers
  /// Of NBD servers whose data needs not be seen; else none.
  decltype(nbdrados::copy::EngineOptions::move) move;
  /// Of images whose objects the cluster can copy; else null.
  std::shared_ptr<nbdrados::copy::Offload> offload = {};
};

/// Makes NBD servers on both sides have their connections.  Throws Error.
[[nodiscard]] Joined join(const Options& options, Side& source,
                          Side& destination);

}  // namespace radoscopy

#endif
