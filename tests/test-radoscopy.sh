#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# radoscopy: pairs of kinds in both directions, against rbd export, cmp and
# nbdcopy; what is sparse stays so; new images; what a killed copy leaves;
# errors.

source "$(dirname "$0")/functions.sh" || exit 1
requires_plugin
requires_program nbdcopy jq nbdkit qemu-nbd
requires /usr/bin/python3 -c 'import nbd'
requires_built "$builddir/copy/radoscopy"
start_ceph
make_pool rbd
make_pool data
cd "$tmp"

radoscopy=("$builddir/run" radoscopy)
copy() { "${radoscopy[@]}" "$@" || die "radoscopy $*"; }

# image NAME: as radoscopy takes it.
image() { echo "rados:rbd/$1?conf=$ceph_conf${2-}"; }

# blocks FILE: KiB that it occupies.
blocks() { du -k "$1" | cut -f 1; }

# used IMAGE: bytes, as rbd du has it.
used() {
  rbd du --format json "rbd/$1" 2>/dev/null |
    jq '[.images[] | select(.snapshot == null) | .used_size] | add'
}

# 100 MB with 12 MB of data in three pieces, and a size that is no multiple of
# anything.
random_file data.img 12000001
truncate -s 100000003 disk.img
dd if=data.img of=disk.img bs=64K seek=3 count=90 conv=notrunc status=none
dd if=data.img of=disk.img bs=64K seek=800 skip=90 conv=notrunc status=none
printf x | dd of=disk.img bs=1 seek=100000002 conv=notrunc status=none
head -c 4097 data.img >odd.img

say "files, pipes, servers"
for file in disk.img odd.img; do
  copy "$file" out.img
  assert_same_bytes "$file" out.img "file to file"
  copy "$file" - | cmp - "$file"
  cat "$file" | copy - out.img
  assert_same_bytes "$file" out.img "pipe to file"
  copy -- [ nbdkit file "$file" ] - >out.img
  assert_same_bytes "$file" out.img "server to standard output"
done
copy disk.img null:
[ "$(blocks out.img)" -le 16 ] || die "a small file takes $(blocks out.img) K"
copy disk.img out.img
[ "$(blocks out.img)" -lt 13000 ] || die "holes are gone: $(blocks out.img)"
copy --allocated disk.img out.img
[ "$(blocks out.img)" -ge 97656 ] || die "--allocated: $(blocks out.img)"
assert_same_bytes disk.img out.img "--allocated"
for size in 0 1 511; do
  head -c "$size" data.img >small.img
  copy small.img out.img
  assert_same_bytes small.img out.img "$size bytes"
  cat small.img | copy - - >out.img
  assert_same_bytes small.img out.img "$size bytes through pipes"
done
# Old data in a file that is there does not show through.
fill_file out.img 3000000 141
copy odd.img out.img
assert_same_bytes odd.img out.img "into an old file"

say "NBD servers, several connections, TCP"
start_nbdkit memory 100M
copy --connections=4 disk.img "$(uri)"
copy -C 4 -T 4 "$(uri)" out.img
truncate -s 100000003 out.img
assert_same_bytes disk.img out.img "to a server and back"
# A server with a block size of its own, and old data.
stop_nbdkit
fill_file old.img 100003840 142
start_nbdkit --filter=blocksize-policy file old.img \
  blocksize-minimum=512 blocksize-error-policy=error
copy disk.img "$(uri)"
cmp -n 100000003 disk.img old.img || die "blocks of 512 bytes"
assert_eq 3837 "$(tail -c +100000004 old.img | tr -cd b | wc -c)" "behind it"
stop_nbdkit

say "comparing"
copy --verify disk.img out.img
copy --verify=only disk.img out.img
printf y | dd of=out.img bs=1 seek=70000001 conv=notrunc status=none
printf y | dd of=out.img bs=1 seek=90000001 conv=notrunc status=none
cp --sparse=always out.img kept.img
expect_fail "out.img: differs from disk.img at 70000001" \
  "${radoscopy[@]}" --verify=only disk.img out.img
expect_fail "disk.img: differs from out.img at 70000001" \
  "${radoscopy[@]}" --verify=only --no-extents out.img disk.img
assert_same_bytes kept.img out.img "--verify=only writes nothing"
assert_eq false "$("${radoscopy[@]}" --json --verify=only disk.img out.img \
  2>/dev/null | tail -n 1 | jq .complete)" "--json of a difference"
expect_fail "cannot be read again" "${radoscopy[@]}" --verify disk.img null:

