# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
#
# For the scripts beside it: Debian packages of a given version, unpacked into
# a temporary folder, which are run there with chroot.  Nothing is installed on
# this machine.  Needs root, apt-get, dpkg-deb, and this machine's own Debian
# mirror.

set -euo pipefail
export LC_ALL=C

tmp=$(mktemp -d "${TMPDIR:-/tmp}/finding.XXXXXX") || exit 1
# A script that unpacks several versions sets tmp to a folder in it.
top=$tmp
remove_all ()
{
  umount "$top"{,/*}/root/{proc,dev} 2>/dev/null || :
  rm -rf --one-file-system "$top"
}
trap remove_all EXIT

# changed MESSAGE: the behaviour is not (or no more) what the script states.
changed () { printf 'CHANGED: %s\n' "$*" >&2; exit 1; }

# unpack SUITE PACKAGE=VERSION...: these and all that they depend on, into
# $tmp/root.
unpack ()
{
  local suite=$1 mirror deb root=$tmp/root
  shift
  mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' |
    grep -v security | head -n 1)
  mkdir -p "$tmp"/{lists/partial,cache/archives/partial} "$root"/{proc,dev,tmp}
  : >"$tmp/status"
  echo "deb $mirror $suite main" >"$tmp/sources"
  local options=(
    -o Dir::Etc::SourceList="$tmp/sources" -o Dir::Etc::SourceParts=/dev/null
    -o Dir::State::Lists="$tmp/lists" -o Dir::State::Status="$tmp/status"
    -o Dir::Cache="$tmp/cache" -o APT::Sandbox::User=root
    -o APT::Install-Recommends=false -o Debug::NoLocking=true
  )
  apt-get -qq "${options[@]}" update
  apt-get -qq -y "${options[@]}" --download-only install base-files dash \
    bash coreutils "$@" >/dev/null
  # First what makes /bin and /lib links to what is below /usr, in newer Debian.
  for deb in "$tmp"/cache/archives/{base-files,}*.deb; do
    dpkg-deb --fsys-tarfile "$deb" |
      tar -x -C "$root" --keep-directory-symlink --no-same-owner
  done
  mount -t proc proc "$root/proc"
  # Of its own: what is done in there is not done to this machine.
  mount -t tmpfs -o mode=755 tmpfs "$root/dev"
  mknod -m 666 "$root/dev/null" c 1 3
  mknod -m 666 "$root/dev/zero" c 1 5
  mknod -m 666 "$root/dev/random" c 1 8
  mknod -m 666 "$root/dev/urandom" c 1 9
  ln -s /proc/self/fd "$root/dev/fd"
}

# run COMMAND...: with these packages.
run () { chroot "$tmp/root" "$@"; }
