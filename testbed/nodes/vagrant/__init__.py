"""Nodes as virtual machines of Vagrant and libvirt, on the fabric of namespace nodes."""
