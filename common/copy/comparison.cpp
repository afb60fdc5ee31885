// SPDX-License-Identifier: BSD-3-Clause

#include "copy/comparison.hpp"

#include <algorithm>
#include <cerrno>
#include <utility>

namespace nbdrados::copy {

Comparison::Comparison(Endpoint& disk, std::function<void()> on_difference)
    : disk_(disk),
      on_difference_(std::move(on_difference)),
      traits_(disk.traits()) {
  traits_.writable = traits_.can_zero = true;
  traits_.reads_as_zeros = false;
}

std::optional<std::uint64_t> Comparison::difference() const {
  const std::scoped_lock lock(mutex_);
  return difference_;
}

void Comparison::start(std::uint64_t offset, std::uint64_t length,
                       const char* wanted, Done done) {
  Job* job = nullptr;
  {
    const std::scoped_lock lock(mutex_);
    if (unused_.empty()) {
      unused_.reserve(jobs_.size() + 1);
      unused_.push_back(jobs_.emplace_back(std::make_unique<Job>()).get());
    }
    job = unused_.back();
    unused_.pop_back();
  }
  job->offset = offset;
  job->length = length;
  job->wanted = wanted;
  job->done = std::move(done);
  if (job->got.size() < length) job->got.resize(length);
  disk_.read(offset, {job->got.data(), static_cast<std::size_t>(length)},
             [this, job](int error) { compare(*job, error); });
}

void Comparison::compare(Job& job, int error) {
  const auto end = job.got.begin() + static_cast<std::ptrdiff_t>(job.length);
  const auto at =
      error != 0 ? end
      : job.wanted != nullptr
          ? std::mismatch(job.got.begin(), end, job.wanted).first
          : std::find_if(job.got.begin(), end, [](char c) { return c != 0; });
  const Done done = std::move(job.done);
  const bool differs = at != end;
  {
    const std::scoped_lock lock(mutex_);
    if (differs) {
      const std::uint64_t place =
          job.offset + static_cast<std::uint64_t>(at - job.got.begin());
      difference_ = std::min(place, difference_.value_or(place));
    }
    unused_.push_back(&job);
  }
  if (differs) on_difference_();
  done(error);
}

void Comparison::read(std::uint64_t offset, std::span<char> to, Done done) {
  disk_.read(offset, to, std::move(done));
}

void Comparison::write(std::uint64_t offset, std::span<const char> from,
                       Done done) {
  start(offset, from.size(), from.data(), std::move(done));
}

void Comparison::zero(std::uint64_t offset, std::uint64_t length,
                      bool /*may_trim*/, Done done) {
  start(offset, length, nullptr, std::move(done));
}

void Comparison::flush(Done done) { done(0); }

void Comparison::extents(
    std::uint64_t offset, std::uint64_t length,
    std::function<void(int error, std::vector<Extent> found)> done) {
  disk_.extents(offset, length, std::move(done));
}

void Comparison::cancel() noexcept { disk_.cancel(); }

}  // namespace nbdrados::copy
