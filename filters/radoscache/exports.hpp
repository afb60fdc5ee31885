// SPDX-License-Identifier: BSD-3-Clause
//
// The exports that the filter caches.
//
// Each export has a disk of its own in the cache, so what is read from one can
// never be seen in another.  A name alone is no export: the plugin may know
// another disk by it than it did when an earlier client came.  Then it has
// another promise, whether that holds or not, and a client that comes with it
// gets another disk in the cache, while the earlier ones keep theirs.  It may
// also have two promises of one name at a time: one for clients that may write,
// one for those that may not.
//
// But only promises that hold (see coherence.hpp), or the user, tell whether
// two export names are two disks: some plugins ignore the name.  So a change
// of one export makes the cache forget the same range of all others that are
// not known to be different disks.  Where they are different this costs a
// little; where they are the same, it is what keeps them equal.
// (An assumption of the user's also covers what has no promise, or one that
// has ended: that may be any disk.)
//
// A promise can begin and end during a change (the rados plugin takes its lock
// for it).  The change was announced under the version of its beginning; what
// was fetched under the one of its end is forgotten before the change is
// acknowledged.
//
// In write-back mode each export keeps writes of its own (see write_back.hpp).
// Before a range of an export is read or changed, the exports that may be the
// same disk write what they keep of it.  Whoever writes data of an export
// needs a connection: a channel.  Each connection writes everything before it
// goes, so nothing is kept where nobody is connected, unless it could not be
// written.
//
// An export that appears while a change of another one is under way does
// not know of that change.  Changes use a snapshot of the list of exports
// and keep it until their end; a new export is not cached before all earlier
// snapshots are gone.

#ifndef NBDRADOS_RADOSCACHE_EXPORTS_HPP
#define NBDRADOS_RADOSCACHE_EXPORTS_HPP

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cache/block_cache.hpp"
#include "cache/cached_disk.hpp"
#include "cache/cached_extents.hpp"
#include "cache/write_back.hpp"
#include "coherence/coherence.hpp"

namespace nbdrados {

/// Thread-safe.
class Exports {
 public:
  class Export;
  using List = std::vector<std::shared_ptr<Export>>;
  using Snapshot = std::shared_ptr<const List>;

  /// What all exports have in common.
  struct Options {
    std::size_t most_extents;        ///< an export remembers
    DirtyLimit* dirty = nullptr;     ///< null: writes go through
    std::chrono::milliseconds age{};  ///< of what is kept, at most
    bool distinct = false;           ///< names are different disks
  };

  /// A connection through which an export's data can be written.
  struct Channel {
    WriteBack::Write write;
    // Guarded by the mutex of the export.
    unsigned users = 0;
    bool closing = false;
  };

  class Export : public Keeper {
   public:
    Export(std::string name, BlockCache& cache, std::uint32_t id,
           const CachedDisk::Shape& shape,
           std::shared_ptr<const Promise> promise, bool assumed,
           const Options& options,
           std::vector<std::weak_ptr<const List>> before);
    ~Export() override;
    [[nodiscard]] const std::string& name() const noexcept { return name_; }
    [[nodiscard]] CachedDisk& disk() noexcept { return disk_; }
    [[nodiscard]] CachedExtents& extents() noexcept { return extents_; }
    /// What is kept; null: writes go through.
    [[nodiscard]] WriteBack* writes() noexcept {
      return writes_ ? &*writes_ : nullptr;
    }
    /// Whether what is cached may be used now, and writes kept.
    [[nodiscard]] bool holds() const noexcept {
      return assumed_ || !promise_ || promise_->holds();
    }
    /// The tenure of writes; 0: they must go through.
    [[nodiscard]] WriteBack::Tenure tenure() const noexcept {
      if (assumed_) return 1;
      return promise_ ? promise_->tenure() : 0;
    }
    /// The channel may be used until remove() returns, which waits for those
    /// who use it.
    void add(Channel& channel);
    /// What is still kept when the last one goes is given up, unless a later
    /// client can write it: he cannot where the plugin forgets the disk with
    /// its last client, and must not where others can write to it meanwhile.
    void remove(Channel& channel) noexcept;
    /// Forgets what is kept and says how much is lost by that.
    void lose() noexcept;
    /// Calls use(write) with a channel; returns false where there is none.
    template <class Use>
    bool with_channel(Use&& use) {
      Channel* const channel = acquire();
      if (channel == nullptr) return false;
      struct Release {
        Export& e;
        Channel& c;
        ~Release() { e.release(c); }
      } const release{*this, *channel};
      std::forward<Use>(use)(channel->write);
      return true;
    }

