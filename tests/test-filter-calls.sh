#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What the layers above may ask of the filters, and when: err = NULL, requests
# from threads that nbdkit did not start, after .finalize and after .cleanup
# (rude-filter.cpp), and the largest counts.  The server goes on, and ends well.
# Needs no Ceph.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program nbdkit g++ pkg-config
requires nbdkit --filter=readahead --filter=error --filter=delay null --version
requires_built "$nbd_expect" "$random_ops" \
  "$builddir/filters/radoscache/.libs/nbdkit-radoscache-filter.so"
make_rude_filter

# sequential COUNT [, STEP]: reads as readahead looks for.
sequential() {
  local i steps=()
  for ((i = 0; i < $1; i++)); do
    steps+=(read $((i * 65536)) 64K ok ,)
  done
  shift
  "$nbd_expect" "$(uri)" "${steps[@]}" size 64M "$@"
}

# nbdkit's own filter, which does that.  (With --filter=radosoffset offset=0 the
# filter hands its requests on.)
for filters in radoscache "radosoffset --filter=radoscache" \
  "radoscache --filter=radosoffset"; do
  for mode in writethrough writeback none; do
    # shellcheck disable=SC2086
    start_nbdkit --filter=readahead --filter=$filters memory 64M \
      cache-assume=exclusive cache-mode=$mode
    sequential 200
    stop_nbdkit
  done
done

# What readahead asks for fails.  Its client is told nothing, for it asked for
# nothing; the server goes on.
for filters in radoscache "radosoffset --filter=radoscache"; do
  # shellcheck disable=SC2086
  start_nbdkit --filter=readahead --filter=$filters --filter=error memory 64M \
    cache-assume=exclusive cache-readahead=0 error-pread=EIO \
    error-pread-rate=100% error-pread-file="$tmp/fail"
  "$nbd_expect" "$(uri)" read 0 64K ok , read 64K 64K ok , \
    run "touch '$tmp/fail'" , read 8M 64K EIO , read 0 64K ok , \
    read 64K 64K ok , read 9M 64K EIO , cache 10M 64K EIO , \
    run "rm '$tmp/fail'" , read 9M 64K ok
  stop_nbdkit
done

# Each request with err = NULL from a thread of its own.
for words in "radoscache" "radoscache cache-mode=writeback" \
  "radoscache cache-mode=none" "radosoffset offset=12345" \
  "radosoffset radoscache offset=512 cache-mode=writeback" \
  "radoscache radosoffset offset=512 cache-mode=writeback"; do
  filters=() parameters=(cache-assume=exclusive)
  for word in $words; do
    case $word in
    *=*) parameters+=("$word") ;;
    *) filters+=("--filter=$word") ;;
    esac
  done
  [[ $words == *radoscache* ]] || parameters=("${parameters[@]:1}")
  start_nbdkit --filter="$rude" "${filters[@]}" memory 5000001 \
    "${parameters[@]}"
  "$random_ops" --ops 600 --threads 2 --connections 2 --batch 3 \
    --max-length 64K --reconnect 20 "$(uri)" >/dev/null
  stop_nbdkit
done

# Requests that go on while the server ends: none comes through.  (nbdkit waits
# for its clients, but does not close the handles of those who go then.)
for words in "" cache-mode=writeback cache-mode=none; do
  # shellcheck disable=SC2086
  start_nbdkit --filter="$rude" --filter=radoscache --filter="$rude" \
    memory 1M cache-assume=exclusive $words
  "$nbd_expect" "$(uri)" write 0 64K 1 ok , run "kill $nbdkit_pid"
  wait_for_nbdkit
done

# A long queue of readahead's when the server is told to end.
start_nbdkit --filter=readahead --filter=radoscache --filter=delay memory 64M \
  cache-assume=exclusive cache-readahead=0 rdelay=10ms
sequential 60 , run "kill $nbdkit_pid"
wait_for_nbdkit

# The largest counts that NBD has, up to the end of the disk and past it.
start_nbdkit --filter=radosoffset --filter=radoscache memory 5G offset=1 \
  cache-assume=exclusive cache-mode=writeback cache-block=1M
most=4294967295
start=$((5368709120 - 1 - most))
"$nbd_expect" "$(uri)" write end-1 1 7 ok , write $start 1 7 ok , \
  status 0 $most ok , status $start $most ok , \
  status $start $most ok req-one , \
  cache $start $most ok , \
  zero $start $most ok , read-is end-1 1 0 , read-is $start 1 0 , \
  trim $start $most ok , trim 0 $most ok , zero 0 $most ok , \
  read end-1 2 EINVAL , write end 1 1 ENOSPC , zero end-1 2 ENOSPC , \
  trim end-1 2 EINVAL , status end-1 2 EINVAL , cache end-1 2 EINVAL , \
  flush ok , read-is end-1 1 0
stop_nbdkit
