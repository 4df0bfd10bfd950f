"""Which folder an image is collected into: that of a class or, for negatives, of a kind."""

from drone.data.prepare.class_names import check_kind
from drone.errors import ConfigError
from drone.labels import CLASSES, ClassSet, composed, nearest
from drone.names import check_folder_name, listed


def folder_of(name: str, classes: ClassSet = CLASSES, *, negatives: bool = False) -> str:
    """Returns the name of the folder that a class or a kind is collected into.

    Args:
        name: A class in any spelling of `ClassSet.match` or, with `negatives`, a kind.
        classes: The classes.
        negatives: Whether it is a kind of images that show none of the classes.

    Raises:
        ConfigError: It is no class, or as a kind it is one or no name of a folder.
    """
    class_name = classes.match(name)
    if not negatives:
        return class_name or _unknown(name, classes)
    if class_name:
        raise ConfigError(f"{name!r} is a class and no kind of negatives; leave out --negatives.")
    kind = composed(name.strip())
    check_folder_name(kind, "A kind of negatives")
    check_kind(kind, "A kind of negatives")
    return kind


def _unknown(name: str, classes: ClassSet) -> str:
    suggestion = nearest(name, classes)
    hint = f"Did you mean {suggestion!r}?" if suggestion else f"Classes: {listed(classes)}."
    raise ConfigError(f"{name!r} is not a class. {hint}")
