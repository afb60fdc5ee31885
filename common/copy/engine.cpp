// SPDX-License-Identifier: BSD-3-Clause

#include "copy/engine.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <future>
#include <new>
#include <span>
#include <thread>
#include <utility>

#include "copy/units.hpp"
#include "rados/error.hpp"

namespace nbdrados::copy {

namespace {

/// Bytes of a small buffer.
constexpr std::uint64_t small_buffer = 64 << 10;
/// Small buffers, at most.
constexpr std::size_t most_small = 64;

/// Bytes of a range whose block status is asked for.
constexpr std::uint64_t least_asked = 1 << 20;

/// Zeros to write where a destination cannot make them; bytes.
constexpr std::size_t zeros_size = 1 << 20;
const char* zeros() {
  static const std::vector<char> all(zeros_size);
  return all.data();
}

/// At least 1 byte.
bool is_zero(const char* bytes, std::uint64_t length) {
  return bytes[0] == 0 &&
         std::memcmp(bytes, bytes + 1, static_cast<std::size_t>(length) - 1) ==
             0;
}

std::string where(std::uint64_t offset, std::uint64_t length) {
  return std::to_string(offset) + "+" + std::to_string(length);
}

/// Starts an operation and waits for it.
template <class Start>
int wait_for(Start&& start) {
  std::promise<int> result;
  start([&result](int error) { result.set_value(error); });
  return result.get_future().get();
}

struct Free {
  void operator()(char* p) const noexcept { std::free(p); }
};

}  // namespace

/// A part of a piece for one operation of the destination.
struct Engine::Run {
  enum class Kind : std::uint8_t { data, zeros, skip };
  Kind kind = Kind::data;
  std::uint64_t length = 0;  // bytes
  bool without_data = false;  // by Endpoint::zero
};

/// The way of one piece from the source to the destination.  What is not
/// atomic belongs to whoever is between begin() and release() with it.
struct Engine::Transfer {
  enum class Doing : std::uint8_t {
    reading,
    digesting,
    writing,
    offloading
  };

  /// Memory that has not been touched does not count.
  void make_buffer() {
    // Of a page: what is sent as whole pages can be sent without copying.
    if (!buffer)
      buffer.reset(static_cast<char*>(
          std::aligned_alloc(4096, (capacity + 4095) / 4096 * 4096)));
    if (!buffer) throw std::bad_alloc();
  }

