// SPDX-License-Identifier: BSD-3-Clause
//
// What is known of an image's objects without asking: which do not exist, and
// which parts of the others hold data.
//
// "Is it ever possible to cache block status results, with two writers?"
// (nbdkit's TODO.)  With two, no: nothing tells one of them that the other has
// just filled a hole.  So results are kept only where there is at most one
// writer, and it is this process:
//
//   - Snapshots never change, and what is known of them is true for ever.
//     The one thing that does change is in which object their data is: a
//     copy-up moves it from the parent's to the image's own.  Whoever knows
//     that an object is absent and backed goes on to ask the parent, and so
//     is right as long as the parent is there.  When the link to it changes,
//     all is forgotten, before anybody acts on the new link.
//   - While this process holds an image's exclusive lock, all changes go
//     through it.  Each change forgets its object after it has happened and
//     before it is acknowledged; a question that was asked before that
//     does not get its answer in (Learning).  When the lock is released, and
//     all requests that relied on it are over, all is forgotten.  If the
//     lock is taken by force, this is as true as all that the lock's
//     holder believes, until he hears of it.
//   - Otherwise nothing is kept here.  The object map of an image whose lock
//     somebody else holds is kept, and believed only when small operations
//     have found it and its flags the same again (MapReader).  It only says
//     which objects exist.  What is in them is asked.  RADOS's versions of
//     objects prove nothing alone, because they can come back.

#ifndef NBDRADOS_IMAGE_STATUS_KNOWN_EXTENTS_HPP
#define NBDRADOS_IMAGE_STATUS_KNOWN_EXTENTS_HPP

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "image/status/absent_objects.hpp"
#include "rados/object_store.hpp"

namespace nbdrados {

/// Thread-safe.  It takes at most ranges_limit bytes, and what AbsentObjects
/// does, together 16 MiB, however large the image is.
///
/// Locks: one mutex for each of a few groups of objects, held for moments
/// only, and below these that of AbsentObjects.  A change of an object takes
/// none as long as nothing of its group is known or asked, and the second one
/// only where the object was known to be absent; a reader takes none for
/// absent() and end_of_absent().
class KnownExtents {
  struct Group;

 public:
  static constexpr std::size_t ranges_limit = 11 << 20;

  KnownExtents() = default;
  KnownExtents(const KnownExtents&) = delete;
  KnownExtents& operator=(const KnownExtents&) = delete;

  /// Forgets everything.  From now on there are so many objects; of others
  /// nothing is ever known.  No absent() may be under way that relies on what
  /// is forgotten.
  void reset(std::uint64_t objects);
  /// As reset(0), and gives memory back.  No absent() may be under way.
  void release();

  /// Forgets what is known of an object; what is being asked about it now
  /// will not be learnt.  To be called after each change, successful or not.
  void forget(std::uint64_t object_no) noexcept {
    Group& group = groups_[object_no % groups];
    if (group.active.load() != 0) forget_locked(group, object_no);
  }

  /// Whether the object is known not to exist.
  [[nodiscard]] bool absent(std::uint64_t object_no) const noexcept {
    return absent_.contains(object_no);
  }
  /// The first object in [object_no, end) that is not known not to exist, or
  /// `end`.
  [[nodiscard]] std::uint64_t end_of_absent(std::uint64_t object_no,
                                            std::uint64_t end) const noexcept {
    return absent_.end_of_run(object_no, end);
  }
  /// Whether all objects that do not exist are known (see learn_existing).
  [[nodiscard]] bool knows_all_absent() const noexcept {
    return all_absent_.load();
  }

  /// Another number after each reset.
  [[nodiscard]] std::uint64_t epoch() const noexcept { return epoch_.load(); }

  /// The ranges of the object that hold data, where they are known.
  [[nodiscard]] bool find(std::uint64_t object_no,
                          std::vector<ObjectRange>* ranges);

  /// A time in which objects are asked about.  Only answers to questions
  /// that were asked while it lives may be learnt, through it.  May be
  /// destroyed by any thread.
  class Learning {
   public:
    explicit Learning(KnownExtents& owner) : owner_(owner) { owner_.begin(); }
    ~Learning() { owner_.end(); }
    Learning(const Learning&) = delete;
    Learning& operator=(const Learning&) = delete;

