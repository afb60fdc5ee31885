#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Snapshots as exports, to their end: those that are deleted while a client
# has them open, those in the trash that clones keep, and those of groups and
# of mirroring.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program nbdcopy nbdinfo jq
requires_built "$nbd_expect"
requires_plugin
start_ceph --cephx
# With this key the server cannot watch.
ceph auth get-or-create client.blind mon 'allow r' osd 'allow rx' \
  >"$tmp/blind.keyring"

size=8000000
random_file "$tmp/data" $size 3
dd if=/dev/zero of="$tmp/data" bs=1M seek=4 count=2 conv=notrunc status=none
hole=$((4 << 20))
rbd import --no-progress --object-size 1M "$tmp/data" rbd/parent
rbd_snap rbd/parent@p
rbd import --no-progress --object-size 256K "$tmp/data" rbd/mapped
rbd import --no-progress --object-size 256K --image-feature layering \
  "$tmp/data" rbd/bare
rbd clone --rbd-default-clone-format 2 --object-size 256K --stripe-unit 256K \
  --stripe-count 1 rbd/parent@p rbd/clone
make_format1_image rbd old $size 18
start_rados pool=rbd image=old
nbd_put "$tmp/data" ""
"$nbd_expect" "$(uri)" trim 4M 2M ok
stop_nbdkit

say "a snapshot that is deleted while it is open gives EIO, and no zeros"
for image in old mapped bare clone; do
  for known in no yes; do
    start_rados pool=rbd
    # What the head gets later, a snapshot must not show.
    "$nbd_expect" "$(uri $image)" write 0 4096 1 ok , zero 7M 4096 ok
    rbd_export "rbd/$image" "$tmp/wanted"
    rbd_snap "rbd/$image@s"
    "$nbd_expect" "$(uri $image)" write 0 4096 2 ok , write $hole 4096 3 ok
    nbdcopy -- "$(uri "$image@s")" "$tmp/got"
    assert_same_bytes "$tmp/wanted" "$tmp/got" "$image@s"
    ask=()
    [ $known = no ] || ask=(status 0 $size ok , read-is $hole 4096 0 ,)
    "$nbd_expect" "$(uri "$image@s")" "${ask[@]}" read-is 0 4096 1 , \
      run "rbd snap rm --no-progress rbd/$image@s" , \
      read $hole 4096 EIO , read 0 4096 EIO , read 6M 4096 EIO , \
      status 0 $size EIO , status $hole 4096 EIO
    grep -q "$image@s: the snapshot has been deleted" "$nbdkit_log" ||
      die "it is not said which snapshot: $(cat "$nbdkit_log")"
    # The head is none the worse, and a new client finds no snapshot.
    "$nbd_expect" "$(uri $image)" read-is 0 4096 2 , write 0 4096 4 ok
    "$nbd_expect" "$(uri "$image@s")" connect fail
    stop_nbdkit
    # As at first.
    start_rados pool=rbd
    "$nbd_expect" "$(uri $image)" zero $hole 4096 ok
    stop_nbdkit
  done
done

say "... also where the server is not told"
for image in old mapped bare clone; do
  start_rados pool=rbd
  "$nbd_expect" "$(uri $image)" write 0 4096 1 ok
  rbd_snap "rbd/$image@s"
  "$nbd_expect" "$(uri $image)" write 0 4096 2 ok , write $hole 4096 3 ok
  stop_nbdkit
  start_rados -r id=blind keyring="$tmp/blind.keyring" pool=rbd \
    image=$image@s
  "$nbd_expect" "$(uri)" read-is 0 4096 1 , \
    run "rbd snap rm --no-progress rbd/$image@s" , \
    read $hole 4096 EIO , read 0 4096 EIO , status 0 $size EIO
  grep -q "$image@s: the snapshot has been deleted" "$nbdkit_log" ||
    die "it is not said which snapshot: $(cat "$nbdkit_log")"
  stop_nbdkit
  start_rados pool=rbd
  "$nbd_expect" "$(uri $image)" read-is $hole 4096 3 , zero $hole 4096 ok
  stop_nbdkit
done

say "a snapshot in the trash serves those who were cloned from it"
start_rados pool=rbd
rbd_export rbd/clone "$tmp/wanted"
"$nbd_expect" "$(uri clone)" read-is $hole 4096 0 , write 1M 4096 5 ok , \
  run "rbd snap rm --no-progress rbd/parent@p" , \
  run "rbd snap ls --all --format json rbd/parent |
       jq -e '.[0].namespace.type == \"trash\"' >/dev/null" , \
  write 2500000 4096 6 ok , read-is 2500000 4096 6
rbd_export rbd/clone "$tmp/exported"
nbdcopy -- "$(uri clone)" "$tmp/got"
assert_same_bytes "$tmp/exported" "$tmp/got" "the clone"
printf '%4096s' '' | tr ' ' '\005' |
  dd of="$tmp/wanted" bs=4096 seek=256 conv=notrunc status=none
printf '%4096s' '' | tr ' ' '\006' |
  dd of="$tmp/wanted" bs=4 seek=625000 conv=notrunc status=none
assert_same_bytes "$tmp/wanted" "$tmp/got" "the clone, as it should be"
# It is no export any more.
"$nbd_expect" "$(uri parent@p)" connect fail
nbdinfo --list --json "nbd+unix://?socket=$socket" |
  jq -r '.exports[]."export-name"' | sort >"$tmp/list"
