#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# An object that `rados cp` overwrites gets the version number of the source:
# the number goes back, and one that a reader knows comes again.
#
# Versions: Ceph 18.2.7 (Debian 13).
#
# librados tells the version of an object with each operation
# (rados_get_last_version), and a writer can make an operation depend on it
# (rados_write_op_assert_version).  One expects the number to grow with each
# change, so that the same number means the same content.  `rados cp` within a
# pool copies in the OSD (the operation copy-from), and there the copy takes
# the number of its source.  After two of them an object of other content can
# have a number that it had before.
#
# Seen:
#   "one": version 1
#   "two": version 2
#   "one": version 1
#   "six": version 4
#   "one": version 1

source "$(dirname "$0")/packages.bash" || exit 1
source "$(dirname "$0")/ceph.bash" || exit 1
start_ceph trixie 18.2.7+ds-1+deb13u1
make_pool pool

cat >"$tmp/root/tmp/client.py" <<'CLIENT'
import subprocess, rados

client = rados.Rados(conffile="/etc/ceph/ceph.conf")
client.connect()
pool = client.open_ioctx("pool")

def version():
    text = pool.read("o").decode()
    print(f'"{text}": version {pool.get_last_version()}')
    return pool.get_last_version()

def copy(source, target):
    subprocess.run(["rados", "-p", "pool", "cp", source, target], check=True)

pool.write_full("o", b"one")
first = version()
copy("o", "copy")
pool.write_full("o", b"two")
second = version()
copy("copy", "o")
third = version()
pool.write_full("o", b"six")
fourth = version()
copy("copy", "o")
fifth = version()
assert first < second < fourth, "the number does not grow"
assert third == fifth == first, "the number does not come back"
CLIENT
run python3 /tmp/client.py || changed "no version number comes back"
