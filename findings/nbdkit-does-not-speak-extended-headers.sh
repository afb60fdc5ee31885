#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The newest nbdkit does not speak NBD's extended headers, and tells a hole in
# shorter pieces than the nbdkit before it.
#
# Versions: nbdkit 1.42.3 with libnbd 1.22.2 (Debian 13), nbdkit 1.48.1 with
# libnbd 1.24.4 (Debian testing); nbdkit's null plugin.
#
# Lengths of 64 bits came to the NBD protocol as "extended headers".  libnbd, of
# the same authors, has asked for them by itself since 1.18, and nbdkit's plugins
# tell extents in 64 bits.  One expects that the two agree on them, and that one
# answer tells of a hole of 8 TiB.  But the server refuses, so that each answer
# tells of less than 4 GiB; and with 1.48 of less than with 1.42: 64 KiB are left
# out, not one byte.  A test that wants the old number fails, and so does who
# counts on the end of an answer being odd.
#
# Seen (the length of the first extent of 8 TiB of zeros):
#   nbdkit 1.42.3: extended headers: False; 4294967295 bytes
#   nbdkit 1.48.1: extended headers: False; 4294901760 bytes

source "$(dirname "$0")/packages.bash" || exit 1
cat >"$top/client.py" <<'CLIENT'
import nbd

h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_command(["nbdkit", "-s", "--exit-with-parent", "null", "8T"])
found = []
h.block_status((1 << 32) - 1, 0, lambda context, offset, entries, error:
               found.extend(entries))
print("extended headers: %s; %d bytes" %
      (h.get_extended_headers_negotiated(), found[0]))
CLIENT
for version in trixie:1.42.3-1:1.22.2-1+b1:4294967295 \
    forky:1.48.1-1:1.24.4-1:4294901760; do
  IFS=: read -r suite nbdkit libnbd length <<<"$version"
  tmp=$top/$suite
  mkdir "$tmp"
  unpack "$suite" nbdkit="$nbdkit" python3-libnbd="$libnbd"
  cp "$top/client.py" "$tmp/root/tmp/"
  run python3 /tmp/client.py >"$top/output"
  echo "nbdkit ${nbdkit%%-*}: $(<"$top/output")"
  [ "$(<"$top/output")" = "extended headers: False; $length bytes" ] ||
    changed "nbdkit $nbdkit answers otherwise"
done
