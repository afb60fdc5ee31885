#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Block status: exact below the object where the pool can tell, right where it
# cannot, right with striping, in sectors that qemu can use, and bounded work
# for each call.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program nbdinfo nbdcopy jq qemu-img
requires_built "$nbd_expect" "$random_ops"
requires_plugin
start_ceph

# map EXPORT: OFFSET LENGTH TYPE lines, with neighbours of one type joined
# (replies end at 4 GiB).
map() {
  nbdinfo --json --map "$(uri "$1")" |
    jq -r '.[] | "\(.offset) \(.length) \(.type)"' |
    awk 'NR > 1 && $3 == type && $1 == start + length_ { length_ += $2; next }
         NR > 1 { print start, length_, type }
         { start = $1; length_ = $2; type = $3 }
         END { print start, length_, type }'
}
# data_of: OFFSET LENGTH lines of the data in a map.
data_of() { awk '$3 == 0 {print $1, $2}'; }
# in_blocks: the same, rounded outwards to blocks of 4 KiB: BlueStore may know
# parts of a block or not.
in_blocks() {
  awk '{
    start = $1 - $1 % 4096
    end = $1 + $2 + 4095
    end -= end % 4096
    print start, end - start
  }'
}

say "500 random blocks of 4 KiB in 64 GiB"
make_format1_image rbd sparse $((64 << 30)) 22
start_rados pool=rbd
awk 'BEGIN {
  srand(42)
  while (n < 500) {
    block = int(rand() * 16777216)
    # Neither twice nor side by side, so that each is an extent of its own.
    if (block in seen || (block - 1) in seen || (block + 1) in seen) continue
    seen[block] = 1; n++
    printf "%.0f 4096\n", block * 4096
  }
}' | sort -n >"$tmp/blocks"
steps=()
while read -r offset length; do
  steps+=(write "$offset" "$length" 1 ok ,)
done <"$tmp/blocks"
"$nbd_expect" "$(uri sparse)" "${steps[@]}"
start=$SECONDS
map sparse >"$tmp/map"
say "the map took $((SECONDS - start)) seconds"
data_of <"$tmp/map" >"$tmp/data"
assert_eq 2048000 "$(awk '{n += $2} END {print n}' "$tmp/data")" "bytes of data"
assert_same_bytes "$tmp/blocks" "$tmp/data" "the extents of data"
assert_eq $((64 << 30)) "$(awk '{n += $2} END {printf "%.0f", n}' "$tmp/map")" \
  "bytes in the map"
# One call has bounded work, however much it is asked for, and makes progress.
"$nbd_expect" "$(uri sparse)" within 10 , status 0 4095M ok , \
  status 4096M 1 ok req-one , status 1G 1G ok req-one

say "objects, parts of objects, and nothing"
make_format1_image rbd parts $((16 << 20)) 20
"$nbd_expect" "$(uri parts)" write 1M 1M 1 ok , write 3150000 10 2 ok , \
  write 5M 64K 3 ok , write 6M 2M 4 ok , trim 6M 512K ok , \
  zero 7M 4096 ok , write 15M 1M 5 ok
map parts | data_of | in_blocks >"$tmp/data"
# 3150000 lies in the block of 4096 bytes at 3149824.
cat >"$tmp/wanted" <<'WANTED'
1048576 1048576
3149824 4096
5242880 65536
6815744 524288
7344128 1044480
15728640 1048576
WANTED
assert_same_bytes "$tmp/wanted" "$tmp/data" "the extents of data"
qemu-img map --output=json -f raw \
  "nbd:unix:$socket:exportname=parts" |
  jq -r '.[] | select(.data) | "\(.start) \(.length)"' >"$tmp/qemu"
# qemu splits where it likes.
assert_eq "$(map parts | data_of | awk '{n += $2} END {print n}')" \
  "$(awk '{n += $2} END {print n}' "$tmp/qemu")" "bytes of data for qemu-img"
# Data of zeros is data, or a hole: both are right; data is never a hole.
"$random_ops" --ops 400 --adopt "$(uri parts)" >/dev/null
# What snapshots hold is not changed by what comes later.
make_format1_image rbd snap $((8 << 20)) 20
"$nbd_expect" "$(uri snap)" write 1M 64K 1 ok
rbd_snap rbd/snap@s
"$nbd_expect" "$(uri snap)" write 3M 64K 1 ok , trim 1M 1M ok
assert_eq "1048576 65536" "$(map snap@s | data_of)" "data of the snapshot"
assert_eq "3145728 65536" "$(map snap | data_of)" "data of the image"
stop_nbdkit

