#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Tens of thousands of random requests on each writable format, several
# layouts, several connections in several threads, compared with a plain file,
# and then the oracles compare the image with the same file.
#
# RANDOM_OPS_SEED=N repeats a run as far as one can; RANDOM_OPS=N is the number
# of requests for each layout.

source "$(dirname "$0")/functions.sh" || exit 1
requires_built "$random_ops" "$nbd_expect"
requires_plugin
start_ceph
ops=${RANDOM_OPS:-4000}

# hammer MODEL BOUNDARIES MAX-LENGTH: three ways.
hammer() {
  # Threads in parts of their own, which meet inside of objects.
  "$random_ops" --ops "$ops" --threads 4 --connections 2 --batch 4 \
    --boundaries "$2" --max-length "$3" --model "$1" "$(uri)" >"$tmp/out"
  cat "$tmp/out" >&2
  for kind in read write zero trim flush status; do
    grep -Eq " $kind=[1-9]" "$tmp/out" || die "no $kind request was sent"
  done
  # Many requests in flight at the same place, and connections that change.
  "$random_ops" --ops $((ops / 2)) --connections 5 --batch 16 --reconnect 25 \
    --boundaries "$2" --max-length "$3" --model "$1" "$(uri)" >"$tmp/out"
  # Without structured replies, one at a time; zeros that keep their space.
  "$random_ops" --ops $((ops / 10)) --no-structured \
    --boundaries "$2" --max-length "$3" --model "$1" "$(uri)" >/dev/null
  "$random_ops" --ops $((ops / 10)) --allocated \
    --boundaries "$2" --max-length "$3" --model "$1" "$(uri)" >/dev/null
}

# NAME SIZE ORDER BOUNDARIES MAX-LENGTH
while read -r name size order boundaries length; do
  say "format 1, $size bytes, objects of 2^$order"
  make_format1_image rbd "$name" "$size" "$order"
  start_rados pool=rbd image="$name"
  hammer "$tmp/model" "$boundaries" "$length"
  stop_nbdkit
  same_export "rbd/$name" "$tmp/model"
  rm "$tmp/model"
done <<'LIST'
small 3000001 12 4096,8192 200K
middle 20000000 16 4096,64K 1M
large 100000007 22 4096,64K,4M 9M
LIST

# NAME SIZE OBJECT-SIZE STRIPE-UNIT STRIPE-COUNT MAX-LENGTH
while read -r name size object unit count length; do
  say "striper, $size bytes, objects of $object, $count stripes of $unit"
  striper_make rbd "$name" "$object" "$unit" "$count" "$size"
  start_rados pool=rbd image="$name" format=striper
  hammer "$tmp/model" "$object,$unit,$((unit * count))" "$length"
  stop_nbdkit
  striper_get rbd "$name" "$tmp/got"
  # libradosstriper reads as far as there are objects.
  truncate -s "$size" "$tmp/got"
  assert_same_bytes "$tmp/model" "$tmp/got" "rados --striper get of $name"
  rm "$tmp/model"
done <<'LIST'
units 10000019 262144 4096 3 1M
odd 2000003 12000 3000 7 150K
wide 30000000 1048576 65536 11 3M
LIST

say "without what is only faster: the results are the same"
make_format1_image rbd plain 20000000 16
nbdkit+=(-D rados.sparse_reads=0 -D rados.reserve=0 -D rados.merge_writes=0
  -D rados.ask_first=0 -D rados.batch_threads=0)
start_rados pool=rbd image=plain
hammer "$tmp/model" 4096,64K 1M
stop_nbdkit
same_export rbd/plain "$tmp/model"
nbdkit=("${nbdkit[@]:0:${#nbdkit[@]}-10}")

say "around 4 GiB and 1 TiB, discard-granularity of one byte and of one object"
make_format1_image rbd far $((2 << 40)) 22
for granularity in 1 4M; do
  start_rados pool=rbd image=far discard-granularity=$granularity
  for middle in $((4 << 30)) $((1 << 40)); do
    "$random_ops" --ops $((ops / 4)) --connections 2 --batch 4 --adopt \
      --region $((middle - (8 << 20)))+16M "$(uri)" >"$tmp/out"
    grep -q ' hole_bytes=[1-9]' "$tmp/out" || die "no hole was reported"
  done
  stop_nbdkit
done

say "two servers, one image"
make_format1_image rbd twice 8000000 20
start_rados pool=rbd image=twice
first=$(uri)
start_rados pool=rbd image=twice
"$random_ops" --ops "$ops" --threads 2 --connections 2 --batch 4 \
  --max-length 256K --boundaries 4096,1M "$first" "$(uri)" >/dev/null
