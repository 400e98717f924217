"""Services of a machine whose pid 1 is systemd.

A service is a unit of the name that it has in its Debian package, so that
``systemctl`` knows it by that name; a file in ``/run/systemd/system`` precedes the
package's own (systemd.unit(5)).  Its command is in a shell script, next to its
digest.  systemd forgets a transient unit as soon as it has ended successfully; so a
service records its pid, its readiness and its end in files (``$EXIT_CODE`` and
``$EXIT_STATUS``, systemd.exec(5)).  Reading its state then needs no ``systemctl``,
and a unit that never changes needs no ``daemon-reload``, which saves half a second
and a second on an emulated machine.
"""

from __future__ import annotations

import re
import shlex
import signal
from typing import Literal, cast

from testbed.errors import LabError
from testbed.nodes.base import LOGS, Service, ServiceState
from testbed.nodes.request import ENVIRONMENT

FOLDER = "/run/testbed/services"
UNITS = "/run/systemd/system"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
#: KillMode=mixed: SIGTERM is for the daemon alone, which ends its children its own way.
UNIT = f"""\
[Unit]
Description={{name}} of the lab
StartLimitIntervalSec=0
[Service]
Type={{type}}
NotifyAccess=all
ExecStartPre=/bin/rm -f {FOLDER}/{{name}}/ready {FOLDER}/{{name}}/end
ExecStart=/bin/sh {FOLDER}/{{name}}/run
ExecStartPost=/bin/sh -c 'echo ready > {FOLDER}/{{name}}/ready'
ExecStopPost=/bin/sh -c 'echo "$$EXIT_CODE $$EXIT_STATUS" > {FOLDER}/{{name}}/end'
StandardOutput=append:{LOGS}/{{name}}.log
StandardError=inherit
KillMode=mixed
TimeoutStartSec=infinity
TimeoutStopSec=infinity
Delegate=yes
TasksMax=infinity
LimitNOFILE=1048576
"""

#: Arguments: name, unit, digest, type; input: the script to run.  Prints ready, dead or differs.
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
  unit={UNITS}/$2
  sed "s/{{type}}/$4/; s/{{name}}/$1/g" > "$folder/$2" << 'END'
{UNIT}END
  cmp -s "$folder/$2" "$unit" || {{
    mv "$folder/$2" "$unit"
    known=$(systemctl show -p FragmentPath -p NeedDaemonReload "$2")
    case $known in *"=$unit"*=no*) ;; *) systemctl daemon-reload;; esac; }}
  cat > "$folder/run"
  rm -f "$folder/pid"
  echo "$2" > "$folder/unit"
  printf '%s\\n' "$3" > "$folder/digest"
fi
systemctl start --no-ask-password "$2" && echo ready || echo dead
"""

#: Argument: name.  Prints ready or dead.  No other process starts it meanwhile.
START_AGAIN = f"""\
exec 9> "{FOLDER}/$1/lock"
flock 9
read -r unit < {FOLDER}/$1/unit
systemctl start --no-ask-password "$unit" && echo ready || echo dead
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
    """Return the name of a service's unit.

    Raises ValueError for a name that systemd would understand otherwise.
    """
    for name in (service.name, service.unit or service.name):
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a valid name of a service")
    return f"{service.unit or service.name}.service"


def script(service: Service) -> bytes:
    """Return the shell script that systemd runs, which executes the service."""
    words = [*service.argv, *service.env, *service.env.values(), service.digest]
    if any("\0" in word for word in words):
        raise ValueError("an argument contains a NUL character")
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
            f"cannot parse the states of the services: {error}",
            hint=f"check the files in {FOLDER} of the node",
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
