"""The datasets of `dserverfs demo`: real ones, made from files that packages ship.

The files are found without importing the packages, which would import pandas. A dataset
is built in a temporary directory beside its place and moved there when it is frozen, so
one that is there is whole.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import dtoolcore

from dserverfs.base.errors import UsageError

_CREATOR = "demo"

_PENGUINS_README = """\
---
description: >-
  Size measurements, clutch observations and blood isotope ratios of 344 adult Adelie,
  Chinstrap and Gentoo penguins on islands of the Palmer Archipelago, Antarctica
creators:
  - name: Kristen B. Gorman
  - name: Palmer Station Antarctica LTER
source: https://allisonhorst.github.io/palmerpenguins/
package: palmerpenguins {version}
licence: CC0-1.0
"""

_VEGA_README = """\
---
description: >-
  Small datasets that the examples of the Vega visualisation tools use: weather,
  employment, stocks, cars, irises and others
creators:
  - name: Jake VanderPlas
    role: author of the package
source: https://github.com/altair-viz/vega_datasets
package: vega_datasets {version}
licence: MIT (the package); BSD-3-Clause (vega-datasets, where it has the files from)
notes: metadata/dataset_info.json tells what each file is and where it comes from
"""

_VEGA_FOLDERS = {
    "airports": "places",
    "la-riots": "places",
    "seattle-temps": "weather",
    "seattle-weather": "weather",
    "sf-temps": "weather",
    "iowa-electricity": "economy",
    "ohlc": "economy",
    "stocks": "economy",
    "us-employment": "economy",
    "burtin": "history",
    "crimea": "history",
    "wheat": "history",
    "anscombe": "statistics",
    "barley": "statistics",
    "iris": "statistics",
    "cars": "traffic",
    "driving": "traffic",
}


@dataclass(frozen=True)
class _Recipe:
    """All that goes into a dataset; equal recipes make datasets with equal uuids."""

    name: str
    readme: str
    items: Mapping[str, Path]  # by relpath
    tags: tuple[str, ...]
    annotations: Mapping[str, object]
    overlays: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by name, relpath

    def uuid(self) -> str:
        """Return a uuid that changes when anything in the dataset does.

        So a demo started again on its old data finds them registered, and one with
        a newer package does not give other bytes to a frozen dataset.
        """
        contents = {
            relpath: hashlib.sha256(path.read_bytes()).hexdigest()
            for relpath, path in self.items.items()
        }
        everything = [
            *(self.name, self.readme, contents),
            *(self.tags, self.annotations, self.overlays),
        ]
        digest = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).digest()
        return str(uuid.UUID(bytes=digest[:16], version=4))


def build_datasets(directory: Path) -> list[Path]:
    """Return local dtool datasets below `directory`, made first where they are not there.

    Raises UsageError if the packages that ship their files are not installed, or if
    dtool cannot use `directory`.
    """
    if {"?", "#"} & set(str(directory.absolute())):  # dtool parses every path as a URI
        raise UsageError(f"{directory}: dtool cannot use a path with ? or #; choose another")
    directory.mkdir(parents=True, exist_ok=True)
    return [_build(recipe, directory) for recipe in (_penguins(), _vega())]


def _penguins() -> _Recipe:
    package = _package_directory("palmerpenguins")
    version = importlib.metadata.version("palmerpenguins")
    return _Recipe(
        name="palmer-penguins",
        readme=_PENGUINS_README.format(version=version),
        items={path.name: path for path in sorted((package / "data").glob("*.csv"))},
        tags=("demo", "ecology"),
        annotations={"licence": "CC0-1.0"},
    )


def _vega() -> _Recipe:
    package = _package_directory("vega_datasets")
    files = {_vega_relpath(path): path for path in sorted((package / "_data").iterdir())}
    metadata = {
        f"metadata/{name}": package / name for name in ("dataset_info.json", "local_datasets.json")
    }
    information = json.loads(metadata["metadata/dataset_info.json"].read_text("utf-8"))
    distribution = importlib.metadata.distribution("vega_datasets")
    return _Recipe(
        name="vega-datasets",
        readme=_VEGA_README.format(version=distribution.version),
        items={**files, **metadata, **_licence_of(distribution)},
        tags=("demo", "visualisation"),
        annotations={"package": {"name": "vega_datasets", "version": distribution.version}},
        overlays={
            "description": {
                relpath: information[path.stem]["description"]
                for relpath, path in files.items()
                if "description" in information.get(path.stem, {})
            }
        },
    )


def _vega_relpath(path: Path) -> str:
    folders = [path.suffix.removeprefix(".")]
    if path.stem in _VEGA_FOLDERS:
        folders.append(_VEGA_FOLDERS[path.stem])
    return "/".join([*folders, path.name])


def _licence_of(distribution: importlib.metadata.Distribution) -> dict[str, Path]:
    """Return the licence of a package as an item: it wants to go with every copy."""
    files = [file for file in distribution.files or [] if file.name == "LICENSE"]
    return {file.name: Path(str(distribution.locate_file(file))) for file in files[:1]}


def _package_directory(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"the demo's data come with {package}: pip install 'dserverfs[demo]'")
    return Path(spec.submodule_search_locations[0])


def _build(recipe: _Recipe, directory: Path) -> Path:
    uuid_wanted = recipe.uuid()
    path = directory / recipe.name
    if _uuid_of(path) == uuid_wanted:
        return path
    with tempfile.TemporaryDirectory(prefix=".building-", dir=directory) as building:
        _create(recipe, uuid_wanted, Path(building))
        if path.exists():  # of another version
            shutil.rmtree(path)
        (Path(building) / recipe.name).rename(path)
    return path


def _uuid_of(path: Path) -> str | None:
    try:
        admin_metadata = json.loads((path / ".dtool" / "dtool").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return str(admin_metadata.get("uuid"))


def _create(recipe: _Recipe, uuid_wanted: str, directory: Path) -> None:
    admin_metadata = dtoolcore.generate_admin_metadata(recipe.name, _CREATOR)
    admin_metadata["uuid"] = uuid_wanted
    proto_dataset = dtoolcore.generate_proto_dataset(admin_metadata, str(directory))
    proto_dataset.create()
    proto_dataset.put_readme(recipe.readme)
    for relpath, path in recipe.items.items():
        proto_dataset.put_item(str(path), relpath)
    for name, overlay in recipe.overlays.items():
        for relpath in recipe.items:  # dtool wants a value for every item
            proto_dataset.add_item_metadata(relpath, name, overlay.get(relpath))
    for tag in recipe.tags:
        proto_dataset.put_tag(tag)
    for name, annotation in recipe.annotations.items():
        proto_dataset.put_annotation(name, annotation)
    proto_dataset.freeze()
