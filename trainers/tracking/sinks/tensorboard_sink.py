"""TensorBoard: event files in the run's directory."""

from collections.abc import Mapping, Sequence

from torch.utils.tensorboard import SummaryWriter

from trainers.tracking.sinks.sink import Point, TrackedRun


class TensorboardSink:
    """Writes RUN/tensorboard. A resumed run hides the steps that it computes again."""

    def __init__(self, run: TrackedRun) -> None:
        directory = str(run.directory.path / "tensorboard")
        self._writer = SummaryWriter(directory, purge_step=run.resumed_at + 1)

    def log_points(self, points: Sequence[Point]) -> None:
        """Write scalars."""
        for point in points:
            for name, value in point.scalars.items():
                self._writer.add_scalar(name, value, point.step, walltime=point.time)

    def log_result(self, figures: Mapping[str, float], bundle: str) -> None:
        """Write the figures as one table of text, since they belong to no step."""
        rows = [f"| {name} | {value:.6g} |" for name, value in figures.items()]
        table = "\n".join(["| figure | value |", "|---|---|", *rows, f"| bundle | {bundle} |"])
        self._writer.add_text("result", table)

    def flush(self) -> None:
        """Write what is kept in memory."""
        self._writer.flush()

    def close(self, succeeded: bool) -> None:
        """Flush and close the file."""
        self._writer.close()
