#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# OSDs are killed and started again under I/O.  No request fails, and nothing
# that was acknowledged is lost.

source "$(dirname "$0")/functions.sh" || exit 1
requires_built "$random_ops"
requires_plugin
start_ceph --osds 2
make_format1_image rbd disk 30000000 18

# under_io URI NAME COMMAND...: random requests all the time while the command
# runs, and a little longer.
under_io() {
  local io
  rm -f "$tmp/stop"
  "$random_ops" --ops 100000000 --stop-file "$tmp/stop" \
    --threads 2 --connections 2 --batch 4 --boundaries 4096,256K \
    --max-length 512K --model "$tmp/$2.model" "$1" \
    >"$tmp/io.out" 2>"$tmp/io.err" &
  io=$!
  own "$io"
  sleep 1
  "${@:3}"
  sleep 2
  is_running "$io" || die "the requests ended too early: $(cat "$tmp/io.err")"
  : >"$tmp/stop"
  wait "$io" || die "the requests failed: $(cat "$tmp/io.err")"
  say "$(cat "$tmp/io.out")"
}

# osd COMMAND N: what mini-ceph says is shown when it fails.
osd() {
  "$mini_ceph" "$1" "$ceph_dir" "$2" >"$tmp/mini-ceph.out" 2>&1 ||
    die "mini-ceph $1 $2: $(cat "$tmp/mini-ceph.out")"
}

one_after_the_other() {
  local n
  for n in 0 1; do
    osd kill-osd $n
    sleep 1
    osd start-osd $n
  done
}
both_at_once() {
  osd kill-osd 0
  osd kill-osd 1
  sleep 2
  osd start-osd 0
  osd start-osd 1
}

start_rados pool=rbd image=disk
say "one OSD after the other"
under_io "$(uri)" disk one_after_the_other
say "all OSDs at once"
under_io "$(uri)" disk both_at_once
# The watch was lost with the OSDs; snapshots of others still count.
"$random_ops" --ops 100 --model "$tmp/disk.model" "$(uri)" >/dev/null
rbd_snap rbd/disk@after
cp "$tmp/disk.model" "$tmp/after.model"
"$random_ops" --ops 200 --model "$tmp/disk.model" "$(uri)" >/dev/null
same_export rbd/disk@after "$tmp/after.model"
stop_nbdkit
same_export rbd/disk "$tmp/disk.model"

say "format 2: a clone with a lock and an object map"
size=9000001
random_file "$tmp/parent" $size 5
rbd import --no-progress --object-size 256K "$tmp/parent" rbd/parent
rbd_snap rbd/parent@s
rbd clone --rbd-default-clone-format 2 --object-size 64K --stripe-unit 64K \
  --stripe-count 1 rbd/parent@s rbd/clone
rbd_snap rbd/clone@before
cp "$tmp/parent" "$tmp/clone.model"
start_rados pool=rbd image=clone
under_io "$(uri)" clone both_at_once
"$random_ops" --ops 100 --model "$tmp/clone.model" "$(uri)" >/dev/null
stop_nbdkit
assert_eq "[]" "$(rbd lock ls --format json rbd/clone)" "locks"
same_export rbd/clone "$tmp/clone.model"
same_export rbd/clone@before "$tmp/parent"
check_object_map rbd/clone
check_object_map rbd/clone@before

say "a striped object; its lock survives"
start_rados pool=rbd image=striped format=striper create=true size=9000000 \
  object-size=256K stripe-unit=64K stripe-count=3
under_io "$(uri)" striped both_at_once
stop_nbdkit
striper_get rbd striped "$tmp/got"
truncate -s 9000000 "$tmp/got"
assert_same_bytes "$tmp/striped.model" "$tmp/got" "rados --striper get"
