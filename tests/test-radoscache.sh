#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The filter radoscache: what is read is always what is below, whatever the
# names of exports, the sizes, the errors; and what is cached is not read
# below again.  Needs no Ceph.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program nbdkit
requires nbdkit --filter=log --filter=error null --version
requires nbdkit eval --version
requires_built "$nbd_expect" "$random_ops" \
  "$builddir/filters/radoscache/.libs/nbdkit-radoscache-filter.so"

# below ACTION: how many requests of a kind the log filter has seen.
below() { grep -c " $1 id=[0-9]* .*\.\.\.\$" "$tmp/log" || :; }

# Random requests against a plain file, in many sizes; the last cache is smaller
# than a request.
for words in "" cache-block=512 "cache-block=64K cache-size=256K" \
    "cache-size=1M cache-block=4K cache-readahead=0" cache-mode=none \
    "cache-size=32M cache-block=1M" "cache-size=2K cache-block=512" \
    cache-mode=writeback "cache-mode=writeback cache-dirty=100K" \
    "cache-mode=writeback cache-size=2K cache-dirty=0 cache-block=512" \
    "cache-mode=writeback cache-size=8M cache-dirty=4M cache-block=1M" \
    "cache-size=256K cache-file=$tmp cache-file-size=1M" \
    "cache-mode=writeback cache-size=400K cache-file=$tmp"; do
  random_file "$tmp/disk" 5000001
  # shellcheck disable=SC2086
  start_nbdkit --filter=radoscache file "$tmp/disk" cache-assume=exclusive \
    $words
  cp "$tmp/disk" "$tmp/model"
  "$random_ops" --ops 1200 --threads 3 --connections 2 --batch 3 \
    --max-length 1M --model "$tmp/model" "$(uri)" >/dev/null
  stop_nbdkit
  assert_same_bytes "$tmp/model" "$tmp/disk" "the disk with '$words'"
done

# A cache file that may not grow as large as it should, as on a full disk: no
# request fails, one message says it.
fill_file "$tmp/disk" 4M 0
unlimited=("${nbdkit[@]}")
nbdkit=(bash -c 'trap "" XFSZ; ulimit -f 1024; exec "$@"' bash
  "${unlimited[@]}")
start_nbdkit --filter=radoscache memory 4M cache-assume=exclusive \
  cache-size=512K cache-block=4K cache-file="$tmp" cache-file-size=4M
nbdkit=("${unlimited[@]}")
"$random_ops" --ops 3000 --threads 2 --connections 2 --model "$tmp/disk" \
  "$(uri)" >/dev/null
stop_nbdkit
assert_match "radoscache: .*File too large" "$(cat "$nbdkit_log")"
assert_eq 1 "$(grep -c "File too large" "$nbdkit_log")" "messages"

# Two exports at once.  (nbdkit's cache filter gives data of one to clients of
# the other.)
mkdir "$tmp/dir" "$tmp/models"
for name in one two; do
  random_file "$tmp/dir/$name" 4194304 "$name"
  cp "$tmp/dir/$name" "$tmp/models/$name"
done
start_nbdkit --filter=radoscache file dir="$tmp/dir" cache-assume=exclusive
"$nbd_expect" "$(uri one)" write 8K 4K 1 ok , read-is 8K 4K 1
"$nbd_expect" "$(uri two)" write 8K 4K 2 ok , read-is 8K 4K 2
"$nbd_expect" "$(uri one)" read-is 8K 4K 1
for name in one two; do cp "$tmp/dir/$name" "$tmp/models/$name"; done
pids=()
for name in one two; do
  "$random_ops" --ops 800 --threads 2 --connections 2 \
    --model "$tmp/models/$name" "$(uri "$name")" >/dev/null &
  pids+=($!)
done
for pid in "${pids[@]}"; do
  wait "$pid" || die "random requests to two exports at once failed"
done
stop_nbdkit
for name in one two; do
  assert_same_bytes "$tmp/models/$name" "$tmp/dir/$name" "export $name"
done

# One disk under several names: this plugin does not look at the name.
start_nbdkit --filter=radoscache memory 1M cache-assume=exclusive
"$nbd_expect" "$(uri a)" read-is 0 64K 0 , \
  run "'$nbd_expect' '$(uri b)' read-is 0 64K 0 , write 4K 8K 7 ok" , \
  read-is 4K 8K 7 , read-is 12K 4K 0 , \
  run "'$nbd_expect' '$(uri b)' zero 4K 4K ok , trim 8K 4K ok" , \
  read-is 4K 8K 0
"$random_ops" --ops 600 --threads 2 --connections 3 "$(uri a)" "$(uri b)" \
  "$(uri)" >/dev/null
