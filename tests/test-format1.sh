#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# RBD format 1.  The oracles are rbd (librbd) and qemu-img on the same image,
# in both directions, with images that this plugin made and images that were
# made by hand.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program nbdcopy qemu-img qemu-io
requires_built "$nbd_expect" "$random_ops"
requires_plugin
start_ceph

# compare_with_rbd IMAGE[@SNAP] FILE: what rbd exports is the file.
compare_with_rbd() {
  same_export "rbd/$1" "$2"
}

# qemu_write IMAGE OFFSET LENGTH BYTE, through librbd
qemu_write() {
  qemu-io -f raw -c "write -P $4 $2 $3" "rbd:rbd/$1:conf=$ceph_conf" \
    >/dev/null || die "qemu-io cannot write"
}

say "images made by hand, of several object sizes"
for order in 12 16 22 25; do
  # A multiple of 512: qemu asserts that of the images it compares.
  size=$((512 * (17578 + order)))
  random_file "$tmp/data" $size $order
  # A hole in it: sparse copies must keep it.
  dd if=/dev/zero of="$tmp/data" bs=65536 seek=16 count=64 conv=notrunc \
    status=none
  make_format1_image rbd "hand$order" $size $order
  start_rados pool=rbd "image=hand$order"
  "$nbd_expect" "$(uri)" size $size , description "[Ff]ormat 1"
  nbd_put "$tmp/data" ""
  compare_with_rbd "hand$order" "$tmp/data"
  qemu-img compare -q -f raw -F raw "rbd:rbd/hand$order:conf=$ceph_conf" \
    "$tmp/data" || die "qemu-img finds a difference (order $order)"
  # The other direction: librbd writes, the plugin reads, while it is open.
  qemu_write "hand$order" 1M 70000 0x5c
  printf '%070000d' 0 | tr 0 '\134' |
    dd of="$tmp/data" bs=1M seek=1 conv=notrunc status=none
  nbd_get "" "$tmp/got"
  assert_same_bytes "$tmp/data" "$tmp/got" "read after librbd wrote"
  stop_nbdkit
done
# Only what was written takes space: 64 units of 64 KiB are a hole.
objects=$(rados -p rbd ls | grep -c "^$(format1_prefix rbd hand12)\.")
most=$((512 * (17578 + 12) / 4096 + 1 - 1024 + 18))
[ "$objects" -le "$most" ] || die "$objects objects, and not at most $most"

say "images made by the plugin"
random_file "$tmp/data" 5000000 7
for object_size in 4K 64K 4M 32M; do
  name=made$object_size
  start_rados pool=rbd image="$name" format=1 create=true size=5000000 \
    object-size="$object_size"
  nbd_put "$tmp/data" ""
  stop_nbdkit
  info=$(rbd info "rbd/$name")
  assert_match "format: 1" "$info"
  bytes=$(numfmt --from=iec "$object_size")
  order=0
  while ((1 << order < bytes)); do order=$((order + 1)); done
  assert_match "order $order " "$info"
  prints "^$name$" rbd ls rbd || die "rbd ls does not show $name"
  compare_with_rbd "$name" "$tmp/data"
  # librbd can do with it what it does with its own.
  rbd resize --no-progress --size 6M "rbd/$name" 2>/dev/null
  qemu_write "$name" 5500000 4 9
  rbd rm --no-progress "rbd/$name" 2>/dev/null
  ! prints "^$name$" rbd ls rbd || die "$name is still listed"
done
assert_eq "" "$(rados -p rbd ls | grep '^made' || :)" "left of removed images"

say "a size with a suffix, and the default object size"
start_rados rbd/plain format=1 create=true size=1G
"$nbd_expect" "$(uri)" size 1G
stop_nbdkit
assert_match "order 22 " "$(rbd info rbd/plain)"

say "snapshots that are there at open"
make_format1_image rbd snaps 20000000 18
start_rados pool=rbd
for n in 1 2 3; do
  "$random_ops" --ops 300 --boundaries 4096,256K --max-length 1M \
    --model "$tmp/model" "$(uri snaps)" >/dev/null
  rbd_snap "rbd/snaps@s$n"
  cp "$tmp/model" "$tmp/model.$n"
done
"$random_ops" --ops 300 --boundaries 4096,256K --max-length 1M \
  --model "$tmp/model" "$(uri snaps)" >/dev/null
assert_eq "s1 s2 s3" "$(rbd snap ls rbd/snaps | awk 'NR > 1 {print $2}' | xargs)"
for n in 1 2 3; do
  compare_with_rbd "snaps@s$n" "$tmp/model.$n"
  nbd_get "snaps@s$n" "$tmp/got"
  assert_same_bytes "$tmp/model.$n" "$tmp/got" "snapshot s$n by the plugin"
  "$nbd_expect" "$(uri "snaps@s$n")" flag read-only yes , \
    write 0 512 1 EPERM , zero 0 512 EPERM , trim 0 512 EPERM
  # The map of a snapshot is that of the snapshot, not of the image.
  "$random_ops" --ops 200 --adopt "$(uri "snaps@s$n")" >"$tmp/out"
  grep -q ' status=[1-9]' "$tmp/out" || die "no block status was asked"
