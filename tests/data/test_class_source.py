"""Where the classes of a data set come from."""

from pathlib import Path

import pytest

from drone.data.prepare.class_source import named_classes, read_classes, write_classes
from drone.data.prepare.listing import list_raw_files
from drone.data.prepare.roots import open_root
from drone.errors import ConfigError
from drone.labels import CLASSES, ClassSet

YAML = """
- Seagulls
- {name: "Drones", short: D, folders: [uav, quads]}
- {name: Airliners, role: other}
"""


def write(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "classes.yaml").write_text(text, "utf-8")
    return [str(tmp_path / "classes.yaml")]


def test_a_file_of_classes(tmp_path: Path) -> None:
    classes = named_classes(write(tmp_path, YAML))
    assert classes.names == ("Seagulls", "Drones", "Airliners")
    assert classes.short_names == ("Seagulls", "D", "Airliners")
    assert classes.roles == ("bird", "drone", "other")
    for number, folder in enumerate(("seagull", "UAVs", "airliner", "Quads")):
        (tmp_path / "raw" / folder).mkdir(parents=True)
        (tmp_path / "raw" / folder / f"{number}.jpg").touch()
    files = list_raw_files([tmp_path / "raw"], classes).files
    assert {file.path: file.class_name for file in files} == {
        "seagull/0.jpg": "Seagulls",
        "UAVs/1.jpg": "Drones",
        "airliner/2.jpg": "Airliners",
        "Quads/3.jpg": "Drones",
    }


@pytest.mark.parametrize("classes", [CLASSES, ClassSet.of(("Möwen", "747"), (), ("bird", "other"))])
def test_what_is_written_is_read(tmp_path: Path, classes: ClassSet) -> None:
    write_classes(classes, tmp_path / "out.yaml")
    assert named_classes([str(tmp_path / "out.yaml")]) == classes


def test_names_alone() -> None:
    assert named_classes(CLASSES.names) == CLASSES
    assert named_classes(("Gulls", "Kites")).short_names == ("Gulls", "Kites")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b", "does not hold a list"),
        ("", "does not hold a list of classes: it is empty"),
        ("- A\n- 747", "class 2 is 747; a name must be text. Put it in quotes"),
        ("- A\n- ~", "class 2 is null; a name must be text. Put it in quotes"),
        ("- {short: A}\n- B", "class 1 has no name"),
        ("- A\n- {name: 747}", "class 2: name is 747; a name must be text. Put it in quotes"),
        ("- A\n- {name: B, short: no}", "class 2: short is false; a name must be text"),
        ("- A\n- {name: B, folders: [747]}", "class 2: a folder is 747; a name must be text"),
        ("- A\n- !!bool maybe", "line 2 has 'maybe', which is not a valid bool"),
        ("- A\n- {name: B, role: plane}", "class 2: role is 'plane'; allowed are bird, drone"),
        ("- A\n- {name: B, roel: bird}", "class 2 has 'roel'; did you mean 'role'"),
        ("- A\n- {name: B, folders: b}", "folders is 'b'; it must be a list of names"),
        (
            "- {name: A, folders: [x]}\n- {name: B, folders: [x]}",
            "the folder 'x' under 'A', but it matches another class",
        ),
        ("- {name: A, short: x}\n- {name: B, short: x}", "has the short name 'x' more than once"),
        ("- A\n- B\n- C\n- B", "has the class 'B' more than once; each must differ"),
        ("- A", "has 1 class; a data set has from 2 to 200"),
        ("\n".join(f"- c{number}" for number in range(201)), "has 201 classes; .* from 2 to 200"),
        ("- A\n- none of these", "Name their folder with --negatives"),
        ("- A\n- {name: B, folders: [None_of_these]}", "Name the folder with --negatives instead"),
        ("- A/B\n- A B", "'A/B', but its folder, 'A B', would match another class too"),
        ("- A\n- ..", "is '..', but no folder of images can have that name"),
        ("- A\n- __MACOSX", "is '__MACOSX', but no folder of images can have that name"),
    ],
)
def test_files_that_hold_no_classes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        named_classes(write(tmp_path, text))
    assert "classes.yaml" in str(raised.value) and len(str(raised.value)) < 500


def test_each_folder_is_a_class(tmp_path: Path) -> None:
    for name in ("one/train/UAVs", "one/val/uav", "one/val/Kites", "two/Gulls", "two/none/sky"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "one" / ".cache").mkdir()
    roots, negatives = [tmp_path / "one", tmp_path / "two"], [tmp_path / "two" / "none"]
    classes = read_classes(["folders"], roots, negatives, open_root)
    # In the order of the alphabet; folders that are called alike are one class.
    assert classes.names == ("Gulls", "Kites", "UAVs")
    assert classes.roles == ("bird", "other", "drone")
