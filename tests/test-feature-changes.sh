#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# rbd switches features on and off while the image is written to: the lock,
# the object map, journaling.  Nothing is lost, the maps are right, and what
# must not be written to any more is not.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program jq
requires_built "$random_ops" "$nbd_expect"
requires_plugin
start_ceph

size=6000001
image=rbd/image
rbd create --size ${size}B --object-size 64K $image
start_rados pool=rbd lock=auto
truncate -s $size "$tmp/model"

features() { rbd info --format json $image | jq -c '.features | sort'; }
# hammer OPTION...
hammer() {
  "$random_ops" --threads 2 --connections 2 --batch 4 --max-length 128K \
    --boundaries 4096,64K --model "$tmp/model" "$@" "$(uri image)" \
    >"$tmp/io.out" 2>&1
}
# under_writes COMMAND...: while our client writes.
under_writes() {
  say "$*"
  rm -f "$tmp/stop"
  hammer --ops 1000000 --stop-file "$tmp/stop" &
  local io=$!
  "$@" >"$tmp/command.out" 2>&1 || die "$*: $(cat "$tmp/command.out")"
  rbd_snap "$image@s$((++snapshots))"
  rbd_export "$image@s$snapshots" "$tmp/s$snapshots"
  : >"$tmp/stop"
  wait "$io" || {
    cat "$tmp/io.out" >&2
    die "random operations"
  }
  grep -q ' write=[1-9]' "$tmp/io.out" || die "nothing was written meanwhile"
  hammer --ops 40 || die "random operations after it: $(cat "$tmp/io.out")"
  same_export $image "$tmp/model"
}
snapshots=0

hammer --ops 60
# Fast-diff goes with it.
under_writes rbd feature disable $image object-map
under_writes rbd feature disable $image exclusive-lock
assert_eq '["deep-flatten","layering"]' "$(features)" "features"
"$nbd_expect" "$(uri image)" write 0 4096 1 ok , \
  run "rbd lock ls --format json $image | jq -e '. == []' >/dev/null" , \
  run "rbd feature enable $image exclusive-lock" , write 0 4096 2 ok , \
  run "rbd lock ls --format json $image | jq -e 'length == 1' >/dev/null" , \
  run "rbd feature disable $image exclusive-lock" , write 0 4096 3 ok
fill_file "$tmp/threes" 4096 003
dd if="$tmp/threes" of="$tmp/model" conv=notrunc status=none
under_writes rbd feature enable $image exclusive-lock
# Of an image with objects the new map is invalid until it has been built.
under_writes rbd feature enable $image object-map fast-diff
under_writes rbd object-map rebuild --no-progress $image
hammer --ops 40
assert_eq "[]" "$(rbd info --format json $image | jq -c .flags)" "flags"

say "what is behind the end of an image that rbd makes smaller"
"$nbd_expect" "$(uri image)" write 5M 4096 1 ok , \
  run "rbd resize --no-progress --allow-shrink --size 4M $image" , \
  write 5M 4096 2 EINVAL , zero 5M 4096 EINVAL , trim 5M 64K EINVAL , \
  read 5M 4096 EINVAL , status 5M 4096 EINVAL , write 4190208 8192 2 EINVAL , \
  write 4190208 4096 2 ok , read-is 4190208 4096 2
rbd resize --no-progress --size 6M $image
"$nbd_expect" "$(uri image)" size 6M , read-is 4M 2M 0

say "journaling: read-only from then on, and it is said why"
"$nbd_expect" "$(uri image)" write 0 4096 4 ok , \
  run "rbd feature enable $image journaling" , \
  write 0 4096 5 EPERM , read-is 0 4096 4 , zero 0 64K EPERM , \
  run "rbd feature disable $image journaling" , write 0 4096 6 ok , \
  read-is 0 4096 6
grep -q "journaling" "$nbdkit_log" || die "no reason: $(cat "$nbdkit_log")"
stop_nbdkit
check_object_map $image "$image@s$snapshots"
for ((n = 1; n <= snapshots; n++)); do
  same_export "$image@s$n" "$tmp/s$n"
done
