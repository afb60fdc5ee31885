// SPDX-License-Identifier: BSD-3-Clause
//
// A format whose metadata is what the test says, and how tests look at errors.

#ifndef NBDRADOS_TESTS_FAKE_FORMAT_HPP
#define NBDRADOS_TESTS_FAKE_FORMAT_HPP

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "image/image_format.hpp"
#include "image/ownership/exclusive_lock.hpp"
#include "image/ownership/object_map.hpp"
#include "no-blocklister.hpp"
#include "rados/error.hpp"
#include "rados/object_store.hpp"
#include "rbd/object_map.hpp"

namespace nbdrados {

class FakeFormat final : public ImageFormat {
 public:
  /// What the test and the image share.
  struct State {
    std::mutex mutex;
    View view;                 // guarded by mutex
    int load_error = 0;        // guarded by mutex
    std::atomic<int> loads{0};
    std::atomic<int> keep_alive_error{0};
    std::atomic<int> keep_alives{0};
    std::atomic<bool> locked{true};
    std::optional<std::chrono::milliseconds> interval;
    std::shared_ptr<State> parent;  // of what it is a clone
    std::optional<Layout> parent_layout;  // none: as the clone's
    // Changed between requests:
    std::shared_ptr<const ObjectStates> map;
    int map_error = 0;  // of reading `map`, and of opening that of the head
    int invalidate_error = 0;
    std::vector<SnapId> invalidated;  // whose maps

    void set_view(const View& now) {
      const std::scoped_lock lock(mutex);
      view = now;
    }
    void set_load_error(int code) {
      const std::scoped_lock lock(mutex);
      load_error = code;
    }
  };

  /// Without a header there is a lock that is kept alive instead of a watch.
  FakeFormat(ObjectStore& store, Layout layout, std::shared_ptr<State> state,
             std::string header = "header", bool keep_first = false,
             std::string prefix = "data")
      : store_(store),
        state_(std::move(state)),
        traits_{.name = "pool/image",
                .format = "test format",
                .layout = layout,
                .object_prefix = std::move(prefix),
                .name_digits = 4,
                .keep_first_object = keep_first,
                .header_oid = std::move(header),
                .details = "no features"},
        lock_(store, traits_.header_oid, blocklister_, {}) {}

  const ImageTraits& traits() const override { return traits_; }
  View load() override {
    ++state_->loads;
    const std::scoped_lock lock(state_->mutex);
    if (state_->load_error != 0)
      throw Error(state_->load_error, "the header says no");
    return state_->view;
  }
  std::optional<std::chrono::milliseconds> keep_alive() override {
    ++state_->keep_alives;
    if (const int e = state_->keep_alive_error)
      throw Error(e, "the lock is lost");
    return state_->interval;
  }
  std::optional<BootClock::time_point> locked_until() const override {
    if (!traits_.header_oid.empty()) return std::nullopt;
    return state_->locked ? BootClock::time_point::max()
                          : BootClock::time_point::min();
  }
  std::unique_ptr<ImageFormat> open_parent(const ParentSpec& spec) override {
    return std::make_unique<FakeFormat>(
        store_, state_->parent_layout.value_or(traits_.layout), state_->parent,
        "header" + std::to_string(spec.snap), false,
        "parent" + std::to_string(spec.snap));
  }
  std::shared_ptr<ObjectMap> open_map(std::uint64_t objects) override {
    check_map();
    return ObjectMap::open(store_, "image", objects, std::chrono::seconds(10));
  }
  std::shared_ptr<const ObjectStates> read_map() override {
    check_map();
    return state_->map;
  }
  void invalidate_map(SnapId snap) override {
    if (state_->invalidate_error != 0)
      throw Error(state_->invalidate_error, "the map stays valid");
    state_->invalidated.push_back(snap);
  }
  /// Needed where the view says lockable.
  ExclusiveLock* lock() noexcept override { return &lock_; }
  ObjectStore& header_store() override { return store_; }
  ObjectStore& data_store() override { return store_; }

 private:
  void check_map() const {
    if (state_->map_error != 0)
      throw Error(state_->map_error, "the map says no");
  }

  ObjectStore& store_;
  std::shared_ptr<State> state_;
  ImageTraits traits_;
  NoBlocklister blocklister_;
  ExclusiveLock lock_;
};

/// The errno that `f` throws, or 0.
template <class F>
int error_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.code();
  }
  return 0;
}

template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

inline bool eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 2000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return false;
}

}  // namespace nbdrados

#endif
