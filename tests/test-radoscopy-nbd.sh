#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# radoscopy from one NBD server to another: nbdkit and qemu-nbd, structured
# replies and simple ones, block sizes, servers that allow one connection,
# errors, a server that dies, one that does not answer, TLS, a kernel without
# io_uring.  By splice and through memory.  Needs no Ceph.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program nbdkit qemu-nbd qemu-img jq python3
requires nbdkit --filter=blocksize-policy --filter=delay --filter=log \
  --filter=nozero --filter=rate memory --version
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
  # The disk's size is not in its own server's blocks: block status is asked for
  # in whole blocks, and the rest is for the server to give or to refuse.
  serve --filter=blocksize-policy file "$tmp/disk" blocksize-minimum=512 \
    blocksize-error-policy=error
  source_uri=$served
  fill_file "$tmp/old" $((size / 4096 * 4096 + 4096)) 143
  if copy; then
    # As the filter of nbdkit 1.48.
    cmp -n "$size" "$tmp/disk" "$tmp/old" || die "$engine: an odd end"
  else
    assert_match "read at [0-9]+\+[0-9]+: Invalid argument" \
      "$(cat "$tmp/copy.err")"
  fi
  drop_nbdkit
  serve --filter=log --filter=blocksize-policy file "$tmp/disk" \
    blocksize-minimum=512 logfile="$tmp/asked"
  source_uri=$served
  copies
  cmp -n "$size" "$tmp/disk" "$tmp/old" || die "$engine: odd size"
  grep -q "Extents" "$tmp/asked" || die "no block status"
  awk '/ Extents / && /id=/ {
    for (i = 1; i <= NF; i++)
      if ($i ~ /^(offset|count)=/ && strtonum(substr($i, index($i, "=") + 1)) % 512)
        { print; bad = 1 } } END { exit bad }' "$tmp/asked" ||
    die "$engine: block status is not asked in blocks"
  stop_nbdkit

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
  # Nobody looks for leaks in what is traced already.
  ASAN_OPTIONS=${ASAN_OPTIONS-}:detect_leaks=0 \
    strace -f -o /dev/null -e inject=io_uring_setup:error=EPERM \
    "${radoscopy[@]}" -v "$source_uri" "$destination_uri" 2>"$tmp/copy.err"
  by "poll poll"
  assert_same_bytes "$tmp/disk" "$tmp/copy" "poll"
fi
stop_nbdkit

say "signals where nothing happens"
# start_copy WORD...: in the background, where a shell has SIGINT ignored.
start_copy() {
  env --default-signal=INT "${radoscopy[@]}" "$@" &
  copier=$!
  own "$copier"
}
# is_stuck WHAT: SIGINT ends it all the same.  (2 seconds, and the machine's.)
ends_soon() {
  local begin status=0
  sleep 0.3
  is_running "$copier" || die "$1: it did not wait"
  begin=$(date +%s%N)
  kill -INT "$copier"
  wait "$copier" || status=$?
  assert_eq 130 "$status" "$1: after SIGINT"
  [ $((($(date +%s%N) - begin) / 1000000)) -le 4000 ] ||
    die "$1: SIGINT needed long"
}
mkfifo "$tmp/fifo"
start_copy --json "$tmp/fifo" null: >"$tmp/copy.out"
ends_soon "a pipe without a writer"
assert_eq false "$(jq .complete "$tmp/copy.out")" "--json of what is stuck"
start_copy "$tmp/disk" "$tmp/fifo"
ends_soon "a pipe without a reader"
python3 -c 'import socket, sys, time
s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()
time.sleep(60)' "$tmp/silent.sock" &
own $!
wait_until 10 test -S "$tmp/silent.sock"
start_copy "nbd+unix:///?socket=$tmp/silent.sock" null:
ends_soon "a server that says nothing"
exec 7<>"$tmp/fifo"
start_copy "$tmp/disk" - >"$tmp/fifo"
ends_soon "a pipe that nobody reads"
# An error of the other side does not wait for it, either.
serve eval get_size="echo $size" pread='
  [ $4 -lt 8000000 ] || { sleep 1; echo EIO no luck >&2; exit 1; }
  head -c $3 /dev/urandom'
