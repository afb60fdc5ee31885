#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Lists of exports: every name opens what it is given for, whatever characters
# are in it; how long they may take with many images, snapshots and an OSD that
# does not answer; more than nbdkit can give.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program nbdinfo jq
requires /usr/bin/python3 -c 'import rados'
requires_built "$nbd_expect"
requires_plugin
start_ceph --osds 2
for pool in names scale big stuck; do make_pool $pool; done

# Images as `rbd create` and `rbd snap create` make them, but by the thousand,
# and with names that today's `rbd` refuses.  Ceph: src/cls/rbd/cls_rbd.cc.
cat >"$tmp/images.py" <<'PY'
import os, rados, struct, sys

cluster = rados.Rados(conffile=os.environ["CEPH_CONF"])
cluster.connect()

def text(s):
    s = s if isinstance(s, bytes) else s.encode()
    return struct.pack("<I", len(s)) + s

class Pool:
    def __init__(self, name):
        self.io = cluster.open_ioctx(name)
        self.images = 0
        self.snaps = 0
    def image(self, name, size, snaps=()):
        """snaps: (name, size) pairs"""
        self.images += 1
        id = "ab%04x" % self.images
        header = "rbd_header." + id
        def call(oid, method, data):
            self.io.execute(oid, "rbd", method, data)
        self.io.write_full("rbd_id." + name, text(id))
        call(header, "create", struct.pack("<QBQ", size, 22, 1) +
             text("rbd_data." + id) + struct.pack("<q", -1))
        call("rbd_directory", "dir_add_image", text(name) + text(id))
        for snap, snap_size in snaps:
            # A snapshot has the size that its image has.
            self.snaps += 1
            call(header, "set_size", struct.pack("<Q", snap_size))
            call(header, "snapshot_add",
                 text(snap) + struct.pack("<Q", self.snaps))
        call(header, "set_size", struct.pack("<Q", size))

odd = ["a@b", "@a", "a@", "a/b", "/a", "a/", "a@since=b", "since=x", "50%off",
       "%40", "p%", "new\nline", "a"]
if sys.argv[1] == "names":
    pool = Pool("names")
    sizes = iter(range(1, 1000))
    for name in odd:
        few = odd if name in ("a", "a@b") else []
        pool.image(name, next(sizes) << 20,
                   [(s, next(sizes) << 20) for s in few])
elif sys.argv[1] == "scale":
    pool = Pool("scale")
    pool.image("first", 1 << 20, [("s%d" % i, 1 << 20) for i in range(600)])
    for i in range(150):
        pool.image("image%d" % i, 1 << 20, [("s", 1 << 20)])
elif sys.argv[1] == "stuck":
    pool = Pool("stuck")
    for i in range(40):
        pool.image("image%d" % i, 1 << 20, [("s", 1 << 20)])
elif sys.argv[1] == "big":
    # 10,001 images, of which the directory is enough.
    pool = Pool("big")
    for first in range(0, 10001, 1000):
        numbers = range(first, min(first + 1000, 10001))
        entries = {}
        for i in numbers:
            entries["name_image%05d" % i] = text("ab%05x" % i)
            entries["id_ab%05x" % i] = text("image%05d" % i)
        with rados.WriteOpCtx() as op:
            pool.io.set_omap(op, tuple(entries), tuple(entries.values()))
            pool.io.operate_write_op(op, "rbd_directory")
PY
images() { /usr/bin/python3 "$tmp/images.py" "$1"; }

list() { "$nbd_expect" --list "$(uri)" | cut -f 1; }

# took SECONDS COMMAND...: it ends well within this time.
took() {
  local limit=$1 start=${EPOCHREALTIME/./} spent
  shift
  "$@"
  spent=$((${EPOCHREALTIME/./} - start))
  [ $spent -le $((limit * 1000000)) ] ||
    die "'$*' took $((spent / 1000)) ms, not at most $limit s"
}

say "what is listed opens, and is what it says"
images names
start_rados pool=names
list >"$tmp/names"
assert_eq 39 "$(wc -l <"$tmp/names")" "names"
assert_eq 39 "$(sort -u "$tmp/names" | wc -l)" "different names"
# Each image and snapshot has a size of its own.
while IFS= read -r name; do
  nbdinfo --size "$(uri "$name")"
done <"$tmp/names" | sort -n >"$tmp/sizes"
seq 1 39 | while read -r n; do echo $((n << 20)); done >"$tmp/wanted"
assert_same_bytes "$tmp/wanted" "$tmp/sizes" "sizes"
# Some of them by hand.
"$nbd_expect" "$(uri a%40b)" size 1M
"$nbd_expect" "$(uri a%40b@a%2Fb)" size 5M , flag read-only yes
"$nbd_expect" "$(uri a%40since%3Db)" size 20M
"$nbd_expect" "$(uri a@a%40)" size 29M
# A percent sign that begins no escape is itself.
"$nbd_expect" "$(uri 50%off)" size 22M
"$nbd_expect" "$(uri a@since=a%2Fb)" description difference , size 26M
# Clients of an image and of another's snapshot with the same letters.
"$nbd_expect" "$(uri a%40b)" size 1M , \
  run "'$nbd_expect' '$(uri a@b)' connect fail" , \
  run "'$nbd_expect' '$(uri a@a%40b)' size 27M"
