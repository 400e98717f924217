"""The two ends of a walk: words of the command line as places and addresses of a lab."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from typing import TYPE_CHECKING, Literal

from testbed.errors import LabError, UsageError
from testbed.observe.places import find, holder, places
from testbed.spelling import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from testbed.observe.inventory import Inventory, Link, Service


@dataclass(frozen=True, slots=True)
class End:
    """An end of a walk. ``machine`` is "" for an address that no machine of the lab has.

    ``space`` is "" for the machine's own network namespace. ``port`` and ``protocol`` are those of
    a Service's first port, one of TCP if there is any; 0 and "" for any other end.
    """

    word: str
    machine: str = ""
    space: str = ""
    address: str = ""
    port: int = 0
    protocol: Literal["", "tcp", "udp"] = ""

    @property
    def place(self) -> tuple[str, str] | None:
        return (self.machine, self.space) if self.machine else None

    @property
    def host(self) -> str:
        """The Host of an HTTP request to it, as RFC 9110 section 7.2 has it: a name or address."""
        named = "/" not in self.word and ":" not in self.word
        return self.word if named else f"[{self.address}]" if ":" in self.address else self.address


def source_of(inventory: Inventory, word: str) -> End:
    """Return the place that sends. Raises UsageError for a word that is no place."""
    found = _place(inventory, word)
    if found is None and _is_address(word):
        found = owner_of(inventory, word)
    if found is None:
        raise _unknown(inventory, word)
    return found


def target_of(
    inventory: Inventory,
    word: str,
    source: End,
    family: int,
    resolve: Callable[[str], str],
) -> End:
    """Return the end that a request is sent to, with its address.

    ``resolve`` returns the address of a name, as the source resolves it, or "". Raises UsageError
    for an unknown word, LabError for a place without an address of the family.
    """
    if _is_address(word):
        if ip_address(word).version != family or _is_mapped(word):
            hint = "leave out -6" if family == 6 else "-6 chooses IPv6"
            raise UsageError(f"{word} is not an address of IPv{family}", where=word, hint=hint)
        owner = owner_of(inventory, word)
        return End(word, *(owner.place or ("", "") if owner else ("", "")), address=word)
    found = _place(inventory, word)
    if found is not None:
        return _addressed(inventory, found, source, family)
    for service in inventory.services:
        if word in {service.name, service.name.rpartition("/")[2]}:
            return _service(service, word, family)
    # A name with a slash is a mistyped place: a resolver without a server would be waited for.
    if "/" not in word and (address := resolve(word)):
        if _is_mapped(address):
            raise LabError(f"{word} has no address of IPv6", hint="leave out -6")
        owner = owner_of(inventory, address)
        return End(word, *(owner.place or ("", "") if owner else ("", "")), address=address)
    raise _unknown(inventory, word)


def _place(inventory: Inventory, word: str) -> End | None:
    found = find(inventory, word)
    return End(word, found[0].name, holder(*found).name) if found else None


def _is_address(word: str) -> bool:
    try:
        ip_address(word)
    except ValueError:
        return False
    return True


def _is_mapped(address: str) -> bool:
    """Tell whether an address of IPv6 stands for one of IPv4 (RFC 4291, section 2.5.5.2)."""
    return bool(getattr(ip_address(address), "ipv4_mapped", None))


def owner_of(inventory: Inventory, address: str) -> End | None:
    """Return the place that has an address; None if there is none, or several."""
    wanted = ip_address(address)
    found = [
        End(address, machine.name, space.name, address)
        for _, machine, space in places(inventory)
        if space.path
        for link in space.links
        if not link.loopback
        for one in link.addresses
        if ip_interface(one).ip == wanted
    ]
    return found[0] if len(found) == 1 else None


def _addressed(inventory: Inventory, end: End, source: End, family: int) -> End:
    """Return an end with its address.

    It is one on a network of the source if there is any, otherwise one on a network or link of the
    lab. Those on others, as of the network by which another tool manages its nodes, come last.
    """
    if end.place == source.place:
        loopback = "127.0.0.1" if family == 4 else "::1"
        mine = [one for one, *_ in _addresses(inventory, end, family)]
        return End(end.word, end.machine, end.space, mine[0] if mine else loopback)
    theirs = _addresses(inventory, end, family)
    ours = _addresses(inventory, source, family)
    near = [
        address
        for address, network, joins, wired in theirs
        for _, mine, mine_joins, mine_wired in ours
        if (joins and joins == mine_joins)
        or (mine == network and (end.machine == source.machine or (wired and mine_wired)))
    ]
    theirs.sort(key=lambda one: not one[3])
    for address in [*near, *(address for address, *_ in theirs)]:
        return End(end.word, end.machine, end.space, address)
    raise LabError(
        f"{end.word} has no address of IPv{family}",
        hint="give the address to send to" if family == 4 else "leave out -6",
    )


def _addresses(inventory: Inventory, end: End, family: int) -> list[tuple[str, str, str, bool]]:
    """Return the addresses of a place, each with its subnet and the network of the lab.

    The last value tells whether a network or a link of the lab joins the device to other machines.
    """
    machine = inventory.machine(end.machine)
    space = machine.space(end.space) if machine else None
    links = space.links if space else ()
    aside = {network.name for network in inventory.networks if network.aside}
    return [
        (
            str(ip_interface(one).ip),
            str(ip_interface(one).network),
            "" if link.joins in aside else link.joins,
            _wired(end, link, links) and link.joins not in aside,
        )
        for link in links
        if link.shown
        for one in link.global_addresses
        if ip_interface(one).version == family
    ]


def _wired(end: End, link: Link, links: Sequence[Link]) -> bool:
    """Tell whether a device, or a port of a bridge, leads to other machines."""
    ports = [one for one in links if one.master == link.name]
    return any(
        one.joins or (one.peer is not None and one.peer.machine != end.machine)
        for one in (link, *ports)
    )


def _service(service: Service, word: str, family: int) -> End:
    for address in service.addresses:
        if ip_address(address).version == family:
            kinds = sorted(one.partition("/")[::-2] for one in service.ports)  # "80:30080/tcp"
            for kind, numbers in kinds:
                port = int(numbers.partition(":")[0])
                if kind == "tcp":
                    return End(word, address=address, port=port, protocol="tcp")
                if kind == "udp":
                    return End(word, address=address, port=port, protocol="udp")
            return End(word, address=address)
    raise LabError(f"{word} has no address of IPv{family}", hint="walk to one of its Pods")


def _unknown(inventory: Inventory, word: str) -> UsageError:
    known = [name for name, _, _ in places(inventory)]
    known += [space.name for _, _, space in places(inventory) if space.name]
    known += [service.name for service in inventory.services]
    return UsageError("no such place in the lab", where=word, hint=nearest(word, known))