printf '%s\n' bare clone mapped parent >"$tmp/names"
assert_same_bytes "$tmp/names" "$tmp/list" "the exports"
# With the last clone it goes for good.
stop_nbdkit
start_rados pool=rbd
rbd flatten --no-progress rbd/clone
"$nbd_expect" "$(uri clone)" write 3M 4096 7 ok
rbd_export rbd/clone "$tmp/exported"
nbdcopy -- "$(uri clone)" "$tmp/got"
assert_same_bytes "$tmp/exported" "$tmp/got" "the clone, flattened"
stop_nbdkit

say "snapshots of a group: kept by writes, not listed, read by name"
rbd group create rbd/team
for image in bare clone; do rbd group image add rbd/team rbd/$image; done
start_rados pool=rbd lock=auto
"$nbd_expect" "$(uri bare)" write 0 4096 1 ok
"$nbd_expect" "$(uri clone)" write 0 4096 2 ok , \
  run "rbd group snap create rbd/team@g" , write 0 4096 3 ok , zero 1M 2M ok
"$nbd_expect" "$(uri bare)" write 0 4096 4 ok , zero 1M 2M ok
group_snapshot() {
  rbd snap ls --all --format json "$1" |
    jq -r '.[] | select(.namespace.type == "group").name'
}
nbdinfo --list --json "nbd+unix://?socket=$socket" |
  jq -r '.exports[]."export-name"' | sort >"$tmp/list"
assert_same_bytes "$tmp/names" "$tmp/list" "the exports"
for image in bare clone; do
  nbdcopy -- "$(uri "$image@$(group_snapshot rbd/$image)")" "$tmp/$image"
done
"$nbd_expect" "$(uri "bare@$(group_snapshot rbd/bare)")" read-is 0 4096 1
"$nbd_expect" "$(uri "clone@$(group_snapshot rbd/clone)")" read-is 0 4096 2
check_object_map rbd/clone
rbd group snap rollback --no-progress rbd/team@g
for image in bare clone; do
  rbd_export rbd/$image "$tmp/wanted"
  assert_same_bytes "$tmp/wanted" "$tmp/$image" "the group's $image"
  nbdcopy -- "$(uri $image)" "$tmp/got"
  assert_same_bytes "$tmp/wanted" "$tmp/got" "$image, rolled back"
done
"$nbd_expect" "$(uri "clone@$(group_snapshot rbd/clone)")" \
  read-is 0 4096 2 , run "rbd group snap rm rbd/team@g" , \
  read 0 4096 EIO , read $hole 4096 EIO , status 0 $size EIO
stop_nbdkit

say "mirror snapshots: kept by writes, not listed, read by name"
rbd mirror pool enable rbd image >"$tmp/out" 2>&1 ||
  die "rbd mirror pool enable: $(cat "$tmp/out")"
# Nobody comes, but without one it takes no snapshots.
rbd mirror pool peer add rbd client.admin@elsewhere >"$tmp/out" 2>&1 ||
  die "rbd mirror pool peer add: $(cat "$tmp/out")"
rbd mirror image enable rbd/mapped snapshot >"$tmp/out" 2>&1 ||
  die "rbd mirror image enable: $(cat "$tmp/out")"
mirror_snapshot() {
  rbd snap ls --all --format json rbd/mapped |
    jq -r '[.[] | select(.namespace.type == "mirror")][-1].name'
}
start_rados pool=rbd lock=auto
rbd_export rbd/mapped "$tmp/wanted"
first=$(mirror_snapshot)
[ -n "$first" ] && [ "$first" != null ] || die "the oracle made no snapshot"
"$nbd_expect" "$(uri mapped)" flag read-only no , write 0 1M 8 ok , \
  trim 2M 1M ok
nbdcopy -- "$(uri "mapped@$first")" "$tmp/got"
assert_same_bytes "$tmp/wanted" "$tmp/got" "the mirror snapshot"
# Taken while it is written to.
"$nbd_expect" "$(uri mapped)" write 0 4096 9 ok , \
  run "rbd mirror image snapshot rbd/mapped >/dev/null" , write 0 4096 10 ok
second=$(mirror_snapshot)
[ "$first" != "$second" ] || die "the oracle made no second snapshot"
"$nbd_expect" "$(uri "mapped@$second")" read-is 0 4096 9 , \
  read-is 4096 4096 8 , read-is 2M 1M 0
nbdinfo --list --json "nbd+unix://?socket=$socket" |
  jq -r '.exports[]."export-name"' | sort >"$tmp/list"
assert_same_bytes "$tmp/names" "$tmp/list" "the exports"
check_object_map rbd/mapped
say "an image that is not primary is read-only, and it is said why"
rbd mirror image demote rbd/mapped >"$tmp/out" 2>&1 ||
  die "rbd mirror image demote: $(cat "$tmp/out")"
"$nbd_expect" "$(uri mapped)" flag read-only yes , read-is 0 4096 10 , \
  write 0 512 1 EPERM
grep -q 'read-only: .*non-primary' "$nbdkit_log" ||
  die "it is not said why: $(cat "$nbdkit_log")"
# What a connected client writes, until then and from then on.
rbd mirror image promote rbd/mapped >"$tmp/out" 2>&1 ||
  die "rbd mirror image promote: $(cat "$tmp/out")"
"$nbd_expect" "$(uri mapped)" flag read-only no , write 0 4096 11 ok , \
  run "rbd mirror image demote rbd/mapped >'$tmp/out' 2>&1" , \
  until 20 write 0 4096 12 EPERM , zero 0 4096 EPERM
rbd_export rbd/mapped "$tmp/wanted"
nbdcopy -- "$(uri mapped)" "$tmp/got"
assert_same_bytes "$tmp/wanted" "$tmp/got" "the image, demoted"
stop_nbdkit
