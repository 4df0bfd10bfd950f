"""Views are pure functions, and the fast path equals the straightforward one."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from PIL import Image
from scipy.ndimage import gaussian_filter

from drone.data import augmentation, degradations
from drone.data.augment_config import AugmentConfig
from drone.data.conditions import compressed, infrared
from drone.data.conditions import hazy as hazy_image
from drone.data.warp import warp
from drone.errors import ConfigError
from drone.model.mobilenet import IMAGENET_MEAN, IMAGENET_STD

MEAN, STD = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
KEYS = torch.randint(0, 2**62, (40,), generator=torch.Generator().manual_seed(0))
PIXELS = torch.randint(
    0, 256, (40, 48, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
)
EVERYTHING = AugmentConfig(strength=1.0, elastic_p=0.5)


def views(keys: torch.Tensor, pixels: torch.Tensor, seed: int = 7, epoch: int = 3) -> torch.Tensor:
    return augmentation.apply(pixels, augmentation.draw(EVERYTHING, seed, epoch, keys), MEAN, STD)


def test_a_view_does_not_depend_on_its_batch() -> None:
    together = views(KEYS, PIXELS)
    order = torch.randperm(40)
    torch.testing.assert_close(views(KEYS[order], PIXELS[order]), together[order], rtol=0, atol=0)
    for position in (0, 17, 39):
        alone = views(KEYS[position : position + 1], PIXELS[position : position + 1])
        torch.testing.assert_close(alone[0], together[position], rtol=0, atol=1e-5)


def test_another_epoch_or_seed_gives_another_view() -> None:
    first = views(KEYS, PIXELS)
    for other in (views(KEYS, PIXELS, epoch=4), views(KEYS, PIXELS, seed=8)):
        assert ((first - other).abs().amax(dim=(1, 2, 3)) > 0.1).all()


def test_strength_zero_leaves_the_image_unchanged() -> None:
    drawn = augmentation.draw(AugmentConfig(strength=0.0), 0, 0, KEYS)
    plain = augmentation.normalise(PIXELS, MEAN, STD)
    torch.testing.assert_close(
        augmentation.apply(PIXELS, drawn, MEAN, STD), plain, rtol=0, atol=1e-3
    )


def test_normalise() -> None:
    expected = (PIXELS.permute(0, 3, 1, 2) / 255 - MEAN[:, None, None]) / STD[:, None, None]
    normalised = augmentation.normalise(PIXELS, MEAN, STD)
    torch.testing.assert_close(normalised, expected, rtol=0, atol=1e-5)
    assert normalised.is_contiguous(memory_format=torch.channels_last)


def test_the_fast_path_equals_the_straightforward_one() -> None:
    config = AugmentConfig(strength=1.0)
    drawn = augmentation.draw(config, 5, 1, KEYS)
    expected = torch.empty(40, 3, 48, 48)
    for number in range(40):  # One image at a time, with torch's own affine_grid.
        image = PIXELS[number].permute(2, 0, 1)[None].float()
        grid = functional.affine_grid(
            drawn.theta_N23[number : number + 1], [1, 3, 48, 48], align_corners=False
        )
        view = functional.grid_sample(image, grid, padding_mode="reflection", align_corners=False)[
            0
        ].round()
        view = (view * drawn.gain_N[number] + drawn.offset_N[number]).clamp(0, 255) / 255
        top, bottom, left, right = drawn.hole_N4[number].tolist()
        for y in range(48):
            for x in range(48):
                if top <= (y + 0.5) / 48 < bottom and left <= (x + 0.5) / 48 < right:
                    view[:, y, x] = MEAN
        expected[number] = (view - MEAN[:, None, None]) / STD[:, None, None]
    difference = (augmentation.apply(PIXELS, drawn, MEAN, STD) - expected).abs()
    assert difference.max() < 1.4 / 255 / 0.22  # A pixel on a half is rounded up or down.
    assert (difference > 1e-4).float().mean() < 0.01


def test_ranges_scale_with_strength() -> None:
    keys = torch.arange(4000)
    for strength in (0.25, 1.0):
        drawn = augmentation.draw(AugmentConfig(strength=strength), 0, 0, keys)
        theta = drawn.theta_N23
        zoom = torch.linalg.det(theta[:, :, :2]).abs().sqrt()
        max_zoom = math.exp(strength * math.log1p(0.4))
        assert zoom.max() <= max_zoom + 1e-4 and zoom.min() >= 1 / max_zoom - 1e-4
        assert zoom.max() > 1 + 0.9 * (max_zoom - 1)
        angle = torch.atan2(theta[:, 1, 1].neg() * 0 + theta[:, 0, 1], theta[:, 1, 1])
        assert angle.abs().max() <= math.radians(20) * strength + 1e-4
        assert theta[:, :, 2].abs().max() <= 2 * 0.15 * strength + 1e-6
        flipped = (torch.linalg.det(theta[:, :, :2]) < 0).float().mean()
        assert flipped == pytest.approx(strength / 2, abs=0.03)
        holes = (drawn.hole_N4[:, 1] > 0).float().mean()
        assert holes == pytest.approx(0.7 * strength, abs=0.03)


def test_a_range_out_of_bounds_names_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"augment.strength is 1.5; it must be 0 to 1"):
        AugmentConfig(strength=1.5)
    with pytest.raises(ConfigError, match="cutout_min"):
        AugmentConfig(cutout_min=0.5, cutout_max=0.2)


def test_a_mask_makes_the_holes_that_slices_make() -> None:
    """A GPU fills all holes in one operation, a CPU one after the other."""
    drawn = augmentation.draw(AugmentConfig(strength=1.0), 3, 1, torch.arange(64))
    edges = torch.ceil(drawn.hole_N4 * 50 - 0.5).long()
    by_slices = torch.ones(64, 50, 50, 3)
    augmentation._make_holes(by_slices, drawn.hole_N4)
    by_mask = torch.ones(64, 50, 50, 3).masked_fill_(augmentation._hole_mask(edges, 50, 50), 0)
    assert torch.equal(by_slices, by_mask)
    assert 0 < (by_mask == 0).float().mean() < 0.5


def test_an_object_far_away_is_reduced_to_few_pixels() -> None:
    config = AugmentConfig(strength=1.0, distance_p=0.4, distance_min=6 / 48, distance_max=0.5)
    keys = torch.arange(4000)
    sides = torch.tensor(augmentation.draw(config, 1, 2, keys).degradations.far_sides)
    far = degradations.far_away(config, 1, 2, keys)
    assert torch.equal(sides > 0, far) and far.float().mean() == pytest.approx(0.4, abs=0.03)
    assert sides[far].min() == pytest.approx(6 / 48) and sides[far].max() == pytest.approx(0.5)
    assert (sides[far] < 0.25).float().mean() == pytest.approx(0.5, abs=0.05)
    # Other settings of a view do not depend on it.
    near = augmentation.draw(AugmentConfig(strength=1.0), 1, 2, keys)
    assert torch.equal(augmentation.draw(config, 1, 2, keys).theta_N23, near.theta_N23)
    assert not degradations.far_away(AugmentConfig(strength=1.0), 1, 2, keys).any()


def test_a_view_of_an_object_far_away_is_averaged_and_enlarged_linearly() -> None:
    still = {"brightness": 0.0, "contrast": 0.0, "cutout_p": 0.0}
    far = AugmentConfig(strength=1.0, distance_p=1.0, distance_min=0.25, distance_max=0.25, **still)
    drawn = augmentation.draw(far, 1, 2, KEYS)
    near = warp(PIXELS, drawn.theta_N23, {}).numpy().astype(np.float32)
    small = near.reshape(40, 12, 4, 12, 4, 3).mean(axis=(2, 4))
    enlarged = [
        [np.asarray(Image.fromarray(channel).resize((48, 48), 2)) for channel in image]
        for image in small.transpose(0, 3, 1, 2)
    ]
    expected = (torch.tensor(np.array(enlarged)) / 255 - MEAN[:, None, None]) / STD[:, None, None]
    views = augmentation.apply(PIXELS, drawn, MEAN, STD)
    torch.testing.assert_close(views, expected, rtol=0, atol=1e-3)


def test_a_far_view_does_not_depend_on_its_batch() -> None:
    config = AugmentConfig(strength=1.0, distance_p=0.5)
    together = augmentation.apply(PIXELS, augmentation.draw(config, 1, 2, KEYS), MEAN, STD)
    some = augmentation.draw(config, 1, 2, KEYS[5:9])
    assert 0 < sum(side > 0 for side in some.degradations.far_sides) < 4
    part = augmentation.apply(PIXELS[5:9], some, MEAN, STD)
    torch.testing.assert_close(part, together[5:9], rtol=0, atol=1e-5)


def test_weather_takes_light_and_haze_gives_grey() -> None:
    config = AugmentConfig(
        strength=1.0, brightness=0.0, contrast=0.0, weather_p=0.5, weather=0.8, cutout_p=0.0
    )
    drawn = augmentation.draw(config, 3, 4, torch.arange(4000))
    lost = 1 - drawn.gain_N
    happens, hazy = lost > 0, drawn.offset_N > 0
    assert happens.float().mean() == pytest.approx(0.5, abs=0.03)
    assert 0.78 < lost.max() <= 0.8
    assert hazy[happens].float().mean() == pytest.approx(0.5, abs=0.05)
    torch.testing.assert_close(drawn.offset_N[hazy], lost[hazy] * 255 * 0.85)
    # Haze at the strongest looks like the transformation of the card of conditions.
    position = int((lost * hazy).argmax())
    image = PIXELS[:1].numpy()[0]
    view = image * drawn.gain_N[position].item() + drawn.offset_N[position].item()
    expected = hazy_image(image, drawn.gain_N[position].item(), np.random.default_rng(0))
    assert np.abs(view - expected).max() < 1


SENSOR = AugmentConfig(
    strength=1.0, blur_p=0.5, noise_p=0.5, grey_p=0.5, infrared_p=0.5, jpeg_p=0.5
)
ALONE = {
    **dict.fromkeys(("brightness", "contrast", "rotation_deg", "scale", "shift"), 0.0),
    **dict.fromkeys(("flip_p", "cutout_p"), 0.0),
}
"""Settings without anything else."""


def test_what_a_camera_loses_does_not_depend_on_the_batch() -> None:
    drawn = augmentation.draw(SENSOR, 7, 3, KEYS)
    assert all(
        5 < len(chosen) < 35
        for chosen in (drawn.degradations.infrared, drawn.degradations.compressed)
    )
    assert 5 < len(drawn.degradations.noisy) < 35 and 5 < len(drawn.degradations.grey) < 35
    assert (
        5 < sum(blur > 0 for blur in drawn.degradations.blurs) < 35
        and len(set(drawn.degradations.blurs)) <= 9
    )
    together = augmentation.apply(PIXELS, drawn, MEAN, STD)
    order = torch.randperm(40)
    shuffled = augmentation.draw(SENSOR, 7, 3, KEYS[order])
    other = augmentation.apply(PIXELS[order], shuffled, MEAN, STD)
    torch.testing.assert_close(other, together[order], rtol=0, atol=1e-5)
    # What a view has otherwise is as without them.
    plain = augmentation.draw(AugmentConfig(strength=1.0), 7, 3, KEYS)
    assert (
        torch.equal(plain.theta_N23, drawn.theta_N23)
        and not plain.degradations.noisy
        and not plain.degradations.grey
    )


def test_a_grey_view_has_the_luma_of_the_image() -> None:
    settings = AugmentConfig(strength=1.0, grey_p=1.0, **ALONE)
    drawn = augmentation.draw(settings, 0, 0, KEYS[:2])
    found = augmentation.apply(PIXELS[:2], drawn, torch.zeros(3), torch.ones(3)) * 255
    expected = np.asarray(Image.fromarray(PIXELS[0].numpy()).convert("L"), np.float32)
    for channel in found[0]:
        np.testing.assert_allclose(channel.numpy(), expected, atol=1.0)


def test_a_blurred_view_is_the_image_under_a_gaussian() -> None:
    settings = AugmentConfig(strength=1.0, blur_p=1.0, blur=2 / 48, **ALONE)
    drawn = augmentation.draw(settings, 0, 0, KEYS[:3])
    found = augmentation.apply(PIXELS[:3], drawn, torch.zeros(3), torch.ones(3)) * 255
    for image, blur, pixels in zip(found, drawn.degradations.blurs, PIXELS.numpy(), strict=False):
        assert 0 < blur <= 2 / 48 + 1e-6
        expected = gaussian_filter(
            pixels[:, :, 0].astype(float), blur * 48, mode="mirror", truncate=4
        )
        np.testing.assert_allclose(image[0].numpy(), expected, atol=1.5)


def test_noise_has_its_size_and_differs_between_pixels_images_and_epochs() -> None:
    settings = AugmentConfig(strength=1.0, noise_p=1.0, noise=0.1, **ALONE)
    grey = torch.full((3, 64, 64, 3), 128, dtype=torch.uint8)

    def noise(epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = augmentation.draw(settings, 0, epoch, KEYS[:3])
        found = augmentation.apply(grey, drawn, torch.zeros(3), torch.ones(3))
        return found - 128 / 255, drawn.degradations.noise_N

    first, sizes = noise(0)
    assert first.std(dim=(1, 2, 3)) == pytest.approx(sizes, rel=0.05)
    assert first.mean(dim=(1, 2, 3)).abs().max() < 0.005
    flat = first.reshape(3, -1)
    for other in (flat[1], noise(1)[0].reshape(3, -1)[0], flat[0].roll(1), flat[0].roll(64)):
        assert abs(float(torch.corrcoef(torch.stack([flat[0], other]))[0, 1])) < 0.05


def test_an_infrared_like_view_has_the_tones_of_the_card_of_conditions() -> None:
    settings = AugmentConfig(strength=1.0, infrared_p=1.0, **ALONE)
    drawn = augmentation.draw(settings, 0, 0, KEYS[:2])
    found = augmentation.apply(PIXELS[:2], drawn, torch.zeros(3), torch.ones(3)) * 255
    expected = infrared(PIXELS[0].numpy(), 0.0, np.random.default_rng(0))
    np.testing.assert_allclose(found[0].permute(1, 2, 0).numpy(), expected, atol=1.0)


@pytest.mark.parametrize("side_px", [48, 52, 37])
def test_a_compressed_view_is_what_a_jpeg_file_gives_back(side_px: int) -> None:
    settings = AugmentConfig(strength=1.0, jpeg_p=1.0, **ALONE)
    rng = np.random.default_rng(0)
    coarse = rng.integers(60, 200, (20, 9, 9, 3), np.uint8)
    images = np.stack(
        [np.asarray(Image.fromarray(one).resize((side_px, side_px))) for one in coarse]
    )
    drawn = augmentation.draw(settings, 0, 0, KEYS[:20])
    pixels = torch.from_numpy(images)
    found = augmentation.apply(pixels, drawn, torch.zeros(3), torch.ones(3)).permute(0, 2, 3, 1)
    qualities = drawn.degradations.qualities_N.tolist()
    assert min(qualities) < 40 and max(qualities) > 60
    for view, image, quality in zip(found.numpy() * 255, images, qualities, strict=True):
        decoded = compressed(image, quality, rng).astype(np.float32)
        difference = np.abs(view - decoded)
        # libjpeg computes in integers, so values at the edge of two steps go either way.
        assert difference.mean() < 0.4 * np.abs(image - decoded).mean() or quality > 90


def test_the_qualities_of_compression_scale_with_strength() -> None:
    for strength in (0.25, 1.0):
        config = AugmentConfig(strength=strength, jpeg_p=0.5, jpeg=0.8)
        lost = augmentation.draw(config, 0, 0, torch.arange(4000)).degradations
        assert len(lost.compressed) / 4000 == pytest.approx(0.5 * strength, abs=0.03)
        assert lost.qualities_N.min() == pytest.approx(100 - 80 * strength, abs=1)
    none = augmentation.draw(AugmentConfig(strength=1.0), 0, 0, torch.arange(9)).degradations
    assert not none.compressed and (none.qualities_N == 100).all()
