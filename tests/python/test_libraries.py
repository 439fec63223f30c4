"""Libraries that open a dataset by its URL give what they give for local files.

Each is a program of its own: what it has read by the URL has to be equal to what it reads from the
files that the dataset was made of.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.programs import Programs

pytest_plugins = ["tests.support.program_fixtures"]

NAME = "of-libraries"

MAKE = """
    import sys, h5py, numpy, pandas, tifffile, xarray, zarr
    from pathlib import Path
    here = Path(sys.argv[1])
    chance = numpy.random.default_rng(1)
    table = pandas.DataFrame({"a": numpy.arange(50_000), "b": chance.random(50_000)})
    table["c"] = table.a.astype(str)
    table.to_csv(here / "table.csv", index=False)
    for part in range(3):
        table[part::3].to_parquet(here / f"part-{part}.parquet", row_group_size=5_000)
    cube = xarray.DataArray(chance.random((40, 60, 30)), dims=("t", "y", "x"), name="cube")
    cube.to_dataset().to_netcdf(here / "cube.nc", engine="h5netcdf")
    cube.to_dataset().chunk({"t": 10}).to_zarr(here / "cube.zarr", zarr_format=2)
    zarr.create_array(here / "array.zarr", data=chance.random((200, 300)), chunks=(50, 50))
    tifffile.imwrite(here / "stack.tif", chance.integers(0, 255, (5, 100, 120), "uint8"))
    with h5py.File(here / "one.h5", "w") as file:
        file["x"] = chance.random((300, 400))
"""
BEGIN = """
    import sys, fsspec, numpy
    url, here = sys.argv[1:3]
    path = url.removeprefix("dserver://")
"""
LIBRARIES = {
    "pandas": """
        import pandas
        assert pandas.read_csv(f"{url}/table.csv").equals(pandas.read_csv(f"{here}/table.csv"))
        one = pandas.read_parquet(f"{url}/part-1.parquet", columns=["b"])
        assert one.equals(pandas.read_parquet(f"{here}/part-1.parquet", columns=["b"]))
        assert len(pandas.read_parquet(f"{url}/part-0.parquet", filters=[("a", "<", 10)])) == 4
    """,
    "pyarrow": """
        import pyarrow.dataset as pads
        fs = fsspec.filesystem("dserver")
        files = fs.glob(f"{path}/part-*.parquet")
        found = pads.dataset(files, filesystem=fs, format="parquet")
        local = pads.dataset([f"{here}/part-{n}.parquet" for n in range(3)], format="parquet")
        where = pads.field("a") > 49_000
        assert found.to_table(filter=where).equals(local.to_table(filter=where))
        assert found.count_rows() == 50_000
    """,
    "polars": """
        import polars
        with fsspec.open(f"{url}/part-2.parquet") as file:
            assert polars.read_parquet(file).equals(polars.read_parquet(f"{here}/part-2.parquet"))
        with fsspec.open(f"{url}/table.csv") as file:
            assert polars.read_csv(file).equals(polars.read_csv(f"{here}/table.csv"))
    """,
    "duckdb": """
        import duckdb
        duckdb.register_filesystem(fsspec.filesystem("dserver"))
        query = "SELECT count(*), sum(a), max(c) FROM read_parquet('{}/part-*.parquet')"
        assert duckdb.sql(query.format(url)).fetchall() == duckdb.sql(query.format(here)).fetchall()
    """,
    "xarray": """
        import xarray
        with fsspec.open(f"{url}/cube.nc") as file:
            found = xarray.open_dataset(file, engine="h5netcdf")
            local = xarray.open_dataset(f"{here}/cube.nc", engine="h5netcdf")
            assert found.cube.isel(t=3).equals(local.cube.isel(t=3))
            assert found.identical(local)
        found = xarray.open_zarr(f"{url}/cube.zarr")
        assert found.cube.compute().equals(local.cube)
        assert numpy.allclose(found.cube.mean("t"), local.cube.mean("t"))
    """,
    "zarr": """
        import zarr
        local = zarr.open_array(f"{here}/array.zarr", mode="r")
        found = zarr.open_array(f"{url}/array.zarr", mode="r")
        assert (found[:] == local[:]).all()
        assert (found[77, 20:280] == local[77, 20:280]).all()
        mapped = fsspec.get_mapper(f"{url}/cube.zarr")
        assert mapped["cube/.zarray"] and "nope" not in mapped
    """,
    "tifffile": """
        import tifffile
        with fsspec.open(f"{url}/stack.tif") as file:
            found = tifffile.imread(file, key=3)
        assert (found == tifffile.imread(f"{here}/stack.tif", key=3)).all()
    """,
    "h5py": """
        import h5py
        with fsspec.open(f"{url}/one.h5") as file, h5py.File(file) as found:
            with h5py.File(f"{here}/one.h5") as local:
                assert (found["x"][17:19, ::7] == local["x"][17:19, ::7]).all()
    """,
    "dask": """
        import dask, dask.dataframe, pandas
        if __name__ == "__main__":
            parts = dask.dataframe.read_parquet(f"{url}/part-*.parquet")
            with dask.config.set(scheduler="processes", num_workers=2):
                found = parts.b.sum().compute()
            local = pandas.concat(pandas.read_parquet(f"{here}/part-{n}.parquet") for n in range(3))
            assert numpy.isclose(found, local.b.sum())
            table = dask.dataframe.read_csv(f"{url}/table.csv", blocksize=200_000)
            with dask.config.set(scheduler="threads"):
                assert table.a.sum().compute() == local.a.sum()
    """,
    "distributed": """
        import dask.dataframe, pandas
        from dask.distributed import Client, LocalCluster
        if __name__ == "__main__":
            options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
            with LocalCluster(**options, host="127.0.0.1") as cluster, Client(cluster):
                parts = dask.dataframe.read_parquet(f"{url}/part-*.parquet")
                assert parts.a.sum().compute() == 50_000 * 49_999 // 2
    """,
    "universal_pathlib": """
        from upath import UPath
        top = UPath(url)
        assert (top / "table.csv").read_bytes() == open(f"{here}/table.csv", "rb").read()
        assert sorted(each.name for each in top.glob("*.parquet")) == [
            f"part-{n}.parquet" for n in range(3)
        ]
        assert (top / "cube.zarr").is_dir() and not (top / "nope").exists()
        assert (top / "table.csv").stat().st_size > 1_000_000
    """,
}


def run(code: str, *arguments: object) -> None:
    """Run a program; fails with what it wrote."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def files(programs: Programs) -> Path:
    """The local files of a dataset in the formats of these libraries."""
    directory = programs.directory / "files"
    directory.mkdir()
    run(MAKE, directory)
    publish = """
        import sys, dserverfs
        from pathlib import Path
        here = Path(sys.argv[1])
        with dserverfs.create(sys.argv[2], sys.argv[3]) as new:
            for path in here.rglob("*"):
                if path.is_file():
                    new.put(str(path.relative_to(here)), path)
    """
    run(publish, directory, programs.base, NAME)
    return directory


@pytest.mark.parametrize("library", LIBRARIES)
def test_library_reads_the_same_by_url(programs: Programs, files: Path, library: str) -> None:
    code = textwrap.dedent(BEGIN) + textwrap.dedent(LIBRARIES[library])
    script = programs.directory / f"reads_{library}.py"
    script.write_text(code)  # dask's processes import it

    done = subprocess.run(
        [sys.executable, str(script), f"{programs.base}/{NAME}/data", str(files)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )

    assert done.returncode == 0, done.stderr
