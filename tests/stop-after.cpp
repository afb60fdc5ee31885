// SPDX-License-Identifier: BSD-3-Clause
//
// For LD_PRELOAD: the process gets SIGKILL when so many changes of objects
// (STOP_AFTER) have been carried out, and before it learns of the last one.
// Changes go one after the other, so that it is the same each time.

#include <dlfcn.h>
#include <rados/librados.hpp>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

template <class F>
F* real(const char* name) {
  // NOLINTNEXTLINE: there is no other way
  return reinterpret_cast<F*>(dlsym(RTLD_NEXT, name));
}

int count(librados::AioCompletion* c, int result) {
  static std::atomic<long> changes{0};
  const char* const text = std::getenv("STOP_AFTER");
  if (result != 0 || text == nullptr) return result;
  c->wait_for_complete();
  if (++changes == std::atol(text)) kill(getpid(), SIGKILL);
  return result;
}

}  // namespace

int librados::IoCtx::aio_operate(const std::string& oid, AioCompletion* c,
                                 ObjectWriteOperation* op) {
  static const auto next =
      real<int(IoCtx*, const std::string&, AioCompletion*,
               ObjectWriteOperation*)>(
          "_ZN8librados7v14_2_05IoCtx11aio_operateERKNSt7__cxx1112basic_"
          "stringIcSt11char_traitsIcESaIcEEEPNS0_13AioCompletionEPNS0_"
          "20ObjectWriteOperationE");
  return count(c, next(this, oid, c, op));
}

int librados::IoCtx::aio_operate(const std::string& oid, AioCompletion* c,
                                 ObjectWriteOperation* op, snap_t seq,
                                 std::vector<snap_t>& snaps) {
  static const auto next =
      real<int(IoCtx*, const std::string&, AioCompletion*,
               ObjectWriteOperation*, snap_t, std::vector<snap_t>&)>(
          "_ZN8librados7v14_2_05IoCtx11aio_operateERKNSt7__cxx1112basic_"
          "stringIcSt11char_traitsIcESaIcEEEPNS0_13AioCompletionEPNS0_"
          "20ObjectWriteOperationEmRSt6vectorImSaImEE");
  return count(c, next(this, oid, c, op, seq, snaps));
}
