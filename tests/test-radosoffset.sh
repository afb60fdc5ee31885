#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The filter radosoffset.  The oracle is nbdkit's offset filter: the same
# requests of a client reach the plugin as the same callbacks, and give the
# same answers, but for block status.  Then what the oracle does not have:
# block status in sectors, exports at once, messages with numbers, block sizes.
# Needs no Ceph.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program nbdkit nbdinfo qemu-img
requires nbdkit --filter=offset --filter=log --filter=fua null --version
requires nbdkit eval --version
requires_built "$nbd_expect" "$random_ops" \
  "$builddir/filters/radosoffset/.libs/nbdkit-radosoffset-filter.so"

# A disk with data and holes, the same every time.
make_disk() {
  rm -f "$1"
  truncate -s 8M "$1"
  random_file "$tmp/piece" 300000 "${2:-1}"
  local at
  for at in 5000 1048000 4190000 7300000; do
    dd if="$tmp/piece" of="$1" bs=1000 seek=$((at / 1000)) conv=notrunc \
      status=none
  done
}

# requests FILTER ORDER [WORD...]: random and chosen requests through a
# filter; the log of nbdkit's log filter below or above goes to
# $tmp/FILTER.log without times.
requests() {
  local filter=$1 order=$2 filters
  shift 2
  case $order in
  below) filters=(--filter="$filter" --filter=log) ;;
  above) filters=(--filter=log --filter="$filter") ;;
  esac
  make_disk "$tmp/disk"
  rm -f "$tmp/log"
  start_nbdkit "${filters[@]}" "$@" logfile="$tmp/log"
  "$random_ops" --seed 5 --ops 400 --max-length 512K --adopt \
    --boundaries 4096,65536,1M "$(uri)" >"$tmp/$filter.ops"
  # Requests that end with the range, and beyond it.
  "$nbd_expect" "$(uri)" \
    write 0 1 1 ok , write end-1 1 2 ok , read-is end-1 1 2 , \
    write end 1 1 ENOSPC , read end-1 2 EINVAL , write end-4K 4K 3 ok fua , \
    zero 0 4K ok no-hole , zero end-64K 64K ok , trim 4K 8K ok fua , \
    cache 0 64K ok , status 0 1M ok , status 0 1M ok req-one , \
    status end-1 1 ok , flush ok
  stop_nbdkit
  # Not the times, nor when the server was ready.  Block status is asked for
  # and told in sectors of 512 bytes here, so numbers differ, too.
  sed -E 's/^[^ ]+ [^ ]+ //; / (Preconnect|Ready|Fork|[.]*Extents)/d
    /^(Ready|Fork)/d; s/ (id|transactions)=[0-9]+//' \
    "$tmp/log" >"$tmp/$filter.log"
  sed -E -i 's/seconds=[^ ]*//; s/(hole|data)_bytes=[^ ]*//g' \
    "$tmp/$filter.ops"
  mv "$tmp/disk" "$tmp/$filter.disk"
}

# compare WORD...
compare() {
  local order kind
  for order in below above; do
    requests offset "$order" "$@"
    requests radosoffset "$order" "$@"
    for kind in Connect Read Write Zero Trim Flush; do
      grep -q "$kind" "$tmp/radosoffset.log" || die "no $kind was logged: $*"
    done
    diff -u "$tmp/offset.log" "$tmp/radosoffset.log" >"$tmp/diff" ||
      die "$* ($order): other callbacks: $(head -n 30 "$tmp/diff")"
    diff -u "$tmp/offset.ops" "$tmp/radosoffset.ops" ||
      die "$* ($order): other answers"
    assert_same_bytes "$tmp/offset.disk" "$tmp/radosoffset.disk" "$*: disks"
  done
}

compare memory 8M offset=4097 range=3M
compare file "$tmp/disk" offset=1M range=3M
compare file "$tmp/disk" offset=4097 range=1234567
compare file "$tmp/disk" offset=5M
compare file "$tmp/disk" range=2M
compare --filter=fua file "$tmp/disk" fuamode=emulate offset=64K
compare --filter=nozero file "$tmp/disk" zeromode=notrim offset=7 range=3M

# Block status in sectors of the range, wherever it begins below, whatever is
# known there, and however much of it is told at once.
for words in "0 all" "0 one" "1 one" "511 all" "1000 one" "1024 all"; do
  read -r offset answers <<<"$words"
  make_bytewise "$tmp/bytes" "$answers"
  tail -c +$((offset + 1)) "$tmp/bytes" | head -c 29000 >"$tmp/part"
  start_nbdkit --filter=radosoffset "${bytewise[@]}" offset="$offset" \
    range="$(stat -c %s "$tmp/part")"
  same_qemu_copy "" "$tmp/part" "offset=$words"
  stop_nbdkit
done
# A page of the plugin memory, 32 KiB at 96 KiB.
start_nbdkit --filter=radosoffset memory 8G offset=1000
"$nbd_expect" "$(uri)" write 97304 32K 1 ok , write 7G 1 1 ok , \
  extents 0 256K 97280:hole,33280:data,131584:hole , \
  extents 100 97280 97180:hole,100:data , \
  extents 97279 64K 1:hole req-one , extents 97280 64K 33280:data req-one , \
  extents 130000 64K 560:data req-one , extents 129999 1 1:data , \
  extents end-300 300 300:hole
# The sectors of the largest requests are more than a request can have.
"$nbd_expect" "$(uri)" status 1 4294967295 ok , \
  status 511 4294967295 ok req-one , status 512 4294967295 ok
stop_nbdkit

