"""Images of a data set: the forms of a cell, rejected images and their messages, and the store."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from PIL import ExifTags, Image

from cepo import tiny
from cepo.cli import main
from cepo.data.audit import repeated
from cepo.data.problems import Problems, load_problems
from cepo.errors import UserError
from cepo.messages.groups import ImageRef, Message
from cepo.messages.hints import with_marks
from cepo.prompts.images import MAX_IMAGES, ImageStore, cells, checked, read
from cepo.prompts.renderer import Renderer
from cepo.tiny import vision
from tests.helpers.factories import RUNS, make_config, make_task

QUESTION = "<image>How many? 3 + 4"


def picture(kind: str = "PNG", size: tuple[int, int] = (5, 3), colour: int = 9, **options: Any) -> bytes:
    file = BytesIO()
    Image.new("RGB", size, (colour, 0, 0)).save(file, format=kind, **options)
    return file.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A small file whose header declares this size."""
    small = picture()
    header = small[12:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + small[24:29]
    return small[:12] + header + zlib.crc32(header).to_bytes(4, "big") + small[33:]


@pytest.fixture(scope="module")
def vision_renderer() -> Renderer:
    return Renderer(str(vision.path()))


def rows_of(*values: Any, question: Any = QUESTION) -> list[dict[str, Any]]:
    return [{"question": question, "answer": "7", "images": value} for value in values]


def loaded(renderer: Renderer, path: Path, *overrides: str, store: ImageStore | None = None) -> Problems:
    return load_problems(make_config(f"data.train={path}", *overrides), renderer, store=store)


def as_parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def as_lines(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("kind", "media_type"),
    [
        ("PNG", "image/png"),
        ("JPEG", "image/jpeg"),
        ("MPO", "image/jpeg"),
        ("WEBP", "image/webp"),
        ("GIF", "image/gif"),
    ],
)
def test_an_image_is_named_by_its_content(kind: str, media_type: str) -> None:
    behind: dict[str, Any] = {"save_all": True, "append_images": [Image.new("RGB", (5, 3))]} if kind == "MPO" else {}
    data = picture(kind, **behind)
    assert checked(data) == ImageRef(sha256=hashlib.sha256(data).hexdigest(), media_type=media_type, width=5, height=3)


def test_a_cell_may_hold_an_image_in_any_form(tmp_path: Path) -> None:
    data = picture()
    (tmp_path / "a.png").write_bytes(data)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    forms = [
        data,
        {"bytes": data, "path": "x"},
        {"bytes": None, "path": "a.png"},
        "a.png",
        str(tmp_path / "a.png"),
        uri,
    ]
    assert {read(form, tmp_path) for form in forms} == {data}
    drawn = checked(read(Image.new("RGB", (4, 2)), tmp_path))
    assert (drawn.media_type, drawn.width, drawn.height) == ("image/png", 4, 2)
    assert [len(cells(value)) for value in (None, "", [], data, [data, None, "a.png"])] == [0, 0, 0, 1, 2]


@pytest.mark.parametrize("name", ["../secret.png", "inside/../../secret.png", "{folder}/secret.png"])
def test_a_path_outside_the_folder_of_the_data_file_is_refused(tmp_path: Path, name: str) -> None:
    """A data file from elsewhere may not read the files of the user who trains on it."""
    (tmp_path / "secret.png").write_bytes(picture())
    (tmp_path / "data" / "inside").mkdir(parents=True)
    with pytest.raises(UserError, match="which is outside the folder of the data file; copy the image there"):
        read(name.format(folder=tmp_path), tmp_path / "data")
    (tmp_path / "data" / "inside" / "b.png").write_bytes(picture())
    assert read("inside/../inside/b.png", tmp_path / "data") == picture()


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        (17, "holds int, which is not an image; give bytes, a path or a data URI"),
        ("absent.png", "absent.png: No such file or directory; paths are relative to the data file"),
        ("a\x00b", "embedded null byte; paths are relative to the data file"),
        ("~nobody-here/a.png", "nobody-here/a.png: Could not determine home directory"),
        ("/dev/zero", "holds the path /dev/zero, which is not a file; paths are relative to the data file"),
        (".", ", which is not a file; paths are relative to the data file"),
        (base64.b64encode(png_of(9, 9) * 99).decode(), ": File name too long; paths are relative to the data"),
        ("https://example.org/a.png", "holds the URL https://example.org/a.png; download the image"),
        ("data:image/png,abc", "which is not a base64 data URI"),
        ("data:image/png;base64,@@", "holds a data URI that is not base64"),
        (b"", "not PNG, JPEG, WebP or GIF; convert the image"),
        (b"<svg/>", "not PNG, JPEG, WebP or GIF; convert the image"),
        (b"RIFF but no picture", "holds a damaged image, which cannot be read; replace it"),
        (picture(size=(60, 60))[:-40], "holds a damaged image: "),
        (picture("JPEG", (300, 300))[:400], "holds a damaged image: "),
        (png_of(5000, 5000), "holds an image of 5000 x 5000 pixels, more than 16777216; make it smaller"),
        (png_of(60000, 60000), "holds an image that is too large: "),
        (bytes(32 * 2**20 + 1), "holds an image of 33554433 bytes, more than 33554432; make it smaller"),
        (picture("GIF", save_all=True, append_images=[Image.new("RGB", (5, 3), (0, 99, 0))]), "holds an animation"),
    ],
)
def test_a_bad_image_is_refused_in_one_line(tmp_path: Path, cell: Any, says: str) -> None:
    with pytest.raises(UserError) as refused:
        checked(read(cell, tmp_path))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_image_is_as_wide_and_as_high_as_its_camera_was_held(tmp_path: Path, kind: str) -> None:
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    data = picture(kind, exif=turned)
    drawn = [checked(data), checked(read(Image.open(BytesIO(data)), tmp_path))]
    assert [(image.width, image.height) for image in drawn] == [(3, 5)] * 2
    unreadable = checked(picture(kind, exif=b"Exif\0\0no tags"))
    assert (unreadable.width, unreadable.height) == (5, 3)


