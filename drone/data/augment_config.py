"""Settings of augmented views."""

from dataclasses import dataclass

from drone.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How far augmented views differ from the image. Ranges are those at strength 1."""

    strength: float = 0.5
    """Strength of augmentation, 0 (none) to 1; scales every range and the probabilities of flip,
    cutout and what follows it."""

    brightness: float = 0.4
    """Maximum change of brightness in either direction, as a share of the full scale."""

    brightness_p: float = 0.8
    """Probability of a change of brightness."""

    contrast: float = 0.4
    """Maximum change of contrast about mid-grey in either direction, as a share."""

    contrast_p: float = 0.8
    """Probability of a change of contrast."""

    rotation_deg: float = 20.0
    """Maximum rotation in either direction, in degrees."""

    rotation_p: float = 0.8
    """Probability of a rotation."""

    scale: float = 0.4
    """Maximum zoom in or out: the factor is between 1 / (1 + scale) and 1 + scale."""

    shift: float = 0.15
    """Maximum shift along each axis in either direction, as a share of the image's side."""

    shift_p: float = 0.8
    """Probability of a shift."""

    flip_p: float = 1.0
    """Twice the probability of a horizontal flip at strength 1: 1 flips half of the views."""

    cutout_p: float = 0.7
    """Probability, at strength 1, of one square hole filled with the mean colour."""

    cutout_min: float = 16 / 224
    """Minimum side of the hole, as a share of the image's side."""

    cutout_max: float = 64 / 224
    """Maximum side of the hole, as a share of the image's side."""

    elastic_p: float = 0.0
    """Probability, at strength 1, of an elastic warp."""

    elastic: float = 0.02
    """Maximum displacement of the elastic warp, as a share of the image's side."""

    distance_p: float = 0.0
    """Probability, at strength 1, that a view shows its object as from far away: reduced to few
    pixels and enlarged again. The target of such a view is the role, bird, drone or other, of
    whichever class."""

    distance_min: float = 16 / 224
    """Minimum side that such a view is reduced to, as a share of the image's side."""

    distance_max: float = 120 / 224
    """Maximum side that such a view is reduced to, as a share of the image's side."""

    weather_p: float = 0.0
    """Probability, at strength 1, that a view lies in haze or in the dark, each as often."""

    weather: float = 0.8
    """Maximum share of the light that haze or darkness takes."""

    blur_p: float = 0.0
    """Probability, at strength 1, that a view is blurred."""

    blur: float = 6 / 224
    """Maximum standard deviation of the blur, as a share of the image's side."""

    noise_p: float = 0.0
    """Probability, at strength 1, that a view has Gaussian noise."""

    noise: float = 0.38
    """Maximum standard deviation of the noise, as a share of the full scale."""

    grey_p: float = 0.0
    """Probability, at strength 1, that a view has no colour."""

    infrared_p: float = 0.0
    """Probability, at strength 1, that a view has the tones of a thermal camera: grey, inverted and
    of half the contrast."""

    jpeg_p: float = 0.0
    """Probability, at strength 1, that a view is compressed as a JPEG."""

    jpeg: float = 0.93
    """Maximum loss of quality by the compression, as a share: 0.93 is quality 7 of 100."""

    def __post_init__(self) -> None:
        for name in vars(self):
            value, maximum = getattr(self, name), 90.0 if name == "rotation_deg" else 1.0
            if not 0 <= value <= maximum:
                raise ConfigError(f"augment.{name} is {value}; it must be 0 to {maximum:g}.")
        for name in ("cutout", "distance"):
            low, high = getattr(self, f"{name}_min"), getattr(self, f"{name}_max")
            if low > high:
                raise ConfigError(
                    f"augment.{name}_min is {low}, above augment.{name}_max {high}; it must not be."
                )
        if not self.distance_min:
            raise ConfigError("augment.distance_min is 0; it must be above 0.")
