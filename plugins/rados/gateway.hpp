// SPDX-License-Identifier: BSD-3-Clause
//
// The images that are open now, for all connections of the server.

#ifndef NBDRADOS_PLUGIN_GATEWAY_HPP
#define NBDRADOS_PLUGIN_GATEWAY_HPP

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "config.hpp"
#include "formats/listing.hpp"
#include "image/image.hpp"
#include "image/status/difference.hpp"
#include "rados/client_pool.hpp"

namespace nbdrados {

/// The connections to the cluster and the open images.  Thread-safe.
class Gateway {
  struct Slot;

 public:
  /// Connects and checks the pool.  Throws Error.
  explicit Gateway(const Config& config);
  ~Gateway();
  Gateway(const Gateway&) = delete;
  Gateway& operator=(const Gateway&) = delete;

  /// One client's use of an image.  All clients of an image that may write
  /// share one Image, whatever names they know it by, and so do all that may
  /// not; it is closed with the last of them.
  class Use {
   public:
    Use(std::shared_ptr<Slot> slot, std::shared_ptr<Image> image,
        std::shared_ptr<Difference> difference);
    ~Use();
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;
    [[nodiscard]] Image& image() const noexcept { return *image_; }
    /// Null: the export is an image, not a difference.
    [[nodiscard]] Difference* difference() const noexcept {
      return difference_.get();
    }
    /// Bytes; as it was when this client came, because NBD cannot change it
    /// afterwards.
    [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
    [[nodiscard]] const char* description() const noexcept {
      return description_.c_str();
    }
    [[nodiscard]] const std::shared_ptr<Slot>& slot() const noexcept {
      return slot_;
    }

   private:
    std::shared_ptr<Slot> slot_;
    std::shared_ptr<Image> image_;
    std::shared_ptr<Difference> difference_;
    std::uint64_t size_;
    std::string description_;
  };

  /// Opens what has the name now, or joins those who use it.  Throws Error.
  /// The Use belongs to the gateway, because nbdkit does not close the handles
  /// of clients that are connected when it ends (nbdkit: server/connections.c).
  [[nodiscard]] Use* open(const ImageSpec& spec, bool writable);
  void close(Use* use);

  /// Export names of images and snapshots, as `list` says, which may be
  /// `shown`.  Ends early when the client of the calling thread has gone or the
  /// server stops.  Throws Error.
  [[nodiscard]] std::vector<std::string> list(Shown shown);
  /// The export name of the only image; none where there are several, or none,
  /// or where names are not to be told.  Throws Error.
  [[nodiscard]] std::optional<std::string> only_image();

  /// Creates the configured image.  Throws Error.
  void create();

 private:
  /// Who may write and who may not do not share an image: the former may need
  /// its lock, which the latter must not wait for, nor keep when they alone are
  /// left.
  struct SlotKey {
    ImageIdentity identity;
    bool writable = false;
    auto operator<=>(const SlotKey&) const = default;
  };

  /// The place of one image, snapshot or difference.  Its mutex is held while
  /// that is opened and closed, which is I/O under a lock: only clients of the
  /// same wait for it, and nobody opens an image that is being closed.
  struct Slot {
    SlotKey key;
    std::mutex mutex;
    // All below guarded by mutex.
    ClientPool::Share client;  // through which it is open, or was
    std::weak_ptr<Image> image;
    std::weak_ptr<Difference> difference;
  };

  // `spec` is how the client calls it.
  [[nodiscard]] std::shared_ptr<Image> make_image(const Slot& slot,
                                                  const ImageSpec& spec,
                                                  bool writable);
  [[nodiscard]] std::shared_ptr<Image> make_readable_image(
      const Slot& slot, const ImageSpec& spec);
  [[nodiscard]] std::shared_ptr<Image> open_image(Slot& slot,
                                                  const ImageSpec& spec);
  [[nodiscard]] std::shared_ptr<Difference> make_difference(
      const Slot& slot, const ImageSpec& spec, std::shared_ptr<Image> image);
  /// Forgets a place that nobody uses nor is about to use.
  void release(std::shared_ptr<Slot> slot) noexcept;

  const Config& config_;
  ClientPool clients_;
  std::shared_ptr<WorkerPool> workers_;
  KnownSnapshots known_snapshots_;
  std::mutex mutex_;
  // Guarded by mutex_.
  std::map<SlotKey, std::shared_ptr<Slot>> slots_;
  std::map<Use*, std::unique_ptr<Use>> uses_;
};

}  // namespace nbdrados

#endif