say "the options of nbdcopy, as nbdcopy has them"
for options in "--allocated --destination-is-zero" --sparse=100 -S0 \
  --request-size=1000 --request-size=2048 --request-size=33554433 -C0 -R0 \
  -T0 --flush --no-extents --synchronous --queue-size=x --bogus --sparse=3000 \
  "--requests=3 --threads=2 --target-is-zero" "--progress=x"; do
  theirs=0 ours=0
  # shellcheck disable=SC2086
  nbdcopy $options odd.img theirs.img >/dev/null 2>&1 || theirs=$?
  # shellcheck disable=SC2086
  "${radoscopy[@]}" $options odd.img ours.img >/dev/null 2>&1 || ours=$?
  assert_eq "$theirs" "$ours" "exit status with $options"
  [ "$theirs" -ne 0 ] || assert_same_bytes theirs.img ours.img "$options"
done
# Its hashes (in 1.24) are not ours.
assert_eq "" "$(comm -23 <(nbdcopy --long-options | grep -v blkhash | sort) \
  <("${radoscopy[@]}" --long-options | sort))" "options that nbdcopy has only"
assert_eq "$(nbdcopy --short-options)" "$("${radoscopy[@]}" --short-options)"
for words in "" odd.img "odd.img a b" "null: a" "[ ] a"; do
  # shellcheck disable=SC2086
  expect_fail . "${radoscopy[@]}" $words
done
cp odd.img twin.img
ln twin.img link.img
expect_fail "link.img: source and destination are the same" \
  "${radoscopy[@]}" twin.img link.img
assert_same_bytes odd.img twin.img "a file to itself"
copy --progress=1 disk.img null: >progress
assert_eq "0/100 100/100" "$(sed -n '1p;$p' progress | xargs)" "--progress=1"
expect_fail "progress=6: that is no open" \
  "${radoscopy[@]}" --progress=6 odd.img twin.img 6>&-
assert_same_bytes odd.img twin.img "--progress of a closed descriptor"
# shellcheck disable=SC2016
expect_fail "-: Bad file" \
  bash -c '"$@" >&-' bash "${radoscopy[@]}" odd.img -
# shellcheck disable=SC2016
expect_fail "-: Bad file" \
  bash -c '"$@" <&-' bash "${radoscopy[@]}" - out.img
"${radoscopy[@]}" -p odd.img out.img 2>&-
assert_same_bytes odd.img out.img "standard error is closed"
if strace -o /dev/null true 2>/dev/null; then
  expect_fail "closed.img: close: Disk quota" \
    strace -f -o /dev/null -P "$tmp/closed.img" -e inject=close:error=EDQUOT \
    "${radoscopy[@]}" odd.img "$tmp/closed.img"
fi
assert_eq 100000003 "$(copy --json disk.img null: | tail -n 1 |
  jq 'select(.complete) | .copied + .zeroed + .skipped')" "--json"

say "images: new ones"
copy --create --verify disk.img "$(image one)"
same_export rbd/one disk.img "file to new image"
check_object_map rbd/one
[ "$(used one)" -le 24000000 ] || die "rbd/one uses $(used one) bytes"
copy "$(image one)" out.img
assert_same_bytes disk.img out.img "image to file"
[ "$(blocks out.img)" -lt 13000 ] || die "holes are gone: $(blocks out.img)"
copy "$(image one)" - | cmp - disk.img
copy --create=data-pool=data,object-size=1M,stripe-unit=64K,stripe-count=4 \
  "$(image one)" "$(image two)"
same_export rbd/two disk.img "image to image"
assert_eq data "$(rbd info --format json rbd/two | jq -r .data_pool)"
cat odd.img | copy --create=size=8192 - "$(image piped)"
rbd_export rbd/piped out.img
assert_eq 8192 "$(stat -c %s out.img)"
cmp -n 4097 odd.img out.img
rbd namespace create rbd/ns
copy --create -- [ nbdkit file disk.img ] "$(image ns/three)"
same_export rbd/ns/three disk.img "server to namespace"
copy -- "$(image ns/three)" [ nbdkit memory 100M ]
printf '0 1M 4097\n1 0 1\n' >ranges
copy --create=size=2M --ranges=ranges --verify odd.img "$(image parts)"
truncate -s 2M parts.img
dd if=odd.img of=parts.img bs=1M seek=1 conv=notrunc status=none
dd if=odd.img of=parts.img bs=1 skip=1 count=1 conv=notrunc status=none
same_export rbd/parts parts.img "ranges into a new image"
echo 0 0 2097153 >ranges
expect_fail "parts2: the range 0\+2097153 ends behind its size, 2097152" \
  "${radoscopy[@]}" --create=size=2M --ranges=ranges disk.img \
  "$(image parts2)"
