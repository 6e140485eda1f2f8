"""The checks of `cepo check`, which `cepo train` also makes before it starts anything.

Each check is a generator of findings; `checks` lists them, the cheapest first.
"""
