// SPDX-License-Identifier: BSD-3-Clause

#include <cppunit/extensions/HelperMacros.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "rados/client_pool.hpp"
#include "rados/error.hpp"

using namespace nbdrados;
using namespace std::chrono_literals;

namespace {

class FakeCluster final : public Cluster {
 public:
  explicit FakeCluster(std::uint64_t id) : id_(id) { ++alive; }
  ~FakeCluster() override { --alive; }
  std::shared_ptr<ObjectStore> open_pool(const std::string&,
                                         const std::string&,
                                         Purpose) override {
    return nullptr;
  }
  std::shared_ptr<ObjectStore> open_pool(std::int64_t, const std::string&,
                                         Purpose) override {
    return nullptr;
  }
  std::uint64_t client_id() const override { return id_; }
  void blocklist(const std::string&, std::chrono::seconds) override {}
  void wait_for_latest_osdmap() override {}
  std::chrono::milliseconds timeout() const override { return 5s; }
  bool shut_out() const noexcept override { return out; }

  std::atomic<bool> out{false};
  static std::atomic<int> alive;

 private:
  const std::uint64_t id_;
};
std::atomic<int> FakeCluster::alive{0};

FakeCluster& fake(const std::shared_ptr<Cluster>& cluster) {
  return static_cast<FakeCluster&>(*cluster);
}

}  // namespace

class ClientPoolTest : public CppUnit::TestFixture {
  CPPUNIT_TEST_SUITE(ClientPoolTest);
  CPPUNIT_TEST(a_client_each_then_shared);
  CPPUNIT_TEST(who_is_shut_out_gets_nothing_new);
  CPPUNIT_TEST(found_out_on_the_way);
  CPPUNIT_TEST(no_more_than_once_again);
  CPPUNIT_TEST(other_errors_are_not_tried_again);
  CPPUNIT_TEST(cannot_connect);
  CPPUNIT_TEST(many_at_once);
  CPPUNIT_TEST(many_at_once_cannot_connect);
  CPPUNIT_TEST_SUITE_END();

  std::atomic<std::uint64_t> connected_{0};
  std::atomic<bool> fails_{false};
  std::atomic<bool> slow_{false};
  std::vector<std::string> log_;

  std::unique_ptr<ClientPool> make(std::size_t most) {
    connected_ = 0;
    return std::make_unique<ClientPool>(
        [this] {
          if (slow_) std::this_thread::sleep_for(50ms);
          if (fails_) {
            ++connected_;
            throw Error(ETIMEDOUT, "no monitor");
          }
          return std::make_shared<FakeCluster>(++connected_);
        },
        most, [this](const std::string& line) { log_.push_back(line); });
  }
  static ClientPool::Share share(ClientPool& pool) {
    return pool.with_share([](const ClientPool::Share& s) { return s; });
  }
  static std::uint64_t id(const ClientPool::Share& s) {
    return s->cluster->client_id();
  }

 public:
  void setUp() override {
    fails_ = slow_ = false;
    log_.clear();
  }

