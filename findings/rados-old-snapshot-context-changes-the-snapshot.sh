#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A client that has not heard of a snapshot changes what the snapshot shows, or
# does not, depending on who wrote to the object last.
#
# Versions: librados and Ceph 18.2.7 (Debian 13).
#
# With self-managed snapshots, which RBD's are, each write brings the list of
# snapshots that the client knows.  The monitors give out their numbers, and
# the pool's part of the OSD map has the newest one.  One expects that an OSD
# refuses a write whose list is older than that, or keeps the old data all the
# same.  It takes the write as it is: the object that the snapshot shows is the
# new one from then on.  Only where somebody has written to the same object with
# the newer list in between does the OSD go by that, and the snapshot stays.
# So a client that was cut off or suspended (RBD: whose watch has ended) damages
# a snapshot in some objects and not in others.
#
# Seen:
#   one: "old" in the snapshot, then "stale"
#   two: "old" in the snapshot, then "old"

source "$(dirname "$0")/packages.bash" || exit 1
source "$(dirname "$0")/ceph.bash" || exit 1
start_ceph trixie 18.2.7+ds-1+deb13u1
make_pool disks

cat >"$tmp/root/tmp/snapshots.py" <<'CLIENT'
import rados

cluster = rados.Rados(conffile="/etc/ceph/ceph.conf")
cluster.connect()
stale, knows, reader = (cluster.open_ioctx("disks") for _ in range(3))
names = ("one", "two")
for name in names:
    stale.write_full(name, b"old")
snap = knows.create_self_managed_snap()
knows.set_self_managed_snap_write([snap])
reader.set_read(snap)
before = {name: reader.read(name).decode() for name in names}
knows.write_full("two", b"new")
for name in names:
    stale.write_full(name, b"stale")
for name in names:
    print(f'{name}: "{before[name]}" in the snapshot,'
          f' then "{reader.read(name).decode()}"')
for pool in stale, knows, reader:
    pool.close()
cluster.shutdown()
CLIENT
run python3 /tmp/snapshots.py | tee "$tmp/seen"
grep -q '^one: "old".* then "stale"$' "$tmp/seen" ||
  changed "the snapshot stays"
grep -q '^two: "old".* then "old"$' "$tmp/seen" ||
  changed "the snapshot changes where it was written to"