rbd rm --no-progress rbd/parts
expect_fail "one: .*the image exists; --in-place" \
  "${radoscopy[@]}" --create odd.img "$(image one)"
expect_fail "one@s: --create .*no '@'" \
  "${radoscopy[@]}" --create odd.img "$(image one@s)"
expect_fail "format 2 only" \
  "${radoscopy[@]}" --create odd.img "$(image old "&format=1")"
expect_fail "size of the source is not known" \
  "${radoscopy[@]}" --create - "$(image unknown)"
: >empty.img
expect_fail "source has 0 bytes" \
  "${radoscopy[@]}" --create empty.img "$(image empty)"
expect_fail "nothing" "${radoscopy[@]}" "$(image nothing)" out.img
assert_eq "one piped two" "$(rbd ls rbd | sort | xargs)" "images"

say "images that exist: snapshots, clones, format 1, striped objects"
rbd_snap rbd/one@s
rbd snap protect rbd/one@s
rbd clone rbd/one@s rbd/child
copy --in-place odd.img "$(image child)"
cp --sparse=always disk.img changed.img
dd if=odd.img of=changed.img conv=notrunc status=none
same_export rbd/child changed.img "file to clone"
copy "$(image child)" out.img
assert_same_bytes changed.img out.img "clone to file"
copy --in-place odd.img "$(image one)"
copy "$(image one@s)" out.img
assert_same_bytes disk.img out.img "snapshot to file"
expect_fail "read-only" "${radoscopy[@]}" --in-place odd.img "$(image one@s)"
make_format1_image rbd first 100000003 22
copy --in-place "$(image one@s)" "$(image first)"
copy --verify=only "$(image one@s)" "$(image first)"
same_export rbd/first disk.img "snapshot to format 1"
[ "$(rados -p rbd ls | grep -c "$(format1_prefix rbd first)")" -lt 9 ] ||
  die "holes became objects of format 1"
copy "$(image first)" null:
striper_put rbd striped changed.img
copy --in-place "$(image first)" "$(image striped "&format=striper")"
striper_get rbd striped out.img
assert_same_bytes disk.img out.img "format 1 to striped object"
expect_fail "smaller than source size" \
  "${radoscopy[@]}" --in-place disk.img "$(image piped)"

say "the lock of another client"
start_rados rbd/two
"$nbd_expect" "$(uri)" write 0 512 1 ok , \
  run "${radoscopy[*]} --in-place odd.img '$(image two)' \
    >lock.log 2>&1; echo status \$? >>lock.log" , \
  run "${radoscopy[*]} '$(image two)' null: 2>kept.log; \
    echo status \$? >>kept.log" , \
  run "${radoscopy[*]} --no-snapshot '$(image two)' null:" >/dev/null
assert_match "lock" "$(cat lock.log)"
assert_match "status 1" "$(cat lock.log)"
assert_match "two: no snapshot .* is locked by client.*--no-snapshot" \
  "$(cat kept.log)"
assert_match "status 1" "$(cat kept.log)"
stop_nbdkit

say "a copy is of one moment"
# no_snapshots IMAGE [BUT]: neither of a copy nor in the trash.
no_snapshots() {
  assert_eq "${2-}" "$(rbd snap ls --all --format json "rbd/$1" |
    jq -r '.[] | .name' | xargs)" "snapshots of rbd/$1"
}
# start_counting URI: writes to the second object, and then a number to the
# first one and to the last one, and so on with the next number.
start_counting() {
  /usr/bin/python3 -c '
import itertools, nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(bytes(512), 5 << 20)
for n in itertools.count(1):
    h.pwrite(b"%-512d" % n, 0)
    h.pwrite(b"%-512d" % n, h.get_size() - 512)' "$1" &
  counting=$!
  own "$counting"
  sleep 0.5
}
# numbers IMAGE OPTION...: both as a copy has them, of which the last object is
# read a second after the first.
numbers() {
  copy --synchronous --bwlimit=8M "${@:2}" "$(image "$1")" out.img
  first=$(head -c 512 out.img | xargs)
  last=$(tail -c 512 out.img | xargs)
}
# By the owner of the lock, after it has been handed over, and without a lock.
for how in librbd ours format1; do
  if [ "$how" = format1 ]; then
    make_format1_image rbd $how 12582912 22
    copy --in-place data.img "$(image $how)"
  else
    copy --create=size=12M data.img "$(image $how)"
    rbd_snap rbd/$how@before
  fi
  if [ "$how" = ours ]; then
    start_rados rbd/$how lock=auto
    start_counting "$(uri)"
  else
    qemu-nbd -t -k "$tmp/$how.sock" -f raw --cache=none \
      "rbd:rbd/$how:conf=$ceph_conf" &
    server=$!
    own "$server"
    wait_until 20 test -S "$tmp/$how.sock"
    start_counting "nbd+unix:///?socket=$tmp/$how.sock"
  fi
  numbers $how -v 2>$how.log
  assert_match "$how@radoscopy-[0-9TZ]*-[0-9a-f]* is copied" "$(cat $how.log)"
  [ "$first" -gt 0 ] && [ $((first - last)) -ge 0 ] &&
    [ $((first - last)) -le 1 ] || die "$how: $first and then $last"
  if [ "$how" = librbd ]; then
    numbers $how --no-snapshot
    [ "$last" -gt "$first" ] || die "this cannot fail: $first and then $last"
  fi
  is_running "$counting" || die "$how: the writer has an error"
  stop_pid "$counting" KILL
  if [ "$how" = ours ]; then stop_nbdkit; else stop_pid "$server"; fi
  if [ "$how" = format1 ]; then
    no_snapshots $how
  else
    no_snapshots $how before
    check_object_map rbd/$how rbd/$how@before
    # What had changed before the copy still differs from the first snapshot.
    assert_eq "0 4194304 8388608" "$(rbd diff --whole-object --from-snap \
      before --format json rbd/$how | jq -r '.[].offset' | xargs)" "$how"
  fi
