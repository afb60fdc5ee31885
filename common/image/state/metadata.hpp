// SPDX-License-Identifier: BSD-3-Clause
//
// Reads an image's metadata, when a client comes, when something has changed,
// and when a request must know whether what it found is true.

#ifndef NBDRADOS_IMAGE_STATE_METADATA_HPP
#define NBDRADOS_IMAGE_STATE_METADATA_HPP

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>

#include "image/image_format.hpp"
#include "image/parent_link.hpp"
#include "image/state/image_state.hpp"
#include "image/state/view.hpp"

namespace nbdrados {

/// Thread-safe.
/// Locks: format_mutex_ is held while the format reads or renews its metadata.
/// That is I/O under a lock, but no request takes it, except those that must
/// ask for the metadata anyway.  retry_mutex_ comes before it, that of
/// ImageState after it.
class Metadata {
 public:
  /// What is given must outlive this.
  Metadata(ImageFormat& format, ImageState& state, const ImageOptions& options,
           ParentLink::Open open_parent)
      : format_(format),
        state_(state),
        parents_(format, options, std::move(open_parent)) {}

  /// Reads, and publishes the View or the verdict; afterwards writes are held
  /// no longer, if `end_hold` is set.  Throws Error, also where the image is
  /// lost.
  void load(bool end_hold = false);
  /// As load, with the lock just taken: opens the object map, and begins the
  /// tenure.  `log` receives a line where the map cannot be used.  Throws
  /// Error.
  void load_as_owner(const std::function<void(const std::string&)>& log);
  /// ImageFormat::keep_alive, and until when that guards the image.
  [[nodiscard]] std::optional<std::chrono::milliseconds> keep_alive();

  /// What a request works with.  A View that fails says what was so when the
  /// metadata was read: a parent that was being migrated, an OSD's trouble.
  /// That nothing of it is left need not change the header, and so nobody
  /// notifies.  So the requests see to it, the first at once and then one in a
  /// while.
  [[nodiscard]] Published<View>::Reader request_view() {
    if (state_.failing()) retry();
    return state_.read();
  }

  /// Calls `request` with the View until what it took for zeros has been
  /// confirmed; returns what it returned: whether it took anything for zeros
  /// that needs it.
  template <class Request>
  bool confirmed(Request&& request);

 private:
  /// How often the metadata of an image that fails is asked for again.
  static constexpr std::chrono::seconds retry_interval{1};

  // format_mutex_ is held.
  [[nodiscard]] View read();
  void load_now(bool end_hold);

  void confirm();
  void retry();

  ImageFormat& format_;
  ImageState& state_;

  std::mutex format_mutex_;
  std::atomic<std::uint64_t> loads_started_{0};
  std::uint64_t last_verdict_ = 0;  // guarded by format_mutex_: that load
  ParentLink parents_;              // guarded by format_mutex_

  /// Held during a retry: the requests of the time wait for its outcome.
  std::mutex retry_mutex_;
  std::chrono::steady_clock::time_point next_retry_;  // guarded by retry_mutex_
};

template <class Request>
bool Metadata::confirmed(Request&& request) {
  for (;;) {
    std::uint64_t size = 0;
    std::uint64_t overlap = 0;
    ParentSpec parent;
    {
      const auto view = request_view();
      const bool missing = request(*view);
      if (!missing || !state_.doubtful(*view)) return missing;
      size = view->size;
      overlap = view->overlap;
      parent = view->parent_spec;
    }
    confirm();
    // What has got another parent, or none, must be read anew: its own
    // objects may have come in between.  Of another size, it may end before.
    const auto view = state_.read();
    if (view->size == size && view->overlap == overlap &&
        view->parent_spec == parent)
      return true;
  }
}

}  // namespace nbdrados

#endif
