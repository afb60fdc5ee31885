// SPDX-License-Identifier: BSD-3-Clause

#include "copy/checksum.hpp"

#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

#include "rados/error.hpp"

namespace nbdrados::copy {

namespace {

constexpr std::uint64_t block_size = 64 << 10;  // bytes
constexpr std::uint64_t fan_out = 1024;

using Bytes = std::span<const char>;

const std::array<char, block_size>& zero_block() {
  static const std::array<char, block_size> zeros{};
  return zeros;
}

/// Of at most a block.
bool is_zero(Bytes bytes) {
  return std::memcmp(bytes.data(), zero_block().data(), bytes.size()) == 0;
}

[[noreturn]] void incomplete() {
  throw Error(EIO, "checksum: not all of the disk has been seen");
}

std::string hex(const std::string& digest) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string text;
  for (const char c : digest) {
    const auto byte = static_cast<unsigned char>(c);
    text += digits[byte / 16];
    text += digits[byte % 16];
  }
  return text;
}

struct FreeHash {
  void operator()(EVP_MD* md) const noexcept { EVP_MD_free(md); }
  void operator()(EVP_MD_CTX* ctx) const noexcept { EVP_MD_CTX_free(ctx); }
};

void check_crypto(int r) {
  if (r != 1) throw Error(EIO, "checksum: libcrypto fails");
}

}  // namespace

/// An algorithm.
class Checksum::Hash {
 public:
  explicit Hash(std::string name)
      : name_(std::move(name)),
        md_(EVP_MD_fetch(nullptr, name_.c_str(), nullptr)) {
    // Not one whose result is as long as one likes.
    if (!md_ || EVP_MD_get_size(md_.get()) <= 0 ||
        (EVP_MD_get_flags(md_.get()) & EVP_MD_FLAG_XOF) != 0)
      throw Error(EINVAL, "--checksum: no algorithm '" + name_ +
                              "' for digests is known");
  }
  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] const EVP_MD* md() const noexcept { return md_.get(); }
  [[nodiscard]] std::size_t size() const noexcept {
    return static_cast<std::size_t>(EVP_MD_get_size(md_.get()));
  }
  [[nodiscard]] std::string operator()(Bytes bytes) const {
    std::array<unsigned char, EVP_MAX_MD_SIZE> out;
    unsigned n = 0;
    check_crypto(EVP_Digest(bytes.data(), bytes.size(), out.data(), &n,
                            md_.get(), nullptr));
    return {reinterpret_cast<const char*>(out.data()), n};
  }

 private:
  std::string name_;
  std::unique_ptr<EVP_MD, FreeHash> md_;
};

/// The digests of one algorithm.  For one thread at a time.
class Checksum::Tree {
 public:
  explicit Tree(const Hash& hash) : hash_(hash) {}

  /// The digest of `count` blocks of zeros is always the same.
  void add_zeros(std::uint64_t first, std::uint64_t count) {
    add_zeros(0, first, count);
  }
  void add(std::uint64_t block, const std::string& digest) {
    add(0, block, digest);
  }

  /// Of `count` blocks, which are `size` bytes.
  [[nodiscard]] std::string finish(std::uint64_t count, std::uint64_t size) {
    std::string all;
    if (count != 0) {
      std::size_t level = 0;
      for (; count > 1; ++level, count = (count + fan_out - 1) / fan_out)
        if (const std::uint64_t rest = count % fan_out; rest != 0)
          close(level, count / fan_out, rest);
      all = take(level, 0, 1);
    }
    for (int shift = 56; shift >= 0; shift -= 8)
      all += static_cast<char>(size >> shift & 0xff);
    return hash_(all);
  }

 private:
  /// Digests of neighbours, which come in any order.
  struct Node {
    std::string digests;
    std::uint64_t count = 0;
  };

  void add(std::size_t level, std::uint64_t number, const std::string& digest) {
    const std::uint64_t parent = number / fan_out;
    Node& node = nodes_[{level, parent}];
    if (node.digests.empty()) node.digests.resize(fan_out * hash_.size());
    node.digests.replace(number % fan_out * hash_.size(), hash_.size(), digest);
    if (++node.count == fan_out) close(level, parent, fan_out);
  }

