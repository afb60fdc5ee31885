// SPDX-License-Identifier: BSD-3-Clause
//
// Where to look first for a snapshot's name.

#ifndef NBDRADOS_FORMATS_KNOWN_SNAPSHOTS_HPP
#define NBDRADOS_FORMATS_KNOWN_SNAPSHOTS_HPP

#include <cstddef>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "rados/object_store.hpp"

namespace nbdrados {

/// Remembers the names that snapshots of format 2 had when all those of their
/// image were read, because a header can be asked for a snapshot by its id
/// only.  A client that opens each snapshot of an image, as `nbdinfo --list`
/// does, would have all of them read for each.  Names change without notice, so
/// this is only a guess.  Thread-safe.
class KnownSnapshots {
 public:
  using Names = std::map<std::string, SnapId>;

  /// The snapshot that had this name, where the image has the same snapshots as
  /// then; `image` is any text that tells images apart.
  [[nodiscard]] std::optional<SnapId> find(const std::string& image,
                                           const SnapContext& snapshots,
                                           const std::string& name) {
    const std::scoped_lock lock(mutex_);
    const auto it = images_.find(image);
    if (it == images_.end() || it->second.first != snapshots)
      return std::nullopt;
    const auto found = it->second.second.find(name);
    if (found == it->second.second.end()) return std::nullopt;
    return found->second;
  }

  void learn(const std::string& image, const SnapContext& snapshots,
             Names names) {
    const std::scoped_lock lock(mutex_);
    if (const auto it = images_.find(image); it != images_.end()) {
      total_ -= it->second.second.size();
      images_.erase(it);
    }
    total_ += names.size();
    // They are learned again as soon as they are needed.
    if (total_ > most) {
      images_.clear();
      total_ = names.size();
    }
    images_.emplace(image, std::pair(snapshots, std::move(names)));
  }

 private:
  /// Names of all images: some MiB.
  static constexpr std::size_t most = 20'000;

  std::mutex mutex_;
  // Guarded by mutex_.
  std::map<std::string, std::pair<SnapContext, Names>> images_;
  std::size_t total_ = 0;
};

}  // namespace nbdrados

#endif