stop_nbdkit

# What is cached is not read below, by other connections neither; whole
# blocks that are written are cached, others updated.
random_file "$tmp/disk" 1048576
start_nbdkit --filter=radoscache --filter=log file "$tmp/disk" \
  logfile="$tmp/log" cache-assume=exclusive cache-block=4K
for i in 1 2 3; do
  "$nbd_expect" "$(uri)" read 5000 10000 ok
  assert_eq 1 "$(below Read)" "reads below in round $i"
done
"$nbd_expect" "$(uri)" write 6000 10 9 ok , read-is 6000 10 9 , \
  write 64K 8K 8 ok , read-is 64K 8K 8 , zero 68K 1K ok , read-is 68K 1K 0 , \
  read-is 69K 3K 8 , flush ok
assert_eq 1 "$(below Read)" "reads below after writes"
assert_eq "2 1 1" "$(below Write) $(below Zero) $(below Flush)" "requests below"
# A request for the cache is a read below; after a trim another.
"$nbd_expect" "$(uri)" flag cache yes , cache 512K 64K ok , \
  read 512K 64K ok , trim 512K 4K ok , read 512K 4K ok
assert_eq 3 "$(below Read)" "reads below after cache and trim"
assert_eq 0 "$(below Cache)" "cache requests below"
# FUA and the rest arrive as they are.
"$nbd_expect" "$(uri)" write 0 1 1 ok fua , zero 0 4K ok no-hole fua , \
  extents 512K 4K 4096:hole
grep -Eq ' Write id=[0-9]+ offset=0x0 count=0x1 fua=1' "$tmp/log" ||
  die "FUA did not arrive: $(grep ' Write ' "$tmp/log")"
stop_nbdkit

# Small sequential reads: few and large requests below.  Random ones: what was
# asked for and no more.
start_nbdkit --filter=radoscache --filter=log file "$tmp/disk" \
  logfile="$tmp/log" cache-assume=immutable cache-block=4K
steps=()
for ((i = 0; i < 256; i++)); do steps+=(read $((i * 4096)) 4K ok ,); done
"$nbd_expect" "$(uri)" "${steps[@]}" size 1M
[ "$(below Read)" -le 16 ] || die "$(below Read) reads below in sequence"
grep -Eq ' Read id=[0-9]+ offset=0x[0-9a-f]+ count=0x[0-9a-f]{5}' \
  "$tmp/log" || die "read-ahead does not grow"
stop_nbdkit
start_nbdkit --filter=radoscache --filter=log file "$tmp/disk" \
  logfile="$tmp/log" cache-assume=immutable cache-block=4K
steps=()
for ((i = 0; i < 128; i++)); do
  steps+=(read $((i * 37 % 128 * 8192)) 4K ok ,)
done
"$nbd_expect" "$(uri)" "${steps[@]}" size 1M
assert_eq 128 "$(grep -c ' Read id=[0-9]* .*count=0x1000 ' "$tmp/log")" \
  "random reads"
assert_eq 128 "$(below Read)" "random reads below"
stop_nbdkit

# What nothing changes cannot be written to.
start_nbdkit --filter=radoscache memory 1M cache-assume=immutable
"$nbd_expect" "$(uri)" flag read-only yes , write 0 1 1 EPERM
stop_nbdkit

# Errors below: never cached, and what a failed write has left is read again.
fill_file "$tmp/disk" 1M 141
start_nbdkit --filter=radoscache --filter=error file "$tmp/disk" \
  cache-assume=exclusive cache-block=64K \
  error-pread=EIO error-pread-rate=100% error-pread-file="$tmp/bad-pread" \
  error-pwrite=ENOSPC error-pwrite-rate=100% \
  error-pwrite-file="$tmp/bad-pwrite"
"$nbd_expect" "$(uri)" run "touch $tmp/bad-pread" , read 0 4K EIO , \
  run "rm $tmp/bad-pread" , read-is 0 4K 97 , \
  run "touch $tmp/bad-pread" , read-is 4K 4K 97 , read 64K 4K EIO , \
  run "rm $tmp/bad-pread; touch $tmp/bad-pwrite" , \
  write 0 4K 1 ENOSPC , read-is 0 4K 97 , run "rm $tmp/bad-pwrite" , \
  write 0 4K 1 ok , read-is 0 4K 1 , read-is 4K 4K 97
# The plugin takes half of a write and then fails.
stop_nbdkit
start_nbdkit --filter=radoscache eval get_size='echo 1M' \
  pread="dd if=$tmp/disk iflag=skip_bytes,count_bytes skip=\$4 count=\$3" \
  pwrite="head -c 2048 | dd of=$tmp/disk oflag=seek_bytes seek=\$4 \
    conv=notrunc; echo EIO >&2; exit 1" \
  cache-assume=exclusive
