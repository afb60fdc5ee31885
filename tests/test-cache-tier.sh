#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Images in a pool with a cache tier: objects that are in the cache pool only
# are in no listing of the pool, and are data all the same.  Every kind of
# image, each tier mode.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program nbdcopy nbdinfo qemu-img jq
requires_built "$nbd_expect"
requires_plugin
start_ceph

# make_tier BASE CACHE [MODE]: CACHE goes in front of BASE.  Without a hit set
# the OSDs take each object that is touched into CACHE at once, and what does
# not exist in BASE is made in CACHE only.
make_tier() {
  ceph osd tier add "$1" "$2" &&
    ceph osd tier cache-mode "$2" "${3-writeback}" --yes-i-really-mean-it &&
    ceph osd tier set-overlay "$1" "$2" || die "no cache tier"
} >/dev/null 2>&1

# hidden POOL WANTED: so many data objects that a listing of it shows.
hidden() {
  assert_eq "$2" "$(rados -p "$1" ls | grep -c '^rb[.d].*[0-9a-f]\{12\}$')" \
    "data objects in a listing of the pool $1"
}

# data_bytes EXPORT: what block status calls data.
data_bytes() {
  nbdinfo --json --map "$(uri "$1")" |
    jq '[.[] | select(.type == 0) | .length] | add // 0'
}

# same_copies POOL/EXPORT: nbdcopy, qemu-img and a client that asks for block
# status and then reads all get what `rbd export` gets, and some of it.
same_copies() {
  local name=${1#*/}
  rbd_export "$1" "$tmp/wanted"
  # Block status first, so that what it finds out is known to the reads.
  [ "$(data_bytes "$name")" -ge 4096 ] || die "$1 has no data (line $LINENO)"
  nbd_get "$name" "$tmp/copy"
  assert_same_bytes "$tmp/wanted" "$tmp/copy" "nbdcopy of $1"
  qemu-img convert -f raw -O raw \
    "nbd:unix:$socket:exportname=$name" "$tmp/copy"
  assert_same_bytes "$tmp/wanted" "$tmp/copy" "qemu-img convert of $1"
  # nbdcopy without block status.
  nbdcopy --allocated --flush --no-extents -- "$(uri "$name")" "$tmp/copy"
  assert_same_bytes "$tmp/wanted" "$tmp/copy" "reads of $1"
}

# same_difference POOL/IMAGE@SNAP: what has changed since, as `rbd diff` has it.
same_difference() {
  local name=${1#*/}
  rbd diff --format json --from-snap "${name#*@}" "${1%@*}" |
    jq -r '.[] | "\(.offset) \(.length) \(.exists)"' >"$tmp/wanted"
  nbdinfo --json --map "$(uri "${name%@*}@since=${name#*@}")" |
    jq -r '.[] | select(.type != 1) |
      "\(.offset) \(.length) \(.type == 0)"' >"$tmp/got"
  assert_same_bytes "$tmp/wanted" "$tmp/got" "what has changed since $1"
}

list_striped() { "$nbd_expect" --list "$(uri)" | cut -f 1 | xargs; }

# Enough objects for more than one question at a time.
size=32M
new=(--size $size --object-size 64K)

make_pool base
make_pool hot
make_tier base hot
rbd create "${new[@]}" --image-feature layering base/plain
rbd create "${new[@]}" --image-feature layering,exclusive-lock base/locked
rbd create "${new[@]}" \
  --image-feature layering,exclusive-lock,object-map,fast-diff base/mapped
make_format1_image base one $((32 << 20)) 16

start_rados pool=base lock=auto
say "what is only in the cache pool is data"
for image in plain locked mapped one; do
  "$nbd_expect" "$(uri $image)" write 0 64K 1 ok , write 5M 4096 2 ok , \
    write 19M 96K 3 ok
done
for image in plain locked mapped one; do
  rbd_snap base/$image@s
  "$nbd_expect" "$(uri $image)" write 10M 64K 4 ok , trim 5M 64K ok
done
hidden base 0
same_difference base/plain@s
same_difference base/mapped@s
for image in plain locked mapped one; do
  same_copies base/$image@s
  same_copies base/$image
  "$nbd_expect" "$(uri $image@s)" status 0 $size ok , read-is 0 64K 1 , \
    read-is 5M 4096 2 , read-is 10M 64K 0
  # The lock is kept from the first write on, and with it what is known.
  "$nbd_expect" "$(uri $image)" write 12M 10 5 ok , status 0 $size ok , \
    read-is 0 64K 1 , read-is 5M 4096 0 , read-is 10M 64K 4 , \
    write 0 512 6 ok , read-is 512 1000 1
done

say "clones of what is only in the cache pool"
for image in plain mapped; do
  rbd clone --rbd-default-clone-format 2 base/$image@s base/$image-clone
  # Block status, then a write to a part of what the parent has.
  "$nbd_expect" "$(uri $image-clone)" status 0 $size ok , \
    write 100 100 7 ok , write 5M 1000 8 ok , status 0 $size ok , \
    write 19922954 10 9 ok
  "$nbd_expect" "$(uri $image-clone)" read-is 0 100 1 , read-is 100 100 7 , \
    read-is 200 1000 1 , read-is 5M 1000 8 , read-is 5243880 3096 2 , \
    read-is 19M 10 3 , read-is 19922954 10 9 , read-is 19922964 1000 3
  same_copies base/$image-clone
done
stop_nbdkit

say "extents=object"
start_rados pool=base extents=object
for export in plain plain@s locked@s one plain-clone mapped-clone; do
  same_copies "base/$export"
done
stop_nbdkit

say "striped objects"
start_rados pool=base image=striped format=striper create=true size=$size \
  object-size=64K stripe-unit=64K stripe-count=1
"$nbd_expect" "$(uri)" write 0 64K 1 ok , write 5M 4096 2 ok , \
  status 0 $size ok , read-is 0 64K 1 , read-is 5M 4096 2
nbd_get "" "$tmp/copy"
stop_nbdkit
striper_get base striped "$tmp/wanted"
assert_same_bytes "$tmp/wanted" "$tmp/copy" "the striped object"
hidden base 0
# What does not exist is remembered in the cache pool, too.
for name in no-such-object.0000000000000000 gone.0000000000000000; do
  echo x | rados -p base put "$name" -
done
rados -p base rm gone.0000000000000000
rados -p base rm no-such-object.0000000000000000
start_rados pool=base format=striper
assert_eq "striped" "$(list_striped)" "the list of exports"
stop_nbdkit

say "the other modes"
for mode in readproxy proxy; do
  ceph osd tier cache-mode hot $mode --yes-i-really-mean-it >/dev/null 2>&1 ||
    die "no mode $mode"
  start_rados pool=base
  same_copies base/plain@s
  same_copies base/plain-clone
  stop_nbdkit
done
# Writes go to the pool itself, and what is read is copied to the cache pool.
make_pool cold
rbd create "${new[@]}" --image-feature layering rbd/plain
make_tier rbd cold readonly
start_rados pool=rbd
"$nbd_expect" "$(uri plain)" write 0 64K 1 ok , write 5M 4096 2 ok
rbd_snap rbd/plain@s
same_copies rbd/plain@s
stop_nbdkit
