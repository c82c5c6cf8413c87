"""What an output directory replaces, and what it never does."""

import json

import pytest

from cifar_flax.errors import UserError
from cifar_flax.explaining import folder

EARLIER = json.dumps({"checkpoint_sha256": "0"})
LISTED = ["gradcam_images/wrong_1.png", "trust.json"]
OURS = json.dumps({"format": folder.EXPLANATION.format, "files": LISTED})


def write(path, *files):
    for name, text in files:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def test_an_earlier_one_is_replaced_when_that_is_asked_for(tmp_path):
    out = write(tmp_path / "out", ("manifest.json", OURS), ("gradcam_images/wrong_1.png", ""), ("trust.json", ""))
    with pytest.raises(UserError, match="exists: replace it with --overwrite"):
        folder.check(out, folder.EXPLANATION, overwrite=False)
    with folder.replacing(out, folder.EXPLANATION, overwrite=True) as new:
        write(new, ("manifest.json", "new"))
    assert [path.name for path in out.iterdir()] == ["manifest.json"] and (out / "manifest.json").read_text() == "new"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("thesis.tex", "")], "holds something else"),
        ([("manifest.json", '{"name": "my page"}'), ("src/app.js", "")], "holds something else"),
        ([("manifest.json", '["checkpoint_sha256"')], "holds something else"),
        ([("manifest.json", '{"format": 1, "files": {}}'), ("state/d/1", "")], "holds something else"),  # a checkpoint
        ([("pictures.json", OURS)], "holds something else"),  # the other kind
        ([("manifest.json", EARLIER)], "was written by an earlier version: delete it, or choose another"),
        ([("manifest.json", OURS), ("notes.txt", "")], "also holds notes.txt, which would be lost"),
        ([("manifest.json", OURS), ("gradcam_images/mine.png", "")], "also holds gradcam_images/mine.png"),
    ],
)
def test_what_is_not_ours_is_kept(files, message, overwrite, tmp_path):
    out = write(tmp_path / "out", *files)
    with (
        pytest.raises(UserError, match=message),
        folder.replacing(out, folder.EXPLANATION, overwrite=overwrite),
    ):
        pass
    assert all((out / name).read_text() == text for name, text in files)


def test_a_file_is_kept(tmp_path):
    with pytest.raises(UserError, match="is a file: choose another"):
        folder.check(write(tmp_path, ("out", "")) / "out", folder.PICTURES, overwrite=True)
