#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What goes away while it is used: the pool, the image under a key that cannot
# watch it, the server under its clients, the OSD.  Nothing is read as zeros
# that is not known to be zeros, nothing is left behind, nothing hangs.

source "$(dirname "$0")/functions.sh" || exit 1
requires_built "$nbd_expect"
requires_plugin
requires_program jq
start_ceph --cephx

failed="EIO|EINVAL|ESHUTDOWN"

say "a pool that is deleted while it is served is not zeros"
make_pool gone
make_pool data
make_format1_image gone one 8000000 16
rbd create gone/two --size 8M --object-size 64K --data-pool data \
  --image-feature layering
rbd bench gone/two --io-type write --io-size 64K --io-total 1M \
  --io-pattern seq >/dev/null
start_rados pool=gone
"$nbd_expect" "$(uri one)" within 60 , write 0 1M 1 ok , \
  run "ceph osd pool delete gone gone --yes-i-really-really-mean-it \
       >/dev/null 2>&1" , \
  until 30 read 0 4096 "$failed" , read 4M 64K "$failed" , \
  status 0 8000000 "$failed" , write 0 4096 2 "$failed" , \
  trim 0 1M "$failed"
stop_nbdkit
make_pool gone2
rbd create gone2/two --size 8M --object-size 64K --data-pool data \
  --image-feature layering
start_rados -r pool=gone2 image=two
"$nbd_expect" "$(uri)" within 60 , read-is 0 8M 0 , \
  run "ceph osd pool delete data data --yes-i-really-really-mean-it \
       >/dev/null 2>&1" , \
  until 30 read 0 4096 "$failed" , status 0 8M "$failed"
# Which image and which of its pools.
grep -Eq "gone2/two: .*its data pool \(number [0-9]+\) has been deleted" \
  "$nbdkit_log" || die "the log does not name image and pool"
stop_nbdkit
expect_fail "gone2/two: its data pool \(number [0-9]+\) does not exist" \
  "${nbdkit[@]}" -U "$tmp/s" rados "conf=$ceph_conf" gone2/two
make_pool parents
rbd create parents/base --size 8M --image-feature layering
rbd_snap parents/base@s
rbd snap protect parents/base@s
rbd clone parents/base@s gone2/clone --image-feature layering
start_rados -r pool=gone2 image=clone
"$nbd_expect" "$(uri)" within 60 , read-is 0 8M 0 , \
  run "ceph osd pool delete parents parents --yes-i-really-really-mean-it \
       >/dev/null 2>&1" , \
  until 30 read 0 4096 "$failed" , status 0 8M "$failed"
grep -Eq "gone2/clone: .*parent" "$nbdkit_log" ||
  die "the log does not name the clone"
stop_nbdkit
expect_fail "gone2/clone: .*the parent's pool \(number [0-9]+\) does not exist" \
  "${nbdkit[@]}" -U "$tmp/s" rados "conf=$ceph_conf" gone2/clone

say "a key that can only read: a deleted image is not zeros"
ceph auth get-or-create client.reader mon 'allow r' osd 'allow rx' \
  >"$tmp/reader.keyring"
# Object classes, and so locks, need the capability x.
ceph auth get-or-create client.plain mon 'allow r' osd 'allow r' \
  >"$tmp/plain.keyring"
make_format1_image rbd first 8000000 16
rbd create rbd/second --size 8M --object-size 64K --image-feature layering
striper_make rbd third 65536 65536 1 8000000 ||
  skip "rados --striper does not work"
for image in first second third; do
  user=plain
  [ $image != second ] || user=reader
  start_rados -r id=$user keyring="$tmp/$user.keyring" pool=rbd image=$image
  case $image in
    first) remove="rados -p rbd rm first.rbd" ;;
    third) remove="rados -p rbd --striper rm third" ;;
    *) remove="rbd rm --no-progress rbd/$image" ;;
  esac
  # No object is there, before and after.
  "$nbd_expect" "$(uri)" within 60 , read-is 7M 64K 0 , \
    run "$remove >/dev/null" , read 7M 64K "$failed" , \
    status 0 7M "$failed"
  stop_nbdkit
done

say "a key that can only read, without -r: read-only, and it says so"
make_format1_image rbd plain 8000000 16
start_rados id=reader keyring="$tmp/reader.keyring" pool=rbd image=plain
"$nbd_expect" "$(uri)" flag read-only yes , read-is 0 64K 0
grep -Eq "plain.*read-only" "$nbdkit_log" || die "no message about it"
stop_nbdkit

