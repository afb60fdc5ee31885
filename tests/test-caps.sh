#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What a key must be able to do for what, with real authentication: the
# profiles `rbd` and `rbd-read-only`, and less than these.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program nbdcopy nbdinfo jq
requires_built "$nbd_expect"
requires_built "$builddir/copy/radoscopy"
requires_plugin
start_ceph --cephx
forget_dead_clients 10
make_pool parents

# key NAME MON OSD: makes client.NAME.
key() {
  ceph auth get-or-create "client.$1" mon "$2" osd "$3" >"$tmp/$1.keyring"
}
key writer 'profile rbd' \
  'profile rbd pool=rbd, profile rbd-read-only pool=parents'
key reader 'profile rbd' \
  'profile rbd-read-only pool=rbd, profile rbd-read-only pool=parents'
key least 'allow r' 'allow r class-read pool=rbd'
key stranger 'profile rbd' 'profile rbd pool=rbd'
key harmless 'allow r' 'allow rwx pool=rbd'

# serve NAME [OPTION-OF-NBDKIT]... PARAMETER...: with the key of NAME.
serve() {
  local name=$1 options=()
  shift
  while [[ ${1-} == -* ]]; do
    options+=("$1")
    shift
  done
  start_nbdkit "${options[@]}" rados "conf=$ceph_conf" "id=$name" \
    "keyring=$tmp/$name.keyring" "$@"
}
# said TEXT: the server that was started last has said so.
said() {
  grep -q -- "$1" "$nbdkit_log" || die "not said: $1; but: $(cat "$nbdkit_log")"
}

size=8000000
random_file "$tmp/data" $size 3
dd if=/dev/zero of="$tmp/data" bs=1M seek=4 count=2 conv=notrunc status=none
rbd import --no-progress --object-size 256K "$tmp/data" rbd/plain
rbd_snap rbd/plain@s
rbd import --no-progress --object-size 1M "$tmp/data" parents/parent
rbd_snap parents/parent@s
rbd clone --rbd-default-clone-format 2 --object-size 256K --stripe-unit 256K \
  --stripe-count 1 parents/parent@s rbd/clone

say "profile rbd: writing, with the lock; a parent in a pool for reading only"
serve writer pool=rbd
cp "$tmp/data" "$tmp/model"
for image in plain clone; do
  "$nbd_expect" "$(uri $image)" flag read-only no , write 1000000 4096 7 ok , \
    trim 4M 1M ok , read-is 4M 1M 0 , \
    run "rbd lock ls rbd/$image | grep -q exclusive"
  wait_until 20 not_locked rbd/$image
  dd if=/dev/zero bs=4096 count=1 status=none | tr '\0' '\007' |
    dd of="$tmp/model" bs=1 seek=1000000 conv=notrunc status=none
  same_export rbd/$image "$tmp/model"
  check_object_map rbd/$image
done
stop_nbdkit
assert_eq "" "$(cat "$nbdkit_log")" "what the server says"

say "profile rbd: a dead owner's lock is broken"
serve writer pool=rbd image=plain
dead=$nbdkit_pid
"$nbd_expect" "$(uri)" write 0 4096 8 ok , run "kill -KILL $dead" ||
  : "the connection ends"
is_locked rbd/plain || die "the lock went with its owner"
# Its right to break locks is that to blocklist the owner.
say "... and without the right to blocklist it is not"
serve harmless pool=rbd image=plain break-lock=true
"$nbd_expect" "$(uri)" within 120 , flag read-only yes , write 0 512 1 EPERM
said 'served read-only: .*cannot blocklist .*: Permission denied'
# The image is named once.
! grep 'rbd/plain.*rbd/plain' "$nbdkit_log" >&2 || die "doubled names"
stop_nbdkit
is_locked rbd/plain || die "the lock is broken without a blocklist entry"
serve writer pool=rbd image=plain break-lock=true
"$nbd_expect" "$(uri)" within 120 , read-is 0 4096 8 , write 0 4096 9 ok
stop_nbdkit
printf '%4096s' '' | tr ' ' '\011' |
  dd of="$tmp/model" bs=4096 conv=notrunc status=none

