"""The page: what stands on it, that it needs nothing else, and that no caption can become markup."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from pipeline.data.files import write_json
from pipeline.data.tables import read_images
from pipeline.evaluation.charts import MAX_POINTS, area_chart, loss_chart
from pipeline.evaluation.pictures import picture_at, read_samples, real_parts
from pipeline.evaluation.report import flattened, read_curves, write_report
from pipeline.evaluation.verdict import common_protocol, verdict
from tests.evaluation_data import paint_noise, paint_truth, write_crops, write_samples

SCRIPT = '<script>alert("caption")</script> & a "green" bird'


CROP_REPORT = {
    "source": "cub",
    "rule": "area",
    "num_images": {"train": 6, "test": 6},
    "num_bad_images": 0,
    "bad_images": [],
}


class Inputs(NamedTuple):
    crops_dir: Path
    samples_dir: Path
    reports_dir: Path

    def page(self, out_path: Path, **changes: Any) -> str:
        settings: dict[str, Any] = {
            "sheet_path": self.reports_dir / "no_sheet.jpg",
            "dataset_name": "demo",
            "num_captions": 4,
            "seed": 0,
        }
        write_report(**self._asdict(), out_path=out_path, **settings | changes)
        return out_path.read_text(encoding="utf-8")


def method_scores(r_precision: float, class_agreement: float, num_images: int = 100) -> dict[str, Any]:
    def share(value: float, chance: float) -> dict[str, float]:
        return {"value": value, "standard_error": (value * (1 - value) / num_images) ** 0.5, "chance": chance}

    return {
        "image_size": 256,
        "inception_score": {"mean": 4.321, "std": 0.123, "sample_std": 0.13, "low": 4.111, "high": 4.555},
        **{"fid": 12.34, "kid": 0.0567, "precision": 0.89, "recall": 0.67, "nearest_train_distance": 7.65},
        "r_precision": share(r_precision, 0.1),
        "class_agreement": share(class_agreement, 1 / 3),
        "within_caption_distance": None,
        "protocol": {"num_images": num_images, "num_wrong_captions": 9, "classifier_sha256": "c1a55" * 12},
    }


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("report")
    inputs = Inputs(folder / "crops", folder / "samples", folder / "reports")
    write_crops(inputs.crops_dir, images_per_class=2)
    images = read_images(inputs.crops_dir, "test")
    images[0]["captions"] = [SCRIPT]
    methods = {"untrained": paint_noise(256), "stage1": paint_truth(64), "stackgan": paint_truth(256)}
    write_samples(inputs.samples_dir, images, methods)

    area = {"min": 0.1, "share_below_0.5": 0.8, "share_at_least_0.75": 0.05, "histogram_edges": [0, 0.5, 1]}
    after = area | {"min": 0.75, "share_at_least_0.75": 1.0, "histogram": [0, 10]}
    ratios = {"before": area | {"histogram": [8, 2]}, "after": after}
    write_json(inputs.reports_dir / "crop_images.json", CROP_REPORT | {"object_area_ratio": ratios})
    classifier = {"note": "a small judge.", "held_out_accuracy": 0.95, "chance": 1 / 3, "num_held_out": 20}
    write_json(inputs.reports_dir / "train_classifier.json", classifier)
    for name in ("fit_text_encoder", "embed_captions", "train_stage1", "train_stage2"):
        write_json(inputs.reports_dir / f"{name}.json", {"told_by": {name: 12345}})
    for name in ("train_stage1", "train_stage2"):
        rows = [f"{step},{step // 2},{1 / step},{2 + step},0.1,fine" for step in range(1, 9)]
        text = "\n".join(["step,epoch,d_loss,g_loss,kl,word", *rows]) + "\n"
        (inputs.reports_dir / f"{name}.csv").write_text(text)
    scores = {"real_test": (0.8, 0.97), "untrained": (0.1, 0.3), "stage1": (0.3, 0.5), "stackgan": (0.5, 0.7)}
    methods_report = {method: method_scores(*values) for method, values in scores.items()}
    without_captions = dict.fromkeys(("r_precision", "class_agreement"))
    methods_report["noise"] = method_scores(0, 0) | without_captions
    methods_report["real_test"] |= dict.fromkeys(("fid", "kid", "precision", "recall"))
    stackgan = read_samples(inputs.samples_dir)["stackgan"]
    train_ids = [image["image_id"] for image in read_images(inputs.crops_dir, "train")]
    neighbours = [{"sample_id": row["sample_id"], "image_ids": train_ids[:3], "distances": [1.04, 2.06, 3.0]}
                  for row in stackgan.rows[:2]]  # fmt: skip
    document = {"methods": methods_report, "neighbours": {"stackgan": neighbours}}
    write_json(inputs.reports_dir / "evaluate_inception.json", document)
    return inputs


@pytest.fixture(scope="module")
def page(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> str:
    return inputs.page(tmp_path_factory.mktemp("page") / "index.html")


class Elements(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_loads_nothing_from_elsewhere(page: str) -> None:
    elements = Elements(page)
    for tag, attributes in elements.tags:
        assert tag not in ("script", "iframe", "object", "embed"), tag
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#")), (tag, attributes)
    assert not re.search(r"@import|url\((?!#)", page)


def test_a_caption_with_a_script_in_it_is_shown_as_text(inputs: Inputs, tmp_path: Path) -> None:
    page = inputs.page(tmp_path / "index.html", num_captions=6)
    elements = Elements(page)
    assert "script" not in [tag for tag, _ in elements.tags]
    assert SCRIPT in elements.text
    assert any(SCRIPT in (attributes.get("alt") or "") for _, attributes in elements.tags)


def test_every_caption_has_its_four_pictures_side_by_side(page: str) -> None:
    images = [attributes["alt"] or "" for tag, attributes in Elements(page).tags if tag == "img"]
    alts = images[:16]  # then come the neighbours
    names = [alt.split(":")[0] for alt in alts]
    assert names == ["Real", "Untrained", "Stage-I", "Stage-II"] * 4
    captions = [alt.split(": ", 1)[1] for alt in alts]
    assert all(len(set(captions[start : start + 4])) == 1 for start in range(0, 16, 4))
    assert len(set(captions)) == 4


def test_the_page_says_how_the_pictures_were_read_and_cropped(page: str) -> None:
    text = " ".join(Elements(page).text.split())
    assert "test: 6, train: 6 pictures of demo, read as source cub." in text
    assert "in the crops (rule area) it fills at least 75% in 100% of them" in text
    assert "left out" not in text


def test_the_contact_sheet_stands_on_the_page_byte_for_byte(inputs: Inputs, page: str, tmp_path: Path) -> None:
    sheet = Image.effect_noise((60, 90), 50).tobytes()
    (tmp_path / "sheet.jpg").write_bytes(sheet)
    elements = Elements(inputs.page(tmp_path / "index.html", sheet_path=tmp_path / "sheet.jpg"))
    uris = [attributes["src"] for tag, attributes in elements.tags if tag == "img"]
    assert uris.count(f"data:image/jpeg;base64,{base64.b64encode(sheet).decode()}") == 1
    for word in ("Dashed", "Orange", "Blue", "Green"):
        assert word in elements.text and word not in Elements(page).text


def test_pictures_that_were_left_out_are_counted_and_the_first_ten_listed(inputs: Inputs, tmp_path: Path) -> None:
    def text_with(num_bad: int) -> str:
        report = json.loads((inputs.reports_dir / "crop_images.json").read_text())
        bad = [{"file": f"<b>{place}</b>.jpg", "reason": f"torn & {SCRIPT} {place}"} for place in range(num_bad)]
        write_json(tmp_path / "crop_images.json", report | {"num_bad_images": num_bad, "bad_images": bad})
        elements = Elements(inputs._replace(reports_dir=tmp_path).page(tmp_path / "index.html"))
        assert not {"script", "b"} & {tag for tag, attributes in elements.tags if not attributes}
        return " ".join(elements.text.split())

    one, many = text_with(1), text_with(1_011)
    assert f"1 picture was left out: <b>0</b>.jpg: torn & {SCRIPT} 0" in one and "more stand in" not in one
    assert "1,011 pictures were left out: <b>0</b>.jpg" in many
    assert f"<b>9</b>.jpg: torn & {SCRIPT} 9 1,001 more stand in reports/crop_images.json" in many
    assert "<b>10</b>" not in many


def test_the_scores_and_their_protocol_stand_on_the_page(page: str) -> None:
    text = " ".join(Elements(page).text.split())
    for expected in (
        "4.32",
        "± 0.12",
        "50.0%",
        "70.0%",
        "chance 10.0%",
        "chance 33.3%",
        "c1a55" * 12,
        "a small judge.",
    ):
        assert expected in text, expected
    assert re.findall(r'<th scope="row">([^<]*)<small>', page) == [
        *["Real", "Stage-II", "Stage-I", "Untrained", "Noise"]
    ]


def test_published_figures_are_called_published_and_on_other_data(inputs: Inputs, page: str, tmp_path: Path) -> None:
    text = Elements(page).text
    assert "3.70 ± .04" in text and "2.48 ± .00" in text and "published, not ours" in text
    assert "other data than this page's demo" in text
    assert "other data" not in Elements(inputs.page(tmp_path / "index.html", dataset_name="cub")).text


def test_reports_of_all_stages_can_be_read_on_the_page(page: str) -> None:
    text = Elements(page).text
    for name in ("fit_text_encoder", "embed_captions", "train_stage1", "train_stage2"):
        assert f"told_by.{name}" in text
    assert "12,345" in text


def test_the_same_inputs_write_the_same_bytes(inputs: Inputs, page: str, tmp_path: Path) -> None:
    assert inputs.page(tmp_path / "again.html") == page
    assert inputs.page(tmp_path / "other.html", seed=1) != page


def test_missing_reports_are_said_to_be_missing(inputs: Inputs, tmp_path: Path) -> None:
    text = Elements(inputs._replace(reports_dir=tmp_path).page(tmp_path / "index.html")).text
    names = "crop_images, fit_text_encoder, embed_captions, train_stage1, train_stage2, train_classifier"
    assert f"Missing reports: {names}, evaluate_inception, evaluate_human_rank." in text
    for expected in ("reports/evaluate_inception.json is missing", "reports/train_stage1.csv is missing"):
        assert expected in text


def human_rank(summary: str, num_simulated: int = 0, **questions: Any) -> dict[str, Any]:
    counts = {"num_raters_excluded": 1, "num_simulated_ballots": num_simulated}
    rules = {"confidence": 0.95}
    return {"summary": summary, "methods": ["stackgan", "stage1"], "questions": questions, "rules": rules, **counts}


def page_with(inputs: Inputs, tmp_path: Path, report: dict[str, Any], **changes: Any) -> str:
    shutil.copytree(inputs.reports_dir, tmp_path / "reports")
    write_json(tmp_path / "reports" / "evaluate_human_rank.json", report)
    return inputs._replace(reports_dir=tmp_path / "reports").page(tmp_path / "index.html", **changes)


def test_without_ballots_the_page_says_of_how_many_raters_and_no_rank(inputs: Inputs, tmp_path: Path) -> None:
    text = Elements(page_with(inputs, tmp_path, human_rank("0 of 10 raters"))).text
    assert "0 of 10 raters" in text and "No ballot has been counted yet" in text and "mean rank" not in text


def test_mean_ranks_stand_with_their_intervals_beside_the_papers(inputs: Inputs, tmp_path: Path) -> None:
    methods = {
        "stackgan": {"mean_rank": 1.234, "low": 1.11, "high": 1.36},
        "stage1": {"mean_rank": 1.766, "low": None, "high": None},
    }
    result = {
        "methods": methods,
        "friedman": {"p_value": 0.00123},
        "kendalls_w": {"of_raters": 0.61},
        "krippendorff_alpha": None,
        "position_bias": {"p_value": 0.42},
    }
    report = human_rank("9 of 10 raters", num_simulated=3, quality=result, match=result)
    page = page_with(inputs, tmp_path, report, dataset_name="oxford")
    text = " ".join(Elements(page).text.split())
    assert "9 of 10 raters, 1 left out by rules that were fixed before" in text
    assert "holds the true one in 95% of such studies" in text and "Stage-I1.771.77methodsdiffer" in text.replace(
        " ", ""
    )
    assert "Stage-II1.231.11" in text.replace(" ", "").replace("\u2011", "-")
    assert "These ballots were simulated: they say nothing of people." in text
    assert "GAN-INT-CLS 1.87 ± .03; StackGAN, CA, text twice 1.13 ± .03" in text and "0.0012" in text
    assert "Mean ranks that raters gave" in page


def test_a_missing_method_is_said_to_be_missing(inputs: Inputs, tmp_path: Path) -> None:
    write_samples(tmp_path / "samples", read_images(inputs.crops_dir, "test"), {"stage1": paint_truth(64)})
    page = inputs._replace(samples_dir=tmp_path / "samples").page(tmp_path / "index.html")
    assert "No samples of: Stage-II, Untrained." in Elements(page).text


def test_a_report_that_is_not_json_is_refused_by_name(inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "train_stage1.json").write_text("{half")
    with pytest.raises(ValueError, match=r"train_stage1\.json is not JSON"):
        inputs._replace(reports_dir=tmp_path).page(tmp_path / "index.html")
    assert not (tmp_path / "index.html").exists()


@pytest.mark.parametrize(
    ("untrained", "trained", "words"),
    [
        (0.10, 0.50, "clearly more often than for the untrained generator."),
        (0.10, 0.15, "more often than for the untrained generator, but by less than two standard errors"),
        (0.10, 0.10, "not more often than for the untrained generator."),
        (0.30, 0.10, "not more often than for the untrained generator."),
    ],
)
def test_the_verdict_says_what_the_figures_allow(untrained: float, trained: float, words: str) -> None:
    methods = {"untrained": method_scores(untrained, untrained), "stackgan": method_scores(trained, trained)}
    sentences = verdict(methods)
    assert len(sentences) == 2
    for sentence in sentences:
        assert words in sentence
        assert f"{trained:.0%} of cases (untrained {untrained:.0%}" in sentence


def test_a_classifier_of_no_test_class_leaves_its_column_empty(inputs: Inputs, tmp_path: Path) -> None:
    shutil.copytree(inputs.reports_dir, tmp_path / "reports")
    path = tmp_path / "reports" / "evaluate_inception.json"
    document = json.loads(path.read_text())
    for scores in document["methods"].values():
        scores["class_agreement"] = None
    path.write_text(json.dumps(document))
    page = inputs._replace(reports_dir=tmp_path / "reports").page(tmp_path / "index.html")
    assert "the classifier knows no test class" in page and "The classifier sees the class" not in page
    assert "ranks a" in page


def test_bounds_that_no_caption_goes_with_have_empty_cells(page: str) -> None:
    row = page[page.index("Noise<small>") :]
    row = row[: row.index("</tr>")]
    assert "12.3" in row and "56.7" in row  # FID, and KID times 1000
    assert row.count("&#8211;") == 2  # caption and class agreement
    real = page[page.index("Real<small>") :]
    assert real[: real.index("</tr>")].count("&#8211;") == 2  # what is measured against these pictures


def test_generated_pictures_stand_beside_their_nearest_training_pictures(inputs: Inputs, page: str) -> None:
    section = page[page.index("Is it copying?") : page.index("<h2>Training</h2>")]
    uris = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', section)
    assert len(uris) == 2 * 4
    for text in ("Stage-II, generated", "real, at 1.0", "real, at 2.1", "real, at 3.0"):
        assert section.count(f"<figcaption>{text}</figcaption>") == 2
    _, train_parts = real_parts(inputs.crops_dir, "train")
    for place in range(3):
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(uris[1 + place]))), np.float32)
        assert np.abs(shown - picture_at(train_parts, place)).mean() < 8  # JPEG, of noisy pictures


def test_neighbours_of_other_samples_are_refused(inputs: Inputs, tmp_path: Path) -> None:
    shutil.copytree(inputs.reports_dir, tmp_path / "reports")
    path = tmp_path / "reports" / "evaluate_inception.json"
    document = json.loads(path.read_text())
    document["neighbours"]["stackgan"][0]["sample_id"] = 4711
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"evaluate_inception\.json is of other samples; rerun"):
        inputs._replace(reports_dir=tmp_path / "reports").page(tmp_path / "index.html")


def test_a_verdict_over_two_protocols_is_refused() -> None:
    methods = {"untrained": method_scores(0.1, 0.1, 100), "stackgan": method_scores(0.5, 0.5, 90)}
    with pytest.raises(ValueError, match=r"unlike num_images \(Stage-II: 90, Untrained: 100\)"):
        verdict(methods)


def test_a_verdict_needs_a_trained_and_the_untrained_generator() -> None:
    assert "nothing can be said" in verdict({"stackgan": method_scores(0.5, 0.5)})[0]


def test_what_methods_share_of_their_protocols_is_said_once() -> None:
    methods = {"real_test": method_scores(0.5, 0.5, num_images=7), "stackgan": method_scores(0.5, 0.5, num_images=9)}
    protocol = dict(common_protocol(methods))
    assert protocol["num_images"] == "real_test: 7, stackgan: 9"
    assert protocol["num_wrong_captions"] == "9"


def test_words_and_empty_files_are_no_curves(inputs: Inputs, tmp_path: Path) -> None:
    curves = read_curves(inputs.reports_dir / "train_stage1.csv")
    assert curves is not None and list(curves) == ["step", "epoch", "d_loss", "g_loss", "kl"]
    (tmp_path / "empty.csv").write_text("step,d_loss\n")
    assert read_curves(tmp_path / "empty.csv") is read_curves(tmp_path / "missing.csv") is None


def test_histograms_are_left_out_of_the_tables_of_values() -> None:
    assert flattened({"a": {"b": 1234, "c": [1, 2], "d": list(range(50)), "e": [{"f": 1}]}}) == [
        ("a.b", "1,234"),
        ("a.c", "1, 2"),
    ]


def test_charts_take_their_colours_from_the_page_and_carry_no_date() -> None:
    steps = np.arange(1.0, 6)
    columns = {
        "step": steps.tolist(),
        "d_loss": steps.tolist(),
        "real_probability": steps.tolist(),
        "kl": steps.tolist(),
    }
    charts = [loss_chart(columns, "losses"), area_chart([1, 2], [3, 4], [0, 0.5, 1], 0.75, "areas")]
    for chart in charts:
        assert chart.startswith("<svg ") and 'viewBox="' in chart and "<style" not in chart
        assert "var(--ink)" in chart and not re.search(r"(fill|stroke): #", chart)
        assert not re.search(r"20\d\d-\d\d|matplotlib\.org|<metadata", chart)
    assert charts[0] == loss_chart(columns, "losses")


def test_long_curves_are_averaged_to_a_bounded_number_of_points() -> None:
    steps = np.arange(50_000.0).tolist()
    chart = loss_chart({"step": steps, "d_loss": steps}, "losses")
    longest = max(len(re.findall(r"[ML] ", path)) for path in re.findall(r'd="([^"]*)"', chart))
    assert MAX_POINTS // 2 < longest <= MAX_POINTS


def test_a_gan_of_one_stage_shows_its_pictures_once(inputs: Inputs, tmp_path: Path) -> None:
    shutil.copytree(inputs.reports_dir, tmp_path / "reports")
    write_json(tmp_path / "reports" / "train_stage2.json", {"stage": 2, "num_steps": 0})
    page = inputs._replace(reports_dir=tmp_path / "reports").page(tmp_path / "index.html")
    text = re.sub(r"<[^>]+>", " ", page)
    assert "This GAN paints in one stage." in text and "No samples of" not in text
    rows = re.findall(r'<tr><th scope="row">(.*?)<small>', page)
    assert "Stage-I" in rows and "Stage-II" not in rows
    assert "Stage-I</figcaption>" in page and "Stage-II</figcaption>" not in page
