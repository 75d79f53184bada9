#!/bin/sh
# First process of the virtual machine (see run.py): puts the file systems in place, runs /job, reports its status, powers off.
# It runs on busybox; /job, /cwd and /dax come with the same archive.

/bin/busybox --install -s /bin
export PATH=/bin
fail() { echo "init: $1"; poweroff -f; }

# --- The machine's own file systems, and what drives the shared ones ---
mkdir -p /proc /sys /dev /host /ram /new
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in virtio_pci virtio_console 9pnet_virtio 9p overlay crc32c_generic ext4 nfit nd_pmem; do
    modprobe "$module" || echo "init: no module $module"
done

# --- The host's root, below an overlay in memory; the current directory shared for writing ---
shared=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o "$shared,ro,cache=loose" root /host || fail "no root"
mount -t tmpfs -o size=50% ram /ram
mkdir /ram/upper /ram/work
mount -t overlay -o lowerdir=/host,upperdir=/ram/upper,workdir=/ram/work overlay /new || fail "no overlay"
mkdir -p /new/mnt/pmem
for each in proc sys dev; do mount --move /$each /new/$each; done
mount -t tmpfs run /new/run
cp /job /new/run/job
cwd=/new$(cat /cwd)
mkdir -p "$cwd"
mount -t 9p -o "$shared,cache=mmap" here "$cwd" || fail "no current directory"

cd /new || fail "no new root"
mkdir -p dev/pts dev/shm
mount -t devpts devpts dev/pts
mount -t tmpfs shm dev/shm
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin
ln -s fd/1 dev/stdout
ln -s fd/2 dev/stderr
ip link set lo up
hostname numa-vm

# --- The NVDIMM.  A new one is "raw": give it a file system DAX namespace whose page map is in memory ---
bus=sys/bus/nd
if [ "$(cat $bus/devices/namespace0.0/mode)" = raw ]; then
    pfn=$bus/devices/pfn0.0
    echo namespace0.0 >$bus/drivers/nd_pmem/unbind
    cat proc/sys/kernel/random/uuid >$pfn/uuid
    echo ram >$pfn/mode
    echo $((2 << 20)) >$pfn/align
    echo namespace0.0 >$pfn/namespace
    echo pfn0.0 >$bus/drivers/nd_pmem/bind
    chroot . /sbin/mkfs.ext4 -q -b 4096 /dev/pmem0 || fail "no file system on the NVDIMM"
fi
chroot . /bin/mount -t ext4 -o dax="$(cat /dax)" /dev/pmem0 /mnt/pmem || fail "no file system on the NVDIMM"

# --- The command ---
port() { for name in sys/class/virtio-ports/*/name; do [ "$(cat "$name")" = "$1" ] && basename "$(dirname "$name")"; done; }
{
    chroot . /bin/bash /run/job <dev/null 2>&1
    echo $? >/status
} | cat >"dev/$(port out)"
umount mnt/pmem "$cwd"
sync
cat /status >"dev/$(port status)"
poweroff -f
