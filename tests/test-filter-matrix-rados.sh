#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Filters of nbdkit above and below ours, over the plugin (filter-matrix.py),
# with two images in one server; and the requests that filters make beside
# those of the client, also while the server ends (rude-filter.cpp).

source "$(dirname "$0")/functions.sh" || exit 1
requires_plugin
requires_program rbd ceph-osd g++ pkg-config
requires /usr/bin/python3 -c 'import nbd'
requires_built "$nbd_expect" "$random_ops"
make_rude_filter
start_ceph
rbd create --size 2176K rbd/one
rbd create --size 2176K rbd/two

# Those that make requests of their own, keep data, open images anew, or change
# the thread model.
/usr/bin/python3 "$tests_srcdir/filter-matrix.py" --nbdkit "${nbdkit[*]}" \
  --random-ops "$random_ops" --tmp "$tmp" --exports one,two \
  --rados "rados conf=$ceph_conf pool=rbd" \
  --filters readahead,cache,retry,noparallel

# Requests of other threads, some of which go on after nbdkit's last; the lock
# is given back nevertheless.
start_rados pool=rbd --filter="$rude"
"$random_ops" --ops 300 --threads 2 --connections 2 --batch 3 \
  --max-length 64K --reconnect 20 --adopt "$(uri one)" >/dev/null
"$nbd_expect" "$(uri one)" write 0 4K 1 ok , \
  run "'$nbd_expect' '$(uri two)' write 0 4K 2 ok" , run "kill $nbdkit_pid"
wait_for_nbdkit
wait_until 5 not_locked rbd/one
not_locked rbd/two || die "the lock of an image was not given back"