say "the end of the server, with clients connected, leaves nothing behind"
# nbdkit waits for its clients, but does not close their handles any more.
start_rados pool=rbd image=plain
"$nbd_expect" "$(uri)" write 0 4096 1 ok , \
  run "rados -p rbd listwatchers plain.rbd | grep -q watcher" , \
  run "kill $nbdkit_pid; sleep 0.5"
wait_until 15 has_ended "$nbdkit_pid"
! prints watcher rados -p rbd listwatchers plain.rbd ||
  die "the watch is still there"
start_rados pool=rbd image=locked format=striper create=true size=8000000
"$nbd_expect" "$(uri)" write 0 4096 1 ok , run "kill $nbdkit_pid; sleep 0.5"
wait_until 15 has_ended "$nbdkit_pid"
rados -p rbd --striper rm locked || die "the lock is still there"

say "a lock that somebody breaks: requests fail, a new client opens anew"
start_rados pool=rbd image=broken format=striper create=true size=8000000
cat >"$tmp/break" <<BREAK
set -e
info=\$(rados -p rbd lock info broken.0000000000000000 striper.lock)
cookie=\$(jq -r '.lockers[0].cookie' <<<"\$info")
locker=\$(jq -r '.lockers[0].name' <<<"\$info")
rados -p rbd lock break broken.0000000000000000 striper.lock \
  "\$locker" --lock-cookie "\$cookie"
BREAK
# It is noticed at the next renewal, which is every 15 seconds.
"$nbd_expect" "$(uri)" within 60 , write 0 4096 1 ok , \
  run "bash '$tmp/break'" , until 40 write 0 4096 2 ESHUTDOWN , \
  read 0 4096 ESHUTDOWN , \
  run "'$nbd_expect' '$(uri)' read 0 4096 ok , write 0 4096 3 ok"
stop_nbdkit

say "an object of 2 GiB can be mapped"
make_format1_image rbd wide $((4 << 30)) 31
start_rados pool=rbd image=wide
"$nbd_expect" "$(uri)" write 0 1M 1 ok , \
  extents 0 4294967295 1048576:data,4293918719:hole

say "and OSDs take no more than osd_max_object_size of it"
grep -q "wide: .* 2147483648 bytes .* 134217728 .*osd_max_object_size" \
  "$nbdkit_log" || die "no warning at open"
"$nbd_expect" "$(uri)" write 134213632 4096 1 ok , write 128M 4096 1 EIO , \
  read-is 134213632 4096 1 , read-is 128M 1M 0 , write 2G 4096 2 ok
grep -q "pwrite: .*cannot write object .*osd_max_object_size" "$nbdkit_log" ||
  die "it is not said why"
stop_nbdkit
# An image that is smaller than its objects.
make_format1_image rbd narrow $((100 << 20)) 31
start_rados pool=rbd image=narrow
"$nbd_expect" "$(uri)" write 0 4096 1 ok
! grep -q osd_max_object_size "$nbdkit_log" || die "warned in vain"
stop_nbdkit

say "trim behind an object's end does not make it longer"
make_format1_image rbd short 8388608 22
start_rados pool=rbd image=short
"$nbd_expect" "$(uri)" write 0 4096 1 ok , trim 2M 2M ok , \
  zero 1M 3M ok , read-is 4096 4M 0
stop_nbdkit
prefix=$(rbd info short --format json | jq -r .block_name_prefix)
prints "size 4096$" rados -p rbd stat "$prefix.000000000000" ||
  die "the object is not 4096 bytes long any more"

say "names that do not exist leave no memory behind"
start_rados pool=rbd
for ((i = 0; i < 20; i++)); do
  "$nbd_expect" "$(uri "none$i")" connect fail
done
"$nbd_expect" "$(uri short)" read-is 0 4096 1

say "an OSD that does not answer: opening fails in time"
osd=$(cat "$ceph_dir/osd.0.pid")
kill -STOP "$osd"
at_exit "kill -CONT $osd 2>/dev/null || :"
for format in 1 2 striper; do
  start=$SECONDS
  status=0
  timeout 40 "${nbdkit[@]}" -U "$tmp/x.sock" -P "$tmp/x.pid" rados \
    "conf=$ceph_conf" pool=rbd image=short format=$format connect-timeout=3 \
    2>"$tmp/err" || status=$?
  [ "$status" -eq 1 ] || die "format=$format: exit status $status"
  [ $((SECONDS - start)) -le 20 ] ||
    die "format=$format: took $((SECONDS - start)) seconds"
  grep -q "time limit" "$tmp/err" || die "format=$format: $(cat "$tmp/err")"
done
kill -CONT "$osd"
# A slow machine's OSD needs its time to be an OSD again, also for opening.
readable() { "$nbd_expect" "$(uri short)" read-is 0 4096 1 2>/dev/null; }
wait_until 120 readable
