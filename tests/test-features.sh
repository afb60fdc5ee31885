#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Every set of features that rbd lets an image have, each with another layout:
# random operations while rbd takes snapshots, exports and clones them, and
# makes the image larger; then the same on the clone, which rbd flattens.
# What changed between snapshots, rbd finds by the object maps alone.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program jq
requires_built "$random_ops" "$nbd_expect"
requires_plugin
start_ceph

size=3000001
grown=3500007

# hammer IMAGE MODEL OPTION...
hammer() {
  "$random_ops" --threads 2 --connections 2 --batch 4 --max-length 256K \
    --boundaries "$unit,$object" --model "$2" "${@:3}" "$(uri "$1")" \
    >"$tmp/$1.out" 2>&1 || {
    cat "$tmp/$1.out" >&2
    die "random operations on $1 ($features): it is not as it should be"
  }
}

has() { [[ ,$features, == *,$1,* ]]; }

# make_image COMMAND...: with $features, and $layout.
make_image() {
  # No features at all have no name.
  if [ -n "$features" ]; then
    rbd "$@" --image-feature "$features" "${layout[@]}"
  else
    rbd "$@" --rbd-default-features 0 "${layout[@]}"
  fi
}

# check_maps IMAGE[@SNAP]...
check_maps() { if has object-map; then check_object_map "$@"; fi; }

start_rados pool=rbd lock=auto
layouts=("64K 64K 1" "256K 16K 3" "1M 1M 1" "16K 4K 5" "4M 64K 2")
n=0
for chain in "" exclusive-lock exclusive-lock,object-map \
  exclusive-lock,object-map,fast-diff; do
  for others in "" layering deep-flatten layering,deep-flatten; do
    features=$others${others:+${chain:+,}}$chain
    read -r object unit count <<<"${layouts[n++ % ${#layouts[@]}]}"
    layout=(--object-size "$object" --stripe-unit "$unit"
      --stripe-count "$count")
    # They stay: to remove them takes longer than all else.
    image=image$n clone=clone$n copy=copy$n
    say "${features:-no features}, objects of $object, $count stripes of $unit"
    make_image create --size ${size}B rbd/$image
    model=$tmp/model
    rm -f "$tmp/stop"
    hammer $image "$model" --ops 60
    cp "$model" "$tmp/none"
    rbd_snap rbd/$image@none
    hammer $image "$model" --ops 1000000 --stop-file "$tmp/stop" &
    io=$!
    rbd_snap rbd/$image@one
    rbd_export rbd/$image@one "$tmp/one"
    rbd_snap rbd/$image@two
    rbd resize --no-progress --size ${grown}B rbd/$image
    if has layering; then
      make_image clone --rbd-default-clone-format 2 rbd/$image@two rbd/$clone
    fi
    : >"$tmp/stop"
    wait "$io" || die "random operations while rbd works on the image"
    truncate -s $grown "$model"
    "$nbd_expect" "$(uri $image)" size $grown
    same_export rbd/$image "$model" "$features"
    same_export rbd/$image@none "$tmp/none" "$features"
    same_export rbd/$image@one "$tmp/one" "$features"
    rbd_export rbd/$image@two "$tmp/two"
    # From one snapshot to the next, object by object.
    rbd import --no-progress "$tmp/none" rbd/$copy
    rbd_snap rbd/$copy@none
    rbd export-diff --no-progress --whole-object --from-snap none \
      rbd/$image@two "$tmp/diff"
    rbd import-diff --no-progress "$tmp/diff" rbd/$copy
    same_export rbd/$copy "$tmp/two" "$features"
    check_maps rbd/$image rbd/$image@none rbd/$image@one rbd/$image@two

    if has layering; then
      cp "$tmp/two" "$tmp/clone"
      rbd_snap rbd/$clone@none
      hammer $clone "$tmp/clone" --ops 60
      if [ $((n % 3)) -ne 0 ]; then
        rbd flatten --no-progress rbd/$clone
      fi
      hammer $clone "$tmp/clone" --ops 40
      same_export rbd/$clone "$tmp/clone" "$features"
      same_export rbd/$clone@none "$tmp/two" "$features"
      check_maps rbd/$clone rbd/$clone@none
    fi
    rm -f "$model" "$tmp/diff" "$tmp/clone"
  done
done
stop_nbdkit
assert_eq "" "$(grep -v 'watch on the header' "$nbdkit_log" || :)" \
  "what the server says"
