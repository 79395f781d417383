"""Latency tables: ours, with a checksum that holds so that what is behind it is reached, and those of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import as_json, bytes_like, changed_values, fuzz, json_like, refused, text_like

from hwnas.latency.fewshot import dump_times, make_predictor, read_times
from hwnas.latency.importers import IMPORTERS, import_table
from hwnas.latency.index import BlockIndex
from hwnas.spaces import make_space
from hwprof.merge import merge_tables
from hwprof.table import LatencyTable, Model, Row, Validation, dump_table, load_table, read_table, write_table
from hwprof.table import _sealed as sealed
from hwprof.target import Target

SPACE = make_space("nasbench201", {"channels": 2, "cells": 1, "resolution": 8, "in_channels": 1, "num_classes": 10})
NAMES = ("0-0-0-0-0-1", "1-2-3-1-2-3", "3-3-3-3-3-3", "2-1-0-2-1-0")
ROLES = ("anchor", "fit", "held-out", "held-out")


def table() -> LatencyTable:
    index = BlockIndex(SPACE)
    rows = {block.key: Row(1e-3 + 1e-6 * block.macs, 0.01, 3, profiled_ms=2e-3) for block in index.blocks}
    archs = np.array([[int(part) for part in name.split("-")] for name in NAMES])
    costs = index.costs(np.array([rows[key].ms for key in index.keys]))
    ms = (0.01 + index.total(SPACE.canonical(archs), costs)).tolist()
    models = tuple(Model(*one, 0.01, again_ms=one[-1]) for one in zip(NAMES, ROLES, ms, strict=True))
    provenance = {"space": {"name": SPACE.name, **SPACE.config}, "seconds": 3.5}
    return LatencyTable(
        Target(), {"cpu": "c", "cores": "2"}, provenance, 0.01, models, Validation(2, 0.0, 0.0, 0.01), rows
    )


TEXT = dump_table(table())
VALUES = {key: value for key, value in json.loads(TEXT).items() if key != "checksum"}
TRANSFER = {**VALUES, "rows": {}, "validation": None, "models": VALUES["models"][1:2]}
TRANSFER["provenance"] = {
    **VALUES["provenance"],
    "transfer": {"seed": 0, "sources": [{"path": "source.json", "sha256": "?"}]},
}


def resealed(values: Any) -> str:
    """A table's text with the right checksum, whatever is in it."""
    return sealed(as_json(values).strip().removeprefix("{").removesuffix("}"))


def predict(text: str, folder: Path) -> None:
    predictor = make_predictor(SPACE, load_table(text), folder)
    ms = predictor.predict_ms(SPACE.sample(5, np.random.default_rng(0)))
    assert np.isfinite(ms).all()
    assert (ms > 0).all()


def test_good_tables_are_read(tmp_path: Path) -> None:
    assert refused(lambda: predict(TEXT, tmp_path)) is None
    assert load_table(resealed(VALUES)) == load_table(TEXT)


@fuzz
@given(text=json_like(TEXT))
def test_a_table(text: str) -> None:
    refused(lambda: load_table(text))


@fuzz
@given(values=changed_values(VALUES))
def test_a_table_whose_checksum_holds(values: Any, tmp_path: Path) -> None:
    text = resealed(values)
    if refused(lambda: load_table(text)) is None:
        again = dump_table(load_table(text))
        assert dump_table(load_table(again)) == again
        refused(lambda: predict(text, tmp_path))


@fuzz
@given(values=changed_values(TRANSFER["provenance"]))
def test_a_table_of_a_transfer(values: Any, tmp_path: Path) -> None:
    (tmp_path / "source.json").write_text(TEXT)
    refused(lambda: predict(resealed({**TRANSFER, "provenance": values}), tmp_path))


@fuzz
@given(data=bytes_like(TEXT.encode()))
def test_the_file_of_a_table(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "table.json").write_bytes(data)
    refused(lambda: read_table(tmp_path / "table.json"))


@fuzz
@given(first=changed_values(VALUES), second=changed_values(VALUES), prefer=st.sampled_from([None, "last", "pooled"]))
def test_tables_to_be_merged(first: Any, second: Any, prefer: str | None, tmp_path: Path) -> None:
    def merge() -> None:
        tables = [load_table(resealed(values)) for values in (first, second)]
        write_table(merge_tables(tables, prefer=prefer), tmp_path / "merged.json")

    refused(merge, tmp_path)


KEY = "expanded_conv-input:80x80x24-output:40x40x32-expand:72-kernel:3-stride:2-idskip:0-se:0-hs:0"
PUBLISHED = {
    "csv": f"table,resolution,key,mean_ms,std_ms,count\nphone,160,{KEY},1.5,0.1,10\nphone,160,Logits-x,0.5,,\n",
    "once-for-all": f"{KEY}:\n  count: 10\n  mean: 1.5\n  std: 0.1\nConv-input:160x160x3-output:80x80x24:\n  mean: 2\n",
    "proxylessnas": "expanded_conv-input:8x8x24-output:8x8x24-expand:3-kernel:3-stride:1-idskip:1:\n  mean: 1.5\n",
    "fbnet": "ir_k3_e3 skip\n" + "10.5 0.5\n" * 22,
}


@pytest.mark.parametrize("format", IMPORTERS)
def test_good_tables_of_others_are_read(format: str, tmp_path: Path) -> None:
    (tmp_path / "published").write_text(PUBLISHED[format])
    import_table(tmp_path / "published", target=Target(), format=format)


@pytest.mark.parametrize("format", IMPORTERS)
@fuzz
@given(data=st.data())
def test_a_table_of_others(format: str, data: st.DataObject, tmp_path: Path) -> None:
    text = PUBLISHED[format]
    changed = data.draw(
        st.one_of(text_like(text).map(lambda it: it.encode(errors="replace")), bytes_like(text.encode()))
    )
    (tmp_path / "published").write_bytes(changed)
    chosen = data.draw(st.sampled_from([format, None]))

    def read() -> None:
        found = import_table(tmp_path / "published", target=Target(), format=chosen, keep_absurd=True)
        write_table(found.table, tmp_path / "table.json")

    refused(read, tmp_path)


TIMES = dump_times([((0, 0, 0, 0, 0, 1), "a.onnx", 1.5), ((1, 2, 3, 1, 2, 3), "b.onnx", None)])


@fuzz
@given(text=text_like(TIMES))
def test_times_that_were_filled_in(text: str) -> None:
    refused(lambda: read_times(SPACE, text, "times.csv"))
