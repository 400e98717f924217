"""Send a request through a running lab and follow its packets."""

from __future__ import annotations

import contextlib
import json
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from testbed.errors import LabError, MachineError, UsageError
from testbed.limits import FILES_PER_NODE, at_once
from testbed.observe import taps
from testbed.observe.conntrack import connections
from testbed.observe.inventory import inventory as look
from testbed.observe.trace import legacy_event, logged, nft_events
from testbed.walk import explain, follow, rules, watch
from testbed.walk import send as sender
from testbed.walk.ends import owner_of, source_of, target_of
from testbed.walk.follow import Seen
from testbed.walk.frames import Signature, cited_by, dropped, sightings
from testbed.walk.model import Fact, Hop, Leg, Spot, Walk
from testbed.walk.observer import Post, Watch, posts, program, run
from testbed.walk.proxy import OPENING, Lookout, Proxy, connected, is_same, passed_on
from testbed.walk.request import Request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from testbed.labs.live import LiveLab
    from testbed.observe.inventory import Inventory

NUMBERS = (0x10000000, 0x70000000)  # a token must be a positive number of 32 bits
NOT_RUN = {126, 127}  # status of a command that was not found, or could not be executed
PORTS = (61000, 65500)  # above the kernel's own choice (net.ipv4.ip_local_port_range)
ATTEMPTS = 3  # a source port may be taken, by an earlier connection in TIME-WAIT, too


def walk(
    lab: LiveLab,
    source: str,
    target: str,
    request: Request | None = None,
    *,
    reply: bool = False,
    family: Literal[4, 6] = 4,
    seconds: float | None = None,
) -> Walk:
    """Send a request from one place of a lab to another, and return the way of its packets.

    ``source`` is NODE or NODE/CONTAINER; ``target`` is one of these, a Service, an address, or
    a name that the source resolves. With ``reply`` the way back of the answer is there too.
    Without a request it is an ICMP echo, or a TCP connection to the first port of a Service.
    ``seconds`` to wait for the answer are those of the request, or 1.

    Raises UsageError for an unknown place, LabError for one that does not run, MachineError if
    this machine or a node lacks something.
    """
    made = _Run(lab, source, target, request, reply=reply, family=family)
    if seconds is not None:
        made.request = replace(made.request, seconds=seconds)
    return made.walk()


