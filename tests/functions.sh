# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2034,SC2015,SC2059
#
# What the shell tests share.  A test starts with
#
#     source "$(dirname "$0")/functions.sh" || exit 1
#
# and gets: `set -eu -o pipefail`, a temporary folder $tmp, and a clean-up at
# exit that stops everything that was started here, by process id.
#
# Exit status of a test: 0 passed, 77 skipped (a named prerequisite is
# missing), anything else failed.

set -eu -o pipefail
export LC_ALL=C

test_name=$(basename "$0" .sh)
# `set -e` does not work in here, as the caller says what is to happen.
tests_srcdir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) || exit 1

# The build tree: from the environment, or the folder above the one that
# automake runs the tests in, or the folder above this file.
if [ -n "${abs_top_builddir-}" ]; then
  builddir=$abs_top_builddir
elif [ -n "${top_builddir-}" ]; then
  builddir=$(cd "$top_builddir" && pwd) || exit 1
elif [ -x "$PWD/../config.status" ]; then
  builddir=$(cd .. && pwd)
else
  builddir=$(cd "$tests_srcdir/.." && pwd)
fi

mini_ceph=$tests_srcdir/mini-ceph
nbd_expect=$builddir/tests/nbd-expect
random_ops=$builddir/tests/nbd-random-ops

tmp=$(mktemp -d "${TMPDIR:-/tmp}/$test_name.XXXXXX") || exit 1
cleanup_commands=()
declare -A owned=()
nbdkit_pids=()
ceph_dirs=()

# ---------------------------------------------------------------- messages

say() { printf '%s\n' "$test_name: $*" >&2; }

# die MESSAGE: the test has failed.
die() {
  say "FAILED: $*"
  exit 1
}

# skip REASON: a prerequisite is missing.
skip() {
  printf 'SKIP: %s\n' "$*"
  exit 77
}

# requires COMMAND...: skips unless the command succeeds.
requires() {
  "$@" >/dev/null 2>&1 || skip "'$*' does not work here"
}

# requires_program NAME...: skips unless all the programs are installed.
requires_program() {
  local program
  for program; do
    command -v "$program" >/dev/null || skip "$program is not installed"
  done
}

# requires_built FILE...: a test program that make has not built is an error
# of the build, not a missing prerequisite.
requires_built() {
  local file
  for file; do
    [ -x "$file" ] || die "$file is not built: run 'make check'"
  done
}

# ---------------------------------------------------------------- clean-up

# at_exit COMMAND: runs at exit, last given first.
at_exit() { cleanup_commands=("$*" "${cleanup_commands[@]}"); }

# start_time PID: of a process that runs, in ticks since boot (proc(5): the
# third field of stat is the state, the 20th the number of threads, the 22nd the
# time).  Fails if it has ended, and not only its first thread.
start_time() {
  local stat
  # One that ends just now can have a file without content.
  { stat=$(<"/proc/$1/stat"); } 2>/dev/null && [ -n "$stat" ] || return 1
  read -ra stat <<<"${stat##*) }"
  case ${stat[0]}${stat[17]} in Z[01] | X*) return 1 ;; esac
  printf '%s' "${stat[19]}"
}

# own PID: this process was started here, just now, and is stopped at exit.
# Its id alone does not say which process that is: when it has ended, another
# test's process can have the same, or a thread of one, which a signal ends as
# well.
own() { owned[$1]=$(start_time "$1") || owned[$1]=ended; }

# is_running PID: the process that was owned, and no other.
is_running() {
  local now
  now=$(start_time "$1") && [ "$now" = "${owned[$1]}" ]
}
has_ended() { ! is_running "$1"; }

# stop_pid PID [SIGNAL]: ends a process that is owned and waits until it is
# gone, at most 30 seconds, then kills it.
stop_pid() {
  local pid=$1 i
  if is_running "$pid"; then kill -s "${2:-TERM}" "$pid" 2>/dev/null; fi
  for ((i = 0; i < 300; i++)); do
    if has_ended "$pid"; then
      # A child of this shell stays a zombie until it is waited for.
      wait "$pid" 2>/dev/null || :
      return 0
    fi
    sleep 0.1
  done
  kill -KILL "$pid" 2>/dev/null || :
  wait "$pid" 2>/dev/null || :
  say "process $pid had to be killed"
  return 1
}

