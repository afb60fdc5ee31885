#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Each filter of nbdkit above and below each of ours (filter-matrix.py).  Needs
# no Ceph.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program nbdkit
requires /usr/bin/python3 -c 'import nbd'
requires nbdkit file --version
requires_built "$random_ops" \
  "$builddir/filters/radosoffset/.libs/nbdkit-radosoffset-filter.so" \
  "$builddir/filters/radoscache/.libs/nbdkit-radoscache-filter.so"

status=0
/usr/bin/python3 "$tests_srcdir/filter-matrix.py" --nbdkit "${nbdkit[*]}" \
  --random-ops "$random_ops" --tmp "$tmp" || status=$?
exit "$status"