done

say "copies that are interrupted, killed, or fail"
# start_slow OPTION...: of 12 MB to a new image, 1 MB a second.
# A shell starts what is in the background with SIGINT ignored.
start_slow() {
  "$@" env --default-signal=INT "${radoscopy[@]}" \
    --bwlimit=1M --create data.img "$(image slow)" >slow.log 2>&1 &
  slow=$!
  own "$slow"
  wait_until 10 prints slow.radoscopy rbd ls rbd
}
for signal in INT TERM "TERM TERM"; do
  start_slow
  # As timeout(1) sends it: to the child, and to its group.
  for one in $signal; do kill -s "$one" "$slow"; done
  signal=$one status=0
  wait "$slow" || status=$?
  assert_eq $((128 + $(kill -l "$signal"))) "$status" "after SIG$signal"
  assert_no_match slow "$(rbd ls rbd)" "after SIG$signal"
done
start_slow env --ignore-signal=HUP
kill -s HUP "$slow"
sleep 1
is_running "$slow" || die "SIGHUP ended a copy under nohup"
kill "$slow"
wait "$slow" || :
assert_no_match slow "$(rbd ls rbd)" "after SIGHUP, ignored, and SIGTERM"
id_before=$(rados -p rbd ls | grep -c rbd_id)
start_slow
id=$(rbd info --format json rbd/slow.radoscopy | jq -r .id)
watcher=$(rados -p rbd listwatchers "rbd_header.$id" |
  sed -n 's/^watcher=\([^ ]*\) .*/\1/p')
kill -KILL "$slow"
wait "$slow" 2>/dev/null || :
# So that nobody waits until it counts as dead.
ceph osd blocklist add "$watcher" 2>/dev/null
expect_fail "slow.radoscopy exists.*rbd rm" \
  "${radoscopy[@]}" --create odd.img "$(image slow)"
wait_until 60 rbd rm --no-progress rbd/slow.radoscopy
copy --create odd.img "$(image slow)"
same_export rbd/slow odd.img "after a killed copy"
assert_eq $((id_before + 1)) "$(rados -p rbd ls | grep -c rbd_id)" "names"
assert_no_match "$id" "$(rados -p rbd ls)" "objects of the killed copy"
# Another image gets the name of the one that is being made: it stays.
copy --create odd.img "$(image other)"
"${radoscopy[@]}" --bwlimit=6M --create data.img "$(image stolen)" \
  2>stolen.log &
slow=$!
own "$slow"
wait_until 10 prints stolen.radoscopy rbd ls rbd
rados -p rbd get rbd_id.other other.id
rados -p rbd put rbd_id.stolen.radoscopy other.id
if wait "$slow"; then die "an image of somebody else has been renamed"; fi
assert_match "copy is complete, but called.*renamed" "$(cat stolen.log)"
same_export rbd/other odd.img "somebody else's image"
assert_no_match "stolen$" "$(rbd ls rbd)" "somebody else's image"
# OSDs that do not answer: it ends all the same, and says what stays.
rbd rm --no-progress rbd/slow
start_slow
sleep 1
osds=$(cat "$ceph_dir"/osd.*.pid)
for osd in $osds; do
  at_exit kill -CONT "$osd"
  kill -STOP "$osd"
