"""Services of a machine whose pid 1 is systemd.

A service is an instance of one of two template units, which hold all settings for
systemd; its command is in a shell script, next to its digest.  systemd forgets a
transient unit as soon as it has ended successfully; so a service records its pid,
its readiness and its end in files (``$EXIT_CODE`` and ``$EXIT_STATUS``,
systemd.exec(5)).  Reading its state then needs no ``systemctl``, and a unit that
never changes needs no ``daemon-reload``, which saves half a second and a second on
an emulated machine.
"""

from __future__ import annotations

import re
import shlex
import signal
from typing import Literal, cast

from testbed.errors import LabError
from testbed.nodes.base import Service, ServiceState
from testbed.nodes.netns.agent import ENVIRONMENT

FOLDER = "/run/testbed/services"
LOGS = "/var/log/testbed"
UNITS = "/run/systemd/system"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
#: KillMode=mixed: SIGTERM is for the daemon alone, which ends its children its own way.
UNIT = f"""\
[Unit]
Description=%i of the lab
StartLimitIntervalSec=0
[Service]
Type={{type}}
NotifyAccess=all
ExecStart=/bin/sh {FOLDER}/%i/run
ExecStartPost=/bin/sh -c 'echo ready > {FOLDER}/%i/ready'
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

#: Arguments: name, unit, digest; input: the script to run.  Prints ready, dead or differs.
START = f"""\
set -e
folder={FOLDER}/$1
mkdir -p "$folder" {LOGS} {UNITS}
exec 9> "$folder/lock"
flock 9
if [ -s "$folder/pid" ] && ! [ -s "$folder/end" ] && read -r pid < "$folder/pid" &&
   [ -d "/proc/$pid" ]; then
  IFS= read -r digest < "$folder/digest" || :
  [ "$digest" = "$3" ] || {{ echo differs; exit; }}
  [ -s "$folder/ready" ] && {{ echo ready; exit; }}
else
  for type in notify exec; do
    unit={UNITS}/testbed-$type@.service
    [ -e "$unit" ] || {{ sed "s/{{type}}/$type/" > "$unit.$$" << 'END'
{UNIT}END
      mv "$unit.$$" "$unit"; }}
  done
  cat > "$folder/run"
  rm -f "$folder/pid" "$folder/ready" "$folder/end"
  echo "$2" > "$folder/unit"
  printf '%s\\n' "$3" > "$folder/digest"
fi
systemctl start --no-ask-password "$2" && echo ready || echo dead
"""

#: Argument: name.  Does nothing for a service that was never started, or has ended.
STOP = f"""\
[ -e {FOLDER}/$1/unit ] && ! [ -s {FOLDER}/$1/end ] || exit 0
read -r unit < {FOLDER}/$1/unit
systemctl stop "$unit"
"""

#: Argument: name.
KILL = f"""\
read -r unit < {FOLDER}/$1/unit && systemctl kill --kill-whom=main --signal=KILL "$unit"
"""

#: NUL-ended: name, state, pid, end and digest of each service.
LIST = f"""\
cd {FOLDER} 2> /dev/null || exit 0
for name in *; do
  [ -e "$name/digest" ] || continue
  state=dead pid=0 end= digest=
  IFS= read -r digest < "$name/digest"
  [ -s "$name/pid" ] && read -r pid < "$name/pid"
  if [ -s "$name/end" ]; then read -r end < "$name/end"
  elif [ -d "/proc/$pid" ] && [ -s "$name/ready" ]; then state=ready
  elif [ -d "/proc/$pid" ]; then state=starting; fi
  printf '%s\\0' "$name" "$state" "$pid" "$end" "$digest"
done
:
"""


def unit_of(service: Service) -> str:
    """Return the name of a service's instance of its template unit."""
    if not NAME.fullmatch(service.name):
        raise ValueError(f"{service.name!r} cannot be the name of a service")
    return f"testbed-{'notify' if service.notify else 'exec'}@{service.name}.service"


def script(service: Service) -> bytes:
    """Return the shell script that systemd runs, which executes the service."""
    words = [*service.argv, *service.env, *service.env.values(), service.digest]
    if any("\0" in word for word in words):
        raise ValueError("an argument holds a NUL character, which no command can be given")
    env = {**ENVIRONMENT, **service.env}
    lines = [f"export {key}={shlex.quote(value)}" for key, value in env.items()]
    lines += [
        f"echo $$ > {FOLDER}/{service.name}/pid",
        "cd /",
        f"exec {shlex.join(service.argv)}",
        "",
    ]
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def end_status(end: str) -> int | None:
    """Convert a process's end as systemd reports it to an exit status, or -N for signal N.

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
    """Parse the output of ``LIST``.  Raises LabError if it is malformed."""
    try:
        return _states(listed)
    except (ValueError, KeyError) as error:
        raise LabError(
            f"the services' states cannot be understood: {error}",
            hint=f"something has written to {FOLDER} of the node",
        ) from error


def _states(listed: str) -> dict[str, ServiceState]:
    fields = listed.split("\0")[:-1]
    found = {}
    for name, state, pid, end, digest in zip(*(fields[i::5] for i in range(5)), strict=True):
        dead = state == "dead"
        found[name] = ServiceState(
            name=name,
            state=cast('Literal["starting", "ready", "dead"]', state),
            pid=0 if dead else int(pid),
            status=end_status(end) if dead else None,
            digest=digest,
        )
    return found
