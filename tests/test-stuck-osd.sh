#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# An OSD that does not answer: opening an image that is on it fails in time, and
# other images of the server do not wait for it, whatever is in flight.

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
rbd create --size 20G --image-feature layering --data-pool "$there" "$here/a"
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
start_rados "pool=$here" lock=auto clients=1
"$nbd_expect" "$(uri b)" write 0 64K 1 ok
rbd_snap "$here/b@s"

osd=$(cat "$ceph_dir"/osd.1.pid)
at_exit kill -CONT "$osd"
kill -STOP "$osd"

say "a header that does not answer"
timeout 15 "$nbd_expect" "$spread" connect fail || die "it does not end"

# More than librados lets a client have in flight by default: 1024 operations
# and 100 MiB (objecter_inflight_ops, objecter_inflight_op_bytes).
say "448 MiB and 4,096 operations in flight, and another image"
/usr/bin/python3 - "$(uri a)" <<'PY' &
import sys, threading, nbd
def client(start):
    h = nbd.NBD()
    h.set_request_block_size(False)
    h.connect_uri(sys.argv[1])
    start(h)
    while h.aio_in_flight():
        h.poll(-1)
    h.shutdown()
data = nbd.Buffer.from_bytearray(bytearray(b"x" * (32 << 20)))
def write(h):
    for i in range(14):
        h.aio_pwrite(data, i * (32 << 20))
def trim(h):
    for i in range(8):
        h.aio_trim(2 << 30, (i + 1) * (2 << 30))
for start in write, trim:
    threading.Thread(target=client, args=[start]).start()
PY
client=$!
own $client
sleep 3
timeout 20 "$nbd_expect" "$(uri b@s)" read-is 0 64K 1 , \
  extents 0 256M "65536:data,$(((256 << 20) - 65536)):hole" , \
  read-is 0 64K 1 || die "a snapshot of b waits for a"
timeout 20 "$nbd_expect" "$(uri b)" write 1M 32M 2 ok , read-is 1M 32M 2 , \
  trim 1M 32M ok , flush ok || die "b waits for a"
# Others take the lock of b, so what notifies and maintains it goes on, too.
timeout 20 "$nbd_expect" "$(uri b)" write 0 4K 3 ok , \
  run "timeout 10 rbd snap create '$here/b@t' 2>&1" ||
  die "the owner of b does not answer"
is_running $client || die "a has got an answer"
kill -CONT "$osd"
wait $client
stop_nbdkit
