from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrzs.wordnet import open_wordnet
from hrzs.wordnet.graph import noun_graph
from hrzs.wordnet.names import Names, Reading


@cache
def names() -> Names:
    return Names(open_wordnet(), noun_graph(open_wordnet()))


def read(name: str) -> Reading | None:
    return names().read(name)


def found(name: str) -> tuple[str, list[str], bool]:
    """The name as a person would write it, the first two synsets, whether they stand above the class."""
    reading = read(name)
    assert reading is not None
    return reading.name, [synset.name() for synset in reading.synsets][:2], reading.beneath


@pytest.mark.parametrize(
    ("name", "plain", "synset"),
    [
        ("tulips", "tulips", "tulip.n.01"),
        ("cup_cakes", "cup cakes", "cupcake.n.01"),
        ("binocular", "binocular", "binoculars.n.01"),
        ("dumb-bell", "dumb bell", "dumbbell.n.01"),
        ("house-fly", "house fly", "housefly.n.01"),
        ("hot air balloon", "hot air balloon", "hot-air_balloon.n.01"),
        ("T_shirt", "T shirt", "jersey.n.03"),
        ("ArmoredCar", "Armored Car", "armored_car.n.01"),
        ("crème brûlée", "crème brûlée", "creme_brulee.n.01"),
        ("015.bonsai-101", "bonsai", "bonsai.n.01"),
        ("Siamese cat (cat)", "Siamese cat", "siamese_cat.n.01"),
        ("sweet pepper (vegetable)", "sweet pepper", "sweet_pepper.n.02"),
        ("crane (bird)", "crane", "crane.n.05"),
        ("maple tree", "maple tree", "maple.n.02"),
        ("kit fox, Vulpes macrotis", "kit fox", "kit_fox.n.01"),
        ("Vulpes nonsensica, kit fox", "kit fox", "kit_fox.n.01"),
        ("apse/indoor", "apse", "apse.n.01"),
        ("water lilly", "water lilly", "water_lily.n.01"),
    ],
)
def test_spellings(name: str, plain: str, synset: str) -> None:
    written, synsets, beneath = found(name)
    assert (written, synsets[0], beneath) == (plain, synset, False)


@pytest.mark.parametrize(
    ("british", "synset"),
    [
        ("colour television", "color_television.n.01"),
        ("aeroplane", "airplane.n.01"),
        ("movie theatre", "cinema.n.02"),
        ("grey whale", "grey_whale.n.01"),
        ("armoured car", "armored_car.n.01"),
        ("traveller's joy", "traveler's_joy.n.01"),
        ("ploughshare", "plowshare.n.01"),
    ],
)
def test_british_spelling(british: str, synset: str) -> None:
    written, synsets, beneath = found(british)
    assert (written, synsets[0], beneath) == (british, synset, False)


@pytest.mark.parametrize(
    ("name", "plain", "synset"),
    [
        ("aquarium fish", "aquarium fish", "fish.n.01"),
        ("american bulldog", "american bulldog", "bulldog.n.01"),
        ("self-propelled-lawn-mower", "self propelled lawn mower", "lawn_mower.n.01"),
        ("cup of coffee", "cup of coffee", "cup.n.01"),
        ("house with a red door", "house with a red door", "house.n.01"),
        ("252.car-side-101", "car side", "side.n.01"),
        ("AnnualCrop", "Annual Crop", "crop.n.01"),
        ("HerbaceousVegetation", "Herbaceous Vegetation", "vegetation.n.01"),
        ("Bengal (cat)", "Bengal", "cat.n.01"),
        ("snoopy (cartoon beagle)", "snoopy", "beagle.n.01"),
        ("stop sign", "stop sign", "sign.n.01"),
    ],
)
def test_beneath_the_head_noun(name: str, plain: str, synset: str) -> None:
    written, synsets, beneath = found(name)
    assert (written, synsets[0], beneath) == (plain, synset, True)


@pytest.mark.parametrize("name", ["huevos rancheros", "german shorthaired", "中文", "", "-", "()", "1e3", "qwrtz"])
def test_nothing_found(name: str) -> None:
    assert read(name) is None


@settings(deadline=None)
@given(st.text(st.sampled_from("aAeE tT-_.,()/01 éof"), max_size=30))
def test_any_text_can_be_read(name: str) -> None:
    reading = read(name)
    assert reading is None or (reading.synsets and reading.name)
