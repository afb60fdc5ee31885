// SPDX-License-Identifier: BSD-3-Clause
//
// Copies one endpoint to another.
//
// One thread, that of run(), walks through the source (see walk.hpp) and begins
// a transfer for each piece.  All that follows in the transfer happens where
// its operations end, in threads of the endpoints:
//
//     run()          source            transfer               destination
//     next piece
//     wait for a free transfer
//     begin  ------> read ----------->  look for zeros
//                                       first run  ---------> write or zero
//                                       next run   <---------/
//                                       ...
//     wake   <------------------------  free
//
// With a checksum, a thread of the engine sees what has been read before it is
// written.
//
// Where both sides can move data by themselves (EngineOptions::move), a move
// takes the place of the read and of its writes.  Where both are stored in one
// place, that may copy units of them by itself (EngineOptions::offload): a
// transfer for the whole unit, and if that fails, one for each piece of it.
//
// A transfer has one operation under way at a time.  So the number of transfers
// bounds the requests, and their buffers, which are used again and again, the
// memory.  There are some with small buffers besides: scattered data should not
// wait for buffers that are much larger than it needs.
//
// The first error ends the copy: nothing is begun any more, and run() throws it
// when all that is under way has ended.

#ifndef NBDRADOS_COPY_ENGINE_HPP
#define NBDRADOS_COPY_ENGINE_HPP

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "copy/checksum.hpp"
#include "copy/endpoint.hpp"
#include "copy/offload.hpp"
#include "copy/ranges.hpp"
#include "copy/walk.hpp"
#include "copy/workers.hpp"

namespace nbdrados::copy {

/// An operation's end: 0 or an errno, of the source (read) or of the
/// destination (write).  Otherwise as Done.
using MoveDone = std::function<void(int error, bool of_source)>;

struct EngineOptions {
  std::uint64_t request_size = 256 << 10;  ///< bytes; a power of two
  std::uint64_t queue_size = 16 << 20;     ///< bytes under way, at most
  std::size_t requests = 64;               ///< under way, at most
  /// Blocks of so many bytes of the payload are looked at whether they are
  /// zeros; a power of two, or 0: none.
  std::uint64_t sparse = 4096;
  bool use_extents = true;          ///< of the source
  bool allocated = false;           ///< the destination is to have no holes
  bool destination_is_zero = false;  ///< whatever it says itself
  bool flush = false;               ///< the destination, at the end
  /// Bytes of one zero().
  std::uint64_t most_zeros = std::uint64_t{1} << 30;
  std::uint64_t rate = 0;           ///< bytes read a second, at most; 0: any
  /// Reads, writes and zeros a second on each side, at most; 0: any.
  std::uint64_t iops = 0;
  /// What is copied, which do not overlap in the destination; not between
  /// streams, and not with `move` and `checksum`.  Null: the whole source.
  const std::vector<Range>* ranges = nullptr;
  /// What reads from the source and writes to the destination in one operation,
  /// of which the engine does not see the payload; then `sparse` means nothing.
  /// Ranges are as Endpoint::read and write take them.  None: by memory.
  std::function<void(std::uint64_t offset, std::uint32_t length,
                     MoveDone done)>
      move = {};
  /// Gets all of the source, as it is read; not with `move`.  Null: nobody
  /// wants it.
  Checksum* checksum = nullptr;
  /// Not with `checksum` and `ranges`.  Null: there is none.  It must outlive
  /// the engine.
  Offload* offload = nullptr;
  bool must_offload = false;  ///< what the offload cannot copy is an error
};

/// How far a copy is; bytes.  May be read by any thread meanwhile.
struct Counts {
  std::atomic<std::uint64_t> copied{0};   ///< written as data
  std::atomic<std::uint64_t> offloaded{0};  ///< by EngineOptions::offload
  std::atomic<std::uint64_t> zeroed{0};
  std::atomic<std::uint64_t> skipped{0};  ///< zeros already
  [[nodiscard]] std::uint64_t done() const noexcept {
    return copied + offloaded + zeroed + skipped;
  }
};

class Engine {
 public:
  /// The endpoints, with their names for messages, must outlive this.
  Engine(Endpoint& source, std::string source_name, Endpoint& destination,
         std::string destination_name, const EngineOptions& options);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Copies all of it; once.  Blocks.  Throws Error with a text of one line,
  /// "NAME: read at OFFSET+LENGTH: REASON"; where the destination is too small
  /// (ENOSPC) or cannot be written to (EROFS), before the first byte of it is
  /// changed.
  void run();

