#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Creating images of RBD format 2.  The oracle is `rbd create` with the same
# options: `rbd info` and all objects, byte for byte, except for ids and times.
# Then what librbd does with our images, what a crash leaves, and who may.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program jq qemu-io
requires /usr/bin/python3 -c 'import rados, rbd'
requires_built "$nbd_expect"
requires_plugin
start_ceph --osds 3 --size 4G --cephx
make_pool data
make_pool other
make_ec_pool ec
make_ec_pool ecno false

# objects.py POOL/[NAMESPACE/]IMAGE FILE...: writes to each FILE the image's
# metadata objects with all that is in them, and its entries in the directory.
# In place of the id and the name stands what they are; times are only counted.
cat >"$tmp/objects.py" <<'PY'
import os, rados, struct, sys
cluster = rados.Rados(conffile=os.environ["CEPH_CONF"])
cluster.connect()

def omap(io, oid):
    with rados.ReadOpCtx() as op:
        values, _ = io.get_omap_vals(op, "", "", 100000)
        io.operate_read_op(op, oid)
        return dict(values)

def blob(text):
    return struct.pack("<I", len(text)) + text

def show(spec, to):
    pool, *space, image = spec.split("/")
    io = cluster.open_ioctx(pool)
    io.set_namespace(space[0] if space else "")
    ident = io.read("rbd_id." + image, 4096)[4:]

    def plain(value):
        for what, text in ((b"ID", ident), (b"NAME", image.encode())):
            for prefix in (b"rbd_data.", b"rbd_data.%d." % io.get_pool_id(), b""):
                value = value.replace(blob(prefix + text),
                                      b"<" + prefix + what + b">")
        return value

    for entry in sorted(o.key for o in io.list_objects()):
        if ident.decode() not in entry and entry != "rbd_id." + image:
            continue
        shown = entry.replace(ident.decode(), "ID")
        if entry == "rbd_id." + image:
            shown = shown.replace(image, "NAME")
        print(shown, file=to)
        print("  data", plain(io.read(entry, 1 << 20)), file=to)
        for key, value in sorted(io.get_xattrs(entry)):
            print("  xattr", key, value, file=to)
        for key, value in sorted(omap(io, entry).items()):
            if key.endswith("_timestamp"):
                value = b"%d bytes" % len(value)
            print("  omap", key, plain(value), file=to)
    print("directory", file=to)
    names = omap(io, "rbd_directory")
    for key in ("name_" + image, "id_" + ident.decode()):
        print("  ", key[:3], plain(names[key]), file=to)

for spec, file in zip(sys.argv[1::2], sys.argv[2::2]):
    with open(file, "w", encoding="utf-8") as to:
        show(spec, to)
PY

# info SPEC: what rbd says, without what differs.
info() {
  rbd info --format json "$1" | jq -S '
    .block_name_prefix |= sub("[0-9a-f]+$"; "ID") |
    .id |= (length > 4) | .name = "NAME" |
    del(.create_timestamp, .access_timestamp, .modify_timestamp)'
}

# ours SPEC ARGUMENT...: an image by the plugin.
ours() {
  local spec=$1
  shift
  "${nbdkit[@]}" -U - rados "conf=$ceph_conf" "$spec" create=true "$@" \
    --run true || die "creating $spec with '$*' failed"
}

# ours_fails REGEX SPEC ARGUMENT...
ours_fails() {
  local regex=$1 spec=$2
  shift 2
  expect_fail "$regex" "${nbdkit[@]}" -U - rados "conf=$ceph_conf" "$spec" \
    create=true "$@" --run true
}

# rbd_fails ARGUMENT...: rbd refuses it, too.
rbd_fails() {
  ! timeout 40 rbd "$@" >/dev/null 2>&1 || die "rbd $* does not fail"
}

