"""Upstream's own end-to-end tests of Kubernetes, run against a lab's cluster."""
