#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A machine that has been up for a second: what counts times from the start of
# its clocks, and takes zero for "long ago", shows it only there.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program unshare nbdkit
uptime=$(cut -d. -f1 /proc/uptime)
young=(unshare --time --monotonic "$((1 - uptime))" --boottime "$((1 - uptime))"
  --fork --)
"${young[@]}" true 2>/dev/null || skip "a time namespace (CLONE_NEWTIME, root)"
[ "$("${young[@]}" cut -d. -f1 /proc/uptime)" -lt 60 ] ||
  die "the clocks are not what they should be"

tests=(write-back cache cached-extents exclusive-lock client-pool header-watch
  metadata)
for test in "${tests[@]}" ownership; do
  requires_built "unit/test-$test"
done
for test in "${tests[@]}"; do
  say "test-$test"
  "${young[@]}" "unit/test-$test" >"$tmp/log" 2>&1 || die "$(cat "$tmp/log")"
done
say "test-ownership"
OWNERSHIP_SECONDS=3 "${young[@]}" unit/test-ownership >"$tmp/log" 2>&1 ||
  die "$(cat "$tmp/log")"
say "test-radoscache-write-back.sh"
"${young[@]}" bash "$tests_srcdir/test-radoscache-write-back.sh" \
  >"$tmp/log" 2>&1 || die "$(cat "$tmp/log")"
