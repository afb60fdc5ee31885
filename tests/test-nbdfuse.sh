#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdfuse: an image as a plain file, for any program.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program nbdfuse fusermount3
[ -c /dev/fuse ] && [ -r /dev/fuse ] && [ -w /dev/fuse ] ||
  skip "/dev/fuse cannot be used"
requires_plugin
start_ceph
size=20000000
random_file "$tmp/data" $size 17

start_rados pool=rbd image=fuse format=1 create=true size=$size object-size=256K
mkdir "$tmp/mount"
nbdfuse -P "$tmp/nbdfuse.pid" "$tmp/mount/disk" "$(uri)" \
  >"$tmp/nbdfuse.log" 2>&1 &
at_exit 'fusermount3 -u "$tmp/mount" 2>/dev/null || :'
wait_until 20 test -s "$tmp/nbdfuse.pid"
assert_eq $size "$(stat -c %s "$tmp/mount/disk")" "size of the file"
dd if="$tmp/data" of="$tmp/mount/disk" bs=65537 conv=notrunc,fsync status=none
assert_same_bytes "$tmp/data" "$tmp/mount/disk" "the file"
printf 'changed' |
  dd of="$tmp/mount/disk" bs=1 seek=12345677 conv=notrunc,fsync status=none
printf 'changed' |
  dd of="$tmp/data" bs=1 seek=12345677 conv=notrunc status=none
assert_same_bytes "$tmp/data" "$tmp/mount/disk" "the changed file"
fusermount3 -u "$tmp/mount"
stop_nbdkit
same_export rbd/fuse "$tmp/data"