class _Run:
    def __init__(
        self,
        lab: LiveLab,
        source: str,
        target: str,
        request: Request | None,
        *,
        reply: bool,
        family: Literal[4, 6],
        inventory: Inventory | None = None,
    ) -> None:
        self.lab = lab
        self.words = (source, target)
        self.reply = reply
        self.family = family
        self._is_onward = inventory is not None
        self.inventory: Inventory = inventory or look(lab)
        self.warnings = [*self.inventory.warnings]
        self.warnings += [
            f"{one.name} cannot be looked at: {one.error}"
            for one in self.inventory.machines
            if one.error
        ]
        with self._running(source):
            self.source = source_of(self.inventory, source)
        with self._running(target):
            self.target = target_of(self.inventory, target, self.source, family, self._resolve)
        self.request = request or (
            Request(self.target.protocol, self.target.port) if self.target.protocol else Request()
        )
        self._reached: tuple[str, str] | None = None
        self._asker = ""  # the address that the answer goes to, as it arrived
        self._proxy: Proxy | None = None  # at which the request came to its end
        self._connected: dict[int, str] = {}  # local ports of its new connections
        self.signature = self._signed()
        self.posts = {post.key: post for post in posts(lab, self.inventory)}
        if self.source.place not in self.posts:
            raise LabError(f"{source} does not answer", hint="`testbed status` shows what runs")

    @contextlib.contextmanager
    def _running(self, word: str) -> Iterator[None]:
        """Tell a container of the lab that does not run from a place that is unknown."""
        try:
            yield
        except UsageError as error:
            machine, _, name = word.rpartition("/")
            spec = self.lab.topology.containers.get(name)
            if spec is not None and machine in {"", spec.node}:
                word = f"{spec.node}/{name}"
            elif word not in self.lab.topology.nodes:
                raise
            raise LabError(
                f"{word} does not run", hint=f"`testbed start {word}` starts it"
            ) from error

    def _signed(self) -> Signature:
        number = NUMBERS[0] + secrets.randbelow(NUMBERS[1] - NUMBERS[0])
        port = PORTS[0] + secrets.randbelow(PORTS[1] - PORTS[0])
        return Signature(self.request.protocol, self.family, number, port)

    def _resolve(self, name: str) -> str:
        """Return the address of a name as the source resolves it; "" for an unknown one."""
        argv = ["getent", f"ahostsv{self.family}", name]
        if not self.source.space:
            return _first(self.lab.node(self.source.machine).run(argv, check=False).stdout)
        try:
            container = self.lab.container(self.source.space, node=self.source.machine)
        except LabError:  # a Pod, or a named namespace
            return ""
        result = container.run(argv, mounts=True, check=False)
        if result.status in NOT_RUN:  # its image has no getent
            result = container.run(argv, mounts=False, check=False)
        return _first(result.stdout)

    # -- the request ----------------------------------------------------------------

    def walk(self) -> Walk:
        legs, outcome = self._request()
        if self._proxy is not None:  # once more, with its own connection watched as well
            self.signature = self._signed()
            legs, outcome = self._request()
        sent = datetime.fromtimestamp(outcome["sent"] / 1e9, UTC)
        started = sent.isoformat(timespec="microseconds").replace("+00:00", "Z")
        return Walk(
            self.lab.name,
            *self.words,
            str(self.request),
            started,
            tuple(legs),
            self.inventory.names(),
            tuple(dict.fromkeys(self.warnings)),
        )

    def _request(self) -> tuple[list[Leg], Mapping[str, Any]]:
        """Send the request and follow its packets; only to a proxy that was not known before."""
        for _ in range(ATTEMPTS):
            marks = self.signature.marks()
            if self._proxy is not None:
                marks.append(Signature.opening(self._proxy.address, self._proxy.port))
            with Watch(self.lab, self.posts.values(), marks) as watched:
                outcome = self._send()
                watched.settle()
            if not outcome["taken"]:
                break
            self.signature = self._signed()
        self.warnings += watched.warnings
        self._watched = watched
        seen = {key: self._seen(watched, self.posts[key]) for key in watched.found}
        self._read_rules(seen, watched)
        return list(self._legs(seen, outcome)), outcome

    def _send(self) -> dict[str, Any]:
        assert self.source.place is not None
        post = self.posts[self.source.place]
        request = self.request
        given = {
            "protocol": request.protocol,
            "family": self.family,
            "address": self.target.address,
            "port": request.port,
            "sport": self.signature.sport,
            "number": self.signature.number,
            "size": request.size,
            "http": request.http,
            "host": request.host or self.target.host,
            "seconds": request.seconds * max(node.slowness for node in self.lab.nodes.values()),
        }
        if post.path:
            lookout = self._lookout()
            try:
                found: dict[str, Any] = taps.inside(post.path, lambda: sender.send(given, lookout))
            except FileNotFoundError as error:
                words = f"{post.name} has gone, and with it what it sent"
                raise LabError(words, hint="`testbed status` shows what runs") from error
            finally:
                if lookout is not None:
                    lookout.close()
                    self._connected = lookout.found
            return found
        argv = [*taps.INTERPRETER, program("send"), json.dumps(given)]
        result = run(self.lab, post, argv)
        if not result.strip():
            raise MachineError(f"{post.name} cannot send a request", hint="it needs python3")
        answered: dict[str, Any] = json.loads(result)
        return answered

    @property
    def _clock(self) -> str:
        """The clock of the request's time, as :class:`Seen` has it."""
        assert self.source.place is not None
        return "" if self.posts[self.source.place].path else self.source.machine

    def _lookout(self) -> Lookout | None:
        if self._proxy is None:
            return None
        post = self.posts[self._proxy.place]
        return Lookout(self._proxy, lambda argv: run(self.lab, post, argv), self.request.seconds)

    # -- what was seen --------------------------------------------------------------

    def _seen(self, watched: Watch, post: Post) -> Seen:
        data = watched.found[post.key]
        clock = "" if post.path else post.machine.name
        names = {int(index): name for index, name in data["names"].items()}
        events = [event for one in data["events"] for event in nft_events(one, names)]
        for one in data["logs"]:
            record = legacy_event(logged(one[16:], names)) if len(one) > 20 else None
            if record is not None:
                events.append(record)
        self.warnings += [f"{post.name}: {text}" for text in data["warnings"]]
        fabric = None
        if post.machine.fabric:
            fabric = {}
            for network in self.inventory.networks:
                fabric[network.bridge] = network.name
            for link in post.space.links:
                if link.master in fabric:
                    fabric[link.name] = fabric[link.master]
        return Seen(
            *post.key,
            clock,
            {link.name: link for link in post.space.links},
            events=tuple(events),
            connections=tuple(one for data_ in data["tracks"] for one in connections(data_)),
            bridged=data["bridged"],
            fabric=fabric,
            no_drops=watched.no_drops.get(clock, ""),
            **self._recognised(watched, post, self.signature),
        )

    @staticmethod
    def _recognised(watched: Watch, post: Post, signature: Signature) -> dict[str, Any]:
        """Return the sightings and drops of a request in a namespace."""
        clock = "" if post.path else post.machine.name
        return {
            "sightings": tuple(sightings(post.key, watched.found[post.key]["frames"], signature)),
            "drops": [one for one in dropped(watched.drops.get(clock, ()), signature)
                      if one.space in {0, post.space.inode}],
        }  # fmt: skip

    def _read_rules(self, seen: dict[tuple[str, str], Seen], watched: Watch) -> None:
        """Read the rules of the namespaces in which a packet met some."""
        wanted = [key for key, one in seen.items()
                  if any(not e.table.startswith(watch.TABLE) for e in one.events)]  # fmt: skip

        def read(key: tuple[str, str]) -> rules.Ruleset:
            printed = run(self.lab, self.posts[key], ["sh", "-c", rules.LIST])
            return rules.parse(printed, watched.found[key]["legacy"])

        for key, found in zip(wanted, self._each(read, wanted), strict=True):
            seen[key] = replace(seen[key], rules=found)
            if not found.has_nft and not found.legacy:
                self.warnings.append(f"{self.posts[key].name} has no nft: rules have no text")

    def _each(self, work: Any, items: Sequence[Any]) -> list[Any]:
        if not items:
            return []
        with ThreadPoolExecutor(at_once(min(8, len(items)), files=FILES_PER_NODE)) as pool:
            return list(pool.map(work, items))

    # -- legs -----------------------------------------------------------------------

    def _legs(
        self, seen: Mapping[tuple[str, str], Seen], outcome: Mapping[str, Any]
    ) -> Iterator[Leg]:
        known = self._proxy
        there = self._leg("there", seen, outcome)
        yield there
        if self._proxy is not known:
            return
        answers = {one.direction for place in seen.values() for one in place.sightings} - {"there"}
        if self.reply and (there.arrived or answers):
            yield self._leg("back", seen, outcome)

    def _leg(
        self,
        direction: Literal["there", "back"],
        seen: Mapping[tuple[str, str], Seen],
        outcome: Mapping[str, Any],
    ) -> Leg:
        origin, target = self.source.place, self.target.place
        if direction == "back":  # from where the request came to its end
            origin, target = self._reached or target, origin
        found = follow.trail(direction, seen, origin, target)
        if direction == "back" and not found.steps:  # an ICMP error is an answer, too
            found = follow.trail("error", seen, None, target)
        sent = outcome["sent"]
        hops = follow.hops(found, seen, self.signature, sent, clock=self._clock, origin=origin)
        spots = {hop.spot: self._at(seen, hop.spot) for hop in hops}
        asked = explain.questions(hops, spots)
        answers = self._ask([one for some in asked for one in some])
        hops = explain.explained(hops, asked, answers)
        last = found.steps[-1] if found.steps else None
        answered = self._is_answered(seen, outcome)
        arrived = (
            last is not None
            and (direction == "there" or last.place == target)
            and explain.has_arrived(hops, seen[last.place].addresses, answered=answered)
        )
        unseen = not arrived and answered and not explain.is_dropped(hops)
        if arrived and last is not None:
            self._reached = last.place
            self._asker = explain.innermost(last.view).src
        if unseen:
            start = Spot(*(origin or ("", "")))
            hops.append(follow.unseen(hops, start, seen.get(last.place) if last else None))
            arrived = True
        if direction == "there":
            first = Fact(f"sends {self.request} to {self.target.address}", "seen", "send")
            spot = Spot(self.source.machine, self.source.space)
            hops.insert(0, Hop("process", spot, "", 0.0, facts=(first,)))
        if not arrived:
            back = self._asker or outcome["source"]
            wanted = self.target.address if direction == "there" else back
            place = seen.get(last.place if last is not None else origin or ("", ""))
            extra = explain.loss_questions(hops, place, wanted) if place is not None else []
            errors = self._errors(seen, outcome) if direction == "there" else []
            drops = explain.drops(hops, seen, place, direction) if place is not None else []
            links = place.links if place is not None else None
            end = explain.lost(hops, self._ask(extra), errors, links, drops)
            if not hops:
                end = replace(end, spot=Spot(*(origin or ("", ""))))
            hops.append(end)
        elif unseen:
            hops.append(self._beyond(direction, hops, outcome))
        else:
            hops.append(self._last(direction, hops, outcome))
            if direction == "there" and last is not None:
                hops[-1], more = self._listener(hops, seen, seen[last.place], outcome)
                hops += more.hops if more else ()
                arrived = more.arrived if more else True
                if more is not None and self.request.protocol == "udp" and found.copies:
                    found = replace(found, copies=found.copies - 1)  # what the proxy has passed on
        return Leg(direction, tuple(hops), arrived, found.copies)

    def _listener(
        self,
        hops: Sequence[Hop],
        places: Mapping[tuple[str, str], Seen],
        seen: Seen,
        outcome: Mapping[str, Any],
    ) -> tuple[Hop, Leg | None]:
        """Return the last hop with who listens, and the way on if that is a proxy.

        A proxy opens a connection of its own, which is followed if it is known by its socket. To
        look for that, the request has to be sent once more: the hop has no way on then. Otherwise
        a further request like it is followed, sent from the proxy's namespace.
        """
        facts = [*hops[-1].facts]
        if outcome["outcome"] != "answered":
            facts += [one for one in explain.drops(hops, {}, seen, "there") if one.origin == "seen"]
        argv = explain.listeners(hops)
        if not argv:
            return replace(hops[-1], facts=tuple(facts)), None
        printed = run(self.lab, self.posts[seen.place], argv)
        facts += explain.listening(argv, printed)
        if outcome["outcome"] == "refused" and not printed.strip() and len(facts) == 1:
            facts.append(Fact("nothing listens there", "inferred"))
        target = explain.onward(printed, seen.addresses, self.inventory.names())
        if target is None or self._is_onward:
            return replace(hops[-1], facts=tuple(facts)), None
        proxy = Proxy(seen.place, *target)
        request = Request(self.request.protocol, proxy.port, seconds=self.request.seconds)
        word = f"{seen.machine}/{seen.space}" if seen.space else seen.machine
        on = _Run(self.lab, word, proxy.address, request, reply=False, family=proxy.family,
                  inventory=self.inventory)  # fmt: skip
        answered = request.protocol == "tcp" and outcome["outcome"] == "answered"
        if answered and self._proxy is None and not self._clock:
            self._proxy = proxy
            return replace(hops[-1], facts=tuple(facts)), None
        if (found := self._passed_on(proxy, places, outcome, on)) is not None:
            fact, leg = found
        else:
            text = f"it connects to {proxy.to} itself: a request like that follows"
            fact, leg = Fact(text, "inferred"), on.walk().legs[0]
        self.warnings += on.warnings
        facts.append(fact)
        more = leg.hops[1:]
        if found is None or on._clock != self._clock:
            more = tuple(replace(hop, seconds=None) for hop in more)
        return replace(hops[-1], facts=tuple(facts)), replace(leg, hops=more)

    def _passed_on(
        self,
        proxy: Proxy,
        places: Mapping[tuple[str, str], Seen],
        outcome: Mapping[str, Any],
        on: _Run,
    ) -> tuple[Fact, Leg] | None:
        """Return the way of what a proxy has passed on of this request, and how it is known.

        ``on`` is a request of the proxy. None if nothing tells that it is of this one.
        """
        watched, here = self._watched, places[proxy.place]
        datagram = passed_on(proxy, here.sightings)
        if datagram is not None:
            sport = datagram.packet.sport
            on.signature = replace(self.signature, family=proxy.family, sport=sport)
            text = f"it sends the same data to {proxy.to}, from port {sport}"
            fact = Fact(text, "seen", "packet socket")
        else:
            frames = watched.found[proxy.place]["frames"]
            signature = connected(proxy, frames, here.addresses, self._connected)
            if signature is None:
                return None
            on.signature = signature
            text = f"it connects to {proxy.to} itself, from port {signature.sport}"
            fact = Fact(text, "asked", proxy.source)
            opening = self._connected[signature.sport] == OPENING
            outcome = {**outcome, "outcome": "silent" if opening else "answered"}
        given = {}
        for key, one in places.items():
            own = self._recognised(watched, self.posts[key], on.signature)
            if datagram is not None:
                own["sightings"] = [one for one in own["sightings"] if is_same(one, datagram)]
            given[key] = replace(one, **own)
        return fact, next(on._legs(given, outcome))

    @staticmethod
    def _at(seen: Mapping[tuple[str, str], Seen], spot: Spot) -> Seen:
        if spot.fabric:
            return next(one for one in seen.values() if one.fabric is not None)
        return seen[spot.machine, spot.space]

    def _is_answered(
        self, seen: Mapping[tuple[str, str], Seen], outcome: Mapping[str, Any]
    ) -> bool:
        """Tell whether the target answered, as :func:`explain.is_answered` has it."""
        errors = {one.packet.src for place in seen.values() for one in place.sightings
                  if one.direction == "error"}  # fmt: skip
        return explain.is_answered(outcome["outcome"], errors, self.target.address)

    def _last(self, direction: str, hops: Sequence[Hop], outcome: Mapping[str, Any]) -> Hop:
        spot = replace(hops[-1].spot, interface="")
        if direction == "back":
            text = outcome["text"] or {"answered": "has its answer", "silent": "waited no longer",
                                       "refused": "connection refused"}.get(
                outcome["outcome"], outcome["error"])  # fmt: skip
            return Hop("process", spot, "", outcome["seconds"], facts=(Fact(text, "seen", "send"),))
        words = {
            "answered": outcome["text"] or "answers",
            "refused": "refuses the connection",
            "silent": "got it; no answer came back",
            "error": outcome["error"],
        }[outcome["outcome"]]
        return Hop("process", spot, "", facts=(Fact(words, "seen", "send"),))

    def _beyond(self, direction: str, hops: Sequence[Hop], outcome: Mapping[str, Any]) -> Hop:
        """Return the last hop of a way whose end is not seen, at the owner of the destination.

        An address without a known owner stands for itself.
        """
        place = self.source.place
        if direction == "there":
            view = next((one.view for one in reversed(hops) if one.view), None)
            address = explain.innermost(view).dst if view else self.target.address
            place = self.target.place if address == self.target.address else None
            owner = owner_of(self.inventory, address)
            place = place or (owner.place if owner else None) or (address, "")
        assert place is not None
        last = replace(self._last(direction, hops, outcome), spot=Spot(*place))
        text = "the answer came back, so the packet arrived here" if direction == "there" else ""
        return replace(last, facts=(*last.facts, Fact(text, "inferred"))) if text else last

    def _errors(
        self, seen: Mapping[tuple[str, str], Seen], outcome: Mapping[str, Any]
    ) -> list[Fact]:
        """Return what ICMP errors and the socket say of a lost packet."""
        found = []
        for one in (s for place in seen.values() for s in place.sightings):
            if one.direction == "error":
                text = _icmp_text(one.packet)
                found.append(Fact(text, "seen", "packet socket"))
        if outcome["outcome"] == "error":
            found.append(Fact(f"the sender's socket: {outcome['error']}", "seen", "send"))
        return list(dict.fromkeys(found))

    def _ask(self, asked: Sequence[explain.Question]) -> dict[explain.Question, str]:
        by_place: dict[tuple[str, str], list[explain.Question]] = {}
        for one in dict.fromkeys(asked):
            by_place.setdefault(one.place, []).append(one)
        found: dict[explain.Question, str] = {}

        def ask(place: tuple[str, str]) -> dict[explain.Question, str]:
            some = by_place[place]
            printed = run(self.lab, self.posts[place], explain.command(some))
            return explain.answers(some, printed)

        for answers in self._each(ask, list(by_place)):
            found |= answers
        return found


