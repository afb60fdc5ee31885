#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# An export that is open stays the image or snapshot that it was, and a new
# client gets what has the name now: while images and snapshots are renamed or
# removed and others of their name made, and pools and striped objects, too.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program jq
requires_built "$nbd_expect" \
  "$builddir/filters/radoscache/.libs/nbdkit-radoscache-filter.so"
requires_plugin
start_ceph --cephx
# With this key the server cannot watch, so nobody sees that it has an image.
ceph auth get-or-create client.blind mon 'allow r' osd 'allow rx' \
  >"$tmp/blind.keyring"

# Two images: 2 MiB of "a", 1 MiB of "b".  Each is known by what is_a and is_b
# read; clients write before that.
fill_file "$tmp/a" 2M 141
fill_file "$tmp/b" 1M 142
is_a=(size 2M , read-is 64K 128K 97)
is_b=(size 1M , read-is 64K 128K 98)
all=()
plain=(--image-feature layering)

# import FILE IMAGE [OPTION...]: the command that makes an image.
import() {
  printf '%q ' rbd import --no-progress --object-size 64K "${@:3}" \
    "$tmp/$1" "rbd/$2"
}
# client EXPORT STEP...: the command that is another client of the server.
client() {
  printf '%q ' "$nbd_expect" "$(uri "$1")" within 20 , "${@:2}"
}
remove() {
  local image
  for image; do
    rbd snap purge --no-progress "rbd/$image" 2>/dev/null
    rbd rm --no-progress "rbd/$image"
  done
}
# patched FILE BYTE: the file, with 4 KiB of a byte (octal) at its start.
patched() {
  cp "$tmp/$1" "$tmp/patched"
  fill_file "$tmp/4k" 4096 "$2"
  dd if="$tmp/4k" of="$tmp/patched" conv=notrunc status=none
}

# renamed OPTIONS ARGUMENT...: `rbd mv vm old` and a new vm, while clients of a
# server with these arguments write to them.  OPTIONS: all or plain, an image's
# features.
renamed() {
  local -n options=$1
  shift
  eval "$(import a vm "${options[@]}")"
  start_nbdkit "$@"
  "$nbd_expect" "$(uri vm)" within 20 , "${is_a[@]}" , write 0 4K 1 ok , \
    run "rbd mv rbd/vm rbd/old && $(import b vm "${options[@]}")" , \
    "${is_a[@]}" , read-is 0 4K 1 , write 0 4K 2 ok , \
    run "$(client vm "${is_b[@]}" , read-is 0 4K 98 , write 0 4K 3 ok , \
      read-is 0 4K 3)" , \
    read-is 0 4K 2 , write 0 4K 4 ok , \
    run "$(client old "${is_a[@]}" , read-is 0 4K 4 , write 0 4K 5 ok , \
      run "$(client vm read-is 0 4K 3 , write 0 4K 6 ok)" , \
      run "rbd status --format json rbd/old >'$tmp/status'" , \
      read-is 0 4K 5)" , \
    read-is 0 4K 5 , write 0 4K 7 ok , read-is 0 4K 7
  stop_nbdkit
  # Two names of one image are one image: one watch, and so one lock.
  assert_eq 1 "$(jq '.watchers | length' "$tmp/status")" "watches"
  patched a 7
  same_export rbd/old "$tmp/patched" "$*"
  patched b 6
  same_export rbd/vm "$tmp/patched" "$*"
  remove vm old
}

say "an image is renamed, and another one gets its name"
renamed all rados "conf=$ceph_conf" pool=rbd lock=auto
renamed plain rados "conf=$ceph_conf" pool=rbd
renamed all --filter=radoscache rados "conf=$ceph_conf" pool=rbd lock=auto \
  cache-mode=writeback
renamed plain --filter=radoscache rados "conf=$ceph_conf" pool=rbd \
  cache-mode=writeback cache-shared=unsafe cache-exports=distinct

say "... read-only, and where one image is configured"
for server in "-r rados pool=rbd" "rados rbd/vm lock=auto" \
  "-r --filter=radoscache rados rbd/vm cache-shared=unsafe"; do
  eval "$(import a vm)"
  # shellcheck disable=SC2086
  start_nbdkit $server "conf=$ceph_conf"
  "$nbd_expect" "$(uri vm)" within 20 , "${is_a[@]}" , \
    run "rbd mv rbd/vm rbd/old && $(import b vm)" , "${is_a[@]}" , \
    run "$(client vm "${is_b[@]}")" , "${is_a[@]}" , \
    run "rbd mv rbd/vm rbd/new && rbd mv rbd/old rbd/vm" , \
    run "$(client vm "${is_a[@]}")" , "${is_a[@]}"
  stop_nbdkit
  remove vm new