  std::uint64_t capacity = 0;  // bytes
  bool is_large = true;
  std::unique_ptr<char, Free> buffer;
  Piece piece{};
  std::uint64_t shift = 0;  // to its place in the destination, modulo 2^64
  bool has_written = false;
  std::vector<Piece> parts;  // of a unit to be offloaded
  Doing doing = Doing::reading;
  std::uint64_t of_read = 0;  // bytes of it that the source had
  std::uint64_t at = 0;  // bytes of the piece that are done
  Run run;               // under way
  bool zeros_as_data = false;  // the destination cannot zero this piece
  int error = 0;         // of what has ended last
  bool of_source = false;  // that error, though it was a run
  /// Operations that have ended and are still to be looked at.  Whoever makes
  /// it 1 looks, also at those that end meanwhile.  So an endpoint whose
  /// operations end at once does not make the stack grow.
  std::atomic<unsigned> ended{0};
};

Engine::Engine(Endpoint& source, std::string source_name,
               Endpoint& destination, std::string destination_name,
               const EngineOptions& options)
    : source_(source),
      source_name_(std::move(source_name)),
      destination_(destination),
      destination_name_(std::move(destination_name)),
      options_(options),
      request_size_(options.request_size),
      skip_zeros_(!destination.traits().is_stream &&
                  (options.destination_is_zero ||
                   (destination.traits().reads_as_zeros &&
                    !options.allocated))),
      can_zero_(destination.traits().can_zero),
      digesters_(options.requests <= 1
                     ? 1
                     : std::max(1U, std::thread::hardware_concurrency())) {
  const std::uint64_t least = std::max(source_.traits().minimum,
                                       destination_.traits().minimum);
  const std::uint64_t most = std::min(source_.traits().maximum,
                                      destination_.traits().maximum);
  while (request_size_ > most && request_size_ / 2 >= least)
    request_size_ /= 2;
  request_size_ = std::max(request_size_, least);
  if (options_.sparse != 0 && !options_.allocated && !options_.move)
    block_ = std::max<std::uint64_t>(options_.sparse, least);

  size_ = source_.traits().size;
  if (options_.ranges != nullptr) {
    size_ = 0;
    for (const Range& range : *options_.ranges) size_ += range.length;
  }

  const std::size_t requests = std::max<std::size_t>(options_.requests, 1);
  const auto large = static_cast<std::size_t>(std::clamp<std::uint64_t>(
      options_.queue_size / request_size_, 1, requests));
  const std::size_t small =
      request_size_ <= small_buffer ? 0 : std::min(requests, most_small);
  for (std::size_t i = 0; i < large + small; ++i) {
    auto& t = transfers_.emplace_back(std::make_unique<Transfer>());
    t->is_large = i < large;
    t->capacity = t->is_large ? request_size_ : small_buffer;
    (t->is_large ? free_large_ : free_small_).push_back(t.get());
  }
}

Engine::~Engine() = default;

void Engine::fail(std::exception_ptr error) noexcept {
  {
    const std::scoped_lock lock(mutex_);
    if (!error_) error_ = std::move(error);
    stopping_ = true;
    changed_.notify_all();
  }
  source_.cancel();
  destination_.cancel();
}

void Engine::fail(const std::string& name, const char* operation,
                  std::uint64_t offset, std::uint64_t length,
                  int code) noexcept {
  try {
    const Endpoint& side = &name == &source_name_ ? source_ : destination_;
    throw Error(code, name + ": " + operation + " at " +
                          where(offset, length) + ": " + side.explain(code));
  } catch (...) {
    fail(std::current_exception());
  }
}

void Engine::stop() noexcept {
  try {
    throw Error(ECANCELED, "stopped");
  } catch (...) {
    fail(std::current_exception());
  }
}

void Engine::check() const {
  const Traits& from = source_.traits();
  const Traits& to = destination_.traits();
  if (!to.writable)
    throw Error(EROFS, destination_name_ +
                           ": the destination is read-only, cannot write to "
                           "it");
  if (options_.ranges != nullptr) {
    for (const Range& range : *options_.ranges) check_range(range);
    return;
  }
  if (from.size != unknown_size && to.size != unknown_size &&
      from.size > to.size)
    throw Error(ENOSPC, destination_name_ + ": destination size " +
                            std::to_string(to.size) +
                            " is smaller than source size " +
                            std::to_string(from.size));
}

void Engine::check_range(const Range& range) const {
  const auto check_side = [&](const Endpoint& side, const std::string& name,
                              std::uint64_t offset) {
    const Traits& t = side.traits();
    const std::string what =
        name + ": the range " + where(offset, range.length);
    if (t.is_stream)
      throw Error(EINVAL, name + ": a stream has no ranges");
    if (t.size != unknown_size &&
        (offset > t.size || range.length > t.size - offset))
      throw Error(EINVAL, what + " ends behind its size, " +
                              std::to_string(t.size));
    const std::uint64_t block = std::max(source_.traits().minimum,
                                         destination_.traits().minimum);
    if (offset % block != 0 || range.length % block != 0)
      throw Error(EINVAL, what + " is not in blocks of " +
                              std::to_string(block) + " bytes");
  };
  check_side(source_, source_name_, range.source);
  check_side(destination_, destination_name_, range.destination);
}

void Engine::run() {
  check();
  try {
    walk();
    copy_tail();
  } catch (...) {
    fail(std::current_exception());
  }
  std::unique_lock lock(mutex_);
  wanted_ = true;
  changed_.wait(lock, [this] { return under_way_ == 0; });
  if (error_) std::rethrow_exception(error_);
  lock.unlock();
  if (options_.flush) flush();
}

void Engine::flush() {
  const int error =
      wait_for([this](Done done) { destination_.flush(std::move(done)); });
  if (error != 0)
    throw Error(error,
                destination_name_ + ": flush: " + destination_.explain(error));
}

/// What is left where the source's size is no multiple of the destination's
/// smallest request: the rest of the destination's block stays as it is.
void Engine::copy_tail() {
  const std::uint64_t size = source_.traits().size;
  const std::uint64_t block = destination_.traits().minimum;
  if (size == unknown_size || size % block == 0 || stopping_ ||
      ends_early_ || options_.ranges != nullptr)
    return;
  const std::uint64_t offset = size / block * block;
  std::vector<char> buffer(block);
  const auto tail = static_cast<std::size_t>(size - offset);
  const auto attempt = [&](const std::string& name, const char* operation,
                           std::size_t length, auto&& start) {
    if (stopping_) return;
    if (const int error = wait_for(start); error != 0)
      fail(name, operation, offset, length, error);
  };
  attempt(destination_name_, "read", buffer.size(), [&](Done done) {
    destination_.read(offset, buffer, std::move(done));
  });
  attempt(source_name_, "read", tail, [&](Done done) {
    source_.read(offset, std::span(buffer).first(tail), std::move(done));
  });
  if (options_.checksum != nullptr && !stopping_)
    options_.checksum->data(offset, std::span(buffer).first(tail));
  attempt(destination_name_, "write", buffer.size(), [&](Done done) {
    destination_.write(offset, buffer, std::move(done));
  });
  if (!stopping_) counts_.copied += tail;
}

void Engine::walk() {
  if (options_.ranges == nullptr) {
    const std::uint64_t size = source_.traits().size;
    const std::uint64_t block = destination_.traits().minimum;
    (void)walk({0, 0, size == unknown_size ? size : size / block * block});
    return;
  }
  for (const Range& range : *options_.ranges)
    if (!walk(range)) return;
}

/// False: the copy ends.
bool Engine::walk(const Range& range) {
  const Traits& from = source_.traits();
  const Traits& to = destination_.traits();
  const std::uint64_t shift = range.destination - range.source;
  WalkOptions options;
  options.alignment = std::max(from.minimum, to.minimum);
  options.begin = range.source;
  options.end = range.source + range.length;
  options.most_data = request_size_;
  options.most_zeros = std::max(options_.most_zeros, request_size_);
  options.least_zeros = std::max<std::uint64_t>(options_.sparse, 1);
  // A short range is read sooner than it is asked for.
  options.use_extents =
      options_.use_extents && from.has_extents &&
      (options_.ranges == nullptr || range.length >= least_asked);
  // Of a server whose size is not in its own blocks.
  options.known_end = options.end / from.minimum * from.minimum;
  Walk walk(source_, options);
  Units units(walk, options_.offload);
  bool at_end = false;
  while (!stopping_ && !ends_early_ && !source_has_ended(walk.at())) {
    while (const auto piece = left_over(false)) transfer(*piece, shift, {});
    std::optional<Units::Task> task;
    const std::uint64_t at = walk.at();
    try {
      task = units.next();
    } catch (const Error& e) {
      fail(source_name_, "block status", at, options.end - at, e.code());
      return false;
    }
    if (!task) {
      at_end = true;
      break;
    }
    transfer(task->piece, shift, std::move(task->parts));
  }
  while (const auto piece = left_over(true)) transfer(*piece, shift, {});
  return at_end && !stopping_;
}

/// `parts`: see Units::Task.
void Engine::transfer(const Piece& piece, std::uint64_t shift,
                      std::vector<Piece> parts) {
  if (piece.is_zero && options_.checksum != nullptr)
    options_.checksum->zeros(piece.offset, piece.length);
  if (piece.is_zero && skip_zeros_) {
    counts_.skipped += piece.length;
    return;
  }
  wait_for_limits(piece);
  const bool small = piece.is_zero || !parts.empty() ||
                     piece.length <= small_buffer;
  if (Transfer* const t = get_transfer(small))
    begin(*t, piece, shift, std::move(parts));
}

/// A piece of what the offload could not copy.  `at_end`: waits until there is
/// one, or none can come any more.
std::optional<Piece> Engine::left_over(bool at_end) {
  if (options_.offload == nullptr) return std::nullopt;
  std::unique_lock lock(mutex_);
  if (at_end) {
    wanted_ = true;
    changed_.wait(lock, [this] {
      return stopping_ || under_way_ == 0 || !left_over_.empty();
    });
    wanted_ = false;
  }
  if (stopping_ || left_over_.empty()) return std::nullopt;
  const Piece piece = left_over_.back();
  left_over_.pop_back();
  return piece;
}

/// Until the piece may begin.  Time that was not used is lost.
void Engine::wait_for_limits(const Piece& piece) {
  auto begin = std::chrono::steady_clock::now();
  const auto now = begin;
  const auto limit = [&](auto& may, std::uint64_t n, std::uint64_t owed,
                         std::uint64_t rate) {
    if (rate == 0) return;
    const auto time_for = [rate](std::uint64_t all) {
      return std::chrono::nanoseconds(static_cast<std::int64_t>(
          1e9 * static_cast<double>(all) / static_cast<double>(rate)));
    };
    may = std::max(may + time_for(owed), now);
    begin = std::max(begin, may);
    may += time_for(n);
  };
  if (!piece.is_zero) limit(may_read_, piece.length, 0, options_.rate);
  limit(may_ask_, 1, more_asked_.exchange(0), options_.iops);
  if (begin == now) return;
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, begin, [this] { return stopping_.load(); });
}

