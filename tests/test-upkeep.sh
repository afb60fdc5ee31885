#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Maintenance beside a busy writer, operation by operation, as the table in the
# manual page has it (MAINTENANCE BESIDE WRITERS).
#
# UPKEEP_ROUNDS   how often each is carried out (2 with lock=auto, else 1)
# UPKEEP_LOCKS    beside writers with which lock= (auto exclusive none);
#                 librbd: a client of qemu-nbd instead, to compare
# UPKEEP_ONLY     only operations that match (extended regex)
# UPKEEP_SIZE     of the image that they are carried out on (64M)

source "$(dirname "$0")/functions.sh" || exit 1
requires_program jq qemu-io
requires /usr/bin/python3 -c 'import nbd'
requires_built "$random_ops" "$nbd_expect"
requires_plugin
start_ceph
size=${UPKEEP_SIZE:-64M}
object_size=64K

# What fails, and how, by lock and operation.  All others work.
declare -A fails=()
for operation in "snap create" "snap limit" "snap rm" "resize up" \
  "resize down" "sparsify" "flatten" "object-map check" \
  "object-map rebuild" "feature disable" "feature enable" "image-meta set" \
  "image-meta rm" "config image set" "config image rm" "rename"; do
  fails[exclusive $operation]="Read-only file system"
done
# Without a word.
fails[exclusive group snap create]="^"
fails[exclusive trash mv]="busy"
for lock in auto exclusive none librbd; do
  fails[$lock migration prepare]="busy"
  fails[$lock rm]="watchers|has snapshots"
  # It does not ask for the lock.
  [ $lock = none ] || fails[$lock snap rollback]="Read-only file system"
done
fails[none object-map check]="Invalid argument"
fails[none object-map rebuild]="Invalid argument"

# Of the writer that is there now: how often which operation was tried, how
# often it failed and with what words, and how long it took, in ms.
operations=()
declare -A tried=() failed=() words=() longest=()

wanted() { [[ $1 =~ ${UPKEEP_ONLY-} ]]; }

