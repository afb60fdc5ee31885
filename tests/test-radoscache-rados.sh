#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The filter radoscache over the plugin, which tells what may be cached: of a
# snapshot all, of an image what is read while it holds the exclusive lock.
# librbd writes, rolls back and takes the lock in between.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program qemu-io
requires nbdkit --filter=log null --version
requires_built "$nbd_expect" "$random_ops" \
  "$builddir/filters/radoscache/.libs/nbdkit-radoscache-filter.so"
requires_plugin
start_ceph

# below: how many reads have reached the plugin.
below() { grep -c " Read id=[0-9]* .*\.\.\.\$" "$tmp/log" || :; }
serve() {
  rm -f "$tmp/log"
  start_nbdkit --filter=radoscache --filter=log rados "conf=$ceph_conf" \
    logfile="$tmp/log" "$@"
}
librbd_write() { # IMAGE OFFSET LENGTH BYTE
  qemu-io -f raw "rbd:rbd/$1:conf=$ceph_conf" -c "write -P $4 $2 $3" >/dev/null
}

fill_file "$tmp/data" 8388608 141
rbd import --no-progress "$tmp/data" rbd/disk
rbd_snap rbd/disk@s
rbd import --no-progress "$tmp/data" rbd/other

say "a snapshot is cached"
serve pool=rbd image=disk@s
"$nbd_expect" "$(uri)" read-is 0 1M 97 , read-is 0 1M 97 , \
  run "'$nbd_expect' '$(uri)' read-is 64K 4K 97 , read-is 0 1M 97"
assert_eq 1 "$(below)" "reads of the snapshot below"
# It is kept when nobody has it open.  A snapshot of the same name is not it.
"$nbd_expect" "$(uri)" read-is 64K 4K 97
assert_eq 1 "$(below)" "reads of the snapshot that was opened again"
librbd_write disk 64K 4K 5
"$nbd_expect" "$(uri)" read-is 64K 4K 97
rbd snap rm --no-progress rbd/disk@s
rbd_snap rbd/disk@s
"$nbd_expect" "$(uri)" read-is 64K 4K 5
assert_eq 2 "$(below)" "reads of another snapshot of that name"
librbd_write disk 64K 4K 97
rbd snap rm --no-progress rbd/disk@s
rbd_snap rbd/disk@s
stop_nbdkit

say "an image is cached while its lock is held"
serve pool=rbd
"$nbd_expect" "$(uri disk)" write 0 128K 1 ok , read-is 0 128K 1 , \
  read-is 1M 64K 97 , read-is 1M 64K 97 , \
  run "'$nbd_expect' '$(uri other)' read-is 1M 64K 97 , write 0 4K 9 ok" , \
  read-is 0 4K 1 , write 1M 10 2 ok , read-is 1M 10 2 , read-is 1024K 10 2
assert_eq 2 "$(below)" "reads of the images below"
"$random_ops" --ops 500 --threads 2 --connections 2 --adopt "$(uri other)" \
  >/dev/null
stop_nbdkit

# A rollback does not ask for the lock, so somebody else must take it before.
say "another client takes the lock, writes, and rolls back"
serve pool=rbd image=disk lock=auto
"$nbd_expect" "$(uri)" write 4M 64K 3 ok , read-is 4M 64K 3 , \
  read-is 2M 64K 97 , \
  run "qemu-io -f raw 'rbd:rbd/disk:conf=$ceph_conf' \
    -c 'write -P 5 2M 64K' >/dev/null" , \
  read-is 2M 64K 5 , read-is 4M 64K 3 , \
  run "qemu-io -f raw 'rbd:rbd/disk:conf=$ceph_conf' \
    -c 'write -P 6 2M 64K' >/dev/null" , \
  read-is 2M 64K 6 , write 3M 4K 7 ok , read-is 2M 64K 6 , read-is 2M 64K 6 , \
  run "qemu-io -f raw 'rbd:rbd/disk:conf=$ceph_conf' \
    -c 'write -P 5 5M 64K' >/dev/null && \
    rbd snap rollback --no-progress rbd/disk@s" , \
  read-is 2M 64K 97 , read-is 4M 64K 97 , read-is 3M 4K 97 , \
  write 3M 4K 8 ok , read-is 3M 4K 8 , read-is 2M 64K 97
