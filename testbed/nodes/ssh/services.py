"""Services of a machine whose pid 1 is systemd.

A service is an instance of one of two template units, which say all there is
to say to systemd; what is run stands in a shell script beside its digest.  A
transient unit would be forgotten as soon as it has ended well; here the end is
written down (``$EXIT_CODE`` and ``$EXIT_STATUS``, systemd.exec(5)), and a unit
that never changes needs no ``daemon-reload``, which costs an emulated machine
a second.
"""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Mapping
from typing import Literal

from testbed.nodes.base import Service, ServiceState
from testbed.nodes.netns.agent import ENVIRONMENT

FOLDER = "/run/testbed/services"
LOGS = "/var/log/testbed"
UNITS = "/run/systemd/system"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
STATES: Mapping[str, Literal["starting", "ready"]] = {
    "activating": "starting",
    "active": "ready",
    "reloading": "ready",
    "deactivating": "ready",  # until it is dead
}

#: KillMode=mixed: SIGTERM is for the daemon alone, which ends its children its own way.
UNIT = f"""\
[Unit]
Description=%i of the lab
StartLimitIntervalSec=0
[Service]
Type={{type}}
NotifyAccess=all
ExecStart=/bin/sh {FOLDER}/%i/run
ExecStopPost=/bin/sh -c 'echo "$$EXIT_CODE $$EXIT_STATUS" > {FOLDER}/%i/end'
StandardOutput=append:{LOGS}/%i.log
StandardError=inherit
KillMode=mixed
TimeoutStartSec=infinity
TimeoutStopSec=infinity
Delegate=yes
TasksMax=infinity
LimitNOFILE=1048576
"""

#: Arguments: name, unit, digest; input: what is run.  Says ready, dead or differs.
START = f"""\
set -e
folder={FOLDER}/$1
mkdir -p "$folder" {LOGS} {UNITS}
exec 9> "$folder/lock"
flock 9
case $(systemctl show --value -p ActiveState "$2") in
active | activating | reloading)
  IFS= read -r digest < "$folder/digest" || :
  [ "$digest" = "$3" ] || {{ echo differs; exit; }} ;;
deactivating) echo differs; exit ;;
*)
  for type in notify exec; do
    unit={UNITS}/testbed-$type@.service
    [ -e "$unit" ] || {{ sed "s/{{type}}/$type/" > "$unit.$$" << 'END'
{UNIT}END
      mv "$unit.$$" "$unit"; }}
  done
  cat > "$folder/run"
  echo "$2" > "$folder/unit"
  rm -f "$folder/end"
  printf '%s\\n' "$3" > "$folder/digest" ;;
esac
systemctl start --no-ask-password "$2" && echo ready || echo dead
"""

#: Argument: name.  Does nothing for a service that was never started.
STOP = f"""\
[ -e {FOLDER}/$1/unit ] && read -r unit < {FOLDER}/$1/unit || exit 0
systemctl stop "$unit"
"""

#: Argument: name.
KILL = f"""\
read -r unit < {FOLDER}/$1/unit && systemctl kill --kill-whom=main --signal=KILL "$unit"
"""

#: What systemd knows, a NUL, and NUL-ended: name, unit, digest and end of each service.
LIST = f"""\
cd {FOLDER} 2> /dev/null || exit 0
systemctl show -p Id -p ActiveState -p MainPID 'testbed-*@*.service'
printf '\\0'
for name in *; do
  [ -e "$name/digest" ] || continue
  unit= digest= end=
  read -r unit < "$name/unit"
  IFS= read -r digest < "$name/digest"
  [ -e "$name/end" ] && read -r end < "$name/end"
  printf '%s\\0' "$name" "$unit" "$digest" "$end"
done
:
"""


def unit_of(service: Service) -> str:
    """The unit that a service is an instance of."""
    if not NAME.fullmatch(service.name):
        raise ValueError(f"{service.name!r} cannot be the name of a service")
    return f"testbed-{'notify' if service.notify else 'exec'}@{service.name}.service"


def script(service: Service) -> bytes:
    """What systemd runs: a shell that becomes the service."""
    words = [*service.argv, *service.env, *service.env.values(), service.digest]
    if any("\0" in word for word in words):
        raise ValueError("an argument holds a NUL character, which no command can be given")
    env = {**ENVIRONMENT, **service.env}
    lines = [f"export {key}={shlex.quote(value)}" for key, value in env.items()]
    lines += ["cd /", f"exec {shlex.join(service.argv)}", ""]
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def end_status(end: str) -> int | None:
    """A process's end as systemd tells it, as an exit status or minus a signal's number.

    >>> end_status("exited 7"), end_status("killed TERM"), end_status("")
    (7, -15, None)
    """
    code, _, status = end.partition(" ")
    if code == "exited" and status.isdigit():
        return int(status)
    if code in ("killed", "dumped"):
        return -signal.Signals[f"SIG{status}"] if not status.isdigit() else -int(status)
    return None


def states(listed: str) -> dict[str, ServiceState]:
    """What ``LIST`` has printed."""
    systemd, _, ours = listed.partition("\0")
    units = {}
    for block in systemd.split("\n\n"):
        facts = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        units[facts.get("Id", "")] = facts
    fields = ours.split("\0")[:-1]
    found = {}
    for name, unit, digest, end in zip(*(fields[i::4] for i in range(4)), strict=True):
        facts = units.get(unit, {})
        state = STATES.get(facts.get("ActiveState", ""))
        found[name] = ServiceState(
            name=name,
            state=state or "dead",
            pid=int(facts.get("MainPID", "0")) if state else 0,
            status=None if state else end_status(end),
            digest=digest,
        )
    return found
