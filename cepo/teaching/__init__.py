"""The teacher's stage: chooses the context of each response and measures the response under it.

The teacher service and a trainer with a colocated teacher use it. A scored group passes through these modules:

    handler    the function of the stage: a scored group in, an evidenced group out
    contexts   chooses r+ and r-, the paper's hints, as pure functions of the group
    engine     loads policies and runs the model
    batcher    lets groups that wait for the same policy share a forward pass
    measures   reads log-probs, likeliest tokens or pooled states from the pass
    published  the answers that the reference code shows, for `as_published`
"""
