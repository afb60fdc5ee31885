#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdkit's cache filter calls data that it keeps a hole.
#
# Versions: nbdkit 1.32.5, libnbd 1.14.2 (Debian 12).
#
# With cache=writeback, its default, the filter keeps what clients write until
# they flush.  One expects what it says to be of the disk as clients read it.
# But block status comes from the plugin below as it is there: a range that has
# been written, and that reads as written, is a hole of zeros until the flush.
# A client that leaves holes out, as all copying tools do, copies zeros.
#
# Seen:
#   read: 10101010..., block status: (65536, 3)
#   after a flush: (65536, 0)

source "$(dirname "$0")/packages.bash" || exit 1
unpack bookworm nbdkit=1.32.5-1 python3-libnbd=1.14.2-1

cat >"$tmp/root/tmp/client.py" <<'CLIENT'
import nbd

h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_command(["nbdkit", "-s", "--filter=cache", "memory", "1M"])
h.pwrite(b"\x10" * 65536, 65536)


def status():
    found = []
    h.block_status(65536, 65536, lambda context, offset, entries, error:
                   found.extend(entries))
    return tuple(found[:2])


print("read: " + bytes(h.pread(4, 65536)).hex() + "..., block status:",
      status())
h.flush()
print("after a flush:", status())
CLIENT
run python3 /tmp/client.py | tee "$tmp/output"
grep -q '^read: 10101010..., block status: (65536, 3)$' "$tmp/output" &&
  grep -q '^after a flush: (65536, 0)$' "$tmp/output" ||
  changed "what has been written is no hole any more"
