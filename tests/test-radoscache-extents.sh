#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Block status through the filter radoscache: it is what the plugin says, asked
# once; a change is seen at once, also when it comes in the middle of a
# question; nothing of one export is told of another.  Needs no Ceph.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program nbdkit nbdinfo qemu-img
requires nbdkit --filter=log --filter=delay null --version
requires nbdkit eval --version
requires_built "$nbd_expect" "$random_ops" \
  "$builddir/filters/radoscache/.libs/nbdkit-radoscache-filter.so"

# asked: how many questions the log filter has seen.
asked() { grep -c ' Extents id=[0-9]* .*\.\.\.$' "$tmp/log" || :; }

# make_disk FILE BYTES SEED: a sparse file with some data.
make_disk() {
  rm -f "$1"
  truncate -s "$2" "$1"
  random_file "$tmp/piece" 200000 "$3"
  local at
  for at in 3 70 900 4100 4300 9999; do
    dd if="$tmp/piece" of="$1" bs=1000 seek="$at" conv=notrunc status=none
  done
}

# The map is the one of the plugin, and is asked for once, however often and by
# whomever: clients that ask at the same time wait for one answer.
make_disk "$tmp/disk" 20M 1
start_nbdkit file "$tmp/disk"
nbdinfo --map "$(uri)" >"$tmp/map"
stop_nbdkit
[ "$(wc -l <"$tmp/map")" -ge 8 ] || die "no holes here: $(cat "$tmp/map")"
start_nbdkit --filter=radoscache --filter=log --filter=delay file \
  "$tmp/disk" logfile="$tmp/log" delay-extents=100ms cache-assume=exclusive
pids=()
for i in 1 2 3 4; do
  nbdinfo --map "$(uri)" >"$tmp/map$i" &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || die "nbdinfo --map failed"; done
nbdinfo --map "$(uri)" >"$tmp/map5"
for i in 1 2 3 4 5; do
  assert_same_bytes "$tmp/map" "$tmp/map$i" "map $i"
done
assert_eq 1 "$(asked)" "questions for five maps"
stop_nbdkit
start_nbdkit --filter=radoscache --filter=log file "$tmp/disk" \
  logfile="$tmp/log" cache-assume=immutable
"$nbd_expect" "$(uri)" status 0 4K ok req-one
nbdinfo --map "$(uri)" >"$tmp/map6"
assert_same_bytes "$tmp/map" "$tmp/map6" "the map after a question for less"
assert_eq 1 "$(asked)" "questions for an extent and a map"
stop_nbdkit

# In small steps, one extent each, as qemu does.
writes=()
steps=()
for ((i = 0; i < 640; i++)); do
  if ((i % 16 == 3)); then
    writes+=(write $((i * 65536)) 64K 1 ok ,)
    steps+=(extents $((i * 65536)) 64K 65536:data req-one ,)
  else
    steps+=(extents $((i * 65536)) 64K 65536:hole req-one ,)
  fi
done
start_nbdkit --filter=radoscache --filter=log memory 40M \
  logfile="$tmp/log" cache-assume=exclusive
"$nbd_expect" "$(uri)" "${writes[@]}" size 40M
for i in 1 2; do
  "$nbd_expect" "$(uri)" "${steps[@]}" size 40M
  assert_eq 1 "$(asked)" "questions for small steps, round $i"
done
# No more than was asked for, and one extent if one was.
"$nbd_expect" "$(uri)" extents 0 64K 65536:hole , \
  extents 128K 68K 65536:hole,4096:data , \
  extents 128K 68K 65536:hole req-one , extents 100 1 1:hole , \
  extents 128K 256K 65536:hole,65536:data,131072:hole
assert_eq 1 "$(asked)" "questions for parts"
stop_nbdkit

# In sectors of 512 bytes, whatever the plugin knows, and however much of it it
# tells at once; also where nothing is cached.
for words in "all cache-assume=immutable" "one cache-assume=immutable" \
  "one cache-assume=exclusive cache-mode=writeback" "all cache-mode=none" \
  one; do
  read -ra words <<<"$words"
  make_bytewise "$tmp/bytes" "${words[0]}"
  start_nbdkit --filter=radoscache "${bytewise[@]}" "${words[@]:1}"
  same_qemu_copy "" "$tmp/bytes" "${words[*]}"
  stop_nbdkit
