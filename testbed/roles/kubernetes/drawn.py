"""The Pods and Services of a cluster, for the graph of a lab."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from testbed.errors import LabError
from testbed.roles.kubernetes import client

if TYPE_CHECKING:
    from testbed.steps.context import Context

PODS = "/api/v1/pods?fieldSelector=spec.nodeName%3D"
SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
OF_SERVICE = "kubernetes.io/service-name"  # label of an EndpointSlice
OVER = frozenset({"Succeeded", "Failed"})


def pods(context: Context, node: str) -> list[dict[str, Any]]:
    """Return the Pods of a node that have not ended.

    Raises LabError if the API does not answer, or with something else.
    """
    found = []
    for one in _items(context, PODS + node):
        try:
            if one.get("status", {}).get("phase") in OVER:
                continue
            shared = one["spec"].get("hostNetwork") is True
            addresses = [str(each["ip"]) for each in one["status"].get("podIPs", ())]
            found.append(
                {
                    "name": _name(one),
                    "kind": "pod",
                    "mode": "host" if shared else "pod",
                    "published": [],
                    "addresses": [] if shared else addresses,
                }
            )
        except (LookupError, TypeError, AttributeError) as error:
            raise _no_sense(PODS, error) from error
    return sorted(found, key=lambda pod: str(pod["name"]))


def services(context: Context) -> list[dict[str, Any]]:
    """Return the Services with the addresses behind them.  Raises the errors of :func:`pods`."""
    backends: dict[str, list[str]] = {}
    try:
        for one in _items(context, SLICES):
            meta = one["metadata"]
            owner = f"{meta['namespace']}/{meta.get('labels', {}).get(OF_SERVICE, '')}"
            backends.setdefault(owner, []).extend(_backends(one))
        return [
            {
                "name": _name(one),
                "addresses": [ip for ip in one["spec"].get("clusterIPs", ()) if ip != "None"],
                "ports": [_port(port) for port in one["spec"].get("ports", ())],
                "backends": sorted({*backends.get(_name(one), ())}),
            }
            for one in _items(context, SERVICES)
        ]
    except (LookupError, TypeError, AttributeError) as error:
        raise _no_sense(SERVICES, error) from error


def _items(context: Context, path: str) -> list[Any]:
    items = client.api(context).ask("GET", path).get("items")
    return items if isinstance(items, list) else []


def _name(one: Mapping[str, Any]) -> str:
    return f"{one['metadata']['namespace']}/{one['metadata']['name']}"


def _port(port: Mapping[str, Any]) -> str:
    """Return a port as `kubectl get service` prints it."""
    public = f":{port['nodePort']}" if port.get("nodePort") else ""
    return f"{port['port']}{public}/{port.get('protocol', 'TCP').lower()}"


def _backends(one: Mapping[str, Any]) -> Iterator[str]:
    for endpoint in one.get("endpoints") or ():
        if (endpoint.get("conditions") or {}).get("ready") is False:
            continue
        for address in endpoint["addresses"]:
            host = f"[{address}]" if ":" in address else address
            for port in one.get("ports") or ():
                yield f"{host}:{port.get('port')}"


def _no_sense(path: str, error: Exception) -> LabError:
    return LabError(f"the answer of the API to GET {path} is invalid ({error!r})")
