"""What `ci/test`, `ci/build`, `ci/layers`, `ci/demo` and `ci/bench` share.

* `paths.py`, `process.py`: where things are, and how a command is run with a log.
* `markdown.py`, `layers.py`: the workspace against the tables of ARCHITECTURE.md.
* `tools.py`, `build.py`, `pythons.py`: pinned tools, the wheel, the interpreters it must work on.
* `outcome.py`, `schedule.py`, `report.py`: counts, steps and their order, the table at the end.
* `suite.py` and the modules named `steps_*`: what `ci/test` runs.
* `demo.py`, `bench/`: the demo and the benchmarks.
"""