    void give_up(std::uint64_t tenure) noexcept override;
    /// Whether it may be cached by now, as far as changes are concerned that
    /// began before it was there.
    [[nodiscard]] bool ready() noexcept;
    /// What it is cached under now; 0: it must not be cached.
    [[nodiscard]] CachedDisk::Version version() const noexcept {
      if (assumed_) return 1;
      return promise_ ? static_cast<CachedDisk::Version>(
                            promise_->generation())
                      : 0;
    }

   private:
    friend class Exports;
    [[nodiscard]] Channel* acquire() noexcept;
    void release(Channel& channel) noexcept;
    /// There is another export that may be the same disk.
    void share() noexcept;
    void report_loss(std::uint64_t bytes) const noexcept;

    /// Another export of this name has been seen since, so what is cached may
    /// be of before, unless a promise tells that it is not.  Guarded by the
    /// mutex of Exports.
    bool retired_ = false;
    const std::string name_;
    const std::shared_ptr<const Promise> promise_;
    const bool assumed_;
    CachedDisk disk_;
    CachedExtents extents_;
    std::optional<WriteBack> writes_;
    /// There is, or was, another export that may be the same disk.
    std::atomic<bool> shared_{false};
    std::atomic<bool> ready_{false};
    std::mutex mutex_;
    // Guarded by mutex_.
    std::vector<std::weak_ptr<const List>> before_;
    std::vector<Channel*> channels_;
    std::condition_variable unused_;  ///< a channel
  };

  /// How many exports that nobody uses are remembered.
  static constexpr std::size_t most_idle = 64;

  Exports(BlockCache& cache, const Options& options);

  /// The export of this name; with another shape or promise it is a new one,
  /// of which nothing is cached.  `assumed`: it may be cached without a
  /// promise.
  [[nodiscard]] std::shared_ptr<Export> use(
      const std::string& name, const CachedDisk::Shape& shape,
      const std::shared_ptr<const Promise>& promise, bool assumed);

  /// All exports, to look after what they keep.
  [[nodiscard]] List all() {
    const std::scoped_lock lock(mutex_);
    return *list_;
  }

  /// Before a range of `which` is read or changed: the others that may be the
  /// same disk write what they keep of it.  Returns 0 or an errno.
  [[nodiscard]] int settle(const Export& which, std::uint64_t count,
                           std::uint64_t offset);

  /// All exports that anybody may read, for a change of one of them.
  [[nodiscard]] Snapshot snapshot() {
    const std::scoped_lock lock(mutex_);
    return list_;
  }

  /// A change of a range of one export, seen by all of them: see
  /// CachedDisk::Changing.
  class Changing {
   public:
    Changing(Exports& exports, Export& which, std::uint32_t count,
             std::uint64_t offset);
    ~Changing();
    Changing(const Changing&) = delete;
    Changing& operator=(const Changing&) = delete;
    void done(const char* data) noexcept {
      if (mine_.announced) mine_.announced->done(data);
    }

   private:
    struct Part {
      Part(Export& e, std::uint32_t count, std::uint64_t offset);
      ~Part();
      Part(const Part&) = delete;
      Part& operator=(const Part&) = delete;

      Export& which;
      const std::uint32_t count;
      const std::uint64_t offset;
      const CachedDisk::Version version;
      CachedExtents::Changing status;
      std::optional<CachedDisk::Changing> announced;
    };
    Snapshot snapshot_;
    std::list<Part> others_;
    Part mine_;
  };

 private:
  [[nodiscard]] bool different(const Export& a,
                               const Export& b) const noexcept {
    // Two names of one disk: the plugin knows better than the user.
    if (a.promise_ && a.promise_ == b.promise_) return false;
    if (options_.distinct && a.name_ != b.name_) return true;
    return !a.assumed_ && !b.assumed_ && a.promise_ != b.promise_ &&
           a.version() != 0 && b.version() != 0;
  }

  BlockCache& cache_;
  const Options options_;
  std::mutex mutex_;
  // Guarded by mutex_.
  std::uint32_t last_id_ = 0;
  Snapshot list_;  ///< the one used last comes last
  std::vector<std::weak_ptr<const List>> earlier_;
};

}  // namespace nbdrados

#endif
