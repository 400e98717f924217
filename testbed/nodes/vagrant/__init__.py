"""Nodes as virtual machines that Vagrant makes, with libvirt, on the fabric of namespace nodes."""
