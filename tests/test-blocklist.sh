#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A Ceph client that the cluster has blocklisted: ESHUTDOWN for the NBD clients
# of its images, and a message that says so; nothing is written.  Who comes then
# is served by another Ceph client.

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
  # The lock of a striped object that nobody keeps may have to run out.
  cat >"$tmp/another" <<ANOTHER
for try in {1..90}; do
  "$nbd_expect" "$(uri)" write 2M 64K 4 ok , read-is 2M 64K 4 && exit
  sleep 1
done
exit 1
ANOTHER
  "$nbd_expect" "$(uri)" within 60 , write 0 1M 1 ok , read-is 0 1M 1 , \
    run "bash '$tmp/fence'" , until 60 write 0 4096 2 ESHUTDOWN , \
    write 1M 1M 2 ESHUTDOWN , zero 0 64K ESHUTDOWN , trim 0 64K ESHUTDOWN , \
    read 0 4096 ESHUTDOWN , until 60 flush ESHUTDOWN , flush ESHUTDOWN , \
    until 30 run "wc -l <'$nbdkit_log' >'$tmp/lines'; sleep 3
      wc -l <'$nbdkit_log' | cmp - '$tmp/lines'" , \
    run "bash '$tmp/another'" , \
    write 0 4096 3 ESHUTDOWN , read 0 4096 ESHUTDOWN
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
  "$nbd_expect" "$(uri)" read-is 64K 960K 1 , read-is 1M 1M 0 , \
    read-is 2M 64K 4
  stop_nbdkit
done

# address IMAGE: of the Ceph client that has it open.
address() {
  rbd status --format json "rbd/$1" | jq -r '.watchers[0].address'
}
fence() { ceph osd blocklist add "$1" 3600 >/dev/null 2>&1; }
forgive() { ceph osd blocklist rm "$1" >/dev/null 2>&1; }
# hold IMAGE STEP...: an NBD client that writes to it, stays until `release
# IMAGE`, and then makes these steps.
declare -A held
hold() {
  rm -f "$tmp/$1".{held,go}
  "$nbd_expect" "$(uri "$1")" write 0 64K 1 ok , run "
    touch '$tmp/$1.held'
    while [ -e '$tmp/$1.held' ] && [ ! -e '$tmp/$1.go' ]; do sleep 0.1; done" , \
    "${@:2}" &
  held[$1]=$!
  own "${held[$1]}"
  wait_until 30 [ -e "$tmp/$1.held" ]
}
release() {
  touch "$tmp/$1.go"
  wait "${held[$1]}" || die "the client of $1 found something else"
}
# serves IMAGE STEP...: for somebody who comes now, or soon.
serves() { wait_until 60 "$nbd_expect" "$(uri "$1")" "${@:2}"; }
for i in {1..6}; do
  rbd create --size 16M --object-size 64K "rbd/i$i"
done

say "two images with a Ceph client each"
start_rados pool=rbd clients=2
hold i1 until 60 write 0 4K 2 ESHUTDOWN
hold i2 write 0 4M 3 ok , read-is 0 4M 3
[ "$(address i1)" != "$(address i2)" ] || die "one Ceph client for both"
fence "$(address i1)"
release i1
release i2
stop_nbdkit

# What the old client knows of an image is of the time before, when it is let in
# again, and must not be written any more.
say "many images with one Ceph client, which is shut out for a while"
start_rados pool=rbd clients=1
for i in 3 4 5; do hold i$i until 60 write 0 4K 2 ESHUTDOWN; done
address=$(address i3)
[ "$address" = "$(address i5)" ] || die "more Ceph clients than one"
fence "$address"
serves i3 write 8M 1M 5 ok
# Whoever took the lock has made sure that nothing of the old client can arrive:
# the monitor was told, for its own default time.
grep -rqs "blocklistop\": \"add\", \"addr\": \"$address\"}" \
  "$ceph_dir/log" || die "a lock was taken without blocklisting"
serves i4 write 8M 1M 5 ok
serves i6 write 8M 1M 5 ok
forgive "$address"
for i in 3 4 5; do release i$i; done
[ "$(grep -c "the cluster has blocklisted client" "$nbdkit_log")" = 1 ] ||
  die "not said once"
serves i5 write 8M 1M 5 ok
stop_nbdkit
for i in 3 4 5 6; do
  check_object_map rbd/i$i
  rm -f "$tmp/exported"
  rbd export --no-progress rbd/i$i "$tmp/exported"
  cmp <(head -c 1M "$tmp/exported") <(
    if [ $i != 6 ]; then head -c 64K /dev/zero | tr '\0' '\1'
    else head -c 64K /dev/zero; fi; head -c 960K /dev/zero)
  cmp <(tail -c +8388609 "$tmp/exported" | head -c 1M) \
    <(head -c 1M /dev/zero | tr '\0' '\5')
done
