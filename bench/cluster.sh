# The floor that a cluster's `testbed up` is compared with: the same programs, started as side by
# side as a shell can, until a Pod runs.
#   cluster.sh NODES BIN WORK CGROUP
# BIN goes before the system's PATH; WORK is a new folder with pause.tar and nginx.tar; below
# CGROUP each hierarchy gets a folder a node.  Prints when all nodes were Ready and when the Pod
# ran, in seconds.  Run it under
#   unshare --pid --fork --kill-child --mount --net
# so that everything ends with its first process.
set -e
nodes=$1 work=$3 cgroup=$4
PATH=$2:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir -p /run/netns
api=10.168.0.2
# Certificates are not timed.
pki=$work/pki
mkdir "$pki"
cd "$pki"
key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }
pair() { # NAME SUBJECT EXTENSIONS
  key "$1"
  openssl req -new -key "$1.key" -subj "$2" | openssl x509 -req -CA ca.crt -CAkey ca.key \
    -CAcreateserial -sha256 -days 2 -extfile <(printf '%b' "$3") -out "$1.crt" 2> /dev/null
}
config() {
  echo "{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: \"https://$api:6443\",
    certificate-authority: $pki/ca.crt}}], users: [{name: u, user: {client-certificate:
    $pki/$1.crt, client-key: $pki/$1.key}}], contexts: [{name: c, context: {cluster: c, user: u}}],
    current-context: c}" > "$1.conf"
}
key ca
openssl req -x509 -new -key ca.key -sha256 -days 2 -subj /CN=floor -out ca.crt
key sa
client=extendedKeyUsage=clientAuth
pair server /CN=kube-apiserver "extendedKeyUsage=serverAuth\nsubjectAltName=IP:$api,IP:10.97.0.1"
pair to-kubelet /O=system:masters/CN=to-kubelet $client
pair admin /O=system:masters/CN=admin $client
pair manager /CN=system:kube-controller-manager $client
pair scheduler /CN=system:kube-scheduler $client
pair proxy /CN=system:kube-proxy $client
pair flannel /O=system:masters/CN=flannel $client
for user in admin manager scheduler proxy flannel; do config $user; done
for i in $(seq 1 "$nodes"); do
  pair "node$i" "/O=system:nodes/CN=system:node:node$i" $client
  config "node$i"
done
cd "$work"

began=$(date +%s.%N)
since() { echo "$(date +%s.%N) $began" | awk -v what="$1" '{ printf "%s %.3f\n", what, $1 - $2 }'; }
ip netns add fabric
ip -n fabric link add br0 type bridge
ip -n fabric link set br0 up
init='
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir -p /run/flannel /run/sys /run/cni /var/lib
for dir in lib/kubelet lib/containerd lib/cni log; do
  mkdir -p "$1/$dir" "/var/$dir"
  mount --bind "$1/$dir" "/var/$dir"
done
mkdir -p /var/log/pods
set -- "$1" "$2" vm/overcommit_memory 1 vm/panic_on_oom 0 kernel/panic 10 \
  kernel/panic_on_oops 1 kernel/keys/root_maxkeys 1000000 kernel/keys/root_maxbytes 25000000
dir=$1 name=$2
shift 2
while [ $# -gt 0 ]; do
  file=/run/sys/$(echo "$1" | tr / _)
  echo "$2" > "$file"
  mount --bind "$file" "/proc/sys/$1"
  shift 2
done
hostname "$name"
mount --make-rshared /run
mount --make-rshared /var/lib
touch "$dir/up"
exec sleep infinity
'
on() { n=$1; shift; nsenter -t "$(cat "$work/node$n/pid")" --mount --pid --uts --ipc --net -- "$@"; }
start() { n=$1 log=$2; shift 2; on "$n" "$@" > "$work/node$n/$log.log" 2>&1 & }
for i in $(seq 1 "$nodes"); do
  dir=$work/node$i
  mkdir -p "$dir"
  ip netns add "n$i"
  ip link add eth0 netns "n$i" type veth peer name "p$i" netns fabric
  ip -n fabric link set "p$i" master br0 up
  ip -n "n$i" link set lo up
  ip -n "n$i" link set eth0 up
  ip -n "n$i" addr add "10.168.0.$((1 + i))/24" dev eth0
  ip -n "n$i" route add default via 10.168.0.1
  nsenter --net="/run/netns/n$i" sysctl -qw net.ipv4.ip_forward=1
  nsenter --net="/run/netns/n$i" unshare --mount --propagation slave --pid --uts --ipc --fork \
    sh -c "$init" sh "$dir" "node$i" > "$dir/init.log" 2>&1 &
  parent=$!
  until [ -f "$dir/up" ]; do sleep 0.01; done
  tr -d ' ' < "/proc/$parent/task/$parent/children" > "$dir/pid"
done
start 1 etcd etcd --data-dir "$work/node1/etcd" --listen-client-urls http://127.0.0.1:2379 \
  --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 \
  --heartbeat-interval 10 --election-timeout 50 --unsafe-no-fsync --log-level error
start 1 apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 \
  --service-cluster-ip-range=10.97.0.0/16 --advertise-address=$api --secure-port=6443 \
  --tls-cert-file="$pki/server.crt" --tls-private-key-file="$pki/server.key" \
  --client-ca-file="$pki/ca.crt" --service-account-key-file="$pki/sa.key" \
  --service-account-signing-key-file="$pki/sa.key" \
  --service-account-issuer=https://kubernetes.default.svc.cluster.local \
  --kubelet-client-certificate="$pki/to-kubelet.crt" \
  --kubelet-client-key="$pki/to-kubelet.key" \
  --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --profiling=false
for i in $(seq 1 "$nodes"); do
  dir=$work/node$i
  cat > "$dir/containerd.toml" << END
version = 2
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp"]
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "docker.io/testbed/pause:1"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "/run/cni"
END
  cat > "$dir/kubelet.yaml" << END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: "unix:///run/containerd/containerd.sock"
cgroupDriver: cgroupfs
cgroupRoot: "$cgroup/node$i"
cgroupsPerQOS: true
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
protectKernelDefaults: true
localStorageCapacityIsolation: false
authentication: {anonymous: {enabled: false}, webhook: {enabled: true},
  x509: {clientCAFile: "$pki/ca.crt"}}
authorization: {mode: Webhook}
evictionHard: {memory.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%",
  imagefs.available: "0%", imagefs.inodesFree: "0%", pid.available: "0%"}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
syncFrequency: 5s
nodeStatusUpdateFrequency: 2s
fileCheckFrequency: 60s
resolvConf: "$dir/resolv.conf"
END
  cat > "$dir/proxy.yaml" << END
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: "$pki/proxy.conf"}
hostnameOverride: node$i
clusterCIDR: 100.96.0.0/16
bindAddress: 10.168.0.$((1 + i))
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
END
  : > "$dir/resolv.conf"
  start "$i" containerd containerd -c "$dir/containerd.toml"
  (
    ctr() { on "$i" ctr -a /run/containerd/containerd.sock -n k8s.io "$@" > /dev/null 2>&1; }
    until ctr version; do sleep 0.02; done
    for image in pause nginx; do ctr images import "$work/$image.tar"; done
    touch "$dir/imported"
  ) &
