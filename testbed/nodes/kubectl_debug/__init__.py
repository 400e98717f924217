"""Machines that exist already, as the nodes of a Kubernetes cluster: ``kubectl debug node``."""
