// SPDX-License-Identifier: BSD-3-Clause

#include "rados/error.hpp"

#include <array>
#include <cerrno>
#include <cstring>

#include "rados/object_store.hpp"

namespace nbdrados {

namespace {

// strerror_r has two forms.  Overloads take whichever the C library has.
[[maybe_unused]] const char* description(const char* gnu_result,
                                         const char* /* buffer */) {
  return gnu_result;
}
[[maybe_unused]] const char* description(int xsi_result, const char* buffer) {
  return xsi_result == 0 ? buffer : "Unknown error";
}

std::string with_text(int code, std::string_view what) {
  std::string message(what);
  message += ": ";
  message += error_text(code);
  return message;
}

}  // namespace

std::string error_text(int code) {
  switch (code) {
    case ENOENT:  // strerror speaks of files, but this is a pool, image, ...
      return "not found";
    case ENOSPC:
      return "the cluster or the pool is full";
    case EFBIG:
      return "beyond the largest object that the OSDs allow "
             "(osd_max_object_size)";
    case EDQUOT:
      return "the pool's quota has been reached";
    case ESHUTDOWN:
      return "this client has been blocklisted by the cluster";
    case ETIMEDOUT:
      return "no answer from the cluster within the time limit";
    case ENXIO:
      return "the pool has been deleted";
    case ENOTCONN:
      return "not connected to the cluster";
    default:
      break;
  }
  std::array<char, 256> buffer{};
  return description(strerror_r(code, buffer.data(), buffer.size()),
                     buffer.data());
}

int client_errno(int code) noexcept {
  return code == EDQUOT ? ENOSPC : code;
}

std::string without_name(std::string_view name, std::string_view text) {
  if (text.starts_with(name) && text.substr(name.size()).starts_with(": "))
    text.remove_prefix(name.size() + 2);
  return std::string(text);
}

std::string about(std::string_view name, std::string_view text) {
  if (text.starts_with(name) && text.substr(name.size()).starts_with(' '))
    return std::string(text);
  return std::string(name).append(": ").append(without_name(name, text));
}

int check(int r, std::string_view what) {
  if (r < 0) fail(-r, what);
  return r;
}

void fail(int code, std::string_view what) {
  throw Error(code, with_text(code, what));
}

// Declared in object_store.hpp, where everything else is abstract.
int wait_check(Pending& pending, std::chrono::milliseconds limit,
               std::string_view what) {
  return check(pending.wait_for(limit), what);
}

}  // namespace nbdrados
