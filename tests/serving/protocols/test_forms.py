"""Fields of forms, as browsers and curl send them and as nobody should."""

import pytest

from serving.http.messages import HTTPError
from serving.protocols.forms import MAX_FIELDS, MULTIPART, URL_ENCODED, media_type, parse_form

FORM = f"{MULTIPART}; boundary=XX"


def part(value: str, headers: str = 'Content-Disposition: form-data; name="data"') -> str:
    return f"--XX\r\n{headers}\r\n\r\n{value}\r\n"


def parse(body: str, content_type: str = FORM) -> dict[str, str]:
    return parse_form(content_type, body.encode())


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [("Text/HTML; charset=utf-8", "text/html"), (" text/csv ", "text/csv"), ("", "")],
)
def test_a_media_type_is_without_its_parameters(content_type: str, expected: str) -> None:
    assert media_type(content_type) == expected


def test_url_encoded_fields_are_decoded_and_the_last_of_a_name_counts() -> None:
    found = parse("data=a+film&empty=&data=%C3%BC%26", f"{URL_ENCODED}; charset=utf-8")
    assert found == {"data": "ü&", "empty": ""}


def test_parts_have_names_and_the_last_of_a_name_counts() -> None:
    body = part("first") + part("a film") + part("1", "content-disposition: form-data; name=n")
    assert parse(f"{body}--XX--\r\n") == {"data": "a film", "n": "1"}


def test_a_value_keeps_its_lines_and_what_is_around_the_form_is_dropped() -> None:
    value = "two\r\nlines, and --XX in one of them\r\n"
    assert parse(f"preamble\r\n{part(value)}--XX--\r\nepilogue") == {"data": value}


def test_lines_may_end_as_unix_has_them() -> None:
    assert parse(f"{part('a film')}--XX--".replace("\r\n", "\n")) == {"data": "a film"}


@pytest.mark.parametrize(
    "headers",
    [
        'Content-Type: text/plain\r\nContent-Disposition: form-data; filename="a.txt"; name="data"',
        "CONTENT-DISPOSITION: form-data; NAME = data; filename=a.txt",
        'Content-Disposition: form-data; filename="a; name=b"; name="data"',
        'Content-Disposition: form-data; filename="a\\"; name=b"; name="data"',
        'Content-Disposition: form-data; filename="";name=data ; name=later',
        'Content-Disposition: form-data; name="d\\ata"; x-name="b"',
    ],
)
def test_the_name_is_found_among_other_headers_and_parameters(headers: str) -> None:
    assert parse(f"{part('a film', headers)}--XX--") == {"data": "a film"}


@pytest.mark.parametrize(
    "value",
    ['form-data; filename="a; name=data', 'form-data; filename="a" name=data', "name=data", ";"],
)
def test_a_name_behind_what_is_broken_is_none(value: str) -> None:
    assert parse(f"{part('a', f'Content-Disposition: {value}')}--XX--") == {"": "a"}


def test_a_boundary_may_be_quoted() -> None:
    content_type = f'{MULTIPART}; charset=utf-8; boundary="XX"'
    assert parse(f"{part('a film')}--XX--", content_type) == {"data": "a film"}


def test_as_many_fields_as_there_may_be_are_read() -> None:
    fields = [f"n{number}=1" for number in range(MAX_FIELDS)]
    assert len(parse("&".join(fields), URL_ENCODED)) == MAX_FIELDS
    with pytest.raises(HTTPError, match="the form cannot be read: Max number of fields"):
        parse("&".join([*fields, "more=1"]), URL_ENCODED)


def test_as_many_parts_as_there_may_be_are_read() -> None:
    names = [f"Content-Disposition: form-data; name=n{number}" for number in range(MAX_FIELDS)]
    body = "".join(part(str(number), name) for number, name in enumerate(names))
    assert parse(f"{body}--XX--") == {f"n{number}": str(number) for number in range(MAX_FIELDS)}
    with pytest.raises(HTTPError, match=f"the form holds more than {MAX_FIELDS} fields"):
        parse(f"{body}{part('one more')}--XX--")


def test_parts_without_end_are_refused_unread() -> None:
    with pytest.raises(HTTPError, match=f"the form holds more than {MAX_FIELDS} fields"):
        parse(part("a") * (MAX_FIELDS + 1) + "--XX--")


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        (part("a") + "--XX--", MULTIPART, "content-type 'multipart/form-data' names no boundary"),
        (part("a"), FORM, "the form does not end with its boundary 'XX'"),
        (part("a") + "--YY--", FORM, "the form does not end with its boundary 'XX'"),
        ("--XX\r\nname: data\r\n--XX--", FORM, "no empty line after its headers"),
        ("data=%ff", URL_ENCODED, "the form cannot be read"),
    ],
)
def test_a_form_that_is_broken_says_where(body: str, content_type: str, words: str) -> None:
    with pytest.raises(HTTPError, match=words) as refused:
        parse(body, content_type)
    assert refused.value.kind == "malformed"


def test_bytes_that_are_no_text_are_refused_by_what_holds_them() -> None:
    with pytest.raises(HTTPError, match="a field of the form is not UTF-8"):
        parse_form(FORM, part("X").encode().replace(b"\r\nX\r\n", b"\r\n\xff\r\n") + b"--XX--")
    with pytest.raises(HTTPError, match="the form is not UTF-8"):
        parse_form(URL_ENCODED, b"data=\xff")