done
compare_with_rbd snaps "$tmp/model"
stop_nbdkit

say "snapshots taken by others while the image is open and written"
# s1 ... s4 are taken in the middle of random writes.  What a snapshot holds
# just after it was taken, it must hold at the end: a writer with the old
# snapshot context would change it.
make_format1_image rbd busy 16000000 16
start_rados pool=rbd image=busy
"$random_ops" --ops 100000000 --stop-file "$tmp/stop" --connections 2 --batch 8 \
  --max-length 256K --boundaries 4096,64K --model "$tmp/busy.model" \
  "$(uri)" >"$tmp/out" 2>"$tmp/err" &
writer=$!
own "$writer"
for n in 1 2 3 4; do
  sleep 1
  rbd_snap "rbd/busy@s$n"
  rbd_export "rbd/busy@s$n" "$tmp/busy.$n"
done
sleep 1
is_running "$writer" || die "the writer ended too early: $(cat "$tmp/err")"
: >"$tmp/stop"
wait "$writer" || die "the writer failed: $(cat "$tmp/err")"
for n in 1 2 3 4; do
  compare_with_rbd "busy@s$n" "$tmp/busy.$n"
  for m in 1 2 3 4; do
    [ "$n" -le "$m" ] || ! cmp -s "$tmp/busy.$n" "$tmp/busy.$m" ||
      die "the snapshots s$n and s$m are the same: nothing was written"
  done
done
compare_with_rbd busy "$tmp/busy.model"
stop_nbdkit

say "a snapshot is a moment: no write without those acknowledged before it"
# Write n sets block n % 64 to n / 64 + 1, one after the other.  In any
# snapshot the first p blocks have one value and the others the value before.
make_format1_image rbd moment $((64 * 65536)) 16
start_rados pool=rbd image=moment
steps=()
for ((n = 0; n < 64 * 50; n++)); do
  steps+=(write $((n % 64 * 65536)) 4096 $((n / 64 + 1)) ok ,)
done
"$nbd_expect" "$(uri)" "${steps[@]}" flush ok &
writer=$!
for n in 1 2 3 4 5 6; do
  sleep 0.1
  rbd_snap "rbd/moment@m$n"
done
wait "$writer" || die "the writer failed"
partial=0
for n in 1 2 3 4 5 6; do
  rbd_export "rbd/moment@m$n" "$tmp/moment"
  # One value of each block, and a check that the block has no other.
  values=$(od -An -v -tu1 -w4096 "$tmp/moment" |
    awk '(NR - 1) % 16 == 0 {
           for (i = 2; i <= NF; i++) if ($i != $1) { print "torn"; next }
           print $1
         }' | uniq -c | awk '{print $2}' | xargs)
  case $values in
  *torn*) die "a torn block in m$n" ;;
  "${values%% *}") ;; # one value only
  *)
    read -r first second more <<<"$values"
    [ -z "$more" ] && [ "$first" -eq $((second + 1)) ] ||
      die "m$n is not a moment: the blocks have the values $values"
    partial=$((partial + 1))
    ;;
  esac
done
[ "$partial" -gt 0 ] || say "note: no snapshot fell into the middle of a round"
stop_nbdkit

say "removing and resizing by others"
make_format1_image rbd change 8000000 16
rbd_snap rbd/change@old
start_rados pool=rbd
"$nbd_expect" "$(uri change)" write 0 65536 1 ok , \
  run "rbd snap create --no-progress rbd/change@gone" , \
  write 0 65536 2 ok , \
  run "rbd snap rm --no-progress rbd/change@gone" , \
  write 0 65536 3 ok , read-is 0 65536 3 , \
  run "rbd resize --no-progress --size 16M rbd/change 2>/dev/null"
# New connections see the new size.
"$nbd_expect" "$(uri change)" size 16M , read-is 8000000 4096 0 , \
  write 16777215 1 5 ok
rbd_export rbd/change "$tmp/exported"
assert_eq 16777216 "$(stat -c %s "$tmp/exported")" "size after the resize"
assert_eq 5 "$(tail -c 1 "$tmp/exported" | od -An -tu1 | tr -d ' ')" "last byte"
"$nbd_expect" "$(uri change@old)" size 8000000 , read-is 0 65536 0
"$nbd_expect" "$(uri change@gone)" connect fail
# Shrinking: what lies behind the new end is an error, and not made again.
"$nbd_expect" "$(uri change)" \
  run "rbd resize --no-progress --allow-shrink --size 1M rbd/change 2>/dev/null" , \
  write 8M 4096 7 "EINVAL|ENOSPC|EIO" , read 8M 4096 "EINVAL|EIO" , \
  write 0 512 8 ok
prefix=$(format1_prefix rbd change)
left=$(rados -p rbd ls | grep "^$prefix\." | sort | tail -n 1)
[[ ! $left > $prefix.00000000000f ]] || die "$left is behind the end"
stop_nbdkit
