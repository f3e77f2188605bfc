"""params.yaml: read strictly, refused by the dotted key, and the same as what conf/ composes."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from omegaconf import OmegaConf

from pipeline import params as params_module
from pipeline.params import SECTIONS, GanParams, load_params

ROOT = Path(__file__).parents[1]
PARAMS_PATH = ROOT / "params.yaml"
CONF_DIR = ROOT / "conf"
COMMITTED: dict[str, dict[str, Any]] = yaml.safe_load(PARAMS_PATH.read_text())
KEYS = [(section, field.name) for section, cls in SECTIONS.items() for field in dataclasses.fields(cls)]
GROUPS = {
    group: sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))
    for group in ("dataset", "size", "gan", "text", "augmentation", "hardware")
}
DEFAULTS = ("dataset=demo", "size=demo", "gan=paper", "text=char_cnn_rnn", "augmentation=none", "hardware=cpu")


def compositions_that_cross_every_pair() -> list[list[str]]:
    """Return compositions of all groups in which every pair of choices occurs at least once (pairwise testing).

    gan and dataset alone have 80 pairs, a lower bound; the full product has thousands.
    """
    groups = [[f"{group}={choice}" for choice in choices] for group, choices in GROUPS.items()]
    pairs_of_groups = itertools.starmap(itertools.product, itertools.combinations(groups, 2))
    waiting = {frozenset(pair) for pairs in pairs_of_groups for pair in pairs}
    found: list[list[str]] = []

    def worth(choice: str, chosen: list[str], wanted: frozenset[str]) -> tuple[bool, int]:
        return choice in wanted, sum(frozenset((choice, other)) in waiting for other in chosen)

    while waiting:
        wanted, chosen = min(waiting, key=sorted), list[str]()
        for choices in groups:
            chosen.append(max(choices, key=partial(worth, chosen=chosen, wanted=wanted)))
        waiting -= set(map(frozenset, itertools.combinations(chosen, 2)))
        found.append(chosen)
    return found


def write(path: Path, document: object) -> Path:
    path.write_text(yaml.safe_dump(document))
    return path


def altered(tmp_path: Path, section: str, alter: Callable[[dict[str, Any]], object]) -> Path:
    """Write one committed section, changed in place by `alter`."""
    values = COMMITTED[section] | {}
    alter(values)
    return write(tmp_path / "params.yaml", {section: values})


def refusal(path: Path, section: str) -> str:
    """Return the message with which a section is refused; it is one line and names the file."""
    with pytest.raises(ValueError) as refused:
        load_params(section, SECTIONS[section], path)
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith(f"{path}")
    return message


def test_every_section_of_the_committed_file_has_a_dataclass_and_every_dataclass_a_section() -> None:
    classes = {value for value in vars(params_module).values() if dataclasses.is_dataclass(value)}
    assert set(COMMITTED) == set(SECTIONS)
    assert classes == set(SECTIONS.values())


@pytest.mark.parametrize("section", SECTIONS)
def test_the_committed_section_loads_with_its_own_values(section: str) -> None:
    loaded = dataclasses.asdict(load_params(section, SECTIONS[section], PARAMS_PATH))
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in loaded.items()}
    assert listed == COMMITTED[section]


@pytest.mark.parametrize("section", SECTIONS)
def test_no_field_has_a_default(section: str) -> None:
    for field in dataclasses.fields(SECTIONS[section]):
        assert field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING, field.name


@pytest.mark.parametrize("section", SECTIONS)
def test_an_unknown_key_is_refused_with_the_keys_that_there_are(section: str, tmp_path: Path) -> None:
    message = refusal(altered(tmp_path, section, lambda values: values.update(sede=0)), section)
    assert f"unknown key {section}.sede" in message
    assert all(field.name in message for field in dataclasses.fields(SECTIONS[section]))


@pytest.mark.parametrize(("section", "key"), KEYS, ids=[f"{section}.{key}" for section, key in KEYS])
def test_a_missing_key_is_refused_with_the_place_of_its_usual_value(section: str, key: str, tmp_path: Path) -> None:
    message = refusal(altered(tmp_path, section, lambda values: values.pop(key)), section)
    assert f"key {section}.{key} is missing" in message and "conf/" in message


@pytest.mark.parametrize(("section", "key"), KEYS, ids=[f"{section}.{key}" for section, key in KEYS])
def test_a_value_of_another_kind_is_refused_with_the_kind_that_is_asked(section: str, key: str, tmp_path: Path) -> None:
    for value in (None, "text", ["a"], {"a": 1}):
        if type(value) is type(COMMITTED[section][key]) and isinstance(value, str | dict):
            continue  # of this key's kind; whether it is one of the words allowed is another test's claim
        if value == ["a"] and (section, key) == ("prepare_human_study", "controls"):
            continue  # which may be any names
        message = refusal(altered(tmp_path, section, lambda values, value=value: values.update({key: value})), section)
        assert f"{section}.{key}" in message and repr(value).strip("[]") in message and "must be" in message


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("fit_text_encoder", "learning_rate"),
        ("train_stage1", "learning_rate"),
        ("train_stage2", "learning_rate"),
        ("train_classifier", "learning_rate"),
        ("gan", "kl_weight"),
        ("crop_images", "min_object_area"),
    ],
)
def test_2e_4_is_text_to_yaml_and_refused_with_the_way_to_write_it(section: str, key: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({section: COMMITTED[section] | {key: "HERE"}}).replace("HERE", "2e-4"))
    message = refusal(path, section)
    assert f"{section}.{key} is '2e-4' (str)" in message and "2.0e-4" in message


@pytest.mark.parametrize(
    ("section", "key", "value", "kind"),
    [
        ("train_stage1", "num_epochs", True, "int"),
        ("train_stage1", "num_epochs", 3.0, "int"),
        ("train_stage1", "num_epochs", "3", "int"),
        ("train_stage1", "learning_rate", True, "float"),
        ("train_stage1", "learning_rate", float("nan"), "a finite float"),
        ("train_stage1", "learning_rate", float("inf"), "a finite float"),
        ("train_stage1", "learning_rate", 10**400, "a finite float"),
        ("gan", "stage1_size", 64.0, "one of 64, 128, 256"),
        ("gan", "conditioning_augmentation", 1, "bool"),
        ("gan", "conditioning_augmentation", "yes please", "bool"),
        ("fit_text_encoder", "conv_dims", 3, "list"),
        ("hardware", "precision", True, "one of auto, float32, bfloat16"),
        ("hardware", "precision", "float16", "one of auto, float32, bfloat16"),
        ("crop_images", "rule", "Area", "one of area, published, none"),
        ("crop_images", "split", "cub", "one of zero_shot, testclasses"),
        ("crop_images", "source", "birds", "one of cub, oxford, coco, own"),
        ("crop_images", "on_bad_image", "ignore", "one of fail, skip"),
        ("train_stage1", "transform", "HorizontalFlip", "a mapping"),
        ("dataset", "name", 7, "str"),
    ],
)
def test_a_near_miss_of_the_kind_is_refused(section: str, key: str, value: object, kind: str, tmp_path: Path) -> None:
    message = refusal(altered(tmp_path, section, lambda values: values.update({key: value})), section)
    assert f"{section}.{key} is " in message and f"must be {kind}" in message.replace("must be a list", "must be list")


def test_an_item_of_a_list_is_refused_by_its_place(tmp_path: Path) -> None:
    path = altered(tmp_path, "fit_text_encoder", lambda values: values.update(conv_dims=[1, True, 3]))
    assert "fit_text_encoder.conv_dims[1] is True (bool); it must be int" in refusal(path, "fit_text_encoder")


def test_a_whole_number_passes_as_a_float(tmp_path: Path) -> None:
    path = altered(tmp_path, "gan", lambda values: values.update(kl_weight=2))
    kl_weight = load_params("gan", GanParams, path).kl_weight
    assert kl_weight == 2.0 and isinstance(kl_weight, float)


OUT_OF_RANGE = [
    ("dataset", "name", "../etc"),
    ("dataset", "name", ""),
    ("dataset", "name", "a/b"),
    ("hardware", "num_workers", 0),
    ("hardware", "max_failures", -1),
    ("hardware", "device_data_mb", -1),
    ("make_demo_dataset", "num_train_classes", 0),
    ("make_demo_dataset", "num_test_classes", -1),
    ("make_demo_dataset", "images_per_class", 0),
    ("make_demo_dataset", "captions_per_image", 0),
    ("crop_images", "captions_per_image", 0),
    ("crop_images", "images_per_shard", 0),
    ("crop_images", "min_object_area", 0.0),
    ("crop_images", "min_object_area", 1.5),
    ("fit_text_encoder", "conv_dims", [8, 8]),
    ("fit_text_encoder", "conv_dims", []),
    ("fit_text_encoder", "conv_dims", [8, 0, 8]),
    ("fit_text_encoder", "embedding_dim", 0),
    ("fit_text_encoder", "num_steps", 0),
    ("fit_text_encoder", "batch_size", 1),
    ("fit_text_encoder", "learning_rate", 0.0),
    ("fit_text_encoder", "lr_decay", -0.5),
    ("embed_captions", "batch_size", 0),
    ("embed_captions", "source", "released"),
    ("fit_text_encoder", "pretrained_model", "minilm"),
    ("gan", "generator_dim", 0),
    ("gan", "generator_dim", 12),
    ("gan", "discriminator_dim", 0),
    ("gan", "z_dim", 0),
    ("gan", "condition_dim", 0),
    ("gan", "kl_weight", -1.0),
    ("gan", "num_residual_blocks", 0),
    ("gan", "captions_averaged", 0),
    ("gan", "interpolation_weight", -1.0),
    *(
        (section, key, value)
        for section in ("train_stage1", "train_stage2")
        for key, value in (
            ("num_epochs", 0),
            ("batch_size", 1),
            ("learning_rate", -0.1),
            ("lr_halving_epochs", 0),
            ("checkpoint_every_epochs", 0),
            ("sample_every_epochs", 0),
        )
    ),
    ("generate_samples", "captions_per_image", 0),
    ("generate_samples", "batch_size", 0),
    ("generate_samples", "num_varied_captions", 0),
    ("generate_samples", "variations_per_caption", 0),
    ("prepare_human_study", "methods", ["stackgan"]),
    ("prepare_human_study", "methods", ["stackgan", "stackgan"]),
    ("prepare_human_study", "methods", ["stackgan", "untrained"]),  # which is a control already
    ("prepare_human_study", "methods", ["stackgan", "../secret"]),
    ("prepare_human_study", "methods_per_ballot", 1),
    ("prepare_human_study", "methods_per_ballot", 3),
    ("prepare_human_study", "num_captions", 0),
    ("prepare_human_study", "pictures_per_caption", 0),
    ("prepare_human_study", "num_raters", 0),
    ("prepare_human_study", "num_repeats", -1),
    ("prepare_human_study", "picture_size", 32),
    ("evaluate_human_rank", "max_failed_checks", -1),
    ("evaluate_human_rank", "max_reversed_share", 1.5),
    ("evaluate_human_rank", "min_answered_share", -0.1),
    ("evaluate_human_rank", "min_median_sec", -1.0),
    ("evaluate_human_rank", "confidence", 1.0),
    ("evaluate_human_rank", "num_resamples", 10),
    ("train_classifier", "held_out_share", 0.0),
    ("train_classifier", "held_out_share", 1.0),
    ("train_classifier", "num_epochs", 0),
    ("train_classifier", "batch_size", 0),
    ("train_classifier", "learning_rate", 0.0),
    ("evaluate_inception", "num_splits", 0),
    ("evaluate_inception", "num_wrong_captions", 0),
    ("evaluate_inception", "batch_size", 0),
    ("report", "num_captions", 0),
]


@pytest.mark.parametrize(("section", "key", "value"), OUT_OF_RANGE, ids=lambda value: str(value))
def test_a_value_out_of_range_is_refused_with_the_range(section: str, key: str, value: object, tmp_path: Path) -> None:
    message = refusal(altered(tmp_path, section, lambda values: values.update({key: value})), section)
    assert f"{section}.{key} is " in message and "it must be " in message


BOXED: dict[str, object] = {"box_conditioned": True, "stage2_size": "none", "stage1_size": 128}


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"stage1_size": 128}, "stage1_size"),
        ({"text_twice": False, "discriminator_text": "mu"}, "discriminator_text"),
        ({"box_conditioned": True}, "stage2_size"),
        (BOXED | {"wrong_pairs": "other_image"}, "wrong_pairs"),
        (BOXED | {"discriminator_text": "mu"}, "discriminator_text"),
    ],
    ids=str,
)
def test_networks_that_do_not_fit_together_are_refused_by_the_key(
    values: dict[str, object], key: str, tmp_path: Path
) -> None:
    message = refusal(altered(tmp_path, "gan", lambda section: section.update(values)), "gan")
    assert f"gan.{key} is " in message and " where " in message


@pytest.mark.parametrize(("form", "weight"), [("r1", 0.0), ("matching_aware", 0.0), ("none", 5.0)])
def test_a_gradient_penalty_goes_with_its_weight(form: str, weight: float, tmp_path: Path) -> None:
    values = {"gradient_penalty": form, "gradient_penalty_weight": weight}
    message = refusal(altered(tmp_path, "gan", lambda section: section.update(values)), "gan")
    assert (
        f"gan.gradient_penalty_weight is {weight}; it must be above 0 with a gradient_penalty (10.0 for r1" in message
    )


def altered_whole(tmp_path: Path, **changed: dict[str, Any]) -> Path:
    """Write all committed sections, some of them changed."""
    return write(
        tmp_path / "params.yaml", COMMITTED | {name: COMMITTED.get(name, {}) | changed[name] for name in changed}
    )


def test_a_slip_in_a_late_section_is_refused_by_the_first_stage(tmp_path: Path) -> None:
    for section, key in (("train_stage2", "num_epoch"), ("report", "caption")):
        path = altered_whole(tmp_path, **{section: {key: 3}})
        assert f"unknown key {section}.{key}" in refusal(path, "make_demo_dataset")
    message = refusal(altered_whole(tmp_path, train_stage_2={}), "make_demo_dataset")
    assert "unknown section train_stage_2; it may hold dataset, " in message


@pytest.mark.parametrize(
    ("section", "values", "most"),
    [
        ("generate_samples", {"captions_per_image": 11}, "crop_images.captions_per_image"),
        ("gan", {"captions_averaged": 11}, "crop_images.captions_per_image"),
        ("prepare_human_study", {"pictures_per_caption": 6}, "generate_samples.variations_per_caption"),
    ],
)
def test_a_stage_cannot_use_more_than_an_earlier_one_makes(
    section: str, values: dict[str, int], most: str, tmp_path: Path
) -> None:
    ((key, value),) = values.items()
    message = refusal(altered_whole(tmp_path, **{section: values}), "make_demo_dataset")
    assert f"{section}.{key} is {value}; it must be at most {most}, which is " in message


@pytest.mark.parametrize("section", [section for section, key in KEYS if key == "seed"])
def test_a_negative_seed_is_refused_by_its_key(section: str, tmp_path: Path) -> None:
    path = altered(tmp_path, section, lambda values: values.update(seed=-1))
    assert f"{section}.seed" in refusal(path, section)


def test_a_missing_section_is_refused_by_name(tmp_path: Path) -> None:
    without = {section: values for section, values in COMMITTED.items() if section != "gan"}
    for contents in (without, {"gan": None}, {"gan": 3}, ["gan"], None):
        assert "section 'gan' is missing" in refusal(write(tmp_path / "params.yaml", contents), "gan")


def test_a_missing_file_is_refused_with_where_to_run(tmp_path: Path) -> None:
    message = refusal(tmp_path / "params.yaml", "gan")
    assert "is missing" in message and "repository's root" in message


@pytest.mark.parametrize("text", ["gan: [1, 2", "gan: {a: 1\nb: }", "\tgan: 1", "gan: &a [*b]"])
def test_what_is_no_yaml_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    assert "is not YAML" in refusal(path, "gan")


def test_a_file_that_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes("# für Vögel\n".encode("latin-1") + PARAMS_PATH.read_bytes())
    refusal(path, "gan")


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("gan: !!python/object/apply:os.getcwd []")
    assert "is not YAML" in refusal(path, "gan")


def test_params_cannot_be_changed() -> None:
    loaded = load_params("gan", GanParams, PARAMS_PATH)
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.z_dim = 1


@pytest.fixture(scope="module", autouse=True)
def initialised_hydra() -> Iterator[None]:
    """Initialise Hydra once for all compositions."""
    with hydra.initialize_config_dir(str(CONF_DIR), version_base=None):
        yield


def composition(overrides: list[str]) -> dict[str, Any]:
    """Return what DVC writes into params.yaml for these overrides: Hydra's composition of conf/, resolved."""
    config = hydra.compose("config", overrides)
    OmegaConf.resolve(config)
    composed = OmegaConf.to_container(config)
    assert isinstance(composed, dict)
    return {str(section): values for section, values in composed.items()}


