#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# An OSD that does not answer: opening an image that is on it fails in time,
# and a request for the object map of another image does not wait for it.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program jq
requires /usr/bin/python3 -c 'import nbd'
requires_built "$nbd_expect"
requires_plugin
start_ceph --osds 2

# primary POOL OBJECT: the OSD that has it.
primary() { ceph osd map "$1" "$2" --format json | jq .acting_primary; }

# Pools of one group each: $here is on the first OSD, $there on the second.
for i in {1..20}; do
  make_pool "p$i" 1
  if [ "$(primary "p$i" x)" = 0 ]; then here=p$i; else there=p$i; fi
  [ -z "${here-}" ] || [ -z "${there-}" ] || break
done
make_pool spread
rbd create --size 256M --image-feature layering --data-pool "$there" "$here/a"
rbd create --size 256M --image-feature exclusive-lock,object-map "$here/b"
# An image whose name is on the first OSD, and the header on the second.
for i in {1..30}; do
  rbd create --size 8M --image-feature layering "spread/i$i"
  id=$(rbd info --format json "spread/i$i" | jq -r .id)
  [ "$(primary spread "rbd_id.i$i")" = 0 ] || continue
  [ "$(primary spread "rbd_header.$id")" = 0 ] || break
done
image=i$i
start_rados pool=spread connect-timeout=3
spread=$(uri "$image")
start_rados "pool=$here"
"$nbd_expect" "$(uri b)" write 0 64K 1 ok
rbd_snap "$here/b@s"

osd=$(cat "$ceph_dir"/osd.1.pid)
at_exit kill -CONT "$osd"
kill -STOP "$osd"

say "a header that does not answer"
timeout 15 "$nbd_expect" "$spread" connect fail || die "it does not end"

say "64 MiB in flight, and the map of another image"
/usr/bin/python3 - "$(uri a)" <<'PY' &
import sys, time, nbd
h = nbd.NBD()
h.set_request_block_size(False)
h.connect_uri(sys.argv[1])
data = nbd.Buffer.from_bytearray(bytearray(b"x" * (4 << 20)))
for i in range(16):
    h.aio_pwrite(data, i * (4 << 20))
while True:
    h.poll(1000)
PY
client=$!
own $client
sleep 2
timeout 15 "$nbd_expect" "$(uri b@s)" read-is 0 64K 1 , \
  extents 0 256M "65536:data,$(((256 << 20) - 65536)):hole" , \
  read-is 0 64K 1 || die "b waits for a"
is_running $client || die "a has got an answer"
stop_pid $client KILL
kill -CONT "$osd"
stop_nbdkit
