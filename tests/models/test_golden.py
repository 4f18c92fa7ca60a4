"""Golden sets: the shipped one, the user's format and its errors, what is rendered."""

from __future__ import annotations

import importlib
import io
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.golden import RULES, load_golden
from models.golden.check import agreement, check_golden, difference_hash
from models.golden.load import read_jsonl
from models.golden.sets import ImageRef, export
from models.support.errors import UsageError


def write_set(folder: Path, *rows: dict[str, Any] | str) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    Image.new("RGB", (20, 10), "red").save(folder / "images" / "a.png")
    path = folder / "golden.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows), encoding="utf-8")
    return path


ROW = {"id": "1", "image": "images/a.png", "question": "colour?", "expected": "red"}


class TestEasyVqa:
    def test_is_the_whole_test_split(self) -> None:
        import easy_vqa

        golden = load_golden("easy-vqa")
        assert len(golden.items) == 9673
        assert len({i.image.path for i in golden.items}) == 1000
        assert golden.categories == {"color": 1280, "shape": 1257, "yes_no": 7136}
        texts, answers, images = easy_vqa.get_test_questions()
        assert [(i.question, i.expected) for i in golden.items] == list(zip(texts, answers, strict=True))
        assert [int(i.image.path.stem) for i in golden.items] == images
        # no image of the training split can have slipped in
        assert all("test" in i.image.path.parts for i in golden.items)

    def test_item(self) -> None:
        item = load_golden("easy-vqa").items[0]
        assert (item.media_type, item.width, item.height, item.split) == ("image/png", 64, 64, "test")
        assert item.image_bytes().startswith(b"\x89PNG")
        assert item.check(" Triangle.\n")
        assert not item.check("not a triangle")

    def test_digest_is_stable_and_ignores_order(self) -> None:
        golden = load_golden("easy-vqa")
        assert golden.digest == "c9e441ccec772cabf85723e37975f193f55cbc74c8eee28d76ddf1d2f3b3e409"
        turned = type(golden)(golden.name, golden.items[::-1])
        assert turned.digest == golden.digest
        assert type(golden)(golden.name, golden.items[1:]).digest != golden.digest

    def test_sample_is_seeded_and_without_replacement(self) -> None:
        golden = load_golden("easy-vqa")
        first = [i.id for i in golden.sample(50, seed=3)]
        assert first == [i.id for i in golden.sample(50, seed=3)] != [i.id for i in golden.sample(50, seed=4)]
        assert len(set(first)) == 50
        assert len(golden.sample(None)) == len(golden.sample(10**6)) == 9673
        with pytest.raises(UsageError, match="limit"):
            golden.sample(0)


