#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# RBD format 2, read-only exports.  The oracle is rbd (librbd): images of
# several stripe units and counts, with a data pool, in a namespace, with
# snapshots, clones.  What cannot be read is refused by name.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program nbdcopy qemu-io nbdinfo jq
requires_built "$nbd_expect" "$random_ops"
requires_plugin
start_ceph
make_pool data

size=9876543
random_file "$tmp/data" $size 5
# A hole of 2 MiB, which rbd import keeps.
dd if=/dev/zero of="$tmp/data" bs=1M seek=5 count=2 conv=notrunc status=none

# check SPEC FILE: the plugin's view is the file's, and it is read-only.
check() {
  nbd_get "$1" "$tmp/got"
  assert_same_bytes "$2" "$tmp/got" "$1"
  "$nbd_expect" "$(uri "$1")" flag read-only yes , flag multi-conn yes , \
    size "$(stat -c %s "$2")" , description "[Ff]ormat 2" , \
    write 0 512 1 EPERM , zero 0 512 EPERM , trim 0 512 EPERM , \
    read end 1 EINVAL
  # Unaligned reads, and block status against the contents.
  "$random_ops" --ops 300 --batch 4 --connections 2 --adopt \
    --max-length 1M --boundaries "${3:-4M}" "$(uri "$1")" >"$tmp/out"
  grep -q ' status=[1-9]' "$tmp/out" || die "no block status was asked"
}

start_nbdkit -r rados "conf=$ceph_conf" pool=rbd

say "striping"
# OBJECT_SIZE:STRIPE_UNIT:STRIPE_COUNT
for layout in 4K:4K:1 64K:4K:3 64K:64K:16 1M:64K:5 4M:512:7 32M:1M:2 4M:4M:4; do
  IFS=: read -r object_size unit count <<<"$layout"
  rbd import --no-progress --object-size "$object_size" --stripe-unit "$unit" \
    --stripe-count "$count" "$tmp/data" "rbd/i$layout"
  check "i$layout" "$tmp/data" "$object_size,$unit"
done
prints striping rbd info rbd/i1M:64K:5 || die "the oracle did not stripe"
"$nbd_expect" "$(uri "i1M:64K:5")" description "64|65536" , description "5"

say "several data sizes"
for bytes in 1 511 4194303 4194304 4194305; do
  head -c $bytes "$tmp/data" >"$tmp/part"
  rbd import --no-progress "$tmp/part" "rbd/size$bytes"
  nbd_get "size$bytes" "$tmp/got"
  assert_same_bytes "$tmp/part" "$tmp/got" "$bytes bytes"
done

say "a data pool"
rbd import --no-progress --data-pool data "$tmp/data" rbd/indata
[ -n "$(rados -p data ls | head -n 1)" ] || die "the oracle used no data pool"
check indata "$tmp/data"

say "a namespace"
rbd namespace create rbd/ns
# Another image of the same name outside of the namespace.
head -c 4000000 "$tmp/data" >"$tmp/part"
rbd import --no-progress "$tmp/part" rbd/same
rbd import --no-progress "$tmp/data" rbd/ns/same
rbd import --no-progress --data-pool data "$tmp/data" rbd/ns/indata
check ns/same "$tmp/data"
check ns/indata "$tmp/data"
check same "$tmp/part"

say "snapshots, while others write"
rbd import --no-progress --object-size 64K --stripe-unit 4K --stripe-count 3 \
  "$tmp/data" rbd/snaps
cp "$tmp/data" "$tmp/now"
rbd_snap rbd/snaps@s0
for n in 1 2; do
  qemu-io -f raw -c "write -P $n ${n}00k 300k" "rbd:rbd/snaps:conf=$ceph_conf" \
    >/dev/null
  head -c $((300 * 1024)) /dev/zero | tr '\0' "\\00$n" |
    dd of="$tmp/now" bs=100K seek="$n" conv=notrunc status=none
  cp "$tmp/now" "$tmp/now.$n"
  rbd_snap "rbd/snaps@s$n"
done
same_export rbd/snaps@s1 "$tmp/now.1"
check snaps@s0 "$tmp/data" 4096,64K
check snaps@s1 "$tmp/now.1" 4096,64K
check snaps@s2 "$tmp/now.2" 4096,64K
check snaps "$tmp/now" 4096,64K
# What librbd writes is read at once by who has the image open, and the
# snapshot stays as it is.
"$nbd_expect" "$(uri snaps)" read 0 4096 ok , \
  run "qemu-io -f raw -c 'write -P 77 0 4096' rbd:rbd/snaps:conf=$ceph_conf >/dev/null" , \
  read-is 0 4096 77 , \
  run "rbd snap create --no-progress rbd/snaps@s3" , \
  run "qemu-io -f raw -c 'write -P 78 0 4096' rbd:rbd/snaps:conf=$ceph_conf >/dev/null" , \
  read-is 0 4096 78
"$nbd_expect" "$(uri snaps@s3)" read-is 0 4096 77
# A snapshot of another size.
rbd resize --no-progress --size 20M rbd/snaps
"$nbd_expect" "$(uri snaps)" size 20M , read-is 10M 4096 0
"$nbd_expect" "$(uri snaps@s3)" size $size

