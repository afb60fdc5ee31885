// SPDX-License-Identifier: BSD-3-Clause

#include "copy/nbd/handshake.hpp"

#include <libnbd.h>

#include <cerrno>

#include "rados/error.hpp"

namespace nbdrados::copy {

void CloseNbd::operator()(nbd_handle* handle) const noexcept {
  nbd_close(handle);
}

void throw_nbd_error() {
  const int code = nbd_get_errno();
  const char* const text = nbd_get_error();
  throw Error(code == 0 ? EIO : code, text != nullptr ? text : "libnbd");
}

namespace {

void connect_in_time(nbd_handle* nbd, const NbdTarget& target) {
  const auto end = std::chrono::steady_clock::now() + target.time_limit;
  check_nbd(nbd_aio_connect_uri(nbd, target.uri.c_str()));
  while (nbd_aio_is_connecting(nbd) > 0) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(
        end - std::chrono::steady_clock::now());
    if (left.count() <= 0)
      throw Error(ETIMEDOUT, "the server does not answer");
    check_nbd(nbd_poll(nbd, static_cast<int>(left.count())));
  }
  if (nbd_aio_is_ready(nbd) != 1)
    throw Error(ECONNRESET, "the server has closed the connection");
}

}  // namespace

NbdHandle connect_nbd(const NbdTarget& target,
                      [[maybe_unused]] bool plain_requests) {
  NbdHandle handle(nbd_create());
  nbd_handle* const nbd = handle.get();
  if (nbd == nullptr) throw_nbd_error();
  nbd_set_debug(nbd, target.debug);
  if (target.use_extents)
    check_nbd(nbd_add_meta_context(nbd, LIBNBD_CONTEXT_BASE_ALLOCATION));
#if LIBNBD_HAVE_NBD_SET_REQUEST_EXTENDED_HEADERS
  if (plain_requests)
    check_nbd(nbd_set_request_extended_headers(nbd, false));
#endif
  if (target.command.empty()) {
    // For a file with the keys of TLS, as nbdcopy.
    nbd_set_uri_allow_local_file(nbd, true);
    if (target.time_limit.count() == 0)
      check_nbd(nbd_connect_uri(nbd, target.uri.c_str()));
    else
      connect_in_time(nbd, target);
  } else {
    std::vector<char*> argv;
    for (const std::string& word : target.command)
      argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    check_nbd(nbd_connect_systemd_socket_activation(nbd, argv.data()));
  }
  return handle;
}

}  // namespace nbdrados::copy