say "striping"
start_rados pool=rbd image=striped format=striper create=true size=12M \
  object-size=1M stripe-unit=64K stripe-count=3
# Units 1, 4 and 5 of the first stripes; they lie in the objects 1, 1 and 2.
"$nbd_expect" "$(uri)" write 64K 64K 1 ok , write 256K 128K 2 ok , \
  write 5000000 1000 3 ok , \
  extents 0 1M 65536:hole,65536:data,131072:hole,131072:data,655360:hole
cat >"$tmp/wanted" <<'WANTED'
65536 65536
262144 131072
4997120 4096
WANTED
map "" | data_of | in_blocks >"$tmp/data"
assert_same_bytes "$tmp/wanted" "$tmp/data" "data of the striped object"
stop_nbdkit
# Format 2 of librbd, sparse.
truncate -s 30M "$tmp/file"
for n in 1 7 8 20; do
  random_file "$tmp/piece" 262144 $n
  dd if="$tmp/piece" of="$tmp/file" bs=1M seek=$n conv=notrunc status=none
done
rbd import --no-progress --sparse-size 4K --object-size 1M --stripe-unit 64K \
  --stripe-count 5 "$tmp/file" rbd/two
start_rados pool=rbd image=two
map "" | data_of >"$tmp/data"
printf '%s 262144\n' 1048576 7340032 8388608 20971520 >"$tmp/wanted"
assert_same_bytes "$tmp/wanted" "$tmp/data" "data of the format 2 image"
nbdcopy -- "$(uri)" "$tmp/out"
assert_same_bytes "$tmp/file" "$tmp/out" "sparse copy"
stop_nbdkit

say "data that begins and ends within sectors"
# Small objects, small stripe units, an overlap within a sector.
rbd create --size 1000300B --object-size 64K --image-feature layering rbd/odd
rbd create --size 1000300B --object-size 8K --stripe-unit 512 \
  --stripe-count 3 rbd/odd-striped
make_format1_image rbd odd-old 1000300 14
rbd create --size 300100B --object-size 16K rbd/odd-parent
start_rados pool=rbd
# shellcheck disable=SC2046
"$nbd_expect" "$(uri odd-parent)" $(odd_writes 300100 5)
rbd_snap rbd/odd-parent@s
rbd clone --rbd-default-clone-format 2 rbd/odd-parent@s rbd/odd-clone
rbd resize --no-progress --size 450070B rbd/odd-clone
"$nbd_expect" "$(uri odd)" write 1000 600 1 ok , \
  extents 0 64K 512:hole,1536:data,63488:hole , \
  extents 600 64K 1448:data req-one , extents 0 600 512:hole,88:data , \
  extents 2047 2 1:data,1:hole
seed=10
for image in odd odd-striped odd-old odd-clone; do
  # shellcheck disable=SC2046
  "$nbd_expect" "$(uri $image)" \
    $(odd_writes "$(nbdinfo --size "$(uri $image)")" $((seed++)))
  rbd_export "rbd/$image" "$tmp/$image"
  same_qemu_copy $image "$tmp/$image"
done
stop_nbdkit
start_rados pool=rbd extents=object
for image in odd odd-striped odd-old odd-clone; do
  same_qemu_copy $image "$tmp/$image" extents=object
done
stop_nbdkit
# The sectors of a range that begins anywhere are not those of the image.
start_nbdkit --filter=radoscache --filter=radosoffset rados \
  "conf=$ceph_conf" pool=rbd offset=1000 cache-assume=exclusive
tail -c +1001 "$tmp/odd" >"$tmp/part"
same_qemu_copy odd "$tmp/part" "offset=1000"
stop_nbdkit
start_rados pool=rbd image=odd-object format=striper create=true size=1000300 \
  object-size=192K stripe-unit=64K stripe-count=2
# shellcheck disable=SC2046
"$nbd_expect" "$(uri)" $(odd_writes 1000300 7)
striper_get rbd odd-object "$tmp/odd-object"
same_qemu_copy "" "$tmp/odd-object"
stop_nbdkit