# attempt OPERATION COMMAND...: carries it out, if it is wanted.
attempt() {
  local operation=$1 output took start=${EPOCHREALTIME/./}
  shift
  wanted "$operation" || return 0
  [ -n "${tried[$operation]-}" ] || operations+=("$operation")
  tried[$operation]=$((${tried[$operation]-0} + 1))
  if ! output=$(timeout -k 5 60 "$@" 2>&1 </dev/null); then
    failed[$operation]=$((${failed[$operation]-0} + 1))
    words[$operation]=${output//$'\n'/ }
  fi
  took=$(((${EPOCHREALTIME/./} - start) / 1000))
  [ "$took" -lt "${longest[$operation]-0}" ] || longest[$operation]=$took
}

# judge LOCK: prints the table, and compares it with what is to be.
judge() {
  local lock=$1 operation bad= n wanted
  for operation in "${operations[@]}"; do
    n=${failed[$operation]-0}
    printf '%-9s %-18s %2d of %2d failed, at most %5d ms  %s\n' "$lock" \
      "$operation" "$n" "${tried[$operation]}" "${longest[$operation]}" \
      "${words[$operation]-}"
    wanted=${fails[$lock $operation]-}
    if [ -z "$wanted" ]; then
      [ "$n" -eq 0 ] || bad+=" '$operation' failed."
    elif [ "$n" -ne "${tried[$operation]}" ] ||
      ! grep -Eiq "$wanted" <<<"${words[$operation]}"; then
      bad+=" '$operation' did not fail with '$wanted'."
    fi
  done
  [ "$lock" = librbd ] || [ -z "$bad" ] || die "beside lock=$lock:$bad"
  operations=() tried=() failed=() words=() longest=()
}

# serve LOCK IMAGE: an image by a server of its own; its URI is $served.
serve() {
  if [ "$1" != librbd ]; then
    start_rados pool=rbd image="$2" lock="$1"
    served=$(uri)
    return
  fi
  qemu-nbd -f raw --discard=unmap -t -k "$tmp/qemu.sock" -e 20 \
    "rbd:rbd/$2:conf=$ceph_conf" >"$tmp/qemu.log" 2>&1 &
  qemu=$!
  own "$qemu"
  wait_until 10 test -S "$tmp/qemu.sock"
  served="nbd+unix:///?socket=$tmp/qemu.sock"
}
end_serving() {
  if [ "$1" != librbd ]; then
    stop_nbdkit
  else
    stop_pid "$qemu"
    rm -f "$tmp/qemu.sock"
  fi
}

# write_all_the_time [URI]: to the first 16 MiB, compared with $tmp/model.
write_all_the_time() {
  rm -f "$tmp/stop"
  "$random_ops" --ops 100000000 --stop-file "$tmp/stop" --threads 2 \
    --connections 2 --batch 4 --max-length 64K --boundaries 4096,64K \
    --region 0+16M --model "$tmp/model" "$served" "$@" \
    >"$tmp/io.out" 2>&1 &
  writer=$!
  own "$writer"
  sleep 0.2
}
stop_writing() {
  : >"$tmp/stop"
  wait "$writer" || {
    cat "$tmp/io.out" >&2
    die "the writer failed"
  }
}

# check IMAGE: it is what the writer knows, and its object map is right.
check() {
  same_export "$1" "$tmp/model"
  [ "$lock" = none ] || check_object_map "$1"
}

# one_round N: each operation that leaves the writer's data alone.  Where most
# of them fail, they need something to fail on.
one_round() {
  local n=$1 id made=s$1 smaller=$size more=object-map,fast-diff
  if [ "$lock" = exclusive ]; then
    made=t$((n - 1)) smaller=48M more=journaling
  fi
  attempt "snap create" rbd snap create --no-progress "$image@s$n"
  rm -f "$tmp/exported"
  attempt "export" rbd export --no-progress "$image@$made" "$tmp/exported"
  attempt "snap rename" rbd snap rename "$image@$made" "$image@t$n"
  attempt "snap protect" rbd snap protect "$image@t$n"
  attempt "snap unprotect" rbd snap unprotect "$image@t$n"
  attempt "snap limit" rbd snap limit set --limit 100 "$image"
  attempt "snap rm" rbd snap rm --no-progress "$image@t$n"
  attempt "resize up" rbd resize --no-progress --size 128M "$image"
  attempt "resize down" rbd resize --no-progress --allow-shrink \
    --size "$smaller" "$image"
  attempt "sparsify" rbd sparsify --no-progress "$image"
  attempt "object-map check" rbd object-map check --no-progress "$image"
  attempt "object-map rebuild" rbd object-map rebuild --no-progress "$image"
  attempt "image-meta set" rbd image-meta set "$image" key "$n"
  attempt "image-meta rm" rbd image-meta rm "$image" key
  attempt "config image set" rbd config image set "$image" rbd_cache false
  attempt "config image rm" rbd config image rm "$image" rbd_cache
  if [ "$lock" != none ]; then
    attempt "feature disable" rbd feature disable "$image" object-map
    attempt "feature enable" rbd feature enable "$image" $more
    # The new map is invalid until then.
    attempt "object-map rebuild" rbd object-map rebuild --no-progress "$image"
  fi
  attempt "rename" rbd mv "$image" "$image-other"
  ! rbd info "$image-other" >/dev/null 2>&1 || rbd mv "$image-other" "$image"
  attempt "group snap create" rbd group snap create "rbd/group@s$n"
  [ "$lock" = exclusive ] ||
    attempt "group snap rm" rbd group snap rm "rbd/group@s$n"
  attempt "cp" rbd cp --no-progress "$image" "rbd/cp-$lock-$n"
  attempt "deep cp" rbd deep cp --no-progress "$image" "rbd/deep-$lock-$n"
  attempt "du" rbd du "$image"
  attempt "diff" rbd diff "$image"
  attempt "migration prepare" rbd migration prepare "$image" rbd/migrated
  attempt "rm" rbd rm --no-progress "$image"
  id=$(rbd info --format json "$image" | jq -r .id)
  # rbd 20 refuses to put a member of a group into the trash.
  rbd group image rm rbd/group "$image"
  attempt "trash mv" rbd trash mv "$image"
  if rbd trash ls | grep -q "^$id "; then rbd trash restore "$id"; fi
  rbd group image add rbd/group "$image"
}

# prepare_to_fail: see there.
prepare_to_fail() {
  rbd_snap $image@t-1
  rbd image-meta set $image key value
  rbd config image set $image rbd_cache false
}

for lock in ${UPKEEP_LOCKS:-auto exclusive none}; do
  say "beside a writer with lock=$lock"
  rounds=1
  [ "$lock" != auto ] || rounds=2
  rounds=${UPKEEP_ROUNDS:-$rounds}
  image=rbd/live-$lock
  features=layering,exclusive-lock,object-map,fast-diff,deep-flatten
  [ "$lock" != none ] || features=layering,deep-flatten
  new=(--object-size $object_size --image-feature "$features")
  rbd create --size "$size" "${new[@]}" $image
  [ "$lock" != exclusive ] || prepare_to_fail
  rbd group create rbd/group
  rbd group image add rbd/group $image
  rm -f "$tmp/model"
  truncate -s "$size" "$tmp/model"
  serve "$lock" live-$lock
  # For sparsify.
  "$nbd_expect" "$served" write 16M 32M 0 ok
  write_all_the_time
  for ((n = 0; n < rounds; n++)); do one_round $n; done
  stop_writing
  end_serving "$lock"
  grep -q ' write=[1-9]' "$tmp/io.out" || die "nothing was written"
  check $image
  rbd group rm rbd/group

  # Each flatten needs a clone of its own.
  base=rbd/base-$lock
  rbd create --size 16M "${new[@]}" $base
  serve "$lock" base-$lock
  "$nbd_expect" "$served" write 0 16M 9 ok
  end_serving "$lock"
  rbd_snap $base@s
  rbd snap protect $base@s
  for ((n = 0; n < rounds; n++)); do
    wanted flatten || break
    rbd clone "${new[@]}" $base@s rbd/clone-$lock
    fill_file "$tmp/model" $((16 << 20)) 011
    serve "$lock" clone-$lock
    write_all_the_time
    attempt "flatten" rbd flatten --no-progress rbd/clone-$lock
    stop_writing
    end_serving "$lock"
    check rbd/clone-$lock
    rbd rm --no-progress rbd/clone-$lock
  done

  # The writer does not know what it finds afterwards.
  serve "$lock" base-$lock
  rm -f "$tmp/stop"
  /usr/bin/python3 - "$served" "$tmp/stop" <<'PYTHON' &
import nbd, os, random, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
while not os.path.exists(sys.argv[2]):
    h.pwrite(b"x" * 4096, random.randrange(4096) * 4096)
PYTHON
  writer=$!
  own "$writer"
  sleep 0.2
  for ((n = 0; n < rounds; n++)); do
    attempt "snap rollback" rbd snap rollback --no-progress $base@s
  done
  : >"$tmp/stop"
  wait "$writer" || die "the writer failed"
  end_serving "$lock"
  [ "$lock" = none ] || check_object_map $base
  judge "$lock"
done

say "a rollback that has begun while nobody wrote is carried out"
image=rbd/undo
rbd create --size 64M --object-size $object_size $image
header=rbd_header.$(rbd info --format json $image | jq -r .id)
serve auto undo
"$nbd_expect" "$served" write 0 64M 1 ok , \
  run "rbd snap create --no-progress $image@s" , write 0 64M 2 ok
stop_nbdkit
cat >"$tmp/roll-back" <<SCRIPT
(rbd snap rollback --no-progress $image@s; echo \$? >'$tmp/status') &
until [ -s '$tmp/status' ] ||
  rados -p rbd lock info $header rbd_lock | grep -q client; do :; done
SCRIPT
serve auto undo
"$nbd_expect" "$served" read-is 0 64M 2 , \
  run "bash '$tmp/roll-back' >'$tmp/out' 2>&1 </dev/null" , \
  write 0 4096 3 ok , \
  run "until [ -s '$tmp/status' ]; do sleep 0.1; done" , \
  read-is 0 4096 3 , read-is 4096 67104768 1
stop_nbdkit
assert_eq 0 "$(cat "$tmp/status")" "status of the rollback"
check_object_map $image

say "sparsify beside two servers that write in turn"
rbd create --size 64M --object-size $object_size rbd/both
start_rados pool=rbd image=both lock=auto lock-wait=5
served=$(uri)
"$nbd_expect" "$served" write 16M 32M 0 ok
start_rados pool=rbd image=both lock=auto lock-wait=5
rm -f "$tmp/model"
truncate -s 64M "$tmp/model"
# Until each knows of the other that it writes.
"$random_ops" --ops 20 --threads 2 --connections 2 --region 0+16M \
  --model "$tmp/model" "$served" "$(uri)" >/dev/null
write_all_the_time "$(uri)"
for n in 1 2 3; do rbd sparsify --no-progress rbd/both; done
stop_writing
stop_nbdkit
lock=auto
check rbd/both

say "a client that keeps the lock is asked when lock-wait= is over"
start_rados pool=rbd image=undo lock=auto lock-wait=4
mkfifo "$tmp/go"
exec {go}<>"$tmp/go"
# Writes, stays, writes when it is told to, and stays again.
cat >"$tmp/keep" <<SCRIPT
{ echo 'write -P 4 1M 4K'; read -r _ <'$tmp/go'
  echo 'write -P 5 2M 4K'; read -r _ <'$tmp/go'; } |
  qemu-io -f raw 'rbd:$image:conf=$ceph_conf' >'$tmp/keep.out' 2>&1 &
SCRIPT
# has_written OFFSET: waits for that.
has_written() { echo "until grep -q $1 '$tmp/keep.out'; do sleep 0.1; done"; }
"$nbd_expect" "$(uri)" write 0 4096 6 ok , \
  run "bash '$tmp/keep'; $(has_written 1048576)" , \
  within 20 , write 0 4096 7 ok , read-is 1M 4096 4 , \
  run "echo >'$tmp/go'; $(has_written 2097152)" , \
  within 4 , write 0 4096 8 ok , read-is 2M 4096 5
echo >"$tmp/go"
stop_nbdkit
