#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# --help of each filter, its manual page and the filter itself know the same
# parameters; a filter built for another nbdkit is refused.  Needs no Ceph.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program nbdkit
unset NBDKIT_VALGRIND

for name in radoscache radosoffset; do
  library=$builddir/filters/$name/.libs/nbdkit-$name-filter.so
  requires_built "$library"
  pod=$tests_srcdir/../man/nbdkit-$name-filter.pod
  [ -f "$pod" ] || die "$pod is missing"

  "${nbdkit[@]}" --filter="$name" null --help >"$tmp/help.all"
  sed -n "/^filter: $name /,/^\$/p" "$tmp/help.all" >"$tmp/help"
  grep -Eo '^[a-z][a-z-]*=' "$tmp/help" | tr -d = | sort -u >"$tmp/help.keys"
  [ -s "$tmp/help.keys" ] || die "no parameters in --help of $name"
  grep -Eo '^=item B<[a-z][a-z-]*=' "$pod" | sed -E 's/^=item B<//; s/=$//' |
    sort -u >"$tmp/man.keys"
  diff -u --label help --label "manual page" "$tmp/help.keys" \
    "$tmp/man.keys" ||
    die "--help of $name and the manual page have different parameters"

  # The synopsis has the same, with the same values.
  while read -r usage; do
    usage=${usage//[<>]/}
    grep -Fq "[$usage]" "$pod" || die "the synopsis does not have $usage"
  done < <(grep -Eo '^[a-z][a-z-]*=[^ ]+' "$tmp/help")

  # What it tells of itself.  (Name and path are nbdkit's own.)
  if nbdkit_from 1.36; then
    "${nbdkit[@]}" --filter="$name" --dump-plugin null |
      grep -E "^${name}_" | grep -Ev "^${name}_(name|path)=" \
      >"$tmp/dump" || die "$name tells nothing in --dump-plugin"
    grep -Eo "^ ${name}_[a-z_]+=" "$pod" | tr -d ' =' | sort >"$tmp/man.dump"
    diff -u --label --dump-plugin --label "manual page" \
      <(sed 's/=.*//' "$tmp/dump" | sort) "$tmp/man.dump" ||
      die "--dump-plugin of $name and the manual page differ"
    grep -Fxq "${name}_nbdkit_version=$(nbdkit --dump-config |
      sed -n 's/^version=//p')" "$tmp/dump" || die "$(cat "$tmp/dump")"
  else
    say "left out: filters have .dump_plugin since nbdkit 1.36"
  fi

  # The filter takes each of them: the plugin below would not.
  while read -r key; do
    "${nbdkit[@]}" -U - --filter="$name" memory 1M "$key=/nonexistent/x" \
      --run true >"$tmp/out" 2>&1 && die "$key=/nonexistent/x was accepted"
    assert_no_match "unknown parameter" "$(cat "$tmp/out")" "answer to $key="
  done <"$tmp/help.keys"
  expect_fail "nonsense" "${nbdkit[@]}" -U - --filter="$name" memory 1M \
    nonsense=1 --run true

  # The version.  The same length, so that nothing in the file moves.
  version=$(sed -n 's/.* for nbdkit \([0-9.]*\) only.*/\1/p' "$tmp/help")
  assert_match '^[0-9]+\.[0-9]+\.[0-9]+$' "$version" "version in --help"
  assert_eq "nbdkit $version" \
    "$("${nbdkit[@]}" --version | sed 's/^\(nbdkit [^ ]*\).*/\1/')" "version"
  other=${version%?}$(((${version: -1} + 1) % 10))
  sed "s/\x00${version//./\\.}\x00/\x00$other\x00/g" "$library" \
    >"$tmp/nbdkit-other-filter.so"
  cmp -s "$library" "$tmp/nbdkit-other-filter.so" &&
    die "the version was not found in $library"
  expect_fail "incompatible with this version of nbdkit .*$other.*$version" \
    "${nbdkit[@]}" -U - --filter="$tmp/nbdkit-other-filter.so" null --run true
  grep -q "_version = .*, need" "$pod" ||
    die "the manual page of $name does not show the message"

  if command -v podchecker >/dev/null; then
    podchecker -warnings "$pod" >"$tmp/pod" 2>&1 || {
      cat "$tmp/pod" >&2
      die "podchecker finds errors"
    }
  fi
done
