// SPDX-License-Identifier: BSD-3-Clause
//
// Digests of a disk whose parts come in any order, while it is copied.
//
// The tree digest ALGORITHM-tree, with H as the algorithm:
//
//     leaves:  H of each block of 64 KiB; the last one may be shorter
//     nodes:   H of the digests of 1024 neighbours (the last one: of the rest),
//              level by level until one digest is left
//     result:  H of that digest (of nothing, where there are no bytes) and of
//              the size, 8 bytes, big-endian
//
//         result
//            |
//          node                       level 2
//         /    \                                                     .
//      node    node                   level 1
//      / \     / | \                                                 .
//     leaf leaf ...                   level 0
//
// So blocks can be digested by many threads and in any order, and a node is
// done with when its children have come: what is kept are the nodes that lack
// some, and these are few since a copy goes from the start to the end.  Of
// zeros each level has one digest, which is computed once: 1024^n blocks of
// zeros cost as much as one.
//
// A plain digest is that of all bytes one after the other.

#ifndef NBDRADOS_COPY_CHECKSUM_HPP
#define NBDRADOS_COPY_CHECKSUM_HPP

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace nbdrados::copy {

struct Digest {
  std::string name;  ///< "sha256-tree", "sha256"
  std::string hex;   ///< small letters
};

/// Thread-safe.
class Checksum {
 public:
  /// `algorithms` are names that libcrypto knows; `plain`: the plain digests,
  /// too, which wants parts that come nearly in order: what comes too early is
  /// kept.  Throws Error(EINVAL) for an unknown algorithm.
  Checksum(const std::vector<std::string>& algorithms, bool plain);
  ~Checksum();
  Checksum(const Checksum&) = delete;
  Checksum& operator=(const Checksum&) = delete;

  /// A part of the disk.  Each byte comes once, in one of these.
  void data(std::uint64_t offset, std::span<const char> bytes);
  void zeros(std::uint64_t offset, std::uint64_t length);

  /// When all `size` bytes have come, once.  Throws Error(EIO) where they have
  /// not.
  [[nodiscard]] std::vector<Digest> finish(std::uint64_t size);

 private:
  class Hash;
  class Tree;
  class Blocks;
  class Plain;

  std::vector<Hash> hashes_;
  std::unique_ptr<Blocks> blocks_;
  std::vector<std::unique_ptr<Plain>> plain_;
};

}  // namespace nbdrados::copy

#endif
