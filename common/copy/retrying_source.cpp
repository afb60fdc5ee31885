// SPDX-License-Identifier: BSD-3-Clause

#include "copy/retrying_source.hpp"

#include <algorithm>
#include <cerrno>
#include <new>
#include <span>
#include <utility>

#include "rados/error.hpp"

namespace nbdrados::copy {

bool is_lost_connection(int error) noexcept {
  // None of them but ESHUTDOWN, of a server that is about to go, can be said in
  // a reply (NBD's proto.md, "Error values").
  switch (error) {
    case ECONNABORTED:
    case ECONNREFUSED:
    case ECONNRESET:
    case EHOSTUNREACH:
    case ENETDOWN:
    case ENETUNREACH:
    case ENOTCONN:
    case EPIPE:
    case ESHUTDOWN:
    case ETIMEDOUT:
      return true;
    default:
      return false;
  }
}

RetryingSource::RetryingSource(std::unique_ptr<Endpoint> first,
                               std::function<std::unique_ptr<Endpoint>()> open,
                               Options options)
    : traits_(first->traits()),
      open_(std::move(open)),
      options_(std::move(options)),
      endpoint_(std::move(first)) {
  thread_ = std::thread([this] { work(); });
}

RetryingSource::~RetryingSource() {
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

void RetryingSource::finish(const Request& request, int error,
                            std::vector<Extent> found) {
  if (request.told)
    request.told(error, std::move(found));
  else
    request.done(error);
}

void RetryingSource::start(Request request) {
  std::shared_ptr<Endpoint> endpoint;
  std::uint64_t generation = 0;
  int error = 0;
  {
    const std::scoped_lock lock(mutex_);
    endpoint = endpoint_;
    generation = generation_;
    error = error_;
    // The thread issues it when there is one again.
    if (error == 0 && (lost_ || !endpoint)) {
      waiting_.push_back(std::move(request));
      return;
    }
  }
  if (error != 0)
    finish(request, error, {});
  else
    issue(*endpoint, generation, std::move(request));
}

void RetryingSource::issue(Endpoint& endpoint, std::uint64_t generation,
                           Request request) {
  const auto shared = std::make_shared<Request>(std::move(request));
  if (shared->told)
    endpoint.extents(
        shared->offset, shared->length,
        [this, generation, shared](int error, std::vector<Extent> found) {
          ended(generation, *shared, error, std::move(found));
        });
  else
    endpoint.read(shared->offset,
                  {shared->to, static_cast<std::size_t>(shared->length)},
                  [this, generation, shared](int error) {
                    ended(generation, *shared, error, {});
                  });
}

void RetryingSource::ended(std::uint64_t generation, const Request& request,
                           int error, std::vector<Extent> found) {
  {
    const std::scoped_lock lock(mutex_);
    if (error == 0) attempts_ = 0;
    // Cancelled it is where another request has found that it is lost.
    if ((is_lost_connection(error) || error == ECANCELED) && error_ == 0) {
      if (generation == generation_) lost_ = true;
      waiting_.push_back(request);
      changed_.notify_all();
      return;
    }
    if (error != 0 && error_ != 0) error = error_;
  }
  finish(request, error, std::move(found));
}

void RetryingSource::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
    if (stopping_) return;
    if (lost_ && error_ == 0) open_again(lock);
    const std::vector<Request> requests = std::exchange(waiting_, {});
    const std::shared_ptr<Endpoint> endpoint = endpoint_;
    const std::uint64_t generation = generation_;
    const int error = stopping_ ? ECANCELED : error_;
    lock.unlock();
    for (const Request& request : requests) {
      if (error != 0)
        finish(request, error, {});
      else
        issue(*endpoint, generation, request);
    }
    lock.lock();
  }
}

/// In place of the connection that is lost.  Sets error_ where that cannot be.
void RetryingSource::open_again(std::unique_lock<std::mutex>& lock) {
  std::shared_ptr<Endpoint> old = std::move(endpoint_);
  lock.unlock();
  // Nobody writes to anybody's memory afterwards.
  old->cancel();
  old.reset();
  lock.lock();
  std::string why = "the connection is lost";
  for (auto time = options_.pause; error_ == 0 && !stopping_;
       time = std::min(2 * time, options_.longest_pause)) {
    if (attempts_ == options_.retries) {
      error_ = ECONNRESET;
      why_ = why;
      return;
    }
    ++attempts_;
    changed_.wait_for(lock, time, [this] { return stopping_ || error_ != 0; });
    if (stopping_ || error_ != 0) return;
    lock.unlock();
    std::shared_ptr<Endpoint> fresh = try_to_open(why);
    options_.log(fresh ? "connected again" : why);
    lock.lock();
    if (!fresh) continue;
    // The destructor waits for it, or it is cancelled as the first one was.
    if (error_ != 0) return;
    endpoint_ = std::move(fresh);
    ++generation_;
    lost_ = false;
    return;
  }
}

/// Null: it cannot be, and `why` says it.
std::shared_ptr<Endpoint> RetryingSource::try_to_open(std::string& why) const {
  try {
    std::shared_ptr<Endpoint> fresh = open_();
    const Traits& t = fresh->traits();
    if (t.size == traits_.size && t.minimum == traits_.minimum &&
        t.maximum >= traits_.maximum && t.has_extents == traits_.has_extents)
      return fresh;
    why = "the server shows another disk than before";
  } catch (const Error& e) {
    why = e.what();
  }
  return nullptr;
}

void RetryingSource::cancel() noexcept {
  std::shared_ptr<Endpoint> endpoint;
  {
    const std::scoped_lock lock(mutex_);
    if (error_ == 0) error_ = ECANCELED;
    endpoint = endpoint_;
    // The thread ends what waits.
    changed_.notify_all();
  }
  if (endpoint) endpoint->cancel();
}

std::string RetryingSource::explain(int error) const {
  std::shared_ptr<Endpoint> endpoint;
  {
    const std::scoped_lock lock(mutex_);
    if (!why_.empty()) return Endpoint::explain(error) + " (" + why_ + ")";
    endpoint = endpoint_;
  }
  return endpoint ? endpoint->explain(error) : Endpoint::explain(error);
}

void RetryingSource::read(std::uint64_t offset, std::span<char> to, Done done) {
  start({.offset = offset,
         .length = to.size(),
         .to = to.data(),
         .done = std::move(done)});
}

void RetryingSource::extents(
    std::uint64_t offset, std::uint64_t length,
    std::function<void(int error, std::vector<Extent> found)> done) {
  start({.offset = offset, .length = length, .told = std::move(done)});
}

void RetryingSource::write(std::uint64_t, std::span<const char>, Done done) {
  done(EROFS);
}

void RetryingSource::zero(std::uint64_t, std::uint64_t, bool, Done done) {
  done(EROFS);
}

void RetryingSource::flush(Done done) { done(0); }

}  // namespace nbdrados::copy
