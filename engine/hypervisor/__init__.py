"""libvirt and QEMU: the only folder that imports libvirt. Whoever needs a hypervisor imports from here when the work begins."""
