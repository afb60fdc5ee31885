#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Writing to RBD format 2: random operations against a plain-file model, on
# images of every set of features and several layouts, and on clones, while
# rbd (librbd) takes snapshots, resizes and flattens in between.  At the end
# the image and each snapshot hold what the model held, as rbd reads them, and
# rbd finds nothing wrong with the object maps.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program jq nbdcopy
requires_built "$random_ops" "$nbd_expect"
requires_plugin
start_ceph
make_pool data
rbd namespace create rbd/ns

model=$tmp/model

# hammer BOUNDARIES OPS [OPTION...]
hammer() {
  "$random_ops" --ops "$2" --threads 2 --connections 2 --batch 4 \
    --max-length 1M --boundaries "$1" --model "$model" "${@:3}" "$(uri)" \
    >"$tmp/ops.out" 2>&1 || {
    cat "$tmp/ops.out" >&2
    die "random operations: the image is not as it should be"
  }
}

# has_map IMAGE: whether it has the feature object-map.
has_map() {
  rbd info --format json "$1" | jq -e '.features | index("object-map")' \
    >/dev/null
}

# differ_by DIFF OLD NEW: with what `rbd diff --format json` says has changed, the
# old file becomes the new one.
differ_by() {
  /usr/bin/python3 - "$@" <<'EOF' || die "rbd diff leaves out what has changed"
import json, sys
with open(sys.argv[1]) as f: areas = json.load(f)
with open(sys.argv[2], "rb") as f: old = bytearray(f.read())
with open(sys.argv[3], "rb") as f: new = f.read()
assert len(old) == len(new)
for area in areas:
    start, end = area["offset"], area["offset"] + area["length"]
    old[start:end] = new[start:end]
assert old == new
EOF
}

# resize IMAGE BYTES: by rbd, and in the model.
resize() {
  rbd resize --no-progress --allow-shrink --size "$2B" "$1"
  truncate -s "$2" "$model"
  "$nbd_expect" "$(uri)" size "$2"
}

differences=0
# story IMAGE BOUNDARIES SIZE: the image is served; the model is what it holds.
story() {
  local image=$1 boundaries=$2 size=$3
  hammer "$boundaries" 150
  rbd_snap "$image@s1"
  cp "$model" "$tmp/s1"
  hammer "$boundaries" 60
  resize "$image" $((size / 3 + 5))
  hammer "$boundaries" 40
  rbd_snap "$image@s2"
  cp "$model" "$tmp/s2"
  resize "$image" $((size + 77777))
  hammer "$boundaries" 80
  # Snapshots under writes.  What the middle one holds, the server knows.
  local io n
  rm -f "$tmp/stop"
  "$random_ops" --ops 1000000 --stop-file "$tmp/stop" --threads 2 \
    --connections 2 --batch 4 --max-length 256K --boundaries "$boundaries" \
    --model "$model" "$(uri)" >"$tmp/io.out" 2>&1 &
  io=$!
  for n in 1 2 3; do
    rbd_snap "$image@busy$n"
  done
  rbd diff --format json --from-snap busy1 "$image@busy3" >"$tmp/busy.diff"
  rbd snap rm --no-progress "$image@busy2"
  if [ -n "${4-}" ]; then rbd flatten --no-progress "$image"; fi
  : >"$tmp/stop"
  wait "$io" || {
    cat "$tmp/io.out" >&2
    die "random operations while rbd works on the image"
  }
  rbd_export "$image@busy1" "$tmp/busy1"
  rbd_export "$image@busy3" "$tmp/busy3"
  differ_by "$tmp/busy.diff" "$tmp/busy1" "$tmp/busy3"
  cmp -s "$tmp/busy1" "$tmp/busy3" || differences=$((differences + 1))
  hammer "$boundaries" 60
  rbd_snap "$image@s3"
  cp "$model" "$tmp/s3"
  hammer "$boundaries" 40 --allocated
  stop_nbdkit
  assert_no_match "error:" "$(grep -v 'watch on the header' "$nbdkit_log" ||
    :)" "the log"
  assert_eq "[]" "$(rbd info --format json "$image" | jq -c .flags)" "flags"
  same_export "$image" "$model"
  for n in s1 s2 s3 busy1 busy3; do same_export "$image@$n" "$tmp/$n"; done
  # What changed since the first snapshot, as rbd finds it.  Whole objects it
  # finds by the object maps (before the checks below make them invalid), but
  # not, with Ceph 16, those that a shrink has removed.
  rbd import --no-progress "$tmp/s1" rbd/copy
  rbd_snap rbd/copy@s1
  rbd export-diff --no-progress --from-snap s1 "$image@s2" "$tmp/diff"
  rbd import-diff --no-progress "$tmp/diff" rbd/copy
  same_export rbd/copy@s2 "$tmp/s2"
  rm "$tmp/diff"
  rbd export-diff --no-progress --whole-object --from-snap s2 "$image@s3" \
    "$tmp/diff"
  rbd import-diff --no-progress "$tmp/diff" rbd/copy
  same_export rbd/copy "$tmp/s3"
  if has_map "$image"; then
    for n in "" @s1 @s2 @s3 @busy1 @busy3; do check_object_map "$image$n"; done
  fi
  rm "$tmp/diff"
  rbd snap purge --no-progress rbd/copy
  rbd rm --no-progress rbd/copy
  assert_eq "" "$(rbd lock ls "$image")" "locks"
  rm "$model"
}

