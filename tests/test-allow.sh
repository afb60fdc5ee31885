#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# allow=FILE: each client opens and lists what the rules let it, and learns
# nothing of the rest.  Names in disguise, clients that may only read beside
# one that writes, users of a Unix socket, TLS certificates.

source "$(dirname "$0")/functions.sh" || exit 1
requires_program nbdinfo jq python3
requires_built "$nbd_expect" \
  "$builddir/filters/radoscache/.libs/nbdkit-radoscache-filter.so"
requires_plugin
start_ceph
for name in vm1 vm2 secret; do rbd create --size 4M "rbd/$name"; done
rbd_snap rbd/vm1@s
rbd namespace create rbd/team
rbd create --size 4M rbd/team/web
me=uid:$(id -u)

# rules RULE...: the file has these.
rules() { printf '%s\n' "$@" >"$tmp/rules"; }
# serve RULE...: the pool under these rules.
serve() {
  rules "$@"
  start_rados pool=rbd allow="$tmp/rules"
}
listed() { "$nbd_expect" --list "$(uri)" | cut -f 1 | xargs; }
may_not_open() {
  local name
  for name; do
    "$nbd_expect" "$(uri "$name")" connect fail || die "'$name' was opened"
  done
}

say "files that are wrong"
# refused REGEX RULE...
refused() {
  rules "${@:2}"
  expect_fail "$1" "${nbdkit[@]}" -U - rados "conf=$ceph_conf" pool=rbd \
    allow="$tmp/rules" --run true
  assert_eq 1 "$(wc -l <<<"$failure")" "lines of '$failure'"
}
refused "error: rados: allow=$tmp/rules, line 2: the last word is neither ro" \
  "# comment" "$me *"
refused "allow=$tmp/rules has no rules" "# $me * rw"
: >"$tmp/empty"
expect_fail "allow=$tmp/empty has no rules" "${nbdkit[@]}" -U - rados \
  pool=rbd allow="$tmp/empty" --run true
expect_fail "allow=/nonexistent/x: not found" "${nbdkit[@]}" -U - rados \
  pool=rbd allow=/nonexistent/x --run true
expect_fail "allow=$tmp cannot be read" "${nbdkit[@]}" -U - rados \
  pool=rbd allow="$tmp" --run true
# What this nbdkit cannot tell.
for kind in dn:nbdkit_peer_tls_dn:1.40 issuer:nbdkit_peer_tls_issuer_dn:1.40 \
  context:nbdkit_peer_security_context:1.36; do
  IFS=: read -r key function since <<<"$kind"
  if ! nbdkit_from "$since"; then
    refused "line 2 needs $function, which nbdkit has since $since" \
      "$me * rw" "$key:x * rw"
  fi
done

say "what a client may open, and what it sees"
serve "uid:4294967294 * rw" "$me vm1 rw" "gid:$(id -g) vm* ro" "* team/* ro" \
  "uid:4294967294 */* rw"
assert_eq "vm1 vm1@s vm2 team/web" "$(listed)" "list of exports"
"$nbd_expect" "$(uri vm1)" flag read-only no , write 0 4096 1 ok
"$nbd_expect" "$(uri vm1@s)" flag read-only yes
"$nbd_expect" "$(uri vm2)" flag read-only yes , read-is 0 4096 0 , \
  write 0 4096 1 EPERM , zero 0 4096 EPERM , trim 0 65536 EPERM
"$nbd_expect" "$(uri team/web)" flag read-only yes
may_not_open secret secret@s absent "" a/b/c team/absent/x rbd/vm1
# The same whether there is one of that name or not.
for name in secret absent; do
  expect_fail "" nbdinfo "$(uri $name)"
  printf '%s\n' "${failure//$name/}" >"$tmp/$name.answer"
  assert_no_match "rule|uid|exist|no image|Permission" "$failure"
  if nbdkit_from 1.42; then
    assert_match "refused: that is not allowed" "$failure"
  fi