def _first(text: str) -> str:
    """Return the first word of a text; "" if it has none."""
    return next(iter(text.split()), "")


def _icmp_text(packet: Any) -> str:
    names = {
        (1, 3, 0): "network unreachable", (1, 3, 1): "host unreachable",
        (1, 3, 2): "protocol unreachable", (1, 3, 3): "port unreachable",
        (1, 3, 4): "fragmentation needed", (1, 3, 9): "network prohibited",
        (1, 3, 10): "host prohibited", (1, 3, 13): "communication prohibited",
        (1, 11, 0): "time to live exceeded", (58, 1, 0): "no route",
        (58, 1, 1): "prohibited", (58, 1, 3): "address unreachable",
        (58, 1, 4): "port unreachable", (58, 2, 0): "packet too big",
        (58, 3, 0): "hop limit exceeded",
    }  # fmt: skip
    kind = (packet.protocol, packet.icmp.type, packet.icmp.code)
    text = names.get(kind, f"ICMP type {kind[1]} code {kind[2]}")
    if kind == (1, 3, 4):
        text += f", MTU {int.from_bytes(packet.payload[2:4], 'big')}"
    if kind == (58, 2, 0):
        text += f", MTU {int.from_bytes(packet.payload[:4], 'big')}"
    cited = cited_by(packet)
    about = f" (of {cited.src} > {cited.dst})" if cited else ""
    return f"{packet.src} sent {text}{about}"