bool Engine::source_has_ended(std::uint64_t offset) const {
  if (source_.traits().size != unknown_size) return false;
  const auto end = source_.end();
  return end && *end <= offset;
}

/// Null: the copy ends.
Engine::Transfer* Engine::get_transfer(bool small) {
  std::unique_lock lock(mutex_);
  const auto find = [&]() -> std::vector<Transfer*>* {
    if (under_way_ >= std::max<std::size_t>(options_.requests, 1))
      return nullptr;
    if (small && !free_small_.empty()) return &free_small_;
    return free_large_.empty() ? nullptr : &free_large_;
  };
  wanted_ = true;
  changed_.wait(lock, [&] { return stopping_ || find() != nullptr; });
  wanted_ = false;
  if (stopping_) return nullptr;
  std::vector<Transfer*>& list = *find();
  Transfer* const t = list.back();
  list.pop_back();
  ++under_way_;
  return t;
}

void Engine::release(Transfer& t) noexcept {
  const std::scoped_lock lock(mutex_);
  // It has the room (see the constructor).
  (t.is_large ? free_large_ : free_small_).push_back(&t);
  --under_way_;
  if (wanted_) changed_.notify_one();
}

void Engine::begin(Transfer& t, const Piece& piece, std::uint64_t shift,
                   std::vector<Piece> parts) {
  t.piece = piece;
  t.shift = shift;
  t.has_written = false;
  t.parts = std::move(parts);
  t.at = 0;
  t.run = {};
  t.error = 0;
  t.of_source = false;
  t.zeros_as_data = false;
  if (piece.is_zero || options_.move) {
    t.doing = Transfer::Doing::writing;
    ended(t, 0);
    return;
  }
  try {
    if (!t.parts.empty()) {
      t.doing = Transfer::Doing::offloading;
      options_.offload->copy(piece.offset, piece.length,
                             [this, &t](int error) { ended(t, error); });
      return;
    }
    t.doing = Transfer::Doing::reading;
    t.make_buffer();
    source_.read(piece.offset,
                 {t.buffer.get(), static_cast<std::size_t>(piece.length)},
                 [this, &t](int error) { ended(t, error); });
  } catch (...) {
    release(t);
    throw;
  }
}

