# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
#
# For the scripts beside it, after packages.bash: a Ceph of one monitor, one
# manager and one OSD in memory, without authentication.

daemons=()

# start_ceph SUITE VERSION [PACKAGE...]: of the packages of that version, unpacked
# here.  `run ceph`, `run rados`, and python3-rados in `run python3`, then reach
# it.
start_ceph ()
{
  local port fsid=11111111-2222-3333-4444-555555555555 release i
  unpack "$1" {ceph-{mon,mgr,osd,base,common},python3-rados}="$2" \
    "${@:3}"
  port=$((20000 + RANDOM % 10000))
  cat >>"$tmp/root/etc/ceph.conf" <<CONF
[global]
fsid = $fsid
mon host = [v2:127.0.0.1:$port,v1:127.0.0.1:$((port + 1))]
auth cluster required = none
auth service required = none
auth client required = none
run dir = /tmp
crash dir = /tmp
log file = /tmp/\$name.log
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
[mon]
mon data = /tmp/mon
mon allow pool size one = true
mon allow pool delete = true
mon data avail crit = -1
[mgr]
mgr data = /tmp/mgr
mgr module path = /tmp/mgr
mgr initial modules =
public addr = 127.0.0.1
[osd]
osd data = /tmp/osd
osd objectstore = memstore
memstore device bytes = 1G
public addr = 127.0.0.1
cluster addr = 127.0.0.1
[client]
admin socket =
log file =
CONF
  mkdir -p "$tmp"/root/etc/ceph "$tmp"/root/tmp/{mon,mgr,osd}
  mv "$tmp/root/etc/ceph.conf" "$tmp/root/etc/ceph/ceph.conf"
  release=$(run ceph-mon --version | sed -n 's/.*) \([a-z]*\) (.*/\1/p')
  run monmaptool --create --fsid "$fsid" --set-min-mon-release "$release" \
    --addv a "[v2:127.0.0.1:$port,v1:127.0.0.1:$((port + 1))]" \
    /tmp/monmap >/dev/null
  run ceph-mon --mkfs -i a --monmap /tmp/monmap
  trap stop_ceph EXIT
  chroot "$tmp/root" ceph-mon -f -i a >"$tmp/mon.out" 2>&1 &
  daemons+=($!)
  disown
  chroot "$tmp/root" ceph-mgr -f -i x >"$tmp/mgr.out" 2>&1 &
  daemons+=($!)
  disown
  run ceph osd new "$fsid" 0 >/dev/null
  run ceph-osd --mkfs -i 0 --osd-uuid "$fsid" --no-mon-config \
    >"$tmp/osd.out" 2>&1
  chroot "$tmp/root" ceph-osd -f -i 0 >>"$tmp/osd.out" 2>&1 &
  daemons+=($!)
  disown
  for ((i = 0; i < 100; i++)); do
    run ceph osd stat -f json 2>/dev/null | grep -q '"num_up_osds":1' && return
    sleep 0.3
  done
  changed "this Ceph does not start"
}

stop_ceph ()
{
  local pid
  for pid in "${daemons[@]}"; do
    kill -KILL "$pid" 2>/dev/null || continue
    while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
  done
  remove_all
}

# make_pool NAME...
make_pool ()
{
  local pool
  for pool; do
    run ceph osd pool create "$pool" 8 2>/dev/null
    run ceph osd pool set "$pool" size 1 --yes-i-really-mean-it 2>/dev/null
    run ceph osd pool application enable "$pool" test 2>/dev/null
  done
}
