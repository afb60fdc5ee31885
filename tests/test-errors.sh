#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Bad input gets one clear line: exit status 1, a message on stderr that names
# the thing, before nbdkit goes into the background; and nothing is written.

source "$(dirname "$0")/functions.sh" || exit 1
requires_built "$nbd_expect"
requires_plugin
start_ceph

make_format1_image rbd one 4000000 16
rbd_snap rbd/one@snap
rbd create --size 4M rbd/two
rbd_snap rbd/two@snap
striper_make rbd three 65536 65536 1 1000
: >"$tmp/nothing"
rados -p rbd put broken.rbd "$tmp/nothing"
printf 'noise that is no header' >"$tmp/noise"
rados -p rbd put noise.rbd "$tmp/noise"
state() { pool_state rbd; }
before=$(state)
c=conf=$ceph_conf

# refused REGEX ARGUMENT...: without -f, as a user starts it.
refused() {
  local regex=$1 lines
  shift
  rm -f "$tmp/refused.pid"
  expect_fail "$regex" "${nbdkit[@]}" -P "$tmp/refused.pid" \
    -U "$tmp/refused.sock" rados "$@"
  [ ! -s "$tmp/refused.pid" ] || die "$* went into the background"
  lines=$(grep -c '^nbdkit: .*error:' <<<"$failure" || :)
  [ "$lines" -le 2 ] || die "$* gave $lines lines of errors: $failure"
  assert_no_match "terminate called|Caught signal|stack trace" "$failure"
}
at_exit 'if [ -s "$tmp/refused.pid" ]; then kill "$(cat "$tmp/refused.pid")"; fi'
unchanged() { assert_eq "$before" "$(state)" "contents of the pool"; }
# Opening an image for writing watches its header.
without_times() { sed 's/mtime [^,]*//' <<<"$1"; }

say "parameters"
refused "frobnicate" "$c" pool=rbd image=one frobnicate=1
refused "pool" "$c"
refused "pool" "$c" image=one
refused "format&&3" "$c" pool=rbd image=one format=3
refused "extents&&some" "$c" pool=rbd image=one extents=some
refused "create" "$c" pool=rbd image=new format=1 size=1M create=perhaps
refused "full" "$c" pool=rbd image=one full=perhaps
refused "connect-timeout" "$c" pool=rbd image=one connect-timeout=soon
refused "lock-wait=-1 is not a time in the range 0s to 86400s" "$c" \
  pool=rbd image=one lock-wait=-1
refused "pool=rbd: a pool is given already, in the target" "$c" rbd/one pool=rbd
refused "'rbd/one': a pool is given already" "$c" pool=rbd target=rbd/one
refused "image=two: an image is given already" "$c" rbd/one image=two
refused "'rbd/one': an image is given already" "$c" image=two target=rbd/one
refused "pool= is given twice" "$c" pool=rbd pool=rbd
refused "connect-timeout" "$c" pool=rbd image=one connect-timeout=-1
refused "discard-granularity" "$c" pool=rbd image=one discard-granularity=-1
refused "discard-granularity" "$c" pool=rbd image=one discard-granularity=some
refused "no_such_option" "$c" pool=rbd image=one ceph.no_such_option=1
refused "rados_osd_op_timeout" "$c" pool=rbd image=one \
  ceph.rados_osd_op_timeout=never
refused "snap" "$c" pool=rbd image=one@snap snapshot=other
# As from a script whose variable is unset: it must not be the image itself.
refused "snapshot= must not be empty" "$c" pool=rbd image=one snapshot=
refused "image" "$c" rbd/
refused "pool" "$c" pool= image=one
refused "a/b/c/d" "$c" rbd/a/b/c/d

say "missing things"
refused "nowhere" "$c" pool=nowhere image=one
refused "nowhere" "$c" nowhere/one
refused "nothing" "$c" pool=rbd image=nothing
refused "nothing" "$c" rbd/nothing
refused "nosnap" "$c" pool=rbd image=one@nosnap
refused "nosnap" "$c" pool=rbd image=one snapshot=nosnap
refused "nosnap" "$c" rbd/two@nosnap
refused "one|nospace" "$c" pool=rbd namespace=nospace image=one
refused "/nonexistent/ceph.conf" conf=/nonexistent/ceph.conf pool=rbd image=one
refused "/nonexistent/keyring" "$c" keyring=/nonexistent/keyring \
  pool=rbd image=one
refused "/nonexistent/key" "$c" keyfile=/nonexistent/key pool=rbd image=one
# The wrong format.
refused "two" "$c" pool=rbd image=two format=1
refused "one" "$c" pool=rbd image=one format=2
refused "one" "$c" pool=rbd image=one format=striper
# Headers that make no sense.
refused "broken" "$c" pool=rbd image=broken
refused "noise" "$c" pool=rbd image=noise
refused "noise" "$c" pool=rbd image=noise format=1
unchanged

