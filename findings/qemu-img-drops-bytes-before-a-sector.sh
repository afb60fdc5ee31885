#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# qemu-img convert leaves out bytes where an NBD server's data begins inside of
# a sector of 512 bytes.
#
# Versions: qemu-img 7.2 (Debian 12); the server is nbdkit 1.32.5.
#
# The NBD protocol gives block status in bytes, and nbdkit's memory plugin and
# others do.  One expects a client that works in larger steps to round what is
# data outwards.  qemu-img rounds the start of data up instead: here bytes
# 1000 to 1599 are data and all else is a hole, and bytes 1000 to 1023 are
# zeros in the copy.  It exits with 0 and says nothing.
#
# Seen:
#   qemu-img version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)
#   source: 600 bytes of data, copy: 576 bytes of data

source "$(dirname "$0")/packages.bash" || exit 1
unpack bookworm nbdkit=1.32.5-1 \
  qemu-utils=1:7.2+dfsg-7+deb12u18+b3

cat >"$tmp/root/tmp/server" <<'SERVER'
case $1 in
  get_size) echo 1M ;;
  can_extents) exit 0 ;;
  extents)
    echo 0 1000 hole,zero
    echo 1000 600
    echo 1600 1046976 hole,zero
    ;;
  pread) dd if=/tmp/disk bs=1 skip=$4 count=$3 status=none ;;
  *) exit 2 ;;
esac
SERVER
chmod +x "$tmp/root/tmp/server"
truncate -s 1M "$tmp/root/tmp/disk"
head -c 600 /dev/zero | tr '\0' x |
  dd of="$tmp/root/tmp/disk" bs=1 seek=1000 conv=notrunc status=none

run qemu-img --version | head -n 1
run nbdkit -U - sh /tmp/server --run \
  'qemu-img convert -f raw -O raw "$uri" /tmp/copy'
count () { tr -dc x <"$tmp/root/tmp/$1" | wc -c; }
echo "source: $(count disk) bytes of data, copy: $(count copy) bytes of data"
[ "$(count disk)" -eq 600 ] && [ "$(count copy)" -eq 576 ] ||
  changed "the copy does not lack bytes 1000 to 1023"
