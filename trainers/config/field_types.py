"""Types of the fields of a recipe."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Auto = Literal["auto"]


def _is_auto(value: object) -> str:
    return "auto" if isinstance(value, str) and value == "auto" else "number"


# Without the tags, a wrong number would be reported twice: as no number, and as not `auto`.
AutoCount = Annotated[
    Annotated[Auto, Tag("auto")] | Annotated[Count, Tag("number")], Discriminator(_is_auto)
]
AutoPositive = Annotated[
    Annotated[Auto, Tag("auto")] | Annotated[Positive, Tag("number")], Discriminator(_is_auto)
]


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, (bool, int, float)) else value


# What a cell holds, as tables give it: 1 and 1.0, true and false are their text.
CellText = Annotated[str, BeforeValidator(_as_text, json_schema_input_type=str | bool | float)]