# FEATURES OBJECT-SIZE STRIPE-UNIT STRIPE-COUNT SIZE LOCK OPTION
while read -r features object unit count size lock option; do
  say "$features, objects of $object, $count stripes of $unit"
  # shellcheck disable=SC2086
  rbd create --size "${size}B" --object-size "$object" --stripe-unit "$unit" \
    --stripe-count "$count" --image-feature "$features" $option rbd/image
  truncate -s "$size" "$model"
  start_rados pool=rbd image=image lock="$lock"
  story rbd/image "$object,$unit,4096" "$size"
  rbd snap purge --no-progress rbd/image
  rbd rm --no-progress rbd/image
done <<'LIST'
layering 64K 64K 1 3000001 none
layering 1M 64K 3 9000001 none
layering,exclusive-lock 256K 256K 1 5000000 auto
layering,exclusive-lock,object-map 64K 4K 5 4000000 auto
layering,exclusive-lock,object-map,fast-diff,deep-flatten 4M 4M 1 20000001 auto
layering,exclusive-lock,object-map,fast-diff,deep-flatten 4K 4K 1 700000 auto
exclusive-lock,object-map,fast-diff 1M 16K 2 8000000 auto --data-pool=data
LIST

# A parent with holes and zeros, not a multiple of any object.
random_file "$tmp/parent" 11000003 7
dd if=/dev/zero of="$tmp/parent" bs=64K seek=20 count=37 conv=notrunc \
  status=none
rbd import --no-progress --object-size 1M --stripe-unit 64K --stripe-count 3 \
  "$tmp/parent" rbd/parent
rbd_snap rbd/parent@s
rbd snap protect rbd/parent@s
# A parent in the middle: of another layout, pool and namespace, and with a
# bit of its own.
rbd clone --rbd-default-clone-format 2 --object-size 512K rbd/parent@s \
  data/middle
start_rados pool=data image=middle
cp "$tmp/parent" "$model"
hammer 512K,1M 60
stop_nbdkit
cp "$model" "$tmp/middle"
rbd_snap data/middle@s
# And a third generation, in a namespace, with stripes that cross its parent's.
rbd clone --rbd-default-clone-format 2 --object-size 256K --stripe-unit 16K \
  --stripe-count 5 data/middle@s rbd/ns/lower
start_rados rbd/ns/lower
hammer 16K,256K 60
stop_nbdkit
cp "$model" "$tmp/lower"
rbd_snap rbd/ns/lower@s