done

say "both names of an image write at once"
eval "$(import a vm)"
start_rados pool=rbd lock=auto
"$nbd_expect" "$(uri vm)" within 20 , write 0 4K 1 ok , \
  run "rbd mv rbd/vm rbd/old" , \
  run "$(client old write 4K 4K 2 ok , \
    run "touch '$tmp/both'; while [ -e '$tmp/both' ]; do sleep 0.1; done" , \
    write 12K 4K 4 ok) & until [ -e '$tmp/both' ]; do sleep 0.1; done" , \
  write 16K 4K 5 ok , read-is 4K 4K 2 , \
  run "rm '$tmp/both'" , write 8K 4K 3 ok , \
  until 20 read-is 12K 4K 4 , run "$(client vm connect fail)"
stop_nbdkit
remove old

say "lock=exclusive keeps the names of what is written to"
eval "$(import a vm)"
start_rados pool=rbd
for command in "mv rbd/vm rbd/old" "trash mv rbd/vm"; do
  "$nbd_expect" "$(uri vm)" within 20 , write 0 4K 1 ok , \
    run "! rbd $command 2>'$tmp/err'" , write 0 4K 2 ok
  assert_match "read-only file system|device or resource busy" \
    "$(cat "$tmp/err")" "rbd $command"
done
stop_nbdkit
remove vm

say "an image goes to the trash, and comes back"
eval "$(import a vm)"
id=$(rbd info --format json rbd/vm | jq -r .id)
start_rados pool=rbd lock=auto
"$nbd_expect" "$(uri vm)" within 20 , write 0 4K 1 ok , \
  run "rbd trash mv rbd/vm" , write 0 4K 2 ok , "${is_a[@]}" , \
  run "$(client vm connect fail)" , \
  run "$(import b vm)" , run "$(client vm "${is_b[@]}" , write 0 4K 3 ok)" , \
  "${is_a[@]}" , write 0 4K 4 ok , \
  run "rbd trash restore --pool rbd --image back $id" , \
  run "$(client back "${is_a[@]}" , read-is 0 4K 4 , write 0 4K 5 ok)" , \
  run "$(client vm "${is_b[@]}" , read-is 0 4K 3)" , \
  read-is 0 4K 5 , write 0 4K 6 ok
stop_nbdkit
remove vm back

say "an image is removed, and another one gets its name"
for options in all plain; do
  declare -n options_of=$options
  eval "$(import a vm "${options_of[@]}")"
  start_nbdkit -r rados "conf=$ceph_conf" pool=rbd id=blind \
    "keyring=$tmp/blind.keyring"
  "$nbd_expect" "$(uri vm)" within 20 , "${is_a[@]}" , \
    run "rbd rm --no-progress rbd/vm && $(import b vm "${options_of[@]}")" , \
    read 64K 128K EIO , run "$(client vm "${is_b[@]}")" , \
    read 64K 128K EIO , status 0 2M EIO
  stop_nbdkit
  remove vm
done
# Whoever has the lock is told.  (With the name still in the directory, rbd 20
# gives it to no other image, rbd 16 does.)
eval "$(import a vm)"
id=$(rbd info --format json rbd/vm | jq -r .id)
start_rados pool=rbd
"$nbd_expect" "$(uri vm)" within 20 , write 0 4K 1 ok , \
  run "for o in rbd_id.vm rbd_header.$id rbd_object_map.$id; do
    rados -p rbd rm \$o; done
    for key in name_vm id_$id; do
      rados -p rbd rmomapkey rbd_directory \$key; done" , \
  until 20 write 0 4K 2 EIO , \
  run "$(import b new) && rbd mv rbd/new rbd/vm" , \
  run "$(client vm "${is_b[@]}" , write 0 4K 3 ok)" , \
  write 0 4K 4 EIO , read 0 4K EIO
stop_nbdkit
remove vm

say "an image migrates"
eval "$(import a vm)"
make_pool other
start_nbdkit -r rados "conf=$ceph_conf" pool=rbd id=blind \
  "keyring=$tmp/blind.keyring"
"$nbd_expect" "$(uri vm)" within 20 , "${is_a[@]}" , \
  run "rbd migration prepare rbd/vm rbd/vm" , \
  run "$(client vm connect fail)" , \
  run "rbd migration execute --no-progress rbd/vm" , \
  run "rbd migration commit --no-progress rbd/vm" , \
  run "$(client vm "${is_a[@]}")" , status 0 2M EIO
