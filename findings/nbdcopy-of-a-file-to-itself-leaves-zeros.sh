#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcopy of a file to itself empties the file, and succeeds.
#
# Versions: libnbd-bin 1.22.2 (Debian 13) and 1.24.4 (Debian testing); 1.14.2
# (Debian 12) does the same.
#
# cp says that both are the same file, and does nothing; qemu-img convert cannot
# lock it; at worst one expects that each block is written over itself.  But
# nbdcopy cuts a destination that is a regular file to nothing and makes it as long
# as the source again, so the source is a hole from then on, which it copies.  The
# exit status is 0, nothing is said, and the data is gone.  Two paths to one file,
# by a link for example, are enough.
#
# Seen:
#   libnbd 1.22.2-1+b1: exit status 0, size 1048576, output '', all zeros
#   libnbd 1.24.4-1: exit status 0, size 1048576, output '', all zeros

source "$(dirname "$0")/packages.bash" || exit 1
for version in trixie:1.22.2-1+b1 forky:1.24.4-1; do
  IFS=: read -r suite libnbd <<<"$version"
  tmp=$top/$suite
  mkdir "$tmp"
  unpack "$suite" libnbd-bin="$libnbd"
  head -c 1048576 /dev/urandom >"$tmp/root/tmp/disk"
  status=0
  run nbdcopy /tmp/disk /tmp/disk >"$top/output" 2>&1 || status=$?
  found=$(head -c 1048576 /dev/zero | cmp - "$tmp/root/tmp/disk" 2>&1) || :
  echo "libnbd $libnbd: exit status $status," \
    "size $(stat -c %s "$tmp/root/tmp/disk")," \
    "output '$(<"$top/output")', ${found:-all zeros}"
  [ "$status" = 0 ] && [ ! -s "$top/output" ] && [ -z "$found" ] ||
    changed "libnbd $libnbd does otherwise"
done
