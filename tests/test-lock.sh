#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The exclusive lock of RBD format 2: kept, handed over, refused, lost, and
# taken from the dead, beside librbd's clients.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program jq qemu-io
requires_built "$random_ops" "$nbd_expect"
requires_plugin
start_ceph
forget_dead_clients 15
size=16000000

# locker IMAGE: who has the lock, as "client.N address", or nothing.
locker() {
  rbd lock ls --format json "$1" |
    jq -r '.[] | .locker + " " + .address' | head -n 1
}
# librbd IMAGE COMMAND...: qemu-io commands through librbd.
librbd() {
  local image=$1 arguments=() c
  shift
  for c; do arguments+=(-c "$c"); done
  qemu-io -f raw "${arguments[@]}" "rbd:$image:conf=$ceph_conf"
}

rbd create --size "${size}B" --object-size 1M rbd/kept
rbd create --size "${size}B" --object-size 1M --image-feature layering rbd/plain

say "lock=exclusive: kept while a client is there, and others are refused"
start_rados pool=rbd
first=$(uri kept)
first_log=$nbdkit_log
not_locked rbd/kept || die "locked without a client"
"$nbd_expect" "$first" write 0 4096 1 ok , \
  run "rbd lock ls --format json rbd/kept >'$tmp/lock'" , \
  run "rbd status --format json rbd/kept >'$tmp/status'" , \
  run "! rbd snap create --no-progress rbd/kept@no 2>'$tmp/snap'" , \
  run "! rbd bench --io-type write --io-size 4K --io-total 4K rbd/kept >'$tmp/bench' 2>&1" , \
  write 4096 4096 2 ok , read-is 0 4096 1 , read-is 4096 4096 2
assert_eq 1 "$(jq length "$tmp/lock")" "locks"
assert_match '^auto [0-9]+$' "$(jq -r '.[0].id' "$tmp/lock")" "the cookie"
assert_eq "$(jq -r '.[0].address' "$tmp/lock")" \
  "$(jq -r '.watchers[0].address' "$tmp/status")" "owner and watcher"
assert_eq "auto $(jq -r '.watchers[0].cookie' "$tmp/status")" \
  "$(jq -r '.[0].id' "$tmp/lock")" "the cookie"
assert_match 'read-only file system' "$(cat "$tmp/snap")" "rbd snap create"
assert_match 'read-only file system' "$(cat "$tmp/bench")" "rbd bench"
wait_until 10 not_locked rbd/kept
rbd_snap rbd/kept@yes

say "a second server cannot open it, and says who has it"
start_rados pool=rbd
second=$(uri kept)
second_log=$nbdkit_log
"$nbd_expect" "$first" write 0 4096 3 ok , \
  run "'$nbd_expect' '$second' connect fail" , \
  run "rbd lock ls --format json rbd/kept >'$tmp/lock'"
grep -F "$(jq -r '.[0].address' "$tmp/lock")" "$second_log" |
  grep -F "$(jq -r '.[0].locker' "$tmp/lock")" | grep -q "rbd/kept" ||
  die "the message does not name the owner: $(cat "$second_log")"
"$nbd_expect" "$second" read-is 0 4096 3 , write 0 4096 4 ok
stop_nbdkit
# Reading needs no lock.
start_nbdkit -r rados "conf=$ceph_conf" pool=rbd
"$nbd_expect" "$first" write 0 4096 5 ok , \
  run "'$nbd_expect' '$(uri kept)' read-is 0 4096 5 , write 0 1 1 EPERM"
stop_nbdkit

say "lock=none; a lock that is not librbd's"
start_rados pool=rbd lock=none
"$nbd_expect" "$(uri kept)" connect fail
grep -q "lock=none" "$nbdkit_log" || die "no reason"
"$nbd_expect" "$(uri plain)" write 0 4096 1 ok , read-is 0 4096 1
stop_nbdkit
# Whether it is for reading only is not known at start.
for readonly in '' -r; do
  start_nbdkit $readonly rados "conf=$ceph_conf" pool=rbd image=kept lock=none
  if [ -n "$readonly" ]; then
    "$nbd_expect" "$(uri)" read 0 4096 ok
  else
    "$nbd_expect" "$(uri)" connect fail
    grep -q "lock=none" "$nbdkit_log" || die "no reason"
  fi
  stop_nbdkit
done
rbd lock add rbd/kept mine
start_rados pool=rbd break-lock=true
"$nbd_expect" "$(uri kept)" connect fail
grep -q "rbd/kept.*lock" "$nbdkit_log" || die "no reason: $(cat "$nbdkit_log")"
stop_nbdkit
rbd lock rm rbd/kept mine "$(rbd lock ls --format json rbd/kept |
  jq -r '.[0].locker')"

say "lock=auto: handed over in both directions while both write"
rbd create --size "${size}B" --object-size 1M rbd/both
start_rados pool=rbd lock=auto
auto=$(uri both)
truncate -s $size "$tmp/model"
rm -f "$tmp/stop"
"$random_ops" --ops 1000000 --stop-file "$tmp/stop" --threads 2 \
  --connections 2 --batch 4 --max-length 128K --boundaries 4096,1M \
  --region 0+8000000 --model "$tmp/model" "$auto" >"$tmp/io.out" 2>&1 &
