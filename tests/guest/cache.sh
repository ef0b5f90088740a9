# Sourced by the scripts of tests/guest and tests/lab: the cache of slow things, one directory for each set of sources.
# A cache directory is named by what it was made from, is made aside and renamed, and is made by one process at a time.
shopt -s inherit_errexit
cache=${NACELLE_CACHE:-${HOME:?}/.cache/nacelle}

say() { printf '%s\n' "$*" >&2; }
die() { say "${0##*/}: $*"; exit 1; }

# stamp WORD|FILE...: a name for sources; files count by their content.
stamp() {
  local w
  for w; do if [ -f "$w" ]; then sha256sum <"$w"; else printf '%s\n' "$w"; fi; done | sha256sum | cut -c1-16
}

# cached NAME STAMP FUNCTION: prints the directory of NAME; FUNCTION fills the current directory when it is not there yet.
cached() {
  local dir=$cache/$1-$2
  if [ ! -d "$dir" ]; then
    mkdir -p "$cache"
    (
      flock 9
      if [ ! -d "$dir" ]; then
        rm -rf "$cache/.$1."??????   # left by a build that was killed: we hold the lock, so nobody is in there
        tmp=$(mktemp -d "$cache/.$1.XXXXXX")
        trap 'rm -rf "$tmp"' EXIT
        (cd "$tmp"; "$3" >&2)
        chmod 755 "$tmp"
        mv -T "$tmp" "$dir"
      fi
    ) 9>"$cache/.$1.lock"
  fi
  echo "$dir"
}

# discard PATH...: removes what is many files. Where the file system tells its disk of each one (`discard`, mount(8)) that takes
# minutes: nobody waits for it, nor holds a lock meanwhile.
discard() {
  mv "$@" "$(mktemp -d "$cache/.gone.XXXXXX")"
  (setsid nice rm -rf "$cache"/.gone.* 9>&- </dev/null >/dev/null 2>&1 &)
}

# package NAME: NAME=VERSION of the Debian package that apt would install; for a metapackage the one that it stands for.
# Asking apt takes half a second: the answer is kept until apt's lists change.
package() {
  local memo v real
  memo=$cache/package-$1-$(stat -c %Y /var/lib/apt/lists 2>/dev/null || echo 0)
  if [ ! -s "$memo" ]; then
    real=$(apt-cache depends "$1" 2>/dev/null | sed -n "s/.*Depends: \(${1%-*}-[0-9].*\)/\1/p" | head -1)
    real=${real:-$1}
    v=$(apt-cache policy "$real" 2>/dev/null | sed -n 's/^  Candidate: //p')
    [ -n "$v" ] && [ "$v" != '(none)' ] ||
      die "Debian's package $1 is unknown to apt here; run: apt-get update (the test guests are made from Debian 12 packages)"
    mkdir -p "$cache"
    rm -f "$cache/package-$1-"*
    echo "$real=$v" >"$memo.$$"
    mv "$memo.$$" "$memo"
  fi
  cat "$memo"
}

# unpack NAME=VERSION: downloads a Debian package and unpacks it into ./root, without installing it.
unpack() {
  apt-get -qq -o APT::Sandbox::User="$(id -un)" download "$1" || die "cannot download $1; is the Debian mirror reachable? (apt-get update may help)"
  dpkg-deb -x "${1%%=*}"_*.deb root
  rm "${1%%=*}"_*.deb
}

# module_files DIR NAME...: paths of modules of the kernel in DIR (from tests/guest/debian), each after those it needs
# (those that are built in have none).
module_files() {
  local tree name line
  tree=$(echo "$1"/lib/modules/*) && shift
  for name; do
    ! grep -q "/${name//-/[-_]}\.ko$" "$tree/modules.builtin" || continue
    line=$(grep -m1 "/${name//-/[-_]}\.ko:" "$tree/modules.dep") || die "Debian's kernel has no module $name"
    # A line is `module: needed...`, the one to be loaded first comes last.
    tr -d : <<<"$line" | tr ' ' '\n' | tac
  done | awk -v t="$tree/" 'NF && !seen[$0]++ { print t $0 }'
}

# pack_root DIR: the files of DIR as an initramfs on stdout, owned by root, the same bytes for the same files.
pack_root() { (cd "$1"; find . -exec touch -hd @0 {} +; find . | sort | cpio -o -H newc -R 0:0 --reproducible --quiet); }