class TestUserSet:
    def test_folder_and_file_give_the_same_set(self, tmp_path: Path) -> None:
        row = {**ROW, "accept": {"rule": "set", "match": "all"}, "expected": ["red", "blue"], "tags": {"blur": "2"}}
        path = write_set(tmp_path, ROW, "", "# a remark", {**row, "id": "2", "category": "c"})
        by_folder, by_file = load_golden(tmp_path), load_golden(str(path))
        assert by_folder.digest == by_file.digest
        assert [i.id for i in by_file.items] == ["1", "2"]
        assert (by_file.items[0].width, by_file.items[0].height) == (20, 10)
        assert by_file.items[1].check("blue and red") and not by_file.items[1].check("blue")
        assert by_file.categories == {"all": 1, "c": 1}
        assert by_file.items[0].image is by_file.items[1].image

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{oops", "golden.jsonl:2: broken line, not JSON"),
            ("[1]", "golden.jsonl:2: not a JSON object"),
            ('{"id": "2"}', "golden.jsonl:2: missing image, question, expected"),
            ({**ROW}, "golden.jsonl:2: the id is already used on line 1"),
            ({**ROW, "id": "2", "image": "images/b.png"}, "golden.jsonl:2: there is no such image file"),
            ({**ROW, "id": "2", "image": "golden.jsonl"}, "golden.jsonl:2: not a readable image"),
            ({**ROW, "id": "2", "image": "../a.png"}, "must lie in the set's own folder"),
            ({**ROW, "id": "2", "image": "/etc/hosts"}, "must lie in the set's own folder"),
            ({**ROW, "id": ""}, "id must be a non-empty string"),
            ({**ROW, "id": "2", "expcted": 1}, "unknown key"),
            ({**ROW, "id": "2", "split": "dev"}, "unknown split"),
            ({**ROW, "id": "2", "tags": {"a": 1}}, "tags must be an object of strings"),
            ({**ROW, "id": "2", "accept": "exact"}, "accept must be an object with a rule"),
            ({**ROW, "id": "2", "accept": {"rule": "close"}}, "unknown acceptance rule"),
            ({**ROW, "id": "2", "accept": {"rule": "exact", "abs": 1}}, "rule exact has no option of this name"),
            ({**ROW, "id": "2", "accept": {"rule": "numeric"}}, "expected must be one finite number"),
            ({**ROW, "id": "2", "accept": {"rule": "regex", "pattern": "("}}, "not a regular expression"),
            ({**ROW, "id": "2", "accept": {"rule": "regex", "pattern": "blue"}}, "outside its own acceptable range"),
        ],
    )
    def test_one_clear_error_with_the_line(self, tmp_path: Path, line: dict[str, Any] | str, message: str) -> None:
        path = write_set(tmp_path, ROW, line)
        with pytest.raises(UsageError) as caught:
            load_golden(path)
        assert message in str(caught.value)
        assert caught.value.exit_code == 2

    def test_not_found(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="did you mean easy-vqa"):
            load_golden("easyvqa")
        with pytest.raises(UsageError, match=r"has no golden\.jsonl"):
            load_golden(tmp_path)
        (tmp_path / "golden.jsonl").write_bytes(b"\n\n")
        with pytest.raises(UsageError, match="no items"):
            load_golden(tmp_path)
        (tmp_path / "golden.jsonl").write_bytes(b"\xff\xfe{")
        with pytest.raises(UsageError, match="not UTF-8"):
            load_golden(tmp_path)

    @given(data=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
    def test_no_bytes_escape_as_another_error(self, data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
        path = tmp_path_factory.mktemp("fuzz") / "golden.jsonl"
        path.write_bytes(data)
        with pytest.raises(UsageError):
            read_jsonl(path, name="fuzz")

    @given(
        row=st.fixed_dictionaries(
            {},
            optional={
                key: st.none()
                | st.booleans()
                | st.floats()
                | st.text(max_size=5)
                | st.lists(st.text(max_size=3), max_size=2)
                for key in ("id", "image", "question", "expected", "category", "split", "tags")
            }
            | {
                "accept": st.fixed_dictionaries(
                    {"rule": st.sampled_from(sorted(RULES))}, optional={"abs": st.floats(), "match": st.text()}
                )
            },
        )
    )
    def test_any_json_object_is_read_or_refused(
        self, row: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = write_set(tmp_path_factory.mktemp("fuzz"), {"image": "images/a.png", **row})
        try:
            golden = load_golden(path)
        except UsageError:
            return
        assert golden.items[0].check("nothing like it at all 1 2 3") is False
        assert len(golden.digest) == 64


class TestCheck:
    def make(self, folder: Path, *rows: dict[str, Any]) -> Any:
        folder.mkdir(exist_ok=True)
        return load_golden(write_set(folder, *rows))

    def test_easy_vqa_is_clean(self) -> None:
        assert check_golden(load_golden("easy-vqa")) == []

    def test_duplicates_conflicts_and_leaks(self, tmp_path: Path) -> None:
        golden = self.make(
            tmp_path / "a",
            ROW,
            {**ROW, "id": "2", "question": "Colour?"},
            {**ROW, "id": "3", "question": "shape?", "expected": "circle"},
            {**ROW, "id": "4", "question": "shape?", "expected": "square"},
            {**ROW, "id": "5", "question": "size?", "split": "train"},
        )
        found = {(f.kind, f.ids) for f in check_golden(golden)}
        assert found == {("duplicate", ("1", "2")), ("conflict", ("3", "4")), ("leak", ("1", "5"))}

    def test_leaks_from_another_set(self, tmp_path: Path) -> None:
        base = load_golden("easy-vqa").items
        for name, quality in (("a", None), ("b", 60)):
            (tmp_path / name / "images").mkdir(parents=True)
            with Image.open(base[0].image.path) as picture:
                big = picture.resize((256, 256), Image.Resampling.BICUBIC)
            if quality is None:
                big.save(tmp_path / name / "images" / "p.png")
            else:
                big.save(tmp_path / name / "images" / "p.jpg", quality=quality)
        one = self.make(tmp_path / "a", {**ROW, "image": "images/p.png"}, {**ROW, "id": "2"})
        two = self.make(tmp_path / "b", {**ROW, "image": "images/p.jpg"}, {**ROW, "id": "2"})
        found = {f.kind: f.ids for f in check_golden(one, two)}
        # the red square is the same file in both; the shape was compressed again
        assert found == {"leak": ("2", "2"), "near_leak": ("1", "1")}
        other = difference_hash(ImageRef.open(base[500].image.path))
        assert (difference_hash(one.items[0].image) ^ other).bit_count() > 4


class TestAgreement:
    def test_published(self) -> None:
        # Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section B: nominal data, two observers
        a = ["a", "a", "b", "b", "d", "c", "c", "c", "e", "d", "d", "a"]
        b = ["b", "a", "b", "b", "b", "c", "c", "c", "e", "d", "d", "d"]
        got = agreement(list(zip(a, b, strict=True)))
        assert got.alpha == pytest.approx(0.692, abs=5e-4) and got.items == 12 and got.observed == 0.75
        # section C: four observers with gaps
        rows = [
            "1 2 3 3 2 1 4 1 2 . . .",
            "1 2 3 3 2 2 4 1 2 5 . 3",
            ". 3 3 3 2 3 4 2 2 5 1 .",
            "1 2 3 3 2 4 4 1 2 5 1 .",
        ]
        columns = zip(*(r.split() for r in rows), strict=True)
        got = agreement([[None if v == "." else v for v in column] for column in columns])
        assert got.alpha == pytest.approx(0.743, abs=5e-4) and got.kappa is None

    def test_kappa_published(self) -> None:
        # 50 grant proposals, two readers: 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: kappa 0.4
        pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
        assert agreement(pairs).kappa == pytest.approx(0.4)

    @given(st.lists(st.sampled_from("abc"), min_size=2, max_size=30))
    def test_bounds(self, labels: list[str]) -> None:
        assert agreement([(x, x) for x in labels]).alpha == 1.0
        got = agreement(list(zip(labels, labels[::-1], strict=True)))
        assert got.alpha <= 1 and 0 <= got.observed <= 1

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match="no item has two"):
            agreement([["a", None]])
        with pytest.raises(ValueError, match="one entry per annotator"):
            agreement([["a", "b"], ["a"]])


class TestRendered:
    @pytest.mark.parametrize("name", ["receipts", "modems"])
    def test_sound_and_seeded(self, name: str, tmp_path: Path) -> None:
        golden = load_golden(name)
        assert len(golden.items) == 240 and check_golden(golden) == []
        kinds = Counter(i.tags["perturbation"] for i in golden.items)
        damaged = ("blur", "rotation", "low_light", "low_resolution", "jpeg", "occlusion", "wrong_page")
        assert kinds == {"none": 100} | dict.fromkeys(damaged, 20)
        assert Counter(i.tags["language"] for i in golden.items) == {"en": 120, "de": 120}
        again = importlib.import_module(f"models.golden.rendered.{name}").build.__wrapped__()
        assert again.digest == golden.digest and again is not golden
        # what is exported is the documented form of the same set
        assert load_golden(export(golden, tmp_path).parent).digest == golden.digest
        with Image.open(io.BytesIO(golden.items[0].image_bytes())) as picture:
            assert picture.size == (golden.items[0].width, golden.items[0].height)

    def test_receipt_labels(self) -> None:
        golden = load_golden("receipts")
        for item in golden.items:
            own = "not a receipt" if item.expected is None else json.dumps(item.expected)
            assert item.check(own)
            assert not item.check("{}")
            # Pillow's own font draws boxes for anything else
            assert own.isascii()
            if item.expected is not None:
                assert (item.expected["date"] is None) == (item.tags["perturbation"] == "occlusion")
                assert not item.check(json.dumps(item.expected | {"total": item.expected["total"] + 0.01}))

    def test_modem_labels(self) -> None:
        for item in load_golden("modems").items:
            assert item.check(item.expected) and item.expected in item.question
            assert (item.category == "not a modem") == (item.tags["perturbation"] == "wrong_page")

    def test_the_modem_text_alone_does_not_tell(self) -> None:
        """The most frequent answer of each text is right on less than half of the items: the picture is needed."""
        answers: dict[str, Counter[str]] = defaultdict(Counter)
        for item in load_golden("modems").items:
            answers[item.question][item.expected] += 1
        assert sum(c.most_common(1)[0][1] for c in answers.values()) < 0.5 * 240
