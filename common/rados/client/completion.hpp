// SPDX-License-Identifier: BSD-3-Clause
//
// What all operations of librados need.

#ifndef NBDRADOS_RADOS_CLIENT_COMPLETION_HPP
#define NBDRADOS_RADOS_CLIENT_COMPLETION_HPP

#include <rados/librados.hpp>

#include <string_view>

namespace nbdrados {

using librados::bufferlist;

inline bufferlist copied(std::string_view bytes) {
  bufferlist bl;
  bl.append(bytes.data(), static_cast<unsigned>(bytes.size()));
  return bl;
}

/// An AioCompletion, released with the object.
class Completion {
 public:
  Completion() : c_(librados::Rados::aio_create_completion()) {}
  ~Completion() { c_->release(); }
  Completion(const Completion&) = delete;
  Completion& operator=(const Completion&) = delete;
  librados::AioCompletion* get() const noexcept { return c_; }
  /// Before the operation starts; makes is_complete_and_cb() meaningful.
  void set_empty_callback() {
    c_->set_complete_callback(nullptr, [](rados_completion_t, void*) {});
  }

 private:
  librados::AioCompletion* c_;
};

}  // namespace nbdrados

#endif