stop_nbdkit

say "without a lock nothing is cached, unless that is asked for"
serve -r pool=rbd image=disk
"$nbd_expect" "$(uri)" read-is 2M 64K 97 , read-is 2M 64K 97
assert_eq 2 "$(below)" "reads without the lock"
librbd_write disk 2M 64K 4
"$nbd_expect" "$(uri)" read-is 2M 64K 4
stop_nbdkit
serve -r pool=rbd image=disk cache-shared=unsafe
"$nbd_expect" "$(uri)" read-is 2M 64K 4 , read-is 2M 64K 4
assert_eq 1 "$(below)" "reads that are cached unsafely"
stop_nbdkit

say "one image under two names, of which neither has a promise that holds"
serve pool=rbd cache-assume=exclusive cache-mode=writeback
"$nbd_expect" "$(uri disk)" \
  run "'$nbd_expect' '$(uri disk@since=s)' read-is 2M 64K 4 , \
    run \"'$nbd_expect' '$(uri disk)' write 2M 64K 97 ok\" , \
    read-is 2M 64K 97" , write 2M 4K 3 ok , \
  run "'$nbd_expect' '$(uri disk@since=s)' read-is 2M 4K 3" , \
  write 2M 64K 4 ok
stop_nbdkit

say "two servers with caches hand the lock to and fro"
serve pool=rbd image=other lock=auto lock-wait=0
first=$(uri)
start_nbdkit --filter=radoscache rados "conf=$ceph_conf" pool=rbd \
  image=other lock=auto lock-wait=0
timeout 100 "$random_ops" --ops 60 --connections 2 --adopt --max-length 256K \
  "$first" "$(uri)" >/dev/null || die "two servers give different data"
stop_nbdkit

say "a client that is shut out does not go on with what is cached"
rbd import --no-progress "$tmp/data" rbd/lost
serve pool=rbd image=lost
cat >"$tmp/shut-out" <<'SCRIPT'
address=$(rbd lock ls rbd/lost | grep -Eo '[0-9.]+:[0-9]+/[0-9]+' | head -n 1)
[ -n "$address" ] && ceph osd blocklist add "$address" 3600
SCRIPT
"$nbd_expect" "$(uri)" read-is 0 4K 97 , read-is 0 4K 97 , \
  run "bash $tmp/shut-out >$tmp/shut-out.log 2>&1" , \
  until 60 write 1M 4K 1 ESHUTDOWN , until 30 read 0 4K ESHUTDOWN
stop_nbdkit

say "writes are kept while the lock is held, and written before it goes"
rbd import --no-progress "$tmp/data" rbd/kept
writes() { grep -c " Write id=[0-9]* .*\.\.\.\$" "$tmp/log" || :; }
serve pool=rbd image=kept lock=auto cache-mode=writeback cache-dirty-age=3600
# The first write takes the lock.  librbd takes it for its first write.
"$nbd_expect" "$(uri)" write 0 4K 1 ok , write 1M 4K 2 ok , \
  write 1028K 4K 3 ok , read-is 1M 4K 2 , read-is 1028K 4K 3 , \
  run "[ \$(grep -c ' Write id=' $tmp/log) -le 2 ]" , \
  run "qemu-io -f raw 'rbd:rbd/kept:conf=$ceph_conf' \
    -c 'read -P 97 1M 4K' -c 'write -P 4 1M 2K' -c 'read -P 4 1M 2K' \
    -c 'read -P 2 1026K 2K' -c 'read -P 3 1028K 4K' \
    >$tmp/io.log && ! grep -q failed $tmp/io.log" , \
  read-is 1M 2K 4 , read-is 1026K 2K 2 , \
  write 1M 1K 5 ok , write 1025K 1K 6 ok , read-is 1M 1K 5 , \
  read-is 1026K 2K 2 , flush ok , write 2M 4K 7 ok
