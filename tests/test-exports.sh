#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# One server, many images: the list, the descriptions, the default export,
# names that leave the pool, several connections, images closed when idle.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program nbdinfo jq nbdcopy
requires_built "$nbd_expect" "$random_ops" \
  "$builddir/filters/radosoffset/.libs/nbdkit-radosoffset-filter.so" \
  "$builddir/filters/radoscache/.libs/nbdkit-radoscache-filter.so"
requires_plugin
start_ceph
make_pool other

make_format1_image rbd old 8000000 16
# rbd_directory knows nothing of it; a made one is registered there.
start_rados rbd/listed format=1 create=true size=2M object-size=64K
stop_nbdkit
rbd_snap rbd/listed@monday
rbd create --size 5M --object-size 1M --stripe-unit 64K --stripe-count 3 rbd/two
rbd_snap rbd/two@s1
rbd_snap rbd/two@s2
rbd create --size 1M "rbd/strange name%41"
rbd namespace create rbd/ns
rbd create --size 3M rbd/ns/inside
rbd_snap rbd/ns/inside@s
rbd create --size 1M other/secret
rbd create --size 1M other/two
fill_file "$tmp/content" 1000000 141
striper_put rbd striped "$tmp/content"

say "the list"
start_rados pool=rbd
"$nbd_expect" --list "$(uri)" >"$tmp/list"
cut -f 1 "$tmp/list" | sort >"$tmp/names"
for name in listed listed@monday two two@s1 two@s2 "strange name%2541" \
  ns/inside ns/inside@s; do
  grep -Fxq "$name" "$tmp/names" || {
    cat "$tmp/list" >&2
    die "$name is not in the list"
  }
done
assert_eq "" "$(uniq -d "$tmp/names")" "names that are listed twice"
! grep -q secret "$tmp/names" || die "an image of another pool is listed"
! grep -Eq '^rbd_|\.rbd$|^rb\.|rbd_data' "$tmp/names" ||
  die "a RADOS object is listed as an image"
# What is listed can be opened, under just this name.
while IFS= read -r name; do
  "$nbd_expect" "$(uri "$name")" read 0 512 ok
done <"$tmp/names"
# nbdinfo's view of the same.
nbdinfo --list --json "$(uri)" >"$tmp/json"
jq -r '.exports[]."export-name"' "$tmp/json" | sort >"$tmp/names2"
assert_same_bytes "$tmp/names" "$tmp/names2" "nbdinfo --list"

# Striped objects are listed when the server is for them.
stop_nbdkit
start_rados pool=rbd format=striper
assert_eq striped "$("$nbd_expect" --list "$(uri)" | cut -f 1)" "striped objects"
"$nbd_expect" "$(uri striped)" size 1000000
"$nbd_expect" "$(uri two)" connect fail
stop_nbdkit
start_rados pool=rbd

say "descriptions"
"$nbd_expect" "$(uri two)" description "[Ff]ormat 2" , \
  description "5 ?M|5242880" , description "3" , description "64 ?K|65536" , \
  description "layering" , size 5M , flag read-only no
"$nbd_expect" "$(uri old)" description "[Ff]ormat 1" , size 8000000 , \
  flag read-only no
"$nbd_expect" "$(uri striped)" description "[Ss]trip" , size 1000000 , \
  read-is 0 1000000 97
"$nbd_expect" "$(uri ns/inside)" size 3M
"$nbd_expect" "$(uri ns/inside@s)" size 3M , flag read-only yes
"$nbd_expect" "$(uri two@s1)" flag read-only yes
"$nbd_expect" "$(uri "strange name%2541")" size 1M

say "names that are refused"
for name in nothing two@nothing @s1 two@ secret other/secret ../other/secret \
  /other/secret other//secret rbd/ns/inside ns/two ns/../two ./two two/ \
  nowhere/two two@s1@s2 rbd_directory rbd_header two.rbd old.rbd \
  "$(printf 'a%.0s' {1..4000})"; do
  "$nbd_expect" "$(uri "$name")" connect fail ||
    die "the export name ${name:0:40} was accepted"
done
[ "$(rados -p rbd --all ls | wc -l)" -gt 0 ]
! prints nothing rados -p rbd --all ls || die "a refused name was created"
is_running "$nbdkit_pid" || die "the server died"

say "the default export of a pool"
# Which image would "" be?  None: the client is refused, or gets told a name.
"$nbd_expect" "$(uri "")" connect fail
stop_nbdkit
# Where there is only one it is clear.
make_pool single
rbd create --size 7M single/alone
rbd_snap single/alone@s
start_rados pool=single
"$nbd_expect" "$(uri "")" size 7M , name '^alone$'
stop_nbdkit

say "one image: it is the default export, and its names are the only ones"
start_rados pool=rbd image=two
"$nbd_expect" "$(uri "")" size 5M
"$nbd_expect" --list "$(uri)" >"$tmp/list"
for name in listed striped secret; do
  ! prints "^$name$" cut -f 1 "$tmp/list" || die "$name is listed"
  # Refused, or it is the configured image and nothing else.
  "$nbd_expect" "$(uri $name)" connect fail ||
    "$nbd_expect" "$(uri $name)" size 5M
