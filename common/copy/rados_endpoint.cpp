// SPDX-License-Identifier: BSD-3-Clause

#include "copy/rados_endpoint.hpp"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <new>
#include <utility>

#include "rados/error.hpp"

namespace nbdrados::copy {

RadosEndpoint::RadosEndpoint(std::shared_ptr<Image> image, Options options)
    : image_(std::move(image)),
      options_(std::move(options)),
      workers_(options_.threads) {
  traits_.size = image_->size();
  traits_.writable = image_->writable();
  traits_.can_zero = traits_.can_trim = traits_.can_flush = true;
  traits_.has_extents = options_.use_extents;
  traits_.reads_as_zeros = options_.is_new;
  traits_.preferred = static_cast<std::uint32_t>(std::clamp<std::uint64_t>(
      std::bit_floor(image_->traits().layout.object_size()), 4096,
      traits_.maximum));
}

void RadosEndpoint::Job::operator()() {
  int error = 0;
  std::vector<copy::Extent> found;
  try {
    endpoint->carry_out(*this, found);
  } catch (const Error& e) {
    error = client_errno(e.code());
    if (endpoint->options_.log && error != ECANCELED)
      endpoint->options_.log(e.what());
  } catch (const std::bad_alloc&) {
    error = ENOMEM;
  } catch (const std::exception& e) {
    error = EIO;
    if (endpoint->options_.log) endpoint->options_.log(e.what());
  }
  if (told)
    told(error, std::move(found));
  else
    done(error);
}

bool RadosEndpoint::begin_operation() {
  const std::scoped_lock lock(mutex_);
  if (!cancelled_) ++under_way_;
  return !cancelled_;
}

void RadosEndpoint::end_operation() {
  const std::scoped_lock lock(mutex_);
  --under_way_;
}

void RadosEndpoint::cancel() noexcept {
  const std::scoped_lock lock(mutex_);
  cancelled_ = true;
}

bool RadosEndpoint::is_idle() {
  const std::scoped_lock lock(mutex_);
  return under_way_ == 0;
}

void RadosEndpoint::carry_out(const Job& job, std::vector<Extent>& found) {
  if (!begin_operation()) fail(ECANCELED, "the copy");
  struct Ending {
    RadosEndpoint& endpoint;
    ~Ending() { endpoint.end_operation(); }
  } const ending{*this};
  switch (job.kind) {
    case Job::Kind::read:
      image_->read(job.to, job.length, job.offset);
      break;
    case Job::Kind::write:
      image_->write(job.from, job.length, job.offset);
      break;
    case Job::Kind::zero:
      image_->zero(job.length, job.offset,
                   job.may_trim ? Image::Zero::free : Image::Zero::allocate);
      break;
    case Job::Kind::flush:
      image_->flush();
      break;
    case Job::Kind::extents:
      found = find_extents(job.offset, job.length);
      break;
  }
}

std::vector<Extent> RadosEndpoint::find_extents(std::uint64_t offset,
                                                std::uint64_t length) {
  std::vector<Extent> found;
  for (const auto& e : image_->extents(length, offset, false))
    found.push_back({e.offset, e.length, !e.data, !e.data});
  span_.answered(found.size());
  return found;
}

std::string RadosEndpoint::explain(int error) const {
  return error_text(error);
}

void RadosEndpoint::read(std::uint64_t offset, std::span<char> to,
                         Done done) {
  Job job;
  job.endpoint = this;
  job.kind = Job::Kind::read;
  job.offset = offset;
  job.length = to.size();
  job.to = to.data();
  job.done = std::move(done);
  workers_.add(std::move(job));
}

void RadosEndpoint::write(std::uint64_t offset, std::span<const char> from,
                          Done done) {
  Job job;
  job.endpoint = this;
  job.kind = Job::Kind::write;
  job.offset = offset;
  job.length = from.size();
  job.from = from.data();
  job.done = std::move(done);
  workers_.add(std::move(job));
}

void RadosEndpoint::zero(std::uint64_t offset, std::uint64_t length,
                         bool may_trim, Done done) {
  Job job;
  job.endpoint = this;
  job.kind = Job::Kind::zero;
  job.offset = offset;
  job.length = length;
  job.may_trim = may_trim;
  job.done = std::move(done);
  workers_.add(std::move(job));
}

void RadosEndpoint::flush(Done done) {
  Job job;
  job.endpoint = this;
  job.done = std::move(done);
  workers_.add(std::move(job));
}

void RadosEndpoint::extents(
    std::uint64_t offset, std::uint64_t length,
    std::function<void(int error, std::vector<Extent> found)> done) {
  Job job;
  job.endpoint = this;
  job.kind = Job::Kind::extents;
  job.offset = offset;
  job.length = span_.cut(length);
  job.told = std::move(done);
  workers_.add(std::move(job));
}

}  // namespace nbdrados::copy
