"""From a config to a run directory, and from a run directory to its trained network.

In: a config and the data. Out: a run directory (`rundir`) with metrics, curves and checkpoints (`checkpoint`); and
`trained`, which loads what it holds. `step` is the mathematics, `program` its compiled form, `loop` the epochs.
"""
