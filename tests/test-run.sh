#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# ./run and the wrapper of nbdkit: which words of the command line they take for
# names of the plugin and of filters, and that all others arrive as they are.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program nbdkit
unset NBDKIT_VALGRIND NBDKIT_GDB

plugin=$builddir/plugins/rados/.libs/nbdkit-rados-plugin.so
filter=$builddir/filters/radosoffset/.libs/nbdkit-radosoffset-filter.so
requires_built "$builddir/run" "$plugin" "$filter"

# Stands for nbdkit and prints its arguments, each in brackets.
cat >"$tmp/print" <<'SCRIPT'
#!/usr/bin/env bash
printf '[%s]' "$@"
SCRIPT
chmod +x "$tmp/print"

# becomes WANTED ARGUMENT...: in WANTED, P stands for the plugin's path, and F
# for a filter's.
becomes() {
  local wanted=$1
  shift
  # The stand-in gets no sanitizer.
  wanted=${wanted//\[P\]/[$plugin]}
  wanted=${wanted//\[F\]/[$filter]}
  assert_eq "${wanted//=F\]/=$filter]}" \
    "$(NBDRADOS_PRELOAD='' NBDKIT_PROGRAM=$tmp/print \
       "$builddir/run" nbdkit "$@")" "nbdkit $*"
}

becomes '[P]' rados
becomes '[P][pool=rbd][image=a b]' rados pool=rbd 'image=a b'
becomes '[P][rados]' rados rados
# Options with and without an argument, short ones also in groups.
becomes '[-f][P]' -f rados
becomes '[-U][-][P]' -U - rados
becomes '[-U-][P]' -U- rados
becomes '[-fvU][rados][P]' -fvU rados rados
becomes '[-fv][P]' -fv rados
for option in -D -e -g -i -P -p -t -u -U \
    --debug --export --export-name --exportname --filter --group --ip-addr \
    --ipaddr --log --mask-handshake --pid-file --pidfile --port --run \
    --selinux-label --threads --tls --tls-certificates --tls-psk --unix \
    --user; do
  becomes "[$option][rados][P][rados]" "$option" rados rados rados
done
for option in -4 -6 -f -n -o -r -s -v -V \
    --ipv4-only --dump-config --dump-plugin --exit-with-parent --foreground \
    --help --newstyle --no-sr --oldstyle --read-only --single --swap \
    --tls-verify-peer --verbose --version --vsock; do
  becomes "[$option][P][rados]" "$option" rados rados
done
becomes '[--filter=rados][P]' --filter=rados rados
becomes '[--run=rados][P]' --run=rados rados
# Shortened long options: --pid is one with an argument, --dump-p is not.
becomes '[--pid][rados][P]' --pid rados rados
becomes '[--dump-p][P]' --dump-p rados
# Filters.
becomes '[--filter=F][P]' --filter=radosoffset rados
becomes '[--filter][F][P]' --filter radosoffset rados
becomes '[--fi=F][--filte][F][P]' --fi=radosoffset --filte radosoffset rados
becomes '[--filter=log][--filter][log][memory][radosoffset]' \
  --filter=log --filter log memory radosoffset
becomes '[--filter=./radosoffset][P]' --filter=./radosoffset rados
becomes '[--run=radosoffset][radosoffset]' --run=radosoffset radosoffset
# After --, and options after the plugin.
becomes '[-f][--][P][-U]' -f -- rados -U
becomes '[P][--run][rados][-v]' rados --run rados -v
# Not ours.
becomes '[-U][-][memory][rados]' -U - memory rados
becomes '[./rados][rados]' ./rados rados
becomes '[/tmp/rados.so]' /tmp/rados.so

# run changes nothing else, and is the same within itself.
assert_eq "a b|c" "$("$builddir/run" printf '%s|%s' 'a b' c)" "arguments"
assert_eq 3 "$("$builddir/run" bash -c 'exit 3' || echo $?)" "exit status"
assert_eq "$("$builddir/run" printenv PATH)" \
  "$("$builddir/run" "$builddir/run" printenv PATH)" "PATH"
assert_eq "$builddir/wrapper/nbdkit" \
  "$("$builddir/run" bash -c 'command -v nbdkit')" "nbdkit"

# The real server loads the plugin just built, and its captive command sees no
# library that was meant for the server.
assert_match "^path=.*${plugin##*/}\$" \
  "$("$builddir/run" nbdkit --dump-plugin rados)" "--dump-plugin"
assert_match "^\($filter\)\$" "$("$builddir/run" nbdkit \
  --filter=radosoffset null --help)" "--help with a filter"
assert_eq none "$("$builddir/run" nbdkit -U - null size=1M \
  --run 'printf "%s" "${LD_PRELOAD-none}"')" "LD_PRELOAD of a child"

# nbdkit looks up one name, and those of debug switches; all others stay inside.
if command -v nm >/dev/null; then
  assert_eq plugin_init "$(nm -D --defined-only "$plugin" |
    awk '$2 != "A" && $3 !~ /^rados_debug_/ { print $3 }')" "exported names"
  assert_eq filter_init "$(nm -D --defined-only "$filter" |
    awk '$2 != "A" { print $3 }')" "exported names of the filter"
fi
