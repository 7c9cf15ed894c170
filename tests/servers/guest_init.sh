#!/bin/busybox sh
# Process 1 of the test guest (see guest.py): drivers, two ext4 disks, the guest agent, and a shell on the serial console.
#
#   /run/agent-off        while this file is there, no agent is started
#   /run/freeze-seconds   how long the freeze hook waits before the agent freezes anything
#   /run/freeze-hold      while this file is there, it waits longer
#   /run/freeze-hook.log  one word a line, freeze or thaw: what the hook was called for
/bin/busybox mkdir -p /bin /sbin /proc /sys /dev /run /data1 /data2 /etc/qemu /tmp /var/run
/bin/busybox --install -s /bin
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmpfs /run
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk virtio_console loop; do
    insmod /modules/$module.ko
done
for disk in vda:data1 vdb:data2; do
    until [ -b "/dev/${disk%:*}" ]; do usleep 20000; done
    mount -t ext4 -o noatime "/dev/${disk%:*}" "/${disk#*:}"
done

# The ports' names show up late; without this loop the agent sometimes never connects.
mkdir -p /dev/virtio-ports
for name in org.qemu.guest_agent.0 bm.acknowledged; do
    until grep -q $name /sys/class/virtio-ports/*/name 2>/dev/null; do usleep 20000; done
done
for port in /sys/class/virtio-ports/*; do
    ln -sf "/dev/${port##*/}" "/dev/virtio-ports/$(cat "$port/name")"
done
(
    while :; do
        [ -e /run/agent-off ] || qemu-ga -r -m virtio-serial -p /dev/virtio-ports/org.qemu.guest_agent.0 -t /run -F/etc/fsfreeze-hook
        usleep 100000
    done
) </dev/null >/run/agent.log 2>&1 &

# A shell on a terminal would edit and echo what it reads, so this one evaluates line by line; clocal keeps the line open when
# a peer leaves. (No `cat /dev/ttyS0 | sh`: what cat copies from a terminal may stay in the pipe until more comes.)
while :; do
    stty -F /dev/ttyS0 raw -echo clocal
    sh -c 'while read -r line; do eval "$line"; done' </dev/ttyS0 >/dev/ttyS0 2>&1
done
