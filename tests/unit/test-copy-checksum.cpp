// SPDX-License-Identifier: BSD-3-Clause
//
// Digests of what is copied, against a model that has all of it in memory; and
// lists of ranges.

#include <cppunit/TestFixture.h>
#include <cppunit/extensions/HelperMacros.h>
#include <openssl/evp.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "copy/checksum.hpp"
#include "copy/ranges.hpp"
#include "rados/error.hpp"

using namespace nbdrados::copy;
using nbdrados::Error;

namespace {

constexpr std::size_t block = 65536;

std::string hash(const std::string& bytes) {
  unsigned char out[EVP_MAX_MD_SIZE];
  unsigned n = 0;
  EVP_Digest(bytes.data(), bytes.size(), out, &n, EVP_sha256(), nullptr);
  return {reinterpret_cast<char*>(out), n};
}

std::string hex(const std::string& bytes) {
  std::ostringstream text;
  for (const char c : bytes) {
    text.width(2);
    text.fill('0');
    text << std::hex << (static_cast<unsigned>(c) & 0xff);
  }
  return text.str();
}

/// As the manual page has it.
std::string tree_of(const std::string& disk) {
  std::vector<std::string> d;
  for (std::size_t at = 0; at < disk.size(); at += block)
    d.push_back(hash(disk.substr(at, block)));
  while (d.size() > 1) {
    std::vector<std::string> above;
    for (std::size_t i = 0; i < d.size(); i += 1024) {
      std::string all;
      for (std::size_t j = i; j < std::min(i + 1024, d.size()); ++j)
        all += d[j];
      above.push_back(hash(all));
    }
    d = std::move(above);
  }
  std::string all = d.empty() ? "" : d[0];
  for (int i = 7; i >= 0; --i)
    all += static_cast<char>(std::uint64_t{disk.size()} >> 8 * i & 0xff);
  return hex(hash(all));
}

/// Pieces of 1 to `most` bytes, as far as possible of zeros only or of data.
std::vector<std::pair<std::size_t, std::size_t>> cut(std::size_t size,
                                                     std::size_t most) {
  std::mt19937 random(static_cast<unsigned>(size + most));
  std::vector<std::pair<std::size_t, std::size_t>> pieces;
  for (std::size_t at = 0; at < size;) {
    const std::size_t n = std::min(size - at, 1 + random() % most);
    pieces.emplace_back(at, n);
    at += n;
  }
  return pieces;
}

/// Data here and there.
std::string disk(std::size_t size) {
  std::mt19937 random(static_cast<unsigned>(size));
  std::string bytes(size, '\0');
  for (std::size_t at = 0; at < size; at += 1 + random() % 700000)
    for (std::size_t i = at; i < std::min(size, at + random() % 100000); ++i)
      bytes[i] = static_cast<char>(random());
  return bytes;
}

void add(Checksum& checksum, const std::string& bytes, std::size_t offset,
         std::size_t length) {
  const std::string_view part = std::string_view(bytes).substr(offset, length);
  if (part.find_first_not_of('\0') == std::string_view::npos)
    checksum.zeros(offset, length);
  else
    checksum.data(offset, part);
}

template <class Body>
std::string failure(Body&& body, int code) {
  try {
    body();
  } catch (const Error& e) {
    CPPUNIT_ASSERT_EQUAL_MESSAGE(e.what(), code, e.code());
    return e.what();
  }
  return "none";
}

std::string refusal(const std::string& lines) {
  std::istringstream from(lines);
  return failure([&] { (void)read_ranges(from, "F"); }, EINVAL);
}

class CopyChecksumTest : public CPPUNIT_NS::TestFixture {
  CPPUNIT_TEST_SUITE(CopyChecksumTest);
  CPPUNIT_TEST(any_order);
  CPPUNIT_TEST(threads);
  CPPUNIT_TEST(plain);
  CPPUNIT_TEST(zeros_cost_nothing);
  CPPUNIT_TEST(known_values);
  CPPUNIT_TEST(missing);
  CPPUNIT_TEST(algorithms);
  CPPUNIT_TEST(ranges);
  CPPUNIT_TEST(bad_ranges);
  CPPUNIT_TEST(many_ranges);
  CPPUNIT_TEST_SUITE_END();

