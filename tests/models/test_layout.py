"""Channels last: the convolutions' weights lie otherwise, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hrzs.models.layout import channels_last
from hrzs.models.patches import PatchConv, embed_by_product


@pytest.fixture
def convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 2, stride=2)
    ).eval()


def test_values_and_gradients_stay(convolutions: nn.Sequential) -> None:
    """Features and the gradients of pixels and weights are those of the usual layout."""
    usual, images = copy.deepcopy(convolutions), torch.rand(4, 3, 8, 8, requires_grad=True)
    channels_last(convolutions)
    expected, found = usual(images), convolutions(images)
    torch.testing.assert_close(found, expected)
    (before,) = torch.autograd.grad(expected.square().sum(), images, retain_graph=True)
    (after,) = torch.autograd.grad(found.square().sum(), images, retain_graph=True)
    torch.testing.assert_close(after, before)
    expected.square().sum().backward()
    found.square().sum().backward()
    for mine, other in zip(convolutions.parameters(), usual.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_activations_take_it_on(convolutions: nn.Sequential) -> None:
    """An image in the usual layout comes out channels last: one module after another keeps it."""
    channels_last(convolutions)
    assert convolutions(torch.rand(4, 3, 8, 8)).is_contiguous(memory_format=torch.channels_last)


def test_patches_are_left_alone(convolutions: nn.Sequential) -> None:
    """A convolution that is computed as a matrix product wants its weight as a matrix, which it reads as a view."""
    embed_by_product(convolutions)
    channels_last(convolutions)
    patches = convolutions[3]
    assert isinstance(patches, PatchConv)
    assert patches.weight.is_contiguous()
    assert patches.weight.flatten(1).data_ptr() == patches.weight.data_ptr()
    assert convolutions[0].weight.is_contiguous(memory_format=torch.channels_last)
