"""``python -m vmlet.cli`` is the command ``vmlet``."""

import sys

from vmlet.cli import main

sys.exit(main())