  void close(std::size_t level, std::uint64_t parent, std::uint64_t count) {
    const std::string digests = take(level, parent, count);
    add(level + 1, parent, hash_(digests));
  }

  std::string take(std::size_t level, std::uint64_t parent,
                   std::uint64_t count) {
    const auto found = nodes_.find({level, parent});
    if (found == nodes_.end() || found->second.count != count) incomplete();
    std::string digests = std::move(found->second.digests);
    digests.resize(count * hash_.size());
    nodes_.erase(found);
    return digests;
  }

  void add_zeros(std::size_t level, std::uint64_t first, std::uint64_t count) {
    while (count > 0) {
      if (first % fan_out == 0 && count >= fan_out) {
        const std::uint64_t nodes = count / fan_out;
        add_zeros(level + 1, first / fan_out, nodes);
        first += nodes * fan_out;
        count -= nodes * fan_out;
      } else {
        add(level, first++, zeros(level));
        --count;
      }
    }
  }

  /// The digest of a node, or block, of zeros.
  const std::string& zeros(std::size_t level) {
    while (zeros_.size() <= level) {
      std::string children;
      if (!zeros_.empty())
        for (std::uint64_t i = 0; i < fan_out; ++i) children += zeros_.back();
      zeros_.push_back(zeros_.empty() ? hash_(zero_block()) : hash_(children));
    }
    return zeros_[level];
  }

  const Hash& hash_;
  std::map<std::pair<std::size_t, std::uint64_t>, Node> nodes_;
  std::vector<std::string> zeros_;  // by level
};

/// Makes blocks of the parts, and leaves of the blocks.
class Checksum::Blocks {
 public:
  explicit Blocks(const std::vector<Hash>& hashes) : hashes_(hashes) {
    for (const Hash& hash : hashes) trees_.emplace_back(hash);
  }

  /// A part within a block; null: zeros.
  void part(std::uint64_t offset, const char* bytes, std::uint64_t length) {
    const std::uint64_t number = offset / block_size;
    Block whole;
    {
      const std::scoped_lock lock(mutex_);
      Block& block = blocks_[number];
      if (bytes != nullptr) {
        if (block.bytes.empty()) block.bytes.resize(block_size);
        std::memcpy(block.bytes.data() + offset % block_size, bytes, length);
      }
      block.filled += length;
      if (block.filled != block_size) return;
      whole = std::move(block);
      blocks_.erase(number);
    }
    if (whole.bytes.empty())
      zeros(number, 1);
    else
      data(number, whole.bytes);
  }

  void zeros(std::uint64_t first, std::uint64_t count) {
    const std::scoped_lock lock(mutex_);
    for (Tree& tree : trees_) tree.add_zeros(first, count);
  }

  /// A whole block, or all there is of the last one.
  void data(std::uint64_t number, Bytes bytes) {
    if (bytes.size() == block_size && is_zero(bytes)) return zeros(number, 1);
    std::vector<std::string> digests;
    for (const Hash& hash : hashes_) digests.push_back(hash(bytes));
    const std::scoped_lock lock(mutex_);
    for (std::size_t i = 0; i < trees_.size(); ++i)
      trees_[i].add(number, digests[i]);
  }

  [[nodiscard]] std::vector<Digest> finish(std::uint64_t size) {
    const std::uint64_t rest = size % block_size;
    if (blocks_.size() != (rest != 0 ? 1 : 0)) incomplete();
    if (rest != 0) {
      auto& [number, block] = *blocks_.begin();
      if (number != size / block_size || block.filled != rest) incomplete();
      block.bytes.resize(block_size);
      data(number, Bytes(block.bytes).first(rest));
    }
    std::vector<Digest> found;
    const std::uint64_t count = size / block_size + (rest != 0 ? 1 : 0);
    for (std::size_t i = 0; i < trees_.size(); ++i)
      found.push_back(
          {hashes_[i].name() + "-tree", hex(trees_[i].finish(count, size))});
    return found;
  }