(timeout 20 "${radoscopy[@]}" "$served" - || echo "status $?" >&2) \
  2>"$tmp/copy.err" >"$tmp/fifo"
assert_match "Input/output error.*status 1" "$(xargs <"$tmp/copy.err")"
exec 7>&-
drop_nbdkit
start_copy --bwlimit=1M -- [ nbdkit -P "$tmp/stopped.pid" file "$tmp/disk" ] \
  null:
wait_until 10 test -s "$tmp/stopped.pid"
stopped=$(cat "$tmp/stopped.pid")
own "$stopped"
kill -STOP "$stopped"
ends_soon "a server that has been stopped"
wait_until 5 has_ended "$stopped"

say "--json"
"${radoscopy[@]}" --json "$tmp/missing" null: >"$tmp/copy.out" 2>/dev/null &&
  die "no error"
assert_eq '["open",false,true]' "$(jq -c \
  '[.operation, .complete, (.error | contains("missing"))]' \
  "$tmp/copy.out")" "--json of an error at opening"
"${radoscopy[@]}" --json --verify "$tmp/disk" "$tmp/copy" >"$tmp/copy.out"
assert_eq "copy true verify true" "$(jq -r 'select(has("complete")) |
  .operation, .complete' "$tmp/copy.out" | xargs)" "--json --verify"
"${radoscopy[@]}" --json $'/\xff\xc0\x80/\xf4\x90"\xc3\xa4' null: \
  >"$tmp/copy.out" 2>/dev/null &&
  die "no error"
python3 -c 'import json, sys
json.loads(sys.stdin.buffer.read().decode("utf-8", "strict"))' \
  <"$tmp/copy.out" || die "--json of a name that is not UTF-8"

say "checksums"
# As others compute them: the program of the manual page, and sha256sum.
sed -n '/^ import hashlib/,/^ print/s/^ //p' \
  "$tests_srcdir/../man/radoscopy.pod" >"$tmp/tree.py"
tree=$(python3 "$tmp/tree.py" sha256 "$tmp/disk")
plain=$(sha256sum <"$tmp/disk" | cut -d ' ' -f 1)
assert_eq 64 "${#tree}" "the program of the manual page"
engine=checksum sparse=--sparse=0
from "$tmp/disk"
to "$tmp/copy"
copies -C 4 -T 4 --checksum=sha256 --verify --verbose
by "(io_uring|poll) (io_uring|poll)"
assert_eq "sha256-tree  $tree  $source_uri" "$(cat "$tmp/copy.out")" "--checksum"
assert_same_bytes "$tmp/disk" "$tmp/copy" "--checksum"
copies --checksum=SHA256 --synchronous --no-extents
assert_eq "sha256-tree $tree sha256 $plain" \
  "$(cut -d ' ' -f 1,3 "$tmp/copy.out" | xargs)" "--synchronous"
copies --checksum=sha256 --verify=only --json
assert_eq "$tree" "$(jq -r 'select(.complete) | .checksums."sha256-tree"' \
  "$tmp/copy.out")" "--json --verify=only"
"${radoscopy[@]}" --checksum=sha256 "$source_uri" - 2>"$tmp/copy.err" |
  cmp - "$tmp/disk"
assert_match "sha256-tree  $tree" "$(cat "$tmp/copy.err")" "to a pipe"
"${radoscopy[@]}" --checksum=sha256 - null: <"$tmp/disk" >"$tmp/copy.out"
assert_match "sha256-tree  $tree  -" "$(cat "$tmp/copy.out")" "of a pipe"
"${radoscopy[@]}" --checksum=nothing "$tmp/disk" "$tmp/unmade" 2>/dev/null &&
  die "--checksum=nothing"
[ ! -e "$tmp/unmade" ] || die "--checksum=nothing has made a file"

