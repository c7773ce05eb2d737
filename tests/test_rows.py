import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_dspy.data import rows
from persona_dspy.data.tasks import Place
from persona_dspy.errors import DataError

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='ab"é\\'), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("rows") / "file.json"


@settings(deadline=None)
@given(st.lists(values, max_size=6), st.sampled_from([None, 1]), st.booleans(), st.booleans())
def test_an_array_comes_back_element_by_element(path, elements, indent, ascii_only, bom):
    text = "\n " + json.dumps(elements, indent=indent, ensure_ascii=ascii_only)
    path.write_bytes(b"\xef\xbb\xbf" * bom + text.encode())
    assert rows.file_form(path) == "array"
    assert list(rows.array_rows(path)) == list(enumerate(elements, 1))


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.text(alphabet="ab"), values, max_size=3), min_size=1, max_size=6), st.booleans())
def test_lines_come_back_with_their_numbers_and_offsets(path, objects, blank):
    ends = ("\r\n" if blank else "\n") + "\n" * blank
    path.write_bytes(ends.join(json.dumps(o) for o in objects).encode())
    assert rows.file_form(path) == "lines"
    found = list(rows.numbered_lines(path))
    assert [rows.json_line(line, Place()) for _, _, line in found] == objects
    assert [number for number, _, _ in found] == [1 + i * (1 + blank) for i in range(len(objects))]
    with path.open("rb") as file:
        for _, offset, line in found:
            file.seek(offset)
            assert file.readline() == line


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_rows_or_a_data_error(path, content):
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        if rows.file_form(path) == "array":
            list(rows.array_rows(path))
        else:
            [rows.json_line(line, Place()) for _, _, line in rows.numbered_lines(path)]
    with contextlib.suppress(DataError):
        rows.read_golds(path)


@settings(deadline=None)
@given(st.integers(1, 60))
def test_a_cut_array_gives_its_whole_rows_then_an_error(path, cut):
    whole = json.dumps([{"id": n, "text": "é" * n} for n in range(6)], ensure_ascii=False).encode()
    path.write_bytes(whole[: len(whole) - cut])
    got = []
    with pytest.raises(DataError, match=r"after row \d.*cut short"):
        for _, row in rows.array_rows(path):
            got.append(row)
    assert got == [{"id": n, "text": "é" * n} for n in range(len(got))]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b" \n\t ", "an empty file"),
        (b"user,query", "starts with"),
        ("[]".encode("utf-16"), "UTF-8"),
        (b'{"task": "LaMP_1", "golds": []}', "outputs.json"),
    ],
)
def test_files_of_no_known_form(path, content, message):
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        rows.file_form(path)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        rows.file_form(tmp_path / "none.json")
    with pytest.raises(DataError, match=r"a directory.*questions\.json"):
        rows.file_form(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": 1', "JSON:"),
        (b"[1]", "one JSON object a line"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b'{"a": NaN}', "no JSON value"),
        (b"[" * 100_000, "JSON:"),
        (None, "a line over"),
    ],
)
def test_lines_that_are_no_row(line, message):
    with pytest.raises(DataError, match=f"f.jsonl, line 3.*{message}"):
        rows.json_line(line, Place(file="f.jsonl", line=3))


def test_a_huge_line_is_passed_over_without_being_kept(path, monkeypatch):
    monkeypatch.setattr(rows, "MAX_LINE", 50)
    path.write_bytes(b'{"a": 1}\n' + b"x" * 500 + b'\n{"a": 2}')
    assert [(n, line) for n, _, line in rows.numbered_lines(path)] == [(1, b'{"a": 1}\n'), (2, None), (3, b'{"a": 2}')]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "golds"),
        ('{"task": "LaMP_1"}', "golds"),
        ('{"task": "LaMP_1", "golds": [{"id": "1"}]}', r"golds\[0\]"),
        ('{"task": "LaMP_1", "golds": [{"id": "1", "output": "a"}, {"id": 1, "output": "b"}]}', "given once"),
        ('{"task": ', "valid JSON"),
    ],
)
def test_outputs_of_another_form(path, content, message):
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        rows.read_golds(path)