say "creating"
new=("$c" pool=rbd image=new create=true)
refused "size" "${new[@]}" format=1
refused "size" "${new[@]}" format=1 size=nonsense
refused "size=-1 is not a size in the range 1 to 2\^63-1" "${new[@]}" \
  format=1 size=-1
refused "size=0 is not a size in the range 1 to 2\^63-1" "${new[@]}" size=0
refused "size" "${new[@]}" format=1 size=9223372036854775808
refused "size" "${new[@]}" format=1 size=8192P
refused "object-size" "${new[@]}" format=1 size=1M object-size=3000
refused "object-size" "${new[@]}" format=1 size=1M object-size=0
refused "object-size" "${new[@]}" format=1 size=1M object-size=1T
refused "object-size" "${new[@]}" format=striper size=1M object-size=8G
refused "error: rados: object-size=5000 is not a multiple" "${new[@]}" \
  format=striper size=1M object-size=5000
refused "default stripe unit 4194304 does not divide object-size=5242880" \
  "${new[@]}" format=striper size=1M object-size=5M
refused "stripe-unit=3145728 does not divide default object size 4194304" \
  "${new[@]}" format=striper size=1M stripe-unit=3M
refused "stripe-unit=.* is not a multiple" "${new[@]}" \
  format=striper size=1M stripe-unit=3G
refused "stripe-unit|stripe unit" "${new[@]}" format=striper size=1M \
  object-size=192K stripe-unit=128K stripe-count=2
refused "stripe-unit|stripe unit" "${new[@]}" format=striper size=1M \
  object-size=64K stripe-unit=0 stripe-count=2
refused "stripe-unit|stripe unit" "${new[@]}" format=striper size=1M \
  object-size=64K stripe-unit=128K stripe-count=2
refused "stripe-count|stripe count" "${new[@]}" format=striper size=1M \
  object-size=64K stripe-unit=64K stripe-count=0
refused "stripe-count|stripe count" "${new[@]}" format=striper size=1M \
  object-size=64K stripe-unit=64K stripe-count=junk
refused "strip" "${new[@]}" format=1 size=1M object-size=64K stripe-unit=4K \
  stripe-count=3
refused "features&&format 1" "${new[@]}" format=1 size=1M features=layering
refused "data-pool&&format striper" "${new[@]}" format=striper size=1M \
  data-pool=rbd
# Of format 2, which is the default.
refused "size" "${new[@]}"
refused "object-size" "${new[@]}" size=1M object-size=3000
refused "object-size" "${new[@]}" size=1M object-size=2K
refused "object-size" "${new[@]}" size=1M object-size=64M
refused "stripe-unit" "${new[@]}" size=1M stripe-unit=0
refused "stripe-unit" "${new[@]}" size=1M object-size=64K stripe-unit=128K
refused "stripe unit" "${new[@]}" size=1M stripe-unit=3M
refused "features&&nonsense" "${new[@]}" size=1M features=layering,nonsense
refused "features" "${new[@]}" size=1M features=
refused "features&&bit 40" "${new[@]}" size=1M features=$((1 << 40))
refused "journaling" "${new[@]}" size=1M features=exclusive-lock,journaling
for feature in operations migrating non-primary dirty-cache; do
  refused "features&&$feature" "${new[@]}" size=1M features=layering,$feature
done
refused "object-map&&exclusive-lock" "${new[@]}" size=1M features=object-map
refused "fast-diff&&object-map" "${new[@]}" size=1M \
  features=exclusive-lock,fast-diff
refused "object map&&256000000" "${new[@]}" size=1T object-size=4K
refused "data-pool" "${new[@]}" size=1M data-pool=
refused "nodatapool" "${new[@]}" size=1M data-pool=nodatapool
refused "snap" "$c" pool=rbd image=new@snap create=true size=1M
refused "a/b/c" "$c" pool=rbd image=a/b/c create=true size=1M
refused "a@b@c" "$c" pool=rbd image=a@b@c create=true size=1M
refused "nospace&&not exist" "$c" pool=rbd image=nospace/new create=true size=1M
refused "features&&create" "$c" pool=rbd image=one features=layering
refused "data-pool&&create" "$c" pool=rbd image=one data-pool=rbd
refused "snap" "$c" pool=rbd image=new@snap create=true format=1 size=1M
refused "image" "$c" pool=rbd create=true format=1 size=1M
refused "nowhere" "$c" pool=nowhere image=new create=true format=1 size=1M
unchanged
# Over what is there already, of the same and of another format.
refused "one&&exist" "$c" pool=rbd image=one create=true format=1 size=1M
refused "two&&exist" "$c" pool=rbd image=two create=true format=1 size=1M
refused "three&&exist" "$c" pool=rbd image=three create=true format=striper \
  size=1M