stop_nbdkit
remove vm

# s0, b and s1 are snapshots before the first write, between the two, and after
# them; these are their differences.
first=4096:data,61440:hole-only
second=4096:hole-only,4096:data,57344:hole-only
both=8192:data,57344:hole-only
none=65536:hole-only
# snapshots CHANGES ARGUMENT...: b is renamed (rename), or removed (rm), and
# another one gets its name.
snapshots() {
  local changes=$1 change old since
  shift
  for change in $changes; do
    eval "$(import a vm)"
    start_nbdkit "$@"
    rbd_snap rbd/vm@s0
    "$nbd_expect" "$(uri vm)" write 0 4K 1 ok
    rbd_snap rbd/vm@b
    "$nbd_expect" "$(uri vm)" write 4K 4K 2 ok
    old=(read-is 0 4K 1 , read-is 4K 4K 97 , extents 0 64K 65536:data)
    since=(extents 0 64K $second)
    command="rbd snap rename rbd/vm@b rbd/vm@old"
    if [ $change = rm ]; then
      old=(read 0 4K EIO , status 0 64K EIO)
      since=(status 0 64K EIO)
      command="rbd snap rm --no-progress rbd/vm@b"
    fi
    "$nbd_expect" "$(uri vm@b)" within 20 , read-is 0 4K 1 , \
      read-is 4K 4K 97 , extents 0 64K 65536:data , \
      run "$(client vm@since=b extents 0 64K $second , \
        run "$command && rbd snap create --no-progress rbd/vm@b" , \
        run "$(client vm@since=b extents 0 64K $none)" , \
        "${since[@]}")" , \
      "${old[@]}" , \
      run "$(client vm@b read-is 0 4K 1 , read-is 4K 4K 2 , \
        extents 0 64K 65536:data)" , \
      run "$(client vm@b@since=s0 extents 0 64K $both)" , \
      "${old[@]}"
    stop_nbdkit
    remove vm
  done
}

# b is renamed, and s0 gets its name, while the difference to s1 is open.
differences() {
  eval "$(import a vm)"
  start_nbdkit "$@"
  rbd_snap rbd/vm@s0
  "$nbd_expect" "$(uri vm)" write 0 4K 1 ok
  rbd_snap rbd/vm@b
  "$nbd_expect" "$(uri vm)" write 4K 4K 2 ok
  rbd_snap rbd/vm@s1
  "$nbd_expect" "$(uri vm@s1@since=b)" within 20 , extents 0 64K $second , \
    run "rbd snap rename rbd/vm@b rbd/vm@old &&
      rbd snap rename rbd/vm@s0 rbd/vm@b" , \
    extents 0 64K $second , \
    run "$(client vm@s1@since=b extents 0 64K $both)" , \
    run "$(client vm@s1@since=old extents 0 64K $second)" , \
    extents 0 64K $second
  "$nbd_expect" "$(uri vm@old@since=b)" extents 0 64K $first
  stop_nbdkit
  remove vm
}

say "a snapshot is renamed, or removed, and another one gets its name"
snapshots "rename rm" rados "conf=$ceph_conf" pool=rbd
snapshots rename --filter=radoscache rados "conf=$ceph_conf" pool=rbd
say "... the older one of a difference"
differences --filter=radoscache rados "conf=$ceph_conf" pool=rbd
differences --filter=radoscache rados "conf=$ceph_conf" pool=rbd \
  cache-shared=unsafe

say "format 1: the header is found by its name"
make_format1_image rbd one 8000000 16
make_format1_image rbd another 8000000 16
start_rados pool=rbd format=1
"$nbd_expect" "$(uri one)" within 20 , write 0 4K 1 ok , \
  run "rados -p rbd cp one.rbd old.rbd && rados -p rbd rm one.rbd &&
    rados -p rbd cp another.rbd one.rbd" , \
  run "$(client one read-is 0 4K 0 , write 0 4K 2 ok)" , \
  run "$(client old read-is 0 4K 1 , write 0 4K 3 ok)" , \
  until 20 write 0 4K 4 EIO , read 0 4K EIO , \
  run "$(client one read-is 0 4K 2)" , run "$(client old read-is 0 4K 3)"
stop_nbdkit

