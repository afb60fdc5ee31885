// SPDX-License-Identifier: BSD-3-Clause
//
// Writes to one disk that are kept in memory for a while, and then written
// together: neighbours become one request.
//
// The disk is cut into chunks.  A chunk that was written to has up to two
// layers, each a piece of memory for all of the chunk (of which only the pages
// that are used take space) and the ranges in it that have data:
//
//   now   takes writes.
//   out   is being written to the disk below, and does not change any more.
//
//        |-- chunk ----------------------------------|
//   now        [=====]
//   out     [===========]          [==]
//   disk [=============================================]
//
// Who reads, looks at `now`, then at `out`, and then at the disk below (or a
// cache of it).  What makes that right:
//
//   take      A write is in `now` before it is acknowledged.
//   begin     `now` becomes `out`, if there is no `out`.  So there is at most
//             one request below for each byte of what is kept here, and they
//             come in the order of the writes.
//   end       When all of `out` is written below, it goes.  When that failed,
//             what `now` has not got is put back into `now`: data goes only
//             when it is on the disk below.
//   reading   The layers come first and the disk second: between the two, data
//             can move from the layers to the disk, but never back unseen
//             (a failed `out` is in the layers all the time).
//
// Threads that wait for an `out` write ranges of it themselves instead.
//
// All data belongs to a tenure: a time in which nobody else may write to the
// disk, a number.  When a tenure ends with data that could not be written, the
// data is lost: writing it later could destroy what others have written.
//
// Who changes the disk below in another way (a write around this, zero, trim)
// has a Hold meanwhile: nothing of the range is written below while there is
// one, so older data does not come later.  After the change what is kept of
// the range is worthless.  (Whoever has written there meanwhile has done so
// at the same time as the change, so either order is right.)

#ifndef NBDRADOS_CACHE_WRITE_BACK_HPP
#define NBDRADOS_CACHE_WRITE_BACK_HPP

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

namespace nbdrados {

/// How much memory the data of many disks may take.  Thread-safe.
class DirtyLimit {
 public:
  explicit DirtyLimit(std::uint64_t bytes) : limit_(bytes) {}
  [[nodiscard]] bool take(std::uint64_t bytes) noexcept {
    std::uint64_t now = used_.load(std::memory_order_relaxed);
    do {
      if (bytes > limit_ || now > limit_ - bytes) return false;
    } while (!used_.compare_exchange_weak(now, now + bytes));
    return true;
  }
  void give(std::uint64_t bytes) noexcept { used_.fetch_sub(bytes); }
  [[nodiscard]] std::uint64_t used() const noexcept { return used_.load(); }
  [[nodiscard]] std::uint64_t limit() const noexcept { return limit_; }
  /// So much is kept that it is time to write some of it.
  [[nodiscard]] bool pressing() const noexcept { return used() > limit_ / 2; }

 private:
  const std::uint64_t limit_;
  std::atomic<std::uint64_t> used_{0};
};

/// Thread-safe.  A mutex for each of several shards of chunks; none is held
/// during I/O, nor while another is taken.
class WriteBack {
 public:
  using Clock = std::chrono::steady_clock;
  using Tenure = std::uint64_t;
  /// Bytes of the disk.
  struct Range {
    std::uint64_t offset;
    std::uint64_t length;
    bool operator==(const Range&) const = default;
  };
  /// Writes below: data, count, offset.  Returns 0 or an errno.
  using Write =
      std::function<int(const char*, std::uint32_t, std::uint64_t)>;

  struct Shape {
    std::uint64_t size;         ///< bytes of the disk
    std::uint32_t chunk;        ///< bytes of a chunk, and of a write below at
                                ///< most; a power of two, at least a page
    std::chrono::milliseconds age;  ///< until data is to be written
  };

  struct Statistics {
    std::uint64_t taken = 0;      ///< writes
    std::uint64_t written = 0;    ///< requests below that have ended well
    std::uint64_t failed = 0;     ///< requests below that have not
    std::uint64_t bytes = 0;      ///< kept now
    std::uint64_t lost = 0;       ///< bytes that could never be written
  };

  /// `current` says whether a tenure is still the present one; thread-safe.
  WriteBack(DirtyLimit& limit, const Shape& shape,
            std::function<bool(Tenure)> current);
  ~WriteBack();
  WriteBack(const WriteBack&) = delete;
  WriteBack& operator=(const WriteBack&) = delete;

  [[nodiscard]] const Shape& shape() const noexcept { return shape_; }

  /// Takes a write, or the first part of it: returns how many bytes.  It is
  /// less than `count` where there is no room (see make_room), or where data of
  /// this tenure is no longer taken (close), or data of another one is there.
  [[nodiscard]] std::uint32_t take(const char* data, std::uint32_t count,
                                   std::uint64_t offset, Tenure tenure);

  /// Copies what is kept of a range to `to`, if that is not null.  Returns the
  /// rest, ascending, which is then to be read below.
  [[nodiscard]] std::vector<Range> read(char* to, std::uint64_t count,
                                        std::uint64_t offset) const;

