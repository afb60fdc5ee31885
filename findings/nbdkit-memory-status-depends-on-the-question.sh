#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Whether a byte is data or zeros depends on where the question begins.
#
# Versions: nbdkit 1.32.5 with its memory plugin, libnbd 1.14.2 (Debian 12).
#
# One expects block status to be a property of the place: two clients that ask
# for different ranges agree where these meet.  The memory plugin keeps pages of
# 32 KiB and looks for zeros from the start of the question to the end of the
# page only.  So the second half of a page is data in one answer and zeros in
# the next.  Both are true, but maps that were put together from several
# questions cannot be compared.
#
# Seen:
#   bytes 16384 to 32767, asked from 0: data; asked from 16384: zeros

source "$(dirname "$0")/packages.bash" || exit 1
unpack bookworm nbdkit=1.32.5-1 python3-libnbd=1.14.2-1

cat >"$tmp/root/tmp/client.py" <<'CLIENT'
import nbd

h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_command(["nbdkit", "-s", "memory", "1M"])
h.pwrite(b"x", 100)


def kind_at_16384(start):
    found = []
    h.block_status(32768 - start, start, lambda context, offset, entries, error:
                   found.extend(entries))
    at = start
    for length, flags in zip(found[::2], found[1::2]):
        at += length
        if at > 16384:
            return "zeros" if flags & nbd.STATE_ZERO else "data"


print("bytes 16384 to 32767, asked from 0: %s; asked from 16384: %s" %
      (kind_at_16384(0), kind_at_16384(16384)))
CLIENT
run python3 /tmp/client.py | tee "$tmp/output"
grep -q 'from 0: data; asked from 16384: zeros$' "$tmp/output" ||
  changed "both answers agree"