  // 1024 blocks are 67108864 bytes.
  void any_order() {
    for (const std::size_t size :
         {0, 1, 65535, 65536, 65537, 131072, 1000003, 67108863, 67108864,
          67108865, 67174400, 134300001})
      for (const std::size_t most : {50000, 300000, 40000000}) {
        const std::string bytes = disk(size);
        auto pieces = cut(size, most);
        std::shuffle(pieces.begin(), pieces.end(), std::mt19937(1));
        Checksum checksum({"sha256"}, false);
        for (const auto& [offset, length] : pieces)
          add(checksum, bytes, offset, length);
        const auto found = checksum.finish(size);
        CPPUNIT_ASSERT_EQUAL(std::size_t{1}, found.size());
        CPPUNIT_ASSERT_EQUAL(std::string("sha256-tree"), found[0].name);
        CPPUNIT_ASSERT_EQUAL(tree_of(bytes), found[0].hex);
        if (size > 1000003 && most < 300000) break;
      }
  }

  void threads() {
    const std::string bytes = disk(20000001);
    const auto pieces = cut(bytes.size(), 30000);
    Checksum checksum({"sha256"}, false);
    std::vector<std::thread> all;
    for (std::size_t t = 0; t < 4; ++t)
      all.emplace_back([&, t] {
        for (std::size_t i = t; i < pieces.size(); i += 4)
          add(checksum, bytes, pieces[i].first, pieces[i].second);
      });
    for (std::thread& t : all) t.join();
    CPPUNIT_ASSERT_EQUAL(tree_of(bytes), checksum.finish(bytes.size())[0].hex);
  }

  void plain() {
    const std::string bytes = disk(3000001);
    auto pieces = cut(bytes.size(), 30000);
    for (std::size_t i = 0; i + 3 < pieces.size(); i += 3)
      std::swap(pieces[i], pieces[i + 2]);
    Checksum checksum({"sha512", "sha256"}, true);
    for (const auto& [offset, length] : pieces)
      add(checksum, bytes, offset, length);
    const auto found = checksum.finish(bytes.size());
    CPPUNIT_ASSERT_EQUAL(std::size_t{4}, found.size());
    CPPUNIT_ASSERT_EQUAL(std::string("sha512-tree"), found[0].name);
    CPPUNIT_ASSERT_EQUAL(std::string("sha256"), found[3].name);
    CPPUNIT_ASSERT_EQUAL(hex(hash(bytes)), found[3].hex);
    CPPUNIT_ASSERT_EQUAL(tree_of(bytes), found[1].hex);
  }

  // A disk of 2^62 bytes in 2^32 pieces of 1 GiB would still take a while.
  void zeros_cost_nothing() {
    const auto begin = std::chrono::steady_clock::now();
    const std::uint64_t size = (std::uint64_t{16} << 40) + 5;
    Checksum checksum({"sha256"}, false);
    for (std::uint64_t at = 0; at < size; at += std::uint64_t{1} << 30)
      checksum.zeros(at, std::min(std::uint64_t{1} << 30, size - at));
    const std::string in_parts = checksum.finish(size)[0].hex;
    CPPUNIT_ASSERT(std::chrono::steady_clock::now() - begin <
                   std::chrono::seconds(1));
    Checksum at_once({"sha256"}, false);
    at_once.zeros(0, size);
    CPPUNIT_ASSERT_EQUAL(in_parts, at_once.finish(size)[0].hex);
    // Zeros that were read are no others.
    Checksum read({"sha256"}, false);
    const std::string zeros(1000003, '\0');
    read.data(0, zeros);
    CPPUNIT_ASSERT_EQUAL(tree_of(zeros), read.finish(zeros.size())[0].hex);
  }

