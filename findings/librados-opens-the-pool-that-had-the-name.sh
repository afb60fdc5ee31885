#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A long-lived librados client opens a pool by name and gets the pool that had
# the name before.
#
# Versions: librados and Ceph 18.2.7 (Debian 13).
#
# `ceph osd pool rename` returns when the monitors have the new name. One
# expects that rados_ioctx_create finds it from then on.  But a client that has
# nothing to ask keeps its map, and librados asks the monitors only for a name
# that the map lacks: seconds after two pools have been renamed it opens the
# old one, reads it and would write to it.  It hears of the new map when an OSD
# answers, so opening the name again afterwards gives the right pool.
# rados_wait_for_latest_osdmap before opening does, too.
#
# Seen:
#   before: pool 1, says "first"
#   renamed, 5 seconds later: pool 1, says "first"
#   opened again: pool 2, says "second"

source "$(dirname "$0")/packages.bash" || exit 1
source "$(dirname "$0")/ceph.bash" || exit 1
start_ceph trixie 18.2.7+ds-1+deb13u1
make_pool disks other
for pool in disks=first other=second; do
  printf %s "${pool#*=}" >"$tmp/root/tmp/says"
  run rados -p "${pool%=*}" put who /tmp/says
done

cat >"$tmp/root/tmp/client.py" <<'CLIENT'
import subprocess, time, rados

client = rados.Rados(conffile="/etc/ceph/ceph.conf")
client.connect()

def look(when):
    with client.open_ioctx("disks") as pool:
        print(f"{when}: pool {pool.get_pool_id()},"
              f" says \"{pool.read('who').decode()}\"")

look("before")
for names in ("disks", "away"), ("other", "disks"):
    subprocess.run(["ceph", "osd", "pool", "rename", *names], check=True,
                   stderr=subprocess.DEVNULL)
time.sleep(5)
look("renamed, 5 seconds later")
time.sleep(1)
look("opened again")
client.shutdown()
CLIENT
run python3 /tmp/client.py | tee "$tmp/seen"
grep -q '5 seconds later: .*"first"' "$tmp/seen" ||
  changed "the client opens the pool that has the name"
