#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# radoscopy from one NBD server to another: nbdkit and qemu-nbd, structured
# replies and simple ones, block sizes, servers that allow one connection,
# errors, a server that dies, one that does not answer, TLS, a kernel without
# io_uring.  By splice and through memory.  Needs no Ceph.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program nbdkit qemu-nbd qemu-img jq
requires nbdkit --filter=blocksize-policy --filter=delay --filter=log \
  --filter=nozero memory --version
requires nbdkit eval --version
requires_built "$builddir/copy/radoscopy"
radoscopy=("$builddir/run" radoscopy)

# Data, zeros in between, and an end that is in no block.
random_file "$tmp/piece" 3000000
truncate -s 20001100 "$tmp/disk"
for at in 0 5000000 8001000 17001100; do
  dd if="$tmp/piece" of="$tmp/disk" bs=100 seek=$((at / 100)) conv=notrunc \
    status=none
done
size=$(stat -c %s "$tmp/disk")
head -c $((size / 4096 * 4096)) "$tmp/disk" >"$tmp/aligned"

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
  truncate -s "$size" "$1"
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

# A server whose client has gone in the middle of requests: nbdkit 1.32 may have
# ended by itself (connections.c: raw_send_socket: Assertion `sock >= 0').
drop_nbdkit() { kill "$nbdkit_pid" 2>/dev/null || :; }

# copy WORD...: by $engine, which $sparse makes of it.
copy() {
  timeout 60 "${radoscopy[@]}" "$sparse" "$@" "$source_uri" \
    "$destination_uri" >"$tmp/copy.out" 2>"$tmp/copy.err"
}

copies() {
  copy "$@" || die "$engine: radoscopy $*: $(cat "$tmp/copy.err")"
}

# fails REGEX WORD...: with one line.
fails() {
  if copy "${@:2}"; then die "$engine: radoscopy ${*:2} has not failed"; fi
  assert_eq 1 "$(wc -l <"$tmp/copy.err")" "lines: $(cat "$tmp/copy.err")"
  grep -Eq -- "$1" "$tmp/copy.err" ||
    die "$engine: '$(cat "$tmp/copy.err")' instead of '$1'"
}

# by REGEX: the engines of source and destination that --verbose has named.
by() {
  assert_match "^$1\$" "$(sed -n 's/^radoscopy: .* engine=//p' \
    "$tmp/copy.err" | xargs)" "$engine"
}