void Engine::ended(Transfer& t, int error) noexcept {
  t.error = error;
  ++activity_;
  if (t.ended.fetch_add(1) != 0) return;
  do {
    bool finished = true;
    try {
      finished = step(t);
    } catch (...) {
      fail(std::current_exception());
    }
    if (finished) {
      t.ended = 0;
      release(t);
      return;
    }
  } while (t.ended.fetch_sub(1) != 1);
}

/// What follows when an operation has ended.  True: nothing.
bool Engine::step(Transfer& t) {
  if (t.doing == Transfer::Doing::offloading) {
    take_offloaded(t);
    return true;
  }
  if (t.doing == Transfer::Doing::reading) {
    if (!take_read(t)) return true;
    if (options_.checksum != nullptr) {
      t.doing = Transfer::Doing::digesting;
      digesters_.add({this, &t});
      return false;
    }
    t.doing = Transfer::Doing::writing;
  } else if (t.doing == Transfer::Doing::digesting) {
    if (t.error != 0) {
      fail(source_name_, "checksum", t.piece.offset, t.of_read, t.error);
      return true;
    }
    t.doing = Transfer::Doing::writing;
  } else if (t.error == EOPNOTSUPP && t.run.without_data) {
    // Once more, as data; other ranges it may well be able to zero.
    t.zeros_as_data = true;
    t.run = {};
  } else if (t.of_source && t.error != 0) {
    fail(source_name_, "read", t.piece.offset + t.at, t.run.length, t.error);
    return true;
  } else if (t.error != 0) {
    fail(destination_name_, t.run.without_data ? "zero" : "write",
         t.piece.offset + t.shift + t.at, t.run.length, t.error);
    return true;
  }
  (t.run.kind == Run::Kind::zeros ? counts_.zeroed : counts_.copied) +=
      t.run.length;
  t.at += t.run.length;
  t.run = {};
  while (t.at < t.piece.length && !stopping_) {
    t.run = next_run(t);
    if (t.run.kind != Run::Kind::skip) {
      write_run(t);
      return false;
    }
    counts_.skipped += t.run.length;
    t.at += t.run.length;
    t.run = {};
  }
  return true;
}

