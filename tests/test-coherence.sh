#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Block status that is kept is right while others write: two servers and a
# client of librbd write to one image in turn, and after each write all servers
# are asked.  Snapshots keep their answers for ever.  An object map that comes
# back with an old version is read again.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program nbdinfo qemu-nbd jq
requires /usr/bin/python3 -c 'import nbd, rados'
requires_built "$nbd_expect"
requires_plugin
turns=$tests_srcdir/take-turns.py
start_ceph
seed=${RANDOM_SEED:-$RANDOM}
steps=${COHERENCE_STEPS:-200}
say "seed $seed"

# start_servers IMAGE: two writers, a reader and qemu-nbd; sets `servers`.
start_servers() {
  servers=() started=()
  local kind options
  for kind in writer writer reader; do
    options=()
    [ "$kind" = writer ] || options=(-r)
    start_nbdkit "${options[@]}" rados "conf=$ceph_conf" pool=rbd lock=auto \
      lock-wait=0
    servers+=("$kind=$(uri "$1")")
    started+=("$nbdkit_pid")
  done
  qemu-nbd -t -k "$tmp/librbd.sock" -f raw --cache=none --discard=unmap \
    "rbd:rbd/$1:conf=$ceph_conf" &
  librbd=$!
  own "$librbd"
  wait_until 20 test -S "$tmp/librbd.sock"
  servers+=("librbd=nbd+unix:///?socket=$tmp/librbd.sock")
}
end_servers() {
  for nbdkit_pid in "${started[@]}"; do stop_nbdkit; done
  stop_pid "$librbd"
  rm -f "$tmp/librbd.sock"
}

say "an image with exclusive lock and object map"
rbd create --size 16M --object-size 256K rbd/mapped
start_servers mapped
/usr/bin/python3 "$turns" --steps $((2 * steps)) --seed "$seed" "${servers[@]}"
end_servers
check_object_map rbd/mapped

say "an image with exclusive lock only"
rbd create --size 16M --object-size 64K \
  --image-feature layering,exclusive-lock rbd/locked
start_servers locked
/usr/bin/python3 "$turns" --steps "$steps" --seed "$seed" "${servers[@]}"
end_servers

say "a clone, striped"
rbd create --size 16M --object-size 256K rbd/parent
start_rados pool=rbd image=parent
/usr/bin/python3 "$turns" --steps 100 --seed "$seed" "writer=$(uri)"
stop_nbdkit
rbd snap create --no-progress rbd/parent@s
rbd clone --rbd-default-clone-format 2 --object-size 256K --stripe-unit 16K \
  --stripe-count 3 rbd/parent@s rbd/clone
start_servers clone
/usr/bin/python3 "$turns" --adopt --steps "$steps" --seed "$seed" "${servers[@]}"
end_servers
check_object_map rbd/clone

say "an image without a lock: nothing is kept"
rbd create --size 16M --object-size 64K --image-feature layering rbd/open
start_servers open
/usr/bin/python3 "$turns" --steps "$steps" --turn 3 --seed "$seed" "${servers[@]}"
end_servers

say "an object map that is restored with the version of the last one"
rbd create --size 64M --object-size 1M rbd/restored
make_pool backup
map=rbd_object_map.$(rbd info --format json rbd/restored | jq -r .id)
# versions.py CONF MAP version: that of the map.  versions.py CONF MAP save
# VERSION: makes a copy of it that has this version.
cat >"$tmp/versions.py" <<'EOF'
import rados, sys
with rados.Rados(conffile=sys.argv[1]) as cluster:
    pool, backup = (cluster.open_ioctx(p) for p in ("rbd", "backup"))
    content = pool.read(sys.argv[2], 65536)
    if sys.argv[3] == "version":
        print(pool.get_last_version())
    else:
        version = 0
        while version < int(sys.argv[4]):
            backup.write_full("map", content)
            version = backup.get_last_version()
        assert version == int(sys.argv[4])
EOF
versions="/usr/bin/python3 $tmp/versions.py $ceph_conf $map"
start_rados -r pool=rbd image=restored
# The server has read the map without the object.  It gets the version back
# that it had then.
"$nbd_expect" "$(uri)" extents 0 64M 67108864:hole , \
  run "$versions version >$tmp/version" , \
  run "rbd bench --io-type write --io-size 4K --io-total 4K rbd/restored \
    >/dev/null && $versions save \$(cat $tmp/version) &&
    rados -p backup cp map $map --target-pool rbd" , \
  extents 0 64M 4096:data,67104768:hole
assert_eq "$(cat "$tmp/version")" "$($versions version)" "the map's version"
stop_nbdkit
