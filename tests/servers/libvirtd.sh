#!/usr/bin/env bash
# Process 1 of a private libvirtd's namespaces (see libvirtd.py): makes the mounts, then obeys words on its standard input.
#
#   start   begin libvirtd                 kill   end libvirtd at once, domains keep running
#   stop    end libvirtd politely          (end of input)   leave, and the kernel takes every process in here along
#
# The second argument, if any, is a folder to remove when the input ends: then the owner died and cannot do it.
#
# libvirtd must not be process 1 itself: it does not reap a QEMU that is not its child, and destroying a domain then takes
# 15 s and fails. bash reaps whatever is handed to it, also while it waits in `read`.
set -eu
folder=$1

mount --bind "$folder/run" /run
mount --bind "$folder/lib" /var/lib/libvirt
mount --bind "$folder/etc" /etc/libvirt
mount --bind "$folder/cache" /var/cache/libvirt
mount --bind "$folder/log" /var/log/libvirt
mkdir -p /run/libvirt

daemon=0
while read -r word; do
    case $word in
        start)
            libvirtd -f /etc/libvirt/libvirtd.conf -p /run/libvirtd.pid </dev/null >>"$folder/log/libvirtd.log" 2>&1 &
            daemon=$!
            ;;
        kill) kill -KILL "$daemon"; wait "$daemon" || true ;;
        stop) kill -TERM "$daemon"; wait "$daemon" || true ;;
        *) exit 2 ;;
    esac
    echo "$word"
done
[ -z "${2:-}" ] || rm -rf -- "$2"