done

# A hole of more than 4 GiB, in the largest request: nbdkit 1.32.5 would
# abort on an extent that goes beyond it.
hole=$(largest_extent):hole
start_nbdkit --filter=radoscache --filter=log memory 20G \
  logfile="$tmp/log" cache-assume=exclusive
"$nbd_expect" "$(uri)" extents 0 4294967295 "$hole" , \
  extents 1G 64K 65536:hole , extents 5G 4294967295 "$hole"
assert_eq 2 "$(asked)" "questions about a hole"
# The sectors of the largest requests are more than a request can have.
"$nbd_expect" "$(uri)" status 10000000001 4294967295 ok , \
  status 9999999999 4294967295 ok req-one

# Changes are seen at once, on this connection and on others; other places
# are not asked about again.
"$nbd_expect" "$(uri)" write 1G 64K 1 ok , extents 1G 64K 65536:data req-one , \
  run "'$nbd_expect' '$(uri)' extents 1G 64K 65536:data req-one , \
    trim 1G 32K ok" , extents 1G 32K 32768:hole , \
  extents 1073774592 32K 32768:data , zero 1G 64K ok , \
  extents 1G 64K 65536:hole req-one , \
  run "'$nbd_expect' '$(uri)' write 1G 1 9 ok" , \
  extents 1G 32K 32768:data req-one
before=$(asked)
"$nbd_expect" "$(uri)" extents 3G 64K 65536:hole , \
  extents 512M 4K 4096:hole req-one , extents 6G 1G 1073741824:hole
assert_eq "$before" "$(asked)" "questions about what was not changed"
# One disk under several names: this plugin does not look at the name.
"$nbd_expect" "$(uri a)" extents 2G 64K 65536:hole req-one , \
  run "'$nbd_expect' '$(uri b)' extents 2G 64K 65536:hole req-one , \
    write 2G 64K 1 ok" , extents 2G 64K 65536:data req-one
stop_nbdkit

# The map of another export.  (nbdkit's cacheextents filter gives it.)
mkdir "$tmp/dir"
fill_file "$tmp/dir/full" 1048576 141
truncate -s 1M "$tmp/dir/empty"
start_nbdkit --filter=radoscache file dir="$tmp/dir" cache-assume=exclusive
for i in 1 2; do
  "$nbd_expect" "$(uri empty)" extents 0 1M 1048576:hole
  "$nbd_expect" "$(uri full)" extents 0 1M 1048576:data
done
"$nbd_expect" "$(uri empty)" write 0 64K 1 ok , \
  extents 0 1M 65536:data,983040:hole
"$nbd_expect" "$(uri full)" trim 64K 64K ok , \
  extents 0 1M 65536:data,65536:hole,917504:data
stop_nbdkit

# A change in the middle of a question, and a question in the middle of a
# change.  The plugin calls everything a hole until the write, and waits
# where it is told to; then what it says is old.
slow_eval=(eval get_size='echo 1M' thread_model='echo parallel'
  can_write='exit 0' can_extents='exit 0' pread='head -c $3 /dev/zero'
  extents="echo >>$tmp/questions; t=hole,zero; [ ! -e $tmp/written ] || t=
    touch $tmp/asked; while [ -e $tmp/hold-answer ]; do sleep 0.05; done
    echo 0 1M \$t"
  pwrite="cat >/dev/null; touch $tmp/writing
    while [ -e $tmp/hold-write ]; do sleep 0.05; done; touch $tmp/written")
at_exit 'rm -f $tmp/hold-answer $tmp/hold-write'
start_nbdkit --filter=radoscache "${slow_eval[@]}" cache-assume=exclusive
touch "$tmp/hold-answer"
"$nbd_expect" "$(uri)" status 0 64K ok &
pid=$!
wait_until 30 test -e "$tmp/asked"
"$nbd_expect" "$(uri)" write 64K 64K 1 ok
rm "$tmp/hold-answer"
wait "$pid" || die "the question failed"
"$nbd_expect" "$(uri)" extents 64K 64K 65536:data
assert_eq 2 "$(wc -l <"$tmp/questions")" "questions around a change"
rm "$tmp/written" "$tmp/writing"
stop_nbdkit
start_nbdkit --filter=radoscache "${slow_eval[@]}" cache-assume=exclusive
touch "$tmp/hold-write"
"$nbd_expect" "$(uri)" write 64K 64K 1 ok &
pid=$!
wait_until 30 test -e "$tmp/writing"
"$nbd_expect" "$(uri)" extents 0 1M 1048576:hole
rm "$tmp/hold-write"
wait "$pid" || die "the write failed"
"$nbd_expect" "$(uri)" extents 64K 64K 65536:data
stop_nbdkit

# An error elsewhere harms only who asks there, and is not remembered.
start_nbdkit --filter=radoscache eval get_size='echo 1M' \
  can_extents='exit 0' pread='head -c $3 /dev/zero' \
  extents="[ ! -e $tmp/asked ] || [ \$((\$3 + \$4)) -le 524288 ] || {
    echo EIO >&2; exit 1; }; echo \$4 \$3 hole,zero" \
  cache-assume=immutable
