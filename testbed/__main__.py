"""``testbed``, and ``python -m testbed``."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C while its own modules are still being loaded is no defect."""
    try:
        from testbed.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("testbed: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