 private:
  /// One that is not complete.
  struct Block {
    std::vector<char> bytes = {};  // empty: of zeros
    std::uint64_t filled = 0;
  };

  const std::vector<Hash>& hashes_;
  std::mutex mutex_;
  // All below guarded by mutex_.
  std::vector<Tree> trees_;
  std::map<std::uint64_t, Block> blocks_;
};

/// One digest of all bytes.
class Checksum::Plain {
 public:
  explicit Plain(const Hash& hash) : hash_(hash), context_(EVP_MD_CTX_new()) {
    check_crypto(EVP_DigestInit_ex2(context_.get(), hash.md(), nullptr));
  }

  /// Null: zeros.
  void part(std::uint64_t offset, const char* bytes, std::uint64_t length) {
    const std::scoped_lock lock(mutex_);
    if (offset == at_) {
      update(bytes, length);
    } else {
      Early& early = early_[offset];
      early.length = length;
      if (bytes != nullptr) early.bytes.emplace(bytes, bytes + length);
    }
    while (!early_.empty() && early_.begin()->first == at_) {
      const Early early = std::move(early_.begin()->second);
      early_.erase(early_.begin());
      update(early.bytes ? early.bytes->data() : nullptr, early.length);
    }
  }

  [[nodiscard]] Digest finish(std::uint64_t size) {
    if (at_ != size || !early_.empty()) incomplete();
    std::array<unsigned char, EVP_MAX_MD_SIZE> out;
    unsigned n = 0;
    check_crypto(EVP_DigestFinal_ex(context_.get(), out.data(), &n));
    return {hash_.name(), hex({reinterpret_cast<const char*>(out.data()), n})};
  }

 private:
  struct Early {
    std::uint64_t length = 0;
    std::optional<std::vector<char>> bytes = {};
  };

  void update(const char* bytes, std::uint64_t length) {
    at_ += length;
    if (bytes != nullptr) {
      check_crypto(EVP_DigestUpdate(context_.get(), bytes, length));
      return;
    }
    while (length > 0) {
      const std::uint64_t n = std::min(length, block_size);
      check_crypto(EVP_DigestUpdate(context_.get(), zero_block().data(), n));
      length -= n;
    }
  }

  const Hash& hash_;
  std::unique_ptr<EVP_MD_CTX, FreeHash> context_;
  std::mutex mutex_;
  // All below guarded by mutex_.
  std::uint64_t at_ = 0;  // bytes that have been digested
  std::map<std::uint64_t, Early> early_;
};

Checksum::Checksum(const std::vector<std::string>& algorithms, bool plain) {
  for (const std::string& name : algorithms) hashes_.emplace_back(name);
  blocks_ = std::make_unique<Blocks>(hashes_);
  if (plain)
    for (const Hash& hash : hashes_)
      plain_.push_back(std::make_unique<Plain>(hash));
}

Checksum::~Checksum() = default;

void Checksum::data(std::uint64_t offset, std::span<const char> bytes) {
  for (const auto& plain : plain_)
    plain->part(offset, bytes.data(), bytes.size());
  while (!bytes.empty()) {
    const std::uint64_t n =
        std::min<std::uint64_t>(block_size - offset % block_size, bytes.size());
    if (n == block_size)
      blocks_->data(offset / block_size, bytes.first(n));
    else
      blocks_->part(offset, bytes.data(), n);
    offset += n;
    bytes = bytes.subspan(n);
  }
}

void Checksum::zeros(std::uint64_t offset, std::uint64_t length) {
  for (const auto& plain : plain_) plain->part(offset, nullptr, length);
  while (length > 0) {
    std::uint64_t n = length / block_size * block_size;
    if (offset % block_size != 0 || n == 0) {
      n = std::min(block_size - offset % block_size, length);
      blocks_->part(offset, nullptr, n);
    } else {
      blocks_->zeros(offset / block_size, n / block_size);
    }
    offset += n;
    length -= n;
  }
}

std::vector<Digest> Checksum::finish(std::uint64_t size) {
  std::vector<Digest> found = blocks_->finish(size);
  for (const auto& plain : plain_) found.push_back(plain->finish(size));
  return found;
}

}  // namespace nbdrados::copy
