#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The filter radoscache with write-back: what reaches the plugin and when,
# errors that come late, what is lost when the server is killed (only what no
# flush followed), several exports, plugins that are not parallel.  Needs no
# Ceph.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program nbdkit nbdinfo qemu-img
requires nbdkit --filter=log --filter=error null --version
requires nbdkit eval --version
requires /usr/bin/python3 -c 'import nbd'
requires_built "$nbd_expect" "$random_ops" \
  "$builddir/filters/radoscache/.libs/nbdkit-radoscache-filter.so"
note=$tests_srcdir/write-and-note.py

# below ACTION: how many requests of a kind the log filter has seen.
below() { grep -c " $1 id=[0-9]* .*\.\.\.\$" "$tmp/log" || :; }
is_below() { [ "$(below "$1")" -ge "$2" ]; }
serve() {
  rm -f "$tmp/log"
  start_nbdkit --filter=radoscache --filter=log "$@" logfile="$tmp/log" \
    cache-assume=exclusive cache-mode=writeback
}
has() { # OFFSET LENGTH BYTE
  assert_eq "$(numfmt --from=iec "$2")" "$(dd if="$tmp/disk" bs=4K iflag=skip_bytes,count_bytes \
    skip="$1" count="$2" status=none | tr -cd "\\$(printf %o "$3")" | wc -c)" \
    "bytes $3 at $1 of the disk"
}

say "writes are merged, and a flush writes them"
fill_file "$tmp/disk" 16M 141
serve file "$tmp/disk" cache-dirty-age=3600
steps=()
for ((i = 0; i < 512; i++)); do steps+=(write $((i * 4096)) 4K 1 ok ,); done
"$nbd_expect" "$(uri)" flag flush yes , flag fua yes , "${steps[@]}" \
  read-is 0 2M 1 , read-is 2M 4K 97 , \
  run "! grep -q ' Write id=' $tmp/log" , \
  flush ok , run "grep -q ' Flush id=' $tmp/log" , \
  write 8M 4K 2 ok , write 8194K 4K 3 ok , read-is 8M 2K 2 , read-is 8194K 4K 3
assert_eq 2 "$(below Write)" "writes below"
has 0 2M 1
# A client that goes without a flush loses nothing.
has 8M 2K 2
has 8194K 4K 3

say "FUA, zero, trim and large writes go through, after older data"
"$nbd_expect" "$(uri)" write 0 64K 4 ok , write 4K 4K 5 ok fua , \
  run "dd if=$tmp/disk bs=4K skip=1 count=1 status=none | tr -d '\005' |
    wc -c | grep -qx 0" , read-is 0 4K 4 , read-is 4K 4K 5 , \
  write 1M 64K 6 ok , zero 1M 4K ok , read-is 1M 4K 0 , read-is 1028K 60K 6 , \
  write 2M 64K 7 ok , trim 2M 64K ok , read-is 2M 64K 0 , \
  write 6M 64K 6 ok , flush ok , write 6M 64K 7 ok , \
  trim 6146K 4K ok , read-is 6M 2K 7 , read-is 6150K 58K 7 , \
  write 3M 4K 8 ok , write 3M 2M 9 ok , read-is 3M 2M 9
has 4K 4K 5
has 1M 4K 0
has 1028K 60K 6
has 3M 2M 9
stop_nbdkit

say "block status shows what is kept as data"
rm "$tmp/disk"
truncate -s 16M "$tmp/disk"
serve file "$tmp/disk" cache-dirty-age=3600
"$nbd_expect" "$(uri)" extents 0 1M 1048576:hole req-one , \
  write 64K 4K 1 ok , extents 0 1M 65536:hole,4096:data,978944:hole , \
  run "! grep -q ' Write id=' $tmp/log" , \
  flush ok , extents 64K 4K 4096:data req-one
stop_nbdkit

# In sectors: what is kept makes all of its sectors data, also where only the
# layer below knows the rest of them, and to whoever asks.
make_bytewise "$tmp/bytes" all
cp "$tmp/bytes" "$tmp/model"
for words in "511 2 1" "1100 600 2" "8191 1025 3" "30299 1 4"; do
  read -r offset length byte <<<"$words"
  fill_file "$tmp/piece" "$length" "$byte"
  dd if="$tmp/piece" of="$tmp/model" oflag=seek_bytes seek="$offset" \
    conv=notrunc status=none
done
serve "${bytewise[@]}" can_write='exit 0' can_multi_conn='exit 0' \
  pwrite="dd of=$tmp/bytes oflag=seek_bytes seek=\$4 conv=notrunc" \
  cache-dirty-age=3600
