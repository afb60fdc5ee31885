// SPDX-License-Identifier: BSD-3-Clause
//
// From an image to another one of the same cluster: OSDs copy whole objects
// among themselves.
//
// That needs object n of the one to be object n of the other.  The unit is an
// object set, which in most layouts is one object.
//
// An OSD fills the holes of what it copies (ceph: src/osd/PrimaryLogPG.cc,
// fill_in_copy_get: it reads an object as one piece).  So only objects are
// copied that have next to none: 7/8 of their bytes, up to the last one, are
// data.  That is about where it begins to pay as well.  Processor time in ms
// for an object, of the OSD and the client together (Ceph 16.2.15, one OSD on
// BlueStore, 48 objects of 4 MiB at a depth of 8, the mean of three rounds in
// turns, on a busy machine):
//
//     data     extents  copied  read and written, each extent by itself
//     4 KiB    1        13.2     0.5
//     2 MiB    1        11.3     6.7
//     2 MiB    32       12.5    25.0
//     3 MiB    1        12.4    10.6
//     3.5 MiB  1        13.9    11.2
//     3.5 MiB  7        11.9    13.9
//     3.5 MiB  28       12.5    24.8
//     4 MiB    1        13.6    14.2
//
// (The data ends where the object ends.)  With many extents less data would be
// enough, but the copy would be larger than its source.

#ifndef NBDRADOS_COPY_RADOS_OFFLOAD_HPP
#define NBDRADOS_COPY_RADOS_OFFLOAD_HPP

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>

#include "copy/offload.hpp"
#include "copy/workers.hpp"
#include "image/image.hpp"

namespace nbdrados::copy {

class RadosOffload final : public Offload {
 public:
  struct Options {
    /// Objects that are copied at the same time.
    std::size_t threads = 16;
    /// Objects with holes as well; whatever the block status knows of them.
    bool always = false;
    /// Of the destination; so nothing need be removed from it.
    bool is_zero = false;
    /// Gets a line for each kind of error.  By any thread.
    std::function<void(const std::string&)> log = {};
  };

  /// Why objects cannot be copied from the one to the other, in a few words;
  /// empty: they can, if both are in one cluster.
  [[nodiscard]] static std::string obstacle(Image& source, Image& destination);

  /// Of two images without an obstacle.
  RadosOffload(std::shared_ptr<Image> source,
               std::shared_ptr<Image> destination, Options options);

  [[nodiscard]] std::uint64_t unit() const noexcept override {
    return layout_.object_set_size();
  }
  [[nodiscard]] bool suits(std::span<const Piece> parts) override;
  /// EOPNOTSUPP: of this unit not, because it is of several objects of parents.
  void copy(std::uint64_t offset, std::uint64_t length, Done done) override;
  [[nodiscard]] std::string explain(int error) const override;

 private:
  struct Job {
    void operator()();

    RadosOffload* offload = nullptr;
    std::uint64_t set = 0;
    Done done = {};
  };

  [[nodiscard]] bool is_dense(std::span<const Piece> parts) const;
  void copy_set(std::uint64_t set);
  void copy_object(std::uint64_t object_no);
  void failed(int code, const std::string& text);

  const std::shared_ptr<Image> source_;
  const std::shared_ptr<Image> destination_;
  const Options options_;
  const Layout layout_;
  const std::uint64_t size_;  // bytes
  std::atomic<bool> refused_{false};  // there is no use in trying

  std::mutex mutex_;
  std::set<int> told_;  // guarded by mutex_: errors that have been logged

  Workers<Job> workers_;  // goes first
};

}  // namespace nbdrados::copy

#endif
