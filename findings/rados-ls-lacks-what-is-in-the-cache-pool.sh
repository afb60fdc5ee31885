#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A listing of a pool with a cache tier lacks objects that can be read.
#
# Versions: Ceph 18.2.7 (Debian 13).
#
# With an overlay, clients that name the base pool are sent to the cache pool
# for reads and writes, so that nobody need know of it.  One expects that a
# listing goes the same way, or names what both have.  It lists the base pool
# only: an object that was written since the overlay was set is not named until
# it has been flushed, and can be read all the time.  Who concludes from the
# listing that an object is absent loses data.
#
# Seen:
#   listed:
#   read: hello
#   listed after the flush: o

source "$(dirname "$0")/packages.bash" || exit 1
source "$(dirname "$0")/ceph.bash" || exit 1
start_ceph trixie 18.2.7+ds-1+deb13u1
make_pool base hot
{
  run ceph osd tier add base hot
  run ceph osd tier cache-mode hot writeback
  run ceph osd tier set-overlay base hot
  run ceph osd pool set hot hit_set_type bloom
} 2>/dev/null

printf hello >"$tmp/root/tmp/in"
run rados -p base put o /tmp/in
before=$(run rados -p base ls)
run rados -p base get o /tmp/out
run rados -p hot cache-flush-evict-all >/dev/null
after=$(run rados -p base ls)
echo "listed: $before"
echo "read: $(cat "$tmp/root/tmp/out")"
echo "listed after the flush: $after"
[ -z "$before" ] && cmp -s "$tmp/root/tmp/in" "$tmp/root/tmp/out" &&
  [ "$after" = o ] || changed "the listing names what is in the cache pool"
