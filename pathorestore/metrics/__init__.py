"""How good a restoration is: functions in `fidelity` and `nuclei`, the same as torchmetrics in `accumulators`, apart for its imports."""
