"""The settings of an ended trial and what it came to, among its TensorBoard events.

TensorBoard's HParams compares trials by them. Knows no journal.

    tensorboard --logdir RUN/trials
"""

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from tuning.space.space import Point


def write(trial: Path, point: Point, metric: str, value: float) -> None:
    """Add to the run directory `trial` its settings, and the best value of `metric`.

    A setting that the recipe leaves open, null, is left out.
    """
    settings = {key: setting for key, setting in point.items() if setting is not None}
    with SummaryWriter(str(trial / "tensorboard")) as events:
        events.add_hparams(settings, {f"best/{metric}": value}, run_name=".")
