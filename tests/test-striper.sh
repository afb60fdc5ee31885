#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Objects of libradosstriper.  The oracle is `rados --striper`, which is
# libradosstriper, in both directions, with unusual layouts.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program nbdcopy jq
prints "--striper" rados --help || skip "rados has no --striper"
requires_built "$nbd_expect" "$random_ops"
requires_plugin
start_ceph

size=7654321
random_file "$tmp/data" $size 3

say "written by libradosstriper, read by the plugin"
striper_put rbd plain "$tmp/data"
start_rados pool=rbd image=plain format=striper
"$nbd_expect" "$(uri)" size $size , description "[Ss]trip"
nbd_get "" "$tmp/got"
assert_same_bytes "$tmp/data" "$tmp/got" "a striper object"
stop_nbdkit

# contents NAME: every RADOS object of a striped object, and its checksum.
contents() {
  local object
  rados -p rbd ls | grep "^$1\.[0-9a-f]\{16\}$" | sort |
    while read -r object; do
      printf '%s ' "${object#"$1"}"
      rados -p rbd get "$object" - | sha256sum
    done
}

# OBJECT_SIZE:STRIPE_UNIT:STRIPE_COUNT
layouts="65536:4096:3 1048576:65536:5 12000:3000:7 4096:512:17 100000:100000:2
         4194304:4194304:1 7:7:50 196608:65536:11 65536:65536:2"
for layout in $layouts; do
  IFS=: read -r object_size unit count <<<"$layout"
  bytes=$((object_size * 12 + 321))
  [ $bytes -le $size ] || bytes=$size
  head -c $bytes "$tmp/data" >"$tmp/part"
  say "layout $layout, $bytes bytes"

  # libradosstriper writes, the plugin reads.
  striper_make rbd "theirs$layout" "$object_size" "$unit" "$count"
  striper_put rbd "theirs$layout" "$tmp/part"
  assert_eq $bytes "$(striper_size rbd "theirs$layout")" "striper's size"
  [ $((unit % 65536)) -ne 0 ] || contents "theirs$layout" >"$tmp/theirs"
  start_rados pool=rbd image="theirs$layout" format=striper
  nbd_get "" "$tmp/got"
  assert_same_bytes "$tmp/part" "$tmp/got" "written by libradosstriper"
  # The plugin changes it, libradosstriper reads.
  cp "$tmp/part" "$tmp/model"
  "$random_ops" --ops 300 --max-length 300000 \
    --boundaries "$object_size,$unit" --model "$tmp/model" "$(uri)" >/dev/null
  stop_nbdkit
  striper_get rbd "theirs$layout" "$tmp/got"
  assert_same_bytes "$tmp/model" "$tmp/got" "changed by the plugin"

  # libradosstriper's own interface makes only multiples of 64 KiB, and so
  # does the plugin, but both use any.
  [ $((unit % 65536)) -eq 0 ] || continue
  # The plugin makes and writes, libradosstriper reads: the same bytes in
  # objects of the same names.
  start_rados pool=rbd image="ours$layout" format=striper create=true \
    size=$bytes object-size="$object_size" stripe-unit="$unit" \
    stripe-count="$count"
  nbd_put "$tmp/part" ""
  stop_nbdkit
  assert_eq $bytes "$(striper_size rbd "ours$layout")" "striper's size"
  striper_get rbd "ours$layout" "$tmp/got"
  assert_same_bytes "$tmp/part" "$tmp/got" "written by the plugin"
  first="ours$layout.0000000000000000"
  assert_eq "$object_size $unit $count" "$(
    for name in object_size stripe_unit stripe_count; do
      rados -p rbd getxattr "$first" striper.layout.$name
      echo
    done | xargs)" "layout in the attributes"
  contents "ours$layout" >"$tmp/ours"
  assert_same_bytes "$tmp/theirs" "$tmp/ours" "the objects"
done

say "removing the data never removes the attributes"
start_rados pool=rbd image="ours1048576:65536:5" format=striper
"$nbd_expect" "$(uri)" zero 0 $size ok , trim 0 $size ok , \
  read-is 0 $size 0 , extents 0 $size $size:hole
stop_nbdkit
assert_eq $size "$(striper_size rbd "ours1048576:65536:5")" "size after trim"
striper_get rbd "ours1048576:65536:5" "$tmp/got"
truncate -s $size "$tmp/zeros"
# libradosstriper gives nothing, or zeros, for objects that are not there.
truncate -s $size "$tmp/got"
assert_same_bytes "$tmp/zeros" "$tmp/got" "trimmed object"

