#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# An owner of the lock that slept until its watch was dropped, and whose lock
# nobody has taken: it watches again, the lock names the new watch, and others
# count it as alive.

source "$(dirname "$0")/functions.sh"
requires_program jq
requires_built "$nbd_expect"
requires_plugin
start_ceph
forget_dead_clients 10

rbd create --size 8M --object-size 1M rbd/slept
watched() { rbd status --format json rbd/slept | jq -e '.watchers != []'; }
unwatched() { ! watched; }
cookie() { rbd lock ls --format json rbd/slept | jq -r '.[0].id'; }
# named: the lock has the name of a watch that there is.
named() {
  [ "$(rbd status --format json rbd/slept |
    jq -r '.watchers[0].cookie | "auto \(.)"')" = "$(cookie)" ]
}

start_rados pool=rbd image=slept
mkfifo "$tmp/go"
# Open for both, so that nobody waits for the other end.
exec {go}<>"$tmp/go"
"$nbd_expect" "$(uri)" within 100 , write 0 4096 1 ok , \
  run "read -r _ <'$tmp/go'" , write 0 4096 2 ok , write 1M 4096 3 ok , \
  read-is 0 4096 2 , run "read -r _ <'$tmp/go'" , write 0 4096 4 ok \
  >"$tmp/client.out" 2>&1 &
client=$!
wait_until 20 named
before=$(cookie)
kill -STOP "$nbdkit_pid"
wait_until 60 unwatched >/dev/null
kill -CONT "$nbdkit_pid"
wait_until 60 named
[ "$before" != "$(cookie)" ] || die "the lock has the old name: $before"
echo go >&"$go"
# It is alive: nobody can take its lock.
! rbd snap create --no-progress rbd/slept@no 2>"$tmp/snap" ||
  die "another client took the lock"
assert_match 'read-only file system' "$(cat "$tmp/snap")" "rbd snap create"
echo go >&"$go"
wait "$client" || die "the client: $(cat "$tmp/client.out")"
stop_nbdkit
assert_eq "[]" "$(rbd lock ls --format json rbd/slept | jq -c .)" "locks"
assert_eq "" "$(ceph osd blocklist ls 2>/dev/null)" "who was shut out"
check_object_map rbd/slept
start_rados -r pool=rbd image=slept
"$nbd_expect" "$(uri)" read-is 0 4096 4 , read-is 1M 4096 3
stop_nbdkit
