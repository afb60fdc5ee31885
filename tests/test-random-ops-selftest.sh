#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbd-random-ops itself: silent on servers that are right (memory, file, and
# the server of this test without a fault), loud on each of many faults.
# Needs no Ceph and not the plugin.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program nbdkit g++
# Under test here is the client.
unset NBDKIT_VALGRIND
requires_built "$random_ops" "$nbd_expect"

# serve NBDKIT-ARGUMENT...: any plugin of nbdkit, not the one that was built.
serve() {
  socket=$tmp/server.sock
  rm -f "$socket" "$tmp/server.pid"
  nbdkit -f -P "$tmp/server.pid" -U "$socket" "$@" >"$tmp/nbdkit.log" 2>&1 &
  server=$!
  own "$server"
  wait_until 30 test -s "$tmp/server.pid"
}
unserve() { stop_pid "$server"; }

# Compiled once; nbdkit cc would compile it for every fault.
g++ -std=c++20 -O1 -fPIC -shared -o "$tmp/broken.so" \
  "$tests_srcdir/broken-server.cpp" 2>"$tmp/compile.log" || {
  cat "$tmp/compile.log" >&2
  die "broken-server.cpp does not compile"
}

good() {
  "$random_ops" "$@" >"$tmp/out" 2>"$tmp/err" || {
    cat "$tmp/err" >&2
    die "nbd-random-ops finds a fault where there is none"
  }
  # Every kind of request must have been sent, or silence proves nothing.
  local kind
  for kind in read write zero trim cache flush status; do
    grep -Eq "(^| )$kind=[1-9]" "$tmp/out" ||
      die "no $kind request was sent: $(cat "$tmp/out")"
  done
}

serve memory 20000001
good --ops 4000 --threads 2 --connections 3 --batch 8 --reconnect 20 "$(uri)"
# What is there already is the model when it is adopted, also read-only.
good --ops 1000 --adopt "$(uri)"
# An image that does not begin as the model says is a fault.
truncate -s 20000001 "$tmp/zeros"
status=0
"$random_ops" --ops 2000 --model "$tmp/zeros" "$(uri)" >/dev/null 2>&1 ||
  status=$?
assert_eq 1 "$status" "status with a wrong model"
unserve

truncate -s 12345679 "$tmp/disk"
serve file "$tmp/disk"
good --ops 4000 --threads 3 --batch 4 --model "$tmp/model" "$(uri)"
unserve
assert_same_bytes "$tmp/disk" "$tmp/model" "the image and the model file"

size=4M
serve "$tmp/broken.so" size=$size
good --ops 6000 --connections 4 --batch 8 --max-length 64K "$(uri)"
grep -q "fast_zero_refused=[1-9]" "$tmp/out" || die "no fast zero was refused"
unserve

for fault in read read-error lost-byte lost-write zero zero-long fast-zero \
  fast-refuse trim trim-junk hole hole-block race stale; do
  serve "$tmp/broken.so" size=$size fault=$fault
  # Whether a fault shows is a matter of luck; that none of several runs
  # with seeds of their own shows it is not.
  for _ in 1 2 3 4 5 6; do
    status=0
    "$random_ops" --ops 30000 --connections 4 --batch 8 --max-length 64K \
      "$(uri)" >"$tmp/out" 2>"$tmp/err" || status=$?
    [ "$status" -eq 0 ] || break
  done
  [ "$status" -eq 1 ] || {
    cat "$tmp/out" "$tmp/err" >&2
    die "the fault '$fault' was not found (status $status)"
  }
  grep -q "FAILED" "$tmp/err" || die "no message for the fault '$fault'"
  grep -Eq "seed [0-9]+" "$tmp/err" || die "no seed for the fault '$fault'"
  say "$fault: $(grep FAILED "$tmp/err" | cut -c 1-90)"
  unserve
done

# A server that is not there is a different status.
status=0
"$random_ops" "nbd+unix:///?socket=$tmp/nothing" >/dev/null 2>&1 || status=$?
assert_eq 2 "$status" "status without a server"

# nbd-expect asks for the rest of block status that comes in parts, and is loud
# when there is more than was wanted.
serve eval get_size='echo 1048576' pread='head -c $3 /dev/zero' \
  can_extents='exit 0' extents='
    n=$((65536 - $4 % 65536))
    [ $n -le $3 ] || n=$3
    if [ $4 -lt 524288 ]; then echo $4 $n hole,zero; else echo $4 $n zero; fi'
"$nbd_expect" "nbd+unix:///?socket=$socket" \
  extents 0 1M 524288:hole,524288:zero , extents 64K 256K 262144:hole
expect_fail "wanted 65000:hole, got 65536:hole" "$nbd_expect" \
  "nbd+unix:///?socket=$socket" extents 0 1M 65000:hole
unserve
