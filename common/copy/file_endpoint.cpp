// SPDX-License-Identifier: BSD-3-Clause

#include "copy/file_endpoint.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "rados/error.hpp"

namespace nbdrados::copy {

namespace {

/// An answer has no more extents, so that its memory is bounded.
constexpr std::size_t most_extents = 65536;

struct stat stat_of(int fd) {
  struct stat s = {};
  if (::fstat(fd, &s) == -1) fail(errno, "fstat");
  return s;
}

off_t signed_offset(std::uint64_t n) { return static_cast<off_t>(n); }

}  // namespace

FileEndpoint::FileEndpoint(FileDescriptor file, bool writable)
    : file_(std::move(file)) {
  regular_ = S_ISREG(stat_of(file_.get()).st_mode);
  // Of a block device stat does not know it.
  const off_t size = ::lseek(file_.get(), 0, SEEK_END);
  if (size == -1) fail(errno, "lseek");
  traits_.size = static_cast<std::uint64_t>(size);
  traits_.writable = writable;
  traits_.can_zero = traits_.can_trim = true;
  traits_.can_flush = true;
  traits_.has_extents = regular_;
  traits_.preferred = 4096;
}

void FileEndpoint::make_empty(std::uint64_t size) {
  const bool known = size != unknown_size;
  if (::ftruncate(file_.get(), 0) == -1 ||
      (known && ::ftruncate(file_.get(), signed_offset(size)) == -1))
    fail(errno, "cannot set the size");
  traits_.size = size;
  // Without a size, zeros at the end must be written to count.
  traits_.reads_as_zeros = known;
}

bool FileEndpoint::is_same(const FileEndpoint& other) const {
  const struct stat a = stat_of(file_.get());
  const struct stat b = stat_of(other.file_.get());
  if (regular_ != other.regular_) return false;
  return regular_ ? a.st_dev == b.st_dev && a.st_ino == b.st_ino
                  : a.st_rdev == b.st_rdev;
}

int FileEndpoint::do_read(std::uint64_t offset, std::span<char> to) const {
  while (!to.empty()) {
    const ssize_t n =
        ::pread(file_.get(), to.data(), to.size(), signed_offset(offset));
    if (n == -1 && errno == EINTR) continue;
    if (n == -1) return errno;
    // Somebody has made it shorter.
    if (n == 0) return EIO;
    to = to.subspan(static_cast<std::size_t>(n));
    offset += static_cast<std::uint64_t>(n);
  }
  return 0;
}

int FileEndpoint::do_write(std::uint64_t offset,
                           std::span<const char> from) const {
  while (!from.empty()) {
    const ssize_t n =
        ::pwrite(file_.get(), from.data(), from.size(), signed_offset(offset));
    if (n == -1 && errno == EINTR) continue;
    if (n == -1) return errno;
    if (n == 0) return ENOSPC;
    from = from.subspan(static_cast<std::size_t>(n));
    offset += static_cast<std::uint64_t>(n);
  }
  return 0;
}

int FileEndpoint::do_zero(std::uint64_t offset, std::uint64_t length,
                          bool may_trim) const {
  if (length == 0) return 0;
  if (traits_.size == unknown_size) {
    // What others may be writing behind it stays: only a write makes a file
    // longer and never shorter.
    const char last = 0;
    const int error = do_write(offset + length - 1, {&last, 1});
    if (error != 0) return error;
  }
  const int mode = FALLOC_FL_KEEP_SIZE |
                   (may_trim ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
  int r;
  do {
    r = ::fallocate(file_.get(), mode, signed_offset(offset),
                    signed_offset(length));
  } while (r == -1 && errno == EINTR);
  if (r == 0) return 0;
  switch (errno) {
    // File systems, and devices: not there, or not for this range.
    case EINVAL:
    case ENODEV:
    case ENOSYS:
    case EOPNOTSUPP:
      return EOPNOTSUPP;
    default:
      return errno;
  }
}

int FileEndpoint::find_extents(std::uint64_t offset, std::uint64_t length,
                               std::vector<Extent>& found) const {
  const std::uint64_t end = offset + length;
  while (offset < end && found.size() < most_extents) {
    off_t next = ::lseek(file_.get(), signed_offset(offset), SEEK_DATA);
    if (next == -1 && errno != ENXIO) return errno;
    // ENXIO: a hole up to the end; but nothing is known of what is behind the
    // end since somebody has made the file shorter.
    if (next == -1 && stat_of(file_.get()).st_size < signed_offset(end))
      return EIO;
    const bool hole = next == -1 || next != signed_offset(offset);
    if (next == -1)
      next = signed_offset(end);
    else if (!hole)
      next = ::lseek(file_.get(), next, SEEK_HOLE);
    if (next == -1) return errno;
    const std::uint64_t stop =
        std::clamp(static_cast<std::uint64_t>(next), offset + 1, end);
    found.push_back({offset, stop - offset, hole, hole});
    offset = stop;
  }
  return 0;
}

void FileEndpoint::read(std::uint64_t offset, std::span<char> to, Done done) {
  done(do_read(offset, to));
}

void FileEndpoint::write(std::uint64_t offset, std::span<const char> from,
                         Done done) {
  done(do_write(offset, from));
}

void FileEndpoint::zero(std::uint64_t offset, std::uint64_t length,
                        bool may_trim, Done done) {
  done(do_zero(offset, length, may_trim));
}

void FileEndpoint::flush(Done done) {
  done(::fdatasync(file_.get()) == -1 ? errno : 0);
}

void FileEndpoint::extents(
    std::uint64_t offset, std::uint64_t length,
    std::function<void(int error, std::vector<Extent> found)> done) {
  std::vector<Extent> found;
  const int error = find_extents(offset, length, found);
  // A file system that cannot tell: all of it is data.
  if (error == EINVAL || error == EOPNOTSUPP || error == ENOTSUP) {
    found.assign(1, {offset, length, false, false});
    done(0, std::move(found));
    return;
  }
  done(error, std::move(found));
}

}  // namespace nbdrados::copy