say "profile rbd-read-only: -r, snapshots, clones; no lock, and resizes"
for name in reader least; do
  serve "$name" -r pool=rbd
  images=(plain plain@s)
  # `least` cannot read the parent's pool.
  [ "$name" = least ] || images+=(clone)
  for image in "${images[@]}"; do
    nbdcopy -- "$(uri "$image")" "$tmp/out"
    rbd_export "rbd/$image" "$tmp/exported"
    assert_same_bytes "$tmp/exported" "$tmp/out" "$image with the key $name"
    "$nbd_expect" "$(uri "$image")" flag read-only yes , status 0 $size ok , \
      run "! rbd lock ls rbd/plain | grep ." , write 0 512 1 EPERM
    nbdinfo --map "$(uri "$image")" | grep -q hole ||
      die "$image: no hole with the key $name"
  done
  # This key cannot watch.  What is asked about an object that is missing,
  # finds that the image has shrunk.
  rbd create --size 8M --object-size 256K rbd/shrinks
  "$nbd_expect" "$(uri shrinks)" read-is 0 8M 0 , \
    run "rbd resize --no-progress --allow-shrink --size 4M rbd/shrinks" , \
    read 6M 4096 EINVAL , read-is 0 4M 0 , size 8M
  "$nbd_expect" "$(uri shrinks)" size 4M
  "$nbd_expect" "$(uri shrinks)" size 4M , \
    run "rbd resize --no-progress --size 6M rbd/shrinks" , read-is 0 4M 0
  "$nbd_expect" "$(uri shrinks)" size 6M , read-is 0 6M 0
  rbd rm --no-progress rbd/shrinks
  stop_nbdkit
done

say "profile rbd-read-only without -r: read-only, and it says why"
serve reader pool=rbd image=plain
"$nbd_expect" "$(uri)" flag read-only yes , read-is 0 4096 9 , \
  write 0 512 1 EPERM
said 'served read-only: .*[Oo]peration not permitted'
stop_nbdkit
not_locked rbd/plain || die "a reader has a lock"

say "no right to the parent's pool: an error that names it, and no zeros"
for name in stranger least; do
  serve "$name" -r pool=rbd
  "$nbd_expect" "$(uri clone)" within 60 , connect fail
  said 'clone: its parent cannot be read'
  stop_nbdkit
done

say "pools that the key may not use at all"
if serve_error=$(timeout 60 "${nbdkit[@]}" -f -U "$tmp/x.sock" rados \
  "conf=$ceph_conf" id=stranger "keyring=$tmp/stranger.keyring" \
  pool=parents image=parent 2>&1); then
  die "a stranger is let in"
fi
assert_match 'ermission|permitted' "$serve_error" "the message"
# Without an image it shows when a client comes.
serve stranger pool=parents
"$nbd_expect" "$(uri parent)" connect fail
said 'permitted'
stop_nbdkit

say "radoscopy takes a snapshot of its source, which is writing"
# copy_as NAME: sets `copy`, which copies rbd/plain with that key.
copy_as() {
  copy=("$builddir/run" radoscopy
    "rados:rbd/plain?conf=$ceph_conf&id=$1&keyring=$tmp/$1.keyring"
    "$tmp/copied")
}
rbd_export rbd/plain "$tmp/plain"
copy_as writer
"${copy[@]}"
assert_same_bytes "$tmp/plain" "$tmp/copied" "profile rbd"
for name in reader least; do
  copy_as "$name"
  expect_fail "plain: no snapshot .*permitted.*--no-snapshot" "${copy[@]}"
  "${copy[@]}" --no-snapshot
  assert_same_bytes "$tmp/plain" "$tmp/copied" "$name with --no-snapshot"
done
assert_eq s "$(rbd snap ls --all --format json rbd/plain |
  jq -r '.[].name' | xargs)" "snapshots"
