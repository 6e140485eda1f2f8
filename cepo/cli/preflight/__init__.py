"""The checks before a run. `cepo check` reports them; `cepo train` runs them before it starts anything.

`checks` lists the checks, which are in `machine_checks`, `model_checks` and `data_checks`. A check is a generator of
findings that reads and fills a `Preflight`; it raises what blocks the run, with the fix in one line. `cepo check`
prints `report` and `examples`.
"""
