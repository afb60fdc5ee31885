#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Differences between snapshots: an old full copy and the difference make the
# new image, byte for byte, on random histories of several kinds of images; the
# difference is the one of `rbd diff`, sector by sector, too; an ordinary client
# still gets a full copy; and small changes are small.

source "$(dirname "$0")/functions.sh" || exit 1
requires_plugin
requires_program nbdcopy nbdinfo qemu-img rbd
requires /usr/bin/python3 -c 'import nbd'

pod=$tests_srcdir/../man/nbdkit-rados-plugin.pod
# The script of the manual page, as it stands there.
update=$tmp/update.py
sed -n '/^=head2 Bring an old copy up to date/,/^=head[12] [^B]/s/^ //p' "$pod" \
  >"$update"
[ "$(wc -l <"$update")" -ge 20 ] || die "no script in the manual page"

start_ceph --size 4G
make_pool p
start_rados pool=p lock=auto

# history.py URI SEED COUNT UNIT: random changes, each from a multiple of UNIT.
cat >"$tmp/history.py" <<'EOF'
import random, sys, nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
r = random.Random(sys.argv[2])
size = h.get_size()
unit = int(sys.argv[4])
for i in range(int(sys.argv[3])):
    at = r.randrange(size) // unit * unit
    n = min(r.choice([512, 4096, 65536, 300000, 1 << 20, 5 << 20]), size - at)
    what = r.randrange(5)
    if what < 3:
        h.pwrite(r.randbytes(min(n, 1 << 20)), at)
    elif what == 3:
        h.trim(n, at)
    else:
        h.zero(n, at)
h.shutdown()
EOF
unit=512
change() {
  /usr/bin/python3 "$tmp/history.py" "$(uri "$1")" "$2" "$3" "$unit"
}

# like-rbd.py URI OLD NEW PARENT <DIFF: whether the server's difference is the
# one of `rbd diff`, in sectors of 512 bytes that have changed when a byte has.
# Both tell what was written, but may differ where OLD and NEW both read as
# zeros:
#   - librbd counts what was written behind OLD's end of an object and cut off
#     again before NEW; we do not.
#   - We count all that was the parent's in OLD or NEW and the object's in the
#     other, librbd only as much as the object has.
# Behind the end of OLD, we count everything.
cat >"$tmp/like-rbd.py" <<'EOF'
import json, sys, nbd
uri, old, new, parent = sys.argv[1:]
with open(old, "rb") as f:
    old = f.read()
with open(new, "rb") as f:
    new = f.read()
end = len(old)  # of OLD
old = old[:len(new)].ljust(len(new), b"\0")
h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(uri)
size = h.get_size()
assert size == len(new)
sectors = range(0, size, 512)
ours = [None] * len(sectors)  # data, zeros or neither
at = 0
while at < size:
    entries = []
    h.block_status(size - at, at, lambda c, o, e, error: entries.extend(e))
    for length, flags in zip(entries[::2], entries[1::2]):
        assert at % 512 == 0, f"an area begins at {at}"
        n = (length + 511) // 512
        ours[at // 512:at // 512 + n] = n * [
            "zeros" if flags & nbd.STATE_ZERO else
            None if flags & nbd.STATE_HOLE else "data"]
        at += length
