// SPDX-License-Identifier: BSD-3-Clause
//
// What a unit of common/image stands on, for a test of this unit alone: the
// core of an image on a store in memory with faults, and a parent that is a
// string.  No Image, no thread, no watch.

#ifndef NBDRADOS_TESTS_IMAGE_ROOM_HPP
#define NBDRADOS_TESTS_IMAGE_ROOM_HPP

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fake-format.hpp"
#include "image/core.hpp"
#include "image/options.hpp"
#include "image/state/view.hpp"
#include "image/worker_pool.hpp"
#include "rados/error.hpp"
#include "rados/fault_store.hpp"
#include "rados/memory_store.hpp"

namespace nbdrados {

/// A parent with these bytes.  The zeros among them are a hole.
class FakeBacking final : public Backing {
 public:
  struct Range {
    std::uint64_t length;
    std::uint64_t offset;
    bool operator==(const Range&) const = default;
  };

  std::string data;
  bool missing = false;  // what it says of anything absent
  int error = 0;         // of what is asked of it
  std::uint64_t object_size = 4 << 20;
  ObjectPlace place;     // of any object
  std::function<void()> on_read;  // called by each read

  bool read_backing(char* buffer, std::uint64_t length,
                    std::uint64_t offset) override {
    note(length, offset);
    if (on_read) on_read();
    for (std::uint64_t i = 0; i < length; ++i)
      buffer[i] = offset + i < data.size() ? data[offset + i] : '\0';
    return missing;
  }
  bool find_backing_data(std::uint64_t length, std::uint64_t offset,
                         std::vector<Fragment>& found) override {
    note(length, offset);
    const std::uint64_t end = std::min(offset + length, data.size());
    for (std::uint64_t at = offset; at < end; ++at) {
      if (data[at] == '\0') continue;
      const std::uint64_t from = at;
      while (at < end && data[at] != '\0') ++at;
      found.push_back({0, 0, from, at - from});
    }
    return missing;
  }
  std::uint64_t least_object_size() override { return object_size; }
  bool find_backing_object(const Layout&, std::uint64_t object_no,
                           std::uint64_t used, ObjectPlace& found) override {
    note(used, object_no);
    found = place;
    return missing;
  }
  bool knows_holes() override { return true; }

  /// What has been asked for since the last time.
  std::vector<Range> asked() {
    const std::scoped_lock lock(mutex_);
    return std::exchange(asked_, {});
  }

 private:
  void note(std::uint64_t length, std::uint64_t offset) {
    const std::scoped_lock lock(mutex_);
    asked_.push_back({length, offset});
    if (error != 0) throw Error(error, "pool/parent: no answer");
  }

  std::mutex mutex_;
  std::vector<Range> asked_;  // guarded by mutex_
};

/// How an ImageRoom is made.
struct RoomOptions {
  MemoryStore::Options store = {};
  ImageOptions image = {};
  bool keep_first = false;
  std::string header = "header";  // see FakeFormat
};

struct ImageRoom {
  /// The image is open and sure of its watch, until the test says otherwise.
  ImageRoom(const Layout& layout, const View& view, RoomOptions options = {})
      : memory(options.store),
        store(memory),
        core(std::make_unique<FakeFormat>(store, layout, state, options.header,
                                          options.keep_first),
             complete(std::move(options.image)),
             [this](std::unique_ptr<ImageFormat>, ImageOptions how) {
               parent_options = std::move(how);
               return parent;
             }) {
    memory.put("header", MemoryObject{});
    load(view);
    if (!core.state.is_parent())
      core.state.guard_until(BootClock::time_point::max());
  }
  /// Nothing may be left in flight, or have been used wrongly.
  ~ImageRoom() {
    const auto problems = store.problems();
    for (const std::string& line : problems)
      std::fprintf(stderr, "%s\n", line.c_str());
    if (!problems.empty()) std::abort();
  }
  ImageRoom(const ImageRoom&) = delete;
  ImageRoom& operator=(const ImageRoom&) = delete;

  /// The header says this now, and the image knows.
  void load(const View& view) {
    state->set_view(view);
    core.metadata.load();
  }
  /// Nobody knows any more whether the image is still there.
  void end_guard() {
    core.state.guard_until(BootClock::now() - std::chrono::seconds(1));
  }
  /// Writes to an object behind the image's back.
  void put(std::uint64_t object_no, std::string_view bytes,
           std::uint64_t offset = 0, const SnapContext& snapc = {}) {
    const ConstPiece piece{bytes.data(), bytes.size()};
    WriteOp op;
    op.write(offset, {&piece, 1});
    check(memory.write(oid(object_no), op, snapc)->wait(), "put");
  }
  [[nodiscard]] std::string oid(std::uint64_t object_no) const {
    return core.traits.object_name(object_no);
  }
  /// The object's bytes; "none" where there is no object.
  [[nodiscard]] std::string bytes(std::uint64_t object_no,
                                  SnapId snap = snap_head) {
    const auto object = memory.find(oid(object_no), snap);
    return object ? object->data.bytes() : "none";
  }
  /// The objects that operations of a kind have gone to, in their order.
  [[nodiscard]] std::vector<std::string> objects(FaultStore::Kind kind) {
    std::vector<std::string> names;
    for (const auto& r : store.log())
      if (r.kind == kind) names.push_back(r.oid);
    return names;
  }

  MemoryStore memory;
  FaultStore store;
  std::shared_ptr<FakeFormat::State> state =
      std::make_shared<FakeFormat::State>();
  std::shared_ptr<FakeBacking> parent = std::make_shared<FakeBacking>();
  ImageOptions parent_options;  // with which it was opened last
  std::mutex log_mutex;
  std::vector<std::string> log;  // guarded by log_mutex
  ImageCore core;

 private:
  [[nodiscard]] ImageOptions complete(ImageOptions how) {
    if (!how.workers) how.workers = std::make_shared<WorkerPool>(4);
    how.log = [this](const std::string& line, bool) {
      const std::scoped_lock lock(log_mutex);
      log.push_back(line);
    };
    return how;
  }
};

/// An image of which this is the parent, for RoomOptions::image.
[[nodiscard]] inline ImageOptions as_parent() {
  ImageOptions how;
  how.lineage = std::make_shared<Lineage>();
  return how;
}

}  // namespace nbdrados

#endif