done
assert_same_bytes "$tmp/secret.answer" "$tmp/absent.answer" "answers"
grep -q "no rule of allow= lets this client (uid $(id -u), gid $(id -g)) open \
'secret'" "$nbdkit_log" || die "the log does not say who was refused"
# A name with an end of a line in it does not make another line.
may_not_open $'secret\nforged' $'a/b/c\nforged'
assert_eq 2 "$(grep -c "error: open: .*forged" "$nbdkit_log")" \
  "lines about the names"
! grep -q "^forged" "$nbdkit_log" || die "a client has written into the log"
# Nobody asked the cluster for it.
! grep -q "no image.*absent" "$nbdkit_log" || die "a refused name was looked up"
stop_nbdkit

say "what the log says of a list is not sent with a later error"
rbd namespace create rbd/hidden
rbd create --size 4M rbd/hidden/x
rados -p rbd -N hidden setomapval rbd_directory name_x ""
serve "$me vm1 ro"
python3 - "$socket" >"$tmp/reply" <<'END'
import socket, struct, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])

def read(n):
    data = s.recv(n, socket.MSG_WAITALL)
    assert len(data) == n
    return data

def send(option):
    s.sendall(b"IHAVEOPT" + struct.pack(">II", option, 0))

def reply():
    _, _, kind, length = struct.unpack(">QIII", read(20))
    return kind, read(length)

read(18)
s.sendall(struct.pack(">I", 3))
NBD_OPT_LIST, unknown, NBD_REP_ACK, NBD_REP_SERVER = 3, 99, 1, 2
send(NBD_OPT_LIST)
assert reply() == (NBD_REP_SERVER, struct.pack(">I", 3) + b"vm1")
assert reply() == (NBD_REP_ACK, b"")
send(unknown)
kind, text = reply()
assert kind & 0x80000000
print(text.decode())
END
grep -q "the list lacks the images of .*'hidden'" "$nbdkit_log" ||
  die "nothing was logged that could be sent"
assert_no_match "hidden|rbd" "$(cat "$tmp/reply")"
if nbdkit_from 1.42; then
  assert_eq "more is in the log of the server" "$(cat "$tmp/reply")" "reply"
fi
stop_nbdkit
rados -p rbd -N hidden rm rbd_directory

say "a name in disguise is the same name"
serve "$me sec* ro" "$me t*m/* ro" "$me * rw" "$me */* rw"
for name in secret %73ecret s%65cre%74 team/web t%65am/web; do
  "$nbd_expect" "$(uri $name)" flag read-only yes
done
"$nbd_expect" "$(uri v%6D1)" flag read-only no
may_not_open "" nothing
if nbdkit_from 1.42; then
  expect_fail "choose an image by its name" nbdinfo "$(uri "")"
  expect_fail "there is no image or snapshot of that name" \
    nbdinfo "$(uri nothing)"
fi
stop_nbdkit

say "a client without any rule"
serve "uid:4294967294 * rw" "addr:0.0.0.0/0 * rw" "addr:::/0 * rw"
assert_eq "" "$(listed)" "list of exports"
may_not_open vm1 team/web absent ""
stop_nbdkit

say "one image, one namespace, the default export"
rules "$me vm1 ro"
start_rados rbd/vm1 allow="$tmp/rules"
"$nbd_expect" "$(uri whatever)" flag read-only yes
[ "$(listed)" = "" ] || die "an export that has no name is listed"
nbdinfo --list --json "$(uri)" | jq -e '.exports | length == 1' >/dev/null
start_rados rbd/vm2 allow="$tmp/rules"
may_not_open vm1 vm2 ""
nbdinfo --list --json "$(uri)" | jq -e '.exports | length == 0' >/dev/null ||
  die "an image that is not to be seen is listed"
stop_nbdkit
rules "$me web rw"
start_rados rbd/team/web allow="$tmp/rules"
"$nbd_expect" "$(uri)" flag read-only no
stop_nbdkit
start_rados pool=rbd namespace=team allow="$tmp/rules"
"$nbd_expect" "$(uri web)" flag read-only no
# It is the only image of the namespace.
"$nbd_expect" "$(uri)" name '^web$'
stop_nbdkit

