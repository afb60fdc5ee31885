// SPDX-License-Identifier: BSD-3-Clause
//
// A regular file or a block device.
//
// Its operations end within the calls that start them.  So they happen in the
// threads of the other side, which has as many as it needs, and no data goes
// from thread to thread.

#ifndef NBDRADOS_COPY_FILE_ENDPOINT_HPP
#define NBDRADOS_COPY_FILE_ENDPOINT_HPP

#include <memory>
#include <string>

#include "copy/endpoint.hpp"
#include "copy/file_descriptor.hpp"

namespace nbdrados::copy {

class FileEndpoint final : public Endpoint {
 public:
  /// Takes over an open descriptor of a regular file or a block device;
  /// `writable`: it is open for that.  Throws Error.
  FileEndpoint(FileDescriptor file, bool writable);

  /// Makes a regular file, that must be writable, hold zeros only; `size` is
  /// its size, or unknown_size: as large as what is written to it.  Not while
  /// operations are under way.  Throws Error.
  void make_empty(std::uint64_t size);

  [[nodiscard]] bool is_regular() const noexcept { return regular_; }
  /// Whether both are the same file or device.
  [[nodiscard]] bool is_same(const FileEndpoint& other) const;

  [[nodiscard]] const Traits& traits() const noexcept override {
    return traits_;
  }
  void read(std::uint64_t offset, std::span<char> to, Done done) override;
  void write(std::uint64_t offset, std::span<const char> from,
             Done done) override;
  void zero(std::uint64_t offset, std::uint64_t length, bool may_trim,
            Done done) override;
  void flush(Done done) override;
  void extents(std::uint64_t offset, std::uint64_t length,
               std::function<void(int error, std::vector<Extent> found)> done)
      override;
  [[nodiscard]] int close() noexcept override { return file_.close(); }

 private:
  [[nodiscard]] int do_read(std::uint64_t offset, std::span<char> to) const;
  [[nodiscard]] int do_write(std::uint64_t offset,
                             std::span<const char> from) const;
  [[nodiscard]] int do_zero(std::uint64_t offset, std::uint64_t length,
                            bool may_trim) const;
  [[nodiscard]] int find_extents(std::uint64_t offset, std::uint64_t length,
                                 std::vector<Extent>& found) const;

  FileDescriptor file_;
  bool regular_ = false;
  Traits traits_;
};

}  // namespace nbdrados::copy

#endif
