// SPDX-License-Identifier: BSD-3-Clause
//
// Makes and removes snapshots of images, as `rbd snap create` and `rbd snap rm`
// do.
//
// The rooms; an arrow is "knows":
//
//     snapshots ---> format2_changes   the steps, for who may take them
//         |
//         +--------> lock_or_owner     who may: with the lock, or the owner
//
// Format 1 has neither lock nor object map; it is in snapshots.cpp.

#ifndef NBDRADOS_SNAPSHOTS_SNAPSHOTS_HPP
#define NBDRADOS_SNAPSHOTS_SNAPSHOTS_HPP

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "formats/catalog.hpp"
#include "rados/cluster.hpp"

namespace nbdrados {

/// An image's head.  What is here is for one thread at a time; all members
/// block and throw Error, of which
///   ENOTSUP    the format or a feature of the image does not allow it;
///   EROFS      another client has the lock, and will neither do it nor hand
///              the lock over;
///   EPERM, EACCES   the key does not allow it;
///   ETIMEDOUT  there was no answer in time: it may have happened, or happen
///              yet.
class Snapshots {
 public:
  /// Receives a line about what is not as it should be.
  using Log = std::function<void(const std::string& line)>;

  /// `image` is the identity of the head; `spec` is what messages call it.
  Snapshots(std::shared_ptr<Cluster> cluster, ImageIdentity image,
            ImageSpec spec, Log log);

  struct Entry {
    SnapId id = 0;
    /// In the trash: what it was called before.
    std::string name;
    /// Removed, but for what its clones need, or what a client that died on the
    /// way has left; only its id names it.
    bool in_trash = false;
    bool operator==(const Entry&) const = default;
  };
  /// Those of users, newest first.
  [[nodiscard]] std::vector<Entry> list() const;

  /// What clients have written before is in it, and what they begin to write
  /// when this has returned is not.  Throws Error; EEXIST: there is one of that
  /// name.
  [[nodiscard]] SnapId create(const std::string& name);

  /// One that does not exist any more is fine.  Where it has clones it goes to
  /// the trash, and goes with them.  Throws Error; EBUSY: it is protected, or
  /// the image has been flattened since, and then `rbd snap rm` can do it.
  void remove(SnapId snap, const std::string& name);

 private:
  const std::shared_ptr<Cluster> cluster_;
  const ImageIdentity image_;
  const ImageSpec spec_;
  const Log log_;
};

}  // namespace nbdrados

#endif
