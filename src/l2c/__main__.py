"""`python -m l2c` is the program `l2c`; `accelerate launch -m l2c` starts several processes of it."""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Entry point of the program; Ctrl-C while it is still being loaded ends it like later."""
    try:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # names in scripts that the terminal has not
        from l2c.cli.main import main as run_program

        run_program()
    except KeyboardInterrupt:
        print("l2c: error: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
