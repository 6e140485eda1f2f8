"""One training run: its run file, its folder and its processes.

`config` defines every key of a run file; `file` reads one, `folder` lays out the run folder, `deployment` and `local`
start the processes.
"""
