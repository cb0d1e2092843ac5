"""The callbacks of training, by one name each: a configuration says pathorestore.training.callbacks.ExponentialAverage."""

from pathorestore.training.average import ExponentialAverage as ExponentialAverage
from pathorestore.training.budget import WallClockBudget as WallClockBudget
from pathorestore.training.guard import StopOnNonFinite as StopOnNonFinite
from pathorestore.training.pictures import PictureGrid as PictureGrid
from pathorestore.training.record import TrainingRecord as TrainingRecord