cleanup() {
  local status=$?
  trap - EXIT INT TERM HUP
  set +e
  local command pid dir log
  for command in "${cleanup_commands[@]}"; do eval "$command"; done
  # Children that run have not been waited for: nobody else has their ids.
  for pid in $(jobs -rp); do own "$pid"; done
  for pid in "${!owned[@]}"; do stop_pid "$pid"; done
  for dir in "${ceph_dirs[@]}"; do
    "$mini_ceph" stop "$dir" >/dev/null 2>&1
  done
  if [ "$status" -ne 0 ] && [ "$status" -ne 77 ]; then
    for log in "$tmp"/nbdkit*.log; do
      [ -s "$log" ] || continue
      say "the end of $(basename "$log"):"
      tail -n 25 "$log" >&2
    done
  fi
  if [ -n "${KEEP-}" ]; then
    say "kept $tmp"
  else
    rm -rf --one-file-system "$tmp"
  fi
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP

# -------------------------------------------------------------- assertions

# assert_eq WANTED GOT [WHAT]
assert_eq() {
  [ "$1" = "$2" ] ||
    die "${3:-comparison}: wanted '$1', got '$2' (line ${BASH_LINENO[0]})"
}

# assert_match REGEX TEXT [WHAT]: extended, case-insensitive.
assert_match() {
  grep -Eiq -- "$1" <<<"$2" ||
    die "${3:-text}: '$2' does not match '$1' (line ${BASH_LINENO[0]})"
}

# assert_no_match REGEX TEXT [WHAT]
assert_no_match() {
  ! grep -Eiq -- "$1" <<<"$2" ||
    die "${3:-text}: '$2' matches '$1' (line ${BASH_LINENO[0]})"
}

# assert_same_bytes FILE1 FILE2 [WHAT]: same length, same contents.
assert_same_bytes() {
  local result
  result=$(cmp -- "$1" "$2" 2>&1) ||
    die "${3:-contents} differ: $result (line ${BASH_LINENO[0]})"
}

# expect_fail REGEX COMMAND...: the command must end by itself within
# EXPECT_TIMEOUT seconds (default 40), with exit status EXPECT_STATUS (default
# 1), and its output must match the regex (extended, case-insensitive, every
# one of the parts separated by && must match some line).  The output stays in
# $failure.
expect_fail() {
  local regex=$1 status=0 part
  shift
  failure=$(timeout -k 5 "${EXPECT_TIMEOUT:-40}" "$@" 2>&1 </dev/null) ||
    status=$?
  [ "$status" -ne 124 ] && [ "$status" -ne 137 ] ||
    die "'$*' hangs (line ${BASH_LINENO[0]}): $failure"
  [ "$status" -eq "${EXPECT_STATUS:-1}" ] ||
    die "'$*' ended with $status, not ${EXPECT_STATUS:-1}" \
        "(line ${BASH_LINENO[0]}): $failure"
  while [ -n "$regex" ]; do
    part=${regex%%&&*}
    if [ "$part" = "$regex" ]; then regex=; else regex=${regex#*&&}; fi
    grep -Eiq -- "$part" <<<"$failure" ||
      die "'$*' did not say '$part' (line ${BASH_LINENO[0]}): $failure"
  done
}

# prints REGEX COMMAND...: whether a line of the command's output matches
# (extended).  Not a pipe to grep -q: that ends the command early, which
# pipefail calls a failure.
prints() {
  local text
  text=$("${@:2}")
  grep -Eq -- "$1" <<<"$text"
}

# wait_until SECONDS COMMAND...: until the command succeeds.
wait_until() {
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || die "gave up waiting for: $*"
    sleep 0.1
  done
}

# random_file FILE BYTES [SEED]: the same seed gives the same bytes.
random_file() {
  openssl enc -aes-128-ctr -pass "pass:${3:-1}" -nosalt -md sha256 \
    </dev/zero 2>/dev/null | head -c "$2" >"$1" || :
  [ "$(stat -c %s "$1")" -eq "$2" ] || die "cannot make $1"
}

# fill_file FILE BYTES BYTE: BYTE is an octal escape without \, e.g. 141.
fill_file() { head -c "$2" /dev/zero | tr '\0' "\\$3" >"$1"; }

# odd_writes SIZE SEED: steps for nbd-expect that write the last byte of a disk
# and 20 pieces of 1 to 1500 bytes at any byte.
odd_writes() {
  awk -v size="$1" -v seed="$2" 'BEGIN {
    srand(seed)
    printf "write end-1 1 250 ok"
    for (i = 1; i <= 20; i++) {
      n = 1 + int(rand() * 1500)
      printf " , write %d %d %d ok", int(rand() * (size - n)), n, i
    }
  }'
}

# make_bytewise FILE all|one: a disk of 30300 bytes and, in the array bytewise,
# the words that make nbdkit serve it with block status that is exact to the
# byte and has all four types; an answer is all of it, or one extent.
make_bytewise() {
  random_file "$tmp/bytewise-piece" 30300
  truncate -s 30300 "$1"
  local offset length type list="cat $1.list"
  awk 'BEGIN {
    at = 0; srand(9)
    split("hole,zero data zero hole data hole,zero data", types)
    while (at < 30300) {
      n = 1 + int(rand() * (n % 7 ? 1500 : 300))
      if (n > 30300 - at) n = 30300 - at
      print at, n, types[i++ % 7 + 1]
      at += n
    }
  }' >"$1.list"
  while read -r offset length type; do
    [[ $type == *zero ]] || dd if="$tmp/bytewise-piece" of="$1" \
      iflag=skip_bytes,count_bytes oflag=seek_bytes skip="$offset" \
      seek="$offset" count="$length" conv=notrunc status=none
  done <"$1.list"
  sed -i 's/data$//' "$1.list"
  [ "$2" = all ] ||
    list="awk -v at=\$4 '\$1 + \$2 > at { print; exit }' $1.list"
  bytewise=(eval get_size='echo 30300' thread_model='echo parallel'
    pread="dd if=$1 iflag=skip_bytes,count_bytes skip=\$4 count=\$3 \
      status=none" can_extents='exit 0' extents="$list")
}

