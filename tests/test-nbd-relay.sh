#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# NBD's data phase in common/copy/nbd with real servers: nbdkit and qemu-nbd,
# structured replies and simple ones, block sizes, servers that allow one
# connection, errors, a server that dies, a kernel without io_uring.  Each by
# splice, by io_uring and by poll.  Needs no Ceph.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program nbdkit qemu-nbd qemu-img
requires nbdkit --filter=blocksize-policy --filter=delay --filter=log \
  --filter=nozero memory --version
requires nbdkit eval --version
relay=$builddir/tests/nbd-relay
requires_built "$relay"

# Data, zeros in between, and an end that is in no block.
random_file "$tmp/piece" 3000000
truncate -s 20001100 "$tmp/disk"
for at in 0 5000000 8001000 17001100; do
  dd if="$tmp/piece" of="$tmp/disk" bs=100 seek=$((at / 100)) conv=notrunc \
    status=none
done
head -c $((20001100 / 4096 * 4096)) "$tmp/disk" >"$tmp/aligned"

# serve WORD...: as start_nbdkit, and the URI goes to $served.
serve() {
  start_nbdkit "$@"
  served=$(uri)
}

# from FILE WORD..., to FILE WORD...: the two sides.
from() {
  serve "${@:2}" file "$1"
  source_uri=$served
}
to() {
  rm -f "$1"
  truncate -s "$(stat -c %s "$tmp/disk")" "$1"
  serve "${@:2}" file "$1"
  destination_uri=$served
}

# serve_qemu FILE WORD...: qemu-nbd, which takes one client unless it is told.
serve_qemu() {
  local file=$1 n=$((++qemus))
  shift
  qemu-nbd -f raw -k "$tmp/qemu$n.sock" -t "$@" "$file" \
    >"$tmp/qemu$n.log" 2>&1 </dev/null &
  own $!
  wait_until 20 test -S "$tmp/qemu$n.sock"
  served="nbd+unix:///?socket=$tmp/qemu$n.sock"
}
qemus=0

# copy ENGINE WORD...
copy() {
  timeout 60 "$relay" --engine="$1" "${@:2}" "$source_uri" \
    "$destination_uri" >"$tmp/relay.out" 2>"$tmp/relay.err"
}

copies() {
  copy "$@" || die "nbd-relay $*: $(cat "$tmp/relay.err")"
}

# fails REGEX ENGINE WORD...: with one line.
fails() {
  if copy "${@:2}"; then die "nbd-relay ${*:2} has not failed"; fi
  assert_eq 1 "$(wc -l <"$tmp/relay.err")" "lines: $(cat "$tmp/relay.err")"
  grep -Eq -- "$1" "$tmp/relay.err" ||
    die "'$(cat "$tmp/relay.err")' instead of '$1'"
}

for engine in relay uring poll; do
  say "$engine"

  # Replies of both kinds, several connections, odd requests.
  for replies in "" --no-sr; do
    from "$tmp/disk" $replies
    to "$tmp/copy" $replies
    copies "$engine" --connections=2 --flush --request-size=100100
    assert_same_bytes "$tmp/disk" "$tmp/copy" "$engine $replies"
    stop_nbdkit
  done

  # Zeros stay holes, and what is said to be zeros is not written to.
  from "$tmp/disk"
  to "$tmp/copy"
  copies "$engine" --destination-is-zero
  assert_same_bytes "$tmp/disk" "$tmp/copy" "$engine to zeros"
  [ "$(stat -c %b "$tmp/copy")" -lt $((13000000 / 512)) ] ||
    die "$engine: zeros were written"
  stop_nbdkit

  # Blocks of 4 KiB that the server insists on, and requests of 64 KiB at most.
  from "$tmp/aligned"
  rm -f "$tmp/copy"
  truncate -s "$(stat -c %s "$tmp/aligned")" "$tmp/copy"
  serve --filter=blocksize-policy file "$tmp/copy" blocksize-minimum=4K \
    blocksize-preferred=64K blocksize-maximum=64K blocksize-error-policy=error
  destination_uri=$served
  copies "$engine" --request-size=1000000
  assert_same_bytes "$tmp/aligned" "$tmp/copy" "$engine in blocks"
  stop_nbdkit

  # A destination without zeroing, which nbdkit would do by writing.
  from "$tmp/disk"
  to "$tmp/copy" --filter=nozero
  copies "$engine"
  assert_same_bytes "$tmp/disk" "$tmp/copy" "$engine without zeroing"
  stop_nbdkit

  # An error in the middle, on each side, where the rest goes on.
  size=$(stat -c %s "$tmp/disk")
  serve eval get_size="echo $size" can_write='exit 0' \
    pread="[ \$4 -ne 1048576 ] || { echo EIO no luck >&2; exit 1; }
      dd if=$tmp/disk iflag=skip_bytes,count_bytes skip=\$4 count=\$3 \
        status=none"
  source_uri=$served
  to "$tmp/copy"
  fails "source: read at 1048576\+524288: Input/output error" "$engine" \
    --request-size=524288
  stop_nbdkit
  from "$tmp/disk"
  serve eval get_size="echo $size" can_write='exit 0' \
    pwrite="cat >/dev/null
      [ \$4 -ne 1048576 ] || { echo ENOSPC full >&2; exit 1; }"
  destination_uri=$served
  fails "destination: write at 1048576\+524288: No space left on device" \
    "$engine" --request-size=524288 --no-extents
  stop_nbdkit

  # A server that dies in the middle of a copy.
  from "$tmp/disk"
  rm -f "$tmp/writes"
  serve --filter=log --filter=delay memory 1G wdelay=5 logfile="$tmp/writes"
  destination_uri=$served
  (wait_until 30 grep -q Write "$tmp/writes" && kill -9 "$nbdkit_pid") &
  fails "destination: write at [0-9]+\+[0-9]+: (Connection reset|Broken pipe)" \
    "$engine" --no-extents --requests=4
  wait "$!" || :

  # qemu-nbd, which splits its replies at holes, and here takes one client.
  serve_qemu "$tmp/aligned" -r
  source_uri=$served
  rm -f "$tmp/copy"
  truncate -s "$(stat -c %s "$tmp/aligned")" "$tmp/copy"
  serve_qemu "$tmp/copy"
  destination_uri=$served
  copies "$engine" --connections=1 --flush --no-extents --request-size=1048576
  qemu-img compare -f raw -F raw "$tmp/aligned" "$tmp/copy" >/dev/null ||
    die "$engine: qemu-nbd to qemu-nbd"
done

# Where io_uring is forbidden, it is poll(2).  The unit tests do it by seccomp.
from "$tmp/disk"
to "$tmp/copy"
copies uring --verbose
grep -Eq '^(io_uring|poll), 1 and 1 connections$' "$tmp/relay.out" ||
  die "it does not say how: $(cat "$tmp/relay.out")"
stop_nbdkit
say "passed"
