// SPDX-License-Identifier: BSD-3-Clause
//
// Write, zero and trim: when they may go on, and which objects they change.

#ifndef NBDRADOS_IMAGE_IO_WRITER_HPP
#define NBDRADOS_IMAGE_IO_WRITER_HPP

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "image/core.hpp"
#include "image/io/object_change.hpp"
#include "image/io/object_changer.hpp"
#include "image/io/reader.hpp"
#include "image/io/write_merger.hpp"
#include "image/ownership/caretaker.hpp"
#include "image/state/view.hpp"

namespace nbdrados {

enum class ZeroMode : std::uint8_t {
  allocate,  // the range keeps, or gets, its space
  free,      // the range need not keep its space
};

/// Thread-safe.  Members throw Error as Image's do.
class Writer {
 public:
  /// What is given must outlive this.  Of a parent, which is not written to,
  /// `caretaker` is null.
  Writer(ImageCore& core, Reader& reader, Caretaker* caretaker)
      : core_(core), caretaker_(caretaker), changer_(core, reader) {}

  void write(const char* buffer, std::uint64_t length, std::uint64_t offset);
  void zero(std::uint64_t length, std::uint64_t offset, ZeroMode how);
  /// Image::copy_object.
  void copy_object(std::uint64_t object_no, std::uint64_t used,
                   const ObjectPlace& from);
  /// A request that changes nothing: throws where it would have failed.
  void nothing(std::uint64_t length, std::uint64_t offset);
  void flush();

 private:
  /// Calls `request` with the View, once writes are possible.
  template <class Request>
  void when_writable(std::uint64_t length, std::uint64_t offset,
                     Request&& request);
  void give_up_map(const MapFailure& failure);
  void write_chunk(const View& view, const char* buffer, std::uint64_t length,
                   std::uint64_t offset);
  void write_parts(const View& view, const ObjectTarget& target,
                   std::span<const WriteMerger::Part> parts);
  void zero_chunk(const View& view, std::uint64_t length,
                  std::uint64_t offset, ZeroMode how);
  void clear_objects(const View& view, std::uint64_t first,
                     std::uint64_t count);
  [[nodiscard]] std::vector<std::uint64_t> objects_to_clear(
      const View& view, std::uint64_t first, std::uint64_t count);

  ImageCore& core_;
  Caretaker* const caretaker_;
  ObjectChanger changer_;
  WriteMerger merger_;
};

}  // namespace nbdrados

#endif
