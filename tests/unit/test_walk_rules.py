"""Rules as `nft` and `iptables-save` print them."""

from __future__ import annotations

from testbed.observe.trace import TraceEvent
from testbed.walk.rules import SEPARATOR, parse

NFT = """table ip nat { # handle 3
\tchain DOCKER { # handle 1
\t\tiifname "docker0" counter return # handle 5
\t\tiifname != "docker0" tcp dport 8080 counter dnat to 172.17.0.2:80 # handle 6
\t}

\tchain PREROUTING { # handle 3
\t\ttype nat hook prerouting priority dstnat; policy accept;
\t\tfib daddr type local counter jump DOCKER # handle 4
\t}
}
table inet own { # handle 9
\tset names { # handle 1
\t\ttype ipv4_addr
\t\telements = { 10.0.0.1 }
\t}

\tchain last { # handle 2
\t\ttype filter hook postrouting priority srcnat - 10; policy drop;
\t\tip daddr { 10.0.0.1, 10.0.0.2,
\t\t\t     10.0.0.3 } accept # handle 7
\t\tip saddr 10.0.0.0/8 masquerade comment "# handle 3" # handle 8
\t}
}
table inet testbed_walk_1 { # handle 11
\tchain prerouting { # handle 1
\t\ttype filter hook prerouting priority -400; policy accept;
\t\t@nh,224,32 0x1 meta nftrace set 1 # handle 2
\t}
}
"""
SAVE = """*nat
:PREROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
COMMIT
"""
LEGACY = """*filter
:FORWARD DROP [0:0]
:USER - [0:0]
-A FORWARD -j USER
-A FORWARD -i docker0 -j ACCEPT
-A USER -j LOG
COMMIT
"""


def printed(nft: str = "", save: str = "", legacy: str = "") -> str:
    return SEPARATOR.join([nft, save, "", legacy, "", "nft\n"])


def traced(table: str, chain: str, handle: int = 0, verdict: str = "", number: int = 0,
           kind: str = "rule", family: str = "ip") -> TraceEvent:  # fmt: skip
    return TraceEvent(table, chain, kind, handle=handle, verdict=verdict, number=number,  # type: ignore[arg-type]
                      family=family)  # fmt: skip


def test_a_rule_of_iptables_has_the_words_of_iptables() -> None:
    rule = parse(printed(NFT, SAVE)).rule(traced("nat", "DOCKER", 6, "accept"))
    assert (rule.position, rule.verdict) == (2, "DNAT")
    assert rule.text == SAVE.splitlines()[5]


def test_without_iptables_save_the_words_are_those_of_nft() -> None:
    found = parse(printed(NFT))
    rule = found.rule(traced("nat", "DOCKER", 6, "accept"))
    assert rule.text == 'iifname != "docker0" tcp dport 8080 dnat to 172.17.0.2:80'
    assert (rule.position, rule.verdict) == (2, "dnat")
    jump = found.rule(traced("nat", "PREROUTING", 4, "jump DOCKER"))
    assert (jump.text, jump.verdict) == ("fib daddr type local jump DOCKER", "jump DOCKER")


def test_saved_rules_of_another_number_are_not_taken() -> None:
    """Rules that changed between the two listings keep the text of nft."""
    fewer = SAVE.replace("-A DOCKER -i docker0 -j RETURN\n", "")
    rule = parse(printed(NFT, fewer)).rule(traced("nat", "DOCKER", 5, "return"))
    assert rule.text == 'iifname "docker0" return'


def test_a_rule_over_several_lines_is_one() -> None:
    chain = parse(printed(NFT)).nft["inet", "own", "last"]
    assert (chain.hook, chain.priority, chain.policy) == ("postrouting", "srcnat - 10", "drop")
    assert chain.handles == [7, 8]
    assert chain.texts[0] == "ip daddr { 10.0.0.1, 10.0.0.2, 10.0.0.3 } accept"
    assert chain.texts[1] == 'ip saddr 10.0.0.0/8 masquerade comment "# handle 3"'


def test_the_comment_of_a_chain_is_no_rule() -> None:
    text = NFT.replace("\t\ttype filter hook post", '\t\tcomment "mine"\n\t\ttype filter hook post')
    text = text.replace('\t\tiifname "docker0"', '\t\tcomment "its"\n\t\tiifname "docker0"')
    assert parse(printed(text)) == parse(printed(NFT))


