#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# bootstrap check: what it refuses, and, with stand-ins for the programs that
# change the machine, what it builds for which tests.  --in: what it makes of a
# system, when it believes one that is there, what goes in and what comes out.
# --systems: what counts as a result.  As root also that no mount and no process
# is left.

source "$(dirname "$0")/functions.sh" || exit 1

is_root=$(id -u)
unset CI CCACHE_DIR CXXFLAGS RANDOM_OPS XDG_CACHE_HOME http_proxy ${!NBDRADOS_*}
export HOME=$tmp/home NBDRADOS_MIRROR=http://mirror.example/debian
mkdir "$HOME" "$tmp/bin" "$tmp/bare" "$tmp/tree" "$tmp/tree/tests"
system=$HOME/.cache/nbdkit-rados/trixie
cp "$tests_srcdir/../bootstrap" "$tmp/tree"
cp "$tests_srcdir"/{in-system,test-{run,object-map,old-and-new,clocks}.sh} \
  "$tmp/tree/tests"
mkdir "$tmp/tree/tests/unit"
cp "$tests_srcdir/unit/test-image.cpp" "$tmp/tree/tests/unit"
cd "$tmp/tree"

# stand_in NAME <SCRIPT: the program that is found for that name.
stand_in() {
  { printf '#!%s\n' "$BASH"; cat; } >"$tmp/bin/$1"
  chmod +x "$tmp/bin/$1"
}
PATH=$tmp/bin:$PATH

# What is wrong is said before anything is done.
for wrong in "--in" "--in sid" "--in=trixie" "--in trixie none.sh" \
    "--quick test-run.sh" "--systems --in trixie" "test-run" "unit/test-run"; do
  # shellcheck disable=SC2086
  EXPECT_STATUS=2 expect_fail "no such test|needs one of: bookworm" \
    ./bootstrap check $wrong
done