assert at == size and len(ours) == len(sectors)
theirs = [None] * len(sectors)  # the same; data, too, where rbd has several
for extent in json.load(sys.stdin):
    at = int(extent["offset"])
    to = at + int(extent["length"])
    for n in range(at // 512, (to + 511) // 512):
        whole = at <= n * 512 and min(n * 512 + 512, size) <= to
        theirs[n] = ("zeros" if whole and extent["exists"] == "false" else
                     "data")
assert "data" in theirs, "nothing to compare"
for at, we, they in zip(sectors, ours, theirs):
    to = min(at + 512, size)
    where = f"{at} to {to}: {we} here, {they} in rbd"
    zeros = not (old[at:to] + new[at:to]).strip(b"\0")
    if not we:
        assert old[at:to] == new[at:to], "changed: " + where
        assert to <= end, "behind OLD: " + where
        assert not they or zeros, where
    elif not they and to <= end:
        assert parent == "parent" and zeros, where
    assert not (we == "data" and they == "zeros"), where
EOF

# follows IMAGE OLD [NEW]: OLD's copy and the difference make NEW.
follows() {
  local new=$1${3:+@$3}
  cp "$tmp/$1.$2" "$tmp/copy"
  timeout 60 /usr/bin/python3 "$update" "$(uri "$new@since=$2")" "$tmp/copy"
  [ -f "$tmp/$1.${3:-head}" ] || rbd_export "p/$new" "$tmp/$1.${3:-head}"
  assert_same_bytes "$tmp/copy" "$tmp/$1.${3:-head}" "$new since $2"
  rbd diff --from-snap "$2" --format json "p/$new" >"$tmp/diff"
  /usr/bin/python3 "$tmp/like-rbd.py" "$(uri "$new@since=$2")" "$tmp/$1.$2" \
    "$tmp/$1.${3:-head}" "$([ "$1" != clone ] || echo parent)" <"$tmp/diff" ||
    die "$new since $2 is not the difference of rbd"
}

# check IMAGE SEED [SMALL LARGE]: a random history of changes and sizes.
check() {
  local image=$1 seed=$2 small=${3:-21M} large=${4:-45M}
  change "$image" "$seed.1" 12
  rbd_snap "p/$image@s1"
  rbd_export "p/$image@s1" "$tmp/$image.s1"
  change "$image" "$seed.2" 6
  rbd_snap "p/$image@gone"
  change "$image" "$seed.3" 6
  rbd resize --no-progress --allow-shrink --size "$small" "p/$image"
  rbd_snap "p/$image@s2"
  rbd_export "p/$image@s2" "$tmp/$image.s2"
  rbd resize --no-progress --size "$large" "p/$image"
  change "$image" "$seed.4" 6
  rbd_snap "p/$image@s3"
  change "$image" "$seed.5" 3
  follows "$image" s1 s2
  follows "$image" s1 s3
  rbd snap rm --no-progress "p/$image@gone"
  follows "$image" s1 s2
  follows "$image" s1
  follows "$image" s2 s3
  follows "$image" s2
}

rbd create --size 40M p/fast
check fast 1
rbd create --size 40M --image-feature layering p/plain
check plain 2
rbd create --size 40M --object-size 1M --stripe-unit 64K --stripe-count 3 \
  p/striped
check striped 3
# Sizes and changes that begin and end at any byte.
unit=1
rbd create --size 9000111B --object-size 256K --stripe-unit 1K \
  --stripe-count 3 p/odd
check odd 8 7000777B 12000555B
unit=512
rbd create --size 40M p/base
change base 4 12
rbd_snap p/base@b
rbd clone p/base@b p/clone --rbd-default-clone-format 2
check clone 5
rm "$tmp/clone.head"
rbd flatten --no-progress p/clone
follows clone s1
follows clone s3
make_format1_image p one $((40 << 20)) 22
change one 6 12
rbd_snap p/one@s1
rbd_export p/one@s1 "$tmp/one.s1"
change one 7 6
rbd_snap p/one@s2
follows one s1 s2
follows one s1

# An ordinary client gets all of the image.
nbd_get fast@s3@since=s1 "$tmp/full"
assert_same_bytes "$tmp/full" "$tmp/fast.s3" "nbdcopy of a difference"
qemu-img convert -f raw -O raw "$(uri fast@s3@since=s1)" "$tmp/full.qemu"
assert_same_bytes "$tmp/full.qemu" "$tmp/fast.s3" "qemu-img of a difference"

# qemu-img makes the difference an image on top of the old copy.
rm "$tmp"/full*
for image in fast odd; do
  for new in s2 s3; do # the one is smaller than OLD, the other larger
    qemu-img convert -f raw -B "$tmp/$image.s1" -F raw -O qcow2 \
      "$(uri $image@$new@since=s1)" "$tmp/incremental.qcow2"
    qemu-img convert -O raw "$tmp/incremental.qcow2" "$tmp/together"
    truncate -s "$(stat -c %s "$tmp/$image.$new")" "$tmp/together"
    assert_same_bytes "$tmp/together" "$tmp/$image.$new" \
      "$image@$new by qemu-img"
  done
done

# Exactness.  4 KiB in an object of 4 MiB; an area that becomes zero.
for features in layering layering,exclusive-lock,object-map,fast-diff; do
  rbd create --size 1G --image-feature "$features" p/small
  /usr/bin/python3 - "$(uri small)" <<'EOF'
import sys, nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"a" * (8 << 20), 0)
h.shutdown()
EOF
  rbd_snap p/small@old
  /usr/bin/python3 - "$(uri small)" <<'EOF'
