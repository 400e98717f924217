"""The rules of netfilter in a namespace, as `nft` and `iptables-save` print them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from testbed.walk.model import Rule
from testbed.walk.watch import SAVE, TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from testbed.observe.trace import TraceEvent

SEPARATOR = "\036"
#: Prints all rules. Listing a table of iptables-legacy creates it: others are left out.
LIST = r"""
nft -a -s list ruleset 2>/dev/null; printf '\036'
iptables-nft-save 2>/dev/null; printf '\036'
ip6tables-nft-save 2>/dev/null; printf '\036'
! grep -qs . /proc/self/net/ip_tables_names || iptables-legacy-save 2>/dev/null; printf '\036'
! grep -qs . /proc/self/net/ip6_tables_names || ip6tables-legacy-save 2>/dev/null; printf '\036'
command -v nft >/dev/null && echo nft
"""
BLOCK = re.compile(r"\t?(table|chain) (?:(\w+) )?(\S+) \{ # handle \d+")
HOOK = re.compile(
    r"\t\ttype (\w+) hook (\w+) (?:devices? .* )?priority ([^;]+);(?: policy (\w+);)?"
)
COMMENT = re.compile(r'\t\tcomment ".*"')  # of the chain; that of a rule ends with its handle
HANDLE = re.compile(r" ?# handle (\d+)$")
#: Hooks of the built-in chains of iptables.
BUILT_IN = {"PREROUTING": "prerouting", "INPUT": "input", "FORWARD": "forward",
            "OUTPUT": "output", "POSTROUTING": "postrouting"}  # fmt: skip
VERDICTS = {"ACCEPT": "accept", "DROP": "drop", "RETURN": "return", "QUEUE": "queue"}


@dataclass(slots=True)
class Chain:
    """A chain with its rules; ``hook`` is "" for one that others jump to."""

    family: str
    table: str
    name: str
    hook: str = ""
    kind: str = ""  #: "filter", "nat", "route"
    priority: str = ""
    policy: str = ""
    handles: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Ruleset:
    """All chains of a namespace, those of nftables and those of iptables-legacy.

    ``unsure`` are those of iptables-legacy that were changed while the request was on its way. Its
    trace has a position, which may have been that of another rule.
    """

    nft: dict[tuple[str, str, str], Chain] = field(default_factory=dict)
    legacy: dict[tuple[str, str, str], Chain] = field(default_factory=dict)
    has_nft: bool = False  #: the program nft is there
    unsure: frozenset[tuple[str, str, str]] = frozenset()

    def chain(self, event: TraceEvent) -> Chain | None:
        """Return the chain of an event."""
        kept = self.legacy if event.number else self.nft
        return kept.get((event.family, event.table, event.chain))

    def rule(self, event: TraceEvent) -> Rule:
        """Return the rule, or the policy, that an event reports.

        Without a position it is the end of a chain, or a rule that is not in the list.
        """
        chain = self.chain(event)
        family = event.family or "ip"
        texts = chain.texts if chain is not None else []
        # iptables-legacy reports a rule without matches, such as "-A FORWARD -j DROP", as
        # policy or return (get_chainname_rulenum, net/ipv4/netfilter/ip_tables.c).
        is_listed = 0 < event.number <= len(texts)
        if event.kind == "policy" and not is_listed:
            word = event.verdict or (chain.policy if chain is not None else "")
            text = f"policy {word}".rstrip()
            return Rule(family, event.table, event.chain, 0, text, text)
        position, text = 0, ""
        if is_listed or (event.number and event.kind == "rule"):
            position = event.number
        elif chain is not None and event.handle in chain.handles:
            position = chain.handles.index(event.handle) + 1
        if 0 < position <= len(texts):
            text = texts[position - 1]
        verdict, word = event.verdict, _target(text)
        if word and verdict in {"", "accept", "continue"}:
            jumps = (family, event.table, word) in (self.legacy if event.number else self.nft)
            verdict = f"jump {word}" if jumps else VERDICTS.get(word, word)
        elif word == "REJECT" and verdict == "drop":
            verdict = "REJECT"
        elif verdict in {"accept", "drop"} and (word := _statement(text)):
            verdict = word
        return Rule(family, event.table, event.chain, position, text, verdict)


def _target(text: str) -> str:
    """Return the target of a rule of iptables; "" without one, and for a rule of nftables."""
    if not text.startswith("-A "):
        return ""
    return next((after for word, after in pairwise(shlex.split(text)) if word in {"-j", "-g"}), "")


def _statement(text: str) -> str:
    """Return the statement of a rule of nftables that is more than a verdict, such as "dnat"."""
    found = re.search(r"(?:^| )(dnat|snat|masquerade|redirect|reject)\b", text)
    return found[1] if found else ""


def parse(printed: str, before: Mapping[str, str] | None = None) -> Ruleset:
    """Read what :data:`LIST` prints.

    ``before`` are the rules of iptables-legacy before the request, by the program that lists them.
    """
    nft, save4, save6, legacy4, legacy6, programs, *_ = [*printed.split(SEPARATOR), *[""] * 6]
    found = Ruleset(has_nft="nft" in programs)
    for chain in nft_chains(nft):
        if not chain.table.startswith(TABLE):
            found.nft[chain.family, chain.table, chain.name] = chain
    for family, text in (("ip", save4), ("ip6", save6)):
        for chain in saved_chains(family, text):
            known = found.nft.get((family, chain.table, chain.name))
            # The same rules in the words of iptables, which it wrote.
            if known is not None and len(known.texts) == len(chain.texts):
                known.texts = chain.texts
    found.legacy = _legacy(legacy4, legacy6)
    if before:
        texts = [before.get(program, "") for program in SAVE.values()]
        listed = {family for family, text in zip(("ip", "ip6"), texts, strict=True) if text}
        earlier = _legacy(*texts)
        found.unsure = frozenset(
            key
            for key in earlier.keys() | found.legacy.keys()
            if key[0] in listed and earlier.get(key) != found.legacy.get(key)
        )
    return found


def _legacy(*texts: str) -> dict[tuple[str, str, str], Chain]:
    """Return the chains in what lists those of iptables-legacy, of IPv4 and of IPv6."""
    return {
        (family, chain.table, chain.name): chain
        for family, text in zip(("ip", "ip6"), texts, strict=True)
        for chain in saved_chains(family, text)
    }


def nft_chains(text: str) -> Iterator[Chain]:
    """Yield the chains in the output of `nft -a list ruleset`."""
    family = table = ""
    chain: Chain | None = None
    begun = ""
    for line in text.splitlines():
        if not begun and (block := BLOCK.fullmatch(line)):
            if block[1] == "table":
                family, table = block[2], block[3]
            else:
                chain = Chain(family, table, block[3])
            continue
        if chain is None:
            continue
        if not begun and line == "\t}":
            yield chain
            chain = None
        elif not begun and COMMENT.fullmatch(line):
            continue
        elif not begun and (hook := HOOK.match(line)):
            chain.kind, chain.hook, chain.priority = hook[1], hook[2], hook[3]
            chain.policy = hook[4] or "accept"
        elif line.strip():
            begun = f"{begun} {line.strip()}".strip()
            if handle := HANDLE.search(begun):  # a rule with a long set has several lines
                words = re.sub(r" {2,}", " ", begun[: handle.start()])
                chain.texts.append(words.replace(" counter ", " ").removeprefix("counter ").strip())
                chain.handles.append(int(handle[1]))
                begun = ""


def saved_chains(family: str, text: str) -> Iterator[Chain]:
    """Yield the chains in the output of `iptables-save`."""
    table = ""
    chains: dict[str, Chain] = {}
    for line in text.splitlines():
        if line.startswith("*"):
            table, chains = line[1:], {}
        elif line.startswith(":"):
            name, policy = line[1:].split()[:2]
            hook = BUILT_IN.get(name, "") if policy != "-" else ""
            word = VERDICTS.get(policy, "")
            chains[name] = Chain(family, table, name, hook, table, policy=word)
        elif line.startswith("-A "):
            name = line.split(maxsplit=2)[1]
            if name in chains:
                chains[name].texts.append(line)
        elif line == "COMMIT":
            yield from chains.values()
