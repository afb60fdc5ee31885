#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Our encodings and the object map against the OSD's object classes, and
# `rbd` as the judge of the maps.

source "$(dirname "$0")/functions.sh"
requires_program rbd rados
rbd_classes=$builddir/tests/rbd-classes
requires_built "$rbd_classes"
start_ceph

id_of() { rbd info --format json "$1" | sed 's/.*"id":"\([^"]*\)".*/\1/'; }

# Says no word where the map is right.
clean_map() {
  local said
  said=$(rbd object-map check --no-progress "$1" 2>&1) ||
    die "rbd object-map check $1: $said"
  [ -z "$said" ] || die "rbd object-map check $1: $said"
  said=$(rbd info "$1" | grep 'flags:' | tr -d '[:space:]')
  assert_eq flags: "$said"
}

rbd create --size 1G methods
"$rbd_classes" rbd methods "rbd_header.$(id_of methods)" ||
  die "the object classes disagree"
clean_map methods

# With three blocks of the map, and with less than one.
for size in 160000 256; do
  rbd create --size "$size"M "image$size"
  clean_map "image$size"
  "$rbd_classes" rbd map "$(id_of "image$size")" $((size / 4)) >"$tmp/out" ||
    die "the map of image$size"
  cat "$tmp/out" >&2
  clean_map "image$size"
  # Objects are what the pool has.
  want=$(rados -p rbd ls | grep -c "^rbd_data.$(id_of "image$size")\\.")
  used=$(rbd du --format json "image$size" |
    sed 's/.*"used_size":\([0-9]*\).*/\1/')
  assert_eq $((want << 22)) "$used"
  # Our lock is gone: librbd's writer works, and finds its objects.
  rbd bench --io-type write --io-size 4K --io-total 40K "image$size" \
    >/dev/null
  clean_map "image$size"
done