def test_params_yaml_is_the_default_composition_of_conf() -> None:
    assert composition([]) == COMMITTED


def test_naming_the_defaults_changes_nothing() -> None:
    assert composition(list(DEFAULTS)) == COMMITTED


@pytest.mark.parametrize("overrides", compositions_that_cross_every_pair(), ids=" ".join)
def test_every_two_choices_of_groups_load_together(overrides: list[str], tmp_path: Path) -> None:
    composed = composition(overrides)
    path = write(tmp_path / "params.yaml", composed)
    assert set(composed) == set(SECTIONS)
    load_params("report", SECTIONS["report"], path)  # and checks the other sections


@pytest.mark.parametrize("dataset", GROUPS["dataset"])
def test_a_data_set_alone_brings_a_size_that_loads(dataset: str, tmp_path: Path) -> None:
    path = write(tmp_path / "params.yaml", composition([f"dataset={dataset}"]))
    assert load_params("dataset", SECTIONS["dataset"], path).name == dataset


def test_cub_trains_what_the_paper_trained() -> None:
    composed = composition(["dataset=cub"])
    assert composed["gan"]["generator_dim"] == 128 and composed["gan"]["discriminator_dim"] == 64
    for stage in ("train_stage1", "train_stage2"):
        values = composed[stage]
        assert (values["num_epochs"], values["batch_size"], values["learning_rate"]) == (600, 64, 2e-4)
        assert values["lr_halving_epochs"] == 100
    assert composed["crop_images"]["split"] == "zero_shot" and composed["crop_images"]["min_object_area"] == 0.75