say "ranges"
engine=ranges
cat >"$tmp/ranges" <<'END'
# SOURCE DESTINATION LENGTH
8001000 3    2100001   # of data
0x10    5M   4k
3000000 2500000 1500000
0       4100000 1
END
fill_file "$tmp/wanted" "$size" 142
fill_file "$tmp/copy" "$size" 142
while read -r source destination length; do
  dd if="$tmp/disk" of="$tmp/wanted" iflag=skip_bytes,count_bytes \
    oflag=seek_bytes skip="$source" seek="$destination" count="$length" \
    conv=notrunc \
    status=none
done <<'END'
8001000 3 2100001
16 5242880 4096
3000000 2500000 1500000
0 4100000 1
END
serve file "$tmp/copy"
destination_uri=$served
copies --ranges="$tmp/ranges" --verify --json
assert_same_bytes "$tmp/wanted" "$tmp/copy" "ranges"
assert_eq 3604098 "$(tail -n 1 "$tmp/copy.out" | jq .size)" "--ranges --json"
# A regular file keeps the rest, and must be there.
fill_file "$tmp/plain" "$size" 142
"${radoscopy[@]}" --ranges=- "$tmp/disk" "$tmp/plain" <"$tmp/ranges"
assert_same_bytes "$tmp/wanted" "$tmp/plain" "ranges of a file"
"${radoscopy[@]}" --ranges="$tmp/ranges" "$tmp/disk" "$tmp/unmade" \
  2>/dev/null && die "ranges into a file that is not there"
[ ! -e "$tmp/unmade" ] || die "ranges have made a file"
for bad in "0 512 $((size - 511))" "512 512 $size" "0 $size 1"; do
  printf '0 0 512\n%s\n' "$bad" >"$tmp/ranges"
  fails "the range .* ends behind its size, $size" --ranges="$tmp/ranges"
done
printf '0 0 512\n512 511 1\n' >"$tmp/ranges"
fails "destinations overlap: 0\+512 and 511\+1" --ranges="$tmp/ranges"
assert_same_bytes "$tmp/wanted" "$tmp/copy" "ranges that are refused"
echo 0 0 512 >"$tmp/ranges"
expect_fail "a stream has no ranges" "${radoscopy[@]}" \
  --ranges="$tmp/ranges" /dev/zero "$tmp/plain"
# Many small ones, in memory that does not depend on how many.
seq 0 16 2000000 | awk '{ print $1, 4000000 - 16 * NR, 16 }' >"$tmp/ranges"
head -c 4000000 /dev/zero >"$tmp/plain"
"${radoscopy[@]}" --ranges="$tmp/ranges" "$tmp/disk" "$tmp/plain"
cmp <(python3 -c 'import sys
b = open(sys.argv[1], "rb").read()
sys.stdout.buffer.write(b"".join(b[i:i+16] for i in range(2000000, -1, -16)))' \
  "$tmp/disk") <(tail -c 2000016 "$tmp/plain") || die "many ranges"
stop_nbdkit

say "a source whose connection is lost"
# The server is killed in the middle, and comes again at the same place.
engine=retries
fill_file "$tmp/copy" "$size" 142
serve --filter=log --filter=rate file "$tmp/disk" rate=40M \
  logfile="$tmp/reads"
source_uri=$served
source_socket=$socket
lose() {
  wait_until 30 grep -q "Read.*offset=0x[4-9a-f].....[ ]" "$tmp/reads"
  kill -9 "$nbdkit_pid"
  sleep 0.3
  rm -f "$source_socket"
  "${nbdkit[@]}" -f -U "$source_socket" file "$tmp/disk" >/dev/null 2>&1 &
  echo $! >"$tmp/again.pid"
}
destination_uri=$tmp/copied
at_exit "kill -9 \$(cat '$tmp/again.pid') 2>/dev/null"
lose &
copies --retries=5 --request-size=64K --no-extents -C 2 -T 2
wait "$!"
assert_same_bytes "$tmp/disk" "$tmp/copied" "--retries"
assert_match "connected again" "$(cat "$tmp/copy.err")" "--retries"
kill -9 "$(cat "$tmp/again.pid")"

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
