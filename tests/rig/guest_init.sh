#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# PID 1 of the emulated host, started by virtme-ng's initramfs with the machine's root mounted read-only.
# It does what an init must do for one rig session and nothing else: udev alone would cost ten seconds under emulation.
#
# Kernel command line: rig.shared=DIR (the folder shared with the machine), rig.agent=FILE (guest_exec.py),
# rig.python=FILE (the interpreter that runs it) and, for a kernel that is not the machine's own, rig.modules=DIR.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb

say() { echo "rig: $*" >/dev/console; }
end() {
    say "$*, powering off"
    echo o >/proc/sysrq-trigger
    sleep 60 # the kernel is about to stop; PID 1 must not return before it has
}
trap 'end "init failed in line $LINENO"' ERR
set -E

p9=version=9p2000.L,trans=virtio,access=any,msize=512000
mount -n -t proc -o nosuid,noexec,nodev proc /proc
read -r -a words </proc/cmdline
for word in "${words[@]}"; do
    case $word in
        rig.shared=*) shared=${word#*=} ;;
        rig.python=*) python=${word#*=} ;;
        rig.agent=*) agent=${word#*=} ;;
        rig.modules=*) modules=${word#*=} ;;
    esac
done

# In either root, this one and the next, the kernel finds its modules where it looks for them.
show_modules() { [[ -z ${modules-} ]] || mount -n --bind "$modules" /lib/modules; }
show_modules

# The root: the machine's files below, memory above, so that everything may be written and nothing is kept.
# cache=loose keeps names and pages; what the machine changes after the guest first read it stays unseen.
mount -n -t tmpfs -o mode=0755 run /run
mkdir /run/machine /run/upper /run/work /run/root
mount -n -t 9p -o "ro,cache=loose,$p9" rig.root /run/machine
mount -n -t overlay -o lowerdir=/run/machine,upperdir=/run/upper,workdir=/run/work root /run/root
mkdir -p /run/root/run/before
cd /run/root
pivot_root . run/before
cd /
show_modules

mount -n -t proc -o nosuid,noexec,nodev proc /proc
mount -n -t sysfs -o nosuid,noexec,nodev sys /sys
mount -n -t devtmpfs -o mode=0755,nosuid dev /dev
mkdir -p -m 0755 /dev/pts /dev/shm
mount -n -t devpts -o gid=5,mode=620,noexec,nosuid devpts /dev/pts
mount -n -t tmpfs -o mode=1777,nosuid,nodev shm /dev/shm
mount -n -t tmpfs -o mode=0755 run /run
mount -n -t cgroup2 cgroup2 /sys/fs/cgroup
mount -n -t debugfs debugfs /sys/kernel/debug
ln -sfn /proc/self/fd /dev/fd
ln -sfn fd/0 /dev/stdin
ln -sfn fd/1 /dev/stdout
ln -sfn fd/2 /dev/stderr
echo numa-host >/proc/sys/kernel/hostname
echo '+cpuset +cpu +io +memory +hugetlb +pids' >/sys/fs/cgroup/cgroup.subtree_control

mkdir -p "$shared"
mount -n -t 9p -o "rw,$p9" rig.shared "$shared"

modprobe -a virtio_net kvm_amd
ip link set lo up
ip address add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2
say "up after $(cut -d' ' -f1 /proc/uptime) s"

trap - ERR
"$python" -I -S "$agent" "$shared/.agent.json"
end "exec agent ended with $?"