refused "noise&&exist" "$c" pool=rbd image=noise create=true format=1 size=1M
for name in one two three noise; do
  refused "$name&&exist" "$c" pool=rbd image=$name create=true size=1M
done
unchanged

say "the cluster cannot be reached: within connect-timeout"
start=$SECONDS
refused "127.0.0.1|monitor|connect|cluster" mon-host=127.0.0.1:1 \
  conf=/dev/null pool=rbd image=one connect-timeout=3
[ $((SECONDS - start)) -le 12 ] ||
  die "connect-timeout=3 took $((SECONDS - start)) seconds"
# 192.0.2.0/24 is for documentation (RFC 5737): nobody answers.
start=$SECONDS
refused "192.0.2.1|monitor|connect|cluster" "mon-host=[v2:192.0.2.1:3300]" \
  conf=/dev/null pool=rbd image=one connect-timeout=3
[ $((SECONDS - start)) -le 12 ] ||
  die "connect-timeout=3 took $((SECONDS - start)) seconds"

say "wrong use while it runs: the client gets an error, the server goes on"
start_rados pool=rbd
for name in nothing one@nosnap broken noise; do
  "$nbd_expect" "$(uri "$name")" connect fail
  grep -Eq "error.*${name%@*}" "$nbdkit_log" || die "no message about $name"
done
"$nbd_expect" "$(uri one@snap)" flag read-only yes , write 0 1 1 EPERM , \
  zero 0 4096 EPERM , trim 0 65536 EPERM
"$nbd_expect" "$(uri one)" read 0 1 ok
assert_eq "$(without_times "$before")" "$(without_times "$(state)")" \
  "contents of the pool"

say "the image is deleted while it is open"
make_format1_image rbd deleted 4000000 16
failed="EIO|EINVAL|ESHUTDOWN|ENOENT"
"$nbd_expect" "$(uri deleted)" within 30 , write 0 65536 1 ok , \
  run "rados -p rbd rm deleted.rbd" , \
  run "rados -p rbd notify deleted.rbd x >/dev/null 2>&1 || :" , \
  until 60 write 0 65536 2 "$failed" , \
  write 1M 65536 2 "$failed" , zero 0 65536 "$failed" , read 0 1 "$failed"
! prints "^deleted\.rbd$" rados -p rbd ls || die "the header was made again"
"$nbd_expect" "$(uri deleted)" connect fail
grep -Eq "error.*deleted" "$nbdkit_log" || die "no message about the image"

say "the header is overwritten with noise while it is open"
make_format1_image rbd junk 4000000 16
rados -p rbd get junk.rbd "$tmp/good-header"
random_file "$tmp/junk" 4000 9
"$nbd_expect" "$(uri junk)" within 30 , write 0 65536 1 ok , \
  run "rados -p rbd put junk.rbd '$tmp/junk'" , \
  run "rados -p rbd notify junk.rbd x >/dev/null" , \
  until 30 write 0 65536 2 "$failed" , read 0 1 "$failed"
"$nbd_expect" "$(uri junk)" connect fail
grep -Eq "error.*junk" "$nbdkit_log" || die "no message about the image"
rados -p rbd get junk.rbd "$tmp/header"
assert_same_bytes "$tmp/junk" "$tmp/header" "the header was not repaired"
# With the header back, the image is back.
rados -p rbd put junk.rbd "$tmp/good-header"
"$nbd_expect" "$(uri junk)" read 0 4096 ok , write 0 4096 3 ok , \
  read-is 0 4096 3
"$nbd_expect" "$(uri one)" read 0 1 ok
stop_nbdkit

say "authentication"
start_ceph --cephx
c=conf=$ceph_conf
make_format1_image rbd one 4000000 16
before=$(state)
# no_key REGEX ARGUMENT...: in one line, librados's own included.
no_key() {
  refused "$1" "$c" pool=rbd image=one "${@:2}"
  assert_eq 1 "$(wc -l <<<"$failure")" "lines of '$failure'"
}
# The same of a keyring and of a key file: bad_key REGEX KEY.
bad_key() {
  printf '[client.admin]\n\tkey = %s\n' "$2" >"$tmp/bad.keyring"
  printf '%s\n' "$2" >"$tmp/bad.key"
  no_key "keyring $tmp/bad.keyring is $1" keyring="$tmp/bad.keyring"
  no_key "keyfile $tmp/bad.key is $1" keyfile="$tmp/bad.key"
}
right=$(ceph-authtool -p -n client.admin "$ceph_dir/keyring")
aes256k=AgA/Iwtrsg2aEyAADdJeX4j2+2E1A8ren2drbb2pzVPDAD1bwyX5l9jIht8=
bad_key damaged "not base64 at all!"
for key in "$right" "$aes256k"; do
  for length in 20 37; do bad_key damaged "${key:0:$length}"; done