    void learn_absent(std::uint64_t object_no);
    void learn(std::uint64_t object_no, std::vector<ObjectRange> ranges);
    /// `exists(n)`: whether object n may exist; the others do not.  The same
    /// is so of all objects before `end_of_run(n)`, which is greater than n.
    /// Only a valid object map says that of all objects (see
    /// block_status.cpp).  Once is enough: nothing happens until a reset.
    template <class Exists, class EndOfRun>
    void learn_existing(Exists&& exists, EndOfRun&& end_of_run);
    template <class Exists>
    void learn_existing(Exists&& exists) {
      learn_existing(exists, [](std::uint64_t n) { return n + 1; });
    }

   private:
    KnownExtents& owner_;
    const std::uint64_t epoch_ = owner_.epoch_.load();
  };

 private:
  static constexpr std::size_t groups = 16;

  struct alignas(64) Group {
    /// Learnings under way, plus 1 while anything is known.
    std::atomic<std::uint32_t> active{0};
    std::mutex mutex;
    // Guarded by mutex.
    std::uint32_t learnings = 0;
    bool known = false;
    /// Changed while there were learnings.
    std::unordered_set<std::uint64_t> changed;
    std::unordered_map<std::uint64_t, std::vector<ObjectRange>> ranges;
    std::size_t bytes = 0;  // of `ranges`, about
  };

  /// Holds the mutexes of all groups while it lives.
  class AllLocked {
   public:
    explicit AllLocked(KnownExtents& owner) : groups_(owner.groups_) {
      for (Group& group : groups_) group.mutex.lock();
    }
    ~AllLocked() {
      for (Group& group : groups_) group.mutex.unlock();
    }
    AllLocked(const AllLocked&) = delete;
    AllLocked& operator=(const AllLocked&) = delete;

   private:
    std::array<Group, groups>& groups_;
  };

  void begin();
  void end();
  void forget_all(std::uint64_t objects);
  [[nodiscard]] std::vector<std::uint64_t> changed_between(
      std::uint64_t first, std::uint64_t end) const;
  void forget_locked(Group& group, std::uint64_t object_no) noexcept;
  static void set_known(Group& group);
  /// What ranges of an object take, with what the table takes for them.
  static std::size_t size_of(const std::vector<ObjectRange>& ranges) noexcept {
    return 96 + ranges.capacity() * sizeof(ObjectRange);
  }
  /// Calls f(group) with the object's group locked, if something may be
  /// learnt about the object.
  template <class F>
  void learning(std::uint64_t epoch, std::uint64_t object_no, F&& f) {
    Group& group = groups_[object_no % groups];
    const std::scoped_lock lock(group.mutex);
    if (epoch != epoch_.load() || group.changed.contains(object_no)) return;
    set_known(group);
    f(group);
  }

  std::array<Group, groups> groups_;
  /// Another one after each reset; changed with all groups locked.
  std::atomic<std::uint64_t> epoch_{0};
  std::atomic<std::uint64_t> objects_{0};  // as epoch_
  AbsentObjects absent_;  // an object's changes under its group's mutex
  std::atomic<bool> all_absent_{false};    // as epoch_
  bool existing_learnt_ = false;           // guarded by all mutexes
};

template <class Exists, class EndOfRun>
void KnownExtents::Learning::learn_existing(Exists&& exists,
                                            EndOfRun&& end_of_run) {
  // Not all at once, because changes wait.
  constexpr std::uint64_t step = 8 * AbsentObjects::page_objects;
  bool all = true;
  for (std::uint64_t n = 0;;) {
    const AllLocked locked(owner_);
    if (epoch_ != owner_.epoch_.load() || owner_.existing_learnt_) return;
    const std::uint64_t objects = owner_.objects_.load();
    if (n >= objects) {
      owner_.existing_learnt_ = true;
      owner_.all_absent_.store(all);
      return;
    }
    for (Group& group : owner_.groups_) set_known(group);
    const std::uint64_t end = std::min(objects, (n / step + 1) * step);
    const std::vector<std::uint64_t> changed = owner_.changed_between(n, end);
    while (n < end) {
      const std::uint64_t run = end_of_run(n);
      if (exists(n)) {
        n = run;
        continue;
      }
      const auto skip = std::lower_bound(changed.begin(), changed.end(), n);
      const bool skips = skip != changed.end() && *skip < std::min(run, end);
      const std::uint64_t stop = skips ? *skip : std::min(run, end);
      all = owner_.absent_.insert(n, stop) && all;
      n = stop + (skips ? 1 : 0);
    }
  }
}

}  // namespace nbdrados

#endif