say "all features that librbd has switched on by itself, and a flattened clone"
rbd create --size 8M --image-feature \
  layering,exclusive-lock,object-map,fast-diff,deep-flatten,journaling \
  rbd/features
"$nbd_expect" "$(uri features)" size 8M , read-is 0 8M 0 , \
  description "journaling" , description "object-map"
rbd clone --rbd-default-clone-format 2 rbd/snaps@s2 rbd/flat
rbd flatten --no-progress rbd/flat
check flat "$tmp/now.2" 64K

say "clones of both kinds, of a clone, and larger than their parent"
rbd clone --rbd-default-clone-format 2 rbd/snaps@s2 rbd/child
rbd snap protect rbd/snaps@s1
rbd clone --rbd-default-clone-format 1 --object-size 32K --stripe-unit 8K \
  --stripe-count 5 rbd/snaps@s1 rbd/child1
check child "$tmp/now.2" 64K
check child1 "$tmp/now.1" 8K,32K
rbd_snap rbd/child1@s
rbd clone --rbd-default-clone-format 2 --object-size 1M rbd/child1@s \
  rbd/ns/grandchild
check ns/grandchild "$tmp/now.1" 8K,32K,1M
rbd resize --no-progress --size 12M rbd/child
cp "$tmp/now.2" "$tmp/grown"
truncate -s 12M "$tmp/grown"
check child "$tmp/grown" 64K
rbd resize --no-progress --allow-shrink --size 1M rbd/child
rbd resize --no-progress --size 12M rbd/child
truncate -s 1M "$tmp/grown"
truncate -s 12M "$tmp/grown"
check child "$tmp/grown" 64K
# The parent's snapshot goes to the trash and is still read.
rbd snap rm --no-progress rbd/snaps@s2
check child "$tmp/grown" 64K
"$nbd_expect" "$(uri snaps@s2)" connect fail
# A flatten is seen by who has the image open.
"$nbd_expect" "$(uri ns/grandchild)" read 0 4096 ok , \
  run "rbd flatten --no-progress rbd/ns/grandchild" , \
  run "rbd snap rm --no-progress rbd/child1@s" , read 0 4096 ok
check ns/grandchild "$tmp/now.1" 8K,32K,1M

say "a parent in a namespace"
rbd_snap rbd/ns/indata@s
rbd clone --rbd-default-clone-format 2 --object-size 1M --stripe-unit 1M \
  --stripe-count 1 rbd/ns/indata@s rbd/fromns
check fromns "$tmp/data" 1M

say "who reads sees that an image has shrunk"
rbd create --size 8M rbd/shrinks
"$nbd_expect" "$(uri shrinks)" read-is 0 8M 0 , \
  run "rbd resize --no-progress --allow-shrink --size 4M rbd/shrinks" , \
  read 6M 4096 EINVAL , status 6M 4096 EINVAL , read-is 0 4M 0
"$nbd_expect" "$(uri shrinks)" size 4M

say "refused: a migration"
rbd create --size 8M rbd/old
rbd migration prepare rbd/old rbd/new
"$nbd_expect" "$(uri new)" connect fail
expect_fail "new&&migrat" "${nbdkit[@]}" -f -U "$tmp/x.sock" rados \
  "conf=$ceph_conf" pool=rbd image=new
grep -Eiq "migrat" "$nbdkit_log" || die "the log does not name the migration"
# An unknown feature (bit 40) that the object class does not call incompatible
# is read, as by librbd, and named.
rbd create --size 8M rbd/future
id=$(rbd info --format json rbd/future | jq -r .id)
rados -p rbd getomapval "rbd_header.$id" features "$tmp/features" >/dev/null
printf '\001' | dd of="$tmp/features" bs=1 seek=5 conv=notrunc status=none
rados -p rbd setomapval "rbd_header.$id" features --input-file "$tmp/features"
"$nbd_expect" "$(uri future)" description "40" , flag read-only yes
# Newer data may be on the cache device of some client (bit 11).
rbd create --size 8M rbd/cached
id=$(rbd info --format json rbd/cached | jq -r .id)
rados -p rbd getomapval "rbd_header.$id" features "$tmp/features" >/dev/null
printf '\010' | dd of="$tmp/features" bs=1 seek=1 conv=notrunc status=none
rados -p rbd setomapval "rbd_header.$id" features --input-file "$tmp/features"
"$nbd_expect" "$(uri cached)" connect fail
grep -q "cached.* cannot be read.*dirty-cache" "$nbdkit_log" ||
  die "the log does not name dirty-cache"
# Both are not written to, and that is said by name.
first=$nbdkit_pid
start_rados pool=rbd
"$nbd_expect" "$(uri future)" flag read-only yes
grep -q "future is served read-only.*40" "$nbdkit_log" || die "no reason"
"$nbd_expect" "$(uri features)" flag read-only yes , write 0 512 1 EPERM
grep -q "features is served read-only.*journaling" "$nbdkit_log" ||
  die "no reason"
stop_nbdkit
nbdkit_pid=$first
socket=${socket%/*}/nbdkit0.sock
nbdkit_log=${socket%.sock}.log
# The server still serves the others.
"$nbd_expect" "$(uri same)" size 4000000
stop_nbdkit
