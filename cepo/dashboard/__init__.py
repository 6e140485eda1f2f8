"""The run dashboard: a page and a REST surface over a run folder, live or finished."""