  /// Ends run() soon, with Error(ECANCELED).  Any thread.
  void stop() noexcept;

  /// Grows while operations end.  Any thread.
  [[nodiscard]] std::uint64_t activity() const noexcept { return activity_; }

  /// Begins nothing more, as if the source ended here.  Any thread.
  void end_early() noexcept { ends_early_ = true; }

  [[nodiscard]] const Counts& counts() const noexcept { return counts_; }
  /// Bytes that there are to copy, or unknown_size.  Any thread.
  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }

 private:
  struct Transfer;
  struct Run;
  /// A transfer that is to be seen by the checksum.
  struct Digesting {
    void operator()() const;
    Engine* engine = nullptr;
    Transfer* transfer = nullptr;
  };

  void check() const;
  void check_range(const Range& range) const;
  void copy_tail();
  void walk();
  [[nodiscard]] bool walk(const Range& range);
  void flush();
  void transfer(const Piece& piece, std::uint64_t shift,
                std::vector<Piece> parts);
  [[nodiscard]] std::optional<Piece> left_over(bool at_end);
  [[nodiscard]] Transfer* get_transfer(bool small);
  void wait_for_limits(const Piece& piece);
  void begin(Transfer& transfer, const Piece& piece, std::uint64_t shift,
             std::vector<Piece> parts);
  void ended(Transfer& transfer, int error) noexcept;
  [[nodiscard]] bool step(Transfer& transfer);
  [[nodiscard]] bool take_read(Transfer& transfer);
  void take_offloaded(Transfer& transfer);
  [[nodiscard]] Run next_run(const Transfer& transfer) const;
  void write_run(Transfer& transfer);
  void release(Transfer& transfer) noexcept;
  void fail(const std::string& name, const char* operation,
            std::uint64_t offset, std::uint64_t length, int code) noexcept;
  void fail(std::exception_ptr error) noexcept;
  [[nodiscard]] bool source_has_ended(std::uint64_t offset) const;

  Endpoint& source_;
  const std::string source_name_;
  Endpoint& destination_;
  const std::string destination_name_;
  const EngineOptions options_;
  std::uint64_t request_size_;      // bytes; not less than options_'s
  std::uint64_t size_ = 0;          // bytes to copy
  std::uint64_t block_ = 0;         // of zeros; 0: they are not looked for
  const bool skip_zeros_;           // the destination reads as zeros
  const bool can_zero_;             // the destination can, but for some ranges
  Counts counts_;
  std::atomic<std::uint64_t> activity_{0};  // operations that have ended
  std::atomic<bool> stopping_{false};
  std::atomic<bool> ends_early_{false};
  // Only of run().
  std::chrono::steady_clock::time_point may_read_{};
  std::chrono::steady_clock::time_point may_ask_{};
  std::atomic<std::uint64_t> more_asked_{0};  // writes, but for the first each

  std::mutex mutex_;
  std::condition_variable changed_;
  // All below guarded by mutex_.
  std::vector<std::unique_ptr<Transfer>> transfers_;
  std::vector<Transfer*> free_large_;
  std::vector<Transfer*> free_small_;
  std::size_t under_way_ = 0;
  std::vector<Piece> left_over_;    // of what the offload could not copy
  bool wanted_ = false;             // run() waits
  std::exception_ptr error_;        // the first

  Workers<Digesting> digesters_;    // goes first
};

}  // namespace nbdrados::copy

#endif