say "growing: size= makes it longer, as a write does, and never shorter"
start_rados pool=rbd image="theirs12000:3000:7" format=striper size=1M
"$nbd_expect" "$(uri)" size 1M , write end-3000 3000 104 ok
stop_nbdkit
assert_eq $((1 << 20)) "$(striper_size rbd "theirs12000:3000:7")" "striper's size"
striper_get rbd "theirs12000:3000:7" "$tmp/got"
assert_eq $((1 << 20)) "$(stat -c %s "$tmp/got")" "size of what it gets"
head -c 3000 /dev/zero | tr '\0' h >"$tmp/wanted"
tail -c 3000 "$tmp/got" >"$tmp/end"
assert_same_bytes "$tmp/wanted" "$tmp/end" "the new end"
start_rados pool=rbd image="theirs12000:3000:7" format=striper size=1000
"$nbd_expect" "$(uri)" size 1M
stop_nbdkit
assert_eq $((1 << 20)) "$(striper_size rbd "theirs12000:3000:7")" "striper's size"

say "the lock"
first=plain.0000000000000000
lockers() {
  rados -p rbd lock info "$first" striper.lock 2>/dev/null |
    jq -r '.type + " " + (.lockers | length | tostring)' || :
}
case $(lockers) in "" | *" 0") ;; *) die "locked already: $(lockers)" ;; esac
start_rados pool=rbd image=plain format=striper
"$nbd_expect" "$(uri)" write 0 100 65 ok , \
  run "rados -p rbd lock info $first striper.lock >'$tmp/lock'" , \
  run "! timeout 20 rados -p rbd --striper rm plain 2>/dev/null" , \
  run "! timeout 20 rados -p rbd --striper truncate plain 100 2>/dev/null" , \
  read-is 0 100 65
assert_eq "shared 1" \
  "$(jq -r '.type + " " + (.lockers | length | tostring)' "$tmp/lock")" \
  "lock while it is written"
assert_eq $size "$(striper_size rbd plain)" "size after the refused truncate"
stop_nbdkit
case $(lockers) in "" | *" 0") ;; *) die "still locked: $(lockers)" ;; esac
# A whole new object would be truncated first, so it is refused; a part of it
# is written beside the plugin, under the shared lock.
start_rados pool=rbd image=plain format=striper
printf hhhhh >"$tmp/hello"
"$nbd_expect" "$(uri)" write 100 100 66 ok , \
  run "! timeout 20 rados -p rbd --striper put plain '$tmp/data' 2>/dev/null" , \
  read-is 100 100 66 , \
  run "rados -p rbd --striper put plain '$tmp/hello' --offset 150" , \
  read-is 150 5 104 , read-is 100 50 66 , read-is 155 45 66
stop_nbdkit
# The lock is broken by somebody: what was locked may be truncated now, so
# requests fail.  The plugin asks every 15 seconds.
start_rados pool=rbd image=plain format=striper
"$nbd_expect" "$(uri)" within 20 , write 0 100 65 ok , \
  run "rados -p rbd lock info $first striper.lock >'$tmp/lock'" , \
  run "rados -p rbd lock break $first striper.lock \
    \$(jq -r '.lockers[0].name' '$tmp/lock') \
    --lock-cookie \"\$(jq -r '.lockers[0].cookie' '$tmp/lock')\"" , \
  until 40 write 0 100 66 ESHUTDOWN , read 0 100 ESHUTDOWN
grep -Eiq "lock" "$nbdkit_log" || die "no message about the lock"
stop_nbdkit
# An exclusive lock of somebody else keeps the plugin out.
rados -p rbd lock get "$first" striper.lock --lock-type exclusive \
  --lock-cookie other --lock-tag Tag
before=$(pool_state rbd | sha256sum)
expect_fail "plain&&lock" \
  "${nbdkit[@]}" -fv -U "$tmp/x.sock" rados "conf=$ceph_conf" pool=rbd \
  image=plain format=striper
assert_eq "$before" "$(pool_state rbd | sha256sum)" "nothing was written"
locker=$(rados -p rbd lock info "$first" striper.lock |
  jq -r '.lockers[0] | .name // .locker')
rados -p rbd lock break "$first" striper.lock "$locker" --lock-cookie other
start_rados pool=rbd image=plain format=striper
"$nbd_expect" "$(uri)" write 0 100 67 ok
stop_nbdkit