say "holes of terabytes, with and without an object map, at once"
for features in layering layering,exclusive-lock,object-map; do
  rbd create --size 10T --image-feature "$features" "rbd/huge-$features"
  start_rados pool=rbd "image=huge-$features"
  # Without a map, each object is asked for, and a busy OSD takes its time.
  length=4294967295
  [ "$features" != layering ] || length=$((64 << 20))
  hole=$((length - 4096))
  [ "$hole" -le "$(largest_extent)" ] || hole=$(largest_extent)
  "$nbd_expect" "$(uri)" write 0 4096 1 ok , write 5T 4096 2 ok , within 30 , \
    extents 0 $length "4096:data,$hole:hole" , \
    status 4096 4294967295 ok
  # nbdkit 1.32.5 aborts on extents of more than 4 GiB.
  "$nbd_expect" "$(uri)" within 30 , status 4096 4294967295 ok req-one
  if [ "$features" != layering ]; then
    map "" >"$tmp/map"
    printf '%s\n' "0 4096 0" "4096 $(((5 << 40) - 4096)) 3" \
      "$((5 << 40)) 4096 0" "$(((5 << 40) + 4096)) $(((5 << 40) - 4096)) 3" \
      >"$tmp/wanted"
    assert_same_bytes "$tmp/wanted" "$tmp/map" "the map of 10 TiB"
    # Twice the same, and once more when it has changed.
    "$nbd_expect" "$(uri)" write 6T 4096 3 ok
    map "" | data_of >"$tmp/map"
    printf '%s 4096\n' 0 $((5 << 40)) $((6 << 40)) >"$tmp/wanted"
    assert_same_bytes "$tmp/wanted" "$tmp/map" "the map of 10 TiB, changed"
  fi
  stop_nbdkit
done

say "snapshots have what the head has lost"
rbd create --size 1G --object-size 64K --image-feature layering rbd/gone
start_rados pool=rbd
"$nbd_expect" "$(uri gone)" write 10M 64K 1 ok , write 500M 4096 2 ok
rbd_snap rbd/gone@s
"$nbd_expect" "$(uri gone)" trim 0 1G ok , write 700M 4096 3 ok
# The objects of the snapshot are now only its own.
printf '%s\n' "$((10 << 20)) 65536" "$((500 << 20)) 4096" >"$tmp/wanted"
for i in 1 2; do
  map gone@s | data_of >"$tmp/map"
  assert_same_bytes "$tmp/wanted" "$tmp/map" "the snapshot's map"
done
"$nbd_expect" "$(uri gone@s)" read-is 10M 64K 1 , read-is 700M 64K 0 , \
  extents 9M 1114112 "1048576:hole,65536:data" , extents 700M 64K 65536:hole
assert_eq "$((700 << 20)) 4096" "$(map gone | data_of)" "the head's map"
stop_nbdkit

say "extents=object and extents=off"
for mode in object off; do
  start_rados pool=rbd "extents=$mode"
  for image in gone@s parts two; do
    nbdcopy -- "$(uri $image)" "$tmp/out"
    case $image in
    two) assert_same_bytes "$tmp/file" "$tmp/out" "extents=$mode, $image" ;;
    *)
      rbd_export "rbd/$image" "$tmp/exported"
      assert_same_bytes "$tmp/exported" "$tmp/out" "extents=$mode, $image"
      ;;
    esac
  done
  if [ $mode = off ]; then
    "$nbd_expect" "$(uri gone)" extents 0 1G 1073741824:data
  else
    # The second one ends where its object does.
    assert_eq "$((10 << 20)) 65536 $((500 << 20)) 4096" \
      "$(map gone@s | data_of | xargs)" "extents=object"
  fi
  stop_nbdkit
done

say "a store that maps whole objects only"
start_ceph --store memstore --size 1G
make_format1_image rbd coarse 20000000 16
start_rados pool=rbd image=coarse
"$random_ops" --ops 1500 --connections 2 --batch 4 --max-length 256K \
  --boundaries 4096,64K "$(uri)" >"$tmp/out"
grep -q ' hole_bytes=[1-9]' "$tmp/out" || die "no hole was reported"
stop_nbdkit