"$nbd_expect" "$(uri)" extents 4K 64K 65536:hole , status 512K 64K EIO , \
  status 0 1M EIO , run "rm $tmp/asked" , extents 512K 64K 65536:hole
stop_nbdkit

# Nothing says that block status may be kept: then questions pass as they are.
start_nbdkit --filter=radoscache --filter=log file "$tmp/disk" \
  logfile="$tmp/log"
"$nbd_expect" "$(uri)" status 4K 64K ok , status 4K 64K ok req-one
assert_eq 2 "$(grep -Ec ' Extents id=[0-9]+ offset=0x1000 count=0x10000 ' \
  "$tmp/log")" "questions that nobody may keep"
assert_eq 1 "$(grep -Ec ' Extents id=[0-9]+ .* req_one=1' "$tmp/log")" \
  "questions for one extent"
stop_nbdkit

# With write-back, what is kept is data.  What another export keeps, which may
# be the same disk, is below before anything is said of its place.
start_nbdkit --filter=radoscache memory 20M cache-assume=exclusive \
  cache-mode=writeback
"$nbd_expect" "$(uri)" status 0 64K ok , write 1M 64K 1 ok , \
  extents 1M 64K 65536:data , extents 1M 64K 65536:data req-one , \
  extents 960K 192K 65536:hole,65536:data,65536:hole , flush ok , \
  extents 1M 64K 65536:data req-one , \
  write 2M 64K 1 ok , trim 2M 64K ok , \
  extents 2M 64K 65536:hole req-one
"$nbd_expect" "$(uri b)" write 4M 64K 1 ok , \
  run "'$nbd_expect' '$(uri a)' extents 3M 1M 1048576:hole , \
    extents 4M 64K 65536:data"
stop_nbdkit

# Random requests of many clients, maps among them: data is never called a
# hole.  On two exports at once, and on one disk under three names.
mkdir "$tmp/models"
for name in one two; do
  make_disk "$tmp/dir/$name" 10002000 "$name"
  cp "$tmp/dir/$name" "$tmp/models/$name"
done
start_nbdkit --filter=radoscache --filter=delay file dir="$tmp/dir" \
  delay-extents=1ms cache-assume=exclusive
pids=()
for name in one two; do
  "$random_ops" --ops 1500 --threads 2 --connections 2 --batch 4 \
    --max-length 512K --model "$tmp/models/$name" "$(uri "$name")" \
    >"$tmp/$name.out" &
  pids+=($!)
done
for pid in "${pids[@]}"; do
  wait "$pid" || die "random requests to two exports at once failed"
done
for name in one two; do
  assert_match ' hole_bytes=[1-9]' "$(cat "$tmp/$name.out")" "the maps of $name"
done
stop_nbdkit
for mode in writethrough writeback; do
  start_nbdkit --filter=radoscache memory 20M cache-assume=exclusive \
    cache-mode="$mode"
  "$random_ops" --ops 3000 --threads 3 --connections 3 --batch 4 \
    --max-length 512K "$(uri)" "$(uri a)" "$(uri b)" >"$tmp/memory.out"
  assert_match ' hole_bytes=[1-9]' "$(cat "$tmp/memory.out")" "the maps, $mode"
  stop_nbdkit
done
