#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The parent of clones that are being served is migrated.  Meanwhile their
# requests fail and say why; afterwards they succeed again, also those of the
# clients that were connected all the time, and whatever became of it.

source "$(dirname "$0")/functions.sh" || exit 1
requires_built "$nbd_expect"
requires_plugin
start_ceph
make_pool other

fill_file "$tmp/data" 1048576 141
rbd import --no-progress --object-size 64K "$tmp/data" rbd/parent
rbd_snap rbd/parent@s
rbd clone --rbd-default-clone-format 2 rbd/parent@s rbd/child
rbd_snap rbd/child@s
# Nothing changes in the header of this one.
rbd clone --rbd-default-clone-format 2 rbd/child@s rbd/grandchild

# Clients wait for it.
reach() { touch "$tmp/reached.$1"; }
reached="until [ -e '$tmp/reached.%s' ]; do [ -d '$tmp' ]; sleep 0.05; done"
reached="set -e; $reached"
at() { printf "$reached" "$1"; }

# client EXPORT RESULT [STEP...]: is connected all the time, has that result
# while the parent is being migrated, and takes the steps afterwards.
clients=()
client() {
  local name=$1 result=$2
  shift 2
  "$nbd_expect" "$(uri "$name")" within 120 , read-is 0 64K 97 , \
    run "touch '$tmp/connected.$name'; $(at aborting)" , \
    until 20 read 0 64K "$result" , run "touch '$tmp/failed.$name'; $(at aborted)" , \
    until 20 read-is 0 64K 97 , status 0 1M ok , \
    run "touch '$tmp/well.$name'; $(at moving)" , \
    until 20 read 0 64K "$result" , status 0 1M "$result" , run "$(at moved)" , \
    until 20 read-is 0 64K 97 , extents 0 1M 1048576:data "$@" \
    >"$tmp/client.$name" 2>&1 &
  clients+=("$!:$name")
  own "$!"
}
exports=(child child@s grandchild)
all() {
  local name
  for name in "${exports[@]}"; do [ -e "$tmp/$1.$name" ] || return; done
}

start_rados pool=rbd
client child EIO , write 4096 4096 7 ok , read-is 0 4096 97 , \
  read-is 4096 4096 7 , read-is 8K 56K 97
client child@s EIO
# Nobody tells it.  What it knows of is there until the end of the migration.
client grandchild 'EIO|ok' , write 4096 4096 8 ok , read-is 8K 56K 97
wait_until 30 all connected

say "a migration that is given up"
rbd migration prepare rbd/parent other/parent
reach aborting
wait_until 30 all failed
grep -q "parent.*migrating" "$nbdkit_log" || die "the log does not say why"
rbd migration abort --no-progress other/parent
reach aborted
wait_until 30 all well

say "a migration"
rbd migration prepare rbd/parent other/parent
reach moving
rbd migration execute --no-progress other/parent
# There are descendants.
rbd migration commit --no-progress --force other/parent
reach moved
for c in "${clients[@]}"; do
  wait "${c%%:*}" || die "the client of ${c#*:}: $(cat "$tmp/client.${c#*:}")"
done
stop_nbdkit
