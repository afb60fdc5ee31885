// SPDX-License-Identifier: BSD-3-Clause
//
// A snapshot of the source that lives as long as its copy, so that the copy is
// of one moment.

#ifndef NBDRADOS_COPY_SOURCE_SNAPSHOT_HPP
#define NBDRADOS_COPY_SOURCE_SNAPSHOT_HPP

#include <functional>
#include <memory>
#include <string>

#include "formats/catalog.hpp"
#include "rados/cluster.hpp"
#include "snapshots/snapshots.hpp"

namespace nbdrados::copy {

/// For one thread.
class SourceSnapshot {
 public:
  using Log = std::function<void(const std::string& line, bool trouble)>;

  /// Makes it.  `image` and `spec` are of a head.  `log` also receives a line
  /// about each snapshot of another copy, which may run, or have been killed.
  /// Throws Error that says how to do without.
  SourceSnapshot(const std::shared_ptr<Cluster>& cluster,
                 const ImageIdentity& image, const ImageSpec& spec, Log log);
  SourceSnapshot(const SourceSnapshot&) = delete;
  SourceSnapshot& operator=(const SourceSnapshot&) = delete;

  [[nodiscard]] SnapId id() const noexcept { return id_; }
  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  /// With that of the image, as people write it.
  [[nodiscard]] std::string text() const { return spec_.text() + "@" + name_; }

  /// To be called at the end, when nobody reads it any more.  Throws Error that
  /// says how to remove what is left.
  void remove();

 private:
  void name_others() const;

  const ImageSpec spec_;
  const Log log_;
  Snapshots snapshots_;
  const std::string name_;
  SnapId id_ = 0;
};

}  // namespace nbdrados::copy

#endif
