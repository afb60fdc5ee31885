#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What bash completes of radoscopy's command line, and where `make install` puts
# that.  Needs no Ceph.

source "$(dirname "$0")/functions.sh" || exit 1
requires_built "$builddir/copy/radoscopy"

MAKEFLAGS='' make -s -C "$builddir/copy" install-dist_completionDATA \
  DESTDIR="$tmp/root" datadir=/usr/share >"$tmp/make.log" 2>&1 ||
  die "$(cat "$tmp/make.log")"
source "$tmp/root/usr/share/bash-completion/completions/radoscopy"
assert_match "_radoscopy radoscopy" "$(complete -p radoscopy)" "complete"

# What runs for "radoscopy": its answers, which it is asked for once.
for list in --long-options --short-options; do
  "$builddir/run" radoscopy "$list" >"$tmp/$list"
done
radoscopy() { cat "$tmp/$1"; }

# Works only while bash completes something.
compopt() { :; }

# completes LINE WORD...: what bash is offered where LINE has been typed.
completes() {
  COMP_LINE=$1
  COMP_POINT=${#1}
  COMPREPLY=()
  _radoscopy radoscopy
  assert_eq "${*:2}" "${COMPREPLY[*]}" "completion of '$1'"
}

cd "$tmp"
mkdir files
touch files/one.img "files/two words.img"
# With the characters that break words by default, and without.
for breaks in $' \t\n"\'><=;|&(:' $' \t\n'; do
  COMP_WORDBREAKS=$breaks
  one=--verify=only
  [[ $breaks == *=* ]] && one=only
  completes "radoscopy --verify=" "$one"
  completes "radoscopy --verify=x"
  completes "radoscopy --verb" --verbose
  completes "radoscopy a b --ch" --checksum=
  completes "radoscopy --prog" --progress
  completes "radoscopy -R" -R
  completes "radoscopy files/o" files/one.img
  completes "radoscopy --ranges=files/t" "files/two words.img"
done
COMP_WORDBREAKS=$' \t\n"\'><=;|&(:'
completes "radoscopy --checksum=blake" blake2b512
completes "radoscopy --checksum=sha256,blake" sha256,blake2b512
completes "radoscopy --create=data" data-pool=
completes "radoscopy --create=size=1M,data" 1M,data-pool=
completes "radoscopy x rad" rados:
completes "radoscopy x nbd+u" nbd+unix:///
completes "radoscopy x nbd:" //
# Each option, and each key of new images that the manual page has.
for option in $(radoscopy --long-options); do
  COMP_LINE="radoscopy $option" COMP_POINT=$((10 + ${#option}))
  _radoscopy radoscopy
  prints "^$option=?\$" printf '%s\n' "${COMPREPLY[@]}" ||
    die "$option is not completed: ${COMPREPLY[*]}"
done
say "passed"