say "striped objects: all of a name are the same, but whoever has it locked"
for layout in "65536 65536 1" "131072 65536 1"; do
  striper_make rbd st 65536 65536 1 1000000
  # shellcheck disable=SC2086
  striper_make rbd other $layout 500000
  start_rados pool=rbd format=striper
  "$nbd_expect" "$(uri st)" within 20 , size 1000000 , write 0 4K 1 ok , \
    run "rados -p rbd rm st.0000000000000000" , \
    run "$(client st connect fail)" , \
    run "rados -p rbd cp other.0000000000000000 st.0000000000000000" , \
    run "$(client st size 500000 , read-is 0 4K 0 , write 0 4K 2 ok , \
      run "$(client st read-is 0 4K 2)")" , \
    until 20 write 0 4K 3 "ESHUTDOWN|EIO" , run "$(client st read-is 0 4K 2)"
  stop_nbdkit
  rados -p rbd rm st.0000000000000000
  rados -p rbd rm other.0000000000000000
done

# again FILE POOL: the commands that make a pool, and an image in it.
again() {
  printf '%s' "ceph osd pool create $2 8 8 && ceph osd pool set $2 size 1 \
    --yes-i-really-mean-it && ceph osd pool application enable $2 rbd &&
    rbd import --no-progress --object-size 64K '$tmp/$1' $2/vm"
}
say "a pool is removed, or renamed, and another one gets its name"
eval "$(again a renamed)" >"$tmp/out" 2>&1
eval "$(again a removed)" >"$tmp/out" 2>&1
start_nbdkit -r rados "conf=$ceph_conf" pool=renamed
renamed=$(uri vm)
"$nbd_expect" "$(uri vm)" within 20 , "${is_a[@]}" , \
  run "(ceph osd pool rename renamed old && $(again b renamed)) \
    >'$tmp/out' 2>&1" , \
  run "$(client vm "${is_b[@]}")" , "${is_a[@]}" , \
  run "$(client vm "${is_b[@]}")"
stop_nbdkit
start_nbdkit -r rados "conf=$ceph_conf" pool=removed
"$nbd_expect" "$(uri vm)" within 20 , "${is_a[@]}" , \
  run "(ceph osd pool rm removed removed --yes-i-really-really-mean-it &&
    $(again b removed)) >'$tmp/out' 2>&1" , \
  run "$(client vm "${is_b[@]}")" , until 20 read 64K 128K EIO , \
  run "$(client vm "${is_b[@]}")"
stop_nbdkit

say "what is cached of a snapshot is not that of another pool"
# Equal but for the pool: the names, the object prefix, the snapshot's id.
make_pool twins
start_nbdkit --filter=radoscache rados "conf=$ceph_conf" pool=twins
for byte in 1 2; do
  make_format1_image twins twin 1000000 16 rb.0.twin
  "$nbd_expect" "$(uri twin)" write 0 4K $byte ok
  rbd_snap twins/twin@s
  rbd snap ls --format json twins/twin | jq '.[0].id' >"$tmp/snap$byte"
  "$nbd_expect" "$(uri twin@s)" read-is 0 4K $byte
  ceph osd pool rm twins twins --yes-i-really-really-mean-it >"$tmp/out" 2>&1
  [ $byte = 2 ] || make_pool twins
done
stop_nbdkit
assert_same_bytes "$tmp/snap1" "$tmp/snap2" "the ids of the snapshots"

say "a client comes before the OSD has heard of a pool's new name"
for option in type=mon probability=1 max=2; do
  ceph config set osd "ms_inject_delay_${option%=*}" "${option#*=}"
done
"$mini_ceph" kill-osd "$ceph_dir" 0
"$mini_ceph" start-osd "$ceph_dir" 0
pool_rename() { ceph osd pool rename "$1" "$2" 2>"$tmp/out"; }
start_nbdkit -r rados "conf=$ceph_conf" pool=renamed connect-timeout=3
for size in 2M 1M 2M 1M 2M 1M; do
  pool_rename renamed away
  pool_rename old renamed
  "$nbd_expect" "$(uri vm)" within 20 , size $size
  pool_rename away old
done

say "... and no monitor answers: no guess"
mon=$(cat "$ceph_dir/mon.a.pid")
kill -STOP "$mon"
at_exit "kill -CONT $mon 2>/dev/null || :"
"$nbd_expect" "$(uri vm)" connect fail
kill -CONT "$mon"
grep -q "cannot ask the monitors for pool 'renamed'" "$nbdkit_log" ||
  die "no message"
"$nbd_expect" "$(uri vm)" within 60 , size 1M
stop_nbdkit
