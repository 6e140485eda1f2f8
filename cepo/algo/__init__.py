"""The algorithms: advantages, losses, schedules and the methods built from them.

Tensors in, tensors out; no I/O and no service. The files of this folder hold the rules that methods share;
`methods/` holds one file for each method, and `variants` the table of all methods by name.
"""
