#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# mini-ceph: the cluster keeps data over the crash of an OSD, two clusters do
# not see each other, wrong use is an error, and stop leaves no process and
# nothing outside of the cluster's folder.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program ceph rados rbd ceph-mon ceph-mgr ceph-osd

# Whatever mini-ceph makes outside the folders given to it lands here.
export TMPDIR=$tmp/tmpdir
mkdir "$TMPDIR"

# One path is too long for a unix socket: 107 bytes.
one=$tmp/one
two=$tmp/two/$(printf 'x%.0s' {1..100})
ceph_dirs+=("$one" "$two")

# daemons DIR: process ids of what runs with the configuration in DIR.
daemons() { pgrep -f -- " -c $1/ceph.conf" || :; }

# status DIR: the lines about daemons.
status() { "$mini_ceph" status "$1" | grep '^[a-z]*\.[a-z0-9]*: ' || :; }

# Two clusters at the same time.
"$mini_ceph" start "$one" --osds 2 --pool a,b --pool c \
  >"$tmp/one.out" 2>"$tmp/one.err" &
pid=$!
"$mini_ceph" start "$two" --cephx --store memstore --size 1G \
  >"$tmp/two.out" 2>"$tmp/two.err" ||
  die "start with cephx: $(cat "$tmp/two.err")"
wait "$pid" || die "start with two OSDs: $(cat "$tmp/one.err")"
assert_eq "$one/ceph.conf" "$(cat "$tmp/one.out")" "output of start"
assert_eq "$two/ceph.conf" "$(cat "$tmp/two.out")" "output of start"
assert_eq 4 "$(daemons "$one" | wc -l)" "daemons"
assert_eq 3 "$(daemons "$two" | wc -l)" "daemons"
assert_eq 4 "$(status "$one" | grep -c ': running')" "running daemons"

expect_fail 'is running here' "$mini_ceph" start "$one"

# env names the cluster.
in_one() { (eval "$("$mini_ceph" env "$one")" && exec "$@"); }
in_two() { (eval "$("$mini_ceph" env "$two")" && exec "$@"); }
fsid1=$(in_one ceph fsid)
fsid2=$(in_two ceph fsid)
[ "$fsid1" != "$fsid2" ] || die "both clusters have the id $fsid1"
assert_eq "a b c rbd" "$(in_one rados lspools | sort | xargs)" "pools"
assert_eq "rbd" "$(in_two rados lspools)" "pools"

# The object classes are loaded, and a pool has what start promises.
in_one rbd create --size 64M image
assert_eq image "$(in_one rbd ls)" "rbd ls"
assert_eq "size: 2" "$(in_one ceph osd pool get b size)" "size of a pool"
assert_eq "min_size: 1" "$(in_one ceph osd pool get b min_size)"
assert_eq "size: 1" "$(in_two ceph osd pool get rbd size)"

# Authentication is real.
in_two ceph auth get-or-create client.reader mon 'allow r' \
  osd 'allow r pool=rbd' -o "$tmp/reader.key"
in_two rados -p rbd put object "$0"
in_two rados --id reader --keyring "$tmp/reader.key" -p rbd get object \
  "$tmp/object"
assert_same_bytes "$0" "$tmp/object" "object read with a key of its own"
expect_fail 'not permitted' rados -c "$two/ceph.conf" --id reader \
  --keyring "$tmp/reader.key" -p rbd put object2 "$0"
expect_fail "bad_method|failed to fetch|couldn't connect" rados -c "$two/ceph.conf" --id reader \
  -p rbd get object "$tmp/object2"

# Data survives the crash of an OSD, with and without the other one.
random_file "$tmp/data1" 9000000 1
random_file "$tmp/data2" 9000000 2
in_one rados -p a put data1 "$tmp/data1"
"$mini_ceph" kill-osd "$one" 0
assert_eq 3 "$(daemons "$one" | wc -l)" "daemons after kill-osd"
assert_eq "osd.0: not running" "$(status "$one" | grep ': not running')"
in_one timeout 60 rados -p a put data2 "$tmp/data2"
"$mini_ceph" start-osd "$one" 0
"$mini_ceph" kill-osd "$one" 1
for object in data1 data2; do
  in_one timeout 60 rados -p a get $object "$tmp/$object.out"
  assert_same_bytes "$tmp/$object" "$tmp/$object.out" "$object from osd.0"
done
"$mini_ceph" kill-osd "$one" 0
"$mini_ceph" start-osd "$one" 1
"$mini_ceph" start-osd "$one" 0
for object in data1 data2; do
  in_one timeout 60 rados -p a get $object "$tmp/$object.out"
  assert_same_bytes "$tmp/$object" "$tmp/$object.out" "$object"
done
assert_eq 4 "$(status "$one" | grep -c ': running')" "running daemons"

expect_fail 'osd.1 is running' "$mini_ceph" start-osd "$one" 1
expect_fail 'no OSD 2' "$mini_ceph" kill-osd "$one" 2
expect_fail 'not a size' "$mini_ceph" start "$tmp/three" --size many
expect_fail 'unknown option' "$mini_ceph" start "$tmp/three" --many
[ ! -e "$tmp/three" ] || die "a refused start made its folder"

# A process is not gone with its first thread: the others may still hold the
# lock that the next OSD needs.
eval "$(sed -n '/^gone ()/,/^}/p' "$mini_ceph")"
mkfifo "$tmp/thread"
/usr/bin/python3 -c 'import ctypes, threading
threading.Thread(target=lambda: open("'"$tmp/thread"'").read()).start()
ctypes.CDLL(None).pthread_exit(None)' &
pid=$!
own $pid
wait_until 10 eval '[[ $(ps -o stat= -p $pid) = Z* ]]'
! gone $pid || die "gone, with a thread that runs"
: >"$tmp/thread"
wait_until 10 gone $pid

# Only one of them is stopped, and a folder of somebody else is left alone.
pids=$(daemons "$one")
"$mini_ceph" stop "$one"
"$mini_ceph" stop "$one"
assert_eq "" "$(daemons "$one")" "daemons after stop"
for pid in $pids; do
  case $(ps -o stat= -p "$pid") in
  '' | Z*) ;;
  *) die "process $pid is left: $(ps -o args= -p "$pid")" ;;
  esac
done
assert_eq "$fsid2" "$(in_two ceph fsid)" "the other cluster"
mkdir -p "$tmp/foreign/mon"
"$mini_ceph" stop "$tmp/foreign"
expect_fail 'not of mini-ceph' "$mini_ceph" start "$tmp/foreign"
[ -d "$tmp/foreign/mon" ] || die "stop removed a folder of somebody else"

# An interrupted start stops what it has started.
"$mini_ceph" start "$one" >"$tmp/interrupted.out" 2>&1 &
pid=$!
wait_until 60 test -s "$one/mon.a.pid"
kill -TERM "$pid"
wait "$pid" && die "the interrupted start ended well"
assert_eq "" "$(daemons "$one")" "daemons after an interrupted start"

"$mini_ceph" stop "$two"
assert_eq "" "$(daemons "$two")" "daemons after stop"
assert_eq "" "$(ls -A "$TMPDIR")" "files outside of the folder"
for dir in "$one" "$two"; do
  for file in mon mgr osd.0 osd.1 run; do
    [ ! -e "$dir/$file" ] || die "stop left $dir/$file"
  done
done
