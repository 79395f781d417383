"""The page of one network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_cards import make_card, make_layer
from pages import HOSTILE, Reader

from hwnas.card import Ancestor, Card
from hwnas.report.card import card_page, write_card_page
from hwnas.report.drawing import described, layer_table, strip


def read(card: Card) -> Reader:
    return Reader(card_page(card, "net.onnx.html"))


def test_the_page_says_everything() -> None:
    text = read(make_card()).text
    expected = ["net-0a1b2c", "91.5 % accurate on the test images, 0.404 ms measured", "61.2 k parameters"]
    expected += ["0.412 ms (0.390 to 0.435)", "90% interval", "0.404 ms (0.398 to 0.410)", "95% interval", "92.25 %"]
    expected += ["24 × 16 × 16", "mbconv, kernel 5, stride 2, mid channels 72 (× 3), relu, se 1", "1.23 M", "56.7 k"]
    expected += ["every inference", "0.0200", "fused across blocks", "-0.0100", "16.7 %", "from the latency table"]
    expected += ["2 min 05 s", "0.3125", "17", "stage 0: kernel 3 -> 5", "0-0-2", 'source = "folder:flowers"']
    expected += ["CC BY 4.0", "rose, tulip", "[0.5, 0.4, 0.3]", "251 kB", "cd" * 32, "ab" * 32, "1.7 %"]
    expected += ["Example CPU", "2.14.1", "hwnas run --from-card net.onnx.json"]
    for one in expected:
        assert one in text, one


def test_what_is_missing_is_said() -> None:
    layers = tuple(make_layer(n, ms=None, share=None, origin="") for n in range(2))
    training = replace(
        make_card().training, epochs=None, seconds=None, train_loss=None, curve=(), inherited=None, lineage=()
    )
    unmeasured = {"measured_ms": None, "measured_interval_ms": (None, None), "not_measured": "drift 12 %"}
    no_file = dict.fromkeys(("accuracy_percent", "file", "size_bytes", "sha256", "data_licence"))
    unknown: dict[str, Any] = {
        **unmeasured,
        **no_file,
        "table": None,
        "predicted_interval_ms": (None, None),
        "other_ms": {},
    }
    poor = make_card(layers=layers, training=training, **unknown)
    reader = read(poor)
    for one in ("not checked", "not measured", "drift 12 %", "not named", "are not known on this target", "random"):
        assert one in reader.text, one
    assert not {"svg", "figcaption"} & {name for name, _ in reader.elements}
    for one in ("None", "nan"):
        assert one not in reader.text


def test_a_file_that_was_not_measured_has_a_page() -> None:
    bare = Card.from_json(json.dumps(make_card().facts()))
    text = read(bare).text
    assert "not checked, 0.412 ms predicted" in text
    assert "None" not in text


def test_bars_are_the_shares_and_the_strip_is_their_sum() -> None:
    elements = read(make_card()).elements
    bars = [attributes["style"] for _, attributes in elements if str(attributes.get("class")).startswith("bar ")]
    assert bars == ["width:16.67%", "width:33.33%", "width:50.00%"]
    blocks = [attributes for name, attributes in elements if name == "rect"]
    assert [float(str(one["width"])) for one in blocks] == pytest.approx([1000 / 6, 1000 / 3, 500], abs=0.01)
    assert [float(str(one["x"])) for one in blocks] == pytest.approx([0, 1000 / 6, 500], abs=0.01)
    heights = [float(str(one["height"])) for one in blocks]
    assert heights[0] > heights[1] > heights[2], "outputs become smaller"


def test_where_times_come_from_is_said() -> None:
    profiled = make_card(layers=tuple(make_layer(n, origin="profiled") for n in range(3)))
    assert "measured in this architecture on the target" in read(profiled).text
    guessed = read(make_card(layers=(make_layer(0), make_layer(1, origin="estimated"), make_layer(2))))
    assert "1 of 3 blocks not measured there" in guessed.text
    assert "its time is estimated" in guessed.text
    colours = [attributes["class"] for name, attributes in guessed.elements if name == "rect"]
    assert colours == ["block known", "block guessed", "block known"]


def test_what_a_block_reads_is_said_where_it_is_not_the_one_before() -> None:
    table = Reader(
        layer_table([make_layer(0), make_layer(1), make_layer(2, reads=(0, 1, -1), inputs=((8,), (4,)))], {})
    )
    assert table.text.count("reads ") == 1
    assert "reads 0 and 1 and the image" in table.text


def test_a_strip_needs_every_share() -> None:
    assert "svg" in strip([make_layer(0), make_layer(1)])
    assert strip([make_layer(0), make_layer(1, share=None)]) == ""
    assert strip([make_layer(0, share=0.0)]) == ""


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("maxpool:size=8,in_channels=4", "maxpool"),
        ("morph:size=8,in_channels=4,out_channels=8,kernel=3,skip=none", "morph, kernel 3, skip none"),
        ("conv:size=3,in_channels=0,mid_channels=7,activation=", "conv, mid channels 7"),
        ("x:mid_channels=" + "9" * 5000 + ",in_channels=3", None),
        ("no key at all", "no key at all"),
        ("a:b,,=c", None),
    ],
)
def test_keys_in_words(key: str, words: str | None) -> None:
    assert described(key) == words or words is None


def hostile(card: Card) -> Card:
    bad: dict[str, Any] = {HOSTILE: HOSTILE}
    layer = replace(card.layers[1], position=HOSTILE, key=f"{HOSTILE}:{HOSTILE}={HOSTILE}", origin=HOSTILE)
    training = replace(card.training, inherited=HOSTILE, lineage=(Ancestor("0-1", None, HOSTILE),))
    return replace(
        card, version=HOSTILE, name=HOSTILE, run=HOSTILE, created=HOSTILE, choice=bad, target=bad, data=HOSTILE,
        data_licence=HOSTILE, classes=(HOSTILE,), input=bad, versions=bad, machine=bad, training=training,
        layers=(card.layers[0], layer, card.layers[2]), other_ms={HOSTILE: 1.0}, recipe=HOSTILE, file=HOSTILE,
        sha256=HOSTILE, not_measured=HOSTILE, table=replace(card.table, name=HOSTILE, sha256=HOSTILE),
    )  # fmt: skip


def test_hostile_texts_stay_text() -> None:
    good, bad = read(make_card()), read(hostile(make_card()))
    assert {name for name, _ in bad.elements} <= {name for name, _ in good.elements}
    assert {key for _, attributes in bad.elements for key in attributes} <= {
        key for _, attributes in good.elements for key in attributes
    }
    assert bad.text.count(HOSTILE) >= 20
    classes = {str(attributes.get("class")) for _, attributes in bad.elements}
    assert not [one for one in classes if "<" in one]


def test_no_script_runs_and_nothing_is_requested() -> None:
    elements = read(make_card()).elements
    assert "script" not in {name for name, _ in elements}
    (policy,) = [a["content"] for _, a in elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert not [a for name, a in elements if "src" in a or (name == "link" and not str(a["href"]).startswith("data:"))]


def test_the_page_is_small_and_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx.html"
    write_card_page(make_card(), path)
    assert path.read_text(encoding="utf-8") == card_page(make_card(), "net.onnx.html")
    assert path.stat().st_size < 40_000
    assert [one.name for one in tmp_path.iterdir()] == ["net.onnx.html"]
