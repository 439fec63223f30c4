from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import dtoolcore
import pytest

from dserverfs.base.errors import UsageError
from dserverfs.base.limits import is_uuid, name_is_valid, relpath_is_usable
from dserverfs.cli import demo_datasets


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return demo_datasets.build_datasets(tmp_path_factory.mktemp("demo") / "with a space")


def test_demo_datasets_are_frozen_and_match_their_manifests(datasets: list[Path]) -> None:
    for path in datasets:
        dataset = dtoolcore.DataSet.from_uri(str(path))

        assert dataset.name == path.name
        assert name_is_valid(dataset.name)
        assert is_uuid(dataset.uuid)
        assert dataset.generate_manifest() == dataset._manifest
        assert all(
            relpath_is_usable(dataset.item_properties(identifier)["relpath"])
            for identifier in dataset.identifiers
        )


def test_demo_has_penguins(datasets: list[Path]) -> None:
    with (datasets[0] / "data" / "penguins.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    assert len(rows) == 344
    assert {row["species"] for row in rows} == {"Adelie", "Chinstrap", "Gentoo"}


def test_demo_has_nested_folders_of_csv_and_json(datasets: list[Path]) -> None:
    data = datasets[1] / "data"

    assert (data / "csv" / "weather" / "seattle-weather.csv").is_file()
    assert len(json.loads((data / "json" / "statistics" / "iris.json").read_text())) == 150
    assert (data / "LICENSE").is_file()


def test_demo_datasets_have_tag_annotation_overlay_and_readme(datasets: list[Path]) -> None:
    vega = dtoolcore.DataSet.from_uri(str(datasets[1]))

    assert "demo" in vega.list_tags()
    assert vega.get_annotation("package")["name"] == "vega_datasets"
    description = vega.get_overlay("description")
    assert set(description) == set(vega.identifiers)
    assert any(description.values())
    assert "licence:" in vega.get_readme_content()


def test_demo_builds_what_is_there_no_second_time(datasets: list[Path]) -> None:
    before = [(path / ".dtool" / "dtool").stat() for path in datasets]

    again = demo_datasets.build_datasets(datasets[0].parent)

    assert again == datasets
    assert [(path / ".dtool" / "dtool").stat() for path in again] == before


def test_demo_has_the_same_uuids_everywhere(datasets: list[Path], tmp_path: Path) -> None:
    elsewhere = demo_datasets.build_datasets(tmp_path)

    assert [uuid_of(path) for path in elsewhere] == [uuid_of(path) for path in datasets]


def uuid_of(path: Path) -> str:
    return str(json.loads((path / ".dtool" / "dtool").read_text())["uuid"])


def test_demo_builds_anew_what_is_half_or_of_another_version(tmp_path: Path) -> None:
    (tmp_path / "palmer-penguins" / "data").mkdir(parents=True)
    other = tmp_path / "vega-datasets" / ".dtool"
    other.mkdir(parents=True)
    (other / "dtool").write_text('{"uuid": "of an older version"}')

    built = demo_datasets.build_datasets(tmp_path)

    assert all(dtoolcore.DataSet.from_uri(str(path)).identifiers for path in built)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["palmer-penguins", "vega-datasets"]


def test_demo_without_its_packages_says_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(UsageError, match="pip install 'dserverfs\\[demo\\]'"):
        demo_datasets.build_datasets(tmp_path)


def test_demo_refuses_a_directory_that_dtool_cannot_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="choose another"):
        demo_datasets.build_datasets(tmp_path / "data#1")

    assert not list(tmp_path.iterdir())


def test_demo_does_not_import_pandas(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from dserverfs.cli import demo_datasets\n"
        "demo_datasets.build_datasets(pathlib.Path(sys.argv[1]))\n"
        "print('pandas' in sys.modules)"
    )

    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    )

    assert result.stdout == "False\n"
