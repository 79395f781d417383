from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pages import HOSTILE, Reader

from hwnas.report.html import page, write_html
from hwnas.report.markup import Markup, script_json, tag
from hwnas.report.summary import Candidate, NetworkRow, RunSummary


def read(summary: RunSummary) -> Reader:
    return Reader(page(summary))


def test_the_page_says_everything(summary: RunSummary) -> None:
    reader = read(summary)
    expected = ["quickstart", "7 networks on the front", "net-3", "0.887", "0.874 to 0.905", "+2.0", "245 k", "1.00 MB"]
    expected += ["not measured: spread of ratios 14 %", "over the limit", "clock not locked", "onnxruntime 1.23"]
    expected += ["2 min 05 s", "3 min 25 s", "2,176,782,336", "latency_tables/example.csv", 'sampler = "nsga2"']
    for text in (*expected, "2.3 %"):
        assert text in reader.text, text
    assert set(reader.data) == {"front", "agreement", "score-0", "score-1"}


def test_files_are_linked_from_the_run_folder(summary: RunSummary) -> None:
    links = [attributes["href"] for name, attributes in read(summary).elements if name == "a"]
    assert links == [f"./export/net-{n}.onnx" for n in range(7)]


@pytest.mark.parametrize(
    ("file", "href"),
    [
        ("javascript:alert(1)", "./javascript%3Aalert%281%29"),
        ("export/a b#c?.onnx", "./export/a%20b%23c%3F.onnx"),
        ('"><script>', "./%22%3E%3Cscript%3E"),
    ],
)
def test_a_link_stays_in_the_run_folder(
    summary: RunSummary, row_of: Callable[..., NetworkRow], file: str, href: str
) -> None:
    reader = read(replace(summary, networks=(row_of(1, file=file),)))
    assert [attributes["href"] for name, attributes in reader.elements if name == "a"] == [href]


def test_nothing_is_requested(summary: RunSummary) -> None:
    for name, attributes in read(summary).elements:
        assert "src" not in attributes, name
        assert name != "link" or str(attributes["href"]).startswith("data:")


def hostile(summary: RunSummary, row_of: Callable[..., NetworkRow]) -> RunSummary:
    named: dict[str, Any] = {"name": HOSTILE, "arch": HOSTILE, "choice": {HOSTILE: HOSTILE}}
    rows = (row_of(1, **named), row_of(2, measured_ms=None, refused=HOSTILE))
    return replace(
        summary,
        name=HOSTILE,
        created=HOSTILE,
        version=HOSTILE,
        networks=rows,
        candidates=(Candidate(HOSTILE + "2", {HOSTILE: 1.0}, 1.0, 90.0), Candidate(HOSTILE, {HOSTILE: 2.0}, 1.0, 90.0)),
        space={HOSTILE: [HOSTILE]},
        target={HOSTILE: HOSTILE},
        limits={HOSTILE: 1.0},
        seconds={HOSTILE: 1.0},
        recipe=HOSTILE,
        warnings=(HOSTILE,),
    )


def test_hostile_names_stay_text(summary: RunSummary, row_of: Callable[..., NetworkRow]) -> None:
    bad, good = read(hostile(summary, row_of)), read(summary)
    assert {name for name, _ in bad.elements} <= {name for name, _ in good.elements}
    assert {key for _, attributes in bad.elements for key in attributes} <= {
        key for _, attributes in good.elements for key in attributes
    }
    assert bad.text.count(HOSTILE) >= 12
    # In hover texts plotly would read tags: there are only its own <b> and <br>.
    texts = [text for figure in bad.data.values() for one in figure["data"] for text in one.get("hovertext", [])]
    assert texts
    assert {found for text in texts for found in re.findall(r"</?\w+", text)} == {"<b", "</b", "<br"}
    assert "<img" not in bad.data["score-0"]["layout"]["yaxis"]["title"]["text"]


def test_only_the_scripts_of_the_page_may_run(summary: RunSummary) -> None:
    (policy,) = [a["content"] for name, a in read(summary).elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy).startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in str(policy).split(";")[1]


def test_what_is_missing_is_said(summary: RunSummary, row_of: Callable[..., NetworkRow]) -> None:
    unknown = replace(summary.table, rows=None, held_out=None, mean_error=None, max_error=None, noise_floor=None)
    poor = replace(summary, networks=(), candidates=(), warnings=(), limits={}, target={}, seconds={}, table=unknown)
    reader = read(poor)
    assert "No network reached the front" in reader.text
    assert "No network of this run was measured" in reader.text
    assert reader.data == {}
    unmeasured = read(replace(poor, networks=(row_of(1, measured_ms=None, refused="drift", within_limit=None),)))
    assert "not measured: drift" in unmeasured.text
    for text in (reader.text, unmeasured.text):
        assert "None" not in text
        assert "nan" not in text


def test_figures_and_tables_are_described(summary: RunSummary) -> None:
    elements = read(summary).elements
    plots = [attributes for _, attributes in elements if attributes.get("class") == "plot"]
    assert len(plots) == 4
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)
    names = [name for name, _ in elements]
    assert names.count("table") == names.count("caption") == 6
    assert all(attributes.get("scope") for name, attributes in elements if name == "th")


def test_an_older_page_is_replaced_only_by_a_whole_one(
    summary: RunSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    write_html(summary, path)
    first = path.read_bytes()
    assert first.decode("utf-8") == page(summary)
    assert b"\r" not in first

    def full_disk(self: Path, *_: Any, **__: Any) -> int:
        with self.open("w") as file:
            file.write("<half")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full_disk)
        with pytest.raises(OSError, match="no space"):
            write_html(replace(summary, name="second"), path)
    assert path.read_bytes() == first
    write_html(replace(summary, name="third"), path)
    assert b"third" in path.read_bytes()
    assert [one.name for one in tmp_path.iterdir()] == ["report.html"]


def test_tags_escape_all_but_markup() -> None:
    assert tag("p", "<&", Markup("<b>"), class_='"x"') == '<p class="&quot;x&quot;">&lt;&amp;<b></p>'
    assert json.loads(script_json({"a": "</script>&\u2028"})) == {"a": "</script>&\u2028"}
    assert not set(script_json("</script><!--&\u2028")) & set("<>&\u2028")
    with pytest.raises(ValueError, match="JSON"):
        script_json(float("nan"))
