// SPDX-License-Identifier: BSD-3-Clause
//
// Block status of one export, remembered.
//
// What must never happen: a client is told of a hole where data has been
// acknowledged.  So what is remembered was true at a time when nobody
// changed it, and nobody has changed it since:
//
//   question   Its bracket is a Question object: made before the export below
//              is asked, until its answer is learnt.
//   change     Its bracket is a Changing object: made before the request
//              below, until its end.  It forgets its range when it begins.
//   both       When an answer is learnt, the ranges of all changes that were
//              under way at any time since the question was made are left out:
//              of those that are under way now, and of those that have ended
//              meanwhile, which a question collects.
//
//              question  |----asks below----|learn
//              change A      |---|                    collected
//              change B  ------|                      collected
//              change C               |-----------    under way at learn
//              change D |                |            forgets at its begin
//
// So nothing is ever known of a range while a change of it is under way, and
// a change has nothing more to forget when it ends.
//
// Changes are rounded outwards to `grain` bytes: file systems allocate in such
// steps, and what is known is known of whole sectors (see sectors.hpp), as
// answers are.

#ifndef NBDRADOS_CACHE_CACHED_EXTENTS_HPP
#define NBDRADOS_CACHE_CACHED_EXTENTS_HPP

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <vector>

#include "cache/cached_disk.hpp"
#include "layout/sectors.hpp"

namespace nbdrados {

/// Thread-safe.  One mutex, held for moments and never while the export below
/// is asked.
class CachedExtents {
 public:
  /// See CachedDisk.  0: nothing may be remembered.
  using Version = CachedDisk::Version;

  struct Range {
    std::uint64_t offset;  ///< bytes, as all numbers here
    std::uint64_t length;
    bool operator==(const Range&) const = default;
  };
  using Extent = StatusExtent;  ///< types are only compared

  /// What an extent that is remembered costs at most: a node of a std::map
  /// of 56 bytes and what malloc adds to it.
  static constexpr std::size_t extent_bytes = 64;
  static constexpr std::uint64_t grain = 4096;
  /// What is asked below at once, see ask_length().
  static constexpr std::uint64_t first_asked = 128 << 20;
  static constexpr std::uint64_t most_asked = 1 << 30;
  static constexpr std::uint64_t least_asked = 1 << 20;
  /// Ranges that a question collects before it takes them together.
  static constexpr std::size_t most_collected = 1024;

  /// Of a disk of `size` bytes; at most `limit` extents are remembered, so
  /// limit * extent_bytes bytes.  A question takes another
  /// most_collected * 16 bytes as long as it lasts.
  CachedExtents(std::uint64_t size, std::size_t limit);
  CachedExtents(const CachedExtents&) = delete;
  CachedExtents& operator=(const CachedExtents&) = delete;

  /// Of the disk, in bytes.
  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }

  /// What is known from `offset` on, without a gap; nothing if nothing is.
  /// All but the last begin before offset + length, each differs in type from
  /// the next, the last one is as long as is known.  Ends where nothing is
  /// known.
  [[nodiscard]] std::vector<Extent> lookup(std::uint64_t offset,
                                           std::uint64_t length,
                                           Version version) const;

  /// How many bytes to ask for when a client asks for `length` from `offset`,
  /// which must be on the disk: more, because it will be remembered.  Twice as
  /// much each time, but less after answers of many extents.  Never less than
  /// `length`; if more, a multiple of 64 KiB, the largest minimum of NBD block
  /// sizes.
  [[nodiscard]] std::uint64_t ask_length(std::uint64_t offset,
                                         std::uint64_t length) const;

  /// The time in which the export below is asked.
  class Question {
   public:
    /// About `length` bytes from `offset`.  Nothing has begun yet.
    Question(CachedExtents& known, Version version, std::uint64_t offset,
             std::uint64_t length);
    ~Question();
    Question(const Question&) = delete;
    Question& operator=(const Question&) = delete;

    /// From now on the export below may be asked.  What is known of another
    /// version is forgotten.
    void begin();
    /// The same, unless an answer is here (see lookup()) or on its way: waits
    /// for another question that includes the offset, once.  So of those who
    /// look for the same, one asks.  Returns what is known then, and has not
    /// begun; nothing if it has.  The thread must not have another Question.
    [[nodiscard]] std::vector<Extent> lookup_or_begin(std::uint64_t wanted);

    /// The answer, in ascending order; all of it, where it goes beyond what
    /// was asked for, too.  Called at most once.  Without memory less is
    /// learnt.
    void learn(std::span<const Extent> answer) noexcept;

   private:
    friend class CachedExtents;
    void begin_locked();
    void collect(std::uint64_t from, std::uint64_t to) noexcept;

    CachedExtents& known_;
    const Version version_;
    const std::uint64_t offset_;
    const std::uint64_t length_;
    std::uint64_t number_ = 0;  ///< no other has it; 0: not begun
    /// Ended since it was made: offset to end.  Guarded by the mutex; with
    /// its final capacity from the start.
    struct Changed {
      std::uint64_t from;
      std::uint64_t to;
    };
    std::vector<Changed> changed_;
    std::uint64_t rounding_ = grain;
  };

  /// A change of a range, from before the request below until its end,
  /// whatever comes of it and under whatever version.
  class Changing {
   public:
    Changing(CachedExtents& known, std::uint32_t count, std::uint64_t offset);
    /// The order is that of CachedDisk::Changing.
    Changing(CachedExtents& known, std::uint64_t offset,
             std::uint32_t count) = delete;
    ~Changing();
    Changing(const Changing&) = delete;
    Changing& operator=(const Changing&) = delete;

   private:
    friend class CachedExtents;
    CachedExtents& known_;
    std::uint64_t from_;
    std::uint64_t to_;
  };

  /// How many extents are remembered.
  [[nodiscard]] std::size_t count() const;

 private:
  struct Known {
    std::uint64_t end;
    std::uint32_t type;
  };

  [[nodiscard]] std::vector<Extent> find(std::uint64_t offset,
                                         std::uint64_t length,
                                         Version version) const;
  void forget(std::uint64_t from, std::uint64_t to) noexcept;
  [[nodiscard]] bool insert(std::uint64_t from, std::uint64_t to,
                            std::uint32_t type, std::uint64_t answer_from);
  [[nodiscard]] bool make_room(std::uint64_t from, std::uint64_t to) noexcept;

  const std::uint64_t size_;
  const std::size_t limit_;

  mutable std::mutex mutex_;
  /// A question has ended.
  std::condition_variable ended_;
  // Everything below is guarded by mutex_.
  Version version_ = 0;
  /// By offset.  Neighbours that touch differ in type.
  std::map<std::uint64_t, Known> extents_;
  std::vector<Question*> questions_;
  std::vector<const Changing*> changes_;
  std::uint64_t last_number_ = 0;
  std::uint64_t window_ = first_asked;
  std::uint64_t hand_ = 0;  ///< where make_room goes on
};

/// Makes what the ranges cover data, which is always right to say.  The
/// extents are ascending and adjacent before and after; the ranges are in any
/// order.
void mark_data(std::vector<CachedExtents::Extent>& extents,
               std::vector<CachedExtents::Range> ranges);

}  // namespace nbdrados

#endif
