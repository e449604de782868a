"""python -m llamafast"""

import signal
import sys


def main() -> int:
    """The command line's exit code. While its modules load an interrupt ends the process, without a traceback."""
    is_caught = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_caught:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from llamafast import cli

    if is_caught:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