"$nbd_expect" "$(uri)" write 511 2 1 ok , write 1100 600 2 ok , \
  write 8191 1025 3 ok , write end-1 1 4 ok , \
  run "! grep -q ' Write id=' $tmp/log" , \
  extents 8000 300 300:data , extents 30299 1 1:data , extents 512 1 1:data , \
  run "qemu-img convert -f raw -O raw '$(uri)' $tmp/copy"
stop_nbdkit
truncate -s 30300 "$tmp/copy"
assert_same_bytes "$tmp/model" "$tmp/copy" "qemu-img copies what is kept"
start_nbdkit --filter=radoscache memory 1000300 cache-assume=exclusive \
  cache-mode=writeback cache-dirty-age=3600
"$nbd_expect" "$(uri)" write 1000 600 1 ok , write end-1 1 2 ok , \
  extents 0 64K 512:hole,1536:data,63488:hole , extents 600 1 1:data , \
  extents 512 2K 1536:data req-one , extents 2047 64K 1:data req-one , \
  extents 100 413 412:hole,1:data , extents end-300 300 300:data , \
  run "'$nbd_expect' '$(uri b)' extents 512 4 4:data"
stop_nbdkit

say "old data is written without a request"
serve file "$tmp/disk" cache-dirty-age=500ms
"$nbd_expect" "$(uri)" write 1M 4K 1 ok , \
  until 30 run "[ \$(od -An -tu1 -j1048576 -N1 $tmp/disk) = 1 ]"
# A complete chunk does not get old.
serve file "$tmp/disk" cache-dirty-age=3600
steps=()
for ((i = 0; i < 4; i++)); do steps+=(write $((4 + i))M 1M 1 ok ,); done
"$nbd_expect" "$(uri)" "${steps[@]}" \
  until 30 run "[ \$(od -An -tu1 -j8388607 -N1 $tmp/disk) = 1 ]"
stop_nbdkit

say "the end of the server is no loss"
serve file "$tmp/disk" cache-dirty-age=3600
/usr/bin/python3 - "$(uri)" "$nbdkit_pid" <<'EOF'
import os, signal, sys, nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"\x0b" * 65536, 2 << 20)
os.kill(int(sys.argv[2]), signal.SIGTERM)
try:
    while True:
        h.pread(1, 0)
except nbd.Error:
    pass
EOF
wait_until 30 has_ended "$nbdkit_pid"
has 2M 64K 11

