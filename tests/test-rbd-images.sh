#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Images in every state that this release's rbd can bring them to: what is read
# through the plugin is what `rbd export` has, and what can be written to is as
# librbd has it afterwards.  What this rbd does not know is named and left out.

source "$(dirname "$0")/functions.sh" || exit 1
requires_plugin
requires_program jq nbdcopy rbd
requires_built "$nbd_expect"
start_ceph --osds 3
rbd namespace create rbd/ns
rbd namespace create rbd/there

size=6000128
random_file "$tmp/data" $size 5
dd if=/dev/zero of="$tmp/data" bs=64K seek=20 count=37 conv=notrunc status=none
start_rados pool=rbd lock=auto

# new IMAGE [OPTION...]: with the data in small objects.
new() {
  rbd import --no-progress --object-size 256K "${@:2}" "$tmp/data" "rbd/$1"
}

# reads IMAGE[@SNAP]: as rbd does.
reads() {
  nbd_get "$1" "$tmp/read"
  same_export "rbd/$1" "$tmp/read"
}

# writes IMAGE [read-only]: and librbd finds it.
writes() {
  reads "$1"
  if [ "${2-}" = read-only ]; then
    "$nbd_expect" "$(uri "$1")" flag read-only yes , write 0 512 1 EPERM
    return
  fi
  "$nbd_expect" "$(uri "$1")" write 100000 300000 7 ok , trim 4M 300000 ok , \
    zero 5M 4K ok , write 1M 4K 8 ok
  reads "$1"
  if rbd info --format json "rbd/$1" | jq -e '.features|index("object-map")' \
    >/dev/null; then
    check_object_map "rbd/$1"
  fi
}

# knows TEXT COMMAND...: whether this rbd's help has the text.
knows() {
  prints "$1" rbd help "${@:2}" 2>/dev/null || {
    say "  not in this rbd: ${*:2} $1"
    false
  }
}

say "features"
new plain --image-feature layering
new all --image-feature \
  layering,striping,exclusive-lock,object-map,fast-diff,deep-flatten \
  --stripe-unit 64K --stripe-count 3
new journal --image-feature layering,exclusive-lock,journaling
writes plain
writes all
writes journal read-only
for features in "enable all journaling" "disable all journaling" \
  "disable all fast-diff object-map" "enable all object-map fast-diff" \
  "disable all deep-flatten"; do
  # shellcheck disable=SC2086
  rbd feature ${features/ all/ rbd\/all}
  reads all
done
# Until it is rebuilt, the map is not valid.
"$nbd_expect" "$(uri all)" write 2M 4K 9 ok
reads all
rbd object-map rebuild --no-progress rbd/all
writes all

say "a data pool that is erasure-coded"
make_ec_pool ec
if ceph osd pool set ec allow_ec_optimizations true >"$tmp/out" 2>&1; then
  say "  with allow_ec_optimizations"
fi
new coded --data-pool ec
rbd_snap rbd/coded@s
writes coded
reads coded@s

say "groups"
new member
rbd group create rbd/group
rbd group image add rbd/group rbd/member
writes member
rbd group snap create rbd/group@first
"$nbd_expect" "$(uri member)" write 0 1M 3 ok
id=$(rbd snap ls --all --format json rbd/member |
  jq '.[] | select(.namespace.type == "group") | .id')
reads member
if knows "--snap-id" clone; then
  rbd clone --rbd-default-clone-format 2 --snap-id "$id" rbd/member rbd/child
  nbd_get child "$tmp/read"
  "$nbd_expect" "$(uri child)" read 0 1M ok
  writes child
  # Its parent's snapshot goes to the trash, or stays.
  rbd group snap rm rbd/group@first
  writes child
  rbd flatten --no-progress rbd/child
  writes child
fi

say "mirroring"
rbd mirror pool enable rbd image >/dev/null
# Without one there is nothing to make mirror snapshots for.
rbd mirror pool peer add rbd client.admin@elsewhere >/dev/null
new by-snapshot
rbd mirror image enable rbd/by-snapshot snapshot >/dev/null
writes by-snapshot
rbd mirror image snapshot rbd/by-snapshot >/dev/null
rbd_snap rbd/by-snapshot@s
rbd clone --rbd-default-clone-format 2 rbd/by-snapshot@s rbd/mirrored-clone
rbd mirror image enable rbd/mirrored-clone snapshot >/dev/null
writes by-snapshot
writes mirrored-clone
new by-journal --image-feature exclusive-lock,journaling
rbd mirror image enable rbd/by-journal journal >/dev/null
writes by-journal read-only
rbd mirror image demote rbd/by-snapshot >/dev/null
writes by-snapshot read-only
rbd mirror image promote rbd/by-snapshot >/dev/null
writes by-snapshot
if knows "--remote-namespace" mirror pool enable; then
  rbd mirror pool enable --remote-namespace there rbd/ns image >/dev/null
  new ns/image
  rbd mirror image enable rbd/ns/image snapshot >/dev/null
  writes ns/image
  rbd mirror image snapshot rbd/ns/image >/dev/null
  rbd mirror image demote rbd/ns/image >/dev/null
  writes ns/image read-only
fi

say "imported by a migration, from an export of ours"
# import_from NAME SOURCE: refused while it is not done, and read when it is.
import_from() {
  rbd migration prepare --import-only --object-size 256K --source-spec "$2" \
    "rbd/$1"
  "$nbd_expect" "$(uri "$1")" connect fail
  rbd migration execute --no-progress "rbd/$1"
  "$nbd_expect" "$(uri "$1")" connect fail
  rbd migration commit --no-progress "rbd/$1"
  nbd_get "$1" "$tmp/read"
  assert_same_bytes "$tmp/data" "$tmp/read" "what was imported"
  writes "$1"
}
import_from from-file \
  '{"type":"raw","stream":{"type":"file","file_path":"'"$tmp/data"'"}}'
new source
spec='{"type":"raw","stream":{"type":"nbd","uri":"'$(uri source)'"}}'
if rbd migration prepare --import-only --source-spec "$spec" rbd/try \
  2>"$tmp/err"; then
  rbd migration abort --no-progress rbd/try 2>/dev/null
  import_from from-nbd "$spec"
else
  grep -q "not implemented\|not supported" "$tmp/err" ||
    die "migration: $(cat "$tmp/err")"
  say "  not in this rbd: a stream of type nbd"
fi

say "encryption"
# The export is what is stored.
rbd create --size 32M rbd/secret
echo passphrase >"$tmp/passphrase"
for format in luks1 luks2; do
  rbd encryption format rbd/secret $format "$tmp/passphrase"
  reads secret
done
stop_nbdkit