def test_tables_of_one_name_in_several_families_are_told_apart() -> None:
    """Handles count from 1 in each table."""
    tables = [
        f"table {family} filter {{ # handle 1\n\tchain input {{ # handle 1\n"
        f"\t\ttype filter hook input priority filter; policy accept;\n"
        f"\t\tmeta mark {mark} accept # handle 2\n\t}}\n}}\n"
        for family, mark in (("ip", 4), ("ip6", 6), ("inet", 1))
    ]
    found = parse(printed("".join(tables)))
    assert [
        found.rule(traced("filter", "input", 2, "accept", family=family)).text
        for family in ("inet", "ip", "ip6")
    ] == ["meta mark 1 accept", "meta mark 4 accept", "meta mark 6 accept"]
    alone = parse(printed(tables[1]))
    gone = alone.rule(traced("filter", "input", 2, "accept"))
    assert (gone.position, gone.text, gone.verdict) == (0, "", "accept")


def test_tables_of_walks_are_left_out() -> None:
    assert not [key for key in parse(printed(NFT)).nft if key[1].startswith("testbed")]


def test_a_policy_is_no_rule() -> None:
    found = parse(printed(NFT, SAVE, LEGACY))
    event = traced("own", "last", verdict="drop", kind="policy", family="inet")
    rule = found.rule(event)
    assert (rule.position, rule.text, rule.verdict) == (0, "policy drop", "policy drop")


def test_rules_of_iptables_legacy_are_found_by_their_number() -> None:
    found = parse(printed(legacy=LEGACY))
    assert [found.rule(traced("filter", *where)).verdict for where in (
        ("FORWARD", 0, "", 1), ("FORWARD", 0, "", 2), ("USER", 0, "", 1),
    )] == ["jump USER", "accept", "LOG"]  # fmt: skip
    last = found.rule(traced("filter", "FORWARD", number=3, kind="policy"))
    assert last.verdict == "policy drop"
    end = found.rule(traced("filter", "USER", number=2, kind="return"))
    assert (end.position, end.text) == (0, "")


def test_a_rule_of_iptables_legacy_without_matches_is_no_policy() -> None:
    """The kernel reports it as policy or return (get_chainname_rulenum, ip_tables.c)."""
    text = LEGACY.replace("-A FORWARD -j USER", "-A FORWARD -j DROP").replace("LOG", "DROP")
    found = parse(printed(legacy=text.replace("FORWARD DROP", "FORWARD ACCEPT")))
    rule = found.rule(traced("filter", "FORWARD", number=1, kind="policy"))
    assert (rule.position, rule.text, rule.verdict) == (1, "-A FORWARD -j DROP", "drop")
    rule = found.rule(traced("filter", "USER", number=1, kind="return"))
    assert (rule.position, rule.text, rule.verdict) == (1, "-A USER -j DROP", "drop")


def test_chains_of_iptables_legacy_that_were_changed_meanwhile_are_told() -> None:
    """Counters and the time of the listing are no change."""
    later = LEGACY.replace("[0:0]", "[7:84]").replace("-A USER", "-A USER -s 10.0.0.1/32")
    given = printed(legacy=later)
    assert parse(given, {"iptables-legacy-save": LEGACY}).unsure == {("ip", "filter", "USER")}
    same = printed(legacy=LEGACY.replace("[0:0]", "[7:84]"))
    assert parse(same, {"iptables-legacy-save": LEGACY}).unsure == frozenset()
    gone = parse(printed(legacy=""), {"iptables-legacy-save": LEGACY})
    assert ("ip", "filter", "USER") in gone.unsure
    assert parse(given, {"iptables-legacy-save": ""}).unsure == frozenset()  # not listed before


def test_a_policy_that_was_not_listed_is_not_guessed() -> None:
    rule = parse(printed()).rule(traced("filter", "FORWARD", number=3, kind="policy"))
    assert rule.verdict == "policy"


def test_a_target_is_not_looked_for_in_a_comment() -> None:
    comment = '-m comment --comment "not -j ACCEPT"'
    text = LEGACY.replace("-i docker0 -j ACCEPT", f"{comment} -j REJECT --reject-with tcp-reset")
    assert (
        parse(printed(legacy=text)).rule(traced("filter", "FORWARD", number=2)).verdict == "REJECT"
    )
