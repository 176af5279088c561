"""`python3 ci/kit COMMAND ...`: what the scripts in `ci/` start."""

import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from kit.commands import main  # noqa: E402

sys.exit(main(sys.argv[1:]))
