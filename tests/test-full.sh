#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A full pool (quota) and a full cluster: ENOSPC within seconds, freeing space
# works while it is full, and writing works again afterwards.  full=wait waits
# as Ceph does by default.

source "$(dirname "$0")/functions.sh" || exit 1
requires_built "$nbd_expect"
requires_plugin
start_ceph
make_pool small
for name in quota waiting full; do
  make_format1_image small $name $((64 << 20)) 20
done
# pool_is full|free, as the OSD map has it.
pool_is() {
  if prints "^pool .*'small'.* flags [^ ]*full" ceph osd dump; then
    [ "$1" = full ]
  else
    [ "$1" = free ]
  fi
}
# Only writes that need more space fail, so each of these goes where there is
# nothing yet.
client() { "$nbd_expect" "$(uri "$1")" within 10 , "${@:2}"; }
# wait_full URI OFFSET: the OSD learns of the new map some time after the mon.
# Until then small writes from OFFSET on succeed.
wait_full() {
  local offset=$2
  wait_until 90 pool_is full
  until "$nbd_expect" "$1" write "$offset" 4096 9 ENOSPC 2>"$tmp/not-yet"; do
    offset=$((offset + 4096))
    [ "$offset" -lt $(($2 + (1 << 20))) ] ||
      die "the OSD never learns that it is full: $(cat "$tmp/not-yet")"
    sleep 0.2
  done
}

say "a pool quota"
start_rados pool=small
client quota write 0 8M 1 ok
ceph osd pool set-quota small max_bytes $((4 << 20)) >/dev/null 2>&1
wait_full "$(uri quota)" $((40 << 20))
client quota write 16M 1M 2 ENOSPC , write 17M 4096 2 ENOSPC , \
  write 18M 4M 2 ENOSPC fua , zero 24M 1M ENOSPC no-hole , \
  read-is 0 8M 1 , read-is 16M 8M 0
grep -Eiq "full|space|quota" "$nbdkit_log" || die "no message about it"
# A server that starts when the pool is full already.
start_rados pool=small image=waiting
client "" write 0 4096 1 ENOSPC , read-is 0 4096 0
stop_nbdkit

say "freeing space while it is full, and then writing"
start_rados pool=small
client quota trim 0 4M ok , zero 4M 4M ok , read-is 0 8M 0
wait_until 90 pool_is free
client quota until 10 write 0 1M 3 ok , read-is 0 1M 3

say "full=wait waits, and goes on when there is room"
first_uri=$(uri quota)
start_rados pool=small image=waiting full=wait
"$nbd_expect" "$first_uri" write 1M 8M 4 ok
wait_full "$first_uri" $((48 << 20))
"$nbd_expect" "$(uri)" within 120 , write 0 4096 5 ok , read-is 0 4096 5 \
  >"$tmp/waiting" 2>&1 &
waiter=$!
own "$waiter"
sleep 4
is_running "$waiter" || die "the write did not wait: $(cat "$tmp/waiting")"
ceph osd pool set-quota small max_bytes 0 >/dev/null 2>&1
wait "$waiter" || die "the write failed: $(cat "$tmp/waiting")"
stop_nbdkit

say "a full cluster"
wait_until 90 pool_is free
start_rados pool=small image=full
client "" write 0 4096 1 ok
# Below what is used already.
ceph osd set-nearfull-ratio 0.0001 >/dev/null 2>&1
ceph osd set-backfillfull-ratio 0.0002 >/dev/null 2>&1
ceph osd set-full-ratio 0.0003 >/dev/null 2>&1
wait_full "$(uri)" $((32 << 20))
client "" write 8M 4096 1 ENOSPC , write 16M 100000 1 ENOSPC , \
  read-is 0 4096 1 , read-is 8M 16M 0
ceph osd set-full-ratio 0.95 >/dev/null 2>&1
ceph osd set-backfillfull-ratio 0.90 >/dev/null 2>&1
ceph osd set-nearfull-ratio 0.85 >/dev/null 2>&1
wait_until 90 pool_is free
client "" until 10 write 8M 4096 7 ok , read-is 8M 4096 7
stop_nbdkit
