#!/bin/sh
# Makes an authority for migrations and a certificate for each host named, in the current directory: ca.pem, and for
# the first one cert.pem and key.pem (for others NAME/...). Needs openssl.
# usage: migration-certificates.sh HOST...     HOST as it is named in --to: a name or an address
set -eu
[ $# -gt 0 ] || { echo "usage: $0 HOST..." >&2; exit 2; }
umask 077
[ -e ca-key.pem ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
  -subj '/CN=nacelle migration' -keyout ca-key.pem -out ca.pem 2>/dev/null
first=$1
for host; do
  case $host in
    *[!0-9.]*) kind=DNS ;;
    *) kind=IP ;;
  esac
  case $host in *:*) kind=IP ;; esac
  directory=.
  [ "$host" = "$first" ] || { directory=$host; mkdir -p "$directory"; cp ca.pem "$directory/"; }
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$host" \
    -keyout "$directory/key.pem" -out "$directory/request.pem" 2>/dev/null
  printf 'subjectAltName=%s:%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$kind" "$host" >"$directory/names"
  openssl x509 -req -in "$directory/request.pem" -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 825 \
    -extfile "$directory/names" -out "$directory/cert.pem" 2>/dev/null
  rm "$directory/request.pem" "$directory/names"
done
