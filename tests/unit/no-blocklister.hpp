// SPDX-License-Identifier: BSD-3-Clause

#ifndef NBDRADOS_TESTS_NO_BLOCKLISTER_HPP
#define NBDRADOS_TESTS_NO_BLOCKLISTER_HPP

#include <cppunit/extensions/HelperMacros.h>

#include <chrono>
#include <cstdint>
#include <string>

#include "rados/cluster.hpp"

/// For locks that nobody else has.
class NoBlocklister final : public nbdrados::Blocklister {
 public:
  std::uint64_t client_id() const override { return 4100; }
  void blocklist(const std::string&, std::chrono::seconds) override {
    CPPUNIT_FAIL("nobody is to be blocklisted");
  }
  void wait_for_latest_osdmap() override {}
};

#endif
