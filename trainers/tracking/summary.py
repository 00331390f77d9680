"""The outcome of a run in words."""

from typing import Any

from trainers.tracking.progress import duration


def lines(result: dict[str, Any], seconds: float, run: str) -> list[str]:
    """A few lines for a person: what was held out, how good, where the bundle is."""
    test = result["test"]
    early = ", stopped early" if result["stopped_early"] else ""
    said = [f"{result['steps']} steps in {duration(seconds)}{early}; best at {result['best_step']}"]
    if test:
        single = {name: value for name, value in test.items() if isinstance(value, float)}
        width = max(len(name) for name in single)
        counted = "rows" if "rows" in test else "tokens"
        what = "rows" if counted == "rows" else "hidden tokens of texts"
        said.append(f"held out, {test[counted]} {what} never trained on:")
        said += [f"  {name:<{width}}  {value:.4f}" for name, value in single.items()]
        said += _per_class(test.get("per_class", {}))
    said.append(f"bundle: {run}/bundle")
    return said


def _per_class(per_class: dict[str, dict[str, float]]) -> list[str]:
    if not per_class:
        return []
    width = max(len(label) for label in per_class)
    head = f"  {'':<{width}}  precision  recall      f1   rows"
    return [
        head,
        *(
            f"  {label:<{width}}  {row['precision']:9.4f}  {row['recall']:6.4f}  "
            f"{row['f1']:6.4f}  {row['support']:5d}"
            for label, row in per_class.items()
        ),
    ]