def test_a_data_set_from_the_network_names_no_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    with pytest.raises(UserError, match="only a data set on this machine may name files"):
        read(str(tmp_path / "a.png"), None)


def test_images_and_marks_are_matched() -> None:
    turns = [Message(role="user", content=text) for text in ("<image> and <image>", "which?")]
    assert with_marks(turns, 2) == tuple(turns)
    assert with_marks(turns[1:], 2) == (Message(role="user", content="<image><image>which?"),)
    assert with_marks(turns[1:], 0) == tuple(turns[1:])
    with pytest.raises(UserError, match="holds 1 image for 2 <image> marks in the question; write <image> where each"):
        with_marks(turns, 1)
    with pytest.raises(UserError, match=f"holds {MAX_IMAGES + 1} images, more than {MAX_IMAGES}; use fewer"):
        cells([b"x"] * (MAX_IMAGES + 1))


def test_images_of_a_parquet_file_reach_the_problem_and_the_store(tmp_path: Path, vision_renderer: Renderer) -> None:
    one, two = picture(colour=1), picture("JPEG", colour=2)
    rows = rows_of([{"bytes": one, "path": None}], [{"bytes": two, "path": "b.jpg"}], [{"bytes": one, "path": None}])
    store = ImageStore(tmp_path / "store")
    data_set = loaded(vision_renderer, as_parquet(tmp_path, rows), store=store)
    assert "images in images" in str(data_set.columns)
    assert [store.read(problem.images[0]) for problem in data_set.problems] == [one, two, one]
    assert len(list((tmp_path / "store").iterdir())) == 2
    assert repeated(data_set.problems) == [(2, 0)]


def test_the_image_feature_of_datasets_is_read_as_it_is_stored(tmp_path: Path, vision_renderer: Renderer) -> None:
    data = picture("JPEG")
    features = datasets.Features(
        {"problem": datasets.Value("string"), "answer": datasets.Value("string"), "image": datasets.Image()}
    )
    made = datasets.Dataset.from_list(
        [{"problem": QUESTION, "answer": "7", "image": {"bytes": data, "path": None}}], features
    )
    made.save_to_disk(tmp_path / "set")
    (problem,) = loaded(vision_renderer, tmp_path / "set").problems
    assert problem.images == (checked(data),)


def test_chat_messages_with_image_parts_and_paths_beside_the_file(tmp_path: Path, vision_renderer: Renderer) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    parts = [{"type": "image"}, {"type": "text", "text": "How many? 3 + 4"}]
    turns = [{"role": "user", "content": parts}]
    rows = [{"question": turns, "answer": "7", "pictures": "a.png"}]
    (problem,) = loaded(vision_renderer, as_lines(tmp_path, rows), "data.images=pictures").problems
    assert problem.messages[0].content.startswith(QUESTION)
    assert problem.images == (checked(picture()),)


def test_an_image_in_a_system_message_is_refused_and_the_word_is_text(
    tmp_path: Path, vision_renderer: Renderer
) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    user = {"role": "user", "content": QUESTION}
    system = {"role": "system", "content": [{"type": "image"}]}
    with pytest.raises(
        UserError, match="row 0: column 'question', turn 0, has an image in its system message; put it in a us"
    ):
        loaded(vision_renderer, as_lines(tmp_path, rows_of("a.png", question=[system, user])))
    written = {"role": "system", "content": "Every <image> is a figure."}
    (problem,) = loaded(vision_renderer, as_lines(tmp_path, rows_of("a.png", question=[written, user]))).problems
    task = make_task(messages=problem.messages, images=problem.images)
    ids = vision_renderer.prompt_ids(task.messages, task.images)
    assert vision_renderer.tokenizer.decode(ids).count("Every <image> is a figure.") == 1
    assert ids.count(vision_renderer.pixels.placeholder) == vision_renderer.pixels.tokens(problem.images[0])