io=$!
for n in 1 2 3 4; do
  librbd rbd/both "write -P $((n + 10)) $((8 + n))M 300k" >/dev/null
  rbd_snap rbd/both@during$n
  rbd_export rbd/both@during$n "$tmp/during$n"
done
: >"$tmp/stop"
wait "$io" || {
  cat "$tmp/io.out" >&2
  die "our writer failed"
}
for n in 1 2 3 4; do
  "$nbd_expect" "$auto" read-is $(((8 + n) << 20)) 300K $((n + 10)) , \
    write $(((8 + n) << 20)) 4096 $n ok
done
stop_nbdkit
not_locked rbd/both || die "still locked"
check_object_map rbd/both
for n in 1 2 3 4; do
  same_export rbd/both@during$n "$tmp/during$n"
  check_object_map rbd/both@during$n
done

say "lock=auto: rbd bench takes it, and we take it back"
start_rados pool=rbd image=kept lock=auto lock-wait=1
"$nbd_expect" "$(uri)" write 0 4096 6 ok , \
  run "rbd bench --io-type write --io-size 4K --io-total 200K --io-threads 2 --io-pattern seq rbd/kept >/dev/null" , \
  write 15M 4096 7 ok , read-is 15M 4096 7 , \
  run "rbd resize --no-progress --size 20M rbd/kept" , \
  run "rbd bench --io-type write --io-size 4K --io-total 200K --io-threads 2 --io-pattern rand rbd/kept >/dev/null" , \
  write 0 4096 8 ok , read-is 0 4096 8
# While a bench writes all the time, so does a client of ours.
rbd bench --io-type write --io-size 4K --io-total 40M --io-threads 2 \
  --io-pattern rand rbd/kept >"$tmp/bench" 2>&1 &
bench=$!
own "$bench"
for n in 1 2 3 4 5 6; do
  "$nbd_expect" "$(uri)" write 19M 4096 $n ok , zero 18M 1M ok
  [ $n -ne 2 ] || is_running "$bench" ||
    die "the bench ended too early: $(cat "$tmp/bench")"
done
wait "$bench" || die "rbd bench: $(cat "$tmp/bench")"
stop_nbdkit
check_object_map rbd/kept

say "a damaged object map is given up, and named invalid"
rbd create --size "${size}B" --object-size 1M rbd/damaged
map=rbd_object_map.$(rbd info --format json rbd/damaged | jq -r .id)
start_rados pool=rbd image=damaged
"$nbd_expect" "$(uri)" write 0 4096 1 ok , \
  run "rados -p rbd put $map /etc/passwd" , \
  write 1M 4096 2 ok , write 2M 4096 3 ok , zero 0 1M ok , \
  read-is 0 4096 0 , read-is 1M 4096 2 , read-is 2M 4096 3 , \
  extents 0 4M 1048576:hole,4096:data,1044480:hole,4096:data,2093056:hole
stop_nbdkit
prints "object map invalid" rbd info rbd/damaged || die "it is not invalid"
# It is not believed either.
start_rados pool=rbd image=damaged
"$nbd_expect" "$(uri)" read-is 1M 4096 2 , write 3M 4096 4 ok , \
  read-is 3M 4096 4
stop_nbdkit
rbd object-map rebuild --no-progress rbd/damaged
check_object_map rbd/damaged
start_rados pool=rbd image=damaged
"$nbd_expect" "$(uri)" write 4M 4096 5 ok , read-is 3M 4096 4
stop_nbdkit
check_object_map rbd/damaged

say "... and so is that of a snapshot, or of a parent"
rbd create --size 4M --object-size 64K rbd/base
start_rados pool=rbd
"$nbd_expect" "$(uri base)" write 0 512K 1 ok
rbd_snap rbd/base@s
rbd clone --rbd-default-clone-format 2 --object-size 64K rbd/base@s rbd/above
rbd_snap rbd/above@s
"$nbd_expect" "$(uri above)" write 0 4096 2 ok
check_object_map rbd/above rbd/above@s rbd/base@s
snapshot_map() {
  local id snap
  id=$(rbd info --format json "$1" | jq -r .id)
  snap=$(rbd snap ls --format json "$1" | jq -r '.[0].id')
  printf 'rbd_object_map.%s.%016x' "$id" "$snap"
}
rados -p rbd put "$(snapshot_map rbd/above)" /etc/passwd
"$nbd_expect" "$(uri above)" write 64K 4096 3 ok , read-is 64K 4096 3 , \
  read-is 0 4096 2 , read-is 69632 4096 1
prints "object map invalid" rbd info rbd/above@s || die "it is not invalid"
check_object_map rbd/above
"$nbd_expect" "$(uri above@s)" read-is 0 512K 1 , \
  extents 0 4M 524288:data,3670016:hole