# Without the rights, or without debootstrap.
ln -sf /bin/* /usr/bin/* "$tmp/bare"
rm -f "$tmp/bare"/{sudo,debootstrap}
# The packages are installed.
echo 'printf "installed %s\n" "${@:3}"' | stand_in dpkg-query
stand_in apt-get </dev/null
stand_in apt-config <<'SCRIPT'
case $* in
  dump)
    echo 'Acquire::http::Proxy "http://proxy.example:3128";'
    echo 'Acquire::http::Proxy::near.example "DIRECT";'
    echo 'Acquire::http::Proxy-Auto-Detect "/usr/bin/only-here";'
    ;;
  *Acquire::http::Proxy) echo "$2='http://proxy.example:3128'" ;;
esac
SCRIPT
echo 'echo 1000' | stand_in id
PATH=$tmp/bin:$tmp/bare expect_fail \
  "this needs root or sudo&&^no test ran&&^0 passed, 0 failed, 0 skipped" \
  ./bootstrap check --in trixie
EXPECT_STATUS=125 expect_fail "only root" tests/in-system trixie "$tmp/x" true
echo 'echo 0' | stand_in id
PATH=$tmp/bin:$tmp/bare EXPECT_STATUS=125 expect_fail \
  "debootstrap is not installed" tests/in-system trixie "$tmp/x" true
[ ! -e "$tmp/x" ] || die "there is a folder"

# What is run in the system is told to a file only, but for the last command,
# which prints the files of the tree.
stand_in debootstrap <<'SCRIPT'
echo "$@" "${http_proxy-}" >>"$HOME/made"
mkdir -p "$4"/{etc/apt/apt.conf.d,usr/sbin,tmp,var/tmp,proc,sys,dev}
ln -s "$HOME/of-the-machine" "$4/etc/resolv.conf"
[ ! -e "$HOME/fail" ] || { echo "E: no such server"; exit 1; }
SCRIPT
stand_in unshare <<'SCRIPT'
while [[ $1 == --* ]]; do shift; done
exec "$@"
SCRIPT
stand_in mount </dev/null
stand_in mknod </dev/null
EXPECT_STATUS=125 expect_fail "there is no namespace" \
  tests/in-system trixie "$tmp/x" true
# Each process has a namespace of its own.
echo 'echo $$' | stand_in readlink
stand_in chroot <<'SCRIPT'
echo "$*" >>"$HOME/ran"
[[ "$*" == *" sh -c "* ]] || exit 0
cd "$1/src" && find . -type f | sort
echo "7 passed, 0 failed, 1 skipped"
exit "$(cat "$HOME/status")"
SCRIPT

# check_in [TEST...]: output and exit status are in $output and $status.
check_in() {
  status=0
  output=$(./bootstrap check --in trixie "$@" 2>&1 </dev/null) || status=$?
}

# A system that is not complete is no result, and is not believed.
echo 0 >"$HOME/status"
touch "$HOME/fail"
check_in
assert_eq 125 "$status" "exit status: $output"
assert_eq "0 passed, 0 failed, 0 skipped" "${output##*$'\n'}" "last line"
[ ! -e "$system" ] || die "a system that is not complete has its name"
touch "$system.new/left"
rm "$HOME/fail"
CI=true CXXFLAGS=-O2 NBDRADOS_QUICK=1 RANDOM_OPS="1 2" check_in test-run.sh
assert_eq 0 "$status" "exit status: $output"
assert_eq "7 passed, 0 failed, 1 skipped" "${output##*$'\n'}" "last line"
[ ! -e "$system/left" ] || die "a system that was not complete is used"
grep -q " CI=true CXXFLAGS=-O2 .*NBDRADOS_QUICK=1 RANDOM_OPS=1 2 ./bootstrap check test-run.sh$" \
  "$HOME/ran" || die "what is run in the system: $(cat "$HOME/ran")"
assert_match "^--variant=minbase --force-check-gpg trixie $system.new \
http://mirror.example/debian [^ ]+ http://proxy.example:3128$" \
  "$(tail -n 1 "$HOME/made")" "debootstrap"

# It starts no services, and is told about packages and names.
assert_eq "deb http://mirror.example/debian trixie main" \
  "$(cat "$system/etc/apt/sources.list")"
settings=$(cat "$system/etc/apt/apt.conf.d/90machine")
assert_match '^Acquire::http::Proxy "http://proxy.example:3128";$' "$settings"
assert_match '^Acquire::http::Proxy::near.example "DIRECT";$' "$settings"
assert_no_match "only-here" "$settings"
assert_same_bytes /etc/hosts "$system/etc/hosts"
[ ! -e "$HOME/of-the-machine" ] || die "a link led out of the system"

# Another time it is brought up to date, without what was left.
touch "$system/tmp/left" "$system/src/left"
: >"$HOME/ran"
echo 3 >"$HOME/status"
check_in
assert_eq 3 "$status" "exit status: $output"
assert_eq 2 "$(wc -l <"$HOME/made")" "how often it was made"
assert_match "dist-upgrade" "$(cat "$HOME/ran")"
[ ! -e "$system/tmp/left" ] || die "files of an earlier run are there"
assert_no_match "left" "$output" "the tree"
assert_match "^\./tests/test-run\.sh$" "$output" "the tree"

# What git knows goes in, and nothing else.
if command -v git >/dev/null; then
  git init -q .
  echo >gone
  git add .
  rm gone
  echo >unknown
  check_in
  assert_match "^\./tests/test-run\.sh$" "$output" "the tree"
  assert_no_match "unknown|gone|\.git" "$output" "the tree"
fi

# A system that is in use, or that was not made so, is left alone.
EXPECT_STATUS=125 expect_fail "another run uses .*&&^no test ran" \
  flock "$system.lock" ./bootstrap check --in trixie
rm "$system/etc/nbdkit-rados-in-system"
EXPECT_STATUS=125 expect_fail "is no system that .* made: remove it" \
  ./bootstrap check --in trixie
[ -e "$system/etc/hosts" ] || die "a folder of somebody else was removed"

# What is built here is what the tests need.
touch configure.ac
mkdir m4
stand_in autoreconf <<'SCRIPT'
printf '#!/bin/sh\necho "$@" >$HOME/configured\n' >configure
chmod +x configure
SCRIPT
stand_in make <<'SCRIPT'
echo "$*" >>"$HOME/made-here"
[[ "$*" == *" check"* && "$*" != *"TESTS= "* ]] || exit 0
echo "${NBDRADOS_SYSTEMS:--}" >>"$HOME/systems-here"
[ ! -e "$HOME/no-results" ] || exit 2
mkdir -p build/check/tests
echo ":test-result: PASS" >build/check/tests/test-run.trs
SCRIPT

# builds WHAT-MAKE-IS-TOLD TEST...
builds() {
  : >"$HOME/made-here"
  ./bootstrap check "${@:2}" >"$tmp/output" 2>&1 || die "$(cat "$tmp/output")"
  assert_eq "1 passed, 0 failed, 0 skipped" "$(tail -n 1 "$tmp/output")"
  assert_eq "-j$(($(nproc) + 1)) -k -C build/check$1" "$(tail -n 1 "$HOME/made-here")" "make"
  assert_eq "$1 TESTS= CXXFLAGS=-g -O1" \
    "$(tail -n 2 "$HOME/made-here" | sed -n '1s/.*build\/check//p')" "make"
}
# shellcheck disable=SC2016
{
  builds " check"
  builds "/tests check TESTS=test-run.sh \
check_PROGRAMS=nbd-expect nbd-random-ops" test-run.sh
  builds "/tests check TESTS=unit/test-image test-object-map.sh \
check_PROGRAMS=nbd-expect nbd-random-ops rbd-classes unit/test-image" \
    unit/test-image test-object-map.sh
  builds "/tests check TESTS=test-clocks.sh \
check_PROGRAMS=\$(unit_programs) nbd-expect nbd-random-ops" test-clocks.sh
  builds '/tests check TESTS=$(system_units) $(quick_scripts) $(system_scripts) check_PROGRAMS=$(system_units) $(nbd_programs) $(rados_programs)' \
    --quick
}
assert_eq "--enable-werror" "$(cat "$HOME/configured")" "configure"
CCACHE_DIR=$tmp/ccache ./bootstrap build test-run.sh >"$tmp/output"
if command -v ccache >/dev/null; then
  assert_eq "CXX=ccache g++ --enable-werror" "$(cat "$HOME/configured")"
fi

# The other systems are made and built first, and then run the same tests or the
# quick ones; a result of each is one of the whole.
stand_in chroot <<'SCRIPT'
[[ "$*" == *" sh -c "* ]] || exit 0
echo "$*" >>"$HOME/ran"
case $* in
  *" ./bootstrap build "*) exit "$(cat "$HOME/build-status")" ;;
  *" ./bootstrap check "*)
    mkdir -p "$1/src/build/check/tests"
    echo ":test-result: FAIL" >"$1/src/build/check/tests/test-run.trs"
    echo "why it failed in $1" >"$1/src/build/check/tests/test-run.log"
    echo "FAIL: test-run.sh"
    exit 1
    ;;
esac
SCRIPT
rm -rf "$HOME/.cache"
others=$(printf '%s\n' bookworm trixie forky |
  grep -vxF "$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)")
n=$(wc -l <<<"$others")
# in_systems STATUS LAST-LINE: bootstrap check --systems.
in_systems() {
  : >"$HOME/ran"
  status=0
  output=$(./bootstrap check --systems "${@:3}" 2>&1 </dev/null) || status=$?
  assert_eq "$2" "${output##*$'\n'}" "last line: $output"
  assert_eq "$1" "$status" "exit status: $output"
}
echo 0 >"$HOME/build-status"
in_systems 1 "$((1 + n)) passed, $n failed, 0 skipped"
for suite in $others; do
  assert_match "^PASS: $suite:build" "$output"
  assert_match "^FAIL: $suite:test-run.sh" "$output"
  assert_match "=== failed: $suite:tests/test-run, end of" "$output"
  assert_match "why it failed in $HOME/.cache/nbdkit-rados/$suite" "$output"
  grep -q "nbdkit-rados/$suite env .* ./bootstrap check --quick$" "$HOME/ran" ||
    die "the tests in $suite: $(cat "$HOME/ran")"
done
# At last the test that uses them, which did nothing before.
assert_match "check TESTS=test-old-and-new.sh" "$(tail -n 1 "$HOME/made-here")"
assert_eq "/nonexistent -" "$(tail -n 2 "$HOME/systems-here" | xargs)"
CCACHE_DIR=$tmp/ccache \
  in_systems 1 "$((1 + n)) passed, $n failed, 0 skipped" test-run.sh
assert_eq "$((2 * n))" "$(grep -c " CCACHE_DIR=/ccache .*-run.sh$" "$HOME/ran")" \
  "compilers with ccache"
assert_eq "$n" "$(grep -c " ./bootstrap build test-run.sh$" "$HOME/ran")" "built"
# They run at the same time, and end when this is stopped.
cp "$tmp/bin/chroot" "$tmp/chroot"
stand_in chroot <<'SCRIPT'
[[ "$*" == *" ./bootstrap check "* ]] || exit 0
echo "$PPID" >>"$HOME/running"
while kill -0 "$PPID" 2>/dev/null; do sleep 0.1; done
SCRIPT
: >"$HOME/running"
all_run() { [ "$(wc -l <"$HOME/running")" -eq "$n" ]; }
none_runs() {
  local pid
  while read -r pid; do
    ! kill -0 "$pid" || return 1
  done <"$HOME/running"
}
./bootstrap check --systems >"$tmp/output" 2>&1 </dev/null &
stopped=$!
own "$stopped"
wait_until 60 all_run
kill -TERM "$stopped"
status=0
wait "$stopped" || status=$?
assert_eq 130 "$status" "stopped: $(cat "$tmp/output")"
wait_until 10 none_runs
cp "$tmp/chroot" "$tmp/bin/chroot"
# One that cannot be built has failed, one that cannot be made is skipped, or one
# for which there is no time.
echo 2 >"$HOME/build-status"
in_systems 1 "1 passed, $n failed, 0 skipped"
rm -rf "$HOME/.cache"
touch "$HOME/fail"
in_systems 0 "1 passed, 0 failed, $n skipped"
assert_match "^skipped: $suite:build: .*Making .*failed after .*no such server" \
  "$output"
rm "$HOME/fail"
# One who is not root cannot have them.
echo 'exit 1' | stand_in sudo
echo 'echo 1000' | stand_in id
in_systems 0 "1 passed, 0 failed, $n skipped"
assert_match "^skipped: $suite:build: .*root or sudo without a password" "$output"
echo 'echo 0' | stand_in id
NBDRADOS_BUDGET=0 CI=true in_systems 0 "1 passed, 0 failed, $n skipped"
assert_match "^skipped: $suite:build: .*: no time for this system" "$output"
# Whatever there is, what fails here has failed.
touch "$HOME/no-results"
in_systems 1 "0 passed, $n failed, 0 skipped"

# Killed, it leaves no mount and no process: at the end of the last one that
# has the pipe open the pipe ends.
rm "$tmp/bin"/{unshare,mount,mknod,readlink,make}
if [ "$is_root" -ne 0 ] || ! unshare --mount --pid --fork true; then
  say "not tried: namespaces, which root can make, but not everywhere"
  exit 0
fi
rm -rf "$system"
stand_in chroot <<'SCRIPT'
[[ "$*" == *" sh -c "* ]] || exit 0
exec 2>&1
setsid sleep 100 &
grep " $1/" /proc/self/mountinfo
touch "$1/dev/nbdkit-rados-test"
echo runs
sleep 100
SCRIPT
mkfifo "$tmp/pipe"
for signal in TERM KILL; do
  tests/in-system trixie "$system" true >"$tmp/pipe" 2>&1 \
    < <(tar -c bootstrap) &
  killed=$!
  own "$killed"
  exec 5<"$tmp/pipe"
  mounts=0
  while read -r -t 60 -u 5 line && [ "$line" != runs ]; do
    [[ $line != *" $system/"* ]] || mounts=$((mounts + 1))
  done
  assert_eq runs "$line" "what is in the pipe"
  [ "$mounts" -ge 5 ] || die "$mounts mounts"
  stop_pid "$killed" "$signal"
  timeout 20 cat <&5 || die "a process is left after SIG$signal"
  ! grep " $system/" /proc/self/mountinfo || die "mounts are left"
  [ ! -e /dev/nbdkit-rados-test ] || die "its /dev is that of the machine"
done
