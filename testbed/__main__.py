"""``testbed``, and ``python -m testbed``."""

import contextlib
import os
import sys


def main() -> None:
    """Run the command line; handle Ctrl-C even while its modules are being imported."""
    try:
        from testbed import streams

        streams.prepare()
        from testbed.cli import main as run

        run()
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # it may be closed
            os.write(2, b"testbed: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
