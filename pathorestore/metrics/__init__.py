"""How good a restoration is: functions by what they look at, the same as torchmetrics in `accumulators`, apart for its imports."""
