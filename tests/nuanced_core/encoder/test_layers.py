"""nuanced_core.encoder.layers: the stored rows of a voice, and the embedding of a phoneme count."""

import torch

from nuanced_core.encoder.layers import COUNT_CHANNELS, KNOTS, embed_counts, knots


def test_knots_go_from_the_first_to_the_last_row_and_lie_densest_where_there_are_few_phonemes() -> None:
    places = knots()
    assert places.shape == (KNOTS,)
    assert (int(places[0]), int(places[-1])) == (0, 509)
    steps = places.diff()
    assert (steps > 0).all()
    assert (steps.diff() >= -1).all()  # they grow, except for rounding
    assert steps[:5].sum() < 15  # of 509


def test_a_count_is_embedded_by_cosines_of_its_logarithm_between_1_and_510_phonemes() -> None:
    counts = torch.tensor([1, 510])
    found = embed_counts(counts - 1)
    alternating = torch.tensor([(-1.0) ** k for k in range(1, COUNT_CHANNELS + 1)])
    torch.testing.assert_close(found, torch.stack([torch.ones(COUNT_CHANNELS), alternating]), rtol=0, atol=1e-4)
    halfway = embed_counts(torch.tensor([510**0.5 - 1]))[0]
    torch.testing.assert_close(halfway[:4], torch.tensor([0.0, -1.0, 0.0, 1.0]), rtol=0, atol=1e-4)
