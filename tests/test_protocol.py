"""Which scores may be put side by side."""

import pytest

from pipeline.evaluation.protocol import fingerprint, require_comparable, scoring_code_sha256

PROTOCOL = {"num_images": 100, "seed": 0, "classifier_sha256": "abc", "classifier_held_out_accuracy": 0.5}


def test_equal_protocols_have_one_fingerprint_whatever_the_order_of_their_fields() -> None:
    assert fingerprint(PROTOCOL) == fingerprint(dict(reversed(PROTOCOL.items())))
    assert len(fingerprint(PROTOCOL)) == 16
    require_comparable({"ours": PROTOCOL, "theirs": dict(PROTOCOL)})
    require_comparable({"ours": PROTOCOL})


@pytest.mark.parametrize("field", PROTOCOL)
def test_every_field_moves_the_fingerprint(field: str) -> None:
    assert fingerprint(PROTOCOL | {field: 7}) != fingerprint(PROTOCOL)
    with pytest.raises(ValueError, match=rf"scores of ours, theirs cannot be compared.*unlike {field} \(ours: "):
        require_comparable({"ours": PROTOCOL, "theirs": PROTOCOL | {field: 7}})


def test_all_differing_fields_are_named_with_their_values_and_no_others() -> None:
    other = {key: value for key, value in PROTOCOL.items() if key != "seed"} | {"num_images": 90, "resizer": "area"}
    with pytest.raises(ValueError) as raised:
        require_comparable({"a": PROTOCOL, "b": other, "c": PROTOCOL})
    message = str(raised.value)
    assert "num_images (a: 100, b: 90, c: 100)" in message
    assert "seed (a: 0, b: null, c: 0)" in message
    assert 'resizer (a: null, b: "area", c: null)' in message
    assert "classifier" not in message.split("score all")[0]


def test_the_scoring_code_is_hashed() -> None:
    assert len(scoring_code_sha256()) == 64
    assert scoring_code_sha256() == scoring_code_sha256()