assert_eq 5 "$(writes)" "writes below"
rbd_export rbd/kept "$tmp/exported"
stop_nbdkit
cp "$tmp/data" "$tmp/model"
while read -r offset length byte; do
  head -c "$length" /dev/zero | tr '\0' "\\$byte" |
    dd of="$tmp/model" bs=64K oflag=seek_bytes seek="$offset" conv=notrunc \
      iflag=fullblock status=none
done <<'EOF'
0 4096 1
1048576 1024 5
1049600 1024 6
1050624 2048 2
1052672 4096 3
2097152 4096 7
EOF
assert_same_bytes "$tmp/model" "$tmp/exported" "what was kept"

say "two servers with write-back hand the lock to and fro"
serve pool=rbd image=other lock=auto lock-wait=0 \
  cache-mode=writeback cache-dirty-age=1
first=$(uri)
start_nbdkit --filter=radoscache rados "conf=$ceph_conf" pool=rbd \
  image=other lock=auto lock-wait=0 \
  cache-mode=writeback cache-dirty-age=3600
# What one of them keeps, the other sees after a flush, or when it writes.
timeout 100 "$random_ops" --ops 60 --connections 2 --adopt --max-length 256K \
  --flush-first "$first" "$(uri)" >/dev/null ||
  die "two servers give different data"
stop_nbdkit

say "block status is kept while the lock is"
rbd create --size 8M rbd/sparse
serve pool=rbd image=sparse lock=auto
"$nbd_expect" "$(uri)" write 4M 64K 3 ok , \
  extents 2M 64K 65536:hole req-one , extents 3M 64K 65536:hole req-one , \
  run "[ \$(grep -c ' Extents id=[0-9]* .*\.\.\.\$' '$tmp/log') -eq 1 ]" , \
  run "qemu-io -f raw 'rbd:rbd/sparse:conf=$ceph_conf' \
    -c 'write -P 5 2M 64K' >/dev/null" , \
  extents 2M 64K 65536:data req-one , write 0 4K 1 ok , \
  extents 2M 64K 65536:data req-one , extents 3M 64K 65536:hole req-one , \
  run "qemu-io -f raw 'rbd:rbd/sparse:conf=$ceph_conf' \
    -c 'write -P 5 3M 64K' >/dev/null" , \
  extents 3M 64K 65536:data req-one
stop_nbdkit

say "random requests with write-back, cache file and all"
cp "$tmp/model" "$tmp/random.model"
serve pool=rbd image=kept cache-mode=writeback cache-size=1M \
  cache-file="$tmp" cache-file-size=4M cache-block=16K
"$random_ops" --ops 1000 --threads 2 --connections 4 \
  --model "$tmp/random.model" "$(uri)" >/dev/null
stop_nbdkit
same_export rbd/kept "$tmp/random.model"

say "what was kept when the lock was lost is not written"
rbd import --no-progress "$tmp/data" rbd/late
serve pool=rbd image=late cache-mode=writeback cache-dirty-age=3600
sed 's,rbd/lost,rbd/late,' "$tmp/shut-out" >"$tmp/shut-out-late"
"$nbd_expect" "$(uri)" write 0 4K 1 ok , read-is 0 4K 1 , \
  run "bash $tmp/shut-out-late >$tmp/shut-out.log 2>&1" , \
  until 60 read 5M 4K ESHUTDOWN , flush ESHUTDOWN
grep -q "4096 bytes that clients have written are lost" "$nbdkit_log" ||
  die "no message about what is lost"
stop_nbdkit
same_export rbd/late "$tmp/data"
