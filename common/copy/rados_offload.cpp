// SPDX-License-Identifier: BSD-3-Clause

#include "copy/rados_offload.hpp"

#include <algorithm>
#include <cerrno>
#include <exception>
#include <map>
#include <utility>

#include "rados/error.hpp"

namespace nbdrados::copy {

namespace {

/// Eighths: see the head of the header.
constexpr std::uint64_t densest = 7;

/// What of an object is data.
struct Content {
  std::uint64_t bytes = 0;
  std::uint64_t end = 0;  // of the last one
};

}  // namespace

std::string RadosOffload::obstacle(Image& source, Image& destination) {
  if (!source.traits().layout.agrees(destination.traits().layout))
    return "object size or striping differ";
  return {};
}

RadosOffload::RadosOffload(std::shared_ptr<Image> source,
                           std::shared_ptr<Image> destination,
                           Options options)
    : source_(std::move(source)),
      destination_(std::move(destination)),
      options_(std::move(options)),
      layout_(source_->traits().layout),
      size_(source_->size()),
      workers_(options_.threads) {}

// What to copy --------------------------------------------------------------

bool RadosOffload::suits(std::span<const Piece> parts) {
  if (options_.always) return true;
  return !refused_ && source_->knows_holes() && is_dense(parts);
}

bool RadosOffload::is_dense(std::span<const Piece> parts) const {
  std::map<std::uint64_t, Content> objects;
  for (const Piece& piece : parts) {
    if (piece.is_zero) continue;
    for (const ObjectExtent& e : layout_.cut(piece.offset, piece.length)) {
      Content& content = objects[e.object_no];
      content.bytes += e.length;
      content.end = std::max(content.end, e.offset + e.length);
    }
  }
  return std::all_of(objects.begin(), objects.end(), [](const auto& object) {
    return object.second.bytes >= object.second.end / 8 * densest;
  });
}

// Copying -------------------------------------------------------------------

void RadosOffload::copy(std::uint64_t offset, std::uint64_t /*length*/,
                        Done done) {
  Job job;
  job.offload = this;
  job.set = offset / unit();
  job.done = std::move(done);
  workers_.add(std::move(job));
}

std::string RadosOffload::explain(int error) const {
  return error == EOPNOTSUPP
             ? "an object is more than data, or of several objects"
             : error_text(error);
}

void RadosOffload::Job::operator()() {
  int error = 0;
  try {
    offload->copy_set(set);
  } catch (const Error& e) {
    error = client_errno(e.code());
    offload->failed(e.code(), e.what());
  } catch (const std::exception& e) {
    error = EIO;
    offload->failed(error, e.what());
  }
  done(error);
}

void RadosOffload::copy_set(std::uint64_t set) {
  const std::uint64_t count = layout_.stripe_count();
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint64_t n = set * count + i;
    if (layout_.object_used(n, size_) != 0) copy_object(n);
  }
}

void RadosOffload::copy_object(std::uint64_t object_no) {
  // It can be removed after it has been found: a discard, a flatten.
  constexpr int attempts = 3;
  const std::uint64_t used = layout_.object_used(object_no, size_);
  for (int i = 1;; ++i) {
    // Where holes are known, each object has been asked for.  In a set, some
    // may be absent.
    const bool is_known =
        i == 1 && !options_.always && layout_.stripe_count() == 1;
    const ObjectPlace place = source_->find_object(object_no, used, is_known);
    switch (place.kind) {
      case ObjectPlace::Kind::nowhere:
        if (options_.is_zero) return;
        for (const Fragment& f : layout_.image_parts(object_no, 0, used))
          destination_->zero(f.length, f.image_offset, Image::Zero::free);
        return;
      case ObjectPlace::Kind::parts:
        throw Error(EOPNOTSUPP,
                    source_->traits().name + ": object " +
                        std::to_string(object_no) +
                        ": " + explain(EOPNOTSUPP));
      case ObjectPlace::Kind::object:
        try {
          destination_->copy_object(object_no, used, place);
          return;
        } catch (const Error& e) {
          if (e.code() != ENOENT || i == attempts) throw;
        }
    }
  }
}

void RadosOffload::failed(int code, const std::string& text) {
  if (code == EPERM || code == EACCES || code == EINVAL) refused_ = true;
  {
    const std::scoped_lock lock(mutex_);
    if (!told_.insert(code).second) return;
  }
  if (options_.log) options_.log("not copied inside the cluster: " + text);
}

}  // namespace nbdrados::copy