void Engine::Digesting::operator()() const {
  int error = 0;
  try {
    engine->options_.checksum->data(
        transfer->piece.offset,
        {transfer->buffer.get(), static_cast<std::size_t>(transfer->of_read)});
  } catch (const Error& e) {
    error = e.code();
  } catch (const std::bad_alloc&) {
    error = ENOMEM;
  }
  engine->ended(*transfer, error);
}

/// What the offload could not copy is read and written.  So errors of either
/// side are found where they are.
void Engine::take_offloaded(Transfer& t) {
  if (t.error == 0) {
    counts_.offloaded += t.piece.length;
  } else if (options_.must_offload) {
    fail(std::make_exception_ptr(
        Error(t.error, destination_name_ + ": offload at " +
                           where(t.piece.offset, t.piece.length) + ": " +
                           options_.offload->explain(t.error))));
  } else {
    // Those that come first are to be taken first.
    const std::scoped_lock lock(mutex_);
    left_over_.insert(left_over_.end(), t.parts.rbegin(), t.parts.rend());
  }
}

/// False: there is nothing to write.
bool Engine::take_read(Transfer& t) {
  if (t.error != 0) {
    fail(source_name_, "read", t.piece.offset, t.piece.length, t.error);
    return false;
  }
  t.of_read = t.piece.length;
  if (source_.traits().size != unknown_size) return true;
  const std::uint64_t asked = t.piece.length;
  if (const auto end = source_.end())
    t.piece.length = *end <= t.piece.offset
                         ? 0
                         : std::min(asked, *end - t.piece.offset);
  if (t.piece.length == 0) return false;
  t.of_read = t.piece.length;
  const std::uint64_t room = destination_.traits().size;
  if (t.piece.offset > room || t.piece.length > room - t.piece.offset) {
    fail(destination_name_, "write", t.piece.offset, t.piece.length, ENOSPC);
    return false;
  }
  // Zeros fill the stream's last block.  (What is asked for is whole blocks.)
  const std::uint64_t block = destination_.traits().minimum;
  if (const std::uint64_t rest = t.piece.length % block; rest != 0) {
    std::memset(t.buffer.get() + t.piece.length, 0,
                static_cast<std::size_t>(block - rest));
    t.piece.length += block - rest;
  }
  return true;
}

Engine::Run Engine::next_run(const Transfer& t) const {
  using Kind = Run::Kind;
  const std::uint64_t rest = t.piece.length - t.at;
  if (t.piece.is_zero) return {Kind::zeros, rest};
  const Kind zeros_are = skip_zeros_                     ? Kind::skip
                         : can_zero_ && !t.zeros_as_data ? Kind::zeros
                                                         : Kind::data;
  if (block_ == 0 || zeros_are == Kind::data) return {Kind::data, rest};
  Run run;
  for (std::uint64_t end = t.at; end < t.piece.length;) {
    const std::uint64_t place = t.piece.offset + end;
    const std::uint64_t length =
        std::min(block_ - place % block_, t.piece.length - end);
    const Kind kind = is_zero(t.buffer.get() + end, length) ? zeros_are
                                                            : Kind::data;
    if (run.length != 0 && kind != run.kind) break;
    run.kind = kind;
    run.length += length;
    end += length;
  }
  return run;
}

void Engine::write_run(Transfer& t) {
  const std::uint64_t offset = t.piece.offset + t.shift + t.at;
  const auto done = [this, &t](int error) { ended(t, error); };
  if (std::exchange(t.has_written, true)) ++more_asked_;
  if (t.run.kind == Run::Kind::zeros && can_zero_ && !t.zeros_as_data) {
    t.run.without_data = true;
    destination_.zero(offset, t.run.length, !options_.allocated, done);
    return;
  }
  if (options_.move) {
    t.run.length = std::min(t.run.length, request_size_);
    options_.move(offset, static_cast<std::uint32_t>(t.run.length),
                  [this, &t](int error, bool of_source) {
                    t.of_source = of_source;
                    ended(t, error);
                  });
    return;
  }
  const char* from = nullptr;
  if (t.piece.is_zero) {
    const std::uint64_t most = std::min<std::uint64_t>(
        zeros_size, destination_.traits().maximum);
    t.run.length = std::min(t.run.length, most);
    from = zeros();
  } else {
    from = t.buffer.get() + t.at;
  }
  destination_.write(offset,
                     {from, static_cast<std::size_t>(t.run.length)}, done);
}

}  // namespace nbdrados::copy