# PARENT CONTENT CLONE-FORMAT OBJECT-SIZE STRIPE-UNIT STRIPE-COUNT FLATTEN
# FEATURES-TO-DISABLE
while read -r parent content format object unit count flatten disable; do
  say "a clone of $parent, objects of $object, $count stripes of $unit," \
    "without ${disable:-nothing}"
  # Only clones of format 2 may be in another namespace.
  child=rbd/ns/child
  [ "$format" = 2 ] || child=data/child
  rbd clone --rbd-default-clone-format "$format" --object-size "$object" \
    --stripe-unit "$unit" --stripe-count "$count" "$parent" $child
  # shellcheck disable=SC2086
  [ -z "$disable" ] || rbd feature disable $child ${disable//,/ }
  cp "$tmp/$content" "$model"
  start_rados $child lock=auto
  nbd_get "" "$tmp/got"
  assert_same_bytes "$model" "$tmp/got" "the clone"
  story $child "$object,$unit,1M,4096" 11000003 "${flatten#no}"
  if [ "$flatten" = no ]; then
    prints parent rbd info $child || die "the clone lost its parent"
  fi
  rbd snap purge --no-progress $child
  rbd rm --no-progress $child
done <<'LIST'
rbd/parent@s parent 1 4M 64K 3 yes
rbd/parent@s parent 2 256K 256K 1 no deep-flatten
data/middle@s middle 2 1M 64K 2 yes
data/middle@s middle 2 4M 4M 1 no fast-diff,object-map
rbd/ns/lower@s lower 2 512K 32K 4 no
LIST
[ $differences -gt 0 ] || die "rbd diff had nothing to find"
same_export rbd/ns/lower@s "$tmp/lower"
same_export rbd/parent@s "$tmp/parent"
same_export data/middle@s "$tmp/middle"
check_object_map data/middle@s rbd/ns/lower@s

say "zero and trim hide the parent"
for snapshots in no yes; do
  rbd clone --rbd-default-clone-format 2 rbd/parent@s rbd/hide
  [ $snapshots = no ] || rbd_snap rbd/hide@before
  start_rados pool=rbd image=hide lock=auto
  "$nbd_expect" "$(uri)" zero 0 4M ok , read-is 0 4M 0 , trim 1M 2M ok , \
    trim 4M 1M ok , read-is 4M 1M 0 , write 4M 4096 7 ok , \
    read-is 4M 4096 7 , read-is 4198400 1044480 0 , \
    zero 5M 100 ok no-hole , read-is 5M 100 0
  stop_nbdkit
  cp "$tmp/parent" "$model"
  dd if=/dev/zero of="$model" bs=1M count=5 conv=notrunc status=none
  fill_file "$tmp/sevens" 4096 007
  dd if="$tmp/sevens" of="$model" bs=1M seek=4 conv=notrunc status=none
  dd if=/dev/zero of="$model" bs=100 count=1 seek=$((5 << 20)) \
    oflag=seek_bytes conv=notrunc status=none
  same_export rbd/hide "$model"
  check_object_map rbd/hide
  if [ $snapshots = yes ]; then
    same_export rbd/hide@before "$tmp/parent"
    # The snapshot has its own data now, whatever happens to the parent.
    rbd flatten --no-progress rbd/hide
    same_export rbd/hide@before "$tmp/parent"
    same_export rbd/hide "$model"
    check_object_map rbd/hide@before
  fi
  rbd snap purge --no-progress rbd/hide
  rbd rm --no-progress rbd/hide
done

say "a copy-up keeps the holes of the parent"
rbd create --size 8M rbd/thin
start_rados pool=rbd
"$nbd_expect" "$(uri thin)" write 0 4096 1 ok , write 3M 4096 2 ok
rbd_snap rbd/thin@s
for snapshots in no yes; do
  rbd clone --rbd-default-clone-format 2 rbd/thin@s rbd/thinner
  [ $snapshots = no ] || rbd_snap rbd/thinner@before
  "$nbd_expect" "$(uri thinner)" write 1M 4096 3 ok , extents 0 8M \
    4096:data,1044480:hole,4096:data,2093056:hole,4096:data,5238784:hole , \
    read-is 0 4096 1 , read-is 3M 4096 2 , read-is 1M 4096 3 , \
    read-is 4096 1044480 0 , read-is 1052672 2093056 0
  if [ $snapshots = yes ]; then
    rbd flatten --no-progress rbd/thinner
    "$nbd_expect" "$(uri thinner@before)" read-is 0 4096 1 , \
      read-is 4096 3141632 0 , read-is 3M 4096 2
    rbd snap purge --no-progress rbd/thinner
  fi
  check_object_map rbd/thinner
  rbd rm --no-progress rbd/thinner
done
stop_nbdkit

say "many writers to the same missing objects"
rbd clone --rbd-default-clone-format 2 rbd/parent@s rbd/crowd
rbd_snap rbd/crowd@before
start_rados pool=rbd image=crowd
cp "$tmp/parent" "$model"
"$random_ops" --ops 600 --threads 4 --connections 4 --batch 8 \
  --max-length 16K --boundaries 4096,4M --model "$model" "$(uri)" \
  >"$tmp/ops.out" 2>&1 || {
  cat "$tmp/ops.out" >&2
  die "the clone is not as it should be"
}
stop_nbdkit
same_export rbd/crowd "$model"
same_export rbd/crowd@before "$tmp/parent"
check_object_map rbd/crowd
check_object_map rbd/crowd@before
