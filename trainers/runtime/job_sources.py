"""The local files that a recipe may name within a job of `ray job submit`.

Whoever submits a job hands in a recipe, and it runs as the user of the cluster, whose keys lie on
its machines. So a job reads what it brought along and what the cluster's file shares with it.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from cluster.ray_token import TOKEN_FILE
from cluster.spec import ClusterSpec
from trainers.config.recipe import Recipe
from trainers.data.files import DataError, is_pattern, local_path, match_pattern
from trainers.data.packages import PREFIX
from trainers.data.readers import table_format

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the process that a job starts


def check_job_sources(recipe: Recipe, cluster: ClusterSpec) -> None:
    """Raise DataError for a local source that a job may not read; outside of a job do nothing.

    It has to lie, links resolved, in the job's working directory, in the storage or the cache of
    `cluster`, or below a target of its file_mounts; so has what a link in a folder leads to, and
    what a pattern matches.
    """
    roots = _job_roots(cluster)
    if roots is None:
        return
    for setting, source in _named_sources(recipe):
        for path in _paths_of_source(source):
            if any(path.is_relative_to(root) for root in roots):
                continue
            raise DataError(
                f"{setting} = {source!r}: leads to {path}, which a job may not read; put it into "
                "the --working-dir of the job, metadata.storage, a target of file_mounts, or S3"
            )


def _named_sources(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield the settings that may name a file or a directory, with their values."""
    data, model = recipe.data, recipe.model
    yield "data.source", data.source
    for setting, held_out in (("data.validation", data.validation), ("data.test", data.test)):
        if isinstance(held_out, str) and held_out != "auto":
            yield setting, held_out
    yield "model.name", model.name
    if model.tokenizer is not None:
        yield "model.tokenizer", model.tokenizer
    if recipe.distillation is not None:
        yield "distillation.teacher", recipe.distillation.teacher


def _paths_of_source(source: str) -> Iterator[Path]:
    """Yield where a source lies on this machine, links resolved; nothing for one of elsewhere.

    First the name itself: what lies behind it is looked at only after that was allowed.
    """
    path = None if source.startswith(PREFIX) else local_path(source)
    if path is None:
        return
    # An absent file is judged by its name, so that nobody learns which files there are.
    is_named = source.startswith(("/", "~", ".", "file:")) or table_format(source) is not None
    has_marks = any(mark in source for mark in "*?[")
    if is_named or has_marks or os.path.lexists(path):
        yield path.resolve()
    if path.is_dir():
        for folder, folders, names in os.walk(path):
            inside = (Path(folder, name) for name in (*folders, *names))
            yield from (each.resolve() for each in inside if each.is_symlink())
    elif has_marks and is_pattern(source):
        yield from (Path(name).resolve() for name in match_pattern(source))


def _job_roots(cluster: ClusterSpec) -> tuple[Path, ...] | None:
    """Return the directories that a job may read; None where this process is not one's."""
    config = os.environ.get(JOB_VARIABLE)
    if config is None:
        return None
    roots = [cluster.cache_dir]
    # Without a working directory a job starts wherever Ray was started, as in somebody's home.
    if (json.loads(config).get("runtime_env") or {}).get("working_dir"):
        roots.append(Path.cwd())
    if "://" not in cluster.metadata.storage:
        roots.append(Path(cluster.metadata.storage))
    # The token is mounted on every node, and is no data.
    roots += [Path(target) for target in cluster.mounts if not target.endswith(TOKEN_FILE)]
    return tuple(root.expanduser().resolve() for root in roots)
