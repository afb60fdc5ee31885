#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# io_uring gives each splice to a kernel thread, also when the data is there.
#
# Versions: Linux 6.18.44, liburing 2.9 (Debian 13).
#
# One expects of io_uring what it does for read and recv: what can be done at
# once is done within the call that submits it, and only what would wait goes
# elsewhere.  So a relay that moves data from socket to pipe to socket by
# splice(2) should become cheaper with the operations of a whole round in one
# call of io_uring.  But a splice is never tried there (io_uring/splice.c in
# Linux): it is always a worker thread that carries it out.  A relay of 256 KiB
# pieces took 1.7 times the CPU time of the same with splice(2).
#
# Seen (worker threads of the process after one operation each, with data that
# was there, and room for it):
#   recv: 10 bytes, 0 worker threads
#   splice: 10 bytes, 1 worker threads
#   splice(2): 10 bytes

source "$(dirname "$0")/packages.bash" || exit 1
unpack trixie liburing2=2.9-1 python3=3.13.5-1
cat >"$tmp/root/tmp/splice.py" <<'PYTHON'
import ctypes, glob, os, socket

lib = ctypes.CDLL("liburing-ffi.so.2", use_errno=True)
lib.io_uring_get_sqe.restype = ctypes.c_void_p
ring = ctypes.create_string_buffer(4096)    # struct io_uring is smaller
assert lib.io_uring_queue_init(8, ring, 0) == 0

def carry_out(prepare, *arguments):
    sqe = ctypes.c_void_p(lib.io_uring_get_sqe(ring))
    prepare(sqe, *arguments)
    assert lib.io_uring_submit_and_wait(ring, 1) == 1
    cqe = ctypes.c_void_p()
    assert lib.io_uring_peek_batch_cqe(ring, ctypes.byref(cqe), 1) == 1
    # struct io_uring_cqe: user_data, 8 bytes, then the result
    result = ctypes.c_int32.from_address(cqe.value + 8).value
    lib.io_uring_cq_advance(ring, 1)
    return result

def workers():
    return sum(open(name).read().startswith("iou-wrk")
               for name in glob.glob("/proc/self/task/*/comm"))

def full_socket():
    ours, theirs = socket.socketpair()
    theirs.sendall(b"ten bytes!")
    return ours, theirs

ours, theirs = full_socket()
memory = ctypes.create_string_buffer(10)
n = carry_out(lib.io_uring_prep_recv, ours.fileno(), memory,
              ctypes.c_size_t(10), 0)
print("recv: %d bytes, %d worker threads" % (n, workers()))

ours, theirs = full_socket()
pipe = os.pipe()
n = carry_out(lib.io_uring_prep_splice, ours.fileno(), ctypes.c_int64(-1),
              pipe[1], ctypes.c_int64(-1), 10, 0)
print("splice: %d bytes, %d worker threads" % (n, workers()))

ours, theirs = full_socket()
pipe = os.pipe()
print("splice(2): %d bytes" %
      os.splice(ours.fileno(), pipe[1], 10, flags=os.SPLICE_F_NONBLOCK))
PYTHON
run python3 /tmp/splice.py | tee "$tmp/output"
diff "$tmp/output" - <<'SEEN' || changed "io_uring treats splice otherwise"
recv: 10 bytes, 0 worker threads
splice: 10 bytes, 1 worker threads
splice(2): 10 bytes
SEEN
