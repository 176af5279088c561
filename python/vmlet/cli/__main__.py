"""``python -m vmlet.cli`` is the command ``vmlet``."""

import sys

from vmlet.cli import main

if __name__ == "__main__":
    sys.exit(main())
