#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcopy writes whole blocks of the size that the destination prefers, also
# where the source has a few KiB of data.
#
# Versions: nbdkit 1.32.5, libnbd 1.14.2 (Debian 12).
#
# The preferred block size is a hint for speed.  One expects it to shape requests,
# and the copy to be as sparse as its source.  nbdcopy takes it for the smallest
# piece of zeros that is worth to be left out: 16 pieces of 4 KiB, one in each
# 4 MiB, take 64 MiB at a server that prefers 4 MiB, and 64 KiB at one that says
# nothing.
#
# Seen:
#   without a preference: 65536 bytes
#   preferring 4 MiB: 67108864 bytes

source "$(dirname "$0")/packages.bash" || exit 1
unpack bookworm nbdkit=1.32.5-1 libnbd-bin=1.14.2-1

truncate -s 64M "$tmp/root/tmp/source"
for ((i = 0; i < 16; i++)); do
  head -c 4096 /dev/zero | tr '\0' x |
    dd of="$tmp/root/tmp/source" bs=4096 seek=$((i * 1024)) conv=notrunc \
      status=none
done
# copied [FILTER PARAMETER...]: bytes that the copy takes on the disk.
copied ()
{
  rm -f "$tmp/root/tmp/copy"
  truncate -s 64M "$tmp/root/tmp/copy"
  run nbdkit -U - ${1-} file /tmp/copy "${@:2}" --run '
    nbdkit -U - file /tmp/source --run "nbdcopy \"\$uri\" \"$uri\""'
  du --block-size=1 "$tmp/root/tmp/copy" | cut -f 1
}
without=$(copied)
preferring=$(copied --filter=blocksize-policy blocksize-preferred=4M \
  blocksize-minimum=1 blocksize-maximum=32M)
echo "without a preference: $without bytes"
echo "preferring 4 MiB: $preferring bytes"
[ "$preferring" -ge $((16 * without)) ] ||
  changed "the copy is as sparse as its source"
