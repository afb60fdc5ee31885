#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The server is killed in the middle of writes, copy-ups and removals, and
# OSDs are in the middle of copy-ups.  What was acknowledged is there,
# snapshots are as they were, and rbd finds no fault in the object maps.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program jq nbdcopy
requires /usr/bin/python3 -c 'import nbd'
requires_built "$random_ops" "$nbd_expect"
requires_plugin
note=$tests_srcdir/write-and-note.py
start_ceph --osds 2
forget_dead_clients 10

size=12000000
random_file "$tmp/parent" $size 3
dd if=/dev/zero of="$tmp/parent" bs=1M seek=3 count=3 conv=notrunc status=none
: >"$tmp/empty"
rbd import --no-progress --object-size 1M "$tmp/parent" rbd/parent
rbd_snap rbd/parent@s
rbd create --size "${size}B" --object-size 64K rbd/plain
rbd clone --rbd-default-clone-format 2 --object-size 64K \
  --stripe-unit 64K --stripe-count 1 rbd/parent@s rbd/clone
rbd clone --rbd-default-clone-format 2 --object-size 64K \
  --stripe-unit 64K --stripe-count 1 rbd/parent@s rbd/snaps
rbd_snap rbd/snaps@one
rbd_snap rbd/snaps@two

original() { [ "$1" = plain ] && echo "$tmp/empty" || echo "$tmp/parent"; }

say "kill -9"
servers=()
writers=()
for image in plain clone snaps; do
  start_rados pool=rbd image=$image
  servers+=("$nbdkit_pid")
  /usr/bin/python3 "$note" write "$(uri)" "$tmp/$image.notes" \
    >"$tmp/$image.out" 2>&1 &
  writers+=($!)
done
objects() { rados -p rbd ls | grep -c "^$1\." || :; }
for image in plain clone snaps; do
  wait_until 30 is_locked rbd/$image
  prefix=$(rbd info --format json rbd/$image | jq -r .block_name_prefix)
  some_objects() { [ "$(objects "$prefix")" -ge 20 ]; }
  wait_until 60 some_objects
done
kill -KILL "${servers[@]}"
for n in 0 1 2; do
  wait "${writers[n]}" || die "the writer: $(cat "$tmp"/*.out)"
done
say "$(cat "$tmp"/plain.out "$tmp"/clone.out "$tmp"/snaps.out)"
for image in plain clone snaps; do
  rbd_export rbd/$image "$tmp/exported"
  /usr/bin/python3 "$note" check "$tmp/$image.notes" "$tmp/exported" \
    "$(original $image)" || die "rbd export of $image"
done
for snap in one two; do
  same_export rbd/snaps@$snap "$tmp/parent"
done
# By us, who take the dead one's lock, and go on.
for image in plain clone snaps; do
  start_rados pool=rbd image=$image break-lock=true
  "$nbd_expect" "$(uri)" within 60 , read 0 4096 ok
  nbd_get "" "$tmp/got"
  /usr/bin/python3 "$note" check "$tmp/$image.notes" "$tmp/got" \
    "$(original $image)" || die "$image, read by the next server"
  "$random_ops" --ops 100 --threads 2 --batch 4 --adopt --max-length 256K \
    --boundaries 4096,64K "$(uri)" >/dev/null
  stop_nbdkit
done
# By librbd, which takes it for the check.
check_killed_maps rbd/plain rbd/clone rbd/snaps rbd/snaps@one rbd/snaps@two
rbd flatten --no-progress rbd/snaps
for snap in one two; do
  same_export rbd/snaps@$snap "$tmp/parent"
done

say "OSDs die in the middle of copy-ups"
# Small objects, so that there are many to copy, and for each OSD a half of the
# image that nobody has written to.
rbd clone --rbd-default-clone-format 2 --object-size 8K \
  --stripe-unit 8K --stripe-count 1 rbd/parent@s rbd/osds
rbd_snap rbd/osds@before
start_rados pool=rbd image=osds
cp "$tmp/parent" "$tmp/model"
prefix=$(rbd info --format json rbd/osds | jq -r .block_name_prefix)
half=$((size / 2))
osd_is_up() {
  [ "$(ceph osd dump --format json | jq ".osds[$1].up")" = "$2" ]
}
most=$((half / 8192)) # objects that are wholly in a half
for n in 0 1; do
  before=$(objects "$prefix")
  some_more() { [ "$(objects "$prefix")" -ge $((before + 20)) ]; }
  rm -f "$tmp/stop"
  "$random_ops" --ops 100000000 --stop-file "$tmp/stop" --threads 2 \
    --connections 2 --batch 4 --boundaries 4096,8K --max-length 16K \
    --region $((n * half))+$half --model "$tmp/model" "$(uri)" \
    >"$tmp/io.out" 2>&1 &
  io=$!
  wait_until 60 some_more
  copied=$(($(objects "$prefix") - before))
  [ "$copied" -lt $((most * 3 / 4)) ] ||
    die "osd.$n would die too late: $copied of $most objects are there"
  say "osd.$n dies when $copied of $most objects are there"
  "$mini_ceph" kill-osd "$ceph_dir" $n >"$tmp/mini-ceph.out" 2>&1 ||
    die "kill-osd: $(cat "$tmp/mini-ceph.out")"
  wait_until 60 osd_is_up $n 0
  # On a loaded machine threads of the killed one can still hold the store.
  wait_until 60 "$mini_ceph" start-osd "$ceph_dir" $n &
  starting=$!
  wait_until 60 osd_is_up $n 1
  : >"$tmp/stop"
  wait "$io" || {
    cat "$tmp/io.out" >&2
    die "requests failed"
  }
  wait "$starting" || die "osd.$n does not start"
  say "$(cat "$tmp/io.out"); $(($(objects "$prefix") - before)) objects"
done
stop_nbdkit
same_export rbd/osds "$tmp/model"
same_export rbd/osds@before "$tmp/parent"
check_object_map rbd/osds
check_object_map rbd/osds@before