# Nothing outside the range was touched.
make_disk "$tmp/before"
start_nbdkit --filter=radosoffset file "$tmp/before" offset=1000003 range=2M
make_disk "$tmp/model"
dd if="$tmp/model" of="$tmp/part" iflag=skip_bytes,count_bytes \
  skip=1000003 count=2M status=none
"$random_ops" --ops 300 --threads 2 --connections 2 --model "$tmp/part" \
  "$(uri)" >/dev/null
stop_nbdkit
dd if="$tmp/part" of="$tmp/model" oflag=seek_bytes seek=1000003 conv=notrunc \
  status=none
assert_same_bytes "$tmp/model" "$tmp/before" "the disk around the range"

# Two exports at once, of different sizes.
mkdir "$tmp/dir" "$tmp/expected"
for name in one two; do
  make_disk "$tmp/dir/$name" "$name"
  [ "$name" = one ] || truncate -s 9M "$tmp/dir/two"
  cp "$tmp/dir/$name" "$tmp/expected/$name"
  tail -c +1048577 "$tmp/dir/$name" >"$tmp/part.$name"
done
start_nbdkit file dir="$tmp/dir"
"$nbd_expect" --list "$(uri)" | sort >"$tmp/list"
stop_nbdkit
start_nbdkit --filter=radosoffset file dir="$tmp/dir" offset=1M
"$nbd_expect" --list "$(uri)" | sort | diff -u "$tmp/list" - ||
  die "the list of exports is another"
pids=()
for name in one two; do
  "$random_ops" --ops 400 --threads 2 --connections 2 \
    --model "$tmp/part.$name" "$(uri "$name")" >/dev/null &
  pids+=($!)
done
for pid in "${pids[@]}"; do
  wait "$pid" || die "random requests to two exports at once failed"
done
for name in one two; do
  "$nbd_expect" "$(uri "$name")" \
    size $(($(stat -c %s "$tmp/dir/$name") - 1048576)) , name "^$name\$"
  dd if="$tmp/part.$name" of="$tmp/expected/$name" oflag=seek_bytes \
    seek=1M conv=notrunc status=none
done
stop_nbdkit
for name in one two; do
  assert_same_bytes "$tmp/expected/$name" "$tmp/dir/$name" "export $name"
done

# What does not fit: refused when a client connects, with the numbers.
refused() {
  local regex=$1
  shift
  start_nbdkit --filter=radosoffset "$@"
  "$nbd_expect" "$(uri)" connect fail
  grep -Eq "$regex" "$nbdkit_log" || die "$*: no message like '$regex'"
  stop_nbdkit
}
refused "offset=1048577 .* has 1048576 bytes" memory 1M offset=1048577
refused "offset=4096 plus range=1048576 is 1052672,.* only 1048576 bytes" \
  memory 1M offset=4K range=1M
refused "range=1048577 is 1048577,.* only 1048576" memory 1M range=1048577
expect_fail "offset=9223372036854775807 plus range=1 " "${nbdkit[@]}" -U - \
  --filter=radosoffset null offset=9223372036854775807 range=1 --run true
for bad in offset=nonsense range=-1 range= offset=8E; do
  expect_fail "radosoffset: $bad is not a size in the range 0 to 2\^63-1" \
    "${nbdkit[@]}" -U - --filter=radosoffset null $bad --run true
  assert_eq 1 "$(wc -l <<<"$failure")" "lines of '$failure'"
done
# Nothing left is an empty disk.
for empty in offset=1M range=0; do
  start_nbdkit --filter=radosoffset memory 1M $empty
  "$nbd_expect" "$(uri)" size 0
  stop_nbdkit
done

# Block sizes below.
blocks=(eval 'get_size=echo 65000' 'pread=head -c $3 /dev/zero'
        'block_size=echo 4096 8192 1M')
refused "offset=512 is not a multiple of 4096" "${blocks[@]}" offset=512
refused "range=4000 is not a multiple of 4096" "${blocks[@]}" range=4000
start_nbdkit -v --filter=radosoffset "${blocks[@]}" offset=4K range=60904
"$nbd_expect" "$(uri)" size 60904 , block-size minimum 4096 , \
  block-size preferred 8192 , block-size maximum 1M , read-is 4K 4K 0
grep -q "offset=4096 is not a multiple of the preferred.* 8192" \
  "$nbdkit_log" || die "no word about the preferred block size"
stop_nbdkit

# Size changes below: new connections see them.
echo 8192 >"$tmp/size"
start_nbdkit --filter=radosoffset eval get_size="cat $tmp/size" \
  'pread=head -c $3 /dev/zero' offset=4096
"$nbd_expect" "$(uri)" size 4096 , run "echo 16384 >$tmp/size" , size 4096 , \
  read-is 0 4096 0
"$nbd_expect" "$(uri)" size 12288 , run "echo 1000 >$tmp/size"
"$nbd_expect" "$(uri)" connect fail
grep -q "offset=4096 .* has 1000 bytes" "$nbdkit_log" ||
  die "no message about the export that has shrunk"
stop_nbdkit

# Errors below arrive as they are.
start_nbdkit --filter=radosoffset eval get_size='echo 1M' \
  'pread=echo ENOMEM >&2; exit 1' 'pwrite=echo ENOSPC >&2; exit 1' \
  'flush=echo EIO >&2; exit 1' 'can_extents=exit 0' \
  'extents=echo EPERM no >&2; exit 1' offset=4K
"$nbd_expect" "$(uri)" read 0 4K ENOMEM , write 0 4K 1 ENOSPC , flush EIO , \
  status 0 4K EPERM
stop_nbdkit
