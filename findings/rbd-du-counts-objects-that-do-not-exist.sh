#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# `rbd du` of an empty image with a valid object map takes time by the size
# that the image could have, and not by what is in it.
#
# Versions: Ceph 16.2.15 (Debian 12).
#
# An image with the features object-map and fast-diff has a map of two bits an
# object, and by rbd's manual (disk-usage) the OSDs are asked for every potential
# object only without fast-diff.  One expects that an empty image of 16 TiB, whose
# map is 1 MB of zeros, is counted as quickly as one of 1 GiB.  It takes about
# 0.1 s of the client's own CPU for each TiB that the image could have.  So images
# that are thin and huge are not cheap to look at, with valid maps too.
#
# Seen (user CPU of `rbd du`, less that of an image of 1 GiB):
#   16 TiB, empty: 2.90 s
#   64 TiB, empty: 7.45 s

source "$(dirname "$0")/packages.bash" || exit 1
source "$(dirname "$0")/ceph.bash" || exit 1
start_ceph bookworm 16.2.15+ds-0+deb12u2
make_pool rbd
features=(--image-feature exclusive-lock,object-map,fast-diff)

# cpu SIZE: hundredths of a second of user CPU.
cpu ()
{
  local before after me=$BASHPID
  run rbd create --size "$1" "${features[@]}" "rbd/i$1"
  run rbd info "rbd/i$1" | grep -q 'flags: *$' || changed "a flag of the map"
  before=$(awk '{ print $16 }' "/proc/$me/stat")
  run rbd du "rbd/i$1" >"$tmp/du" 2>&1 || changed "rbd du: $(cat "$tmp/du")"
  after=$(awk '{ print $16 }' "/proc/$me/stat")
  grep -q " 0 B" "$tmp/du" || changed "it is not empty: $(cat "$tmp/du")"
  echo $((after - before))
}
small=$(cpu 1G)
for size in 16T 64T; do
  large=$(cpu "$size")
  large=$((large - small))
  printf '%s, empty: %d.%02d s\n' "${size/T/ TiB}" $((large / 100)) \
    $((large % 100))
  [ "$large" -gt 30 ] || changed "$size is quick"
done
