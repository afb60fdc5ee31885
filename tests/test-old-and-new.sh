#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Old and new side by side: this plugin on the Ceph of each other release of
# Debian that "bootstrap check --in" has made, and their plugins on this
# system's Ceph.  Images, snapshots and clones are made and checked by the rbd
# of the cluster.

source "$(dirname "$0")/functions.sh" || exit 1
requires_plugin
requires_program flock jq nbdcopy nbdinfo rbd
requires_built "$nbd_expect"
[ "$(id -u)" -eq 0 ] || skip "only root can use another system"
requires unshare --mount true

systems=${NBDRADOS_SYSTEMS:-${XDG_CACHE_HOME:-$HOME/.cache}/nbdkit-rados}
made=()
plugin=src/build/check/plugins/rados/.libs/nbdkit-rados-plugin.so
for suite in bookworm trixie forky; do
  [ -e "$systems/$suite/$plugin" ] || continue
  # Not while it is being made, nor while its tests run.
  exec {lock}<"$systems/$suite.lock"
  if flock -s -n "$lock"; then made+=("$suite"); fi
done
[ ${#made[@]} -gt 0 ] ||
  skip "no other system is ready in $systems: bootstrap check --in makes it"

# Those of the cluster, wherever they are called.
ceph() { "${ceph_system[@]}" ceph "$@"; }
rados() { "${ceph_system[@]}" rados "$@"; }
rbd() { "${ceph_system[@]}" rbd "$@"; }

random_file "$tmp/random" 1048576 7
truncate -s 24M "$tmp/wanted"
piece() { # OFFSET: the random megabyte, as in the steps below
  dd if="$tmp/random" of="$tmp/wanted" bs=64K seek="$(($1 / 65536))" \
    conv=notrunc status=none
}

# has_aes256k KEYRING
has_aes256k() { grep -q 'key = Ag' "$1"; }

# librados_major: of the plugin.
librados_major() {
  "${nbdkit[@]}" --dump-plugin rados |
    sed -n 's/^rados_ceph_version=\([0-9]*\).*/\1/p'
}

# make_user: a key that this plugin can read, as the manual page says.
make_user() {
  local type=()
  id=$1 keyring=$tmp/keyring.$1
  if has_aes256k "$ceph_dir/keyring"; then
    if [ "$(librados_major)" -lt 20 ]; then
      expect_fail "of the new type aes256k" "${nbdkit[@]}" -U - rados \
        conf="$ceph_conf" rbd/disk --run true
    fi
    ceph mon set auth_allowed_ciphers aes,aes256k
    type=(--key-type aes)
  fi
  # The monitor needs a moment to follow that.
  wait_until 20 ceph auth get-or-create "client.$1" mon 'profile rbd' \
    osd 'profile rbd' "${type[@]}" -o "$keyring"
}

# side_by_side: the plugin $nbdkit on the cluster of $ceph_system.
side_by_side() {
  local run="${ceph_system[*]} rbd" offset
  start_ceph --cephx
  rbd create --size 24M disk
  make_user "user$(librados_major)"
  expect_fail "has no key for client.nobody" "${nbdkit[@]}" -U - rados \
    conf="$ceph_conf" keyring="$keyring" id=nobody rbd/disk --run true
  sed "s/key = AQ....../key = AQAAAAAA/" "$keyring" >"$tmp/wrong"
  sed -i "s/\(key = .*\)....==/\1AAAA==/" "$tmp/wrong"
  expect_fail "wrong key .in keyring $tmp/wrong" "${nbdkit[@]}" -U - rados \
    conf="$ceph_conf" keyring="$tmp/wrong" id="$id" rbd/disk --run true

  say "  write, zero, trim, block status"
  truncate -s 0 "$tmp/wanted"
  truncate -s 24M "$tmp/wanted"
  for offset in 0 6 12; do piece $((offset << 20)); done
  start_rados keyring="$keyring" id="$id" pool=rbd lock=auto
  nbd_put "$tmp/wanted" disk
  "$nbd_expect" "$(uri disk)" zero 64K 64K ok no-hole , trim 12M 4M ok , \
    extents 12M 12M 12582912:hole , flush ok
  fallocate -z -o 64K -l 64K "$tmp/wanted"
  fallocate -z -o 12M -l 1M "$tmp/wanted"
  same_export disk "$tmp/wanted"
  check_object_map disk

  say "  snapshots, clones, differences"
  "$nbd_expect" "$(uri disk)" write 5M 512 3 ok , \
    run "$run snap create --no-progress disk@old" , write 20M 64K 4 ok , \
    read-is 5M 512 3 , run "$run snap create --no-progress disk@new"
  rbd clone --rbd-default-clone-format 2 disk@old child
  "$nbd_expect" "$(uri child)" read-is 5M 512 3 , write 6M 512 9 ok , \
    zero 0 4M ok , read-is 20M 64K 0
  check_object_map disk disk@old disk@new child
  nbd_get child "$tmp/child"
  same_export child "$tmp/child"
  stop_nbdkit
  start_rados keyring="$keyring" id="$id" rbd/disk@new since=old
  "$nbd_expect" "$(uri)" read-is 20M 64K 4 , \
    extents 0 24M 20971520:hole-only,65536:data,4128768:hole-only
  stop_nbdkit

  say "  the exclusive lock, there and back"
  start_rados keyring="$keyring" id="$id" pool=rbd lock=auto
  "$nbd_expect" "$(uri disk)" write 8M 4K 1 ok , \
    run "$run bench --io-type write --io-size 4K --io-total 64K \
      --io-pattern seq disk >$tmp/bench.log 2>&1" , \
    write 9M 4K 2 ok , run "$run resize --no-progress --size 32M disk" , \
    write 10M 4K 3 ok , read-is 8M 4K 1 , read-is 9M 4K 2
  "$nbd_expect" "$(uri disk)" size 32M , write 31M 4K 5 ok
  nbd_get disk "$tmp/read"
  same_export disk "$tmp/read"
  check_object_map disk

  say "  an object of libradosstriper"
  striper_put rbd striped "$tmp/random"
  nbd_get striped "$tmp/read"
  assert_same_bytes "$tmp/random" "$tmp/read" "what libradosstriper wrote"
  "$nbd_expect" "$(uri striped)" write 0 4K 6 ok
  nbd_get striped "$tmp/read"
  rm -f "$tmp/read2"
  striper_get rbd striped "$tmp/read2"
  assert_same_bytes "$tmp/read" "$tmp/read2" "what libradosstriper reads"
  stop_nbdkit
  "$mini_ceph" stop "$ceph_dir"
}

own_nbdkit=("${nbdkit[@]}")
for suite in "${made[@]}"; do
  at_exit rmdir "'$systems/$suite$tmp'"
  there=("$tests_srcdir/in-root" "$systems/$suite" "$tmp")
  say "this plugin on the Ceph of $suite"
  nbdkit=("${own_nbdkit[@]}") ceph_system=("${there[@]}")
  side_by_side
  say "the plugin of $suite on this Ceph"
  nbdkit=("${there[@]}" /src/build/check/run nbdkit) ceph_system=(env)
  side_by_side
done