made=()
# same PLACE OUR-ARGUMENT... -- RBD-ARGUMENT...: two images in PLACE (POOL or
# POOL/NAMESPACE) that are equal.
same() {
  local place=$1 mine=() n=${#made[@]}
  shift
  while [ "$1" != -- ]; do
    mine+=("$1")
    shift
  done
  shift
  ours "$place/ours$n" "${mine[@]}"
  rbd create "$@" "$place/rbds$n"
  made+=("$place/ours$n" "$place/rbds$n")
  for who in ours rbds; do
    info "$place/$who$n" >"$tmp/$who.info"
    [ -s "$tmp/$who.info" ] || die "the oracle says nothing"
  done
  /usr/bin/python3 "$tmp/objects.py" "$place/ours$n" "$tmp/ours.objects" \
    "$place/rbds$n" "$tmp/rbds.objects"
  diff -u "$tmp/rbds.info" "$tmp/ours.info" || die "info of ${mine[*]}"
  diff -u "$tmp/rbds.objects" "$tmp/ours.objects" || die "objects of ${mine[*]}"
}

say "a pool that is new to RBD"
ours other/first size=1M
assert_eq "overwrite validated" "$(rados -p other get rbd_info -)" "rbd_info"
prints "'other'.*selfmanaged_snaps" ceph osd pool ls detail ||
  die "the pool is not one of self-managed snapshots"
expect_fail . rados -p other mksnap whole
rbd rm --no-progress other/first
make_pool snapped
rados -p snapped mksnap whole
ours_fails "snapped&&mksnap" snapped/x size=1M
rbd_fails create --size 1M snapped/x
assert_eq "" "$(rados -p snapped ls)" "objects of the refused pool"

say "defaults"
same rbd size=100M -- --size 100M
same rbd size=5000001 -- --size 5000001B
same rbd size=1 format=2 -- --size 1B
grep -q 'rbd_object_map' "$tmp/rbds.objects" || die "the oracle has no map"
grep -q 'create_timestamp' "$tmp/rbds.objects" || die "no time in the header"

say "object sizes"
same rbd size=10000001 object-size=4K -- --size 10000001B --object-size 4K
same rbd size=1G object-size=32M -- --size 1G --object-size 32M
same rbd size=1T object-size=1M -- --size 1T --object-size 1M

say "every set of features"
for layering in '' layering; do
  for deep in '' deep-flatten; do
    for lock in '' exclusive-lock exclusive-lock,object-map \
      exclusive-lock,object-map,fast-diff; do
      list=$(printf '%s\n' $layering $deep $lock | paste -sd, -)
      if [ -n "$list" ]; then
        same rbd size=20M features="$list" -- --size 20M --image-feature "$list"
      else
        same rbd size=20M features=0 -- --size 20M --rbd-default-features 0
      fi
    done
  done
done
same rbd size=20M features=61 -- --size 20M --image-feature \
  layering,exclusive-lock,object-map,fast-diff,deep-flatten
# Bits that follow from other options.
same rbd size=20M features=layering,striping,data-pool -- \
  --size 20M --image-feature layering,striping,data-pool

say "striping"
for layout in 4M:64K:3 4M:4M:4 64K:4K:16 1M:512K:1 1M:1M:1 4M:512:7 32M:96K:2; do
  IFS=: read -r object_size unit count <<<"$layout"
  # 96K does not divide 32M.
  if [ "$unit" = 96K ]; then
    ours_fails "stripe" rbd/odd size=20M object-size="$object_size" \
      stripe-unit="$unit" stripe-count="$count"
    rbd_fails create --size 20M --object-size "$object_size" \
      --stripe-unit "$unit" --stripe-count "$count" rbd/odd
    continue
  fi
  same rbd size=77777777 object-size="$object_size" stripe-unit="$unit" \
    stripe-count="$count" -- --size 77777777B --object-size "$object_size" \
    --stripe-unit "$unit" --stripe-count "$count"
done

say "data pools and namespaces"
rbd namespace create rbd/ns
same rbd size=20M data-pool=data -- --size 20M --data-pool data
same rbd size=20M data-pool=ec stripe-unit=64K stripe-count=3 -- \
  --size 20M --data-pool ec --stripe-unit 64K --stripe-count 3
same rbd size=20M data-pool=rbd -- --size 20M --data-pool rbd
same rbd/ns size=20M -- --size 20M
same rbd/ns size=20M data-pool=ec object-size=64K -- \
  --size 20M --data-pool ec --object-size 64K
assert_eq "overwrite validated" "$(rados -p ec get rbd_info -)" "rbd_info of ec"

say "settings of the cluster and of the pool"
same rbd size=20M ceph.rbd_default_features=layering,exclusive-lock \
  ceph.rbd_default_order=20 ceph.rbd_default_stripe_unit=65536 \
  ceph.rbd_default_stripe_count=5 ceph.rbd_default_data_pool=data -- \
  --size 20M --rbd-default-features layering,exclusive-lock \
  --rbd-default-order 20 --rbd-default-stripe-unit 65536 \
  --rbd-default-stripe-count 5 --rbd-default-data-pool data
ceph config set client rbd_default_order 21
same rbd size=20M -- --size 20M
prints "order 21 " rbd info "${made[-1]}" || die "the setting had no effect"
rbd config pool set rbd rbd_default_features layering,exclusive-lock
rbd config pool set rbd rbd_default_order 19
rbd config pool set rbd rbd_default_stripe_unit 16K
rbd config pool set rbd rbd_default_stripe_count 2
rbd config pool set rbd rbd_default_data_pool data
same rbd size=20M -- --size 20M
same rbd/ns size=20M -- --size 20M
same rbd size=20M object-size=1M features=layering data-pool=rbd -- --size 20M \
  --object-size 1M --image-feature layering --data-pool rbd
prints "stripe unit: 16 KiB" rbd info "${made[-2]}" || die "no effect"
rbd config pool set rbd rbd_default_features layering,exclusive-lock,journaling
ours_fails "journaling&&rbd_default_features" rbd/x size=20M
for option in features order stripe_unit stripe_count data_pool; do
  rbd config pool rm rbd rbd_default_$option
done
ceph config rm client rbd_default_order

say "what librbd does with our images"
listed=$(rbd ls rbd; rbd ls rbd/ns | sed 's,^,ns/,')
for ((n = 0; n < ${#made[@]}; n += 2)); do
  spec=${made[n]}
  prints "^${spec#rbd/}$" echo "$listed" || die "rbd ls does not show $spec"
  # It looks for every object: not for a million of them.
  jq -e '(.features | index("object-map")) and .objects < 10000' \
    <<<"$(rbd info --format json "$spec")" >/dev/null || continue
  rbd object-map check --no-progress "$spec"
  ! prints "flags:.*invalid" rbd info "$spec" ||
    die "the object map of $spec is not right"
done
# Written by librbd, read by the plugin, with snapshot, clone and resize.
ours rbd/used size=20M stripe-unit=64K stripe-count=3 data-pool=ec
qemu-io -f raw -c "write -P 7 100000 300000" "rbd:rbd/used:conf=$ceph_conf" \
  >/dev/null
rbd_snap rbd/used@s
rbd resize --no-progress --size 24M rbd/used
rbd clone --rbd-default-clone-format 2 rbd/used@s rbd/child
start_rados pool=rbd
"$nbd_expect" "$(uri used)" size 24M , read-is 100000 300000 7
"$nbd_expect" "$(uri used@s)" size 20M , read-is 100000 300000 7 , \
  read-is 0 100000 0
stop_nbdkit
rbd object-map check --no-progress rbd/used
! prints "flags:.*invalid" rbd info rbd/used || die "the object map is wrong"
rbd rm --no-progress rbd/child
rbd snap purge --no-progress rbd/used
rbd rm --no-progress rbd/used

say "removing them leaves nothing"
/usr/bin/python3 - "${made[@]}" <<'PY'
import os, rados, rbd, sys
with rados.Rados(conffile=os.environ["CEPH_CONF"]) as cluster:
    for spec in sys.argv[1:]:
        pool, *space, image = spec.split("/")
        with cluster.open_ioctx(pool) as io:
            io.set_namespace(space[0] if space else "")
            rbd.RBD().remove(io, image)
PY
# left: all objects that are not the pool's own.
left() {
  local pool
  for pool in rbd data ec; do
    rados -p "$pool" --all ls | awk '{print $NF}' |
      grep -Ev '^rbd_(directory|info|namespace|children|trash)$' || :
  done
}
assert_eq "" "$(left)" "objects that are left"
assert_eq "" "$(rbd ls rbd; rbd ls rbd/ns; rbd trash ls rbd)" "names"

say "names"
for name in 'with space' -dash ünï '100%' a.b 'x:y' "q'\"" '#' '$HOME' \
  "$(printf 'n%.0s' {1..2000})"; do
  ours "rbd/$name" size=1M
  rbd info --format json --pool rbd --image "$name" >"$tmp/named"
  assert_eq "$name" "$(jq -r .name "$tmp/named")" "name"
  rbd rm --no-progress --pool rbd --image "$name"
done
ours_fails "too long" "rbd/$(printf 'n%.0s' {1..2045})" size=1M
for name in a/b/c a@b a/b@c /a a/ ''; do
  ours_fails . "rbd/$name" size=1M
done
ours_fails "nospace&&does not exist" rbd/nospace/x size=1M
rbd_fails create --size 1M rbd/nospace/x
assert_eq "" "$(left)" "objects of refused names"

say "pools that cannot hold it"
ours_fails "ecno&&overwrites" rbd/x size=1M data-pool=ecno
ours_fails "erasure" ec/x size=1M
ours_fails "data pool 'nowhere'" rbd/x size=1M data-pool=nowhere
assert_eq "" "$(left)" "objects of refused pools"

say "an image of that name exists"
rbd create --size 1M rbd/theirs
before=$(pool_state rbd)
ours_fails "theirs&&exists" rbd/theirs size=1M
ours_fails "theirs&&exists" rbd/theirs size=1M format=1
ours_fails "theirs&&exists" rbd/theirs size=1M format=striper
assert_eq "$before" "$(pool_state rbd)" "the pool"
rbd rm --no-progress rbd/theirs

say "what a crash leaves, rbd rm removes"
# As after the steps 2 to 5 of common/formats/format2_create.cpp.
for step in 2 3 4 5; do
  ours rbd/crash size=20M stripe-unit=64K stripe-count=3
  id=$(rbd info --format json rbd/crash | jq -r .id)
  rados -p rbd rm "rbd_object_map.$id"
  [ $step -ge 5 ] || for key in stripe_unit stripe_count; do
    rados -p rbd rmomapkey "rbd_header.$id" $key
  done
  [ $step -ge 4 ] || rados -p rbd rm "rbd_header.$id"
  [ $step -ge 3 ] || rados -p rbd rm rbd_id.crash
  prints '^crash$' rbd ls rbd || die "step $step: rbd ls does not show it"
  before=$(pool_state rbd)
  if [ $step -eq 2 ]; then
    ours_fails "crash&&rbd rm" rbd/crash size=1M
  else
    ours_fails "crash&&exists" rbd/crash size=1M
  fi
  rbd_fails create --size 1M rbd/crash
  assert_eq "$before" "$(pool_state rbd)" "step $step: the pool"
  # Who can open it, sees the same.
  start_rados pool=rbd
  if [ $step -ge 4 ]; then
    qemu-io -f raw -c "write -P 9 100000 300000" \
      "rbd:rbd/crash:conf=$ceph_conf" >/dev/null
    "$nbd_expect" "$(uri crash)" read-is 100000 300000 9 , write 1M 65536 8 ok
    qemu-io -f raw -c "read -P 8 1M 65536" "rbd:rbd/crash:conf=$ceph_conf" \
      >/dev/null || die "step $step: librbd reads something else"
  else
    "$nbd_expect" "$(uri crash)" connect fail
  fi
  stop_nbdkit
  rbd rm --no-progress rbd/crash
  assert_eq "" "$(left)" "step $step: objects"
  assert_eq "" "$(rbd ls rbd)" "step $step: names"
done

say "several create the same image: one does"
for round in 1 2 3; do
  pids=()
  for n in 1 2 3; do
    "${nbdkit[@]}" -U - rados "conf=$ceph_conf" rbd/race create=true \
      size=${n}M --run true >"$tmp/race.$n" 2>&1 &
    pids+=($!)
  done
  rbd create --size 4M rbd/race >"$tmp/race.4" 2>&1 &
  pids+=($!)
  winner=
  for n in 1 2 3 4; do
    if wait "${pids[n - 1]}"; then
      [ -z "$winner" ] || die "both $winner and $n have created it"
      winner=$n
    else
      assert_match "exist" "$(cat "$tmp/race.$n")" "loser $n"
    fi
  done
  [ -n "$winner" ] || die "round $round: nobody has created it"
  assert_eq $((winner << 20)) \
    "$(rbd info --format json rbd/race | jq .size)" "size of the winner's"
  rbd object-map check --no-progress rbd/race
  rbd rm --no-progress rbd/race
  assert_eq "" "$(left)" "objects of the losers"
done

say "who may: profile rbd"
ceph auth get-or-create client.vm mon 'profile rbd' \
  osd 'profile rbd pool=rbd, profile rbd pool=data' -o "$tmp/vm.keyring"
ceph auth get-or-create client.ro mon 'profile rbd' \
  osd 'profile rbd-read-only pool=rbd' -o "$tmp/ro.keyring"
make_pool fresh
ceph auth get-or-create client.new mon 'profile rbd' \
  osd 'profile rbd pool=fresh' -o "$tmp/new.keyring"
ours rbd/mine size=20M data-pool=data id=vm keyring="$tmp/vm.keyring"
rbd rm --no-progress rbd/mine
# The first image of a pool allocates a snapshot id.
ours fresh/mine size=20M id=new keyring="$tmp/new.keyring"
assert_eq "overwrite validated" "$(rados -p fresh get rbd_info -)" "rbd_info"
# Without profiles.
make_pool plain
ceph auth get-or-create client.plain mon 'allow r' \
  osd 'allow rwx pool=plain' -o "$tmp/plain.keyring"
ours plain/mine size=20M id=plain keyring="$tmp/plain.keyring"
assert_eq "overwrite validated" "$(rados -p plain get rbd_info -)" "rbd_info"
before=$(pool_state rbd)
ours_fails "not permitted|permission" rbd/mine size=20M id=ro \
  keyring="$tmp/ro.keyring"
assert_eq "$before" "$(pool_state rbd)" "the pool"

say "OSDs without the object class rbd"
rbd create --size 1M rbd/there
for osd in 0 1 2; do "$mini_ceph" kill-osd "$ceph_dir" $osd; done
echo "osd class dir = $tmp" >>"$ceph_conf"
for osd in 0 1 2; do
  "$mini_ceph" start-osd "$ceph_dir" $osd 2>"$tmp/start-osd.err" ||
    die "start-osd: $(cat "$tmp/start-osd.err")"
done
ours_fails "object class rbd" rbd/classless size=1M
expect_fail "object class rbd" "${nbdkit[@]}" -U - rados "conf=$ceph_conf" \
  rbd/there --run true