# same_qemu_copy EXPORT FILE [WHEN]: its block status is in sectors of 512
# bytes, and qemu-img, which relies on that, copies what the file has.  (qemu
# rounds sizes up.)
same_qemu_copy() {
  nbdinfo --map "$(uri "$1")" >"$tmp/qemu-map"
  awk '$1 % 512 { exit 1 }' "$tmp/qemu-map" ||
    die "block status within sectors${3:+ ($3)}: $(cat "$tmp/qemu-map")"
  qemu-img convert -f raw -O raw "$(uri "$1")" "$tmp/qemu-copy"
  truncate -s "$(stat -c %s "$2")" "$tmp/qemu-copy"
  assert_same_bytes "$2" "$tmp/qemu-copy" "qemu-img copies '$1'${3:+ ($3)}"
}

# -------------------------------------------------------------------- ceph

# What runs the programs of Ceph; another system's with in-root.
ceph_system=(env)

# start_ceph [OPTION...]: a throw-away cluster (options of mini-ceph start).
# Sets $ceph_conf and $ceph_dir and exports CEPH_CONF, so that rbd, rados and
# ceph talk to it.
start_ceph() {
  requires_program ceph rados rbd ceph-mon ceph-mgr ceph-osd
  ceph_dir=$tmp/ceph${#ceph_dirs[@]}
  ceph_dirs+=("$ceph_dir")
  # Another system sees only the temporary folder.
  cp "$mini_ceph" "$tmp/mini-ceph"
  "${ceph_system[@]}" "$tmp/mini-ceph" start "$ceph_dir" "$@" \
    >"$ceph_dir.out" 2>"$ceph_dir.err" || {
    cat "$ceph_dir.out" "$ceph_dir.err" >&2
    die "mini-ceph does not start"
  }
  ceph_conf=$(tail -n 1 "$ceph_dir.out")
  [ -f "$ceph_conf" ] || die "mini-ceph did not print its ceph.conf"
  export CEPH_CONF=$ceph_conf
}

# make_pool NAME [PG_NUM]: a pool that is marked for RBD.
make_pool() {
  ceph osd pool create "$1" "${2:-8}" "${2:-8}" >/dev/null 2>&1 ||
    die "cannot make the pool $1"
  ceph osd pool set "$1" size 1 --yes-i-really-mean-it >/dev/null 2>&1 || :
  ceph osd pool application enable "$1" rbd >/dev/null 2>&1 ||
    die "cannot enable rbd on the pool $1"
  wait_until 30 rados -p "$1" ls
}

# make_ec_pool NAME [OVERWRITES]: an erasure-coded pool of 2 + 1, which needs
# three OSDs, for RBD's data.  OVERWRITES: true, or false, which RBD cannot use.
make_ec_pool() {
  ceph osd erasure-code-profile set ec21 k=2 m=1 crush-failure-domain=osd
  ceph osd pool create "$1" 8 8 erasure ec21 >/dev/null 2>&1 &&
    ceph osd pool application enable "$1" rbd >/dev/null 2>&1 ||
    die "cannot make the pool $1"
  if "${2-true}"; then
    ceph osd pool set "$1" allow_ec_overwrites true >/dev/null 2>&1
  fi
  wait_until 60 rados -p "$1" put probe "$0"
  rados -p "$1" rm probe
}

# pool_state POOL: names, times, sizes and contents of every object of a
# pool, to show that nothing was written.  A watch changes the time of the
# object, too: "sed 's/mtime [^,]*//'" drops the times.
pool_state() {
  local line namespace object
  # Not IFS=tab: the name of the default namespace is empty.
  rados -p "$1" --all ls | sort | while read -r line; do
    namespace=
    object=$line
    if [[ $line == *$'\t'* ]]; then
      namespace=${line%%$'\t'*}
      object=${line#*$'\t'}
    fi
    rados -p "$1" ${namespace:+-N "$namespace"} stat "$object"
    rados -p "$1" ${namespace:+-N "$namespace"} get "$object" - | sha256sum
  done
}

# le BYTES NUMBER: a little-endian number as printf escapes.
le() {
  local i value=$2 out=
  for ((i = 0; i < $1; i++)); do
    out+=$(printf '\\x%02x' $((value >> 8 * i & 255)))
  done
  printf '%s' "$out"
}

# make_format1_image POOL NAME SIZE ORDER [PREFIX]: an empty RBD format 1
# image, made without the plugin and without librbd (which refuses to create
# them): the 112-byte header of struct rbd_obj_header_ondisk
# (ceph: src/include/rbd_types.h).  Not registered in rbd_directory.
make_format1_image() {
  local pool=$1 name=$2 size=$3 order=$4 prefix=${5-} file
  # Not from $RANDOM, which is the same in all subshells.
  [ -n "$prefix" ] || prefix=rb.0.$(od -An -N 6 -tx1 /dev/urandom | tr -d ' ')
  file=$tmp/format1-header.$prefix
  [ "${#prefix}" -lt 24 ] || die "the prefix $prefix is too long"
  {
    printf '<<< Rados Block Device Image >>>\n' # char text[40]
    head -c 7 /dev/zero
    printf '%s' "$prefix" # char block_name[24]
    head -c $((24 - ${#prefix})) /dev/zero
    printf 'RBD\0'           # char signature[4]
    printf '001.005\0'       # char version[8]
    # order, crypt type, compression type, unused
    printf "$(le 1 "$order")\\0\\0\\0"
    printf "$(le 8 "$size")" # image size
    printf "$(le 8 0)"       # snapshot sequence
    printf "$(le 4 0)"       # number of snapshots
    printf "$(le 4 0)"       # reserved
    printf "$(le 8 0)"       # length of the snapshot names
  } >"$file"
  assert_eq 112 "$(stat -c %s "$file")" "size of the header"
  rados -p "$pool" put "$name.rbd" "$file"
  rm "$file"
}

# format1_prefix POOL NAME: the object prefix that the header holds.
format1_prefix() {
  rados -p "$1" get "$2.rbd" - | dd bs=1 skip=40 count=24 status=none |
    tr -d '\0'
}

# retry_abort COMMAND...: runs an oracle again (at most 3 times) when it ends
# by a signal: `rados --striper` of Ceph 16 sometimes aborts while it ends.
retry_abort() {
  local status i
  for i in 1 2 3; do
    status=0
    # With wrong attributes libradosstriper writes for ever: limits of time
    # and of 4 GiB.
    (
      ulimit -f $((4 << 20))
      exec timeout 60 "${ceph_system[@]}" "$@"
    ) 2>"$tmp/retry.err" || status=$?
    [ "$status" -ge 128 ] || break
    say "attempt $i of '$*' ended with $status"
  done
  [ "$status" -eq 0 ] || cat "$tmp/retry.err" >&2
  return "$status"
}

# Puts and gets an object of libradosstriper: striper_put POOL NAME FILE.
striper_put() { retry_abort rados -p "$1" --striper put "$2" "$3"; }
striper_get() { retry_abort rados -p "$1" --striper get "$2" "$3"; }

# striper_size POOL NAME: bytes, as `rados --striper stat` has it.
striper_size() {
  retry_abort rados -p "$1" --striper stat "$2" | sed 's/.*, size //'
}

# striper_make POOL NAME OBJECT_SIZE STRIPE_UNIT STRIPE_COUNT [SIZE]: an
# object of libradosstriper with any layout, made by hand (`rados` has no
# option for the layout).  ceph: src/libradosstriper/RadosStriperImpl.cc
striper_make() {
  local first=$2.0000000000000000
  rados -p "$1" create "$first"
  rados -p "$1" setxattr "$first" striper.layout.object_size "$3"
  rados -p "$1" setxattr "$first" striper.layout.stripe_unit "$4"
  rados -p "$1" setxattr "$first" striper.layout.stripe_count "$5"
  rados -p "$1" setxattr "$first" striper.size "${6:-0}"
}

# rbd without progress bars: rbd_export IMAGE-SPEC FILE
rbd_export() {
  rm -f "$2"
  rbd export --no-progress "$1" "$2"
}

# A snapshot of an image, as another client takes it: rbd_snap IMAGE@SNAP
rbd_snap() { rbd snap create --no-progress "$1"; }

# same_export IMAGE[@SNAP] FILE [WHEN]: as librbd reads it, it is the file.
same_export() {
  rbd_export "$1" "$tmp/exported"
  assert_same_bytes "$2" "$tmp/exported" "rbd export of $1${3:+ ($3)}"
}

# is_locked IMAGE, not_locked IMAGE: whether somebody has its exclusive lock.
is_locked() { rbd lock ls --format json "$1" | jq -e 'length == 1' >/dev/null; }
not_locked() { rbd lock ls --format json "$1" | jq -e 'length == 0' >/dev/null; }

# forget_dead_clients SECONDS: how long a dead client counts as alive; 30 by
# default.
forget_dead_clients() {
  local osd
  for osd in $(ceph osd ls); do
    ceph tell "osd.$osd" config set osd_client_watch_timeout "$1" >/dev/null
  done
  # Ours tell the OSD what they go by.
  ceph config set client osd_client_watch_timeout "$1"
}

# judge_object_map IMAGE[@SNAP] HARMLESS: rbd finds no fault in an object map but
# those that the regex (basic) matches.  For any fault it sets the flag "invalid".
judge_object_map() {
  rbd object-map check --no-progress --log-to-stderr=true \
    --err-to-stderr=true "$1" >"$tmp/object-map-check" 2>&1 ||
    die "rbd object-map check $1: $(cat "$tmp/object-map-check")"
  ! grep "object map error" "$tmp/object-map-check" | grep -v "$2" >&2 ||
    die "the object map of $1"
}

# check_object_map IMAGE[@SNAP]...: the maps are valid, and rbd finds no fault in
# them.  One thing is no fault: an object counts as changed since the last
# snapshot, and is not, because what was zeroed lies behind its end.  (librbd's
# discard does the same.)
check_object_map() {
  local what info
  for what; do
    info=$(rbd info "$what") || die "rbd info $what"
    assert_eq "flags:" "$(sed -n 's/^\t\(flags:\) */\1/p' <<<"$info")" \
      "flags of $what"
    judge_object_map "$what" "marked as 1, but should be 3"
  done
}

# check_killed_maps IMAGE[@SNAP]...: of images whose server was killed.  A
# removal or a copy-up that was interrupted leaves its object "pending" (2): one
# that may exist, which costs time.  What exists and is "nonexistent" costs data.
check_killed_maps() {
  local what
  for what; do
    judge_object_map "$what" "marked as 2, but\|marked as 1, but should be 3"
  done
}

# ------------------------------------------------------------------ nbdkit

# The server under test.  NBDKIT_VALGRIND=1 runs it under valgrind (see
# wrapper/nbdkit).
nbdkit=("$builddir/run" nbdkit)

# start_nbdkit ARGUMENT...: starts it in the foreground mode (so that its
# messages go to $nbdkit_log), waits until it is ready.  Sets $socket,
# $nbdkit_pid, $nbdkit_log.
start_nbdkit() {
  local n=${#nbdkit_pids[@]} i
  socket=$tmp/nbdkit$n.sock
  nbdkit_log=$tmp/nbdkit$n.log
  local pidfile=$tmp/nbdkit$n.pid
  "${nbdkit[@]}" -f -P "$pidfile" -U "$socket" "$@" \
    >"$nbdkit_log" 2>&1 </dev/null &
  nbdkit_pid=$!
  own "$nbdkit_pid"
  nbdkit_pids+=("$nbdkit_pid")
  for ((i = 0; i < 600; i++)); do
    [ ! -s "$pidfile" ] || break
    is_running "$nbdkit_pid" ||
      die "nbdkit $* does not start: $(cat "$nbdkit_log")"
    sleep 0.05
  done
  [ -s "$pidfile" ] || die "nbdkit $* is not ready after 30 seconds"
  # Another one where a wrapper forked.
  nbdkit_pid=$(cat "$pidfile")
  own "$nbdkit_pid"
  nbdkit_pids[n]=$nbdkit_pid
}

# stop_nbdkit: stops the server that was started last and fails if it does
# not end well.
stop_nbdkit() {
  is_running "$nbdkit_pid" ||
    die "nbdkit has ended: $(tail -n 5 "$nbdkit_log")"
  kill "$nbdkit_pid"
  wait_for_nbdkit
}

# wait_for_nbdkit: waits until it ends, because it was told to.
wait_for_nbdkit() {
  local status=0 i
  for ((i = 0; i < 300; i++)); do
    if has_ended "$nbdkit_pid"; then break; fi
    sleep 0.05
  done
  [ "$i" -lt 300 ] || die "nbdkit does not end within 15 seconds"
  # 127: not a child of this shell (a wrapper forked).
  wait "$nbdkit_pid" 2>/dev/null || status=$?
  [ "$status" -eq 0 ] || [ "$status" -eq 127 ] ||
    die "nbdkit ended with status $status: $(tail -n 5 "$nbdkit_log")"
}

# uri [EXPORT]: of the server that was started last.
uri() {
  local name=${1-} out='' i c
  for ((i = 0; i < ${#name}; i++)); do
    c=${name:i:1}
    case $c in
    [a-zA-Z0-9._~/-]) out+=$c ;;
    *) out+=$(printf '%%%02X' "'$c") ;;
    esac
  done
  printf 'nbd+unix:///%s?socket=%s' "$out" "$socket"
}

# nbd_get EXPORT FILE: the whole export into a file.
nbd_get() {
  rm -f "$2"
  nbdcopy -- "$(uri "$1")" "$2"
}

# nbd_put FILE EXPORT
nbd_put() { nbdcopy -- "$1" "$(uri "$2")"; }

# nbdkit_from VERSION: whether nbdkit is of this version or newer.
nbdkit_from() {
  local version
  version=$(nbdkit --dump-config | sed -n 's/^version=//p')
  printf '%s\n' "$1" "$version" | sort -C -V
}

# largest_extent: bytes of the longest extent that a client can be told of, and
# so of the whole answer about a large hole.  nbdkit 1.48 cuts an extent at
# 4 GiB - 64 KiB, 1.42 at 4 GiB - 1, which is the longest request.
largest_extent() {
  if nbdkit_from 1.48; then echo 4294901760; else echo 4294967295; fi
}

# start_rados ARGUMENT...: the plugin on the cluster that was started last.
start_rados() { start_nbdkit rados "conf=$ceph_conf" "$@"; }

# make_rude_filter: compiles rude-filter.cpp.  Sets $rude, for --filter=.
make_rude_filter() {
  local flags
  read -ra flags <<<"$(pkg-config --cflags nbdkit)"
  rude=$tmp/nbdkit-rude-filter.so
  g++ -std=c++20 -O1 -fPIC -shared -pthread "${flags[@]}" -o "$rude" \
    "$tests_srcdir/rude-filter.cpp" 2>"$tmp/compile.log" || {
    cat "$tmp/compile.log" >&2
    die "rude-filter.cpp does not compile"
  }
}

# requires_plugin: the plugin under test loads.
requires_plugin() {
  requires_program nbdkit
  [ -x "$builddir/run" ] || die "$builddir/run is missing: run configure"
  NBDKIT_VALGRIND='' "${nbdkit[@]}" rados --version >/dev/null ||
    die "the plugin is not built, or does not load"
}
