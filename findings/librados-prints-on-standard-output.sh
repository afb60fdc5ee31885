#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# librados writes about a monitor's name to the standard output of its process.
#
# Versions: librados 16.2.15, 18.2.7 and 20.2.4 (Debian 12, 13 and testing).
#
# A library reports by return values, or at most on the standard error, where
# the rest of Ceph's messages go.  One expects that a program whose standard
# output is data (a pipe, a protocol: `rados get OBJECT -`, `nbdkit -s`) may use
# librados without care.  But that a host of mon_host is not found is said on
# the standard output, before connecting fails, so it is the first line of the
# data.
#
# Seen, of a program that prints nothing, in all three (the reason in brackets is
# the resolver's):
#   server name not found: mon.invalid (Name or service not known)

source "$(dirname "$0")/packages.bash" || exit 1
for version in bookworm=16.2.15+ds-0+deb12u2 trixie=18.2.7+ds-1+deb13u1 \
    forky=20.2.4+ds-2; do
  tmp=$top/${version%%=*}
  mkdir "$tmp"
  unpack "${version%%=*}" python3-rados="${version#*=}"
  run python3 -c 'import rados
try:
    rados.Rados(conf={"mon_host": "mon.invalid"}).connect()
except rados.Error:
    pass' >"$top/out" 2>"$top/err"
  echo "${version#*=}: $(cat "$top/out")"
  grep -q '^server name not found: mon.invalid' "$top/out" ||
    changed "librados ${version#*=} prints nothing"
done
