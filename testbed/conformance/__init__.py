"""The upstream end-to-end tests of Kubernetes, run against a lab's cluster."""
