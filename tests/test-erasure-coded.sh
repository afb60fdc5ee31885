#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Images with their data in an erasure-coded pool: random operations on an
# image, on a clone, and on a clone with a snapshot, as rbd reads them.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program jq
requires_built "$random_ops" "$nbd_expect"
requires_plugin
start_ceph --osds 3
make_ec_pool ec

size=6000001
random_file "$tmp/parent" $size 3
dd if=/dev/zero of="$tmp/parent" bs=64K seek=20 count=37 conv=notrunc \
  status=none
rbd import --no-progress --object-size 1M --data-pool ec "$tmp/parent" \
  rbd/parent
rbd_snap rbd/parent@s
rbd create --size ${size}B --object-size 64K --data-pool ec rbd/plain
for image in clone snaps; do
  rbd clone --rbd-default-clone-format 2 --object-size 256K \
    --stripe-unit 256K --stripe-count 1 --data-pool ec rbd/parent@s rbd/$image
done
rbd_snap rbd/snaps@one

# hammer IMAGE OPS
hammer() {
  "$random_ops" --ops "$2" --threads 2 --connections 2 --batch 4 \
    --max-length 256K --boundaries 4096,64K,256K --model "$tmp/model" \
    "$(uri "$1")" >"$tmp/io.out" 2>&1 || {
    cat "$tmp/io.out" >&2
    die "random operations on $1"
  }
}

start_rados pool=rbd lock=auto
for image in plain clone snaps; do
  say "$image"
  rm -f "$tmp/model"
  if [ $image = plain ]; then
    truncate -s $size "$tmp/model"
  else
    cp "$tmp/parent" "$tmp/model"
  fi
  hammer $image 300
  rbd_snap rbd/$image@two
  cp "$tmp/model" "$tmp/two"
  hammer $image 200
  same_export rbd/$image "$tmp/model"
  same_export rbd/$image@two "$tmp/two"
  check_object_map rbd/$image
  check_object_map rbd/$image@two
done
same_export rbd/snaps@one "$tmp/parent"

say "an object that is shorter than what is read of it"
rbd create --size 1M --object-size 256K --data-pool ec rbd/short
"$nbd_expect" "$(uri short)" write 0 10 1 ok , write 256K 10 2 ok , \
  zero 256K 10 ok , read-is 0 10 1 , read-is 128K 128K 0 , \
  read-is 256K 256K 0 , read-is 10 262134 0
stop_nbdkit
assert_eq "" "$(cat "$nbdkit_log")" "what the server says"
