// SPDX-License-Identifier: BSD-3-Clause

#ifndef NBDRADOS_COPY_NBD_RELAY_SIDE_HPP
#define NBDRADOS_COPY_NBD_RELAY_SIDE_HPP

#include <cerrno>
#include <memory>
#include <utility>

#include "copy/endpoint.hpp"
#include "copy/nbd/relay.hpp"

namespace nbdrados::copy::nbd {

/// One side of a relay, for an engine that moves the data by Relay::copy(): it
/// can neither read nor write.
class RelaySide final : public Endpoint {
 public:
  RelaySide(std::shared_ptr<Relay> relay, Side side)
      : relay_(std::move(relay)), side_(side) {}

  [[nodiscard]] const Traits& traits() const noexcept override {
    return side_ == Side::source ? relay_->source() : relay_->destination();
  }
  void read(std::uint64_t, std::span<char>, Done done) override {
    done(ENOTSUP);
  }
  void write(std::uint64_t, std::span<const char>, Done done) override {
    done(ENOTSUP);
  }
  void zero(std::uint64_t offset, std::uint64_t length, bool may_trim,
            Done done) override {
    relay_->zero(offset, length, may_trim,
                 [done = std::move(done)](int error, Side) { done(error); });
  }
  void flush(Done done) override {
    relay_->flush(
        [done = std::move(done)](int error, Side) { done(error); });
  }
  void extents(std::uint64_t offset, std::uint64_t length,
               std::function<void(int error, std::vector<Extent> found)> done)
      override {
    relay_->extents(offset, length, std::move(done));
  }
  void cancel() noexcept override { relay_->cancel(); }

 private:
  const std::shared_ptr<Relay> relay_;
  const Side side_;
};

}  // namespace nbdrados::copy::nbd

#endif
