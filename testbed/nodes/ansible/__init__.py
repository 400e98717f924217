"""Ansible: an inventory of a running lab, and a connection plugin for nodes without SSH."""