done
# Of types that there are not.
for type in AA Aw /w; do bad_key damaged "$type${right:2}"; done
# librados from 20 on can read it, and then the cluster refuses it.
bad_key "of the new type aes256k|wrong key.*" "$aes256k"
: >"$tmp/empty"
no_key "keyfile $tmp/empty is damaged" keyfile="$tmp/empty"
no_key "keyring $tmp/empty has no key for client.admin" keyring="$tmp/empty"
ceph-authtool --create-keyring "$tmp/wrong.keyring" --gen-key \
  -n client.admin >/dev/null
no_key "wrong key .in keyring $tmp/wrong.keyring" keyring="$tmp/wrong.keyring"
no_key "keyring $tmp/wrong.keyring has no key for client.nobody" id=nobody \
  keyring="$tmp/wrong.keyring"
# What is no keyring, and one in which another user's key is damaged.
printf 'no section' >"$tmp/garbage"
no_key "keyring $tmp/garbage (is damaged|has no key for client.admin)" \
  keyring="$tmp/garbage"
{
  cat "$ceph_dir/keyring"
  printf '[client.other]\n\tkey = %s\n' "${right:0:20}"
} >"$tmp/garbage"
no_key "keyring $tmp/garbage is damaged" keyring="$tmp/garbage"
no_key "keyring $tmp cannot be read" keyring="$tmp"
no_key "keyfile $tmp cannot be read" keyfile="$tmp"
refused "/nonexistent/keyring" "$c" keyring=/nonexistent/keyring \
  pool=rbd image=one
refused "name" "$c" name=noprefix pool=rbd image=one
# The key is right, and the monitor is not there.
for monitor in 300.1.1.1 127.0.0.1,300.1.1.1 no.such.host.invalid \
  "[v2:127.0.0.1" ,; do
  no_key "mon-host=" mon-host="$monitor"
  [[ $failure != *key* && $failure == *"mon-host=$monitor is neither"* ]] ||
    die "mon-host=$monitor: $failure"
done
unchanged
# The right key in a file, and by name.
printf '%s' "$right" >"$tmp/right.key"
start_nbdkit rados "$c" id=admin keyfile="$tmp/right.key" pool=rbd image=one
"$nbd_expect" "$(uri)" write 0 4096 5 ok , read-is 0 4096 5
stop_nbdkit
start_nbdkit rados "$c" name=client.admin keyring="$ceph_dir/keyring" \
  pool=rbd image=one
"$nbd_expect" "$(uri)" read-is 0 4096 5
stop_nbdkit
# A key that may only read: reading works.
ceph auth get-or-create client.reader mon 'allow r' osd 'allow r' \
  -o "$tmp/reader.keyring"
before=$(state)
start_nbdkit -r rados "$c" id=reader keyring="$tmp/reader.keyring" \
  pool=rbd image=one
"$nbd_expect" "$(uri)" read-is 0 4096 5 , flag read-only yes
stop_nbdkit
unchanged

# nbdkit 1.42 and later send a client the last line.
say "what a client reads when it cannot connect"
rbd create --size 4M rbd/held
rbd create --size 4M rbd/other
rados -p rbd put broken.rbd "$tmp/nothing"
start_rados pool=rbd
# reads EXPORT WORDS: in the client's message, and nothing that is not its own;
# the server's log has all.
reads() {
  expect_fail "" nbdinfo "$(uri "$1")"
  judge "$2"
}
# judge WORDS: the same of $failure.
judge() {
  if grep -q "refused: " <<<"$failure"; then
    assert_match "refused: $1" "$failure"
  elif grep -q "refused: " "$nbdkit_log"; then
    die "not for the client: $failure"
  fi
  assert_no_match "127\.0\.0\.1|client\.[0-9]|'rbd'|rbd/|striper" "$failure"
}
reads absent "there is no image or snapshot of that name"
reads "" "choose an image by its name"
reads broken "that cannot be served"
client_of_held=$(uri held)
start_rados pool=rbd
"$nbd_expect" "$client_of_held" write 0 4096 1 ok , \
  run "! nbdinfo '$(uri held)' 2>'$tmp/held.txt'"
failure=$(cat "$tmp/held.txt")
judge "another client has the lock of the image"
assert_match "rbd/held is locked by client\.[0-9]+ \(127" "$(cat "$nbdkit_log")"
stop_nbdkit
