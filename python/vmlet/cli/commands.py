"""The name of argparse's collection of subcommands, which has no public one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    # The class takes no type when the program runs.
    Commands = argparse._SubParsersAction