"$nbd_expect" "$(uri)" read-is 512K 8K 97 , write 512K 4K 2 EIO , \
  read-is 512K 2K 2 , read-is 514K 6K 97
stop_nbdkit
# A bad place in a block harms only who reads it.
start_nbdkit --filter=radoscache eval get_size='echo 1M' \
  'pread=if [ $4 -le 5000 ] && [ $(($3 + $4)) -gt 5000 ]; then
     echo EIO >&2; exit 1; fi; head -c $3 /dev/zero' \
  cache-assume=exclusive cache-block=64K
"$nbd_expect" "$(uri)" read-is 0 4K 0 , read 4K 4K EIO , read-is 8K 56K 0
stop_nbdkit

# A new size: nothing of before is used.
fill_file "$tmp/disk" 10000 141
start_nbdkit --filter=radoscache file "$tmp/disk" cache-assume=exclusive
"$nbd_expect" "$(uri)" read-is 8000 2000 97
fill_file "$tmp/disk" 12000 142
"$nbd_expect" "$(uri)" size 12000 , read-is 0 12000 98
fill_file "$tmp/disk" 10000 143
"$nbd_expect" "$(uri)" size 10000 , read-is 0 10000 99
stop_nbdkit

# Statistics.
start_nbdkit -v -D radoscache.stats=1 --filter=radoscache memory 1M \
  cache-assume=exclusive cache-size=1M
"$nbd_expect" "$(uri)" read 0 4K ok , read 0 4K ok , read 0 4K ok
stop_nbdkit
grep -Eq 'radoscache: hits 2, misses 1, .* inserted 1, .* of 1048576' \
  "$nbdkit_log" || die "no statistics: $(grep radoscache: "$nbdkit_log")"

# Nothing says that the data may be cached: then it is not.
random_file "$tmp/disk" 1048576
start_nbdkit --filter=radoscache --filter=log file "$tmp/disk" \
  logfile="$tmp/log"
"$nbd_expect" "$(uri)" read 0 4K ok , read 0 4K ok , write 0 4K 1 ok , \
  read-is 0 4K 1
assert_eq 3 "$(below Read)" "reads of what may not be cached"
stop_nbdkit
start_nbdkit --filter=radoscache --filter=log file "$tmp/disk" \
  logfile="$tmp/log" cache-shared=unsafe
"$nbd_expect" "$(uri)" read 0 4K ok , read 0 4K ok
assert_eq 1 "$(below Read)" "reads with cache-shared=unsafe"
stop_nbdkit

# Parameters.
refused() {
  expect_fail "$1" "${nbdkit[@]}" -U - --filter=radoscache memory 1M \
    "${@:2}" --run true
}
refused "cache-assume=maybe: use immutable or exclusive" cache-assume=maybe
refused "cache-mode=writearound: use" cache-mode=writearound
refused "cache-dirty= is only for cache-mode=writeback" cache-dirty=1M
refused "cache-dirty-age= is only for cache-mode=writeback" cache-dirty-age=1
refused "radoscache: cache-dirty-age=0 is not a time in the range 1ms to 3600s" \
  cache-mode=writeback cache-dirty-age=0
for key in cache-size cache-block cache-readahead cache-dirty cache-file-size
do
  refused "radoscache: $key=some is not a size in the range [01] to 2.63-1" \
    $key=some
  assert_eq 1 "$(wc -l <<<"$failure")" "lines of '$failure'"
done
refused "what is for writes, 67108864, is less than four blocks" \
  cache-mode=writeback cache-dirty=64M
refused "cache-file-size= needs cache-file=" cache-file-size=1M
refused "cache-file-size=1000 is less than one block of 65536" \
  cache-file="$tmp" cache-file-size=1000
refused "cache-file= is not for cache-mode=none" cache-mode=none \
  cache-file="$tmp"
refused "$tmp/no/such" cache-file="$tmp/no/such/folder"
refused "cache-shared=safe: use unsafe" cache-shared=safe
refused "cache-exports=same: use distinct" cache-exports=same
refused "cache-block=5000: use a power of two" cache-block=5000
refused "cache-size=1000 less what is for writes, 0, is less than" cache-size=1000 cache-assume=immutable
start_nbdkit --filter=radoscache eval get_size='echo 1M' \
  pread='head -c $3 /dev/zero' block_size='echo 4096 8192 1M' \
  cache-assume=immutable cache-block=512
"$nbd_expect" "$(uri)" connect fail
grep -Eq "blocks of 512 bytes do not fit .* 4096 to 1048576" "$nbdkit_log" ||
  die "no message about the block size"
stop_nbdkit