def test_a_bad_image_is_refused_with_its_row_and_column_or_dropped(tmp_path: Path, vision_renderer: Renderer) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    path = as_lines(tmp_path, rows_of("a.png", "b.png", ["a.png", "a.png"]))
    with pytest.raises(UserError) as refused:
        loaded(vision_renderer, path)
    assert str(refused.value) == (
        f"data.train={path}, row 1: column 'images' holds the path {tmp_path}/b.png: No such file or directory; paths "
        'are relative to the data file; fix the row or set data.on_bad_row = "drop"'
    )
    kept = loaded(vision_renderer, path, "data.on_bad_row=drop")
    assert [problem.row for problem in kept.problems] == [0]
    assert "row 2: column 'images' holds 2 images for 1 <image> mark in the question" in kept.dropped[1]


def test_a_row_without_its_image_is_refused_and_a_text_first_hides_no_column(
    tmp_path: Path, vision_renderer: Renderer
) -> None:
    uri = "data:image/png;base64," + base64.b64encode(picture()).decode()
    text, shown = {"question": "3 + 4", "answer": "7"}, rows_of([uri])[0]
    missing = {key: value for key, value in shown.items() if key != "images"}
    path = as_lines(tmp_path, [text, shown, missing])
    data_set = loaded(vision_renderer, path, 'data.on_bad_row="drop"')
    assert [len(problem.images) for problem in data_set.problems] == [0, 1]
    assert data_set.dropped[0].endswith(
        "row 2: column 'images' holds 0 images for 1 <image> mark in the question; write <image> where each belongs, "
        "or nowhere"
    )


def test_marks_without_a_column_of_images_are_text_to_a_model_that_reads_alone(
    tmp_path: Path, vision_renderer: Renderer
) -> None:
    path = as_lines(tmp_path, [{"question": QUESTION, "answer": "7", "figure": "a.png"}])
    with pytest.raises(
        UserError, match=r"row 0: its question has <image> marks and no column holds images; name it in"
    ):
        loaded(vision_renderer, path)
    assert loaded(Renderer(str(tiny.path())), path).problems[0].messages[0].content.startswith(QUESTION)


def test_a_column_that_is_not_there_is_named(tmp_path: Path, vision_renderer: Renderer) -> None:
    with pytest.raises(UserError, match=r"no column 'scan'; the columns are .*; name the right one in data\.images"):
        loaded(vision_renderer, as_lines(tmp_path, rows_of("a.png")), "data.images=scan")


def test_a_model_that_sees_no_images_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = as_lines(tmp_path, rows_of("a.png"))
    assert main(["check", str(RUNS / "tiny_cepo.toml"), "--set", f"data.train={path}", "--set", "data.eval=''"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"cepo: data.train={path}, row 0: column 'images' holds images, but model.path=")
    assert "takes no images; choose a model of type qwen3_vl" in said
    assert said.count("\n") == 1
    without = as_lines(tmp_path, rows_of(None, [], question="3 + 4 = ?"))
    assert main(["check", str(RUNS / "tiny_cepo.toml"), "--set", f"data.train={without}", "--set", "data.eval=''"]) == 0


def test_a_store_is_bounded_and_notices_damage(tmp_path: Path) -> None:
    data = picture()
    store = ImageStore(tmp_path / "store", max_bytes=len(data) + 10)
    store.put(data)
    store.put(data)
    with pytest.raises(UserError, match=r"use fewer rows \(data.limit\)"):
        store.put(picture(colour=5))
    assert ImageStore(tmp_path / "store").read(checked(data)) == data
    (tmp_path / "store" / checked(data).sha256).write_bytes(b"other")
    with pytest.raises(UserError, match="is missing or damaged"):
        store.read(checked(data))


def test_images_of_a_run_that_does_not_start_are_removed_again(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "runs" / "run" / "images")

    def refused(*images: bytes) -> None:
        with store.transaction():
            for image in images:
                store.put(image)
            raise UserError("refused")

    with pytest.raises(UserError, match="refused"):
        refused(picture())
    assert list(tmp_path.iterdir()) == []
    store.put(picture())
    with pytest.raises(UserError, match="refused"):
        refused(picture(), picture(colour=10))
    assert store.read(checked(picture())) == picture()
    assert len(list((tmp_path / "runs" / "run" / "images").iterdir())) == 1