rados -p rbd put "$(snapshot_map rbd/base)" /etc/passwd
stop_nbdkit
start_rados pool=rbd
"$nbd_expect" "$(uri above)" read-is 128K 384K 1 , read-is 512K 512K 0 , \
  write 128K 4096 4 ok , read-is 132K 4096 1
"$nbd_expect" "$(uri above@s)" read-is 0 512K 1 , read-is 512K 512K 0
"$nbd_expect" "$(uri base@s)" read-is 0 512K 1 , read-is 512K 512K 0
stop_nbdkit

say "lock=auto: two of our servers on one image"
rbd create --size "${size}B" --object-size 256K rbd/two
random_file "$tmp/parent" $size 4
rbd import --no-progress --object-size 1M "$tmp/parent" rbd/parent
rbd_snap rbd/parent@s
rbd clone --rbd-default-clone-format 2 --object-size 256K --stripe-unit 256K \
  --stripe-count 1 rbd/parent@s rbd/clone
rbd_snap rbd/clone@before
start_rados pool=rbd lock=auto lock-wait=1
one=$socket
one_pid=$nbdkit_pid
start_rados pool=rbd lock=auto lock-wait=1
for image in two clone; do
  rm -f "$tmp/model"
  if [ $image = two ]; then
    truncate -s $size "$tmp/model"
  else
    cp "$tmp/parent" "$tmp/model"
  fi
  timeout 120 "$random_ops" --ops 400 --threads 2 --connections 2 --batch 4 \
    --max-length 128K --boundaries 4096,256K --model "$tmp/model" \
    "$(socket=$one uri $image)" "$(uri $image)" >"$tmp/io.out" 2>&1 || {
    cat "$tmp/io.out" >&2
    die "two servers on one image"
  }
  same_export rbd/$image "$tmp/model"
done
stop_nbdkit
nbdkit_pid=$one_pid
stop_nbdkit
same_export rbd/clone@before "$tmp/parent"
check_object_map rbd/two rbd/clone rbd/clone@before

say "lock=auto: an owner that refuses"
rbd create --size 4M rbd/refused
start_rados pool=rbd image=refused lock=auto
waiting=$(uri)
"$nbd_expect" "${first/kept/refused}" write 0 4096 1 ok , \
  run "'$nbd_expect' '$waiting' read-is 0 4096 1 , write 0 4096 2 EPERM , read-is 0 4096 1"
"$nbd_expect" "$waiting" write 0 4096 3 ok , read-is 0 4096 3
stop_nbdkit

say "a lock that is taken away: nothing is written any more"
rbd create --size 4M rbd/lost
start_rados pool=rbd image=lost
"$nbd_expect" "$(uri)" write 0 4096 1 ok , \
  run "rbd lock rm rbd/lost \"\$(rbd lock ls --format json rbd/lost | jq -r '.[0].id')\" \"\$(rbd lock ls --format json rbd/lost | jq -r '.[0].locker')\"" , \
  until 30 write 0 4096 2 ESHUTDOWN , \
  write 1M 4096 2 ESHUTDOWN , zero 0 4M ESHUTDOWN
stop_nbdkit
librbd rbd/lost "read -P 1 0 4096" >"$tmp/out"
assert_no_match "verification failed" "$(cat "$tmp/out")" "what was written"
check_object_map rbd/lost

say "a dead owner, and one that only seemed dead"
rbd create --size 4M rbd/dead
start_rados pool=rbd image=dead
dead=$(uri)
dead_pid=$nbdkit_pid
mkfifo "$tmp/go"
# Open for both, so that nobody waits for the other end.
exec {go}<>"$tmp/go"
"$nbd_expect" "$dead" write 0 4096 1 ok , run "read -r _ <'$tmp/go'" , \
  until 60 write 0 4096 2 ESHUTDOWN , write 1M 4096 2 ESHUTDOWN \
  >"$tmp/dead.out" 2>&1 &
client=$!
wait_until 20 is_locked rbd/dead
owner=$(locker rbd/dead)
kill -STOP "$dead_pid"
start_rados pool=rbd image=dead break-lock=true
# At first it counts as alive.
start_rados pool=rbd image=dead
"$nbd_expect" "$(uri)" connect fail
stop_nbdkit
socket=${socket%/*}/nbdkit$((${#nbdkit_pids[@]} - 2)).sock
nbdkit_pid=${nbdkit_pids[${#nbdkit_pids[@]} - 2]}
"$nbd_expect" "$(uri)" within 60 , read-is 0 4096 1 , write 0 4096 7 ok , \
  run "kill -CONT $dead_pid; echo go >'$tmp/go'" , \
  run "while kill -0 $client 2>/dev/null; do sleep 0.1; done" , \
  read-is 0 4096 7 , read-is 1M 4096 0
wait "$client" || die "the old owner: $(cat "$tmp/dead.out")"
prints "^${owner#* } " ceph osd blocklist ls ||
  die "the dead owner was not blocklisted"
check_object_map rbd/dead
