#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Each callback of the plugin, one by one, with exact answers: what is
# advertised, what each request does to the image, and what wrong requests
# are answered with.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program nbdinfo jq
requires_built "$nbd_expect"
requires_plugin
start_ceph
size=$((10 << 20))

# The same for each writable format; objects of 64 KiB, one after the other.
for format in 1 striper; do
  say "format $format"
  start_rados pool=rbd image="disk$format" format=$format create=true \
    size=$size object-size=64K
  # expect STEP...
  expect() { "$nbd_expect" "$(uri)" within 20 , "$@"; }

  # What is advertised.
  expect size $size , flag read-only no , flag fua yes , flag flush yes , \
    flag zero yes , flag fast-zero yes , flag trim yes , \
    flag multi-conn yes , flag df yes , flag block-status yes , \
    flag structured yes , block-size minimum 1
  nbdinfo --json "$(uri)" >"$tmp/info"
  jq -e '.exports[0] | .block_size_preferred >= 4096 and
         .block_size_maximum >= .block_size_preferred' "$tmp/info" >/dev/null ||
    die "block sizes: $(cat "$tmp/info")"
  preferred=$(jq '.exports[0].block_size_preferred' "$tmp/info")
  maximum=$(jq '.exports[0].block_size_maximum' "$tmp/info")
  [ $((preferred & (preferred - 1))) -eq 0 ] ||
    die "the preferred block size $preferred is not a power of two"
  [ "$maximum" -ge $((1 << 20)) ] || die "the maximum of $maximum is small"

  # read and write: an empty image, odd places, object boundaries, the end.
  expect read-is 0 $size 0 , extents 0 $size $size:hole , \
    write 1 1 7 ok , read-is 0 1 0 , read-is 1 1 7 , read-is 2 100 0 , \
    write 65535 2 8 ok , read-is 65534 1 0 , read-is 65535 2 8 , \
    read-is 65537 10 0 , write end-1 1 9 ok fua , read-is end-1 1 9 , \
    read-is end-2 1 0 , write 100000 1000000 10 ok fua , \
    read-is 100000 1000000 10 , read-is 99999 1 0 , read-is 1100000 1 0 , \
    write 0 $size 11 ok , read-is 0 $size 11 , flush ok

  # Beyond the end: errors of the protocol, and nothing changes.
  expect read end 1 EINVAL , read end-1 2 EINVAL , write end 1 1 ENOSPC , \
    write end-1 2 1 ENOSPC , zero end-1 2 ENOSPC , trim end-1 2 EINVAL , \
    status end 1 EINVAL , status end-1 2 EINVAL , cache end-1 2 EINVAL , \
    read 8388607T 1 EINVAL , read-is 0 $size 11

  # zero: unaligned, over objects, whole objects, with and without a hole.
  expect zero 3 5 ok , read-is 0 3 11 , read-is 3 5 0 , read-is 8 1 11 , \
    zero 65530 131084 ok fua , read-is 65529 1 11 , read-is 65530 131084 0 , \
    read-is 196614 1 11 , zero 200000 500 ok no-hole , \
    read-is 200000 500 0 , read-is 200500 1 11 , \
    zero 1M 1M ok , read-is 1M 1M 0 , extents 1M 1M 1048576:hole , \
    zero 2M 1M ok no-hole , read-is 2M 1M 0 , read-is 3M 1 11 , \
    zero 4M 1M ok no-hole fua , extents 4M 1M 1048576:data
  # NO_HOLE over a hole makes data of it.
  expect zero 1M 128K ok no-hole , extents 1M 1M 131072:data,917504:hole
  # fast-zero is honest: either it is done, or nothing happened.
  expect write 5M 1M 12 ok , zero 5M 1M ok fast-zero , read-is 5M 1M 0 , \
    extents 5M 1M 1048576:hole
  for flags in "fast-zero" "fast-zero no-hole" "fast-zero fua"; do
    for range in "6M 1M" "6291457 100" "6356991 3" "6291456 65536"; do
      # shellcheck disable=SC2086 # words on purpose
      if ! expect write 6M 1M 13 ok , zero $range ok $flags , \
        read-is $range 0 2>/dev/null; then
        expect write 6M 1M 13 ok , zero $range ENOTSUP $flags , \
          read-is 6M 1M 13
      fi
    done
  done

  # trim: inwards to 64 KiB; the rest of the bytes stay.
  expect write 0 1M 14 ok , trim 1 65535 ok , read-is 0 1M 14 , \
    trim 1 131070 ok , read-is 0 1M 14 , \
    trim 1 131071 ok , read-is 0 64K 14 , read-is 64K 64K 0 , \
    read-is 128K 900000 14 , trim 0 256K ok fua , read-is 0 256K 0 , \
    read-is 256K 512K 14 , extents 0 512K 262144:hole,262144:data
  # The end of the image counts as a multiple.
  expect write 9M 1M 15 ok , trim end-65536 65536 ok , \
    read-is end-65536 65536 0 , read-is 9M 900000 15

  # Block status: request-one, parts of a unit, unaligned.
  expect zero 0 $size ok , write 128K 4096 1 ok , \
    extents 0 1M 131072:hole,4096:data,913408:hole , \
    extents 0 1M 131072:hole req-one , \
    extents 128K 4096 4096:data req-one , \
    extents 129K 1M 3072:data,1045504:hole , \
    extents 1 10 10:hole , extents 131071 2 1:hole,1:data
  if expect flag cache yes 2>/dev/null; then
    expect cache 0 1M ok , cache end-1 1 ok , cache 0 $size ok
  fi
  # Large requests.
  expect write 0 $size 16 ok , read-is 0 $size 16 , zero 0 $size ok , \
    read-is 0 $size 0
  if grep -v "invalid request" "$nbdkit_log" | grep -i "error"; then
    die "an error in the log"
  fi
  stop_nbdkit
