"""`python -m vdit_cli`: the command line where the `evdit` script is not installed."""

import sys

from vdit_cli.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
