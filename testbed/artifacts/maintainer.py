"""The harmless part of maintainer scripts: accounts, alternatives, folders.

No script of a package runs. Its calls of adduser(8), addgroup(8), useradd(8), groupadd(8),
usermod(8) and update-alternatives(1) are read, as far as they have no variables.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator

#: Options of adduser(8), addgroup(8), useradd(8) and groupadd(8) that are followed by a value.
VALUED = frozenset(
    (
        *("--home", "--shell", "--gecos", "--ingroup", "--uid", "--gid", "--firstuid", "--lastuid"),
        *("--firstgid", "--lastgid", "--conf", "--comment", "--home-dir", "--base-dir", "--groups"),
        *("--expiredate", "--inactive", "--key", "--password", "--add_extra_groups"),
        *("-h", "-d", "-s", "-c", "-g", "-u", "-G", "-aG", "-Ga", "-b", "-e", "-f", "-K", "-p"),
    )
)


def commands(script: str, *programs: str) -> Iterator[list[str]]:
    """Yield the words of each simple call of some programs in a shell script.

    Calls with variables or substitutions are left out.
    """
    text = script.replace("\\\n", " ")
    names = "|".join(map(re.escape, programs))
    for found in re.finditer(
        rf"(?:^|[\s;&|(])(?:/usr)?(?:/s?bin/)?({names})[ \t]+([^\n;&|<>()]*)", text
    ):
        words = found[2]
        if "$" in words or "`" in words:
            continue
        try:
            yield [found[1], *shlex.split(words, comments=True)]
        except ValueError:
            continue


def _sorted(words: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Return the operands of a call, and its options with their values."""
    operands: list[str] = []
    options: dict[str, str] = {}
    waiting = ""
    for word in words:
        if waiting:
            options[waiting], waiting = word, ""
        elif word.startswith("-"):
            name, is_set, value = word.partition("=")
            options[name] = value
            waiting = name if name in VALUED and not is_set else ""
        else:
            operands.append(word)
    return operands, options


def accounts(script: str) -> list[str]:
    r"""Return the users and groups that a script creates, as lines of sysusers.d(5).

    >>> accounts("adduser --system --ingroup frr --home /nonexistent frr\nusermod -aG vty frr")
    ['u frr -:frr - /nonexistent', 'm frr vty']
    """
    lines: list[str] = []
    for program, *words in commands(
        script, "adduser", "addgroup", "useradd", "groupadd", "usermod"
    ):
        operands, options = _sorted(words)
        home = options.get("--home") or options.get("-d") or options.get("--home-dir") or "-"
        if program == "usermod":
            names = ("-G", "--groups", "-aG", "-Ga")
            groups = next((options[name] for name in names if name in options), "")
            if operands and groups:
                lines += [f"m {operands[-1]} {group}" for group in groups.split(",")]
        elif program in ("addgroup", "groupadd"):
            lines += [f"g {name} -" for name in operands[-1:]]
        elif program == "adduser" and len(operands) == 2:  # add a user to a group
            lines.append(f"m {operands[0]} {operands[1]}")
        elif operands and (
            program == "useradd" or "--group" not in options or options["--group"] == ""
        ):
            group = options.get("--ingroup") or options.get("-g") or options.get("--gid")
            lines.append(f"u {operands[-1]} {f'-:{group}' if group else '-'} - {home}")
    return list(dict.fromkeys(lines))


def alternatives(script: str) -> list[tuple[str, str]]:
    """Return the links that a script registers by update-alternatives(1), with their targets.

    >>> alternatives("update-alternatives --install /bin/nc nc /bin/nc.openbsd 50")
    [('/bin/nc', '/bin/nc.openbsd')]
    """
    found: list[tuple[str, str]] = []
    for _, *words in commands(script, "update-alternatives"):
        for index, word in enumerate(words):
            if word in ("--install", "--slave") and len(words) > index + 3:
                found.append((words[index + 1], words[index + 3]))
    return found


def folders(text: str) -> list[tuple[str, int, str, str]]:
    """Return the folders that a file of tmpfiles.d(5) creates: path, mode, user, group.

    >>> folders("d /run/frr 0755 frr frr")
    [('/run/frr', 493, 'frr', 'frr')]
    """
    found = []
    for line in text.splitlines():
        kind, _, rest = line.strip().partition(" ")
        if kind.rstrip("!+-=~^$") not in ("d", "D") or "%" in rest:
            continue
        path, mode, user, group, *_ = [*rest.split(), "-", "-", "-", "-"]
        digits = mode.lstrip(":~")
        bits = int(digits, 8) if re.fullmatch("[0-7]{3,4}", digits) else 0o755
        owner, team = ("root" if one == "-" else one.lstrip(":") for one in (user, group))
        found.append((path, bits, owner, team))
    return found
