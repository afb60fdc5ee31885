// SPDX-License-Identifier: BSD-3-Clause
//
// "null:", a destination that throws everything away.

#ifndef NBDRADOS_COPY_NULL_ENDPOINT_HPP
#define NBDRADOS_COPY_NULL_ENDPOINT_HPP

#include <cerrno>

#include "copy/endpoint.hpp"

namespace nbdrados::copy {

class NullEndpoint final : public Endpoint {
 public:
  NullEndpoint() {
    traits_.size = unknown_size;
    traits_.writable = true;
    traits_.can_zero = true;
    traits_.can_flush = true;
  }
  [[nodiscard]] const Traits& traits() const noexcept override {
    return traits_;
  }
  void read(std::uint64_t, std::span<char>, Done done) override {
    done(EOPNOTSUPP);
  }
  void write(std::uint64_t, std::span<const char>, Done done) override {
    done(0);
  }
  void zero(std::uint64_t, std::uint64_t, bool, Done done) override {
    done(0);
  }
  void flush(Done done) override { done(0); }
  void extents(std::uint64_t, std::uint64_t,
               std::function<void(int, std::vector<Extent>)> done) override {
    done(EOPNOTSUPP, {});
  }

 private:
  Traits traits_;
};

}  // namespace nbdrados::copy

#endif