  // Written down, so that nobody changes the definition: 0 bytes; "abc";
  // 100 MiB of zeros.  Computed by the script of the manual page.
  void known_values() {
    const auto of = [](std::uint64_t zeros, std::string_view data) {
      Checksum checksum({"sha256"}, false);
      checksum.zeros(data.size(), zeros);
      checksum.data(0, data);
      return checksum.finish(zeros + data.size())[0].hex;
    };
    CPPUNIT_ASSERT_EQUAL(
        std::string(
            "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc"),
        of(0, ""));
    CPPUNIT_ASSERT_EQUAL(
        std::string(
            "01319eda4720b1a5ee319f9b4044c0fd59e3bfa76488a2f63f36919bccce68b4"),
        of(0, "abc"));
    CPPUNIT_ASSERT_EQUAL(
        std::string(
            "b26f361b80ec1c54e1a65627ccf6baaed43a406ebeaa9f65216c10554ae5c86b"),
        of(104857600, ""));
  }

  void missing() {
    const std::string bytes(300000, 'x');
    for (const std::size_t size : {299999, 300001, 400000, 65536})
      for (const bool plain : {false, true}) {
        Checksum checksum({"sha256"}, plain);
        checksum.data(0, bytes);
        (void)failure([&] { (void)checksum.finish(size); }, EIO);
      }
    Checksum hole({"sha256"}, false);
    hole.data(0, std::string_view(bytes).substr(0, 100000));
    hole.data(100001, std::string_view(bytes).substr(100001));
    CPPUNIT_ASSERT(failure([&] { (void)hole.finish(300000); }, EIO) != "none");
  }

  void algorithms() {
    for (const char* const bad : {"", "foo", "shake128", "aes-128-cbc"})
      CPPUNIT_ASSERT(failure([&] { Checksum c({bad}, false); }, EINVAL) !=
                     "none");
    for (const char* const good : {"sha256", "sha3-384", "blake2b512"})
      Checksum c({good}, true);
  }

  void ranges() {
    std::istringstream from(
        "# SOURCE DESTINATION LENGTH\n"
        "0 1M 4k\n"
        "\n"
        "  0x10\t0 512 # the first\r\n"
        "16 512 1s");
    const std::vector<Range> wanted = {
        {0, 1 << 20, 4096}, {16, 0, 512}, {16, 512, 512}};
    CPPUNIT_ASSERT(wanted == read_ranges(from, "F"));
  }

  void bad_ranges() {
    for (const char* const bad :
         {"0 0", "0 0 1 2", "0 0 0", "0 0 -1", "0 0 x", "0x 0 1", "0 0 1Q",
          "9223372036854775807 0 2", "0 0x7fffffffffffffff 1\n0 1 0x8000",
          "0 0x8000000000000000 1", "0,0,1", "1.5 0 1"})
      CPPUNIT_ASSERT_MESSAGE(
          bad, refusal(bad).find("SOURCE-OFFSET") != std::string::npos ||
                   refusal(bad).find("overlap") != std::string::npos);
    CPPUNIT_ASSERT_EQUAL(
        std::string("F: line 3: not 'SOURCE-OFFSET DESTINATION-OFFSET LENGTH'"),
        refusal("0 0 1\n#\nx\n"));
    CPPUNIT_ASSERT_EQUAL(std::string("F: there are no ranges"),
                         refusal("# nothing\n\n"));
    CPPUNIT_ASSERT_EQUAL(std::string("F: destinations overlap: 0+10 and 9+1"),
                         refusal("0 20 5\n0 9 1\n50 0 10\n"));
    // The same source twice is none, and neighbours are none.
    CPPUNIT_ASSERT_EQUAL(std::string("none"), refusal("0 0 10\n0 10 10\n"));
  }

  void many_ranges() {
    std::string lines;
    for (std::size_t i = 0; i < 1000000; ++i)
      lines += std::to_string(i * 8192) + " " +
               std::to_string((i ^ 0x55) * 4096) + " 4k\n";
    std::istringstream from(lines);
    CPPUNIT_ASSERT_EQUAL(std::size_t{1000000}, read_ranges(from, "F").size());
    lines.clear();
    for (std::size_t i = 0; i <= most_ranges; ++i)
      lines += "0 " + std::to_string(i) + " 1\n";
    CPPUNIT_ASSERT_EQUAL(
        std::string("F: line 4194305: more than 4194304 ranges"),
        refusal(lines));
  }
};

CPPUNIT_TEST_SUITE_REGISTRATION(CopyChecksumTest);

}  // namespace
