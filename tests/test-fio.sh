#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# fio with its nbd engine: random and sequential writes with checksums in
# every block, several jobs, trims; then everything is verified.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program fio
prints "^[[:space:]]*nbd$" fio --enghelp || skip "fio has no nbd engine"
requires_plugin
start_ceph
make_format1_image rbd fio $((64 << 20)) 20

# fio_job NAME OPTION...
fio_job() {
  (cd "$tmp" && timeout 300 fio --name="$1" --ioengine=nbd --uri="$(uri)" \
    --size=64M --verify_fatal=1 --group_reporting "${@:2}") \
    >"$tmp/fio.out" 2>&1 || {
    cat "$tmp/fio.out" >&2
    die "fio $* failed"
  }
  ! grep -Eiq "verify:.*(bad|fail)|err= *[1-9]" "$tmp/fio.out" || {
    cat "$tmp/fio.out" >&2
    die "fio $* found errors"
  }
}

start_rados pool=rbd image=fio
fio_job mixed --rw=randrw --bsrange=512-65536 --bs_unaligned=0 --iodepth=16 \
  --io_size=64M --verify=crc32c --randseed=7
fio_job write4k --rw=randwrite --bs=4k --iodepth=32 --verify=crc32c \
  --io_size=32M --do_verify=1
fio_job sequential --rw=write --bs=1M --iodepth=8 --verify=sha256 --do_verify=1
# Verified again by a later process and another server: nothing is remembered.
stop_nbdkit
start_rados -r pool=rbd image=fio
fio_job later --rw=read --bs=1M --iodepth=8 --verify=sha256 --verify_only=0
stop_nbdkit
# What fio wrote is not zeros, and rbd sees it.
rbd_export rbd/fio "$tmp/exported"
assert_eq $((64 << 20)) "$(stat -c %s "$tmp/exported")" "size of the export"
used=$(tr -d '\0' <"$tmp/exported" | wc -c)
[ "$used" -gt $((50 << 20)) ] || die "only $used bytes are not zero"