# The image is renamed, so that the rules take one user for two.
say "a client that may only read beside one that writes"
rules "$me before* ro" "$me after* rw"
n=0
for filters in "" "--filter=radoscache cache-mode=writeback"; do
  n=$((n + 1))
  rbd create --size 4M rbd/before$n
  # shellcheck disable=SC2086
  start_nbdkit ${filters%% *} rados "conf=$ceph_conf" pool=rbd \
    allow="$tmp/rules" ${filters#* }
  "$nbd_expect" "$(uri before$n)" flag read-only yes , \
    read-is 0 64K 0 , run "touch '$tmp/reads$n'" , \
    until 30 read-is 0 64K 7 , run "touch '$tmp/seen$n'" , \
    until 30 run "rbd lock ls --format json rbd/after$n | grep -Fqx '[]'" , \
    read-is 0 64K 7 , write 0 4096 1 EPERM &
  reader=$!
  wait_until 30 test -e "$tmp/reads$n"
  assert_eq "[]" "$(rbd lock ls --format json rbd/before$n)" "a reader's lock"
  rbd rename rbd/before$n rbd/after$n
  "$nbd_expect" "$(uri after$n)" flag read-only no , write 0 64K 7 ok , \
    until 30 run "test -e '$tmp/seen$n'" , \
    run "! rbd lock ls --format json rbd/after$n | grep -Fqx '[]'"
  wait "$reader" || die "the client that may only read"
  stop_nbdkit
done

say "users of a Unix socket"
if [ "$(id -u)" = 0 ] && command -v setpriv >/dev/null; then
  serve "uid:65534 vm1 ro" "gid:65533 vm2 rw" "uid:0 secret rw"
  chmod 711 "$tmp"
  chmod 666 "$socket"
  as() { setpriv --reuid="$1" --regid="$2" --clear-groups "${@:3}"; }
  for who in "65534 65534 vm1" "65532 65533 vm2" "65534 65533 vm1 vm2" \
    "0 0 secret"; do
    read -r uid gid may <<<"$who"
    assert_eq "$may" "$(as "$uid" "$gid" "$nbd_expect" --list "$(uri)" |
      cut -f 1 | xargs)" "what $uid:$gid may open"
    for name in vm1 vm2 secret; do
      result=fail
      [[ " $may " != *" $name "* ]] || result=ok
      as "$uid" "$gid" "$nbd_expect" "$(uri $name)" connect $result ||
        die "$uid:$gid and $name"
    done
  done
  stop_nbdkit
else
  say "left out: several users (needs root and setpriv)"
fi

say "addresses"
# start_tcp FAMILY ADDRESS: on a socket that is listening already, whose port
# is nobody else's.  Sets $port.
start_tcp() {
  rm -f "$tmp/port"
  python3 - "$1" "$2" "$tmp/port" "${nbdkit[@]}" -f rados \
    "conf=$ceph_conf" pool=rbd allow="$tmp/rules" >"$tmp/nbdkit-tcp.log" 2>&1 \
    <<'END' &
import os, socket, sys
family, address, port_file = sys.argv[1:4]
listening = socket.socket(getattr(socket, family))
if family == "AF_INET6":
    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
listening.bind((address, 0))
listening.listen()
# sd_listen_fds(3): the first is 3.  The file of this program may have that.
descriptor = os.dup2(listening.fileno(), 100)
os.dup2(descriptor, 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
with open(port_file + "-new", "w") as out:
    out.write(str(listening.getsockname()[1]))
os.rename(port_file + "-new", port_file)
os.execvp(sys.argv[4], sys.argv[4:])
END
  nbdkit_pid=$!
  own "$nbdkit_pid"
  wait_until 30 test -e "$tmp/port"
  port=$(cat "$tmp/port")
}
# Who comes over TCP has no user, and over IPv4 none of IPv6's addresses.
rules "$me vm2 rw" "addr:::/0 secret rw" "addr:10.0.0.0/8 secret rw" \
  "addr:127.0.0.0/8 vm1 ro"
ipv6='import socket; socket.socket(socket.AF_INET6).bind(("::", 0))'
for where in "AF_INET 127.0.0.1" "AF_INET6 ::"; do
  if [[ $where = AF_INET6* ]] && ! python3 -c "$ipv6" 2>/dev/null; then
    say "left out: a server that listens on IPv6, which is not here"
    continue
  fi
  # shellcheck disable=SC2086
  start_tcp $where
  assert_eq vm1 "$("$nbd_expect" --list "nbd://127.0.0.1:$port/" |
    cut -f 1 | xargs)" "list over $where"
  "$nbd_expect" "nbd://127.0.0.1:$port/vm1" flag read-only yes
  "$nbd_expect" "nbd://127.0.0.1:$port/vm2" connect fail
  stop_nbdkit