done
stop_nbdkit
start_rados pool=rbd image=two@s1
"$nbd_expect" "$(uri "")" size 5M , flag read-only yes
stop_nbdkit
start_rados pool=rbd image=two snapshot=s1
"$nbd_expect" "$(uri "")" size 5M , flag read-only yes
stop_nbdkit
start_rados rbd/ns/inside
"$nbd_expect" "$(uri "")" size 3M
stop_nbdkit
start_rados rbd/ns/inside@s
"$nbd_expect" "$(uri "")" size 3M
stop_nbdkit
start_rados pool=rbd namespace=ns image=inside
"$nbd_expect" "$(uri "")" size 3M
stop_nbdkit

say "a namespace: nothing outside of it"
start_rados pool=rbd namespace=ns
"$nbd_expect" --list "$(uri)" | cut -f 1 | sort | xargs >"$tmp/list"
assert_eq "inside inside@s" "$(cat "$tmp/list")" "list of the namespace"
"$nbd_expect" "$(uri inside)" size 3M
for name in two listed ../two /two ns/inside rbd/two; do
  "$nbd_expect" "$(uri "$name")" connect fail ||
    die "$name was accepted, and is not in the namespace"
done
stop_nbdkit

say "nbdkit -r: everything is read-only"
start_rados -r pool=rbd
"$nbd_expect" "$(uri old)" flag read-only yes , write 0 512 1 EPERM
"$nbd_expect" "$(uri striped)" flag read-only yes , write 0 512 1 EPERM
stop_nbdkit

say "several connections see each other's writes, and images never mix"
make_format1_image rbd a 1000000 12
make_format1_image rbd b 1000000 12
start_rados pool=rbd
"$nbd_expect" "$(uri a)" write 0 1000000 1 ok , \
  run "'$nbd_expect' '$(uri b)' read-is 0 1000000 0 , write 0 500000 2 ok" , \
  run "'$nbd_expect' '$(uri a)' read-is 0 1000000 1 , write 0 10 3 ok" , \
  read-is 0 10 3 , read-is 10 999990 1
"$nbd_expect" "$(uri b)" read-is 0 500000 2 , read-is 500000 500000 0

say "closed when idle: the watch goes when the last connection is gone"
watchers() { rados -p rbd listwatchers a.rbd | grep -c watcher || :; }
"$nbd_expect" "$(uri a)" read 0 1 ok , \
  run "rados -p rbd listwatchers a.rbd >'$tmp/one'" , \
  run "'$nbd_expect' '$(uri a)' read 0 1 ok , \
    run \"rados -p rbd listwatchers a.rbd >'$tmp/both'\""
assert_eq 1 "$(grep -c watcher "$tmp/one")" "watchers with one connection"
assert_eq 1 "$(grep -c watcher "$tmp/both")" "watchers with two connections"
no_watchers() { [ "$(watchers)" = 0 ]; }
wait_until 60 no_watchers
# Opened again after that.
"$nbd_expect" "$(uri a)" read-is 0 10 3
# Twenty images, twenty connections at once.
pids=()
for n in {1..20}; do make_format1_image rbd "many$n" 100000 12; done
for n in {1..20}; do
  "$nbd_expect" "$(uri "many$n")" write 0 100000 "$n" ok , \
    read-is 0 100000 "$n" , run "sleep 0.5" , read-is 0 100000 "$n" &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || die "one of twenty failed"; done
stop_nbdkit

say "the same range of several images, through the filters"
first=77777
length=900000
images=(a two listed)
for image in "${images[@]}"; do
  rbd_export "rbd/$image" "$tmp/$image.model"
  tail -c +$((first + 1)) "$tmp/$image.model" | head -c $length \
    >"$tmp/$image.part" || :
done
for filters in --filter=radosoffset \
  "--filter=radoscache --filter=radosoffset"; do
  # shellcheck disable=SC2086
  start_nbdkit $filters rados "conf=$ceph_conf" pool=rbd lock=auto \
    offset=$first range=$length
  pids=()
  for image in "${images[@]}"; do
    "$random_ops" --ops 300 --connections 2 --batch 4 --max-length 200K \
      --boundaries 4096,64K --model "$tmp/$image.part" "$(uri $image)" \
      >/dev/null &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || die "a range of an image"; done
  rbd_snap rbd/two@range
  "$nbd_expect" "$(uri two)" write 100000 4096 7 ok
  printf '\7%.0s' {1..4096} |
    dd of="$tmp/two.part" bs=100000 seek=1 conv=notrunc status=none
  for new in two two@range; do
    "$nbd_expect" "$(uri $new)" size $length
  done
  # In sectors of the image and in sectors of the range.
  assert_eq "0 99840 1
99840 5120 0
104960 795040 1" "$(nbdinfo --map "$(uri two@since=range)" |
    awk '{print $1, $2, $3}')" "range of a difference"
  "$nbd_expect" "$(uri ns/inside@s)" read-is 0 $length 0 , \
    status $((length - 1)) 1 ok
  stop_nbdkit
  rbd snap rm --no-progress rbd/two@range
  for image in "${images[@]}"; do
    dd if="$tmp/$image.part" of="$tmp/$image.model" bs=64K seek=$first \
      oflag=seek_bytes conv=notrunc status=none
    same_export "rbd/$image" "$tmp/$image.model" "$filters"
  done
done
