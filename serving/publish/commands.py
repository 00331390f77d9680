"""The commands `export` and `push`."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from serving.fetch import local_copy
from trainers.models.card import read_card

FORMATS = ("transformers", "onnx", "openvino")


def add_commands(subparsers: Any) -> None:
    """Add the parsers of these commands."""
    exports = subparsers.add_parser(
        "export",
        help="write a bundle for Transformers, ONNX or OpenVINO",
        description="bertha export runs/mine tickets --format onnx",
    )
    exports.add_argument("bundle", metavar="BUNDLE|RUN", help="a directory, or s3://")
    exports.add_argument("directory", type=Path, metavar="DIR", help="new, or empty")
    exports.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="%(default)s")
    exports.add_argument("--dry-run", action="store_true", help="say what would be written")
    exports.set_defaults(command=run_export)

    pushes = subparsers.add_parser(
        "push",
        help="publish a bundle on the Hugging Face hub",
        description="bertha push runs/mine me/tickets --private",
    )
    pushes.add_argument("bundle", metavar="BUNDLE|RUN", help="a directory, or s3://")
    pushes.add_argument("name", metavar="USER/NAME", help="of the model there")
    pushes.add_argument("--private", action="store_true", help="a new model is seen by you alone")
    pushes.add_argument("--dry-run", action="store_true", help="list what would be published")
    pushes.set_defaults(command=run_push)


def run_export(options: argparse.Namespace) -> int:
    """Write a bundle for another library."""
    with local_copy(options.bundle) as bundle:
        if options.dry_run:
            task = read_card(bundle).task
            print(f"would write {options.directory}: a model for {task}, for {options.format}")
            return 0
        from serving.publish.export import export_bundle

        export_bundle(bundle, options.directory, options.format)
    print(f"{options.directory}: see {options.directory}/README.md for its use")
    return 0


def run_push(options: argparse.Namespace) -> int:
    """Publish a bundle on the hub."""
    from serving.publish.push import push_bundle, write_publication

    with local_copy(options.bundle) as bundle:
        if options.dry_run:
            with tempfile.TemporaryDirectory(prefix="bertha-") as place:
                folder = Path(place, "model")
                write_publication(bundle, folder, options.name)
                for path in sorted(folder.iterdir()):
                    print(f"{path.stat().st_size:>12,}  {path.name}")
            return 0
        print(push_bundle(bundle, options.name, options.private))
    return 0
