# Sourced by the scripts here: where this cluster lives. NACELLE_CLUSTER names it, so that several can be up at once;
# its network namespaces are $name-cp, $name-node1, ..., its files in $run, its programs in $bin (tests/cluster/build).
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../guest/cache.sh"
name=${NACELLE_CLUSTER:-nacelle}
run=/var/lib/nacelle-cluster/$name
bin=$run/bin
cp_ip=10.88.0.1 cp_ip6=fd00:10:88::1
[ "$(id -u)" = 0 ] || die "a cluster is made of namespaces and mounts: run this as root"

# in_cp COMMAND...: runs it where the control plane is.
in_cp() { ip netns exec "$name-cp" "$@"; }
kubectl() { in_cp "$bin/kubectl" --kubeconfig="$run/pki/admin.kubeconfig" "$@"; }

# wait_for SECONDS WHAT COMMAND...: tries it until it succeeds.
wait_for() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || die "$what is not there in time; logs are in $run"
    sleep 0.2
  done
}

# ours PART: its process, as it was noted, still is this cluster's: not gone, and not another that has its number now.
ours() { [ -e "$run/$1.pid" ] && ip netns identify "$(cat "$run/$1.pid")" 2>/dev/null | grep -q "^$name-"; }

# start NAME COMMAND...: starts a part of the control plane and notes its process.
start() {
  local part=$1
  shift
  setsid ip netns exec "$name-cp" "$@" >"$run/$part.log" 2>&1 </dev/null &
  echo $! >"$run/$part.pid"
}