say "kill -9 loses only what no flush followed"
fill_file "$tmp/disk" 16M 0
serve file "$tmp/disk" cache-dirty-age=1 cache-dirty=1M
cat >"$tmp/killed.py" <<'EOF'
import os, random, signal, sys, nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
r = random.Random(1)
durable = bytearray(16 << 20)
possible = [{0} for _ in range(len(durable) // 4096)]
for i in range(1500):
    at = r.randrange(len(possible))
    h.pwrite(bytes([i % 255 + 1]) * 4096, at * 4096)
    possible[at].add(i % 255 + 1)
    if i % 100 == 99:
        h.flush()
        now = h.pread(len(durable), 0)
        possible = [{now[b * 4096]} for b in range(len(possible))]
    if i == 1444:
        break
os.kill(int(sys.argv[2]), signal.SIGKILL)
open(sys.argv[3], "w").write(repr(possible))
EOF
/usr/bin/python3 "$tmp/killed.py" "$(uri)" "$nbdkit_pid" "$tmp/possible"
wait_until 30 has_ended "$nbdkit_pid"
/usr/bin/python3 - "$tmp/disk" "$tmp/possible" <<'EOF'
import sys
data = open(sys.argv[1], "rb").read()
possible = eval(open(sys.argv[2]).read())
for n, values in enumerate(possible):
    block = data[n * 4096:n * 4096 + 4096]
    assert set(block) <= values, (n, set(block), values)
assert sum(len(v) > 1 for v in possible) > 10
EOF

say "errors that come late"
fill_file "$tmp/disk" 1M 141
start_nbdkit --filter=radoscache --filter=error file "$tmp/disk" \
  cache-assume=exclusive cache-mode=writeback cache-dirty-age=1 \
  error-pwrite=ENOSPC error-pwrite-rate=100% \
  error-pwrite-file="$tmp/bad-pwrite"
touch "$tmp/bad-pwrite"
"$nbd_expect" "$(uri)" write 0 4K 1 ok , flush ENOSPC , flush ENOSPC , \
  read-is 0 4K 1 , write 0 2K 2 ENOSPC fua , read-is 0 4K 1 , \
  write 64K 4K 8 ok , zero 64K 2K ok , read-is 64K 2K 0 , read-is 66K 2K 8 , \
  trim 64K 4K ok , read-is 64K 2K 0 , read-is 66K 2K 8 , \
  write 2K 2K 3 ok , read-is 0 2K 1 , read-is 2K 2K 3 , \
  write 512K 4K 4 ok , \
  run "'$nbd_expect' '$(uri)' read-is 0 2K 1 , flush ENOSPC" , \
  run "rm $tmp/bad-pwrite" , \
  until 30 run "[ \$(od -An -tu1 -j2048 -N1 $tmp/disk) = 3 ]" , \
  flush ok
has 0 2K 1
has 2K 2K 3
has 512K 4K 4
# No room, and nothing can be written: the client is told at once.
touch "$tmp/bad-pwrite"
stop_nbdkit
start_nbdkit --filter=radoscache --filter=error file "$tmp/disk" \
  cache-assume=exclusive cache-mode=writeback cache-dirty=64K \
  error-pwrite=ENOSPC error-pwrite-rate=100% \
  error-pwrite-file="$tmp/bad-pwrite"
steps=()
for ((i = 0; i < 12; i++)); do steps+=(write $((i * 4))K 4K 6 ok ,); done
"$nbd_expect" "$(uri)" within 60 , "${steps[@]}" write 512K 64K 7 ENOSPC , \
  read-is 0 48K 6
grep -q "what clients have written cannot be written below: No space" \
  "$nbdkit_log" || die "no message about what cannot be written"
stop_nbdkit
grep -q "49152 bytes that clients have written are lost" "$nbdkit_log" ||
  die "no message about what is lost: $(tail -n 5 "$nbdkit_log")"
has 0 2K 1

say "several exports, and one disk under several names"
mkdir "$tmp/dir" "$tmp/models"
for name in one two; do
  random_file "$tmp/dir/$name" 4194304 "$name"
  cp "$tmp/dir/$name" "$tmp/models/$name"
done
start_nbdkit --filter=radoscache file dir="$tmp/dir" cache-assume=exclusive \
  cache-mode=writeback cache-dirty=1M
pids=()
for name in one two; do
  "$random_ops" --ops 600 --threads 2 --connections 4 \
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
start_nbdkit --filter=radoscache memory 16M cache-assume=exclusive \
  cache-mode=writeback cache-dirty-age=3600
"$nbd_expect" "$(uri one)" write 0 64K 1 ok , \
  run "'$nbd_expect' '$(uri two)' read-is 0 64K 1 , write 4K 4K 2 ok , \
    run \"'$nbd_expect' '$(uri one)' read-is 0 4K 1 , read-is 4K 4K 2\" , \
    write 8K 4K 3 ok" , read-is 8K 4K 3 , write 8K 4K 4 ok , \
  run "'$nbd_expect' '$(uri two)' read-is 8K 4K 4 , \
    extents 0 16M 65536:data,16711680:hole"
stop_nbdkit

say "eight connections: one export, and two names of one disk"
random_file "$tmp/disk" 5000001
cp "$tmp/disk" "$tmp/model"
for words in "" "cache-mode=writeback cache-dirty=300K cache-dirty-age=1" \
    "cache-mode=writeback cache-dirty=700K cache-dirty-age=3600"; do
  # shellcheck disable=SC2086
  start_nbdkit --filter=radoscache file "$tmp/disk" cache-assume=exclusive \
    cache-size=1M cache-block=4K cache-file="$tmp" cache-file-size=3M $words
  for uris in "$(uri)" "$(uri one) $(uri two)"; do
    "$random_ops" --ops 1200 --threads 4 --connections 2 --batch 4 \
      --max-length 256K --reconnect 40 --model "$tmp/model" $uris >/dev/null
  done
  stop_nbdkit
  assert_same_bytes "$tmp/model" "$tmp/disk" "eight connections, '$words'"
done

say "a plugin that does one thing at a time"
fill_file "$tmp/disk" 4M 0
cp "$tmp/disk" "$tmp/model"
start_nbdkit --filter=radoscache --filter=noparallel file "$tmp/disk" \
  serialize=all-requests cache-assume=exclusive cache-mode=writeback \
  cache-dirty=512K cache-dirty-age=1
"$random_ops" --ops 600 --threads 2 --connections 2 --model "$tmp/model" \
  "$(uri)" >/dev/null
assert_same_bytes "$tmp/model" "$tmp/disk" "after serial requests"
stop_nbdkit

say "plugins that do not allow it"
serve file "$tmp/disk" --filter=noparallel serialize=requests
"$nbd_expect" "$(uri)" write 0 4K 1 ok , \
  run "grep -q ' Write id=' $tmp/log"
stop_nbdkit
serve --filter=multi-conn file "$tmp/disk" multi-conn-mode=disable
"$nbd_expect" "$(uri)" write 0 4K 1 ok , \
  run "grep -q ' Write id=' $tmp/log"
stop_nbdkit

say "exports that are different disks"
start_nbdkit --filter=radoscache --filter=error file dir="$tmp/dir" \
  cache-assume=exclusive cache-mode=writeback cache-dirty-age=3600 \
  cache-exports=distinct error-pwrite=ENOSPC error-pwrite-rate=100% \
  error-pwrite-file="$tmp/bad-pwrite"
cp "$tmp/dir/two" "$tmp/two"
touch "$tmp/bad-pwrite"
"$nbd_expect" "$(uri one)" write 0 4K 1 ok , flush ENOSPC , \
  run "'$nbd_expect' '$(uri two)' read 0 4K ok" , run "rm $tmp/bad-pwrite" , \
  run "'$nbd_expect' '$(uri two)' write 4K 4K 2 ok" , \
  flush ok
cmp -n 4096 "$tmp/two" "$tmp/dir/two" || die "the other disk has changed"
stop_nbdkit

say "a plugin without FUA and flush"
start_nbdkit --filter=radoscache eval get_size='echo 1M' \
  pread="dd if=$tmp/disk iflag=skip_bytes,count_bytes skip=\$4 count=\$3" \
  pwrite="dd of=$tmp/disk oflag=seek_bytes seek=\$4 conv=notrunc" \
  can_write='exit 0' can_multi_conn='exit 0' cache-assume=exclusive cache-mode=writeback
"$nbd_expect" "$(uri)" flag fua yes , flag flush yes , write 0 4K 1 ok , \
  write 4K 4K 2 ok fua , flush ok
has 0 4K 1
has 4K 4K 2
stop_nbdkit

start_nbdkit --filter=radoscache eval get_size='echo 1M' \
  pread="dd if=$tmp/disk iflag=skip_bytes,count_bytes skip=\$4 count=\$3" \
  pwrite="dd of=$tmp/disk oflag=seek_bytes seek=\$4 conv=notrunc" \
  can_write='exit 0' can_flush='exit 0' can_multi_conn='exit 0' \
  flush="if [ -e $tmp/bad-flush ]; then echo EIO >&2; exit 1; fi" \
  cache-assume=exclusive cache-mode=writeback
"$nbd_expect" "$(uri)" write 0 4K 3 ok , flush ok , write 0 4K 4 ok , \
  run "touch $tmp/bad-flush" , flush EIO , write 4K 4K 5 EIO fua , \
  run "rm $tmp/bad-flush" , flush ok , write 4K 4K 5 ok fua
stop_nbdkit

say "numbers by a signal"
start_nbdkit -v -D radoscache.stats=1 --filter=radoscache memory 16M \
  cache-assume=exclusive cache-mode=writeback cache-dirty-age=3600
"$nbd_expect" "$(uri)" write 0 4K 1 ok , write 4K 4K 1 ok , \
  run "kill -USR1 $nbdkit_pid" , \
  until 20 run "grep -q '^radoscache: .* writes kept 2, written below 0, \
failed 0, bytes lost 0, dirty bytes [1-9][0-9]* of 16777216' $nbdkit_log" , \
  flush ok , read 0 4K ok
stop_nbdkit
grep -q 'debug: radoscache: .* written below 1, .* dirty bytes 0 of' \
  "$nbdkit_log" || die "no statistics at the end"

say "a signal while the server starts"
start_nbdkit --filter=radoscache eval get_size='echo 1M' \
  after_fork="touch $tmp/starts; until [ -e $tmp/go ]; do sleep 0.1; done" \
  pread="dd if=$tmp/disk iflag=skip_bytes,count_bytes skip=\$4 count=\$3" \
  cache-assume=exclusive
wait_until 20 test -e "$tmp/starts"
kill -USR1 "$nbdkit_pid"
touch "$tmp/go"
"$nbd_expect" "$(uri)" read 0 4K ok
stop_nbdkit
