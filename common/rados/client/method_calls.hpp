// SPDX-License-Identifier: BSD-3-Clause
//
// Calls of object classes' methods through librados' C++ interface.  Nobody
// else calls its exec functions, because these will change: from Ceph 21 on
// they are to take an object that names the method and says whether it reads or
// writes, and not two strings.

#ifndef NBDRADOS_RADOS_CLIENT_METHOD_CALLS_HPP
#define NBDRADOS_RADOS_CLIENT_METHOD_CALLS_HPP

#include <rados/librados.hpp>

#include <string>

namespace nbdrados {

/// Starts a call, of any method.  `input` and `output` must stay valid until
/// completion.  Returns what librados does.
[[nodiscard]] inline int call_method(librados::IoCtx& io,
                                     const std::string& oid,
                                     librados::AioCompletion* completion,
                                     const std::string& cls,
                                     const std::string& method,
                                     librados::bufferlist& input,
                                     librados::bufferlist* output) {
  return io.aio_exec(oid, completion, cls.c_str(), method.c_str(), input,
                     output);
}

/// Adds a call of a method that only reads.  Its error is the operation's.
inline void add_method_call(librados::ObjectReadOperation& op,
                            const std::string& cls, const std::string& method,
                            librados::bufferlist& input,
                            librados::bufferlist* output) {
  op.exec(cls.c_str(), method.c_str(), input, output, nullptr);
}

/// Adds a call of a method whose output nobody wants.  Its error is the
/// operation's.
inline void add_method_call(librados::ObjectWriteOperation& op,
                            const std::string& cls, const std::string& method,
                            librados::bufferlist& input) {
  op.exec(cls.c_str(), method.c_str(), input);
}

}  // namespace nbdrados

#endif
