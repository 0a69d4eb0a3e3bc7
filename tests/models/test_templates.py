from __future__ import annotations

from pathlib import Path

import pytest
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

from hrzs.data.named import NAMED
from hrzs.errors import UsageError
from hrzs.models.templates import OPENAI, TEMPLATES, describe_templates, resolve_template, template_for

#: How many github.com/openai/CLIP, data/prompts.md, has for each.
COUNTS = {
    "cifar10": 18, "cifar100": 18, "stl10": 2, "imagenet": 80, "caltech101": 34, "caltech256": 34, "oxford_pets": 1,
    "flowers102": 1, "food101": 1, "stanford_cars": 8, "sun397": 2, "country211": 5, "fgvc_aircraft": 2, "eurosat": 3,
    "dtd": 8, "pcam": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_named_templates(name: str) -> None:
    templates = resolve_template(name)
    assert templates
    assert all(template.count("{}") == 1 for template in templates)
    assert len(set(templates)) == len(templates)


@pytest.mark.parametrize("dataset", NAMED)
def test_every_dataset_has_its_ensemble(dataset: str) -> None:
    assert len(resolve_template(template_for("openai", dataset))) == COUNTS[dataset]


def test_those_of_imagenet_are_openais_to_the_letter() -> None:
    assert OPENAI["imagenet"] == tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


@pytest.mark.parametrize(
    ("dataset", "last"),
    [
        ("cifar10", "a photo of the big {}."),
        ("stanford_cars", "a photo of my old {}."),
        ("pcam", "this is a photo of {}"),
        ("dtd", "a photo of the {} object."),
    ],
)
def test_an_ensemble_ends_where_its_dataset_does(dataset: str, last: str) -> None:
    assert OPENAI[dataset][-1] == last


def test_openai_means_that_of_the_dataset() -> None:
    assert template_for("openai", "food101") == "openai-food101"
    assert template_for("openai", "my_pictures") == "openai-imagenet"
    assert template_for("photo", "food101") == "photo"
    with pytest.raises(UsageError, match=r"--template openai: .* such as openai-imagenet"):
        resolve_template("openai")


def test_a_text_is_its_own_template() -> None:
    assert resolve_template("a drawing of a {}!") == ("a drawing of a {}!",)


@pytest.mark.parametrize("spec", ["", "phot", "a photo of a", "a photo of a {name}", "openai-mnist"])
def test_neither_name_nor_text(spec: str) -> None:
    with pytest.raises(UsageError, match=r"--template .*photo, tecoa, name, openai.*\{\}") as error:
        resolve_template(spec)
    assert repr(spec) in str(error.value)


def test_a_file_of_clip_benchmark(tmp_path: Path) -> None:
    file = tmp_path / "zeroshot_classification_templates.txt"
    file.write_text("a photo of {c}, a type of food.\n\nfood: {}\n")
    assert resolve_template(str(file)) == ("a photo of {}, a type of food.", "food: {}")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read it"), ("\n", "the file is empty"), ("a {}\nphoto\n", "the line 'photo' has no {}")],
)
def test_a_file_that_is_none(content: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "t.txt"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError, match=message):
        resolve_template(str(file))


def test_every_form_is_described_in_a_line() -> None:
    described = dict(describe_templates())
    assert described.keys() >= {*TEMPLATES, "openai"}
    assert all(line and "\n" not in line for line in described.values())
    assert "80 templates" in described["openai-imagenet"]
    assert described["openai-pcam"].startswith("1 template,")


@pytest.mark.parametrize(
    "text",
    [
        "a bad photo of a {}.\nart of the {}\n",
        "'a bad photo of a {}.',\n'art of the {}',\n",
        "\ufeff\"a bad photo of a {c}.\"\r\n'art of the {}'\r\n",
        "[\n    'a bad photo of a {}.',\n    'art of the {}',\n]\n",
        "templates = ['a bad photo of a {c}.', \"art of the {}\"]\n",
        "openai = [\n    lambda c: f'a bad photo of a {c}.',\n    lambda name: f'art of the {name}',\n]\n",
    ],
)
def test_templates_as_programs_have_them(tmp_path: Path, text: str) -> None:
    file = tmp_path / "t.txt"
    file.write_bytes(text.encode())
    assert resolve_template(str(file)) == ("a bad photo of a {}.", "art of the {}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a photo of a {}.\n'a bad photo of a {}.',\n", r"t\.txt:2: .* is a piece of a program"),
        ("a photo of a {} in {place}.\n", r"t\.txt:1: .* is a piece of a program"),
        ("lambda c: 'a photo of a {}.' + c\n", r"t\.txt:1: .* is a piece of a program"),
        (r"'l\'image d\'un {}'", r"t\.txt:1: .* is a piece of a program"),
        ("['a photo of a {}.', x]\n", r"t\.txt:1: .* is a piece of a program"),
        ("a photo of a {}.\n\na photo of a %s.\n", r"t\.txt:3: the line 'a photo of a %s\.' has no {}"),
        ("[]", r"t\.txt: the file is empty"),
    ],
)
def test_pieces_of_programs_are_no_templates(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "t.txt"
    file.write_text(text)
    with pytest.raises(UsageError, match=said):
        resolve_template(str(file))