  void a_client_each_then_shared() {
    const auto pool = make(3);
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{1}, connected_.load());
    std::vector<ClientPool::Share> shares;
    std::map<std::uint64_t, int> images;
    for (int i = 0; i < 9; ++i) ++images[id(shares.emplace_back(share(*pool)))];
    CPPUNIT_ASSERT_EQUAL(std::size_t{3}, images.size());
    for (const auto& [client, n] : images) CPPUNIT_ASSERT_EQUAL(3, n);
    // One that nobody uses is used again.
    const std::uint64_t free = id(shares[4]);
    std::erase_if(shares, [&](const auto& s) { return id(s) == free; });
    CPPUNIT_ASSERT_EQUAL(free, id(share(*pool)));
    // Images come and go one after the other: no client is made for that.
    shares.clear();
    const auto few = make(3);
    for (int i = 0; i < 5; ++i) CPPUNIT_ASSERT_EQUAL(std::uint64_t{1},
                                                     id(share(*few)));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{1}, connected_.load());
  }

  void who_is_shut_out_gets_nothing_new() {
    const auto pool = make(1);
    ClientPool::Share old = share(*pool);
    fake(old->cluster).out = true;
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{2}, id(share(*pool)));
    CPPUNIT_ASSERT_EQUAL(
        std::uint64_t{2},
        pool->with_cluster([](const auto& c) { return c->client_id(); }));
    // Even when it is let in again.
    fake(old->cluster).out = false;
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{2}, id(share(*pool)));
    CPPUNIT_ASSERT_EQUAL(std::size_t{1}, log_.size());
    CPPUNIT_ASSERT(log_[0].find("client.1;") != std::string::npos);
    // It lives as long as the image that has it, and no longer.
    CPPUNIT_ASSERT_EQUAL(2, FakeCluster::alive.load());
    old.reset();
    CPPUNIT_ASSERT_EQUAL(1, FakeCluster::alive.load());
  }

  void found_out_on_the_way() {
    const auto pool = make(2);
    std::vector<std::uint64_t> tried;
    const auto work = [&](Cluster& c) {
      tried.push_back(c.client_id());
      if (tried.size() == 1) {
        static_cast<FakeCluster&>(c).out = true;
        throw Error(ESHUTDOWN, "blocklisted");
      }
      return tried.size();
    };
    CPPUNIT_ASSERT_EQUAL(std::size_t{2}, pool->with_cluster([&](const auto& c) {
      return work(*c);
    }));
    CPPUNIT_ASSERT((tried == std::vector<std::uint64_t>{1, 2}));
    tried.clear();
    CPPUNIT_ASSERT_EQUAL(std::size_t{2},
                         pool->with_share([&](const ClientPool::Share& s) {
                           return work(*s->cluster);
                         }));
    CPPUNIT_ASSERT((tried == std::vector<std::uint64_t>{2, 3}));
  }

  /// A whole network can be on the blocklist (`ceph osd blocklist range`).
  void no_more_than_once_again() {
    const auto pool = make(4);
    int tries = 0;
    CPPUNIT_ASSERT_THROW(pool->with_cluster([&](const auto& c) {
      ++tries;
      fake(c).out = true;
      throw Error(ESHUTDOWN, "blocklisted");
    }),
                         Error);
    CPPUNIT_ASSERT_EQUAL(2, tries);
  }

  void other_errors_are_not_tried_again() {
    const auto pool = make(4);
    int tries = 0;
    CPPUNIT_ASSERT_THROW(pool->with_share([&](const ClientPool::Share&) {
      ++tries;
      throw Error(ENOENT, "no image");
    }),
                         Error);
    CPPUNIT_ASSERT_EQUAL(1, tries);
  }

  void cannot_connect() {
    const auto pool = make(2);
    const ClientPool::Share first = share(*pool);
    fails_ = true;
    // The second image then shares the first one's client.
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{1}, id(share(*pool)));
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{2}, connected_.load());
    fake(first->cluster).out = true;
    CPPUNIT_ASSERT_THROW((void)share(*pool), Error);
    fails_ = false;
    CPPUNIT_ASSERT(id(share(*pool)) > 2);
  }

  void many_at_once() {
    const auto pool = make(4);
    const ClientPool::Share old = share(*pool);
    fake(old->cluster).out = true;
    slow_ = true;
    std::mutex mutex;
    std::vector<ClientPool::Share> shares;
    std::vector<std::thread> threads;
    for (int i = 0; i < 40; ++i)
      threads.emplace_back([&] {
        ClientPool::Share s = share(*pool);
        const std::scoped_lock lock(mutex);
        shares.push_back(std::move(s));
      });
    for (std::thread& t : threads) t.join();
    std::map<std::uint64_t, int> images;
    for (const auto& s : shares) ++images[id(s)];
    CPPUNIT_ASSERT_EQUAL(std::size_t{4}, images.size());
    CPPUNIT_ASSERT_EQUAL(std::uint64_t{5}, connected_.load());
  }

  void many_at_once_cannot_connect() {
    const auto pool = make(2);
    fake(share(*pool)->cluster).out = true;
    slow_ = fails_ = true;
    std::atomic<int> refused{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 40; ++i)
      threads.emplace_back([&] {
        try {
          (void)share(*pool);
        } catch (const Error&) {
          ++refused;
        }
      });
    const auto start = std::chrono::steady_clock::now();
    for (std::thread& t : threads) t.join();
    CPPUNIT_ASSERT_EQUAL(40, refused.load());
    // Who waits for one that cannot connect does not try it all again.
    CPPUNIT_ASSERT(std::chrono::steady_clock::now() - start < 20 * 50ms);
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(ClientPoolTest);
