#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# radoscopy between images of one cluster, whose OSDs copy the objects: as rbd
# reads the copy, how large it is, its object map; pools, namespaces, erasure
# coding, clones, snapshots of an image that is written to, keys that may less,
# an OSD that is killed.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program jq
requires_built "$builddir/copy/radoscopy"
start_ceph --osds 3 --cephx
make_pool other
make_ec_pool ec
cd "$tmp"

radoscopy=("$builddir/run" radoscopy)

# image NAME [PARAMETERS]: as radoscopy takes it.
image() { echo "rados:$1?conf=$ceph_conf${2-}"; }

# offloaded ARGUMENT...: copies, and prints how much the OSDs copied, and how
# much was written, in MiB, rounded up.
offloaded() {
  local text
  text=$("${radoscopy[@]}" --json "$@") || die "radoscopy $*"
  # Of the copy, not of --verify.
  jq -s 'map(select(.complete))[0]' <<<"$text" |
    jq -r '[.offloaded, .copied] | map(. / 1048576 | ceil) | "\(.[0])+\(.[1])"'
}

# objects IMAGE: number and size of each of its data objects.
objects() {
  local pool=${1%%/*} prefix name
  prefix=$(rbd info --format json "$1" | jq -r .block_name_prefix)
  for name in $(rados -p "$pool" ls | grep "^$prefix" | sort); do
    echo "${name##*.} $(rados -p "$pool" stat "$name" | sed 's/.* size //')"
  done
}

# data_bytes IMAGE: as its block status has it.
data_bytes() {
  "${radoscopy[@]}" --json --sparse=0 "$(image "$1")" null: | tail -n 1 |
    jq .copied
}

# Objects of 1 MiB: 0 to 7 are full; 8 has 4 KiB at its end; 9 has three pieces;
# 10 to 12 are missing; 13 has nearly no hole; 14 is full; 15 ends within.
size=16000300
random_file data.img $((9 << 20))
truncate -s $size disk.img
# place OBJECT KIB COUNT: random data.
place() {
  dd if=data.img of=disk.img bs=1K seek=$(($1 * 1024 + $2)) skip=$(($1 * 7)) \
    count="$3" conv=notrunc status=none
}
place 0 0 8192
place 8 1020 4
place 9 0 4
place 9 500 8
place 9 900 16
place 13 0 500
place 13 540 484
place 14 0 1024
tail -c $((size - (15 << 20))) data.img |
  dd of=disk.img bs=1M seek=15 conv=notrunc status=none
rbd create --size ${size}B --object-size 1M rbd/one
"${radoscopy[@]}" --in-place disk.img "$(image rbd/one)"

say "pools, namespaces, sparseness, the last object"
rbd namespace create other/ns
prefix=$(rbd info --format json rbd/one | jq -r .block_name_prefix)
# What is behind the image's end is nobody's.
head -c 100000 data.img >behind.img
rados -p rbd append "$prefix.000000000000000f" behind.img
for to in rbd/two other/ns/two; do
  assert_eq 11+1 "$(offloaded --verify --create=object-size=1M \
    "$(image rbd/one)" "$(image $to)" )" "to $to"
  same_export $to disk.img
  check_object_map $to
done
assert_eq "$(objects rbd/one | sed '$d')
000000000000000f $((size - (15 << 20)))" "$(objects rbd/two)" "objects"
[ "$(data_bytes rbd/two)" -le $(($(data_bytes rbd/one) + 40960)) ] ||
  die "the copy has $(data_bytes rbd/two) bytes of data"
assert_eq 0+11 "$(offloaded --offload=never --create=object-size=1M \
  "$(image rbd/one)" "$(image rbd/never)")" "--offload=never"
assert_eq "$(data_bytes rbd/one)" "$(data_bytes rbd/never)" "data"
assert_eq 13+0 "$(offloaded --offload=always --create=object-size=1M \
  "$(image rbd/one)" "$(image rbd/always)")" "--offload=always"
same_export rbd/always disk.img
check_object_map rbd/always
# Striping: sets of four objects.
for to in a b; do
  rbd create --size ${size}B --object-size 1M --stripe-unit 64K \
    --stripe-count 4 rbd/striped-$to
done
"${radoscopy[@]}" --in-place disk.img "$(image rbd/striped-a)"
assert_eq 8 "$(offloaded --in-place "$(image rbd/striped-a)" \
  "$(image rbd/striped-b)" | sed 's/+.*//')" "striping"
same_export rbd/striped-b disk.img
check_object_map rbd/striped-b
expect_fail "object size or striping differ" "${radoscopy[@]}" \
  --offload=always --in-place "$(image rbd/one)" "$(image rbd/striped-b)"
expect_fail "not both sides are in RADOS" "${radoscopy[@]}" \
  --offload=always "$(image rbd/one)" out.img

say "into what has data, a parent, and snapshots"
rbd create --size 20M --object-size 1M rbd/old
fill_file old.img $((20 << 20)) 141
"${radoscopy[@]}" --in-place old.img "$(image rbd/old)"
rbd_snap rbd/old@s
rbd snap protect rbd/old@s
rbd clone rbd/old@s rbd/clone
rbd_snap rbd/clone@c
cp old.img new.img
dd if=disk.img of=new.img bs=1M conv=notrunc status=none
for to in old clone; do
  # The last object of the source ends within that of the destination.
  assert_eq 10+1 "$(offloaded --in-place "$(image rbd/one)" \
    "$(image rbd/$to)")" "into $to"
  same_export rbd/$to new.img
done
same_export rbd/old@s old.img
same_export rbd/clone@c old.img
check_object_map rbd/old rbd/old@s rbd/clone rbd/clone@c

say "clones: what is theirs, their parents', discarded, shrunk"
rbd clone rbd/old@s other/child
# One object of its own, one that is hidden, and one that is half its own.
rbd_snap other/child@none
cp old.img child.img
dd if=data.img of=child.img bs=1M count=1 conv=notrunc status=none
dd if=data.img of=child.img bs=4K count=1 seek=512 conv=notrunc status=none
dd if=/dev/zero of=child.img bs=1M seek=1 count=1 conv=notrunc status=none
"${radoscopy[@]}" --in-place child.img "$(image other/child)"
rbd_snap other/child@snap
rbd snap protect other/child@snap
rbd clone other/child@snap rbd/grandchild
assert_eq 19+0 "$(offloaded --verify --create=object-size=1M \
  "$(image rbd/grandchild)" "$(image other/whole)")" "a clone of a clone"
same_export other/whole child.img
check_object_map other/whole
assert_eq 20+0 "$(offloaded --create=object-size=1M \
  "$(image other/child@none)" "$(image rbd/none)")" "a clone's snapshot"
same_export rbd/none old.img
# An overlap that ends within an object, and one that was made smaller.
rbd_snap rbd/one@p
rbd clone --rbd-default-clone-format 2 rbd/one@p rbd/grown
rbd resize --no-progress --size 20M rbd/grown
rbd resize --no-progress --allow-shrink --size 10000000B rbd/grandchild
rbd resize --no-progress --size 20M rbd/grandchild
for from in grown grandchild; do
  rbd_export rbd/$from $from.img
  wanted=10+1
  [ $from = grown ] || wanted=9+0
  assert_eq $wanted "$(offloaded --create=object-size=1M \
    "$(image rbd/$from)" "$(image other/$from)")" "$from"
  same_export other/$from $from.img
done
expect_fail "more than data, or of several&&offload at 15728640\+1048576" \
  "${radoscopy[@]}" --offload=always --create=object-size=1M \
  "$(image rbd/grown)" "$(image rbd/error)"

say "erasure-coded data"
assert_eq 11+1 "$(offloaded --create=object-size=1M,data-pool=ec \
  "$(image rbd/one)" "$(image rbd/coded)")" "to an erasure-coded pool"
same_export rbd/coded disk.img
check_object_map rbd/coded
# Where that has holes is not known.
assert_eq 0+11 "$(offloaded --create=object-size=1M \
  "$(image rbd/coded)" "$(image rbd/decoded)")" "from one"
assert_eq "$(data_bytes rbd/one)" "$(data_bytes rbd/decoded)" "data"
assert_eq 13+0 "$(offloaded --offload=always --in-place \
  "$(image rbd/coded)" "$(image rbd/decoded)")" "from one, --offload=always"
same_export rbd/decoded disk.img

say "a snapshot, while the image is written to"
rbd_snap rbd/one@s
rbd bench --io-type write --io-size 64K --io-total 1G --io-threads 2 \
  --io-pattern rand rbd/one >/dev/null 2>&1 &
bench=$!
own "$bench"
wait_until 20 is_locked rbd/one
for i in 1 2; do
  "${radoscopy[@]}" --create=object-size=1M "$(image rbd/one@s)" \
    "$(image rbd/snap$i)"
  same_export rbd/snap$i disk.img "of a snapshot"
done
stop_pid "$bench"

say "onto itself"
timeout 60 "${radoscopy[@]}" --in-place "$(image rbd/two)" \
  "$(image rbd/two)" || die "an image's snapshot into the image: $?"
same_export rbd/two disk.img "onto itself"

say "keys"
# key NAME [OSD-CAP]...
key() {
  local caps='profile rbd pool=other' cap
  for cap in "${@:2}"; do caps+=", $cap"; done
  ceph auth get-or-create "client.$1" mon 'profile rbd' osd "$caps" \
    >"$1.keyring"
}
key reader 'profile rbd-read-only pool=rbd'
key blind 'allow r pool=rbd object_prefix rbd_id' \
  'allow rx pool=rbd object_prefix rbd_header' \
  'allow rx pool=rbd object_prefix rbd_directory'
as() { image "$2" "&id=$1&keyring=$tmp/$1.keyring"; }
assert_eq 11+1 "$(offloaded --no-snapshot --create=object-size=1M \
  "$(as reader rbd/two)" "$(as reader other/read)")" "reading only"
same_export other/read disk.img
# What the client may not read is not copied.
expect_fail "rbd/two: (block status|read) at .*not permitted" \
  "${radoscopy[@]}" --no-snapshot --create=object-size=1M \
  "$(as blind rbd/two)" "$(as blind other/blind)"
expect_fail "not permitted" "${radoscopy[@]}" --offload=always --no-extents --no-snapshot \
  --create=object-size=1M "$(as blind rbd/two)" "$(as blind other/blind)"

say "a signal, a limit, an OSD that is killed"
env --default-signal=INT "${radoscopy[@]}" --bwlimit=1M \
  --create=object-size=1M "$(image rbd/two)" "$(image rbd/slow)" &
slow=$!
own "$slow"
wait_until 10 prints slow.radoscopy rbd ls rbd
sleep 1
is_running "$slow" || die "the limit does not count what is offloaded"
kill -s INT "$slow"
status=0
wait "$slow" || status=$?
assert_eq 130 "$status" "after SIGINT"
assert_no_match slow "$(rbd ls rbd)" "after SIGINT"
"${radoscopy[@]}" -v --bwlimit=6M --create=object-size=1M \
  "$(image rbd/two)" "$(image other/survivor)" 2>survivor.log &
copy=$!
own "$copy"
wait_until 10 prints survivor.radoscopy rbd ls other
"$mini_ceph" kill-osd "$ceph_dir" 1
sleep 1
is_running "$copy" || die "it did not wait for the OSD"
"$mini_ceph" start-osd "$ceph_dir" 1 >/dev/null 2>&1
wait "$copy" || die "after an OSD was killed: $(cat survivor.log)"
assert_match "1[01][0-9]* bytes were copied inside" "$(cat survivor.log)"
same_export other/survivor disk.img
check_object_map other/survivor
