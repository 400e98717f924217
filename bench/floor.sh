#!/bin/bash
# The floor that `testbed up` is compared with: the same daemons, started as side by side as a
# shell can, until a container on one node has fetched a page from one on the last.
#   floor.sh NODES BACKEND BIN WORK
# BIN has dockerd, containerd, runc, etcd, etcdctl, flanneld on PATH order; WORK is a new folder
# with image.tar, a root file system with busybox.  Prints the seconds.  Run it under
#   unshare --pid --fork --kill-child --mount --net
# so that everything ends with its first process.
set -e
nodes=$1 backend=$2 work=$4
PATH=$3:/usr/sbin:/usr/bin:/sbin:/bin
export PATH ETCDCTL_API=3
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir -p /run/netns
case $backend in vxlan) mtu=1450 ;; udp) mtu=1472 ;; *) mtu=1500 ;; esac
seconds() { date +%s.%N; }
began=$(seconds)
ip netns add fabric
ip -n fabric link add br0 type bridge
ip -n fabric link set br0 up
node() {
  i=$1 dir=$work/n$i
  mkdir -p "$dir/data"
  ip netns add "n$i"
  ip link add eth0 netns "n$i" type veth peer name "p$i" netns fabric
  ip -n fabric link set "p$i" master br0 up
  ip -n "n$i" link set lo up
  ip -n "n$i" link set eth0 up
  ip -n "n$i" addr add "10.168.0.$((1 + i))/16" dev eth0
  nsenter --net="/run/netns/n$i" sysctl -qw net.ipv4.ip_forward=1
  nsenter --net="/run/netns/n$i" unshare -m bash -c "mount -t tmpfs tmpfs /run; mkdir /run/docker
    exec dockerd --data-root $dir/data --exec-root /run/docker/exec -p /run/docker.pid \
      -H unix://$dir/docker.sock --bip 100.96.$i.1/24 --mtu $mtu --ip-masq=false \
      --storage-driver overlay2 --cgroup-parent /testbed-floor" > "$dir/dockerd.log" 2>&1 &
  api() { curl -s --unix-socket "$dir/docker.sock" "$@"; }
  until [ -S "$dir/docker.sock" ] && api http://d/_ping > /dev/null; do sleep 0.01; done
  api -X POST -H 'Content-Type: application/x-tar' --data-binary "@$work/image.tar" \
    "http://d/images/create?fromSrc=-&repo=floor&tag=1" > /dev/null
  id=$(api -X POST -H 'Content-Type: application/json' -d '{"Image":"floor:1","Cmd":["sh","-c",
    "mkdir -p /w; echo hi > /w/index.html; httpd -f -p 80 -h /w"]}' \
    "http://d/containers/create?name=web$i")
  id=${id#*\"Id\":\"}
  id=${id%%\"*}
  api -X POST "http://d/containers/$id/start"
  nsenter --net="/run/netns/n$i" iptables -P FORWARD ACCEPT
  pid=$(api "http://d/containers/$id/json")
  pid=${pid#*\"Pid\":}
  echo "${pid%%,*}" > "$dir/ready"
}
for i in $(seq 1 "$nodes"); do node "$i" & done
has_address() { ip -n "n$1" addr show dev eth0 2> /dev/null | grep -q 10.168; }
until has_address 1; do sleep 0.01; done
nsenter --net=/run/netns/n1 etcd --data-dir "$work/etcd" \
  --listen-client-urls http://10.168.0.2:2379 --advertise-client-urls http://10.168.0.2:2379 \
  --listen-peer-urls http://127.0.0.1:2380 --heartbeat-interval 10 --election-timeout 50 \
  --unsafe-no-fsync > "$work/etcd.log" 2>&1 &
ctl() {
  nsenter --net=/run/netns/n1 etcdctl --endpoints http://10.168.0.2:2379 \
    --command-timeout=1s --dial-timeout=1s "$@" > /dev/null 2>&1
}
until ctl put /coreos.com/network/config \
  "{\"Network\":\"100.96.0.0/16\",\"Backend\":{\"Type\":\"$backend\"}}"; do sleep 0.02; done
for i in $(seq 1 "$nodes"); do
  (
    until has_address "$i"; do sleep 0.01; done
    ctl put "/coreos.com/network/subnets/100.96.$i.0-24" \
      "{\"PublicIP\":\"10.168.0.$((1 + i))\",\"PublicIPv6\":null}"
    exec nsenter --net="/run/netns/n$i" flanneld -etcd-endpoints http://10.168.0.2:2379 \
      -iface eth0 -subnet-file "$work/n$i/subnet.env" > "$work/n$i/flanneld.log" 2>&1
  ) &
done
for i in $(seq 1 "$nodes"); do until [ -f "$work/n$i/subnet.env" ]; do sleep 0.01; done; done
for i in $(seq 1 "$nodes"); do until [ -s "$work/n$i/ready" ]; do sleep 0.01; done; done
until nsenter -t "$(cat "$work/n1/ready")" -n curl -sm 1 "http://100.96.$nodes.2/" > /dev/null; do
  sleep 0.02
done
echo "$(seconds) $began" | awk '{ printf "%.3f\n", $1 - $2 }'
