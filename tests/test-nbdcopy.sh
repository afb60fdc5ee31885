#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcopy in and out, checksums, sparseness kept both ways; from one image to
# another of a different format.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program nbdcopy sha256sum
requires_plugin
start_ceph

# 200 MiB, of which 1 MiB in 10 is data, and some odd bytes.
size=$((200 << 20))
truncate -s $size "$tmp/disk"
random_file "$tmp/data" $((1 << 20)) 11
for ((n = 0; n < 200; n += 10)); do
  dd if="$tmp/data" of="$tmp/disk" bs=1M seek=$n conv=notrunc status=none
done
printf 'odd' | dd of="$tmp/disk" bs=1 seek=77777777 conv=notrunc status=none
sum=$(sha256sum <"$tmp/disk")

# used PREFIX: bytes in the data objects
used() {
  local object
  rados -p rbd ls | grep "^$1\." | while read -r object; do
    rados -p rbd stat "$object" | sed 's/.*size //'
  done | awk '{n += $1} END {print n + 0}'
}

start_rados pool=rbd image=one format=1 create=true size=$size object-size=1M
one=$(uri)
start_rados pool=rbd image=two format=striper create=true size=$size \
  object-size=4M stripe-unit=64K stripe-count=4
two=$(uri)

for options in "" "--connections=1 --requests=1" "--synchronous" \
  "--connections=8 --request-size=33554432" "--allocated"; do
  say "nbdcopy $options"
  # shellcheck disable=SC2086 # words on purpose
  nbdcopy $options -- "$tmp/disk" "$one"
  rm -f "$tmp/out"
  # shellcheck disable=SC2086
  nbdcopy $options -- "$one" "$tmp/out"
  assert_eq "$sum" "$(sha256sum <"$tmp/out")" "checksum (options: $options)"
done

say "from image to image"
nbdcopy -- "$tmp/disk" "$one"
nbdcopy -- "$one" "$two"
nbdcopy -- "$two" "$tmp/out2"
assert_eq "$sum" "$(sha256sum <"$tmp/out2")" "checksum of the second image"
nbdcopy -- "$two" - | sha256sum >"$tmp/sum"
assert_eq "$sum" "$(cat "$tmp/sum")" "checksum of a stream"

say "a file system of zeros stays a hole"
# --destination-is-zero on a fresh image: only what holds data is written.
start_rados pool=rbd image=three format=1 create=true size=$size object-size=64K
nbdcopy --destination-is-zero -- "$tmp/disk" "$(uri)"
nbdcopy -- "$(uri)" "$tmp/out3"
assert_eq "$sum" "$(sha256sum <"$tmp/out3")" "checksum of the third image"
bytes=$(used "$(format1_prefix rbd three)")
[ "$bytes" -le $((22 << 20)) ] || die "$bytes bytes are used in RADOS"
blocks=$(stat -c %b "$tmp/out3")
[ $((blocks * 512)) -le $((24 << 20)) ] ||
  die "the copy out uses $((blocks * 512)) bytes"
# After the plain copy over old data the zeros have been freed as well.
bytes=$(used "$(format1_prefix rbd one)")
[ "$bytes" -le $((22 << 20)) ] || die "$bytes bytes are used in RADOS"

say "the oracles"
rbd_export rbd/one - | sha256sum >"$tmp/sum"
assert_eq "$sum" "$(cat "$tmp/sum")" "rbd export"
striper_get rbd two "$tmp/out4"
truncate -s $size "$tmp/out4"
assert_eq "$sum" "$(sha256sum <"$tmp/out4")" "rados --striper get"
