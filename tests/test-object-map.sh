#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Our encodings and the object map against the OSD's object classes, and
# `rbd` as the judge of the maps.  Of an image that is being filled the map
# says a little more than exists, until the next flush or the end.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program rbd rados
rbd_classes=$builddir/tests/rbd-classes
requires_built "$rbd_classes" "$nbd_expect"
requires_plugin
start_ceph

id_of() { rbd info --format json "$1" | sed 's/.*"id":"\([^"]*\)".*/\1/'; }

# Bytes that the map says exist.
used_size() {
  rbd du --format json "$1" | sed 's/.*"used_size":\([0-9]*\).*/\1/'
}

# Says no word where the map is right.
clean_map() {
  local said
  said=$(rbd object-map check --no-progress "$1" 2>&1) ||
    die "rbd object-map check $1: $said"
  [ -z "$said" ] || die "rbd object-map check $1: $said"
  said=$(rbd info "$1" | grep 'flags:' | tr -d '[:space:]')
  assert_eq flags: "$said"
}

rbd create --size 1G methods
"$rbd_classes" rbd methods "rbd_header.$(id_of methods)" ||
  die "the object classes disagree"
clean_map methods

# With three blocks of the map, and with less than one.
for size in 160000 256; do
  rbd create --size "$size"M "image$size"
  clean_map "image$size"
  "$rbd_classes" rbd map "$(id_of "image$size")" $((size / 4)) >"$tmp/out" ||
    die "the map of image$size"
  cat "$tmp/out" >&2
  clean_map "image$size"
  # Objects are what the pool has.
  want=$(rados -p rbd ls | grep -c "^rbd_data.$(id_of "image$size")\\.")
  assert_eq $((want << 22)) "$(used_size "image$size")"
  # Our lock is gone: librbd's writer works, and finds its objects.
  rbd bench --io-type write --io-size 4K --io-total 40K "image$size" \
    >/dev/null
  clean_map "image$size"
done

# Objects of 64 KiB that the map says exist are WANTED..MOST:
# mapped IMAGE WANTED [MOST]
mapped() {
  local n
  n=$(($(used_size "$1") >> 16))
  [ "$n" -ge "$2" ] && [ "$n" -le "${3:-$2}" ] ||
    die "$1: $n objects in the map, and not $2 to ${3:-$2}"
}
# fill_steps N OBJECTS BYTE: steps for nbd-expect
fill_steps() {
  local n
  for ((n = $1; n < $1 + $2; n++)); do
    steps+=(write $((n * 64))K 64K "$3" ok ,)
  done
}

forget_dead_clients 10
rbd create --size 16M --object-size 64K filled
start_rados rbd/filled
steps=()
fill_steps 0 20 1
used="\$(rbd du --format json filled |
  sed 's/.*\"used_size\":\([0-9]*\).*/\1/')"
steps+=(run "[ $used -gt $((20 << 16)) ]" ,
  # What is not there is none the less a hole, and zeros.
  extents 0 2M 1310720:data,15466496:hole , read-is 1280K 64K 0 ,
  # Before the end of the connection, which gives back as well.
  flush ok , run "[ $used -eq $((20 << 16)) ]")
"$nbd_expect" "$(uri)" "${steps[@]}" || die "a sequential writer"
mapped filled 20
clean_map filled

# Two at a time, and trims between what they reserve.
steps=()
fill_steps 20 5 1
fill_steps 100 9 2
fill_steps 25 4 1
steps+=(trim 1M 1M ok , zero 6400K 128K ok , read-is 6400K 128K 0)
"$nbd_expect" "$(uri)" "${steps[@]}" || die "two runs"
stop_nbdkit
mapped filled $((16 + 7))
clean_map filled

# Whoever hands the lock over gives back before.
rbd create --size 16M --object-size 64K handed
start_rados rbd/handed lock=auto
steps=()
fill_steps 0 5 1
steps+=(run "rbd snap create --no-progress rbd/handed@s" ,)
fill_steps 5 4 1
steps+=(run "rbd snap create --no-progress rbd/handed@t")
"$nbd_expect" "$(uri)" "${steps[@]}" || die "a lock that is handed over"
stop_nbdkit
# What came after the snapshot before.
mapped handed@s 5
mapped handed@t 4
mapped handed 0
clean_map handed

# A server that is killed leaves some that do not exist; nobody minds.
start_rados rbd/filled
steps=()
fill_steps 29 12 3
"$nbd_expect" "$(uri)" "${steps[@]}" run "kill -KILL $nbdkit_pid" ||
  die "a third run"
wait "$nbdkit_pid" 2>/dev/null || true
mapped filled $((16 + 7 + 12 + 1)) $((16 + 7 + 12 + 7))
start_rados rbd/filled break-lock=true
steps=()
fill_steps 43 1 3
"$nbd_expect" "$(uri)" "${steps[@]}" extents 2624K 192K \
  131072:hole,65536:data || die "after a kill"
stop_nbdkit
check_object_map rbd/filled
# A rebuild leaves them, but not if there was no map before.
rbd feature disable rbd/filled fast-diff object-map
rbd feature enable rbd/filled object-map fast-diff
rbd object-map rebuild --no-progress rbd/filled
mapped filled $((16 + 7 + 12 + 1))
check_object_map rbd/filled
