#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A client that Ceph has blocklisted: ESHUTDOWN for the NBD client, and a
# message that says so; nothing is written.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program jq
requires_built "$nbd_expect"
requires_plugin
start_ceph
make_format1_image rbd fenced 8000000 16
rbd create --size 8000000B --object-size 64K rbd/modern

for format in 1 2 striper; do
  if [ $format = 1 ]; then
    start_rados pool=rbd image=fenced
    object=fenced.rbd
  elif [ $format = 2 ]; then
    start_rados pool=rbd image=modern
    object=rbd_header.$(rbd info --format json rbd/modern | jq -r .id)
  else
    start_rados pool=rbd image=striped format=striper create=true \
      size=8000000 object-size=64K
    object=striped.0000000000000000
  fi
  # The server's address: who watches, or who holds the lock.
  cat >"$tmp/fence" <<FENCE
set -e
address=\$(
  { rados -p rbd listwatchers $object;
    rados -p rbd lock info $object striper.lock 2>/dev/null || :; } |
  grep -Eo '127.0.0.1:0/[0-9]+' | head -n 1)
[ -n "\$address" ]
ceph osd blocklist add "\$address" 3600 >/dev/null 2>&1
FENCE
  "$nbd_expect" "$(uri)" within 60 , write 0 1M 1 ok , read-is 0 1M 1 , \
    run "bash '$tmp/fence'" , until 60 write 0 4096 2 ESHUTDOWN , \
    write 1M 1M 2 ESHUTDOWN , zero 0 64K ESHUTDOWN , trim 0 64K ESHUTDOWN , \
    read 0 4096 ESHUTDOWN , until 60 flush ESHUTDOWN , flush ESHUTDOWN , \
    until 30 run "wc -l <'$nbdkit_log' >'$tmp/lines'; sleep 3
      wc -l <'$nbdkit_log' | cmp - '$tmp/lines'"
  grep -Eiq "blocklist" "$nbdkit_log" ||
    die "the log does not say that it is blocklisted"
  ! grep -E '(rbd/[a-z]+):? \1[: ]' "$nbdkit_log" >&2 || die "doubled names"
  # With a line or two for each request, and not again and again.
  [ "$(wc -l <"$nbdkit_log")" -lt 200 ] ||
    die "the log has $(wc -l <"$nbdkit_log") lines"
  stop_nbdkit
  # Another client finds what was acknowledged.
  if [ $format = 1 ]; then
    start_rados pool=rbd image=fenced
  elif [ $format = 2 ]; then
    start_rados -r pool=rbd image=modern
    check_object_map rbd/modern
  else
    # The lock of the dead client may have to run out.
    start_rados -r pool=rbd image=striped format=striper
  fi
  # 2 may have been written just before the fence; nothing else.
  "$nbd_expect" "$(uri)" read-is 64K 960K 1 , read-is 1M 1M 0
  stop_nbdkit
done
