"""Where the scripts find and keep things."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TARGET = REPOSITORY / "target"
VENV = TARGET / "venv"
WHEELS = TARGET / "wheels"
LOGS = TARGET / "test-logs"
REQUIREMENTS = REPOSITORY / "ci" / "requirements.txt"