done

say "security contexts"
if nbdkit_from 1.36; then
  serve "context:none:of:the:clients * ro" "$me vm1 rw"
  # Without a security module nobody has one; then it cannot be found out.
  if "$nbd_expect" "$(uri vm1)" connect fail; then
    grep -q "security_context of the client cannot be found out" \
      "$nbdkit_log" || die "refused for another reason"
  else
    "$nbd_expect" "$(uri vm1)" flag read-only no
  fi
  stop_nbdkit
else
  say "left out: nbdkit has nbdkit_peer_security_context since 1.36"
fi

say "TLS certificates"
if ! nbdkit_from 1.40; then
  say "left out: nbdkit has nbdkit_peer_tls_dn since 1.40"
  exit 0
fi
requires_program openssl
# A server and two clients, each with a key and a certificate; whom the
# authorities sign for: make_ca NAME, sign CA SUBJECT FOLDER server|client.
make_ca() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
    -days 2 -subj "/CN=$1" -keyout "$tmp/$1.key" -out "$tmp/$1.pem" 2>/dev/null
}
sign() {
  mkdir -p "$tmp/$3"
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
    -subj "$2" -keyout "$tmp/$3/$4-key.pem" -out "$tmp/$3/csr" 2>/dev/null
  openssl x509 -req -in "$tmp/$3/csr" -CA "$tmp/$1.pem" -CAkey "$tmp/$1.key" \
    -CAcreateserial -days 2 -out "$tmp/$3/$4-cert.pem" 2>/dev/null
  cat "$tmp/Big Co.pem" "$tmp/Others.pem" >"$tmp/$3/ca-cert.pem"
}
make_ca "Big Co"
make_ca Others
sign "Big Co" "/CN=server" server server
sign "Big Co" "/O=Big Co/CN=alice" alice client
sign Others "/CN=bob" bob client
# The same name, signed by somebody else.
sign Others "/O=Big Co/CN=alice" impostor client

rules "dn:CN=alice,O=Big Co vm1 rw" "issuer:CN=Others vm2 ro"
start_nbdkit --tls=on --tls-verify-peer --tls-certificates="$tmp/server" \
  rados "conf=$ceph_conf" pool=rbd allow="$tmp/rules"
tls_uri() {
  printf 'nbds+unix:///%s?socket=%s&tls-certificates=%s' \
    "$2" "$socket" "$tmp/$1"
}
# may CLIENT EXPORT RIGHT: rw, ro, or none.
may() {
  local got=none
  if nbdinfo --json "$(tls_uri "$1" "$2")" >"$tmp/info" 2>"$tmp/info.err"; then
    got=$(jq -r '.exports[0].is_read_only | if . then "ro" else "rw" end' \
      "$tmp/info")
  fi
  assert_eq "$3" "$got" "what $1 may do with $2 ($(cat "$tmp/info.err"))"
}
may alice vm1 rw
may alice vm2 none
may alice secret none
may bob vm1 none
may bob vm2 ro
# nbdkit looks at the whole name only: whoever trusts two authorities must
# trust both not to sign for a name of the other.
may impostor vm1 rw
for who in alice:vm1 bob:vm2; do
  assert_eq "${who#*:}" "$(nbdinfo --list --json "$(tls_uri "${who%:*}" "")" |
    jq -r '.exports[]."export-name"' | xargs)" "what ${who%:*} sees"
done
# Without TLS there is no certificate.
may_not_open vm1 vm2
assert_eq "" "$(listed)" "list without TLS"
stop_nbdkit