  /// What is kept in a range; ascending, not adjacent.
  [[nodiscard]] std::vector<Range> kept(std::uint64_t count,
                                        std::uint64_t offset) const;

  /// Whether there is nothing; wait-free.
  [[nodiscard]] bool empty() const noexcept { return chunks_.load() == 0; }

  /// true: there is nothing of a range.  Wait-free and without memory, so it
  /// is what to ask before read().
  [[nodiscard]] bool untouched(std::uint64_t count,
                               std::uint64_t offset) const noexcept;

  /// See above.  Nothing of the chunks of a range is being written below, and
  /// nothing will be, while it lives.
  class Hold {
   public:
    /// Blocks until what is under way has ended.
    Hold(WriteBack& owner, std::uint64_t count, std::uint64_t offset);
    ~Hold();
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;
    /// The range has another content below now.
    void superseded() noexcept;

   private:
    void release() noexcept;

    WriteBack& owner_;
    const std::uint64_t count_;
    const std::uint64_t offset_;
    std::vector<std::uint64_t> chunks_;
  };

  /// Blocks until all that was kept of the chunks of a range at the time of
  /// the call is on the disk below.  Returns 0, or the errno of a write that
  /// failed, and then all that has not been written is still kept; ESHUTDOWN:
  /// of data that was lost with its tenure.  The caller has no Hold.
  [[nodiscard]] int write_out(std::uint64_t count, std::uint64_t offset,
                              const Write& write);

  /// write_out of everything, for a flush.
  [[nodiscard]] int flush(const Write& write);

  /// How often data was lost with its tenure.  Who has not seen the last time
  /// must be told at his next flush.
  [[nodiscard]] std::uint64_t losses() const noexcept {
    return losses_.load();
  }

  /// Writes a chunk, or helps with one, if that is due: by its age, because
  /// it is full, because of a flush, or with `pressing` at once.  Returns
  /// whether there was something to do.
  bool work(bool pressing, const Write& write);

  /// For who found no room: writes a chunk; see work.
  bool make_room(const Write& write) { return work(true, write); }

  /// From now on takes no data of this tenure, or of former ones, which have
  /// smaller numbers.  All data that take() has taken is there for a
  /// write_out() that begins afterwards.
  void close(Tenure tenure) noexcept;

  /// From now on writes no data of this tenure below: what is still kept of it
  /// is lost.  After close(); blocks until what is being written has ended.
  void abandon(Tenure tenure) noexcept;

  /// Forgets everything but what is under way, or held.  Returns how many
  /// bytes are lost by that.
  std::uint64_t drop() noexcept;

  [[nodiscard]] Statistics statistics() const;

 private:
  class Memory;
  struct Layer;
  struct Out;
  struct Chunk;
  struct Shard;

  static constexpr std::size_t shard_count = 16;
  static constexpr std::size_t filter_size = 1024;

  [[nodiscard]] Shard& shard(std::uint64_t chunk) const noexcept;
  [[nodiscard]] std::atomic<std::uint32_t>& filter(
      std::uint64_t chunk) const noexcept;
  [[nodiscard]] bool absent(std::uint64_t chunk) const noexcept {
    return filter(chunk).load(std::memory_order_acquire) == 0;
  }
  [[nodiscard]] std::uint32_t chunk_length(std::uint64_t chunk) const noexcept;
  bool put(Shard& s, std::uint64_t chunk, std::uint32_t from,
           const char* data, std::uint32_t length, Tenure tenure);
  static void queue(Shard& s, Chunk& chunk, bool first) noexcept;
  void erase(Shard& s, std::uint64_t number) noexcept;
  /// Data of this tenure must not be written any more.
  [[nodiscard]] bool is_over(Tenure tenure) const {
    return tenure <= abandoned_.load() || !current_(tenure);
  }
  [[nodiscard]] bool begin(Shard& s, std::uint64_t number, Chunk& chunk,
                           int& lost);
  bool help(Shard& s, std::unique_lock<std::mutex>& lock,
            std::uint64_t number, Out& out, const Write& write);
  void end(Shard& s, std::uint64_t number, Chunk& chunk) noexcept;
  int write_chunk(std::uint64_t number, const Write& write);
  [[nodiscard]] std::vector<std::uint64_t> numbers(std::uint64_t count,
                                                   std::uint64_t offset) const;

  DirtyLimit& limit_;
  const Shape shape_;
  const std::function<bool(Tenure)> current_;
  const std::size_t page_;
  std::unique_ptr<Shard[]> shards_;
  /// How many chunks there are; and by the low bits of their numbers, so
  /// that who reads elsewhere needs no mutex.
  std::atomic<std::uint64_t> chunks_{0};
  mutable std::array<std::atomic<std::uint32_t>, filter_size> filter_{};
  std::atomic<Tenure> closed_{0};
  std::atomic<Tenure> abandoned_{0};
  std::atomic<unsigned> urgent_{0};  ///< flushes under way
  std::atomic<std::size_t> turn_{0};
  std::atomic<std::uint64_t> losses_{0};
};

}  // namespace nbdrados

#endif