done
ask() {
  nsenter --net=/run/netns/n1 curl -sm 5 --cacert "$pki/ca.crt" --cert "$pki/admin.crt" \
    --key "$pki/admin.key" "https://$api:6443$1" 2> /dev/null
}
until ask /readyz | grep -q '^ok'; do sleep 0.05; done
start 1 manager kube-controller-manager --kubeconfig="$pki/manager.conf" \
  --allocate-node-cidrs=true --cluster-cidr=100.96.0.0/16 \
  --service-cluster-ip-range=10.97.0.0/16 --use-service-account-credentials=true \
  --root-ca-file="$pki/ca.crt" --service-account-private-key-file="$pki/sa.key" \
  --leader-elect=false --profiling=false
start 1 scheduler kube-scheduler --kubeconfig="$pki/scheduler.conf" --leader-elect=false
for i in $(seq 1 "$nodes"); do
  dir=$work/node$i
  until [ -f "$dir/imported" ]; do sleep 0.02; done
  start "$i" kubelet kubelet --config="$dir/kubelet.yaml" --kubeconfig="$pki/node$i.conf" \
    --hostname-override="node$i" --node-ip="10.168.0.$((1 + i))"
  start "$i" proxy kube-proxy --config="$dir/proxy.yaml"
  echo '{"Network": "100.96.0.0/16", "EnableIPv4": true, "Backend": {"Type": "vxlan"}}' \
    > "$dir/network.json"
  (
    until ask "/api/v1/nodes/node$i" | grep -q '"podCIDR"'; do sleep 0.05; done
    NODE_NAME=node$i start "$i" flanneld flanneld -kube-subnet-mgr \
      -kubeconfig-file "$pki/flannel.conf" -net-config-path "$dir/network.json" -iface eth0
    until env=$(on "$i" cat /run/flannel/subnet.env 2> /dev/null) && [ -n "$env" ]; do
      sleep 0.02
    done
    eval "$env"
    range=${FLANNEL_SUBNET%.1/*}.0/${FLANNEL_SUBNET#*/}
    echo "{\"cniVersion\": \"0.4.0\", \"name\": \"pods\", \"plugins\": [{\"type\": \"bridge\",
      \"bridge\": \"cni0\", \"mtu\": $FLANNEL_MTU, \"isGateway\": true, \"hairpinMode\": true,
      \"isDefaultGateway\": true, \"ipam\": {\"type\": \"host-local\",
      \"ranges\": [[{\"subnet\": \"$range\"}]]}}]}" | on "$i" tee /run/cni/10-pods.conflist
  ) > /dev/null &
done
is_ready() { ask "/api/v1/nodes/node$1" | tr -d ' \n' | grep -q '"type":"Ready","status":"True"'; }
for i in $(seq 1 "$nodes"); do until is_ready "$i"; do sleep 0.05; done; done
since ready
until ask /api/v1/namespaces/default/serviceaccounts/default | grep -q ServiceAccount; do
  sleep 0.05
done
echo '{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "first"}, "spec": {"nodeName":
  "node1", "containers": [{"name": "web", "image": "nginx", "imagePullPolicy": "IfNotPresent"}]}}' |
  nsenter --net=/run/netns/n1 \
  kubectl --kubeconfig "$pki/admin.conf" apply -f - > /dev/null
until ask /api/v1/namespaces/default/pods/first | grep -q '"phase": "Running"'; do sleep 0.05; done
since pod