for engine in splice memory; do
  say "$engine"
  sparse=--sparse=0 engines="splice splice"
  [ "$engine" = splice ] ||
    sparse=--sparse=4096 engines="(io_uring|poll) (io_uring|poll)"

  # Replies of both kinds, several connections.
  for replies in "" --no-sr; do
    from "$tmp/disk" $replies
    to "$tmp/copy" $replies
    copies -C 2 -T 2 --flush --json --verbose
    by "$engines"
    assert_same_bytes "$tmp/disk" "$tmp/copy" "$engine $replies"
    assert_eq "$size" "$(tail -n 1 "$tmp/copy.out" |
      jq 'select(.complete) | .copied + .zeroed + .skipped')" "$engine: --json"
    stop_nbdkit
  done

  # Zeros stay holes, and what is said to be zeros is not written to.
  from "$tmp/disk"
  to "$tmp/copy"
  copies --destination-is-zero
  assert_same_bytes "$tmp/disk" "$tmp/copy" "$engine to zeros"
  [ "$(stat -c %b "$tmp/copy")" -lt $((13000000 / 512)) ] ||
    die "$engine: zeros were written"
  copies --allocated --verbose
  by "splice splice"
  [ "$(stat -c %b "$tmp/copy")" -ge $((size / 512)) ] ||
    die "$engine --allocated: there are holes"
  stop_nbdkit

  # Blocks of 4 KiB that the server insists on, and requests of 64 KiB at most.
  from "$tmp/aligned"
  rm -f "$tmp/copy"
  truncate -s "$(stat -c %s "$tmp/aligned")" "$tmp/copy"
  serve --filter=blocksize-policy file "$tmp/copy" blocksize-minimum=4K \
    blocksize-preferred=64K blocksize-maximum=64K blocksize-error-policy=error
  destination_uri=$served
  copies --request-size=1M --verbose
  by "$engines"
  assert_same_bytes "$tmp/aligned" "$tmp/copy" "$engine in blocks"
  # The source ends within a block, which is read and written again.
  from "$tmp/disk"
  fill_file "$tmp/old" $((size / 4096 * 4096 + 4096)) 142
  serve --filter=blocksize-policy file "$tmp/old" blocksize-minimum=4K \
    blocksize-error-policy=error
  destination_uri=$served
  copies --verbose
  by "(io_uring|poll) (io_uring|poll)"
  cmp -n "$size" "$tmp/disk" "$tmp/old" || die "$engine: the last block"
  # The disk's size is not in its own server's blocks.
  serve --filter=blocksize-policy file "$tmp/disk" blocksize-minimum=512 \
    blocksize-error-policy=error
  source_uri=$served
  fails "(read|block status) at [0-9]+\+[0-9]+: Invalid argument"
  drop_nbdkit

  # A destination without zeroing, which nbdkit would do by writing.
  from "$tmp/disk"
  to "$tmp/copy" --filter=nozero
  copies
  assert_same_bytes "$tmp/disk" "$tmp/copy" "$engine without zeroing"
  stop_nbdkit

  # An error in the middle, on each side.
  serve eval get_size="echo $size" can_write='exit 0' \
    pread="[ \$4 -ne 1048576 ] || { echo EIO no luck >&2; exit 1; }
      dd if=$tmp/disk iflag=skip_bytes,count_bytes skip=\$4 count=\$3 \
        status=none"
  source_uri=$served
  to "$tmp/copy"
  fails "${source_uri##*/}: read at 1048576\+524288: Input/output error" \
    --request-size=512K
  drop_nbdkit
  from "$tmp/disk"
  serve eval get_size="echo $size" can_write='exit 0' \
    pwrite="cat >/dev/null
      [ \$4 -ne 1048576 ] || { echo ENOSPC full >&2; exit 1; }"
  destination_uri=$served
  fails "${destination_uri##*/}: write at 1048576\+524288: .*(space|full)" \
    --request-size=512K --no-extents
  drop_nbdkit

  # A server that dies in the middle of a copy.
  from "$tmp/disk"
  rm -f "$tmp/writes"
  serve --filter=log --filter=delay memory 1G wdelay=5 logfile="$tmp/writes"
  destination_uri=$served
  (wait_until 30 grep -q Write "$tmp/writes" && kill -9 "$nbdkit_pid") &
  fails "write at [0-9]+\+[0-9]+: (Connection reset|Broken pipe)" \
    --no-extents --requests=4
  wait "$!" || :

  # One that does not answer, and a signal.
  from "$tmp/disk"
  rm -f "$tmp/writes"
  serve --filter=log --filter=delay memory 1G wdelay=50 logfile="$tmp/writes"
  destination_uri=$served
  # A shell starts what is in the background with SIGINT ignored.
  env --default-signal=INT \
    "${radoscopy[@]}" "$sparse" "$source_uri" "$destination_uri" &
  copier=$!
  own "$copier"
  wait_until 30 grep -q Write "$tmp/writes"
  kill -INT "$copier"
  begin=$SECONDS status=0
  wait "$copier" || status=$?
  assert_eq 130 "$status" "$engine: after SIGINT"
  [ $((SECONDS - begin)) -le 10 ] || die "$engine: SIGINT needed long"
  drop_nbdkit

  # qemu-nbd, which splits its replies at holes, and here takes one client.
  serve_qemu "$tmp/aligned" -r
  source_uri=$served
  rm -f "$tmp/copy"
  truncate -s "$(stat -c %s "$tmp/aligned")" "$tmp/copy"
  serve_qemu "$tmp/copy"
  destination_uri=$served
  copies --flush --no-extents --request-size=1M --verbose
  by "$engines"
  qemu-img compare -f raw -F raw "$tmp/aligned" "$tmp/copy" >/dev/null ||
    die "$engine: qemu-nbd to qemu-nbd"

  # Servers that radoscopy starts.
  truncate -s 0 "$tmp/copy"
  truncate -s "$size" "$tmp/copy"
  "${radoscopy[@]}" "$sparse" -v -- [ nbdkit file "$tmp/disk" ] \
    [ nbdkit file "$tmp/copy" ] 2>"$tmp/copy.err"
  by "$engines"
  assert_same_bytes "$tmp/disk" "$tmp/copy" "$engine: commands"
done

say "what goes through memory, whatever else is said; without io_uring"
engine=last sparse=--sparse=0
from "$tmp/disk"
to "$tmp/copy"
copies --verify --verbose
by "(io_uring|poll) (io_uring|poll)"
copies --verify=only --verbose
by "(io_uring|poll) (io_uring|poll)"
if strace -o /dev/null true 2>/dev/null; then
  : >"$tmp/copy"
  truncate -s "$size" "$tmp/copy"
  strace -f -o /dev/null -e inject=io_uring_setup:error=EPERM \
    "${radoscopy[@]}" -v "$source_uri" "$destination_uri" 2>"$tmp/copy.err"
  by "poll poll"
  assert_same_bytes "$tmp/disk" "$tmp/copy" "poll"
fi
stop_nbdkit

say "TLS"
if nbdkit --dump-config | grep -q ^tls=yes; then
  echo "me:$(head -c 32 "$tmp/piece" | od -An -tx1 | tr -d ' \n')" \
    >"$tmp/keys.psk"
  from "$tmp/disk"
  to "$tmp/copy" --tls=require --tls-psk="$tmp/keys.psk"
  destination_uri="nbds+unix://me@/?${destination_uri#*\?}"
  destination_uri+="&tls-psk-file=$tmp/keys.psk"
  copies --verbose
  by "(io_uring|poll) libnbd"
  assert_same_bytes "$tmp/disk" "$tmp/copy" "TLS"
fi
say "passed"
