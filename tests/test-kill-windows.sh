#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The server is killed in each window of what it does to a clone with
# snapshots and object maps: after its first change of any object, after its
# second, and so on.  The windows are those of object_change.hpp, copy_up.hpp
# and object_map.hpp, and those of taking the lock.  librbd then finds each request
# done or not done, what was acknowledged, and the snapshots as they were; it
# takes the lock and flattens, and that changes nothing; and so do we.
#
# So is radoscopy, while it makes and removes the snapshot that it copies: the
# windows are those of format2_changes.hpp.  rbd finds the image as it was, and
# removes what is left of the snapshot.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program jq g++
requires_built "$nbd_expect"
requires_built "$builddir/copy/radoscopy"
requires_plugin
echo '#include <rados/librados.hpp>' >"$tmp/probe.cpp"
requires g++ -std=c++20 -fsyntax-only "$tmp/probe.cpp"
g++ -std=c++20 -O1 -Wall -Wextra -Werror -fPIC -shared \
  -o "$tmp/stop-after.so" "$tests_srcdir/stop-after.cpp" -lrados
start_ceph
forget_dead_clients 10

# check_none_missing POOL/IMAGE: the map of the head, as it is in the pool, calls
# no object nonexistent that exists.  (rbd object-map check would set flags.)  For
# images without namespace and data pool.
check_none_missing() {
  local pool=${1%%/*} id prefix names bits object number byte missing=()
  id=$(rbd info --format json "$1" | jq -r .id)
  prefix=$(rbd info --format json "$1" | jq -r .block_name_prefix)
  rados -p "$pool" get "rbd_object_map.$id" "$tmp/raw-map" ||
    die "the object map of $1"
  # A header of a length, with the number of entries in it, and then four
  # objects in a byte, the first in the highest bits
  # (ceph: src/common/bit_vector.hpp).
  bits=$(od -An -tu8 -j 10 -N 8 "$tmp/raw-map")
  names=$(rados -p "$pool" ls) || die "rados ls"
  for object in $(grep "^$prefix\." <<<"$names"); do
    # Of one that only snapshots have, the name is listed.
    if ! rados -p "$pool" stat "$object" >/dev/null 2>"$tmp/stat.err"; then
      grep -q "No such file" "$tmp/stat.err" || die "$(cat "$tmp/stat.err")"
      continue
    fi
    number=$((16#${object##*.}))
    byte=
    if ((number < bits)); then
      byte=$(od -An -tu1 -j $((18 + number / 4)) -N 1 "$tmp/raw-map")
    fi
    [ -n "$byte" ] || die "the object map of $1 is for $bits objects"
    [ $((byte >> (6 - number % 4 * 2) & 3)) -ne 0 ] || missing+=("$number")
  done
  [ "${#missing[@]}" -eq 0 ] || die "the object map of $1 lacks ${missing[*]}"
}

# Eight objects are the parent's, six are behind the overlap; of these, one
# exists.
object=65536
random_file "$tmp/parent" $((8 * object)) 3
rbd import --no-progress --object-size $object "$tmp/parent" rbd/parent
rbd_snap rbd/parent@s
# make_image NAME
make_image() {
  rbd clone --rbd-default-clone-format 2 --object-size $object \
    --stripe-unit $object --stripe-count 1 rbd/parent@s "rbd/$1"
  rbd resize --no-progress --size $((14 * object))B "rbd/$1"
  "$nbd_expect" "$(uri "$1")" write $((9 * object)) $object 9 ok
  rbd_snap "rbd/$1@one"
  rbd_snap "rbd/$1@two"
}
# One for each: a copy-up with a write, a first write, a removal, an object of
# the parent's that is hidden, two first writes that follow each other, of which
# the second reserves objects, and a flush, which gives them back.
# requests NAME: NAME.$n exists when n of them are acknowledged.
requests() {
  "$nbd_expect" "$(uri "$1")" \
    write $((object + 1000)) 5000 1 ok , run "touch '$tmp/$1.1'" , \
    write $((8 * object + 7)) 100 2 ok , run "touch '$tmp/$1.2'" , \
    trim $((9 * object)) $object ok , run "touch '$tmp/$1.3'" , \
    trim $((2 * object)) $object ok , run "touch '$tmp/$1.4'" , \
    write $((10 * object)) 100 2 ok , run "touch '$tmp/$1.5'" , \
    write $((11 * object)) 100 2 ok , run "touch '$tmp/$1.6'" , \
    flush ok , run "touch '$tmp/$1.7'"
}

say "the server without a fault"
start_rados pool=rbd
server=$nbdkit_pid
server_log=$nbdkit_log
make_image whole
rbd_export rbd/whole "$tmp/before"
cp "$tmp/before" "$tmp/state0"
put() { dd of="$tmp/$1" bs=1 seek="$2" conv=notrunc status=none; }
fill_file "$tmp/ones" 5000 001
fill_file "$tmp/twos" 100 002
cp "$tmp/state0" "$tmp/state1"
put state1 $((object + 1000)) <"$tmp/ones"
cp "$tmp/state1" "$tmp/state2"
put state2 $((8 * object + 7)) <"$tmp/twos"
cp "$tmp/state2" "$tmp/state3"
dd if=/dev/zero of="$tmp/state3" bs=$object seek=9 count=1 conv=notrunc \
  status=none
cp "$tmp/state3" "$tmp/state4"
dd if=/dev/zero of="$tmp/state4" bs=$object seek=2 count=1 conv=notrunc \
  status=none
cp "$tmp/state4" "$tmp/state5"
put state5 $((10 * object)) <"$tmp/twos"
cp "$tmp/state5" "$tmp/state6"
put state6 $((11 * object)) <"$tmp/twos"
cp "$tmp/state6" "$tmp/state7"
requests whole
same_export rbd/whole "$tmp/state7" "all requests"
socket_of_all=$socket

say "killed after each change"
good=("${nbdkit[@]}")
windows=0
for ((n = 1; n <= 60; n++)); do
  socket=$socket_of_all
  make_image "w$n"
  nbdkit=("$builddir/run" env "LD_PRELOAD=$tmp/stop-after.so" STOP_AFTER=$n
    nbdkit)
  start_rados pool=rbd
  nbdkit=("${good[@]}")
  if requests "w$n" >"$tmp/requests" 2>&1; then
    # All that is left is to give the lock back.
    break
  fi
  wait_until 20 has_ended "$nbdkit_pid"
  wait "$nbdkit_pid" 2>/dev/null || [ $? -eq 137 ] ||
    die "the server ends in another way: $(cat "$nbdkit_log")"
  windows=$n
done
say "$windows windows"
# The lock and that of the map, 8 for the copy-up, 2 for each first write, 3 for
# the removal, 8 for the object that is hidden, 1 for the flush.
[ "$windows" -eq 28 ] || die "there are $windows windows"

say "... as librbd finds it, and we"
unwatched() {
  rbd status --format json "$1" | jq -e '.watchers == []' >/dev/null
}
wait_until 60 unwatched "rbd/w$windows"
socket=$socket_of_all
for ((n = 1; n <= windows; n++)); do
  done=0
  while [ -e "$tmp/w$n.$((done + 1))" ]; do done=$((done + 1)); done
  check_none_missing "rbd/w$n"
  rbd_export "rbd/w$n" "$tmp/now"
  cmp -s "$tmp/now" "$tmp/state$done" ||
    cmp -s "$tmp/now" "$tmp/state$((done + 1))" ||
    die "killed after $n changes, $done requests were acknowledged"
  for snap in one two; do
    same_export "rbd/w$n@$snap" "$tmp/before" "$n changes"
  done
  rbd flatten --no-progress "rbd/w$n"
  same_export "rbd/w$n" "$tmp/now" "$n changes, flattened"
  for snap in one two; do
    same_export "rbd/w$n@$snap" "$tmp/before" "$n changes, flattened"
  done
  requests "w$n"
  same_export "rbd/w$n" "$tmp/state7" "$n changes, and again"
  check_killed_maps "rbd/w$n" "rbd/w$n@one" "rbd/w$n@two"
done
nbdkit_pid=$server
nbdkit_log=$server_log
stop_nbdkit

say "radoscopy, killed after each change that its snapshot makes"
# Four objects, of which the first changes after the first snapshot.
head -c $((4 * object)) "$tmp/parent" >"$tmp/source"
copies=0
others=$(rados -p rbd ls | grep -c "^rbd_object_map\.")
for ((n = 1; n <= 40; n++)); do
  rbd import --no-progress --object-size $object "$tmp/source" "rbd/c$n"
  rbd_snap "rbd/c$n@before"
  rbd bench --io-type write --io-size $object --io-total $object "rbd/c$n" \
    >/dev/null 2>&1
  rbd_export "rbd/c$n" "$tmp/changed$n"
  status=0
  "$builddir/run" env "LD_PRELOAD=$tmp/stop-after.so" STOP_AFTER=$n \
    radoscopy "rados:rbd/c$n?conf=$ceph_conf" "$tmp/copied" \
    2>"$tmp/copy.log" || status=$?
  if [ "$status" -eq 0 ]; then
    others=$((others + 2))
    break
  fi
  [ "$status" -eq 137 ] || die "radoscopy: $status: $(cat "$tmp/copy.log")"
  copies=$n
done
say "$copies windows"
# Making it: the lock, that of the map, the header, its map, the map of the head,
# the lock again; removing it: the lock, the trash, that of the map, the map of
# the head, its map, the header, the lock.
[ "$copies" -eq 13 ] || die "there are $copies windows"
wait_until 60 unwatched "rbd/c$copies"
for ((n = 1; n <= copies; n++)); do
  same_export "rbd/c$n" "$tmp/changed$n" "$n changes"
  for snap in $(rbd snap ls --all --format json "rbd/c$n" |
    jq -r '.[] | select(.name != "before") | .id'); do
    rbd snap rm --snap-id "$snap" "rbd/c$n" 2>"$tmp/rm.log" ||
      die "rbd snap rm: $(cat "$tmp/rm.log")"
  done
  check_killed_maps "rbd/c$n"
  assert_eq 0 "$(rbd diff --whole-object --from-snap before \
    --format json "rbd/c$n" | jq -r '.[].offset' | xargs)" "$n changes"
done
# Of the head and of that snapshot.
maps=$(rados -p rbd ls | grep -c "^rbd_object_map\.") || die "rados ls"
assert_eq $((others + 2 * copies)) "$maps" "object maps"
