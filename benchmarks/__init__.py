"""What a tower costs, measured beside torch's optimizers, the published package and parameter-free peers.

`python -m benchmarks` measures everything, `python -m benchmarks.targets` the figures that the project promises.
"""
