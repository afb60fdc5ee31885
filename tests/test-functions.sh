#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# functions.sh: a test ends what it has started, and nothing else.  Ids of
# processes are used again, soon where many tests run, and the id of a thread
# will do for a signal: a test that ended servers by id alone ended those of
# the test beside it, whose clients then got ESHUTDOWN.

source "$(dirname "$0")/functions.sh" || exit 1

# Another process of the same id: as the test remembers it, it started earlier.
# (Not a child of this shell.)
other=$(sleep 100 >/dev/null 2>&1 & echo $!)
own "$other"
is_running "$other" || die "a process that was just started does not run"
owned[$other]=$((owned[$other] - 1))
if is_running "$other"; then die "another process is taken for ours"; fi
stop_pid "$other" || die "a process that has ended does not end"
kill -0 "$other" || die "stop_pid ended another process"

# The same at exit, beside one that is ours.
"$BASH" -c 'source "$1"
  sleep 100 &
  echo $! >"$2/ours"
  own $!
  owned[$3]=1' "$0" "$tests_srcdir/functions.sh" "$tmp" "$other"
kill -0 "$other" || die "the end of a test ended another process"
if kill -0 "$(cat "$tmp/ours")" 2>/dev/null; then
  die "the end of a test left a process"
fi

# What has ended, waited for or not, does not run.
true &
own $!
wait_until 10 has_ended $!
wait $!
has_ended $! || die "a process that has ended runs"

own "$other"
stop_pid "$other" KILL
has_ended "$other" || die "stop_pid left a process"

# A test does not go on without functions.sh, nor without a temporary folder.
for script in "$tests_srcdir"/test-*.sh; do
  grep -qFx 'source "$(dirname "$0")/functions.sh" || exit 1' "$script" ||
    die "$script goes on without functions.sh"
done
{
  echo 'source "$(dirname "$0")/functions.sh" || exit 1'
  echo 'echo "goes on"'
} >"$tmp/test-alone.sh"
expect_fail "functions.sh" "$BASH" "$tmp/test-alone.sh"
assert_no_match "goes on" "$failure"
cp "$tests_srcdir/functions.sh" "$tmp"
expect_fail "/nonexistent" env TMPDIR=/nonexistent "$BASH" "$tmp/test-alone.sh"
assert_no_match "goes on" "$failure"
