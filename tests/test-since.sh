#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Differences between snapshots: an old full copy and the difference make the
# new image, byte for byte, on random histories of several kinds of images; an
# ordinary client still gets a full copy; and small changes are small.

source "$(dirname "$0")/functions.sh"
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

# history URI SEED COUNT: random changes.
cat >"$tmp/history.py" <<'EOF'
import random, sys, nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
r = random.Random(sys.argv[2])
size = h.get_size()
for i in range(int(sys.argv[3])):
    at = r.randrange(size) & -512
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
change() { /usr/bin/python3 "$tmp/history.py" "$(uri "$1")" "$2" "$3"; }

# follows IMAGE OLD [NEW]: OLD's copy and the difference make NEW.
follows() {
  local new=$1${3:+@$3}
  cp "$tmp/$1.$2" "$tmp/copy"
  timeout 60 /usr/bin/python3 "$update" "$(uri "$new@since=$2")" "$tmp/copy"
  [ -f "$tmp/$1.${3:-head}" ] || rbd_export "p/$new" "$tmp/$1.${3:-head}"
  assert_same_bytes "$tmp/copy" "$tmp/$1.${3:-head}" "$new since $2"
}

# check IMAGE SEED: a random history.
check() {
  local image=$1 seed=$2
  change "$image" "$seed.1" 12
  rbd_snap "p/$image@s1"
  rbd_export "p/$image@s1" "$tmp/$image.s1"
  change "$image" "$seed.2" 6
  rbd_snap "p/$image@gone"
  change "$image" "$seed.3" 6
  rbd resize --no-progress --allow-shrink --size 21M "p/$image"
  rbd_snap "p/$image@s2"
  rbd_export "p/$image@s2" "$tmp/$image.s2"
  rbd resize --no-progress --size 45M "p/$image"
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

# Read-only, and clear errors.
assert_eq true "$(nbdinfo --json "$(uri fast@since=s1)" |
  grep -o '"is_read_only": [a-z]*' | cut -d' ' -f2)" "read-only"
for bad in fast@s1@since=s1 fast@s1@since=s3 fast@since=nothing fast@since= \
  fast@since=a@b; do
  expect_fail "server|export|snapshot" nbdinfo "$(uri "$bad")"
done
assert_match "is not older than" "$(cat "$nbdkit_log")"
assert_match "no snapshot 'nothing'" "$(cat "$nbdkit_log")"

# OLD is deleted while the difference is open: an error, never "unchanged".
cat >"$tmp/deleted.py" <<'EOF'
import subprocess, sys, nbd
h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(sys.argv[1])
ask = lambda: h.block_status(1 << 20, 0, lambda *a: 0)
ask()
subprocess.run(["rbd", "snap", "rm", "--no-progress", "p/fast@s1"], check=True)
try:
    ask()
except nbd.Error as e:
    assert e.errno == "EIO", e
else:
    sys.exit("no error")
EOF
/usr/bin/python3 "$tmp/deleted.py" "$(uri fast@s3@since=s1)"
stop_nbdkit
