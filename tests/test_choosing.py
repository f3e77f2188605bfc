"""Which rows are shown: all classes come before a second one of any."""

from pipeline.data.choosing import chosen_rows


def test_captions_of_all_classes_come_before_a_second_one_of_any() -> None:
    class_ids = [3] * 20 + [5] * 4 + [9] * 2
    places = chosen_rows(class_ids, 9, seed=4)
    assert len(set(places)) == 9
    classes = [class_ids[place] for place in places]
    assert sorted(classes[:3]) == sorted(classes[3:6]) == [3, 5, 9]
    assert places == chosen_rows(class_ids, 9, seed=4) != chosen_rows(class_ids, 9, seed=5)
    assert len(chosen_rows(class_ids, 99, seed=0)) == len(class_ids)
