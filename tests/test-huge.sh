#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Images of huge sizes that are nearly empty: memory and time follow what is
# there and what is asked, not the size.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program qemu-io
requires /usr/bin/python3 -c 'import nbd'
requires_built "$nbd_expect"
requires_plugin
start_ceph

say "images"
features=layering,exclusive-lock
# Of as many objects as an object map can have, nearly.
rbd create --size 900T --image-feature $features,object-map,fast-diff map
rbd create --size 16P --image-feature $features wide
rbd create --size 1E --image-feature $features widest
rbd create --size 16T --object-size 4K --image-feature $features fine
for image in wide fine; do
  rbd_snap "$image@s"
  rbd clone --rbd-default-clone-format 2 --image-feature $features \
    "$image@s" "clone-$image" 2>/dev/null
done
rbd clone --rbd-default-clone-format 2 --image-feature $features \
  --object-size 4M "fine@s" coarse 2>/dev/null

# look PID URI EXPORT...: opens them, one after the other, and asks for block
# status at three places of each.  The limits of time are ten times what it
# takes where nothing else runs; what they are for took minutes once.
cat >"$tmp/look.py" <<'PY'
import sys, time, urllib.parse, nbd

pid, uri, *exports = sys.argv[1:]
IMAGE = 16 << 20  # bytes of memory


def memory(field):
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith(field + ":"):
                return int(line.split()[1]) << 10


def timed(what, limit, call):
    start = time.monotonic()
    result = call()
    took = time.monotonic() - start
    assert took < limit, f"{what} took {took:.1f} s"
    return took, result


clients = []
for name in exports:
    before = memory("VmRSS")
    h = nbd.NBD()
    h.add_meta_context("base:allocation")
    opened, _ = timed(f"opening {name}", 3, lambda: h.connect_uri(
        uri.replace("///", f"///{urllib.parse.quote(name, safe='')}")))
    clients.append(h)
    size = h.get_size()
    # As a 64-bit signed number, which is what libnbd has.
    size = min(size, 1 << 62)
    asked = []
    for offset in (1 << 30, size // 3 & ~4095, size - (2 << 30)):
        entries = []
        took, _ = timed(f"block status of {name} at {offset}", 2,
                        lambda: h.block_status(
                            1 << 30, offset,
                            lambda _c, _o, e, _err: entries.extend(e)))
        assert entries[1] == 3, f"{name}: {entries[:4]} at {offset}"
        asked.append(took)
    h.pread(4096, size // 3)
    # The highest that it was, and so also what it was while it was opened.
    more = memory("VmHWM") - before
    print(f"{name}: open {opened:.3f} s, block status {max(asked):.3f} s, "
          f"{more >> 10} KiB")
    assert more <= IMAGE, f"{name} takes {more} bytes"
PY
look() { /usr/bin/python3 "$tmp/look.py" "$nbdkit_pid" "$(uri)" "$@"; }

say "with the lock"
start_rados pool=rbd
look map wide widest fine clone-wide clone-fine coarse

say "written to, here and there"
half=$((450 << 40))
for at in 0 $half end-4M; do
  "$nbd_expect" "$(uri map)" write $at 4K 7 ok , flush ok , \
    extents $at 8K 4096:data,4096:hole , trim $at 4M ok , \
    write $at 4K 9 ok , read-is $at 4K 9
done
"$nbd_expect" "$(uri map)" extents $((half - (1 << 30))) $(((1 << 30) + 8192)) \
  $((1 << 30)):hole,4096:data,4096:hole
for image in wide widest fine; do
  "$nbd_expect" "$(uri $image)" write 8T 4K 7 ok , read-is 8T 4K 7 , \
    extents 8T 8K 4096:data,4096:hole
done
stop_nbdkit
# librbd does not ask for what the map says is not there.
for at in 0 $half $(((900 << 40) - (4 << 20))); do
  echo "read -P 9 $at 4k"
done | qemu-io -r -f raw "rbd:rbd/map:conf=$ceph_conf" >"$tmp/qemu-io.log"
assert_eq 3 "$(grep -c "read 4096/4096" "$tmp/qemu-io.log")" \
  "reads through librbd: $(cat "$tmp/qemu-io.log")"
! grep -q verification "$tmp/qemu-io.log" || die "$(cat "$tmp/qemu-io.log")"

say "to read, without it"
start_rados -r pool=rbd
look wide@s fine@s widest clone-wide coarse
stop_nbdkit
start_rados -r pool=rbd lock=none
look map
"$nbd_expect" "$(uri map)" extents $((half - (1 << 30))) \
  $(((1 << 30) + 8192)) $((1 << 30)):hole,4096:data,4096:hole
stop_nbdkit
