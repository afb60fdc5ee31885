#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Servers that slept until their watches were dropped.  An owner of the lock,
# which nobody has taken: it watches again, the lock names the new watch, and
# others count it as alive.  A reader, whose image has been removed: an error,
# and no zeros.  A writer, whose image has got a snapshot: nothing is written
# into that.  An owner whose lock was taken: a cache gives nothing old.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program jq
requires_built "$nbd_expect" \
  "$builddir/filters/radoscache/.libs/nbdkit-radoscache-filter.so"
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

# sleeper NAME BEFORE AFTER ARGUMENT...: a server whose client takes the steps
# before and after its sleep; $via: below this filter.
declare -A sleepers clients
sleeper() {
  local name=$1 before=$2 after=$3
  shift 3
  start_nbdkit ${via:+--filter=$via} rados "conf=$ceph_conf" pool=rbd \
    "image=$name" "$@"
  sleepers[$name]=$nbdkit_pid
  mkfifo "$tmp/go-$name"
  # shellcheck disable=SC2086
  "$nbd_expect" "$(uri)" within 100 , $before , \
    run "echo >'$tmp/ready-$name'; read -r _ <'$tmp/go-$name'" , \
    $after >"$tmp/client-$name.out" 2>&1 &
  clients[$name]=$!
  wait_until 20 test -e "$tmp/ready-$name"
  kill -STOP "$nbdkit_pid"
}
error="read 4M 4096 EIO|ESHUTDOWN"
# What is read of the first two was never there.
rbd create --size 8M --object-size 1M --image-feature layering rbd/gone
rbd create --size 8M --object-size 1M --image-feature layering rbd/snapped
sleeper gone "read-is 4M 4096 0" "$error"
sleeper striped "read-is 4M 4096 0" "$error" format=striper create=true \
  size=8M object-size=1M
sleeper snapped "write 0 4096 1 ok" "write 0 4096 2 ok"
rbd create --size 8M --object-size 1M rbd/cached
via=radoscache sleeper cached "write 0 4096 1 ok , read-is 0 4096 1" \
  "read 0 4096 EIO|ESHUTDOWN"
rbd create --size 8M --object-size 1M rbd/kept
via=radoscache sleeper kept "write 0 4096 1 ok , flush ok" \
  "write 0 4096 2 EIO|ESHUTDOWN" cache-mode=writeback

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

# The lock of the striped object runs out after a minute.
wait_until 60 rbd rm --no-progress rbd/gone
wait_until 90 rados -p rbd --striper rm striped
rbd_snap rbd/snapped@s
start_rados pool=rbd
for name in cached kept; do
  wait_until 60 "$nbd_expect" "$(uri $name)" write 0 4096 9 ok
done
stop_nbdkit
for name in "${!sleepers[@]}"; do
  echo go >"$tmp/go-$name"
  sleep 0.5
  kill -CONT "${sleepers[$name]}"
  wait "${clients[$name]}" || die "$name: $(cat "$tmp/client-$name.out")"
  kill "${sleepers[$name]}"
done
start_rados -r pool=rbd
"$nbd_expect" "$(uri snapped)" read-is 0 4096 2
"$nbd_expect" "$(uri snapped@s)" read-is 0 4096 1
"$nbd_expect" "$(uri kept)" read-is 0 4096 9
stop_nbdkit
