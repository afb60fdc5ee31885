#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# --help, the manual page and the plugin itself know the same parameters, and
# --dump-plugin and the manual page the same keys.  Needs no Ceph.

source "$(dirname "$0")/functions.sh" || exit 1
requires_plugin
pod=$tests_srcdir/../man/nbdkit-rados-plugin.pod
[ -f "$pod" ] || die "$pod is missing"

"${nbdkit[@]}" rados --help >"$tmp/help"
"${nbdkit[@]}" rados --dump-plugin >"$tmp/dump"

# Parameters of --help: the lines of the plugin begin with KEY= or [KEY=].
sed -n '/^plugin: /,$p' "$tmp/help" |
  grep -Eo '^ *\[?[a-z][a-z.-]*(<OPTION>)?=' | tr -d ' [=' | sort -u \
  >"$tmp/help.keys"
[ "$(wc -l <"$tmp/help.keys")" -ge 20 ] ||
  die "too few parameters in --help: $(xargs <"$tmp/help.keys")"

# Parameters of the manual page: =item B<KEY=>... or =item [B<KEY=>]...
grep -Eo '^=item \[?B<[a-z][a-z.-]*(I<OPTION>|B<OPTION>|OPTION)?(>)?B?<?=' \
  "$pod" | sed -E 's/^=item \[?B<//; s/[IB]?<?OPTION>?/<OPTION>/; s/[>B<]*=$//' |
  sed 's/^ceph\..*/ceph.<OPTION>/' | sort -u >"$tmp/man.keys"
sed -i 's/^ceph\..*/ceph.<OPTION>/' "$tmp/help.keys"
diff -u --label help --label "manual page" "$tmp/help.keys" "$tmp/man.keys" ||
  die "--help and the manual page have different parameters"

# What they can be, where that is one of some words: in the synopsis and in the
# description.
grep -Eo '^[a-z-]+=[a-z0-9]+(\|[a-z0-9]+)+' "$tmp/help" >"$tmp/choices"
[ "$(wc -l <"$tmp/choices")" -ge 5 ] || die "no choices in --help"
while read -r choice; do
  grep -Fq "[$choice]" "$pod" || die "the synopsis does not have $choice"
  grep -Fxq "=item B<${choice/=/=>}" "$pod" ||
    die "the manual page does not describe $choice"
done <"$tmp/choices"

# The plugin takes each of them, whatever it then says about the value.
while read -r key; do
  key=${key/<OPTION>/log_file}
  "${nbdkit[@]}" -U "$tmp/s" rados "$key=/nonexistent/x" >"$tmp/out" 2>&1 &&
    die "$key=/nonexistent/x alone was accepted"
  assert_no_match "unknown parameter" "$(cat "$tmp/out")" "answer to $key="
done <"$tmp/help.keys"
expect_fail "unknown.*nonsense" "${nbdkit[@]}" -U "$tmp/s" rados nonsense=1

# --dump-plugin.
grep -q '^name=rados$' "$tmp/dump"
grep -q '^thread_model=parallel$' "$tmp/dump"
grep -q '^rados_librados_version=[0-9]' "$tmp/dump"
# The release of Ceph, which is that of the tools, and that of the build.
version=$(sed -n 's/^rados_ceph_version=//p' "$tmp/dump")
assert_match '^[0-9]+(\.[0-9]+)+' "$version" "release of Ceph"
assert_eq "$version" \
  "$(sed -n 's/^rados_ceph_built_version=//p' "$tmp/dump")" "that of the build"
if command -v rados >/dev/null; then
  assert_match "^ceph version ${version//./\\.} " "$(rados --version)"
fi
grep -Eo '^rados_[a-z_]+' "$tmp/dump" | sort -u >"$tmp/dump.keys"
grep -Eo 'rados_[a-z_]+=' "$pod" | tr -d = | sort -u |
  grep -Ev '^rados_(osd_op_timeout|mon_op_timeout)$' >"$tmp/man.dump" || :
diff -u --label --dump-plugin --label "manual page" "$tmp/dump.keys" \
  "$tmp/man.dump" || die "--dump-plugin and the manual page differ"
for format in 1 2 striper; do
  grep -Eq "^rados_formats=(.*,)?$format(,|$)" "$tmp/dump" ||
    die "--dump-plugin does not name the format $format"
done

# The page is well-formed.
if command -v podchecker >/dev/null; then
  podchecker -warnings "$pod" >"$tmp/pod" 2>&1 || {
    cat "$tmp/pod" >&2
    die "podchecker finds errors"
  }
fi

# Switches for diagnosis: those that the plugin has, and no others.
grep -Eo '^=item B<-D rados\.[a-z_]+=0>' "$pod" |
  sed 's/.*rados\.//; s/=0>//' | sort >"$tmp/man.switches"
[ -s "$tmp/man.switches" ] || die "no switches in the manual page"
flags=()
while read -r switch; do
  flags+=(-D "rados.$switch=0")
done <"$tmp/man.switches"
"${nbdkit[@]}" "${flags[@]}" rados --dump-plugin >/dev/null 2>"$tmp/err"
assert_eq "" "$(cat "$tmp/err")" "what nbdkit says of the switches"
"${nbdkit[@]}" -D rados.nonsense=0 rados --dump-plugin >/dev/null \
  2>"$tmp/err" || :
grep -q nonsense "$tmp/err" || die "nbdkit does not refuse an unknown switch"
sed -En 's/^extern NBDKIT_DLL_PUBLIC int rados_debug_([a-z_]+);/\1/p' \
  "$tests_srcdir/../plugins/rados/plugin.cpp" | sort |
  diff -u --label plugin.cpp --label "manual page" - "$tmp/man.switches" ||
  die "the manual page and the plugin have different switches"