import sys, nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"b" * 4096, 1 << 20)
h.zero(65536, 5 << 20)
h.shutdown()
EOF
  rbd_snap p/small@new
  rbd_export p/small@old "$tmp/small"
  qemu-img convert -f raw -B "$tmp/small" -F raw -O qcow2 \
    "$(uri small@new@since=old)" "$tmp/incremental.qcow2"
  [ "$(stat -c %s "$tmp/incremental.qcow2")" -lt 1000000 ] ||
    die "qemu-img copied more than the difference, $features"
  for new in small small@new; do
    map=$(nbdinfo --map "$(uri $new@since=old)" | awk '{print $1, $2, $3}')
    assert_eq "0 1048576 1
1048576 4096 0
1052672 4190208 1
5242880 65536 2
5308416 1068433408 1" "$map" "map of $new since old, $features"
  done
  rbd snap purge --no-progress p/small >/dev/null
  rbd rm --no-progress p/small
done

# Only what an object had, when it is gone, and its parent's part, too.
rbd create --size 8M p/parent
/usr/bin/python3 -c 'import sys, nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"p" * 65536, 4 << 20)' "$(uri parent)"
rbd_snap p/parent@s
rbd clone p/parent@s p/cut --rbd-default-clone-format 2
/usr/bin/python3 -c 'import sys, nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"c" * 512, 4 << 20)' "$(uri cut)"
rbd_snap p/cut@old
rbd resize --no-progress --allow-shrink --size 4M p/cut
rbd resize --no-progress --size 8M p/cut
assert_eq "0 4194304 1
4194304 65536 2
4259840 4128768 1" "$(nbdinfo --map "$(uri cut@since=old)" |
  awk '{print $1, $2, $3}')" "map of a clone that was cut"

# Read-only, and clear errors.
assert_eq true "$(nbdinfo --json "$(uri fast@since=s1)" |
  grep -o '"is_read_only": [a-z]*' | cut -d' ' -f2)" "read-only"
for bad in fast@s1@since=s1 fast@s1@since=s3 fast@since=nothing fast@since= \
  fast@since=a@b; do
  expect_fail "server|export|snapshot" nbdinfo "$(uri "$bad")"
done
assert_match "is not older than" "$(cat "$nbdkit_log")"
assert_match "no snapshot 'nothing'" "$(cat "$nbdkit_log")"

# OLD is deleted while the difference is open: an error, never "unchanged".  What
# is read is as right as before.  When NEW is deleted, that ends, too.
cat >"$tmp/deleted.py" <<'EOF'
import subprocess, sys, nbd
def connect(uri):
    h = nbd.NBD()
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(uri)
    return h
to_snap, to_head = map(connect, sys.argv[1:])
def status(h):
    h.block_status(1 << 20, 0, lambda *a: 0)
def fails(ask):
    try:
        ask()
    except nbd.Error as e:
        assert e.errno == "EIO", e
    else:
        sys.exit("no error")
def remove(snap):
    subprocess.run(["rbd", "snap", "rm", "--no-progress", snap], check=True)
data = [(h, h.pread(1 << 20, 0)) for h in (to_snap, to_head)]
for h, was in data:
    status(h)
remove("p/fast@s1")
for h, was in data:
    fails(lambda: status(h))
    assert h.pread(1 << 20, 0) == was
remove("p/fast@s3")
fails(lambda: to_snap.pread(1 << 20, 0))
assert to_head.pread(1 << 20, 0) == data[1][1]
EOF
/usr/bin/python3 "$tmp/deleted.py" "$(uri fast@s3@since=s1)" \
  "$(uri fast@since=s1)"
stop_nbdkit
