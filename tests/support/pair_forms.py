"""Every form that pairs of images may stand in, written from the same rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class PairRow:
    """One pair, the first image preferred; ``ending`` is that of the first image's file, where it is one."""

    prompt: str
    first: bytes
    second: bytes
    ending: str = ".png"


Write = Callable[[Path, Sequence[PairRow]], Path]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NAMED = {"image_0_file_name": "image_1_file_name", "chosen_file_name": "rejected_file_name"}


def save(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def save_images(folder: Path, rows: Sequence[PairRow]) -> list[tuple[str, str]]:
    """The images as files: their names, relative to the folder."""
    names = [(f"images/{n}-a{row.ending}", f"images/{n}-b.png") for n, row in enumerate(rows)]
    for row, (first, second) in zip(rows, names, strict=True):
        save(folder / first, row.first)
        save(folder / second, row.second)
    return names


def save_parquet(path: Path, cells: list[dict[str, Any]], image: pa.DataType, sides: tuple[str, str]) -> Path:
    kinds = {"caption": pa.string(), "prompt": pa.string(), "label_0": pa.float64(), **dict.fromkeys(sides, image)}
    schema = pa.schema([(name, kinds[name]) for name in cells[0]])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(cells, schema=schema), path, row_group_size=2)
    return path


def pickapic(folder: Path, rows: Sequence[PairRow]) -> Path:
    cells = [{"caption": r.prompt, "jpg_0": r.first, "jpg_1": r.second, "label_0": 1.0} for r in rows]
    return save_parquet(folder / "pairs.parquet", cells, pa.binary(), ("jpg_0", "jpg_1"))


def structs(folder: Path, rows: Sequence[PairRow]) -> Path:
    cells = [
        {"caption": r.prompt, "jpg_0": {"bytes": r.first}, "jpg_1": {"bytes": r.second, "path": "x"}, "label_0": 1.0}
        for r in rows
    ]
    return save_parquet(folder / "pairs.parquet", cells, STRUCT, ("jpg_0", "jpg_1"))


def struct_paths(folder: Path, rows: Sequence[PairRow]) -> Path:
    return write_struct_paths(folder, rows, save_images(folder, rows))


def write_struct_paths(folder: Path, rows: Sequence[PairRow], names: Sequence[tuple[str, str]]) -> Path:
    cells = [
        {"caption": r.prompt, "jpg_0": {"path": first}, "jpg_1": {"path": second}, "label_0": 1.0}
        for r, (first, second) in zip(rows, names, strict=True)
    ]
    return save_parquet(folder / "pairs.parquet", cells, STRUCT, ("jpg_0", "jpg_1"))


def chosen_rejected(folder: Path, rows: Sequence[PairRow]) -> Path:
    cells = [{"prompt": r.prompt, "chosen": r.first, "rejected": r.second} for r in rows]
    return save_parquet(folder / "pairs.parquet", cells, pa.large_binary(), ("chosen", "rejected"))


def twins(folder: Path, rows: Sequence[PairRow]) -> Path:
    for n, row in enumerate(rows):
        save(folder / f"chosen/{n}{row.ending}", row.first)
        save(folder / f"rejected/{n}.png", row.second)
        save(folder / f"chosen/{n}.txt", row.prompt)
    return folder


def metadata(kind: str, side: str = "image_0_file_name") -> Write:
    def write(folder: Path, rows: Sequence[PairRow]) -> Path:
        return write_metadata(folder, rows, save_images(folder, rows), kind, side)

    return write


def write_metadata(
    folder: Path, rows: Sequence[PairRow], names: Sequence[tuple[str, str]], kind: str, side: str
) -> Path:
    cells: list[dict[str, Any]] = [
        {side: first, NAMED[side]: second, "prompt": row.prompt} | ({"label_0": 1.0} if "0" in side else {})
        for row, (first, second) in zip(rows, names, strict=True)
    ]
    return save_table(folder / f"metadata.{kind}", cells).parent


def save_table(path: Path, cells: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for row in cells for name in row))
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in cells))
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(cells)
    else:
        pq.write_table(pa.table({name: [row.get(name) for row in cells] for name in columns}), path)
    return path


def rankings(folder: Path, rows: Sequence[PairRow]) -> Path:
    return write_rankings(folder, rows, save_images(folder, rows))


def write_rankings(folder: Path, rows: Sequence[PairRow], names: Sequence[tuple[str, str]]) -> Path:
    cells = [
        {"prompt": r.prompt, "image_path": list(pair), "rank": [0, 1]} for r, pair in zip(rows, names, strict=True)
    ]
    return save(folder / "test.json", json.dumps(cells))


def saved(folder: Path, rows: Sequence[PairRow]) -> Path:
    dataset(rows).save_to_disk(folder)
    return folder


def saved_splits(folder: Path, rows: Sequence[PairRow]) -> Path:
    import datasets

    datasets.DatasetDict({"train": dataset(rows), "test": dataset(rows[:1])}).save_to_disk(folder)
    return folder


def dataset(rows: Sequence[PairRow]) -> Any:
    import datasets

    features = datasets.Features(
        {"caption": datasets.Value("string"), "label_0": datasets.Value("float64")}
        | {name: datasets.Image(decode=False) for name in ("jpg_0", "jpg_1")}
    )
    cells = [{"caption": r.prompt, "label_0": 1.0, "jpg_0": r.first, "jpg_1": r.second} for r in rows]
    return datasets.Dataset.from_list(cells, features=features)


FILE_FORMS: dict[str, Write] = {
    "twins": twins,
    "metadata.jsonl": metadata("jsonl"),
    "metadata.csv": metadata("csv"),
    "metadata.parquet": metadata("parquet"),
    "chosen_file_name": metadata("jsonl", "chosen_file_name"),
    "parquet of paths": struct_paths,
    "rankings": rankings,
}
"""Forms whose images are files of their own."""

FORMS: dict[str, Write] = FILE_FORMS | {
    "pickapic": pickapic,
    "structs": structs,
    "chosen, rejected": chosen_rejected,
    "save_to_disk": saved,
    "save_to_disk splits": saved_splits,
}


def written_names(form: str, folder: Path, rows: Sequence[PairRow], names: Sequence[tuple[str, str]]) -> Path:
    """A form of files whose rows name the images ``names``, which are not written."""
    if form == "rankings":
        return write_rankings(folder, rows, names)
    if form == "parquet of paths":
        return write_struct_paths(folder, rows, names)
    side = form if form in NAMED else "image_0_file_name"
    return write_metadata(folder, rows, names, form.split(".")[-1] if "." in form else "jsonl", side)
