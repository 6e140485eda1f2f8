"""The teacher's stage: which context each response is scored under, and the engine that scores it.

`contexts` chooses r+ and r- (the paper's hints) as pure functions of a scored group; `engine` runs the model. The
teacher service and a trainer with a colocated teacher both use this room.
"""