stop_nbdkit

say "the same names as parameters"
serves() {
  local size=$1
  shift
  start_rados "$@"
  "$nbd_expect" "$(uri)" size "$size"
  stop_nbdkit
}
serves 5M "names/a%40b@a%2Fb"
serves 5M pool=names image-name=a@b snapshot=a/b
serves 23M pool=names image-name=%40
serves 26M pool=names image=a since=a/b
expect_fail "given already" "${nbdkit[@]}" -U "$tmp/s" rados pool=names \
  image=a image-name=b
expect_fail "must not contain" "${nbdkit[@]}" -U "$tmp/s" rados \
  "conf=$ceph_conf" pool=names image-name=new/one create=true size=1M
expect_fail "does not exist" "${nbdkit[@]}" -U "$tmp/s" rados \
  "conf=$ceph_conf" pool=names image-name=a@b@a/b

say "list="
start_rados pool=names list=images
assert_eq 13 "$(list | wc -l)" "list=images"
assert_eq "" "$(list | grep -v '^[^@]*$' || :)" "snapshots with list=images"
stop_nbdkit
start_rados pool=names list=none
assert_eq "" "$(list)" "list=none"
"$nbd_expect" "$(uri a)" size 26M
stop_nbdkit
# Nor is the only image told.
make_pool one
rbd create --size 7M one/alone
start_rados pool=one list=none
"$nbd_expect" "$(uri)" connect fail
"$nbd_expect" "$(uri alone)" size 7M
stop_nbdkit
expect_fail "not one of all, images, none" "${nbdkit[@]}" -U "$tmp/s" rados \
  pool=names list=some
expect_fail "list= is for a whole pool" "${nbdkit[@]}" -U "$tmp/s" rados \
  names/a list=all

say "hundreds of images and snapshots"
images scale
start_rados pool=scale
took 4 list >"$tmp/names"
assert_eq 901 "$(wc -l <"$tmp/names")" "names"
assert_eq first@s599 "$(grep -x 'first@s599' "$tmp/names")" "a snapshot"
for name in first@s0 first@s300 first@s599; do
  took 2 "$nbd_expect" "$(uri $name)" size 1M
done
stop_nbdkit

say "more than nbdkit lists"
images big
start_rados pool=big
took 4 list >"$tmp/names"
assert_eq 10000 "$(wc -l <"$tmp/names")" "names"
grep -q "has 10001 images, of which only the first 10000" "$nbdkit_log" ||
  die "the log does not tell of images that are not listed"
took 1 "$nbd_expect" "$(uri)" connect fail
stop_nbdkit

say "an OSD that does not answer"
images stuck
primary() {
  ceph osd map stuck "$1" --format json | jq .acting_primary
}
# The directory is on the other one.
stuck=$((1 - $(primary rbd_directory)))
on_stuck=0
for i in {1..40}; do
  [ "$(primary "rbd_header.ab$(printf %04x "$i")")" != "$stuck" ] ||
    on_stuck=$((on_stuck + 1))
done
[ $on_stuck -gt 0 ] && [ $on_stuck -lt 40 ] || die "all headers on one OSD"
osd=$(cat "$ceph_dir"/osd."$stuck".pid)
start_rados pool=stuck connect-timeout=3
short=$socket
short_log=$nbdkit_log
start_rados pool=stuck connect-timeout=60
at_exit kill -CONT "$osd"
kill -STOP "$osd"
list_short() {
  "$nbd_expect" --list "nbd+unix:///?socket=$short" | cut -f 1
}
took 6 list_short >"$tmp/names"
assert_eq $((80 - on_stuck)) "$(wc -l <"$tmp/names")" "names"
assert_eq 40 "$(grep -c '^image[0-9]*$' "$tmp/names")" "images"
grep -Eq "$on_stuck of 40 images are listed without their snapshots: image" \
  "$short_log" || die "the log does not name the images"

say "a list that nobody waits for any more ends"
"$nbd_expect" --list "$(uri)" >"$tmp/out" 2>&1 &
client=$!
own $client
sleep 0.5
stop_pid $client KILL
wait_until 5 grep -q "nobody waits" "$nbdkit_log"
# The end of the server.
"$nbd_expect" --list "$(uri)" >"$tmp/out" 2>&1 &
client=$!
own $client
sleep 0.5
took 5 stop_nbdkit
wait $client && die "the list did not fail"
kill -CONT "$osd"