done

say "discard-granularity"
make_format1_image rbd grain 1000000 16
start_rados pool=rbd image=grain discard-granularity=4096
"$nbd_expect" "$(uri)" write 0 100000 1 ok , trim 1 4095 ok , \
  read-is 0 100000 1 , trim 1 8191 ok , read-is 0 4096 1 , \
  read-is 4096 4096 0 , read-is 8192 50000 1
stop_nbdkit
# Objects that are smaller than the default of 64 KiB.
make_format1_image rbd small 1000000 12
start_rados pool=rbd image=small
"$nbd_expect" "$(uri)" write 0 100000 1 ok , trim 4095 8193 ok , \
  read-is 0 4096 1 , read-is 4096 8192 0 , read-is 12288 50000 1
stop_nbdkit

say "sizes that are no multiple of anything, and an empty image"
make_format1_image rbd odd 1000003 16
start_rados pool=rbd
"$nbd_expect" "$(uri odd)" size 1000003 , write end-5 5 1 ok , \
  read-is end-5 5 1 , read end-5 6 EINVAL , trim 983040 16963 ok , \
  read-is end-5 5 0 , extents 0 1000003 1000003:hole
# Nothing was written behind the end.
prefix=$(format1_prefix rbd odd)
"$nbd_expect" "$(uri odd)" write 900000 100003 2 ok
last=$(rados -p rbd stat "$prefix.00000000000f" | sed 's/.*size //')
assert_eq $((1000003 - 15 * 65536)) "$last" "size of the last object"
make_format1_image rbd empty 0 16
"$nbd_expect" "$(uri empty)" size 0 , read 0 1 EINVAL , write 0 1 1 ENOSPC , \
  flush ok
stop_nbdkit

say "in the background, as nbdkit does by default"
# librados starts threads, which do not survive a fork.
"${nbdkit[@]}" -P "$tmp/daemon.pid" -U "$tmp/daemon.sock" rados \
  "conf=$ceph_conf" pool=rbd image=odd </dev/null >"$tmp/nbdkit-daemon.log" 2>&1
wait_until 10 test -s "$tmp/daemon.pid"
daemon=$(cat "$tmp/daemon.pid")
own "$daemon"
socket=$tmp/daemon.sock
"$nbd_expect" "$(uri)" within 20 , write 0 100 5 ok , read-is 0 100 5
# Its watch works, too: a snapshot of another client is respected.
"$nbd_expect" "$(uri)" within 20 , write 0 100 6 ok , \
  run "rbd snap create --no-progress rbd/odd@s" , write 0 100 7 ok
rbd_export rbd/odd@s "$tmp/exported"
assert_eq 6 "$(head -c 1 "$tmp/exported" | od -An -tu1 | tr -d ' ')" \
  "first byte of the snapshot"
kill "$daemon"
wait_until 20 has_ended "$daemon"
