"""Numbers depend on what they are for, and on nothing else."""

import torch

from drone import counter_rng

KEYS = torch.randint(0, 2**62, (500,), generator=torch.Generator().manual_seed(0))


def test_numbers_are_uniform_and_uncorrelated() -> None:
    draws = counter_rng.uniform(seed=1, epoch=2, stream=3, keys_N=KEYS, num_columns=40)
    assert draws.min() >= 0 and draws.max() < 1
    counts = torch.histc(draws, bins=20, min=0, max=1)
    assert (counts - 1000).abs().max() < 150  # 5 standard deviations of 31.
    neighbours = torch.corrcoef(torch.stack([draws[:, :-1].ravel(), draws[:, 1:].ravel()]))
    assert neighbours[0, 1].abs() < 0.03


def test_each_argument_matters_and_the_batch_does_not() -> None:
    base = counter_rng.uniform(1, 2, 3, KEYS, 4)
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert (counter_rng.uniform(*other, KEYS, 4) != base).float().mean() > 0.99
    assert torch.equal(counter_rng.uniform(1, 2, 3, KEYS[100:103], 4), base[100:103])
    assert torch.equal(counter_rng.uniform(1, 2, 3, KEYS, 2), base[:, :2])


def test_a_known_value_so_that_old_runs_can_be_repeated() -> None:
    numbers = counter_rng.uniform(0, 0, 1, torch.tensor([12345]), 3)[0].tolist()
    assert numbers == [0.3141985535621643, 0.9548645615577698, 0.058754682540893555]