done
sleep 0.5
begin=$(date +%s%N)
kill -INT "$slow"
status=0
wait "$slow" || status=$?
took=$((($(date +%s%N) - begin) / 1000000))
for osd in $osds; do kill -CONT "$osd"; done
assert_eq 130 "$status" "OSDs do not answer"
[ "$took" -le 4000 ] || die "SIGINT needed $took ms where no OSD answers"
assert_match "rbd/slow.radoscopy (is|may be) left.*rbd rm" "$(cat slow.log)"

say "snapshots of copies that are interrupted, killed, or fail"
# start_slow_export: of 12 MB, 1 MB a second.
start_slow_export() {
  env --default-signal=INT "${radoscopy[@]}" --bwlimit=1M "$(image ours)" \
    out.img >slow.log 2>&1 &
  slow=$!
  own "$slow"
  wait_until 10 prints radoscopy- rbd snap ls rbd/ours
}
for signal in INT TERM; do
  start_slow_export
  kill -s "$signal" "$slow"
  status=0
  wait "$slow" || status=$?
  assert_eq $((128 + $(kill -l "$signal"))) "$status" "after SIG$signal"
  no_snapshots ours before
done
expect_fail "smaller than source size" \
  "${radoscopy[@]}" --in-place "$(image ours)" "$(image piped)"
no_snapshots ours before
start_slow_export
kill -KILL "$slow"
wait "$slow" 2>/dev/null || :
for watcher in $(rbd status --format json rbd/ours |
  jq -r '.watchers[].address'); do
  ceph osd blocklist add "$watcher" 2>/dev/null
done
left=$(rbd snap ls rbd/ours | grep -o "radoscopy-[^ ]*")
check_object_map "rbd/ours@$left"
copy "$(image ours)" null: 2>named.log
assert_match "ours@$left: .* killed; then .rbd snap rm rbd/ours@$left." \
  "$(cat named.log)"
no_snapshots ours "before $left"
rbd snap rm --no-progress "rbd/ours@$left"
check_object_map rbd/ours
expect_fail "striped: no snapshot .*striped objects.*--no-snapshot" \
  "${radoscopy[@]}" "$(image striped "&format=striper")" null:
copy --no-snapshot "$(image striped "&format=striper")" null:
# While it is copied somebody flattens the image, without deep-flatten not its
# snapshots: rbd has to remove it then.
rbd clone --image-feature layering,exclusive-lock,object-map,fast-diff \
  rbd/one@s rbd/flat
"${radoscopy[@]}" --bwlimit=1M "$(image flat)" null: 2>flat.log &
slow=$!
own "$slow"
wait_until 10 prints radoscopy- rbd snap ls rbd/flat
rbd flatten --no-progress rbd/flat
kill "$slow"
wait "$slow" || :
assert_match "rbd/flat@radoscopy-.* is left, which .*flattened" \
  "$(cat flat.log)"
eval "$(sed -n 's/.*`\(rbd snap rm [^`]*\)`.*/\1/p' flat.log)" 2>/dev/null
no_snapshots flat ""

# The source fails in the middle.
expect_fail "nbdkit: read at .*&&" "${radoscopy[@]}" --create -S 0 -- \
  [ nbdkit --filter=error data 'data=@0x500000 1' size=8M \
  error-pread-rate=100% error-pread=EIO ] "$(image bad)"
assert_no_match bad "$(rbd ls rbd)" "after an error"

say "no space"
ceph osd pool set-quota data max_bytes 1 >/dev/null 2>&1
wait_until 90 prints "^pool .*'data'.* flags [^ ]*full" ceph osd dump
# is_full: the OSD learns of it later than the monitor.
is_full() {
  if "${radoscopy[@]}" --create=data-pool=data data.img "$(image full)" \
    2>full.log; then
    rbd rm --no-progress rbd/full
    return 1
  fi
}
wait_until 60 is_full
assert_match "rbd/full: write at [0-9]+\+[0-9]+: .*(space|full)" \
  "$(cat full.log)"
# The same of what OSDs copy, and of what is then read and written.
expect_fail "rbd/full: write at [0-9]+\+[0-9]+: .*(space|full|quota)" \
  "${radoscopy[@]}" --create=data-pool=data "$(image one)" "$(image full)"
expect_fail "rbd/full: offload at [0-9]+\+[0-9]+: .*(space|full|quota)" \
  "${radoscopy[@]}" --offload=always --create=data-pool=data \
  "$(image one)" "$(image full)"
assert_no_match full "$(rbd ls rbd)" "an image without space"
