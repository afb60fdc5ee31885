#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# guestfish makes partitions and file systems, and writes files; a second
# guestfish finds them.  Takes a minute without KVM.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program guestfish sha256sum
export LIBGUESTFS_BACKEND=direct LIBGUESTFS_BACKEND_SETTINGS=force_tcg
export LIBGUESTFS_CACHEDIR=${LIBGUESTFS_CACHEDIR-/var/tmp}
requires_plugin
start_ceph
random_file "$tmp/file" 5000000 13
sum=$(md5sum <"$tmp/file" | cut -d ' ' -f 1)

start_rados pool=rbd image=guest format=1 create=true size=256M object-size=1M
# guestfish knows nbd:// but not nbd+unix://.
guestfish >"$tmp/first" <<GUESTFISH || die "the first guestfish failed"
add "" format:raw protocol:nbd server:unix:$socket discard:enable
run
part-init /dev/sda gpt
part-add /dev/sda p 2048 262143
part-add /dev/sda p 262144 -2048
mkfs ext4 /dev/sda1
mkfs ext4 /dev/sda2
mount /dev/sda1 /
mkdir /dir
upload $tmp/file /dir/file
write /hello "hello from the first"
fill 97 3000000 /gone
sync
rm /gone
fstrim /
umount /
mount /dev/sda2 /
write /second "the second file system"
GUESTFISH
stop_nbdkit

# Another server: nothing may depend on what the first one remembered.
start_rados pool=rbd image=guest
guestfish --ro >"$tmp/second" <<GUESTFISH || die "the second guestfish failed"
add "" format:raw protocol:nbd server:unix:$socket readonly:true
run
mount-ro /dev/sda1 /
checksum md5 /dir/file
cat /hello
find /dir
umount /
mount-ro /dev/sda2 /
cat /second
GUESTFISH
grep -q "^$sum" "$tmp/second" || die "the checksum of the file is different"
grep -q "hello from the first" "$tmp/second" || die "/hello is different"
grep -q "the second file system" "$tmp/second" || die "/second is different"
stop_nbdkit

# The same file system for librbd.
rbd_export rbd/guest "$tmp/exported"
dd if="$tmp/exported" of="$tmp/fs" bs=512 skip=2048 count=260096 status=none
if command -v e2fsck >/dev/null; then
  e2fsck -fn "$tmp/fs" >"$tmp/e2fsck" 2>&1 || {
    cat "$tmp/e2fsck" >&2
    die "e2fsck finds errors in what rbd exports"
  }
fi
